using System.Buffers.Binary;

namespace Aerostat.HyperV;

/// <summary>What writing to a ring came to.</summary>
internal enum RingWrite
{
    /// <summary>Written; the reader has not slept.</summary>
    Done,
    /// <summary>Written; the reader must be signalled.</summary>
    DoneAndSignal,
    /// <summary>There is no room; the reader will signal when there is.</summary>
    Full,
    /// <summary>The packet is larger than the ring.</summary>
    TooLong,
    /// <summary>The ring's contents make no sense.</summary>
    Corrupt,
}

/// <summary>What the guest receives: the host writes, the guest reads.</summary>
internal sealed class OutgoingRing : RingBuffer
{
    private int write;

    public OutgoingRing(Gpadl pages, int firstPage, int pageCount)
        : base(pages, firstPage, pageCount)
    {
    }

    /// <summary>The host's index, for a saved state.</summary>
    public int Index
    {
        get => write;
        set => write = IsIndex((uint)value) ? value : throw new ArgumentException("an index lies outside its ring");
    }

    /// <summary>Tells the guest that pending sizes are honoured here.</summary>
    public void Open() => SetControl(Features, 1);

    /// <summary>Writes a packet whose data is in the ring.</summary>
    public RingWrite TryWrite(ushort type, ulong transaction, ReadOnlySpan<byte> payload)
    {
        int padded = (payload.Length + 7) & ~7, needed = DescriptorSize + padded + TrailerSize;
        if (needed >= Size)
            return RingWrite.TooLong;
        uint taken = Control(ReadIndex);
        if (!IsIndex(taken))
            return RingWrite.Corrupt;
        if (Size - Distance((int)taken, write) <= needed)
        {
            SetControl(PendingSize, (uint)needed);
            Interlocked.MemoryBarrier();
            taken = Control(ReadIndex);
            if (!IsIndex(taken))
                return RingWrite.Corrupt;
            if (Size - Distance((int)taken, write) <= needed)
                return RingWrite.Full;
        }
        SetControl(PendingSize, 0);
        Span<byte> descriptor = stackalloc byte[DescriptorSize];
        BinaryPrimitives.WriteUInt16LittleEndian(descriptor, type);
        BinaryPrimitives.WriteUInt16LittleEndian(descriptor[2..], DescriptorSize / 8);
        BinaryPrimitives.WriteUInt16LittleEndian(descriptor[4..], (ushort)((DescriptorSize + padded) / 8));
        BinaryPrimitives.WriteUInt16LittleEndian(descriptor[6..], 0);
        BinaryPrimitives.WriteUInt64LittleEndian(descriptor[8..], transaction);
        Write(write, descriptor);
        Write(Wrap(write + DescriptorSize), payload);
        Span<byte> rest = stackalloc byte[8 + TrailerSize];
        rest.Clear();
        int fill = padded - payload.Length;
        BinaryPrimitives.WriteUInt64LittleEndian(rest[fill..], (ulong)(uint)write << 32);
        Write(Wrap(Wrap(write + DescriptorSize) + payload.Length), rest[..(fill + TrailerSize)]);
        int before = write;
        write = Wrap(write + needed);
        Interlocked.MemoryBarrier();
        SetControl(WriteIndex, (uint)write);
        // The reader clears its mask, then looks at the index; here it is the other way round.
        Interlocked.MemoryBarrier();
        return Control(InterruptMask) == 0 && Control(ReadIndex) == (uint)before ? RingWrite.DoneAndSignal : RingWrite.Done;
    }
}
