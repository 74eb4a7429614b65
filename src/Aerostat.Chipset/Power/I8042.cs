using Aerostat.Devices;
using Aerostat.Interrupts;
using Aerostat.State;

namespace Aerostat.Chipset;

/// <summary>
/// A keyboard controller without a keyboard or mouse: Intel 8042 as in the IBM PS/2 hardware interface technical reference,
/// "keyboard and auxiliary device controller". It passes its self-tests, resets the machine, and answers for the absent devices
/// as hardware does (a time-out), so that no driver waits.
/// <para>Not emulated: any attached device, passwords, A20 masking (the output port holds the bit), the test inputs.</para>
/// </summary>
public sealed class I8042 : BytePortDevice, IDevice, ISavable<I8042SavedState>
{
    private const ushort DataPort = 0x60;
    private const ushort CommandPort = 0x64;

    private const byte StatusOutputFull = 1;
    private const byte StatusSystem = 4;
    private const byte StatusCommand = 8;
    private const byte StatusUnlocked = 0x10;
    private const byte StatusTimeout = 0x40;

    private const byte ModeKeyboardInterrupt = 1;
    private const byte ModeSystem = 4;

    /// <summary>Translation, auxiliary device off, system flag, keyboard interrupt.</summary>
    private const byte InitialMode = 0x65;

    private readonly Lock _lock = new();
    private readonly IInterruptLine _irq;
    private readonly Action _reset;
    private readonly byte[] _memory = new byte[32];
    private byte _outputPort;
    private byte _data;
    private bool _full;
    private bool _timeout;
    private bool _lastWasCommand;
    private byte _pending;
    private bool _level;

    /// <summary>Makes a controller.</summary>
    /// <param name="irq1">Keyboard interrupt.</param>
    /// <param name="reset">Asks for a reset of the machine; called on a vCPU thread, must return at once.</param>
    public I8042(IInterruptLine irq1, Action reset)
    {
        _irq = irq1;
        _reset = reset;
        ResetRegisters();
    }

    /// <inheritdoc/>
    public string Name => "i8042";

    /// <inheritdoc/>
    public void Reset()
    {
        lock (_lock)
        {
            ResetRegisters();
            UpdateInterrupt();
        }
    }

    private void ResetRegisters()
    {
        Array.Clear(_memory);
        _memory[0] = InitialMode;
        _outputPort = 3;
        _full = false;
        _data = 0;
        _timeout = false;
        _lastWasCommand = false;
        _pending = 0;
    }

    private protected override bool Decodes(ushort port) => port is DataPort or CommandPort;

    private protected override byte ReadByte(ushort port)
    {
        lock (_lock)
        {
            if (port == CommandPort)
            {
                return (byte)(StatusUnlocked | (_full ? StatusOutputFull : 0) | ((_memory[0] & ModeSystem) != 0 ? StatusSystem : 0)
                    | (_lastWasCommand ? StatusCommand : 0) | (_full && _timeout ? StatusTimeout : 0));
            }
            _full = false;
            UpdateInterrupt();
            return _data;
        }
    }

    private protected override void WriteByte(ushort port, byte value)
    {
        bool reset;
        lock (_lock)
        {
            _lastWasCommand = port == CommandPort;
            reset = port == CommandPort ? Command(value) : Data(value);
            UpdateInterrupt();
        }
        if (reset)
            _reset();
    }

    private void Answer(byte value, bool timeout = false)
    {
        _data = value;
        _full = true;
        _timeout = timeout;
    }

    /// <summary>A byte at the command port; true: reset the machine.</summary>
    private bool Command(byte value)
    {
        _pending = 0;
        switch (value)
        {
            case >= 0x20 and < 0x40:
                Answer(_memory[value & 31]);
                break;
            case >= 0x60 and < 0x80 or 0xD1 or 0xD2 or 0xD3 or 0xD4:
                _pending = value;
                break;
            case 0xA7:
                _memory[0] |= 0x20;
                break;
            case 0xA8:
                _memory[0] &= 0xDF;
                break;
            case 0xA9:
                // Auxiliary interface test: clock line stuck low, that is, nothing there.
                Answer(1);
                break;
            case 0xAA:
                _memory[0] |= ModeSystem;
                Answer(0x55);
                break;
            case 0xAB:
                Answer(0);
                break;
            case 0xAD:
                _memory[0] |= 0x10;
                break;
            case 0xAE:
                _memory[0] &= 0xEF;
                break;
            case 0xC0:
                // Input port: keyboard not locked.
                Answer(0x80);
                break;
            case 0xD0:
                Answer((byte)(_outputPort | (_full ? 0x10 : 0)));
                break;
            case >= 0xF0:
                // Pulses the output port bits that are zero; bit 0 is the processors' reset.
                return (value & 1) == 0;
        }
        return false;
    }

    private bool Data(byte value)
    {
        byte command = _pending;
        _pending = 0;
        switch (command)
        {
            case >= 0x60 and < 0x80:
                _memory[command & 31] = value;
                break;
            case 0xD1:
                _outputPort = (byte)(value & 3 | 1);
                return (value & 1) == 0;
            case 0xD2:
            case 0xD3:
                // The loop-back of the auxiliary side comes back as keyboard data: no such side.
                Answer(value);
                break;
            default:
                // To a device that is not there: "resend" with the time-out bit.
                Answer(0xFE, timeout: true);
                break;
        }
        return false;
    }

    private void UpdateInterrupt()
    {
        bool level = _full && (_memory[0] & ModeKeyboardInterrupt) != 0;
        if (level == _level)
            return;
        _level = level;
        _irq.Set(level);
    }

    /// <inheritdoc/>
    public I8042SavedState Save()
    {
        lock (_lock)
        {
            return new I8042SavedState
            {
                Memory = [.. _memory],
                OutputPort = _outputPort,
                Data = _data,
                Full = _full,
                Timeout = _timeout,
                LastWasCommand = _lastWasCommand,
                Pending = _pending,
                Level = _level,
            };
        }
    }

    /// <inheritdoc/>
    public void Restore(I8042SavedState state)
    {
        lock (_lock)
        {
            ResetRegisters();
            state.Memory.AsSpan(0, Math.Min(state.Memory.Length, _memory.Length)).CopyTo(_memory);
            _outputPort = (byte)(state.OutputPort & 3);
            _data = state.Data;
            _full = state.Full;
            _timeout = state.Timeout;
            _lastWasCommand = state.LastWasCommand;
            _pending = state.Pending;
            _level = state.Level;
            _irq.Set(_level);
            UpdateInterrupt();
        }
    }
}

/// <summary>An 8042 at rest.</summary>
[SavedState("i8042", 1)]
public sealed record I8042SavedState
{
    /// <summary>Controller memory, 32 bytes; byte 0 is the mode.</summary>
    public byte[] Memory { get; init; } = [];
    /// <summary>Output port bits 1..0.</summary>
    public byte OutputPort { get; init; }
    /// <summary>Output buffer.</summary>
    public byte Data { get; init; }
    /// <summary>Output buffer full.</summary>
    public bool Full { get; init; }
    /// <summary>The byte stands for a time-out.</summary>
    public bool Timeout { get; init; }
    /// <summary>The last write was a command.</summary>
    public bool LastWasCommand { get; init; }
    /// <summary>Command that waits for its data byte; 0: none.</summary>
    public byte Pending { get; init; }
    /// <summary>Interrupt output.</summary>
    public bool Level { get; init; }
}
