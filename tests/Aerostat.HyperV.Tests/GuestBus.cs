using System.Buffers.Binary;

namespace Aerostat.HyperV.Tests;

/// <summary>A guest's side of the VMBus, written from the protocol and not from the host's code: messages through hypercalls, rings in memory.</summary>
internal sealed class GuestBus : IDisposable
{
    private const ulong FirstRing = 0x40_0000;
    private const int RingPages = 4;
    private uint nextHandle = 0xE1E10;

    public GuestBus(VmBusVersion? highest = null, TimeProvider? host = null, DynamicMemoryOptions? balloon = null, Func<Memory.GuestMemory>? memory = null)
    {
        Fixture = new PartitionFixture(memory: memory?.Invoke());
        Fixture.EnableHypercalls();
        Fixture.EnableSynic(0);
        Server = new VmBusServer(
            Fixture.Partition, Fixture.Memory, Fixture.Time, new VmBusOptions { HasThread = false, Version = highest ?? VmBusVersion.Highest }, e => throw new InvalidOperationException("the bus failed", e));
        if (balloon is not null)
        {
            Balloon = new DynamicMemory(Fixture.Memory, Fixture.Time, balloon);
            Fixture.ReportFree = Balloon.Report;
        }
        Components = new HyperVComponents(Server, host ?? Fixture.Time, Journal.Add, Balloon);
    }

    public PartitionFixture Fixture { get; }
    public DynamicMemory? Balloon { get; }
    public VmBusServer Server { get; }
    public HyperVComponents Components { get; }
    public List<string> Journal { get; } = [];
    public Dictionary<Guid, uint> Offers { get; } = [];

    public void Dispose() => Fixture.Dispose();

    public ulong Post(byte[] message, uint connection = 1)
    {
        byte[] block = new byte[256];
        BinaryPrimitives.WriteUInt32LittleEndian(block, connection);
        BinaryPrimitives.WriteUInt32LittleEndian(block.AsSpan(8), 1);
        BinaryPrimitives.WriteInt32LittleEndian(block.AsSpan(12), message.Length);
        message.CopyTo(block, 16);
        Fixture.Memory.Write(new(PartitionFixture.Input), block);
        return Fixture.Call(0x5C, PartitionFixture.Input);
    }

    public static byte[] Message(uint type, params uint[] words)
    {
        byte[] m = new byte[8 + (words.Length * 4)];
        BinaryPrimitives.WriteUInt32LittleEndian(m, type);
        for (int i = 0; i < words.Length; i++)
            BinaryPrimitives.WriteUInt32LittleEndian(m.AsSpan(8 + (i * 4)), words[i]);
        return m;
    }

    /// <summary>The next answer; null: none.</summary>
    public byte[]? Receive()
    {
        Server.Process();
        if (Fixture.MessageType(0) == 0)
            return null;
        Memory.GuestAddress slot = new(PartitionFixture.MessagePage + 512);
        byte[] payload = new byte[Fixture.Memory.Read<byte>(slot + 4)];
        Fixture.Memory.TryRead(slot + 16, payload);
        Fixture.TakeMessage(0);
        return payload;
    }

    public static uint Word(byte[]? message, int at) => BinaryPrimitives.ReadUInt32LittleEndian(Assert.IsType<byte[]>(message).AsSpan(at));

    public byte[]? Contact(uint version, uint processor = 0, uint source = 2)
    {
        Assert.Equal(0UL, Post(Message(14, version, processor, source, 0, 0, 0, 0, 0), connection: version >> 16 >= 5 ? 4u : 1u));
        return Receive();
    }

    public void Connect()
    {
        Assert.Equal(1, Contact(0x5_0003)![8]);
        Post(Message(3));
        TakeOffers();
    }

    public void TakeOffers()
    {
        while (Receive() is { } m && Word(m, 0) != 4)
        {
            Assert.Equal((1u, 196), (Word(m, 0), m.Length));
            Offers[new Guid(m.AsSpan(8, 16))] = Word(m, 184);
        }
    }

    public uint MakeList(uint relId, ulong first = 0, int pages = 2 * RingPages)
    {
        uint handle = nextHandle++;
        if (first == 0)
            first = FirstRing + (relId * 0x1_0000UL);
        byte[] m = new byte[28 + (8 * pages)];
        BinaryPrimitives.WriteUInt32LittleEndian(m, 8);
        BinaryPrimitives.WriteUInt32LittleEndian(m.AsSpan(8), relId);
        BinaryPrimitives.WriteUInt32LittleEndian(m.AsSpan(12), handle);
        BinaryPrimitives.WriteUInt16LittleEndian(m.AsSpan(16), (ushort)(8 + (8 * pages)));
        BinaryPrimitives.WriteUInt16LittleEndian(m.AsSpan(18), 1);
        BinaryPrimitives.WriteInt32LittleEndian(m.AsSpan(20), pages * 4096);
        for (int i = 0; i < pages; i++)
            BinaryPrimitives.WriteUInt64LittleEndian(m.AsSpan(28 + (8 * i)), (first >> 12) + (ulong)i);
        Post(m);
        return handle;
    }

