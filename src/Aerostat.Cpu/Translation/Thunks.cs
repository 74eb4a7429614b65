using System.Runtime.Intrinsics.X86;
using Iced.Intel;

namespace Aerostat.Cpu;

/// <summary>Where the guest's general registers live while generated code runs.</summary>
internal static class Homes
{
    /// <summary>
    /// Host register of each guest register, or None: in the <see cref="Frame"/>. Those with implicit uses keep their places. The host's RSP stays
    /// the host's (signals arrive on it), R10 and R11 are scratch, R14 is the group pointer and third scratch.
    /// </summary>
    public static ReadOnlySpan<sbyte> OfGuest =>
    [
        Host.Rax, Host.Rcx, Host.Rdx, Host.Rbx, Host.R15, Host.Rbp, Host.Rsi, Host.Rdi, Host.R8, Host.R9, Host.None, Host.None, Host.R12, Host.R13, Host.None, Host.None,
    ];
}

/// <summary>How much of the vector registers generated code has loaded.</summary>
internal static class VectorLevel
{
    public const int None = 0, Xmm = 1, Ymm = 2, Count = 3;

    /// <summary>The level of a variant: variants of one level are one for each TLB set.</summary>
    public static int Of(int variant) => variant / 3;
}

/// <summary>
/// What generated code keeps on the host's stack, at constant distances from RSP, which never moves while it runs. Processors forward stores to loads of such
/// addresses without delay, which they do not for addresses with a segment base.
/// </summary>
internal static class Frame
{
    /// <summary>A place to keep a register for a moment.</summary>
    public const int Spill = 32;

    /// <summary>Number of the exit record of the last indirect branch.</summary>
    public const int IndirectSource = 40;

    /// <summary>Where <see cref="Thunks.Again"/> keeps registers and goes on at.</summary>
    public const int AgainRax = 48, AgainRcx = 56, AgainRdx = 64, AgainTarget = 72;

    /// <summary>Bytes in all.</summary>
    public const int Size = 88;

    /// <summary>Where the guest registers are that have no host register, -1 for the others.</summary>
    public static ReadOnlySpan<sbyte> OfGuest => [-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 0, 8, -1, -1, 16, 24];
}

/// <summary>The code between the dispatcher and generated code, in a form for each <see cref="VectorLevel"/>.</summary>
internal sealed unsafe partial class Thunks(CpuState* state)
{
    private static readonly int[] Saved = [Host.Rbx, Host.Rbp, Host.R12, Host.R13, Host.R14, Host.R15];

    private readonly nint[] enter = new nint[VectorLevel.Count], exit = new nint[VectorLevel.Count], miss = new nint[VectorLevel.Count];
    private readonly nint[] again = new nint[6];
    private readonly nint[] mismatch = new nint[CodeCache.Variants];
    private nint amounts;

    /// <summary>Enters at <see cref="CpuState.EntryTarget"/> and comes back at the next exit.</summary>
    public void Enter(int level) => ((delegate* unmanaged<void>)enter[level])();

    /// <summary>Exit with the number of the exit in R11.</summary>
    public nint Exit(int level) => exit[level];

    /// <summary>Exit of a table jump; the address wanted is in R10.</summary>
    public nint Miss(int level) => miss[level];

    /// <summary>Where code goes that was found in the jump table by mistake: to the second table, with the address wanted in R10.</summary>
    public nint Mismatch(int variant) => mismatch[variant];

    /// <summary>Where a number of instructions, up to <see cref="BlockTranslator.MaxInstructions"/>, is kept for being counted.</summary>
    public nint Amount(int instructions) => amounts + (instructions * sizeof(long));

    /// <summary>Which amount is kept at an address, -1: none.</summary>
    public int AmountAt(nint address) => address >= amounts && address <= Amount(BlockTranslator.MaxInstructions) ? (int)(address - amounts) / sizeof(long) : -1;

