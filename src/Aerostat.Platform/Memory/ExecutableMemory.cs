using System.ComponentModel;
using System.Runtime.InteropServices;

namespace Aerostat.Platform;

/// <summary>Where code memory is to lie.</summary>
public enum CodePlacement
{
    /// <summary>Wherever the host likes.</summary>
    Anywhere,
    /// <summary>Below 2 GiB, so that any address in it fits a sign-extended 32-bit immediate.</summary>
    Below2GiB,
}

/// <summary>
/// Memory for generated host code that is never writable and executable at the same address: one memory file mapped
/// twice, once for writing and once for executing. x86-64 hosts only.
/// </summary>
/// <remarks>
/// Space is handed out front to back and comes back all at once by <see cref="Clear"/>. Any thread may call any member,
/// except that the owner must know that nobody executes from here during Clear and Dispose.
/// <para>
/// The writing address differs from the executing one, so a processor that has already fetched bytes which are then
/// changed needs a serialising instruction before it runs the new ones (Intel SDM vol. 3 section 8.1.3). New code at fresh
/// addresses needs nothing; <see cref="Clear"/> and <see cref="Patch"/> make every thread of the process serialise.
/// </para>
/// </remarks>
public sealed unsafe partial class ExecutableMemory : IDisposable
{
    private const int MembarrierSyncCore = 32, MembarrierRegisterSyncCore = 64;
    private const int MembarrierNumber = 324;
    private const byte Breakpoint = 0xCC;

    private readonly Lock gate = new();
    // Null: anonymous shared memory.
    private readonly MemoryFile? file;
    private readonly byte* writable;
    private readonly byte* executable;
    private nint used, settled;
    private bool disposed;

    /// <summary>Reserves code memory; host memory is only used for what has been written.</summary>
    /// <param name="bytes">Capacity; rounded up to whole pages; at most 1 GiB.</param>
    /// <param name="placement">Where the executable view must lie.</param>
    /// <param name="visibleToProfilers">Without a file's name, so that the Linux profiler looks its symbols up in /tmp/perf-PID.map. Anywhere only.</param>
    /// <exception cref="ArgumentOutOfRangeException">Capacity is not 1 byte to 1 GiB.</exception>
    /// <exception cref="PlatformNotSupportedException">The host is not x86-64.</exception>
    /// <exception cref="Win32Exception">The host refuses, for instance because its policy forbids generated code.</exception>
    public ExecutableMemory(int bytes, CodePlacement placement = CodePlacement.Anywhere, bool visibleToProfilers = false)
    {
        ArgumentOutOfRangeException.ThrowIfNegativeOrZero(bytes);
        ArgumentOutOfRangeException.ThrowIfGreaterThan(bytes, 1 << 30);
        if (!IsSupported)
            throw new PlatformNotSupportedException("generated host code needs an x86-64 host");
        Capacity = (bytes + HostMapping.PageSize - 1) & -HostMapping.PageSize;
        if (visibleToProfilers && placement == CodePlacement.Anywhere)
        {
            HostMapping.MapTwice((ulong)Capacity, out writable, out executable);
            return;
        }
        file = new MemoryFile("aerostat-code", (ulong)Capacity, executable: true);
        try
        {
            executable = HostMapping.MapFile(file.Descriptor, (ulong)Capacity, HostMapping.ProtRead | HostMapping.ProtExecute, placement == CodePlacement.Below2GiB);
            writable = HostMapping.MapFile(file.Descriptor, (ulong)Capacity, HostMapping.ProtRead | HostMapping.ProtWrite, below2GiB: false);
        }
        catch
        {
            if (executable != null)
                HostMapping.Unmap(executable, (ulong)Capacity);
            file.Dispose();
            throw;
        }
    }

    /// <summary>Whether this host can run generated code.</summary>
    public static bool IsSupported => RuntimeInformation.ProcessArchitecture == Architecture.X64;

    /// <summary>First executable address.</summary>
    public nint Base => (nint)executable;

    /// <summary>Bytes in all.</summary>
    public int Capacity { get; }

    /// <summary>Bytes handed out, padding included.</summary>
    public int Used => (int)Volatile.Read(ref used);

    /// <summary>Whether an executable address lies in here.</summary>
    public bool Contains(nint address) => (nuint)(address - Base) < (nuint)Capacity;

    /// <summary>Writes code and answers the address to execute it at.</summary>
    /// <param name="code">Position-independent bytes, or code made for the address <see cref="NextAddress"/> told under the caller's own lock.</param>
    /// <param name="alignment">A power of two up to 4096.</param>
    /// <exception cref="InvalidOperationException">The memory is full.</exception>
    public nint Write(ReadOnlySpan<byte> code, int alignment = 16) => TryWrite(code, alignment, out nint address)
        ? address
        : throw new InvalidOperationException($"code memory is full: {Used} of {Capacity} bytes used, {code.Length} more wanted");

    /// <summary>As <see cref="Write"/>, but false when the memory is full.</summary>
    public bool TryWrite(ReadOnlySpan<byte> code, int alignment, out nint address)
    {
        lock (gate)
        {
            if (!TryTake(code.Length, alignment, out nint offset))
            {
                address = 0;
                return false;
            }
            // SAFETY: TryTake answers only ranges inside the writable view, which lives until Dispose (checked there).
            code.CopyTo(new Span<byte>(writable + offset, code.Length));
            address = Base + offset;
            return true;
        }
    }

