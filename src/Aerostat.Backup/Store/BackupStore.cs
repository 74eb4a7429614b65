using System.Text;
using Aerostat.Platform;

namespace Aerostat.Backup;

/// <summary>A directory with backups, each in a directory of its own that is named by its moment.</summary>
public sealed class BackupStore
{
    private const string Marker = "store.json", LockFile = ".lock";
    internal const string PartialPrefix = ".partial-";
    private static ReadOnlySpan<byte> MarkerText => "{\"format\": \"aerostat-backups\", \"version\": 1}\n"u8;

    private BackupStore(string directory) => Directory = directory;

    /// <summary>Where it is.</summary>
    public string Directory { get; }

    /// <summary>Opens what is there.</summary>
    /// <exception cref="BackupException">There is no such store.</exception>
    public static BackupStore Open(string directory)
    {
        string whole = Path.TrimEndingDirectorySeparator(Path.GetFullPath(directory));
        if (!System.IO.Directory.Exists(whole))
            throw new BackupException($"{directory} is not there; give the directory that backups were written to");
        if (!File.Exists(Path.Combine(whole, Marker)))
            throw new BackupException($"{directory} has no backups in it (no {Marker}); give the directory that backups were written to");
        return new BackupStore(whole);
    }

    /// <summary>Opens what is there, or makes one.</summary>
    /// <exception cref="BackupException">Something else is there, or it cannot be made.</exception>
    public static BackupStore OpenOrCreate(string directory)
    {
        string whole = Path.TrimEndingDirectorySeparator(Path.GetFullPath(directory));
        try
        {
            System.IO.Directory.CreateDirectory(whole);
            if (!File.Exists(Path.Combine(whole, Marker)))
            {
                if (System.IO.Directory.EnumerateFileSystemEntries(whole).Any(e => !Path.GetFileName(e).StartsWith('.') && Path.GetFileName(e) != "lost+found"))
                    throw new BackupException($"{directory} has other things in it; give a directory that is empty or does not exist");
                if (!OperatingSystem.IsWindows())
                {
                    // What is on a guest's disks is for the owner alone.
                    File.SetUnixFileMode(whole, UnixFileMode.UserRead | UnixFileMode.UserWrite | UnixFileMode.UserExecute);
                }
                WriteDurably(Path.Combine(whole, Marker), MarkerText);
                HostDirectory.Synchronize(whole);
            }
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            throw BackupException.Of($"{directory} cannot be written", e);
        }
        return new BackupStore(whole);
    }

    /// <summary>Takes the store for one who writes.</summary>
    /// <exception cref="BackupException">Somebody else writes.</exception>
    internal FileStream Lock()
    {
        try
        {
            return new FileStream(Path.Combine(Directory, LockFile), FileMode.OpenOrCreate, FileAccess.ReadWrite, FileShare.None);
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            throw new BackupException($"{Directory} is being written to by another backup, or cannot be written ({e.Message.ReplaceLineEndings(" ").TrimEnd('.')}); wait for it, or give another directory", e);
        }
    }

    /// <summary>Names of the backups, oldest first.</summary>
    public IReadOnlyList<string> Names =>
        [.. System.IO.Directory.EnumerateDirectories(Directory).Select(d => Path.GetFileName(d)!).Where(n => !n.StartsWith('.') && n != "lost+found").Order(StringComparer.Ordinal)];

    /// <summary>Reads a backup's manifest.</summary>
    /// <exception cref="BackupException">It is not there or damaged.</exception>
    public StoredBackup Read(string name)
    {
        string path = Path.Combine(Directory, name);
        try
        {
            return new StoredBackup(name, path, BackupManifest.FromFile(File.ReadAllBytes(Path.Combine(path, BackupManifest.FileName)), name));
        }
        catch (Exception e) when (e is FileNotFoundException or DirectoryNotFoundException)
        {
            throw BackupException.Damaged(System.IO.Directory.Exists(path) ? $"backup {name} has no manifest" : $"backup {name} is missing");
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            throw BackupException.Of($"backup {name} cannot be read", e);
        }
    }

