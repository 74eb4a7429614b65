using Aerostat.Devices;
using Aerostat.Interrupts;
using Aerostat.State;

namespace Aerostat.Chipset;

/// <summary>
/// A high-precision event timer: IA-PC HPET specification 1.0a. A 64-bit counter at 100 MHz and three comparators, all of them
/// periodic-capable, with legacy replacement routing.
/// <para>Not emulated: FSB (message) interrupts; a periodic comparator of under 50 microseconds is coalesced.
/// Periodic matches that come before the guest has taken the last one follow when it has (<see cref="TickQueue"/>); a real
/// HPET's would be lost.</para>
/// </summary>
/// <remarks>
/// In legacy replacement mode comparator 0 takes the place of the 8254 on IRQ 0 and comparator 1 that of the RTC on IRQ 8. So
/// those two devices are wired to <see cref="PitInput"/> and <see cref="RtcInput"/>, which pass through otherwise.
/// </remarks>
public sealed partial class Hpet : IDevice, IMmioDevice, ISavable<HpetSavedState>
{
    private const int TimerCount = 3;
    private const long TickNanoseconds = PcLayout.HpetPeriodFemtoseconds / 1_000_000;
    private const long ShortestPeriod = 50_000;
    private const long Never = long.MaxValue;

    private const int RegCapabilities = 0x000;
    private const int RegConfiguration = 0x010;
    private const int RegStatus = 0x020;
    private const int RegCounter = 0x0F0;
    private const int RegTimers = 0x100;

    private const ulong ConfigEnable = 1;
    private const ulong ConfigLegacy = 2;

    private const ulong TimerLevel = 1 << 1;
    private const ulong TimerInterrupt = 1 << 2;
    private const ulong TimerPeriodic = 1 << 3;
    private const ulong TimerPeriodicCapable = 1 << 4;
    private const ulong Timer64Capable = 1 << 5;
    private const ulong TimerSetValue = 1 << 6;
    private const ulong Timer32 = 1 << 8;
    private const int TimerRouteShift = 9;
    private const ulong TimerWritable = TimerLevel | TimerInterrupt | TimerPeriodic | TimerSetValue | Timer32 | 31 << TimerRouteShift;

    private readonly Lock _lock = new();
    private readonly VmClock _clock;
    private readonly VmTimer _timer;
    private readonly IInterruptLine?[] _routes = new IInterruptLine?[32];
    private readonly ulong _routeCapability;
    private readonly IInterruptLine _irq0;
    private readonly IInterruptLine _irq8;
    private readonly LegacyInput _pitInput;
    private readonly Comparator[] _timers = [new(), new(), new()];

    private ulong _configuration;
    private uint _status;

    /// <summary>Counter value at <see cref="_start"/>, or at all while halted.</summary>
    private ulong _base;
    private long _start;
    private bool _pitLevel;
    private bool _rtcLevel;

    /// <summary>Makes a timer that stands still.</summary>
    /// <param name="irq0">ISA IRQ 0, shared with the 8254 through <see cref="PitInput"/>.</param>
    /// <param name="irq8">ISA IRQ 8, shared with the RTC through <see cref="RtcInput"/>.</param>
    /// <param name="routes">I/O APIC inputs the comparators may be routed to: pin number 0..31 and line.</param>
    /// <param name="time">VM time.</param>
    public Hpet(
        IInterruptLine irq0, IInterruptLine irq8, IEnumerable<KeyValuePair<int, IInterruptLine>> routes, TimeProvider time)
    {
        _irq0 = irq0;
        _irq8 = irq8;
        foreach ((int pin, IInterruptLine line) in routes)
        {
            _routes[pin] = line;
            _routeCapability |= 1UL << pin;
        }
        _clock = new VmClock(time);
        _timer = new VmTimer(_clock, OnTimer);
        _pitInput = new LegacyInput(this, rtc: false);
        RtcInput = new LegacyInput(this, rtc: true);
        foreach (IInterruptLine? line in (IEnumerable<IInterruptLine?>)[irq0, irq8, .. _routes])
        {
            if (line is ITickLine tick)
                tick.Taken = () => OnTaken(tick);
        }
    }

    /// <inheritdoc/>
    public string Name => "hpet";

    /// <summary>Where OUT 0 of the 8254 goes.</summary>
    public IInterruptLine PitInput => _pitInput;

