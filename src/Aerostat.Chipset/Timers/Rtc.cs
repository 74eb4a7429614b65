using Aerostat.Devices;
using Aerostat.Interrupts;
using Aerostat.State;

namespace Aerostat.Chipset;

/// <summary>What a real-time clock is made from.</summary>
public sealed record RtcOptions
{
    /// <summary>Wall-clock time that the clock shows when it is made; UTC or local, as the guest shall see it.</summary>
    public required DateTimeOffset Epoch { get; init; }

    /// <summary>Guest memory below 4 GiB in bytes, for the CMOS size bytes.</summary>
    public ulong LowMemory { get; init; }

    /// <summary>Guest memory above 4 GiB in bytes.</summary>
    public ulong HighMemory { get; init; }
}

/// <summary>
/// The real-time clock and CMOS memory: Motorola MC146818A data sheet, with the PC's port 0x70/0x71, the century at 0x32
/// (FADT CENTURY) and the BIOS's memory size bytes.
/// <para>Not emulated: daylight saving, the square-wave pin, time bases other than 32.768 kHz (any other divider setting holds
/// the clock), the second 128 bytes, day and month alarms, years before 1700 and after 2199. Alarm, periodic and update flags are worked out when somebody
/// looks or waits for an interrupt.</para>
/// </summary>
public sealed class Rtc : BytePortDevice, IDevice, ISavable<RtcSavedState>
{
    private const int RegA = 10;
    private const int RegB = 11;
    private const int RegC = 12;
    private const int RegD = 13;
    private const byte AUpdateInProgress = 0x80;
    private const byte ADividerMask = 0x70;
    private const byte ADividerRunning = 0x20;
    private const byte BSet = 0x80;
    private const byte BBinary = 4;
    private const byte B24Hours = 2;
    private const byte FlagPeriodic = 0x40;
    private const byte FlagAlarm = 0x20;
    private const byte FlagUpdate = 0x10;
    private const byte FlagMask = FlagPeriodic | FlagAlarm | FlagUpdate;
    private const byte FlagInterrupt = 0x80;

    // The update cycle takes 1984 us at 32.768 kHz and UIP rises 244 us before it (data sheet, table 6).
    private const long UpdateWindow = 2_228_000;
    private const long Base32K = 32_768;

    private readonly Lock _lock = new();
    private readonly IInterruptLine _irq;
    private readonly VmClock _clock;
    private readonly VmTimer _timer;
    private readonly RtcOptions _options;
    private readonly byte[] _cmos = new byte[128];
    private byte _index;

    /// <summary>VM time at which the clock would have shown 1970 exactly; sub-second phase included. Meaningless while held.</summary>
    private long _origin;
    private bool _held;
    private byte _flags;

    /// <summary>Up to when flags have been worked out.</summary>
    private long _seen;
    private bool _level;

    /// <summary>Makes a clock.</summary>
    /// <param name="options">Epoch and memory sizes.</param>
    /// <param name="irq8">Interrupt output.</param>
    /// <param name="time">VM time.</param>
    public Rtc(RtcOptions options, IInterruptLine irq8, TimeProvider time)
    {
        _options = options;
        _irq = irq8;
        _clock = new VmClock(time);
        _timer = new VmTimer(_clock, OnTimer);
        long now = _clock.Now;
        long sinceEpoch = (options.Epoch.UtcTicks - DateTimeOffset.UnixEpoch.UtcTicks + options.Epoch.Offset.Ticks) * 100;
        _origin = now - sinceEpoch;
        _seen = now;
        _cmos[RegA] = ADividerRunning | 6;
        _cmos[RegB] = B24Hours;
        WriteMemorySizes();
    }

    /// <inheritdoc/>
    public string Name => "rtc";

    /// <summary>
    /// Raised when an enabled alarm comes up, for RTC_STS of <see cref="AcpiPm.SignalRtcAlarm"/>. On a timer or vCPU thread, under
    /// the device's lock: handlers may drive lines and raise ACPI events, nothing else.
    /// </summary>
    public event Action? AlarmRaised;

    /// <summary>Bit 7 of port 0x70: the guest wants no NMI.</summary>
    public bool IsNmiMasked
    {
        get
        {
            lock (_lock)
                return (_index & 0x80) != 0;
        }
    }

