using Aerostat.X86;
using Iced.Intel;

namespace Aerostat.Cpu.Tests;

/// <summary>
/// Makes programs. R9 counts loops, RBX, R14 and RSI point into the window most of the time, R12 often into the far window, whose pages share TLB entries
/// with the window's; R10 and R13 are small indexes; other registers are anything. The code lies in three areas, which begin at addresses with the same
/// place in the jump table. Some programs run at privilege level 0 and use what only kernels may.
/// </summary>
internal sealed unsafe partial class ProgramGenerator(Rng rng)
{
    private static readonly List<Code> Forms = [.. FormCatalog.Forms(64).Where(Wanted)];
    private static readonly Register[] Bases = [Register.RBX, Register.R14, Register.RSI, Register.R12, Register.RSP];
    private readonly EncodingGenerator encodings = new(64, rng);
    private readonly List<Instruction> items = [];
    // Targets of branches, as indexes into items; -1: none.
    private readonly List<int> targets = [];
    // In which area each item lies, and on which offset in the area it begins if that matters.
    private readonly List<(int Area, int Origin)> places = [];

    // Instructions whose immediates may be changed.
    private readonly List<int> victims = [];

    public List<Instruction> Listing { get; } = [];

    // Branches are made here; what leaves results or flags to the processor's choice, and what is slow, is left to the other tests.
    private static bool Wanted(Code code)
    {
        OpCodeInfo info = code.ToOpCode();
        Mnemonic m = info.Mnemonic;
        if (info.MustBeCpl0 || !info.Cpl3 || m is Mnemonic.Maskmovdqu or Mnemonic.Vmaskmovdqu or Mnemonic.Clflush or Mnemonic.Sgdt or Mnemonic.Sidt or Mnemonic.Sldt or Mnemonic.Str or Mnemonic.Smsw)
            return false;
        if (code.IsJccShortOrNear() || code.IsJmpShortOrNear() || m is Mnemonic.Call or Mnemonic.Ret or Mnemonic.Jmp)
            return false;
        if (m is Mnemonic.Hlt or Mnemonic.Int3 or Mnemonic.Ud0 or Mnemonic.Ud1 or Mnemonic.Ud2 or Mnemonic.Popf or Mnemonic.Popfq or Mnemonic.Ldmxcsr or Mnemonic.Vldmxcsr or Mnemonic.Vstmxcsr
            or Mnemonic.Lahf or Mnemonic.Pushf or Mnemonic.Pushfq or Mnemonic.Enter or Mnemonic.Leave or Mnemonic.Pop or Mnemonic.Fxrstor or Mnemonic.Fxrstor64
            or Mnemonic.Wrfsbase or Mnemonic.Wrgsbase or Mnemonic.Std or Mnemonic.Loop or Mnemonic.Loope or Mnemonic.Loopne or Mnemonic.Jcxz or Mnemonic.Jecxz or Mnemonic.Jrcxz or Mnemonic.Xlatb or Mnemonic.Shld or Mnemonic.Shrd or Mnemonic.Bswap
            or Mnemonic.Stmxcsr or Mnemonic.Fxsave or Mnemonic.Fxsave64)
            return false;
        foreach (CpuidFeature f in code.CpuidFeatures())
            if (f is CpuidFeature.FPU or CpuidFeature.FPU287 or CpuidFeature.FPU387 or CpuidFeature.MMX)
                return false;
        for (int k = 0; k < info.OpCount; k++)
            if (info.GetOpKind(k) is OpCodeOperandKind.mm_reg or OpCodeOperandKind.mm_rm or OpCodeOperandKind.mm_or_mem or OpCodeOperandKind.mem_offs
                or OpCodeOperandKind.seg_rSI or OpCodeOperandKind.es_rDI or OpCodeOperandKind.seg_rDI or OpCodeOperandKind.cr_reg or OpCodeOperandKind.dr_reg)
                return false;
        return true;
    }

