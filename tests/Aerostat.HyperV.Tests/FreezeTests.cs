using Aerostat.Devices;

namespace Aerostat.HyperV.Tests;

/// <summary>The host's side of freezing a guest's file systems, with a guest that does what a test wants.</summary>
public sealed class FreezeTests : IDisposable
{
    private const byte HotBackup = 2, Freeze = 5, Thaw = 6;
    private const uint NoDaemon = 0x8000_4005;

    private readonly GuestBus bus = new();
    private GuestChannel channel = null!;

    private VolumeSnapshots Volumes => bus.Components.Volumes;

    public void Dispose() => bus.Dispose();

    private void Connect(int message = 5)
    {
        bus.Connect();
        channel = bus.Open(Volumes);
        channel.Negotiate(3, message);
    }

    private byte[] Expect(byte operation)
    {
        byte[] request = Assert.IsType<byte[]>(channel.Receive());
        Assert.Equal(operation, request[28]);
        // A driver drops what is shorter without a word.
        Assert.True(request.Length >= 40);
        return request;
    }

    private static string Failure(Task task)
    {
        SpinWait.SpinUntil(() => task.IsCompleted, TimeSpan.FromSeconds(30));
        return Assert.IsType<FreezeException>(task.Exception!.InnerException).Message;
    }

    private static T Result<T>(Task<T> task)
    {
        SpinWait.SpinUntil(() => task.IsCompleted, TimeSpan.FromSeconds(30));
        return task.Result;
    }

    private Task Freezing(FreezeOptions? options = null)
    {
        Task freeze = Volumes.FreezeAsync(options ?? new FreezeOptions());
        channel.Answer(Expect(HotBackup));
        return freeze;
    }

    private Task Frozen(FreezeOptions? options = null)
    {
        Task freeze = Freezing(options);
        channel.Answer(Expect(Freeze));
        Assert.Equal(FreezePhase.Frozen, Volumes.Phase);
        return freeze;
    }

    private void Pass(double seconds)
    {
        bus.Fixture.Time.Advance(TimeSpan.FromSeconds(seconds));
        bus.Server.Process();
    }

    [Fact]
    public async Task AFreezeIsProbedHeldAndThawed()
    {
        Connect();
        Task freeze = Freezing();
        byte[] request = Expect(Freeze);
        Assert.False(freeze.IsCompleted);
        bus.Fixture.Time.Advance(TimeSpan.FromMilliseconds(20));
        channel.Answer(request);
        await freeze.WaitAsync(TimeSpan.FromSeconds(30), TestContext.Current.CancellationToken);
        bus.Fixture.Time.Advance(TimeSpan.FromMilliseconds(30));
        Task<FreezeResult> thaw = Volumes.ThawAsync();
        channel.Answer(Expect(Thaw));
        FreezeResult result = Result(thaw);
        Assert.Equal((20, 30, false), (result.FreezeTime.TotalMilliseconds, result.FrozenTime.TotalMilliseconds, result.ByWatchdog));
        Assert.Equal(FreezePhase.Idle, Volumes.Phase);
        // And again, since nothing is left over.
        await Frozen().WaitAsync(TimeSpan.FromSeconds(30), TestContext.Current.CancellationToken);
    }

    [Fact]
    public void WithoutADaemonItFailsAtOnceAndSaysWhatToDo()
    {
        Connect();
        Task freeze = Volumes.FreezeAsync(new FreezeOptions());
        channel.Answer(Expect(HotBackup), NoDaemon);
        Assert.Contains("hyperv-daemons", Failure(freeze), StringComparison.Ordinal);
        Assert.Equal((FreezePhase.Idle, true), (Volumes.Phase, channel.Receive() is null));
    }

    [Fact]
    public void VersionsBelow5AreRefused()
    {
        Connect(message: 4);
        Assert.Equal(ComponentState.Incompatible, Volumes.State);
        Task freeze = Volumes.FreezeAsync(new FreezeOptions());
        bus.Server.Process();
        Assert.Contains("5.0", Failure(freeze), StringComparison.Ordinal);
    }

    [Fact]
    public void AGuestWithoutADriverIsToldApart()
    {
        bus.Connect();
        Task freeze = Volumes.FreezeAsync(new FreezeOptions());
        bus.Server.Process();
        Assert.Contains("hv_utils", Failure(freeze), StringComparison.Ordinal);
    }

    [Fact]
    public void OneAtATimeAndNoThawOfNothing()
    {
        Connect();
        Task<FreezeResult> nothing = Volumes.ThawAsync();
        bus.Server.Process();
        Assert.Contains("nothing is frozen", Failure(nothing), StringComparison.Ordinal);
        Frozen();
        Task second = Volumes.FreezeAsync(new FreezeOptions());
        bus.Server.Process();
        Assert.Contains("under way", Failure(second), StringComparison.Ordinal);
        Assert.Equal(FreezePhase.Frozen, Volumes.Phase);
        // Two who thaw get the same answer, and the guest is asked once.
        Task<FreezeResult> one = Volumes.ThawAsync(), two = Volumes.ThawAsync();
        channel.Answer(Expect(Thaw));
        Assert.Equal(Result(one), Result(two));
        Assert.Null(channel.Receive());
    }

    [Fact]
    public void AFailedFreezeIsThawed()
    {
        Connect();
        Task freeze = Freezing();
        channel.Answer(Expect(Freeze), NoDaemon);
        Assert.Contains("could not freeze", Failure(freeze), StringComparison.Ordinal);
        channel.Answer(Expect(Thaw));
        Assert.Equal(FreezePhase.Idle, Volumes.Phase);
    }

