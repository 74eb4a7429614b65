using System.Buffers.Binary;
using Aerostat.Devices;
using Aerostat.Interrupts;
using Aerostat.State;

namespace Aerostat.Chipset;

/// <summary>What a function says it is.</summary>
/// <param name="Vendor">Vendor id.</param>
/// <param name="Device">Device id.</param>
/// <param name="ClassCode">Base class, subclass and interface, 24 bits.</param>
/// <param name="Revision">Revision id.</param>
/// <param name="SubsystemVendor">Subsystem vendor id.</param>
/// <param name="Subsystem">Subsystem id.</param>
public readonly record struct PciIdentity(ushort Vendor, ushort Device, int ClassCode, byte Revision, ushort SubsystemVendor, ushort Subsystem);

/// <summary>
/// A PCI function with memory base address registers, a list of capabilities, MSI-X and one interrupt pin: PCI Local Bus specification 3.0,
/// chapter 6. Devices derive from it and describe themselves in their constructor.
/// <para>Not emulated: I/O base address registers, expansion ROMs, MSI (only MSI-X), power management, error bits of the status register.
/// Clearing bus master holds interrupt messages back; what the device does with memory is its own affair.</para>
/// </summary>
public abstract class PciEndpoint : IDevice, IPciFunction
{
    private const int ConfigSize = 256, CommandOffset = 0x04, StatusOffset = 0x06, BarOffset = 0x10, CapabilityPointer = 0x34, InterruptLine = 0x3C, InterruptPin = 0x3D;
    private const int BarCount = 6;
    private const ushort MemorySpace = 1 << 1, BusMaster = 1 << 2, InterruptDisable = 1 << 10, InterruptStatus = 1 << 3, HasCapabilities = 1 << 4;
    private const byte MsixCapability = 0x11;
    private const ushort MsixEnable = 0x8000, MsixFunctionMask = 0x4000;

    private readonly Lock _lock = new();
    private readonly byte[] _config = new byte[ConfigSize];
    private readonly byte[] _initial = new byte[ConfigSize];
    private readonly byte[] _writable = new byte[ConfigSize];
    private readonly (uint Size, IMmioDevice? Target)[] _bars = new (uint, IMmioDevice?)[BarCount];
    private readonly PciMemorySpace _space;
    private readonly IInterruptLine _pin;
    private int _next = 0x40, _lastCapability = CapabilityPointer, _msix;
    private bool _asserted, _driven;

    /// <summary>Makes a function that has no registers and capabilities yet.</summary>
    /// <param name="name">The device's name.</param>
    /// <param name="identity">What it says it is.</param>
    /// <param name="space">Where its base address registers decode.</param>
    /// <param name="messages">Where MSI-X messages go.</param>
    /// <param name="pin">The wire of INTA#.</param>
    /// <param name="vectors">MSI-X vectors; their table takes base address register 1.</param>
    protected PciEndpoint(string name, PciIdentity identity, PciMemorySpace space, IMessageInterrupts messages, IInterruptLine pin, int vectors)
    {
        Name = name;
        _space = space;
        _pin = pin;
        Span<byte> config = _initial;
        BinaryPrimitives.WriteUInt16LittleEndian(config, identity.Vendor);
        BinaryPrimitives.WriteUInt16LittleEndian(config[2..], identity.Device);
        BinaryPrimitives.WriteUInt16LittleEndian(config[StatusOffset..], HasCapabilities);
        BinaryPrimitives.WriteInt32LittleEndian(config[0x08..], identity.ClassCode << 8 | identity.Revision);
        BinaryPrimitives.WriteUInt16LittleEndian(config[0x2C..], identity.SubsystemVendor);
        BinaryPrimitives.WriteUInt16LittleEndian(config[0x2E..], identity.Subsystem);
        config[InterruptPin] = 1;
        BinaryPrimitives.WriteUInt16LittleEndian(_writable.AsSpan(CommandOffset), MemorySpace | BusMaster | InterruptDisable);
        _writable[0x0C] = 0xFF;
        _writable[InterruptLine] = 0xFF;
        Msix = new MsixTable(vectors, messages);
        AddBar(1, MsixTable.RegionSize, Msix);
        _msix = AddCapability(
            MsixCapability,
            [(byte)(vectors - 1), (byte)((vectors - 1) >> 8), 1, 0, 0, 0, 1 | unchecked((byte)MsixTable.PendingOffset), (byte)(MsixTable.PendingOffset >> 8), 0, 0],
            [0, 0xC0]);
        config.CopyTo(_config);
    }

