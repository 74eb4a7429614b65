using System.Text;
using Aerostat.Devices;

namespace Aerostat.VMware.Tests;

/// <summary>Messages over the backdoor, as open-vm-tools sends and fetches them, and what the host answers.</summary>
public sealed class GuestRpcTests : IDisposable
{
    private const uint Message = 30, Rpci = 0x4943_5052, Tclo = 0x4F4C_4354, Cookie = 0x8000_0000;
    private const uint Success = 1, HasMessage = 2, Checkpoint = 0x10, HighBandwidth = 0x80;

    private readonly World world = new();

    public void Dispose() => world.Dispose();

    private sealed record Channel(uint Id, ulong High, ulong Low);

    private uint Step(World w, uint type, Channel? channel, uint ebx)
    {
        w.Registers[5] = 0;
        (w.Registers[0], w.Registers[1], w.Registers[2], w.Registers[3], w.Registers[6], w.Registers[7]) =
            (World.BackdoorMagic, (type << 16) | Message, ((channel?.Id ?? 0) << 16) | VmwareBackdoor.Port, ebx, channel?.High ?? 0, channel?.Low ?? 0);
        Assert.True(w.Vcpu.Call(VmwareBackdoor.Port, 3, w.Registers));
        return (uint)w.Rcx >> 16;
    }

    private Channel? Open(World w, uint protocol) =>
        (Step(w, 0, null, protocol | Cookie) & Success) == 0 ? null : new Channel((uint)w.Registers[2] >> 16, w.Registers[6], w.Registers[7]);

    private void Send(World w, Channel channel, string text, bool inOnePiece)
    {
        byte[] bytes = Encoding.UTF8.GetBytes(text);
        Assert.Equal(Success | HighBandwidth, Step(w, 1, channel, (uint)bytes.Length));
        if (inOnePiece)
        {
            foreach (byte one in bytes)
            {
                byte b = one;
                (w.Registers[0], w.Registers[2], w.Registers[3], w.Registers[5], w.Registers[7]) = (World.BackdoorMagic, (channel.Id << 16) | VmwareBackdoor.MessagePort, 0x1_0000, channel.High, channel.Low);
                Assert.True(w.Vcpu.Transfer(VmwareBackdoor.MessagePort, true, new Span<byte>(ref b), w.Registers));
                Assert.Equal(0x1_0000UL, w.Rbx);
            }
            return;
        }
        for (int i = 0; i < bytes.Length; i += 4)
        {
            uint word = 0;
            for (int k = 0; k < Math.Min(4, bytes.Length - i); k++)
                word |= (uint)bytes[i + k] << (k * 8);
            Assert.Equal(Success, Step(w, 2, channel, word));
        }
    }

    private string? Receive(World w, Channel channel, bool inOnePiece)
    {
        uint status = Step(w, 3, channel, 0);
        Assert.Equal(Success, status & Success);
        if ((status & HasMessage) == 0)
            return null;
        Assert.Equal(1UL, w.Registers[2] >> 16);
        byte[] bytes = new byte[(int)w.Rbx];
        for (int i = 0; i < bytes.Length; i += inOnePiece ? 1 : 4)
        {
            if (inOnePiece)
            {
                (w.Registers[0], w.Registers[2], w.Registers[3], w.Registers[5], w.Registers[6]) = (World.BackdoorMagic, (channel.Id << 16) | VmwareBackdoor.MessagePort, 0x1_0000, channel.Low, channel.High);
                Assert.True(w.Vcpu.Transfer(VmwareBackdoor.MessagePort, false, bytes.AsSpan(i, 1), w.Registers));
                Assert.Equal(0x1_0000UL, w.Rbx);
                continue;
            }
            Assert.Equal(Success, Step(w, 4, channel, Success));
            Assert.Equal(2UL, w.Registers[2] >> 16);
            for (int k = 0; k < Math.Min(4, bytes.Length - i); k++)
                bytes[i + k] = (byte)(w.Rbx >> (k * 8));
        }
        Assert.Equal(Success, Step(w, 5, channel, Success));
        return Encoding.UTF8.GetString(bytes);
    }

