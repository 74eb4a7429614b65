using Aerostat.X86;
using Iced.Intel;

namespace Aerostat.Cpu.Tests;

/// <summary>What a program finds besides registers and memory.</summary>
/// <param name="Privileged">It begins at privilege level 0.</param>
/// <param name="Smap">CR4.SMAP.</param>
/// <param name="Interrupt">An external interrupt waits.</param>
/// <param name="Lstar">Where SYSCALL goes.</param>
/// <param name="Fmask">Flags that SYSCALL clears.</param>
internal readonly record struct ProgramSystem(bool Privileged, bool Smap, bool Interrupt, ulong Lstar, ulong Fmask);

/// <content>Pieces of code in other areas, and what kernels do.</content>
internal sealed partial class ProgramGenerator
{
    private const int SmallAlignment = 64;
    private static readonly Code[] FlagReaders =
    [
        Code.Setb_rm8, Code.Sete_rm8, Code.Seto_rm8, Code.Sets_rm8, Code.Setp_rm8, Code.Setbe_rm8, Code.Setl_rm8, Code.Setle_rm8,
        Code.Cmovb_r64_rm64, Code.Cmove_r64_rm64, Code.Cmovo_r64_rm64, Code.Cmovg_r64_rm64, Code.Adc_r64_rm64, Code.Sbb_r64_rm64,
    ];
    private static readonly int[] Free = [0, 1, 2, 5, 7, 8, 11, 15];
    private static readonly uint[] Msrs = [0xC0000100, 0xC0000101, 0xC0000102, 0xC0000103, 0x174, 0x175, 0x176, 0x80B, 0x1B, 0x10A, 0x12345];

    // Calls and jumps to pieces: index of the item, and where a jump comes back to (0: it is a call).
    private readonly List<(int Item, int Back)> visits = [];
    private readonly List<int> pieceStarts = [];
    private int area, origin, mainEnd, systemCall = -1;
    private bool inSystemCall, usesSystemCalls, traps;

    public ProgramSystem System { get; private set; }

    /// <summary>Addresses of the pieces, which the far window holds from <see cref="Layout.PointerOffset"/> on.</summary>
    public ulong[] Pieces { get; } = new ulong[8];

    private void ChooseSystem()
    {
        bool privileged = rng.OneIn(3);
        usesSystemCalls = rng.OneIn(4);
        traps = rng.OneIn(8);
        System = new ProgramSystem(privileged, rng.OneIn(2), privileged && rng.OneIn(3), Layout.Start, rng.Pick<ulong>([0, 0x200, 0x700, 0x47700, 0x40000]));
    }

    // The next item begins elsewhere: just before the end of the page, or where a piece in another area may begin too.
    private void Move()
    {
        int to = rng.OneIn(12) ? 0x800 - rng.Below(48) : rng.OneIn(5) ? SmallAlignment * (1 + rng.Below(12)) : 0;
        if (to == 0)
            return;
        if (to > 0x400 || rng.OneIn(2))
            AddBranch(Code.Jmp_rel32_64, items.Count + 1);
        origin = to;
    }

    private void VisitPiece()
    {
        if (visits.Count == Pieces.Length)
            return;
        int piece = visits.Count;
        Register r = Register.RAX + rng.Pick<int>(Free);
        bool call = rng.OneIn(2);
        switch (rng.Below(5))
        {
            case 0:
                Visit(call ? Code.Call_rel32_64 : Conditional());
                break;
            case 1:
                Visit(call ? Code.Call_rel32_64 : Code.Jmp_rel32_64);
                break;
            case 2:
                // Through a register; what loads it leaves the flags alone.
                visits.Add((items.Count, call ? 0 : items.Count + 2));
                Add(Instruction.Create(Code.Mov_r32_imm32, (r - Register.RAX) + Register.EAX, 0));
                Add(Instruction.Create(call ? Code.Call_rm64 : Code.Jmp_rm64, r));
                break;
            case 3:
                visits.Add((-1, call ? 0 : items.Count + 1));
                Add(Instruction.Create(call ? Code.Call_rm64 : Code.Jmp_rm64, Pointer(piece)));
                break;
            default:
                visits.Add((-1, call ? 0 : items.Count + 2));
                Add(Instruction.Create(Code.Lea_r64_m, Register.R12, new MemoryOperand(Register.None, Register.None, 1, PointerAddress(piece) & ~0xFFF, 8)));
                Add(Instruction.Create(call ? Code.Call_rm64 : Code.Jmp_rm64, new MemoryOperand(Register.R12, Register.None, 1, PointerAddress(piece) & 0xFFF, 8)));
                break;
        }
        void Visit(Code code)
        {
            visits.Add((items.Count, call ? 0 : items.Count + 1));
            AddBranch(code, -1);
        }
    }

