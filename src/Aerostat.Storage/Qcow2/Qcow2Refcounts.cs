using System.Buffers.Binary;

namespace Aerostat.Storage;

/// <summary>
/// Which clusters of the file are in use: the refcount table and its blocks (docs/interop/qcow2, "Host cluster management"). Changes are made in
/// memory and written by <see cref="WriteBack"/>: a cluster may be named by a table in the file only after that. Only one thread at a time.
/// </summary>
internal sealed class Qcow2Refcounts
{
    // Offsets in first- and second-level entries have 56 bits.
    private const ulong MostOffset = 1UL << 56;
    private const ulong OffsetMask = ~511UL;
    private const int MostFreed = 1 << 20;

    private readonly Qcow2File _file;
    private readonly Qcow2Tables _blocks;
    private readonly HashSet<ulong> _metadata;
    private readonly int _clusterBits, _order, _entriesBits;
    private readonly Stack<ulong> _freed = [];
    private ulong[] _table;
    private ulong _tableOffset;
    private bool _tableDirty, _tableMoved;
    private (ulong Cluster, int Count) _oldTable;
    // Below it is nothing free that is not in _freed.
    private ulong _cursor;

    private Qcow2Refcounts(Qcow2File file, Qcow2Header header, HashSet<ulong> metadata, ulong[] table, int cachedBlocks)
    {
        _file = file;
        _metadata = metadata;
        _table = table;
        _clusterBits = header.ClusterBits;
        _order = header.RefcountOrder;
        _entriesBits = header.ClusterBits + 3 - header.RefcountOrder;
        _tableOffset = header.RefcountTableOffset;
        _blocks = new Qcow2Tables(file, header.ClusterSize, cachedBlocks);
    }

    /// <summary>Reads the table.</summary>
    /// <param name="file">The image.</param>
    /// <param name="header">Its header.</param>
    /// <param name="metadata">Clusters that hold no data; the blocks are added.</param>
    /// <param name="cachedBlocks">How many blocks are kept in memory.</param>
    /// <exception cref="IOException">It cannot be read, or is damaged.</exception>
    public static Qcow2Refcounts Load(Qcow2File file, Qcow2Header header, HashSet<ulong> metadata, int cachedBlocks)
    {
        byte[] bytes = new byte[header.RefcountTableClusters << header.ClusterBits];
        if (!file.Read(header.RefcountTableOffset, bytes))
            throw new IOException("its refcount table cannot be read");
        ulong[] table = new ulong[bytes.Length / 8];
        for (int i = 0; i < table.Length; i++)
        {
            ulong entry = table[i] = Qcow2Header.U64(bytes, i * 8);
            if (entry == 0)
                continue;
            if (entry % (ulong)header.ClusterSize != 0 || entry >= file.Length)
                throw Qcow2Header.Damaged("a refcount block is not in the file");
            if (!metadata.Add(entry >> header.ClusterBits))
                throw Qcow2Header.Damaged("a refcount block is in the place of another table");
        }
        return new Qcow2Refcounts(file, header, metadata, table, cachedBlocks);
    }

    /// <summary>Whether there is anything to write.</summary>
    public bool IsDirty => _blocks.DirtyBytes > 0 || _tableDirty;

    /// <summary>Bytes of blocks that wait for being written.</summary>
    public long DirtyBytes => _blocks.DirtyBytes;

    /// <summary>Takes free clusters, as many one after the other as there are, at least one.</summary>
    /// <param name="most">How many at most.</param>
    /// <param name="got">How many.</param>
    /// <returns>The first one's number; 0: the image is full or damaged, or the file cannot be read.</returns>
    public ulong Allocate(int most, out int got)
    {
        got = 0;
        ulong first = 0;
        while (_freed.TryPeek(out ulong freed) && (got == 0 || (got < most && freed == first + (ulong)got)))
        {
            _freed.Pop();
            if (!Take(freed))
                continue;
            if (got++ == 0)
                first = freed;
        }
        if (got > 0)
            return first;
        while (BlockOf(_cursor) is { } block)
        {
            ulong last = (_cursor | ((1UL << _entriesBits) - 1)) + 1;
            while (_cursor < last && Entry(block.Bytes, _cursor) != 0)
                _cursor++;
            if (_cursor == last)
                continue;
            first = _cursor;
            while (got < most && _cursor < last && Take(_cursor))
            {
                got++;
                _cursor++;
            }
            // What is free and yet in use: the image is damaged, and nothing more is written to it.
            return got > 0 ? first : 0;
        }
        return 0;
    }