    /// <summary>The code of each area.</summary>
    public byte[][] Make()
    {
        ChooseSystem();
        Add(Instruction.Create(Code.Mov_r32_imm32, Register.R9D, 2 + rng.Below(4)));
        int segments = 2 + rng.Below(5), loopStart = -1;
        List<int> forward = [];
        bool call = rng.OneIn(3);
        for (int s = 0; s < segments; s++)
        {
            Move();
            int here = items.Count;
            foreach (int f in forward)
                if (targets[f] == -2 && rng.OneIn(2))
                    targets[f] = here;
            if (loopStart < 0 && rng.OneIn(2))
                loopStart = here;
            Body(1 + rng.Below(6));
            if (call && rng.OneIn(3))
                AddBranch(Code.Call_rel32_64, -3);
            if (rng.OneIn(4))
                VisitPiece();
            if (rng.OneIn(8))
            {
                Add(Modify());
                targets[^1] = -5;
            }
            if (rng.OneIn(4))
            {
                Add(Instruction.Create(Code.Mov_r32_imm32, Register.EAX + rng.Pick<int>([0, 1, 2, 5, 7, 8, 11, 12, 15]), (int)rng.Next()));
                victims.Add(items.Count - 1);
            }
            if (rng.OneIn(2))
            {
                forward.Add(items.Count);
                AddBranch(Conditional(), -2);
            }
            else if (rng.OneIn(6))
            {
                forward.Add(items.Count);
                AddBranch(Code.Jmp_rel32_64, -2);
            }
            if (loopStart >= 0 && rng.OneIn(2))
            {
                Add(Instruction.Create(Code.Lea_r64_m, Register.R9, new MemoryOperand(Register.R9, Register.None, 1, -1, 1)));
                Add(Instruction.Create(Code.Test_rm64_r64, Register.R9, Register.R9));
                AddBranch(Code.Jg_rel32_64, loopStart);
                loopStart = -1;
            }
        }
        foreach (int f in forward)
            if (targets[f] == -2)
                targets[f] = items.Count;
        int jumpOver = items.Count;
        if (call)
        {
            AddBranch(Code.Jmp_rel32_64, -4);
            int sub = items.Count;
            for (int k = 0; k < items.Count; k++)
                if (targets[k] == -3)
                    targets[k] = sub;
            inCall = true;
            Body(1 + rng.Below(4));
            Add(Instruction.Create(Code.Retnq));
            inCall = false;
            targets[jumpOver] = items.Count;
        }
        mainEnd = items.Count;
        AddPieces();
        for (int k = 0; k < items.Count; k++)
            if (targets[k] == -5)
                targets[k] = victims.Count > 0 ? -100 - rng.Pick<int>([.. victims]) : -1;
        return Encode();
    }

    public void FillState(ref TestState s)
    {
        for (int k = 0; k < 16; k++)
            if (k != 4)
                s.Gpr[k] = rng.OneIn(3) ? (ulong)rng.Below(100) : rng.Next() >> rng.Below(64);
        s.Gpr[3] = Pointer();
        s.Gpr[14] = Pointer();
        s.Gpr[6] = Pointer();
        s.Gpr[10] = (ulong)rng.Below(16);
        s.Gpr[13] = (ulong)rng.Below(16);
        s.FsBase = (ulong)rng.Below(64);
        s.GsBase = 0;
        s.Gpr[12] = rng.OneIn(4) ? Pointer() : Pointer() + (Layout.FarWindow - Layout.Window);
        s.Rflags = 0x202 | (rng.Next() & RFlags.Status);
        if (System.Privileged)
        {
            s.Rflags ^= System.Interrupt || rng.OneIn(3) ? RFlags.If : 0;
            s.Rflags |= rng.OneIn(8) ? 0 : RFlags.Ac;
        }
        for (int k = 0; k < 16; k++)
        {
            rng.Fill(s.Xmm(k));
            rng.Fill(s.YmmHigh(k));
            for (int n = 0; k >= 12 && n < 16; n++)
                if ((n & 3) != 0)
                    (s.Xmm(k)[n], s.YmmHigh(k)[n]) = (0, 0);
        }
    }

