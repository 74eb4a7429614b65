using System.Buffers.Binary;
using Aerostat.Devices;
using Aerostat.Memory;

namespace Aerostat.Virtio.Tests;

/// <summary>The balloon by a driver of our own.</summary>
public sealed class BalloonTests : IDisposable
{
    private const ulong MustTell = 1, Stats = 2, Oom = 4, Hints = 8, Poison = 16, Reporting = 32, All = 63;
    private const ulong Frames = 0x20_0000, Play = 0x80_0000, MiB = 1 << 20;

    private readonly GuestMemory _memory = new(new MemoryRegion(new(0), 16 * MiB, "low"), new MemoryRegion(new(18 * MiB), 2 * MiB, "high"));
    private readonly ListLog _log = new();
    private readonly ManualClock _clock = new();
    private readonly List<VirtioBalloon> _made = [];

    /// <summary>A clock that goes on when it is told to.</summary>
    private sealed class ManualClock : TimeProvider
    {
        public long Now { get; set; }

        public override long TimestampFrequency => 1000;

        public override long GetTimestamp() => Now;

        public override ITimer CreateTimer(TimerCallback callback, object? state, TimeSpan dueTime, TimeSpan period) => new Never();

        private sealed class Never : ITimer
        {
            public bool Change(TimeSpan dueTime, TimeSpan period) => true;

            public void Dispose()
            {
            }

            public ValueTask DisposeAsync() => default;
        }
    }

    private sealed class Collector : IFreePageHints
    {
        public List<(ulong Address, ulong Length)> Ranges { get; } = [];

        public List<bool> Ends { get; } = [];

        public void Hint(GuestAddress address, ulong length) => Ranges.Add((address.Value, length));

        public void Finished(bool complete) => Ends.Add(complete);
    }

    public void Dispose()
    {
        foreach (VirtioBalloon balloon in _made)
            balloon.Stop();
        _memory.Dispose();
    }

    private (VirtioBalloon Balloon, Driver Driver) Make(ulong accepted = All, BalloonDeviceOptions? options = null, bool start = true)
    {
        VirtioBalloon balloon = new("balloon0", options ?? new BalloonDeviceOptions { DeflateOnOom = true }, new VirtioContext(_memory, _log, _clock));
        _made.Add(balloon);
        Driver driver = new(_memory, balloon);
        if (start)
            driver.Start(accepted & balloon.OfferedFeatures, 64);
        return (balloon, driver);
    }

    private static void SendFrames(Driver driver, int queue, params ReadOnlySpan<uint> frames)
    {
        byte[] bytes = new byte[frames.Length * 4];
        for (int i = 0; i < frames.Length; i++)
            BinaryPrimitives.WriteUInt32LittleEndian(bytes.AsSpan(i * 4), frames[i]);
        driver.Fill(Frames, bytes);
        Send(driver, queue, new Buffer(Frames, (uint)bytes.Length, false));
    }

    private static void Send(Driver driver, int queue, params ReadOnlySpan<Buffer> buffers)
    {
        driver.Queues[queue].Add(buffers);
        driver.Queues[queue].Kick();
        driver.Settle();
        driver.Queues[queue].MustTakeUsed();
    }

    private void Touch(ulong address, ulong length) => Assert.True(_memory.TryFill(new GuestAddress(address), length, 0x5A));

