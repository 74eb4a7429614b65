using Aerostat.Memory;

namespace Aerostat.Loader;

/// <summary>Address range types (ACPI 6.5 table 15.5).</summary>
public enum E820Type : uint
{
    /// <summary>RAM the guest may use.</summary>
    Usable = 1,
    /// <summary>Not to be used.</summary>
    Reserved = 2,
    /// <summary>ACPI tables; usable once they have been read.</summary>
    AcpiData = 3,
    /// <summary>ACPI memory that must be kept (FACS).</summary>
    AcpiNvs = 4,
}

/// <summary>One range of the map.</summary>
/// <param name="Base">First address.</param>
/// <param name="Size">Bytes, not 0.</param>
/// <param name="Type">What it is.</param>
public readonly record struct E820Entry(ulong Base, ulong Size, E820Type Type)
{
    /// <summary>First address after the range.</summary>
    public ulong End => Base + Size;
}

/// <summary>
/// The memory map the guest is told, and where firmware keeps what it leaves in memory. Layout of a PC:
/// <code>
/// 0          .. 0x9FC00     usable (boot structures of the kernel loaders live here)
/// 0x9FC00    .. 0xA0000     reserved, EBDA
/// 0xE0000    .. 0x100000    reserved, BIOS area: RSDP at 0xE0000, SMBIOS from 0xF0000
/// 0x100000   .. T-128 KiB   usable (T: end of RAM below 3 GiB)
/// T-128 KiB  .. T-4 KiB     ACPI data: RSDT, XSDT, FADT, MADT, MCFG, HPET, DSDT
/// T-4 KiB    .. T           ACPI NVS: FACS, the machine's generation ID in the middle
/// ECAM                      reserved
/// 4 GiB      ..             usable
/// </code>
/// </summary>
public sealed class E820Map
{
    /// <summary>End of conventional memory, where the EBDA starts.</summary>
    public const ulong ConventionalEnd = 0x9FC00;

    /// <summary>Start of the area in which the RSDP is searched (ACPI 6.5 section 5.2.5.1).</summary>
    public const ulong BiosAreaStart = 0xE0000;

    /// <summary>Start of the area in which the SMBIOS anchors are searched (SMBIOS 3.6 section 5.2).</summary>
    public const ulong SmbiosAreaStart = 0xF0000;

    /// <summary>End of the BIOS area.</summary>
    public const ulong BiosAreaEnd = 0x100000;

    /// <summary>Bytes at the end of low RAM that hold the ACPI tables, FACS page included.</summary>
    public const ulong AcpiAreaSize = 128 * 1024;

    /// <summary>Smallest low RAM for which a map can be made.</summary>
    public const ulong SmallestMemory = BiosAreaEnd + (2 * AcpiAreaSize);

    /// <summary>Most entries the zero page of Linux holds.</summary>
    public const int MaxEntries = 128;

    private readonly List<E820Entry> entries = [];

    /// <summary>Entries in ascending order.</summary>
    public IReadOnlyList<E820Entry> Entries => entries;

    /// <summary>The map of a PC with the given RAM.</summary>
    /// <param name="memory">Guest RAM; its first region starts at 0.</param>
    /// <param name="ecamBase">PCI Express configuration window.</param>
    /// <param name="ecamSize">Bytes of it; 0: none.</param>
    /// <exception cref="BootException">Too little memory.</exception>
    public static E820Map ForPc(GuestMemory memory, ulong ecamBase = 0xE0000000, ulong ecamSize = 256UL << 20)
    {
        ArgumentNullException.ThrowIfNull(memory);
        ulong top = LowTop(memory), acpi = AcpiAreaBase(memory);
        E820Map map = new();
        map.Add(0, ConventionalEnd, E820Type.Usable);
        map.Add(ConventionalEnd, 0xA0000 - ConventionalEnd, E820Type.Reserved);
        map.Add(BiosAreaStart, BiosAreaEnd - BiosAreaStart, E820Type.Reserved);
        map.Add(BiosAreaEnd, acpi - BiosAreaEnd, E820Type.Usable);
        map.Add(acpi, AcpiAreaSize - GuestAddress.PageSize, E820Type.AcpiData);
        map.Add(top - GuestAddress.PageSize, GuestAddress.PageSize, E820Type.AcpiNvs);
        if (ecamSize != 0)
            map.Add(ecamBase, ecamSize, E820Type.Reserved);
        foreach (MemoryRegion region in memory.Regions.Skip(1).Where(static r => !r.IsSpare))
            map.Add(region.Base.Value, region.Size, E820Type.Usable);
        return map;
    }

    /// <summary>Where the ACPI tables of a PC with this memory live.</summary>
    /// <exception cref="BootException">Too little memory.</exception>
    public static ulong AcpiAreaBase(GuestMemory memory) => LowTop(memory) - AcpiAreaSize;

    /// <summary>Where the machine's generation ID is: in the ACPI NVS page, behind the FACS.</summary>
    /// <exception cref="BootException">Too little memory.</exception>
    public static ulong GenerationIdAddress(GuestMemory memory) => LowTop(memory) - (GuestAddress.PageSize / 2);

    /// <summary>End of the RAM that starts at 0.</summary>
    internal static ulong LowTop(GuestMemory memory)
    {
        MemoryRegion? low = memory.Regions.Count == 0 ? null : memory.Regions[0];
        if (low is null || low.Base.Value != 0 || low.Size < SmallestMemory)
            throw new BootException($"memory too small: {ByteSize.Format(low?.Size ?? 0)} of low RAM, and a PC with firmware tables needs {ByteSize.Format(SmallestMemory)}; give the machine more with --memory");
        return low.End;
    }

    /// <summary>Adds a range, keeping the order. Ranges may not overlap.</summary>
    /// <exception cref="ArgumentException">The range is empty, wraps or overlaps another, or the map is full.</exception>
    public E820Map Add(ulong start, ulong size, E820Type type)
    {
        E820Entry entry = new(start, size, type);
        if (size == 0 || start + size < start || entries.Count >= MaxEntries || entries.Any(e => start < e.End && e.Base < entry.End))
            throw new ArgumentException($"range 0x{start:x}+0x{size:x} is empty, overlaps another or is one too many", nameof(start));
        int at = entries.FindIndex(e => e.Base > start);
        entries.Insert(at < 0 ? entries.Count : at, entry);
        return this;
    }
}
