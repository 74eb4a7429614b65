using System.Runtime.InteropServices;
using Aerostat.Processors;
using Aerostat.X86;

namespace Aerostat.Cpu;

/// <content>The whole state as plain data.</content>
internal sealed unsafe partial class Interpreter
{
    private const int XsaveHeader = 512, SavedXsaveBytes = 840;
    private const uint DefaultMxcsr = 0x1F80;

    // The registers that a saved state carries in its list; FS_BASE, GS_BASE and EFER have places of their own.
    private static ReadOnlySpan<uint> SavedMsrs =>
    [
        Msr.SysenterCs, Msr.SysenterEsp, Msr.SysenterEip, Msr.Star, Msr.Lstar, Msr.Cstar, Msr.Fmask, Msr.KernelGsBase, Msr.Pat,
        Msr.SpecCtrl, Msr.Pkrs, Msr.McgStatus, Msr.MiscEnable, MsrDebugControl, Msr.TscAux, AmdHwcr, AmdDeCfg,
    ];

    internal ProcessorState GetState()
    {
        CpuState* s = State;
        var p = new ProcessorState
        {
            Rip = s->Rip,
            Rflags = CpuStateExtensions.GetRflags(s),
            Tr = Save(s->Tr),
            Ldtr = Save(s->Ldtr),
            Gdtr = new(s->GdtBase, (ushort)s->GdtLimit),
            Idtr = new(s->IdtBase, (ushort)s->IdtLimit),
            Cr0 = s->Cr0,
            Cr2 = s->Cr2,
            Cr3 = s->Cr3,
            Cr4 = s->Cr4,
            Efer = s->Efer,
            Xcr0 = s->Xcr0,
            Activity = (ActivityState)s->Activity,
            InterruptShadow = s->Shadow != 0,
            NmiBlocked = s->NmiBlocked != 0,
            NmiPending = (s->Request & (int)Request.Nmi) != 0,
            DebugShadow = s->Shadow >= MovSsShadow,
            PendingDebug = s->PendingDebug,
            SecondNmiPending = (s->Request & (int)Request.SecondNmi) != 0,
            InitPending = (s->Request & (int)Request.Init) != 0,
            StartupVector = (s->Request & (int)Request.Startup) != 0 ? (byte)startupVector : null,
            InjectedVector = (s->Request & (int)Request.Injected) != 0 ? injectedVector : null,
        };
        for (int i = 0; i < 16; i++)
            p.Gpr[i] = s->Gpr[i];
        for (int i = 0; i < 6; i++)
            p.Segments[i] = Save(*CpuStateExtensions.Segment(s, i));
        for (int i = 0; i < 8; i++)
            p.Dr[i] = s->Dr[i];
        new Span<byte>(s->Xsave, SavedXsaveBytes).CopyTo(p.Xsave);
        // The area is always current, whatever an XSAVE of the guest left in its header.
        p.Xsave.AsSpan(XsaveHeader, 64).Clear();
        BitConverter.TryWriteBytes(p.Xsave.AsSpan(XsaveHeader), Model.Xcr0Mask | ExtendedState.X87 | ExtendedState.Sse);
        foreach (uint index in SavedMsrs)
            if (ReadHeldMsr(s, index, out ulong value) || ReadHot(s, index, out value))
                p.Msrs[index] = value;
        if (Model.HasMtrr)
        {
            for (uint i = 0; i < ModelRegisterFile.VariableMtrrs * 2; i++)
                p.Msrs[Msr.MtrrPhysBase0 + i] = registers.VariableMtrrValues[i];
            for (int i = 0; i < registers.FixedMtrrs.Length; i++)
                p.Msrs[ModelRegisterFile.FixedMtrrIndexes[i]] = registers.FixedMtrrs[i];
            p.Msrs[Msr.MtrrDefType] = registers.MtrrDefaultType;
        }
        for (uint i = 0; i < registers.MachineCheckValues.Length; i++)
            if (registers.MachineCheckValues[i] != 0)
                p.Msrs[Msr.Mc0Ctl + i] = registers.MachineCheckValues[i];
        p.Msrs[Msr.Tsc] = Timestamp.Read();
        p.Msrs[Msr.TscAdjust] = (ulong)Timestamp.Adjust;
        return p;
    }

