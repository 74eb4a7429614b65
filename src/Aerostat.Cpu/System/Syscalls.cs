using Aerostat.X86;
using Iced.Intel;

namespace Aerostat.Cpu;

/// <summary>SYSCALL, SYSRET, SYSENTER, SYSEXIT and SWAPGS.</summary>
internal static unsafe class Syscalls
{
    // SYSRET takes these from R11 (Intel SDM vol. 2B): RF and VM are cleared.
    private const uint SysretFlags = 0x3C7FD7;

    internal static bool Bind(in Instruction i, MicroOp* op)
    {
        switch (i.Code)
        {
            case Code.Syscall:
                op->Handler = &Syscall;
                return true;
            case Code.Sysretd:
                op->Handler = &Sysret32;
                return true;
            case Code.Sysretq:
                op->Handler = &Sysret64;
                return true;
            case Code.Sysenter:
                op->Handler = &Sysenter;
                return true;
            case Code.Sysexitd:
                op->Handler = &Sysexit32;
                return true;
            case Code.Sysexitq:
                op->Handler = &Sysexit64;
                return true;
            case Code.Swapgs:
                op->Handler = &Swapgs;
                return true;
            default:
                return false;
        }
    }

    private static Outcome Syscall(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if ((s->Efer & Efer.Sce) == 0)
            return cpu.RaiseUd();
        ulong next = Interpreter.NextRip(s, op);
        if (s->Bitness != 64)
            return SyscallLegacy(cpu, s, next);
        uint flags = CpuStateExtensions.GetRflags(s);
        s->Gpr[1] = next;
        s->Gpr[11] = flags & ~RFlags.Rf;
        s->Rip = s->Lstar;
        SetFlags(s, flags & ~(uint)s->Fmask & ~RFlags.Rf);
        Enter(cpu, s, s->Star >> 32, is64: true);
        return Outcome.Jump;
    }

    // Outside 64-bit code only AMD processors have SYSCALL (AMD APM vol. 3).
    private static Outcome SyscallLegacy(Interpreter cpu, CpuState* s, ulong next)
    {
        if (cpu.Model.Vendor != Vendor.Amd || !Interpreter.IsProtected(s))
            return cpu.RaiseUd();
        uint flags = CpuStateExtensions.GetRflags(s);
        s->Gpr[1] = (uint)next;
        if (Interpreter.IsLongMode(s))
        {
            s->Gpr[11] = flags & ~RFlags.Rf;
            s->Rip = s->Cstar;
            SetFlags(s, flags & ~(uint)s->Fmask & ~RFlags.Rf);
            Enter(cpu, s, s->Star >> 32, is64: true);
        }
        else
        {
            s->Rip = (uint)s->Star;
            SetFlags(s, flags & ~(RFlags.If | RFlags.Rf | RFlags.Vm));
            Enter(cpu, s, s->Star >> 32, is64: false);
        }
        return Outcome.Jump;
    }

    // The trap of single-stepping follows from TF as it is at the end of SYSCALL and SYSRET (Intel SDM vol. 3 section 7.8.1).
    private static void SetFlags(CpuState* s, uint flags)
    {
        if ((flags & RFlags.Tf) != 0)
            s->PendingDebug |= Interpreter.Dr6SingleStep;
        CpuStateExtensions.SetStatusFlags(s, flags);
        s->SystemFlags = flags & ~(RFlags.Status | RFlags.Fixed1);
    }

    private static void Enter(Interpreter cpu, CpuState* s, ulong selector, bool is64)
    {
        selector &= 0xFFFC;
        s->Cpl = 0;
        Interpreter.SetFlatCode(s, selector, 0, is64);
        Interpreter.SetFlatStack(s, selector + 8, 0);
        cpu.UpdateMode();
    }

    private static Outcome Sysret64(Interpreter cpu, CpuState* s, MicroOp* op) => Sysret(cpu, s, to64: true);

    private static Outcome Sysret32(Interpreter cpu, CpuState* s, MicroOp* op) => Sysret(cpu, s, to64: false);

