using System.Buffers.Binary;
using System.Diagnostics;
using System.Globalization;
using Aerostat.Devices;
using Aerostat.Memory;
using Aerostat.Virtio.Tests;

namespace Aerostat.HyperV.Tests;

/// <summary>
/// Hostile guests of dynamic memory: seeded nonsense in every message and hypercall, among messages that make sense, while the host changes targets and saves and restores. Every
/// message is also given to a model, of another make, that must come to the same pages; pages that were not given keep their contents, holes of the memory map have no
/// access rights, and a good driver is served afterwards. AEROSTAT_HYPERV_MUTATIONS=N makes it go on for N messages with other seeds.
/// </summary>
public sealed class HostileBalloonTests
{
    private const int Guests = 12, Mutations = 1500;
    private const ulong MiB = 1 << 20, FirstPage = 0x800, LowEnd = 0x1000, HighFirst = 0x1200, HighEnd = 0x1300, SpareFirst = 0x2000, SpareEnd = 0x2400;

    [Fact]
    public void NothingIsLost()
    {
        foreach (string line in CaseStore.Lines("dynamic-memory"))
            Run(int.Parse(line, CultureInfo.InvariantCulture));
        // Acts that all bounce off would show nothing.
        Reached all = default;
        for (int seed = 1; seed <= Guests; seed++)
            all += Try(seed);
        Assert.True(all is { Given: > 0, Taken: > 0, Added: > 0, Reported: > 0, Spurious: > 0 }, $"{all}");
        if (!long.TryParse(Environment.GetEnvironmentVariable("AEROSTAT_HYPERV_MUTATIONS"), CultureInfo.InvariantCulture, out long wanted))
            return;
        long start = Stopwatch.GetTimestamp(), done = 0;
        for (int seed = Random.Shared.Next(1 << 20, 1 << 30); done < wanted; seed++, done += Mutations)
            Try(seed);
        TestContext.Current.TestOutputHelper?.WriteLine($"{done} mutations in {Stopwatch.GetElapsedTime(start).TotalSeconds:0} s");
    }

    private readonly record struct Reached(long Given, long Taken, long Added, long Reported, long Spurious)
    {
        public static Reached operator +(Reached a, Reached b) => new(a.Given + b.Given, a.Taken + b.Taken, a.Added + b.Added, a.Reported + b.Reported, a.Spurious + b.Spurious);
    }

    private static Reached Try(int seed)
    {
        try
        {
            return Run(seed);
        }
        catch (Exception e)
        {
            throw new InvalidOperationException($"seed {seed}: {CaseStore.Save("dynamic-memory", $"{seed}", e.Message)}", e);
        }
    }

    private static Reached Run(int seed)
    {
        Random random = new(seed);
        MemoryRegion spare = new(new(SpareFirst << 12), (SpareEnd - SpareFirst) << 12, "spare");
        using GuestBus bus = new(balloon: new DynamicMemoryOptions { Spare = spare }, memory: () => new GuestMemory(
            new MemoryRegion(new(0), LowEnd << 12, "low"), new MemoryRegion(new(HighFirst << 12), (HighEnd - HighFirst) << 12, "high"), spare));
        GuestMemory memory = bus.Fixture.Memory;
        DynamicMemory balloon = bus.Balloon!;
        Model model = new(memory);
        BalloonDriver driver = Restart(bus, random);
        for (int i = 0; i < Mutations; i++)
        {
            switch (random.Next(14))
            {
                case 0:
                    balloon.SetTarget((ulong)random.Next((int)(memory.TotalBytes >> 12) + 1) << 12);
                    break;
                case 1:
                    bus.Fixture.Time.Advance(TimeSpan.FromSeconds(random.Next(7)));
                    break;
                case 2 when random.Next(40) == 0:
                    bus.Server.Reset();
                    balloon.Reset();
                    model.Reset();
                    driver = Restart(bus, random);
                    break;
                case 3 when random.Next(10) == 0:
                    VmBusSavedState state = bus.Server.Save();
                    bus.Server.Reset();
                    balloon.Reset();
                    bus.Server.Restore(state);
                    break;
                case 4:
                    Report(bus, model, random);
                    break;
                default:
                    byte[] message = Message(driver, model, random);
                    driver.Channel.Send(message);
                    model.Sent(message);
                    break;
            }
            for (int n = 0; driver.Channel.Receive() is { } m; n++)
            {
                Assert.True(n < 8, "the host does not stop asking");
                model.Received(m);
            }
            Assert.Equal((i, (ulong)model.Given.Count + (SpareEnd - SpareFirst) - model.Added), (i, balloon.GetReport().ActualBytes >> 12));
            if (i % 50 == 0)
                model.CheckContents();
        }
        model.CheckContents();
        Reached reached = new(model.GivenEver, model.TakenEver, (long)model.Added, (long)balloon.GetReport().ReportedBytes, balloon.Spurious);
        ServesAGoodDriver(bus);
        return reached;
    }