    private static long PointerAddress(int piece) => (long)Layout.FarWindow + Layout.PointerOffset + (8 * piece);

    private static MemoryOperand Pointer(int piece) => new(Register.None, Register.None, 1, PointerAddress(piece), 8);

    private void AddPieces()
    {
        int[] next = [0, 0, 0];
        for (int p = 0; p < visits.Count; p++)
        {
            (int from, int back) = visits[p];
            Begin(1 + rng.Below(2));
            pieceStarts.Add(items.Count);
            if (from >= 0)
                targets[from] = items.Count;
            Piece(inACall: back == 0);
            if (back == 0)
                Add(Instruction.Create(Code.Retnq));
            else
                AddBranch(Code.Jmp_rel32_64, Math.Min(back, mainEnd));
        }
        if (usesSystemCalls)
        {
            Begin(1 + rng.Below(2));
            systemCall = items.Count;
            inSystemCall = true;
            bool swap = rng.OneIn(2);
            if (swap)
                Add(Instruction.Create(Code.Swapgs));
            Piece(inACall: true);
            if (swap)
                Add(Instruction.Create(Code.Swapgs));
            Add(Instruction.Create(rng.OneIn(20) ? Code.Sysretd : Code.Sysretq));
            inSystemCall = false;
        }
        area = origin = 0;
        void Begin(int inArea)
        {
            area = inArea;
            origin = next[area];
            next[area] += SmallAlignment * (1 + rng.Below(3));
        }
    }

    private void Piece(bool inACall)
    {
        inCall = inACall;
        if (!rng.OneIn(3))
        {
            Code code = rng.Pick<Code>(FlagReaders);
            int r = rng.Pick<int>([0, 2, 5, 7, 8, 15]);
            if (code.ToOpCode().OpCount == 1)
                Add(Instruction.Create(code, r < 4 ? Register.AL + r : r < 8 ? Register.SPL + (r - 4) : Register.R8L + (r - 8)));
            else
                Add(Instruction.Create(code, Register.RAX + r, Register.RAX + rng.Below(16)));
        }
        Body(1 + rng.Below(4));
        inCall = false;
    }

    private MemoryOperand SomeMemory() =>
        new(rng.Pick<Register>([Register.RBX, Register.R12, Register.R12, Register.R14]), Register.None, 1, 16 * rng.Below(8), 8);

