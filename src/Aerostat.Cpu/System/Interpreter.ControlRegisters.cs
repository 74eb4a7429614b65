using Aerostat.X86;

namespace Aerostat.Cpu;

/// <content>What writing CR0, CR4 and EFER checks and causes (Intel SDM vol. 3 sections 2.5 and 5.1).</content>
internal sealed unsafe partial class Interpreter
{
    private const ulong Cr0Known = Cr0.Pe | Cr0.Mp | Cr0.Em | Cr0.Ts | Cr0.Et | Cr0.Ne | Cr0.Wp | Cr0.Am | Cr0.Nw | Cr0.Cd | Cr0.Pg;
    private const ulong Cr4Paging = Cr4.Pse | Cr4.Pae | Cr4.Pge | Cr4.La57 | Cr4.Pcide | Cr4.Smep | Cr4.Smap | Cr4.Pke | Cr4.Pks | Cr4.LamSup;

    private ProcessorModel? model;

    /// <summary>What the CPUID table means for control registers and instructions.</summary>
    internal ProcessorModel Model => model ??= new ProcessorModel(Cpuid);

    /// <summary>
    /// Whether a register that holds an address takes this value: what counts is the width that the processor has, not the one that
    /// CR4.LA57 selects (Intel SDM vol. 1 section 3.3.7.1).
    /// </summary>
    internal bool IsLoadable(ulong linear)
    {
        int unused = 64 - Model.LinearBits;
        return (ulong)((long)(linear << unused) >> unused) == linear;
    }

    internal Outcome SetCr0(CpuState* s, ulong value)
    {
        if (value >> 32 != 0)
            return RaiseGp();
        value = (value & Cr0Known) | Cr0.Et;
        if ((value & (Cr0.Nw | Cr0.Cd)) == Cr0.Nw || (value & (Cr0.Pg | Cr0.Pe)) == Cr0.Pg)
            return RaiseGp();
        ulong changed = value ^ s->Cr0;
        if ((changed & Cr0.Pg) != 0)
        {
            if ((value & Cr0.Pg) != 0)
            {
                if ((s->Efer & Efer.Lme) != 0)
                {
                    // A processor enters IA-32e mode from 32-bit paging-off code with PAE set (Intel SDM vol. 3 section 11.8.5).
                    if ((s->Cr4 & Cr4.Pae) == 0 || (s->Cs.Attributes & SegmentRegister.L) != 0)
                        return RaiseGp();
                    s->Efer |= Efer.Lma;
                }
            }
            else
            {
                if ((s->Cr4 & Cr4.Pcide) != 0 || s->Bitness == 64)
                    return RaiseGp();
                s->Efer &= ~Efer.Lma;
            }
        }
        s->Cr0 = value;
        if ((changed & (Cr0.Pe | Cr0.Pg | Cr0.Wp)) != 0)
            FlushTlb();
        if ((changed & (Cr0.Pe | Cr0.Pg | Cr0.Wp | Cr0.Am)) != 0)
            UpdateMode();
        return Outcome.Stop;
    }

    internal Outcome SetCr4(CpuState* s, ulong value)
    {
        if ((value & ~Model.Cr4Mask) != 0)
            return RaiseGp();
        ulong changed = value ^ s->Cr4;
        if (IsLongMode(s))
        {
            if ((value & Cr4.Pae) == 0 || (changed & Cr4.La57) != 0)
                return RaiseGp();
        }
        else if ((value & Cr4.Pcide) != 0)
        {
            return RaiseGp();
        }
        if ((changed & value & Cr4.Pcide) != 0 && (s->Cr3 & 0xFFF) != 0)
            return RaiseGp();
        s->Cr4 = value;
        if ((changed & Cr4.Pcide) != 0)
            ResetPcids();
        if ((value & Cr4.LamSup) != 0)
            NoteMasking();
        if ((changed & Cr4Paging) != 0)
            FlushTlb();
        UpdateMode();
        return Outcome.Stop;
    }

    /// <summary>WRMSR to EFER.</summary>
    internal bool SetEfer(CpuState* s, ulong value)
    {
        // LMA is read-only: what is written to it does not count.
        value = (value & ~Efer.Lma) | (s->Efer & Efer.Lma);
        if ((value & ~Model.EferMask) != 0)
            return false;
        ulong changed = value ^ s->Efer;
        if ((changed & Efer.Lme) != 0 && (s->Cr0 & Cr0.Pg) != 0)
            return false;
        s->Efer = value;
        if ((changed & Efer.Nxe) != 0)
            FlushTlb();
        return true;
    }

    /// <summary>The part of UpdateMode that follows RFLAGS.AC at privilege level 0: whether user pages are within reach under SMAP.</summary>
    internal void UpdateKernelAccess(CpuState* s)
    {
        s->TlbSet = (debug & (DataBreakpoints | HostWatch)) != 0 ? EmptySet
            : (s->Cr4 & Cr4.Smap) != 0 && (s->SystemFlags & RFlags.Ac) == 0 ? StrictSet : SupervisorSet;
        s->Tlb = tlbSets + (s->TlbSet * TlbEntries);
    }

    /// <summary>Checks common to all MOV DR; maps DR4 and DR5 to DR6 and DR7. False: a fault is recorded.</summary>
    internal bool CheckDebugAccess(CpuState* s, ref int n)
    {
        if (s->Cpl != 0)
        {
            RaiseGp();
            return false;
        }
        if (n is 4 or 5)
        {
            if ((s->Cr4 & Cr4.De) != 0)
            {
                RaiseUd();
                return false;
            }
            n += 2;
        }
        if ((s->Dr[7] & Dr7GeneralDetect) != 0)
        {
            s->Dr[6] |= Dr6GeneralDetect;
            raisedGeneralDetect = true;
            Raise(Vector.Debug);
            return false;
        }
        return true;
    }

    /// <summary>DR6 with its fixed bits; RTM and bus-lock detection do not exist, so their bits read as one.</summary>
    internal static ulong FixDr6(ulong value) => (value & 0xE00F) | 0xFFFF_0FF0;

    internal static ulong FixDr7(ulong value) => (value & 0xFFFF_23FF) | 0x400;
}
