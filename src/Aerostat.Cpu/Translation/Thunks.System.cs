using Aerostat.X86;

namespace Aerostat.Cpu;

/// <content>
/// SYSCALL and SYSRET (Intel SDM vol. 2B): from the user's code to the supervisor's, which starts without vector registers, and back, without a way
/// out. Where more is asked than flat segments, flags that nobody has to look at, and no request, the interpreter does it.
/// </content>
internal sealed unsafe partial class Thunks
{
    // What SYSRET takes from R11 (RF and VM stay clear), without the status flags.
    private const uint SysretFlags = 0x3C7FD7 & ~(RFlags.Status | RFlags.Fixed1);
    // Limit and attributes of flat segments, as they lie in SegmentRegister.
    private const ulong FlatCode = uint.MaxValue | (ulong)(0x809B | SegmentRegister.L) << 32, FlatStack = uint.MaxValue | 0xC093UL << 32, User = 3UL << 5 << 32;

    private readonly nint[] systemCall = new nint[VectorLevel.Count], userEntry = new nint[VectorLevel.Count];
    private nint systemReturn;

    /// <summary>SYSCALL of user code: R10 is the address of the next instruction, R11 the number of the exit to take if the interpreter has to do it.</summary>
    public nint SystemCall(int level) => systemCall[level];

    /// <summary>SYSRET of supervisor code without vector registers; R11 as above.</summary>
    public nint SystemReturn => systemReturn;

    /// <summary>For <see cref="CpuState.UserEntry"/>: goes on at the address in RCX, in user code of this level, from code without vector registers.</summary>
    public nint UserEntry(int level) => userEntry[level];

    private nint EmitSystemCall(HostAssembler a, int level, int set)
    {
        nint start = a.Here;
        a.StoreFrame(Frame.Spill, Host.Rcx);
        a.Move(Host.R14, Host.Rax);
        a.Lahf();
        a.SetOverflowAl();
        // ECX = RFLAGS, of which LAHF gives the low byte with bit 1.
        a.RR(0x0FB6, Host.Rcx, Host.Rax, wide: false);
        a.RR(0xC1, 4, Host.Rcx, wide: false);
        a.Byte(11);
        MoveFromAh(a);
        a.RR(0x0B, Host.Rcx, Host.Rax, wide: false);
        a.LoadState(Host.Rax, Offset(&state->SystemFlags), wide: false);
        a.RR(0x0B, Host.Rcx, Host.Rax, wide: false);
        a.RR(0xF7, 0, Host.Rax, wide: false);
        a.Int32((int)RFlags.Ac);
        nint slow = a.Jcc(Condition.Ne);
        nint slow2 = JumpWithoutSystemCalls(a);
        a.StoreFrame(Frame.OfGuest[11], Host.Rcx);
        a.LoadState(Host.Rax, Offset(&state->Fmask), wide: false);
        a.RR(0xF7, 2, Host.Rax, wide: false);
        a.RR(0x23, Host.Rcx, Host.Rax, wide: false);
        a.RR(0x8B, Host.Rax, Host.Rcx, wide: false);
        a.RR(0x81, 4, Host.Rax, wide: false);
        a.Int32(~(int)(RFlags.Status | RFlags.Fixed1));
        a.StoreState(Offset(&state->SystemFlags), Host.Rax, wide: false);
        a.LoadState(Host.Rax, Offset(&state->Star) + 4, wide: false);
        a.RR(0x81, 4, Host.Rax, wide: false);
        a.Int32(0xFFFC);
        StoreSelector(a, &state->Cs, Host.Rax);
        a.Lea(Host.Rax, Host.Rax, Host.None, 0, 8, wide: false);
        StoreSelector(a, &state->Ss, Host.Rax);
        StoreFlat(a, FlatCode, FlatStack);
        StoreConstant(a, Offset(&state->Cpl), 0);
        a.Constant(Host.Rax, 0);
        a.StoreState(Offset(&state->ModeKey), Host.Rax);
        EmitSelectSet(a, set, Host.Rax);
        RestoreFlags(a);
        a.Move(Host.Rax, Host.R14);
        a.Move(Host.Rcx, Host.R10);
        if (level >= VectorLevel.Xmm)
            EmitStoreVectors(a, level);
        a.LoadState(Host.R10, Offset(&state->Lstar));
        EmitTableJump(a, set);
        a.Bind(slow);
        a.Bind(slow2);
        RestoreFlags(a);
        a.Move(Host.Rax, Host.R14);
        a.LoadFrame(Host.Rcx, Frame.Spill);
        a.Jmp(exit[level]);
        return start;
    }

