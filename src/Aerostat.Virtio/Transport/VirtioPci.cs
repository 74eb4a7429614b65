using System.Buffers.Binary;
using Aerostat.Chipset;
using Aerostat.Devices;
using Aerostat.Interrupts;
using Aerostat.State;

namespace Aerostat.Virtio;

/// <summary>
/// A virtio device as a PCI function: virtio 1.2, 4.1. Base address register 0 has the common configuration, ISR status, device
/// configuration and notifications, 4 KiB each; 1 has the MSI-X table. Without MSI-X the device uses INTA#.
/// <para>Not emulated: the legacy interface, notification data, shared memory regions, administration queues.</para>
/// </summary>
public sealed class VirtioPci : PciEndpoint, IVirtioInterrupts, ISavable<VirtioPciSavedState>
{
    private const ushort VirtioVendor = 0x1AF4, FirstDeviceId = 0x1040, NoVector = 0xFFFF;
    private const byte VendorSpecific = 0x09;
    private const byte CommonConfig = 1, NotifyConfig = 2, IsrConfig = 3, DeviceConfig = 4, PciConfig = 5;
    private const uint RegionSize = 0x1000, NotifyMultiplier = 4;
    private const uint CommonAt = 0, IsrAt = RegionSize, DeviceAt = 2 * RegionSize, NotifyAt = 3 * RegionSize;
    private const int CommonLength = 0x40;
    private const byte IsrQueue = 1, IsrConfiguration = 2;

    private readonly VirtioDevice _device;
    private readonly Lock _lock = new();
    private readonly ushort[] _queueVectors;
    private readonly int _accessCapability;
    private ushort _configVector = NoVector;
    private uint _deviceFeatureSelect, _driverFeatureSelect;
    private ushort _queueSelect;
    private byte _isr;

    /// <summary>Makes the function.</summary>
    /// <param name="device">What is behind it.</param>
    /// <param name="space">Where its registers decode.</param>
    /// <param name="messages">Where MSI-X messages go.</param>
    /// <param name="pin">The wire of INTA#.</param>
    public VirtioPci(VirtioDevice device, PciMemorySpace space, IMessageInterrupts messages, IInterruptLine pin)
        : base($"{device.Name}-pci", Identify(device), space, messages, pin, Math.Min(device.Queues.Count + 1, MsixTable.MaxVectors))
    {
        _device = device;
        _queueVectors = new ushort[device.Queues.Count];
        AddBar(0, 4 * RegionSize, new Registers(this));
        AddRegion(CommonConfig, CommonAt, CommonLength);
        AddRegion(IsrConfig, IsrAt, 1);
        if (device.ConfigLength > 0)
            AddRegion(DeviceConfig, DeviceAt, (uint)device.ConfigLength);
        AddRegion(NotifyConfig, NotifyAt, (uint)device.Queues.Count * NotifyMultiplier, NotifyMultiplier);
        // Region and data of the access window are written by the driver (4.1.4.9).
        _accessCapability = AddCapability(
            VendorSpecific, Region(PciConfig, 0, 0, 0, 0),
            [0, 0, 0xFF, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF]);
        Array.Fill(_queueVectors, NoVector);
        device.Interrupts = this;
    }

    /// <summary>The device behind the function.</summary>
    public VirtioDevice Device => _device;

    /// <inheritdoc/>
    public override void Reset()
    {
        base.Reset();
        DriverReset();
        lock (_lock)
        {
            _deviceFeatureSelect = _driverFeatureSelect = 0;
            _queueSelect = 0;
        }
    }

    /// <inheritdoc/>
    public void RaiseQueue(int queue)
    {
        lock (_lock)
        {
            if (Msix.Enabled)
                Msix.Raise(_queueVectors[queue]);
            else
                SetPin((_isr |= IsrQueue) != 0);
        }
    }

