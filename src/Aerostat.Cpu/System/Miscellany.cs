using Aerostat.Processors;
using Aerostat.X86;
using Iced.Intel;

namespace Aerostat.Cpu;

/// <summary>Interrupt flag, PUSHF and POPF, HLT, TLB and cache control, and instructions that exist only to be refused.</summary>
internal static unsafe class Miscellany
{
    internal static bool Bind(in Instruction i, MicroOp* op, DecodeContext c)
    {
        switch (i.Code)
        {
            case Code.Cli:
                op->Handler = &Cli;
                return true;
            case Code.Sti:
                op->Handler = &Sti;
                return true;
            case Code.Clac:
                op->Handler = &Clac;
                return true;
            case Code.Stac:
                op->Handler = &Stac;
                return true;
            case Code.Pushfw:
                op->Handler = &Pushf<ushort>;
                return true;
            case Code.Pushfd:
                op->Handler = &Pushf<uint>;
                return true;
            case Code.Pushfq:
                op->Handler = &Pushf<ulong>;
                return true;
            case Code.Popfw:
                op->Handler = &Popf<ushort>;
                return true;
            case Code.Popfd:
                op->Handler = &Popf<uint>;
                return true;
            case Code.Popfq:
                op->Handler = &Popf<ulong>;
                return true;
            case Code.Hlt:
                op->Handler = &Hlt;
                return true;
            case Code.Invlpg_m:
                op->Handler = &Invlpg;
                return true;
            case Code.Invpcid_r32_m128 or Code.Invpcid_r64_m128:
                op->Handler = c.Bitness == 64 ? &Invpcid<ulong> : &Invpcid<uint>;
                return true;
            default:
                break;
        }
        switch (i.Mnemonic)
        {
            case Mnemonic.Wbinvd or Mnemonic.Invd or Mnemonic.Wbnoinvd:
                op->Handler = &PrivilegedNothing;
                return true;
            case Mnemonic.Monitor:
                op->Handler = &Monitor;
                return true;
            case Mnemonic.Mwait:
                op->Handler = &Mwait;
                return true;
            case Mnemonic.Vmcall or Mnemonic.Vmmcall:
                op->Handler = &Hypercall;
                return true;
            case Mnemonic.Ud0 or Mnemonic.Ud1 or Mnemonic.Ud2 or Mnemonic.Rsm or Mnemonic.Getsec:
                op->Handler = &BlockDecoder.Undefined;
                return true;
            case Mnemonic.Endbr32 or Mnemonic.Endbr64 or Mnemonic.Rdsspd or Mnemonic.Rdsspq or Mnemonic.Cldemote:
                // Without CET and CLDEMOTE these encodings are NOPs.
                op->Handler = &Nothing;
                return true;
            default:
                return false;
        }
    }

    private static Outcome Nothing(Interpreter cpu, CpuState* s, MicroOp* op) => Outcome.Next;

    private static Outcome PrivilegedNothing(Interpreter cpu, CpuState* s, MicroOp* op) => s->Cpl != 0 ? cpu.RaiseGp() : Outcome.Next;

    private static int Iopl(CpuState* s) => (int)((s->SystemFlags & RFlags.Iopl) >> 12);

    // CR4.PVI and VME (VIF in place of IF) are in no model.
    private static Outcome Cli(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if (s->Cpl > Iopl(s))
            return cpu.RaiseGp();
        s->SystemFlags &= ~RFlags.If;
        return Outcome.Next;
    }

    private static Outcome Sti(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if (s->Cpl > Iopl(s))
            return cpu.RaiseGp();
        if ((s->SystemFlags & RFlags.If) != 0)
            return Outcome.Next;
        s->SystemFlags |= RFlags.If;
        s->Shadow = 1;
        return Outcome.Stop;
    }

    private static Outcome Clac(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if (s->Cpl != 0)
            return cpu.RaiseUd();
        s->SystemFlags &= ~RFlags.Ac;
        cpu.UpdateKernelAccess(s);
        return Outcome.Next;
    }

    private static Outcome Stac(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if (s->Cpl != 0)
            return cpu.RaiseUd();
        s->SystemFlags |= RFlags.Ac;
        cpu.UpdateKernelAccess(s);
        return Outcome.Next;
    }

    private static Outcome Pushf<T>(Interpreter cpu, CpuState* s, MicroOp* op)
        where T : unmanaged => Interpreter.IsVm86Restricted(s) ? cpu.RaiseGp() : cpu.Push<T>(s, CpuStateExtensions.GetRflags(s) & ~(RFlags.Rf | RFlags.Vm));