    /// <inheritdoc/>
    public string Name { get; }

    /// <summary>The function's message-signalled interrupts.</summary>
    protected MsixTable Msix { get; }

    /// <summary>Adds a 32-bit memory base address register.</summary>
    /// <param name="index">0..5; 1 is the MSI-X table's.</param>
    /// <param name="size">A power of two, at least 4 KiB.</param>
    /// <param name="target">What answers there.</param>
    protected void AddBar(int index, uint size, IMmioDevice target)
    {
        if (size < 0x1000 || !uint.IsPow2(size))
            throw new ArgumentOutOfRangeException(nameof(size), size, "a base address register covers a power of two of at least 4096 bytes");
        _bars[index] = (size, target);
        BinaryPrimitives.WriteUInt32LittleEndian(_writable.AsSpan(BarOffset + (4 * index)), ~(size - 1));
    }

    /// <summary>Adds a capability; answers its offset.</summary>
    /// <param name="id">Capability id.</param>
    /// <param name="body">What follows id and pointer.</param>
    /// <param name="writable">Which bits of it can be written; short: none of the rest.</param>
    protected int AddCapability(byte id, ReadOnlySpan<byte> body, ReadOnlySpan<byte> writable = default)
    {
        int at = _next;
        if (at + 2 + body.Length > ConfigSize)
            throw new InvalidOperationException($"{Name}: the capabilities do not fit into configuration space");
        _initial[at] = _config[at] = id;
        body.CopyTo(_initial.AsSpan(at + 2));
        body.CopyTo(_config.AsSpan(at + 2));
        writable.CopyTo(_writable.AsSpan(at + 2));
        int link = _lastCapability == CapabilityPointer ? CapabilityPointer : _lastCapability + 1;
        _initial[link] = _config[link] = (byte)at;
        _lastCapability = at;
        _next = (at + 2 + body.Length + 3) & ~3;
        return at;
    }

    /// <inheritdoc/>
    public virtual void Reset()
    {
        lock (_lock)
        {
            _initial.AsSpan().CopyTo(_config);
            Msix.Reset();
            _asserted = false;
            Update();
        }
    }

    /// <summary>
    /// What firmware does: gives every base address register a place in the windows, from their start on, and lets the function decode.
    /// </summary>
    /// <param name="functions">The functions, in order.</param>
    /// <param name="space">Their windows.</param>
    /// <exception cref="InvalidOperationException">The windows are full.</exception>
    public static void Assign(IEnumerable<PciEndpoint> functions, PciMemorySpace space)
    {
        ulong[] next = [.. space.Windows.Select(w => w.First)];
        foreach (PciEndpoint function in functions)
        {
            for (int i = 0; i < BarCount; i++)
            {
                uint size = function._bars[i].Size;
                if (size == 0)
                    continue;
                int window = -1;
                ulong at = 0;
                for (int w = 0; w < next.Length && window < 0; w++)
                {
                    at = (next[w] + size - 1) & ~(ulong)(size - 1);
                    if (at + size <= space.Windows[w].First + space.Windows[w].Length)
                        window = w;
                }
                if (window < 0)
                    throw new InvalidOperationException("the PCI windows are full");
                next[window] = at + size;
                function.WriteConfig(BarOffset + (4 * i), 4, (uint)at);
            }
            function.WriteConfig(CommandOffset, 2, MemorySpace);
        }
    }

    /// <inheritdoc/>
    public uint ReadConfig(int offset, int size)
    {
        if (offset + size > ConfigSize)
            return 0;
        BeforeConfigRead(offset, size);
        lock (_lock)
        {
            uint value = 0;
            for (int i = 0; i < size; i++)
            {
                byte b = _config[offset + i];
                if (offset + i == StatusOffset && _asserted)
                    b |= (byte)InterruptStatus;
                value |= (uint)b << (8 * i);
            }
            return value;
        }
    }