    /// <inheritdoc/>
    public void RaiseConfiguration()
    {
        lock (_lock)
        {
            if (Msix.Enabled)
                Msix.Raise(_configVector);
            else
                SetPin((_isr |= IsrConfiguration) != 0);
        }
    }

    /// <inheritdoc/>
    public void DriverReset()
    {
        lock (_lock)
        {
            _configVector = NoVector;
            Array.Fill(_queueVectors, NoVector);
            _isr = 0;
            SetPin(false);
        }
    }

    /// <inheritdoc/>
    protected override void BeforeConfigRead(int offset, int size)
    {
        if (InAccessData(offset, size) && Window(out IMmioDevice? target, out uint at, out int length))
            Poke(_accessCapability + 16, (uint)target.ReadMmio(at, length));
    }

    /// <inheritdoc/>
    protected override void AfterConfigWrite(int offset, int size)
    {
        if (InAccessData(offset, size) && Window(out IMmioDevice? target, out uint at, out int length))
            target.WriteMmio(at, length, Peek(_accessCapability + 16) & (uint.MaxValue >> (32 - (8 * length))));
    }

    /// <inheritdoc/>
    public VirtioPciSavedState Save()
    {
        PciEndpointSavedState endpoint = SaveEndpoint();
        lock (_lock)
        {
            return new VirtioPciSavedState
            {
                Endpoint = endpoint,
                ConfigVector = _configVector,
                QueueVectors = [.. _queueVectors],
                DeviceFeatureSelect = _deviceFeatureSelect,
                DriverFeatureSelect = _driverFeatureSelect,
                QueueSelect = _queueSelect,
                Isr = _isr,
            };
        }
    }

    /// <inheritdoc/>
    public void Restore(VirtioPciSavedState state)
    {
        lock (_lock)
        {
            _configVector = Valid(state.ConfigVector);
            for (int i = 0; i < _queueVectors.Length; i++)
                _queueVectors[i] = i < state.QueueVectors.Length ? Valid(state.QueueVectors[i]) : NoVector;
            _deviceFeatureSelect = state.DeviceFeatureSelect;
            _driverFeatureSelect = state.DriverFeatureSelect;
            _queueSelect = state.QueueSelect;
            _isr = (byte)(state.Isr & (IsrQueue | IsrConfiguration));
        }
        RestoreEndpoint(state.Endpoint);
    }

    private static PciIdentity Identify(VirtioDevice device) => new(
        VirtioVendor,
        (ushort)(FirstDeviceId + (ushort)device.Id),
        device.Id switch { VirtioDeviceId.Block => 0x010000, VirtioDeviceId.Console => 0x078000, _ => 0x00FF00 },
        Revision: 1, VirtioVendor, (ushort)(FirstDeviceId + (ushort)device.Id));

    private static byte[] Region(byte type, byte bar, uint offset, uint length, uint? more)
    {
        // Length of the capability, type, register, id, padding, offset, length (4.1.4); more for some.
        byte[] body = new byte[more is null ? 14 : 18];
        body[0] = (byte)(body.Length + 2);
        body[1] = type;
        body[2] = bar;
        BinaryPrimitives.WriteUInt32LittleEndian(body.AsSpan(6), offset);
        BinaryPrimitives.WriteUInt32LittleEndian(body.AsSpan(10), length);
        if (more is { } value)
            BinaryPrimitives.WriteUInt32LittleEndian(body.AsSpan(14), value);
        return body;
    }

    private void AddRegion(byte type, uint offset, uint length, uint? more = null) => AddCapability(VendorSpecific, Region(type, 0, offset, length, more));

    private ushort Valid(ushort vector) => vector < Msix.Vectors ? vector : NoVector;

    private bool InAccessData(int offset, int size) => offset < _accessCapability + 20 && offset + size > _accessCapability + 16;

