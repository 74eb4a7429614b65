namespace Aerostat.Chipset.Tests;

public sealed class PitTests
{
    private readonly ManualTimeProvider _time = new(12_345);
    private readonly FakeLine _irq = new();
    private readonly Pit _pit;
    private readonly SystemControlPortB _portB;

    public PitTests()
    {
        _pit = new Pit(_irq, _time);
        _portB = new SystemControlPortB(_pit, _time);
    }

    /// <summary>Host timers count 100 ns: an interrupt may come that late.</summary>
    private const long Slack = 100;

    /// <summary>VM time after which a counter has seen so many clocks.</summary>
    private static long Clocks(long count) => VmClock.TimeOfTick(count, 1_193_182);

    private void Program(int channel, int mode, int count, bool bcd = false)
    {
        _pit.Out(0x43, (byte)(channel << 6 | 0x30 | mode << 1 | (bcd ? 1 : 0)));
        _pit.Out((ushort)(0x40 + channel), (byte)count);
        _pit.Out((ushort)(0x40 + channel), (byte)(count >> 8));
    }

    private int Count(int channel)
    {
        _pit.Out(0x43, (byte)(channel << 6));
        return _pit.In((ushort)(0x40 + channel)) | _pit.In((ushort)(0x40 + channel)) << 8;
    }

    private byte Status(int channel)
    {
        _pit.Out(0x43, (byte)(0xE0 | 2 << channel));
        return _pit.In((ushort)(0x40 + channel));
    }

    [Fact]
    public void RateGeneratorInterruptsWithoutDrift()
    {
        Program(0, 2, 1193);
        _time.Advance(Clocks(1193 * 50_000L) - 1);
        Assert.Equal(49_999, _irq.Edges);
        _time.Advance(1 + Slack);
        Assert.Equal(50_000, _irq.Edges);
        Assert.Equal(50_000, _time.Calls);
    }

    [Fact]
    public void RateGeneratorCountsDownToOne()
    {
        Program(0, 2, 1000);
        Assert.Equal(1000, Count(0));
        _time.Advance(Clocks(999));
        Assert.Equal(1, Count(0));
        _time.Advance(Clocks(1000) - Clocks(999));
        Assert.Equal(1000, Count(0));
    }

    [Fact]
    public void SquareWaveCountsByTwo()
    {
        Program(0, 3, 1000);
        _time.Advance(Clocks(100));
        Assert.Equal(800, Count(0));
        Assert.Equal(0x80, Status(0) & 0x80);
        _time.Advance(Clocks(600) - Clocks(100));
        Assert.Equal(800, Count(0));
        Assert.Equal(0, Status(0) & 0x80);
        _time.Advance(Clocks(1000) - Clocks(600) + Slack);
        Assert.Equal(1, _irq.Edges);
    }

    [Fact]
    public void InterruptOnTerminalCountRaisesOnceAndStaysUp()
    {
        Program(0, 0, 100);
        Assert.False(_irq.Level);
        _time.Advance(Clocks(100) - 1);
        Assert.False(_irq.Level);
        _time.Advance(100);
        Assert.True(_irq.Level);
        _time.AdvanceMilliseconds(1_000);
        Assert.Equal(1, _irq.Edges);
        _pit.Out(0x43, 0x30);
        Assert.False(_irq.Level);
        Assert.Equal(0, _time.Armed);
    }

    [Fact]
    public void CountRunsOnThroughZeroInMode0()
    {
        Program(0, 0, 10);
        _time.Advance(Clocks(12));
        Assert.Equal(0xFFFE, Count(0));
    }

    [Fact]
    public void SoftwareStrobePulsesOnce()
    {
        Program(0, 4, 100);
        _time.AdvanceMilliseconds(100);
        Assert.Equal(1, _irq.Edges);
        Assert.False(_irq.Level);
    }

    [Fact]
    public void TriggeredModesWaitForAGateThatChannel0DoesNotHave()
    {
        Program(0, 5, 100);
        _time.AdvanceMilliseconds(100);
        Assert.Equal(0, _irq.Edges);
        Program(0, 1, 100);
        Assert.Equal(0x80, Status(0) & 0x80);
    }

