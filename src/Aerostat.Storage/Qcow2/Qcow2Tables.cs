namespace Aerostat.Storage;

/// <summary>A table of an image in memory: second-level tables and refcount blocks have one cluster each.</summary>
internal sealed class Qcow2Table(ulong offset, byte[] bytes)
{
    private int _from = int.MaxValue, _to;

    /// <summary>Where in the file.</summary>
    public ulong Offset => offset;

    public byte[] Bytes => bytes;

    /// <summary>Used since eviction last came by.</summary>
    public bool Used { get; set; }

    public bool IsDirty => _from < _to;

    /// <summary>Notes that a part differs from the file.</summary>
    public void MarkDirty(int from, int length)
    {
        _from = Math.Min(_from, from);
        _to = Math.Max(_to, from + length);
    }

    /// <summary>Writes what differs.</summary>
    public bool WriteBack(Qcow2File file)
    {
        if (!IsDirty)
            return true;
        if (!file.Write(offset + (ulong)_from, bytes.AsSpan(_from.._to)))
            return false;
        (_from, _to) = (int.MaxValue, 0);
        return true;
    }
}

/// <summary>
/// Tables of one kind that are in memory: those that differ from the file, and of the others as many as there is room for. Any thread may
/// look one up; only one that nobody else is beside changes them.
/// </summary>
internal sealed class Qcow2Tables(Qcow2File file, int tableSize, int most)
{
    private readonly Lock _lock = new();
    private readonly Dictionary<ulong, Qcow2Table> _tables = [];
    private readonly Queue<Qcow2Table> _order = [];
    private readonly List<Qcow2Table> _dirty = [];

    /// <summary>Bytes of tables that wait for being written.</summary>
    public long DirtyBytes => (long)_dirty.Count * tableSize;

    /// <summary>The table at a place of the file, or null: it cannot be read, or the file ends before it.</summary>
    public Qcow2Table? Get(ulong offset)
    {
        lock (_lock)
        {
            if (_tables.TryGetValue(offset, out Qcow2Table? table))
            {
                table.Used = true;
                return table;
            }
            byte[] bytes = GC.AllocateUninitializedArray<byte>(tableSize);
            if (offset >= file.Length || !file.Read(offset, bytes))
                return null;
            return Keep(new Qcow2Table(offset, bytes));
        }
    }

    /// <summary>A new table for a place where there was none.</summary>
    public Qcow2Table Add(ulong offset, byte[] bytes)
    {
        Qcow2Table table = new(offset, bytes);
        lock (_lock)
        {
            _tables.Remove(offset);
            Keep(table);
        }
        MarkDirty(table, 0, bytes.Length);
        return table;
    }

    /// <summary>Notes that a part of a table differs from the file.</summary>
    public void MarkDirty(Qcow2Table table, int from, int length)
    {
        if (!table.IsDirty)
            _dirty.Add(table);
        table.MarkDirty(from, length);
    }

    /// <summary>Writes what differs; what could not be written still does.</summary>
    public bool WriteBack()
    {
        // In the order of the file.
        _dirty.Sort(static (a, b) => a.Offset.CompareTo(b.Offset));
        int done = 0;
        while (done < _dirty.Count && _dirty[done].WriteBack(file))
            done++;
        _dirty.RemoveRange(0, done);
        return _dirty.Count == 0;
    }

    private Qcow2Table Keep(Qcow2Table table)
    {
        table.Used = true;
        _tables[table.Offset] = table;
        _order.Enqueue(table);
        for (int tries = _order.Count; _order.Count > most && tries > 0; tries--)
        {
            Qcow2Table oldest = _order.Dequeue();
            // One that was replaced is not in the index any more.
            bool current = _tables.TryGetValue(oldest.Offset, out Qcow2Table? there) && there == oldest;
            if (current && (oldest.Used || oldest.IsDirty || oldest == table))
            {
                oldest.Used = false;
                _order.Enqueue(oldest);
            }
            else if (current)
            {
                _tables.Remove(oldest.Offset);
            }
        }
        return table;
    }
}
