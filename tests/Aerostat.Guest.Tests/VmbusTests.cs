using System.Buffers.Binary;
using Aerostat.Devices;
using Aerostat.Guest.Drivers;
using Aerostat.HyperV;
using Xunit;

namespace Aerostat.Guest.Tests;

/// <summary>The guest's VMBus and snapshot driver in this process, without any processor, on the host's models.</summary>
public sealed class VmbusTests : IDisposable
{
    private VmbusGuest guest = new();

    private VolumeSnapshots Volumes => guest.Components.Volumes;

    public void Dispose() => guest.Dispose();

    private static string Failure(Task task)
    {
        SpinWait.SpinUntil(() => task.IsCompleted, TimeSpan.FromSeconds(30));
        return Assert.IsType<FreezeException>(task.Exception!.InnerException).Message;
    }

    private Task Freeze(FreezeOptions? options = null)
    {
        Task freeze = Volumes.FreezeAsync(options ?? new FreezeOptions());
        guest.Run();
        return freeze;
    }

    private Task<FreezeResult> Thaw()
    {
        Task<FreezeResult> thaw = Volumes.ThawAsync();
        guest.Run();
        return thaw;
    }

    private async Task FrozenAsync()
    {
        await Freeze().WaitAsync(TimeSpan.FromSeconds(30), TestContext.Current.CancellationToken);
        Assert.True(guest.FileSystem.IsFrozen && guest.Driver.IsFrozen && guest.Daemon.HoldsFrozen);
    }

    [Theory]
    [InlineData(5, 3, 5, 0x5_0003)]
    [InlineData(5, 0, 5, 0x5_0000)]
    [InlineData(4, 1, 5, 0x4_0001)]
    [InlineData(5, 3, 4, 0x4_0001)]
    [InlineData(3, 0, 5, 0x3_0000)]
    [InlineData(5, 3, 3, 0x3_0000)]
    public void AVersionIsAgreedOnAndTheChannelOpens(int major, int minor, uint guestMajor, uint expected)
    {
        guest.Dispose();
        guest = new VmbusGuest(new VmBusVersion(major, minor), guestMajor);
        guest.Start();
        Assert.Equal((VmbusState.Connected, expected, VmbusChannelState.Open), (guest.Bus.State, guest.Bus.Version, guest.ChannelState));
        Assert.Equal(ComponentState.Ready, Volumes.State);
        Assert.Equal(((uint)3, (uint)5), (guest.Driver.Framework, guest.Driver.Messages));
        string[] names = [.. Enumerable.Range(0, VmbusConnection.MostOffers).Select(guest.Bus.Offer).Where(o => o.RelId != 0).Select(o => o.Name).Order()];
        Assert.Equal(["fcopy", "heartbeat", "kvp", "shutdown", "timesync", "vss"], names);
        Assert.Equal(0ul, guest.Bus.Malformed);
    }

    [Fact]
    public async Task ACopyMadeWhileFrozenHasEveryRecord()
    {
        guest.Start();
        for (int round = 0; round < 5; round++)
        {
            ulong before = guest.Records.Acknowledged;
            Assert.True(before > 0);
            await FrozenAsync();
            ulong frozenAt = guest.Records.Acknowledged;
            int events = guest.Disk.Events.Count;
            guest.Run();
            Assert.InRange(guest.CountCopy(), Math.Max(before, frozenAt), frozenAt);
            Assert.Equal((frozenAt, events), (guest.Records.Acknowledged, guest.Disk.Events.Count));
            await Thaw();
            Assert.False(guest.FileSystem.IsFrozen);
            Assert.True(guest.Records.Acknowledged > frozenAt);
        }
        Assert.Equal((5ul, 5ul, 0ul, 0ul), (guest.Driver.Freezes, guest.Driver.Thaws, guest.Driver.Failures, guest.Driver.Spurious));
    }

    /// <summary>What comes before a daemon has registered waits in the ring, as was proposed in 2013.</summary>
    [Fact]
    public async Task NothingIsAnsweredBeforeADaemonIsThere()
    {
        guest.Start(daemon: false);
        Assert.Equal(VmbusChannelState.Open, guest.ChannelState);
        Assert.Contains("agreed on a version", Failure(Freeze()), StringComparison.Ordinal);
        Assert.Equal(0ul, guest.Driver.Answered);
        guest.Daemon.Start();
        guest.Run();
        await FrozenAsync();
    }

    [Fact]
    public void ADaemonThatHasGoneIsAnErrorAtOnce()
    {
        guest.Start();
        guest.Daemon.Stop();
        guest.Run();
        Assert.Contains("no daemon", Failure(Freeze()), StringComparison.Ordinal);
        Assert.Equal((FreezePhase.Idle, 1ul), (Volumes.Phase, guest.Driver.Failures));
    }