    [Fact]
    public void OneShotRunsFromItsTrigger()
    {
        Program(2, 1, 100);
        Assert.True(_pit.Output2);
        _portB.Out(0x61, 1);
        Assert.False(_pit.Output2);
        _time.Advance(Clocks(50));
        // A new count waits for the next trigger, and a trigger starts over.
        _pit.Out(0x42, 10);
        _pit.Out(0x42, 0);
        _time.Advance(Clocks(99) - Clocks(50));
        Assert.False(_pit.Output2);
        _time.Advance(1_000);
        Assert.True(_pit.Output2);
        _portB.Out(0x61, 0);
        _portB.Out(0x61, 1);
        Assert.False(_pit.Output2);
        _time.Advance(Clocks(10));
        Assert.True(_pit.Output2);
    }

    [Fact]
    public void Channel2MeasuresTimeAsLinuxUsesIt()
    {
        // pit_calibrate: gate up, speaker off, mode 0, wait for OUT in port 0x61.
        _portB.Out(0x61, 1);
        Program(2, 0, 59_659);
        Assert.Equal(0, _portB.In(0x61) & 0x20);
        _time.Advance(Clocks(59_658));
        Assert.Equal(0, _portB.In(0x61) & 0x20);
        _time.Advance(1_000);
        Assert.Equal(0x21, _portB.In(0x61) & 0x2F);
    }

    [Fact]
    public void GateHoldsTheCount()
    {
        _portB.Out(0x61, 1);
        Program(2, 0, 1000);
        _time.Advance(Clocks(400));
        _portB.Out(0x61, 0);
        _time.AdvanceMilliseconds(50);
        Assert.Equal(600, Count(2));
        _portB.Out(0x61, 1);
        _time.Advance(Clocks(100));
        Assert.Equal(500, Count(2));
    }

    [Fact]
    public void RefreshBitToggles()
    {
        byte first = _portB.In(0x61);
        _time.Advance(15_085);
        Assert.Equal(0x10, (first ^ _portB.In(0x61)) & 0x10);
    }

    [Fact]
    public void LatchHoldsUntilItIsRead()
    {
        Program(0, 2, 0x1234);
        _pit.Out(0x43, 0);
        _time.Advance(Clocks(100));
        _pit.Out(0x43, 0);
        Assert.Equal(0x34, _pit.In(0x40));
        Assert.Equal(0x12, _pit.In(0x40));
        Assert.Equal(0x1234 - 100, Count(0));
    }

    [Fact]
    public void ReadBackGivesStatusThenCount()
    {
        _pit.Out(0x43, 0x34);
        Assert.Equal(0x74, Status(0) & 0x7F);
        Program(0, 2, 500);
        _pit.Out(0x43, 0xC2);
        Assert.Equal(0xB4, _pit.In(0x40));
        Assert.Equal(500 & 0xFF, _pit.In(0x40));
        Assert.Equal(500 >> 8, _pit.In(0x40));
    }

    [Fact]
    public void SingleByteAccessModes()
    {
        _pit.Out(0x43, 0x14);
        _pit.Out(0x40, 200);
        _time.Advance(Clocks(50));
        Assert.Equal(150, _pit.In(0x40));
        _pit.Out(0x43, 0x24);
        _pit.Out(0x40, 2);
        Assert.Equal(2, _pit.In(0x40));
        _time.Advance(Clocks(1));
        Assert.Equal(1, _pit.In(0x40));
    }

    [Fact]
    public void DecimalCounting()
    {
        Program(0, 2, 0x1000, bcd: true);
        _time.Advance(Clocks(1));
        Assert.Equal(0x999, Count(0));
        Program(0, 2, 0, bcd: true);
        _time.Advance(Clocks(1));
        Assert.Equal(0x9999, Count(0));
    }

    [Fact]
    public void ZeroMeans65536()
    {
        Program(0, 2, 0);
        Assert.Equal(0, Count(0));
        _time.Advance(Clocks(65_536) + Slack);
        Assert.Equal(1, _irq.Edges);
    }

    [Fact]
    public void AbsurdRatesAreBounded()
    {
        Program(0, 2, 2);
        _time.AdvanceMilliseconds(10);
        Assert.InRange(_time.Calls, 100, 210);
    }

    [Fact]
    public void LatePeriodsCoalesceInPhase()
    {
        Program(0, 2, 11_932);
        _time.Lag(Clocks(11_932 * 7L + 100));
        _time.Advance(0);
        Assert.Equal(1, _irq.Edges);
        _time.Advance(Clocks(11_932 * 8L) - Clocks(11_932 * 7L + 100) + Slack);
        Assert.Equal(2, _irq.Edges);
    }
}