    [Fact]
    public void MemoryThatIsGivenGoesToTheHost()
    {
        (VirtioBalloon balloon, Driver driver) = Make();
        Touch(Play, MiB);
        ulong before = _memory.AllocatedBytes;
        balloon.SetTarget(MiB);
        Assert.Equal(256u, (uint)driver.Registers.ReadMmio(0x100, 4));
        Assert.Equal(2u, driver.Read(0x60));
        Assert.Equal(BalloonReason.Working, balloon.GetReport().Reason);
        // From the highest down, as drivers do, some of them twice.
        SendFrames(driver, 0, [.. Enumerable.Range(0, 256).Reverse().Select(i => (uint)((Play >> 12) + (ulong)i)), (uint)(Play >> 12)]);
        Assert.Equal(MiB, balloon.GetReport().ActualBytes);
        Assert.Equal(BalloonReason.Reached, balloon.GetReport().Reason);
        // The frames' own page and the ring's are new.
        Assert.InRange(_memory.AllocatedBytes, before - MiB, before - MiB + 65536);
        Assert.Equal(MiB, _memory.GetPageTotals().DiscardedBytes);
        Assert.Equal(new byte[16], driver.Bytes(Play + 5000, 16));
        SendFrames(driver, 1, (uint)(Play >> 12), (uint)(Play >> 12) + 1, 77);
        Assert.Equal(MiB - 8192, balloon.GetReport().ActualBytes);
        Assert.Empty(_log.Lines);
    }

    [Fact]
    public void NonsenseIsTakenAndIgnored()
    {
        (VirtioBalloon balloon, Driver driver) = Make();
        SendFrames(driver, 0, uint.MaxValue, uint.MaxValue - 1, 16 << 8, (17 << 8) + 3, 20 << 8);
        Assert.Equal(0UL, balloon.GetReport().ActualBytes);
        // A run across the edge of memory: what is memory counts.
        SendFrames(driver, 0, [.. Enumerable.Range((16 << 8) - 2, 4).Select(i => (uint)i)]);
        Assert.Equal(8192UL, balloon.GetReport().ActualBytes);
        SendFrames(driver, 1, 0, 1, uint.MaxValue);
        Assert.Equal(8192UL, balloon.GetReport().ActualBytes);
        Send(driver, 0, new Buffer(Frames, 7, false));
        Send(driver, 0, new Buffer(Frames, 3, true));
        Send(driver, 1, new Buffer(Frames, 1, false));
        Assert.Equal((VirtioStatus)15, driver.Status);
        driver.Registers.WriteMmio(0x104, 4, 0xFFFFFFFF);
        Assert.Equal(0xFFFFFFFFUL << 12, balloon.GetReport().GuestActualBytes);
        // It does not write to the target, or to the command.
        driver.Registers.WriteMmio(0x100, 4, 5);
        driver.Registers.WriteMmio(0x108, 4, 5);
        Assert.Equal(0UL, driver.Registers.ReadMmio(0x100, 4));
        Assert.Equal(0UL, driver.Registers.ReadMmio(0x108, 4));
    }

    [Fact]
    public void WhatIsPinnedStays()
    {
        (VirtioBalloon balloon, Driver driver) = Make();
        Touch(Play, 8192);
        using (_memory.TryPin(new GuestAddress(Play), 4096))
            SendFrames(driver, 0, (uint)(Play >> 12), (uint)(Play >> 12) + 2);
        Assert.Equal(1, balloon.GetReport().RefusedPages);
        balloon.SetTarget(balloon.GetReport().ActualBytes);
        Assert.Equal(BalloonReason.NotDiscarded, balloon.GetReport().Reason);
        Assert.Equal(0x5A, driver.Bytes(Play, 1)[0]);
    }

    [Fact]
    public void TheReasonIsSaid()
    {
        (VirtioBalloon balloon, Driver driver) = Make(start: false, options: new BalloonDeviceOptions { TargetBytes = 2 * MiB, DeflateOnOom = true });
        Assert.Equal(BalloonReason.NoDriver, balloon.GetReport().Reason);
        Assert.Throws<ArgumentOutOfRangeException>(() => balloon.SetTarget(19 * MiB));
        driver.Start(All, 64);
        Assert.Equal(BalloonReason.Working, balloon.GetReport().Reason);
        SendFrames(driver, 0, (uint)(Play >> 12));
        _clock.Now += 6000;
        Assert.Equal(BalloonReason.Stalled, balloon.GetReport().Reason);
        SendFrames(driver, 1, (uint)(Play >> 12));
        Assert.Equal(BalloonReason.DeflatedOnOom, balloon.GetReport().Reason);
        balloon.SetTarget(4096);
        Assert.Equal(BalloonReason.Working, balloon.GetReport().Reason);
        driver.Queues[0].Add(new Buffer(17 * MiB, 8, false));
        driver.Queues[0].Kick();
        driver.Settle();
        Assert.Equal(BalloonReason.DriverFailed, balloon.GetReport().Reason);
        // A new driver starts from nothing, with the same target.
        driver.Start(All, 64);
        Assert.Equal(0UL, balloon.GetReport().ActualBytes);
        Assert.Equal(1UL, driver.Registers.ReadMmio(0x100, 4));
    }

