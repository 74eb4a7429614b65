using Aerostat.Processors;
using Aerostat.X86;

namespace Aerostat.Cpu;

/// <content>Power-on and INIT (Intel SDM vol. 3 table 10-1).</content>
internal sealed unsafe partial class Interpreter
{
    private const ulong ResetCr0 = Cr0.Cd | Cr0.Nw | Cr0.Et;

    /// <summary>The processor's face to the machine; handed to hypercalls.</summary>
    internal IVirtualProcessor Owner { get; set; } = null!;

    /// <summary>
    /// Puts the state to its power-on or, with <paramref name="init"/>, its INIT values. INIT keeps x87 and SSE state, MSRs, the time-stamp
    /// counter and the cache bits of CR0. The caller follows with UpdateMode and FlushTlb.
    /// </summary>
    internal void ResetState(bool init)
    {
        CpuState* s = State;
        for (int i = 0; i < 18; i++)
            s->Gpr[i] = 0;
        s->Gpr[2] = Model.Signature;
        s->Rip = 0xFFF0;
        s->SystemFlags = 0;
        CpuStateExtensions.SetStatusFlags(s, 0);
        s->Cpl = 0;
        s->RmwPending = 0;
        s->Shadow = 0;
        s->NmiBlocked = 0;
        ClearCpuidCache(s);
        s->PendingDebug = 0;
        raisedGeneralDetect = false;

        SegmentRegister data = new() { Limit = 0xFFFF, Attributes = 0x93 };
        s->Es = s->Ss = s->Ds = s->Fs = s->Gs = data;
        s->Cs = new SegmentRegister { Selector = 0xF000, Base = 0xFFFF_0000, Limit = 0xFFFF, Attributes = 0x9B };
        s->Tr = new SegmentRegister { Limit = 0xFFFF, Attributes = 0x8B };
        s->Ldtr = new SegmentRegister { Limit = 0xFFFF, Attributes = 0x82 };
        s->GdtBase = s->IdtBase = 0;
        s->GdtLimit = s->IdtLimit = 0xFFFF;

        s->Cr0 = init ? (s->Cr0 & (Cr0.Cd | Cr0.Nw)) | Cr0.Et : ResetCr0;
        s->Cr2 = s->Cr3 = s->Cr4 = s->Efer = 0;
        for (int i = 0; i < 6; i++)
            s->Dr[i] = 0;
        s->Dr[6] = FixDr6(0);
        s->Dr[7] = FixDr7(0);
        s->Activity = (int)(Index == 0 ? ActivityState.Running : ActivityState.WaitForStartup);
        if (init)
            return;

        s->Xcr0 = ExtendedState.X87;
        s->SysenterCs = s->SysenterEsp = s->SysenterEip = 0;
        s->Star = s->Lstar = s->Cstar = s->Fmask = s->KernelGsBase = s->TscAux = 0;
        s->Pat = ModelRegisterFile.DefaultPat;
        registers.Reset();
        Timestamp.Restore(0, 0);
        new Span<byte>(s->Xsave, CpuState.XsaveBytes).Clear();
        // After power-on FCW is 0040H and all registers hold a valid +0.0; after FNINIT they do not.
        *(ushort*)s->Xsave = 0x40;
        s->Xsave[4] = 0xFF;
        *(uint*)(s->Xsave + CpuState.MxcsrOffset) = 0x1F80;
    }
}
