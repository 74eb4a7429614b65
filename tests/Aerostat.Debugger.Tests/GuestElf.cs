using System.Buffers.Binary;
using System.Text;
using Iced.Intel;
using static Iced.Intel.AssemblerRegisters;

namespace Aerostat.Debugger.Tests;

/// <summary>ELF files for gdb and the loader, made here so that a test needs no compiler.</summary>
internal static class GuestElf
{
    public const ulong Entry = 0x100000, Code = 0x101000, Data = 0x102000;
    private const ulong Tables = 0x104000, StackTop = 0x110000;

    private const int Object = 1, Function = 2;

    /// <summary>
    /// A guest that calls main, outer, middle and inner for ever, with frame pointers, in long mode with the first 2 MiB mapped. It ends through
    /// the debug-exit port when the variable <c>stop</c> is not zero.
    /// </summary>
    public static byte[] Guest()
    {
        const ulong counter = Data, last = Data + 8, result = Data + 16, stop = Data + 24;
        Assembler boot = new(32);
        boot.mov(eax, 0x20);
        boot.mov(cr4, eax);
        boot.mov(eax, (int)Tables);
        boot.mov(cr3, eax);
        boot.mov(ecx, unchecked((int)0xC0000080));
        boot.rdmsr();
        boot.or(eax, 0x100);
        boot.wrmsr();
        boot.mov(eax, cr0);
        boot.or(eax, unchecked((int)0x80000000));
        boot.mov(cr0, eax);
        boot.lgdt(__[(uint)(Tables + 0x3000 + 16)]);
        boot.jmp(8, (uint)Code);

        Assembler a = new(64);
        Label main = a.CreateLabel(), outer = a.CreateLabel(), middle = a.CreateLabel(), inner = a.CreateLabel(), again = a.CreateLabel();
        a.mov(esp, (int)StackTop);
        a.xor(ebp, ebp);
        a.call(main);
        a.Label(ref main);
        a.push(rbp);
        a.mov(rbp, rsp);
        a.Label(ref again);
        a.inc(r15);
        a.mov(edi, __dword_ptr[counter]);
        a.call(outer);
        a.mov(__dword_ptr[result], eax);
        a.inc(__dword_ptr[counter]);
        a.mov(ecx, __dword_ptr[stop]);
        a.test(ecx, ecx);
        a.je(again);
        a.mov(edx, 0xF4);
        a.mov(eax, ecx);
        a.@out(dx, al);
        a.jmp(again);
        a.Label(ref outer);
        a.push(rbp);
        a.mov(rbp, rsp);
        a.inc(edi);
        a.call(middle);
        a.pop(rbp);
        a.ret();
        a.Label(ref middle);
        a.push(rbp);
        a.mov(rbp, rsp);
        a.call(inner);
        a.pop(rbp);
        a.ret();
        a.Label(ref inner);
        a.push(rbp);
        a.mov(rbp, rsp);
        a.imul(eax, edi, 3);
        a.mov(__dword_ptr[last], eax);
        a.pop(rbp);
        a.ret();

        byte[] image = new byte[0x8000];
        Assemble(boot, Entry, image);
        AssemblerResult labels = Assemble(a, Code, image);
        BinaryPrimitives.WriteUInt32LittleEndian(At(image, counter), 1);
        // Page tables, a GDT with a 64-bit code segment, and its pointer.
        BinaryPrimitives.WriteUInt64LittleEndian(At(image, Tables), (Tables + 0x1000) | 3);
        BinaryPrimitives.WriteUInt64LittleEndian(At(image, Tables + 0x1000), (Tables + 0x2000) | 3);
        BinaryPrimitives.WriteUInt64LittleEndian(At(image, Tables + 0x2000), 0x83);
        BinaryPrimitives.WriteUInt64LittleEndian(At(image, Tables + 0x3008), 0x00AF9B000000FFFF);
        BinaryPrimitives.WriteUInt16LittleEndian(At(image, Tables + 0x3010), 15);
        BinaryPrimitives.WriteUInt32LittleEndian(At(image, Tables + 0x3012), (uint)Tables + 0x3000);

        List<(string, ulong, int)> symbols =
        [
            ("boot", Entry, Function), ("start", Code, Function),
            ("main", labels.GetLabelRIP(main), Function), ("outer", labels.GetLabelRIP(outer), Function),
            ("middle", labels.GetLabelRIP(middle), Function), ("inner", labels.GetLabelRIP(inner), Function),
            ("counter", counter, Object), ("last", last, Object), ("result", result, Object), ("stop", stop, Object),
        ];
        return Write(image, Entry, Data, Entry + (ulong)image.Length, symbols, Note(Entry));
    }

    /// <summary>Symbols as lines of a System.map or /proc/kallsyms, as a file for gdb.</summary>
    public static byte[] Symbols(IEnumerable<string> lines)
    {
        List<(string, ulong, int)> symbols = [];
        Dictionary<string, ulong> marks = [];
        foreach (string line in lines)
        {
            string[] parts = line.Split(' ', '\t');
            ulong address = Convert.ToUInt64(parts[0], 16);
            if (address < 0xFFFFFFFF80000000)
                continue;
            marks.TryAdd(parts[2], address);
            symbols.Add((parts[2], address, parts[1] is "T" or "t" or "W" ? Function : Object));
        }
        // A kernel has code behind its data too (.init.text), so the one section of code is all of it.
        return Write([], marks["_text"], marks["_end"], marks["_end"] + 4096, symbols, []);
    }

