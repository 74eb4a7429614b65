using System.Security.Cryptography;

namespace Aerostat.Backup;

/// <summary>The chunks that one backup stores of a disk, as read from its index.</summary>
internal static class ChunkIndex
{
    private static ReadOnlySpan<byte> Magic => "AEROIDX1"u8;

    /// <summary>Writes an index; answers its hash.</summary>
    public static string Write(string path, List<ChunkEntry> entries)
    {
        using IncrementalHash hash = IncrementalHash.CreateHash(HashAlgorithmName.SHA256);
        using FileStream file = new(path, FileMode.Create, FileAccess.Write, FileShare.None, 1 << 16);
        file.Write(Magic);
        hash.AppendData(Magic);
        Span<byte> one = stackalloc byte[ChunkEntry.Size];
        foreach (ChunkEntry entry in entries)
        {
            entry.Write(one);
            file.Write(one);
            hash.AppendData(one);
        }
        file.Flush(flushToDisk: true);
        return Convert.ToHexStringLower(hash.GetHashAndReset());
    }

    /// <summary>Reads the index of a disk of a backup, and checks it and the pack's length.</summary>
    /// <exception cref="BackupException">It is damaged.</exception>
    public static List<ChunkEntry> Read(StoredBackup backup, BackupDisk disk)
    {
        try
        {
            byte[] bytes = File.ReadAllBytes(Path.Combine(backup.Path, disk.IndexFile));
            if (Convert.ToHexStringLower(SHA256.HashData(bytes)) != disk.IndexSha256 || !bytes.AsSpan().StartsWith(Magic) || bytes.Length != Magic.Length + (disk.Entries * ChunkEntry.Size))
                throw BackupException.Damaged($"the index of {disk.Name} in backup {backup.Name} is damaged");
            FileInfo pack = new(Path.Combine(backup.Path, disk.PackFile));
            if (!pack.Exists || pack.Length != disk.PackBytes)
                throw BackupException.Damaged($"the contents of {disk.Name} in backup {backup.Name} are {(pack.Exists ? $"{pack.Length} bytes long instead of {disk.PackBytes}" : "missing")}");
            List<ChunkEntry> entries = new((int)disk.Entries);
            long before = -1;
            for (int at = Magic.Length; at < bytes.Length; at += ChunkEntry.Size)
            {
                if (ChunkEntry.Read(bytes.AsSpan(at, ChunkEntry.Size), disk.ChunkCount, disk.PackBytes) is not { } entry || entry.Chunk <= before)
                    throw BackupException.Damaged($"the index of {disk.Name} in backup {backup.Name} is damaged");
                before = entry.Chunk;
                entries.Add(entry);
            }
            return entries;
        }
        catch (FileNotFoundException)
        {
            throw BackupException.Damaged($"the index of {disk.Name} in backup {backup.Name} is missing");
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            throw BackupException.Of($"backup {backup.Name} cannot be read", e);
        }
    }
}

/// <summary>A disk as a chain of backups has it: for each chunk which link stores it.</summary>
internal sealed class DiskContents
{
    private DiskContents(BackupDisk disk, IReadOnlyList<StoredBackup> chain)
    {
        Disk = disk;
        Chain = chain;
        Hasher = chain[^1].Manifest.Hasher;
        Hashes = new(disk.ChunkCount);
        Links = new(disk.ChunkCount);
        Entries = new(disk.ChunkCount);
    }

    /// <summary>The disk, in the last backup.</summary>
    public BackupDisk Disk { get; }

    /// <summary>The backups, the full one first.</summary>
    public IReadOnlyList<StoredBackup> Chain { get; }

    /// <summary>How the chunks are hashed.</summary>
    public ChunkHasher Hasher { get; }

    /// <summary>The hash of each chunk.</summary>
    public ChunkMap<ChunkHash> Hashes { get; }

    /// <summary>The number in the chain of the backup that has each chunk.</summary>
    public ChunkMap<ushort> Links { get; }

    /// <summary>Where each chunk is there. Of a chunk of zeros, nothing.</summary>
    public ChunkMap<ChunkEntry> Entries { get; }

    /// <summary>Reads the indexes.</summary>
    /// <exception cref="BackupException">A link is damaged; the message names it.</exception>
    public static DiskContents Read(IReadOnlyList<StoredBackup> chain, string name)
    {
        StoredBackup last = chain[^1];
        DiskContents contents = new(Of(last, name), chain);
        for (int link = 0; link < chain.Count; link++)
        {
            BackupDisk disk = Of(chain[link], name);
            if (disk.Length != contents.Disk.Length)
                throw BackupException.Damaged($"{name} has another length in backup {chain[link].Name} than in {last.Name}");
            foreach (ChunkEntry entry in ChunkIndex.Read(chain[link], disk))
            {
                contents.Hashes[entry.Chunk] = entry.Hash;
                contents.Links[entry.Chunk] = (ushort)link;
                contents.Entries[entry.Chunk] = entry;
            }
            if (ChunkHash.OfDisk(contents.Hashes) != disk.Contents)
                throw BackupException.Damaged($"the index of {name} in backup {chain[link].Name} is damaged: it does not give the disk that was backed up");
        }
        return contents;

        static BackupDisk Of(StoredBackup backup, string name) => backup.Manifest.Disks.FirstOrDefault(d => d.Name == name)
            ?? throw BackupException.Damaged($"backup {backup.Name} has no {name}");
    }
}