    /// <summary>Where the interrupt of the RTC goes.</summary>
    public IInterruptLine RtcInput { get; }

    private bool IsEnabled => (_configuration & ConfigEnable) != 0;

    private bool IsLegacy => (_configuration & ConfigLegacy) != 0;

    /// <inheritdoc/>
    public void Reset()
    {
        lock (_lock)
        {
            foreach (Comparator timer in _timers)
                timer.Reset();
            _configuration = 0;
            _status = 0;
            _base = 0;
            UpdateLines();
            UpdateLegacy();
            Arm();
        }
    }

    /// <inheritdoc/>
    public ulong ReadMmio(ulong offset, int size)
    {
        lock (_lock)
        {
            CatchUp();
            ulong value = ReadRegister((int)(offset & 0xFF8)) >> (8 * (int)(offset & 7));
            Arm();
            return size >= 8 ? value : value & ((1UL << (8 * size)) - 1);
        }
    }

    /// <inheritdoc/>
    /// <remarks>Registers take aligned writes of 4 and 8 bytes; others are ignored (2.3.1).</remarks>
    public void WriteMmio(ulong offset, int size, ulong value)
    {
        if (size < 4 || offset % (ulong)size != 0)
            return;
        lock (_lock)
        {
            CatchUp();
            int register = (int)(offset & 0xFF8);
            int shift = 8 * (int)(offset & 7);
            ulong mask = size == 8 ? ulong.MaxValue : 0xFFFF_FFFFUL << shift;
            WriteRegister(register, value << shift, mask);
            CatchUp();
            Arm();
        }
    }

    private long Ticks => IsEnabled ? Math.Max(_clock.Now - _start, 0) / TickNanoseconds : 0;

    private ulong Counter => _base + (ulong)Ticks;

    private ulong ReadRegister(int register)
    {
        switch (register)
        {
            case RegCapabilities:
                // Revision 1, three timers, 64-bit counter, legacy replacement capable.
                return (ulong)PcLayout.HpetPeriodFemtoseconds << 32 | 0x8086UL << 16 | 1 << 15 | 1 << 13 | (TimerCount - 1) << 8 | 1;
            case RegConfiguration:
                return _configuration;
            case RegStatus:
                return _status;
            case RegCounter:
                return Counter;
        }
        if (register < RegTimers)
            return 0;
        int index = (register - RegTimers) >> 5;
        if (index >= TimerCount)
            return 0;
        Comparator timer = _timers[index];
        return (register & 0x18) switch
        {
            0x00 => timer.Configuration | TimerPeriodicCapable | Timer64Capable | _routeCapability << 32,
            0x08 => timer.Value,
            _ => 0,
        };
    }

    private void WriteRegister(int register, ulong value, ulong mask)
    {
        switch (register)
        {
            case RegConfiguration:
                WriteConfiguration((_configuration & ~mask | value & mask) & (ConfigEnable | ConfigLegacy));
                return;
            case RegStatus:
                _status &= ~(uint)(value & mask);
                UpdateLines();
                RaiseWaiting((uint)(value & mask));
                return;
            case RegCounter:
                ulong counter = Counter & ~mask | value & mask;
                _base = counter;
                _start = _clock.Now;
                foreach (Comparator timer in _timers)
                    Reschedule(timer);
                return;
        }
        if (register < RegTimers)
            return;
        int index = (register - RegTimers) >> 5;
        if (index >= TimerCount)
            return;
        switch (register & 0x18)
        {
            case 0x00:
                WriteTimerConfiguration(index, value, mask);
                break;
            case 0x08:
                WriteComparator(_timers[index], value, mask);
                break;
        }
    }

    private void WriteConfiguration(ulong value)
    {
        bool wasEnabled = IsEnabled;
        ulong counter = Counter;
        _configuration = value;
        if (wasEnabled != IsEnabled)
        {
            _base = counter;
            _start = _clock.Now;
            foreach (Comparator timer in _timers)
                Reschedule(timer);
        }
        UpdateLines();
        UpdateLegacy();
    }