    private static BalloonDriver Restart(GuestBus bus, Random random)
    {
        bus.Connect();
        BalloonDriver driver = new(bus.Open(bus.Balloon!));
        uint capabilities = 3u | (uint)random.Next(2) << 2;
        driver.Connect(capabilities: capabilities);
        return driver;
    }

    private static void ServesAGoodDriver(GuestBus bus)
    {
        bus.Server.Reset();
        bus.Balloon!.Reset();
        bus.Balloon.SetTarget((SpareEnd - SpareFirst + 1) << 12);
        bus.Connect();
        BalloonDriver driver = new(bus.Open(bus.Balloon));
        driver.Connect();
        Assert.Equal(1u, driver.TakeBalloonRequest());
        driver.Give(more: false, (FirstPage, 1));
        Assert.Equal(BalloonReason.Reached, bus.Balloon.GetReport().Reason);
    }

    private static void Report(GuestBus bus, Model model, Random random)
    {
        int count = random.Next(1, 100);
        ulong[] ranges = [.. Enumerable.Range(0, count).Select(_ => random.Next(30) == 0 ? Odd(random) | 1UL << 60 : Page(random) << 12 | (uint)random.Next(3))];
        bus.Fixture.Memory.Write(new(PartitionFixture.Input), random.Next(10) == 0 ? Odd(random) : 2UL);
        for (int i = 0; i < count; i++)
            bus.Fixture.Memory.Write(new(PartitionFixture.Input + 8 + ((ulong)i * 8)), ranges[i]);
        ulong result = bus.Fixture.Call(0x8003 | (ulong)count << 32 | (ulong)random.Next(count) << 48, PartitionFixture.Input);
        Assert.Contains((ushort)result, new ushort[] { 0, 5 });
        // What was taken is free memory; the guest fills it again.
        model.Refill();
    }

    private static ulong Odd(Random random) => HostileValues.Odd(random, 600);

    // The tests' own rings lie below.
    private static ulong Page(Random random) => random.Next(8) switch
    {
        0 => LowEnd - 3 + (ulong)random.Next(6),
        1 => HighFirst - 3 + (ulong)random.Next(0x110),
        2 => SpareFirst - 3 + (ulong)random.Next((int)(SpareEnd - SpareFirst) + 6),
        3 => (FirstPage + (ulong)random.NextInt64()) & ((1UL << 40) - 1) | FirstPage << 2,
        _ => FirstPage + (ulong)random.Next((int)(LowEnd - FirstPage)),
    };

    private static byte[] Message(BalloonDriver driver, Model model, Random random)
    {
        byte[] message;
        switch (random.Next(10))
        {
            case 0:
                message = new byte[random.Next(60)];
                random.NextBytes(message);
                if (message.Length >= 4 && random.Next(2) == 0)
                    (message[1], message[3]) = (0, 0);
                return message;
            case 1:
                message = driver.Message((ushort)random.Next(16), 16, (8, (uint)Odd(random)), (12, (uint)Odd(random)));
                break;
            case 2:
                message = driver.Message(5, 48, (8, (uint)Odd(random)), (16, (uint)Odd(random)));
                break;
            case 3:
                message = driver.Message(9, 8);
                break;
            case 4:
                message = driver.Message(11, 16, (8, random.Next(3) switch { 0 => 0, 1 => (uint)model.Asked, _ => (uint)Odd(random) }), (12, random.Next(30) == 0 ? 1u : 0));
                break;
            default:
                int count = random.Next(1, 8);
                message = driver.Message(7, 16 + (8 * count), (12, (random.Next(20) == 0 ? (uint)Odd(random) : (uint)count) << 1 | (uint)random.Next(2)));
                for (int i = 0; i < count; i++)
                {
                    ulong pages = random.Next(10) switch { 0 => Odd(random), 1 => model.Asked - model.Got, _ => (ulong)random.Next(1, 40) };
                    BinaryPrimitives.WriteUInt64LittleEndian(message.AsSpan(16 + (8 * i)), Page(random) | pages << 40);
                }
                break;
        }
        if (random.Next(12) == 0)
            message[random.Next(message.Length)] ^= (byte)(1 << random.Next(8));
        // Nor may a bit that flipped name the pages of those rings.
        for (int at = 16; message[0] == 7 && at + 8 <= message.Length; at += 8)
        {
            ulong range = BinaryPrimitives.ReadUInt64LittleEndian(message.AsSpan(at));
            if ((range & ((1UL << 40) - 1)) < FirstPage)
                BinaryPrimitives.WriteUInt64LittleEndian(message.AsSpan(at), range | FirstPage);
        }
        return message;
    }

