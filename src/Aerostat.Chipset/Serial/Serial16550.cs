using Aerostat.Devices;
using Aerostat.Interrupts;
using Aerostat.State;

namespace Aerostat.Chipset;

/// <summary>
/// A serial port: National Semiconductor PC16550D data sheet (June 1995), section 8.
/// <para>Not emulated: time on the wire (a character is sent the moment it is written, and a receive FIFO below its trigger level
/// times out at once), parity and framing errors, DMA signalling; RTS and DTR do not throttle the far end.</para>
/// </summary>
/// <remarks>
/// Full duplex: <see cref="Receive"/> may be called from any thread, also from inside the back end's Write. It takes what the FIFO
/// holds and says how much that was; <see cref="SpaceAvailable"/> tells when to offer the rest.
/// </remarks>
public sealed class Serial16550 : BytePortDevice, IDevice, ISavable<Serial16550SavedState>
{
    private const int FifoSize = 16;
    private const int LooksOfAPoller = 64;

    private const byte IerReceive = 1;
    private const byte IerTransmit = 2;
    private const byte IerLine = 4;
    private const byte IerModem = 8;

    private const byte LcrDivisorLatch = 0x80;

    private const byte McrDtr = 1;
    private const byte McrRts = 2;
    private const byte McrOut1 = 4;
    private const byte McrOut2 = 8;
    private const byte McrLoop = 0x10;

    private const byte LsrDataReady = 1;
    private const byte LsrOverrun = 2;
    private const byte LsrBreak = 0x10;
    private const byte LsrTransmitEmpty = 0x60;
    private const byte LsrFifoError = 0x80;

    private readonly Lock _lock = new();
    private readonly IInterruptLine _irq;
    private readonly ICharacterBackend _backend;
    private readonly ushort _base;
    private readonly byte[] _fifo = new byte[FifoSize];
    private int _head;
    private int _count;
    private int _breakAt = -1;

    private byte _ier;
    private byte _lcr;
    private byte _mcr;
    private byte _scratch;
    private byte _fcr;
    private ushort _divisor;
    private bool _overrun;
    private bool _transmitPending;
    private ModemInputs _inputs = ModemInputs.Ready;
    private byte _deltas;
    private bool _starved;
    private bool _level;
    // Looks for a character in vain since the guest last sent one. Drivers that write by polling look a few times for each.
    private int _vainLooks;
    private bool _polls;

    /// <summary>Makes a serial port.</summary>
    /// <param name="name">Unique name: "serial0".</param>
    /// <param name="basePort">First of its eight ports.</param>
    /// <param name="irq">Interrupt output.</param>
    /// <param name="backend">Far end of the line.</param>
    public Serial16550(string name, ushort basePort, IInterruptLine irq, ICharacterBackend backend)
    {
        Name = name;
        _base = basePort;
        _irq = irq;
        _backend = backend;
        ResetRegisters();
    }

    /// <inheritdoc/>
    public string Name { get; }

    /// <summary>
    /// Raised after a <see cref="Receive"/> did not take everything and the guest has since emptied the FIFO. On a vCPU thread,
    /// outside of the device's lock; handlers may call <see cref="Receive"/> at once.
    /// </summary>
    public event Action? SpaceAvailable;

    /// <summary>
    /// Whether the far end waits until the guest listens: has receive interrupts on, has raised RTS, or polls for characters. What is
    /// typed earlier is kept at the far end instead of in a FIFO that drivers clear when they start.
    /// </summary>
    public bool AwaitsListener { get; init; }

    /// <summary>The modem status inputs: DSR, CTS and DCD are active from the start. Any thread.</summary>
    public ModemInputs Inputs
    {
        get
        {
            lock (_lock)
                return _inputs;
        }
        set
        {
            lock (_lock)
            {
                byte before = ModemLines();
                _inputs = value;
                NoteModemChange(before);
                UpdateInterrupt();
            }
        }
    }

