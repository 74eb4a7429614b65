using Aerostat.Platform;
using Microsoft.Win32.SafeHandles;

namespace Aerostat.Snapshots;

/// <summary>
/// A snapshot's directory while it is written: under a name of its own beside the one it is to have. <see cref="Commit"/> gives it that name in
/// one step; until then whatever is there stays whole.
/// </summary>
internal sealed class SnapshotDirectory : IDisposable
{
    /// <summary>Name of the manifest.</summary>
    public const string Manifest = "manifest.json";

    /// <summary>Name of the page map.</summary>
    public const string PageMap = "pages.map";

    /// <summary>Name of the memory file.</summary>
    public const string Memory = "memory.bin";

    private readonly string path;
    private readonly string target;
    private bool committed;

    private SnapshotDirectory(string target, string path, SafeFileHandle memory)
    {
        this.target = target;
        this.path = path;
        MemoryFile = memory;
    }

    /// <summary>The memory file, locked against others.</summary>
    public SafeFileHandle MemoryFile { get; }

    /// <summary>Starts one.</summary>
    /// <exception cref="SnapshotException">Something that is not a snapshot has that name, or it cannot be written.</exception>
    public static SnapshotDirectory Create(string target)
    {
        string whole = Path.TrimEndingDirectorySeparator(Path.GetFullPath(target));
        string name = Path.GetFileName(whole);
        string? parent = Path.GetDirectoryName(whole);
        if (name.Length == 0 || parent is null)
            throw new SnapshotException($"{target} cannot be a snapshot: give a directory that is not the root");
        if (HostFile.KindOf(whole) is HostFileKind.Regular or HostFileKind.Special
            || (Directory.Exists(whole) && !File.Exists(Path.Combine(whole, Manifest)) && Directory.EnumerateFileSystemEntries(whole).Any()))
            throw new SnapshotException($"{target} exists and is not a snapshot; give another name, or remove it first");
        try
        {
            Directory.CreateDirectory(parent);
            RemoveLeftovers(parent, name);
            return Begin(whole, parent, name);
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            throw new SnapshotException($"{target} cannot be written: {e.Message}", e);
        }
    }

    private static SnapshotDirectory Begin(string whole, string parent, string name)
    {
        for (int attempt = 1; ; attempt++)
        {
            string path = Path.Combine(parent, $".{name}.partial-{Guid.NewGuid():n}");
            Directory.CreateDirectory(path);
            try
            {
                if (!OperatingSystem.IsWindows())
                {
                    // Guest memory holds secrets: for the owner alone.
                    File.SetUnixFileMode(path, UnixFileMode.UserRead | UnixFileMode.UserWrite | UnixFileMode.UserExecute);
                }
                SafeFileHandle memory = File.OpenHandle(Path.Combine(path, Memory), FileMode.CreateNew, FileAccess.ReadWrite, FileShare.None);
                return new SnapshotDirectory(whole, path, memory);
            }
            catch (IOException)
            {
                // Another process that saves under this name may have taken it for a leftover, since nothing in it was locked yet.
                Remove(path);
                if (attempt == 3)
                    throw;
            }
        }
    }

    /// <summary>Writes one of the small files.</summary>
    public void Write(string file, ReadOnlySpan<byte> contents, bool durable)
    {
        string whole = Path.Combine(path, file);
        using SafeFileHandle handle = File.OpenHandle(whole, FileMode.CreateNew, FileAccess.Write);
        RandomAccess.Write(handle, contents, 0);
        if (durable)
            RandomAccess.FlushToDisk(handle);
    }

    /// <summary>Everything is written: gives the directory its name, and removes what had it.</summary>
    public void Commit(bool durable)
    {
        if (durable)
        {
            RandomAccess.FlushToDisk(MemoryFile);
            HostDirectory.Synchronize(path);
        }
        MemoryFile.Dispose();
        bool exchanged = HostDirectory.MoveOrExchange(path, target);
        committed = true;
        if (durable)
            HostDirectory.Synchronize(Path.GetDirectoryName(target)!);
        if (exchanged)
            Remove(path);
    }

    /// <summary>Gives up what was not committed.</summary>
    public void Dispose()
    {
        MemoryFile.Dispose();
        if (!committed)
            Remove(path);
    }

    // What a program that died has left: its memory file is no longer locked. One that died before it made that file, or while
    // it removed the directory, left none: the file is made here, so that the lock tells in every case.
    private static void RemoveLeftovers(string parent, string name)
    {
        foreach (string old in Directory.EnumerateDirectories(parent, $".{name}.partial-*"))
        {
            try
            {
                using (File.OpenHandle(Path.Combine(old, Memory), FileMode.OpenOrCreate, FileAccess.ReadWrite, FileShare.None))
                {
                }
                Directory.Delete(old, recursive: true);
            }
            catch (Exception e) when (e is IOException or UnauthorizedAccessException)
            {
                // In use, or not ours to remove: it takes space, and nothing else.
            }
        }
    }

    private static void Remove(string path)
    {
        try
        {
            Directory.Delete(path, recursive: true);
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            // The next snapshot of this name tries again.
        }
    }
}