    /// <summary>The rules once more, page by page.</summary>
    private sealed class Model
    {
        private readonly GuestMemory memory;
        private ulong addFirst = SpareFirst;
        private int state;

        public Model(GuestMemory memory)
        {
            this.memory = memory;
            Refill();
        }

        public HashSet<ulong> Given { get; } = [];

        public ulong Asked { get; private set; }

        public ulong Got { get; private set; }

        public ulong Added { get; private set; }

        public long GivenEver { get; private set; }

        public long TakenEver { get; private set; }

        public void Reset()
        {
            Given.Clear();
            (Added, Asked, Got, state, addFirst) = (0, 0, 0, 0, SpareFirst);
            Refill();
        }

        private static IEnumerable<ulong> Pages => Range(FirstPage, LowEnd).Concat(Range(HighFirst, HighEnd)).Concat(Range(SpareFirst, SpareEnd));

        private static IEnumerable<ulong> Range(ulong first, ulong stop)
        {
            for (ulong page = first; page < stop; page++)
                yield return page;
        }

        private void Fill(ulong page) => memory.Write(new(page << 12), page | 1UL << 63);

        public void Refill()
        {
            foreach (ulong page in Pages.Where(p => !Given.Contains(p)))
                Fill(page);
        }

        public void CheckContents()
        {
            foreach (ulong page in Pages)
                Assert.Equal((page, Given.Contains(page) ? 0 : page | 1UL << 63), (page, memory.Read<ulong>(new(page << 12))));
        }

        private bool IsMemory(ulong page) => page is < LowEnd or (>= HighFirst and < HighEnd) or (>= SpareFirst and < SpareEnd);

        public void Sent(byte[] m)
        {
            if (m.Length < 8)
                return;
            int size = BinaryPrimitives.ReadUInt16LittleEndian(m.AsSpan(2));
            // The ring pads to eight bytes.
            byte[] padded = [.. m, .. new byte[(8 - (m.Length % 8)) % 8]];
            if (size > padded.Length || size < 8)
                return;
            ushort type = BinaryPrimitives.ReadUInt16LittleEndian(m);
            if (type == 9 && state == 8)
                state = 0;
            if (type == 11 && state == 10 && size >= 16)
            {
                uint pages = BinaryPrimitives.ReadUInt32LittleEndian(padded.AsSpan(8));
                state = 0;
                if (pages > 0)
                {
                    Added += Math.Min(pages, Asked);
                    addFirst += Asked;
                }
            }
            if (type != 7 || state != 6 || size < 16)
                return;
            uint word = BinaryPrimitives.ReadUInt32LittleEndian(padded.AsSpan(12));
            for (int i = 0; i < (int)(word >> 1) && 16 + (8 * i) + 8 <= size; i++)
            {
                ulong range = BinaryPrimitives.ReadUInt64LittleEndian(padded.AsSpan(16 + (8 * i))), first = range & ((1UL << 40) - 1), count = range >> 40;
                if (count == 0 || count > Asked - Got || !Range(first, first + count).All(p => IsMemory(p) && !Given.Contains(p) && !(p >= addFirst && p < SpareEnd)))
                    continue;
                foreach (ulong page in Range(first, first + count))
                    Given.Add(page);
                Got += count;
                GivenEver += (long)count;
            }
            if ((word & 1) == 0)
                state = 0;
        }

        public void Received(byte[] m)
        {
            ushort type = BinaryPrimitives.ReadUInt16LittleEndian(m);
            if (type is 2 or 4)
                return;
            Assert.Equal((0, true), (state, type is 6 or 8 or 10));
            state = type;
            switch (type)
            {
                case 6:
                    (Asked, Got) = (BinaryPrimitives.ReadUInt32LittleEndian(m.AsSpan(8)), 0);
                    Assert.InRange(Asked, 1UL, LowEnd * 2);
                    break;
                case 8:
                    uint count = BinaryPrimitives.ReadUInt32LittleEndian(m.AsSpan(12));
                    for (int i = 0; i < count; i++)
                    {
                        ulong range = BinaryPrimitives.ReadUInt64LittleEndian(m.AsSpan(16 + (8 * i))), first = range & ((1UL << 40) - 1);
                        foreach (ulong page in Range(first, first + (range >> 40)))
                        {
                            Assert.True(Given.Remove(page), $"page 0x{page:x} comes back, but was not given");
                            Assert.Equal(0UL, memory.Read<ulong>(new(page << 12)));
                            Fill(page);
                            TakenEver++;
                        }
                    }
                    break;
                default:
                    ulong where = BinaryPrimitives.ReadUInt64LittleEndian(m.AsSpan(8));
                    addFirst = where & ((1UL << 40) - 1);
                    Asked = where >> 40;
                    Assert.Equal((0UL, true), (addFirst % Asked, addFirst >= SpareFirst && addFirst + Asked <= SpareEnd));
                    break;
            }
        }
    }
}
