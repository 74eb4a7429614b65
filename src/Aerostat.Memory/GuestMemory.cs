using System.ComponentModel;
using System.Runtime.CompilerServices;
using Aerostat.Platform;

namespace Aerostat.Memory;

/// <summary>
/// Guest physical memory: one reservation of host address space in which RAM regions are private memory of this process,
/// so that host address = <see cref="HostBase"/> + guest physical address. Holes have no access rights on the host.
/// </summary>
/// <remarks>
/// Writers that bypass the processor's own store path (devices, loaders, debuggers) use the checked accessors here,
/// which keep the code tracking and the dirty log true. Any thread. A range may run from one region into the next when there
/// is no hole between them. No host memory is used for what nobody has touched, however large the address space.
/// </remarks>
public sealed unsafe partial class GuestMemory : IDisposable
{
    /// <summary>Start of the 32-bit PCI hole of a PC.</summary>
    public const ulong PciHoleStart = 3UL << 30;

    /// <summary>Start of high memory.</summary>
    public const ulong HighMemoryStart = 4UL << 30;

    /// <summary>The architecture's limit of physical addresses (Intel SDM vol. 3 section 4.1.4).</summary>
    public const ulong AddressLimit = 1UL << 52;

    private readonly HostPages hostPages;
    private readonly MemoryRegion[] regions;
    private readonly Extent[] extents;
    private readonly ulong end;
    private readonly byte* reservation;
    private int disposed;

    /// <summary>Maps the given regions (ascending, not overlapping).</summary>
    /// <exception cref="ArgumentException">No regions, or regions are empty, unaligned, beyond 2^52 or overlap.</exception>
    /// <exception cref="Win32Exception">
    /// The host cannot give the address space; the message says how much was asked for, what there is and what to do.
    /// </exception>
    public GuestMemory(params MemoryRegion[] regions)
        : this(hugePages: false, regions)
    {
    }

    /// <summary>As <see cref="GuestMemory(MemoryRegion[])"/>.</summary>
    /// <param name="hugePages">Whether the host is to use huge pages (of 2 MiB) where it can.</param>
    /// <param name="regions">Ascending, not overlapping.</param>
    /// <exception cref="ArgumentException">No regions, or regions are empty, unaligned, beyond 2^52 or overlap.</exception>
    /// <exception cref="Win32Exception">As above.</exception>
    public GuestMemory(bool hugePages, params MemoryRegion[] regions)
    {
        ArgumentNullException.ThrowIfNull(regions);
        ulong previous = 0, total = 0;
        List<Extent> merged = [];
        foreach (MemoryRegion r in regions)
        {
            if (r.Size == 0 || ((r.Base.Value | r.Size) & 4095) != 0 || r.Base.Value < previous
                || r.Size > AddressLimit || r.Base.Value > AddressLimit - r.Size)
                throw new ArgumentException($"region {r.Name} at {r.Base} of 0x{r.Size:x} bytes is empty, unaligned, beyond 2^52 or overlaps", nameof(regions));
            if (merged.Count > 0 && r.Base.Value == previous)
                merged[^1] = merged[^1] with { End = r.End };
            else
                merged.Add(new Extent(r.Base.Value, r.End));
            previous = r.End;
            total += r.Size;
        }
        if (total == 0)
            throw new ArgumentException("guest memory needs at least one region", nameof(regions));
        this.regions = [.. regions];
        extents = [.. merged];
        end = previous;
        TotalBytes = total;
        HugePages = hugePages;
        hostPages = new HostPages();
        try
        {
            reservation = HostMapping.Reserve(end + BlockBytes);
            // A huge page of the guest's is to be one of the host's.
            HostBase = (byte*)(((nuint)reservation + (nuint)BlockBytes - 1) & ~((nuint)BlockBytes - 1));
            foreach (Extent e in extents)
                MapFresh(e.Start, e.End - e.Start);
            InitializeTracking();
        }
        catch (Win32Exception e)
        {
            Release();
            throw new Win32Exception(e.NativeErrorCode, Explain(total, end, e.Message));
        }
    }

    /// <summary>The memory map of a PC: low memory up to 3 GiB, the rest from 4 GiB on.</summary>
    /// <param name="bytes">All of it.</param>
    /// <param name="hugePages">See the constructor.</param>
    /// <param name="spare">Of that, what the guest is not told of at its start: a region of its own behind the others.</param>
    public static GuestMemory CreatePc(ulong bytes, bool hugePages = false, ulong spare = 0)
    {
        ulong start = bytes - spare, end = HighMemoryStart;
        List<MemoryRegion> regions = [new MemoryRegion(new(0), Math.Min(start, PciHoleStart), "low")];
        if (start > PciHoleStart)
        {
            regions.Add(new MemoryRegion(new(HighMemoryStart), start - PciHoleStart, "high"));
            end = (regions[^1].End + SpareAlignment - 1) & ~(SpareAlignment - 1);
        }
        if (spare > 0)
            regions.Add(new MemoryRegion(new(end), spare, "spare") { IsSpare = true });
        return new GuestMemory(hugePages, [.. regions]);
    }

