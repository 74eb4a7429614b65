using System.Buffers.Binary;
using System.Text;

namespace Aerostat.Storage;

/// <summary>
/// The header of a qcow2 image (QEMU's docs/interop/qcow2, "Header" and "Header extensions") with all that is refused: everything that comes
/// out of here is within the limits below.
/// </summary>
internal sealed record Qcow2Header
{
    public const uint Magic = 0x514649FB;
    public const int LengthV2 = 72, LengthV3 = 104, LengthWritten = 112;
    /// <summary>Cluster sizes of 512 bytes to 2 MiB.</summary>
    public const int LeastClusterBits = 9, MostClusterBits = 21;
    public const int MostBackingName = 1023;
    /// <summary>What QEMU also allows of tables: 32 MiB of first level, 8 MiB of refcount table, 65536 snapshots.</summary>
    public const ulong MostL1Bytes = 32 << 20, MostRefcountTableBytes = 8 << 20, MostSnapshots = 65536;
    /// <summary>Where fields are that are written later.</summary>
    public const int RefcountTableField = 48, IncompatibleField = 72, AutoclearField = 88;
    public const ulong Dirty = 1, Corrupt = 2, ExternalData = 4, CompressionType = 8, ExtendedL2 = 16;
    private const ulong Known = Dirty | Corrupt | CompressionType;
    private const uint EndOfExtensions = 0, BackingFormatExtension = 0xE2792ACA, FeatureNames = 0x6803F857;
    private const int FeatureNameEntry = 48;

    public int Version { get; init; } = 3;
    public int ClusterBits { get; init; } = 16;
    public ulong Length { get; init; }
    public int L1Entries { get; init; }
    public ulong L1Offset { get; init; }
    public ulong RefcountTableOffset { get; init; }
    public int RefcountTableClusters { get; init; }
    public uint Snapshots { get; init; }
    public ulong SnapshotsOffset { get; init; }
    public ulong Incompatible { get; init; }
    public ulong Compatible { get; init; }
    public ulong Autoclear { get; init; }
    public int RefcountOrder { get; init; } = 4;
    public Qcow2Compression Compression { get; init; }
    public string? BackingFile { get; init; }
    public string? BackingFormat { get; init; }

    public int ClusterSize => 1 << ClusterBits;

    /// <summary>Bytes of the disk that one second-level table describes.</summary>
    public ulong BytesPerL2 => 1UL << (ClusterBits + ClusterBits - 3);

