namespace Aerostat.Guest.Drivers;

/// <summary>How a driver gets at a virtio device (virtio 1.2, chapter 4).</summary>
public abstract class VirtioTransport
{
    public const uint Acknowledge = 1, Driver = 2, DriverOk = 4, FeaturesOk = 8, NeedsReset = 0x40, Failed = 0x80;
    public const ulong Version1 = 1UL << 32;

    /// <summary>"PCI", "VMware".</summary>
    public abstract string Name { get; }

    public abstract uint Status { get; set; }

    public abstract ulong Offered { get; }

    public abstract void Accept(ulong features);

    /// <summary>A queue with the most buffers that the device takes, up to <paramref name="most"/>; null: there is no such queue, or no memory for it.</summary>
    public abstract DriverQueue? OpenQueue(int index, int most);

    public abstract uint ReadConfig(int offset);

    /// <summary>Changes when the configuration does (virtio 1.2, 2.5.2); -1: the device does not tell.</summary>
    public virtual int Generation => -1;

    public abstract void WriteConfig(int offset, uint value);

    /// <summary>Buffers come back at once, and no interrupt says so.</summary>
    public virtual bool AnswersAtOnce => false;

    /// <summary>The host has forgotten what it was told, and wants everything given up and begun anew.</summary>
    public virtual bool ResetPending => (Status & NeedsReset) != 0;

    /// <summary>The driver has given everything up.</summary>
    /// <returns>True: the driver has to negotiate again; false: the transport has begun anew by itself.</returns>
    public virtual bool CompleteReset() => true;

    /// <summary>Called about ten times a second, for transports that have to ask.</summary>
    public virtual void Poll()
    {
    }

    /// <summary>Resets the device; false: it does not come out of it.</summary>
    public bool Reset(DriverPlatform platform)
    {
        const ulong Limit = 1_000_000_000;
        Status = 0;
        ulong begun = platform.Nanoseconds;
        while (Status != 0)
            if (platform.Nanoseconds - begun > Limit)
                return false;
        return true;
    }
}
