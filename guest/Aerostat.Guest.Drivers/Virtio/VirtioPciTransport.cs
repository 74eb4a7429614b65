namespace Aerostat.Guest.Drivers;

/// <summary>A virtio device on PCI, without the legacy interface (virtio 1.2, 4.1). All its interrupts are one message.</summary>
public sealed class VirtioPciTransport : VirtioTransport
{
    public const ushort Vendor = 0x1AF4;

    private const ushort FirstModern = 0x1040, FirstTransitional = 0x1000, NoVector = 0xFFFF;
    private const int MostQueues = 8;
    private const byte VendorSpecific = 9;
    private const int CommonConfig = 1, NotifyConfig = 2, DeviceConfig = 4;

    private readonly DriverPlatform platform;
    private readonly PciFunction function;
    // Kept over resets.
    private readonly SplitQueue?[] queues = new SplitQueue?[MostQueues];
    private ulong common;
    private ulong notify;
    private ulong device;
    private uint notifyMultiplier;
    private bool messages;

    private VirtioPciTransport(DriverPlatform platform, PciFunction function)
    {
        this.platform = platform;
        this.function = function;
    }

    public override string Name => "PCI";

    /// <summary>Whether the device interrupts; otherwise it has to be polled.</summary>
    public bool Interrupts => messages;

    public override uint Status
    {
        get => platform.ReadRegister(common + 20, 1);
        set => platform.WriteRegister(common + 20, 1, value);
    }

    public override ulong Offered
    {
        get
        {
            platform.WriteRegister(common, 4, 1);
            ulong high = platform.ReadRegister(common + 4, 4);
            platform.WriteRegister(common, 4, 0);
            return (high << 32) | platform.ReadRegister(common + 4, 4);
        }
    }

    /// <summary>The virtio device type behind a function, or 0: of a transitional one, its subsystem tells (4.1.2.1).</summary>
    public static int TypeOf(PciFunction function)
    {
        if (function.Vendor != Vendor)
            return 0;
        ushort id = function.Device;
        return id >= FirstModern && id < FirstModern + 64 ? id - FirstModern : id >= FirstTransitional && id < FirstModern ? (int)function.Read(0x2E, 2) : 0;
    }

    /// <summary>Finds the structures of a device; null: they are not all there.</summary>
    public static VirtioPciTransport? Open(DriverPlatform platform, PciFunction function)
    {
        VirtioPciTransport transport = new(platform, function);
        for (int at = function.FindCapability(VendorSpecific, 0); at != 0; at = function.FindCapability(VendorSpecific, at))
        {
            ulong window = function.BaseAddress((int)(function.Read(at + 4, 1) % 6));
            if (window == 0)
                continue;
            ulong address = window + function.Read(at + 8, 4);
            switch (function.Read(at + 3, 1))
            {
                case CommonConfig when transport.common == 0:
                    transport.common = address;
                    break;
                case NotifyConfig when transport.notify == 0:
                    transport.notify = address;
                    transport.notifyMultiplier = function.Read(at + 16, 4);
                    break;
                case DeviceConfig when transport.device == 0:
                    transport.device = address;
                    break;
            }
        }
        if (transport.common == 0 || transport.notify == 0)
            return null;
        function.Enable();
        return transport;
    }

    public override void Accept(ulong features)
    {
        platform.WriteRegister(common + 8, 4, 0);
        platform.WriteRegister(common + 12, 4, (uint)features);
        platform.WriteRegister(common + 8, 4, 1);
        platform.WriteRegister(common + 12, 4, (uint)(features >> 32));
        // Vectors are taken after reset, and before the queues.
        messages = function.EnableMessages();
        platform.WriteRegister(common + 16, 2, messages ? 0u : NoVector);
    }

    public override DriverQueue? OpenQueue(int index, int most)
    {
        if (index >= MostQueues)
            return null;
        platform.WriteRegister(common + 22, 2, (uint)index);
        uint size = platform.ReadRegister(common + 24, 2);
        while (size > most)
            size >>= 1;
        if (size == 0)
            return null;
        SplitQueue? queue = queues[index];
        if (queue is null || queue.Size != size)
        {
            int order = 0;
            while ((ulong)DriverPlatform.PageSize << order < SplitQueue.BytesFor((int)size))
                order++;
            ulong memory = platform.AllocatePages(order);
            if (memory == 0)
                return null;
            queues[index] = queue = new SplitQueue(platform, this, index, (ushort)size, memory, notify + (platform.ReadRegister(common + 30, 2) * notifyMultiplier));
        }
        queue.Clear();
        platform.WriteRegister(common + 24, 2, size);
        platform.WriteRegister(common + 26, 2, messages ? 0u : NoVector);
        Write64(common + 32, queue.Descriptors);
        Write64(common + 40, queue.DriverArea);
        Write64(common + 48, queue.DeviceArea);
        platform.WriteRegister(common + 28, 2, 1);
        return queue;
    }

    public override int Generation => (int)platform.ReadRegister(common + 21, 1);

    public override uint ReadConfig(int offset) => device == 0 ? 0 : platform.ReadRegister(device + (uint)offset, 4);

    public override void WriteConfig(int offset, uint value)
    {
        if (device != 0)
            platform.WriteRegister(device + (uint)offset, 4, value);
    }

    private void Write64(ulong address, ulong value)
    {
        platform.WriteRegister(address, 4, (uint)value);
        platform.WriteRegister(address + 4, 4, (uint)(value >> 32));
    }
}
