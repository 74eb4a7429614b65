using System.Buffers.Binary;
using System.Diagnostics;
using System.Globalization;
using Aerostat.Virtio.Tests;

namespace Aerostat.HyperV.Tests;

/// <summary>
/// Hostile guests of the storage controller: seeded nonsense in packets, in what names pages and in SCSI commands, among requests that make sense, while channels close,
/// completions are not taken and states are saved and restored. Every request gets one completion and no other does, memory that was not named and a disk that cannot be
/// written keep their contents, nothing throws, and a good driver is served afterwards. AEROSTAT_HYPERV_MUTATIONS=N makes it go on for N packets with other seeds.
/// </summary>
public sealed class HostileStorageTests
{
    private const int Guests = 10, Mutations = 400;
    // The first page that packets name, and memory that none does.
    private const ulong FirstPage = 0x800, LastPage = 0xBFF, Kept = 0xC00_000, KeptSize = 0x40_0000;

    [Fact]
    public void NothingIsLost()
    {
        foreach (string line in CaseStore.Lines("storage"))
            Run(int.Parse(line, CultureInfo.InvariantCulture));
        // Acts that all bounce off would show nothing.
        long[] reached = new long[5];
        for (int seed = 1; seed <= Guests; seed++)
            foreach ((int i, long value) in Try(seed).Index())
                reached[i] += value;
        Assert.DoesNotContain(0L, reached);
        if (!long.TryParse(Environment.GetEnvironmentVariable("AEROSTAT_HYPERV_MUTATIONS"), CultureInfo.InvariantCulture, out long wanted))
            return;
        long start = Stopwatch.GetTimestamp(), done = 0;
        for (int seed = Random.Shared.Next(1 << 20, 1 << 30); done < wanted; seed++, done += Mutations)
            Try(seed);
        TestContext.Current.TestOutputHelper?.WriteLine($"{done} mutations in {Stopwatch.GetElapsedTime(start).TotalSeconds:0} s");
    }

    private static long[] Try(int seed)
    {
        try
        {
            return Run(seed);
        }
        catch (Exception e)
        {
            throw new InvalidOperationException($"seed {seed}: {CaseStore.Save("storage", $"{seed}", e.Message)}", e);
        }
    }

    // Answers how often blocks were read, written, refused, unmapped, and packets made no sense.
    private static long[] Run(int seed)
    {
        Random random = new(seed);
        using MemoryDisk disk = new(1 << 20), kept = new(1 << 16, readOnly: true);
        random.NextBytes(kept.Bytes);
        byte[] contents = [.. kept.Bytes];
        using StorageGuest guest = new(disk, kept);
        Memory.GuestMemory memory = guest.Bus.Fixture.Memory;
        Assert.True(memory.TryFill(new(Kept), KeptSize, 0xD7));
        guest.Initialize();
        HashSet<ulong> open = [];
        ulong number = 1000;
        for (int i = 0; i < Mutations; i++)
        {
            switch (random.Next(40))
            {
                case 0:
                    disk.Fails = !disk.Fails;
                    break;
                case 1 when random.Next(5) == 0:
                    Reopen(guest);
                    open.Clear();
                    break;
                case 2 when random.Next(3) == 0:
                    disk.Fails = false;
                    guest.Controller.Quiesce();
                    VmBusSavedState state = guest.Bus.Server.Save();
                    guest.Bus.Server.Reset();
                    guest.Bus.Server.Restore(state);
                    guest.Controller.Resume();
                    break;
                default:
                    // As many as the ring holds.
                    if (open.Count >= 60)
                        Settle(guest, open);
                    (byte[] packet, ushort type, byte[]? area) = Packet(random);
                    guest.Channel.Send(packet, type, ++number, area);
                    if (packet.Length > 40)
                        open.Add(number);
                    // Initialization that was begun anew has to be got to its end.
                    if (packet.Length > 40 && BinaryPrimitives.ReadUInt32LittleEndian(packet) is 7 or 9)
                    {
                        Settle(guest, open);
                        guest.Initialize();
                    }
                    break;
            }
            if (random.Next(12) == 0)
                Settle(guest, open);
        }
        Settle(guest, open);
        Assert.Equal(contents, kept.Bytes);
        byte[] untouched = new byte[KeptSize];
        memory.TryRead(new(Kept), untouched);
        Assert.False(untouched.AsSpan().ContainsAnyExcept((byte)0xD7));
        disk.Fails = false;
        guest.Initialize();
        byte[] data = new byte[1024];
        random.NextBytes(data);
        Assert.Equal(1, guest.Write([0x2A, 0, 0, 0, 0, 4, 0, 0, 2, 0], data).Srb);
        Assert.Equal(data, guest.Read([0x28, 0, 0, 0, 0, 4, 0, 0, 2, 0], 1024).Data);
        Dictionary<string, long> counters = guest.Controller.Counters.ToDictionary(c => c.Name, c => c.Value);
        return [counters["disk0-reads"], counters["disk0-writes"], counters["scsi-refused"], disk.Cleared.Count, counters["scsi-malformed"]];
    }