    public void Emit(HostAssembler a, bool smap)
    {
        a.AlignCode(sizeof(long));
        amounts = a.Here;
        for (int n = 0; n <= BlockTranslator.MaxInstructions; n++)
            a.Int64((ulong)n);
        for (int level = 0; level < (HostStubs.CanRun(CpuidFeature.AVX) ? VectorLevel.Count : VectorLevel.Ymm); level++)
        {
            enter[level] = EmitEnter(a, level);
            miss[level] = a.Here;
            a.Constant(Host.R11, CodeCache.MissRecord);
            exit[level] = EmitExit(a, level);
            for (int variant = 3 * level; variant < 3 * (level + 1); variant++)
                mismatch[variant] = EmitMismatch(a, variant);
            systemCall[level] = EmitSystemCall(a, level, smap ? Interpreter.StrictSet : Interpreter.SupervisorSet);
            userEntry[level] = EmitUserEntry(a, level);
        }
        systemReturn = EmitSystemReturn(a);
        EmitStrings(a);
        for (int set = 0; set < 3; set++)
        {
            again[2 * set] = EmitAgain(a, set, write: false);
            again[(2 * set) + 1] = EmitAgain(a, set, write: true);
        }
    }

    /// <summary>Where a check goes with the address in R10 and its <see cref="CheckSite"/>'s number in R11 when it has found another page's entry.</summary>
    public nint Again(int set, bool write) => again[(2 * set) + (write ? 1 : 0)];

    /// <summary>Selects the entry in the address shifted right by 7.</summary>
    public const int EntryMask = (Interpreter.TlbEntries - 1) << 5;

    // Searches the TLB as a check without a slot does, and puts what it finds into the slot. The flags are nobody's here.
    private nint EmitAgain(HostAssembler a, int set, bool write)
    {
        nint start = a.Here;
        a.StoreFrame(Frame.AgainRax, Host.Rax);
        a.StoreFrame(Frame.AgainRcx, Host.Rcx);
        a.StoreFrame(Frame.AgainRdx, Host.Rdx);
        a.RR(0x8B, Host.Rax, Host.R10, wide: false);
        a.RR(0xC1, 5, Host.Rax, wide: false);
        a.Byte(7);
        a.RR(0x81, 4, Host.Rax, wide: false);
        a.Int32(EntryMask);
        a.Move(Host.Rdx, Host.R11);
        a.RR(0xC1, 4, Host.R11);
        a.Byte(CheckSite.Shift);
        a.RM(0x03, Host.R11, Host.None, Host.None, 0, Offset(&state->CheckSites), gs: true);
        int tag = Interpreter.StateBytes + (set * Interpreter.TlbEntries * sizeof(TlbEntry)) + (write ? 16 : 0);
        a.RM(0x8B, Host.Rcx, Host.Rax, Host.None, 0, tag, gs: true);
        a.RR(0x33, Host.Rcx, Host.R10);
        a.RM(0x3B, Host.Rcx, Host.R11, Host.None, 0, CheckSite.OffsetOfLimit);
        nint leave = a.Jcc(Condition.A);
        a.RM(0x80, 5, Host.R11, Host.None, 0, CheckSite.OffsetOfMisses, wide: false);
        a.Byte(1);
        nint tired = a.Jcc(Condition.S);
        a.Move(Host.R10, Host.Rcx);
        // The slot: tag, and host page or the distance from tag to host page.
        a.RM(0x8B, Host.Rcx, Host.Rax, Host.None, 0, tag + 8, gs: true);
        a.RM(0x8B, Host.Rax, Host.Rax, Host.None, 0, tag, gs: true);
        a.RR(0xC1, 4, Host.Rdx);
        a.Byte(4);
        a.RM(0x89, Host.Rax, Host.Rdx, Host.None, 0, Interpreter.SlotsOffset, gs: true);
        a.RM(0x80, 7, Host.R11, Host.None, 0, CheckSite.OffsetOfRelative, wide: false);
        a.Byte(0);
        nint absolute = a.Jcc(Condition.E);
        a.RR(0x2B, Host.Rcx, Host.Rax);
        a.Bind(absolute);
        a.RM(0x89, Host.Rcx, Host.Rdx, Host.None, 0, Interpreter.SlotsOffset + 8, gs: true);
        // Its number to those that hold something.
        a.RM(0x80, 7, Host.R11, Host.None, 0, CheckSite.OffsetOfBound, wide: false);
        a.Byte(0);
        nint listed = a.Jcc(Condition.Ne);
        a.RM(0xC6, 0, Host.R11, Host.None, 0, CheckSite.OffsetOfBound, wide: false);
        a.Byte(1);
        a.RR(0xC1, 5, Host.Rdx);
        a.Byte(4);
        a.LoadState(Host.Rcx, Offset(&state->BoundChecks));
        a.LoadState(Host.Rax, Offset(&state->BoundList));
        a.RM(0x89, Host.Rdx, Host.Rax, Host.Rcx, 2, 0, wide: false);
        a.Lea(Host.Rcx, Host.Rcx, Host.None, 0, 1);
        a.StoreState(Offset(&state->BoundChecks), Host.Rcx);
        a.Bind(listed);
        EmitGoOn(a, CheckSite.OffsetOfContinue);
        a.Bind(leave);
        a.Bind(tired);
        EmitGoOn(a, CheckSite.OffsetOfLeave);
        return start;
    }

