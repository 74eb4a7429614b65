using Aerostat.Devices;
using Aerostat.State;

namespace Aerostat.Chipset;

/// <summary>
/// The reset control register at 0xCF9 (ICH9 data sheet, 13.7.5): a rising bit 2 resets the machine, softly (bit 1 clear) or
/// hard (bit 1 set).
/// <para>Not emulated: the difference between soft, hard and full (bit 3) resets: each resets the whole machine.</para>
/// </summary>
public sealed class ResetControl : BytePortDevice, IDevice, ISavable<ResetControlSavedState>
{
    private readonly Lock _lock = new();
    private readonly Action _reset;
    private byte _value;

    /// <summary>Makes the register.</summary>
    /// <param name="reset">Asks for a reset of the machine; called on a vCPU thread, must return at once.</param>
    public ResetControl(Action reset) => _reset = reset;

    /// <inheritdoc/>
    public string Name => "reset-control";

    /// <inheritdoc/>
    public void Reset()
    {
        lock (_lock)
            _value = 0;
    }

    private protected override bool Decodes(ushort port) => port == PcLayout.ResetPort;

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
            reset = (value & ~_value & 4) != 0;
            // Bit 2 does not stay: the reset clears it.
            _value = (byte)(value & 0x0A);
        }
        if (reset)
            _reset();
    }

    /// <inheritdoc/>
    public ResetControlSavedState Save()
    {
        lock (_lock)
            return new ResetControlSavedState { Value = _value };
    }

    /// <inheritdoc/>
    public void Restore(ResetControlSavedState state)
    {
        lock (_lock)
            _value = (byte)(state.Value & 0x0A);
    }
}

/// <summary>The reset control register at rest.</summary>
[SavedState("reset-control", 1)]
public sealed record ResetControlSavedState
{
    /// <summary>Bits 3 and 1.</summary>
    public byte Value { get; init; }
}
