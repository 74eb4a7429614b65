using Aerostat.Interrupts;

namespace Aerostat.Chipset.Tests;

/// <summary>Periodic ticks that the guest is late for, or that the host's timer thread is late for, through real controllers.</summary>
public sealed class MissedTickTests
{
    private const byte Vector = 0x30;
    private const int Divisor = 4773; // 250 Hz
    private const ulong Interrupt = 4, Level = 2, Periodic = 8, SetValue = 0x40;

    private readonly Board _board = new();
    private readonly Hpet _hpet;
    private readonly Pit _pit;

    public MissedTickTests()
    {
        _hpet = new Hpet(
            _board.Router.Connect(0), _board.Router.Connect(8),
            new Dictionary<int, IInterruptLine> { [20] = _board.Router.Connect(20) }, _board.Time);
        _pit = new Pit(_hpet.PitInput, _board.Time);
    }

    private FakeProcessor Cpu => _board[0];

    private void StartPit(int divisor = Divisor)
    {
        _pit.Out(0x43, 0x34);
        _pit.Out(0x40, (byte)divisor);
        _pit.Out(0x40, (byte)(divisor >> 8));
    }

    private void StartHpet(ulong configuration, ulong ticks)
    {
        _hpet.WriteMmio(0x100, 8, configuration | Interrupt | Periodic | SetValue);
        _hpet.WriteMmio(0x108, 8, ticks);
        _hpet.WriteMmio(0x10, 8, configuration >> 62 | 1);
    }

    private void Periods(int count) => _board.Time.Advance(VmClock.TimeOfTick((long)Divisor * count, 1_193_182) + 200);

    /// <summary>Takes and completes interrupts until there are none; how many had the vector.</summary>
    private int Drain(byte vector = Vector)
    {
        int count = 0;
        while (Cpu.Take() is var taken and >= 0)
        {
            Assert.Equal(vector, taken);
            count++;
            Cpu.Eoi();
        }
        return count;
    }

    private int DrainPic()
    {
        int count = 0;
        while (Cpu.Take() is var taken and >= 0)
        {
            Assert.Equal(0x20, taken);
            count++;
            _board.Pic.Out(0x20, 0x20);
        }
        return count;
    }

    private void OpenPic(byte mask)
    {
        foreach ((ushort port, byte vector, byte wiring) in new[] { ((ushort)0x20, (byte)0x20, (byte)4), ((ushort)0xA0, (byte)0x28, (byte)2) })
        {
            _board.Pic.Out(port, 0x11);
            _board.Pic.Out((ushort)(port + 1), vector);
            _board.Pic.Out((ushort)(port + 1), wiring);
            _board.Pic.Out((ushort)(port + 1), 1);
        }
        _board.Pic.Out(0x21, mask);
        _board.Pic.Out(0xA1, 0xFF);
        Cpu.Apic.ConfigureVirtualWire();
    }

    [Fact]
    public void TimerTicksThroughTheIoApicAreMadeUpFor()
    {
        _board.Redirect(2, Vector);
        StartPit();
        Periods(10);
        Assert.Equal(10, Drain());
        Assert.Equal(0, Drain());
        Periods(1);
        Assert.Equal(1, Drain());
    }

    [Fact]
    public void AWaitingTickComesWhileTheOneBeforeIsInService()
    {
        _board.Redirect(2, Vector);
        StartPit();
        Periods(3);
        Assert.Equal(Vector, Cpu.Take());
        // In service, and the next one waits behind it for the EOI.
        Assert.Equal(-1, Cpu.Take());
        Cpu.Eoi();
        Assert.True(Cpu.Pins.Requested);
        Assert.Equal(2, Drain());
    }

    [Fact]
    public void TimerTicksThroughThe8259AreMadeUpFor()
    {
        OpenPic(0xFE);
        StartPit();
        Periods(10);
        Assert.Equal(10, DrainPic());
        Periods(1);
        Assert.Equal(1, DrainPic());
    }

    [Fact]
    public void PolledTicksAreMadeUpFor()
    {
        OpenPic(0xFE);
        _board.Processors[0].Write(0x350, 0x10700);
        StartPit();
        Periods(3);
        for (int i = 0; i < 3; i++)
        {
            _board.Pic.Out(0x20, 0x0C);
            Assert.Equal(0x80, _board.Pic.In(0x20));
            _board.Pic.Out(0x20, 0x20);
        }
        _board.Pic.Out(0x20, 0x0C);
        Assert.Equal(0, _board.Pic.In(0x20));
    }

    [Fact]
    public void PeriodsThatTheTimerThreadWasLateForCount()
    {
        _board.Redirect(2, Vector);
        StartPit();
        _board.Time.Lag(VmClock.TimeOfTick(Divisor * 7L, 1_193_182));
        Periods(1);
        Assert.Equal(8, Drain());
    }