    private static void EmitGoOn(HostAssembler a, int target)
    {
        a.RM(0x8B, Host.Rcx, Host.R11, Host.None, 0, target);
        a.StoreFrame(Frame.AgainTarget, Host.Rcx);
        a.LoadFrame(Host.Rax, Frame.AgainRax);
        a.LoadFrame(Host.Rcx, Frame.AgainRcx);
        a.LoadFrame(Host.Rdx, Frame.AgainRdx);
        a.RM(0xFF, 4, Host.Rsp, Host.None, 0, Frame.AgainTarget, wide: false);
    }

    private int Offset(void* field) => (int)((byte*)field - (byte*)state);

    private nint EmitEnter(HostAssembler a, int level)
    {
        nint start = a.Here;
        foreach (int r in Saved)
            Push(a, r);
        a.Lea(Host.Rsp, Host.Rsp, Host.None, 0, -Frame.Size);
        if (level >= VectorLevel.Xmm)
        {
            EmitLoadVectors(a, level);
        }
        a.LoadState(Host.Rax, Offset(&state->HostFlags), wide: false);
        a.RestoreOverflow();
        a.Sahf();
        for (int g = 0; g < 16; g++)
        {
            if (Homes.OfGuest[g] != Host.None)
            {
                a.LoadState(Homes.OfGuest[g], 8 * g);
                continue;
            }
            a.LoadState(Host.R10, 8 * g);
            a.StoreFrame(Frame.OfGuest[g], Host.R10);
        }
        a.LoadCount(Offset(&state->Executed));
        // Whoever comes back without an indirect branch of its own must not have one to blame.
        a.RM(0xC7, 0, Host.Rsp, Host.None, 0, Frame.IndirectSource);
        a.Int32((int)CodeCache.MissRecord);
        a.LoadState(Host.R14, Offset(&state->GroupPointer));
        a.LoadState(Host.R10, Offset(&state->ExitAddress));
        a.RM(0xFF, 4, Host.None, Host.None, 0, Offset(&state->EntryTarget), wide: false, gs: true);
        return start;
    }

    // Looks R10 up in the second table. Keeps the flags; uses R11 and R14.
    private nint EmitMismatch(HostAssembler a, int variant)
    {
        nint start = a.Here;
        a.StoreFrame(Frame.Spill, Host.Rax);
        a.Lahf();
        a.SetOverflowAl();
        a.LoadState(Host.R14, Offset(&state->TableKey[variant]));
        // As CodeCache.SecondSlot.
        a.Lea(Host.R11, Host.R10, Host.R14, 0, 0);
        a.RR(0x69, Host.R11, Host.R11, wide: false);
        a.Int32(CodeCache.SecondHash);
        a.RR(0xC1, 5, Host.R11, wide: false);
        a.Byte(32 - CodeCache.SecondBits);
        a.RR(0xC1, 4, Host.R11);
        a.Byte(CodeCache.SecondEntryShift);
        a.RM(0x03, Host.R11, Host.None, Host.None, 0, Offset(&state->SecondTable), gs: true);
        a.RM(0x3B, Host.R10, Host.R11, Host.None, 0, 0);
        nint other = a.Jcc(Condition.Ne);
        a.RM(0x3B, Host.R14, Host.R11, Host.None, 0, 8);
        nint otherKey = a.Jcc(Condition.Ne);
        a.RestoreOverflow();
        a.Sahf();
        a.LoadFrame(Host.Rax, Frame.Spill);
        a.RM(0xFF, 4, Host.R11, Host.None, 0, 16, wide: false);
        a.Bind(other);
        a.Bind(otherKey);
        a.RestoreOverflow();
        a.Sahf();
        a.LoadFrame(Host.Rax, Frame.Spill);
        a.Jmp(miss[VectorLevel.Of(variant)]);
        return start;
    }

