using Microsoft.Win32.SafeHandles;

namespace Aerostat.Snapshots;

/// <summary>Makes a full snapshot out of a differential one and those it builds on.</summary>
internal static class Flattening
{
    /// <summary>Copies page by page; every block that is read is checked.</summary>
    public static void Write(Snapshot snapshot, string directory, bool durable)
    {
        Dictionary<Snapshot, SafeFileHandle> files = snapshot.Chain.ToDictionary(s => s, s => s.OpenMemory());
        try
        {
            using SnapshotDirectory target = SnapshotDirectory.Create(directory);
            RandomAccess.SetLength(target.MemoryFile, (long)(snapshot.PageCount * PageMap.PageSize));
            PageMap map = Copy(snapshot, files, target.MemoryFile);
            byte[] mapFile = map.ToArray();
            SnapshotManifest manifest = snapshot.Manifest with
            {
                Id = Guid.NewGuid(),
                Parent = null,
                Memory = MachineSnapshots.Describe(map, mapFile, snapshot.Manifest.Memory.Regions),
            };
            target.Write(SnapshotDirectory.PageMap, mapFile, durable);
            target.Write(SnapshotDirectory.Manifest, ManifestFile.Write(manifest), durable);
            target.Commit(durable);
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            throw new SnapshotException($"{snapshot.Path} could not be flattened to {directory}: {e.Message}", e);
        }
        finally
        {
            foreach (SafeFileHandle file in files.Values)
                file.Dispose();
        }
    }

    private static PageMap Copy(Snapshot snapshot, Dictionary<Snapshot, SafeFileHandle> files, SafeFileHandle target)
    {
        PageMap.Builder map = new();
        byte[] buffer = new byte[(int)PageMap.BlockPages * PageMap.PageSize];
        // Data of different snapshots is one run, so a block is filled before its checksum is made.
        int filled = 0;
        void Flush()
        {
            if (filled == 0)
                return;
            Span<byte> bytes = buffer.AsSpan(0, filled * PageMap.PageSize);
            RandomAccess.Write(target, bytes, (long)(map.PageCount * PageMap.PageSize));
            map.AddData((ulong)filled, Checksum.Of(bytes));
            filled = 0;
        }
        foreach ((ulong first, ulong count, PageKind kind, Snapshot source) in snapshot.ResolveKinds())
        {
            if (kind != PageKind.Data)
            {
                Flush();
                map.Add(kind, count);
                continue;
            }
            for (ulong page = first; page < first + count;)
            {
                ulong at = map.PageCount + (ulong)filled;
                int pages = (int)Math.Min(first + count - page, PageMap.BlockPages - (at % PageMap.BlockPages));
                Snapshot.ReadExactly(files[source], buffer.AsSpan(filled * PageMap.PageSize, pages * PageMap.PageSize), (long)(page * PageMap.PageSize), source.Path);
                filled += pages;
                page += (ulong)pages;
                if ((map.PageCount + (ulong)filled) % PageMap.BlockPages == 0)
                    Flush();
            }
        }
        Flush();
        return map.Build();
    }
}
