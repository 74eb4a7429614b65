using System.Diagnostics;
using System.Globalization;
using Aerostat.Chipset;
using Aerostat.Devices;
using Aerostat.Memory;

namespace Aerostat.Virtio.Tests;

/// <summary>
/// Hostile guests: a driver that starts out right and then writes seeded nonsense into its rings, its buffers and every register. The device
/// must come to rest after every burst, must not throw, and must touch no memory that is not the guest's: the holes of the memory map have
/// no access rights, so that would end the test run. Afterwards it must still serve a driver that resets it. AEROSTAT_FUZZ_SECONDS makes it run
/// longer with other seeds.
/// </summary>
public sealed class HostileDriverTests
{
    private const int Guests = 25, Mutations = 800;
    private const ulong Low = 4 << 20, HighBase = 6 << 20, High = 1 << 20, WindowBase = 0xC000_0000;

    /// <summary>Devices by name, with how to make one.</summary>
    private static readonly Dictionary<string, Func<VirtioContext, VirtioDevice>> s_devices = new()
    {
        ["rng"] = context => new VirtioRng("rng", packed: true, context),
        ["block"] = context => new VirtioBlock("block", new MemoryDisk(1 << 20), "serial", 3, packed: true, context),
        ["balloon"] = context => new VirtioBalloon("balloon", new BalloonDeviceOptions { DeflateOnOom = true, Packed = true, TargetBytes = 1 << 20 }, context),
        ["console"] = context =>
        {
            VirtioConsole console = new("console", [("one", null), ("two", null)], packed: true, context);
            console.Send(0, new byte[3000]);
            console.Send(1, new byte[100]);
            return console;
        },
        ["echo"] = context => new EchoDevice(context),
    };

    public static TheoryData<string> Devices => [.. s_devices.Keys];

    [Theory, MemberData(nameof(Devices))]
    public void NothingIsLost(string device)
    {
        foreach (string line in CaseStore.Lines("guests"))
            if (line.Split(' ') is [var name, var seed] && name == device)
                Run(device, int.Parse(seed, CultureInfo.InvariantCulture));
        for (int seed = 1000; seed < 1000 + Guests; seed++)
            Try(device, seed);
        if (double.TryParse(Environment.GetEnvironmentVariable("AEROSTAT_FUZZ_SECONDS"), CultureInfo.InvariantCulture, out double seconds))
        {
            long start = Stopwatch.GetTimestamp(), mutations = 0;
            for (int seed = Random.Shared.Next(); Stopwatch.GetElapsedTime(start).TotalSeconds < seconds; seed = Random.Shared.Next(), mutations += Mutations)
                Try(device, seed);
            TestContext.Current.TestOutputHelper?.WriteLine($"{device}: {mutations} mutations");
        }
    }

    private static void Try(string device, int seed)
    {
        try
        {
            Run(device, seed);
        }
        catch (Exception e)
        {
            throw new InvalidOperationException($"{device} with seed {seed}: {CaseStore.Save("guests", $"{device} {seed}", e.Message)}", e);
        }
    }

    private static void Run(string name, int seed)
    {
        Random random = new(seed);
        using GuestMemory memory = new(new MemoryRegion(new(0), Low, "low"), new MemoryRegion(new(HighBase), High, "high"));
        ListLog log = new();
        VirtioDevice device = s_devices[name](new VirtioContext(memory, log));
        try
        {
            CountingLine pin = new();
            PciMemorySpace space = new();
            IMmioDevice window = space.OpenWindow(WindowBase, 0x10_0000);
            PciBus bus = new();
            PciEcamWindow ecam = new(bus);
            VirtioPci function = new(device, space, new CountingMessages(), pin);
            bus.Attach(0, 0, function);
            PciEndpoint.Assign([function], space);
            Driver driver = new(memory, device);
            int restarts = 0;
            for (int i = 0; i < Mutations; i++)
            {
                if (i % 40 == 0 || (device.IsRunning == false && random.Next(4) == 0))
                {
                    Restart(driver, random);
                    restarts++;
                }
                Mutate(random, driver, window, ecam);
                if (i % 3 == 0)
                {
                    Settle(device, i);
                }
            }
            Settle(device, -1);
            Assert.DoesNotContain(log.Lines, l => l.Contains("device itself failed", StringComparison.Ordinal));
            Assert.InRange(log.Lines.Count, 0, 100);
            // Whatever has happened, a good driver is served after a reset.
            bus.Detach(0, 0);
            Restart(driver, new Random(seed), features: VirtioFeatures.Version1);
            Assert.True(device.IsRunning);
        }
        finally
        {
            device.Stop();
        }
    }