    private void WriteTimerConfiguration(int index, ulong value, ulong mask)
    {
        Comparator timer = _timers[index];
        ulong old = timer.Configuration;
        ulong now = (old & ~mask | value & mask) & TimerWritable;
        // A route that is not offered reads back as something else (2.3.8): here the old one.
        int route = (int)(now >> TimerRouteShift) & 31;
        if ((_routeCapability & 1UL << route) == 0)
            now = now & ~(31UL << TimerRouteShift) | old & 31UL << TimerRouteShift;
        timer.Configuration = now;
        timer.Ticks.Waiting = 0;
        if ((now & Timer32) != 0)
        {
            timer.Value = (uint)timer.Value;
            timer.Period = (uint)timer.Period;
        }
        if (((old ^ now) & (TimerPeriodic | Timer32)) != 0)
            Schedule(timer, matchNow: false);
        if ((now & TimerLevel) == 0)
            _status &= ~(1u << index);
        UpdateLines();
    }

    private void WriteComparator(Comparator timer, ulong value, ulong mask)
    {
        ulong width = timer.Mask;
        timer.Ticks.Waiting = 0;
        bool periodic = (timer.Configuration & TimerPeriodic) != 0;
        // In periodic mode the value written is the period; with VAL_SET it is the next match as well (2.3.9.2.2).
        if (periodic)
            timer.Period = (timer.Period & ~mask | value & mask) & width;
        if (!periodic || (timer.Configuration & TimerSetValue) != 0)
        {
            timer.Value = (timer.Value & ~mask | value & mask) & width;
            timer.Configuration &= ~TimerSetValue;
            Schedule(timer, matchNow: true);
        }
    }

    private void Reschedule(Comparator timer)
    {
        timer.Ticks.Waiting = 0;
        Schedule(timer, matchNow: true);
    }

    /// <summary>When the counter will next equal the comparator, in ticks since <see cref="_start"/>.</summary>
    private void Schedule(Comparator timer, bool matchNow)
    {
        timer.Next = Never;
        if (!IsEnabled)
            return;
        ulong distance = (timer.Value - Counter) & timer.Mask;
        if (distance == 0 && !matchNow)
            distance = (timer.Configuration & Timer32) != 0 ? 1UL << 32 : ulong.MaxValue;
        if (distance < 1UL << 58)
            timer.Next = Ticks + (long)distance;
    }

    /// <summary>Passes every match up to now.</summary>
    private void CatchUp()
    {
        if (!IsEnabled)
            return;
        long now = Ticks;
        for (int i = 0; i < TimerCount; i++)
        {
            Comparator timer = _timers[i];
            if (now >= timer.Next)
                Match(i, timer, now);
        }
    }

    private void Match(int index, Comparator timer, long now)
    {
        long periods = 0;
        if ((timer.Configuration & TimerPeriodic) != 0 && timer.Period != 0)
        {
            // The host may be late: every period counts, unless they come faster than the host can follow. The next keeps the phase.
            ulong missed = (ulong)(now - timer.Next) / timer.Period + 1;
            timer.Value = (timer.Value + missed * timer.Period) & timer.Mask;
            ulong step = missed * timer.Period;
            timer.Next = step < 1UL << 58 ? timer.Next + (long)step : Never;
            if (timer.Period >= ShortestPeriod / TickNanoseconds)
                periods = (long)Math.Min(missed, TickQueue.Most);
        }
        else
        {
            // A 32-bit comparator matches again when the counter has wrapped.
            timer.Next = (timer.Configuration & Timer32) != 0 ? timer.Next + (((now - timer.Next) >> 32) + 1 << 32) : Never;
        }
        timer.LastMatch = _clock.Now;
        bool interrupts = (timer.Configuration & TimerInterrupt) != 0;
        if ((timer.Configuration & TimerLevel) != 0)
        {
            // Clearing the status bit is what takes a level-triggered tick.
            if (interrupts && periods != 0)
                timer.Ticks.Note((_status & 1u << index) != 0 ? Reception.Merged : Reception.Accepted, periods);
            _status |= 1u << index;
            UpdateLines();
        }
        else if (interrupts && periods != 0)
        {
            timer.Ticks.Send(LineOf(index), periods);
        }
        else if (interrupts)
        {
            LineOf(index)?.Pulse();
        }
    }