    private nint EmitExit(HostAssembler a, int level)
    {
        nint start = a.Here;
        a.StoreState(0, Host.Rax);
        a.Lahf();
        a.SetOverflowAl();
        a.StoreState(Offset(&state->HostFlags), Host.Rax, wide: false);
        a.StoreState(Offset(&state->ExitAddress), Host.R10);
        a.StoreState(Offset(&state->ExitRecord), Host.R11);
        a.StoreState(Offset(&state->GroupPointer), Host.R14);
        for (int g = 1; g < 16; g++)
        {
            if (Homes.OfGuest[g] != Host.None)
            {
                a.StoreState(8 * g, Homes.OfGuest[g]);
                continue;
            }
            a.LoadFrame(Host.R10, Frame.OfGuest[g]);
            a.StoreState(8 * g, Host.R10);
        }
        a.StoreCount(Offset(&state->Executed));
        a.LoadFrame(Host.R10, Frame.IndirectSource);
        a.StoreState(Offset(&state->IndirectSource), Host.R10);
        StoreConstant(a, Offset(&state->Level), level);
        if (level >= VectorLevel.Xmm)
        {
            EmitStoreVectors(a, level);
        }
        a.Lea(Host.Rsp, Host.Rsp, Host.None, 0, Frame.Size);
        for (int i = Saved.Length - 1; i >= 0; i--)
            Pop(a, Saved[i]);
        a.Byte(0xC3);
        return start;
    }

    // From the state into the registers. Uses R10.
    private void EmitLoadVectors(HostAssembler a, int level)
    {
        // Legacy SSE is slow while the upper halves are in use.
        if (Avx.IsSupported)
            EmitZeroUpper(a);
        a.LoadState(Host.R10, Offset(&state->Xsave));
        a.RM(0x0FAE, 3, Host.None, Host.None, 0, Offset(&state->HostMxcsr), wide: false, gs: true);
        a.RM(0x0FAE, 2, Host.R10, Host.None, 0, CpuState.MxcsrOffset, wide: false);
        for (int i = 0; i < 16; i++)
            a.RM(0x0F10, i, Host.R10, Host.None, 0, CpuState.XmmOffset + (16 * i), wide: false);
        for (int i = 0; i < 16 && level == VectorLevel.Ymm; i++)
            EmitUpperHalf(a, i, store: false);
    }

    // The other way. Uses R10.
    private void EmitStoreVectors(HostAssembler a, int level)
    {
        a.LoadState(Host.R10, Offset(&state->Xsave));
        for (int i = 0; i < 16 && level == VectorLevel.Ymm; i++)
            EmitUpperHalf(a, i, store: true);
        if (level == VectorLevel.Ymm)
            EmitZeroUpper(a);
        a.RM(0x0FAE, 3, Host.R10, Host.None, 0, CpuState.MxcsrOffset, wide: false);
        a.RM(0x0FAE, 2, Host.None, Host.None, 0, Offset(&state->HostMxcsr), wide: false, gs: true);
        for (int i = 0; i < 16; i++)
            a.RM(0x0F11, i, Host.R10, Host.None, 0, CpuState.XmmOffset + (16 * i), wide: false);
    }

    private static void EmitZeroUpper(HostAssembler a)
    {
        a.Byte(0xC5);
        a.Byte(0xF8);
        a.Byte(0x77);
    }

    // VINSERTF128 ymm, ymm, [r10 + ...], 1 or VEXTRACTF128 [r10 + ...], ymm, 1.
    private static void EmitUpperHalf(HostAssembler a, int i, bool store)
    {
        a.Byte(0xC4);
        a.Byte((i < 8 ? 0x80 : 0) | 0x43);
        a.Byte((store ? 15 : ~i & 15) << 3 | 5);
        a.Byte(store ? 0x19 : 0x18);
        a.Byte(0x80 | (i & 7) << 3 | (Host.R10 & 7));
        a.Int32(CpuState.YmmHighOffset + (16 * i));
        a.Byte(1);
    }

    private static void Push(HostAssembler a, int r)
    {
        if (r >= 8)
            a.Byte(0x41);
        a.Byte(0x50 | (r & 7));
    }

    private static void Pop(HostAssembler a, int r)
    {
        if (r >= 8)
            a.Byte(0x41);
        a.Byte(0x58 | (r & 7));
    }
}
