using Aerostat.Devices;
using Aerostat.Interrupts;
using Aerostat.State;

namespace Aerostat.Virtio;

/// <summary>
/// A virtio device behind memory-mapped registers and one interrupt: virtio 1.2, 4.2 (version 2). Nothing finds such a device by itself: it
/// is described in the DSDT, or on the kernel's command line.
/// <para>Not emulated: the legacy interface, shared memory regions (they read as absent).</para>
/// </summary>
public sealed class VirtioMmio : IDevice, IMmioDevice, IVirtioInterrupts, ISavable<VirtioMmioSavedState>
{
    /// <summary>Bytes of registers, configuration space included.</summary>
    public const ulong RegionSize = 0x1000;

    private const uint Magic = 0x7472_6976, Version = 2, Vendor = 0x4F52_4541, AbsentLength = uint.MaxValue;
    private const ulong ConfigAt = 0x100, NotifyAt = 0x050;
    private const uint InterruptQueue = 1, InterruptConfiguration = 2;

    private readonly VirtioDevice _device;
    private readonly IInterruptLine _line;
    private readonly Lock _lock = new();
    private uint _deviceFeatureSelect, _driverFeatureSelect, _queueSelect, _interrupts;

    /// <summary>Makes the registers.</summary>
    /// <param name="device">What is behind them.</param>
    /// <param name="line">The interrupt.</param>
    /// <param name="address">Where they are, for <paramref name="doorbells"/>.</param>
    /// <param name="doorbells">Passes notifications on; null: they come as writes.</param>
    public VirtioMmio(VirtioDevice device, IInterruptLine line, ulong address = 0, IDoorbells? doorbells = null)
    {
        _device = device;
        _line = line;
        device.Interrupts = this;
        for (uint i = 0; i < device.Queues.Count; i++)
        {
            uint queue = i;
            _ = doorbells?.Attach(address + NotifyAt, 4, queue, () => device.Notify(queue));
        }
    }

    /// <inheritdoc/>
    public string Name => $"{_device.Name}-mmio";

    /// <summary>The device behind the registers.</summary>
    public VirtioDevice Device => _device;

    /// <inheritdoc/>
    public void Reset()
    {
        lock (_lock)
        {
            _deviceFeatureSelect = _driverFeatureSelect = _queueSelect = 0;
            Drive(0);
        }
    }

    /// <inheritdoc/>
    public void RaiseQueue(int queue) => Raise(InterruptQueue);

    /// <inheritdoc/>
    public void RaiseConfiguration() => Raise(InterruptConfiguration);

    /// <inheritdoc/>
    public void DriverReset()
    {
        lock (_lock)
            Drive(0);
    }

    /// <inheritdoc/>
    public ulong ReadMmio(ulong offset, int size)
    {
        if (offset >= ConfigAt)
            return _device.ReadConfig(offset - ConfigAt, size);
        if (size != 4 || (offset & 3) != 0)
            return 0;
        uint select, deviceSelect, interrupts;
        lock (_lock)
            (select, deviceSelect, interrupts) = (_queueSelect, _deviceFeatureSelect, _interrupts);
        switch (offset)
        {
            case 0x000:
                return Magic;
            case 0x004:
                return Version;
            case 0x008:
                return (uint)_device.Id;
            case 0x00C:
                return Vendor;
            case 0x010:
                return deviceSelect > 1 ? 0 : (uint)(_device.OfferedFeatures >> (32 * (int)deviceSelect));
            case 0x034:
                return _device.QueueAt(select)?.MaxSize ?? 0u;
            case 0x044:
                lock (_device.Gate)
                    return _device.QueueAt(select) is { Enabled: true, ResetPending: false } ? 1u : 0;
            case 0x060:
                return interrupts;
            case 0x070:
                return (uint)_device.Status;
            case 0x0B0 or 0x0B4 or 0x0B8 or 0x0BC:
                return AbsentLength;
            case 0x0C0:
                lock (_device.Gate)
                    return _device.QueueAt(select) is { ResetPending: true } ? 1u : 0;
            case 0x0FC:
                return _device.ConfigGeneration;
            default:
                return 0;
        }
    }

