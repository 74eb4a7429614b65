namespace Aerostat.Guest.Drivers;

/// <summary>A split virtqueue (virtio 1.2, 2.7), without indirect descriptors and event indices.</summary>
public sealed class SplitQueue : DriverQueue
{
    private const ushort Next = 1, DeviceWrites = 2;
    private const uint Free = 0xFFFF_FFFF;

    private readonly DriverPlatform platform;
    private readonly VirtioTransport transport;
    private readonly ushort size;
    // Of the first descriptor of a buffer in the device's hands: what the driver calls it, and how many descriptors it has.
    private readonly uint[] tokens;
    private readonly ushort[] lengths;
    // Our own links between descriptors, kept where the device cannot change them.
    private readonly ushort[] links;
    private readonly ushort[] free;
    private readonly ulong notify;
    private readonly int index;
    private int freeCount;
    private ushort available;
    private ushort seen;
    private bool broken;

    /// <summary>Lays a queue out in memory that is zero: descriptors, then the driver's ring, then the device's.</summary>
    public SplitQueue(DriverPlatform platform, VirtioTransport transport, int index, ushort size, ulong memory, ulong notify)
    {
        this.platform = platform;
        this.transport = transport;
        this.index = index;
        this.size = size;
        this.notify = notify;
        Descriptors = memory;
        DriverArea = memory + (16u * size);
        DeviceArea = (DriverArea + 6 + (2u * size) + 63) & ~63UL;
        tokens = new uint[size];
        lengths = new ushort[size];
        links = new ushort[size];
        free = new ushort[size];
        Clear();
    }

    public int Size => size;

    public ulong Descriptors { get; }

    public ulong DriverArea { get; }

    public ulong DeviceArea { get; }

    public override int Room => freeCount;

    public override bool IsBroken => broken;

    /// <summary>Bytes that a queue of a size takes.</summary>
    public static ulong BytesFor(int size) => (ulong)((16 * size) + 6 + (2 * size) + 63 + 6 + (8 * size));

    /// <summary>Empties the queue, of which the device has forgotten everything.</summary>
    public void Clear()
    {
        for (ulong at = 0; at < BytesFor(size); at += 8)
            platform.Write64(Descriptors + at, 0);
        for (int i = 0; i < size; i++)
        {
            tokens[i] = Free;
            free[i] = (ushort)i;
        }
        freeCount = size;
        available = seen = 0;
        broken = false;
    }

    public override bool Add(uint token, ulong readable, uint readableLength, ulong writable, uint writableLength)
    {
        int count = (readableLength != 0 ? 1 : 0) + (writableLength != 0 ? 1 : 0);
        if (broken || count == 0 || freeCount < count)
            return false;
        if (count == 2)
        {
            ushort second = Take();
            ushort first = Take();
            Write(first, readable, readableLength, Next, second);
            Write(second, writable, writableLength, DeviceWrites, 0);
            Publish(first, token, 2);
            return true;
        }
        ushort only = Take();
        if (readableLength != 0)
            Write(only, readable, readableLength, 0, 0);
        else
            Write(only, writable, writableLength, DeviceWrites, 0);
        Publish(only, token, 1);
        return true;
    }

    public override bool AddParts(uint token, ulong[] addresses, uint[] partLengths, int readable, int count)
    {
        if (broken || count == 0 || freeCount < count)
            return false;
        ushort next = 0;
        for (int i = count - 1; i >= 0; i--)
        {
            ushort at = Take();
            Write(at, addresses[i], partLengths[i], (ushort)((i >= readable ? DeviceWrites : 0) | (i < count - 1 ? Next : 0)), next);
            next = at;
        }
        Publish(next, token, (ushort)count);
        return true;
    }

    public override void Kick()
    {
        platform.Fence();
        // VIRTQ_USED_F_NO_NOTIFY (2.7.10).
        if ((platform.Read(DeviceArea, 2) & 1) == 0)
            platform.WriteRegister(notify, 2, (uint)index);
    }

    public override bool TryTake(out uint token)
    {
        token = 0;
        ushort used = (ushort)platform.Read(DeviceArea + 2, 2);
        if (broken || used == seen)
            return false;
        platform.Fence();
        uint id = platform.Read(DeviceArea + 4 + (8u * (uint)(seen % size)), 4);
        // The device names a buffer that it does not have: nothing it says of this queue can be believed.
        if (id >= size || tokens[id] == Free || (ushort)(used - seen) > size)
        {
            broken = true;
            platform.Log("virtio: the device answered garbage on queue ", (ulong)index);
            transport.Status |= VirtioTransport.Failed;
            return false;
        }
        seen++;
        token = tokens[id];
        tokens[id] = Free;
        ushort at = (ushort)id;
        for (int i = lengths[id]; i > 0; i--)
        {
            free[freeCount++] = at;
            at = links[at];
        }
        return true;
    }

    private ushort Take() => free[--freeCount];

    private void Write(ushort at, ulong address, uint length, ushort flags, ushort next)
    {
        ulong descriptor = Descriptors + (16u * at);
        platform.Write64(descriptor, address);
        platform.Write(descriptor + 8, 4, length);
        platform.Write(descriptor + 12, 2, flags);
        platform.Write(descriptor + 14, 2, next);
        links[at] = next;
    }

    private void Publish(ushort first, uint token, ushort count)
    {
        tokens[first] = token;
        lengths[first] = count;
        platform.Write(DriverArea + 4 + (2u * (uint)(available % size)), 2, first);
        available++;
        platform.Fence();
        platform.Write(DriverArea + 2, 2, available);
    }
}
