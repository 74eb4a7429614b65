using System.Runtime.InteropServices;
using Aerostat.Guest.Drivers;
using Aerostat.HyperV;
using Aerostat.HyperV.Tests;
using Aerostat.Memory;
using Xunit;

namespace Aerostat.Guest.Tests;

/// <summary>The host's model of a Hyper-V partition, as the guest's drivers see it through a processor.</summary>
internal sealed class HostHyperV(PartitionFixture fixture, GuestMemory memory) : HyperVPlatform
{
    public ulong HypercallPage { get; private set; }

    public override bool IsPresent => true;

    public override bool EndsInterrupts => true;

    public override byte Vector => 0x44;

    public override ulong ReadMsr(uint register) => fixture.Read(0, register);

    public override void WriteMsr(uint register, ulong value) => fixture.Write(0, register, value);

    public override void UseHypercallPage(ulong page)
    {
        HypercallPage = page;
        // VMCALL and RET are in it, behind ENDBR64.
        if (page != 0)
            Assert.Equal(0xC3C1_010F_FA1E_0FF3, memory.Read<ulong>(new(page)));
    }

    public override ulong Hypercall(ulong control, ulong input, ulong output)
    {
        Assert.NotEqual(0ul, HypercallPage);
        return fixture.Call(control, input, output);
    }

    public override uint Exchange(ulong address, uint value)
    {
        Assert.True(memory.TryGetSpan(new GuestAddress(address), 4, out Span<byte> span));
        return Interlocked.Exchange(ref MemoryMarshal.AsRef<uint>(span), value);
    }
}

/// <summary>
/// The guest's bus, snapshot driver, daemon and file system in this process, on the host's models: each side is called when the other has told it to look, so that
/// a signal that is missing is seen.
/// </summary>
internal sealed class VmbusGuest : IDisposable
{
    public VmbusGuest(VmBusVersion? highest = null, uint guestMajor = 5, bool thread = false)
    {
        Fixture = new PartitionFixture(2, Platform.Memory);
        Server = new VmBusServer(
            Fixture.Partition, Platform.Memory, Fixture.Time, new VmBusOptions { HasThread = thread, Version = highest ?? VmBusVersion.Highest, Log = Platform }, e => Failure = e);
        Components = new HyperVComponents(Server, Fixture.Time, null);
        Hypervisor = new HostHyperV(Fixture, Platform.Memory);
        Bus = new VmbusConnection(Platform, Hypervisor, guestMajor);
        Driver = new VolumeSnapshotDriver(Platform, Mailbox);
        Daemon = new SnapshotDaemon(Platform, Mailbox);
        FileSystem = new FileSystem(Platform);
        Disk = new MemoryDisk(Platform, 256);
        Assert.Equal(FileSystemError.None, FileSystem.Format(Disk));
        Assert.Equal(FileSystemError.None, FileSystem.Mount(Disk));
        Daemon.Add(FileSystem);
        Records = new RecordWriter(FileSystem);
        Assert.Equal(FileSystemError.None, Records.Start());
    }

    public HostPlatform Platform { get; } = new();
    public PartitionFixture Fixture { get; }
    public VmBusServer Server { get; }
    public HyperVComponents Components { get; }
    public HostHyperV Hypervisor { get; }
    public VmbusConnection Bus { get; }
    public SnapshotMailbox Mailbox { get; } = new();
    public VolumeSnapshotDriver Driver { get; }
    public SnapshotDaemon Daemon { get; }
    public MemoryDisk Disk { get; }
    public FileSystem FileSystem { get; }
    public RecordWriter Records { get; }
    public Exception? Failure { get; private set; }

    public VmbusChannelState ChannelState => Bus.Channel(0)!.State;

    /// <summary>Adds the driver and enters the bus, with a daemon or without.</summary>
    public void Start(bool daemon = true)
    {
        Assert.Null(Bus.Add(Driver));
        Assert.Null(Bus.Start());
        if (daemon)
            Daemon.Start();
        Run();
    }

    /// <summary>Lets both sides do what they are told to.</summary>
    public void Run(int rounds = 60)
    {
        bool interrupted = true;
        for (int i = 0; i < rounds; i++)
        {
            Server.Process();
            while (Fixture.TakeInterrupt(0) is >= 0 and var vector)
            {
                Assert.Equal(Hypervisor.Vector, vector);
                interrupted = true;
            }
            if (interrupted)
                Bus.Service();
            Daemon.Service();
            interrupted = Mailbox.ToDriver.Count > 0;
            Records.Service();
        }
        Assert.Null(Failure);
    }

    /// <summary>Time passes on both sides; a kernel looks at its bus with each tick.</summary>
    public void Pass(double seconds)
    {
        Platform.Pass(TimeSpan.FromSeconds(seconds));
        Fixture.Time.Advance(TimeSpan.FromSeconds(seconds));
        Bus.Service();
        Run();
    }

    /// <summary>How many records a copy of the disk has; it is whole, and for reading only.</summary>
    public ulong CountCopy()
    {
        FileSystem copy = new(Platform);
        Assert.Equal(FileSystemError.None, copy.Mount(Disk.Copy(), forReading: true));
        Assert.Equal((FileSystemError.None, 0ul), (copy.Check(out ulong faults), faults));
        Assert.True(new RecordWriter(copy).Verify(out ulong count));
        copy.Release();
        return count;
    }

    public void Dispose() => Platform.Dispose();
}
