using System.Runtime.InteropServices;
using System.Security.Cryptography;

namespace Aerostat.Backup;

/// <summary>SHA-256 of a chunk's contents; all zeros stand for a chunk of zeros.</summary>
[StructLayout(LayoutKind.Sequential)]
internal readonly record struct ChunkHash(ulong A, ulong B, ulong C, ulong D)
{
    /// <summary>Bytes of one.</summary>
    public const int Size = 32;

    /// <summary>Whether the chunk is all zeros.</summary>
    public bool IsZeros => this == default;

    /// <summary>The hash of contents that are not all zeros.</summary>
    public static ChunkHash Of(ReadOnlySpan<byte> contents)
    {
        Span<byte> hash = stackalloc byte[Size];
        SHA256.HashData(contents, hash);
        return MemoryMarshal.Read<ChunkHash>(hash);
    }

    /// <summary>One hash for a whole disk: SHA-256 of its chunks' hashes.</summary>
    public static string OfDisk(ReadOnlySpan<ChunkHash> chunks) => Convert.ToHexStringLower(SHA256.HashData(MemoryMarshal.AsBytes(chunks)));
}