    /// <summary>The latest, or one by its name, the beginning of it, or its identity.</summary>
    /// <exception cref="BackupException">There is none, or more than one.</exception>
    public StoredBackup Find(string? wanted)
    {
        IReadOnlyList<string> names = Names;
        if (names.Count == 0)
            throw new BackupException($"{Directory} has no backup that is complete");
        if (wanted is null)
            return Read(names[^1]);
        string[] matches = [.. names.Where(n => n == wanted)];
        if (matches.Length == 0)
            matches = [.. names.Where(n => n.StartsWith(wanted, StringComparison.Ordinal) || n.EndsWith("-" + wanted, StringComparison.Ordinal))];
        return matches.Length == 1 ? Read(matches[0])
            : throw new BackupException(matches.Length == 0 ? $"{Directory} has no backup '{wanted}'; there are {string.Join(", ", names)}" : $"'{wanted}' may be {string.Join(" or ", matches)}; give more of the name");
    }

    /// <summary>A backup and those it builds on, the full one first.</summary>
    /// <exception cref="BackupException">A link is missing, damaged or another than it was; the message names it.</exception>
    public IReadOnlyList<StoredBackup> Chain(StoredBackup last)
    {
        ArgumentNullException.ThrowIfNull(last);
        List<StoredBackup> chain = [last];
        while (chain[0].Manifest.Parent is { } parent)
        {
            if (chain.Count > Names.Count || parent.Name.Contains('/') || parent.Name.StartsWith('.'))
                throw BackupException.Damaged($"the chain of backup {last.Name} does not end; {chain[0].Name} is damaged");
            StoredBackup link;
            try
            {
                link = Read(parent.Name);
            }
            catch (BackupException e) when (e.IsDamage)
            {
                throw BackupException.Damaged($"backup {last.Name} builds on a damaged one: {e.Message}");
            }
            if (link.Manifest.Id != parent.Id)
                throw BackupException.Damaged($"backup {last.Name} builds on a damaged one: {parent.Name} is another than {chain[0].Name} was made from");
            chain.Insert(0, link);
        }
        return chain;
    }

    /// <summary>Removes what is not needed for the last ones; what they build on stays. Answers the names of what was removed.</summary>
    internal IReadOnlyList<string> Retain(string machine, int keep)
    {
        Dictionary<string, BackupManifest> known = [];
        string? unread = null;
        foreach (string name in Names)
        {
            try
            {
                known.Add(name, Read(name).Manifest);
            }
            catch (BackupException)
            {
                // It is not ours to remove, nor is any older one, for it may build on that.
                unread = name;
            }
        }
        string[] own = [.. known.Where(k => k.Value.Machine == machine).OrderBy(k => k.Key, StringComparer.Ordinal).Select(k => k.Key)];
        HashSet<string> needed = [.. own.Where(n => string.CompareOrdinal(n, unread) < 0)];
        foreach (string name in own.TakeLast(keep))
            for (string? link = name; link is not null && needed.Add(link);)
                link = known.GetValueOrDefault(link)?.Parent?.Name;
        List<string> removed = [];
        // Those that build on others first: at every moment what is there is whole.
        foreach (string name in own.Reverse().Where(n => !needed.Contains(n)))
        {
            Remove(name);
            removed.Add(name);
        }
        if (removed.Count > 0)
            HostDirectory.Synchronize(Directory);
        return removed;
    }

    // The name goes in one step.
    private void Remove(string name)
    {
        string hidden = Path.Combine(Directory, ".removed-" + name);
        System.IO.Directory.Move(Path.Combine(Directory, name), hidden);
        System.IO.Directory.Delete(hidden, recursive: true);
    }

    /// <summary>Removes what interrupted removals have left. Locked.</summary>
    internal void Sweep()
    {
        foreach (string left in System.IO.Directory.EnumerateDirectories(Directory, ".removed-*"))
            System.IO.Directory.Delete(left, recursive: true);
    }

    internal static string NameOf(DateTimeOffset moment, Guid id) =>
        $"{moment.UtcDateTime.ToString("yyyyMMdd'T'HHmmss'.'fff'Z'", System.Globalization.CultureInfo.InvariantCulture)}-{id.ToString("n")[..8]}";

    internal static void WriteDurably(string path, ReadOnlySpan<byte> bytes)
    {
        using FileStream file = new(path, FileMode.Create, FileAccess.Write, FileShare.None);
        file.Write(bytes);
        file.Flush(flushToDisk: true);
    }
}

/// <summary>A backup in a store.</summary>
/// <param name="Name">Its directory's name.</param>
/// <param name="Path">Its directory.</param>
/// <param name="Manifest">What is in it.</param>
public sealed record StoredBackup(string Name, string Path, BackupManifest Manifest);
