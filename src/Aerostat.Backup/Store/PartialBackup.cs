using System.Text.Json;
using Aerostat.Platform;

namespace Aerostat.Backup;

/// <summary>
/// A backup while it is written: under a hidden name in the store, which must be locked. One that a crash has left is gone on with when it was to be of the
/// same disks; its chunks are used where the disk still has their contents.
/// </summary>
internal sealed class PartialBackup : IDisposable
{
    private const string StartFile = "start.json";

    private readonly BackupStore store;
    private bool committed;

    private PartialBackup(BackupStore store, string path, bool isResumed)
    {
        this.store = store;
        DirectoryPath = path;
        IsResumed = isResumed;
    }

    /// <summary>Where it is.</summary>
    public string DirectoryPath { get; }

    /// <summary>Whether there is something of an earlier attempt in it.</summary>
    public bool IsResumed { get; }

    /// <summary>Begins one.</summary>
    public static PartialBackup Begin(BackupStore store, BackupStart start)
    {
        byte[] wanted = JsonSerializer.SerializeToUtf8Bytes(start, BackupJson.Default.BackupStart);
        string? old = null;
        foreach (string left in Directory.EnumerateDirectories(store.Directory, BackupStore.PartialPrefix + "*").Order(StringComparer.Ordinal))
        {
            string file = Path.Combine(left, StartFile);
            if (old is null && File.Exists(file) && File.ReadAllBytes(file).AsSpan().SequenceEqual(wanted))
                old = left;
            else
                Directory.Delete(left, recursive: true);
        }
        if (old is not null)
            return new PartialBackup(store, old, isResumed: true);
        string path = Path.Combine(store.Directory, $"{BackupStore.PartialPrefix}{Guid.NewGuid():n}");
        Directory.CreateDirectory(path);
        BackupStore.WriteDurably(Path.Combine(path, StartFile), wanted);
        return new PartialBackup(store, path, isResumed: false);
    }

    /// <summary>All files are complete and durable: gives it its name.</summary>
    public void Commit(BackupManifest manifest, string name)
    {
        BackupStore.WriteDurably(Path.Combine(DirectoryPath, BackupManifest.FileName), manifest.ToFile());
        foreach (BackupDisk disk in manifest.Disks)
            File.Delete(Path.Combine(DirectoryPath, DiskPack.JournalOf(disk.Name)));
        File.Delete(Path.Combine(DirectoryPath, StartFile));
        HostDirectory.Synchronize(DirectoryPath);
        Directory.Move(DirectoryPath, Path.Combine(store.Directory, name));
        committed = true;
        HostDirectory.Synchronize(store.Directory);
    }

    /// <summary>Removes what was not committed.</summary>
    public void Dispose()
    {
        if (committed)
            return;
        try
        {
            Directory.Delete(DirectoryPath, recursive: true);
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            // The next backup here tries again, or goes on with it.
        }
    }
}