    /// <inheritdoc/>
    /// <remarks>The battery keeps time and memory; reset clears the interrupt enables and flags.</remarks>
    public void Reset()
    {
        lock (_lock)
        {
            CatchUp();
            _index = 0;
            _cmos[RegB] &= unchecked((byte)~(FlagMask | 8));
            _flags = 0;
            Update();
        }
    }

    private void WriteMemorySizes()
    {
        void Put(int index, int bytes, ulong value)
        {
            for (int i = 0; i < bytes; i++)
                _cmos[index + i] = (byte)(value >> (8 * i));
        }

        const ulong kib = 1024, mib = 1024 * kib;
        ulong low = _options.LowMemory;
        ulong extended = low > mib ? Math.Min((low - mib) / kib, 0xFFFF) : 0;
        Put(0x15, 2, 640);
        Put(0x17, 2, extended);
        Put(0x30, 2, extended);
        Put(0x34, 2, low > 16 * mib ? Math.Min((low - 16 * mib) / (64 * kib), 0xFFFF) : 0);
        Put(0x5B, 3, Math.Min(_options.HighMemory / (64 * kib), 0xFF_FFFF));
        // Equipment: 80x25 monochrome or none, a coprocessor.
        _cmos[0x14] = 0x02;
    }

    private protected override bool Decodes(ushort port) => port is 0x70 or 0x71;

    private protected override byte ReadByte(ushort port)
    {
        lock (_lock)
        {
            if (port != 0x71)
                return 0xFF;
            int index = _index & 0x7F;
            switch (index)
            {
                case <= 9 or PcLayout.CenturyIndex:
                    if (!_held)
                        ShowTime();
                    return _cmos[index];
                case RegA:
                    return (byte)(_cmos[RegA] | (InUpdateWindow() ? AUpdateInProgress : 0));
                case RegC:
                    CatchUp();
                    byte value = (byte)(_flags | (_level ? FlagInterrupt : 0));
                    _flags = 0;
                    Update();
                    return value;
                case RegD:
                    // The battery is good.
                    return 0x80;
                default:
                    return _cmos[index];
            }
        }
    }

    private protected override void WriteByte(ushort port, byte value)
    {
        lock (_lock)
        {
            if (port == 0x70)
            {
                _index = value;
                return;
            }
            int index = _index & 0x7F;
            switch (index)
            {
                case 1 or 3 or 5:
                    CatchUp();
                    _cmos[index] = value;
                    Update();
                    break;
                case <= 9 or PcLayout.CenturyIndex:
                    CatchUp();
                    if (!_held)
                        ShowTime();
                    _cmos[index] = value;
                    if (!_held)
                        TakeTime();
                    Update();
                    break;
                case RegA:
                    WriteModes((byte)(value & 0x7F), _cmos[RegB]);
                    break;
                case RegB:
                    WriteModes(_cmos[RegA], value);
                    break;
                case RegC or RegD:
                    break;
                default:
                    _cmos[index] = value;
                    break;
            }
        }
    }

    private void WriteModes(byte a, byte b)
    {
        CatchUp();
        bool hold = (b & BSet) != 0 || (a & ADividerMask) != ADividerRunning;
        if (hold && !_held)
            ShowTime();
        bool wasDividerHeld = (_cmos[RegA] & ADividerMask) != ADividerRunning;
        // SET clears the update interrupt enable (data sheet, register B).
        if ((b & BSet) != 0)
            b = (byte)(b & ~FlagUpdate);
        _cmos[RegA] = a;
        _cmos[RegB] = b;
        if (_held && !hold)
            Release(wasDividerHeld);
        _held = hold;
        Update();
    }

    /// <summary>The clock runs again from what the registers say.</summary>
    private void Release(bool dividerWasHeld)
    {
        long now = _clock.Now;
        // SET alone does not stop the divider: the phase stays. A released divider chain makes its first update after half a second.
        long phase = dividerWasHeld ? VmClock.Second / 2 : Phase(now);
        _origin = now - RegistersToSeconds() * VmClock.Second - phase;
        _seen = now;
    }

    private void TakeTime()
    {
        long now = _clock.Now;
        _origin = now - RegistersToSeconds() * VmClock.Second - Phase(now);
        _seen = now;
    }

    private long SecondsAt(long time) => FloorDivide(time - _origin, VmClock.Second);