    /// <summary>Reads the header.</summary>
    /// <param name="bytes">The first cluster, or as much of it as the file has, and at least 64 KiB or the whole file.</param>
    /// <param name="fileLength">Bytes of the file.</param>
    /// <exception cref="IOException">It is not one that can be used; one line says why.</exception>
    public static Qcow2Header Parse(ReadOnlySpan<byte> bytes, ulong fileLength)
    {
        if (bytes.Length < LengthV2 || U32(bytes, 0) != Magic)
            throw new IOException("it is not a qcow2 image");
        uint version = U32(bytes, 4);
        if (version is not (2 or 3))
            throw new IOException($"it is a qcow2 image of version {version}; versions 2 and 3 can be used");
        if (version == 3 && bytes.Length < LengthV3)
            throw Damaged("the header is cut off");
        uint clusterBits = U32(bytes, 20);
        if (clusterBits is < LeastClusterBits or > MostClusterBits)
            throw Damaged($"its clusters would have 2^{clusterBits} bytes");
        int clusterSize = 1 << (int)clusterBits;
        if (U32(bytes, 32) is not 0 and var method)
            throw new IOException($"it is encrypted ({(method == 1 ? "AES" : method == 2 ? "LUKS" : "method " + method)}), which is not supported");
        uint headerLength = version == 3 ? U32(bytes, 100) : LengthV2;
        if (version == 3 && (headerLength < LengthV3 || headerLength % 8 != 0 || headerLength > clusterSize || headerLength > bytes.Length))
            throw Damaged($"its header would have {headerLength} bytes");
        Qcow2Header header = new()
        {
            Version = (int)version,
            ClusterBits = (int)clusterBits,
            Length = U64(bytes, 24),
            L1Offset = U64(bytes, 40),
            RefcountTableOffset = U64(bytes, RefcountTableField),
            Snapshots = U32(bytes, 60),
            SnapshotsOffset = U64(bytes, 64),
            Incompatible = version == 3 ? U64(bytes, IncompatibleField) : 0,
            Compatible = version == 3 ? U64(bytes, 80) : 0,
            Autoclear = version == 3 ? U64(bytes, AutoclearField) : 0,
        };
        ReadOnlySpan<byte> head = bytes[..Math.Min(bytes.Length, clusterSize)];
        (string? format, Dictionary<int, string> names) = ReadExtensions(head, (int)headerLength);
        header.CheckFeatures(names);
        uint order = version == 3 ? U32(bytes, 96) : 4;
        if (order > 6)
            throw Damaged($"its reference counts would have 2^{order} bits");
        byte compression = headerLength > 104 ? bytes[104] : (byte)0;
        if (compression > 1 || compression != 0 != ((header.Incompatible & CompressionType) != 0))
            throw new IOException($"it is compressed with method {compression}, which is not known");
        header = header with
        {
            RefcountOrder = (int)order,
            Compression = (Qcow2Compression)compression,
            L1Entries = header.CheckTables(U32(bytes, 36), fileLength),
            RefcountTableClusters = header.CheckRefcountTable(U32(bytes, 56), fileLength),
        };
        if (header.Snapshots > MostSnapshots || (header.Snapshots > 0 && !header.IsCluster(header.SnapshotsOffset, fileLength)))
            throw Damaged($"its table of {header.Snapshots} snapshots is not in the file");
        return U64(bytes, 8) is not 0 and var name
            ? header with { BackingFile = ReadBackingName(head, name, U32(bytes, 16)), BackingFormat = format }
            : header;
    }

    /// <summary>The first cluster of a new image.</summary>
    public byte[] Format()
    {
        byte[] bytes = new byte[ClusterSize];
        Put32(bytes, 0, Magic);
        Put32(bytes, 4, (uint)Version);
        Put32(bytes, 20, (uint)ClusterBits);
        Put64(bytes, 24, Length);
        Put32(bytes, 36, (uint)L1Entries);
        Put64(bytes, 40, L1Offset);
        Put64(bytes, RefcountTableField, RefcountTableOffset);
        Put32(bytes, 56, (uint)RefcountTableClusters);
        int at = LengthV2;
        if (Version == 3)
        {
            Put64(bytes, IncompatibleField, Incompatible);
            Put32(bytes, 96, (uint)RefcountOrder);
            Put32(bytes, 100, LengthWritten);
            bytes[104] = (byte)Compression;
            at = LengthWritten;
        }
        if (BackingFile is { } backing)
        {
            byte[] format = Encoding.ASCII.GetBytes(BackingFormat!), name = Encoding.UTF8.GetBytes(backing);
            Put32(bytes, at, BackingFormatExtension);
            Put32(bytes, at + 4, (uint)format.Length);
            format.CopyTo(bytes, at + 8);
            // After the padding to 8 bytes the eight zeros that end the extensions.
            at += 8 + 8 + 8;
            if (name.Length > Math.Min(MostBackingName, ClusterSize - at))
                throw new IOException($"the path of its backing file is too long for clusters of {ClusterSize} bytes");
            name.CopyTo(bytes, at);
            Put64(bytes, 8, (ulong)at);
            Put32(bytes, 16, (uint)name.Length);
        }
        return bytes;
    }

    internal static IOException Damaged(string what) => new($"the image is damaged: {what}");

    internal static ulong U64(ReadOnlySpan<byte> bytes, int at) => BinaryPrimitives.ReadUInt64BigEndian(bytes[at..]);

    internal static void Put64(Span<byte> bytes, int at, ulong value) => BinaryPrimitives.WriteUInt64BigEndian(bytes[at..], value);

    private static uint U32(ReadOnlySpan<byte> bytes, int at) => BinaryPrimitives.ReadUInt32BigEndian(bytes[at..]);

