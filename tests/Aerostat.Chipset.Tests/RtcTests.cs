namespace Aerostat.Chipset.Tests;

public sealed class RtcTests
{
    private static readonly DateTimeOffset Epoch = new(2024, 2, 28, 23, 59, 50, TimeSpan.Zero);

    private readonly ManualTimeProvider _time = new(777);
    private readonly FakeLine _irq = new();
    private readonly Rtc _rtc;

    public RtcTests() =>
        _rtc = new Rtc(new RtcOptions { Epoch = Epoch, LowMemory = 0xC000_0000, HighMemory = 0x1_4000_0000 }, _irq, _time);

    private byte Read(int index)
    {
        _rtc.Out(0x70, (byte)index);
        return _rtc.In(0x71);
    }

    private void Write(int index, int value)
    {
        _rtc.Out(0x70, (byte)index);
        _rtc.Out(0x71, (byte)value);
    }

    private string Clock() => $"{Read(0x32):x2}{Read(9):x2}-{Read(8):x2}-{Read(7):x2} {Read(4):x2}:{Read(2):x2}:{Read(0):x2}";

    [Fact]
    public void ShowsTheEpochInDecimalAndRuns()
    {
        Assert.Equal("2024-02-28 23:59:50", Clock());
        _time.AdvanceMilliseconds(9_999);
        Assert.Equal("2024-02-28 23:59:59", Clock());
        _time.AdvanceMilliseconds(1);
        Assert.Equal("2024-02-29 00:00:00", Clock());
        Assert.Equal(5, Read(6));
    }

    [Theory]
    [InlineData(1969, 12, 31)]
    [InlineData(1999, 12, 31)]
    [InlineData(2000, 2, 29)]
    [InlineData(2038, 1, 19)]
    [InlineData(2100, 3, 1)]
    public void CalendarAgreesWithTheRuntime(int year, int month, int day)
    {
        var moment = new DateTimeOffset(year, month, day, 13, 14, 15, TimeSpan.Zero);
        CivilTime civil = CivilTime.FromUnixSeconds(moment.ToUnixTimeSeconds());
        Assert.Equal(new CivilTime(year, month, day, 13, 14, 15), civil);
        Assert.Equal(moment.ToUnixTimeSeconds(), civil.ToUnixSeconds());
        Assert.Equal((int)moment.DayOfWeek + 1, civil.DayOfWeek);
    }

    [Fact]
    public void BinaryAndTwelveHours()
    {
        Write(0x0B, 0x06);
        Assert.Equal((23, 59, 50), (Read(4), Read(2), Read(0)));
        Write(0x0B, 0x04);
        Assert.Equal(0x80 | 11, Read(4));
        Write(0x0B, 0x00);
        Assert.Equal(0x80 | 0x11, Read(4));
        _time.AdvanceMilliseconds(10_000);
        Assert.Equal(0x12, Read(4));
    }

    [Fact]
    public void SettingHoldsTheClockUntilReleased()
    {
        Write(0x0B, 0x82);
        Write(0x32, 0x19);
        Write(9, 0x99);
        Write(8, 0x12);
        Write(7, 0x31);
        Write(4, 0x23);
        Write(2, 0x59);
        Write(0, 0x58);
        _time.AdvanceMilliseconds(5_000);
        Assert.Equal("1999-12-31 23:59:58", Clock());
        Assert.Equal(0, Read(0x0A) & 0x80);
        Write(0x0B, 0x02);
        _time.AdvanceMilliseconds(2_000);
        Assert.Equal("2000-01-01 00:00:00", Clock());
    }

    [Fact]
    public void WritingOneFieldOfARunningClockKeepsTheOthers()
    {
        Write(4, 0x07);
        Assert.Equal("2024-02-28 07:59:50", Clock());
    }

    [Fact]
    public void DividerReleaseStartsHalfASecondBeforeTheUpdate()
    {
        Write(0x0A, 0x76);
        _time.AdvanceMilliseconds(5_000);
        Assert.Equal("2024-02-28 23:59:50", Clock());
        Write(0x0A, 0x26);
        _time.AdvanceMilliseconds(499);
        Assert.Equal(0x50, Read(0));
        _time.AdvanceMilliseconds(1);
        Assert.Equal(0x51, Read(0));
    }

    [Fact]
    public void UpdateInProgressPrecedesTheChange()
    {
        _time.AdvanceMicroseconds(1_000_000 - 2_229);
        Assert.Equal(0x26, Read(0x0A));
        _time.AdvanceMicroseconds(1);
        Assert.Equal(0xA6, Read(0x0A));
        Assert.Equal(0x50, Read(0));
        _time.AdvanceMicroseconds(2_228);
        Assert.Equal(0x26, Read(0x0A));
        Assert.Equal(0x51, Read(0));
    }