    private static Outcome Popf<T>(Interpreter cpu, CpuState* s, MicroOp* op)
        where T : unmanaged
    {
        if (Interpreter.IsVm86Restricted(s))
            return cpu.RaiseGp();
        if (!cpu.Pop<T>(s, out ulong value))
            return Outcome.Fault;
        uint mask = RFlags.Tf | RFlags.Df | RFlags.Nt;
        if (sizeof(T) > 2)
            mask |= RFlags.Ac | RFlags.Id;
        if (s->Cpl <= Iopl(s))
            mask |= RFlags.If;
        if (s->Cpl == 0)
            mask |= RFlags.Iopl;
        CpuStateExtensions.SetStatusFlags(s, (uint)value);
        uint before = s->SystemFlags;
        uint after = (before & ~mask) | ((uint)value & mask);
        if (sizeof(T) > 2)
            after &= ~RFlags.Rf;
        s->SystemFlags = after;
        uint changed = before ^ after;
        if ((changed & RFlags.Ac) != 0)
            cpu.UpdateMode();
        // Leave the block to single-step, or to look at an interrupt that has become possible.
        return (changed & RFlags.Tf) != 0 || ((changed & after & RFlags.If) != 0 && s->Request != 0) ? Outcome.Stop : Outcome.Next;
    }

    private static Outcome Hlt(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if (s->Cpl != 0)
            return cpu.RaiseGp();
        s->Activity = (int)ActivityState.Halted;
        cpu.PendingExit = new ProcessorExit(ExitReason.Halted);
        return Outcome.Exit;
    }

    private static Outcome Invlpg(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if (s->Cpl != 0)
            return cpu.RaiseGp();
        ulong offset = Interpreter.EffectiveAddress(s, op), b = CpuStateExtensions.Segment(s, op->Segment)->Base;
        ulong linear = s->Bitness != 64 ? (uint)(offset + b) : op->Segment >= Seg.Fs ? offset + b : offset;
        // A non-canonical address is no error: there is nothing to invalidate.
        if (s->Bitness != 64 || Interpreter.IsCanonical(s, linear))
            cpu.InvalidatePage(linear);
        return Outcome.Stop;
    }

    private static Outcome Invpcid<T>(Interpreter cpu, CpuState* s, MicroOp* op)
        where T : unmanaged
    {
        if (s->Cpl != 0)
            return cpu.RaiseGp();
        ulong type = Interpreter.ReadRegister<T>(s, op->Dst);
        ulong* descriptor = stackalloc ulong[2];
        // SAFETY: 16 bytes into two elements.
        if (!cpu.LoadBytes(s, cpu.Linear(s, op, 16), op->Segment, (byte*)descriptor, 16))
            return Outcome.Fault;
        ulong pcid = descriptor[0];
        if (type > 3 || (type < 2 && (pcid >> 12 != 0 || (pcid != 0 && (s->Cr4 & Cr4.Pcide) == 0))))
            return cpu.RaiseGp();
        if (type == 0 && !cpu.IsLoadable(descriptor[1]))
            return cpu.RaiseGp();
        // InvalidatePage looks into every PCID's translations; type 3 may drop global ones as well.
        if (type == 0)
            cpu.InvalidatePage(descriptor[1]);
        else if (type == 1)
            cpu.FlushPcid((int)pcid);
        else
            cpu.FlushTlb();
        return Outcome.Stop;
    }

    // MONITOR arms nothing and MWAIT returns at once, which the architecture allows at any time.
    private static Outcome Monitor(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if (s->Cpl != 0)
            return cpu.RaiseUd();
        if ((uint)s->Gpr[1] != 0)
            return cpu.RaiseGp();
        ulong mask = s->Bitness == 64 ? ulong.MaxValue : s->Bitness == 32 ? uint.MaxValue : 0xFFFFu;
        return cpu.Load<byte>(s, cpu.SegmentLinear(s, Seg.Ds, s->Gpr[0] & mask, 1, write: false), Seg.Ds, out _) ? Outcome.Next : Outcome.Fault;
    }

    private static Outcome Mwait(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if (s->Cpl != 0)
            return cpu.RaiseUd();
        return (uint)s->Gpr[1] > 1 ? cpu.RaiseGp() : Outcome.Stop;
    }

    private static Outcome Hypercall(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if (s->Cpl != 0)
            return cpu.RaiseUd();
        // SAFETY: the general registers are the first 16 elements of the state.
        var registers = new Span<ulong>(s->Gpr, 16);
        s->Rip = s->Gpr[17] + op->Offset;
        return cpu.Handler.Hypercall(cpu.Owner, registers) ? Outcome.Stop : cpu.RaiseUd();
    }
}
