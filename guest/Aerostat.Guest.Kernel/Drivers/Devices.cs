using Aerostat.Guest.Drivers;

namespace Aerostat.Guest.Kernel;

/// <summary>The devices that were found, and their drivers.</summary>
internal sealed class Devices
{
    private const int MostBalloons = 4, BalloonType = 5;
    private const uint Functions = 1 << 16;

    private readonly KernelPlatform platform;
    private readonly BalloonDriver?[] balloons = new BalloonDriver?[MostBalloons];

    public Devices(KernelPlatform platform)
    {
        this.platform = platform;
        Storage = new Storage(platform);
        Snapshots = new SnapshotService(platform, Storage);
    }

    public Storage Storage { get; }

    public SnapshotService Snapshots { get; }

    /// <summary>PCI functions that answered.</summary>
    public ulong PciFunctions { get; private set; }

    public int BalloonCount { get; private set; }

    public BalloonDriver? Balloon(int index) => balloons[index];

    /// <summary>Looks at every PCI function and at the hypervisor's name, and starts what there is a driver for.</summary>
    public void Find()
    {
        bool hintsOf2018 = BootInformation.HasOption("hints", out ulong year) && year == 2018;
        // Buses without devices cost one access for each of 32 slots; the last one with something on it is known from the bridges.
        uint buses = 1;
        for (uint bus = 0; bus < buses; bus++)
            for (uint slot = 0; slot < 32; slot++)
            {
                uint first = (bus << 8) | (slot << 3);
                PciFunction function = new(platform, first);
                if (function.Vendor == 0xFFFF)
                    continue;
                uint count = function.HasMoreFunctions ? 8u : 1u;
                for (uint i = 0; i < count; i++)
                {
                    PciFunction found = new(platform, first | i);
                    if (found.Vendor == 0xFFFF)
                        continue;
                    PciFunctions++;
                    if (found.IsBridge)
                        buses = System.Math.Max(buses, found.Read(0x1A, 1) + 1);
                    if (VirtioPciTransport.TypeOf(found) == BalloonType)
                        AddPciBalloon(found, hintsOf2018);
                    else if (VirtioPciTransport.TypeOf(found) == VirtioBlockDriver.Type)
                        Storage.Add(OpenPci(found));
                }
            }
        VmwareTransport? vmware = VmwareTransport.Open(platform, BootInformation.HasOption("batched", out _));
        if (vmware is not null)
            Add(vmware, hintsOf2018);
        if (BalloonCount == 0)
            Console.WriteLine("balloon: no device");
        Storage.Start();
        Snapshots.Start();
    }

    /// <summary>Lets each driver do what it can; true: at once again.</summary>
    public bool Service()
    {
        Snapshots.Service();
        bool more = Storage.Service();
        for (int i = 0; i < BalloonCount; i++)
            if (balloons[i] is { } balloon && balloon.Service())
                more = true;
        return more;
    }

    /// <summary>Memory is short; true: some came free.</summary>
    public bool ReleaseForOom()
    {
        bool released = false;
        for (int i = 0; i < BalloonCount; i++)
            if (balloons[i] is { } balloon && balloon.ReleaseForOom())
                released = true;
        return released;
    }

    private VirtioPciTransport? OpenPci(PciFunction function)
    {
        for (int i = 0; i < 6; i++)
        {
            ulong window = function.BaseAddress(i);
            if (window >= 1UL << 32)
                PageTables.MapDevice(window, 1 << 16);
        }
        return VirtioPciTransport.Open(platform, function);
    }

    private void AddPciBalloon(PciFunction function, bool hintsOf2018)
    {
        VirtioPciTransport? transport = OpenPci(function);
        if (transport is null)
            Console.WriteLine("balloon: the device lacks the structures of virtio 1");
        else
            Add(transport, hintsOf2018);
    }

    private void Add(VirtioTransport transport, bool hintsOf2018)
    {
        if (BalloonCount == MostBalloons)
            return;
        BalloonDriver balloon = new(platform, transport, hintsOf2018);
        string? wrong = balloon.Start();
        Console.Write("balloon: ");
        Console.Write(transport.Name);
        if (wrong is not null)
        {
            Console.Write(": ");
            Console.WriteLine(wrong);
            return;
        }
        balloons[BalloonCount++] = balloon;
        Console.Write(", features 0x");
        Console.WriteHex(balloon.Features & 0xFFFF_FFFF);
        Console.Write('\n');
    }
}
