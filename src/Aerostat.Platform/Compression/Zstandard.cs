using System.Runtime.InteropServices;

namespace Aerostat.Platform;

/// <summary>
/// Zstandard (RFC 8878) by the host's libzstd, which every Debian has; <see cref="IsAvailable"/> says whether this host does. One object for one thread.
/// </summary>
public sealed unsafe partial class Zstandard : IDisposable
{
    private const string Library = "libzstd.so.1";
    private const string NotHere = "the host has no libzstd.so.1; install its package (libzstd1 in Debian)";

    private nint compressor, decompressor;

    /// <summary>Makes one.</summary>
    /// <exception cref="PlatformNotSupportedException">The host has no libzstd.</exception>
    public Zstandard()
    {
        if (!IsAvailable)
            throw new PlatformNotSupportedException(NotHere);
    }

    /// <summary>Whether the host has the library.</summary>
    public static bool IsAvailable { get; } = NativeLibrary.TryLoad(Library, out _);

    /// <summary>The most bytes that so many become.</summary>
    public static int MostCompressed(int length) => length + (length >> 7) + 512;

    /// <summary>Compresses into a frame of its own.</summary>
    /// <param name="source">What.</param>
    /// <param name="target">Where to.</param>
    /// <param name="level">-7 (fast) to 19 (small).</param>
    /// <returns>Bytes of the frame; -1: they do not fit.</returns>
    public int Compress(ReadOnlySpan<byte> source, Span<byte> target, int level)
    {
        if (compressor == 0 && (compressor = ZSTD_createCCtx()) == 0)
            throw new OutOfMemoryException();
        nuint count;
        // SAFETY: the library reads and writes within the lengths given.
        fixed (byte* from = source, to = target)
            count = ZSTD_compressCCtx(compressor, to, (nuint)target.Length, from, (nuint)source.Length, level);
        return ZSTD_isError(count) != 0 ? -1 : (int)count;
    }

    /// <summary>Decompresses one or several frames.</summary>
    /// <returns>Bytes of contents; -1: the frame is damaged, or there is more than the target takes.</returns>
    public int Decompress(ReadOnlySpan<byte> source, Span<byte> target)
    {
        if (decompressor == 0 && (decompressor = ZSTD_createDCtx()) == 0)
            throw new OutOfMemoryException();
        nuint count;
        // SAFETY: as above; damaged input is an error, never an access beyond.
        fixed (byte* from = source, to = target)
            count = ZSTD_decompressDCtx(decompressor, to, (nuint)target.Length, from, (nuint)source.Length);
        return ZSTD_isError(count) != 0 ? -1 : (int)count;
    }

    /// <summary>Gives the library's memory back.</summary>
    public void Dispose()
    {
        if (compressor != 0)
            _ = ZSTD_freeCCtx(compressor);
        if (decompressor != 0)
            _ = ZSTD_freeDCtx(decompressor);
        compressor = decompressor = 0;
    }

    [LibraryImport(Library)]
    private static partial nint ZSTD_createCCtx();

    [LibraryImport(Library)]
    private static partial nuint ZSTD_freeCCtx(nint context);

    [LibraryImport(Library)]
    private static partial nuint ZSTD_compressCCtx(nint context, byte* target, nuint capacity, byte* source, nuint length, int level);

    [LibraryImport(Library)]
    private static partial nint ZSTD_createDCtx();

    [LibraryImport(Library)]
    private static partial nuint ZSTD_freeDCtx(nint context);

    [LibraryImport(Library)]
    private static partial nuint ZSTD_decompressDCtx(nint context, byte* target, nuint capacity, byte* source, nuint length);

    [LibraryImport(Library)]
    private static partial uint ZSTD_isError(nuint code);
}
