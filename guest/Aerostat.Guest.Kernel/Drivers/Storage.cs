using Aerostat.Guest.Drivers;

namespace Aerostat.Guest.Kernel;

/// <summary>The first disk, the file system on it, and the task that writes records to that.</summary>
internal sealed class Storage
{
    private readonly KernelPlatform platform;

    public Storage(KernelPlatform platform) => this.platform = platform;

    /// <summary>The disk; null: there is none.</summary>
    public VirtioBlockDriver? Disk { get; private set; }

    public FileSystem? FileSystem { get; private set; }

    public RecordWriter? Records { get; private set; }

    /// <summary>Takes a disk, unless there is one already.</summary>
    public void Add(VirtioPciTransport? transport)
    {
        if (Disk is not null)
            return;
        if (transport is null)
        {
            Console.WriteLine("disk: the device lacks the structures of virtio 1");
            return;
        }
        VirtioBlockDriver disk = new(platform, transport);
        string? wrong = disk.Start();
        if (wrong is not null)
        {
            Console.Write("disk: ");
            Console.WriteLine(wrong);
            return;
        }
        Disk = disk;
        FileSystem = new FileSystem(platform);
        Records = new RecordWriter(FileSystem);
        Console.Write("disk: ");
        Console.Write(disk.Blocks >> 8);
        Console.WriteLine(disk.IsReadOnly ? " MiB, for reading only" : " MiB");
    }

    /// <summary>With "mount" on the command line, what is on the disk is taken into use.</summary>
    public void Start()
    {
        if (BootInformation.HasOption("mount", out _) && Disk is not null && FileSystem is not null)
            Tell(FileSystem.Mount(Disk));
    }

    /// <summary>True: at once again.</summary>
    public bool Service() => Records is not null && Records.Service();

    /// <summary>Says what an operation came to.</summary>
    public static void Tell(FileSystemError error)
    {
        Console.Write("fs: ");
        Console.WriteLine(error switch
        {
            FileSystemError.None => "done",
            FileSystemError.NotMounted => "not mounted",
            FileSystemError.Frozen => "frozen",
            FileSystemError.ReadOnly => "for reading only",
            FileSystemError.NoSpace => "no space",
            FileSystemError.NoSuchFile => "no such file",
            FileSystemError.Exists => "there already",
            FileSystemError.BadName => "no name for a file",
            FileSystemError.TooManyFiles => "too many files",
            FileSystemError.OutOfRange => "out of range",
            FileSystemError.Device => "the device failed",
            FileSystemError.Corrupt => "makes no sense",
            FileSystemError.NoMemory => "no memory",
            _ => "has to be mounted for writing first",
        });
    }
}
