using Aerostat.Devices;
using Aerostat.State;

namespace Aerostat.Chipset;

/// <summary>
/// PCI configuration mechanism 1, ports 0xCF8 and 0xCFC: PCI Local Bus specification 3.0, 3.2.2.3.2.
/// <para>Not emulated: mechanism 2, special cycles.</para>
/// </summary>
public sealed class PciConfigurationPorts : IDevice, IPortDevice, ISavable<PciConfigurationPortsSavedState>
{
    private const ushort AddressPort = 0xCF8;
    private const ushort DataPort = 0xCFC;
    private const uint Enable = 0x8000_0000;

    private readonly PciBus _bus;
    private volatile uint _address;

    /// <summary>Makes the ports.</summary>
    /// <param name="bus">Bus 0.</param>
    public PciConfigurationPorts(PciBus bus) => _bus = bus;

    /// <inheritdoc/>
    public string Name => "pci-ports";

    /// <inheritdoc/>
    public void Reset() => _address = 0;

    /// <inheritdoc/>
    public uint ReadPort(ushort port, int size)
    {
        if (port == AddressPort && size == 4)
            return _address;
        int lane = port - DataPort;
        uint ones = uint.MaxValue >> (32 - 8 * size);
        if (lane is < 0 or > 3 || (_address & Enable) == 0)
            return ones;
        if (lane % size == 0)
            return _bus.Read(Target(lane), size);
        // An unaligned access takes its bytes one by one, as far as the register goes.
        uint value = 0;
        for (int i = 0; i < size; i++)
            value |= (lane + i < 4 ? _bus.Read(Target(lane + i), 1) : 0xFF) << (8 * i);
        return value;
    }

    /// <inheritdoc/>
    public void WritePort(ushort port, int size, uint value)
    {
        if (port == AddressPort && size == 4)
        {
            // Bits 30..24 and 1..0 are reserved and read as zero.
            _address = value & 0x80FF_FFFC;
            return;
        }
        int lane = port - DataPort;
        if (lane is < 0 or > 3 || (_address & Enable) == 0)
            return;
        if (lane % size == 0)
        {
            _bus.Write(Target(lane), size, value);
            return;
        }
        for (int i = 0; i < size && lane + i < 4; i++)
            _bus.Write(Target(lane + i), 1, value >> (8 * i) & 0xFF);
    }

    private uint Target(int lane)
    {
        uint address = _address;
        // Bus, device and function move up to make room for the 4 KiB of ECAM.
        return (address & 0x00FF_FF00) << 4 | address & 0xFC | (uint)lane;
    }

    /// <inheritdoc/>
    public PciConfigurationPortsSavedState Save() => new() { Address = _address };

    /// <inheritdoc/>
    public void Restore(PciConfigurationPortsSavedState state) => _address = state.Address & 0x80FF_FFFC;
}

/// <summary>The configuration ports at rest.</summary>
[SavedState("pci-ports", 1)]
public sealed record PciConfigurationPortsSavedState
{
    /// <summary>CONFIG_ADDRESS.</summary>
    public uint Address { get; init; }
}

/// <summary>
/// The PCI Express enhanced configuration access mechanism (ECAM): PCI Express base specification 5.0, 7.2.2. A window of 1 MiB
/// for each bus from bus 0 on.
/// <para>Not emulated: accesses that cross a dword are split, which hardware need not do.</para>
/// </summary>
public sealed class PciEcamWindow : IDevice, IMmioDevice
{
    private readonly PciBus _bus;

    /// <summary>Makes a window.</summary>
    /// <param name="bus">Bus 0.</param>
    public PciEcamWindow(PciBus bus) => _bus = bus;

    /// <inheritdoc/>
    public string Name => "pci-ecam";

    /// <inheritdoc/>
    public void Reset()
    {
    }

    /// <inheritdoc/>
    public ulong ReadMmio(ulong offset, int size)
    {
        uint address = (uint)(offset & 0x0FFF_FFFF);
        if (size <= 4 && address % (uint)size == 0)
            return _bus.Read(address, size);
        if (size == 8 && address % 4 == 0)
            return _bus.Read(address, 4) | (ulong)_bus.Read(address + 4, 4) << 32;
        ulong value = 0;
        for (int i = 0; i < size; i++)
            value |= (ulong)_bus.Read(address + (uint)i, 1) << (8 * i);
        return value;
    }

    /// <inheritdoc/>
    public void WriteMmio(ulong offset, int size, ulong value)
    {
        uint address = (uint)(offset & 0x0FFF_FFFF);
        if (size <= 4 && address % (uint)size == 0)
        {
            _bus.Write(address, size, (uint)value);
            return;
        }
        if (size == 8 && address % 4 == 0)
        {
            _bus.Write(address, 4, (uint)value);
            _bus.Write(address + 4, 4, (uint)(value >> 32));
            return;
        }
        for (int i = 0; i < size; i++)
            _bus.Write(address + (uint)i, 1, (uint)(value >> (8 * i)) & 0xFF);
    }
}