    /// <inheritdoc/>
    public void WriteMmio(ulong offset, int size, ulong value)
    {
        if (offset >= ConfigAt)
        {
            _device.WriteConfig(offset - ConfigAt, size, value);
            return;
        }
        if (size != 4 || (offset & 3) != 0)
            return;
        uint select, driverSelect;
        lock (_lock)
            (select, driverSelect) = (_queueSelect, _driverFeatureSelect);
        switch (offset)
        {
            case 0x014:
                lock (_lock)
                    _deviceFeatureSelect = (uint)value;
                break;
            case 0x020:
                _device.SetDriverFeatures(driverSelect, (uint)value);
                break;
            case 0x024:
                lock (_lock)
                    _driverFeatureSelect = (uint)value;
                break;
            case 0x030:
                lock (_lock)
                    _queueSelect = (uint)value;
                break;
            case 0x038:
                _device.ConfigureQueue(select, static (q, v) => q.Size = (ushort)Math.Min(v, ushort.MaxValue), value);
                break;
            case 0x044 when value == 1:
                _device.EnableQueue(select);
                break;
            case 0x044 when value == 0:
                // A driver that gives a queue up (4.2.3.2): without a reset of the device, but it must not be used any more.
                _device.ResetQueue(select);
                break;
            case NotifyAt:
                _device.Notify((uint)value);
                break;
            case 0x064:
                lock (_lock)
                    Drive(_interrupts & ~(uint)value);
                break;
            case 0x070:
                _device.WriteStatus((byte)value);
                break;
            case 0x080:
                _device.ConfigureQueue(select, static (q, v) => q.Descriptors = (q.Descriptors & ~0xFFFF_FFFFUL) | v, value);
                break;
            case 0x084:
                _device.ConfigureQueue(select, static (q, v) => q.Descriptors = (uint)q.Descriptors | (v << 32), value);
                break;
            case 0x090:
                _device.ConfigureQueue(select, static (q, v) => q.Driver = (q.Driver & ~0xFFFF_FFFFUL) | v, value);
                break;
            case 0x094:
                _device.ConfigureQueue(select, static (q, v) => q.Driver = (uint)q.Driver | (v << 32), value);
                break;
            case 0x0A0:
                _device.ConfigureQueue(select, static (q, v) => q.DeviceArea = (q.DeviceArea & ~0xFFFF_FFFFUL) | v, value);
                break;
            case 0x0A4:
                _device.ConfigureQueue(select, static (q, v) => q.DeviceArea = (uint)q.DeviceArea | (v << 32), value);
                break;
            case 0x0C0 when value == 1 && _device.HasFeature(VirtioFeatures.RingReset):
                _device.ResetQueue(select);
                break;
        }
    }

    /// <inheritdoc/>
    public VirtioMmioSavedState Save()
    {
        lock (_lock)
        {
            return new VirtioMmioSavedState
            {
                DeviceFeatureSelect = _deviceFeatureSelect,
                DriverFeatureSelect = _driverFeatureSelect,
                QueueSelect = _queueSelect,
                Interrupts = _interrupts,
            };
        }
    }

    /// <inheritdoc/>
    public void Restore(VirtioMmioSavedState state)
    {
        lock (_lock)
        {
            _deviceFeatureSelect = state.DeviceFeatureSelect;
            _driverFeatureSelect = state.DriverFeatureSelect;
            _queueSelect = state.QueueSelect;
            _interrupts = state.Interrupts & (InterruptQueue | InterruptConfiguration);
            // No new edge: an edge that was there before is in the controller's state.
            _line.Set(_interrupts != 0);
        }
    }

    private void Raise(uint cause)
    {
        lock (_lock)
            Drive(_interrupts | cause);
    }

    // Where the interrupt is edge-triggered (described on the command line), each new cause, and each that is left after others were
    // acknowledged, must make an edge; where it is level-triggered the gap does no harm. Lock held.
    private void Drive(uint interrupts)
    {
        _interrupts = interrupts;
        _line.Set(false);
        if (interrupts != 0)
            _line.Set(true);
    }
}

/// <summary>The memory-mapped transport of a virtio device at rest.</summary>
[SavedState("virtio-mmio", 1)]
public sealed record VirtioMmioSavedState
{
    /// <summary>DeviceFeaturesSel.</summary>
    public uint DeviceFeatureSelect { get; init; }
    /// <summary>DriverFeaturesSel.</summary>
    public uint DriverFeatureSelect { get; init; }
    /// <summary>QueueSel.</summary>
    public uint QueueSelect { get; init; }
    /// <summary>InterruptStatus.</summary>
    public uint Interrupts { get; init; }
}
