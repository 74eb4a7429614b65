using System.Buffers.Binary;
using Aerostat.Devices;
using Aerostat.Memory;

namespace Aerostat.HyperV.Tests;

/// <summary>Dynamic memory with a driver of the tests' own.</summary>
public sealed class DynamicMemoryTests
{
    private const ulong MiB = 1 << 20;

    private static (GuestBus Bus, BalloonDriver Driver) Start(DynamicMemoryOptions? options = null, ulong capabilities = 3 | 7 << 2, Func<GuestMemory>? memory = null)
    {
        GuestBus bus = new(balloon: options ?? new DynamicMemoryOptions(), memory: memory);
        bus.Connect();
        BalloonDriver driver = new(bus.Open(bus.Balloon!));
        driver.Connect(capabilities: capabilities);
        return (bus, driver);
    }

    private static byte At(GuestBus bus, ulong page) => bus.Fixture.Memory.Read<byte>(new(page << 12));

    [Fact]
    public void VersionsAreAgreedOn()
    {
        using GuestBus bus = new(balloon: new DynamicMemoryOptions());
        bus.Connect();
        BalloonDriver driver = new(bus.Open(bus.Balloon!));
        Assert.Equal(BalloonReason.Reached, bus.Balloon!.GetReport().Reason);
        bus.Balloon.SetTarget(MiB);
        Assert.Equal(BalloonReason.NoDriver, bus.Balloon.GetReport().Reason);
        // Nothing is agreed on yet.
        Assert.Equal((4, 0UL), driver.Ask(driver.Message(3, 32, (8, 3))));
        foreach (uint unknown in (uint[])[0x3_0000, 0, 4, uint.MaxValue])
            Assert.Equal((2, 0UL), driver.Ask(driver.Message(1, 16, (8, unknown))));
        foreach (uint known in (uint[])[0x2_0000, 0x1_0000, 3])
            Assert.Equal((2, 1UL), driver.Ask(driver.Message(1, 16, (8, known))));
        driver.Connect();
        Assert.Equal(256u, driver.TakeBalloonRequest());
        Assert.Equal(BalloonReason.Working, bus.Balloon.GetReport().Reason);
    }

    [Fact]
    public void PagesGoAndComeBack()
    {
        (GuestBus bus, BalloonDriver driver) = Start();
        using GuestBus _ = bus;
        for (ulong page = 0x800; page < 0xA00; page++)
            bus.Fixture.Memory.Write(new(page << 12), 0x55u);
        bus.Balloon!.SetTarget(MiB + 4096 + 4095);
        Assert.Equal(257u, driver.TakeBalloonRequest());
        driver.Give(more: true, (0x800, 200), (0x900, 1));
        Assert.Equal((0, 0, 0x55), (At(bus, 0x800), At(bus, 0x900), At(bus, 0x901)));
        Assert.Equal(201UL << 12, bus.Balloon.GetReport().ActualBytes);
        Assert.Equal(0u, driver.TakeBalloonRequest());
        driver.Give(more: false, (0x910, 56));
        BalloonReport full = bus.Balloon.GetReport();
        Assert.Equal((257UL << 12, BalloonReason.Reached, 0L), (full.ActualBytes, full.Reason, full.RefusedPages));
        // Two have been read since, which some hosts (Linux before 6.7) take for held.
        Assert.InRange(bus.Fixture.Memory.GetPageTotals().DiscardedBytes, 255UL << 12, 257UL << 12);
        bus.Balloon.SetTarget(100 << 12);
        Assert.Equal([(0x800UL, 157UL)], driver.TakeBack()!);
        Assert.Null(driver.TakeBack());
        driver.HaveTaken();
        Assert.Equal((100UL << 12, BalloonReason.Reached), (bus.Balloon.GetReport().ActualBytes, bus.Balloon.GetReport().Reason));
        bus.Balloon.SetTarget(0);
        Assert.Equal([(0x89DUL, 43UL), (0x900, 1), (0x910, 56)], driver.TakeBack()!);
        driver.HaveTaken();
        Assert.Equal(0UL, bus.Balloon.GetReport().ActualBytes);
        Assert.Equal(0, bus.Balloon.Spurious);
        Assert.Throws<ArgumentOutOfRangeException>(() => bus.Balloon.SetTarget(16 * MiB + 1));
    }