    private long Phase(long time) => time - _origin - SecondsAt(time) * VmClock.Second;

    private static long FloorDivide(long value, long divisor)
    {
        long quotient = Math.DivRem(value, divisor, out long rest);
        return rest < 0 ? quotient - 1 : quotient;
    }

    private bool InUpdateWindow() => !_held && Phase(_clock.Now) >= VmClock.Second - UpdateWindow;

    private void ShowTime()
    {
        CivilTime time = CivilTime.FromUnixSeconds(SecondsAt(_clock.Now));
        byte b = _cmos[RegB];
        _cmos[0] = Encode(time.Second);
        _cmos[2] = Encode(time.Minute);
        if ((b & B24Hours) != 0)
        {
            _cmos[4] = Encode(time.Hour);
        }
        else
        {
            int hour = time.Hour % 12;
            _cmos[4] = (byte)(Encode(hour == 0 ? 12 : hour) | (time.Hour >= 12 ? 0x80 : 0));
        }
        _cmos[6] = Encode(time.DayOfWeek);
        _cmos[7] = Encode(time.Day);
        _cmos[8] = Encode(time.Month);
        _cmos[9] = Encode(time.Year % 100);
        _cmos[PcLayout.CenturyIndex] = Encode(time.Year / 100 % 100);
    }

    private long RegistersToSeconds()
    {
        // Nonsense from the guest is brought into range; the chip would count on from it in its own way.
        int year = Decode(_cmos[PcLayout.CenturyIndex]) * 100 + Decode(_cmos[9]);
        return new CivilTime(
            Math.Clamp(year, 1700, 2199),
            Math.Clamp(Decode(_cmos[8]), 1, 12),
            Math.Clamp(Decode(_cmos[7]), 1, 31),
            DecodeHour(_cmos[4]),
            Math.Clamp(Decode(_cmos[2]), 0, 59),
            Math.Clamp(Decode(_cmos[0]), 0, 59)).ToUnixSeconds();
    }

    private byte Encode(int value) => (byte)((_cmos[RegB] & BBinary) != 0 ? value : value / 10 << 4 | value % 10);

    private int Decode(byte value) => (_cmos[RegB] & BBinary) != 0 ? value : (value >> 4) * 10 + (value & 15);

    private int DecodeHour(byte value)
    {
        if ((_cmos[RegB] & B24Hours) != 0)
            return Math.Clamp(Decode(value), 0, 23);
        int hour = Math.Clamp(Decode((byte)(value & 0x7F)), 1, 12) % 12;
        return (value & 0x80) != 0 ? hour + 12 : hour;
    }

    private int PeriodicRate => (_cmos[RegA] & 15) switch { 0 => 0, 1 => 256, 2 => 128, int rate => (int)(Base32K >> (rate - 1)) };

    private bool DividerRuns => (_cmos[RegA] & ADividerMask) == ADividerRunning;

    /// <summary>Works out which flags have come up since the last look.</summary>
    private void CatchUp()
    {
        long now = _clock.Now;
        if (now <= _seen)
            return;
        int rate = PeriodicRate;
        if (rate != 0 && DividerRuns && PeriodIndex(now, rate) != PeriodIndex(_seen, rate))
            _flags |= FlagPeriodic;
        if (!_held)
        {
            long before = SecondsAt(_seen);
            long after = SecondsAt(now);
            if (after != before)
            {
                _flags |= FlagUpdate;
                if (NextAlarm(before) is long alarm && alarm <= after)
                {
                    _flags |= FlagAlarm;
                    if ((_cmos[RegB] & FlagAlarm) != 0)
                        AlarmRaised?.Invoke();
                }
            }
        }
        _seen = now;
    }

    private long PeriodIndex(long time, int rate)
    {
        long since = time - _origin;
        long seconds = FloorDivide(since, VmClock.Second);
        return seconds * rate + (since - seconds * VmClock.Second) * rate / VmClock.Second;
    }