    /// <summary>
    /// Characters from the far end; any thread. Returns how many were taken; when fewer than given, offer the rest at
    /// <see cref="SpaceAvailable"/>. Nothing is taken in loopback mode.
    /// </summary>
    public int Receive(ReadOnlySpan<byte> data)
    {
        lock (_lock)
        {
            int room = Listening ? Capacity - _count : 0;
            int taken = Math.Clamp(room, 0, data.Length);
            for (int i = 0; i < taken; i++)
                Push(data[i]);
            _starved = taken < data.Length;
            if (taken > 0)
                UpdateInterrupt();
            return taken;
        }
    }

    /// <summary>A break condition from the far end (magic SysRq). Lost when the FIFO is full. Any thread.</summary>
    public void ReceiveBreak()
    {
        lock (_lock)
        {
            if ((_mcr & McrLoop) != 0 || _count >= Capacity || _breakAt >= 0)
                return;
            _breakAt = _count;
            Push(0);
            UpdateInterrupt();
        }
    }

    /// <inheritdoc/>
    public void Reset()
    {
        bool wake;
        lock (_lock)
        {
            ResetRegisters();
            wake = TakeStarved();
            UpdateInterrupt();
        }
        if (wake)
            SpaceAvailable?.Invoke();
    }

    private void ResetRegisters()
    {
        ClearReceiver();
        _ier = 0;
        _lcr = 0;
        _mcr = 0;
        _scratch = 0;
        _fcr = 0;
        _divisor = 12;
        _transmitPending = false;
        _deltas = 0;
        _vainLooks = 0;
        _polls = false;
    }

    private void ClearReceiver()
    {
        _head = 0;
        _count = 0;
        _breakAt = -1;
        _overrun = false;
    }

    private bool FifosEnabled => (_fcr & 1) != 0;

    private int Capacity => FifosEnabled ? FifoSize : 1;

    private int TriggerLevel => FifosEnabled ? (_fcr >> 6) switch { 0 => 1, 1 => 4, 2 => 8, _ => 14 } : 1;

    private bool LatchOpen => (_lcr & LcrDivisorLatch) != 0;

    private void Push(byte value) => _fifo[(_head + _count++) % FifoSize] = value;

    // Probing drivers enable interrupts for a moment, but not OUT2 with them.
    private bool Listening => (_mcr & McrLoop) == 0
        && (!AwaitsListener || _polls || (_mcr & McrRts) != 0 || ((_ier & IerReceive) != 0 && (_mcr & McrOut2) != 0));

    private bool TakeStarved()
    {
        if (!_starved || _count != 0 || !Listening)
            return false;
        _starved = false;
        return true;
    }

    private protected override bool Decodes(ushort port) => (uint)(port - _base) < 8;

    private protected override byte ReadByte(ushort port)
    {
        bool wake = false;
        byte value;
        lock (_lock)
        {
            switch ((port - _base) & 7)
            {
                case 0 when LatchOpen:
                    return (byte)_divisor;
                case 0:
                    value = ReadReceiver();
                    wake = TakeStarved();
                    break;
                case 1 when LatchOpen:
                    return (byte)(_divisor >> 8);
                case 1:
                    return _ier;
                case 2:
                    value = ReadIdentification();
                    break;
                case 3:
                    return _lcr;
                case 4:
                    return _mcr;
                case 5:
                    value = ReadLineStatus();
                    _polls |= (value & LsrDataReady) == 0 && ++_vainLooks >= LooksOfAPoller;
                    wake = TakeStarved();
                    break;
                case 6:
                    value = (byte)(ModemLines() | _deltas);
                    _deltas = 0;
                    break;
                default:
                    return _scratch;
            }
            UpdateInterrupt();
        }
        if (wake)
            SpaceAvailable?.Invoke();
        return value;
    }