    // Each request has its one completion.
    private static void Settle(StorageGuest guest, HashSet<ulong> open)
    {
        for (int quiet = 0; open.Count > 0; quiet++)
        {
            Assert.True(quiet < 100, $"{open.Count} requests are not completed");
            guest.Controller.WaitUntilIdle();
            guest.Channel.Signal();
            while (guest.Channel.ReceivePacket() is { } packet)
            {
                Assert.Equal((11, 1u), (packet.Type, BinaryPrimitives.ReadUInt32LittleEndian(packet.Payload)));
                Assert.True(open.Remove(packet.Transaction), $"{packet.Transaction} was not open");
            }
        }
        Assert.Null(guest.Channel.ReceivePacket());
    }

    private static void Reopen(StorageGuest guest)
    {
        guest.Bus.Post(GuestBus.Message(7, guest.Channel.RelId));
        guest.Bus.Server.Process();
        guest.Bus.Contact(0x5_0003);
        guest.Bus.Connect();
        guest.Channel = guest.Bus.Open(guest.Controller);
        guest.Initialize();
    }

    private static ulong Odd(Random random) => HostileValues.Odd(random, 2100);

    private static readonly byte[] s_commands = [0x00, 0x03, 0x08, 0x0A, 0x12, 0x1A, 0x1B, 0x25, 0x28, 0x2A, 0x28, 0x2A, 0x35, 0x41, 0x42, 0x5A, 0x88, 0x8A, 0x91, 0x93, 0x9E, 0xA0, 0xA8, 0xAA];

    private static (byte[] Packet, ushort Type, byte[]? Area) Packet(Random random)
    {
        byte[] command = new byte[16];
        random.NextBytes(command);
        command[0] = random.Next(12) == 0 ? (byte)random.Next(256) : s_commands[random.Next(s_commands.Length)];
        uint block = (uint)(random.Next(10) == 0 ? Odd(random) : (ulong)random.Next(2100)), count = (uint)(random.Next(10) == 0 ? Odd(random) : (ulong)random.Next(1, 40));
        if (random.Next(5) != 0)
        {
            command[1] = (byte)(random.Next(4) == 0 ? random.Next(256) : command[0] == 0x9E ? 0x10 : 0);
            switch (command[0])
            {
                case 0x08 or 0x0A:
                    (command[2], command[3], command[4]) = ((byte)(block >> 8), (byte)block, (byte)count);
                    break;
                case 0x88 or 0x8A or 0x93 or 0x91:
                    BinaryPrimitives.WriteUInt64BigEndian(command.AsSpan(2), random.Next(20) == 0 ? Odd(random) : block);
                    BinaryPrimitives.WriteUInt32BigEndian(command.AsSpan(10), count);
                    break;
                case 0xA8 or 0xAA:
                    BinaryPrimitives.WriteUInt32BigEndian(command.AsSpan(2), block);
                    BinaryPrimitives.WriteUInt32BigEndian(command.AsSpan(6), count);
                    break;
                case 0x12 or 0x1A or 0x5A:
                    command[2] = (byte)(random.Next(2) == 0 ? new byte[] { 0, 0x80, 0x83, 0xB0, 0xB1, 0xB2, 8, 10, 63 }[random.Next(9)] : random.Next(256));
                    break;
                default:
                    BinaryPrimitives.WriteUInt32BigEndian(command.AsSpan(2), block);
                    BinaryPrimitives.WriteUInt16BigEndian(command.AsSpan(7), (ushort)count);
                    break;
            }
        }
        int length = random.Next(6) switch { 0 => (int)(Odd(random) & 0x1F_FFFF), 1 => 0, _ => random.Next(1, 40) * 512 };
        byte[] packet = StorageGuest.Srb(command, length, toGuest: random.Next(2) == 0, (byte)(random.Next(6) == 0 ? random.Next(256) : random.Next(2)), (byte)(random.Next(20) == 0 ? 1 : 0));
        if (random.Next(12) == 0)
            BinaryPrimitives.WriteUInt32LittleEndian(packet, (uint)random.Next(16));
        byte[]? area = null;
        if (random.Next(5) != 0)
        {
            int named = Math.Min(length, 80 << 10);
            ulong first = FirstPage + (ulong)random.Next((int)(LastPage - FirstPage - 24));
            bool strange = random.Next(8) == 0;
            area = StorageGuest.Area(named, random.Next(3) == 0 ? (uint)random.Next(4096) : 0, n => strange && random.Next(4) == 0 ? 0x1000 + (Odd(random) >> 1) : first + (ulong)n);
            // In the middle of the ranges: lengths, offsets, counts. Not page numbers, which might then be those of the tests' own rings.
            if (random.Next(8) == 0)
                area[random.Next(4, 16)] ^= (byte)(1 << random.Next(8));
            if (random.Next(20) == 0)
                area = area[..(random.Next(area.Length / 8) * 8)];
            // Unmapping wants a list.
            if (command[0] == 0x42 && random.Next(3) != 0)
                area = null;
        }
        if (random.Next(15) == 0)
            packet[random.Next(4, packet.Length)] ^= (byte)(1 << random.Next(8));
        if (random.Next(30) == 0)
            packet = packet[..random.Next(41)];
        else if (random.Next(10) == 0)
            packet = packet[..48];
        return (packet, (ushort)(area is null ? 6 : 9), area);
    }
}
