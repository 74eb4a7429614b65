namespace Aerostat.Virtio;

/// <summary>Device types (virtio 1.2, chapter 5).</summary>
public enum VirtioDeviceId : ushort
{
    /// <summary>Block device.</summary>
    Block = 2,
    /// <summary>Console.</summary>
    Console = 3,
    /// <summary>Entropy source.</summary>
    Entropy = 4,
    /// <summary>Memory balloon.</summary>
    Balloon = 5,
}

/// <summary>Bits of the device status field (virtio 1.2, 2.1).</summary>
[Flags]
public enum VirtioStatus : byte
{
    /// <summary>The driver's first contact; a reset leaves this.</summary>
    None = 0,
    /// <summary>ACKNOWLEDGE: the guest has seen the device.</summary>
    Acknowledge = 1,
    /// <summary>DRIVER: it has a driver for it.</summary>
    Driver = 2,
    /// <summary>DRIVER_OK: the driver is ready.</summary>
    DriverOk = 4,
    /// <summary>FEATURES_OK: both agree on features.</summary>
    FeaturesOk = 8,
    /// <summary>DEVICE_NEEDS_RESET: the device met something it cannot go on from.</summary>
    NeedsReset = 0x40,
    /// <summary>FAILED: the driver gave up.</summary>
    Failed = 0x80,
}

/// <summary>Feature bits that every device shares (virtio 1.2, chapter 6).</summary>
public static class VirtioFeatures
{
    /// <summary>VIRTIO_F_INDIRECT_DESC.</summary>
    public const ulong IndirectDescriptors = 1UL << 28;
    /// <summary>VIRTIO_F_EVENT_IDX.</summary>
    public const ulong EventIndex = 1UL << 29;
    /// <summary>VIRTIO_F_VERSION_1; a driver without it is not served.</summary>
    public const ulong Version1 = 1UL << 32;
    /// <summary>VIRTIO_F_RING_PACKED.</summary>
    public const ulong RingPacked = 1UL << 34;
    /// <summary>VIRTIO_F_RING_RESET.</summary>
    public const ulong RingReset = 1UL << 40;

    /// <summary>What every device offers.</summary>
    public const ulong Common = IndirectDescriptors | EventIndex | Version1 | RingReset;
}
