using System.Buffers.Binary;

namespace Aerostat.HyperV;

/// <summary>What the guest sends: the guest writes, the host reads.</summary>
internal sealed class IncomingRing : RingBuffer
{
    private int read;

    public IncomingRing(Gpadl pages, int firstPage, int pageCount)
        : base(pages, firstPage, pageCount)
    {
    }

    /// <summary>The host's index, for a saved state.</summary>
    public int Index
    {
        get => read;
        set => read = IsIndex((uint)value) ? value : throw new ArgumentException("an index lies outside its ring");
    }

    /// <summary>Asks not to be signalled: everything is being read anyhow.</summary>
    public void Mask() => SetControl(InterruptMask, 1);

    /// <summary>Asks to be signalled again; true: something has come meanwhile, and no signal will tell of it.</summary>
    public bool Unmask()
    {
        SetControl(InterruptMask, 0);
        // The writer stores its index, then loads the mask; here it is the other way round.
        Interlocked.MemoryBarrier();
        return Control(WriteIndex) != (uint)read;
    }

    /// <summary>Reads the next packet.</summary>
    /// <param name="buffer">Takes the payload, and after it what is between head and payload.</param>
    /// <param name="head">Its head.</param>
    /// <param name="length">Bytes of payload, with what it is padded with.</param>
    /// <param name="wakesWriter">Whether a writer has now the room that it waits for, and must be signalled.</param>
    public RingRead TryRead(Span<byte> buffer, out PacketHead head, out int length, out bool wakesWriter)
    {
        head = default;
        length = 0;
        wakesWriter = false;
        uint end = Control(WriteIndex);
        Interlocked.MemoryBarrier();
        if (!IsIndex(end))
            return RingRead.Corrupt;
        int available = Distance(read, (int)end);
        if (available == 0)
            return RingRead.Empty;
        if (available < DescriptorSize + TrailerSize)
            return RingRead.Corrupt;
        Span<byte> descriptor = stackalloc byte[DescriptorSize];
        Read(read, descriptor);
        int start = BinaryPrimitives.ReadUInt16LittleEndian(descriptor[2..]) * 8, total = BinaryPrimitives.ReadUInt16LittleEndian(descriptor[4..]) * 8;
        if (start < DescriptorSize || total < start || total > available - TrailerSize)
            return RingRead.Corrupt;
        head = new PacketHead(
            BinaryPrimitives.ReadUInt16LittleEndian(descriptor), (descriptor[6] & 1) != 0, BinaryPrimitives.ReadUInt64LittleEndian(descriptor[8..]),
            start - DescriptorSize);
        length = total - start;
        bool fits = total - DescriptorSize <= buffer.Length;
        if (fits)
        {
            Read(Wrap(read + start), buffer[..length]);
            Read(Wrap(read + DescriptorSize), buffer.Slice(length, head.Area));
        }
        else
        {
            length = 0;
        }
        int taken = total + TrailerSize;
        read = Wrap(read + taken);
        Interlocked.MemoryBarrier();
        SetControl(ReadIndex, (uint)read);
        // The writer stores what it waits for, then looks at the index.
        Interlocked.MemoryBarrier();
        uint wanted = Control(PendingSize);
        if (wanted != 0 && wanted <= (uint)Size)
        {
            // With its index of now: it may have filled the ring since the look above, and then waits for the room that this packet leaves. Of those that
            // make more than it waits for, only the first wakes it.
            uint now = Control(WriteIndex);
            int free = IsIndex(now) ? Size - Distance(read, (int)now) : 0;
            wakesWriter = free >= wanted && free - taken <= wanted;
        }
        return fits ? RingRead.Packet : RingRead.TooLong;
    }
}
