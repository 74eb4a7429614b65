using System.Globalization;
using Iced.Intel;

namespace Aerostat.Cpu;

/// <summary>
/// Guest and host code of a block side by side. Host addresses are distances from the block's start or that of its slow paths, and whatever else depends on where things
/// lie has a name, so that two listings of the same translation are the same text.
/// </summary>
internal sealed unsafe class BlockListing : ISymbolResolver
{
    private const int GuestColumn = 58;
    private const string Again = "again";

    // By VectorLevel, as they appear in the text.
    private static readonly string[] s_levels = ["integer", "xmm", "ymm"];

    private readonly NasmFormatter formatter;
    private readonly StringOutput text = new();
    private nint start, end, near, nearEnd, slow, slowEnd;
    private CodeCache? cache;
    private Dictionary<int, string> fields = [];

    public BlockListing()
    {
        formatter = new NasmFormatter(this);
        formatter.Options.HexPrefix = "0x";
        formatter.Options.HexSuffix = "";
        formatter.Options.UppercaseHex = false;
        formatter.Options.ShowSymbolAddress = false;
        formatter.Options.RipRelativeAddresses = false;
        formatter.Options.SpaceAfterOperandSeparator = false;
        formatter.Options.BranchLeadingZeros = false;
        formatter.Options.ShowBranchSize = false;
        formatter.Options.SmallHexNumbersInDecimal = false;
    }

    /// <summary>Writes a block; <paramref name="header"/>: with a line that tells where it lies.</summary>
    public void Write(TextWriter output, BlockView block, bool header)
    {
        (start, end, near, nearEnd, slow, slowEnd, cache) = (block.Start, block.End, block.Near, block.NearEnd, block.SlowPaths, block.SlowPathsEnd, block.Cache);
        if (fields.Count == 0)
            fields = NameFields(block.State);
        if (header)
        {
            string level = (block.Variant % 3) switch { 0 => "user", 1 => "supervisor without user pages", _ => "supervisor" };
            output.WriteLine(
                $"block 0x{block.Linear:x}, physical 0x{block.Gpa:x}, {level}{(VectorLevel.Of(block.Variant) is var vectors and > VectorLevel.None ? $", {s_levels[vectors]} loaded" : "")}{(block.Ungrouped ? ", each access alone" : "")}: "
                + $"{block.Guest.Length} instructions, host code of {end - start + nearEnd - near + slowEnd - slow} bytes at 0x{block.Start:x}");
        }
        Section(output, block, "(entry from a table)", block.Start, block.Entry);
        Section(output, block, "(counts)", block.Entry, block.Marks[0]);
        for (int k = 0; k < block.Guest.Length; k++)
        {
            Instruction i = block.Guest[k];
            Section(output, block, $"{i.IP:x}  {Format(i)}", block.Marks[k], block.Marks[k + 1]);
        }
        Section(output, block, "(goes on)", block.Marks[^1], end);
        Section(output, block, "(calls and jumps go on)", near, nearEnd);
        Section(output, block, "(slow paths)", slow, slowEnd);
        output.WriteLine();
    }

    private void Section(TextWriter output, BlockView block, string left, nint from, nint to)
    {
        if (from == to)
        {
            if (left[0] != '(')
                output.WriteLine($"{left.PadRight(GuestColumn)} |");
            return;
        }
        // SAFETY: the range is the block's own code, which nobody forgets while its observer looks.
        var decoder = Decoder.Create(64, new ByteReader((byte*)from, (int)(to - from)));
        decoder.IP = (ulong)from;
        while (decoder.IP < (ulong)to)
        {
            nint at = (nint)decoder.IP;
            decoder.Decode(out Instruction i);
            output.WriteLine($"{left.PadRight(GuestColumn)} | {PlaceOf(at)}  {FormatHost(i, block)}");
            left = "";
        }
    }

