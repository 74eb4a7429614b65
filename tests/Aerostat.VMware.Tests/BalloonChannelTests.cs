using Aerostat.Devices;
using Aerostat.Memory;

namespace Aerostat.VMware.Tests;

/// <summary>The balloon's channel by drivers of our own: as the first one in Linux spoke, and as today's does.</summary>
public sealed class BalloonChannelTests : IDisposable
{
    private const uint Start = 0, GetTarget = 1, Lock = 2, Unlock = 3, GuestId = 4, BatchedLock = 6, BatchedUnlock = 7, LargeLock = 8, LargeUnlock = 9, Doorbell = 10;
    private const uint Success = 0, CommandInvalid = 1, Invalid = 2, Locked = 3, Unlocked = 4, Pinned = 5, NotNeeded = 6, Reset = 7, WithCapabilities = 0x0300_0000, Failure = uint.MaxValue;
    private const ulong Basic = 2, Batched = 4, Large = 8, Wide = 32, Today = 0x3E, Frames = World.MiB >> 12;
    private const ulong BatchPage = 4;

    private readonly World world = new(8 * World.MiB);

    public void Dispose() => world.Dispose();

    private void StartToday(ulong capabilities = Today) => Assert.Equal(WithCapabilities, world.Command(Start, capabilities));

    /// <summary>Writes a batch page, sends the command, and answers each entry's status.</summary>
    private uint[] Batch(uint command, params ulong[] frames)
    {
        for (int i = 0; i < frames.Length; i++)
            world.Memory.Write(new GuestAddress((BatchPage << 12) + ((ulong)i * 8)), frames[i] << 12);
        Assert.Equal(Success, world.Command(command, BatchPage, (ulong)frames.Length));
        ulong[] entries = [.. frames.Select((_, i) => world.Memory.Read<ulong>(new GuestAddress((BatchPage << 12) + ((ulong)i * 8))))];
        // The driver takes the frame from there again.
        Assert.Equal(frames, entries.Select(e => e >> 12));
        return [.. entries.Select(e => (uint)(e & 0xFFF))];
    }

    [Theory]
    [InlineData(2, Success, 0)]
    [InlineData(0, Success, 0)]
    [InlineData(3, Success, 0)]
    [InlineData(1, Success, 0)]
    [InlineData(Today, WithCapabilities, Basic | Batched | Large | Wide)]
    [InlineData(0x1E, WithCapabilities, Basic | Batched | Large)]
    [InlineData(Basic | Batched, WithCapabilities, Basic | Batched)]
    [InlineData(ulong.MaxValue, WithCapabilities, Basic | Batched | Large | Wide)]
    public void DriversOfEveryAgeAreStarted(ulong asked, uint status, ulong granted)
    {
        Assert.Equal(status, world.Command(Start, asked));
        Assert.Equal(status == Success ? Start : granted, world.Rcx);
    }

    /// <summary>Protocol version 2, page by page, as in 2010; it takes nothing but plain success, and does not look at what else comes.</summary>
    [Fact]
    public void TheFirstDriver()
    {
        Assert.Equal((Success, Success), (world.Command(Start, 2), world.Command(GuestId, 1)));
        Assert.Equal(Success, world.Command(GetTarget, 19 * Frames));
        ulong target = world.Rbx;
        Assert.Equal(8 * Frames, target);
        ulong held = world.Held;
        for (ulong frame = 256; frame < 256 + target; frame++)
        {
            world.Memory.Write(new GuestAddress(frame << 12), 1UL);
            Assert.Equal(Success, world.Command(Lock, frame));
        }
        BalloonReport report = world.Balloon.GetReport();
        Assert.Equal((8 * World.MiB, BalloonReason.Reached, held), (report.ActualBytes, report.Reason, world.Held));
        // A page more: this driver would try page after page if it were told that none is needed.
        Assert.Equal((Success, Success), (world.Command(Lock, 200), world.Command(Unlock, 200)));
        // What came later is not for it.
        foreach (uint command in (uint[])[BatchedLock, BatchedUnlock, LargeLock, LargeUnlock, Doorbell, 5, 11, uint.MaxValue])
            Assert.Equal(CommandInvalid, world.Command(command, BatchPage, 1));
        world.Balloon.SetTarget(0);
        Assert.Equal((Success, 0UL), (world.Command(GetTarget, 19 * Frames), world.Rbx));
        for (ulong frame = 256; frame < 256 + target; frame++)
            Assert.Equal(Success, world.Command(Unlock, frame));
        Assert.Equal((0UL, BalloonReason.Reached), (world.Balloon.GetReport().ActualBytes, world.Balloon.GetReport().Reason));
        Assert.Equal(0UL, world.Memory.Read<ulong>(new GuestAddress(256 << 12)));
    }

