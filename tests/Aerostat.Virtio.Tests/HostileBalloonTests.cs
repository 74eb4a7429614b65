using System.Buffers.Binary;
using System.Diagnostics;
using System.Globalization;
using Aerostat.Devices;
using Aerostat.Memory;

namespace Aerostat.Virtio.Tests;

/// <summary>
/// Guests that know the balloon and mean it ill: frame numbers outside of memory, buffers of 4 GiB, chains that bite their tail, directions
/// swapped, statistics and commands of odd sizes, buffers before DRIVER_OK, resets in the middle, while the host changes targets and asks for hints. The
/// device must come to rest, must not throw, must touch no memory that is not the guest's (the holes have no access rights) and none that the
/// guest did not name (a region of its own that no act ever names keeps its contents), and must serve a good driver afterwards.
/// AEROSTAT_BALLOON_MUTATIONS=N makes it go on for N mutations with other seeds.
/// </summary>
public sealed class HostileBalloonTests
{
    private const int Guests = 15, Mutations = 1000;
    private const ulong Low = 4 << 20, HighBase = 6 << 20, High = 1 << 20, Kept = 0x9A5C_3000, KeptSize = 64 << 10, Buffers = 0x20_0000;
    private const ulong MustTell = 1;

    /// <summary>Takes hints and looks at them.</summary>
    private sealed class Taker(GuestMemory memory) : IFreePageHints
    {
        private int _wrong;

        public int Wrong => Volatile.Read(ref _wrong);

        public void Hint(GuestAddress address, ulong length)
        {
            if (!memory.Contains(address.Value, length) || ((address.Value | length) & 4095) != 0)
                Interlocked.Increment(ref _wrong);
        }

        public void Finished(bool complete)
        {
        }
    }

    [Fact]
    public void NothingIsLost()
    {
        foreach (string line in CaseStore.Lines("balloons"))
            Run(int.Parse(line, CultureInfo.InvariantCulture));
        // Acts that all bounce off would show nothing: together they must get to everything the device does.
        Reached all = default;
        for (int seed = 1; seed <= Guests; seed++)
            all += Try(seed);
        Assert.True(all is { Given: > 0, Taken: > 0, Reported: > 0, Hinted: > 0, Statistics: > 0, Complaints: > 0 }, $"{all}");
        if (!long.TryParse(Environment.GetEnvironmentVariable("AEROSTAT_BALLOON_MUTATIONS"), CultureInfo.InvariantCulture, out long wanted))
            return;
        long start = Stopwatch.GetTimestamp(), done = 0;
        for (int seed = Random.Shared.Next(1 << 20, 1 << 30); done < wanted; seed++, done += Mutations)
            Try(seed);
        TestContext.Current.TestOutputHelper?.WriteLine($"{done} mutations in {Stopwatch.GetElapsedTime(start).TotalSeconds:0} s");
    }

    /// <summary>How often the device was got to do what.</summary>
    private readonly record struct Reached(long Given, long Taken, long Reported, long Hinted, long Statistics, long Complaints)
    {
        public static Reached operator +(Reached a, Reached b) =>
            new(a.Given + b.Given, a.Taken + b.Taken, a.Reported + b.Reported, a.Hinted + b.Hinted, a.Statistics + b.Statistics, a.Complaints + b.Complaints);
    }

    private static Reached Try(int seed)
    {
        try
        {
            return Run(seed);
        }
        catch (Exception e)
        {
            throw new InvalidOperationException($"seed {seed}: {CaseStore.Save("balloons", $"{seed}", e.Message)}", e);
        }
    }

