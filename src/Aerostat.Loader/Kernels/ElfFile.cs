using System.Buffers.Binary;
using Aerostat.Memory;

namespace Aerostat.Loader;

/// <summary>One program header, widened to 64 bits.</summary>
internal readonly record struct ElfSegment(uint Type, ulong Offset, ulong VirtualAddress, ulong PhysicalAddress, ulong FileSize, ulong MemorySize)
{
    public const uint Load = 1, Note = 4;
}

/// <summary>
/// An x86 ELF executable, as far as a loader needs it (System V gABI chapters 4 and 5). Every number in it is checked before use.
/// </summary>
internal sealed class ElfFile
{
    private const ushort Machine386 = 3, MachineX64 = 62;
    private const int MaxSegments = 512;
    private const ulong MaxNoteBytes = 1 << 20;

    private readonly BootFile file;

    public ElfFile(BootFile file)
    {
        this.file = file;
        byte[] ident = file.Length >= 52 ? file.Read(0, 52) : throw Bad($"is truncated: {file.Length} bytes do not hold an ELF header", "get a complete copy");
        Is64 = ident[4] switch
        {
            1 => false,
            2 => true,
            _ => throw Bad($"is damaged: ELF class {ident[4]}", "get a complete copy"),
        };
        if (ident[5] != 1)
            throw Bad("is a big-endian ELF file", "give an x86 kernel");
        ReadOnlySpan<byte> header = file.Length >= 64 || !Is64 ? file.Read(0, Is64 ? 64 : 52) : throw Bad("is truncated inside its ELF header", "get a complete copy");
        ushort type = BinaryPrimitives.ReadUInt16LittleEndian(header[16..]), machine = BinaryPrimitives.ReadUInt16LittleEndian(header[18..]);
        if (machine is not Machine386 and not MachineX64)
            throw Bad($"is an ELF file for another processor (machine {machine})", "give an x86 kernel");
        if (type is not 2 and not 3)
            throw Bad($"is an ELF file but not an executable (type {type})", "give the linked kernel");
        Entry = Is64 ? BinaryPrimitives.ReadUInt64LittleEndian(header[24..]) : BinaryPrimitives.ReadUInt32LittleEndian(header[24..]);
        ulong table = Is64 ? BinaryPrimitives.ReadUInt64LittleEndian(header[32..]) : BinaryPrimitives.ReadUInt32LittleEndian(header[28..]);
        int size = BinaryPrimitives.ReadUInt16LittleEndian(header[(Is64 ? 54 : 42)..]), count = BinaryPrimitives.ReadUInt16LittleEndian(header[(Is64 ? 56 : 44)..]);
        if (count == 0)
            throw Bad("has no program headers", "give the linked kernel, not an object file");
        if (size < (Is64 ? 56 : 32) || count > MaxSegments || table > (ulong)file.Length)
            throw Bad($"is damaged: {count} program headers of {size} bytes at 0x{table:x}", "get a complete copy");
        byte[] raw = file.Read((long)table, size * count);
        ElfSegment[] segments = new ElfSegment[count];
        for (int i = 0; i < count; i++)
            segments[i] = Is64 ? Parse64(raw.AsSpan(i * size)) : Parse32(raw.AsSpan(i * size));
        Segments = segments;
    }

    public bool Is64 { get; }

    public ulong Entry { get; }

    public IReadOnlyList<ElfSegment> Segments { get; }

    public static bool Matches(ReadOnlySpan<byte> head) => head.StartsWith("\u007FELF"u8);

    /// <summary>The loadable segments with memory, checked to lie in the file and below 4 GiB.</summary>
    public List<ElfSegment> LoadSegments()
    {
        List<ElfSegment> result = [];
        foreach (ElfSegment s in Segments)
        {
            if (s.Type != ElfSegment.Load || s.MemorySize == 0)
                continue;
            if (s.FileSize > s.MemorySize || (s.FileSize != 0 && (s.Offset > (ulong)file.Length || s.FileSize > (ulong)file.Length - s.Offset)))
                throw Bad($"is truncated or damaged: a segment of {s.FileSize} bytes at offset 0x{s.Offset:x} is not in its {file.Length} bytes", "get a complete copy");
            if (s.PhysicalAddress >= 1UL << 32 || s.MemorySize > (1UL << 32) - s.PhysicalAddress)
                throw Bad($"wants 0x{s.MemorySize:x} bytes at 0x{s.PhysicalAddress:x}, above 4 GiB", "link it to a physical address below 4 GiB");
            if (result.Any(o => s.PhysicalAddress < o.PhysicalAddress + o.MemorySize && o.PhysicalAddress < s.PhysicalAddress + s.MemorySize))
                throw Bad($"is damaged: two segments share the memory at 0x{s.PhysicalAddress:x}", "get a complete copy");
            result.Add(s);
        }
        return result.Count > 0 ? result : throw Bad("has no loadable segment", "give the linked kernel");
    }

    /// <summary>The value of a note, or nothing when there is none. Broken notes end the search of their segment.</summary>
    public byte[] FindNote(ReadOnlySpan<byte> owner, uint type)
    {
        foreach (ElfSegment s in Segments)
        {
            if (s.Type != ElfSegment.Note || s.Offset > (ulong)file.Length || s.FileSize > (ulong)file.Length - s.Offset || s.FileSize > MaxNoteBytes)
                continue;
            ReadOnlySpan<byte> notes = file.Read((long)s.Offset, (int)s.FileSize);
            while (notes.Length >= 12)
            {
                uint nameSize = BinaryPrimitives.ReadUInt32LittleEndian(notes), valueSize = BinaryPrimitives.ReadUInt32LittleEndian(notes[4..]);
                // Sums in 64 bits: sizes near 2^32 must not wrap.
                ulong valueAt = 12 + (((ulong)nameSize + 3) & ~3UL), next = valueAt + (((ulong)valueSize + 3) & ~3UL);
                if (valueAt + valueSize > (ulong)notes.Length)
                    break;
                if (BinaryPrimitives.ReadUInt32LittleEndian(notes[8..]) == type && notes.Slice(12, (int)nameSize).SequenceEqual(owner))
                    return notes.Slice((int)valueAt, (int)valueSize).ToArray();
                if (next > (ulong)notes.Length)
                    break;
                notes = notes[(int)next..];
            }
        }
        return [];
    }

    private BootException Bad(string what, string todo) => new($"kernel {file.Name} {what}; {todo}");

    private static ElfSegment Parse64(ReadOnlySpan<byte> p) => new(
        BinaryPrimitives.ReadUInt32LittleEndian(p),
        BinaryPrimitives.ReadUInt64LittleEndian(p[8..]),
        BinaryPrimitives.ReadUInt64LittleEndian(p[16..]),
        BinaryPrimitives.ReadUInt64LittleEndian(p[24..]),
        BinaryPrimitives.ReadUInt64LittleEndian(p[32..]),
        BinaryPrimitives.ReadUInt64LittleEndian(p[40..]));

    private static ElfSegment Parse32(ReadOnlySpan<byte> p) => new(
        BinaryPrimitives.ReadUInt32LittleEndian(p),
        BinaryPrimitives.ReadUInt32LittleEndian(p[4..]),
        BinaryPrimitives.ReadUInt32LittleEndian(p[8..]),
        BinaryPrimitives.ReadUInt32LittleEndian(p[12..]),
        BinaryPrimitives.ReadUInt32LittleEndian(p[16..]),
        BinaryPrimitives.ReadUInt32LittleEndian(p[20..]));
}