    private protected override void WriteByte(ushort port, byte value)
    {
        bool send = false;
        bool wake = false;
        lock (_lock)
        {
            switch ((port - _base) & 7)
            {
                case 0 when LatchOpen:
                    _divisor = (ushort)(_divisor & 0xFF00 | value);
                    return;
                case 0:
                    // The holding register is empty again at once: the interrupt goes away and comes back.
                    _transmitPending = true;
                    _vainLooks = 0;
                    if ((_mcr & McrLoop) != 0)
                        LoopBack(value);
                    else
                        send = true;
                    break;
                case 1 when LatchOpen:
                    _divisor = (ushort)(_divisor & 0xFF | value << 8);
                    return;
                case 1:
                    // Enabling the transmitter interrupt while the register is empty raises it (8.7), however often it is done:
                    // Linux relies on that to restart its transmitter.
                    if ((value & ~_ier & IerTransmit) != 0)
                        _transmitPending = true;
                    _ier = (byte)(value & 0x0F);
                    break;
                case 2:
                    WriteFifoControl(value);
                    break;
                case 3:
                    _lcr = value;
                    return;
                case 4:
                    byte before = ModemLines();
                    _mcr = (byte)(value & 0x1F);
                    NoteModemChange(before);
                    break;
                case 7:
                    _scratch = value;
                    return;
                default:
                    // The status registers are read-only.
                    return;
            }
            wake = TakeStarved();
            UpdateInterrupt();
        }
        if (send)
            _backend.Write(new ReadOnlySpan<byte>(ref value));
        if (wake)
            SpaceAvailable?.Invoke();
    }

    private byte ReadReceiver()
    {
        if (_count == 0)
            return 0;
        byte value = _fifo[_head];
        _head = (_head + 1) % FifoSize;
        _count--;
        if (_breakAt >= 0)
            _breakAt--;
        return value;
    }

    private byte ReadIdentification()
    {
        byte id = PendingInterrupt();
        // Reading the register answers the transmitter's request, if that is the one shown (table IV).
        if (id == 2)
            _transmitPending = false;
        return (byte)(id | (FifosEnabled ? 0xC0 : 0));
    }

    private byte ReadLineStatus()
    {
        byte value = LsrTransmitEmpty;
        if (_count != 0)
            value |= LsrDataReady;
        if (_overrun)
            value |= LsrOverrun;
        if (_breakAt == 0)
            value |= LsrBreak;
        if (_breakAt >= 0 && FifosEnabled)
            value |= LsrFifoError;
        _overrun = false;
        if (_breakAt == 0)
            _breakAt = -1;
        return value;
    }

    private void WriteFifoControl(byte value)
    {
        bool toggled = ((value ^ _fcr) & 1) != 0;
        if ((value & 1) == 0)
        {
            // The other bits are only programmed together with bit 0.
            _fcr = 0;
            if (toggled)
                ClearReceiver();
            return;
        }
        if (toggled || (value & 2) != 0)
            ClearReceiver();
        if ((value & 4) != 0)
            _transmitPending = true;
        _fcr = (byte)(value & 0xC9);
    }

    private void LoopBack(byte value)
    {
        if (_count >= Capacity)
        {
            _overrun = true;
            // Without FIFOs the new character replaces the old one; a full FIFO keeps what it has.
            if (!FifosEnabled)
                _fifo[_head] = value;
            return;
        }
        Push(value);
    }

    /// <summary>Modem status bits 7..4: DCD, RI, DSR, CTS; in loopback OUT2, OUT1, DTR, RTS.</summary>
    private byte ModemLines()
    {
        if ((_mcr & McrLoop) == 0)
            return (byte)_inputs;
        return (byte)(((_mcr & McrRts) != 0 ? ModemInputs.Cts : 0) | ((_mcr & McrDtr) != 0 ? ModemInputs.Dsr : 0)
            | ((_mcr & McrOut1) != 0 ? ModemInputs.Ri : 0) | ((_mcr & McrOut2) != 0 ? ModemInputs.Dcd : 0));
    }

    private void NoteModemChange(byte before)
    {
        byte now = ModemLines();
        int changed = before ^ now;
        // The ring indicator reports only its trailing edge.
        int deltas = changed & 0xB0 | changed & before & 0x40;
        _deltas |= (byte)(deltas >> 4);
    }

    /// <summary>IIR bits 3..0 (table IV), highest priority first; 1: none.</summary>
    private byte PendingInterrupt()
    {
        if ((_ier & IerLine) != 0 && (_overrun || _breakAt == 0))
            return 6;
        if ((_ier & IerReceive) != 0 && _count > 0)
            return _count >= TriggerLevel ? (byte)4 : (byte)0xC;
        if ((_ier & IerTransmit) != 0 && _transmitPending)
            return 2;
        if ((_ier & IerModem) != 0 && _deltas != 0)
            return 0;
        return 1;
    }

