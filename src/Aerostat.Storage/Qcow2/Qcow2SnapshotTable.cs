using System.Buffers.Binary;

namespace Aerostat.Storage;

/// <summary>The table of an image's internal snapshots (docs/interop/qcow2, "Snapshots"): they are kept, and nothing is written over them.</summary>
internal static class Qcow2SnapshotTable
{
    private const int FixedLength = 40;
    private const ulong MostBytes = 64 << 20;
    // No two tables have a cluster in common, so more than this is not to be expected of an image, but of who wants to keep us busy.
    private const int MostClusters = 1 << 20;

    /// <summary>Adds the clusters of the table and of the snapshots' first-level tables.</summary>
    /// <exception cref="IOException">The table is damaged.</exception>
    public static void Protect(Qcow2File file, Qcow2Header header, HashSet<ulong> metadata)
    {
        ulong at = header.SnapshotsOffset;
        byte[] entry = new byte[FixedLength];
        int clusters = 0;
        for (uint i = 0; i < header.Snapshots; i++)
        {
            if (at >= file.Length || at - header.SnapshotsOffset > MostBytes || !file.Read(at, entry))
                throw Qcow2Header.Damaged("its table of snapshots is not in the file");
            ulong l1 = Qcow2Header.U64(entry, 0), l1Bytes = BinaryPrimitives.ReadUInt32BigEndian(entry.AsSpan(8)) * 8UL;
            if (l1 % (ulong)header.ClusterSize != 0 || l1 >= file.Length || l1Bytes > Qcow2Header.MostL1Bytes)
                throw Qcow2Header.Damaged($"snapshot {i + 1} is not in the file");
            Add(l1, l1Bytes);
            ulong length = FixedLength + (ulong)BinaryPrimitives.ReadUInt16BigEndian(entry.AsSpan(12)) + BinaryPrimitives.ReadUInt16BigEndian(entry.AsSpan(14))
                + BinaryPrimitives.ReadUInt32BigEndian(entry.AsSpan(36));
            at += length + 7 & ~7UL;
        }
        if (header.Snapshots > 0)
        {
            if (at - header.SnapshotsOffset > MostBytes)
                throw Qcow2Header.Damaged("its table of snapshots is too long");
            Add(header.SnapshotsOffset, at - header.SnapshotsOffset);
        }

        void Add(ulong offset, ulong length)
        {
            for (ulong cluster = offset >> header.ClusterBits; cluster << header.ClusterBits < offset + length; cluster++)
            {
                if (clusters++ == MostClusters)
                    throw Qcow2Header.Damaged("its snapshots have too large tables");
                metadata.Add(cluster);
            }
        }
    }
}