    private bool Window([System.Diagnostics.CodeAnalysis.NotNullWhen(true)] out IMmioDevice? target, out uint at, out int length)
    {
        target = Bar((int)(Peek(_accessCapability + 4) & 0xFF), out uint size);
        at = Peek(_accessCapability + 8);
        length = (int)Math.Min(Peek(_accessCapability + 12), 16);
        return target is not null && length is 1 or 2 or 4 && at % (uint)length == 0 && at < size;
    }

    private ulong ReadCommon(ulong offset, int size)
    {
        Span<byte> image = stackalloc byte[CommonLength + 8];
        image.Clear();
        uint deviceSelect, driverSelect;
        ushort select, queueVector = NoVector, configVector;
        lock (_lock)
        {
            (deviceSelect, driverSelect, select, configVector) = (_deviceFeatureSelect, _driverFeatureSelect, _queueSelect, _configVector);
            if (select < _queueVectors.Length)
                queueVector = _queueVectors[select];
        }
        BinaryPrimitives.WriteUInt32LittleEndian(image, deviceSelect);
        BinaryPrimitives.WriteUInt32LittleEndian(image[0x04..], deviceSelect > 1 ? 0 : (uint)(_device.OfferedFeatures >> (32 * (int)deviceSelect)));
        BinaryPrimitives.WriteUInt32LittleEndian(image[0x08..], driverSelect);
        BinaryPrimitives.WriteUInt32LittleEndian(image[0x0C..], _device.DriverFeatures(driverSelect));
        BinaryPrimitives.WriteUInt16LittleEndian(image[0x10..], configVector);
        BinaryPrimitives.WriteUInt16LittleEndian(image[0x12..], (ushort)_device.Queues.Count);
        image[0x14] = (byte)_device.Status;
        image[0x15] = _device.ConfigGeneration;
        BinaryPrimitives.WriteUInt16LittleEndian(image[0x16..], select);
        if (_device.QueueAt(select) is { } queue)
        {
            lock (_device.Gate)
            {
                BinaryPrimitives.WriteUInt16LittleEndian(image[0x18..], queue.Size);
                BinaryPrimitives.WriteUInt16LittleEndian(image[0x1A..], queueVector);
                image[0x1C] = queue.Enabled && !queue.ResetPending ? (byte)1 : (byte)0;
                BinaryPrimitives.WriteUInt16LittleEndian(image[0x1E..], select);
                BinaryPrimitives.WriteUInt64LittleEndian(image[0x20..], queue.Descriptors);
                BinaryPrimitives.WriteUInt64LittleEndian(image[0x28..], queue.Driver);
                BinaryPrimitives.WriteUInt64LittleEndian(image[0x30..], queue.DeviceArea);
                image[0x3A] = queue.ResetPending ? (byte)1 : (byte)0;
            }
        }
        return offset >= CommonLength ? 0 : BinaryPrimitives.ReadUInt64LittleEndian(image[(int)offset..]) & (ulong.MaxValue >> (64 - (8 * size)));
    }

