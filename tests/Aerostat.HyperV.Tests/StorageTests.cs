using System.Buffers.Binary;
using System.Text;
using Aerostat.Storage;
using Aerostat.Virtio.Tests;

namespace Aerostat.HyperV.Tests;

/// <summary>The storage controller with a driver of the tests' own.</summary>
public sealed class StorageTests
{
    private const int DiskSize = 4 << 20;

    private static (StorageGuest Guest, MemoryDisk Disk) Start(bool readOnly = false)
    {
        MemoryDisk disk = new(DiskSize, readOnly);
        new Random(5).NextBytes(disk.Bytes);
        StorageGuest guest = new(disk);
        guest.Initialize();
        return (guest, disk);
    }

    private static byte[] Command10(byte operation, uint block, int count) =>
        [operation, 0, (byte)(block >> 24), (byte)(block >> 16), (byte)(block >> 8), (byte)block, 0, (byte)(count >> 8), (byte)count, 0];

    private static byte[] Command16(byte operation, ulong block, uint count, byte flags = 0)
    {
        byte[] c = new byte[16];
        (c[0], c[1]) = (operation, flags);
        BinaryPrimitives.WriteUInt64BigEndian(c.AsSpan(2), block);
        BinaryPrimitives.WriteUInt32BigEndian(c.AsSpan(10), count);
        return c;
    }

    private static byte[] Inquiry(byte? page, ushort length = 255) => [0x12, page is null ? (byte)0 : (byte)1, page ?? 0, (byte)(length >> 8), (byte)length, 0];

    [Fact]
    public void VersionsAndPropertiesAreAgreedOn()
    {
        using MemoryDisk disk = new(DiskSize);
        using StorageGuest guest = new(disk);
        // Not yet.
        ulong early = guest.Send([0, 0, 0, 0, 0, 0], 0, toGuest: false);
        Assert.NotEqual(0u, StorageGuest.StatusOf(guest.Take(early)));
        Assert.NotEqual(0u, StorageGuest.StatusOf(guest.Control(8)));
        Assert.Equal(0u, StorageGuest.StatusOf(guest.Control(7, size: 48)));
        foreach (ushort unknown in (ushort[])[0x700, 0x603, 0, 0x100])
            Assert.NotEqual(0u, StorageGuest.StatusOf(guest.Control(9, unknown, 48)));
        foreach (ushort known in (ushort[])[0x602, 0x600, 0x501, 0x402, 0x200])
            Assert.Equal((0u, 48), (StorageGuest.StatusOf(guest.Control(9, known, 48)), guest.Control(9, known, 48).Length));
        byte[] properties = guest.Control(10);
        Assert.Equal((0u, 0, 0u, 1u << 20), (StorageGuest.StatusOf(properties), BinaryPrimitives.ReadUInt16LittleEndian(properties.AsSpan(16)),
            BinaryPrimitives.ReadUInt32LittleEndian(properties.AsSpan(20)), BinaryPrimitives.ReadUInt32LittleEndian(properties.AsSpan(24))));
        Assert.Equal(0u, StorageGuest.StatusOf(guest.Control(8)));
        Assert.NotEqual(0u, StorageGuest.StatusOf(guest.Control(13, 2)));
        Assert.NotEqual(0u, StorageGuest.StatusOf(guest.Control(99)));
        foreach (uint reset in (uint[])[4, 5, 6])
            Assert.Equal(0u, StorageGuest.StatusOf(guest.Control(reset)));
        Assert.Equal(1, guest.Write([0, 0, 0, 0, 0, 0], []).Srb);
        // Too short for an answer.
        guest.Channel.Send(new byte[40], transaction: 7);
        Assert.Null(guest.Channel.Receive());
        Assert.Equal(2, guest.Controller.Malformed);
    }