    /// <summary>
    /// Takes a block to be filled through <see cref="ToWritable"/> before anybody executes it. False when the memory is full.
    /// </summary>
    public bool TryAllocate(int bytes, int alignment, out nint address)
    {
        lock (gate)
        {
            bool taken = TryTake(bytes, alignment, out nint offset);
            address = taken ? Base + offset : 0;
            return taken;
        }
    }

    /// <summary>The address that the next <see cref="Write"/> with this alignment will answer, if nobody else writes before.</summary>
    public nint NextAddress(int alignment = 16) => Base + Align(Volatile.Read(ref used), alignment);

    /// <summary>Where to write what executes at <paramref name="address"/>.</summary>
    /// <exception cref="ArgumentOutOfRangeException">Not in here.</exception>
    public byte* ToWritable(nint address) => Contains(address)
        ? writable + (address - Base)
        : throw new ArgumentOutOfRangeException(nameof(address), "not in this code memory");

    /// <summary>
    /// Changes code that may be executing. A change of 1, 2, 4 or 8 naturally aligned bytes is seen whole or not at all; when this
    /// returns every thread of the process sees it.
    /// </summary>
    /// <exception cref="ArgumentException">Not a naturally aligned 1, 2, 4 or 8 bytes inside this memory.</exception>
    public void Patch(nint address, ReadOnlySpan<byte> code)
    {
        if (code.Length is not (1 or 2 or 4 or 8) || (address & (code.Length - 1)) != 0 || !Contains(address))
            throw new ArgumentException("a patch is 1, 2, 4 or 8 naturally aligned bytes of this code memory", nameof(address));
        lock (gate)
        {
            ObjectDisposedException.ThrowIf(disposed, this);
            // SAFETY: the address is inside the mapping and aligned, so the store is one access.
            byte* target = ToWritable(address);
            switch (code.Length)
            {
                case 1: Volatile.Write(ref *target, code[0]); break;
                case 2: Volatile.Write(ref *(ushort*)target, MemoryMarshal.Read<ushort>(code)); break;
                case 4: Volatile.Write(ref *(uint*)target, MemoryMarshal.Read<uint>(code)); break;
                default: Volatile.Write(ref *(ulong*)target, MemoryMarshal.Read<ulong>(code)); break;
            }
        }
        Serialize();
    }

    /// <summary>
    /// Has the host put what lies before an address, and will not grow any more, into huge pages if it can: large programs spread over more pages of code than a
    /// processor has places for. Whoever executes from there does not notice.
    /// </summary>
    public void Settle(nint end)
    {
        if (end - Base - settled < HostMapping.HugePageSize)
            return;
        lock (gate)
        {
            ObjectDisposedException.ThrowIf(disposed, this);
            ArgumentOutOfRangeException.ThrowIfGreaterThan(end, Base + Used);
            for (; end - Base - settled >= HostMapping.HugePageSize; settled += HostMapping.HugePageSize)
            {
                _ = HostMapping.Collapse(executable + settled, HostMapping.HugePageSize);
                _ = HostMapping.Collapse(writable + settled, HostMapping.HugePageSize);
            }
        }
    }

    /// <summary>Forgets all code and gives its memory back to the host. Nobody may be executing from here.</summary>
    public void Clear()
    {
        lock (gate)
        {
            ObjectDisposedException.ThrowIf(disposed, this);
            if (file != null)
                file.Discard(0, (ulong)Capacity);
            else
                HostMapping.DiscardShared(writable, (ulong)Capacity);
            Volatile.Write(ref used, 0);
            settled = 0;
        }
        Serialize();
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        lock (gate)
        {
            if (disposed)
                return;
            disposed = true;
            HostMapping.Unmap(executable, (ulong)Capacity);
            HostMapping.Unmap(writable, (ulong)Capacity);
            file?.Dispose();
        }
    }

    private static nint Align(nint value, int alignment) => (value + alignment - 1) & -(nint)alignment;

    private bool TryTake(int bytes, int alignment, out nint offset)
    {
        ObjectDisposedException.ThrowIf(disposed, this);
        if (alignment is < 1 or > 4096 || (alignment & (alignment - 1)) != 0)
            throw new ArgumentOutOfRangeException(nameof(alignment), "alignment is a power of two up to 4096");
        ArgumentOutOfRangeException.ThrowIfNegative(bytes);
        offset = Align(used, alignment);
        if (bytes > Capacity - offset)
            return false;
        // SAFETY: used <= offset <= Capacity. Padding traps instead of sliding into the next block.
        new Span<byte>(writable + used, (int)(offset - used)).Fill(Breakpoint);
        Volatile.Write(ref used, offset + bytes);
        return true;
    }

    // membarrier(2): every thread of the process runs a serialising instruction before it next runs user code. A kernel without it is older than
    // any that .NET 10 supports, so a failure means that the process has not registered, which takes the kernel some milliseconds once there are threads.
    private static void Serialize()
    {
        if (syscall(MembarrierNumber, MembarrierSyncCore, 0, 0) == 0)
            return;
        _ = syscall(MembarrierNumber, MembarrierRegisterSyncCore, 0, 0);
        _ = syscall(MembarrierNumber, MembarrierSyncCore, 0, 0);
    }

    [LibraryImport("libc")]
    private static partial nint syscall(nint number, nint command, nint flags, nint cpu);
}
