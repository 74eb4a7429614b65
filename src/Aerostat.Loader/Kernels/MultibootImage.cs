using System.Buffers.Binary;
using System.Text;
using Aerostat.Memory;
using Aerostat.Processors;

namespace Aerostat.Loader;

/// <summary>
/// A multiboot 1 kernel: ELF32, ELF64 (as GRUB takes it: 32-bit entry at a physical address), or any file whose header has
/// address fields (Multiboot Specification 0.6.96 sections 3.1 to 3.3). Not offered: video modes, ELF section headers, drives, APM.
/// </summary>
internal sealed class MultibootImage : KernelImage
{
    private const uint BootloaderMagic = 0x2BADB002;
    private const int InformationSize = 88;
    private const int MapEntrySize = 24;
    private const long CommandLineLimit = 16 * 1024;

    // Memory information, command line, modules, memory map, loader name.
    private const uint InformationFlags = 1 | 4 | 8 | 64 | 512;

    private readonly List<ElfSegment> segments;
    private readonly uint entry;
    private readonly bool elf64;
    private readonly bool byAddressFields;

    public MultibootImage(BootFile file, ElfFile? elf, MultibootHeader header)
        : base(file)
    {
        if ((header.Flags & MultibootHeader.AddressFields) != 0)
        {
            byAddressFields = true;
            segments = [FromAddressFields(file, header)];
            entry = header.Entry;
        }
        else if (elf is not null)
        {
            elf64 = elf.Is64;
            segments = elf.LoadSegments();
            entry = PhysicalEntry(file, elf, segments);
        }
        else
        {
            throw new BootException($"kernel {file.Name} has a multiboot header without address fields and is not ELF; link it as ELF or set flag 16 in the header");
        }
        if (!segments.Any(s => entry >= s.PhysicalAddress && entry - s.PhysicalAddress < s.MemorySize))
            throw new BootException($"kernel {file.Name} is damaged: its entry 0x{entry:x} is in none of its segments; get a complete copy");
    }

    public override string Protocol => "multiboot";

    public override string Description => $"multiboot 1 kernel ({(byAddressFields ? "address fields" : elf64 ? "ELF64" : "ELF32")}), entry 0x{entry:x}";

    public override BootResult Load(GuestMemory memory, BootParameters parameters)
    {
        PlacementMap room = new(parameters.MemoryMap);
        // The first word of the command line is the name of the program (section 3.3, "cmdline").
        byte[] commandLine = EncodeCommandLine(
            parameters.CommandLine.Length == 0 ? ProgramName() : $"{ProgramName()} {parameters.CommandLine}", CommandLineLimit, "multiboot here");
        byte[] loaderName = Encoding.ASCII.GetBytes("Aerostat\0");
        E820Entry[] map = [.. parameters.MemoryMap.Entries];
        (ulong start, ulong end) = FlatLoader.Reserve(File.Name, memory, room, segments);

        // GDT, information, memory map, module list, texts: one block, so that one gap is enough.
        ulong gdtAt = 0, infoAt = 0x30, mapAt = infoAt + InformationSize, moduleAt = mapAt + (ulong)(map.Length * MapEntrySize);
        ulong nameAt = moduleAt + 16, commandLineAt = nameAt + (ulong)loaderName.Length, moduleTextAt = commandLineAt + (ulong)commandLine.Length;
        byte[] moduleText = Encoding.UTF8.GetBytes((parameters.Initrd is { } file ? Word(Path.GetFileName(file.Name), "initrd") : "") + "\0");
        byte[] block = new byte[moduleTextAt + (ulong)moduleText.Length];
        ulong at = FlatLoader.PlaceTables(room, (ulong)block.Length, end);

        // Modules follow the kernel, as kernels that map only what is near themselves expect.
        (ulong module, ulong moduleSize) = PlaceInitrd(memory, room, parameters.Initrd, Math.Max(end, E820Map.BiosAreaEnd), 1UL << 32, lowest: true);
        foreach (ElfSegment s in segments)
        {
            if (s.FileSize != 0)
                File.CopyTo(memory, s.PhysicalAddress, (long)s.Offset, (long)s.FileSize);
            Zero(memory, s.PhysicalAddress + s.FileSize, s.MemorySize - s.FileSize);
        }

        Span<byte> info = block.AsSpan((int)infoAt);
        ulong upper = parameters.MemoryMap.Entries.Where(e => e.Type == E820Type.Usable && e.Base == E820Map.BiosAreaEnd).Select(e => e.Size).FirstOrDefault();
        Put(info, 0, InformationFlags);
        Put(info, 4, (uint)(E820Map.ConventionalEnd >> 10));
        Put(info, 8, (uint)(upper >> 10));
        Put(info, 16, (uint)(at + commandLineAt));
        Put(info, 20, module == 0 ? 0u : 1u);
        Put(info, 24, (uint)(at + moduleAt));
        Put(info, 44, (uint)(map.Length * MapEntrySize));
        Put(info, 48, (uint)(at + mapAt));
        Put(info, 64, (uint)(at + nameAt));
        for (int i = 0; i < map.Length; i++)
        {
            Span<byte> e = block.AsSpan((int)mapAt + (i * MapEntrySize));
            Put(e, 0, MapEntrySize - 4); // bytes that follow the size field
            BinaryPrimitives.WriteUInt64LittleEndian(e[4..], map[i].Base);
            BinaryPrimitives.WriteUInt64LittleEndian(e[12..], map[i].Size);
            Put(e, 20, (uint)map[i].Type);
        }
        Span<byte> mod = block.AsSpan((int)moduleAt);
        Put(mod, 0, (uint)module);
        Put(mod, 4, (uint)(module + moduleSize));
        Put(mod, 8, (uint)(at + moduleTextAt));
        loaderName.CopyTo(block, (int)nameAt);
        commandLine.CopyTo(block, (int)commandLineAt);
        moduleText.CopyTo(block, (int)moduleTextAt);
        memory.Write(new(at), block);
        DescriptorTableState gdt = WriteGdt(memory, at + gdtAt, FlatLoader.Gdt);

        ProcessorState state = BootState.Flat32(entry, gdt, FlatLoader.Code, FlatLoader.Data);
        state.Gpr[0] = BootloaderMagic;
        state.Gpr[3] = at + infoAt;
        return new BootResult(state, Protocol, start, end, module, moduleSize, at + infoAt, at + commandLineAt);
    }