    private static Reached Run(int seed)
    {
        Random random = new(seed);
        using GuestMemory memory = new(new MemoryRegion(new(0), Low, "low"), new MemoryRegion(new(HighBase), High, "high"), new MemoryRegion(new(Kept), KeptSize, "kept"));
        byte[] pattern = new byte[KeptSize];
        // No four bytes of it are the number of a frame.
        pattern.AsSpan().Fill(0xD7);
        memory.Write(new GuestAddress(Kept), pattern);
        ListLog log = new();
        Taker taker = new(memory);
        VirtioBalloon balloon = new("balloon", new BalloonDeviceOptions { DeflateOnOom = random.Next(2) == 0, Packed = true, TargetBytes = 1 << 20 }, new VirtioContext(memory, log));
        try
        {
            Driver driver = new(memory, balloon);
            long given = 0, taken = 0;
            ulong before = 0;
            for (int i = 0; i < Mutations; i++)
            {
                if (i % 60 == 0 || (!balloon.IsRunning && random.Next(6) == 0))
                    Restart(driver, random);
                if (i % 250 == 100)
                    HintRun(balloon, driver, taker, random);
                else if (random.Next(10) == 0)
                    Host(balloon, taker, random);
                else
                    Guest(driver, random);
                if (i % 20 != 19)
                    continue;
                ulong pages = Settle(balloon, i).ActualBytes >> 12;
                (given, taken) = (given + (pages > before ? 1 : 0), taken + (pages < before ? 1 : 0));
                before = pages;
            }
            balloon.StopHints(release: true);
            Settle(balloon, Mutations);
            Assert.Equal(0, taker.Wrong);
            Assert.DoesNotContain(log.Lines, l => l.Contains("device itself failed", StringComparison.Ordinal));
            Assert.InRange(log.Lines.Count, 0, 100);
            byte[] kept = new byte[KeptSize];
            Assert.True(memory.TryRead(new GuestAddress(Kept), kept));
            Assert.Equal(pattern, kept);
            BalloonReport last = balloon.GetReport();
            Reached reached = new(given, taken, (long)last.ReportedBytes, (long)balloon.HintedBytes, last.Statistics.Values.Count, balloon.Complaints);
            ServesAGoodDriver(balloon, driver);
            return reached;
        }
        finally
        {
            balloon.Stop();
        }
    }

    private static void ServesAGoodDriver(VirtioBalloon balloon, Driver driver)
    {
        balloon.SetTarget(4096);
        driver.Write(0x70, 0);
        driver.Settle();
        driver.Start(balloon.OfferedFeatures & ~VirtioFeatures.RingPacked, 64);
        Assert.Equal(0UL, balloon.GetReport().ActualBytes);
        Assert.True(driver.Memory.TryFill(new GuestAddress(0x30_0000), 4096, 1));
        driver.Memory.Write(new GuestAddress(Buffers), 0x300u);
        driver.Queues[0].Add(new Buffer(Buffers, 4, false));
        driver.Queues[0].Kick();
        driver.Settle();
        driver.Queues[0].MustTakeUsed();
        Assert.Equal(4096UL, balloon.GetReport().ActualBytes);
        Assert.Equal(BalloonReason.Reached, balloon.GetReport().Reason);
        Assert.Equal(0, driver.Memory.Read<byte>(new GuestAddress(0x30_0000)));
    }

    private static BalloonReport Settle(VirtioBalloon balloon, int mutation)
    {
        Task idle = Task.Run(balloon.WaitUntilIdle);
        Assert.True(idle.Wait(TimeSpan.FromSeconds(120)), $"the device does not come to rest after mutation {mutation}");
        BalloonReport report = balloon.GetReport();
        Assert.True(report.ActualBytes <= balloon.Memory.TotalBytes, $"a balloon of {report.ActualBytes} bytes after mutation {mutation}");
        Assert.InRange(report.Statistics.Values.Count, 0, 256);
        return report;
    }

    private static void Restart(Driver driver, Random random)
    {
        driver.Write(0x70, 0);
        driver.Settle();
        ulong features = ((ulong)random.NextInt64() | (random.Next(2) == 0 ? MustTell : 0)) & driver.Offered;
        driver.Start(features | VirtioFeatures.Version1, (ushort)(8 << random.Next(4)), ok: random.Next(4) != 0);
    }