    [Fact]
    public async Task ADaemonThatEndsThaws()
    {
        guest.Start();
        await FrozenAsync();
        guest.Daemon.Stop();
        guest.Run();
        Assert.False(guest.FileSystem.IsFrozen);
        // Whoever thaws hears that nobody can say whether it was frozen until then.
        Task<FreezeResult> thaw = Thaw();
        guest.Daemon.Start();
        guest.Pass(2);
        Assert.Contains("were frozen until now", Failure(thaw), StringComparison.Ordinal);
    }

    /// <summary>A host that asks twice gets the same answer twice, and one thaw ends it.</summary>
    [Fact]
    public void FreezesDoNotNest()
    {
        guest.Daemon.Start();
        Assert.True(guest.Mailbox.ToDriver.TryTake(out SnapshotMessage registration));
        Assert.Equal(SnapshotOperation.Register, registration.Operation);
        SnapshotOperation[] operations = [SnapshotOperation.Thaw, SnapshotOperation.Freeze, SnapshotOperation.Freeze, SnapshotOperation.Thaw, SnapshotOperation.Thaw];
        for (uint i = 0; i < operations.Length; i++)
        {
            Assert.True(guest.Mailbox.ToDaemon.TryPut(new SnapshotMessage { Number = i + 1, Operation = operations[i] }));
            guest.Daemon.Service();
            Assert.True(guest.Mailbox.ToDriver.TryTake(out SnapshotMessage answer));
            Assert.Equal((i + 1, operations[i], 0u), (answer.Number, answer.Operation, answer.Status));
            Assert.Equal(i is 1 or 2, guest.FileSystem.IsFrozen);
        }
    }

    [Fact]
    public async Task ADaemonThatFailsIsToldToTheHost()
    {
        guest.Start();
        guest.Daemon.Conduct = DaemonConduct.Fails;
        Assert.Contains("no daemon answers", Failure(Freeze()), StringComparison.Ordinal);
        guest.Daemon.Conduct = DaemonConduct.Works;
        // The file system itself does not freeze: its device fails.
        guest.Disk.FailsAfter = 0;
        guest.Run(1);
        Assert.Contains("could not freeze", Failure(Freeze()), StringComparison.Ordinal);
        Assert.Equal((FreezePhase.Idle, false, false), (Volumes.Phase, guest.FileSystem.IsFrozen, guest.Daemon.HoldsFrozen));
        guest.Disk.FailsAfter = int.MaxValue;
        guest.FileSystem.Unmount();
        Assert.Equal(FileSystemError.None, guest.FileSystem.Mount(guest.Disk));
        await FrozenAsync();
    }

    /// <summary>The driver gives the host an error in time; what the daemon freezes after that does not stay frozen, and its late answers are nobody's.</summary>
    [Fact]
    public async Task ADaemonThatHangsIsNotWaitedForAndDoesNotLeaveAnythingFrozen()
    {
        guest.Start();
        Task freeze = Volumes.FreezeAsync(new FreezeOptions { Deadline = TimeSpan.FromSeconds(30) });
        // The probe is answered, and then it hangs.
        for (int i = 0; i < 100 && Volumes.Phase != FreezePhase.Freezing; i++)
        {
            guest.Run(1);
            if (guest.Daemon.Done > 0)
                guest.Daemon.Conduct = DaemonConduct.Hangs;
        }
        guest.Run();
        Assert.Equal((FreezePhase.Freezing, true), (Volumes.Phase, guest.Driver.IsBusy));
        guest.Pass(10.1);
        Assert.Contains("could not freeze", Failure(freeze), StringComparison.Ordinal);
        Assert.Equal(1ul, guest.Driver.TimedOut);
        guest.Daemon.Conduct = DaemonConduct.Works;
        guest.Run();
        Assert.Equal((FreezePhase.Idle, false, 1ul), (Volumes.Phase, guest.FileSystem.IsFrozen, guest.Driver.Spurious));
        await FrozenAsync();
    }

    [Fact]
    public async Task AChannelThatIsTakenBackThawsAndComesAgainWithoutNewMemory()
    {
        guest.Start();
        int pages = guest.Platform.TakenPages;
        for (int i = 0; i < 300; i++)
        {
            if (i % 50 == 0)
                await FrozenAsync();
            guest.Server.Post(() => guest.Server.Rescind(Volumes));
            guest.Run(i % 7);
            guest.Server.Post(() => guest.Server.Rescind(Volumes));
            guest.Run(20);
            Assert.False(guest.FileSystem.IsFrozen);
            Assert.Equal((VmbusChannelState.Open, ComponentState.Ready), (guest.ChannelState, Volumes.State));
        }
        Assert.InRange(guest.Bus.Rescinded, 300ul, 600ul);
        // The host is told of memory for a channel that it takes away at that moment, and says so in its log; the guest knows that it may happen.
        Assert.Equal((pages, 0ul), (guest.Platform.TakenPages, guest.Bus.Malformed));
    }