    [Fact]
    public void MaskedTicksAreLost()
    {
        OpenPic(0xFF);
        _board.Redirect(2, 0x10000 | Vector);
        StartPit();
        Periods(10);
        _board.Redirect(2, Vector);
        Assert.Equal(0, Drain());
        Periods(1);
        Assert.Equal(1, Drain());
    }

    [Fact]
    public void MaskingDropsWhatWaits()
    {
        _board.Redirect(2, Vector);
        StartPit();
        Periods(10);
        _board.Redirect(2, 0x10000 | Vector);
        Periods(1);
        _board.Redirect(2, Vector);
        // What the local APIC already has stays there.
        Assert.Equal(1, Drain());
    }

    [Fact]
    public void ReprogrammingDropsWhatWaits()
    {
        _board.Redirect(2, Vector);
        StartPit();
        Periods(10);
        StartPit();
        Assert.Equal(1, Drain());
    }

    [Fact]
    public void LatchingTheCountDropsNothing()
    {
        _board.Redirect(2, Vector);
        StartPit();
        Periods(10);
        _pit.Out(0x43, 0x00);
        _pit.In(0x40);
        _pit.In(0x40);
        Assert.Equal(10, Drain());
    }

    [Fact]
    public void WhatWaitsIsBounded()
    {
        _board.Redirect(2, Vector);
        StartPit();
        Periods(TickQueue.Most + 100);
        Assert.Equal(TickQueue.Most + 1, Drain());
    }

    [Fact]
    public void PeriodsShorterThanTheHostCanFollowDoNotQueue()
    {
        _board.Redirect(2, Vector);
        StartPit(2);
        _board.Time.Lag(1_000_000_000);
        _board.Time.Advance(1_000);
        Assert.Equal(1, Drain());
    }

    [Fact]
    public void ResetDropsWhatWaits()
    {
        _board.Redirect(2, Vector);
        StartPit();
        Periods(5);
        _pit.Reset();
        Assert.Equal(1, Drain());
    }

    [Fact]
    public void WhatWaitsIsSaved()
    {
        _board.Redirect(2, Vector);
        StartPit();
        Periods(5);
        PitSavedState state = _pit.Save();
        Assert.Equal(4, state.Waiting);
        _pit.Reset();
        _pit.Restore(state);
        Assert.Equal(5, Drain());
    }

    [Fact]
    public void OneShotsAreNotRepeated()
    {
        _board.Redirect(2, Vector);
        _pit.Out(0x43, 0x38);
        _pit.Out(0x40, 0x00);
        _pit.Out(0x40, 0x10);
        _board.Time.AdvanceMilliseconds(1_000);
        Assert.Equal(1, Drain());
    }

    [Fact]
    public void HpetEdgesAreMadeUpFor()
    {
        _board.Redirect(20, Vector);
        StartHpet(20 << 9, 400_000);
        _board.Time.AdvanceMilliseconds(41);
        Assert.Equal(10, Drain());
        Assert.Equal(0, Drain());
    }

    [Fact]
    public void HpetInTheTimersPlaceIsMadeUpFor()
    {
        _board.Redirect(2, Vector);
        StartPit();
        StartHpet(1UL << 63, 400_000);
        _board.Time.AdvanceMilliseconds(41);
        // Only the HPET's: the 8254 is cut off.
        Assert.Equal(10, Drain());
    }

    [Fact]
    public void HpetLevelsAreMadeUpFor()
    {
        _board.Redirect(20, 0x8000 | Vector);
        StartHpet(20 << 9 | Level, 400_000);
        _board.Time.AdvanceMilliseconds(41);
        int count = 0;
        while (Cpu.Take() >= 0)
        {
            count++;
            _hpet.WriteMmio(0x20, 8, 1);
            Cpu.Eoi();
        }
        Assert.Equal(10, count);
        Assert.Equal(0UL, _hpet.ReadMmio(0x20, 8));
    }

    [Fact]
    public void HpetPeriodsThatTheTimerThreadWasLateForCount()
    {
        _board.Redirect(20, Vector);
        StartHpet(20 << 9, 400_000);
        _board.Time.Lag(28_000_000);
        _board.Time.AdvanceMilliseconds(5);
        Assert.Equal(8, Drain());
    }

    [Fact]
    public void HaltingTheHpetDropsWhatWaits()
    {
        _board.Redirect(20, Vector);
        StartHpet(20 << 9, 400_000);
        _board.Time.AdvanceMilliseconds(41);
        _hpet.WriteMmio(0x10, 8, 0);
        Assert.Equal(1, Drain());
    }

    [Fact]
    public void WhatTheHpetOwesIsSaved()
    {
        _board.Redirect(20, Vector);
        StartHpet(20 << 9, 400_000);
        _board.Time.AdvanceMilliseconds(41);
        HpetSavedState state = _hpet.Save();
        Assert.Equal(9, state.Comparators[0].Waiting);
        _hpet.Reset();
        _hpet.Restore(state);
        Assert.Equal(10, Drain());
    }
}
