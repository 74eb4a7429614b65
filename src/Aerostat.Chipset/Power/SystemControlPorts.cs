using Aerostat.Devices;
using Aerostat.State;

namespace Aerostat.Chipset;

/// <summary>
/// System control port B at 0x61 (ICH9 data sheet, 13.7.1): gate and output of counter 2, speaker data, refresh toggle.
/// <para>Not emulated: the speaker, parity and channel-check errors.</para>
/// </summary>
public sealed class SystemControlPortB : BytePortDevice, IDevice, ISavable<SystemControlPortBSavedState>
{
    // The refresh request toggles about every 15 microseconds.
    private const long RefreshPeriod = 15_085;

    private readonly Lock _lock = new();
    private readonly Pit _pit;
    private readonly VmClock _clock;
    private byte _value;

    /// <summary>Makes the port with the gate of counter 2 low.</summary>
    /// <param name="pit">The timer whose counter 2 it controls.</param>
    /// <param name="time">VM time, for the refresh toggle.</param>
    public SystemControlPortB(Pit pit, TimeProvider time)
    {
        _pit = pit;
        _clock = new VmClock(time);
        pit.Gate2 = false;
    }

    /// <inheritdoc/>
    public string Name => "port61";

    /// <inheritdoc/>
    public void Reset()
    {
        lock (_lock)
        {
            _value = 0;
            _pit.Gate2 = false;
        }
    }

    private protected override bool Decodes(ushort port) => port == 0x61;

    private protected override byte ReadByte(ushort port)
    {
        lock (_lock)
        {
            int refresh = (_clock.Now / RefreshPeriod & 1) != 0 ? 0x10 : 0;
            return (byte)(_value | refresh | (_pit.Output2 ? 0x20 : 0));
        }
    }

    private protected override void WriteByte(ushort port, byte value)
    {
        lock (_lock)
        {
            _value = (byte)(value & 0x0F);
            _pit.Gate2 = (value & 1) != 0;
        }
    }

    /// <inheritdoc/>
    public SystemControlPortBSavedState Save()
    {
        lock (_lock)
            return new SystemControlPortBSavedState { Value = _value };
    }

    /// <inheritdoc/>
    public void Restore(SystemControlPortBSavedState state)
    {
        // The gate itself is part of the timer's state.
        lock (_lock)
            _value = (byte)(state.Value & 0x0F);
    }
}

/// <summary>Port 0x61 at rest.</summary>
[SavedState("port61", 1)]
public sealed record SystemControlPortBSavedState
{
    /// <summary>Writable bits.</summary>
    public byte Value { get; init; }
}

/// <summary>
/// System control port A at 0x92 (ICH9 data sheet, 13.7.3): fast A20 gate and fast reset.
/// <para>Not emulated: A20 masking itself (address line 20 is always open; the bit holds its value), drive lights.</para>
/// </summary>
public sealed class SystemControlPortA : BytePortDevice, IDevice, ISavable<SystemControlPortASavedState>
{
    private readonly Lock _lock = new();
    private readonly Action _reset;
    private byte _value = 2;

    /// <summary>Makes the port with A20 open.</summary>
    /// <param name="reset">Asks for a reset of the machine; called on a vCPU thread, must return at once.</param>
    public SystemControlPortA(Action reset) => _reset = reset;

    /// <inheritdoc/>
    public string Name => "port92";

    /// <inheritdoc/>
    public void Reset()
    {
        lock (_lock)
            _value = 2;
    }

    private protected override bool Decodes(ushort port) => port == 0x92;

    private protected override byte ReadByte(ushort port)
    {
        lock (_lock)
            return _value;
    }

    private protected override void WriteByte(ushort port, byte value)
    {
        bool reset;
        lock (_lock)
        {
            reset = (value & ~_value & 1) != 0;
            _value = (byte)(value & 3);
        }
        if (reset)
            _reset();
    }

    /// <inheritdoc/>
    public SystemControlPortASavedState Save()
    {
        lock (_lock)
            return new SystemControlPortASavedState { Value = _value };
    }

    /// <inheritdoc/>
    public void Restore(SystemControlPortASavedState state)
    {
        lock (_lock)
            _value = (byte)(state.Value & 3);
    }
}

/// <summary>Port 0x92 at rest.</summary>
[SavedState("port92", 1)]
public sealed record SystemControlPortASavedState
{
    /// <summary>Bits 1..0.</summary>
    public byte Value { get; init; }
}