    /// <summary>What spare memory is aligned to, and a multiple of: what Linux takes at a time.</summary>
    public const ulong SpareAlignment = 128UL << 20;

    /// <summary>Regions in ascending order.</summary>
    public IReadOnlyList<MemoryRegion> Regions => regions;

    /// <summary>Bytes of RAM.</summary>
    public ulong TotalBytes { get; }

    /// <summary>Highest RAM address + 1.</summary>
    public ulong End => end;

    /// <summary>Host address of guest physical address 0.</summary>
    public byte* HostBase { get; }

    /// <summary>
    /// Bytes of host memory that the guest's RAM takes now, swapped-out pages included; of what comes from files (<see cref="MapFile"/>) only pages that
    /// were written. Walks the page tables: not for every millisecond.
    /// </summary>
    public ulong AllocatedBytes => Volatile.Read(ref disposed) != 0 ? 0 : extents.Aggregate(0UL, (sum, e) => sum + hostPages.CountHeld(HostBase + e.Start, HostBase + e.End));

    /// <summary>Whether all of [address, address+length) is RAM.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public bool Contains(ulong address, ulong length)
    {
        foreach (Extent e in extents)
            if (address - e.Start < e.End - e.Start)
                return length <= e.End - address;
        return false;
    }

    /// <summary>Host pointer to the 4 KiB page that holds <paramref name="address"/>, or null where there is no RAM.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public byte* TryGetPage(ulong address) => Contains(address, 1) ? HostBase + (address & ~4095UL) : null;

    /// <summary>
    /// The memory itself, for a device that reads or writes in place; false when any byte is not RAM. The guest may change
    /// it at any time: read each byte once. After writing, call <see cref="NotifyHostWrite"/>.
    /// </summary>
    public bool TryGetSpan(GuestAddress address, int length, out Span<byte> span)
    {
        span = default;
        if (length < 0 || !Contains(address.Value, (uint)length))
            return false;
        // Whoever only reads does no harm by it.
        Claim(address.Value, (uint)length);
        // SAFETY: the range was just checked to be mapped RAM, and regions are never unmapped before Dispose.
        span = new Span<byte>(HostBase + address.Value, length);
        return true;
    }

    /// <summary>
    /// The host's view of a range, for transfers by the host's kernel; false when any byte is not RAM. After writing, call
    /// <see cref="NotifyHostWrite"/>.
    /// </summary>
    /// <param name="address">First address.</param>
    /// <param name="length">Bytes.</param>
    /// <param name="buffer">Where they are.</param>
    /// <param name="forWriting">False: nobody writes through it.</param>
    public bool TryGetBuffer(GuestAddress address, ulong length, out HostBuffer buffer, bool forWriting = true)
    {
        buffer = default;
        if (!Contains(address.Value, length))
            return false;
        if (forWriting)
            Claim(address.Value, length);
        buffer = new HostBuffer((nint)(HostBase + address.Value), (nuint)length);
        return true;
    }

    /// <summary>Copies out of guest memory; false, with nothing copied, when any byte is not RAM.</summary>
    public bool TryRead(GuestAddress address, Span<byte> destination)
    {
        if (!Contains(address.Value, (ulong)destination.Length))
            return false;
        // SAFETY: as in TryGetSpan.
        new ReadOnlySpan<byte>(HostBase + address.Value, destination.Length).CopyTo(destination);
        return true;
    }

    /// <summary>Copies into guest memory; false, with nothing changed, when any byte is not RAM.</summary>
    public bool TryWrite(GuestAddress address, ReadOnlySpan<byte> source)
    {
        if (!Contains(address.Value, (ulong)source.Length))
            return false;
        Claim(address.Value, (ulong)source.Length);
        // SAFETY: as in TryGetSpan.
        source.CopyTo(new Span<byte>(HostBase + address.Value, source.Length));
        NotifyHostWrite(address.Value, (ulong)source.Length);
        return true;
    }

