using System.Runtime.InteropServices;
using System.Security.Cryptography;
using System.Text.Json.Serialization;

namespace Aerostat.Backup;

/// <summary>By what the contents of chunks are known again, and damage is found.</summary>
public enum BackupHash
{
    /// <summary>SHA-256.</summary>
    [JsonStringEnumMemberName("sha256")]
    Sha256,
    /// <summary>
    /// XXH3 of 128 bits with a secret of the chain's own, which nobody in the guest knows: as good for damage as any hash of that length, at a tenth of the cost. Who
    /// can read the store can find contents with the same hash.
    /// </summary>
    [JsonStringEnumMemberName("xxh128")]
    XxHash128,
}

/// <summary>The hash of a chunk's contents, shorter ones with zeros behind; all zeros stand for a chunk of zeros.</summary>
[StructLayout(LayoutKind.Sequential)]
internal readonly record struct ChunkHash(ulong A, ulong B, ulong C, ulong D)
{
    /// <summary>Bytes of one.</summary>
    public const int Size = 32;

    // Of a page without contents.
    private static readonly byte[] s_zeros = new byte[ChunkMap<ChunkHash>.PageChunks * Size];

    /// <summary>Whether the chunk is all zeros.</summary>
    public bool IsZeros => this == default;

    /// <summary>One hash for a whole disk: SHA-256 of its chunks' hashes.</summary>
    public static string OfDisk(ChunkMap<ChunkHash> chunks)
    {
        using IncrementalHash hash = IncrementalHash.CreateHash(HashAlgorithmName.SHA256);
        for (int page = 0; page < chunks.Pages; page++)
        {
            ReadOnlySpan<byte> bytes = MemoryMarshal.AsBytes(chunks.Page(page));
            hash.AppendData(bytes.IsEmpty ? s_zeros.AsSpan(0, chunks.LengthOf(page) * Size) : bytes);
        }
        return Convert.ToHexStringLower(hash.GetHashAndReset());
    }
}

/// <summary>How the chunks of one chain of backups are hashed. Any thread.</summary>
/// <param name="kind">By what.</param>
/// <param name="seed">Of the hash, if it has one.</param>
internal sealed class ChunkHasher(BackupHash kind, long seed)
{
    private readonly XxHash3? fast = kind == BackupHash.XxHash128 ? XxHash3.FromSeed(seed) : null;

    /// <summary>By what.</summary>
    public BackupHash Kind => kind;

    /// <summary>Of the hash, if it has one.</summary>
    public long Seed => seed;

    /// <summary>The hash of contents that are not all zeros.</summary>
    public ChunkHash Of(ReadOnlySpan<byte> contents)
    {
        if (fast is not null)
        {
            (ulong low, ulong high) = fast.Of(contents);
            // A hash that happens to be zero must not pass for zeros.
            return new ChunkHash(low, high, 0, low == 0 && high == 0 ? 1UL : 0);
        }
        Span<byte> hash = stackalloc byte[ChunkHash.Size];
        SHA256.HashData(contents, hash);
        return MemoryMarshal.Read<ChunkHash>(hash);
    }
}
