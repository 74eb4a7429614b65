using Aerostat.Guest.Drivers;

namespace Aerostat.Guest.Kernel;

/// <summary>What freezes the file system for a host of Hyper-V's kind: the bus, the driver, and its daemon.</summary>
internal sealed class SnapshotService
{
    private readonly KernelPlatform platform;
    private readonly Storage storage;

    public SnapshotService(KernelPlatform platform, Storage storage)
    {
        this.platform = platform;
        this.storage = storage;
    }

    /// <summary>The bus; null: the machine has none.</summary>
    public VmbusConnection? Bus { get; private set; }

    public VolumeSnapshotDriver? Driver { get; private set; }

    public SnapshotDaemon? Daemon { get; private set; }

    /// <summary>"vmbus=N" on the command line asks for no higher version than N, "nodaemon" leaves the daemon to the shell.</summary>
    public void Start()
    {
        KernelHyperV hypervisor = new();
        if (!hypervisor.IsPresent)
            return;
        SnapshotMailbox mailbox = new();
        Driver = new VolumeSnapshotDriver(platform, mailbox);
        Daemon = new SnapshotDaemon(platform, mailbox);
        Bus = new VmbusConnection(platform, hypervisor, BootInformation.HasOption("vmbus", out ulong highest) && highest >= 3 ? (uint)highest : 5);
        string? wrong = Bus.Add(Driver);
        if (wrong is null)
            wrong = Bus.Start();
        if (wrong is not null)
        {
            Console.Write("vmbus: ");
            Console.WriteLine(wrong);
        }
        if (storage.FileSystem is not null)
            Daemon.Add(storage.FileSystem);
        if (!BootInformation.HasOption("nodaemon", out _))
            Daemon.Start();
    }

    public void Service()
    {
        if (Bus is null || Driver is null || Daemon is null)
            return;
        Bus.Service();
        Daemon.Service();
        // What the daemon answered goes on at once.
        Driver.TakeAnswers();
        Bus.Service();
    }
}