    /// <summary>Sets the status bits that the guest has just cleared for ticks that wait.</summary>
    private void RaiseWaiting(uint cleared)
    {
        for (int i = 0; i < TimerCount; i++)
        {
            Comparator timer = _timers[i];
            if ((cleared & 1u << i) == 0 || timer.Ticks.Waiting == 0 || (timer.Configuration & TimerLevel) == 0)
                continue;
            timer.Ticks.Waiting--;
            _status |= 1u << i;
        }
        UpdateLines();
    }

    /// <summary>The guest has taken an edge of this line; on a vCPU's thread.</summary>
    private void OnTaken(ITickLine line)
    {
        bool legacy;
        lock (_lock)
        {
            legacy = IsLegacy;
            for (int i = 0; i < TimerCount; i++)
            {
                Comparator timer = _timers[i];
                if (timer.Ticks.Waiting != 0 && (timer.Configuration & (TimerLevel | TimerInterrupt)) == TimerInterrupt && LineOf(i) == line)
                    timer.Ticks.Resend(line);
            }
        }
        // The 8254 takes its own lock and then this one.
        if (!legacy && line == _irq0)
            _pitInput.Taken?.Invoke();
    }

    private IInterruptLine? LineOf(int index) => IsLegacy && index < 2
        ? index == 0 ? _irq0 : _irq8
        : _routes[_timers[index].Configuration >> TimerRouteShift & 31];

    /// <summary>Level-triggered comparators hold their line while their status bit is set.</summary>
    private void UpdateLines()
    {
        for (int i = 0; i < TimerCount; i++)
        {
            Comparator timer = _timers[i];
            bool active = (_status & 1u << i) != 0 && (timer.Configuration & TimerInterrupt) != 0;
            IInterruptLine? line = active ? LineOf(i) : null;
            if (line == timer.Asserted)
                continue;
            timer.Asserted?.Set(false);
            timer.Asserted = line;
            line?.Set(true);
        }
    }

    private void OnTimer()
    {
        lock (_lock)
        {
            _timer.Expired();
            CatchUp();
            Arm();
        }
    }

    private void Arm()
    {
        long next = Never;
        foreach (Comparator timer in _timers)
        {
            if (timer.Next == Never || (timer.Configuration & TimerInterrupt) == 0)
                continue;
            long at = timer.Next > (long.MaxValue - _start) / TickNanoseconds ? Never : _start + timer.Next * TickNanoseconds;
            if ((timer.Configuration & TimerPeriodic) != 0)
                at = Math.Max(at, timer.LastMatch + ShortestPeriod);
            next = Math.Min(next, at);
        }
        _timer.Arm(next);
    }

    private void SetLegacy(bool rtc, bool asserted)
    {
        lock (_lock)
        {
            (rtc ? ref _rtcLevel : ref _pitLevel) = asserted;
            if (!IsLegacy)
                (rtc ? _irq8 : _irq0).Set(asserted);
        }
    }

    /// <summary>After a change of the legacy bit: both lines belong to somebody else.</summary>
    private void UpdateLegacy()
    {
        if (_timers[0].Asserted != _irq0)
            _irq0.Set(!IsLegacy && _pitLevel);
        if (_timers[1].Asserted != _irq8)
            _irq8.Set(!IsLegacy && _rtcLevel);
    }

    private Reception TickLegacy(bool rtc)
    {
        lock (_lock)
        {
            if (IsLegacy)
                return Reception.Lost;
            IInterruptLine line = rtc ? _irq8 : _irq0;
            if (line is ITickLine tick)
                return tick.Tick();
            line.Pulse();
            return Reception.Accepted;
        }
    }

    private sealed class LegacyInput(Hpet owner, bool rtc) : ITickLine
    {
        public Action? Taken { get; set; }

        public Reception Tick() => owner.TickLegacy(rtc);

        public void Set(bool asserted) => owner.SetLegacy(rtc, asserted);
    }

    private sealed class Comparator
    {
        public ulong Configuration;
        public ulong Value = ulong.MaxValue;
        public ulong Period;
        public long Next = Never;
        public long LastMatch = long.MinValue / 2;
        public IInterruptLine? Asserted;
        public TickQueue Ticks;

        public ulong Mask => (Configuration & Timer32) != 0 ? uint.MaxValue : ulong.MaxValue;

        public void Reset()
        {
            Configuration = 0;
            Value = ulong.MaxValue;
            Period = 0;
            Next = Never;
            Ticks.Waiting = 0;
            LastMatch = long.MinValue / 2;
        }
    }
}