    private string FormatHost(in Instruction i, BlockView block)
    {
        string line = Format(i);
        bool number = i.Code == Code.Mov_r32_imm32 && i.Op0Register == Register.R11D;
        bool source = i.Code == Code.Mov_rm32_imm32 && IsFrame(i) && i.MemoryDisplacement64 == Frame.IndirectSource;
        int record = (int)i.Immediate32 - block.FirstRecord;
        if (number && GoesAgain((byte*)i.NextIP))
            return line[..(line.LastIndexOf(',') + 1)] + "check";
        if ((!number && !source) || (uint)record >= (uint)(block.Cache.RecordCount - block.FirstRecord))
            return line;
        ExitRecord* r = block.Cache.Record(i.Immediate32);
        line = line[..(line.LastIndexOf(',') + 1)] + $"exit#{record}";
        string comment = $"{r->Kind.ToString().ToLowerInvariant()} 0x{r->Rip:x}";
        if (r->Kind == ExitKind.Memory)
            comment += $" {(r->Write ? "write" : "read")} {r->Size}{(r->Group ? " group" : "")}";
        if (Inside(r->Retry) && r->Kind != ExitKind.Link)
            comment += $", again {PlaceOf(r->Retry)}";
        if (!r->Group && Inside(r->Next))
            comment += $", next {PlaceOf(r->Next)}";
        return $"{line.PadRight(40)} ; {comment}";
    }

    // Whether a jump follows to where a wrong prediction is set right.
    private bool GoesAgain(byte* next) => Inside((nint)next + 4) && *next == 0xE9 && NameTarget((nint)next + 5 + *(int*)(next + 1)) == Again;

    private static bool IsFrame(in Instruction i) => i.MemoryBase == Register.RSP && i.MemoryIndex == Register.None;

    private bool Inside(nint address) => (address >= start && address < end) || (address >= near && address < nearEnd) || IsSlow(address);

    private bool IsSlow(nint address) => address >= slow && address < slowEnd;

    private string PlaceOf(nint address) => string.Create(CultureInfo.InvariantCulture, $"{(IsSlow(address) ? "slow" : "")}+{address - (IsSlow(address) ? slow : start):x3}");

    private string Format(in Instruction i)
    {
        formatter.Format(i, text);
        return text.ToStringAndReset();
    }

    bool ISymbolResolver.TryGetSymbol(in Instruction instruction, int operand, int instructionOperand, ulong address, int addressSize, out SymbolResult symbol)
    {
        symbol = default;
        // Guest instructions are shown as they are.
        if (!Inside((nint)instruction.IP) || instructionOperand < 0)
            return false;
        OpKind kind = instruction.GetOpKind(instructionOperand);
        if (kind is OpKind.NearBranch64 or OpKind.NearBranch32)
        {
            symbol = new SymbolResult(address, NameTarget((nint)address));
            return true;
        }
        if (kind == OpKind.Memory && instruction.MemorySegment == Register.GS && instruction.MemoryBase == Register.None
            && (long)instruction.MemoryDisplacement64 is >= Interpreter.SlotsOffset and < Interpreter.StateBytes)
        {
            int at = (int)instruction.MemoryDisplacement64;
            symbol = new SymbolResult(address, at >= Interpreter.CountdownsOffset ? "countdown" : (at & 8) == 0 ? "slot.tag" : "slot.host");
            return true;
        }
        if (kind == OpKind.Memory && instruction.MemorySegment == Register.GS && fields.TryGetValue((int)(instruction.MemoryDisplacement64 & ~7UL), out string? name))
        {
            symbol = new SymbolResult(address, (address & 7) == 0 ? name : $"{name}+{address & 7}");
            return true;
        }
        if (kind == OpKind.Memory && instruction.IsIPRelativeMemoryOperand && cache!.Thunks.AmountAt((nint)instruction.IPRelativeMemoryAddress) is var amount and >= 0)
        {
            symbol = new SymbolResult(address, string.Create(CultureInfo.InvariantCulture, $"amount.{amount}"));
            return true;
        }
        if (kind == OpKind.Memory && IsFrame(instruction) && FrameName((int)instruction.MemoryDisplacement64) is { } place)
        {
            symbol = new SymbolResult(address, place);
            return true;
        }
        return false;
    }