    /// <summary>The first second after <paramref name="after"/> that the alarm registers match, within a day.</summary>
    private long? NextAlarm(long after)
    {
        // Codes from 0xC0 on match anything. Anything else that is no time never matches.
        int? second = AlarmField(_cmos[1], 59);
        int? minute = AlarmField(_cmos[3], 59);
        int? hour = AlarmHour(_cmos[5]);
        if (second is null || minute is null || hour is null)
            return null;
        long day = FloorDivide(after, 86_400) * 86_400;
        long time = after + 1;
        long last = after + 86_400;
        while (time <= last)
        {
            int inDay = (int)(((time - day) % 86_400 + 86_400) % 86_400);
            if (hour >= 0 && inDay / 3_600 != hour)
                time += 3_600 - inDay % 3_600;
            else if (minute >= 0 && inDay / 60 % 60 != minute)
                time += 60 - inDay % 60;
            else if (second >= 0 && inDay % 60 != second)
                time++;
            else
                return time;
        }
        return null;
    }

    private int? AlarmField(byte value, int highest)
    {
        if (value >= 0xC0)
            return -1;
        int decoded = Decode(value);
        return decoded <= highest ? decoded : null;
    }

    private int? AlarmHour(byte value)
    {
        if (value >= 0xC0)
            return -1;
        if ((_cmos[RegB] & B24Hours) != 0)
            return Decode(value) <= 23 ? Decode(value) : null;
        int hour = Decode((byte)(value & 0x7F));
        return hour is >= 1 and <= 12 ? DecodeHour(value) : null;
    }

    private void OnTimer()
    {
        lock (_lock)
        {
            _timer.Expired();
            CatchUp();
            Update();
        }
    }

    /// <summary>Drives the wire and waits for the next flag whose interrupt is enabled and that is not up yet.</summary>
    private void Update()
    {
        byte enabled = (byte)(_cmos[RegB] & FlagMask);
        bool level = (_flags & enabled) != 0;
        if (level != _level)
        {
            _level = level;
            _irq.Set(level);
        }
        // While the wire is up, further flags can wait until register C is read; only the alarm has a second listener.
        byte awaited = (byte)(enabled & ~_flags & (level ? FlagAlarm : FlagMask));
        long next = long.MaxValue;
        int rate = PeriodicRate;
        if ((awaited & FlagPeriodic) != 0 && rate != 0 && DividerRuns)
            next = _origin + VmClock.TimeOfTick(PeriodIndex(_seen, rate) + 1, rate);
        if (!_held && (awaited & (FlagUpdate | FlagAlarm)) != 0)
        {
            long second = SecondsAt(_seen);
            if ((awaited & FlagUpdate) != 0)
                next = Math.Min(next, _origin + (second + 1) * VmClock.Second);
            if ((awaited & FlagAlarm) != 0 && NextAlarm(second) is long alarm)
                next = Math.Min(next, _origin + alarm * VmClock.Second);
        }
        _timer.Arm(next);
    }

    /// <inheritdoc/>
    public RtcSavedState Save()
    {
        lock (_lock)
        {
            CatchUp();
            Update();
            long now = _clock.Now;
            return new RtcSavedState
            {
                Cmos = [.. _cmos],
                Index = _index,
                SinceOrigin = now - _origin,
                Held = _held,
                Flags = _flags,
                Level = _level,
            };
        }
    }

    /// <inheritdoc/>
    public void Restore(RtcSavedState state)
    {
        lock (_lock)
        {
            Array.Clear(_cmos);
            state.Cmos.AsSpan(0, Math.Min(state.Cmos.Length, _cmos.Length)).CopyTo(_cmos);
            _index = state.Index;
            long now = _clock.Now;
            _origin = now - state.SinceOrigin;
            _seen = now;
            _held = state.Held;
            _flags = (byte)(state.Flags & FlagMask);
            _level = state.Level;
            _irq.Set(_level);
            _timer.Expired();
            Update();
        }
    }
}

/// <summary>Clock and CMOS at rest.</summary>
[SavedState("rtc", 1)]
public sealed record RtcSavedState
{
    /// <summary>128 bytes.</summary>
    public byte[] Cmos { get; init; } = [];
    /// <summary>Index register with the NMI mask bit.</summary>
    public byte Index { get; init; }
    /// <summary>Nanoseconds that the clock shows past 1970.</summary>
    public long SinceOrigin { get; init; }
    /// <summary>The guest is setting the clock.</summary>
    public bool Held { get; init; }
    /// <summary>Register C flags not yet read.</summary>
    public byte Flags { get; init; }
    /// <summary>Interrupt output.</summary>
    public bool Level { get; init; }
}
