using System.Runtime.InteropServices;
using Microsoft.Win32.SafeHandles;

namespace Aerostat.Platform;

/// <summary>
/// A file that holds a disk's contents: positioned transfers to and from host memory without a copy, holes, and a lock (open file description
/// locks, fcntl(2)) that other users of such files, QEMU among them, see. Answers are 0 or the host's error number.
/// </summary>
public sealed unsafe partial class DiskFile : IDisposable
{
    /// <summary>The error of an operation that this file system does not have (EOPNOTSUPP).</summary>
    public const int NotSupported = 95;

    private const int Interrupted = 4, InputOutput = 5, Again = 11, AccessDenied = 13;
    private const int SetLock = 37;
    private const short ReadLock = 0, WriteLock = 1, Unlock = 2;
    private const int KeepSize = 1, PunchHoleMode = 2, ZeroRangeMode = 0x10;
    private const int MostBuffers = 64, ZeroBlock = 1 << 16;
    private const int SeekData = 3, SeekHole = 4, NoSuchAddress = 6;

    private readonly SafeFileHandle _handle;

    private DiskFile(SafeFileHandle handle, ulong length)
    {
        _handle = handle;
        Length = length;
    }

    /// <summary>Bytes when it was opened; the file must not become shorter.</summary>
    public ulong Length { get; }

    /// <summary>Opens and locks a file: for one writer, or for any number of readers.</summary>
    /// <exception cref="IOException">It cannot be opened, or somebody else has it; the message is one line without the path.</exception>
    public static DiskFile Open(string path, bool readOnly)
    {
        SafeFileHandle handle;
        try
        {
            handle = File.OpenHandle(path, FileMode.Open, readOnly ? FileAccess.Read : FileAccess.ReadWrite, FileShare.ReadWrite | FileShare.Delete);
        }
        catch (UnauthorizedAccessException)
        {
            throw new IOException(readOnly ? "this user may not read it" : "this user may not write to it");
        }
        LockRange range = new() { Type = readOnly ? ReadLock : WriteLock };
        if (fcntl(handle, SetLock, &range) != 0)
        {
            int error = Marshal.GetLastPInvokeError();
            // A file system without locks is taken as it is.
            if (error is Again or AccessDenied)
            {
                handle.Dispose();
                throw new IOException("another machine or program is using it");
            }
        }
        return new DiskFile(handle, (ulong)RandomAccess.GetLength(handle));
    }

    /// <summary>Reads into the buffers, all of them.</summary>
    public int Read(ulong offset, ReadOnlySpan<HostBuffer> buffers) => Transfer(offset, buffers, write: false);

    /// <summary>Writes the buffers, all of them.</summary>
    public int Write(ulong offset, ReadOnlySpan<HostBuffer> buffers) => Transfer(offset, buffers, write: true);

    /// <summary>Reads as many bytes as there is room for.</summary>
    public int Read(ulong offset, Span<byte> bytes)
    {
        // SAFETY: the bytes stay where they are until the transfer is done.
        fixed (byte* p = bytes)
            return bytes.IsEmpty ? 0 : Transfer(offset, [new HostBuffer((nint)p, (nuint)bytes.Length)], write: false);
    }

    /// <summary>Writes all bytes.</summary>
    public int Write(ulong offset, ReadOnlySpan<byte> bytes)
    {
        // SAFETY: as above.
        fixed (byte* p = bytes)
            return bytes.IsEmpty ? 0 : Transfer(offset, [new HostBuffer((nint)p, (nuint)bytes.Length)], write: true);
    }

    /// <summary>Makes what was written durable.</summary>
    public int Flush()
    {
        while (fdatasync(_handle) != 0)
            if (Marshal.GetLastPInvokeError() is var error && error != Interrupted)
                return error;
        return 0;
    }

    /// <summary>Has the host begin to make a range durable, and does not wait.</summary>
    public void BeginWriteback(ulong offset, ulong length) => HostFile.BeginWriteback(_handle, (long)offset, (long)length);

    /// <summary>Gives a range's space back; it reads as zeros.</summary>
    public int PunchHole(ulong offset, ulong length) => Allocate(PunchHoleMode | KeepSize, offset, length);

    /// <summary>Makes a range read as zeros and keeps its space.</summary>
    public int ZeroRange(ulong offset, ulong length) => Allocate(ZeroRangeMode | KeepSize, offset, length);

