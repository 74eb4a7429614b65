namespace Aerostat.Chipset.Tests;

public sealed class AcpiPmTests
{
    private readonly ManualTimeProvider _time = new(99);
    private readonly FakeLine _sci = new();
    private readonly AcpiPm _pm;
    private int _powerOffs;
    private int _suspends;
    private int _wakes;

    public AcpiPmTests() => _pm = Make(new AcpiPmOptions());

    private AcpiPm Make(AcpiPmOptions options) => new(options, _sci, _time, () => _powerOffs++, () => _suspends++, () => _wakes++);

    [Theory]
    [InlineData(0x100, 0)]
    [InlineData(0x400, 0)]
    [InlineData(0, 1 << 4)]
    public void WhatTheGuestEnabledEndsS3(int fixedEvents, int generalEvents)
    {
        _pm.WritePort(0x602, 2, (uint)fixedEvents);
        _pm.WritePort(0x622, 2, (uint)generalEvents);
        _pm.WritePort(0x604, 2, 1 << 10 | 1 << 13);
        Assert.Equal((1, 0, true), (_suspends, _wakes, _pm.IsAsleep));
        Assert.Equal(0u, _pm.ReadPort(0x600, 2));
        _pm.PressPowerButton();
        _pm.SignalRtcAlarm();
        _pm.RaiseGeneralPurposeEvent(4);
        Assert.Equal((1, 1, false), (_suspends, _wakes, _pm.IsAsleep));
        Assert.Equal(0x8500u, _pm.ReadPort(0x600, 2));
        // WAK_STS goes as the others do.
        _pm.WritePort(0x600, 2, 0x8000);
        Assert.Equal(0x500u, _pm.ReadPort(0x600, 2));
    }

    [Fact]
    public void TheTimerAndWhatIsDisabledDoNotEndS3()
    {
        _pm.WritePort(0x602, 2, 1);
        _pm.WritePort(0x604, 2, 1 << 10 | 1 << 13);
        _time.Advance(VmClock.TimeOfTick(1L << 31, AcpiPm.TimerFrequency) + 1000);
        _pm.PressPowerButton();
        _pm.SignalRtcAlarm();
        _pm.RaiseGeneralPurposeEvent(4);
        Assert.Equal((1, 0, true), (_suspends, _wakes, _pm.IsAsleep));
        AcpiPm other = Make(new AcpiPmOptions());
        other.Restore(_pm.Save());
        Assert.True(other.IsAsleep);
        _pm.Reset();
        Assert.False(_pm.IsAsleep);
    }

    [Fact]
    public void AnEventThatWaitsEndsS3AtOnce()
    {
        _pm.WritePort(0x602, 2, 0x400);
        _pm.SignalRtcAlarm();
        _pm.WritePort(0x604, 2, 1 << 10 | 1 << 13);
        // The owner is told to suspend and finds the machine awake: there is no second call.
        Assert.Equal((1, 0, false), (_suspends, _wakes, _pm.IsAsleep));
        Assert.Equal(0x8400u, _pm.ReadPort(0x600, 2));
    }

    [Fact]
    public void WithoutS3TheRequestIsIgnored()
    {
        AcpiPm pm = Make(new AcpiPmOptions { SleepTypeS3 = null });
        pm.WritePort(0x604, 2, 1 << 10 | 1 << 13);
        Assert.Equal((0, false), (_suspends, pm.IsAsleep));
    }

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
        _pm.WritePort(0x604, 2, 2 << 10 | 1 << 13);
        Assert.Equal((0, 0), (_powerOffs, _suspends));
        _pm.WritePort(0x604, 2, 5 << 10 | 1 << 13);
        Assert.Equal(1, _powerOffs);
        Assert.Equal(5u << 10 | 1, _pm.ReadPort(0x604, 2));
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