    [Fact]
    public void DisksSayWhatTheyAre()
    {
        using MemoryDisk first = new(DiskSize), second = new(DiskSize, readOnly: true);
        using StorageGuest guest = new(first, second);
        guest.Initialize();
        byte[] standard = guest.Read(Inquiry(null), 255).Data;
        Assert.Equal((36, 0, 6, 2), (standard.Length, standard[0], standard[2], standard[3] & 0xF));
        Assert.Equal("Msft    Virtual Disk    1.0 ", Encoding.ASCII.GetString(standard, 8, 28));
        Assert.Equal(5, guest.Read(Inquiry(null, 5), 255).Moved);
        Assert.Equal([0, 0x80, 0x83, 0xB0, 0xB1, 0xB2], guest.Read(Inquiry(0), 255).Data[4..]);
        Assert.Equal("SN1", Encoding.ASCII.GetString(guest.Read(Inquiry(0x80), 255, lun: 1).Data[4..]));
        byte[] name = guest.Read(Inquiry(0x83), 255).Data, other = guest.Read(Inquiry(0x83), 255, lun: 1).Data;
        Assert.Equal((0x30, name.Length - 4), (name[^8] & 0xF0, BinaryPrimitives.ReadUInt16BigEndian(name.AsSpan(2))));
        Assert.NotEqual(name[^8..], other[^8..]);
        byte[] limits = guest.Read(Inquiry(0xB0), 255).Data;
        Assert.Equal((64, 2048u, 1u << 21), (limits.Length, BinaryPrimitives.ReadUInt32BigEndian(limits.AsSpan(8)), BinaryPrimitives.ReadUInt32BigEndian(limits.AsSpan(20))));
        Assert.Equal(1, guest.Read(Inquiry(0xB1), 255).Data[5]);
        Assert.Equal((0xC4, 0), (guest.Read(Inquiry(0xB2), 255).Data[5], guest.Read(Inquiry(0xB2), 255, lun: 1).Data[5]));
        Assert.Equal(0x052400, guest.Read(Inquiry(0xC0), 255).Code);
        Assert.Equal(0x052400, guest.Read([0x12, 0, 0x80, 0, 255, 0], 255).Code);

        // LUNs, and what is not there.
        byte[] luns = guest.Read([0xA0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0], 256).Data;
        Assert.Equal((24, 16u, 0, 1), (luns.Length, BinaryPrimitives.ReadUInt32BigEndian(luns), luns[9], luns[17]));
        Assert.Equal(new byte[8], guest.Read([0xA0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0], 256, target: 1).Data);
        Assert.Equal((0x7F, 36), (guest.Read(Inquiry(null), 255, lun: 2).Data[0], guest.Read(Inquiry(null), 255, target: 1).Data.Length));
        Assert.Equal(0x20, guest.Read(Command10(0x28, 0, 1), 512, lun: 2).Srb);

        // Sizes and modes.
        byte[] short10 = guest.Read([0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0], 8).Data;
        Assert.Equal(((DiskSize / 512u) - 1, 512u), (BinaryPrimitives.ReadUInt32BigEndian(short10), BinaryPrimitives.ReadUInt32BigEndian(short10.AsSpan(4))));
        byte[] long16 = guest.Read(Command16(0x9E, 0, 32, 0x10), 32).Data;
        Assert.Equal((32, (DiskSize / 512ul) - 1, 3, 0xC0), (long16.Length, BinaryPrimitives.ReadUInt64BigEndian(long16), long16[13], long16[14]));
        byte[] mode = guest.Read([0x1A, 0, 8, 0, 255, 0], 255).Data;
        Assert.Equal((24, 23, 0x10, 8, 4), (mode.Length, mode[0], mode[2], mode[4], mode[6]));
        Assert.Equal((0x90, 8 + 32), (guest.Read([0x5A, 0, 0x3F, 0, 0, 0, 0, 0, 255, 0], 255, lun: 1).Data[3], guest.Read([0x5A, 0, 0x3F, 0, 0, 0, 0, 0, 255, 0], 255).Moved));
        Assert.Equal((0, 0x052400, 0x052400), (guest.Read([0x1A, 0, 0x48, 0, 255, 0], 255).Data[6], guest.Read([0x1A, 0, 0xC8, 0, 255, 0], 255).Code, guest.Read([0x1A, 0, 0x1C, 0, 255, 0], 255).Code));
        Assert.Equal((18, 0x70), (guest.Read([3, 0, 0, 0, 255, 0], 255).Moved, guest.Read([3, 0, 0, 0, 255, 0], 255).Data[0]));
        foreach (byte unknown in (byte[])[0x04, 0x5E, 0x7F, 0x9E, 0xC0, 0xFF])
            Assert.Equal(0x052000, guest.Read([unknown, 0, 0, 0, 0, 0, 0, 0, 0, 0], 255).Code);
    }

