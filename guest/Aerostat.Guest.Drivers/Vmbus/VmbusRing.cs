namespace Aerostat.Guest.Drivers;

/// <summary>
/// One direction of a channel: a page with two indices, then pages with packets (Linux, include/linux/hyperv.h, struct hv_ring_buffer). The index of one's own
/// is kept here; what the page says of it is for the other side.
/// </summary>
public abstract class VmbusRing
{
    protected const uint WriteIndex = 0, ReadIndex = 4, InterruptMask = 8, PendingSize = 12, Features = 64;
    protected const uint DescriptorSize = 16, TrailerSize = 8, HonoursPendingSize = 1;
    protected const ushort DataPacket = 6;

    private readonly DriverPlatform platform;
    private readonly ulong control;

    protected VmbusRing(DriverPlatform platform, ulong memory, int pages)
    {
        this.platform = platform;
        control = memory;
        Size = (uint)(pages - 1) * DriverPlatform.PageSize;
    }

    /// <summary>Bytes of packets.</summary>
    public uint Size { get; }

    /// <summary>The other side wrote what makes no sense, and nothing of this ring is believed any more.</summary>
    public bool IsBroken { get; protected set; }

    protected DriverPlatform Platform => platform;

    protected uint Control(uint field) => platform.Read(control + field, 4);

    protected void SetControl(uint field, uint value) => platform.Write(control + field, 4, value);

    protected ulong At(uint index) => control + DriverPlatform.PageSize + index;

    protected uint Wrap(uint index) => index >= Size ? index - Size : index;

    protected uint Distance(uint from, uint to) => to >= from ? to - from : to + Size - from;

    protected bool IsIndex(uint value) => value < Size && (value & 7) == 0;

    /// <summary>Empties the ring; the other side does not know of it yet.</summary>
    public virtual void Clear()
    {
        for (uint at = 0; at < DriverPlatform.PageSize; at += 8)
            platform.Write64(control + at, 0);
        SetControl(Features, HonoursPendingSize);
        IsBroken = false;
    }
}

/// <summary>What the host sends.</summary>
public sealed class VmbusReader(DriverPlatform platform, ulong memory, int pages) : VmbusRing(platform, memory, pages)
{
    private uint read;

    public override void Clear()
    {
        base.Clear();
        read = 0;
    }

    /// <summary>Takes the next packet; false: there is none, or the ring is broken.</summary>
    /// <param name="to">Takes the payload.</param>
    /// <param name="length">Bytes of it, with what it is padded with; 0: it is no data, or does not fit, and was passed over.</param>
    /// <param name="transaction">The sender's number.</param>
    /// <param name="wakesWriter">The host waits for room, has it now, and is to be signalled.</param>
    public bool TryTake(byte[] to, out int length, out ulong transaction, out bool wakesWriter)
    {
        length = 0;
        transaction = 0;
        wakesWriter = false;
        if (IsBroken)
            return false;
        uint end = Control(WriteIndex);
        // What lies before the index was written before it.
        Platform.Fence();
        uint available = IsIndex(end) ? Distance(read, end) : 1;
        if (available == 0)
            return false;
        ulong head = available < DescriptorSize + TrailerSize ? 0 : Platform.Read64(At(read));
        uint start = (uint)(head >> 16 & 0xFFFF) * 8, total = (uint)(head >> 32 & 0xFFFF) * 8;
        if (start < DescriptorSize || total < start || total > available - TrailerSize)
        {
            IsBroken = true;
            return false;
        }
        transaction = Platform.Read64(At(Wrap(read + 8)));
        uint payload = total - start;
        if ((ushort)head == DataPacket && payload <= to.Length)
        {
            length = (int)payload;
            uint from = Wrap(read + start), first = System.Math.Min(payload, Size - from);
            Platform.CopyOut(At(from), to, 0, (int)first);
            Platform.CopyOut(At(0), to, (int)first, (int)(payload - first));
        }
        uint taken = total + TrailerSize;
        read = Wrap(read + taken);
        // The copies are made before the host may write there again.
        Platform.Fence();
        SetControl(ReadIndex, read);
        // The host says what it waits for, then looks at the index; here it is the other way round. The next look at its index comes after this one too.
        Platform.Fence();
        uint wanted = Control(PendingSize);
        if (wanted != 0 && wanted <= Size)
        {
            uint now = Control(WriteIndex), free = IsIndex(now) ? Size - Distance(read, now) : 0;
            wakesWriter = free >= wanted && free - System.Math.Min(free, taken) <= wanted;
        }
        return true;
    }
}

/// <summary>What is sent to the host.</summary>
public sealed class VmbusWriter(DriverPlatform platform, ulong memory, int pages) : VmbusRing(platform, memory, pages)
{
    private uint write;

    public override void Clear()
    {
        base.Clear();
        write = 0;
    }

    /// <summary>Writes a packet; false: there is no room, and the host signals when there is, or the ring is broken.</summary>
    /// <param name="from">The payload.</param>
    /// <param name="length">Bytes of it; with as many more as a multiple of eight takes it has to fit into the array.</param>
    /// <param name="transaction">A number for it.</param>
    /// <param name="wakesReader">The host has read everything before this, and is to be signalled.</param>
    public bool TryPut(byte[] from, int length, ulong transaction, out bool wakesReader)
    {
        wakesReader = false;
        uint padded = ((uint)length + 7) & ~7u, needed = DescriptorSize + padded + TrailerSize;
        if (IsBroken || needed >= Size || !HasRoom(needed))
            return false;
        SetControl(PendingSize, 0);
        Platform.Write64(At(write), DataPacket | (DescriptorSize / 8 << 16) | ((ulong)((DescriptorSize + padded) / 8) << 32));
        Platform.Write64(At(Wrap(write + 8)), transaction);
        uint to = Wrap(write + DescriptorSize), first = System.Math.Min(padded, Size - to);
        Platform.CopyIn(At(to), from, 0, (int)first);
        Platform.CopyIn(At(0), from, (int)first, (int)(padded - first));
        Platform.Write64(At(Wrap(to + padded)), (ulong)write << 32);
        uint before = write;
        write = Wrap(write + needed);
        Platform.Fence();
        SetControl(WriteIndex, write);
        // The host clears its mask, then looks at the index; here it is the other way round.
        Platform.Fence();
        wakesReader = Control(InterruptMask) == 0 && Control(ReadIndex) == before;
        return true;
    }

    // Never so full that full looks like empty.
    private bool HasRoom(uint needed)
    {
        if (Free() > needed)
            return true;
        if (IsBroken)
            return false;
        SetControl(PendingSize, needed);
        Platform.Fence();
        return Free() > needed;
    }

    private uint Free()
    {
        uint taken = Control(ReadIndex);
        if (IsIndex(taken))
            return Size - Distance(taken, write);
        IsBroken = true;
        return 0;
    }
}
