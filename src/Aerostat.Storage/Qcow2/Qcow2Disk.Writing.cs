using Aerostat.Platform;

namespace Aerostat.Storage;

public sealed partial class Qcow2Disk
{
    // For the clusters that are written in part. Only who is alone uses it.
    private byte[]? _scratch;

    private byte[] Scratch => _scratch ??= GC.AllocateUninitializedArray<byte>(ClusterSize, pinned: true);

    /// <inheritdoc/>
    public DiskResult Write(ulong offset, ReadOnlySpan<HostBuffer> buffers)
    {
        BufferRange range = new(buffers);
        if (ReadOnly || offset > Length || range.Length > Length - offset)
            return DiskResult.Failed;
        _gate.EnterReadLock();
        try
        {
            if (_disposed)
                return DiskResult.Failed;
            if (_autoclearCleared && TryOverwrite(offset, range) is { } result)
                return result;
        }
        finally
        {
            _gate.ExitReadLock();
        }
        return Alone(offset, range.Length, static (disk, at, _, buffers) => disk.WriteRange(at, new BufferRange(buffers)), buffers);
    }

    /// <inheritdoc/>
    public DiskResult Flush()
    {
        if (ReadOnly)
            return DiskResult.Done;
        DiskResult result = Alone(0, 0, static (disk, _, _, _) => disk.Commit(), []);
        return result == DiskResult.Done && !_file.Sync() ? DiskResult.Failed : result;
    }

    /// <inheritdoc/>
    public DiskResult Discard(ulong offset, ulong length) =>
        // Without zero flags there is no way to hide what is under it but to write zeros.
        _header.Version < 3 && _backing is not null ? DiskResult.Unsupported : WriteZeroes(offset, length, mayUnmap: true);

    /// <inheritdoc/>
    public DiskResult WriteZeroes(ulong offset, ulong length, bool mayUnmap)
    {
        if (ReadOnly || offset > Length || length > Length - offset)
            return DiskResult.Failed;
        return mayUnmap
            ? Alone(offset, length, static (disk, at, length, _) => disk.ClearRange(at, length, mayUnmap: true), [])
            : Alone(offset, length, static (disk, at, length, _) => disk.ClearRange(at, length, mayUnmap: false), []);
    }

    private delegate bool Change(Qcow2Disk disk, ulong offset, ulong length, ReadOnlySpan<HostBuffer> buffers);

    private DiskResult Alone(ulong offset, ulong length, Change change, ReadOnlySpan<HostBuffer> buffers)
    {
        _gate.EnterWriteLock();
        try
        {
            bool done = !_disposed && ClearAutoclear() && change(this, offset, length, buffers)
                && (_l2.DirtyBytes + _refcounts!.DirtyBytes < MostDirtyBytes && _unreleased.Count < MostUnreleased || Commit());
            return done ? DiskResult.Done : DiskResult.Failed;
        }
        finally
        {
            _gate.ExitWriteLock();
        }
    }

    // Features that describe the contents, such as dirty bitmaps, do not any more once something is written by who does not keep them.
    private bool ClearAutoclear()
    {
        if (_autoclearCleared)
            return true;
        return _autoclearCleared = _header.Autoclear == 0 || (_file.Write(Qcow2Header.AutoclearField, new byte[8]) && _file.Sync());
    }

    // All of it, if all of it has its place already; else null, and nothing may have been written.
    private DiskResult? TryOverwrite(ulong offset, BufferRange range)
    {
        while (range.Length > 0)
        {
            Run run = Look(offset, range.Length);
            if (run.Kind != Qcow2Kind.Data || !run.Entry.IsOwn)
                return null;
            if (!_file.Write(run.Host, range.Part(0, run.Length)))
                return DiskResult.Failed;
            offset += run.Length;
            range = range.Part(run.Length, range.Length - run.Length);
        }
        return DiskResult.Done;
    }

    private bool WriteRange(ulong offset, BufferRange range)
    {
        while (range.Length > 0)
        {
            Run run = Look(offset, range.Length);
            ulong done;
            if (run.Kind == Qcow2Kind.Data && run.Entry.IsOwn)
                done = _file.Write(run.Host, range.Part(0, run.Length)) ? run.Length : 0;
            else if (run.Kind == Qcow2Kind.Damaged)
                return false;
            else if ((offset & ClusterMask) == 0 && range.Length >= (ulong)ClusterSize && !run.Entry.IsOwn)
                done = WriteWhole(offset, range, run);
            else
                done = WritePart(offset, range, run);
            if (done == 0)
                return false;
            offset += done;
            range = range.Part(done, range.Length - done);
        }
        return true;
    }