    /// <summary>Gives back what was taken and never named by a table.</summary>
    public void Return(ulong first, int count)
    {
        for (int i = count - 1; i >= 0; i--)
            Release(first + (ulong)i);
    }

    /// <summary>One reference less. Answers whether the cluster is free now.</summary>
    public bool Release(ulong cluster)
    {
        if (Existing(cluster) is not { } block || Entry(block.Bytes, cluster) is not (> 0 and var count))
            return false;
        SetEntry(block, cluster, count - 1);
        if (count > 1)
            return false;
        _metadata.Remove(cluster);
        if (cluster < _cursor && _freed.Count < MostFreed)
            _freed.Push(cluster);
        return true;
    }

    /// <summary>The number of references.</summary>
    public ulong CountOf(ulong cluster) => Existing(cluster) is { } block ? Entry(block.Bytes, cluster) : 0;

    /// <summary>
    /// Writes what has changed, the blocks before the table that names them, a new table before the header that names it; the caller makes it
    /// durable.
    /// </summary>
    public bool WriteBack()
    {
        if (!_blocks.WriteBack())
            return false;
        if (!_tableDirty)
            return true;
        byte[] bytes = new byte[_table.Length * 8];
        for (int i = 0; i < _table.Length; i++)
            Qcow2Header.Put64(bytes, i * 8, _table[i]);
        if (!_file.Sync() || !_file.Write(_tableOffset, bytes))
            return false;
        if (_tableMoved)
        {
            // Offset and number of clusters, next to each other.
            byte[] fields = new byte[12];
            Qcow2Header.Put64(fields, 0, _tableOffset);
            BinaryPrimitives.WriteInt32BigEndian(fields.AsSpan(8), bytes.Length >> _clusterBits);
            if (!_file.Sync() || !_file.Write(Qcow2Header.RefcountTableField, fields) || !_file.Sync())
                return false;
            _tableMoved = false;
            for (int i = 0; i < _oldTable.Count; i++)
                Release(_oldTable.Cluster + (ulong)i);
        }
        _tableDirty = false;
        return true;
    }

    private bool Take(ulong cluster)
    {
        if (_metadata.Contains(cluster) || Existing(cluster) is not { } block || Entry(block.Bytes, cluster) != 0)
            return false;
        SetEntry(block, cluster, 1);
        return true;
    }

    private Qcow2Table? Existing(ulong cluster)
    {
        ulong index = cluster >> _entriesBits;
        return index < (ulong)_table.Length && _table[index] is not 0 and var offset ? _blocks.Get(offset & OffsetMask) : null;
    }

    // The block of a cluster, which is made when there is none: in the first of the clusters that it describes, all of which are free.
    private Qcow2Table? BlockOf(ulong cluster)
    {
        ulong index = cluster >> _entriesBits, first = index << _entriesBits;
        if ((first + (1UL << _entriesBits)) << _clusterBits >= MostOffset || (index >= (ulong)_table.Length && !Grow(index)))
            return null;
        if (_table[index] != 0)
            return Existing(cluster);
        if (_metadata.Contains(first) || first == 0)
            return null;
        return AddBlock(index, first);
    }

    private Qcow2Table AddBlock(ulong index, ulong at)
    {
        _metadata.Add(at);
        Qcow2Table block = _blocks.Add(at << _clusterBits, new byte[1 << _clusterBits]);
        _table[index] = at << _clusterBits;
        _tableDirty = true;
        if (at >> _entriesBits == index)
            SetEntry(block, at, 1);
        return block;
    }

