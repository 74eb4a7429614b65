using System.Runtime.CompilerServices;
using Aerostat.Platform;

namespace Aerostat.Memory;

/// <summary>One contiguous piece of guest RAM.</summary>
/// <param name="Base">First address; a multiple of 4096.</param>
/// <param name="Size">Bytes; a multiple of 4096, not 0.</param>
/// <param name="Name">For maps and errors.</param>
public sealed record MemoryRegion(GuestAddress Base, ulong Size, string Name)
{
    /// <summary>First address after the region.</summary>
    public ulong End => Base.Value + Size;
}

/// <summary>
/// Guest physical memory: one reservation of host address space in which RAM regions are mapped from a memory file,
/// so that host address = <see cref="HostBase"/> + guest physical address. Holes have no access rights on the host.
/// </summary>
/// <remarks>
/// Writers that bypass the processor's own store path (devices, loaders, debuggers) use the checked accessors here,
/// which keep the code tracking and the dirty log true. Any thread.
/// </remarks>
public sealed unsafe partial class GuestMemory : IDisposable
{
    /// <summary>Start of the 32-bit PCI hole of a PC.</summary>
    public const ulong PciHoleStart = 3UL << 30;

    /// <summary>Start of high memory.</summary>
    public const ulong HighMemoryStart = 4UL << 30;

    private readonly MemoryFile file;
    private readonly MemoryRegion[] regions;
    private readonly ulong end;

    /// <summary>Maps the given regions (ascending, not overlapping).</summary>
    /// <exception cref="ArgumentException">Regions are empty, unaligned or overlap.</exception>
    /// <exception cref="System.ComponentModel.Win32Exception">The host cannot give the address space or the memory file.</exception>
    public GuestMemory(params MemoryRegion[] regions)
    {
        ulong previous = 0, total = 0;
        foreach (MemoryRegion r in regions)
        {
            if (r.Size == 0 || ((r.Base.Value | r.Size) & 4095) != 0 || r.Base.Value < previous || r.End < r.Base.Value)
                throw new ArgumentException($"region {r.Name} at {r.Base} of 0x{r.Size:x} bytes is empty, unaligned or overlaps", nameof(regions));
            previous = r.End;
            total += r.Size;
        }
        this.regions = regions;
        end = previous;
        TotalBytes = total;
        file = new MemoryFile("aerostat-ram", total);
        HostBase = HostMapping.Reserve(end);
        long offset = 0;
        foreach (MemoryRegion r in regions)
        {
            HostMapping.MapSharedAt(HostBase + r.Base.Value, r.Size, file.Descriptor, offset);
            offset += (long)r.Size;
        }
        InitializeTracking();
    }

    /// <summary>The memory map of a PC: low memory up to 3 GiB, the rest from 4 GiB on.</summary>
    public static GuestMemory CreatePc(ulong bytes) => bytes <= PciHoleStart
        ? new GuestMemory(new MemoryRegion(new(0), bytes, "low"))
        : new GuestMemory(
            new MemoryRegion(new(0), PciHoleStart, "low"),
            new MemoryRegion(new(HighMemoryStart), bytes - PciHoleStart, "high"));

    /// <summary>Regions in ascending order.</summary>
    public IReadOnlyList<MemoryRegion> Regions => regions;

    /// <summary>Bytes of RAM.</summary>
    public ulong TotalBytes { get; }

    /// <summary>Highest RAM address + 1.</summary>
    public ulong End => end;

    /// <summary>Host address of guest physical address 0.</summary>
    public byte* HostBase { get; }

    /// <summary>Whether all of [address, address+length) is RAM.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public bool Contains(ulong address, ulong length)
    {
        foreach (MemoryRegion r in regions)
            if (address >= r.Base.Value && address < r.End)
                return length <= r.End - address;
        return false;
    }

    /// <summary>Host pointer to the 4 KiB page that holds <paramref name="address"/>, or null where there is no RAM.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public byte* TryGetPage(ulong address) => Contains(address, 1) ? HostBase + (address & ~4095UL) : null;

    /// <summary>Copies out of guest memory; false, with nothing copied, when any byte is not RAM.</summary>
    public bool TryRead(GuestAddress address, Span<byte> destination)
    {
        if (!Contains(address.Value, (ulong)destination.Length))
            return false;
        // SAFETY: the range was just checked to be mapped RAM, and regions are never unmapped before Dispose.
        new ReadOnlySpan<byte>(HostBase + address.Value, destination.Length).CopyTo(destination);
        return true;
    }

    /// <summary>Copies into guest memory; false, with nothing changed, when any byte is not RAM.</summary>
    public bool TryWrite(GuestAddress address, ReadOnlySpan<byte> source)
    {
        if (!Contains(address.Value, (ulong)source.Length))
            return false;
        // SAFETY: as in TryRead.
        source.CopyTo(new Span<byte>(HostBase + address.Value, source.Length));
        NotifyWrite(address.Value, (ulong)source.Length);
        return true;
    }

    /// <summary>Reads a value; throws where there is no RAM (for host code whose addresses are its own).</summary>
    /// <exception cref="ArgumentOutOfRangeException">Not RAM.</exception>
    public T Read<T>(GuestAddress address)
        where T : unmanaged
    {
        T value;
        if (!TryRead(address, new Span<byte>(&value, sizeof(T))))
            throw OutOfRange(address, (ulong)sizeof(T));
        return value;
    }

    /// <summary>Writes a value; throws where there is no RAM (for host code whose addresses are its own).</summary>
    /// <exception cref="ArgumentOutOfRangeException">Not RAM.</exception>
    public void Write<T>(GuestAddress address, T value)
        where T : unmanaged
    {
        if (!TryWrite(address, new ReadOnlySpan<byte>(&value, sizeof(T))))
            throw OutOfRange(address, (ulong)sizeof(T));
    }

    /// <summary>Writes bytes; throws where there is no RAM.</summary>
    /// <exception cref="ArgumentOutOfRangeException">Not RAM.</exception>
    public void Write(GuestAddress address, ReadOnlySpan<byte> bytes)
    {
        if (!TryWrite(address, bytes))
            throw OutOfRange(address, (ulong)bytes.Length);
    }

    private ArgumentOutOfRangeException OutOfRange(GuestAddress address, ulong length) =>
        new(nameof(address), $"{length} bytes at {address} are not all guest memory ({string.Join(", ", regions.Select(r => $"{r.Base}..0x{r.End - 1:x}"))})");

    /// <inheritdoc/>
    public void Dispose()
    {
        HostMapping.Unmap(HostBase, end);
        DisposeTracking();
        file.Dispose();
    }
}