    [Fact]
    public async Task WhoLeavesTheBusLeavesNothingBehind()
    {
        guest.Start();
        await FrozenAsync();
        guest.Bus.Leave();
        guest.Run();
        Assert.Equal((VmbusState.Off, false, 0ul), (guest.Bus.State, guest.FileSystem.IsFrozen, guest.Fixture.Partition.GuestOsId));
        Assert.Equal((ComponentState.Absent, 0ul), (Volumes.State, guest.Hypervisor.HypercallPage));
        Assert.Equal(0L, guest.Server.Malformed);
        Assert.Null(guest.Bus.Start());
        guest.Run();
        Assert.Equal(ComponentState.Ready, Volumes.State);
        await FrozenAsync();
    }

    /// <summary>A host that is silent, or refuses, leaves a state that says so, and nothing that waits for ever.</summary>
    [Fact]
    public void AHostThatDoesNotAnswerIsGivenUp()
    {
        Assert.Null(guest.Bus.Add(guest.Driver));
        Assert.Null(guest.Bus.Start());
        guest.Bus.Service();
        Assert.Equal(VmbusState.Contacting, guest.Bus.State);
        guest.Platform.Pass(TimeSpan.FromSeconds(6));
        guest.Bus.Service();
        Assert.Equal(VmbusState.GivenUp, guest.Bus.State);
        Assert.Contains("vmbus: the host does not answer", guest.Platform.Lines);
    }

    private static byte[] Message(Random random)
    {
        byte[] message = new byte[random.Next(4) == 0 ? random.Next(241) : 240];
        random.NextBytes(message);
        if (message.Length >= 4)
            BinaryPrimitives.WriteUInt32LittleEndian(message, (uint)random.Next(1, 20));
        // Numbers that may mean something.
        for (int at = 8; at + 4 <= message.Length; at += 4)
            if (random.Next(2) == 0)
                BinaryPrimitives.WriteUInt32LittleEndian(message.AsSpan(at), (uint)random.Next(random.Next(2) == 0 ? 8 : 0xE1E20));
        return message;
    }

    /// <summary>Messages, events and rings full of nonsense: nothing outside of the driver's own memory is touched, nothing goes on for ever, and few lines are written.</summary>
    [Fact]
    public void NonsenseFromTheHostIsSurvived()
    {
        int broken = 0, alive = 0;
        for (int seed = 0; seed < 60; seed++)
        {
            Random random = new(seed);
            guest.Dispose();
            guest = new VmbusGuest();
            guest.Start();
            VmbusChannel channel = guest.Bus.Channel(0)!;
            int pages = guest.Platform.TakenPages;
            for (int step = 0; step < 40; step++)
            {
                switch (random.Next(4))
                {
                    case 0 or 1:
                        guest.Fixture[0].Post(2, new SynicMessage(random.Next(20) == 0 ? 0x8000_0010 : 1, 0, Message(random)));
                        break;
                    case 2:
                        guest.Fixture[0].Signal(2, random.Next(2048));
                        break;
                    default:
                        // The host's ring begins in the middle: its control page, and packets.
                        ulong at = channel.Memory + (4 * 4096) + (ulong)random.Next(random.Next(2) == 0 ? 16 : 3 * 4096);
                        guest.Platform.Write(at, 1, (uint)random.Next(256));
                        guest.Platform.Write(channel.Memory + (ulong)random.Next(16), 1, (uint)random.Next(256));
                        guest.Fixture[0].Signal(2, (int)channel.RelId);
                        break;
                }
                guest.Bus.Service();
                guest.Daemon.Service();
            }
            broken += channel.State != VmbusChannelState.Open ? 1 : 0;
            alive += guest.Bus.State == VmbusState.Connected ? 1 : 0;
            Assert.Equal(pages, guest.Platform.TakenPages);
            Assert.InRange(guest.Platform.Lines.Count(l => l.StartsWith("vmbus: ", StringComparison.Ordinal)), 0, 40);
        }
        Assert.InRange(broken, 10, 60);
        Assert.InRange(alive, 10, 60);
    }

