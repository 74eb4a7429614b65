using System.ComponentModel;
using System.Runtime.InteropServices;

namespace Aerostat.Platform;

/// <summary>mmap and its relatives (Linux man pages mmap(2), memfd_create(2), madvise(2)).</summary>
public static unsafe partial class HostMapping
{
    /// <summary>Size of a host page.</summary>
    public const int PageSize = 4096;

    private const int ProtNone = 0, ProtRead = 1, ProtWrite = 2;
    private const int MapShared = 1, MapPrivate = 2, MapFixed = 0x10, MapAnonymous = 0x20, MapNoReserve = 0x4000;

    /// <summary>Reserves address space without access rights and without memory behind it.</summary>
    public static byte* Reserve(ulong bytes) =>
        Map(null, bytes, ProtNone, MapPrivate | MapAnonymous | MapNoReserve, -1, 0);

    /// <summary>Anonymous zeroed memory that costs nothing until it is touched.</summary>
    public static byte* AllocateLazy(ulong bytes) =>
        Map(null, bytes, ProtRead | ProtWrite, MapPrivate | MapAnonymous | MapNoReserve, -1, 0);

    /// <summary>Maps <paramref name="fd"/> shared and writable over part of a reservation.</summary>
    public static void MapSharedAt(byte* address, ulong bytes, int fd, long offset) =>
        Map(address, bytes, ProtRead | ProtWrite, MapShared | MapFixed | MapNoReserve, fd, (nint)offset);

    /// <summary>Gives a mapping back.</summary>
    public static void Unmap(byte* address, ulong bytes) => _ = munmap(address, (nuint)bytes);

    private static byte* Map(byte* address, ulong bytes, int protection, int flags, int fd, long offset)
    {
        byte* p = mmap(address, (nuint)bytes, protection, flags, fd, (nint)offset);
        if (p == (byte*)-1)
            throw new Win32Exception(Marshal.GetLastPInvokeError(), $"mmap of {bytes >> 20} MiB failed");
        return p;
    }

    [LibraryImport("libc", SetLastError = true)]
    private static partial byte* mmap(byte* address, nuint length, int protection, int flags, int fd, nint offset);

    [LibraryImport("libc", SetLastError = true)]
    private static partial int munmap(byte* address, nuint length);
}