    [Fact]
    public void BlocksAreReadAndWritten()
    {
        (StorageGuest guest, MemoryDisk disk) = Start();
        using StorageGuest _ = guest;
        byte[] expected = [.. disk.Bytes];
        Assert.Equal(expected[(7 * 512)..(27 * 512)], guest.Read([0x08, 0, 0, 7, 20, 0], 20 * 512, offset: 512).Data);
        Assert.Equal(expected[..(256 * 512)], guest.Read([0x08, 0, 0, 0, 0, 0], 256 * 512).Data);
        Assert.Equal(expected[512..1024], guest.Read(Command10(0x28, 1, 1), 4096, offset: 3584 + 100).Data);
        Assert.Equal(expected[512..5120], guest.Read([0xA8, 0, 0, 0, 0, 1, 0, 0, 0, 9, 0, 0], 9 * 512, offset: 4).Data);
        Assert.Equal(expected[^(1 << 20)..], guest.Read(Command16(0x88, (DiskSize >> 9) - 2048, 2048), 1 << 20).Data);
        byte[] data = new byte[50 * 512];
        new Random(6).NextBytes(data);
        foreach ((byte[] command, uint block, uint offset) in ((byte[], uint, uint)[])
            [([0x0A, 0, 0, 60, 50, 0], 60, 0), (Command10(0x2A, 1000, 50), 1000, 1000), ([0xAA, 0, 0, 0, 1, 0, 0, 0, 0, 50, 0, 0], 256, 4092), (Command16(0x8A, 4000, 50, 8), 4000, 512)])
        {
            int flushes = disk.Flushes;
            Assert.Equal((1, 0, data.Length), guest.Write(command, data, offset) is var o ? (o.Srb, o.Status, o.Moved) : default);
            data.CopyTo(expected, block * 512);
            // The last one forces it onto the disk.
            Assert.Equal(block == 4000 ? 1 : 0, disk.Flushes - flushes);
        }
        Assert.True(expected.AsSpan().SequenceEqual(disk.Bytes));
        Assert.Equal((1, 0), (guest.Read(Command10(0x28, 8191, 0), 512).Srb, guest.Read(Command10(0x28, 8191, 0), 512).Moved));
        foreach (byte flush in (byte[])[0x35, 0x91])
            Assert.Equal(1, guest.Write([flush, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], []).Srb);
        Assert.Equal(3, disk.Flushes);
        Dictionary<string, long> counters = guest.Controller.Counters.ToDictionary(c => c.Name, c => c.Value);
        Assert.Equal((7L, 4L, (long)data.Length * 4, 3L, 0L), (counters["disk0-reads"], counters["disk0-writes"], counters["disk0-bytes-written"], counters["disk0-flushes"], counters["disk0-errors"]));
    }

    [Fact]
    public void WhatCannotBeDoneIsSaid()
    {
        (StorageGuest guest, MemoryDisk disk) = Start();
        using StorageGuest _ = guest;
        byte[] before = [.. disk.Bytes];
        Assert.Equal((0x84, 2, 0x052100, 0), guest.Read(Command10(0x28, 8192, 1), 512) is var o ? (o.Srb, o.Status, o.Code, o.Moved) : default);
        Assert.Equal(0x052100, guest.Write(Command16(0x8A, ulong.MaxValue, 2), new byte[1024]).Code);
        Assert.Equal(0x052100, guest.Write(Command10(0x2A, 8190, 3), new byte[1536]).Code);
        // More than there is room for.
        Assert.Equal(0x052400, guest.Read(Command10(0x28, 0, 3), 1024).Code);
        Assert.Equal(0x052400, guest.Write(Command10(0x2A, 0, 3), new byte[1024]).Code);
        Assert.Equal(0x052400, guest.Read(Command16(0x88, 0, 4096), 512).Code);
        // Pages that are not memory, too many bytes, an offset outside of the page, ranges that are not there, a command of no length: no SCSI at all.
        foreach (byte[] area in (byte[][])[StorageGuest.Area(512, 0, _ => 0x1000), StorageGuest.Area(8192, 0, i => i == 0 ? 0x800 : 1UL << 50), StorageGuest.Area((1 << 20) + 1, 0, _ => 0x800), StorageGuest.Area(512, 4096), [0, 0, 0, 0, 1, 0, 0, 0], [0, 0, 0, 0, 255, 0, 0, 0]])
        {
            guest.Channel.Send(StorageGuest.Srb(Command10(0x28, 0, 1), 512, toGuest: true), 9, 1000, area);
            Assert.Equal((6, 0), StorageGuest.Outcome(guest.Take(1000)) is var bad ? (bad.Srb, bad.Moved) : default);
        }
        guest.Channel.Send(StorageGuest.Srb([], 0, toGuest: true), 6, 1001);
        Assert.Equal(6, StorageGuest.Outcome(guest.Take(1001)).Srb);
        // No room for sense: it cannot be said why.
        byte[] packet = StorageGuest.Srb(Command10(0xFF, 0, 1), 0, toGuest: true);
        packet[21] = 10;
        guest.Channel.Send(packet, 6, 1002);
        Assert.Equal((4, 2), StorageGuest.Outcome(guest.Take(1002)) is var mute ? (mute.Srb, mute.Status) : default);
        disk.Fails = true;
        Assert.Equal((0x031100, 0x030C00, 0x030C00, 0x030C00), (guest.Read(Command10(0x28, 0, 1), 512).Code, guest.Write(Command10(0x2A, 0, 1), new byte[512]).Code, guest.Write(Command10(0x35, 0, 0), []).Code, guest.Write(Command16(0x93, 0, 1, 1), []).Code));
        disk.Fails = false;
        Assert.Equal(before, disk.Bytes);
        (StorageGuest reader, MemoryDisk fixedDisk) = Start(readOnly: true);
        using StorageGuest __ = reader;
        foreach (byte[] command in (byte[][])[Command10(0x2A, 0, 1), Command16(0x93, 0, 1), Command10(0x42, 0, 512)])
            Assert.Equal(0x072700, reader.Write(command, new byte[512]).Code);
        Assert.Equal(512, reader.Read(Command10(0x28, 0, 1), 512).Moved);
    }

