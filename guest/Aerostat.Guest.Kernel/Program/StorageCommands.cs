using System;
using Aerostat.Guest.Drivers;

namespace Aerostat.Guest.Kernel;

/// <summary>The shell's commands for the disk, its file system, and what freezes it.</summary>
internal sealed class StorageCommands
{
    public const string Help = "disk  fs format|mount|unmount|list|sync|state|check  fs write NAME TEXT  fs read NAME  records start|stop|verify  vmbus leave|enter  daemon start|stop|work|fail|hang";

    private const int MostWords = 4, BufferSize = 64;

    private readonly Storage storage;
    private readonly SnapshotService snapshots;
    private readonly int[] starts = new int[MostWords];
    private readonly int[] lengths = new int[MostWords];
    private readonly byte[] buffer = new byte[BufferSize];
    private byte[] line = new byte[1];
    private int words;

    public StorageCommands(Storage storage, SnapshotService snapshots)
    {
        this.storage = storage;
        this.snapshots = snapshots;
    }

    /// <summary>False: no command of these.</summary>
    public bool TryExecute(byte[] text, int length)
    {
        Split(text, length);
        if (Is(0, "disk"))
            ShowDisk();
        else if (Is(0, "fs"))
            ExecuteFileSystem();
        else if (Is(0, "records"))
            ExecuteRecords();
        else if (Is(0, "vmbus"))
            ExecuteBus();
        else if (Is(0, "daemon"))
            ExecuteDaemon();
        else
            return false;
        return true;
    }

    private void Split(byte[] text, int length)
    {
        line = text;
        words = 0;
        for (int at = 0; at < length && words < MostWords;)
        {
            while (at < length && text[at] == ' ')
                at++;
            starts[words] = at;
            // The last takes all that is left.
            while (at < length && (text[at] != ' ' || words == MostWords - 1))
                at++;
            lengths[words] = at - starts[words];
            if (lengths[words] > 0)
                words++;
        }
    }

    private bool Is(int word, string text)
    {
        if (word >= words || lengths[word] != text.Length)
            return false;
        for (int i = 0; i < text.Length; i++)
            if (line[starts[word] + i] != text[i])
                return false;
        return true;
    }

    private void ShowDisk()
    {
        if (storage.Disk is not { } disk)
        {
            Console.WriteLine("disk: no device");
            return;
        }
        Shell.Figure("running", disk.IsRunning ? 1u : 0u);
        Shell.Figure("blocks", disk.Blocks);
        Shell.Figure("reads", disk.Reads);
        Shell.Figure("writes", disk.Writes);
        Shell.Figure("flushes", disk.Flushes);
        Shell.Figure("errors", disk.Errors, last: true);
    }

    private void ExecuteFileSystem()
    {
        if (storage.Disk is not { } disk || storage.FileSystem is not { } fileSystem)
            Console.WriteLine("disk: no device");
        else if (Is(1, "format"))
            Storage.Tell(fileSystem.Format(disk));
        else if (Is(1, "mount"))
            Storage.Tell(fileSystem.Mount(disk));
        else if (Is(1, "unmount"))
            Storage.Tell(fileSystem.Unmount());
        else if (Is(1, "sync"))
            Storage.Tell(fileSystem.Sync());
        else if (Is(1, "list"))
            List(fileSystem);
        else if (Is(1, "check"))
            Check(fileSystem);
        else if (Is(1, "write") && words == MostWords)
            Storage.Tell(Write(fileSystem));
        else if (Is(1, "read") && words > 2)
            Read(fileSystem);
        else
            ShowState(fileSystem);
    }

    private static void ShowState(FileSystem fileSystem)
    {
        Shell.Figure("mounted", fileSystem.IsMounted ? 1u : 0u);
        Shell.Figure("frozen", fileSystem.IsFrozen ? 1u : 0u);
        Shell.Figure("free-blocks", fileSystem.FreeBlocks);
        Shell.Figure("commits", fileSystem.Commits);
        Shell.Figure("checkpoints", fileSystem.Checkpoints);
        Shell.Figure("replayed", fileSystem.Replayed);
        Shell.Figure("failure", (ulong)fileSystem.Failure, last: true);
    }

    private static void Check(FileSystem fileSystem)
    {
        FileSystemError error = fileSystem.Check(out ulong faults);
        if (error == FileSystemError.None)
            Shell.Figure("faults", faults, last: true);
        else
            Storage.Tell(error);
    }

    private void List(FileSystem fileSystem)
    {
        ulong files = 0;
        for (int file = 0; file < FileSystem.MostFiles; file++)
        {
            int length = fileSystem.GetName(file, buffer);
            if (length == 0)
                continue;
            files++;
            WriteText(length);
            Console.Write(' ');
            Shell.Figure("bytes", fileSystem.GetLength(file), last: true);
        }
        Shell.Figure("files", files, last: true);
    }

