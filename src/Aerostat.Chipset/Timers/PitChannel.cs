namespace Aerostat.Chipset;

/// <summary>
/// One counter of an 8254. It is never stepped: count and output follow from the time of the last load or trigger. The owner locks.
/// </summary>
internal sealed class PitChannel
{
    /// <summary>Input clock of the PC's 8254, hertz: 1.19318166... MHz, as the data sheets round it.</summary>
    public const long Frequency = 1_193_182;

    private readonly VmClock _clock;
    private int _mode;
    private int _access = 3;
    private bool _bcd;
    private int _reload = 0x10000;
    private int _next = 0x10000;
    private bool _gate = true;

    /// <summary>A control word came, and no count since: the output is in its initial state.</summary>
    private bool _nullCount = true;

    /// <summary>When counting started, VM time; long.MinValue while it has not.</summary>
    private long _start;
    private bool _running;

    /// <summary>Input clocks already counted when the gate went low in a mode that then holds.</summary>
    private long _held;

    private bool _writeHigh;
    private byte _writeLow;
    private bool _readHigh;
    private int _latchedBytes;
    private ushort _latch;
    private bool _statusLatched;
    private byte _status;

    public PitChannel(VmClock clock) => _clock = clock;

    /// <summary>Mode 0..5.</summary>
    public int Mode => _mode;

    /// <summary>The gate input.</summary>
    public bool Gate => _gate;

    public void Reset()
    {
        bool gate = _gate;
        Restore(new PitChannelState { Access = 3, Reload = 0x10000, NullCount = true, Gate = gate });
    }

    /// <summary>Control word for this counter: access, mode, BCD; or the counter latch command when access is 0.</summary>
    public void WriteControl(byte value)
    {
        int access = value >> 4 & 3;
        if (access == 0)
        {
            LatchCount();
            return;
        }
        _access = access;
        // Modes 6 and 7 are 2 and 3 again.
        _mode = value >> 1 & 7;
        if (_mode > 5)
            _mode -= 4;
        _bcd = (value & 1) != 0;
        _nullCount = true;
        _running = false;
        _held = 0;
        _writeHigh = false;
        _readHigh = false;
        _latchedBytes = 0;
        _statusLatched = false;
    }

    /// <summary>A byte of the count.</summary>
    public void WriteCount(byte value)
    {
        switch (_access)
        {
            case 1:
                Load(value);
                break;
            case 2:
                Load(value << 8);
                break;
            default:
                if (!_writeHigh)
                {
                    _writeLow = value;
                    _writeHigh = true;
                    // In mode 0 the first byte stops counting.
                    if (_mode == 0)
                        Hold();
                }
                else
                {
                    _writeHigh = false;
                    Load(value << 8 | _writeLow);
                }
                break;
        }
    }

    private void Load(int raw)
    {
        int value = _bcd ? FromBcd(raw) : raw;
        if (value == 0)
            value = _bcd ? 10_000 : 0x10000;
        bool wasLoaded = !_nullCount;
        long now = _clock.Now;
        if (wasLoaded && _running && _mode is 2 or 3)
        {
            // The new count is taken at the end of the current period; here at once, keeping the phase inside the period.
            long phase = Elapsed(now) % _reload;
            _reload = value;
            _start = now - VmClock.TimeOfTick(Math.Min(phase, value - 1), Frequency);
            return;
        }
        _nullCount = false;
        _next = value;
        // Modes 1 and 5 take the count at the next trigger; a running one-shot is not disturbed.
        if (_mode is 1 or 5)
            return;
        _reload = value;
        _held = 0;
        _start = now;
        _running = _gate;
    }

    /// <summary>Drives the gate.</summary>
    public void SetGate(bool gate)
    {
        if (gate == _gate)
            return;
        if (!gate)
        {
            if (_mode is 0 or 4)
                Hold();
            else if (_mode is 2 or 3)
                _running = false;
            _gate = false;
            return;
        }
        _gate = true;
        if (_nullCount)
            return;
        switch (_mode)
        {
            case 0:
            case 4:
                _start = _clock.Now - VmClock.TimeOfTick(_held, Frequency);
                _running = true;
                break;
            default:
                // A rising edge triggers modes 1 and 5 and restarts modes 2 and 3.
                if (_mode is 1 or 5)
                    _reload = _next;
                _start = _clock.Now;
                _running = true;
                break;
        }
    }

