using Aerostat.Processors;
using Aerostat.X86;
using Iced.Intel;

namespace Aerostat.Cpu;

/// <summary>CPUID, RDMSR, WRMSR, time-stamp counter, XCR0 and the FS/GS base instructions.</summary>
internal static unsafe class ModelRegisters
{
    internal static bool Bind(in Instruction i, MicroOp* op, DecodeContext c)
    {
        switch (i.Code)
        {
            case Code.Cpuid:
                op->Handler = &Cpuid;
                return true;
            case Code.Rdmsr:
                op->Handler = &Rdmsr;
                return true;
            case Code.Wrmsr:
                op->Handler = &Wrmsr;
                return true;
            case Code.Rdtsc:
                op->Handler = &Rdtsc;
                return true;
            case Code.Rdtscp:
                op->Handler = &Rdtscp;
                return true;
            case Code.Rdpid_r32 or Code.Rdpid_r64:
                op->Handler = &Rdpid;
                return true;
            case Code.Rdpmc:
                op->Handler = &Rdpmc;
                return true;
            case Code.Rdpkru:
                op->Handler = &Rdpkru;
                return true;
            case Code.Wrpkru:
                op->Handler = &Wrpkru;
                return true;
            case Code.Xgetbv:
                op->Handler = &Xgetbv;
                return true;
            case Code.Xsetbv:
                op->Handler = &Xsetbv;
                return true;
            case Code.Rdfsbase_r32 or Code.Rdgsbase_r32:
                op->Src2 = (byte)(i.Code == Code.Rdfsbase_r32 ? Seg.Fs : Seg.Gs);
                op->Handler = &ReadBase<uint>;
                return true;
            case Code.Rdfsbase_r64 or Code.Rdgsbase_r64:
                op->Src2 = (byte)(i.Code == Code.Rdfsbase_r64 ? Seg.Fs : Seg.Gs);
                op->Handler = &ReadBase<ulong>;
                return true;
            case Code.Wrfsbase_r32 or Code.Wrgsbase_r32:
                op->Src2 = (byte)(i.Code == Code.Wrfsbase_r32 ? Seg.Fs : Seg.Gs);
                op->Handler = &WriteBase<uint>;
                return true;
            case Code.Wrfsbase_r64 or Code.Wrgsbase_r64:
                op->Src2 = (byte)(i.Code == Code.Wrfsbase_r64 ? Seg.Fs : Seg.Gs);
                op->Handler = &WriteBase<ulong>;
                return true;
            default:
                return false;
        }
    }

    private static Outcome Cpuid(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        CpuidResult r = cpu.AnswerCpuid(s, (uint)s->Gpr[0], (uint)s->Gpr[1]);
        s->Gpr[0] = r.Eax;
        s->Gpr[3] = r.Ebx;
        s->Gpr[1] = r.Ecx;
        s->Gpr[2] = r.Edx;
        return Outcome.Next;
    }

    private static void SetEdxEax(CpuState* s, ulong value)
    {
        s->Gpr[0] = (uint)value;
        s->Gpr[2] = value >> 32;
    }

    private static Outcome Rdmsr(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if (s->Cpl != 0 || !cpu.ReadMsr(s, (uint)s->Gpr[1], out ulong value))
            return cpu.RaiseGp();
        SetEdxEax(s, value);
        return s->Request != 0 ? Outcome.Stop : Outcome.Next;
    }

    private static Outcome Wrmsr(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        uint index = (uint)s->Gpr[1];
        if (s->Cpl != 0 || !cpu.WriteMsr(s, index, (uint)s->Gpr[0] | (s->Gpr[2] << 32)))
            return cpu.RaiseGp();
        // EFER changes how code is decoded and fetched; a write to the local APIC may have raised an interrupt.
        return index == Msr.Efer || s->Request != 0 ? Outcome.Stop : Outcome.Next;
    }

    private static bool TimeHidden(CpuState* s) => (s->Cr4 & Cr4.Tsd) != 0 && s->Cpl != 0;