    private string? Ask(string request, bool inOnePiece = false)
    {
        Channel channel = Open(world, Rpci)!;
        Send(world, channel, request, inOnePiece);
        string? answer = Receive(world, channel, inOnePiece);
        Assert.Equal(Success, Step(world, 6, channel, 0));
        return answer;
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void VariablesBothWays(bool inOnePiece)
    {
        Assert.Equal("0 No value found", Ask("info-get guestinfo.a", inOnePiece));
        Assert.True(world.Tools.SetInformation("a", "from the host"));
        Assert.Equal("1 from the host", Ask("info-get guestinfo.a", inOnePiece));
        Assert.Equal("1 ", Ask("info-set guestinfo.b from the guest", inOnePiece));
        Assert.Equal("from the guest", world.Tools.Information["guestinfo.b"]);
        Assert.Equal("0 Permission denied", Ask("info-set host.b x", inOnePiece));
        string long_ = new('x', 60_000);
        Assert.Equal("1 ", Ask($"info-set guestinfo.long {long_}", inOnePiece));
        Assert.Equal("1 " + long_, Ask("info-get guestinfo.long", inOnePiece));
        Assert.Equal("1 ", Ask("info-set guestinfo.long ", inOnePiece));
        Assert.False(world.Tools.Information.ContainsKey("guestinfo.long"));
        Assert.Equal("0 Unknown command", Ask("unity.show", inOnePiece));
        Assert.Equal("0 Unknown command", Ask("", inOnePiece));
    }

    [Fact]
    public void WhatTheGuestMayKeepIsBounded()
    {
        string much = new('x', 65_000);
        int kept = Enumerable.Range(0, 40).Count(i => Ask($"info-set guestinfo.{i} {much}", inOnePiece: true) == "1 ");
        Assert.Equal(16, kept);
        Assert.Equal("1 ", Ask("info-set guestinfo.0 less"));
        Assert.Equal("1 ", Ask($"info-set guestinfo.16 {much}", inOnePiece: true));
        Assert.Equal("0 Request too large", Ask($"info-set guestinfo.{new string('n', 300)} x"));
        Assert.Equal(0u, Step(world, 1, Open(world, Rpci), (64 << 10) + 1));
        // Eight channels, and no more.
        while (Open(world, Rpci) is not null)
        {
        }
        Assert.Equal(8, world.Tools.Channels.OpenChannels.Count());
    }

    [Fact]
    public void AChannelIsWhoseCookiesItHas()
    {
        Assert.Equal(0u, Step(world, 0, null, Rpci));
        Assert.Equal(0u, Step(world, 0, null, 0x1234 | Cookie));
        Channel channel = Open(world, Rpci)!;
        foreach (Channel wrong in (Channel[])[channel with { High = channel.High ^ 1 }, channel with { Low = channel.Low ^ 1 }, channel with { Id = 7 }, channel with { Id = 0xFFFF }])
            foreach (uint type in (uint[])[1, 2, 3, 4, 5, 6, 7, 0xFFFF])
                Assert.Equal(0u, Step(world, type, wrong, 4));
        foreach (uint type in (uint[])[2, 4, 5, 7])
            Assert.Equal(0u, Step(world, type, channel, 4));
        byte b = 0;
        world.Registers[3] = 0x1_0000;
        (world.Registers[0], world.Registers[2], world.Registers[5]) = (World.BackdoorMagic, 3 << 16, 0);
        Assert.True(world.Vcpu.Transfer(VmwareBackdoor.MessagePort, true, new Span<byte>(ref b), world.Registers));
        Assert.Equal(0UL, world.Rbx);
        world.Registers[0] = 0;
        Assert.False(world.Vcpu.Transfer(VmwareBackdoor.MessagePort, true, [], world.Registers));
    }

    /// <summary>The guest's half of TCLO: answers the command before, fetches the next.</summary>
    private string? Poll(World w, Channel channel, string answer)
    {
        Send(w, channel, answer, inOnePiece: false);
        return Receive(w, channel, inOnePiece: false);
    }

    [Fact]
    public async Task TheToolsAtWork()
    {
        CancellationToken cancellation = TestContext.Current.CancellationToken;
        Assert.False(world.Tools.IsRunning);
        Assert.Null(await world.Tools.SendAsync("ping", cancellation));
        Channel channel = Open(world, Tclo)!;
        List<string?> begun = [Poll(world, channel, ""), Poll(world, channel, "OK ATR toolbox"), Poll(world, channel, "OK "), Poll(world, channel, "OK "), Poll(world, channel, "OK ")];
        Assert.Equal<string?>(["reset", "Capabilities_Register", "Set_Option broadcastIP 1", "OS_PowerOn", null], begun);
        Assert.Equal(("1 ", "1 ", "1 "), (Ask("tools.set.versiontype 12352 4"), Ask("tools.capability.softpowerop_retry"), Ask("SetGuestInfo  6 debian-12")));
        Assert.Equal((new Version(12, 2, 0), "debian-12"), (world.Tools.ToolsVersion!, world.Tools.Information["guestinfo.reported.6"]));
        Assert.Equal(["softpowerop_retry"], world.Tools.Capabilities);
        Assert.True(world.Tools.IsRunning);

        Task<bool> halt = world.Tools.RequestPowerAsync(GuestPowerOperation.Halt, cancellation);
        Assert.Equal("OS_Halt", Poll(world, channel, ""));
        Assert.False(halt.IsCompleted);
        Assert.Null(Poll(world, channel, "OK "));
        Assert.True(await halt);
        Assert.Equal("1 ", Ask("tools.os.statechange.status 1 1"));
        Assert.Equal("1 1", world.Tools.PowerState);

        Task<string?> refused = world.Tools.SendAsync("what", cancellation);
        Assert.Equal("what", Poll(world, channel, ""));
        Poll(world, channel, "ERROR Unknown Command");
        Assert.Null(await refused);

        // Silence, and the end: whoever waits is told.
        world.Clock.Advance(31_000);
        Assert.False(world.Tools.IsRunning);
        Task<string?> lost = world.Tools.SendAsync("ping", cancellation);
        Assert.Equal(Success, Step(world, 6, channel, 0));
        Assert.Null(await lost);
    }

    [Fact]
    public async Task TheToolsFreezeAndThaw()
    {
        CancellationToken cancellation = TestContext.Current.CancellationToken;
        Channel channel = Open(world, Tclo)!;
        string answer = "";
        while (Poll(world, channel, answer) is not null)
            answer = "OK ";
        Assert.False(await world.Tools.ThawAsync(cancellation));
        Task<bool> frozen = world.Tools.FreezeAsync(cancellation);
        Assert.False(await world.Tools.FreezeAsync(cancellation));
        Assert.Equal("vmbackup.start 0", Poll(world, channel, ""));
        Assert.Null(Poll(world, channel, "OK "));
        Assert.Equal(("1 ", false), (Ask("vmbackup.eventSet reset 0 "), frozen.IsCompleted));
        Assert.Equal("1 ", Ask("vmbackup.eventSet prov.snapshotCommit 0 "));
        Assert.True(await frozen);
        Task<bool> thawed = world.Tools.ThawAsync(cancellation);
        Assert.Equal("vmbackup.snapshotDone", Poll(world, channel, ""));
        Assert.Null(Poll(world, channel, "OK "));
        Assert.Equal("1 ", Ask("vmbackup.eventSet req.done 0 "));
        Assert.True(await thawed);

        // The tools lose patience while it is frozen: the snapshot is worth nothing.
        frozen = world.Tools.FreezeAsync(cancellation);
        Assert.Equal("vmbackup.start 0", Poll(world, channel, ""));
        Poll(world, channel, "OK ");
        Ask("vmbackup.eventSet prov.snapshotCommit 0 ");
        Assert.True(await frozen);
        Ask("vmbackup.eventSet req.aborted 4 timeout");
        Assert.False(await world.Tools.ThawAsync(cancellation));
        // They cannot freeze.
        frozen = world.Tools.FreezeAsync(cancellation);
        Assert.Equal("vmbackup.start 0", Poll(world, channel, ""));
        Poll(world, channel, "ERROR Quiesce failed");
        Assert.False(await frozen);
    }

    private Channel StartTools()
    {
        Channel channel = Open(world, Tclo)!;
        string answer = "";
        while (Poll(world, channel, answer) is not null)
            answer = "OK ";
        return channel;
    }

    /// <summary>Has the tools freeze; it is done when they have said so.</summary>
    private async Task FreezeAsync(ToolsFreezer freezer, Channel channel, FreezeOptions? options = null)
    {
        Task frozen = freezer.FreezeAsync(options ?? new FreezeOptions());
        Assert.Equal("vmbackup.start 0", Poll(world, channel, ""));
        Poll(world, channel, "OK ");
        Assert.Equal(FreezePhase.Freezing, freezer.Phase);
        world.Clock.Advance(40);
        Ask("vmbackup.eventSet prov.snapshotCommit 0 ");
        await frozen;
        Assert.Equal(FreezePhase.Frozen, freezer.Phase);
    }

    [Fact]
    public async Task TheHostFreezesAndThaws()
    {
        ToolsFreezer freezer = new(world.Tools, world.Clock);
        Assert.Contains("open-vm-tools", (await Assert.ThrowsAsync<FreezeException>(() => freezer.FreezeAsync(new FreezeOptions()))).Message, StringComparison.Ordinal);
        Assert.Contains("nothing is frozen", (await Assert.ThrowsAsync<FreezeException>(freezer.ThawAsync)).Message, StringComparison.Ordinal);
        Channel channel = StartTools();
        await FreezeAsync(freezer, channel);
        Assert.Contains("under way", (await Assert.ThrowsAsync<FreezeException>(() => freezer.FreezeAsync(new FreezeOptions()))).Message, StringComparison.Ordinal);
        Task<FreezeResult> thawed = freezer.ThawAsync(), again = freezer.ThawAsync();
        world.Clock.Advance(10);
        Assert.Equal("vmbackup.snapshotDone", Poll(world, channel, ""));
        Poll(world, channel, "OK ");
        Ask("vmbackup.eventSet req.done 0 ");
        Assert.Equal(new FreezeResult(TimeSpan.FromMilliseconds(40), TimeSpan.FromMilliseconds(10), false), await thawed);
        Assert.Equal(await thawed, await again);
        Assert.Equal(FreezePhase.Idle, freezer.Phase);

        // The tools lose patience: what was copied may have changed, and the next freeze is not held up.
        await FreezeAsync(freezer, channel);
        Ask("vmbackup.eventSet req.aborted 4 timeout");
        Assert.Equal(FreezePhase.Idle, freezer.Phase);
        await Assert.ThrowsAsync<FreezeException>(freezer.ThawAsync);
        await FreezeAsync(freezer, channel);
        // The tools go.
        Assert.Equal(Success, Step(world, 6, channel, 0));
        await Assert.ThrowsAsync<FreezeException>(freezer.ThawAsync);
        Assert.Equal(FreezePhase.Idle, freezer.Phase);
    }

    [Fact]
    public async Task WhatTheHostForgetsIsThawed()
    {
        ToolsFreezer freezer = new(world.Tools, world.Clock);
        Channel channel = StartTools();
        await FreezeAsync(freezer, channel, new FreezeOptions { Watchdog = TimeSpan.FromSeconds(5) });
        // A copy of a frozen guest is thawed.
        Assert.Contains("vmbackup.abort", world.Tools.Save().Commands);
        world.Clock.Advance(4999);
        Assert.Equal(FreezePhase.Frozen, freezer.Phase);
        world.Clock.Advance(1);
        Assert.Equal("vmbackup.snapshotDone", Poll(world, channel, ""));
        Assert.Equal(FreezePhase.Thawing, freezer.Phase);
        Task<FreezeResult> thawed = freezer.ThawAsync();
        Poll(world, channel, "OK ");
        Ask("vmbackup.eventSet req.done 0 ");
        Assert.True((await thawed).ByWatchdog);
        Assert.DoesNotContain("vmbackup.abort", world.Tools.Save().Commands);

        // Tools that do not answer: the freeze is given up, and they are told so.
        Task late = freezer.FreezeAsync(new FreezeOptions { Deadline = TimeSpan.FromSeconds(3) });
        Assert.Equal("vmbackup.start 0", Poll(world, channel, ""));
        world.Clock.Advance(3000);
        Assert.Contains("within 3 s", (await Assert.ThrowsAsync<FreezeException>(() => late)).Message, StringComparison.Ordinal);
        Assert.Equal("vmbackup.abort", Poll(world, channel, "OK "));
        Assert.Equal(FreezePhase.Idle, freezer.Phase);
    }

    /// <summary>A message that a snapshot cut in two is sent again, from its size on; channels and variables are there.</summary>
    [Fact]
    public void ItGoesOnElsewhere()
    {
        Channel channel = Open(world, Rpci)!;
        world.Tools.SetInformation("a", "b");
        Assert.Equal(Success | HighBandwidth, Step(world, 1, channel, 20));
        Assert.Equal(Success, Step(world, 2, channel, 0x6F666E69));
        GuestToolsSavedState state = world.Tools.Save();
        using World other = new();
        other.Tools.Restore(state);
        Assert.Equal(Checkpoint, Step(other, 2, channel, 0x7465672D));
        Send(other, channel, "info-get guestinfo.a", inOnePiece: false);
        Assert.Equal("1 b", Receive(other, channel, inOnePiece: false));
        Assert.Equal(0u, Step(other, 2, channel, 0));
    }
}