    /// <summary>
    /// Takes over a state. An MSR that is not listed has its power-on value, except the time-stamp counter, which goes on; an XSAVE component
    /// that is not in XSTATE_BV has its initial value.
    /// </summary>
    internal void SetState(ProcessorState p)
    {
        ArgumentNullException.ThrowIfNull(p);
        CpuState* s = State;
        ulong tsc = Timestamp.Read();
        long adjust = Timestamp.Adjust;
        ResetState(init: false);
        for (int i = 0; i < 16; i++)
            s->Gpr[i] = p.Gpr[i];
        s->Rip = p.Rip;
        CpuStateExtensions.SetRflags(s, (uint)p.Rflags);
        for (int i = 0; i < 6; i++)
            *CpuStateExtensions.Segment(s, i) = Restore(p.Segments[i]);
        s->Tr = Restore(p.Tr);
        s->Ldtr = Restore(p.Ldtr);
        (s->GdtBase, s->GdtLimit) = (p.Gdtr.Base, p.Gdtr.Limit);
        (s->IdtBase, s->IdtLimit) = (p.Idtr.Base, p.Idtr.Limit);
        s->Cr0 = (p.Cr0 & Cr0Known) | Cr0.Et;
        s->Cr2 = p.Cr2;
        s->Cr3 = p.Cr3 & ~(MaskBits & ~Model.Cr3Mask);
        if ((s->Cr3 & MaskBits) != 0 || (p.Cr4 & Model.Cr4Mask & Cr4.LamSup) != 0)
            NoteMasking();
        s->Cr4 = p.Cr4 & Model.Cr4Mask;
        s->Efer = p.Efer & Model.EferMask;
        s->Xcr0 = (p.Xcr0 & Model.Xcr0Mask) | ExtendedState.X87;
        for (int i = 0; i < 4; i++)
            s->Dr[i] = p.Dr[i];
        s->Dr[6] = FixDr6(p.Dr[6]);
        s->Dr[7] = FixDr7(p.Dr[7]);
        s->Cpl = (s->Cr0 & Cr0.Pe) == 0 ? 0 : (s->SystemFlags & RFlags.Vm) != 0 ? 3 : s->Ss.Dpl;
        s->Activity = (int)p.Activity;
        s->Shadow = p.DebugShadow ? MovSsShadow : p.InterruptShadow ? 1 : 0;
        s->PendingDebug = p.PendingDebug & (Dr6Breakpoints | Dr6SingleStep | Dr6TaskSwitch);
        s->NmiBlocked = p.NmiBlocked ? 1 : 0;
        startupVector = p.StartupVector ?? 0;
        injectedVector = p.InjectedVector ?? 0;
        Request events = (p.NmiPending ? Request.Nmi : 0) | (p.NmiPending && p.SecondNmiPending ? Request.SecondNmi : 0)
            | (p.InitPending ? Request.Init : 0) | (p.StartupVector is null ? 0 : Request.Startup) | (p.InjectedVector is null ? 0 : Request.Injected);
        ClearRequest((Request.Nmi | Request.SecondNmi | Request.Init | Request.Startup | Request.Injected) & ~events);
        if (events != 0)
            SetRequest(events);
        RestoreXsave(s, p.Xsave);
        foreach ((uint index, ulong value) in p.Msrs)
        {
            if (index == Msr.Tsc)
                tsc = value;
            else if (index == Msr.TscAdjust)
                adjust = (long)value;
            else if (index == Msr.KernelGsBase || ((SavedMsrs.Contains(index) || registers.ReadMtrr(index, out _) || ModelRegisterFile.IsMachineCheck(index)) && ReadHeldMsr(s, index, out _)))
                WriteMsr(s, index, value);
        }
        Timestamp.Restore(tsc, adjust);
    }

    private bool ReadHot(CpuState* s, uint index, out ulong value)
    {
        value = s->KernelGsBase;
        return index == Msr.KernelGsBase;
    }

    private static SegmentState Save(in SegmentRegister r) => new(r.Selector, r.Base, r.Limit, r.Attributes);

    private static SegmentRegister Restore(in SegmentState p) => new() { Selector = p.Selector, Base = p.Base, Limit = p.Limit, Attributes = p.Attributes & 0x1F0FF };

    private void RestoreXsave(CpuState* s, byte[] saved)
    {
        var area = new Span<byte>(s->Xsave, CpuState.XsaveBytes);
        area.Clear();
        ulong present = saved.Length >= XsaveHeader + 8 ? MemoryMarshal.Read<ulong>(saved.AsSpan(XsaveHeader)) : 0;
        *(ushort*)s->Xsave = 0x37F;
        *(uint*)(s->Xsave + CpuState.MxcsrOffset) = DefaultMxcsr;
        if ((present & ExtendedState.X87) != 0)
        {
            saved.AsSpan(0, 24).CopyTo(area);
            saved.AsSpan(CpuState.StOffset, 128).CopyTo(area[CpuState.StOffset..]);
        }
        if ((present & (ExtendedState.Sse | ExtendedState.Avx)) != 0)
            saved.AsSpan(CpuState.MxcsrOffset, 8).CopyTo(area[CpuState.MxcsrOffset..]);
        if ((present & ExtendedState.Sse) != 0)
            saved.AsSpan(CpuState.XmmOffset, 256).CopyTo(area[CpuState.XmmOffset..]);
        if ((present & ExtendedState.Avx) != 0 && saved.Length >= CpuState.PkruOffset)
            saved.AsSpan(CpuState.YmmHighOffset, 256).CopyTo(area[CpuState.YmmHighOffset..]);
        if ((present & ExtendedState.Pkru) != 0 && saved.Length >= SavedXsaveBytes)
            saved.AsSpan(CpuState.PkruOffset, 4).CopyTo(area[CpuState.PkruOffset..]);
        StateHandlers.Sanitize(s->Xsave);
    }
}
