namespace Aerostat.Chipset.Tests;

public sealed class AcpiPmTests
{
    private readonly ManualTimeProvider _time = new(99);
    private readonly FakeLine _sci = new();
    private readonly AcpiPm _pm;
    private int _powerOffs;
    private int _suspends;

    public AcpiPmTests() => _pm = Make(new AcpiPmOptions());

    private AcpiPm Make(AcpiPmOptions options) => new(options, _sci, _time, () => _powerOffs++, () => _suspends++);

    [Fact]
    public void TimerCountsAtItsFrequency()
    {
        Assert.Equal(0u, _pm.ReadPort(0x608, 4));
        _time.AdvanceMilliseconds(1_000);
        Assert.Equal(3_579_545u, _pm.ReadPort(0x608, 4));
        Assert.Equal(3_579_545u & 0xFF, _pm.ReadPort(0x608, 1));
        Assert.Equal(3_579_545u >> 16, _pm.ReadPort(0x60A, 2));
        _pm.WritePort(0x608, 4, 7);
        Assert.Equal(3_579_545u, _pm.ReadPort(0x608, 4));
    }

    [Fact]
    public void NarrowTimerWraps()
    {
        AcpiPm pm = Make(new AcpiPmOptions { WideTimer = false });
        _time.Advance(VmClock.TimeOfTick((1 << 24) + 5, AcpiPm.TimerFrequency));
        Assert.Equal(5u, pm.ReadPort(0x608, 4));
    }

    [Theory]
    [InlineData(false, 1L << 23)]
    [InlineData(true, 1L << 31)]
    public void CarryRaisesTheSci(bool wide, long half)
    {
        AcpiPm pm = Make(new AcpiPmOptions { WideTimer = wide });
        long period = VmClock.TimeOfTick(half, AcpiPm.TimerFrequency);
        _time.Advance(period);
        Assert.False(_sci.Level);
        Assert.Equal(1u, pm.ReadPort(0x600, 2));
        pm.WritePort(0x600, 2, 1);
        pm.WritePort(0x602, 2, 1);
        _time.Advance(period - 200);
        Assert.False(_sci.Level);
        _time.Advance(400);
        Assert.True(_sci.Level);
        pm.WritePort(0x600, 2, 1);
        Assert.False(_sci.Level);
        _time.Advance(period);
        Assert.True(_sci.Level);
    }

    [Fact]
    public void PowerButtonRaisesTheSciWhenEnabled()
    {
        Assert.False(_pm.PressPowerButton());
        Assert.Equal(0x100u, _pm.ReadPort(0x600, 2));
        Assert.False(_sci.Level);
        _pm.WritePort(0x600, 2, 0x100);
        _pm.WritePort(0x602, 2, 0x100);
        Assert.True(_pm.PressPowerButton());
        Assert.True(_sci.Level);
        _pm.WritePort(0x600, 2, 0x001);
        Assert.True(_sci.Level);
        _pm.WritePort(0x600, 2, 0x100);
        Assert.False(_sci.Level);
    }

    [Fact]
    public void SleepEnableWithTheS5TypePowersOff()
    {
        Assert.Equal(1u, _pm.ReadPort(0x604, 2));
        _pm.WritePort(0x604, 2, 5 << 10);
        Assert.Equal(0, _powerOffs);
        Assert.Equal(5u << 10 | 1, _pm.ReadPort(0x604, 2));
        _pm.WritePort(0x604, 2, 1 << 10 | 1 << 13);
        Assert.Equal((0, 0), (_powerOffs, _suspends));
        _pm.WritePort(0x604, 2, 5 << 10 | 1 << 13);
        Assert.Equal(1, _powerOffs);
        Assert.Equal(5u << 10 | 1, _pm.ReadPort(0x604, 2));
    }

    [Fact]
    public void SuspendIsReportedWhereItExists()
    {
        AcpiPm pm = Make(new AcpiPmOptions { SleepTypeS3 = 1 });
        pm.WritePort(0x604, 2, 1 << 10 | 1 << 13);
        Assert.Equal(1, _suspends);
        Assert.Equal(0x8000u, pm.ReadPort(0x600, 2) & 0x8000);
    }

    [Fact]
    public void GeneralPurposeEvents()
    {
        Assert.False(_pm.RaiseGeneralPurposeEvent(3));
        Assert.Equal(8u, _pm.ReadPort(0x620, 2));
        _pm.WritePort(0x622, 1, 8);
        Assert.True(_sci.Level);
        _pm.WritePort(0x620, 1, 8);
        Assert.False(_sci.Level);
        _pm.WritePort(0x623, 1, 0x80);
        Assert.True(_pm.RaiseGeneralPurposeEvent(15));
        Assert.True(_sci.Level);
    }

    [Fact]
    public void ResetClearsEverything()
    {
        _pm.WritePort(0x602, 2, 0x100);
        _pm.PressPowerButton();
        _pm.Reset();
        Assert.False(_sci.Level);
        Assert.Equal(0u, _pm.ReadPort(0x600, 4));
    }
}
