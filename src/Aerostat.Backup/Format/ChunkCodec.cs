using Aerostat.Platform;
using Aerostat.Storage;

namespace Aerostat.Backup;

/// <summary>Chunks to their stored form and back. For one thread.</summary>
internal sealed class ChunkCodec : IDisposable
{
    /// <summary>Bytes of a chunk but the last of a disk.</summary>
    public const int ChunkSize = TrackedDisk.BlockSize;

    /// <summary>Bytes that a chunk takes at most, stored.</summary>
    public const int MostStored = ChunkSize + 1024;

    private readonly Zstandard? zstandard = Zstandard.IsAvailable ? new Zstandard() : null;

    /// <summary>Compresses a chunk.</summary>
    /// <param name="contents">The chunk.</param>
    /// <param name="stored">Room for <see cref="MostStored"/>.</param>
    /// <param name="level">Of compression.</param>
    /// <returns>Bytes of it; 0: it is to be stored as it is, for that makes it hardly smaller, or cannot be done here.</returns>
    public int Compress(ReadOnlySpan<byte> contents, Span<byte> stored, int level)
    {
        int count = zstandard?.Compress(contents, stored, level) ?? 0;
        // What hardly becomes smaller is not worth being decompressed.
        return count > 0 && count < contents.Length - (contents.Length / 16) ? count : 0;
    }

    /// <summary>The chunk again, checked; false: it is damaged.</summary>
    public bool Decode(in ChunkEntry entry, ChunkHasher hasher, ReadOnlySpan<byte> stored, Span<byte> contents)
    {
        switch (entry.Encoding)
        {
            case ChunkEncoding.Zeros:
                contents.Clear();
                return true;
            case ChunkEncoding.Plain when stored.Length == contents.Length:
                stored.CopyTo(contents);
                break;
            case ChunkEncoding.Zstandard:
                // Without the library it takes longer.
                if (zstandard is null ? !ZstdDecoder.TryDecode(stored, contents) : zstandard.Decompress(stored, contents) != contents.Length)
                    return false;
                break;
            default:
                return false;
        }
        return hasher.Of(contents) == entry.Hash;
    }

    public void Dispose() => zstandard?.Dispose();
}