    private nint EmitSystemReturn(HostAssembler a)
    {
        nint start = a.Here;
        a.StoreFrame(Frame.Spill, Host.Rax);
        a.Lahf();
        a.SetOverflowAl();
        a.Move(Host.R14, Host.Rax);
        nint slow = JumpWithoutSystemCalls(a);
        // A target that is not canonical, or the supervisor's.
        a.Move(Host.Rax, Host.Rcx);
        a.RR(0xC1, 7, Host.Rax);
        a.Byte(47);
        nint slow2 = a.Jcc(Condition.Ne);
        a.LoadFrame(Host.Rax, Frame.OfGuest[11]);
        a.RR(0xF7, 0, Host.Rax, wide: false);
        a.Int32((int)(RFlags.Tf | RFlags.Ac));
        nint slow3 = a.Jcc(Condition.Ne);
        // What comes in from now on exchanges the table.
        a.RM(0x83, 7, Host.None, Host.None, 0, Offset(&state->Request), wide: false, gs: true);
        a.Byte(0);
        nint slow4 = a.Jcc(Condition.Ne);
        a.RR(0x81, 4, Host.Rax, wide: false);
        a.Int32((int)SysretFlags);
        a.StoreState(Offset(&state->SystemFlags), Host.Rax, wide: false);
        a.LoadState(Host.Rax, Offset(&state->Star) + 4, wide: false);
        a.RR(0xC1, 5, Host.Rax, wide: false);
        a.Byte(16);
        a.Lea(Host.R10, Host.Rax, Host.None, 0, 16, wide: false);
        a.RR(0x83, 1, Host.R10, wide: false);
        a.Byte(3);
        StoreSelector(a, &state->Cs, Host.R10);
        a.Lea(Host.R10, Host.Rax, Host.None, 0, 8, wide: false);
        a.RR(0x83, 1, Host.R10, wide: false);
        a.Byte(3);
        StoreSelector(a, &state->Ss, Host.R10);
        StoreFlat(a, FlatCode | User, FlatStack | User);
        StoreConstant(a, Offset(&state->Cpl), 3);
        a.Constant(Host.Rax, Interpreter.UserModeKey);
        a.StoreState(Offset(&state->ModeKey), Host.Rax);
        EmitSelectSet(a, Interpreter.UserSet, Host.Rax);
        // The status flags from R11, by way of ECX, whose value R10 keeps.
        a.Move(Host.R10, Host.Rcx);
        a.LoadFrame(Host.Rcx, Frame.OfGuest[11]);
        RestoreFlags(a);
        a.Move(Host.Rcx, Host.R10);
        a.LoadFrame(Host.Rax, Frame.Spill);
        a.RM(0xFF, 4, Host.None, Host.None, 0, Offset(&state->UserEntry), wide: false, gs: true);
        a.Bind(slow);
        a.Bind(slow2);
        a.Bind(slow3);
        a.Bind(slow4);
        a.Move(Host.Rax, Host.R14);
        a.RestoreOverflow();
        a.Sahf();
        a.LoadFrame(Host.Rax, Frame.Spill);
        a.Jmp(exit[VectorLevel.None]);
        return start;
    }

    private nint EmitUserEntry(HostAssembler a, int level)
    {
        nint start = a.Here;
        if (level >= VectorLevel.Xmm)
            EmitLoadVectors(a, level);
        a.Move(Host.R10, Host.Rcx);
        EmitTableJump(a, Interpreter.UserSet + (3 * level));
        return start;
    }

    /// <summary>Another TLB set comes into force.</summary>
    public void EmitSelectSet(HostAssembler a, int set, int scratch)
    {
        StoreConstant(a, Offset(&state->TlbSet), set);
        a.LoadState(scratch, Offset(&state->TlbSets));
        a.Lea(scratch, scratch, Host.None, 0, set * Interpreter.TlbEntries * sizeof(TlbEntry));
        a.StoreState(Offset(&state->Tlb), scratch);
    }

    // To the address in R10, with no branch to blame if it is not canonical.
    private void EmitTableJump(HostAssembler a, int variant)
    {
        a.RM(0xC7, 0, Host.Rsp, Host.None, 0, Frame.IndirectSource);
        a.Int32((int)CodeCache.MissRecord);
        a.LoadState(Host.R14, Offset(&state->JumpTable[variant]));
        CodeCache.EmitTableIndex(a);
        a.RM(0xFF, 4, Host.R14, Host.R11, 3, 0, wide: false);
    }

    private nint JumpWithoutSystemCalls(HostAssembler a)
    {
        a.RM(0xF6, 0, Host.None, Host.None, 0, Offset(&state->Efer), wide: false, gs: true);
        a.Byte((int)Efer.Sce);
        return a.Jcc(Condition.E);
    }

    // The host's status flags from RFLAGS in ECX. Uses RAX.
    private static void RestoreFlags(HostAssembler a)
    {
        a.RR(0x8B, Host.Rax, Host.Rcx, wide: false);
        a.RR(0xC1, 5, Host.Rax, wide: false);
        a.Byte(11);
        a.RR(0x83, 4, Host.Rax, wide: false);
        a.Byte(1);
        // mov ah, cl
        a.Byte(0x88);
        a.Byte(0xCC);
        a.RestoreOverflow();
        a.Sahf();
    }

    // movzx eax, ah
    private static void MoveFromAh(HostAssembler a)
    {
        a.Byte(0x0F);
        a.Byte(0xB6);
        a.Byte(0xC4);
    }

    private void StoreSelector(HostAssembler a, SegmentRegister* segment, int register)
    {
        a.Byte(0x66);
        a.StoreState(Offset(&segment->Selector), register, wide: false);
    }

    // CS and SS, but for their selectors. Uses RAX.
    private void StoreFlat(HostAssembler a, ulong code, ulong stack)
    {
        a.Constant(Host.Rax, 0);
        a.StoreState(Offset(&state->Cs.Base), Host.Rax);
        a.StoreState(Offset(&state->Ss.Base), Host.Rax);
        a.Constant(Host.Rax, code);
        a.StoreState(Offset(&state->Cs.Limit), Host.Rax);
        a.Constant(Host.Rax, stack);
        a.StoreState(Offset(&state->Ss.Limit), Host.Rax);
    }

    private static void StoreConstant(HostAssembler a, int offset, int value)
    {
        a.RM(0xC7, 0, Host.None, Host.None, 0, offset, wide: false, gs: true);
        a.Int32(value);
    }
}
