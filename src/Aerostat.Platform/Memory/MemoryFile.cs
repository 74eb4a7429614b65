using System.ComponentModel;
using System.Runtime.InteropServices;

namespace Aerostat.Platform;

/// <summary>An anonymous memory file (memfd_create(2)): guest RAM that can be shared, discarded and counted.</summary>
public sealed unsafe partial class MemoryFile : IDisposable
{
    private const uint CloseOnExec = 1, Executable = 0x10;
    private const int InvalidArgument = 22, NoSuchData = 6, Interrupted = 4;
    private const int PunchHole = 2, KeepSize = 1;
    private const int SeekData = 3, SeekHole = 4;
    private const int EmptyPath = 0x1000;
    private const uint StatBlocks = 0x400;

    // The number is the same on every architecture.
    private const nint CacheStat = 451;

    private int descriptor;
    private volatile bool cannotTell;

    /// <summary>Makes a sparse file of <paramref name="bytes"/>.</summary>
    /// <exception cref="Win32Exception">The host refuses.</exception>
    public MemoryFile(string name, ulong bytes)
        : this(name, bytes, executable: false)
    {
    }

    internal MemoryFile(string name, ulong bytes, bool executable)
    {
        // vm.memfd_noexec may forbid executable mappings unless asked for; kernels before 6.3 do not know the flag.
        descriptor = memfd_create(name, CloseOnExec | (executable ? Executable : 0));
        if (descriptor < 0 && executable && Marshal.GetLastPInvokeError() == InvalidArgument)
            descriptor = memfd_create(name, CloseOnExec);
        if (descriptor < 0)
        {
            int error = Marshal.GetLastPInvokeError();
            throw new Win32Exception(error, $"memfd_create failed: {Marshal.GetPInvokeErrorMessage(error)}");
        }
        if (bytes > long.MaxValue || ftruncate(descriptor, (nint)bytes) != 0)
        {
            int error = bytes > long.MaxValue ? InvalidArgument : Marshal.GetLastPInvokeError();
            _ = close(descriptor);
            throw new Win32Exception(error, $"the host cannot make a memory file of {bytes >> 20} MiB: {Marshal.GetPInvokeErrorMessage(error)}");
        }
        Length = bytes;
    }

    /// <summary>File descriptor.</summary>
    public int Descriptor => descriptor;

    /// <summary>Size in bytes, memory behind it or not.</summary>
    public ulong Length { get; }

    /// <summary>Bytes the host holds for this file now (in memory or swapped out).</summary>
    public ulong AllocatedBytes
    {
        get
        {
            // struct statx (statx(2)) is 256 bytes and the same on every architecture; stx_blocks is at offset 48.
            byte* buffer = stackalloc byte[256];
            byte empty = 0;
            if (statx(descriptor, &empty, EmptyPath, StatBlocks, buffer) != 0)
                throw new Win32Exception(Marshal.GetLastPInvokeError(), "statx of a memory file failed");
            return *(ulong*)(buffer + 48) * 512;
        }
    }

    /// <summary>Gives a range's memory back to the host; it reads as zeros from then on, in every mapping.</summary>
    /// <exception cref="Win32Exception">The host refuses.</exception>
    public void Discard(ulong offset, ulong bytes)
    {
        int error;
        do
        {
            if (fallocate(descriptor, PunchHole | KeepSize, (nint)offset, (nint)bytes) == 0)
                return;
            error = Marshal.GetLastPInvokeError();
        }
        while (error == Interrupted);
        throw new Win32Exception(error, $"the host cannot take back {bytes >> 10} KiB of a memory file: {Marshal.GetPInvokeErrorMessage(error)}");
    }

    /// <summary>
    /// Finds the next stretch of allocated pages at or after <paramref name="offset"/> (lseek(2), SEEK_DATA and SEEK_HOLE).
    /// False: only holes up to the end. The file may change meanwhile; the answer is a snapshot.
    /// </summary>
    public bool NextData(ulong offset, out ulong start, out ulong stop) => NextData(offset, Length, out start, out stop);

    /// <summary>
    /// As <see cref="NextData(ulong, out ulong, out ulong)"/>, for who does not look beyond <paramref name="limit"/>: the stretch may go on there. For the
    /// end of a stretch the host walks it page by page, however long it is, which is slow for many short looks.
    /// </summary>
    public bool NextData(ulong offset, ulong limit, out ulong start, out ulong stop)
    {
        const ulong Page = 4096, FewBytes = 32 * Page;
        start = stop = Length;
        if (!FindData(offset, out ulong data))
            return false;
        start = stop = data;
        if (limit <= data || limit - data > FewBytes)
        {
            nint hole = lseek(descriptor, (nint)data, SeekHole);
            stop = hole < 0 ? Length : Math.Min((ulong)hole, Length);
            return start < Length;
        }
        do
            stop = (stop | (Page - 1)) + 1;
        while (stop < limit && FindData(stop, out data) && data == stop);
        return true;
    }

    /// <summary>
    /// Whether the host holds nothing for a range, neither in memory nor swapped out (cachestat(2), Linux 6.5 and later). False when in doubt. Unlike
    /// lseek(2) it does not wait for who is punching holes.
    /// </summary>
    public bool IsHole(ulong offset, ulong bytes)
    {
        // Numbers of pages: in memory, dirty, being written, not in memory any more (which for such files is in swap), lately so.
        const int InMemory = 0, Gone = 3;
        if (cannotTell)
            return false;
        ulong* range = stackalloc ulong[2] { offset, bytes };
        ulong* pages = stackalloc ulong[5];
        if (syscall(CacheStat, descriptor, range, pages, 0) != 0)
        {
            cannotTell = true;
            return false;
        }
        return pages[InMemory] == 0 && pages[Gone] == 0;
    }

    private bool FindData(ulong offset, out ulong data)
    {
        data = Length;
        if (offset >= Length)
            return false;
        nint found = lseek(descriptor, (nint)offset, SeekData);
        if (found < 0)
        {
            int error = Marshal.GetLastPInvokeError();
            return error == NoSuchData ? false : throw new Win32Exception(error, "lseek of a memory file failed");
        }
        data = (ulong)found;
        return data < Length;
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        int fd = Interlocked.Exchange(ref descriptor, -1);
        if (fd >= 0)
            _ = close(fd);
    }

    [LibraryImport("libc", SetLastError = true, StringMarshalling = StringMarshalling.Utf8)]
    private static partial int memfd_create(string name, uint flags);

    [LibraryImport("libc", SetLastError = true)]
    private static partial int ftruncate(int fd, nint length);

    [LibraryImport("libc", SetLastError = true)]
    private static partial int fallocate(int fd, int mode, nint offset, nint length);

    [LibraryImport("libc", SetLastError = true)]
    private static partial nint lseek(int fd, nint offset, int whence);

    [LibraryImport("libc", SetLastError = true)]
    private static partial nint syscall(nint number, int descriptor, ulong* range, ulong* result, uint flags);

    [LibraryImport("libc", SetLastError = true)]
    private static partial int statx(int directory, byte* path, int flags, uint mask, byte* buffer);

    [LibraryImport("libc")]
    private static partial int close(int fd);
}
