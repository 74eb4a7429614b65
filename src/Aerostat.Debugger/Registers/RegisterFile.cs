using System.Buffers.Binary;
using System.Text;
using Aerostat.Processors;

namespace Aerostat.Debugger;

/// <summary>
/// The registers of an x86-64 processor in GDB's order, and the target description that says so (GDB manual, appendix "Target Descriptions",
/// i386 Features). Control registers are a feature of our own, which GDB shows without knowing it.
/// </summary>
internal sealed class RegisterFile
{
    private const uint MsrKernelGsBase = 0xC0000102;
    // Offsets in the XSAVE area (Intel SDM vol. 1 tables 10-2 and 13-1).
    private const int Fcw = 0, Fsw = 2, Ftw = 4, Fop = 6, Fip = 8, Fdp = 16, Mxcsr = 24, St = 32, Xmm = 160, YmmHigh = 576;

    // GDB's order of the general registers, as indexes into ProcessorState.Gpr.
    private static readonly (string Name, int Index)[] s_general =
    [
        ("rax", 0), ("rbx", 3), ("rcx", 1), ("rdx", 2), ("rsi", 6), ("rdi", 7), ("rbp", 5), ("rsp", 4),
        ("r8", 8), ("r9", 9), ("r10", 10), ("r11", 11), ("r12", 12), ("r13", 13), ("r14", 14), ("r15", 15),
    ];

    // As indexes into ProcessorState.Segments.
    private static readonly (string Name, int Index)[] s_segments = [("cs", 1), ("ss", 2), ("ds", 3), ("es", 0), ("fs", 4), ("gs", 5)];

    private static readonly (string Name, int Bit)[] s_flags =
    [
        ("CF", 0), ("PF", 2), ("AF", 4), ("ZF", 6), ("SF", 7), ("TF", 8), ("IF", 9), ("DF", 10), ("OF", 11), ("NT", 14), ("RF", 16), ("VM", 17), ("AC", 18),
        ("VIF", 19), ("VIP", 20), ("ID", 21),
    ];

    private readonly List<GdbRegister> all = [];

    /// <summary>Lists the registers of a processor.</summary>
    /// <param name="avx">Whether it has AVX.</param>
    public RegisterFile(bool avx)
    {
        StringBuilder xml = new("<?xml version=\"1.0\"?>\n<!DOCTYPE target SYSTEM \"gdb-target.dtd\">\n<target version=\"1.0\">\n<architecture>i386:x86-64</architecture>\n");
        Feature(xml, "org.gnu.gdb.i386.core", Core(), FlagsType());
        Feature(xml, "org.gnu.gdb.i386.sse", Sse(), VectorType());
        Feature(xml, "org.gnu.gdb.i386.segments", [Base("fs_base", 4), Base("gs_base", 5)]);
        if (avx)
            Feature(xml, "org.gnu.gdb.i386.avx", Enumerable.Range(0, 16).Select(i => Area($"ymm{i}h", YmmHigh + (16 * i), 128, "uint128")));
        Feature(xml, "org.aerostat.x86.control", Control());
        Description = xml.Append("</target>\n").ToString();
    }

    /// <summary>The target description.</summary>
    public string Description { get; }

    /// <summary>All registers; the index is the number.</summary>
    public IReadOnlyList<GdbRegister> All => all;

    /// <summary>Number of a register by name.</summary>
    public int NumberOf(string name) => all.FindIndex(r => r.Name == name);

    /// <summary>A register's value as hexadecimal in target order.</summary>
    public static string Read(GdbRegister register, ProcessorState state)
    {
        Span<byte> bytes = stackalloc byte[16];
        bytes = bytes[..register.Bytes];
        register.Read(state, bytes);
        return Hex.Of(bytes);
    }

    private void Feature(StringBuilder xml, string name, IEnumerable<GdbRegister> registers, string types = "")
    {
        xml.Append($"<feature name=\"{name}\">\n{types}");
        foreach (GdbRegister r in registers)
        {
            string group = r.Group is null ? "" : $" group=\"{r.Group}\"";
            xml.Append($"<reg name=\"{r.Name}\" bitsize=\"{r.Bits}\" type=\"{r.Type}\" regnum=\"{all.Count}\"{group}/>\n");
            all.Add(r);
        }
        xml.Append("</feature>\n");
    }