    /// <summary>Writes zeros.</summary>
    public int WriteZeroes(ulong offset, ulong length)
    {
        byte[] zeros = new byte[ZeroBlock];
        fixed (byte* p = zeros)
        {
            while (length > 0)
            {
                ulong part = Math.Min(length, ZeroBlock);
                HostBuffer buffer = new((nint)p, (nuint)part);
                if (Transfer(offset, [buffer], write: true) is var error && error != 0)
                    return error;
                offset += part;
                length -= part;
            }
        }
        return 0;
    }

    /// <summary>
    /// The bytes from <paramref name="offset"/> on that are alike: a hole, which reads as zeros, or data. A file system that does not know
    /// answers that everything is data.
    /// </summary>
    /// <param name="offset">Where; before the end of the file.</param>
    /// <param name="hole">Whether they are a hole.</param>
    /// <returns>Where that ends, at most at the end of the file.</returns>
    public ulong EndOfExtent(ulong offset, out bool hole)
    {
        nint data = lseek(_handle, (nint)offset, SeekData);
        // Of an error only "no data any more" (ENXIO) is of interest.
        hole = data < 0 ? Marshal.GetLastPInvokeError() == NoSuchAddress : (ulong)data > offset;
        // Behind the end of a file that somebody has cut are no zeros, but nothing; who reads there is told so.
        if (data < 0 && hole && (ulong)RandomAccess.GetLength(_handle) < Length)
            hole = false;
        if (hole)
            return data < 0 ? Length : Math.Min(Length, (ulong)data);
        nint end = data < 0 ? -1 : lseek(_handle, (nint)offset, SeekHole);
        return end < 0 || (ulong)end <= offset ? Length : Math.Min(Length, (ulong)end);
    }

    /// <summary>Unlocks the file and closes it.</summary>
    public void Dispose()
    {
        if (_handle.IsClosed)
            return;
        // A process that is just being started has the file, too, and with it the lock, until it is another program.
        LockRange range = new() { Type = Unlock };
        _ = fcntl(_handle, SetLock, &range);
        _handle.Dispose();
    }

    private int Transfer(ulong offset, ReadOnlySpan<HostBuffer> buffers, bool write)
    {
        HostBuffer* vector = stackalloc HostBuffer[MostBuffers];
        int next = 0;
        nuint skip = 0;
        while (next < buffers.Length)
        {
            int count = Math.Min(MostBuffers, buffers.Length - next);
            buffers.Slice(next, count).CopyTo(new Span<HostBuffer>(vector, count));
            vector[0] = new HostBuffer(vector[0].Address + (nint)skip, vector[0].Length - skip);
            // SAFETY: the buffers are host memory that whoever made them answers for; the kernel checks them as well and answers EFAULT.
            nint moved = write ? pwritev(_handle, vector, count, (nint)offset) : preadv(_handle, vector, count, (nint)offset);
            if (moved < 0)
            {
                int error = Marshal.GetLastPInvokeError();
                if (error == Interrupted)
                    continue;
                return error;
            }
            if (moved == 0)
            {
                // The end of a file that somebody has cut.
                return InputOutput;
            }
            offset += (ulong)moved;
            nuint done = (nuint)moved + skip;
            while (next < buffers.Length && done >= buffers[next].Length)
                done -= buffers[next++].Length;
            skip = done;
        }
        return 0;
    }

    private int Allocate(int mode, ulong offset, ulong length)
    {
        while (fallocate(_handle, mode, (nint)offset, (nint)length) != 0)
            if (Marshal.GetLastPInvokeError() is var error && error != Interrupted)
                return error;
        return 0;
    }

    // struct flock of 64-bit Linux; type and whence 16 bits, then aligned 64-bit start and length (0: to the end), then the process (0 for these locks).
    [StructLayout(LayoutKind.Sequential)]
    private struct LockRange
    {
        public short Type;
        public short Whence;
        public long Start;
        public long Length;
        public int Process;
    }

    [LibraryImport("libc", SetLastError = true)]
    private static partial int fcntl(SafeFileHandle fd, int command, LockRange* range);

    [LibraryImport("libc", SetLastError = true)]
    private static partial nint preadv(SafeFileHandle fd, HostBuffer* vector, int count, nint offset);

    [LibraryImport("libc", SetLastError = true)]
    private static partial nint pwritev(SafeFileHandle fd, HostBuffer* vector, int count, nint offset);

    [LibraryImport("libc", SetLastError = true)]
    private static partial nint lseek(SafeFileHandle fd, nint offset, int whence);

    [LibraryImport("libc", SetLastError = true)]
    private static partial int fdatasync(SafeFileHandle fd);

    [LibraryImport("libc", SetLastError = true)]
    private static partial int fallocate(SafeFileHandle fd, int mode, nint offset, nint length);
}