    // Where the host gives huge pages, what is taken of one waits until all of it is: until then the guest may get it back, and write to it.
    [Theory]
    [InlineData(false), InlineData(true)]
    public void PagesThatAreBackAreTheGuestsAtOnce(bool isReset)
    {
        (GuestBus bus, BalloonDriver driver) = Start(memory: () => new GuestMemory(hugePages: true, new MemoryRegion(new(0), 16 * MiB, "low")));
        using GuestBus _ = bus;
        GuestMemory memory = bus.Fixture.Memory;
        for (ulong page = 0x800; page < 0xC00; page++)
            memory.Write(new(page << 12), 0x55u);
        bus.Balloon!.SetTarget(612 << 12);
        Assert.Equal(612u, driver.TakeBalloonRequest());
        // A block of 512 in two pieces, and a part of another.
        driver.Give(more: true, (0x800, 256), (0x900, 256));
        driver.Give(more: false, (0xA10, 100));
        if (isReset)
        {
            bus.Server.Reset();
            bus.Balloon.Reset();
        }
        else
        {
            bus.Balloon.SetTarget(0);
            Assert.Equal([(0x800UL, 512UL), (0xA10, 100)], driver.TakeBack()!);
        }
        for (ulong page = 0xA10; page < 0xA74; page++)
            memory.Write(new(page << 12), 0x77u);
        memory.Settle();
        Assert.Equal((0, 0, 0x55, 0x77, 0x77, 0x55), (At(bus, 0x800), At(bus, 0x9FF), At(bus, 0xA0F), At(bus, 0xA10), At(bus, 0xA73), At(bus, 0xA74)));
    }

    [Fact]
    public void WhatMakesNoSenseIsRefusedAndCounted()
    {
        (GuestBus bus, BalloonDriver driver) = Start();
        using GuestBus _ = bus;
        bus.Fixture.Memory.Write(new(0x800UL << 12), 0x55u);
        // Nobody has asked.
        driver.Give(more: false, (0x800, 1));
        driver.HaveTaken();
        driver.HaveAdded(1, 1);
        Assert.Equal((0UL, 0x55, 3L), (bus.Balloon!.GetReport().ActualBytes, At(bus, 0x800), bus.Balloon.Spurious));
        bus.Balloon.SetTarget(10 << 12);
        Assert.Equal(10u, driver.TakeBalloonRequest());
        // No memory, in part no memory, no pages, more than was asked for; then a good one, and one that overlaps it.
        foreach ((ulong, ulong) range in ((ulong, ulong)[])[(0x1000, 1), (0xFFF, 2), (0xFF_FFFF_FFFF, 0xFF_FFFF), (0x800, 0), (0x800, 11)])
            driver.Give(more: true, range);
        driver.Give(more: true, (0x801, 4), (0x804, 2));
        Assert.Equal((4UL << 12, 0x55, 9L), (bus.Balloon.GetReport().ActualBytes, At(bus, 0x800), bus.Balloon.Spurious));
        // A count that is not in the message, a size that is not, and no message at all.
        driver.Channel.Send(driver.Message(7, 24, (12, 0x8000_0001), (16, 0x806), (20, 1 << 8)));
        byte[] wrong = driver.Message(7, 24);
        BinaryPrimitives.WriteUInt16LittleEndian(wrong.AsSpan(2), 64);
        driver.Channel.Send(wrong);
        driver.Channel.Send([1]);
        Assert.Equal((5UL << 12, 12L), (bus.Balloon.GetReport().ActualBytes, bus.Balloon.Spurious));
        driver.Give(more: false, (0x900, 5));
        Assert.Equal(BalloonReason.Reached, bus.Balloon.GetReport().Reason);
    }

    [Fact]
    public void PinnedPagesAreGivenButTold()
    {
        (GuestBus bus, BalloonDriver driver) = Start();
        using GuestBus _ = bus;
        bus.Fixture.Memory.Write(new(0x801UL << 12), 0x55u);
        bus.Balloon!.SetTarget(4 << 12);
        Assert.Equal(4u, driver.TakeBalloonRequest());
        using (bus.Fixture.Memory.TryPin(new(0x801UL << 12), 10))
            driver.Give(more: false, (0x800, 4));
        BalloonReport report = bus.Balloon.GetReport();
        Assert.Equal((4UL << 12, 1L, BalloonReason.NotDiscarded, 0x55), (report.ActualBytes, report.RefusedPages, report.Reason, At(bus, 0x801)));
        bus.Balloon.SetTarget(0);
        Assert.Equal([(0x800UL, 4UL)], driver.TakeBack()!);
        Assert.Equal(BalloonReason.Reached, bus.Balloon.GetReport().Reason);
    }