    private static Outcome Rdtsc(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if (TimeHidden(s))
            return cpu.RaiseGp();
        if (!cpu.CanShowTime(s, out ulong counter))
            return Outcome.Repeat;
        SetEdxEax(s, counter);
        return Outcome.Next;
    }

    private static Outcome Rdtscp(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if (TimeHidden(s))
            return cpu.RaiseGp();
        if (!cpu.CanShowTime(s, out ulong counter))
            return Outcome.Repeat;
        SetEdxEax(s, counter);
        s->Gpr[1] = s->TscAux;
        return Outcome.Next;
    }

    private static Outcome Rdpid(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        Interpreter.WriteRegister<ulong>(s, op->Dst, s->TscAux);
        return Outcome.Next;
    }

    // There are no counters of ours, so every index is invalid but those that the machine answers.
    private static Outcome Rdpmc(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if (!cpu.Handler.ReadPseudoCounter((uint)s->Gpr[1], out ulong value))
            return cpu.RaiseGp();
        SetEdxEax(s, value);
        return s->Request != 0 ? Outcome.Stop : Outcome.Next;
    }

    private static Outcome Xgetbv(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if ((s->Cr4 & Cr4.OsXsave) == 0)
            return cpu.RaiseUd();
        uint index = (uint)s->Gpr[1];
        if (index > 1 || (index == 1 && !cpu.Model.HasXgetbv1))
            return cpu.RaiseGp();
        SetEdxEax(s, index == 0 ? s->Xcr0 : s->Xcr0 & XsaveHandlers.InUse(s));
        return Outcome.Next;
    }

    private static Outcome Xsetbv(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if ((s->Cr4 & Cr4.OsXsave) == 0)
            return cpu.RaiseUd();
        ulong value = (uint)s->Gpr[0] | (s->Gpr[2] << 32);
        if (s->Cpl != 0 || (uint)s->Gpr[1] != 0 || (value & ExtendedState.X87) == 0 || (value & ~cpu.Model.Xcr0Mask) != 0
            || (value & (ExtendedState.Avx | ExtendedState.Sse)) == ExtendedState.Avx)
            return cpu.RaiseGp();
        s->Xcr0 = value;
        return Outcome.Stop;
    }

    private static Outcome Rdpkru(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if ((s->Cr4 & Cr4.Pke) == 0)
            return cpu.RaiseUd();
        if ((uint)s->Gpr[1] != 0)
            return cpu.RaiseGp();
        SetEdxEax(s, *(uint*)(s->Xsave + CpuState.PkruOffset));
        return Outcome.Next;
    }

    private static Outcome Wrpkru(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if ((s->Cr4 & Cr4.Pke) == 0)
            return cpu.RaiseUd();
        if ((uint)s->Gpr[1] != 0 || (uint)s->Gpr[2] != 0)
            return cpu.RaiseGp();
        var pkru = (uint*)(s->Xsave + CpuState.PkruOffset);
        if (*pkru == (uint)s->Gpr[0])
            return Outcome.Next;
        // The TLB holds rights with the key's part worked in.
        *pkru = (uint)s->Gpr[0];
        cpu.FlushTlb();
        return Outcome.Stop;
    }

    private static Outcome ReadBase<T>(Interpreter cpu, CpuState* s, MicroOp* op)
        where T : unmanaged
    {
        if ((s->Cr4 & Cr4.FsGsBase) == 0)
            return cpu.RaiseUd();
        Interpreter.WriteRegister<T>(s, op->Dst, CpuStateExtensions.Segment(s, op->Src2)->Base);
        return Outcome.Next;
    }

    private static Outcome WriteBase<T>(Interpreter cpu, CpuState* s, MicroOp* op)
        where T : unmanaged
    {
        if ((s->Cr4 & Cr4.FsGsBase) == 0)
            return cpu.RaiseUd();
        ulong value = Interpreter.ReadRegister<T>(s, op->Dst);
        if (!cpu.IsLoadable(value))
            return cpu.RaiseGp();
        CpuStateExtensions.Segment(s, op->Src2)->Base = value;
        return Outcome.Next;
    }
}
