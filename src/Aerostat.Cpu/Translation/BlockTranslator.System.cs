using Aerostat.X86;
using Iced.Intel;

namespace Aerostat.Cpu;

/// <content>Emission of what kernels are full of: interrupt flag, flags on the stack, segment registers, bit strings.</content>
internal sealed unsafe partial class BlockTranslator
{
    private static bool MustBeAligned(in Instruction i, Treatment t) =>
        t == Treatment.Vector ? Whitelist.MustBeAligned(i, i.MemorySize.GetSize()) : i.Mnemonic == Mnemonic.Cmpxchg16b;

    // Flags that code for instruction k must keep although the instruction has nothing to do with them.
    private int LiveBehind(int k) => k + 1 < count ? live[k + 1] : FlagEffects.All;

    /// <summary>The pushed value is the host's status flags with the guest's other flags; RF and VM are clear while generated code runs.</summary>
    private bool EmitPushFlags(in Instruction i, int k, nint start)
    {
        int first = cache.RecordCount, behind = LiveBehind(k);
        (int pointer, int distance) = Reach(k, start, 8, write: true, aligned: false, -8, stack: true);
        // pushfq; pop r11
        a.Byte(0x9C);
        a.Byte(0x41);
        a.Byte(0x5B);
        EmitSaveFlags(behind, spillToMemory: true);
        a.RR(0x81, 4, Host.R11, wide: false);
        a.Int32((int)RFlags.Status);
        a.RM(0x0B, Host.R11, Host.None, Host.None, 0, Offset(&state->SystemFlags), wide: false, gs: true);
        a.RR(0x83, 1, Host.R11, wide: false);
        a.Byte((int)RFlags.Fixed1);
        a.RM(0x89, Host.R11, pointer, Host.None, 0, distance);
        EmitRestoreFlags(behind, spillToMemory: true);
        a.Lea(Host.R15, Host.R15, Host.None, 0, -8);
        SetNext(first, k);
        return true;
    }

    /// <summary>
    /// With nothing requested, STI has no shadow to keep: what is requested from now on is looked at after the next instruction at the earliest, since
    /// that one is in the same block and the dispatcher does not look at requests before it has been executed. With a request waiting (masked until now,
    /// perhaps) the interpreter does it.
    /// </summary>
    private bool EmitSystemFlag(in Instruction i, int k)
    {
        if (i.Code == Code.Sti && (k + 1 >= count || treatments[k + 1] == Treatment.Vector))
            return false;
        int first = cache.RecordCount, behind = LiveBehind(k), offset = Offset(&state->SystemFlags);
        if (i.Code == Code.Sti)
        {
            int record = cache.AddRecord(new ExitRecord { Kind = ExitKind.Interpret, Rip = i.IP });
            a.LoadState(Host.R11, Offset(&state->Request), wide: false);
            if (behind == 0)
            {
                a.RR(0x85, Host.R11, Host.R11, wide: false);
                cold.Add(new Cold { Kind = ColdKind.Leave, Site = a.Jcc(Condition.Ne), Record = record });
            }
            else
            {
                // Without touching flags: JRCXZ over the exit.
                a.RR(0x87, Host.R11, Host.Rcx);
                a.Byte(0xE3);
                a.Byte(3 + 5);
                a.RR(0x87, Host.R11, Host.Rcx);
                cold.Add(new Cold { Kind = ColdKind.Leave, Site = a.Jmp(), Record = record });
                a.Move(Host.Rcx, Host.R11);
            }
        }
        EmitSaveFlags(behind, spillToMemory: true);
        uint flag = i.Code switch { Code.Sti or Code.Cli => RFlags.If, Code.Stac or Code.Clac => RFlags.Ac, _ => RFlags.Df };
        bool set = i.Code is Code.Sti or Code.Stac;
        a.RM(0x81, set ? 1 : 4, Host.None, Host.None, 0, offset, wide: false, gs: true);
        a.Int32((int)(set ? flag : ~flag));
        EmitRestoreFlags(behind, spillToMemory: true);
        SetNext(first, k);
        return true;
    }

    /// <summary>The selector, zero-extended to 32 or 64 bits.</summary>
    private bool EmitReadSegment(in Instruction i)
    {
        int guest = GuestNumber(i.Op0Register), home = Homes.OfGuest[guest];
        SegmentRegister* segment = &state->Es + (i.Op1Register - Register.ES);
        a.RM(0x0FB7, home != Host.None ? home : Host.R11, Host.None, Host.None, 0, Offset(&segment->Selector), wide: false, gs: true);
        if (home == Host.None)
            Assign(guest, Host.R11);
        return true;
    }