    [Fact]
    public void AGuestWithoutMemoryIsAskedAgainLater()
    {
        (GuestBus bus, BalloonDriver driver) = Start();
        using GuestBus _ = bus;
        bus.Balloon!.SetTarget(100 << 12);
        Assert.Equal(100u, driver.TakeBalloonRequest());
        driver.Give(more: false, (0x800, 30));
        Assert.Equal(0u, driver.TakeBalloonRequest());
        Assert.Equal(BalloonReason.Stalled, bus.Balloon.GetReport().Reason);
        bus.Fixture.Time.Advance(TimeSpan.FromSeconds(6));
        Assert.Equal(70u, driver.TakeBalloonRequest());
        driver.Give(more: false);
        Assert.Equal(0u, driver.TakeBalloonRequest());
        // Another target is asked for at once; and one below what there is gives back.
        bus.Balloon.SetTarget(40 << 12);
        Assert.Equal(10u, driver.TakeBalloonRequest());
        driver.Give(more: false);
        bus.Balloon.SetTarget(20 << 12);
        Assert.Equal([(0x800UL, 10UL)], driver.TakeBack()!);
    }

    [Fact]
    public void LargeTargetsComeInPieces()
    {
        (GuestBus bus, BalloonDriver driver) = Start(memory: () => GuestMemory.CreatePc(1024 * MiB));
        using GuestBus _ = bus;
        bus.Balloon!.SetTarget(600 * MiB);
        foreach (uint pages in (uint[])[1 << 16, 1 << 16, 88 << 8])
        {
            Assert.Equal(pages, driver.TakeBalloonRequest());
            driver.Give(more: false, ((bus.Balloon.GetReport().ActualBytes >> 12) + 0x2000, pages));
        }
        Assert.Equal(BalloonReason.Reached, bus.Balloon.GetReport().Reason);
        bus.Balloon.SetTarget(0);
        ulong back = 0;
        while (driver.TakeBack() is { } ranges)
        {
            Assert.InRange((ulong)ranges.Sum(r => (long)r.Count), 1UL, 1UL << 14);
            back += (ulong)ranges.Sum(r => (long)r.Count);
            driver.HaveTaken();
        }
        Assert.Equal((600UL << 8, 0UL), (back, bus.Balloon.GetReport().ActualBytes));
    }

    [Fact]
    public void ManySmallRangesFitIntoMessages()
    {
        (GuestBus bus, BalloonDriver driver) = Start();
        using GuestBus _ = bus;
        bus.Balloon!.SetTarget(1200 << 12);
        Assert.Equal(1200u, driver.TakeBalloonRequest());
        for (ulong i = 0; i < 1200; i += 400)
            driver.Give(more: i < 800, [.. Enumerable.Range((int)i, 400).Select(n => (0x500 + (ulong)(2 * n), 1UL))]);
        Assert.Equal(BalloonReason.Reached, bus.Balloon.GetReport().Reason);
        bus.Balloon.SetTarget(0);
        List<(ulong First, ulong Count)> back = [];
        while (driver.TakeBack() is { } ranges)
        {
            Assert.InRange(ranges.Length, 1, 510);
            back.AddRange(ranges);
            driver.HaveTaken();
        }
        Assert.Equal(Enumerable.Range(0, 1200).Select(n => (0x500 + (ulong)(2 * n), 1UL)), back);
    }

    [Fact]
    public void PressureIsReported()
    {
        (GuestBus bus, BalloonDriver driver) = Start();
        using GuestBus _ = bus;
        Assert.Null(bus.Balloon!.GetReport().Statistics.Age);
        driver.Status(1000, 500);
        bus.Fixture.Time.Advance(TimeSpan.FromSeconds(2));
        BalloonStatistics statistics = bus.Balloon.GetReport().Statistics;
        Assert.Equal((1000UL << 12, 500UL << 12, TimeSpan.FromSeconds(2)), (statistics[GuestFigure.Available], statistics[GuestFigure.Committed], statistics.Age));
        // Nobody has more than there is.
        driver.Status(ulong.MaxValue, ulong.MaxValue);
        Assert.Equal(16 * MiB, bus.Balloon.GetReport().Statistics[GuestFigure.Available]);
    }