    private static void Put(Span<byte> block, int offset, uint value) => BinaryPrimitives.WriteUInt32LittleEndian(block[offset..], value);

    private string ProgramName() => Word(Path.GetFileName(File.Name), "kernel");

    // A word has no blanks in it, whatever the file is called.
    private static string Word(string name, string otherwise) =>
        name.Length is 0 or > 255 ? otherwise : string.Concat(name.Select(c => char.IsWhiteSpace(c) || char.IsControl(c) ? '_' : c));

    private static ElfSegment FromAddressFields(BootFile file, MultibootHeader h)
    {
        if (h.LoadAddress > h.HeaderAddress || h.HeaderAddress - h.LoadAddress > h.Offset)
            throw new BootException($"kernel {file.Name} is damaged: multiboot load address 0x{h.LoadAddress:x} does not match header address 0x{h.HeaderAddress:x}; check its header");
        ulong offset = h.Offset - (h.HeaderAddress - h.LoadAddress);
        ulong fileSize = h.LoadEnd == 0 ? (ulong)file.Length - offset : h.LoadEnd > h.LoadAddress ? h.LoadEnd - h.LoadAddress : 0;
        ulong size = h.BssEnd == 0 ? fileSize : h.BssEnd >= h.LoadAddress ? h.BssEnd - h.LoadAddress : 0;
        if (fileSize == 0 || size < fileSize || fileSize > (ulong)file.Length - offset || size > (1UL << 32) - h.LoadAddress)
            throw new BootException($"kernel {file.Name} is truncated or damaged: multiboot load 0x{h.LoadAddress:x}..0x{h.LoadEnd:x}, bss to 0x{h.BssEnd:x}, file of {file.Length} bytes; get a complete copy");
        return new ElfSegment(ElfSegment.Load, offset, h.LoadAddress, h.LoadAddress, fileSize, size);
    }

    // e_entry is physical by rule, but higher-half kernels have it virtual; then the segment that holds it tells.
    private static uint PhysicalEntry(BootFile file, ElfFile elf, List<ElfSegment> segments)
    {
        ulong e = elf.Entry;
        if (segments.Any(s => e >= s.PhysicalAddress && e - s.PhysicalAddress < s.MemorySize))
            return (uint)e;
        foreach (ElfSegment s in segments)
            if (e >= s.VirtualAddress && e - s.VirtualAddress < s.MemorySize)
                return (uint)(e - s.VirtualAddress + s.PhysicalAddress);
        throw new BootException($"kernel {file.Name} is damaged: its entry 0x{e:x} is in none of its segments; get a complete copy");
    }
}