    private static Span<byte> At(byte[] image, ulong address) => image.AsSpan((int)(address - Entry));

    private static AssemblerResult Assemble(Assembler a, ulong at, byte[] image)
    {
        using MemoryStream code = new();
        AssemblerResult result = a.Assemble(new StreamCodeWriter(code), at, BlockEncoderOptions.ReturnNewInstructionOffsets);
        code.ToArray().CopyTo(At(image, at));
        return result;
    }

    // XEN_ELFNOTE_PHYS32_ENTRY.
    private static byte[] Note(ulong entry)
    {
        byte[] note = new byte[20];
        BinaryPrimitives.WriteUInt32LittleEndian(note, 4);
        BinaryPrimitives.WriteUInt32LittleEndian(note.AsSpan(4), 4);
        BinaryPrimitives.WriteUInt32LittleEndian(note.AsSpan(8), 18);
        "Xen\0"u8.CopyTo(note.AsSpan(12));
        BinaryPrimitives.WriteUInt32LittleEndian(note.AsSpan(16), (uint)entry);
        return note;
    }

    // System V gABI, chapters 4 and 5: header, two program headers, contents, sections .text, .data, .symtab, .strtab, .shstrtab.
    private static byte[] Write(byte[] image, ulong text, ulong data, ulong end, List<(string Name, ulong Value, int Type)> symbols, byte[] note)
    {
        const int headers = 64 + (2 * 56);
        int imageAt = (headers + note.Length + 15) & ~15, segments = image.Length == 0 ? 0 : 2;
        using MemoryStream strings = new();
        strings.WriteByte(0);
        byte[] table = new byte[(symbols.Count + 1) * 24];
        for (int i = 0; i < symbols.Count; i++)
        {
            (string name, ulong value, int type) = symbols[i];
            Span<byte> s = table.AsSpan((i + 1) * 24);
            BinaryPrimitives.WriteUInt32LittleEndian(s, (uint)strings.Length);
            s[4] = (byte)(1 << 4 | type);
            BinaryPrimitives.WriteUInt16LittleEndian(s[6..], (ushort)(type == Function ? 1 : 2));
            BinaryPrimitives.WriteUInt64LittleEndian(s[8..], value);
            strings.Write(Encoding.ASCII.GetBytes(name));
            strings.WriteByte(0);
        }
        byte[] names = "\0.text\0.data\0.symtab\0.strtab\0.shstrtab\0"u8.ToArray();
        int tableAt = imageAt + image.Length, stringsAt = tableAt + table.Length, namesAt = stringsAt + (int)strings.Length, sectionsAt = (namesAt + names.Length + 7) & ~7;
        byte[] file = new byte[sectionsAt + (6 * 64)];
        "\u007fELF\u0002\u0001\u0001"u8.CopyTo(file);
        Half(16, 2);
        Half(18, 62);
        Word(20, 1);
        Quad(24, text);
        Quad(32, 64);
        Quad(40, (ulong)sectionsAt);
        Half(52, 64);
        Half(54, 56);
        Half(56, segments);
        Half(58, 64);
        Half(60, 6);
        Half(62, 5);
        if (segments != 0)
        {
            Segment(64, 1, 7, imageAt, text, image.Length, 4096);
            Segment(120, 4, 4, headers, 0, note.Length, 4);
        }
        note.CopyTo(file, headers);
        image.CopyTo(file, imageAt);
        table.CopyTo(file, tableAt);
        strings.ToArray().CopyTo(file, stringsAt);
        names.CopyTo(file, namesAt);
        bool empty = image.Length == 0;
        Section(1, 1, empty ? 8 : 1, 6, text, imageAt, data - text, 0, 0, 16);
        Section(2, 7, empty ? 8 : 1, 3, data, imageAt + (empty ? 0 : (int)(data - text)), end - data, 0, 0, 16);
        Section(3, 13, 2, 0, 0, tableAt, (ulong)table.Length, 4, 1, 24);
        Section(4, 21, 3, 0, 0, stringsAt, (ulong)strings.Length, 0, 0, 0);
        Section(5, 29, 3, 0, 0, namesAt, (ulong)names.Length, 0, 0, 0);
        return file;

        void Half(int at, int value) => BinaryPrimitives.WriteUInt16LittleEndian(file.AsSpan(at), (ushort)value);
        void Word(int at, uint value) => BinaryPrimitives.WriteUInt32LittleEndian(file.AsSpan(at), value);
        void Quad(int at, ulong value) => BinaryPrimitives.WriteUInt64LittleEndian(file.AsSpan(at), value);

        void Segment(int at, uint type, uint flags, int offset, ulong address, int size, ulong align)
        {
            Word(at, type);
            Word(at + 4, flags);
            Quad(at + 8, (ulong)offset);
            Quad(at + 16, address);
            Quad(at + 24, address);
            Quad(at + 32, (ulong)size);
            Quad(at + 40, (ulong)size);
            Quad(at + 48, align);
        }

        void Section(int number, uint name, int type, ulong flags, ulong address, int offset, ulong size, uint link, uint info, ulong entrySize)
        {
            int at = sectionsAt + (number * 64);
            Word(at, name);
            Word(at + 4, (uint)type);
            Quad(at + 8, flags);
            Quad(at + 16, address);
            Quad(at + 24, (ulong)offset);
            Quad(at + 32, size);
            Word(at + 40, link);
            Word(at + 44, info);
            Quad(at + 48, 1);
            Quad(at + 56, entrySize);
        }
    }
}