    /// <summary>
    /// Reads a value; false when any byte is not RAM. A naturally aligned value of 1, 2, 4 or 8 bytes is read in one access.
    /// </summary>
    public bool TryRead<T>(GuestAddress address, out T value)
        where T : unmanaged
    {
        if (!Contains(address.Value, (ulong)sizeof(T)))
        {
            value = default;
            return false;
        }
        // SAFETY: as in TryGetSpan.
        value = Unsafe.ReadUnaligned<T>(HostBase + address.Value);
        return true;
    }

    /// <summary>
    /// Writes a value; false, with nothing changed, when any byte is not RAM. A naturally aligned value of 1, 2, 4 or 8 bytes
    /// is written in one access.
    /// </summary>
    public bool TryWrite<T>(GuestAddress address, T value)
        where T : unmanaged
    {
        if (!Contains(address.Value, (ulong)sizeof(T)))
            return false;
        Claim(address.Value, (ulong)sizeof(T));
        // SAFETY: as in TryGetSpan.
        Unsafe.WriteUnaligned(HostBase + address.Value, value);
        NotifyHostWrite(address.Value, (ulong)sizeof(T));
        return true;
    }

    /// <summary>Reads a value; throws where there is no RAM (for host code whose addresses are its own).</summary>
    /// <exception cref="ArgumentOutOfRangeException">Not RAM.</exception>
    public T Read<T>(GuestAddress address)
        where T : unmanaged =>
        TryRead(address, out T value) ? value : throw OutOfRange(address, (ulong)sizeof(T));

    /// <summary>Writes a value; throws where there is no RAM (for host code whose addresses are its own).</summary>
    /// <exception cref="ArgumentOutOfRangeException">Not RAM.</exception>
    public void Write<T>(GuestAddress address, T value)
        where T : unmanaged
    {
        if (!TryWrite(address, value))
            throw OutOfRange(address, (ulong)sizeof(T));
    }

    /// <summary>Writes bytes; throws where there is no RAM.</summary>
    /// <exception cref="ArgumentOutOfRangeException">Not RAM.</exception>
    public void Write(GuestAddress address, ReadOnlySpan<byte> bytes)
    {
        if (!TryWrite(address, bytes))
            throw OutOfRange(address, (ulong)bytes.Length);
    }

    /// <summary>Gives everything back to the host. Nobody may use the memory, or pointers into it, any more.</summary>
    public void Dispose()
    {
        if (Interlocked.Exchange(ref disposed, 1) == 0)
            Release();
    }

    private static string Explain(ulong total, ulong end, string reason)
    {
        HostMemory host = HostMemory.Read();
        string space = end >= 2 * total ? $" ({FormatSize(end)} of address space)" : "";
        return $"the host cannot give {FormatSize(total)} of guest memory{space}: {reason}; the host has {FormatSize(host.TotalBytes)}, "
            + $"{FormatSize(host.UsableBytes)} of it usable now: ask for less, or raise the limits on address space (ulimit -v) and overcommit (vm.overcommit_memory)";
    }

    /// <summary>A size for people: the largest binary unit that is not smaller than it, one decimal where it matters.</summary>
    internal static string FormatSize(ulong bytes)
    {
        string[] units = ["bytes", "KiB", "MiB", "GiB", "TiB", "PiB"];
        int unit = 0;
        double value = bytes;
        for (; value >= 1024 && unit < units.Length - 1; unit++)
            value /= 1024;
        return $"{value:0.#} {units[unit]}";
    }

    // Also for a constructor that failed half-way: what was not made is null.
    private void Release()
    {
        StopSettling();
        if (reservation != null)
            HostMapping.Unmap(reservation, end + BlockBytes);
        DisposeTracking();
        hostPages.Dispose();
    }

    private ArgumentOutOfRangeException OutOfRange(GuestAddress address, ulong length) =>
        new(nameof(address), $"{length} bytes at {address} are not all guest memory ({string.Join(", ", regions.Select(r => $"{r.Base}..0x{r.End - 1:x}"))})");

    // Private memory in a part of an extent, whatever was there.
    private void MapFresh(ulong address, ulong length)
    {
        HostMapping.MapAnonymousAt(HostBase + address, length);
        Shield(address, length);
        if (HugePages)
            _ = HostMapping.AdviseHugePages(HostBase + address, length, wanted: true);
    }

    // A crash of the monitor must not write a guest's secrets to the host's disk, nor a child process have them; the host may be too old to care.
    private void Shield(ulong address, ulong length)
    {
        _ = HostMapping.ExcludeFromDumps(HostBase + address, length);
        _ = HostMapping.ExcludeFromForks(HostBase + address, length);
    }

    // Regions without a hole between them.
    private readonly record struct Extent(ulong Start, ulong End);
}
