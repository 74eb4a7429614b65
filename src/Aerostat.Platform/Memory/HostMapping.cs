using System.ComponentModel;
using System.Runtime.InteropServices;

namespace Aerostat.Platform;

/// <summary>mmap and its relatives (Linux man pages mmap(2), madvise(2), mincore(2)).</summary>
public static unsafe partial class HostMapping
{
    /// <summary>Size of a host page.</summary>
    public const int PageSize = 4096;

    /// <summary>Size of a huge page.</summary>
    public const int HugePageSize = 2 << 20;

    internal const int ProtNone = 0, ProtRead = 1, ProtWrite = 2, ProtExecute = 4;
    private const int MapShared = 1, MapPrivate = 2, MapFixed = 0x10, MapAnonymous = 0x20, MapNoReserve = 0x4000;
    private const int RemapMayMove = 1;
    private const int MapFixedNoReplace = 0x100000;
    private const int AdviceDontNeed = 4, AdviceRemove = 9, AdviceDontFork = 10, AdviceHugePage = 14, AdviceNoHugePage = 15, AdviceDontDump = 16, AdviceCold = 20, AdviceCollapse = 25;

    /// <summary>Reserves address space without access rights and without memory behind it.</summary>
    /// <exception cref="Win32Exception">The host refuses.</exception>
    public static byte* Reserve(ulong bytes) =>
        Map(null, bytes, ProtNone, MapPrivate | MapAnonymous | MapNoReserve, -1, 0);

    /// <summary>Anonymous zeroed memory that costs nothing until it is touched.</summary>
    /// <exception cref="Win32Exception">The host refuses.</exception>
    public static byte* AllocateLazy(ulong bytes) =>
        Map(null, bytes, ProtRead | ProtWrite, MapPrivate | MapAnonymous | MapNoReserve, -1, 0);

    /// <summary>Maps private zeroed memory over part of a reservation; it costs nothing until it is touched.</summary>
    /// <exception cref="Win32Exception">The host refuses.</exception>
    public static void MapAnonymousAt(byte* address, ulong bytes) =>
        Map(address, bytes, ProtRead | ProtWrite, MapPrivate | MapAnonymous | MapFixed | MapNoReserve, -1, 0);

    /// <summary>Maps <paramref name="fd"/> shared and writable over part of a reservation.</summary>
    /// <exception cref="Win32Exception">The host refuses.</exception>
    public static void MapSharedAt(byte* address, ulong bytes, int fd, long offset) =>
        Map(address, bytes, ProtRead | ProtWrite, MapShared | MapFixed | MapNoReserve, fd, offset);

    /// <summary>Maps a file over part of a reservation, writable: what is written stays in this mapping.</summary>
    /// <exception cref="Win32Exception">The host refuses.</exception>
    public static void MapPrivateAt(byte* address, ulong bytes, int fd, long offset) =>
        Map(address, bytes, ProtRead | ProtWrite, MapPrivate | MapFixed | MapNoReserve, fd, offset);

    /// <summary>Gives a mapping back.</summary>
    public static void Unmap(byte* address, ulong bytes) => _ = munmap(address, (nuint)bytes);

    /// <summary>
    /// Lets go of the contents of private anonymous memory: it reads as zeros afterwards and the host has its pages back.
    /// (For shared file mappings this only drops the mapping; see <see cref="MemoryFile.Discard"/>.)
    /// </summary>
    /// <returns>False when the host refuses.</returns>
    public static bool Discard(byte* address, ulong bytes) => madvise(address, (nuint)bytes, AdviceDontNeed) == 0;

    /// <summary>Asks for (or against) transparent huge pages; the host may ignore it.</summary>
    /// <returns>False when the host refuses, for instance because it was built without them.</returns>
    public static bool AdviseHugePages(byte* address, ulong bytes, bool wanted) =>
        madvise(address, (nuint)bytes, wanted ? AdviceHugePage : AdviceNoHugePage) == 0;

    /// <summary>
    /// Puts what lies in whole huge pages of a range into such at once, whatever the host's settings for them say, also if it is shared memory (Linux 6.1 and later).
    /// </summary>
    /// <returns>False when the host cannot, for instance because its memory is in pieces.</returns>
    public static bool Collapse(byte* address, ulong bytes) => madvise(address, (nuint)bytes, AdviceCollapse) == 0;

    /// <summary>
    /// Says that a range is not wanted soon (Linux 5.4 and later). Of a huge page of which the process has let go in part, the host takes the rest
    /// apart then, and what is not in use any more is free at once, not only when the host is short of memory.
    /// </summary>
    public static bool AdviseCold(byte* address, ulong bytes) => madvise(address, (nuint)bytes, AdviceCold) == 0;

    /// <summary>Leaves the range out of child processes, which would make every page of it a shared one for a moment.</summary>
    public static bool ExcludeFromForks(byte* address, ulong bytes) => madvise(address, (nuint)bytes, AdviceDontFork) == 0;