    private static void Settle(VirtioDevice device, int mutation)
    {
        Task idle = Task.Run(device.WaitUntilIdle);
        Assert.True(idle.Wait(TimeSpan.FromSeconds(60)), $"the device does not come to rest after mutation {mutation}");
    }

    private static void Restart(Driver driver, Random random, ulong? features = null)
    {
        driver.Write(0x70, 0);
        driver.Settle();
        ulong offered = driver.Offered;
        ulong wanted = (features ?? ((ulong)random.NextInt64() & offered)) | VirtioFeatures.Version1;
        driver.Start(wanted & offered, (ushort)(8 << random.Next(4)));
        foreach (DriverQueue queue in driver.Queues)
        {
            for (int i = random.Next(4); i > 0; i--)
                queue.Add(
                    new Buffer((ulong)random.NextInt64(0x20_0000, 0x30_0000), (uint)random.Next(1, 5000), false),
                    new Buffer((ulong)random.NextInt64(0x30_0000, 0x3F_0000), (uint)random.Next(1, 5000), true));
            queue.Kick();
        }
    }

    private static void Mutate(Random random, Driver driver, IMmioDevice window, PciEcamWindow ecam)
    {
        DriverQueue queue = driver.Queues[random.Next(driver.Queues.Length)];
        ulong value = random.Next(5) switch
        {
            0 => (ulong)random.Next(8),
            1 => 1UL << random.Next(64),
            2 => ulong.MaxValue - (ulong)random.Next(5000),
            3 => (random.Next(2) == 0 ? Low : HighBase) + (ulong)random.Next(-5000, 5000),
            _ => (ulong)random.NextInt64(),
        };
        int size = 1 << random.Next(4);
        switch (random.Next(16))
        {
            case < 4:
                // A field of a descriptor.
                ulong at = queue.Descriptors + (16UL * (uint)random.Next(queue.Size)) + (ulong)random.Next(4) switch { 0 => 0, 1 => 8, 2 => 12, _ => 14 };
                if ((at & 15) == 0)
                    queue.Put(at, value);
                else if ((at & 15) == 8)
                    queue.Put(at, (uint)value);
                else
                    queue.Put(at, (ushort)value);
                break;
            case 4:
                // A descriptor that makes some sense.
                ulong d = queue.Descriptors + (16UL * (uint)random.Next(queue.Size));
                queue.Put(d, (ulong)random.NextInt64((long)(HighBase + High)));
                queue.Put(d + 8, (uint)random.Next(10000));
                queue.Put(d + 12, (ushort)random.Next(8));
                queue.Put(d + 14, (ushort)(random.Next(2) == 0 ? random.Next(queue.Size) : random.Next(8) | (random.Next(2) == 0 ? 0x80 : 0x8000)));
                break;
            case 5:
                queue.Put(queue.DriverArea + ((ulong)random.Next(20) * 2), (ushort)value);
                break;
            case 6:
                queue.MakeAvailable((ushort)random.Next(queue.Size));
                break;
            case 7:
                queue.Put(queue.DeviceArea + ((ulong)random.Next(20) * 2), (ushort)value);
                break;
            case 8:
                driver.Memory.TryWrite(new GuestAddress((ulong)random.NextInt64((long)Low - 8)), value);
                break;
            case < 12:
                queue.Kick();
                break;
            case 12:
                driver.Registers.WriteMmio((ulong)random.Next(0x140), size, value);
                driver.Registers.ReadMmio((ulong)random.Next(0x140), size);
                break;
            case 13:
                window.WriteMmio((ulong)random.Next(0x1_0000), size, value);
                window.ReadMmio((ulong)random.Next(0x1_0000), size);
                break;
            case 14:
                ecam.WriteMmio((ulong)random.Next(0x110), size, value);
                ecam.ReadMmio((ulong)random.Next(0x110), size);
                break;
            default:
                driver.Registers.WriteMmio(4 * (ulong)random.Next(0x30), 4, (uint)random.Next(16));
                break;
        }
    }
}