    private void WriteCommon(ulong offset, int size, ulong value)
    {
        // The two halves of an address may be written one by one, and no other field is as wide.
        if (size == 8 && (offset & 7) == 0)
        {
            WriteCommon(offset, 4, (uint)value);
            WriteCommon(offset + 4, 4, value >> 32);
            return;
        }
        ushort select;
        lock (_lock)
            select = _queueSelect;
        switch (offset, size)
        {
            case (0x00, 4):
                lock (_lock)
                    _deviceFeatureSelect = (uint)value;
                break;
            case (0x08, 4):
                lock (_lock)
                    _driverFeatureSelect = (uint)value;
                break;
            case (0x0C, 4):
                uint half;
                lock (_lock)
                    half = _driverFeatureSelect;
                _device.SetDriverFeatures(half, (uint)value);
                break;
            case (0x10, 2):
                lock (_lock)
                    _configVector = Valid((ushort)value);
                break;
            case (0x14, 1):
                _device.WriteStatus((byte)value);
                break;
            case (0x16, 2):
                lock (_lock)
                    _queueSelect = (ushort)value;
                break;
            case (0x18, 2):
                _device.ConfigureQueue(select, static (q, v) => q.Size = (ushort)v, value);
                break;
            case (0x1A, 2):
                lock (_lock)
                {
                    if (select < _queueVectors.Length)
                        _queueVectors[select] = Valid((ushort)value);
                }
                break;
            case (0x1C, 2) when value == 1:
                _device.EnableQueue(select);
                break;
            case (0x20, 4):
                _device.ConfigureQueue(select, static (q, v) => q.Descriptors = (q.Descriptors & ~0xFFFF_FFFFUL) | v, value);
                break;
            case (0x24, 4):
                _device.ConfigureQueue(select, static (q, v) => q.Descriptors = (uint)q.Descriptors | (v << 32), value);
                break;
            case (0x28, 4):
                _device.ConfigureQueue(select, static (q, v) => q.Driver = (q.Driver & ~0xFFFF_FFFFUL) | v, value);
                break;
            case (0x2C, 4):
                _device.ConfigureQueue(select, static (q, v) => q.Driver = (uint)q.Driver | (v << 32), value);
                break;
            case (0x30, 4):
                _device.ConfigureQueue(select, static (q, v) => q.DeviceArea = (q.DeviceArea & ~0xFFFF_FFFFUL) | v, value);
                break;
            case (0x34, 4):
                _device.ConfigureQueue(select, static (q, v) => q.DeviceArea = (uint)q.DeviceArea | (v << 32), value);
                break;
            case (0x3A, 2) when value == 1 && _device.HasFeature(VirtioFeatures.RingReset):
                _device.ResetQueue(select);
                break;
        }
    }

    private byte TakeIsr()
    {
        lock (_lock)
        {
            byte value = _isr;
            _isr = 0;
            SetPin(false);
            return value;
        }
    }

    /// <summary>Base address register 0.</summary>
    private sealed class Registers(VirtioPci owner) : IMmioDevice, IDoorbellTarget
    {
        public IReadOnlyList<ulong> DoorbellOffsets { get; } = [.. Enumerable.Range(0, owner._device.Queues.Count).Select(i => NotifyAt + ((ulong)i * NotifyMultiplier))];

        public ulong ReadMmio(ulong offset, int size) => (offset & ~(ulong)(RegionSize - 1)) switch
        {
            CommonAt => owner.ReadCommon(offset, size),
            IsrAt => offset == IsrAt ? owner.TakeIsr() : 0UL,
            DeviceAt => owner._device.ReadConfig(offset - DeviceAt, size),
            _ => 0,
        };

        public void WriteMmio(ulong offset, int size, ulong value)
        {
            switch (offset & ~(ulong)(RegionSize - 1))
            {
                case CommonAt:
                    owner.WriteCommon(offset, size, value);
                    break;
                case DeviceAt:
                    owner._device.WriteConfig(offset - DeviceAt, size, value);
                    break;
                case NotifyAt:
                    owner._device.Notify((uint)((offset - NotifyAt) / NotifyMultiplier));
                    break;
            }
        }
    }
}

/// <summary>The PCI transport of a virtio device at rest.</summary>
[SavedState("virtio-pci", 1)]
public sealed record VirtioPciSavedState
{
    /// <summary>The function's registers.</summary>
    public PciEndpointSavedState Endpoint { get; init; } = new();
    /// <summary>MSI-X vector of configuration changes.</summary>
    public ushort ConfigVector { get; init; }
    /// <summary>MSI-X vector of each queue.</summary>
    public ushort[] QueueVectors { get; init; } = [];
    /// <summary>device_feature_select.</summary>
    public uint DeviceFeatureSelect { get; init; }
    /// <summary>driver_feature_select.</summary>
    public uint DriverFeatureSelect { get; init; }
    /// <summary>queue_select.</summary>
    public ushort QueueSelect { get; init; }
    /// <summary>ISR status.</summary>
    public byte Isr { get; init; }
}