    private void UpdateInterrupt()
    {
        // On a PC, OUT2 opens the interrupt's way to the bus; loopback takes OUT2 off its pin.
        bool level = (_mcr & (McrOut2 | McrLoop)) == McrOut2 && PendingInterrupt() != 1;
        if (level == _level)
            return;
        _level = level;
        _irq.Set(level);
    }

    /// <inheritdoc/>
    public Serial16550SavedState Save()
    {
        lock (_lock)
        {
            byte[] received = new byte[_count];
            for (int i = 0; i < _count; i++)
                received[i] = _fifo[(_head + i) % FifoSize];
            return new Serial16550SavedState
            {
                Received = received,
                BreakAt = _breakAt,
                InterruptEnable = _ier,
                LineControl = _lcr,
                ModemControl = _mcr,
                Scratch = _scratch,
                FifoControl = _fcr,
                Divisor = _divisor,
                Overrun = _overrun,
                TransmitPending = _transmitPending,
                Inputs = _inputs,
                Deltas = _deltas,
                Level = _level,
                Polls = _polls,
            };
        }
    }

    /// <inheritdoc/>
    public void Restore(Serial16550SavedState state)
    {
        lock (_lock)
        {
            ResetRegisters();
            foreach (byte value in state.Received.AsSpan(0, Math.Min(state.Received.Length, FifoSize)))
                Push(value);
            _breakAt = state.BreakAt < _count ? Math.Max(state.BreakAt, -1) : -1;
            _ier = (byte)(state.InterruptEnable & 0x0F);
            _lcr = state.LineControl;
            _mcr = (byte)(state.ModemControl & 0x1F);
            _scratch = state.Scratch;
            _fcr = state.FifoControl;
            _divisor = state.Divisor;
            _overrun = state.Overrun;
            _transmitPending = state.TransmitPending;
            _inputs = state.Inputs & ModemInputs.All;
            _deltas = (byte)(state.Deltas & 0x0F);
            _level = state.Level;
            _polls = state.Polls;
            _irq.Set(_level);
            UpdateInterrupt();
        }
    }
}

/// <summary>Modem status inputs, at their places in the modem status register.</summary>
[Flags]
public enum ModemInputs : byte
{
    /// <summary>Nothing active.</summary>
    None = 0,
    /// <summary>Clear to send.</summary>
    Cts = 0x10,
    /// <summary>Data set ready.</summary>
    Dsr = 0x20,
    /// <summary>Ring indicator.</summary>
    Ri = 0x40,
    /// <summary>Data carrier detect.</summary>
    Dcd = 0x80,
    /// <summary>A far end that is there: CTS, DSR and DCD.</summary>
    Ready = Cts | Dsr | Dcd,
    /// <summary>Every input.</summary>
    All = Ready | Ri,
}

/// <summary>A 16550 at rest.</summary>
[SavedState("serial16550", 1)]
public sealed record Serial16550SavedState
{
    /// <summary>Receive FIFO, oldest first, at most 16.</summary>
    public byte[] Received { get; init; } = [];
    /// <summary>Which of them is a break, or -1.</summary>
    public int BreakAt { get; init; } = -1;
    /// <summary>IER.</summary>
    public byte InterruptEnable { get; init; }
    /// <summary>LCR.</summary>
    public byte LineControl { get; init; }
    /// <summary>MCR.</summary>
    public byte ModemControl { get; init; }
    /// <summary>Scratch register.</summary>
    public byte Scratch { get; init; }
    /// <summary>FCR.</summary>
    public byte FifoControl { get; init; }
    /// <summary>Divisor latch.</summary>
    public ushort Divisor { get; init; }
    /// <summary>Overrun not yet read.</summary>
    public bool Overrun { get; init; }
    /// <summary>Transmitter interrupt not yet answered.</summary>
    public bool TransmitPending { get; init; }
    /// <summary>Modem inputs.</summary>
    public ModemInputs Inputs { get; init; }
    /// <summary>Modem status deltas.</summary>
    public byte Deltas { get; init; }
    /// <summary>Interrupt output.</summary>
    public bool Level { get; init; }
    /// <summary>The guest looks for input by itself.</summary>
    public bool Polls { get; init; }
}