    [Fact]
    public void StatisticsAreParkedAndAskedFor()
    {
        (VirtioBalloon balloon, Driver driver) = Make(start: false);
        driver.Start(All, 64, ok: false);
        Assert.Null(balloon.GetReport().Statistics.Age);
        // Before DRIVER_OK, as Linux does.
        driver.Fill(Frames, Records((5, 1 << 20), (4, 1000), (999, 7)));
        ushort id = driver.Queues[2].Add(new Buffer(Frames, 30, false));
        driver.Queues[2].Kick();
        driver.SetDriverOk();
        driver.Settle();
        Assert.Null(driver.Queues[2].TakeUsed());
        _clock.Now += 2500;
        BalloonStatistics statistics = balloon.GetReport().Statistics;
        Assert.Equal(1UL << 20, statistics[GuestFigure.Total]);
        Assert.Equal(1000UL, statistics[GuestFigure.Free]);
        Assert.Equal(7UL, statistics["tag-999"]);
        Assert.Null(statistics[GuestFigure.OomKills]);
        Assert.Equal(TimeSpan.FromSeconds(2.5), statistics.Age);
        Assert.Null(statistics.Pending);
        balloon.RequestStatistics();
        driver.Settle();
        Assert.Equal(id, driver.Queues[2].MustTakeUsed().Id);
        balloon.RequestStatistics();
        driver.Settle();
        _clock.Now += 1000;
        Assert.Equal(TimeSpan.FromSeconds(1), balloon.GetReport().Statistics.Pending);
        // The answer is owed, so the second request stands: it is answered at once with the buffer that comes.
        driver.Fill(Frames, [.. Records((4, 2000)), 1, 2, 3]);
        driver.Queues[2].Add(new Buffer(Frames, 13, false));
        driver.Queues[2].Kick();
        driver.Settle();
        Assert.Equal(2000UL, balloon.GetReport().Statistics[GuestFigure.Free]);
        driver.Queues[2].MustTakeUsed();
        // Of two buffers the older comes back.
        ushort first = driver.Queues[2].Add(new Buffer(Frames, 10, false));
        driver.Queues[2].Add(new Buffer(Frames, 10, false));
        driver.Queues[2].Kick();
        driver.Settle();
        Assert.Equal(first, driver.Queues[2].MustTakeUsed().Id);
        Assert.Null(driver.Queues[2].TakeUsed());
    }

    /// <summary>What the driver accepts, whether it numbers queues as the specification does, and where hints and reporting are then.</summary>
    [Theory]
    [InlineData(All, false, 3, 4)]
    [InlineData(All & ~Stats, false, 2, 3)]
    [InlineData(All & ~Stats, true, 3, 4)]
    [InlineData(All & ~(Stats | Hints), false, -1, 2)]
    [InlineData(All & ~(Stats | Hints), true, -1, 4)]
    public void QueuesAreNumberedEitherWay(ulong accepted, bool fixedNumbers, int hints, int reporting)
    {
        (VirtioBalloon balloon, Driver driver) = Make(start: false);
        accepted |= VirtioFeatures.Version1;
        Assert.True(driver.Negotiate(accepted));
        driver.Start(accepted, 64, ok: false);
        int used = fixedNumbers ? 5 : 2 + new[] { Stats, Hints, Reporting }.Count(f => (accepted & f) != 0);
        // Those that this driver does not have.
        for (int i = 2; i < 5; i++)
        {
            bool absent = fixedNumbers ? (accepted & (i == 2 ? Stats : i == 3 ? Hints : Reporting)) == 0 : i >= used;
            if (!absent)
                continue;
            driver.Write(0x30, (uint)i);
            driver.Write(0x44, 0);
        }
        driver.SetDriverOk();
        Touch(Play, 2 * MiB);
        Send(driver, reporting, new Buffer(Play, (uint)(2 * MiB), true));
        Assert.Equal(2 * MiB, balloon.GetReport().ReportedBytes);
        if (hints < 0)
        {
            Assert.False(balloon.TryStartHints(new Collector()));
            return;
        }
        Collector collector = new();
        Assert.True(balloon.TryStartHints(collector));
        Command(driver, hints, (uint)driver.Registers.ReadMmio(0x108, 4));
        Send(driver, hints, new Buffer(Play, 4096, true));
        Assert.Equal([(Play, 4096UL)], collector.Ranges);
    }

