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
    public byte? SleepTypeS3 { get; init; } = PcLayout.SleepTypeS3;
}

/// <summary>The fixed power button as a guest has left it.</summary>
/// <param name="Pending">PWRBTN_STS: it was pressed, and the guest has not acknowledged that.</param>
/// <param name="Enabled">PWRBTN_EN: the guest wants an interrupt for it.</param>
public readonly record struct PowerButtonState(bool Pending, bool Enabled);

/// <summary>
/// The fixed ACPI hardware: PM1a event and control blocks, PM timer and GPE block 0. ACPI specification 6.5, section 4.8, at the
/// ports of <see cref="PcLayout"/>.
/// <para>Not emulated: legacy mode and SMI_CMD (SCI_EN is always set; FADT says SMI_CMD 0), the sleep button, bus master and
/// global lock events, S1, S2, S4, GPE wake-up from S5.</para>
/// </summary>
/// <remarks>
/// In S3 the block stays powered: status, enable bits and timer outlive it, and the owner leaves the block out of the reset that wakes
/// the rest of the machine. <see cref="IsAsleep"/> is what counts: a wake-up may come before the owner has carried out the suspension.
/// </remarks>
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
    private const ushort WakeBits = StatusPowerButton | 1 << 9 | StatusRtc;
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
    private readonly Action? _wake;

    private ushort _status;
    private ushort _enable;
    private ushort _control;
    private ushort _gpeStatus;
    private ushort _gpeEnable;
    private long _timerStart;
    private long _halfPeriods;
    private bool _level;
    private volatile bool _asleep;

    /// <summary>Makes the block.</summary>
    /// <param name="options">What it is.</param>
    /// <param name="sci">The ACPI interrupt, level.</param>
    /// <param name="time">VM time.</param>
    /// <param name="powerOff">The guest entered S5. On a vCPU thread; must return at once.</param>
    /// <param name="suspend">The guest entered S3. On a vCPU thread; must return at once.</param>
    /// <param name="wake">An event that the guest has enabled ended S3. Any thread; must return at once.</param>
    public AcpiPm(AcpiPmOptions options, IInterruptLine sci, TimeProvider time, Action powerOff, Action? suspend = null, Action? wake = null)
    {
        _options = options;
        _sci = sci;
        _clock = new VmClock(time);
        _timer = new VmTimer(_clock, OnTimer);
        _powerOff = powerOff;
        _suspend = suspend;
        _wake = wake;
        _timerStart = _clock.Now;
    }

    /// <inheritdoc/>
    public string Name => "acpi-pm";

    /// <summary>Whether the machine is in S3: the guest has entered it and nothing has woken it since.</summary>
    public bool IsAsleep => _asleep;

    /// <summary>
    /// Presses the power button; false when the guest does not listen (PWRBTN_EN clear). Any thread.
    /// </summary>
    public bool PressPowerButton() => RaiseFixedEvent(StatusPowerButton);

    /// <summary>Whether a press still waits to be seen, and whether the guest listens. Any thread.</summary>
    public PowerButtonState PowerButton
    {
        get
        {
            lock (_lock)
                return new PowerButtonState((_status & StatusPowerButton) != 0, (_enable & StatusPowerButton) != 0);
        }
    }

    /// <summary>The alarm of the real-time clock, which can wake the machine. Any thread.</summary>
    public bool SignalRtcAlarm() => RaiseFixedEvent(StatusRtc);

    /// <summary>Raises general purpose event 0..15; false when the guest has not enabled it. Any thread.</summary>
    public bool RaiseGeneralPurposeEvent(int number)
    {
        bool enabled, woken;
        lock (_lock)
        {
            _gpeStatus |= (ushort)(1 << (number & 15));
            UpdateInterrupt();
            enabled = (_gpeEnable & 1 << (number & 15)) != 0;
            woken = WakeUp();
        }
        if (woken)
            _wake?.Invoke();
        return enabled;
    }

    private bool RaiseFixedEvent(ushort bit)
    {
        bool enabled, woken;
        lock (_lock)
        {
            _status |= bit;
            UpdateInterrupt();
            enabled = (_enable & bit) != 0;
            woken = WakeUp();
        }
        if (woken)
            _wake?.Invoke();
        return enabled;
    }

    /// <summary>Ends S3 when there is something to wake for; the timer does not (4.8.3.2.1).</summary>
    private bool WakeUp()
    {
        if (!_asleep || ((_status & _enable & WakeBits) == 0 && (_gpeStatus & _gpeEnable) == 0))
            return false;
        _asleep = false;
        _status |= StatusWake;
        return true;
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
            _asleep = false;
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
        if (type != _options.SleepTypeS3 || _suspend is null)
            return null;
        // What waits already wakes the machine at once: the owner finds it awake when it comes to suspend it.
        _asleep = true;
        WakeUp();
        return _suspend;
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
                Asleep = _asleep,
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
            _asleep = state.Asleep;
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
    /// <summary>The machine is in S3.</summary>
    public bool Asleep { get; init; }
}
