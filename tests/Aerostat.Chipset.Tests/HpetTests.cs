using Aerostat.Interrupts;

namespace Aerostat.Chipset.Tests;

public sealed class HpetTests
{
    private const ulong Interrupt = 4;
    private const ulong Level = 2;
    private const ulong Periodic = 8;
    private const ulong SetValue = 0x40;
    private const ulong Bits32 = 0x100;

    private readonly ManualTimeProvider _time = new(333);
    private readonly FakeLine _irq0 = new();
    private readonly FakeLine _irq8 = new();
    private readonly FakeLine _pin20 = new();
    private readonly FakeLine _pin21 = new();
    private readonly Hpet _hpet;

    public HpetTests() =>
        _hpet = new Hpet(_irq0, _irq8, new Dictionary<int, IInterruptLine> { [20] = _pin20, [21] = _pin21 }, _time);

    private ulong Read(ulong offset) => _hpet.ReadMmio(offset, 8);

    private void Write(ulong offset, ulong value) => _hpet.WriteMmio(offset, 8, value);

    [Fact]
    public void Capabilities()
    {
        Assert.Equal(10_000_000UL << 32 | 0x8086A201, Read(0));
        Assert.Equal(0x00300000UL << 32 | 0x30, Read(0x100));
        Assert.Equal(0x8086UL, _hpet.ReadMmio(2, 2));
        Assert.Equal(10_000_000UL, _hpet.ReadMmio(4, 4));
        Assert.Equal(0UL, Read(0x160));
    }

    [Fact]
    public void CounterRunsOnlyWhenEnabledAndCanBeSet()
    {
        _time.Advance(1_000);
        Assert.Equal(0UL, Read(0xF0));
        Write(0x10, 1);
        _time.Advance(1_005);
        Assert.Equal(100UL, Read(0xF0));
        Write(0x10, 0);
        _time.Advance(1_000);
        Assert.Equal(100UL, Read(0xF0));
        _hpet.WriteMmio(0xF4, 4, 5);
        Assert.Equal(5UL << 32 | 100, Read(0xF0));
        Write(0x10, 1);
        _time.Advance(100);
        Assert.Equal(110UL, _hpet.ReadMmio(0xF0, 4));
    }

    [Fact]
    public void OneShotPulsesOnItsRoute()
    {
        Write(0x100, Interrupt | 20 << 9);
        Write(0x108, 1_000);
        Write(0x10, 1);
        _time.Advance(9_999);
        Assert.Equal(0, _pin20.Edges);
        _time.Advance(101);
        Assert.Equal(1, _pin20.Edges);
        _time.AdvanceMilliseconds(1_000);
        Assert.Equal(1, _pin20.Edges);
        Assert.Equal(0, _time.Armed);
    }

    [Fact]
    public void RoutesThatDoNotExistAreRefused()
    {
        Write(0x100, 21 << 9);
        Write(0x100, 5 << 9);
        Assert.Equal(21UL, Read(0x100) >> 9 & 31);
    }

    [Fact]
    public void LevelHoldsUntilStatusIsCleared()
    {
        Write(0x120, Interrupt | Level | 21 << 9);
        Write(0x128, 100);
        Write(0x10, 1);
        _time.Advance(1_100);
        Assert.True(_pin21.Level);
        Assert.Equal(2UL, Read(0x20));
        Write(0x20, 1);
        Assert.True(_pin21.Level);
        Write(0x20, 2);
        Assert.False(_pin21.Level);
    }

    [Fact]
    public void StatusAppearsWithoutTheInterrupt()
    {
        Write(0x120, Level | 21 << 9);
        Write(0x128, 100);
        Write(0x10, 1);
        Assert.Equal(0, _time.Armed);
        _time.Advance(1_000);
        Assert.Equal(2UL, Read(0x20));
        Assert.False(_pin21.Level);
    }

    [Fact]
    public void PeriodicKeepsItsPhaseAsLinuxProgramsIt()
    {
        // hpet_set_periodic: stop, write the configuration with VAL_SET, comparator, period, start.
        _hpet.WriteMmio(0x10, 4, 3);
        _hpet.WriteMmio(0x100, 4, Interrupt | Periodic | SetValue | Bits32);
        _hpet.WriteMmio(0x108, 4, 400_000);
        _hpet.WriteMmio(0x108, 4, 100_000);
        _time.AdvanceMilliseconds(3);
        Assert.Equal(0, _irq0.Edges);
        _time.AdvanceMilliseconds(97);
        Assert.Equal(97, _irq0.Edges);
        Assert.Equal(10_100_000UL, Read(0x108));
        Assert.Equal(0UL, Read(0x100) & SetValue);
    }

    [Fact]
    public void LatePeriodsCoalesce()
    {
        Write(0x100, Interrupt | Periodic | SetValue | 20 << 9);
        Write(0x108, 100_000);
        Write(0x10, 1);
        _time.Lag(5_500_000);
        _time.Advance(0);
        Assert.Equal(1, _pin20.Edges);
        Assert.Equal(600_000UL, Read(0x108));
        _time.AdvanceMicroseconds(500);
        Assert.Equal(2, _pin20.Edges);
    }

    [Fact]
    public void ShortPeriodsDoNotStormTheHost()
    {
        Write(0x100, Interrupt | Periodic | SetValue | 20 << 9);
        Write(0x108, 1);
        Write(0x10, 1);
        _time.AdvanceMilliseconds(10);
        Assert.InRange(_time.Calls, 100, 210);
    }

    [Fact]
    public void A32BitComparatorMatchesAfterEachWrap()
    {
        Write(0x100, Interrupt | Bits32 | 20 << 9);
        _hpet.WriteMmio(0x108, 4, 50);
        Write(0xF0, 0x1_FFFF_FFF0);
        Write(0x10, 1);
        _time.Advance(760);
        Assert.Equal(1, _pin20.Edges);
        _time.Advance(0x1_0000_0000 * 10);
        Assert.Equal(2, _pin20.Edges);
    }

    [Fact]
    public void LegacyReplacementTakesTheLinesAndGivesThemBack()
    {
        _hpet.PitInput.Set(true);
        Assert.True(_irq0.Level);
        Write(0x10, 2);
        Assert.False(_irq0.Level);
        _hpet.RtcInput.Set(true);
        Assert.False(_irq8.Level);
        Write(0x10, 0);
        Assert.True(_irq0.Level);
        Assert.True(_irq8.Level);
    }

    [Fact]
    public void Comparator1IsTheRtcInLegacyMode()
    {
        Write(0x120, Interrupt);
        Write(0x128, 10);
        Write(0x10, 3);
        _time.Advance(200);
        Assert.Equal(1, _irq8.Edges);
    }

    [Fact]
    public void OddWritesAreIgnored()
    {
        _hpet.WriteMmio(0x10, 1, 1);
        _hpet.WriteMmio(0x12, 4, 1);
        _hpet.WriteMmio(0x0C, 8, ulong.MaxValue);
        Assert.Equal(0UL, Read(0x10));
    }
}