    [Fact]
    public void UpdateInterruptComesEverySecondOnceRead()
    {
        Write(0x0B, 0x12);
        _time.AdvanceMilliseconds(999);
        Assert.False(_irq.Level);
        _time.AdvanceMilliseconds(1);
        Assert.True(_irq.Level);
        _time.AdvanceMilliseconds(3_000);
        Assert.Equal(1, _irq.Edges);
        Assert.Equal(0x90, Read(0x0C) & 0xB0);
        Assert.False(_irq.Level);
        Assert.Equal(0, Read(0x0C));
        _time.AdvanceMilliseconds(1_000);
        Assert.Equal(2, _irq.Edges);
        // SET takes the enable away.
        Write(0x0B, 0x92);
        Assert.Equal(0x82, Read(0x0B));
    }

    [Fact]
    public void PeriodicInterruptHasTheRateOfRegisterA()
    {
        Write(0x0B, 0x42);
        int edges = 0;
        for (int i = 0; i < 40_960; i++)
        {
            _time.Advance(1_000_000_000 / 4_096);
            if (_irq.Level)
            {
                edges++;
                Assert.Equal(0xC0, Read(0x0C) & 0xC0);
            }
        }
        // 1024 Hz for ten seconds, less what the integer steps fall short.
        Assert.InRange(edges, 10_239, 10_240);
        Write(0x0A, 0x20);
        Read(0x0C);
        _time.AdvanceMilliseconds(1_000);
        Assert.False(_irq.Level);
    }

    [Fact]
    public void PeriodicFlagIsVisibleWithoutItsInterrupt()
    {
        Read(0x0C);
        Assert.Equal(0, _time.Armed);
        _time.AdvanceMilliseconds(1);
        Assert.Equal(0x40, Read(0x0C));
    }

    [Fact]
    public void AlarmMatchesOnceADay()
    {
        int alarms = 0;
        _rtc.AlarmRaised += () => alarms++;
        Write(5, 0x00);
        Write(3, 0x00);
        Write(1, 0x05);
        Write(0x0B, 0x22);
        _time.AdvanceMilliseconds(14_999);
        Assert.False(_irq.Level);
        _time.AdvanceMilliseconds(1);
        Assert.Equal(0xA0, Read(0x0C) & 0xA0);
        _time.AdvanceMilliseconds(86_399_000);
        Assert.Equal(1, _irq.Edges);
        _time.AdvanceMilliseconds(1_000);
        Assert.Equal(2, _irq.Edges);
        Assert.Equal(2, alarms);
    }

    [Theory]
    [InlineData(0xFF, 0xFF, 0xFF, 1)]
    [InlineData(0xFF, 0xFF, 0x55, 5)]
    [InlineData(0xFF, 0x01, 0x00, 70)]
    [InlineData(0xC0, 0x59, 0xC0, 1)]
    [InlineData(0x23, 0x59, 0x50, 86_400)]
    [InlineData(0x24, 0x00, 0x00, 0)]
    [InlineData(0xFF, 0x60, 0xFF, 0)]
    public void AlarmWildcards(byte hour, byte minute, byte second, long expected)
    {
        Write(5, hour);
        Write(3, minute);
        Write(1, second);
        Write(0x0B, 0x22);
        if (expected == 0)
        {
            _time.AdvanceMilliseconds(200_000_000);
            Assert.False(_irq.Level);
            return;
        }
        _time.AdvanceMilliseconds(expected * 1_000 - 1);
        Assert.False(_irq.Level);
        _time.AdvanceMilliseconds(1);
        Assert.True(_irq.Level);
    }

    [Fact]
    public void MemorySizesAndSpareBytes()
    {
        Assert.Equal(640, Read(0x15) | Read(0x16) << 8);
        Assert.Equal(0xFFFF, Read(0x17) | Read(0x18) << 8);
        Assert.Equal(0xBF00, Read(0x34) | Read(0x35) << 8);
        Assert.Equal(0x1_4000, Read(0x5B) | Read(0x5C) << 8 | Read(0x5D) << 16);
        Write(0x0F, 0x0A);
        _rtc.Reset();
        Assert.Equal(0x0A, Read(0x0F));
        Assert.Equal(0x80, Read(0x0D));
        Write(0x0D, 0);
        Assert.Equal(0x80, Read(0x0D));
    }

    [Fact]
    public void NmiMaskIsBitSevenOfTheIndex()
    {
        Assert.False(_rtc.IsNmiMasked);
        Write(0x8B, 0x02);
        Assert.True(_rtc.IsNmiMasked);
        Assert.Equal(2, Read(0x0B));
        Assert.False(_rtc.IsNmiMasked);
    }

    [Fact]
    public void LocalEpochsShowTheirOwnTime()
    {
        var local = new Rtc(new RtcOptions { Epoch = new DateTimeOffset(2024, 5, 6, 7, 8, 9, TimeSpan.FromHours(2)) }, _irq, _time);
        local.Out(0x70, 4);
        Assert.Equal(7, local.In(0x71));
    }
}