    private void Hold()
    {
        if (_running)
            _held = Elapsed(_clock.Now);
        _running = false;
    }

    private long Elapsed(long now) => VmClock.Ticks(Math.Max(now - _start, 0), Frequency);

    /// <summary>Input clocks counted since the start, held ones when stopped.</summary>
    private long Counted(long now) => _running ? Elapsed(now) : _held;

    private int CurrentCount(long now)
    {
        int modulus = _bcd ? 10_000 : 0x10000;
        if (_mode is 2 or 3)
        {
            if (!_running)
                return _reload % modulus;
            long phase = Elapsed(now) % _reload;
            if (_mode == 2)
                return (int)((_reload - phase) % modulus);
            // The square wave counts by two, twice in a period.
            long half = (_reload + 1) / 2;
            long inHalf = phase < half ? phase : phase - half;
            return (int)(((_reload & ~1) - 2 * inHalf + modulus) % modulus);
        }
        // The others run through zero and on.
        long left = (_reload - Counted(now)) % modulus;
        return (int)(left < 0 ? left + modulus : left);
    }

    /// <summary>The OUT pin at <paramref name="now"/>.</summary>
    public bool Output(long now)
    {
        bool started = _running || _held != 0;
        switch (_mode)
        {
            case 0:
                return !_nullCount && Counted(now) >= _reload;
            case 1:
                return !_running || Elapsed(now) >= _reload;
            case 2:
                return !_running || Elapsed(now) % _reload != _reload - 1;
            case 3:
                return !_running || Elapsed(now) % _reload < (_reload + 1) / 2;
            default:
                return !started || Counted(now) != _reload;
        }
    }

    /// <summary>
    /// The time of the next rising edge of OUT after <paramref name="now"/> (<see cref="long.MaxValue"/>: none). A strobe or a
    /// period's low clock counts as one edge at its end of count.
    /// </summary>
    public long NextEdge(long now)
    {
        if (!_running || (_nullCount && _mode is not (1 or 5)))
            return long.MaxValue;
        if (_mode is 2 or 3)
        {
            long next = (Elapsed(now) / _reload + 1) * _reload;
            return VmClock.Add(_start, VmClock.TimeOfTick(next, Frequency));
        }
        long at = VmClock.Add(_start, VmClock.TimeOfTick(_reload, Frequency));
        return at > now ? at : long.MaxValue;
    }

    /// <summary>How many periods end after the one that ended at <paramref name="edge"/>, up to <paramref name="now"/>, that one included.</summary>
    public long PeriodsSince(long edge, long now) => (Elapsed(now) / _reload) - (Elapsed(edge) / _reload) + 1;

    /// <summary>The period in nanoseconds, in modes 2 and 3.</summary>
    public long Period => VmClock.TimeOfTick(_reload, Frequency);

    /// <summary>Read-back command for this counter: bit 5 clear latches the count, bit 4 clear the status.</summary>
    public void ReadBack(byte command)
    {
        if ((command & 0x20) == 0)
            LatchCount();
        if ((command & 0x10) == 0 && !_statusLatched)
        {
            _status = (byte)((Output(_clock.Now) ? 0x80 : 0) | (_nullCount ? 0x40 : 0) | _access << 4 | _mode << 1 | (_bcd ? 1 : 0));
            _statusLatched = true;
        }
    }

    private void LatchCount()
    {
        // A second latch before the first is read out is ignored.
        if (_latchedBytes != 0)
            return;
        _latch = Encode(CurrentCount(_clock.Now));
        _latchedBytes = _access == 3 ? 2 : 1;
    }