    [Fact]
    public void ReportedPagesGoBackUnlessPoisoned()
    {
        (VirtioBalloon balloon, Driver driver) = Make();
        Touch(Play, 4 * MiB);
        Send(driver, 4, new Buffer(Play, (uint)MiB, true), new Buffer(Play + (2 * MiB) + 100, 8192, true));
        Assert.Equal(MiB + 4096, balloon.GetReport().ReportedBytes);
        Assert.Equal(0, driver.Bytes(Play, 1)[0]);
        Assert.Equal(0x5A, driver.Bytes(Play + (2 * MiB) + 100, 1)[0]);
        driver.Registers.WriteMmio(0x10C, 4, 0xAAAAAAAA);
        Send(driver, 4, new Buffer(Play + (3 * MiB), 4096, true));
        Assert.Equal(0x5A, driver.Bytes(Play + (3 * MiB), 1)[0]);
    }

    [Fact]
    public void HintsOfTheMergedForm()
    {
        (VirtioBalloon balloon, Driver driver) = Make();
        Collector collector = new();
        Assert.True(balloon.TryStartHints(collector));
        Assert.False(balloon.TryStartHints(collector));
        uint id = (uint)driver.Registers.ReadMmio(0x108, 4);
        Assert.InRange(id, 2u, uint.MaxValue);
        // Too early, and of another run.
        Send(driver, 3, new Buffer(Play, 4096, true));
        Command(driver, 3, id + 1);
        Send(driver, 3, new Buffer(Play, 4096, true));
        Assert.Empty(collector.Ranges);
        Command(driver, 3, id);
        Send(driver, 3, new Buffer(Play, (uint)(4 * MiB), true));
        Send(driver, 3, new Buffer(Play + 100, 8192, true), new Buffer(18 * MiB, 4096, true));
        Assert.Equal([(Play, 4 * MiB), (Play + 4096, 4096UL), (18 * MiB, 4096UL)], collector.Ranges);
        Command(driver, 3, 0);
        Assert.Equal([true], collector.Ends);
        // Late ones.
        Send(driver, 3, new Buffer(Play, 4096, true));
        Assert.Equal(3, collector.Ranges.Count);
        Assert.True(balloon.TryStartHints(collector));
        Assert.Equal(id + 1, (uint)driver.Registers.ReadMmio(0x108, 4));
        balloon.StopHints(release: true);
        Assert.Equal([true, false], collector.Ends);
        Assert.Equal(1u, (uint)driver.Registers.ReadMmio(0x108, 4));
        Command(driver, 3, id + 1);
        Send(driver, 3, new Buffer(Play, 4096, true));
        Assert.Equal(3, collector.Ranges.Count);
    }