    public GuestChannel Open(VmBusDevice device)
    {
        uint relId = Offers[device.Offer.InterfaceType];
        uint handle = MakeList(relId);
        byte[]? created = Receive();
        Assert.Equal((10u, 0u), (Word(created, 0), Word(created, 16)));
        ulong at = FirstRing + (relId * 0x1_0000UL);
        Fixture.Memory.TryZero(new(at), 2 * RingPages * 4096);
        Post(Message(5, relId, 77, handle, 0, RingPages, 0));
        byte[]? result = Receive();
        Assert.Equal((6u, relId, 77u, 0u), (Word(result, 0), Word(result, 8), Word(result, 12), Word(result, 16)));
        return new GuestChannel(this, relId, at, RingPages);
    }
}

/// <summary>An open channel, from the guest.</summary>
internal sealed class GuestChannel(GuestBus bus, uint relId, ulong rings, int ringPages)
{
    private readonly int size = (ringPages - 1) * 4096;
    private ulong Inbound => rings + ((ulong)ringPages * 4096);

    public uint RelId => relId;
    public ulong Rings => rings;

    private byte[] Copy(ulong ring, int index, int length)
    {
        ArgumentOutOfRangeException.ThrowIfNegative(length);
        byte[] all = new byte[length];
        for (int i = 0; i < length; i++)
            all[i] = bus.Fixture.Memory.Read<byte>(new(ring + 4096 + (ulong)((index + i) % size)));
        return all;
    }

    /// <summary>The next packet's payload; null: none.</summary>
    public byte[]? Receive() => ReceivePacket()?.Payload;

    /// <summary>The next packet; null: none.</summary>
    public (ushort Type, ulong Transaction, byte[] Payload)? ReceivePacket()
    {
        bus.Server.Process();
        uint write = bus.Fixture.Memory.Read<uint>(new(Inbound)), read = bus.Fixture.Memory.Read<uint>(new(Inbound + 4));
        if (write == read)
            return null;
        byte[] head = Copy(Inbound, (int)read, 16);
        int start = BinaryPrimitives.ReadUInt16LittleEndian(head.AsSpan(2)) * 8, total = BinaryPrimitives.ReadUInt16LittleEndian(head.AsSpan(4)) * 8;
        byte[] payload = Copy(Inbound, (int)read + start, total - start);
        bus.Fixture.Memory.Write(new(Inbound + 4), (uint)((read + total + 8) % size));
        return (BinaryPrimitives.ReadUInt16LittleEndian(head), BinaryPrimitives.ReadUInt64LittleEndian(head.AsSpan(8)), payload);
    }

    /// <summary>Sends a packet.</summary>
    /// <param name="payload">Its payload.</param>
    /// <param name="type">Its type.</param>
    /// <param name="transaction">Its number.</param>
    /// <param name="area">What is between head and payload: a multiple of eight bytes.</param>
    public void Send(byte[] payload, ushort type = 6, ulong transaction = 0, byte[]? area = null)
    {
        int start = 16 + (area?.Length ?? 0);
        uint write = bus.Fixture.Memory.Read<uint>(new(rings));
        int padded = (payload.Length + 7) & ~7;
        byte[] packet = new byte[start + padded + 8];
        BinaryPrimitives.WriteUInt16LittleEndian(packet, type);
        BinaryPrimitives.WriteUInt16LittleEndian(packet.AsSpan(2), (ushort)(start / 8));
        BinaryPrimitives.WriteUInt16LittleEndian(packet.AsSpan(4), (ushort)((start + padded) / 8));
        BinaryPrimitives.WriteUInt64LittleEndian(packet.AsSpan(8), transaction);
        area?.CopyTo(packet, 16);
        payload.CopyTo(packet, start);
        BinaryPrimitives.WriteUInt32LittleEndian(packet.AsSpan(packet.Length - 4), write);
        for (int i = 0; i < packet.Length; i++)
            bus.Fixture.Memory.Write(new(rings + 4096 + (ulong)((write + i) % size)), packet[i]);
        bus.Fixture.Memory.Write(new(rings), (uint)((write + packet.Length) % size));
        Signal();
    }

    public void Signal()
    {
        bus.Fixture.Call(0x5D | (1 << 16), 0x2000 | relId);
        bus.Server.Process();
    }

    /// <summary>Answers in place, as Linux does.</summary>
    public void Answer(byte[] request, uint status = 0, Action<byte[]>? change = null)
    {
        byte[] answer = [.. request];
        answer[8 + 17] = 5;
        BinaryPrimitives.WriteUInt32LittleEndian(answer.AsSpan(8 + 12), status);
        change?.Invoke(answer);
        Send(answer);
    }

    /// <summary>Agrees on versions.</summary>
    public void Negotiate(int framework, int message)
    {
        byte[] request = Assert.IsType<byte[]>(Receive());
        Assert.Equal(0, BinaryPrimitives.ReadUInt16LittleEndian(request.AsSpan(12)));
        Answer(request, change: a =>
        {
            BinaryPrimitives.WriteUInt16LittleEndian(a.AsSpan(8 + 10), 16);
            BinaryPrimitives.WriteUInt16LittleEndian(a.AsSpan(28), 1);
            BinaryPrimitives.WriteUInt16LittleEndian(a.AsSpan(30), 1);
            BinaryPrimitives.WriteInt32LittleEndian(a.AsSpan(36), framework);
            BinaryPrimitives.WriteInt32LittleEndian(a.AsSpan(40), message);
        });
    }
}
