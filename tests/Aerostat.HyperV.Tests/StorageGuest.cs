using System.Buffers.Binary;
using Aerostat.Storage;
using Aerostat.Virtio.Tests;

namespace Aerostat.HyperV.Tests;

/// <summary>How a SCSI request went, as the guest sees it.</summary>
internal sealed record ScsiOutcome(byte Srb, byte Status, int Moved, byte[] Sense, byte[] Data)
{
    /// <summary>Key, code and qualifier; 0: there is no sense.</summary>
    public int Code => Sense.Length < 14 ? 0 : Sense[2] << 16 | Sense[12] << 8 | Sense[13];
}

/// <summary>A guest's driver for the storage controller, written from the protocol and not from the host's code.</summary>
internal sealed class StorageGuest : IDisposable
{
    /// <summary>Where data of requests lies: every second page, the last first.</summary>
    private const ulong Data = 0x80_0000;

    private ulong number;

    public StorageGuest(params IDisk[] disks)
    {
        Controller = new StorageController([.. disks.Select((d, i) => new StorageDisk($"disk{i}", d, $"SN{i}"))], Bus.Fixture.Memory, e => Failures.Add(e));
        Bus.Server.Add(Controller);
        Controller.Resume();
        Bus.Connect();
        Channel = Bus.Open(Controller);
    }

    public GuestBus Bus { get; } = new();
    public StorageController Controller { get; }
    public GuestChannel Channel { get; set; }
    public List<Exception> Failures { get; } = [];

    public void Dispose()
    {
        Controller.Stop();
        Bus.Dispose();
        Assert.Empty(Failures);
    }

    public static ulong PageOf(int index) => (Data >> 12) + 400 - (2 * (ulong)index);

    public static byte[] Packet(uint operation, int size = 64, ushort value = 0)
    {
        byte[] packet = new byte[size];
        BinaryPrimitives.WriteUInt32LittleEndian(packet, operation);
        BinaryPrimitives.WriteUInt32LittleEndian(packet.AsSpan(4), 1);
        BinaryPrimitives.WriteUInt16LittleEndian(packet.AsSpan(12), value);
        return packet;
    }

    /// <summary>Sends an operation and gives its completion.</summary>
    public byte[] Control(uint operation, ushort value = 0, int size = 64)
    {
        Channel.Send(Packet(operation, size, value), transaction: ++number);
        return Take(number);
    }

    public static uint StatusOf(byte[] packet) => BinaryPrimitives.ReadUInt32LittleEndian(packet.AsSpan(8));

    public void Initialize(ushort version = 0x602)
    {
        Assert.Equal(0u, StatusOf(Control(7, size: 48)));
        Assert.Equal(0u, StatusOf(Control(9, version, 48)));
        Assert.Equal(0u, StatusOf(Control(10)));
        Assert.Equal(0u, StatusOf(Control(8)));
    }

    public byte[] Take(ulong transaction)
    {
        Controller.WaitUntilIdle();
        (ushort type, ulong theirs, byte[] payload) = Channel.ReceivePacket() ?? throw new InvalidOperationException("no completion");
        Assert.Equal(((ushort)11, transaction, 1u), (type, theirs, BinaryPrimitives.ReadUInt32LittleEndian(payload)));
        return payload;
    }

    public static byte[] Srb(byte[] command, int length, bool toGuest, byte lun = 0, byte target = 0)
    {
        byte[] packet = Packet(3);
        packet[12] = 52;
        (packet[18], packet[19], packet[20], packet[21], packet[22]) = (target, lun, (byte)command.Length, 20, toGuest ? (byte)1 : (byte)0);
        BinaryPrimitives.WriteInt32LittleEndian(packet.AsSpan(24), length);
        command.CopyTo(packet, 28);
        return packet;
    }

    /// <summary>What names pages: one range from an offset in the first page on.</summary>
    public static byte[] Area(int length, uint offset, Func<int, ulong>? page = null)
    {
        int pages = ((int)offset + length + 4095) / 4096;
        byte[] area = new byte[16 + (8 * pages)];
        BinaryPrimitives.WriteUInt32LittleEndian(area.AsSpan(4), 1);
        BinaryPrimitives.WriteInt32LittleEndian(area.AsSpan(8), length);
        BinaryPrimitives.WriteUInt32LittleEndian(area.AsSpan(12), offset);
        for (int i = 0; i < pages; i++)
            BinaryPrimitives.WriteUInt64LittleEndian(area.AsSpan(16 + (8 * i)), (page ?? PageOf)(i));
        return area;
    }

    public ulong Send(byte[] command, int length, bool toGuest, uint offset = 0, byte lun = 0, byte target = 0)
    {
        byte[] packet = Srb(command, length, toGuest, lun, target);
        if (length > 0)
            Channel.Send(packet, 9, ++number, Area(length, offset));
        else
            Channel.Send(packet, 6, ++number);
        return number;
    }

    public ScsiOutcome Read(byte[] command, int length, uint offset = 0, byte lun = 0, byte target = 0)
    {
        for (int i = 0; i < (length + (int)offset + 4095) / 4096; i++)
            Bus.Fixture.Memory.TryFill(new(PageOf(i) << 12), 4096, 0xEE);
        ulong sent = Send(command, length, toGuest: true, offset, lun, target);
        ScsiOutcome outcome = Outcome(Take(sent));
        byte[] data = new byte[outcome.Moved];
        for (int i = 0; i < data.Length; i++)
            data[i] = Bus.Fixture.Memory.Read<byte>(new((PageOf((i + (int)offset) / 4096) << 12) + (ulong)((i + (int)offset) % 4096)));
        return outcome with { Data = data };
    }

    public ScsiOutcome Write(byte[] command, byte[] data, uint offset = 0, byte lun = 0)
    {
        for (int i = 0; i < data.Length; i++)
            Bus.Fixture.Memory.Write(new((PageOf((i + (int)offset) / 4096) << 12) + (ulong)((i + (int)offset) % 4096)), data[i]);
        return Outcome(Take(Send(command, data.Length, toGuest: false, offset, lun)));
    }

    public static ScsiOutcome Outcome(byte[] packet)
    {
        bool valid = (packet[14] & 0x80) != 0;
        return new ScsiOutcome(packet[14], packet[15], BinaryPrimitives.ReadInt32LittleEndian(packet.AsSpan(24)), valid ? packet[28..(28 + packet[21])] : [], []);
    }
}