    // What the host does meanwhile.
    private static void Host(VirtioBalloon balloon, Taker taker, Random random)
    {
        switch (random.Next(5))
        {
            case 0:
                balloon.SetTarget((ulong)random.NextInt64((long)balloon.Memory.TotalBytes + 1));
                break;
            case 1:
                balloon.RequestStatistics();
                break;
            case 2:
                balloon.TryStartHints(taker);
                break;
            case 3:
                balloon.StopHints(release: random.Next(2) == 0);
                break;
            default:
                balloon.Quiesce();
                balloon.Resume();
                break;
        }
    }

    // A run of hints that begins as it should, for random acts rarely do, and whose hints are anything.
    private static void HintRun(VirtioBalloon balloon, Driver driver, Taker taker, Random random)
    {
        balloon.StopHints(release: false);
        driver.Write(0x70, 0);
        driver.Settle();
        driver.Start(driver.Offered & ~(random.Next(2) == 0 ? VirtioFeatures.RingPacked : 0), 64);
        Assert.True(balloon.TryStartHints(taker));
        DriverQueue queue = driver.Queues[3];
        bool addresses = random.Next(2) == 0;
        driver.Memory.Write(new GuestAddress(Buffers), (uint)driver.Registers.ReadMmio(0x108, 4) | ((ulong)(4096u << random.Next(4)) << 32));
        Offer(queue, random, [new Buffer(Buffers, addresses ? 8u : 4, false)]);
        for (int i = 0; i < 8; i++)
        {
            if (addresses)
                driver.Memory.Write(new GuestAddress(Buffers + 4096 + ((ulong)i * 8)), Address(random));
            else
                Offer(queue, random, [new Buffer(Address(random), Length(random), true)]);
        }
        if (addresses)
            Offer(queue, random, [new Buffer(Buffers + 4096, Length(random) % 100, true)]);
        queue.Kick();
        driver.Settle();
    }

    private static void Guest(Driver driver, Random random)
    {
        DriverQueue queue = driver.Queues[random.Next(driver.Queues.Length)];
        switch (random.Next(14))
        {
            case < 4:
                // A chain that is right in its form, wrong in what it says.
                Fill(driver, random);
                Buffer[] chain = new Buffer[random.Next(4) == 0 ? random.Next(1, queue.Size + 1) : random.Next(1, 4)];
                for (int i = 0; i < chain.Length; i++)
                    chain[i] = new Buffer(Address(random), Length(random), random.Next(2) == 0);
                // Descriptors run out, for nobody takes used ones: the ring is written over then.
                Offer(queue, random, chain);
                break;
            case 4 or 5:
                // One that makes sense: frames, a command, statistics, a block.
                Fill(driver, random);
                Offer(queue, random, [new Buffer(Buffers, Length(random) % 4096, queue.Index > 2 && random.Next(3) != 0)]);
                break;
            case 6:
                // A descriptor whose next is itself, or any other.
                ulong d = queue.Descriptors + (16UL * (uint)random.Next(queue.Size));
                queue.Put(d + 12, (ushort)(1 | random.Next(8)));
                queue.Put(d + 14, (ushort)random.Next(queue.Size + 2));
                break;
            case 7:
                ulong field = queue.Descriptors + (16UL * (uint)random.Next(queue.Size));
                if (random.Next(2) == 0)
                    queue.Put(field, Address(random));
                else
                    queue.Put(field + 8, Length(random));
                break;
            case 8:
                queue.Put(queue.DriverArea + ((ulong)random.Next(20) * 2), (ushort)random.Next(0x10000));
                break;
            case 9:
                driver.Registers.WriteMmio(0x100 + (ulong)random.Next(20), 1 << random.Next(4), (ulong)random.NextInt64());
                driver.Registers.ReadMmio(0x100 + (ulong)random.Next(20), 1 << random.Next(4));
                break;
            case 10:
                // DRIVER_OK late, queue resets, anything.
                if (random.Next(3) == 0)
                    driver.SetDriverOk();
                else
                    driver.Registers.WriteMmio(4 * (ulong)random.Next(0x34), 4, (uint)random.Next(16));
                break;
            case 11 or 12:
                // The command that the host waits for, and what may follow.
                uint id = (uint)driver.Registers.ReadMmio(0x108, 4);
                driver.Memory.Write(new GuestAddress(Buffers), id | ((ulong)(4096u << random.Next(11)) << 32));
                queue = driver.Queues[random.Next(2, driver.Queues.Length)];
                Offer(queue, random, [new Buffer(Buffers, (uint)(random.Next(2) == 0 ? 4 : random.Next(12)), false)]);
                queue.Kick();
                driver.Settle();
                for (int i = random.Next(4); i > 0; i--)
                    Offer(queue, random, [new Buffer(Address(random), Length(random), true)]);
                break;
            default:
                queue.Kick();
                break;
        }
        if (random.Next(2) == 0)
            queue.Kick();
    }

