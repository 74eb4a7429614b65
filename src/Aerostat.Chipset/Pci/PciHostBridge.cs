using System.Buffers.Binary;
using Aerostat.Devices;
using Aerostat.State;

namespace Aerostat.Chipset;

/// <summary>
/// The host bridge at 00:00.0: identifies as Intel's 82G33 MCH (data sheet 316966, section 5), the bridge that systems expect in
/// front of a PCI Express configuration window.
/// <para>Not emulated: everything behind the identity (memory control, PAM, SMRAM); PCIEXBAR shows the window and cannot be moved.</para>
/// </summary>
public sealed class PciHostBridge : IDevice, IPciFunction, ISavable<PciHostBridgeSavedState>
{
    private const int ConfigSize = 256;
    private const int CommandOffset = 0x04;
    private const int PciExBar = 0x60;

    private readonly byte[] _config = new byte[ConfigSize];
    private readonly ulong _ecamBase;

    /// <summary>Makes the bridge; <see cref="PciBus.Attach"/> puts it at device 0, function 0.</summary>
    /// <param name="ecamBase">Base of the 256 MiB configuration window; 0: none.</param>
    public PciHostBridge(ulong ecamBase)
    {
        _ecamBase = ecamBase;
        Reset();
    }

    /// <inheritdoc/>
    public string Name => "pci-host-bridge";

    /// <inheritdoc/>
    public void Reset()
    {
        Span<byte> config = _config;
        config.Clear();
        BinaryPrimitives.WriteUInt16LittleEndian(config, 0x8086);
        BinaryPrimitives.WriteUInt16LittleEndian(config[2..], 0x29C0);
        // Memory space and bus mastering are hard-wired; capability list absent.
        BinaryPrimitives.WriteUInt16LittleEndian(config[CommandOffset..], 0x0006);
        config[0x08] = 2;
        config[0x0B] = 0x06;
        BinaryPrimitives.WriteUInt64LittleEndian(config[PciExBar..], _ecamBase == 0 ? 0 : _ecamBase | 1);
    }

    /// <inheritdoc/>
    public uint ReadConfig(int offset, int size)
    {
        uint value = 0;
        for (int i = 0; i < size && offset + i < ConfigSize; i++)
            value |= (uint)_config[offset + i] << (8 * i);
        return value;
    }

    /// <inheritdoc/>
    public void WriteConfig(int offset, int size, uint value)
    {
        // Only SERR# enable (command bit 8) can be written.
        for (int i = 0; i < size; i++)
        {
            if (offset + i == CommandOffset + 1)
                _config[CommandOffset + 1] = (byte)(value >> (8 * i) & 1);
        }
    }

    /// <inheritdoc/>
    public PciHostBridgeSavedState Save() => new() { Config = [.. _config] };

    /// <inheritdoc/>
    public void Restore(PciHostBridgeSavedState state)
    {
        Reset();
        state.Config.AsSpan(0, Math.Min(state.Config.Length, ConfigSize)).CopyTo(_config);
    }
}

/// <summary>The host bridge at rest.</summary>
[SavedState("pci-host-bridge", 1)]
public sealed record PciHostBridgeSavedState
{
    /// <summary>Configuration space, 256 bytes.</summary>
    public byte[] Config { get; init; } = [];
}
