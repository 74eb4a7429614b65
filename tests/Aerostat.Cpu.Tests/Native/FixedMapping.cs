using System.ComponentModel;
using System.Runtime.InteropServices;

namespace Aerostat.Cpu.Tests;

/// <summary>
/// Host memory at an address of our choice, reached through two mappings of one memory file: <see cref="Alias"/> is always writable,
/// <see cref="Address"/> is either writable or executable but never both (mmap(2), memfd_create(2)).
/// </summary>
internal sealed unsafe partial class FixedMapping : IDisposable
{
    private const int ProtNone = 0, ProtRead = 1, ProtWrite = 2, ProtExec = 4;
    private const int MapShared = 1, MapPrivate = 2, MapAnonymous = 0x20, MapNoReserve = 0x4000, MapFixedNoReplace = 0x100000;
    private readonly int _descriptor = -1;

    private FixedMapping(ulong address, int size, bool executable, bool reserveOnly)
    {
        Size = size;
        if (reserveOnly)
        {
            Address = Map((byte*)address, size, ProtNone, MapPrivate | MapAnonymous | MapNoReserve | MapFixedNoReplace, -1);
            Alias = null;
            return;
        }

        _descriptor = memfd_create("aerostat-test", 1);
        if (_descriptor < 0 || ftruncate(_descriptor, size) != 0)
            throw new Win32Exception(Marshal.GetLastPInvokeError(), "memfd_create failed");
        Alias = Map(null, size, ProtRead | ProtWrite, MapShared, _descriptor);
        Address = Map((byte*)address, size, executable ? ProtRead | ProtExec : ProtRead | ProtWrite, MapShared | MapFixedNoReplace, _descriptor);
    }

    public byte* Address { get; }

    public byte* Alias { get; }

    public int Size { get; }

    public Span<byte> Bytes => new(Alias, Size);

    public static FixedMapping Data(ulong address, int size) => new(address, size, executable: false, reserveOnly: false);

    public static FixedMapping Code(ulong address, int size) => new(address, size, executable: true, reserveOnly: false);

    /// <summary>Address space without access: whatever touches it faults, and nobody else is put there.</summary>
    public static FixedMapping Hole(ulong address, int size) => new(address, size, executable: false, reserveOnly: true);

    public void Dispose()
    {
        _ = munmap(Address, (nuint)Size);
        if (Alias != null)
            _ = munmap(Alias, (nuint)Size);
        if (_descriptor >= 0)
            _ = close(_descriptor);
    }

    private static byte* Map(byte* address, int size, int protection, int flags, int fd)
    {
        byte* p = mmap(address, (nuint)size, protection, flags, fd, 0);
        if (p == (byte*)-1)
            throw new Win32Exception(Marshal.GetLastPInvokeError(), $"mmap at 0x{(ulong)address:x} failed");
        if (address != null && p != address)
        {
            _ = munmap(p, (nuint)size);
            throw new InvalidOperationException($"the host gives 0x{(ulong)p:x} instead of 0x{(ulong)address:x}");
        }

        return p;
    }

    [LibraryImport("libc", SetLastError = true)]
    private static partial byte* mmap(byte* address, nuint length, int protection, int flags, int fd, nint offset);

    [LibraryImport("libc")]
    private static partial int munmap(byte* address, nuint length);

    [LibraryImport("libc", SetLastError = true, StringMarshalling = StringMarshalling.Utf8)]
    private static partial int memfd_create(string name, uint flags);

    [LibraryImport("libc", SetLastError = true)]
    private static partial int ftruncate(int fd, nint length);

    [LibraryImport("libc")]
    private static partial int close(int fd);
}