    /// <summary>What this variant makes of instructions that depend on privilege; generated code has privilege levels 0 and 3 only.</summary>
    private Treatment TreatPrivileged(in Instruction i, Treatment t)
    {
        int set = variant % 3;
        switch (t)
        {
            case Treatment.SwapGs when set == Interpreter.UserSet:
            case Treatment.SystemCall when set != Interpreter.UserSet:
            case Treatment.SystemReturn when set == Interpreter.UserSet || variant / 3 != VectorLevel.None || !cache.TranslatesSysret:
            case Treatment.ReadControl when set == Interpreter.UserSet || i.Op1Register is not (Register.CR0 or Register.CR2 or Register.CR3 or Register.CR4):
            case Treatment.AccessFlag when set == Interpreter.UserSet:
                return Treatment.Interpret;
            case Treatment.AccessFlag when cache.Smap:
                // In the strict set AC is clear, in the other it is set.
                return set == Interpreter.StrictSet == (i.Code == Code.Stac) ? Treatment.AccessSwitch : Treatment.Nothing;
            default:
                return t;
        }
    }

    /// <summary>With CR4.SMAP, AC decides which TLB set is in force: on to code of the other variant. Flags pass.</summary>
    private bool EmitAccessSwitch(in Instruction i)
    {
        bool set = i.Code == Code.Stac;
        int to = set ? Interpreter.SupervisorSet : Interpreter.StrictSet, other = variant - (variant % 3) + to;
        a.LoadState(Host.R11, Offset(&state->SystemFlags), wide: false);
        a.Lea(Host.R11, Host.R11, Host.None, 0, set ? (int)RFlags.Ac : -(int)RFlags.Ac, wide: false);
        a.StoreState(Offset(&state->SystemFlags), Host.R11, wide: false);
        cache.Thunks.EmitSelectSet(a, to, Host.R11);
        if (IsLinkable(i.NextIP))
            EmitLink(a.Jmp(), i.NextIP, other);
        else
            EmitTableJump(i.NextIP, other);
        return true;
    }

    private bool EmitSystemCall(in Instruction i)
    {
        a.Constant(Host.R10, i.NextIP);
        a.Constant(Host.R11, (uint)cache.AddRecord(new ExitRecord { Kind = ExitKind.Interpret, Rip = i.IP }));
        a.Jmp(cache.Thunks.SystemCall(VectorLevel.Of(variant)));
        return true;
    }

    private bool EmitSystemReturn(in Instruction i)
    {
        a.Constant(Host.R11, (uint)cache.AddRecord(new ExitRecord { Kind = ExitKind.Interpret, Rip = i.IP }));
        a.Jmp(cache.Thunks.SystemReturn);
        return true;
    }

    private bool EmitReadControl(in Instruction i)
    {
        int guest = GuestNumber(i.Op0Register), home = Homes.OfGuest[guest];
        ulong* register = i.Op1Register switch
        {
            Register.CR0 => &state->Cr0,
            Register.CR2 => &state->Cr2,
            Register.CR3 => &state->Cr3,
            _ => &state->Cr4,
        };
        a.LoadState(home != Host.None ? home : Host.R11, Offset(register));
        if (home == Host.None)
            Assign(guest, Host.R11);
        return true;
    }

