using Aerostat.Devices;
using Aerostat.Interrupts;
using Aerostat.State;

namespace Aerostat.Chipset;

/// <summary>What an ACPI power management block is made from.</summary>
public sealed record AcpiPmOptions
{
    /// <summary>The PM timer has 32 bits (FADT flag TMR_VAL_EXT) instead of 24.</summary>
    public bool WideTimer { get; init; } = true;

    /// <summary>SLP_TYP that the DSDT gives for \_S5.</summary>
    public byte SleepTypeS5 { get; init; } = PcLayout.SleepTypeS5;

    /// <summary>SLP_TYP that the DSDT gives for \_S3; null: no S3, the write is ignored.</summary>
    public byte? SleepTypeS3 { get; init; }
}

/// <summary>
/// The fixed ACPI hardware: PM1a event and control blocks, PM timer and GPE block 0. ACPI specification 6.5, section 4.8, at the
/// ports of <see cref="PcLayout"/>.
/// <para>Not emulated: legacy mode and SMI_CMD (SCI_EN is always set; FADT says SMI_CMD 0), the sleep button, bus master and
/// global lock events, S1, S2, S4. S3 only reports the request.</para>
/// </summary>
public sealed class AcpiPm : BytePortDevice, IDevice, ISavable<AcpiPmSavedState>
{
    /// <summary>PM timer frequency in hertz.</summary>
    public const long TimerFrequency = 3_579_545;

    private const ushort StatusTimer = 1 << 0;
    private const ushort StatusPowerButton = 1 << 8;
    private const ushort StatusRtc = 1 << 10;
    private const ushort StatusWake = 1 << 15;
    private const ushort StatusBits = StatusTimer | 1 << 5 | StatusPowerButton | 1 << 9 | StatusRtc | StatusWake;
    private const ushort EnableBits = StatusTimer | 1 << 5 | StatusPowerButton | 1 << 9 | StatusRtc;
    private const ushort ControlSciEnable = 1;
    private const ushort ControlSleepEnable = 1 << 13;
    private const ushort ControlBits = 2 | 7 << 10;

    private readonly Lock _lock = new();
    private readonly AcpiPmOptions _options;
    private readonly IInterruptLine _sci;
    private readonly VmClock _clock;
    private readonly VmTimer _timer;
    private readonly Action _powerOff;
    private readonly Action? _suspend;

    private ushort _status;
    private ushort _enable;
    private ushort _control;
    private ushort _gpeStatus;
    private ushort _gpeEnable;
    private long _timerStart;
    private long _halfPeriods;
    private bool _level;

    /// <summary>Makes the block.</summary>
    /// <param name="options">What it is.</param>
    /// <param name="sci">The ACPI interrupt, level.</param>
    /// <param name="time">VM time.</param>
    /// <param name="powerOff">The guest entered S5. On a vCPU thread; must return at once.</param>
    /// <param name="suspend">The guest entered S3.</param>
    public AcpiPm(AcpiPmOptions options, IInterruptLine sci, TimeProvider time, Action powerOff, Action? suspend = null)
    {
        _options = options;
        _sci = sci;
        _clock = new VmClock(time);
        _timer = new VmTimer(_clock, OnTimer);
        _powerOff = powerOff;
        _suspend = suspend;
        _timerStart = _clock.Now;
    }

    /// <inheritdoc/>
    public string Name => "acpi-pm";

    /// <summary>
    /// Presses the power button; false when the guest does not listen (PWRBTN_EN clear). Any thread.
    /// </summary>
    public bool PressPowerButton() => RaiseFixedEvent(StatusPowerButton);

    /// <summary>The alarm of the real-time clock, which can wake the machine. Any thread.</summary>
    public bool SignalRtcAlarm() => RaiseFixedEvent(StatusRtc);

    /// <summary>Raises general purpose event 0..15; false when the guest has not enabled it. Any thread.</summary>
    public bool RaiseGeneralPurposeEvent(int number)
    {
        lock (_lock)
        {
            _gpeStatus |= (ushort)(1 << (number & 15));
            UpdateInterrupt();
            return (_gpeEnable & 1 << (number & 15)) != 0;
        }
    }

    private bool RaiseFixedEvent(ushort bit)
    {
        lock (_lock)
        {
            _status |= bit;
            UpdateInterrupt();
            return (_enable & bit) != 0;
        }
    }

    /// <inheritdoc/>
    public void Reset()
    {
        lock (_lock)
        {
            _status = 0;
            _enable = 0;
            _control = 0;
            _gpeStatus = 0;
            _gpeEnable = 0;
            _timerStart = _clock.Now;
            _halfPeriods = 0;
            UpdateInterrupt();
        }
    }

    private int CounterBits => _options.WideTimer ? 32 : 24;

    private long CounterTicks => VmClock.Ticks(Math.Max(_clock.Now - _timerStart, 0), TimerFrequency);

    private uint Counter => (uint)CounterTicks & (_options.WideTimer ? 0xFFFF_FFFF : 0x00FF_FFFF);

    /// <summary>TMR_STS is set whenever the highest bit changes (4.8.2.1).</summary>
    private void CatchUp()
    {
        long halfPeriods = CounterTicks >> (CounterBits - 1);
        if (halfPeriods == _halfPeriods)
            return;
        _halfPeriods = halfPeriods;
        _status |= StatusTimer;
    }

    private void OnTimer()
    {
        lock (_lock)
        {
            _timer.Expired();
            CatchUp();
            UpdateInterrupt();
        }
    }