    // A line at the file's end.
    private FileSystemError Write(FileSystem fileSystem)
    {
        FileSystemError error = fileSystem.Find(line, starts[2], lengths[2], out int file);
        if (error == FileSystemError.NoSuchFile)
            error = fileSystem.Create(line, starts[2], lengths[2], out file);
        if (error == FileSystemError.None)
            error = fileSystem.Append(file, line, starts[3], lengths[3]);
        buffer[0] = (byte)'\n';
        if (error == FileSystemError.None)
            error = fileSystem.Append(file, buffer, 0, 1);
        return error == FileSystemError.None ? fileSystem.Sync() : error;
    }

    private void Read(FileSystem fileSystem)
    {
        FileSystemError error = fileSystem.Find(line, starts[2], lengths[2], out int file);
        if (error != FileSystemError.None)
        {
            Storage.Tell(error);
            return;
        }
        int read;
        for (ulong at = 0; (read = fileSystem.Read(file, at, buffer, 0, BufferSize)) > 0; at += (ulong)read)
            WriteText(read);
    }

    private void WriteText(int length)
    {
        for (int i = 0; i < length; i++)
            Console.Write(buffer[i] is (byte)'\n' or (>= 0x20 and < 0x7F) ? (char)buffer[i] : '?');
    }

    private void ExecuteRecords()
    {
        if (storage.Records is not { } records)
        {
            Console.WriteLine("disk: no device");
            return;
        }
        if (Is(1, "start"))
        {
            Storage.Tell(records.Start());
            return;
        }
        if (Is(1, "verify"))
        {
            bool whole = records.Verify(out ulong count);
            Shell.Figure("whole", whole ? 1u : 0u);
            Shell.Figure("count", count, last: true);
            return;
        }
        if (Is(1, "stop"))
            records.Stop();
        Shell.Figure("running", records.IsRunning ? 1u : 0u);
        Shell.Figure("acknowledged", records.Acknowledged);
        Shell.Figure("held-up", records.HeldUp);
        Shell.Figure("error", (ulong)records.Error, last: true);
    }

    private void ExecuteBus()
    {
        if (snapshots.Bus is not { } bus || snapshots.Driver is not { } driver)
        {
            Console.WriteLine("vmbus: no bus");
            return;
        }
        if (Is(1, "leave"))
            bus.Leave();
        if (Is(1, "enter") && bus.Start() is { } wrong)
        {
            Console.Write("vmbus: ");
            Console.WriteLine(wrong);
        }
        Console.Write("vmbus: ");
        Console.Write(bus.State switch
        {
            VmbusState.Off => "off ",
            VmbusState.Contacting => "contacting ",
            VmbusState.Connected => "connected ",
            VmbusState.Leaving => "leaving ",
            _ => "given up ",
        });
        Shell.Figure("major", bus.Version >> 16);
        Shell.Figure("minor", bus.Version & 0xFFFF);
        Shell.Figure("rescinded", bus.Rescinded);
        Shell.Figure("bus-malformed", bus.Malformed, last: true);
        for (int i = 0; i < VmbusConnection.MostOffers; i++)
            if (bus.Offer(i) is { RelId: not 0 } offer)
                ShowOffer(offer);
        Console.Write("vss: ");
        Shell.Figure("registered", driver.IsRegistered ? 1u : 0u);
        Shell.Figure("agreed", driver.Messages & 0xFFFF);
        Shell.Figure("frozen", driver.IsFrozen ? 1u : 0u);
        Shell.Figure("freezes", driver.Freezes);
        Shell.Figure("thaws", driver.Thaws);
        Shell.Figure("failures", driver.Failures);
        Shell.Figure("timed-out", driver.TimedOut);
        Shell.Figure("spurious", driver.Spurious);
        Shell.Figure("answered", driver.Answered);
        Shell.Figure("malformed", driver.Malformed, last: true);
    }

    private static void ShowOffer(VmbusOffer offer)
    {
        Console.Write("offer ");
        Console.Write(offer.RelId);
        Console.Write(": ");
        Console.Write(offer.Name);
        Console.WriteLine(offer.Channel is null ? ", no driver" : offer.Channel.State switch
        {
            VmbusChannelState.Open => ", open",
            VmbusChannelState.GivenUp => ", given up",
            _ => ", the host is asked to open it",
        });
    }

    private void ExecuteDaemon()
    {
        if (snapshots.Daemon is not { } daemon)
        {
            Console.WriteLine("vmbus: no bus");
            return;
        }
        if (Is(1, "start"))
            daemon.Start();
        else if (Is(1, "stop"))
            daemon.Stop();
        else if (Is(1, "work"))
            daemon.Conduct = DaemonConduct.Works;
        else if (Is(1, "fail"))
            daemon.Conduct = DaemonConduct.Fails;
        else if (Is(1, "hang"))
            daemon.Conduct = DaemonConduct.Hangs;
        Shell.Figure("running", daemon.IsRunning ? 1u : 0u);
        Shell.Figure("holds-frozen", daemon.HoldsFrozen ? 1u : 0u);
        Shell.Figure("done", daemon.Done, last: true);
    }
}
