using Aerostat.Platform;

namespace Aerostat.Storage;

public sealed partial class Qcow2Disk
{
    /// <summary>A range of the disk that is of one kind, and where it is.</summary>
    private readonly record struct Run(Qcow2Kind Kind, ulong Length, Qcow2Entry Entry, ulong Host)
    {
        public static Run Bad { get; } = new(Qcow2Kind.Damaged, 0, default, 0);
    }

    /// <inheritdoc/>
    public DiskResult Read(ulong offset, ReadOnlySpan<HostBuffer> buffers)
    {
        _gate.EnterReadLock();
        try
        {
            return !_disposed && ReadRange(offset, new BufferRange(buffers)) ? DiskResult.Done : DiskResult.Failed;
        }
        finally
        {
            _gate.ExitReadLock();
        }
    }

    /// <inheritdoc/>
    public DiskExtent BlockStatus(ulong offset, ulong length)
    {
        DiskExtent extent = LayerStatus(offset, length);
        if (extent.Kind != DiskExtentKind.Absent)
            return extent;
        ulong under = _backing is null || offset >= _backing.Length ? 0 : Math.Min(extent.Length, _backing.Length - offset);
        return under == 0 ? extent with { Kind = DiskExtentKind.Zero } : _backing!.BlockStatus(offset, under);
    }

    /// <summary>As <see cref="BlockStatus"/>, for this image alone: Absent where the backing file, or nothing, shows through.</summary>
    public DiskExtent LayerStatus(ulong offset, ulong length)
    {
        _gate.EnterReadLock();
        try
        {
            Run run = _disposed || offset >= Length ? Run.Bad : Look(offset, Math.Min(length, Length - offset));
            return run.Kind switch
            {
                Qcow2Kind.Absent => new(offset, run.Length, DiskExtentKind.Absent),
                Qcow2Kind.Zero => new(offset, run.Length, DiskExtentKind.Zero),
                // Reading it fails, which must not go unnoticed.
                Qcow2Kind.Damaged => new(offset, Math.Min(length, IDisk.SectorSize), DiskExtentKind.Data),
                _ => new(offset, run.Length, DiskExtentKind.Data),
            };
        }
        finally
        {
            _gate.ExitReadLock();
        }
    }

    /// <summary>The parts of the disk that this image itself says something of: Data and Zero, in order, as they are while this is read.</summary>
    public IEnumerable<DiskExtent> MapAllocated()
    {
        DiskExtent last = default;
        for (ulong at = 0; at < Length;)
        {
            DiskExtent extent = LayerStatus(at, Length - at);
            at += extent.Length;
            if (last.Length > 0 && last.Kind == extent.Kind)
            {
                last = last with { Length = last.Length + extent.Length };
                continue;
            }
            if (last.Length > 0 && last.Kind != DiskExtentKind.Absent)
                yield return last;
            last = extent;
        }
        if (last.Length > 0 && last.Kind != DiskExtentKind.Absent)
            yield return last;
    }

    private bool ReadRange(ulong offset, BufferRange buffers)
    {
        if (offset > Length || buffers.Length > Length - offset)
            return false;
        while (buffers.Length > 0)
        {
            Run run = Look(offset, buffers.Length);
            BufferRange part = buffers.Part(0, run.Length);
            bool done = run.Kind switch
            {
                Qcow2Kind.Absent => ReadUnder(offset, part),
                Qcow2Kind.Zero => Clear(part),
                Qcow2Kind.Data => _file.Read(run.Host, part),
                Qcow2Kind.Compressed => _decompressor.Read(run.Entry, (int)(offset & ClusterMask), part),
                _ => false,
            };
            if (!done)
                return false;
            offset += run.Length;
            buffers = buffers.Part(run.Length, buffers.Length - run.Length);
        }
        return true;
    }

    private bool ReadUnder(ulong offset, BufferRange part)
    {
        ulong under = _backing is null || offset >= _backing.Length ? 0 : Math.Min(part.Length, _backing.Length - offset);
        Clear(part.Part(under, part.Length - under));
        part = part.Part(0, under);
        Span<HostBuffer> batch = stackalloc HostBuffer[16];
        while (part.Length > 0)
        {
            int count = part.Fill(batch, out ulong covered);
            // Buffers need not end with a sector, and disks are read by sectors.
            if (covered % IDisk.SectorSize != 0)
            {
                byte[] bounce = GC.AllocateUninitializedArray<byte>((int)Math.Min(part.Length, (ulong)Math.Max(ClusterSize, 1 << 16)), pinned: true);
                if (_backing!.Read(offset, [BufferOf(bounce)]) != DiskResult.Done)
                    return false;
                covered = (ulong)bounce.Length;
                part.Part(0, covered).CopyFrom(bounce);
            }
            else if (_backing!.Read(offset, batch[..count]) != DiskResult.Done)
            {
                return false;
            }
            offset += covered;
            part = part.Part(covered, part.Length - covered);
        }
        return true;
    }

    private static bool Clear(BufferRange part)
    {
        part.Clear();
        return true;
    }

    private static HostBuffer BufferOf(byte[] pinned) => new(System.Runtime.InteropServices.Marshal.UnsafeAddrOfPinnedArrayElement(pinned, 0), (nuint)pinned.Length);

    // What is at a place, as far as it is alike and one after the other in the file; within one second-level table.
    private Run Look(ulong offset, ulong length)
    {
        ulong inTable = Math.Min(length, _header.BytesPerL2 - (offset & (_header.BytesPerL2 - 1)));
        ulong l1 = _l1[offset / _header.BytesPerL2] & Qcow2Entry.OffsetMask;
        if (l1 == 0)
            return new Run(Qcow2Kind.Absent, inTable, default, 0);
        if (_l2.Get(l1) is not { } table)
            return Run.Bad;
        int index = IndexOf(offset);
        ulong inCluster = offset & ClusterMask;
        Qcow2Entry entry = EntryAt(table, index);
        Qcow2Kind kind = entry.KindIn(_header);
        ulong done = Math.Min(inTable, (ulong)ClusterSize - inCluster);
        if (kind is Qcow2Kind.Compressed or Qcow2Kind.Damaged || (kind == Qcow2Kind.Data && IsForeign(entry.Host)))
            return kind == Qcow2Kind.Compressed ? new Run(kind, done, entry, 0) : Run.Bad;
        for (ulong next = entry.Host; done < inTable; done += Math.Min(inTable - done, (ulong)ClusterSize))
        {
            Qcow2Entry following = EntryAt(table, ++index);
            next += (ulong)ClusterSize;
            if (following.KindIn(_header) != kind || (kind == Qcow2Kind.Data && (following.Host != next || following.IsOwn != entry.IsOwn || IsForeign(next))))
                break;
        }
        return new Run(kind, done, entry, entry.Host + inCluster);
    }

    // Data where a table is: only in a damaged image, and nothing good comes of it when it is written to. Known of writable images only.
    private bool IsForeign(ulong host) => !ReadOnly && _metadata.Contains(host >> _header.ClusterBits);

    private int IndexOf(ulong offset) => (int)(offset >> _header.ClusterBits) & ((ClusterSize >> 3) - 1);

    private static Qcow2Entry EntryAt(Qcow2Table table, int index) => new(Qcow2Header.U64(table.Bytes, index * 8));
}