    private void UpdateInterrupt()
    {
        bool level = (_status & _enable & EnableBits) != 0 || (_gpeStatus & _gpeEnable) != 0;
        if (level != _level)
        {
            _level = level;
            _sci.Set(level);
        }
        // The carry is watched only for a guest that wants to hear of the next one.
        bool watch = (_enable & StatusTimer) != 0 && (_status & StatusTimer) == 0;
        _timer.Arm(watch
            ? VmClock.Add(_timerStart, VmClock.TimeOfTick(_halfPeriods + 1 << CounterBits - 1, TimerFrequency))
            : long.MaxValue);
    }

    private protected override bool Decodes(ushort port) =>
        port is >= PcLayout.Pm1aEventPort and < PcLayout.PmTimerPort + 4
            or >= PcLayout.Gpe0Port and < PcLayout.Gpe0Port + PcLayout.Gpe0Length;

    private protected override byte ReadByte(ushort port)
    {
        lock (_lock)
        {
            int value;
            switch (port & ~1)
            {
                case PcLayout.Pm1aEventPort:
                    CatchUp();
                    value = _status;
                    break;
                case PcLayout.Pm1aEventPort + 2:
                    value = _enable;
                    break;
                case PcLayout.Pm1aControlPort:
                    value = _control | ControlSciEnable;
                    break;
                case PcLayout.PmTimerPort:
                    value = (int)(Counter & 0xFFFF);
                    break;
                case PcLayout.PmTimerPort + 2:
                    value = (int)(Counter >> 16);
                    break;
                case PcLayout.Gpe0Port:
                    value = _gpeStatus;
                    break;
                case PcLayout.Gpe0Port + 2:
                    value = _gpeEnable;
                    break;
                default:
                    return 0;
            }
            return (byte)(value >> (8 * (port & 1)));
        }
    }

    /// <summary>The timer is read in one piece: four byte reads would tear.</summary>
    private protected override bool TryReadWide(ushort port, int size, out uint value)
    {
        value = 0;
        if (port != PcLayout.PmTimerPort || size != 4)
            return false;
        lock (_lock)
            value = Counter;
        return true;
    }

    private protected override void WriteByte(ushort port, byte value)
    {
        Action? then = null;
        int shift = 8 * (port & 1);
        int bits = value << shift;
        lock (_lock)
        {
            switch (port & ~1)
            {
                case PcLayout.Pm1aEventPort:
                    CatchUp();
                    _status &= (ushort)~bits;
                    break;
                case PcLayout.Pm1aEventPort + 2:
                    CatchUp();
                    _enable = (ushort)((_enable & 0xFF00 >> shift | bits) & EnableBits);
                    break;
                case PcLayout.Pm1aControlPort:
                    _control = (ushort)((_control & 0xFF00 >> shift | bits) & ControlBits);
                    if ((bits & ControlSleepEnable) != 0)
                        then = EnterSleep((byte)(_control >> 10 & 7));
                    break;
                case PcLayout.Gpe0Port:
                    _gpeStatus &= (ushort)~bits;
                    break;
                case PcLayout.Gpe0Port + 2:
                    _gpeEnable = (ushort)(_gpeEnable & 0xFF00 >> shift | bits);
                    break;
                default:
                    return;
            }
            UpdateInterrupt();
        }
        then?.Invoke();
    }

    private Action? EnterSleep(byte type)
    {
        if (type == _options.SleepTypeS5)
            return _powerOff;
        if (type == _options.SleepTypeS3)
        {
            _status |= StatusWake;
            return _suspend;
        }
        return null;
    }

    /// <inheritdoc/>
    public AcpiPmSavedState Save()
    {
        lock (_lock)
        {
            return new AcpiPmSavedState
            {
                Status = _status,
                Enable = _enable,
                Control = _control,
                GpeStatus = _gpeStatus,
                GpeEnable = _gpeEnable,
                TimerElapsed = _clock.Now - _timerStart,
                HalfPeriods = _halfPeriods,
                Level = _level,
            };
        }
    }

    /// <inheritdoc/>
    public void Restore(AcpiPmSavedState state)
    {
        lock (_lock)
        {
            _status = (ushort)(state.Status & StatusBits);
            _enable = (ushort)(state.Enable & EnableBits);
            _control = (ushort)(state.Control & ControlBits);
            _gpeStatus = state.GpeStatus;
            _gpeEnable = state.GpeEnable;
            _timerStart = _clock.Now - state.TimerElapsed;
            _halfPeriods = state.HalfPeriods;
            _level = state.Level;
            _sci.Set(_level);
            _timer.Expired();
            UpdateInterrupt();
        }
    }
}

/// <summary>The ACPI fixed hardware at rest.</summary>
[SavedState("acpi-pm", 1)]
public sealed record AcpiPmSavedState
{
    /// <summary>PM1 status.</summary>
    public ushort Status { get; init; }
    /// <summary>PM1 enable.</summary>
    public ushort Enable { get; init; }
    /// <summary>PM1 control without SCI_EN.</summary>
    public ushort Control { get; init; }
    /// <summary>GPE0 status.</summary>
    public ushort GpeStatus { get; init; }
    /// <summary>GPE0 enable.</summary>
    public ushort GpeEnable { get; init; }
    /// <summary>Nanoseconds since the PM timer stood at zero.</summary>
    public long TimerElapsed { get; init; }
    /// <summary>Changes of the timer's highest bit that TMR_STS has reported.</summary>
    public long HalfPeriods { get; init; }
    /// <summary>SCI.</summary>
    public bool Level { get; init; }
}
