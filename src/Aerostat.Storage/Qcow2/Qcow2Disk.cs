using Aerostat.Platform;

namespace Aerostat.Storage;

/// <summary>
/// A disk in a qcow2 image (QEMU's docs/interop/qcow2), versions 2 and 3, with its chain of backing files, which are only read. Reads and
/// overwrites in place run beside each other; whoever changes a table is alone.
/// <para>
/// Tables are changed in memory and written by <see cref="Flush"/> in an order that leaves the image whole wherever that ends: reference
/// counts and contents, then second-level tables, then first-level entries; what became free is taken again only afterwards. A host that stops
/// in between leaves clusters that nothing names, at most, and what was written and not flushed is then as before.
/// </para>
/// <para>Not done: encryption, external data files, subclusters, writing compressed clusters, internal snapshots (those there are stay as they
/// are), resizing.</para>
/// </summary>
public sealed partial class Qcow2Disk : IDisk
{
    // Together at most 32 MiB of each kind of table, but some at least.
    private const long CacheBytes = 32 << 20;
    private const int LeastTables = 4;
    internal const int LeastHeader = 1 << 16;
    // So much waits at most for a flush.
    private const long MostDirtyBytes = 8 << 20;
    private const int MostUnreleased = 1 << 16;

    private readonly Qcow2File _file;
    private readonly Qcow2Header _header;
    private readonly IDisk? _backing;
    private readonly ReaderWriterLockSlim _gate = new();
    private readonly ulong[] _l1;
    private readonly Qcow2Tables _l2;
    private readonly Qcow2Refcounts? _refcounts;
    // Clusters that hold no data. What a table names as data and is in here is not touched.
    private readonly HashSet<ulong> _metadata;
    private readonly SortedSet<int> _dirtyL1 = [];
    private readonly List<(ulong Cluster, bool Punch)> _unreleased = [];
    private readonly Qcow2Decompressor _decompressor;
    private bool _autoclearCleared, _disposed;

    private Qcow2Disk(Qcow2File file, Qcow2Header header, ulong[] l1, HashSet<ulong> metadata, Qcow2Refcounts? refcounts, IDisk? backing)
    {
        _file = file;
        _header = header;
        _l1 = l1;
        _metadata = metadata;
        _refcounts = refcounts;
        _backing = backing;
        _l2 = new Qcow2Tables(file, header.ClusterSize, CachedTables(header));
        _decompressor = new Qcow2Decompressor(file, header);
    }

    /// <inheritdoc/>
    public ulong Length => _header.Length;

    /// <inheritdoc/>
    public bool ReadOnly => _refcounts is null;

    /// <summary>Bytes of a cluster, the unit of allocation.</summary>
    public int ClusterSize => _header.ClusterSize;

    /// <summary>The image under this one as its header names it, or null.</summary>
    public string? BackingFile => _header.BackingFile;

    /// <summary>Snapshots within the image.</summary>
    public int Snapshots => (int)_header.Snapshots;

    private ulong ClusterMask => (ulong)_header.ClusterSize - 1;

    /// <summary>Opens an image and those under it.</summary>
    /// <param name="path">The image.</param>
    /// <param name="readOnly">It and its reference counts are left alone; others may read it too.</param>
    /// <exception cref="IOException">It cannot be opened, is in use, is damaged, or needs what is not known here; the message is one line.</exception>
    public static Qcow2Disk Open(string path, bool readOnly)
    {
        ArgumentNullException.ThrowIfNull(path);
        return Open(path, readOnly, []);
    }

    internal static Qcow2Disk Open(string path, bool readOnly, IReadOnlyList<string> above, IFileObserver? observer = null)
    {
        DiskImage.RequireFile(path);
        Qcow2File file = new(DiskFile.Open(path, readOnly), observer);
        IDisk? backing = null;
        try
        {
            byte[] first = new byte[(int)Math.Min(file.Length, LeastHeader)];
            if (!file.Read(0, first))
                throw new IOException("it cannot be read");
            Qcow2Header header = Qcow2Header.Parse(first, file.Length);
            if (!readOnly)
                RequireWritable(header);
            HashSet<ulong> metadata = [];
            ulong[] l1 = LoadL1(file, header, metadata);
            Qcow2Refcounts? refcounts = null;
            if (!readOnly)
            {
                Protect(metadata, header, 0, 1);
                Protect(metadata, header, header.L1Offset, (ulong)header.L1Entries * 8);
                Protect(metadata, header, header.RefcountTableOffset, (ulong)header.RefcountTableClusters << header.ClusterBits);
                Qcow2SnapshotTable.Protect(file, header, metadata);
                refcounts = Qcow2Refcounts.Load(file, header, metadata, CachedTables(header));
            }
            backing = header.BackingFile is null ? null : DiskImage.OpenBacking(path, header.BackingFile, header.BackingFormat, above);
            return new Qcow2Disk(file, header, l1, metadata, refcounts, backing);
        }
        catch
        {
            backing?.Dispose();
            file.Dispose();
            throw;
        }
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        _gate.EnterWriteLock();
        try
        {
            if (_disposed)
                return;
            _disposed = true;
            // The second time for what the first one released.
            if (!ReadOnly && Commit() && Commit())
                _ = _file.Sync();
            _file.Dispose();
            _backing?.Dispose();
        }
        finally
        {
            _gate.ExitWriteLock();
        }
    }

    private static int CachedTables(Qcow2Header header) => (int)Math.Max(LeastTables, CacheBytes >> header.ClusterBits);

    private static void RequireWritable(Qcow2Header header)
    {
        if ((header.Incompatible & Qcow2Header.Corrupt) != 0)
            throw new IOException("it is marked as corrupt, and can only be read (ro); 'qemu-img check -r all' may repair it");
        if ((header.Incompatible & Qcow2Header.Dirty) != 0)
            throw new IOException("its reference counts are not up to date (lazy refcounts, and not closed), and it can only be read (ro); 'qemu-img check -r all' repairs it");
    }

    // Only what the disk needs: a longer table describes a machine's state in snapshots.
    private static ulong[] LoadL1(Qcow2File file, Qcow2Header header, HashSet<ulong> metadata)
    {
        byte[] bytes = new byte[header.L1Entries * 8];
        if (!file.Read(header.L1Offset, bytes))
            throw new IOException("its first-level table cannot be read");
        ulong[] l1 = new ulong[header.L1Entries];
        for (int i = 0; i < l1.Length; i++)
        {
            l1[i] = Qcow2Header.U64(bytes, i * 8);
            ulong table = l1[i] & Qcow2Entry.OffsetMask;
            if (table == 0)
                continue;
            if (table % (ulong)header.ClusterSize != 0 || table >= file.Length)
                throw Qcow2Header.Damaged("a second-level table is not in the file");
            metadata.Add(table >> header.ClusterBits);
        }
        return l1;
    }

    private static void Protect(HashSet<ulong> metadata, Qcow2Header header, ulong offset, ulong length)
    {
        for (ulong cluster = offset >> header.ClusterBits; cluster <= (offset + length - 1) >> header.ClusterBits; cluster++)
            metadata.Add(cluster);
    }
}
