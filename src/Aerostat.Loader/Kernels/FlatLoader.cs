using Aerostat.Memory;

namespace Aerostat.Loader;

/// <summary>What the PVH and the multiboot loader share: segments at fixed addresses, tables in conventional memory.</summary>
internal static class FlatLoader
{
    /// <summary>GDT of a 32-bit start: null, unused, code 0x10, data 0x18, TSS 0x20.</summary>
    public static readonly ulong[] Gdt =
        [0, 0, BootState.Descriptor(BootState.Code32), BootState.Descriptor(BootState.Data32), BootState.Descriptor(BootState.Tss32)];

    /// <summary>Selectors in <see cref="Gdt"/>.</summary>
    public const ushort Code = 0x10, Data = 0x18;

    /// <summary>Below this, start-up code of kernels for further processors is usual.</summary>
    public const ulong TablesMin = 0x1000;

    /// <summary>Takes each segment's place out of <paramref name="room"/>, or says which is not there.</summary>
    public static (ulong Start, ulong End) Reserve(string name, GuestMemory memory, PlacementMap room, IReadOnlyList<ElfSegment> segments)
    {
        foreach (ElfSegment s in segments)
        {
            if (!room.IsFree(s.PhysicalAddress, s.MemorySize))
            {
                ulong end = s.PhysicalAddress + s.MemorySize;
                throw new BootException(end > room.LowEnd && end + E820Map.AcpiAreaSize <= GuestMemory.PciHoleStart
                    ? $"memory too small: kernel {name} loads up to 0x{end:x}, and {ByteSize.Format(room.LowEnd)} of {ByteSize.Format(memory.TotalBytes)} of memory are usable; use --memory {ByteSize.Megabytes(end + E820Map.AcpiAreaSize)} or more"
                    : $"kernel {name} loads to 0x{s.PhysicalAddress:x}..0x{end:x}, where a PC has no usable memory; link it elsewhere (1 MiB and up is usual)");
            }
        }
        foreach (ElfSegment s in segments)
            room.Take(s.PhysicalAddress, s.MemorySize);
        return (segments.Min(s => s.PhysicalAddress), segments.Max(s => s.PhysicalAddress + s.MemorySize));
    }

    /// <summary>A place for tables: high in conventional memory, else above <paramref name="imageEnd"/>.</summary>
    public static ulong PlaceTables(PlacementMap room, ulong size, ulong imageEnd) =>
        room.TakeHighest(size, 16, TablesMin, E820Map.ConventionalEnd)
        ?? room.TakeHighest(size, 16, Math.Max(imageEnd, E820Map.BiosAreaEnd), 1UL << 32)
        ?? throw new BootException($"memory too small: no room for {ByteSize.Format(size)} of boot information beside the kernel; use more --memory");
}