    /// <summary>Today's: the doorbell first, which nobody has granted; batches; large pages; the target with every answer.</summary>
    [Fact]
    public void TodaysDriver()
    {
        Assert.Equal(CommandInvalid, world.Command(Doorbell, uint.MaxValue, uint.MaxValue));
        StartToday();
        Assert.Equal(Success, world.Command(GetTarget, 19 * Frames));
        for (ulong page = 2 * Frames; page < 6 * Frames; page++)
            world.Memory.Write(new GuestAddress(page << 12), 1UL);
        ulong held = world.Held;
        // Backwards, with a gap, and once twice.
        Assert.Equal([Success, Success, Locked], Batch(LargeLock, 1024, 512, 1024));
        Assert.Equal(8 * Frames, world.Rbx);
        Assert.True(world.Held <= held - (4 * World.MiB) + 4096, $"{held - world.Held} bytes went to the host");
        Assert.Equal([Success, Success, Success, Locked], Batch(BatchedLock, 2100, 2102, 2101, 1500));
        Assert.Equal((Success, Locked), (world.Command(Lock, 2103), world.Command(Lock, 600)));
        Assert.Equal((ulong)(1024 + 4) << 12, world.Balloon.GetReport().ActualBytes);
        // A large page can be taken back whole, or not at all where a part of it is not there.
        Assert.Equal(Success, world.Command(Unlock, 513));
        Assert.Equal([Unlocked, Success, Unlocked], Batch(LargeUnlock, 512, 1024, 1024));
        Assert.Equal([Success, Unlocked, Success], Batch(BatchedUnlock, 512, 513, 2100));
        Dictionary<string, long> counters = world.Balloon.Counters.ToDictionary(c => c.Name, c => c.Value);
        Assert.Equal((1L, 2L, 3L, 4L), (counters["batched-2m-lock"], counters["large-pages-locked"], counters["status-frame-locked"], counters["status-frame-unlocked"] + 1));
    }

    /// <summary>What a page's move by the guest's compaction is: the old page first.</summary>
    [Fact]
    public void APageThatMoves()
    {
        StartToday();
        Assert.Equal([Success, Success], Batch(BatchedLock, 300, 301));
        Assert.Equal([Success], Batch(BatchedUnlock, 300));
        Assert.Equal([Success], Batch(BatchedLock, 700));
        Assert.Equal(2UL << 12, world.Balloon.GetReport().ActualBytes);
        Assert.Equal((Unlocked, Success), (world.Command(Unlock, 300), world.Command(Unlock, 700)));
    }

    /// <summary>Everything that is wrong: the right status, nothing changed, counted.</summary>
    [Fact]
    public void WhatIsWrong()
    {
        StartToday();
        Assert.Equal(Success, world.Command(Lock, 100));
        ulong[] state = world.Balloon.Save().Locked;
        // 16 MiB to 18 MiB is a hole; memory ends at 21 MiB.
        foreach (ulong frame in (ulong[])[16 * Frames, 21 * Frames, uint.MaxValue, 1UL << 40, 1UL << 52, 1UL << 63, ulong.MaxValue])
            Assert.Equal((Invalid, Invalid), (world.Command(Lock, frame), world.Command(Unlock, frame)));
        Assert.Equal((Locked, Unlocked), (world.Command(Lock, 100), world.Command(Unlock, 101)));
        // Not aligned; across the hole; across the end; beyond.
        Assert.Equal([Invalid, Invalid, Invalid, Invalid, Locked], Batch(LargeLock, 513, 16 * Frames, 20 * Frames, 22 * Frames, 0));
        foreach (ulong n in (ulong[])[0, 513, 1UL << 32, 1UL << 63, ulong.MaxValue])
            Assert.Equal((Failure, Failure, Failure), (world.Command(BatchedLock, BatchPage, n), world.Command(LargeLock, BatchPage, n), world.Command(BatchedUnlock, BatchPage, n)));
        // The batch page in a hole, beyond memory, and where no address is.
        foreach (ulong page in (ulong[])[16 * Frames, 0xFEE00, 1UL << 40, 1UL << 52, ulong.MaxValue])
            Assert.Equal((Invalid, Invalid), (world.Command(BatchedLock, page, 1), world.Command(LargeUnlock, page, 512)));
        using (MemoryPin pin = world.Memory.TryPin(new GuestAddress(800 << 12), 4096)!)
        {
            Assert.Equal(Pinned, world.Command(Lock, 800));
            Assert.Equal([Pinned], Batch(LargeLock, 512));
            Assert.Equal([Success, Pinned, Success], Batch(BatchedLock, 799, 800, 801));
        }
        Assert.Equal([Success, Unlocked, Success], Batch(BatchedUnlock, 799, 800, 801));
        Assert.Equal(state, world.Balloon.Save().Locked);
        Dictionary<string, long> counters = world.Balloon.Counters.ToDictionary(c => c.Name, c => c.Value);
        Assert.Equal((14L + 4 + 10, 15L, 3L, 514L), (counters["status-frame-invalid"], counters["status-failure"], counters["status-frame-pinned"], world.Balloon.GetReport().RefusedPages));
    }

