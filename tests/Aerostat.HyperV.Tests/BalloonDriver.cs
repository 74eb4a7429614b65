using System.Buffers.Binary;

namespace Aerostat.HyperV.Tests;

/// <summary>A guest's driver for dynamic memory, written from the protocol and not from the host's code.</summary>
internal sealed class BalloonDriver(GuestChannel channel)
{
    private uint number;

    public GuestChannel Channel => channel;

    /// <summary>Agrees on a version and says what the guest can.</summary>
    public void Connect(uint version = 0x2_0000, ulong capabilities = 3 | 7 << 2)
    {
        Assert.Equal((2, 1UL), Ask(Message(1, 16, (8, version))));
        Assert.Equal((4, 1UL), Ask(Message(3, 32, (8, (uint)capabilities))));
    }

    /// <summary>Sends a message and gives the type and first value of the answer.</summary>
    public (int Type, ulong Value) Ask(byte[] message)
    {
        channel.Send(message);
        byte[] answer = Assert.IsType<byte[]>(channel.Receive());
        return (BinaryPrimitives.ReadUInt16LittleEndian(answer), BinaryPrimitives.ReadUInt64LittleEndian(answer.AsSpan(8)));
    }

    public byte[] Message(ushort type, int size, params (int At, uint Value)[] fields)
    {
        byte[] m = new byte[size];
        BinaryPrimitives.WriteUInt16LittleEndian(m, type);
        BinaryPrimitives.WriteUInt16LittleEndian(m.AsSpan(2), (ushort)size);
        BinaryPrimitives.WriteUInt32LittleEndian(m.AsSpan(4), ++number);
        foreach ((int at, uint value) in fields)
            BinaryPrimitives.WriteUInt32LittleEndian(m.AsSpan(at), value);
        return m;
    }

    /// <summary>How many pages the host asks for; 0: it does not.</summary>
    public uint TakeBalloonRequest()
    {
        if (channel.Receive() is not { } m)
            return 0;
        Assert.Equal((6, 16), (BinaryPrimitives.ReadUInt16LittleEndian(m), BinaryPrimitives.ReadUInt16LittleEndian(m.AsSpan(2))));
        return BinaryPrimitives.ReadUInt32LittleEndian(m.AsSpan(8));
    }

    /// <summary>Gives pages.</summary>
    public void Give(bool more, params (ulong First, ulong Count)[] ranges)
    {
        byte[] m = Message(7, 16 + (8 * ranges.Length), (12, (uint)ranges.Length << 1 | (more ? 1u : 0)));
        for (int i = 0; i < ranges.Length; i++)
            BinaryPrimitives.WriteUInt64LittleEndian(m.AsSpan(16 + (8 * i)), ranges[i].First | ranges[i].Count << 40);
        channel.Send(m);
    }

    /// <summary>Ranges that the host gives back; null: it does not.</summary>
    public (ulong First, ulong Count)[]? TakeBack()
    {
        if (channel.Receive() is not { } m)
            return null;
        Assert.Equal(8, BinaryPrimitives.ReadUInt16LittleEndian(m));
        Assert.Equal(0u, BinaryPrimitives.ReadUInt32LittleEndian(m.AsSpan(8)));
        uint count = BinaryPrimitives.ReadUInt32LittleEndian(m.AsSpan(12));
        Assert.Equal(16 + (8 * (int)count), BinaryPrimitives.ReadUInt16LittleEndian(m.AsSpan(2)));
        return [.. Enumerable.Range(0, (int)count).Select(i => BinaryPrimitives.ReadUInt64LittleEndian(m.AsSpan(16 + (8 * i)))).Select(r => (r & ((1UL << 40) - 1), r >> 40))];
    }

    public void HaveTaken() => channel.Send(Message(9, 8));

    public void Status(ulong available, ulong committed)
    {
        byte[] m = Message(5, 48);
        BinaryPrimitives.WriteUInt64LittleEndian(m.AsSpan(8), available);
        BinaryPrimitives.WriteUInt64LittleEndian(m.AsSpan(16), committed);
        channel.Send(m);
    }

    /// <summary>First page and number of pages that the host adds; null: it does not.</summary>
    public (ulong First, ulong Count)? TakeAddRequest()
    {
        if (channel.Receive() is not { } m)
            return null;
        Assert.Equal((10, 16), (BinaryPrimitives.ReadUInt16LittleEndian(m), BinaryPrimitives.ReadUInt16LittleEndian(m.AsSpan(2))));
        ulong range = BinaryPrimitives.ReadUInt64LittleEndian(m.AsSpan(8));
        return (range & ((1UL << 40) - 1), range >> 40);
    }

    public void HaveAdded(uint pages, uint result) => channel.Send(Message(11, 16, (8, pages), (12, result)));
}