    private static Outcome Sysret(Interpreter cpu, CpuState* s, bool to64)
    {
        bool amd = cpu.Model.Vendor == Vendor.Amd;
        if ((s->Efer & Efer.Sce) == 0 || (s->Bitness != 64 && !(amd && Interpreter.IsProtected(s))))
            return cpu.RaiseUd();
        // AMD loads a non-canonical RIP and faults at privilege level 3 instead.
        if (s->Cpl != 0 || (to64 && !amd && !Interpreter.IsCanonical(s, s->Gpr[1])))
            return cpu.RaiseGp();
        ulong selector = s->Star >> 48;
        s->Cpl = 3;
        if (Interpreter.IsLongMode(s))
            SetFlags(s, (uint)s->Gpr[11] & SysretFlags);
        else
            s->SystemFlags |= RFlags.If;
        s->Rip = to64 ? s->Gpr[1] : (uint)s->Gpr[1];
        Interpreter.SetFlatCode(s, (selector + (to64 ? 16u : 0)) | 3, 3, to64);
        if (amd)
        {
            // Only the selector changes; base, limit and attributes stay (AMD APM vol. 3, SYSRET).
            s->Ss.Selector = (ushort)(selector + 8);
            s->Ss.Attributes |= 3 << 5;
        }
        else
        {
            Interpreter.SetFlatStack(s, (selector + 8) | 3, 3);
        }
        cpu.UpdateMode();
        if ((s->SystemFlags & RFlags.Tf) != 0)
            cpu.TrapSingleStep(s);
        return Outcome.Jump;
    }

    private static Outcome Sysenter(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        bool longMode = Interpreter.IsLongMode(s);
        if (longMode && cpu.Model.Vendor == Vendor.Amd)
            return cpu.RaiseUd();
        if ((s->Cr0 & Cr0.Pe) == 0 || (s->SysenterCs & 0xFFFC) == 0)
            return cpu.RaiseGp();
        s->SystemFlags &= ~(RFlags.Vm | RFlags.If | RFlags.Rf);
        s->Gpr[4] = longMode ? s->SysenterEsp : (uint)s->SysenterEsp;
        s->Rip = longMode ? s->SysenterEip : (uint)s->SysenterEip;
        Enter(cpu, s, s->SysenterCs, longMode);
        return Outcome.Jump;
    }

    private static Outcome Sysexit64(Interpreter cpu, CpuState* s, MicroOp* op) => Sysexit(cpu, s, to64: true);

    private static Outcome Sysexit32(Interpreter cpu, CpuState* s, MicroOp* op) => Sysexit(cpu, s, to64: false);

    private static Outcome Sysexit(Interpreter cpu, CpuState* s, bool to64)
    {
        if (Interpreter.IsLongMode(s) && cpu.Model.Vendor == Vendor.Amd)
            return cpu.RaiseUd();
        if (!Interpreter.IsProtected(s) || s->Cpl != 0 || (s->SysenterCs & 0xFFFC) == 0)
            return cpu.RaiseGp();
        if (to64 && (!Interpreter.IsCanonical(s, s->Gpr[1]) || !Interpreter.IsCanonical(s, s->Gpr[2])))
            return cpu.RaiseGp();
        ulong selector = s->SysenterCs & 0xFFFC;
        s->Gpr[4] = to64 ? s->Gpr[1] : (uint)s->Gpr[1];
        s->Rip = to64 ? s->Gpr[2] : (uint)s->Gpr[2];
        s->Cpl = 3;
        Interpreter.SetFlatCode(s, (selector + (to64 ? 32u : 16)) | 3, 3, to64);
        Interpreter.SetFlatStack(s, (selector + (to64 ? 40u : 24)) | 3, 3);
        cpu.UpdateMode();
        return Outcome.Jump;
    }

    private static Outcome Swapgs(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if (s->Cpl != 0)
            return cpu.RaiseGp();
        (s->Gs.Base, s->KernelGsBase) = (s->KernelGsBase, s->Gs.Base);
        return Outcome.Next;
    }
}