    /// <summary>Leaves the range out of core dumps: a crash of the VMM must not write the guest's memory to disk.</summary>
    public static bool ExcludeFromDumps(byte* address, ulong bytes) => madvise(address, (nuint)bytes, AdviceDontDump) == 0;

    /// <summary>Bytes of the range that are in host memory now (mincore(2)). Costs time in proportion to the range.</summary>
    public static ulong ResidentBytes(byte* address, ulong bytes)
    {
        const int Step = 16384;
        byte* flags = stackalloc byte[Step];
        ulong resident = 0;
        for (ulong done = 0; done < bytes;)
        {
            ulong chunk = Math.Min(bytes - done, (ulong)Step * PageSize);
            if (mincore(address + done, (nuint)chunk, flags) != 0)
                throw new Win32Exception(Marshal.GetLastPInvokeError(), "mincore failed");
            int pages = (int)((chunk + PageSize - 1) / PageSize);
            for (int i = 0; i < pages; i++)
                resident += (uint)(flags[i] & 1) * (ulong)PageSize;
            done += chunk;
        }
        return resident;
    }

    /// <summary>Shared memory without a name, mapped for writing and for executing.</summary>
    internal static void MapTwice(ulong bytes, out byte* writable, out byte* executable)
    {
        writable = Map(null, bytes, ProtRead | ProtWrite, MapShared | MapAnonymous | MapNoReserve, -1, 0);
        // An old size of 0 makes a second mapping of shared memory (mremap(2)).
        executable = mremap(writable, 0, (nuint)bytes, RemapMayMove);
        if (executable != (byte*)-1 && mprotect(executable, (nuint)bytes, ProtRead | ProtExecute) == 0)
            return;
        int error = Marshal.GetLastPInvokeError();
        Unmap(writable, bytes);
        if (executable != (byte*)-1)
            Unmap(executable, bytes);
        throw new Win32Exception(error, $"the host does not map {bytes >> 20} MiB of generated code: {Marshal.GetPInvokeErrorMessage(error)}");
    }

    /// <summary>As <see cref="Discard"/> for shared memory, in every mapping of it.</summary>
    internal static void DiscardShared(byte* address, ulong bytes) => _ = madvise(address, (nuint)bytes, AdviceRemove);

    /// <summary>Maps a file shared with the given rights, at the beginning of a huge page; <paramref name="below2GiB"/> asks for an address under 2^31.</summary>
    internal static byte* MapFile(int fd, ulong bytes, int protection, bool below2GiB)
    {
        if (!below2GiB)
        {
            byte* reserved = Reserve(bytes + HugePageSize), aligned = (byte*)(((nuint)reserved + HugePageSize - 1) & ~(nuint)(HugePageSize - 1));
            Unmap(reserved, (ulong)(aligned - reserved));
            Unmap(aligned + bytes, HugePageSize - (ulong)(aligned - reserved));
            try
            {
                return Map(aligned, bytes, protection, MapShared | MapFixed, fd, 0);
            }
            catch
            {
                Unmap(aligned, bytes);
                throw;
            }
        }
        // MAP_32BIT exists on x86 only and searches a quarter of the space; walking the low addresses works everywhere.
        for (ulong candidate = 1UL << 28; candidate + bytes < 1UL << 31; candidate += 1UL << 22)
        {
            byte* p = mmap((byte*)candidate, (nuint)bytes, protection, MapShared | MapFixedNoReplace, fd, 0);
            if (p == (byte*)candidate)
                return p;
            // A kernel before 4.17 takes MAP_FIXED_NOREPLACE as a plain hint and may answer elsewhere.
            if (p != (byte*)-1)
                Unmap(p, bytes);
        }
        throw new Win32Exception(12, $"the host has no {bytes >> 10} KiB free below 2 GiB of address space");
    }

    private static byte* Map(byte* address, ulong bytes, int protection, int flags, int fd, long offset)
    {
        byte* p = mmap(address, (nuint)bytes, protection, flags, fd, (nint)offset);
        if (p == (byte*)-1)
        {
            int error = Marshal.GetLastPInvokeError();
            throw new Win32Exception(error, $"mmap of {bytes >> 20} MiB failed: {Marshal.GetPInvokeErrorMessage(error)}");
        }
        return p;
    }

    [LibraryImport("libc", SetLastError = true)]
    private static partial byte* mmap(byte* address, nuint length, int protection, int flags, int fd, nint offset);

    [LibraryImport("libc", SetLastError = true)]
    private static partial byte* mremap(byte* address, nuint oldLength, nuint newLength, int flags);

    [LibraryImport("libc", SetLastError = true)]
    private static partial int mprotect(byte* address, nuint length, int protection);

    [LibraryImport("libc", SetLastError = true)]
    private static partial int munmap(byte* address, nuint length);

    [LibraryImport("libc", SetLastError = true)]
    private static partial int madvise(byte* address, nuint length, int advice);

    [LibraryImport("libc", SetLastError = true)]
    private static partial int mincore(byte* address, nuint length, byte* vector);
}
