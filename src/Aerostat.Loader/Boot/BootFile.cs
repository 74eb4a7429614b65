using Aerostat.Memory;
using Microsoft.Win32.SafeHandles;

namespace Aerostat.Loader;

/// <summary>
/// A kernel or initrd as a sequence of bytes that is read at any offset: a file, a stream or memory. A file is never held in
/// memory; it is copied into the guest piece by piece, each time a machine starts.
/// </summary>
public sealed class BootFile : IDisposable
{
    private const int CopyPiece = 256 * 1024;
    private const long LargestStream = 1L << 30;

    private readonly ReadOnlyMemory<byte> bytes;
    private readonly SafeFileHandle? handle;
    private readonly string kind;

    private BootFile(string name, string kind, long length, SafeFileHandle? handle, ReadOnlyMemory<byte> bytes)
    {
        Name = name;
        this.kind = kind;
        Length = length;
        this.handle = handle;
        this.bytes = bytes;
    }

    /// <summary>Path, or what the caller called it; for errors.</summary>
    public string Name { get; }

    /// <summary>Bytes.</summary>
    public long Length { get; }

    /// <summary>Opens a file for reading.</summary>
    /// <param name="path">The file.</param>
    /// <param name="kind">What it is to be, for errors: "kernel", "initrd".</param>
    /// <exception cref="BootException">It cannot be opened or is empty or is not a regular file.</exception>
    public static BootFile Open(string path, string kind)
    {
        ArgumentNullException.ThrowIfNull(path);
        SafeFileHandle? opened = null;
        try
        {
            opened = File.OpenHandle(path, FileMode.Open, FileAccess.Read, FileShare.ReadWrite | FileShare.Delete);
            long length = RandomAccess.GetLength(opened);
            if (length == 0)
                throw new BootException($"{kind} {path} is empty; give the path of a complete file");
            return new BootFile(path, kind, length, opened, default);
        }
        catch (Exception e)
        {
            opened?.Dispose();
            throw e switch
            {
                BootException => e,
                FileNotFoundException or DirectoryNotFoundException => new BootException($"could not open {kind} {path}: no such file; check the path", e),
                UnauthorizedAccessException when Directory.Exists(path) => new BootException($"could not open {kind} {path}: it is a directory; give a file", e),
                UnauthorizedAccessException => new BootException($"could not open {kind} {path}: permission denied; make it readable for this user", e),
                IOException or NotSupportedException or ArgumentException => new BootException($"could not open {kind} {path}: {OneLine(e)}; give a readable regular file", e),
                _ => e,
            };
        }
    }

    /// <summary>Takes bytes that are already in memory. They must not change while in use.</summary>
    public static BootFile FromMemory(ReadOnlyMemory<byte> bytes, string name, string kind) => new(name, kind, bytes.Length, null, bytes);

    /// <summary>Reads a stream to its end, at most 1 GiB. The stream is not closed.</summary>
    /// <exception cref="BootException">It cannot be read or is too long.</exception>
    public static BootFile FromStream(Stream stream, string name, string kind)
    {
        ArgumentNullException.ThrowIfNull(stream);
        try
        {
            using MemoryStream copy = new();
            byte[] piece = new byte[CopyPiece];
            for (int n; (n = stream.Read(piece)) > 0;)
            {
                if (copy.Length + n > LargestStream)
                    throw new BootException($"{kind} {name} is longer than 1 GiB as a stream; give it as a file");
                copy.Write(piece, 0, n);
            }
            return FromMemory(copy.ToArray(), name, kind);
        }
        catch (IOException e)
        {
            throw new BootException($"could not read {kind} {name}: {OneLine(e)}; give a readable file", e);
        }
    }

    /// <summary>Reads exactly <paramref name="destination"/>; a file that ends before is a <see cref="BootException"/>.</summary>
    internal void Read(long offset, Span<byte> destination)
    {
        Require(offset, destination.Length);
        if (handle is null)
        {
            bytes.Span.Slice((int)offset, destination.Length).CopyTo(destination);
            return;
        }
        try
        {
            while (!destination.IsEmpty)
            {
                int n = RandomAccess.Read(handle, destination, offset);
                if (n == 0)
                    throw new BootException($"{kind} {Name} became shorter while it was read; start again when it is complete");
                destination = destination[n..];
                offset += n;
            }
        }
        catch (IOException e)
        {
            throw new BootException($"could not read {kind} {Name}: {OneLine(e)}; check the disk it is on", e);
        }
    }

    /// <summary>Reads a piece into a new array, which is made only once the file is known to be long enough.</summary>
    internal byte[] Read(long offset, int length)
    {
        Require(offset, length);
        byte[] result = new byte[length];
        Read(offset, result);
        return result;
    }

    private void Require(long offset, long length)
    {
        if (offset < 0 || length < 0 || offset > Length || length > Length - offset)
            throw new BootException($"{kind} {Name} is truncated: it has {Length} bytes, and {length} are needed at offset {offset}; get a complete copy");
    }

    /// <summary>Copies a piece of the file into guest memory, which the caller has checked to be there.</summary>
    internal void CopyTo(GuestMemory memory, ulong address, long offset, long length)
    {
        Require(offset, length);
        if (handle is null)
        {
            memory.Write(new(address), bytes.Span.Slice((int)offset, (int)length));
            return;
        }
        byte[] piece = new byte[(int)Math.Min(CopyPiece, length)];
        while (length > 0)
        {
            Span<byte> part = piece.AsSpan(0, (int)Math.Min(piece.Length, length));
            Read(offset, part);
            memory.Write(new(address), part);
            address += (ulong)part.Length;
            offset += part.Length;
            length -= part.Length;
        }
    }

    /// <summary>The first line of an exception's message, so that an error stays one line.</summary>
    internal static string OneLine(Exception e) => e.Message.AsSpan().Trim().ToString().Split('\n')[0].TrimEnd('.', '\r');

    /// <inheritdoc/>
    public void Dispose() => handle?.Dispose();
}