    [Fact]
    public void HintsOfJune2018()
    {
        (VirtioBalloon balloon, Driver driver) = Make();
        Collector collector = new();
        Assert.True(balloon.TryStartHints(collector));
        uint id = (uint)driver.Registers.ReadMmio(0x108, 4);
        Command(driver, 3, id, 4 << 20);
        // An array in two pieces that cut an address; its last has no memory behind it.
        byte[] array = new byte[24];
        BinaryPrimitives.WriteUInt64LittleEndian(array, Play);
        BinaryPrimitives.WriteUInt64LittleEndian(array.AsSpan(8), Play + (4 * MiB));
        BinaryPrimitives.WriteUInt64LittleEndian(array.AsSpan(16), 18 * MiB);
        driver.Fill(Frames, array.AsSpan(0, 12));
        driver.Fill(Frames + 0x1000, array.AsSpan(12));
        Send(driver, 3, new Buffer(Frames, 12, true), new Buffer(Frames + 0x1000, 12, true));
        Assert.Equal([(Play, 4 * MiB), (Play + (4 * MiB), 4 * MiB)], collector.Ranges);
        Command(driver, 3, 0, 0);
        Assert.Equal([true], collector.Ends);
    }

    [Fact]
    public void AResetEndsHints()
    {
        (VirtioBalloon balloon, Driver driver) = Make();
        Collector collector = new();
        Assert.True(balloon.TryStartHints(collector));
        driver.Write(0x70, 0);
        driver.Settle();
        Assert.Equal([false], collector.Ends);
        driver.Start(All, 64);
        Assert.Equal(0u, (uint)driver.Registers.ReadMmio(0x108, 4));
        Assert.True(balloon.TryStartHints(collector));
    }

    [Theory]
    [InlineData(0UL)]
    [InlineData(VirtioFeatures.RingPacked)]
    public void ABalloonIsSavedAndRestored(ulong ring)
    {
        BalloonDeviceOptions options = new() { DeflateOnOom = true, Packed = true, TargetBytes = MiB };
        (VirtioBalloon balloon, Driver driver) = Make(All | ring, options);
        SendFrames(driver, 0, (uint)(Play >> 12), (uint)(Play >> 12) + 1, (uint)(Play >> 12) + 70);
        driver.Fill(Frames, Records((4, 5)));
        ushort id = driver.Queues[2].Add(new Buffer(Frames, 10, false));
        driver.Queues[2].Kick();
        driver.Settle();
        balloon.TryStartHints(new Collector());
        balloon.Quiesce();
        string state = System.Text.Json.JsonSerializer.Serialize(balloon.Save());
        VirtioBalloon other = new("balloon0", options, new VirtioContext(_memory, _log, _clock));
        _made.Add(other);
        CountingLine line = new();
        VirtioMmio registers = new(other, line);
        other.Restore(System.Text.Json.JsonSerializer.Deserialize<VirtioBalloonSavedState>(state)!);
        other.Resume();
        other.WaitUntilIdle();
        Assert.Equal(3UL * 4096, other.GetReport().ActualBytes);
        // The driver is told that the run of hints is over.
        Assert.Equal(1UL, registers.ReadMmio(0x108, 4));
        Assert.Equal(2UL, registers.ReadMmio(0x60, 4) & 2);
        other.RequestStatistics();
        other.WaitUntilIdle();
        Assert.Equal(id, driver.Queues[2].MustTakeUsed().Id);
    }

    private static void Command(Driver driver, int queue, params ReadOnlySpan<uint> words)
    {
        byte[] bytes = new byte[words.Length * 4];
        for (int i = 0; i < words.Length; i++)
            BinaryPrimitives.WriteUInt32LittleEndian(bytes.AsSpan(i * 4), words[i]);
        driver.Fill(Frames + 0x8000, bytes);
        Send(driver, queue, new Buffer(Frames + 0x8000, (uint)bytes.Length, false));
    }

    private static byte[] Records(params (ushort Tag, ulong Value)[] records)
    {
        byte[] bytes = new byte[records.Length * 10];
        for (int i = 0; i < records.Length; i++)
        {
            BinaryPrimitives.WriteUInt16LittleEndian(bytes.AsSpan(i * 10), records[i].Tag);
            BinaryPrimitives.WriteUInt64LittleEndian(bytes.AsSpan((i * 10) + 2), records[i].Value);
        }
        return bytes;
    }
}