    private void AddSystem()
    {
        switch (rng.Below(18))
        {
            case 0:
                Add(Instruction.Create(rng.OneIn(2) ? Code.Cli : Code.Sti));
                break;
            case 1:
                Add(Instruction.Create(Code.Sti));
                break;
            case 2:
                Add(Instruction.Create(Code.Stac));
                break;
            case 3:
                Add(Instruction.Create(Code.Clac));
                if (rng.OneIn(6))
                    Add(Instruction.Create(Code.Mov_r64_rm64, Register.RAX, SomeMemory()));
                if (!rng.OneIn(6))
                    Add(Instruction.Create(Code.Stac));
                break;
            case 4:
                Add(Instruction.Create(Code.Swapgs));
                break;
            case 5:
            case 6:
                DefineFlags();
                Add(Instruction.Create(Code.Pushfq));
                ChangeFlags();
                Add(Instruction.Create(Code.Popfq));
                break;
            case 7:
                ReturnFromInterrupt();
                break;
            case 8:
            case 9:
                ModelRegister();
                break;
            case 10:
            case 11:
                ControlRegister();
                break;
            case 12:
                Add(Instruction.Create(Code.Mov_r32_imm32, Register.EAX, rng.Pick<int>([0, 1, 7, 0xD, unchecked((int)0x80000000), unchecked((int)0x80000008), 0x40000000])));
                Add(Instruction.Create(Code.Mov_r32_imm32, Register.ECX, rng.Below(3)));
                Add(Instruction.Create(Code.Cpuid));
                break;
            case 13:
                Port();
                break;
            case 14:
                Repeated();
                break;
            case 15 when !System.Interrupt && !traps:
                Time();
                break;
            case 16:
                if (usesSystemCalls && !inSystemCall)
                {
                    DefineFlags();
                    Add(Instruction.Create(Code.Syscall));
                }
                else
                {
                    Add(Instruction.Create(Code.Pause));
                }
                break;
            default:
                if (rng.OneIn(2))
                {
                    Add(Instruction.Create(Code.Invlpg_m, SomeMemory()));
                }
                else
                {
                    Register r = rng.Pick<Register>([Register.SS, Register.DS, Register.ES]);
                    Add(Instruction.Create(Code.Mov_r32_imm32, Register.EAX, rng.OneIn(20) ? rng.Below(0x50) : 0x18));
                    Add(Instruction.Create(Code.Mov_Sreg_r32m16, r, Register.EAX));
                }
                break;
        }
    }

    // Before flags get into a register or into memory: AF may be undefined.
    private void DefineFlags() => Add(Instruction.Create(Code.Cmp_rm64_imm8, Register.RAX + rng.Below(16), rng.Below(128)));

    // Changes some of the flags on the stack.
    private void ChangeFlags()
    {
        uint mask = 0;
        foreach (uint bit in (uint[])[RFlags.If, RFlags.If, RFlags.Cf, RFlags.Zf, RFlags.Sf, RFlags.Of, RFlags.Pf, RFlags.Id])
            mask ^= rng.OneIn(3) ? bit : 0;
        foreach (uint bit in (uint[])[RFlags.Ac, RFlags.Df, RFlags.Nt, RFlags.Rf, RFlags.Iopl])
            mask ^= rng.OneIn(30) ? bit : 0;
        if (traps && rng.OneIn(4))
            mask ^= RFlags.Tf;
        Add(Instruction.Create(Code.Xor_rm64_imm32, new MemoryOperand(Register.RSP), (int)mask));
    }

    private void ReturnFromInterrupt()
    {
        bool user = rng.OneIn(5);
        Add(Instruction.Create(Code.Mov_r64_rm64, Register.RCX, Register.RSP));
        Add(Instruction.Create(Code.Pushq_imm8, user ? 0x2B : rng.OneIn(4) ? 0 : 0x18));
        Add(Instruction.Create(Code.Push_r64, Register.RCX));
        DefineFlags();
        Add(Instruction.Create(Code.Pushfq));
        ChangeFlags();
        Add(Instruction.Create(Code.Pushq_imm8, user ? 0x33 : 0x10));
        int load = items.Count;
        Add(Instruction.Create(Code.Mov_r32_imm32, Register.EAX, 0));
        Add(Instruction.Create(Code.Push_r64, Register.RAX));
        Add(Instruction.Create(Code.Iretq));
        targets[load] = items.Count;
        // So that the target exists wherever this is the end.
        Add(Instruction.Create(Code.Nopd));
    }

    private void ModelRegister()
    {
        uint msr = rng.Pick<uint>(Msrs);
        bool write = rng.OneIn(2);
        if (write)
        {
            Add(Instruction.Create(Code.Mov_r32_imm32, Register.EAX, rng.Below(64)));
            Add(Instruction.Create(Code.Xor_r32_rm32, Register.EDX, Register.EDX));
        }
        Add(Instruction.Create(Code.Mov_r32_imm32, Register.ECX, (int)msr));
        Add(Instruction.Create(write ? Code.Wrmsr : Code.Rdmsr));
    }