    /// <summary>Integration packets of any length, type and content are answered or passed over, and the next good one works.</summary>
    [Fact]
    public async Task RequestsThatMakeNoSenseAreAnsweredWithAnError()
    {
        EchoDevice device = new(new Guid("35fa2e29-ea23-4236-96ae-3a6ebacba440"));
        guest.Dispose();
        guest = new VmbusGuest();
        // Another device of its kind, whose other end is this test: the driver takes the first that is offered.
        guest.Server.Add(device);
        guest.Start();
        guest.Server.Post(() => guest.Server.Rescind(Volumes));
        guest.Run();
        Assert.True(device.IsReady);
        byte[] request = new byte[68];
        BinaryPrimitives.WriteUInt32LittleEndian(request, 1);
        request[12] = 5;
        request[18] = 40;
        foreach ((byte operation, uint status, uint flags) in (ReadOnlySpan<(byte, uint, uint)>)[(0, 0, 0), (1, 0, 0), (2, 0, 5), (3, 0, 0), (4, 0, 0), (7, 0x8007_0032, 0), (8, 0x8007_0032, 0), (255, 0x8007_0032, 0)])
        {
            request[28] = operation;
            byte[] answer = Assert.Single(device.Exchange(guest, request));
            Assert.Equal((status, flags, (byte)5), (BinaryPrimitives.ReadUInt32LittleEndian(answer.AsSpan(20)), BinaryPrimitives.ReadUInt32LittleEndian(answer.AsSpan(36)), answer[25]));
        }
        Random random = new(5);
        for (int i = 0; i < 400; i++)
        {
            byte[] junk = new byte[random.Next(random.Next(2) == 0 ? 80 : 8192)];
            random.NextBytes(junk);
            if (junk.Length > 16 && random.Next(2) == 0)
                junk[12] = (byte)(random.Next(2) * 5);
            if (junk.Length > 16)
                junk[13] = 0;
            // Not what a daemon would be asked.
            if (junk.Length > 28 && junk[28] is 5 or 6)
                junk[28] = 3;
            Assert.InRange(device.Exchange(guest, junk).Count, junk.Length >= 28 ? 1 : 0, 1);
        }
        guest.Server.Post(() => guest.Server.Rescind(device));
        guest.Run();
        Assert.Equal(ComponentState.Ready, Volumes.State);
        await FrozenAsync();
    }

    private sealed class EchoDriver(int ringPages, int packets) : VmbusDriver(0x0003_0002_0000_0001, 0x0B0A_0908_0706_0504, ringPages, 2048)
    {
        private readonly Random random = new(ringPages);
        private readonly Queue<byte[]> underway = [];
        private VmbusChannel? channel;
        private byte[]? next;

        public override string Name => "echo";

        public int Sent { get; private set; }

        public int Back { get; private set; }

        public int Full { get; private set; }

        public string? Wrong { get; private set; }

        public override void Opened(VmbusChannel opened) => channel = opened;

        public override void Closed() => channel = null;

        public override void Service()
        {
            while (channel is not null && channel.TryReceive(out int length, out ulong transaction))
            {
                byte[] expected = underway.Dequeue();
                if (transaction != 7 || !channel.Packet.AsSpan(0, length).SequenceEqual(expected))
                    Wrong ??= $"packet {Back}";
                Back++;
            }
            while (channel is not null && Sent < packets)
            {
                if (next is null)
                {
                    next = new byte[random.Next(1, random.Next(2) == 0 ? 4 : 250) * 8];
                    random.NextBytes(next);
                }
                next.CopyTo(channel.Packet, 0);
                if (!channel.Send(next.Length, (ulong)Sent))
                {
                    Full++;
                    return;
                }
                underway.Enqueue(next);
                next = null;
                Sent++;
            }
        }
    }

    /// <summary>Host and guest on threads of their own, each looking only when it was signalled: every packet comes back, whole and in its order. The larger rings take lists of pages in several messages.</summary>
    [Theory]
    [InlineData(2, 3000)]
    [InlineData(40, 1500)]
    public void NoSignalIsMissed(int ringPages, int packets)
    {
        guest.Dispose();
        guest = new VmbusGuest(thread: true);
        EchoDevice device = new(new Guid("00000001-0002-0003-0405-060708090a0b"), echoes: true);
        guest.Server.Add(device);
        guest.Server.Resume();
        try
        {
            EchoDriver driver = new(ringPages, packets);
            Assert.Null(guest.Bus.Add(driver));
            Assert.Null(guest.Bus.Start());
            guest.Bus.Service();
            bool end = SpinWait.SpinUntil(() =>
            {
                if (guest.Fixture.TakeInterrupt(0) >= 0)
                    guest.Bus.Service();
                else
                    // What had no room is the device's to send again; nobody tells it.
                    guest.Server.Post(() => device.SendWaiting());
                return driver.Back == packets || driver.Wrong is not null;
            }, TimeSpan.FromMinutes(2));
            Assert.True(end && driver.Wrong is null, $"{driver.Wrong}: {driver.Sent} sent, {driver.Back} back, state {guest.Bus.Channel(0)!.State}; {string.Join("; ", guest.Platform.Lines)}");
            Assert.Equal((0ul, 0L), (guest.Bus.Malformed, guest.Server.Malformed));
            // The smaller rings were full at times, the larger may have been.
            Assert.True(ringPages > 2 || driver.Full > 0);
        }
        finally
        {
            guest.Server.Stop();
        }
    }
}