    /// <summary>Read at the counter's port: latched status, latched count, or the live count.</summary>
    public byte Read()
    {
        if (_statusLatched)
        {
            _statusLatched = false;
            return _status;
        }
        ushort value;
        if (_latchedBytes != 0)
        {
            value = _latch;
            _latchedBytes--;
        }
        else
        {
            value = Encode(CurrentCount(_clock.Now));
        }
        switch (_access)
        {
            case 1:
                return (byte)value;
            case 2:
                return (byte)(value >> 8);
            default:
                _readHigh = !_readHigh;
                return _readHigh ? (byte)value : (byte)(value >> 8);
        }
    }

    private ushort Encode(int count) => (ushort)(_bcd ? ToBcd(count) : count);

    private static int FromBcd(int value) =>
        (value & 15) + (value >> 4 & 15) * 10 + (value >> 8 & 15) * 100 + (value >> 12 & 15) * 1000;

    private static int ToBcd(int value) =>
        value % 10 | value / 10 % 10 << 4 | value / 100 % 10 << 8 | value / 1000 % 10 << 12;

    public PitChannelState Save() => new()
    {
        Mode = _mode,
        Access = _access,
        Bcd = _bcd,
        Reload = _reload,
        Next = _next,
        Gate = _gate,
        NullCount = _nullCount,
        Running = _running,
        Elapsed = _running ? _clock.Now - _start : 0,
        Held = _held,
        WriteHigh = _writeHigh,
        WriteLow = _writeLow,
        ReadHigh = _readHigh,
        LatchedBytes = _latchedBytes,
        Latch = _latch,
        StatusLatched = _statusLatched,
        Status = _status,
    };

    public void Restore(PitChannelState state)
    {
        _mode = Math.Clamp(state.Mode, 0, 5);
        _access = Math.Clamp(state.Access, 1, 3);
        _bcd = state.Bcd;
        _reload = Math.Clamp(state.Reload, 1, 0x10000);
        _next = Math.Clamp(state.Next, 1, 0x10000);
        _gate = state.Gate;
        _nullCount = state.NullCount;
        _running = state.Running;
        _start = state.Running ? _clock.Now - state.Elapsed : 0;
        _held = Math.Max(state.Held, 0);
        _writeHigh = state.WriteHigh;
        _writeLow = state.WriteLow;
        _readHigh = state.ReadHigh;
        _latchedBytes = Math.Clamp(state.LatchedBytes, 0, 2);
        _latch = state.Latch;
        _statusLatched = state.StatusLatched;
        _status = state.Status;
    }
}

/// <summary>One counter of an 8254 at rest.</summary>
public sealed record PitChannelState
{
    /// <summary>0..5.</summary>
    public int Mode { get; init; }
    /// <summary>1 low byte, 2 high byte, 3 both.</summary>
    public int Access { get; init; } = 3;
    /// <summary>Counts in decimal.</summary>
    public bool Bcd { get; init; }
    /// <summary>1..65536.</summary>
    public int Reload { get; init; } = 0x10000;
    /// <summary>Count for the next trigger in modes 1 and 5, 1..65536.</summary>
    public int Next { get; init; } = 0x10000;
    /// <summary>Gate input.</summary>
    public bool Gate { get; init; }
    /// <summary>No count since the control word.</summary>
    public bool NullCount { get; init; } = true;
    /// <summary>Counting.</summary>
    public bool Running { get; init; }
    /// <summary>Nanoseconds since counting started.</summary>
    public long Elapsed { get; init; }
    /// <summary>Clocks counted before the gate stopped it.</summary>
    public long Held { get; init; }
    /// <summary>The high byte of a count comes next.</summary>
    public bool WriteHigh { get; init; }
    /// <summary>Low byte waiting for its high byte.</summary>
    public byte WriteLow { get; init; }
    /// <summary>The high byte is read next.</summary>
    public bool ReadHigh { get; init; }
    /// <summary>Bytes of the latched count still to be read.</summary>
    public int LatchedBytes { get; init; }
    /// <summary>Latched count.</summary>
    public ushort Latch { get; init; }
    /// <summary>A status byte is latched.</summary>
    public bool StatusLatched { get; init; }
    /// <summary>Latched status.</summary>
    public byte Status { get; init; }
}
