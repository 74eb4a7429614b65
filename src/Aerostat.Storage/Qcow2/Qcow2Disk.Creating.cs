using System.Buffers.Binary;
using System.Text;

namespace Aerostat.Storage;

/// <summary>What a new image shall be like.</summary>
public sealed record Qcow2Options
{
    /// <summary>Bytes of a cluster: a power of two from 512 to 2 MiB.</summary>
    public int ClusterSize { get; init; } = 1 << 16;

    /// <summary>Bits of a reference count: a power of two from 1 to 64.</summary>
    public int RefcountBits { get; init; } = 16;

    /// <summary>How compressed clusters would be compressed, by whoever writes such.</summary>
    public Qcow2Compression Compression { get; init; }

    /// <summary>The image under this one, absolute or relative to the new image's folder, or null.</summary>
    public string? BackingFile { get; init; }

    /// <summary>What that is.</summary>
    public DiskFormat BackingFormat { get; init; } = DiskFormat.Qcow2;
}

public sealed partial class Qcow2Disk
{
    /// <summary>Makes an image (version 3) that reads as zeros, or as the image under it, and opens it to be written.</summary>
    /// <param name="path">The file; there must be none.</param>
    /// <param name="length">Bytes of the disk, a multiple of <see cref="IDisk.SectorSize"/>.</param>
    /// <param name="options">What it shall be like.</param>
    /// <exception cref="IOException">It cannot be made; the message is one line.</exception>
    /// <exception cref="ArgumentOutOfRangeException">The length or an option is not possible.</exception>
    public static Qcow2Disk Create(string path, ulong length, Qcow2Options? options = null)
    {
        ArgumentNullException.ThrowIfNull(path);
        options ??= new Qcow2Options();
        byte[] image = Layout(length, options);
        try
        {
            using FileStream file = new(path, FileMode.CreateNew, FileAccess.Write);
            try
            {
                file.Write(image);
                file.Flush(flushToDisk: true);
            }
            catch
            {
                File.Delete(path);
                throw;
            }
        }
        catch (UnauthorizedAccessException)
        {
            throw new IOException("this user may not write there");
        }
        try
        {
            return Open(path, readOnly: false);
        }
        catch
        {
            File.Delete(path);
            throw;
        }
    }

    // Header, refcount table, refcount blocks, first-level table.
    private static byte[] Layout(ulong length, Qcow2Options options)
    {
        int clusterBits = Bits(options.ClusterSize, Qcow2Header.LeastClusterBits, Qcow2Header.MostClusterBits, nameof(options.ClusterSize));
        int order = Bits(options.RefcountBits, 0, 6, nameof(options.RefcountBits));
        ulong cluster = 1UL << clusterBits, bytesPerL2 = 1UL << (clusterBits + clusterBits - 3);
        ArgumentOutOfRangeException.ThrowIfZero(length);
        ArgumentOutOfRangeException.ThrowIfNotEqual(length % IDisk.SectorSize, 0UL, nameof(length));
        ArgumentOutOfRangeException.ThrowIfGreaterThan(length, (ulong)long.MaxValue);
        ulong l1Entries = (length - 1) / bytesPerL2 + 1;
        if (l1Entries * 8 > Qcow2Header.MostL1Bytes)
            throw new IOException($"a disk of {length} bytes needs clusters larger than {cluster} bytes");
        ulong l1Clusters = Clusters(l1Entries * 8), entriesPerBlock = cluster * 8 >> order;
        ulong blocks = 1, table = 1, total;
        while (true)
        {
            total = 1 + table + blocks + l1Clusters;
            ulong needed = (total - 1) / entriesPerBlock + 1;
            if (needed <= blocks && Clusters(blocks * 8) <= table)
                break;
            blocks = Math.Max(blocks, needed);
            table = Clusters(blocks * 8);
        }
        Qcow2Header header = new()
        {
            ClusterBits = clusterBits,
            RefcountOrder = order,
            Length = length,
            L1Entries = (int)l1Entries,
            L1Offset = (1 + table + blocks) * cluster,
            RefcountTableOffset = cluster,
            RefcountTableClusters = (int)table,
            Compression = options.Compression,
            Incompatible = options.Compression == Qcow2Compression.Zlib ? 0 : Qcow2Header.CompressionType,
            BackingFile = options.BackingFile,
            BackingFormat = options.BackingFile is null ? null : options.BackingFormat == DiskFormat.Raw ? "raw" : "qcow2",
        };
        byte[] image = new byte[total * cluster];
        header.Format().CopyTo(image, 0);
        for (ulong i = 0; i < blocks; i++)
            Qcow2Header.Put64(image, (int)(cluster + i * 8), (1 + table + i) * cluster);
        Span<byte> counts = image.AsSpan((int)((1 + table) * cluster));
        for (ulong i = 0; i < total; i++)
            Qcow2Refcounts.SetEntry(counts, order, (long)i, 1);
        return image;

        ulong Clusters(ulong bytes) => (bytes + cluster - 1) / cluster;
    }

    private static int Bits(int value, int least, int most, string name) =>
        System.Numerics.BitOperations.IsPow2(value) && System.Numerics.BitOperations.Log2((uint)value) is var bits && bits >= least && bits <= most
            ? bits
            : throw new ArgumentOutOfRangeException(name, value, $"it is a power of two from {1 << least} to {1 << most}");
}