    [Fact]
    public void BlocksAreUnmappedAndFilled()
    {
        (StorageGuest guest, MemoryDisk disk) = Start();
        using StorageGuest _ = guest;
        static byte[] Ranges(params (ulong Block, uint Count)[] ranges)
        {
            byte[] list = new byte[8 + (16 * ranges.Length)];
            BinaryPrimitives.WriteUInt16BigEndian(list, (ushort)(list.Length - 2));
            BinaryPrimitives.WriteUInt16BigEndian(list.AsSpan(2), (ushort)(list.Length - 8));
            for (int i = 0; i < ranges.Length; i++)
            {
                BinaryPrimitives.WriteUInt64BigEndian(list.AsSpan(8 + (16 * i)), ranges[i].Block);
                BinaryPrimitives.WriteUInt32BigEndian(list.AsSpan(16 + (16 * i)), ranges[i].Count);
            }
            return list;
        }
        byte[] list = Ranges((8, 16), (100, 0), (8000, 192));
        Assert.Equal(1, guest.Write(Command10(0x42, 0, list.Length), list).Srb);
        Assert.Equal([("discard", 8UL * 512, 16UL * 512), ("discard", 8000UL * 512, 192UL * 512)], disk.Cleared);
        Assert.Equal((0, true), (disk.Bytes[8 * 512], disk.Bytes.AsSpan(0, 8 * 512).ContainsAnyExcept((byte)0)));
        Assert.Equal(1, guest.Write(Command10(0x42, 0, 0), []).Srb);
        disk.Cleared.Clear();
        foreach ((byte[] wrong, int code) in ((byte[], int)[])[(Ranges((8, 16), (8192, 1)), 0x052100), (Ranges((0, uint.MaxValue)), 0x052600), (Ranges([.. Enumerable.Repeat((0UL, 1u), 33)]), 0x052600), (new byte[4], 0x052600)])
            Assert.Equal(code, guest.Write(Command10(0x42, 0, wrong.Length), wrong).Code);
        Assert.Equal(0x052400, guest.Write(Command10(0x42, 0, 600), new byte[512]).Code);
        Assert.Empty(disk.Cleared);

        byte[] block = new byte[512];
        Assert.Equal(1, guest.Write(Command16(0x93, 32, 64, 8), block).Srb);
        Assert.Equal(1, guest.Write(Command16(0x93, 128, 64, 1), []).Srb);
        Assert.Equal(1, guest.Write(Command10(0x41, 256, 1), block).Srb);
        Assert.Equal([("zero-unmap", 32UL * 512, 64UL * 512), ("zero", 128UL * 512, 64UL * 512), ("zero", 256UL * 512, 512UL)], disk.Cleared);
        new Random(9).NextBytes(block);
        Assert.Equal(1, guest.Write(Command16(0x93, 1000, 300), block).Srb);
        for (int i = 1000; i < 1300; i++)
            Assert.True(disk.Bytes.AsSpan(i * 512, 512).SequenceEqual(block), $"block {i}");
        Assert.False(disk.Bytes.AsSpan(1300 * 512, 512).SequenceEqual(block));
        Assert.Equal((0x052400, 0x052400, 0x052100), (guest.Write(Command16(0x93, 0, 0), block).Code, guest.Write(Command16(0x93, 0, 1, 0x10), block).Code, guest.Write(Command16(0x93, 8192, 1), block).Code));
    }