    // Whole clusters that have no place of their own, as many at once as are alike. Answers how many bytes; 0: it failed.
    private ulong WriteWhole(ulong offset, BufferRange range, Run run)
    {
        if (OwnTable(offset) is not { } table)
            return 0;
        int count = (int)Math.Max(1, Math.Min(run.Length, range.Length) >> _header.ClusterBits);
        // A run of zeros can have clusters with a place among those without.
        for (int i = 1; i < count; i++)
            if (EntryAt(table, IndexOf(offset) + i).IsOwn)
                count = i;
        ulong first = _refcounts!.Allocate(count, out int got);
        if (first == 0)
            return 0;
        ulong bytes = (ulong)got << _header.ClusterBits;
        if (!_file.Write(first << _header.ClusterBits, range.Part(0, bytes)))
        {
            _refcounts.Return(first, got);
            return 0;
        }
        for (int i = 0; i < got; i++)
            Replace(table, IndexOf(offset) + i, ((first + (ulong)i) << _header.ClusterBits) | Qcow2Entry.Copied);
        return bytes;
    }

    // Within one cluster: the rest of it keeps what it has.
    private ulong WritePart(ulong offset, BufferRange range, Run run)
    {
        if (OwnTable(offset) is not { } table)
            return 0;
        int inCluster = (int)(offset & ClusterMask);
        ulong part = Math.Min((ulong)(ClusterSize - inCluster), range.Length), start = offset - (ulong)inCluster;
        bool own = run.Entry.IsOwn;
        if (own && IsForeign(run.Entry.Host))
            return 0;
        bool zeros = run.Kind == Qcow2Kind.Zero || (run.Kind == Qcow2Kind.Absent && (_backing is null || start >= _backing.Length));
        // Before anything is taken, which would have to be given back.
        if (!zeros && !ReadRange(start, new BufferRange([BufferOf(Scratch)]).Part(0, Math.Min((ulong)ClusterSize, Length - start))))
            return 0;
        ulong cluster = own ? run.Entry.Host >> _header.ClusterBits : _refcounts!.Allocate(1, out _);
        if (cluster == 0)
            return 0;
        ulong host = cluster << _header.ClusterBits;
        bool written;
        if (zeros && !own && host >= _file.Length)
        {
            // Nothing was ever there.
            written = _file.Write(host + (ulong)inCluster, range.Part(0, part));
        }
        else
        {
            if (zeros)
                Scratch.AsSpan().Clear();
            else if (Length - start < (ulong)ClusterSize)
                Scratch.AsSpan((int)(Length - start)).Clear();
            range.Part(0, part).CopyTo(Scratch.AsSpan(inCluster));
            written = _file.Write(host, Scratch);
        }
        if (!written)
        {
            if (!own)
                _refcounts!.Return(cluster, 1);
            return 0;
        }
        Replace(table, IndexOf(offset), host | Qcow2Entry.Copied);
        return part;
    }

    private bool ClearRange(ulong offset, ulong length, bool mayUnmap)
    {
        ulong end = offset + length;
        while (offset < end)
        {
            ulong inCluster = offset & ClusterMask, inTable = Math.Min(end - offset, _header.BytesPerL2 - (offset & (_header.BytesPerL2 - 1)));
            if (_l1[offset / _header.BytesPerL2] == 0 && !ShowsThrough(offset))
            {
                offset += inTable;
                continue;
            }
            ulong part = Math.Min(end - offset, (ulong)ClusterSize - inCluster);
            // The disk may end within a cluster.
            bool whole = inCluster == 0 && (part == (ulong)ClusterSize || end == Length);
            if (!(whole ? ClearCluster(offset, mayUnmap) : ClearPart(offset, part)))
                return false;
            offset += part;
        }
        return true;
    }

    private bool ShowsThrough(ulong offset) => _backing is not null && offset < _backing.Length;

    private bool ClearPart(ulong offset, ulong length)
    {
        Run run = Look(offset, length);
        if (run.Kind == Qcow2Kind.Zero || (run.Kind == Qcow2Kind.Absent && !ShowsThrough(offset & ~ClusterMask)))
            return true;
        byte[] zeros = GC.AllocateArray<byte>((int)length, pinned: true);
        bool written = WriteRange(offset, new BufferRange([BufferOf(zeros)]));
        // An address alone does not keep it.
        GC.KeepAlive(zeros);
        return written;
    }