    // A longer table. It goes behind everything that the old one can describe, with the blocks for itself in front.
    private bool Grow(ulong index)
    {
        // Only one move at a time: the old table's clusters must be free in the file before.
        if (_tableMoved && !WriteBack())
            return false;
        ulong region = (ulong)_table.Length, first = region << _entriesBits, entriesPerCluster = 1UL << (_clusterBits - 3);
        ulong clusters, blocks, entries = Math.Max(index + 1, region + region / 2);
        while (true)
        {
            clusters = (entries + entriesPerCluster - 1) / entriesPerCluster;
            // Each block describes itself and others.
            blocks = (clusters - 1) / ((1UL << _entriesBits) - 1) + 1;
            if (clusters * entriesPerCluster >= region + blocks)
                break;
            entries = region + blocks;
        }
        if (clusters << _clusterBits > Math.Max(Qcow2Header.MostRefcountTableBytes, 1UL << _clusterBits) || (first + blocks + clusters) << _clusterBits >= MostOffset)
            return false;
        for (ulong i = 0; i < blocks + clusters; i++)
            if (_metadata.Contains(first + i))
                return false;
        _oldTable = (_tableOffset >> _clusterBits, _table.Length * 8 >> _clusterBits);
        Array.Resize(ref _table, (int)(clusters * entriesPerCluster));
        _tableOffset = (first + blocks) << _clusterBits;
        _tableMoved = true;
        for (ulong i = 0; i < blocks; i++)
            AddBlock(region + i, first + i);
        for (ulong i = 0; i < blocks + clusters; i++)
        {
            SetEntry(Existing(first + i)!, first + i, 1);
            _metadata.Add(first + i);
        }
        return true;
    }

    private ulong Entry(byte[] block, ulong cluster)
    {
        int index = (int)(cluster & ((1UL << _entriesBits) - 1));
        ReadOnlySpan<byte> bytes = block;
        return _order switch
        {
            < 3 => (ulong)(block[index >> (3 - _order)] >> ShiftOf(index, _order)) & ((1UL << (1 << _order)) - 1),
            3 => block[index],
            4 => BinaryPrimitives.ReadUInt16BigEndian(bytes[(index * 2)..]),
            5 => BinaryPrimitives.ReadUInt32BigEndian(bytes[(index * 4)..]),
            _ => BinaryPrimitives.ReadUInt64BigEndian(bytes[(index * 8)..]),
        };
    }

    // Only 0, 1, and less than before: it fits.
    private void SetEntry(Qcow2Table block, ulong cluster, ulong value)
    {
        int index = (int)(cluster & ((1UL << _entriesBits) - 1));
        SetEntry(block.Bytes, _order, index, value);
        _blocks.MarkDirty(block, index << _order >> 3, _order < 3 ? 1 : 1 << (_order - 3));
    }

    /// <summary>Writes a count into blocks that lie one after the other.</summary>
    internal static void SetEntry(Span<byte> bytes, int order, long index, ulong value)
    {
        int at = (int)(index << order >> 3);
        switch (order)
        {
            case < 3:
                int mask = (1 << (1 << order)) - 1, shift = ShiftOf((int)index, order);
                bytes[at] = (byte)((bytes[at] & ~(mask << shift)) | ((int)value << shift));
                break;
            case 3:
                bytes[at] = (byte)value;
                break;
            case 4:
                BinaryPrimitives.WriteUInt16BigEndian(bytes[at..], (ushort)value);
                break;
            case 5:
                BinaryPrimitives.WriteUInt32BigEndian(bytes[at..], (uint)value);
                break;
            default:
                BinaryPrimitives.WriteUInt64BigEndian(bytes[at..], value);
                break;
        }
    }

    // Bit 0 is the least significant one.
    private static int ShiftOf(int index, int order) => (index & ((1 << (3 - order)) - 1)) << order;
}