    /// <summary>CPUID by leaf and sub-leaf from <see cref="CpuState.CpuidCache"/>; what is not there is the interpreter's.</summary>
    private bool EmitCpuid(in Instruction i, int k)
    {
        const int EntryShift = 5;
        int first = cache.RecordCount, flags = live[k], offset = Offset(&state->CpuidCache[0]);
        int record = cache.AddRecord(new ExitRecord { Kind = ExitKind.Interpret, Rip = i.IP });
        a.Move(Host.R10, Host.Rax);
        EmitSaveFlags(flags, spillToMemory: true);
        a.RR(0x8B, Host.R11, Host.R10, wide: false);
        a.RR(0x83, 4, Host.R11, wide: false);
        a.Byte(CpuState.CpuidCacheEntries - 1);
        a.RR(0xC1, 4, Host.R11, wide: false);
        a.Byte(EntryShift);
        a.RM(0x3B, Host.R10, Host.R11, Host.None, 0, offset, wide: false, gs: true);
        nint otherLeaf = a.Jcc(Condition.Ne);
        a.RM(0x3B, Host.Rcx, Host.R11, Host.None, 0, offset + 4, wide: false, gs: true);
        nint otherSubleaf = a.Jcc(Condition.Ne);
        EmitRestoreFlags(flags, spillToMemory: true);
        a.RM(0x8B, Host.Rax, Host.R11, Host.None, 0, offset + 8, wide: false, gs: true);
        a.RM(0x8B, Host.Rbx, Host.R11, Host.None, 0, offset + 12, wide: false, gs: true);
        a.RM(0x8B, Host.Rcx, Host.R11, Host.None, 0, offset + 16, wide: false, gs: true);
        a.RM(0x8B, Host.Rdx, Host.R11, Host.None, 0, offset + 20, wide: false, gs: true);
        nint done = a.Jmp();
        a.Bind(otherLeaf);
        a.Bind(otherSubleaf);
        EmitRestoreFlags(flags, spillToMemory: true);
        EmitExit(record);
        a.Bind(done);
        SetNext(first, k);
        return true;
    }

    /// <summary>What the thunk has left to do is the interpreter's.</summary>
    private bool EmitRepeat(in Instruction i, int k)
    {
        int first = cache.RecordCount, scale = System.Numerics.BitOperations.Log2((uint)i.MemorySize.GetSize());
        int record = cache.AddRecord(new ExitRecord { Kind = ExitKind.Interpret, Rip = i.IP });
        a.PointTo(a.Call(), cache.Thunks.Repeat(variant % 3, i.Op1Kind == OpKind.MemorySegRSI, scale));
        // jrcxz over the way out
        a.Byte(0xE3);
        a.Byte(5);
        cold.Add(new Cold { Kind = ColdKind.Leave, Site = a.Jmp(), Record = record });
        SetNext(first, k);
        return true;
    }

    private bool EmitSwapGs()
    {
        int one = Offset(&state->Gs.Base), other = Offset(&state->KernelGsBase);
        a.LoadState(Host.R10, one);
        a.LoadState(Host.R11, other);
        a.StoreState(one, Host.R11);
        a.StoreState(other, Host.R10);
        return true;
    }

    /// <summary>
    /// The bit number reaches beyond the operand: what lies above the operand's size moves the address, and only then is the access checked. Nothing
    /// but the low bits is left for the host's instruction.
    /// </summary>
    private bool EmitBitString(in Instruction i, int k, nint start)
    {
        Register b = i.MemoryBase, x = i.MemoryIndex;
        if (b == Register.EIP || b.IsGPR32() || x.IsGPR32() || (b == Register.None && x == Register.None && i.MemoryDisplSize == 4))
            return false;
        int first = cache.RecordCount, guest = GuestNumber(i.Op1Register), size = i.MemorySize.GetSize();
        bool wide = size == 8, write = i.Mnemonic != Mnemonic.Bt;
        EmitAddress(i);
        int number = Use(guest, Host.R11);
        if (wide)
            a.Move(Host.R11, number);
        else
            a.RR(0x63, Host.R11, number);
        EmitSaveFlags(live[k], spillToMemory: true);
        // sar r11, 6 or 5
        a.RR(0xC1, 7, Host.R11);
        a.Byte(wide ? 6 : 5);
        EmitRestoreFlags(live[k], spillToMemory: true);
        a.Lea(Host.R10, Host.R10, Host.R11, wide ? 3 : 2, 0);
        EmitCheck(i.IP, start, size, write, alignment: 0, live[k], SegmentOffset(i), spillToMemory: true);
        if (!write)
        {
            a.RM(0x8B, Host.R10, Host.R10, Host.None, 0, 0, wide);
            a.RR(0x0FA3, Use(guest, Host.R11), Host.R10, wide);
        }
        else
        {
            a.Move(Host.R11, Use(guest, Host.R11));
            EmitSaveFlags(live[k], spillToMemory: true);
            a.RR(0x83, 4, Host.R11, wide: false);
            a.Byte(wide ? 63 : 31);
            EmitRestoreFlags(live[k], spillToMemory: true);
            if (i.HasLockPrefix)
                a.Byte(0xF0);
            a.RM(i.Mnemonic switch { Mnemonic.Bts => 0x0FAB, Mnemonic.Btr => 0x0FB3, _ => 0x0FBB }, Host.R11, Host.R10, Host.None, 0, 0, wide);
        }
        SetNext(first, k);
        return true;
    }
}