    [Fact]
    public void ABalloonThatIsLargeEnough()
    {
        StartToday();
        world.Balloon.SetTarget(1000UL << 12);
        // A whole page more than is wanted, and then no other.
        Assert.Equal([Success, Success, NotNeeded], Batch(LargeLock, 512, 1024, 1536));
        Assert.Equal(BalloonReason.Reached, world.Balloon.GetReport().Reason);
        world.Balloon.SetTarget(512UL << 12);
        Assert.Equal([NotNeeded], Batch(BatchedLock, 2100));
        world.Clock.Advance(6000);
        Assert.Equal(BalloonReason.Stalled, world.Balloon.GetReport().Reason);
    }

    /// <summary>Never more than the guest has by its own account, and never more than its driver can read.</summary>
    [Fact]
    public void TheLimit()
    {
        StartToday();
        Assert.Equal((Success, 100UL), (world.Command(GetTarget, 100), world.Rbx));
        Assert.Equal((Success, 2048UL), (world.Command(GetTarget, ulong.MaxValue), world.Rbx));
        Assert.Equal(19 * World.MiB, world.Balloon.GetReport().Statistics[GuestFigure.Total]);
        Assert.Throws<ArgumentOutOfRangeException>(() => world.Balloon.SetTarget(20 * World.MiB));
    }

    [Fact]
    public void TheHostWantsANewBeginning()
    {
        StartToday();
        Assert.Equal(Success, world.Command(Lock, 100));
        world.Balloon.RequestReset();
        Assert.Equal((Reset, Reset, Reset, Reset), (world.Command(GetTarget, 1), world.Command(Unlock, 100), world.Command(GuestId, 1), world.Command(BatchedLock, BatchPage, 1)));
        Assert.Equal(CommandInvalid, world.Command(Doorbell, uint.MaxValue, uint.MaxValue));
        Assert.Equal(4096UL, world.Balloon.GetReport().ActualBytes);
        StartToday();
        Assert.Equal((0UL, Success), (world.Balloon.GetReport().ActualBytes, world.Command(GetTarget, 1000)));
    }

    [Fact]
    public void TheGuestStartsAnewOrGoes()
    {
        Assert.Equal(BalloonReason.NoDriver, world.Balloon.GetReport().Reason);
        StartToday();
        Assert.Equal(Success, world.Command(Lock, 100));
        StartToday();
        Assert.Equal((0UL, Success), (world.Balloon.GetReport().ActualBytes, world.Command(Lock, 100)));
        Assert.Equal(BalloonReason.Working, world.Balloon.GetReport().Reason);
        Assert.Equal(Success, world.Command(Start, 0));
        Assert.Equal((CommandInvalid, Success), (world.Command(Unlock, 100), world.Command(GetTarget, 1000)));
        Assert.Equal((BalloonReason.NoDriver, 0UL), (world.Balloon.GetReport().Reason, world.Balloon.GetReport().ActualBytes));
        StartToday();
        world.Balloon.Reset();
        Assert.Equal((BalloonReason.NoDriver, CommandInvalid), (world.Balloon.GetReport().Reason, world.Command(Lock, 100)));
    }

    [Fact]
    public void ItGoesOnElsewhere()
    {
        StartToday();
        Assert.Equal([Success, Success], Batch(LargeLock, 512, 1536));
        Assert.Equal([Success, Success, Success], Batch(BatchedLock, 100, 127, 128));
        VmwareBalloonSavedState state = world.Balloon.Save();
        Assert.Equal([100, 1, 127, 2, 512, 512, 1536, 512], state.Locked);
        using World other = new();
        other.Balloon.Restore(state);
        Assert.Equal(world.Balloon.GetReport().ActualBytes, other.Balloon.GetReport().ActualBytes);
        Assert.Equal((Locked, Success, Success), (other.Command(Lock, 600), other.Command(Unlock, 127), other.Command(GetTarget, 10_000)));
        Assert.Equal(8 * Frames, other.Rbx);
        // Runs that were never written by anybody: what is no memory is left out.
        other.Balloon.Restore(state with { Locked = [0, ulong.MaxValue, ulong.MaxValue, 5, 7] });
        Assert.Equal(21UL * World.MiB, other.Balloon.GetReport().ActualBytes);
    }

    [Fact]
    public void TheChannelIsTheKernels()
    {
        ulong[] registers = new ulong[16];
        (registers[0], registers[3]) = (World.BalloonMagic, 2);
        Assert.False(world.Vcpu.Call(VmwareBalloon.Port, 3, registers));
        registers[0]++;
        Assert.False(world.Vcpu.Call(VmwareBalloon.Port, 0, registers));
    }
}