    private ulong Pointer() => rng.Below(8) switch
    {
        0 => Layout.Window + Layout.WindowSize - (ulong)rng.Below(64),
        1 => Layout.Window + 0x1000 - (ulong)rng.Below(40),
        _ => Layout.Window + 0x200 + (ulong)(rng.Below(0x180) * 16),
    };

    private void Body(int count)
    {
        for (int made = 0, tries = 0; made < count && tries < 40; tries++)
        {
            if (rng.OneIn(8))
            {
                // A balanced pair.
                Register r = Register.RAX + rng.Pick<int>([0, 1, 2, 5, 7, 8, 11, 15]);
                if (rng.OneIn(3))
                    Add(Instruction.Create(Code.Push_rm64, SomeMemory()));
                else
                    Add(Instruction.Create(Code.Push_r64, Register.RAX + rng.Below(16)));
                if (rng.OneIn(8))
                    Add(Instruction.Create(Code.Pop_rm64, SomeMemory()));
                else
                    Add(Instruction.Create(Code.Pop_r64, r));
                made += 2;
                continue;
            }
            if (System.Privileged && rng.OneIn(3))
            {
                AddSystem();
                made++;
                continue;
            }
            if (encodings.TryMake(Forms[rng.Below(Forms.Count)], rng.OneIn(2)) is not { } e)
                continue;
            Instruction i = e.Instruction;
            if (i.IsStackInstruction || !Place(ref i) || Spoils(i))
                continue;
            Add(i);
            made++;
            // What follows must not depend on flags that processors choose.
            if (i.Mnemonic is Mnemonic.Rol or Mnemonic.Ror or Mnemonic.Rcl or Mnemonic.Rcr || (i.RflagsUndefined & ~RflagsBits.AF) != 0)
                Add(Instruction.Create(Code.Cmp_rm64_imm8, Register.RAX + rng.Below(16), (sbyte)rng.Next()));
        }
    }

    private bool inCall;

    private bool Place(ref Instruction i)
    {
        for (int k = 0; k < i.OpCount; k++)
        {
            if (i.GetOpKind(k) != OpKind.Memory || i.IsIPRelativeMemoryOperand)
                continue;
            if (i.MemoryBase.GetSize() == 4 || i.MemoryIndex.GetSize() == 4)
                return false;
            if (rng.OneIn(30))
                continue;
            i.MemoryBase = rng.Pick<Register>(inCall ? Bases.AsSpan(0, 4) : Bases);
            if (i.IsVsib)
            {
                // The last four vector registers start with small numbers.
                Register index = (i.MemoryIndex.IsYMM() ? Register.YMM12 : Register.XMM12) + rng.Below(4);
                if (index.GetNumber() == i.Op0Register.GetNumber() || index.GetNumber() == i.Op2Register.GetNumber())
                    return false;
                i.MemoryIndex = index;
                i.MemoryDisplSize = 8;
                i.MemoryDisplacement64 = 0;
                continue;
            }

            i.MemoryIndex = rng.OneIn(3) ? rng.Pick<Register>([Register.R10, Register.R13]) : Register.None;
            i.MemoryIndexScale = i.MemoryIndex == Register.None ? 1 : 1 << rng.Below(4);
            i.MemoryDisplSize = 8;
            i.MemoryDisplacement64 = (ulong)(long)(rng.Below(8) * 16);
            i.SegmentPrefix = rng.OneIn(10) ? Register.FS : Register.None;
        }
        return true;
    }

    private readonly InstructionInfoFactory infos = new();