    [Fact]
    public void TooManyRequestsStayInTheRing()
    {
        (StorageGuest guest, MemoryDisk disk) = Start();
        using StorageGuest _ = guest;
        using ManualResetEventSlim gate = new();
        disk.Midway = () => gate.Wait(TestContext.Current.CancellationToken);
        List<ulong> sent = [];
        for (int i = 0; i < 300; i++)
            sent.Add(guest.Send(Command10(0x28, (uint)i, 1), 512, toGuest: true));
        Assert.Null(guest.Channel.ReceivePacket());
        // The ring still holds what is more than the controller takes.
        Assert.NotEqual(guest.Bus.Fixture.Memory.Read<uint>(new(guest.Channel.Rings)), guest.Bus.Fixture.Memory.Read<uint>(new(guest.Channel.Rings + 4)));
        gate.Set();
        // Completions find no more room than for some; the guest makes some and says so.
        HashSet<ulong> seen = [];
        for (int quiet = 0; seen.Count < sent.Count && quiet < 1000;)
        {
            guest.Controller.WaitUntilIdle();
            if (guest.Channel.ReceivePacket() is { } packet)
            {
                Assert.Equal((11, 1), (packet.Type, packet.Payload[14]));
                Assert.True(seen.Add(packet.Transaction), $"{packet.Transaction} comes twice");
                continue;
            }
            quiet++;
            guest.Channel.Signal();
        }
        Assert.Equal(sent.Order(), seen.Order());
        Assert.Null(guest.Channel.ReceivePacket());
    }

    [Fact]
    public void RequestsAreSavedAndCarriedOutAfterwards()
    {
        (StorageGuest guest, MemoryDisk disk) = Start();
        using StorageGuest _ = guest;
        byte[] expected = [.. disk.Bytes];
        guest.Controller.Quiesce();
        for (int i = 0; i < 20; i++)
        {
            // Each reads to a page of its own.
            byte[] area = StorageGuest.Area(512, 0, _ => StorageGuest.PageOf(i));
            guest.Channel.Send(StorageGuest.Srb(Command10(0x28, (uint)i, 1), 512, toGuest: true), 9, 500 + (ulong)i, area);
        }
        guest.Bus.Server.Process();
        VmBusSavedState state = guest.Bus.Server.Save();
        guest.Bus.Server.Reset();
        guest.Bus.Server.Restore(state);
        guest.Controller.Resume();
        HashSet<ulong> seen = [];
        for (int i = 0; i < 20; i++)
        {
            guest.Controller.WaitUntilIdle();
            Assert.True(seen.Add((guest.Channel.ReceivePacket() ?? throw new InvalidOperationException($"completion {i} is missing")).Transaction));
            byte[] block = new byte[512];
            guest.Bus.Fixture.Memory.TryRead(new(StorageGuest.PageOf(i) << 12), block);
            Assert.Equal(expected[(i * 512)..((i + 1) * 512)], block);
        }
        Assert.Equal(1, guest.Write([0, 0, 0, 0, 0, 0], []).Srb);
        disk.Fails = true;
        Assert.Throws<State.SavedStateException>(guest.Bus.Server.Save);
        foreach (string wrong in (string[])["", "{", "{}", "{\"waiting\":[],\"done\":[{\"packet\":\"AAAA\"}],\"disks\":[4194304]}"])
            Assert.Throws<FormatException>(() => guest.Controller.Restore(wrong));
        Assert.Throws<State.SavedStateException>(() => guest.Controller.Restore("{\"waiting\":[],\"done\":[],\"disks\":[512]}"));
    }

    [Fact]
    public void AChannelThatClosesWaitsForItsRequests()
    {
        (StorageGuest guest, MemoryDisk disk) = Start();
        using StorageGuest _ = guest;
        using SemaphoreSlim begun = new(0);
        int over = 0;
        disk.Midway = () =>
        {
            begun.Release();
            Thread.Sleep(20);
            Interlocked.Increment(ref over);
        };
        for (int i = 0; i < 30; i++)
            guest.Send(Command10(0x28, (uint)i, 1), 512, toGuest: true);
        begun.Wait(TestContext.Current.CancellationToken);
        guest.Bus.Post(GuestBus.Message(7, guest.Channel.RelId));
        guest.Bus.Server.Process();
        // None begins after it.
        int then = Volatile.Read(ref over);
        guest.Controller.WaitUntilIdle();
        Assert.Equal(then, Volatile.Read(ref over));
        Assert.InRange(then, 1, 29);
        disk.Midway = null;
    }
}