    [Fact]
    public void NothingIsAskedOfAFrozenGuest()
    {
        (GuestBus bus, BalloonDriver driver) = Start();
        using GuestBus _ = bus;
        bus.Balloon!.Hold(true);
        bus.Balloon.SetTarget(MiB);
        Assert.Equal(0u, driver.TakeBalloonRequest());
        bus.Server.Post(() => bus.Balloon.Hold(false));
        Assert.Equal(256u, driver.TakeBalloonRequest());
    }

    [Fact]
    public void AGuestThatStartsAnewHasGivenNothing()
    {
        (GuestBus bus, BalloonDriver driver) = Start(new DynamicMemoryOptions { TargetBytes = MiB });
        using GuestBus _ = bus;
        Assert.Equal(256u, driver.TakeBalloonRequest());
        driver.Give(more: true, (0x800, 100));
        bus.Server.Reset();
        bus.Balloon!.Reset();
        Assert.Equal((0UL, MiB, BalloonReason.NoDriver), (bus.Balloon.GetReport().ActualBytes, bus.Balloon.GetReport().TargetBytes, bus.Balloon.GetReport().Reason));
        bus.Connect();
        driver = new BalloonDriver(bus.Open(bus.Balloon));
        driver.Connect();
        Assert.Equal(256u, driver.TakeBalloonRequest());
    }

    [Fact]
    public void ASavedRequestIsAnsweredAfterwards()
    {
        (GuestBus bus, BalloonDriver driver) = Start(new DynamicMemoryOptions { TargetBytes = MiB });
        using GuestBus _ = bus;
        Assert.Equal(256u, driver.TakeBalloonRequest());
        driver.Give(more: true, (0x800, 100));
        VmBusSavedState state = bus.Server.Save();
        // As if the memory were another machine's, which went on from the copy.
        bus.Server.Reset();
        bus.Balloon!.Reset();
        bus.Server.Restore(state);
        Assert.Equal((100UL << 12, BalloonReason.Working), (bus.Balloon.GetReport().ActualBytes, bus.Balloon.GetReport().Reason));
        driver.Give(more: false, (0x8C0, 156));
        Assert.Equal((MiB, BalloonReason.Reached), (bus.Balloon.GetReport().ActualBytes, bus.Balloon.GetReport().Reason));
        bus.Balloon.SetTarget(0);
        Assert.Equal([(0x800UL, 100UL), (0x8C0, 156)], driver.TakeBack()!);
        foreach (string wrong in (string[])["", "{}}", "{\"request\":9}", "{\"asked\":99999999999}"])
            Assert.Throws<FormatException>(() => bus.Balloon.Restore(wrong));
    }

    [Fact]
    public void SpareMemoryIsAdded()
    {
        MemoryRegion spare = new(new(4096 * MiB), 512 * MiB, "spare");
        (GuestBus bus, BalloonDriver driver) = Start(
            new DynamicMemoryOptions { Spare = spare }, memory: () => new GuestMemory(new MemoryRegion(new(0), 64 * MiB, "low"), spare));
        using GuestBus _ = bus;
        DynamicMemory balloon = bus.Balloon!;
        Assert.Equal((512 * MiB, 512 * MiB, BalloonReason.Reached), (balloon.GetReport().TargetBytes, balloon.GetReport().ActualBytes, balloon.GetReport().Reason));
        Assert.Null(driver.TakeAddRequest());
        balloon.SetTarget(200 * MiB);
        Assert.Equal((4096UL << 8, 128UL << 8), driver.TakeAddRequest());
        driver.HaveAdded(128 << 8, 1);
        Assert.Equal((4224UL << 8, 128UL << 8), driver.TakeAddRequest());
        driver.HaveAdded(128 << 8, 1);
        BalloonReport report = balloon.GetReport();
        // A chunk is the least that can be added.
        Assert.Equal((256 * MiB, BalloonReason.Reached), (report.ActualBytes, report.Reason));
        balloon.SetTarget(257 * MiB);
        Assert.Equal(256u, driver.TakeBalloonRequest());
        // Pages of what was not added cannot be given.
        driver.Give(more: true, (4352 << 8, 1));
        driver.Give(more: false, ((4352UL << 8) - 256, 256));
        Assert.Equal((257 * MiB, 1L), (balloon.GetReport().ActualBytes, balloon.Spurious));
        balloon.SetTarget(0);
        Assert.Equal([((4352UL << 8) - 256, 256UL)], driver.TakeBack()!);
        driver.HaveTaken();
        Assert.Equal((4352UL << 8, 128UL << 8), driver.TakeAddRequest());
        // Not now, then never.
        driver.HaveAdded(0, 0);
        Assert.Equal(BalloonReason.Stalled, balloon.GetReport().Reason);
        bus.Fixture.Time.Advance(TimeSpan.FromSeconds(6));
        Assert.Equal((4352UL << 8, 128UL << 8), driver.TakeAddRequest());
        driver.HaveAdded(0, 1);
        Assert.Equal((256 * MiB, BalloonReason.Refused), (balloon.GetReport().ActualBytes, balloon.GetReport().Reason));
        bus.Server.Reset();
        balloon.Reset();
        Assert.Equal(512 * MiB, balloon.GetReport().ActualBytes);
    }