    private bool Spoils(in Instruction i)
    {
        foreach (UsedRegister r in infos.GetInfo(i).GetUsedRegisters())
        {
            if (r.Access is OpAccess.Read or OpAccess.CondRead)
                continue;
            Register full = r.Register.GetFullRegister();
            if (full is Register.R9 or Register.RSP || (full is Register.RBX or Register.R14 or Register.RSI or Register.R10 or Register.R12 or Register.R13 && !rng.OneIn(20)))
                return true;
            // The way back out of the handler of system calls.
            if (inSystemCall && full is Register.RCX or Register.R11 && !rng.OneIn(20))
                return true;
        }
        return false;
    }

    // Changes the immediate of an instruction that comes later or earlier; which one is chosen when all are known.
    private Instruction Modify()
    {
        int value = (byte)rng.Next();
        // LAHF and PUSHF would show flags that are not defined.
        if (value is 0x9C or 0x9F)
            value = 0x90;
        return Instruction.Create(Code.Mov_rm8_imm8, new MemoryOperand(Register.None, Register.None, 1, (long)Layout.CodeAlias, 8), value);
    }

    private Code Conditional() => rng.Pick<Code>(
    [
        Code.Jo_rel32_64, Code.Jno_rel32_64, Code.Jb_rel32_64, Code.Jae_rel32_64, Code.Je_rel32_64, Code.Jne_rel32_64, Code.Jbe_rel32_64, Code.Ja_rel32_64,
        Code.Js_rel32_64, Code.Jns_rel32_64, Code.Jp_rel32_64, Code.Jnp_rel32_64, Code.Jl_rel32_64, Code.Jge_rel32_64, Code.Jle_rel32_64, Code.Jg_rel32_64,
    ]);

    private void Add(in Instruction i)
    {
        items.Add(i);
        targets.Add(-1);
        places.Add((area, origin));
        origin = 0;
    }

    private void AddBranch(Code code, int target)
    {
        items.Add(Instruction.CreateBranch(code, Layout.Start));
        targets.Add(target);
        places.Add((area, origin));
        origin = 0;
    }

    private byte[][] Encode()
    {
        List<byte>[] areas = [[], [], []];
        ulong endOfMain = Layout.Start;
        var addresses = new ulong[items.Count + 1];
        for (int pass = 0; pass < 2; pass++)
        {
            Listing.Clear();
            foreach (List<byte> bytes in areas)
                bytes.Clear();
            for (int k = 0; k < items.Count; k++)
            {
                (int inArea, int from) = places[k];
                List<byte> bytes = areas[inArea];
                ulong start = Layout.Start + ((ulong)inArea * Layout.AreaDistance);
                var encoder = Iced.Intel.Encoder.Create(64, new ListWriter(bytes));
                while (bytes.Count < from)
                    bytes.Add(0x90);
                Instruction i = items[k];
                ulong target = targets[k] < 0 || pass == 0 ? Layout.Start : targets[k] == mainEnd ? endOfMain : addresses[targets[k]];
                if (targets[k] >= 0 && i.Code == Code.Mov_r32_imm32)
                    i.Immediate32 = (uint)target;
                else if (targets[k] >= 0)
                    i.NearBranch64 = target;
                else if (targets[k] <= -100)
                    i.MemoryDisplacement64 = Layout.CodeAlias - Layout.Code + (pass == 0 ? Layout.Start : addresses[1 - targets[k] - 100] - 4);
                addresses[k] = start + (ulong)bytes.Count;
                int before = bytes.Count;
                if (!encoder.TryEncode(i, addresses[k], out _, out _))
                {
                    bytes.RemoveRange(before, bytes.Count - before);
                    continue;
                }
                i.IP = addresses[k];
                Listing.Add(i);
            }
            endOfMain = Layout.Start + (ulong)areas[0].Count;
            for (int p = 0; p < pieceStarts.Count; p++)
                Pieces[p] = addresses[pieceStarts[p]];
            if (systemCall >= 0)
                System = System with { Lstar = addresses[systemCall] };
        }
        return [.. areas.Select(a => a.ToArray())];
    }

    private sealed class ListWriter(List<byte> bytes) : CodeWriter
    {
        public override void WriteByte(byte value) => bytes.Add(value);
    }
}