    private static string? FrameName(int offset)
    {
        int register = Frame.OfGuest.IndexOf((sbyte)offset);
        return register >= 0 ? $"guest.{(Register.RAX + register).ToString().ToLowerInvariant()}" : offset switch
        {
            Frame.Spill => "spill",
            Frame.IndirectSource => "indirect.source",
            _ => null,
        };
    }

    private string NameTarget(nint target)
    {
        if (Inside(target))
            return PlaceOf(target);
        Thunks thunks = cache!.Thunks;
        for (int level = 0; level < VectorLevel.Count; level++)
        {
            if (target == thunks.Exit(level))
                return $"exit.{s_levels[level]}";
            if (target == thunks.Miss(level))
                return $"miss.{s_levels[level]}";
            if (target == thunks.SystemCall(level))
                return $"syscall.{s_levels[level]}";
        }
        for (int set = 0; set < 3; set++)
            for (int scale = 0; scale < 4; scale++)
            {
                if (target == thunks.Repeat(set, move: false, scale))
                    return $"stos.{1 << scale}";
                if (target == thunks.Repeat(set, move: true, scale))
                    return $"movs.{1 << scale}";
            }
        for (int set = 0; set < 3; set++)
            if (target == thunks.Again(set, write: false) || target == thunks.Again(set, write: true))
                return Again;
        for (int variant = 0; variant < CodeCache.Variants; variant++)
            if (target == thunks.Mismatch(variant))
                return $"mismatch{variant}";
        return target == thunks.SystemReturn ? "sysret" : "block";
    }

    private static Dictionary<int, string> NameFields(CpuState* s)
    {
        Dictionary<int, string> names = [];
        void* origin = s;
        for (int r = 0; r < 16; r++)
            names[8 * r] = "guest." + (Register.RAX + r).ToString().ToLowerInvariant();
        Name(&s->SystemFlags, "flags");
        Name(&s->Fs.Base, "fs.base");
        Name(&s->Gs.Base, "gs.base");
        Name(&s->Xsave, "xsave");
        Name(&s->Poll, "poll");
        for (int i = 0; i < CodeCache.Variants; i++)
            Name(&s->JumpTable[i], $"table{i}");
        Name(&s->ExitAddress, "exit.address");
        Name(&s->ExitRecord, "exit.record");
        Name(&s->GroupPointer, "group");
        Name(&s->IndirectSource, "indirect.source");
        Name(&s->Executed, "executed");
        Name(&s->KernelGsBase, "kernel.gs.base");
        Name(&s->Tlb, "tlb");
        Name(&s->TlbSet, "tlb.set");
        Name(&s->TlbSets, "tlb.sets");
        Name(&s->Cr0, "cr0");
        Name(&s->Cr2, "cr2");
        Name(&s->Cr3, "cr3");
        Name(&s->Cr4, "cr4");
        string[] sets = ["user", "strict", "supervisor"];
        for (int i = 0; i < sets.Length; i++)
        {
            int at = Interpreter.StateBytes + (i * Interpreter.TlbEntries * sizeof(TlbEntry));
            (names[at], names[at + 8], names[at + 16], names[at + 24]) = ($"tlb.{sets[i]}.read", $"tlb.{sets[i]}.read.host", $"tlb.{sets[i]}.write", $"tlb.{sets[i]}.write.host");
        }
        return names;

        void Name(void* field, string name) => names[(int)((byte*)field - (byte*)origin) & ~7] = name;
    }

    private sealed class ByteReader(byte* bytes, int count) : CodeReader
    {
        private int next;

        public override int ReadByte() => next < count ? bytes[next++] : -1;
    }
}