    [Fact]
    public void FreePagesAreReportedByHypercall()
    {
        using GuestBus bus = new(balloon: new DynamicMemoryOptions());
        PartitionFixture fixture = bus.Fixture;
        Assert.Equal(0UL, fixture.Call(0x8001, output: PartitionFixture.Input));
        Assert.Equal(1UL << 8, fixture.Memory.Read<ulong>(new(PartitionFixture.Input)));
        Assert.NotEqual(0UL, fixture.Call(0x8001, output: 1UL << 50));

        // 4 KiB pages, then 2 MiB ones.
        fixture.Memory.TryFill(new(8 * MiB), 8 * MiB, 0x55);
        void Write(ulong type, params ulong[] ranges)
        {
            fixture.Memory.Write(new(PartitionFixture.Input), type);
            for (int i = 0; i < ranges.Length; i++)
                fixture.Memory.Write(new(PartitionFixture.Input + 8 + ((ulong)i * 8)), ranges[i]);
        }
        Write(2, 0x800UL << 12 | 2, 10 * MiB | 0x800 | 1);
        Assert.Equal(2UL << 32, fixture.Call(0x8003 | 2UL << 32, PartitionFixture.Input));
        Assert.Equal((0, 0, 0x55, 0, 0, 0x55), (At(bus, 0x800), At(bus, 0x802), At(bus, 0x803), At(bus, 0xA00), At(bus, 0xDFF), At(bus, 0xE00)));
        Assert.Equal((3UL << 12) + (4 * MiB), bus.Balloon!.GetReport().ReportedBytes);

        // Another kind of hint, pages that are none, larger pages than Linux names, lists that leave the page.
        Write(1, 0xE00UL << 12);
        Assert.Equal(5UL, fixture.Call(0x8003 | 1UL << 32, PartitionFixture.Input));
        Write(2, 0xE00UL << 12, 1UL << 50, 0xE01UL << 12);
        Assert.Equal(5UL | 1UL << 32, fixture.Call(0x8003 | 3UL << 32, PartitionFixture.Input));
        Assert.Equal((0, 0x55), (At(bus, 0xE00), At(bus, 0xE01)));
        Write(2, 0x1800);
        Assert.Equal(5UL, fixture.Call(0x8003 | 1UL << 32, PartitionFixture.Input));
        Assert.Equal(4UL, fixture.Call(0x8003 | 512UL << 32, PartitionFixture.Input));
        Assert.Equal(3UL, fixture.Call(0x8003, PartitionFixture.Input));
        Assert.Equal(3UL, fixture.Call(0x8003 | 1 << 16 | 1UL << 32, PartitionFixture.Input));

        // Of many ranges a part is done; the guest goes on where that ends.
        Write(2, [.. Enumerable.Range(0, 100).Select(i => (0xF00 + (ulong)i) << 12)]);
        Assert.Equal(64UL << 32, fixture.Call(0x8003 | 100UL << 32, PartitionFixture.Input));
        Assert.Equal(0x55, At(bus, 0xF40));
        Assert.Equal(100UL << 32, fixture.Call(0x8003 | 100UL << 32 | 64UL << 48, PartitionFixture.Input));
        Assert.Equal((0, 0x55), (At(bus, 0xF63), At(bus, 0xF64)));
    }
}