    private bool ClearCluster(ulong offset, bool mayUnmap)
    {
        Run run = Look(offset, Math.Min((ulong)ClusterSize, Length - offset));
        bool through = ShowsThrough(offset);
        if (run.Kind == Qcow2Kind.Damaged)
            return false;
        if (_header.Version < 3 && (through || (!mayUnmap && run.Kind != Qcow2Kind.Absent)))
            return ClearPart(offset, run.Length);
        ulong value = !mayUnmap && run.Entry.IsOwn ? (run.Entry.Value & (Qcow2Entry.OffsetMask | Qcow2Entry.Copied)) | Qcow2Entry.ZeroFlag
            : through || (!mayUnmap && run.Kind != Qcow2Kind.Absent) ? Qcow2Entry.ZeroFlag : 0;
        if (run.Entry.Value == value)
            return true;
        if (OwnTable(offset) is not { } table)
            return false;
        Replace(table, IndexOf(offset), value, punch: true);
        return true;
    }

    // The second-level table of a place, of this disk alone, made or copied if there is none.
    private Qcow2Table? OwnTable(ulong offset)
    {
        int index = (int)(offset / _header.BytesPerL2);
        ulong entry = _l1[index], old = entry & Qcow2Entry.OffsetMask;
        if (old != 0 && (entry & Qcow2Entry.Copied) != 0)
            return _l2.Get(old);
        byte[] bytes = new byte[ClusterSize];
        if (old != 0)
        {
            if (_l2.Get(old) is not { } shared)
                return null;
            shared.Bytes.CopyTo(bytes, 0);
            // Whoever shares the table shares what it names.
            for (int i = 0; i < bytes.Length; i += 8)
                Qcow2Header.Put64(bytes, i, Qcow2Header.U64(bytes, i) & ~Qcow2Entry.Copied);
        }
        ulong cluster = _refcounts!.Allocate(1, out _);
        if (cluster == 0)
            return null;
        _metadata.Add(cluster);
        _l1[index] = cluster << _header.ClusterBits | Qcow2Entry.Copied;
        _dirtyL1.Add(index);
        if (old != 0)
            _unreleased.Add((old >> _header.ClusterBits, false));
        return _l2.Add(cluster << _header.ClusterBits, bytes);
    }

    // Changes an entry; what it named before is let go of when that is in the file.
    private void Replace(Qcow2Table table, int index, ulong value, bool punch = false)
    {
        Qcow2Entry old = EntryAt(table, index);
        Qcow2Header.Put64(table.Bytes, index * 8, value);
        _l2.MarkDirty(table, index * 8, 8);
        if ((old.Value & Qcow2Entry.CompressedFlag) != 0)
        {
            (ulong offset, ulong end) = old.CompressedRange(_header);
            for (ulong cluster = offset >> _header.ClusterBits; cluster <= (end - 1) >> _header.ClusterBits; cluster++)
                _unreleased.Add((cluster, punch));
        }
        else if (old.Host != 0 && old.Host != (value & Qcow2Entry.OffsetMask))
        {
            _unreleased.Add((old.Host >> _header.ClusterBits, punch));
        }
    }

    // Brings the file up to date, in the order that this class's summary gives. The caller is alone.
    private bool Commit()
    {
        if (!_refcounts!.WriteBack())
            return false;
        if (_l2.DirtyBytes == 0 && _dirtyL1.Count == 0)
            return true;
        if (!_file.Sync() || !_l2.WriteBack())
            return false;
        if (_dirtyL1.Count > 0)
        {
            if (!_file.Sync())
                return false;
            byte[] entry = new byte[8];
            foreach (int index in _dirtyL1)
            {
                Qcow2Header.Put64(entry, 0, _l1[index]);
                if (!_file.Write(_header.L1Offset + (ulong)index * 8, entry))
                    return false;
            }
            _dirtyL1.Clear();
        }
        return _unreleased.Count == 0 || (_file.Sync() && ReleaseAll());
    }

    // What nothing in the file names any more is free, and what was discarded gives its space back.
    private bool ReleaseAll()
    {
        List<ulong> punched = [];
        foreach ((ulong cluster, bool punch) in _unreleased)
            if (_refcounts!.Release(cluster) && punch)
                punched.Add(cluster);
        _unreleased.Clear();
        punched.Sort();
        for (int i = 0; i < punched.Count;)
        {
            int first = i++;
            while (i < punched.Count && punched[i] == punched[i - 1] + 1)
                i++;
            _file.Punch(punched[first] << _header.ClusterBits, (ulong)(i - first) << _header.ClusterBits);
        }
        return true;
    }
}