    /// <inheritdoc/>
    public void WriteConfig(int offset, int size, uint value)
    {
        if (offset + size > ConfigSize)
            return;
        lock (_lock)
        {
            bool registers = false;
            for (int i = 0; i < size; i++)
            {
                int at = offset + i;
                byte mask = _writable[at];
                _config[at] = (byte)((_config[at] & ~mask) | ((byte)(value >> (8 * i)) & mask));
                registers |= at < 0x28 || (at >= _msix && at < _msix + 4);
            }
            if (registers)
                Update();
        }
        AfterConfigWrite(offset, size);
    }

    /// <summary>Configuration space is about to be read there; a device may bring what it shows up to date with <see cref="Poke"/>.</summary>
    protected virtual void BeforeConfigRead(int offset, int size)
    {
    }

    /// <summary>Configuration space has been written there.</summary>
    protected virtual void AfterConfigWrite(int offset, int size)
    {
    }

    /// <summary>Bytes of configuration space as they are now.</summary>
    protected uint Peek(int offset)
    {
        lock (_lock)
            return BinaryPrimitives.ReadUInt32LittleEndian(_config.AsSpan(offset));
    }

    /// <summary>Sets a dword of configuration space, writable or not.</summary>
    protected void Poke(int offset, uint value)
    {
        lock (_lock)
            BinaryPrimitives.WriteUInt32LittleEndian(_config.AsSpan(offset), value);
    }

    /// <summary>What answers behind a base address register and how many bytes there are; null: no such register.</summary>
    protected IMmioDevice? Bar(int index, out uint size)
    {
        size = 0;
        if ((uint)index >= BarCount)
            return null;
        (size, IMmioDevice? target) = _bars[index];
        return target;
    }

    /// <summary>Drives INTA#, unless MSI-X is in use or the guest has switched it off. Any thread.</summary>
    protected void SetPin(bool asserted)
    {
        lock (_lock)
        {
            _asserted = asserted;
            DrivePin();
        }
    }

    /// <summary>The function's registers at rest.</summary>
    protected PciEndpointSavedState SaveEndpoint()
    {
        lock (_lock)
            return new PciEndpointSavedState { Config = [.. _config], MsixTable = Msix.SaveTable(), MsixPending = Msix.SavePending(), PinAsserted = _asserted };
    }

    /// <summary>Puts them back: only what a guest could have written.</summary>
    protected void RestoreEndpoint(PciEndpointSavedState state)
    {
        lock (_lock)
        {
            _initial.AsSpan().CopyTo(_config);
            for (int i = 0; i < Math.Min(state.Config.Length, ConfigSize); i++)
                _config[i] = (byte)((_initial[i] & ~_writable[i]) | (state.Config[i] & _writable[i]));
            Msix.Reset();
            Msix.Restore(state.MsixTable, state.MsixPending);
            _asserted = state.PinAsserted;
            Update();
        }
    }

    // Lock held.
    private void Update()
    {
        ushort command = BinaryPrimitives.ReadUInt16LittleEndian(_config.AsSpan(CommandOffset));
        List<PciMemorySpace.Mapping> mappings = [];
        if ((command & MemorySpace) != 0)
        {
            for (int i = 0; i < BarCount; i++)
                if (_bars[i].Target is { } target)
                    mappings.Add(new(this, BinaryPrimitives.ReadUInt32LittleEndian(_config.AsSpan(BarOffset + (4 * i))), _bars[i].Size, target));
        }
        _space.Replace(this, mappings);
        ushort control = BinaryPrimitives.ReadUInt16LittleEndian(_config.AsSpan(_msix + 2));
        Msix.Configure((control & MsixEnable) != 0, (control & MsixFunctionMask) != 0, (command & BusMaster) != 0);
        DrivePin();
    }

    private void DrivePin()
    {
        bool disabled = (_config[CommandOffset + 1] & InterruptDisable >> 8) != 0;
        bool level = _asserted && !disabled && !Msix.Enabled;
        if (level != _driven)
            _pin.Set(_driven = level);
    }
}

/// <summary>A PCI function at rest.</summary>
[SavedState("pci-endpoint", 1)]
public sealed record PciEndpointSavedState
{
    /// <summary>Configuration space, 256 bytes.</summary>
    public byte[] Config { get; init; } = [];
    /// <summary>MSI-X table.</summary>
    public byte[] MsixTable { get; init; } = [];
    /// <summary>MSI-X pending bits.</summary>
    public ulong[] MsixPending { get; init; } = [];
    /// <summary>The device asks for INTA#, whether the pin is in use or not.</summary>
    public bool PinAsserted { get; init; }
}