    private static void Put32(Span<byte> bytes, int at, uint value) => BinaryPrimitives.WriteUInt32BigEndian(bytes[at..], value);

    private bool IsCluster(ulong offset, ulong fileLength) => offset != 0 && offset % (ulong)ClusterSize == 0 && offset < fileLength;

    private int CheckTables(uint entries, ulong fileLength)
    {
        if (Length == 0 || Length % IDisk.SectorSize != 0 || Length > long.MaxValue)
            throw Damaged($"the disk would have {Length} bytes");
        ulong needed = (Length - 1) / BytesPerL2 + 1;
        if (entries < needed || needed * 8 > MostL1Bytes || (ulong)entries * 8 > MostL1Bytes)
            throw Damaged($"a first-level table of {entries} entries does not suit a disk of {Length} bytes");
        if (!IsCluster(L1Offset, fileLength) || fileLength - L1Offset < needed * 8)
            throw Damaged("its first-level table is not in the file");
        return (int)entries;
    }

    private int CheckRefcountTable(uint clusters, ulong fileLength) =>
        clusters > 0 && (ulong)clusters << ClusterBits <= Math.Max(MostRefcountTableBytes, (ulong)ClusterSize) && IsCluster(RefcountTableOffset, fileLength)
            ? (int)clusters
            : throw Damaged("its refcount table is not in the file");

    private void CheckFeatures(Dictionary<int, string> names)
    {
        if ((Incompatible & ExternalData) != 0)
            throw new IOException("its data are in another file (an external data file), which is not supported");
        if ((Incompatible & ExtendedL2) != 0)
            throw new IOException("it has extended second-level entries (subclusters), which are not supported; 'qemu-img convert -O qcow2' makes an image without");
        if ((Incompatible & ~Known) is not 0 and var unknown)
        {
            int bit = System.Numerics.BitOperations.TrailingZeroCount(unknown);
            throw new IOException($"it needs a feature that is not known here: {(names.TryGetValue(bit, out string? name) ? name : $"number {bit}")}");
        }
    }

    // Extensions: type, length, data padded to 8 bytes. What is wrong with one that nobody needs is nobody's trouble: they end there.
    private static (string? Format, Dictionary<int, string> Names) ReadExtensions(ReadOnlySpan<byte> head, int at)
    {
        string? format = null;
        Dictionary<int, string> names = [];
        while (at <= head.Length - 8)
        {
            uint type = U32(head, at), length = U32(head, at + 4);
            at += 8;
            if (type == EndOfExtensions || length > head.Length - at)
                break;
            ReadOnlySpan<byte> data = head.Slice(at, (int)length);
            if (type == BackingFormatExtension && length <= 16)
                format = Printable(data);
            else if (type == FeatureNames)
                for (int i = 0; i + FeatureNameEntry <= data.Length; i += FeatureNameEntry)
                    if (data[i] == 0)
                        names[data[i + 1]] = Printable(data.Slice(i + 2, FeatureNameEntry - 2).TrimEnd((byte)0));
            at += (int)(length + 7 & ~7u);
        }
        return (format, names);
    }

    private static string ReadBackingName(ReadOnlySpan<byte> head, ulong offset, uint length)
    {
        if (length is 0 or > MostBackingName || offset > (ulong)head.Length || length > (ulong)head.Length - offset)
            throw Damaged("the name of its backing file is not in the header");
        ReadOnlySpan<byte> name = head.Slice((int)offset, (int)length);
        return name.Contains((byte)0) ? throw Damaged("the name of its backing file is none") : Encoding.UTF8.GetString(name);
    }

    private static string Printable(ReadOnlySpan<byte> text)
    {
        StringBuilder result = new();
        foreach (byte b in text)
            result.Append(b is >= 0x20 and < 0x7F ? (char)b : '?');
        return result.ToString();
    }
}

/// <summary>How the compressed clusters of an image are compressed.</summary>
public enum Qcow2Compression
{
    /// <summary>Deflate, without zlib's header.</summary>
    Zlib,
    /// <summary>Zstandard, RFC 8878.</summary>
    Zstd,
}