    [Fact]
    public void ALateFreezeIsThawedTwice()
    {
        Connect();
        Task freeze = Freezing(new FreezeOptions { Deadline = TimeSpan.FromSeconds(10) });
        byte[] late = Expect(Freeze);
        Pass(10.1);
        Assert.Contains("10 s", Failure(freeze), StringComparison.Ordinal);
        byte[] thaw = Expect(Thaw);
        // The answer to the freeze comes late and is told by its number.
        channel.Answer(late);
        Assert.Equal((1L, FreezePhase.Thawing), (Volumes.Spurious, Volumes.Phase));
        channel.Answer(thaw);
        // That may have been the daemon's answer to the freeze: once more.
        channel.Answer(Expect(Thaw));
        Assert.Equal((FreezePhase.Idle, true), (Volumes.Phase, channel.Receive() is null));
    }

    [Fact]
    public void TheWatchdogThaws()
    {
        Connect();
        Frozen(new FreezeOptions { Watchdog = TimeSpan.FromSeconds(5) });
        Pass(5.1);
        byte[] request = Expect(Thaw);
        Task<FreezeResult> thaw = Volumes.ThawAsync();
        bus.Server.Process();
        channel.Answer(request);
        Assert.True(Result(thaw).ByWatchdog);
        Assert.Contains(bus.Journal, l => l.Contains("watchdog", StringComparison.Ordinal));
    }

    /// <summary>A thaw that the guest answers with an error may come after another thaw: then nobody may say that the file systems were frozen.</summary>
    [Fact]
    public void AThawThatWasTooLateIsNoSuccess()
    {
        Connect();
        Frozen();
        Task<FreezeResult> thaw = Volumes.ThawAsync();
        channel.Answer(Expect(Thaw), NoDaemon);
        Pass(1.1);
        channel.Answer(Expect(Thaw));
        Assert.Contains("were frozen until now", Failure(thaw), StringComparison.Ordinal);
        Assert.Equal(FreezePhase.Idle, Volumes.Phase);
    }

    [Fact]
    public void AThawThatIsNotConfirmedEndsWithTheChannelTakenAway()
    {
        Connect();
        Frozen();
        Task<FreezeResult> thaw = Volumes.ThawAsync();
        for (int attempt = 0; attempt < 3; attempt++)
        {
            Expect(Thaw);
            Pass(35.1);
            Pass(1.1);
        }
        Assert.Contains("taken away", Failure(thaw), StringComparison.Ordinal);
        byte[]? rescind = bus.Receive();
        Assert.Equal((2u, channel.RelId), (GuestBus.Word(rescind, 0), GuestBus.Word(rescind, 8)));
        bus.Post(GuestBus.Message(7, channel.RelId));
        bus.Post(GuestBus.Message(13, channel.RelId));
        bus.TakeOffers();
        channel = bus.Open(Volumes);
        channel.Negotiate(3, 5);
        // Its daemon may have been killed, and everything still be frozen: the next daemon is waited for, and asked to thaw it.
        channel.Answer(Expect(HotBackup), NoDaemon);
        Assert.Equal(FreezePhase.Failed, Volumes.Phase);
        Task refused = Volumes.FreezeAsync(new FreezeOptions());
        bus.Server.Process();
        Assert.Contains("never confirmed", Failure(refused), StringComparison.Ordinal);
        Pass(5.1);
        channel.Answer(Expect(HotBackup));
        channel.Answer(Expect(Thaw));
        Assert.Equal(FreezePhase.Idle, Volumes.Phase);
        Frozen();
    }

    [Fact]
    public void WhatAnotherMonitorHasLeftFrozenIsThawed()
    {
        Connect();
        List<FreezePhase> phases = [];
        Volumes.PhaseChanged += phases.Add;
        Volumes.ThawLeftovers();
        bus.Server.Process();
        channel.Answer(Expect(Thaw));
        Assert.Equal([FreezePhase.Thawing, FreezePhase.Idle], phases);
        Frozen();
    }

    [Fact]
    public void AGuestThatStartsAnewIsNotFrozen()
    {
        Connect();
        Frozen();
        Task<FreezeResult> thaw = Volumes.ThawAsync();
        bus.Server.Process();
        bus.Connect();
        Assert.Contains("reset", Failure(thaw), StringComparison.Ordinal);
        Assert.Equal(FreezePhase.Idle, Volumes.Phase);
    }

    [Fact]
    public void AMachineSavedWhileFrozenIsThawedWhereItGoesOn()
    {
        Connect();
        Frozen();
        VmBusSavedState saved = bus.Server.Save();
        byte[] pages = new byte[0x10000];
        bus.Fixture.Memory.TryRead(new(channel.Rings), pages);
        using GuestBus copy = new();
        copy.Fixture.Memory.TryWrite(new(channel.Rings), pages);
        copy.Server.Restore(saved);
        copy.Server.Resume();
        GuestChannel there = new(copy, channel.RelId, channel.Rings, 4);
        byte[] request = Assert.IsType<byte[]>(there.Receive());
        Assert.Equal(Thaw, request[28]);
        there.Answer(request);
        Assert.Equal(FreezePhase.Idle, copy.Components.Volumes.Phase);
    }

    [Fact]
    public void AnswersThatMakeNoSenseAreCounted()
    {
        Connect();
        Frozen();
        byte[] junk = new byte[48];
        channel.Send(junk);
        channel.Send([]);
        channel.Answer(junk);
        Assert.Equal((3L, FreezePhase.Frozen), (Volumes.Spurious, Volumes.Phase));
    }
}
