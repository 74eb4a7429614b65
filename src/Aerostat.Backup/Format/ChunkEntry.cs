using System.Buffers.Binary;
using System.Runtime.InteropServices;

namespace Aerostat.Backup;

/// <summary>How a chunk is stored. The numbers are in files.</summary>
internal enum ChunkEncoding
{
    /// <summary>As it is.</summary>
    Plain = 1,
    /// <summary>A Zstandard frame.</summary>
    Zstandard = 2,
    /// <summary>All zeros: nothing is stored.</summary>
    Zeros = 3,
}

/// <summary>Where a chunk of a disk is in a backup's pack.</summary>
/// <param name="Chunk">Its number on the disk.</param>
/// <param name="Offset">First byte in the pack.</param>
/// <param name="Stored">Bytes there.</param>
/// <param name="Encoding">How it is stored.</param>
/// <param name="Hash">Of its contents.</param>
internal readonly record struct ChunkEntry(long Chunk, long Offset, int Stored, ChunkEncoding Encoding, ChunkHash Hash)
{
    /// <summary>Bytes in a file: number, offset, length and encoding, little-endian, then the hash.</summary>
    public const int Size = 56;

    public void Write(Span<byte> to)
    {
        BinaryPrimitives.WriteInt64LittleEndian(to, Chunk);
        BinaryPrimitives.WriteInt64LittleEndian(to[8..], Offset);
        BinaryPrimitives.WriteInt32LittleEndian(to[16..], Stored);
        BinaryPrimitives.WriteInt32LittleEndian(to[20..], (int)Encoding);
        ChunkHash hash = Hash;
        MemoryMarshal.Write(to[24..], in hash);
    }

    /// <summary>Null: it is none that fits.</summary>
    /// <param name="from">The bytes.</param>
    /// <param name="chunks">Chunks of the disk.</param>
    /// <param name="packBytes">Bytes of the pack.</param>
    public static ChunkEntry? Read(ReadOnlySpan<byte> from, long chunks, long packBytes)
    {
        ChunkEntry entry = new(
            BinaryPrimitives.ReadInt64LittleEndian(from), BinaryPrimitives.ReadInt64LittleEndian(from[8..]), BinaryPrimitives.ReadInt32LittleEndian(from[16..]),
            (ChunkEncoding)BinaryPrimitives.ReadInt32LittleEndian(from[20..]), MemoryMarshal.Read<ChunkHash>(from[24..]));
        bool fits = entry.Chunk >= 0 && entry.Chunk < chunks && Enum.IsDefined(entry.Encoding) && entry.Encoding == ChunkEncoding.Zeros == entry.Hash.IsZeros
            && entry.Stored is >= 0 and <= ChunkCodec.MostStored && entry.Encoding == ChunkEncoding.Zeros == (entry.Stored == 0)
            && entry.Offset >= 0 && entry.Offset <= packBytes - entry.Stored;
        return fits ? entry : null;
    }
}