    private static string FlagsType() =>
        "<flags id=\"i386_eflags\" size=\"4\">\n"
        + string.Concat(s_flags.Select(f => $"<field name=\"{f.Name}\" start=\"{f.Bit}\" end=\"{f.Bit}\"/>\n"))
        + "</flags>\n";

    private static string VectorType()
    {
        (string Id, string Type, int Count)[] views =
            [("v4f", "ieee_single", 4), ("v2d", "ieee_double", 2), ("v16i8", "int8", 16), ("v8i16", "int16", 8), ("v4i32", "int32", 4), ("v2i64", "int64", 2)];
        (string Name, string Type)[] fields =
            [("v4_float", "v4f"), ("v2_double", "v2d"), ("v16_int8", "v16i8"), ("v8_int16", "v8i16"), ("v4_int32", "v4i32"), ("v2_int64", "v2i64"), ("uint128", "uint128")];
        return string.Concat(views.Select(v => $"<vector id=\"{v.Id}\" type=\"{v.Type}\" count=\"{v.Count}\"/>\n"))
            + "<union id=\"vec128\">\n" + string.Concat(fields.Select(f => $"<field name=\"{f.Name}\" type=\"{f.Type}\"/>\n")) + "</union>\n";
    }

    private static IEnumerable<GdbRegister> Core()
    {
        foreach ((string name, int i) in s_general)
            yield return Number(name, 64, name is "rbp" or "rsp" ? "data_ptr" : "int64", s => s.Gpr[i], (s, v) => s.Gpr[i] = v);
        yield return Number("rip", 64, "code_ptr", s => s.Rip, (s, v) => s.Rip = v);
        // Bit 1 reads as one (Intel SDM vol. 1 section 3.4.3).
        yield return Number("eflags", 32, "i386_eflags", s => s.Rflags, (s, v) => s.Rflags = v | 2);
        foreach ((string name, int i) in s_segments)
            yield return Number(name, 32, "int32", s => s.Segments[i].Selector, (s, v) => s.Segments[i] = s.Segments[i] with { Selector = (ushort)v });
        for (int i = 0; i < 8; i++)
            yield return Area($"st{i}", St + (16 * i), 80, "i387_ext");
        yield return Float("fctrl", s => Word(s, Fcw), (s, v) => Word(s, Fcw, v));
        yield return Float("fstat", s => Word(s, Fsw), (s, v) => Word(s, Fsw, v));
        yield return Float("ftag", Tags, SetTags);
        yield return Float("fiseg", s => Word(s, Fip + 4), (s, v) => Word(s, Fip + 4, v));
        yield return Float("fioff", s => Double(s, Fip), (s, v) => Double(s, Fip, v));
        yield return Float("foseg", s => Word(s, Fdp + 4), (s, v) => Word(s, Fdp + 4, v));
        yield return Float("fooff", s => Double(s, Fdp), (s, v) => Double(s, Fdp, v));
        yield return Float("fop", s => Word(s, Fop), (s, v) => Word(s, Fop, v & 0x7FF));
    }

    private static IEnumerable<GdbRegister> Sse()
    {
        for (int i = 0; i < 16; i++)
            yield return Area($"xmm{i}", Xmm + (16 * i), 128, "vec128");
        // Bits that no processor has would make the guest's next FXRSTOR fault.
        yield return Number("mxcsr", 32, "int", s => Double(s, Mxcsr), (s, v) => Double(s, Mxcsr, v & 0xFFFF), "vector");
    }