    private void ControlRegister()
    {
        switch (rng.Below(7))
        {
            case 0:
                Change(Register.CR0, 16);
                break;
            case 1:
                Change(Register.CR0, 3);
                break;
            case 2:
                Change(Register.CR3, -1);
                break;
            case 3:
                Change(Register.CR4, rng.Pick<int>([7, 21]));
                break;
            case 4:
                Add(Instruction.Create(Code.Clts));
                break;
            case 5:
                Add(Instruction.Create(Code.Mov_r64_cr, Register.RAX + rng.Pick<int>(Free), rng.Pick<Register>([Register.CR0, Register.CR2, Register.CR3, Register.CR4, Register.CR8])));
                break;
            default:
                Add(Instruction.Create(Code.Mov_r32_imm32, Register.EAX, rng.Below(17)));
                Add(Instruction.Create(Code.Mov_cr_r64, rng.Pick<Register>([Register.CR2, Register.CR8]), Register.RAX));
                break;
        }
    }

    private void Change(Register control, int bit)
    {
        Register r = Register.RAX + rng.Pick<int>(Free);
        Add(Instruction.Create(Code.Mov_r64_cr, r, control));
        if (bit >= 0)
            Add(Instruction.Create(Code.Xor_rm64_imm32, r, 1 << bit));
        Add(Instruction.Create(Code.Mov_cr_r64, control, r));
    }

    private void Port()
    {
        switch (rng.Below(4))
        {
            case 0:
                Add(Instruction.Create(Code.In_AL_imm8, Register.AL, 0x64));
                break;
            case 1:
                Add(Instruction.Create(Code.Out_imm8_AL, 0x80, Register.AL));
                break;
            case 2:
                Add(Instruction.Create(Code.In_EAX_DX, Register.EAX, Register.DX));
                break;
            default:
                Add(Instruction.Create(Code.Out_DX_EAX, Register.DX, Register.EAX));
                break;
        }
    }

    // String instructions, repeated and not, within the windows and out of them.
    private void Repeated()
    {
        Add(Instruction.Create(Code.Lea_r64_m, Register.RDI, SomeMemory()));
        if (rng.OneIn(2))
            Add(Instruction.Create(Code.Lea_r64_m, Register.RSI, SomeMemory()));
        Add(Instruction.Create(Code.Mov_r32_imm32, Register.ECX, rng.OneIn(4) ? rng.Below(1000) : rng.Below(40)));
        RepPrefixKind rep = rng.OneIn(5) ? RepPrefixKind.None : RepPrefixKind.Repe;
        bool backward = rng.OneIn(8);
        if (backward)
            Add(Instruction.Create(Code.Std));
        Add(rng.Below(8) switch
        {
            0 => Instruction.CreateStosb(64, rep),
            1 => Instruction.CreateStosq(64, rep),
            2 => Instruction.CreateStosd(64, rep),
            3 => Instruction.CreateMovsb(64, Register.None, rep),
            4 => Instruction.CreateMovsq(64, rng.OneIn(4) ? Register.FS : Register.None, rep),
            5 => Instruction.CreateStosw(64, rep),
            6 => Instruction.CreateMovsw(64, Register.None, rep),
            _ => Instruction.CreateMovsd(64, Register.None, rep),
        });
        if (backward)
            Add(Instruction.Create(Code.Cld));
    }

    // What the counter says is not looked at, so nothing may come in between.
    private void Time()
    {
        Add(Instruction.Create(rng.OneIn(3) ? Code.Rdtscp : Code.Rdtsc));
        Add(Instruction.Create(Code.Mov_r32_imm32, Register.EAX, 1));
        Add(Instruction.Create(Code.Mov_r32_imm32, Register.EDX, 2));
    }
}
