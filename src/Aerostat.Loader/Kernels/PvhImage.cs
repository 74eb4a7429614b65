using System.Buffers.Binary;
using Aerostat.Memory;
using Aerostat.Processors;

namespace Aerostat.Loader;

/// <summary>
/// An ELF kernel with the note XEN_ELFNOTE_PHYS32_ENTRY, started by the x86/HVM direct boot ABI (PVH; Xen docs/misc/pvh.pandoc and
/// the public header arch-x86/hvm/start_info.h): 32-bit protected mode, paging off, EBX = hvm_start_info.
/// </summary>
internal sealed class PvhImage : KernelImage
{
    private const uint StartMagic = 0x336EC578;
    private const uint Phys32EntryNote = 18;
    private const int StartInfoSize = 56, ModuleSize = 32, MapEntrySize = 24;
    private const long CommandLineLimit = 16 * 1024;

    private readonly bool elf64;
    private readonly List<ElfSegment> segments;
    private readonly uint entry;

    public PvhImage(BootFile file, ElfFile elf, uint entry)
        : base(file)
    {
        elf64 = elf.Is64;
        this.entry = entry;
        segments = elf.LoadSegments();
        if (!segments.Any(s => entry >= s.PhysicalAddress && entry - s.PhysicalAddress < s.MemorySize))
            throw new BootException($"kernel {file.Name} is damaged: its PVH entry 0x{entry:x} is in none of its segments; get a complete copy");
    }

    public override string Protocol => "PVH";

    public override string Description => $"ELF{(elf64 ? 64 : 32)} kernel with a PVH note, entry 0x{entry:x}";

    /// <summary>The entry that the note gives, or null without a note.</summary>
    public static uint? FindEntry(BootFile file, ElfFile elf)
    {
        ReadOnlySpan<byte> value = elf.FindNote("Xen\0"u8, Phys32EntryNote);
        ulong entry = value.Length switch
        {
            0 => 0,
            4 => BinaryPrimitives.ReadUInt32LittleEndian(value),
            8 => BinaryPrimitives.ReadUInt64LittleEndian(value),
            _ => throw new BootException($"kernel {file.Name} is damaged: its PVH note has {value.Length} bytes, not 4 or 8; get a complete copy"),
        };
        if (entry >= 1UL << 32)
            throw new BootException($"kernel {file.Name} is damaged: its PVH entry 0x{entry:x} is above 4 GiB; get a complete copy");
        return value.IsEmpty ? null : (uint)entry;
    }

    public override BootResult Load(GuestMemory memory, BootParameters parameters)
    {
        PlacementMap room = new(parameters.MemoryMap);
        byte[] commandLine = EncodeCommandLine(parameters.CommandLine, CommandLineLimit, "PVH here");
        IReadOnlyList<E820Entry> map = parameters.MemoryMap.Entries;
        (ulong start, ulong end) = FlatLoader.Reserve(File.Name, memory, room, segments);

        // GDT, start info, module list, memory map, command line: one block, so that one gap is enough.
        ulong infoAt = 0x30, moduleAt = infoAt + StartInfoSize + 8, mapAt = moduleAt + ModuleSize, textAt = mapAt + (ulong)(map.Count * MapEntrySize);
        byte[] block = new byte[textAt + (ulong)commandLine.Length];
        ulong at = FlatLoader.PlaceTables(room, (ulong)block.Length, end);
        (ulong initrd, ulong initrdSize) = PlaceInitrd(memory, room, parameters.Initrd, Math.Max(end, E820Map.BiosAreaEnd), 1UL << 32);
        foreach (ElfSegment s in segments)
        {
            if (s.FileSize != 0)
                File.CopyTo(memory, s.PhysicalAddress, (long)s.Offset, (long)s.FileSize);
            Zero(memory, s.PhysicalAddress + s.FileSize, s.MemorySize - s.FileSize);
        }

        Span<byte> info = block.AsSpan((int)infoAt);
        BinaryPrimitives.WriteUInt32LittleEndian(info, StartMagic);
        BinaryPrimitives.WriteUInt32LittleEndian(info[4..], 1); // version: has the memory map
        BinaryPrimitives.WriteUInt32LittleEndian(info[12..], initrdSize == 0 ? 0u : 1u);
        BinaryPrimitives.WriteUInt64LittleEndian(info[16..], initrdSize == 0 ? 0 : at + moduleAt);
        BinaryPrimitives.WriteUInt64LittleEndian(info[24..], at + textAt);
        BinaryPrimitives.WriteUInt64LittleEndian(info[32..], parameters.RsdpAddress);
        BinaryPrimitives.WriteUInt64LittleEndian(info[40..], at + mapAt);
        BinaryPrimitives.WriteUInt32LittleEndian(info[48..], (uint)map.Count);
        BinaryPrimitives.WriteUInt64LittleEndian(block.AsSpan((int)moduleAt), initrd);
        BinaryPrimitives.WriteUInt64LittleEndian(block.AsSpan((int)moduleAt + 8), initrdSize);
        for (int i = 0; i < map.Count; i++)
        {
            Span<byte> e = block.AsSpan((int)mapAt + (i * MapEntrySize));
            BinaryPrimitives.WriteUInt64LittleEndian(e, map[i].Base);
            BinaryPrimitives.WriteUInt64LittleEndian(e[8..], map[i].Size);
            BinaryPrimitives.WriteUInt32LittleEndian(e[16..], (uint)map[i].Type);
        }
        commandLine.CopyTo(block, (int)textAt);
        memory.Write(new(at), block);
        DescriptorTableState gdt = WriteGdt(memory, at, FlatLoader.Gdt);

        ProcessorState state = BootState.Flat32(entry, gdt, FlatLoader.Code, FlatLoader.Data);
        state.Gpr[3] = at + infoAt;
        return new BootResult(state, Protocol, start, end, initrd, initrdSize, at + infoAt, at + textAt);
    }
}