    private static IEnumerable<GdbRegister> Control()
    {
        yield return Number("k_gs_base", 64, "int64", s => s.Msrs.GetValueOrDefault(MsrKernelGsBase), (s, v) => s.Msrs[MsrKernelGsBase] = v, "system");
        yield return Number("cr0", 64, "int64", s => s.Cr0, (s, v) => s.Cr0 = v, "system");
        yield return Number("cr2", 64, "int64", s => s.Cr2, (s, v) => s.Cr2 = v, "system");
        yield return Number("cr3", 64, "int64", s => s.Cr3, (s, v) => s.Cr3 = v, "system");
        yield return Number("cr4", 64, "int64", s => s.Cr4, (s, v) => s.Cr4 = v, "system");
        yield return Number("efer", 64, "int64", s => s.Efer, (s, v) => s.Efer = v, "system");
        yield return Number("xcr0", 64, "int64", s => s.Xcr0, (s, v) => s.Xcr0 = v, "system");
    }

    private static GdbRegister Base(string name, int index) =>
        Number(name, 64, "int64", s => s.Segments[index].Base, (s, v) => s.Segments[index] = s.Segments[index] with { Base = v });

    private static GdbRegister Number(string name, int bits, string type, Func<ProcessorState, ulong> get, Action<ProcessorState, ulong> set, string? group = null) =>
        new(name, bits, type,
            (s, bytes) =>
            {
                Span<byte> value = stackalloc byte[8];
                BinaryPrimitives.WriteUInt64LittleEndian(value, get(s));
                value[..bytes.Length].CopyTo(bytes);
            },
            (s, bytes) =>
            {
                Span<byte> value = stackalloc byte[8];
                value.Clear();
                bytes.CopyTo(value);
                set(s, BinaryPrimitives.ReadUInt64LittleEndian(value));
            },
            group);

    private static GdbRegister Float(string name, Func<ProcessorState, ulong> get, Action<ProcessorState, ulong> set) => Number(name, 32, "int", get, set, "float");

    private static GdbRegister Area(string name, int offset, int bits, string type) =>
        new(name, bits, type, (s, bytes) => s.Xsave.AsSpan(offset, bytes.Length).CopyTo(bytes), (s, bytes) => bytes.CopyTo(s.Xsave.AsSpan(offset)));

    private static ulong Word(ProcessorState s, int offset) => BinaryPrimitives.ReadUInt16LittleEndian(s.Xsave.AsSpan(offset));

    private static void Word(ProcessorState s, int offset, ulong value) => BinaryPrimitives.WriteUInt16LittleEndian(s.Xsave.AsSpan(offset), (ushort)value);

    private static ulong Double(ProcessorState s, int offset) => BinaryPrimitives.ReadUInt32LittleEndian(s.Xsave.AsSpan(offset));

    private static void Double(ProcessorState s, int offset, ulong value) => BinaryPrimitives.WriteUInt32LittleEndian(s.Xsave.AsSpan(offset), (uint)value);

    // Two bits for each physical register, made from the one bit that FXSAVE keeps and the value (Intel SDM vol. 1 section 10.5.1.1).
    private static ulong Tags(ProcessorState s)
    {
        ulong tags = 0;
        int top = (int)(Word(s, Fsw) >> 11) & 7;
        for (int physical = 0; physical < 8; physical++)
        {
            ulong tag = 3;
            if ((s.Xsave[Ftw] >> physical & 1) != 0)
            {
                Span<byte> value = s.Xsave.AsSpan(St + (16 * ((physical - top) & 7)), 10);
                int exponent = BinaryPrimitives.ReadUInt16LittleEndian(value[8..]) & 0x7FFF;
                ulong mantissa = BinaryPrimitives.ReadUInt64LittleEndian(value);
                tag = exponent == 0 && mantissa == 0 ? 1UL : exponent is 0 or 0x7FFF || (mantissa >> 63) == 0 ? 2UL : 0;
            }
            tags |= tag << (physical * 2);
        }
        return tags;
    }

    private static void SetTags(ProcessorState s, ulong tags)
    {
        int kept = 0;
        for (int physical = 0; physical < 8; physical++)
            if ((tags >> (physical * 2) & 3) != 3)
                kept |= 1 << physical;
        s.Xsave[Ftw] = (byte)kept;
    }
}