    private static void Offer(DriverQueue queue, Random random, Buffer[] chain)
    {
        if (queue.FreeDescriptors >= chain.Length && chain.Length > 0)
            queue.Add(indirect: random.Next(4) == 0 && chain.Length <= 16, chain);
        else
            queue.MakeAvailable((ushort)random.Next(queue.Size + 1));
    }

    // Frames, statistics, commands and addresses, for whoever reads there.
    private static void Fill(Driver driver, Random random)
    {
        Span<byte> bytes = stackalloc byte[4096];
        switch (random.Next(5))
        {
            case 0:
                for (int i = 0; i < bytes.Length; i += 4)
                    BinaryPrimitives.WriteUInt32LittleEndian(bytes[i..], Frame(random));
                break;
            case 1:
                uint first = Frame(random);
                for (int i = 0; i < bytes.Length; i += 4)
                    BinaryPrimitives.WriteUInt32LittleEndian(bytes[i..], first - (uint)(i / 4));
                break;
            case 2:
                for (int i = 0; i + 10 <= bytes.Length; i += 10)
                {
                    BinaryPrimitives.WriteUInt16LittleEndian(bytes[i..], (ushort)random.Next(0x10000));
                    BinaryPrimitives.WriteUInt64LittleEndian(bytes[(i + 2)..], (ulong)random.NextInt64());
                }
                break;
            case 3:
                BinaryPrimitives.WriteUInt32LittleEndian(bytes, (uint)random.Next(40));
                BinaryPrimitives.WriteUInt32LittleEndian(bytes[4..], random.Next(2) == 0 ? 4096u << random.Next(12) : (uint)random.Next());
                break;
            default:
                for (int i = 0; i < bytes.Length; i += 8)
                    BinaryPrimitives.WriteUInt64LittleEndian(bytes[i..], Address(random));
                break;
        }
        driver.Fill(Buffers, bytes);
    }

    // Anything but a number of the region that must be kept.
    private static uint Frame(Random random)
    {
        uint frame = random.Next(6) switch
        {
            0 => uint.MaxValue - (uint)random.Next(3),
            1 => (uint)((HighBase >> 12) + (ulong)random.Next(-3, 260)),
            2 => (uint)(Low >> 12) - (uint)random.Next(3),
            3 => (uint)random.NextInt64(1L << 32),
            _ => (uint)random.Next(0x280, 0x400),
        };
        return frame - (uint)(Kept >> 12) <= KeptSize >> 12 ? 0 : frame;
    }

    private static ulong Address(Random random)
    {
        ulong address = random.Next(6) switch
        {
            0 => (ulong)random.NextInt64(),
            1 => ulong.MaxValue - (ulong)random.Next(5000),
            2 => Low - (ulong)random.Next(5000),
            3 => HighBase + High - (ulong)random.Next(9000),
            4 => HighBase - (ulong)random.Next(5000),
            _ => (ulong)random.NextInt64(0x20_0000, (long)Low) & ~(random.Next(2) == 0 ? 4095UL : 0),
        };
        return address - Kept <= KeptSize || Kept - address <= uint.MaxValue ? address % Low : address;
    }

    private static uint Length(Random random) => random.Next(6) switch
    {
        0 => (uint)random.Next(12),
        1 => uint.MaxValue - (uint)random.Next(3),
        2 => 1u << random.Next(32),
        3 => 4096u * (uint)random.Next(1, 300),
        _ => (uint)random.Next(1, 5000),
    };
}
