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

    private PartialBackup(BackupStore store, string path, BackupStart start, bool isResumed)
    {
        Start = start;
        this.store = store;
        DirectoryPath = path;
        IsResumed = isResumed;
    }

    /// <summary>Where it is.</summary>
    public string DirectoryPath { get; }

    /// <summary>What it is going to be; the seed is that of the earlier attempt.</summary>
    public BackupStart Start { get; }

    /// <summary>Whether there is something of an earlier attempt in it.</summary>
    public bool IsResumed { get; }

    /// <summary>Begins one.</summary>
    public static PartialBackup Begin(BackupStore store, BackupStart start)
    {
        string? old = null;
        BackupStart found = start;
        foreach (string left in Directory.EnumerateDirectories(store.Directory, BackupStore.PartialPrefix + "*").Order(StringComparer.Ordinal))
        {
            string file = Path.Combine(left, StartFile);
            if (old is null && ReadStart(file) is { } there && ToFile(there with { HashSeed = start.HashSeed }).AsSpan().SequenceEqual(ToFile(start)))
                (old, found) = (left, there);
            else
                Directory.Delete(left, recursive: true);
        }
        if (old is not null)
            return new PartialBackup(store, old, found, isResumed: true);
        string path = Path.Combine(store.Directory, $"{BackupStore.PartialPrefix}{Guid.NewGuid():n}");
        Directory.CreateDirectory(path);
        // Not forced to the disk: one that a power failure has cut costs the next attempt what was stored, as the chunks themselves may.
        File.WriteAllBytes(Path.Combine(path, StartFile), ToFile(start));
        return new PartialBackup(store, path, start, isResumed: false);
    }

    private static byte[] ToFile(BackupStart start) => JsonSerializer.SerializeToUtf8Bytes(start, BackupJson.Default.BackupStart);

    private static BackupStart? ReadStart(string file)
    {
        try
        {
            return File.Exists(file) ? JsonSerializer.Deserialize(File.ReadAllBytes(file), BackupJson.Default.BackupStart) : null;
        }
        catch (JsonException)
        {
            return null;
        }
    }

    /// <summary>All files are complete and durable: gives it its name.</summary>
    public void Commit(BackupManifest manifest, string name)
    {
        foreach (BackupDisk disk in manifest.Disks)
            File.Delete(Path.Combine(DirectoryPath, DiskPack.JournalOf(disk.Name)));
        File.Delete(Path.Combine(DirectoryPath, StartFile));
        // Last, so that the directory is written to the disk once and not twice.
        BackupStore.WriteDurably(Path.Combine(DirectoryPath, BackupManifest.FileName), manifest.ToFile());
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
