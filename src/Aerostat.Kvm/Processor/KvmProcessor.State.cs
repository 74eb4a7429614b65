using System.Runtime.InteropServices;
using Aerostat.Processors;
using Aerostat.X86;

namespace Aerostat.Kvm;

/// <content>The architectural state, between KVM's structures and ours; power-on, INIT and start-up.</content>
internal sealed unsafe partial class KvmProcessor
{
    private const int XsaveHeader = 512, SavedXsaveBytes = 840, AvxOffset = 576, PkruOffset = 832, PkruComponent = 9;
    private const ulong ResetCr0 = Cr0.Cd | Cr0.Nw | Cr0.Et;
    private const uint DebugControl = 0x1D9;

    // STI and MOV SS shadows as KVM has them; we know only that there is one.
    private const byte AnyShadow = 3;

    // What a saved state carries in its list; FS_BASE, GS_BASE and EFER have places of their own.
    private static readonly uint[] s_wantedMsrs =
    [
        Msr.SysenterCs, Msr.SysenterEsp, Msr.SysenterEip, Msr.Star, Msr.Lstar, Msr.Cstar, Msr.Fmask, Msr.KernelGsBase, Msr.Pat, Msr.SpecCtrl,
        Msr.McgStatus, Msr.MiscEnable, DebugControl, Msr.TscAux, Msr.TscAdjust,
        .. Enumerable.Range((int)Msr.MtrrPhysBase0, 16).Select(i => (uint)i), Msr.MtrrFix64K, 0x258, 0x259,
        .. Enumerable.Range(0x268, 8).Select(i => (uint)i), Msr.MtrrDefType,
    ];

    // The wanted ones that this KVM has, and their values after power-on.
    private readonly SortedDictionary<uint, ulong> powerOnMsrs = [];
    private bool hasXsave;
    private uint signature;

    private bool InterruptsEnabled
    {
        get
        {
            if (!stale)
                return run->InterruptFlag != 0;
            KvmRegisters registers = default;
            _ = KvmCalls.Control(fd, KvmIoctl.GetRegisters, &registers);
            return (registers.Rflags & RFlags.If) != 0;
        }
    }

    private bool NmiIsPending => ReadEvents() is { NmiPending: > 0 } or { NmiInjected: > 0 };

    private bool NmiIsOpen => ReadEvents().NmiMasked == 0;

    // One that is blocked by an NMI handler does not end a HLT.
    private bool NmiIsDue() => ReadEvents() is { NmiMasked: 0 } events && (events.NmiPending > 0 || events.NmiInjected > 0);

    private KvmVcpuEvents ReadEvents()
    {
        KvmVcpuEvents events = default;
        _ = KvmCalls.Control(fd, KvmIoctl.GetVcpuEvents, &events);
        return events;
    }

    /// <summary>One MSR; false: KVM does not have it.</summary>
    internal bool TryReadMsr(uint index, out ulong value)
    {
        // A count, padding, and one entry.
        KvmMsrEntry* block = stackalloc KvmMsrEntry[2];
        block[0] = new KvmMsrEntry { Index = 1 };
        block[1] = new KvmMsrEntry { Index = index };
        // SAFETY: the header of 8 bytes lies directly before the entry.
        int result = KvmCalls.Control(fd, KvmIoctl.GetMsrs, MsrBlock(block));
        value = block[1].Value;
        return result == 1;
    }

    /// <summary>Sets one MSR; false: KVM does not take it.</summary>
    internal bool WriteMsr(uint index, ulong value)
    {
        KvmMsrEntry* block = stackalloc KvmMsrEntry[2];
        block[0] = new KvmMsrEntry { Index = 1 };
        block[1] = new KvmMsrEntry { Index = index, Value = value };
        return KvmCalls.Control(fd, KvmIoctl.SetMsrs, MsrBlock(block)) == 1;
    }

    // Some kernels write a line to their log for each write to a register they only pretend to have.
    private bool ChangeMsr(uint index, ulong value) => (TryReadMsr(index, out ulong now) && now == value) || WriteMsr(index, value);

    // The first entry's place is twice the size of the header: the header goes into its second half.
    private static byte* MsrBlock(KvmMsrEntry* block)
    {
        byte* header = (byte*)(block + 1) - 8;
        *(ulong*)header = block[0].Index;
        return header;
    }

    private void PrepareState()
    {
        foreach (uint index in s_wantedMsrs)
            if (TryReadMsr(index, out ulong value))
                powerOnMsrs[index] = index switch
                {
                    Msr.Pat => 0x0007_0406_0007_0406,
                    Msr.MiscEnable => value,
                    _ => 0,
                };
        foreach ((uint index, ulong value) in powerOnMsrs.ToArray())
            if (!ChangeMsr(index, value))
                powerOnMsrs.Remove(index);
    }

    /// <inheritdoc/>
    public ProcessorState GetState()
    {
        KvmRegisters r = default;
        KvmSpecialRegisters s = default;
        KvmDebugRegisters d = default;
        Check(KvmCalls.Control(fd, KvmIoctl.GetRegisters, &r), "its registers");
        Check(KvmCalls.Control(fd, KvmIoctl.GetSpecialRegisters, &s), "its segment and control registers");
        Check(KvmCalls.Control(fd, KvmIoctl.GetDebugRegisters, &d), "its debug registers");
        KvmVcpuEvents events = ReadEvents();
        ProcessorState state = new()
        {
            Gpr = [r.Rax, r.Rcx, r.Rdx, r.Rbx, r.Rsp, r.Rbp, r.Rsi, r.Rdi, r.R8, r.R9, r.R10, r.R11, r.R12, r.R13, r.R14, r.R15],
            Rip = r.Rip,
            Rflags = r.Rflags,
            Segments = [Save(s.Es), Save(s.Cs), Save(s.Ss), Save(s.Ds), Save(s.Fs), Save(s.Gs)],
            Tr = Save(s.Tr),
            Ldtr = Save(s.Ldt),
            Gdtr = new(s.Gdt.Base, s.Gdt.Limit),
            Idtr = new(s.Idt.Base, s.Idt.Limit),
            Cr0 = s.Cr0,
            Cr2 = s.Cr2,
            Cr3 = s.Cr3,
            Cr4 = s.Cr4,
            Efer = s.Efer,
            Xcr0 = GetXcr0(),
            Dr = [d.Address[0], d.Address[1], d.Address[2], d.Address[3], 0, 0, d.Dr6, d.Dr7],
            Activity = ReadActivity(),
            InterruptShadow = events.InterruptShadow != 0,
            // One whose delivery was interrupted blocks itself already.
            NmiBlocked = events.NmiMasked != 0 && events.NmiInjected == 0,
            NmiPending = nmiRequests > 0 || events.NmiPending != 0 || events.NmiInjected != 0,
            InjectedVector = events.InterruptInjected != 0 && events.InterruptSoft == 0 ? events.InterruptNumber : null,
        };
        GetXsave(state.Xsave);
        foreach (uint index in powerOnMsrs.Keys)
            if (TryReadMsr(index, out ulong value))
                state.Msrs[index] = value;
        if (TryReadMsr(Msr.Tsc, out ulong tsc))
            state.Msrs[Msr.Tsc] = tsc;
        return state;
    }

    /// <inheritdoc/>
    public void SetState(ProcessorState state)
    {
        ArgumentNullException.ThrowIfNull(state);
        KvmRegisters r = new()
        {
            Rax = state.Gpr[0],
            Rcx = state.Gpr[1],
            Rdx = state.Gpr[2],
            Rbx = state.Gpr[3],
            Rsp = state.Gpr[4],
            Rbp = state.Gpr[5],
            Rsi = state.Gpr[6],
            Rdi = state.Gpr[7],
            R8 = state.Gpr[8],
            R9 = state.Gpr[9],
            R10 = state.Gpr[10],
            R11 = state.Gpr[11],
            R12 = state.Gpr[12],
            R13 = state.Gpr[13],
            R14 = state.Gpr[14],
            R15 = state.Gpr[15],
            Rip = state.Rip,
            Rflags = state.Rflags | RFlags.Fixed1,
        };
        KvmSpecialRegisters s = new()
        {
            Es = Restore(state.Segments[0]),
            Cs = Restore(state.Segments[1]),
            Ss = Restore(state.Segments[2]),
            Ds = Restore(state.Segments[3]),
            Fs = Restore(state.Segments[4]),
            Gs = Restore(state.Segments[5]),
            Tr = Restore(state.Tr),
            Ldt = Restore(state.Ldtr),
            Gdt = new() { Base = state.Gdtr.Base, Limit = state.Gdtr.Limit },
            Idt = new() { Base = state.Idtr.Base, Limit = state.Idtr.Limit },
            Cr0 = state.Cr0 | Cr0.Et,
            Cr2 = state.Cr2,
            Cr3 = state.Cr3,
            Cr4 = hasXsave ? state.Cr4 : state.Cr4 & ~Cr4.OsXsave,
            Efer = state.Efer,
            ApicBase = ApicBaseAddress | (Index == 0 ? ApicBaseBootstrap : 0) | (localApicEnabled ? ApicBaseEnable : 0),
        };
        if (localApics is not null)
        {
            // Both belong to the local APIC, whose state is not this one.
            KvmSpecialRegisters now = default;
            Check(KvmCalls.Control(fd, KvmIoctl.GetSpecialRegisters, &now), "its segment and control registers");
            (s.ApicBase, s.Cr8) = (now.ApicBase, now.Cr8);
        }
        Check(KvmCalls.Control(fd, KvmIoctl.SetSpecialRegisters, &s), $"these segment and control registers (CR0 {s.Cr0:x}, CR4 {s.Cr4:x}, EFER {s.Efer:x})");
        Check(KvmCalls.Control(fd, KvmIoctl.SetRegisters, &r), "these registers");
        if (hasXsave && capabilities.Xcrs)
        {
            KvmExtendedControlRegisters x = new() { Count = 1 };
            x.Registers[1] = (state.Xcr0 & SupportedXcr0) | 1;
            Check(KvmCalls.Control(fd, KvmIoctl.SetXcrs, &x), $"XCR0 {x.Registers[1]:x}");
        }
        SetXsave(state.Xsave);
        KvmDebugRegisters d = new() { Dr6 = (uint)state.Dr[6], Dr7 = (uint)state.Dr[7] };
        for (int i = 0; i < 4; i++)
            d.Address[i] = state.Dr[i];
        Check(KvmCalls.Control(fd, KvmIoctl.SetDebugRegisters, &d), "these debug registers");
        foreach ((uint index, ulong value) in powerOnMsrs)
            ChangeMsr(index, state.Msrs.TryGetValue(index, out ulong wanted) ? wanted : value);
        // Last: TSC_ADJUST moves the counter, too.
        if (state.Msrs.TryGetValue(Msr.Tsc, out ulong tsc))
            WriteMsr(Msr.Tsc, tsc);
        KvmVcpuEvents events = new()
        {
            Flags = KvmVcpuEvents.NmiPendingValid | KvmVcpuEvents.ShadowValid,
            InterruptShadow = state.InterruptShadow ? AnyShadow : (byte)0,
            NmiMasked = state.NmiBlocked ? (byte)1 : (byte)0,
            NmiPending = state.NmiPending ? (byte)1 : (byte)0,
            InterruptInjected = state.InjectedVector is null ? (byte)0 : (byte)1,
            InterruptNumber = state.InjectedVector ?? 0,
        };
        Check(KvmCalls.Control(fd, KvmIoctl.SetVcpuEvents, &events), "these pending events");
        lock (pinLock)
            nmiRequests = 0;
        activity = state.Activity;
        faultsBeforeShutdown = [];
        WriteActivity(activity);
        incomplete = false;
        injected = state.InjectedVector is not null;
        stale = true;
        timestamp.Anchor();
    }

    // The kernel's word where it keeps the local APIC: it wakes and starts processors itself.
    private ActivityState ReadActivity()
    {
        if (localApics is null || activity == ActivityState.Shutdown)
            return activity;
        uint kernel = 0;
        Check(KvmCalls.Control(fd, KvmIoctl.GetActivity, &kernel), "what it does");
        return kernel switch { 1 or 2 => ActivityState.WaitForStartup, 3 => ActivityState.Halted, _ => ActivityState.Running };
    }

    private void WriteActivity(ActivityState wanted)
    {
        if (localApics is null)
            return;
        uint kernel = wanted switch { ActivityState.WaitForStartup => 1u, ActivityState.Halted => 3, _ => 0 };
        Check(KvmCalls.Control(fd, KvmIoctl.SetActivity, &kernel), "what it is to do");
        if (wanted != ActivityState.Shutdown)
            activity = ActivityState.Running;
    }

    /// <inheritdoc/>
    public void Reset()
    {
        kickRequest = initRequest = interruptRequest = windowWanted = false;
        startupVector = -1;
        localApicEnabled = true;
        ProcessorState state = CreateReset();
        foreach ((uint index, ulong value) in powerOnMsrs)
            state.Msrs[index] = value;
        state.Msrs[Msr.Tsc] = 0;
        // After power-on FCW is 0040H (Intel SDM vol. 3 table 10-1).
        state.Xsave[0] = 0x40;
        MemoryMarshal.Write(state.Xsave.AsSpan(24), 0x1F80u);
        state.Xsave[XsaveHeader] = 3;
        state.Cr0 = ResetCr0;
        SetState(state);
    }

    // INIT keeps x87 and SSE state, MSRs, the time-stamp counter and the cache bits of CR0.
    private void Initialize()
    {
        ProcessorState before = GetState(), state = CreateReset();
        state.Cr0 = (before.Cr0 & (Cr0.Cd | Cr0.Nw)) | Cr0.Et;
        state.Xcr0 = before.Xcr0;
        before.Xsave.CopyTo(state.Xsave, 0);
        foreach ((uint index, ulong value) in before.Msrs)
            if (index != Msr.Tsc)
                state.Msrs[index] = value;
        SetState(state);
    }

    private void StartUp(byte vector)
    {
        ProcessorState state = GetState();
        state.Segments[1] = new SegmentState((ushort)(vector << 8), (ulong)vector << 12, 0xFFFF, 0x9B);
        state.Rip = 0;
        state.Activity = ActivityState.Running;
        SetState(state);
    }

    private ProcessorState CreateReset()
    {
        SegmentState data = new(0, 0, 0xFFFF, 0x93);
        ProcessorState state = new()
        {
            Rip = 0xFFF0,
            Segments = [data, new(0xF000, 0xFFFF_0000, 0xFFFF, 0x9B), data, data, data, data],
            Tr = new(0, 0, 0xFFFF, 0x8B),
            Ldtr = new(0, 0, 0xFFFF, 0x82),
            Gdtr = new(0, 0xFFFF),
            Idtr = new(0, 0xFFFF),
            Activity = Index == 0 ? ActivityState.Running : ActivityState.WaitForStartup,
        };
        state.Gpr[2] = signature;
        state.Dr[6] = 0xFFFF_0FF0;
        state.Dr[7] = 0x400;
        return state;
    }

    private ulong SupportedXcr0 => capabilities.SupportedCpuid.Get(0xD, 0) is var leaf ? leaf.Eax | ((ulong)leaf.Edx << 32) : 1;

    private ulong GetXcr0()
    {
        if (!hasXsave || !capabilities.Xcrs)
            return 1;
        KvmExtendedControlRegisters x = default;
        return KvmCalls.Control(fd, KvmIoctl.GetXcrs, &x) >= 0 && x.Count > 0 ? x.Registers[1] : 1;
    }

    private int HostPkruOffset => (int)capabilities.SupportedCpuid.Get(0xD, PkruComponent).Ebx;

    // KVM's area has the host's layout: the legacy part, the header and AVX are where they always are, PKRU is not.
    private void GetXsave(byte[] saved)
    {
        byte[] area = new byte[capabilities.XsaveBytes];
        fixed (byte* pointer = area)
            Check(KvmCalls.Control(fd, capabilities.XsaveBytes > 4096 ? KvmIoctl.GetXsave2 : KvmIoctl.GetXsave, pointer), "its x87 and SSE state");
        area.AsSpan(0, PkruOffset).CopyTo(saved);
        if (HostPkruOffset is >= PkruOffset and < 4096 - 4)
            area.AsSpan(HostPkruOffset, 4).CopyTo(saved.AsSpan(PkruOffset));
        ulong present = MemoryMarshal.Read<ulong>(saved.AsSpan(XsaveHeader)) & ((1 << PkruComponent) | 7);
        saved.AsSpan(XsaveHeader, 64).Clear();
        MemoryMarshal.Write(saved.AsSpan(XsaveHeader), present | 3);
        // A component that KVM left out has its initial value.
        if ((MemoryMarshal.Read<ulong>(area.AsSpan(XsaveHeader)) & 1) == 0)
        {
            saved.AsSpan(0, 24).Clear();
            saved.AsSpan(32, 128).Clear();
            saved[0] = 0x7F;
            saved[1] = 3;
        }
        if ((MemoryMarshal.Read<ulong>(area.AsSpan(XsaveHeader)) & 2) == 0)
            saved.AsSpan(160, 256).Clear();
    }

    private void SetXsave(byte[] saved)
    {
        byte[] area = new byte[capabilities.XsaveBytes];
        saved.AsSpan(0, Math.Min(saved.Length, XsaveHeader)).CopyTo(area);
        ulong present = saved.Length >= XsaveHeader + 8 ? MemoryMarshal.Read<ulong>(saved.AsSpan(XsaveHeader)) : 0;
        present &= hasXsave ? SupportedXcr0 & ((1 << PkruComponent) | 7) : 3;
        if ((present & 4) != 0 && saved.Length >= PkruOffset)
            saved.AsSpan(AvxOffset, 256).CopyTo(area.AsSpan(AvxOffset));
        if ((present & (1 << PkruComponent)) != 0 && saved.Length >= SavedXsaveBytes && HostPkruOffset is >= PkruOffset and < 4096 - 4)
            saved.AsSpan(PkruOffset, 4).CopyTo(area.AsSpan(HostPkruOffset));
        MemoryMarshal.Write(area.AsSpan(XsaveHeader), present);
        fixed (byte* pointer = area)
            Check(KvmCalls.Control(fd, KvmIoctl.SetXsave, pointer), "this x87 and SSE state");
    }

    private static void Check(int result, string what) => KvmException.Check(result, what);

    private static SegmentState Save(in KvmSegment s) => new(s.Selector, s.Base, s.Limit,
        (uint)(s.Type & 15) | ((uint)(s.S & 1) << 4) | ((uint)(s.Dpl & 3) << 5) | ((uint)(s.Present & 1) << 7) | ((uint)(s.Available & 1) << 12)
        | ((uint)(s.L & 1) << 13) | ((uint)(s.Db & 1) << 14) | ((uint)(s.G & 1) << 15) | (s.Unusable != 0 ? SegmentState.Unusable : 0));

    private static KvmSegment Restore(in SegmentState s) => new()
    {
        Base = s.Base,
        Limit = s.Limit,
        Selector = s.Selector,
        Type = (byte)(s.Attributes & 15),
        S = Bit(s, 4),
        Dpl = (byte)((s.Attributes >> 5) & 3),
        Present = Bit(s, 7),
        Available = Bit(s, 12),
        L = Bit(s, 13),
        Db = Bit(s, 14),
        G = Bit(s, 15),
        Unusable = Bit(s, 16),
    };

    private static byte Bit(in SegmentState s, int bit) => (byte)((s.Attributes >> bit) & 1);
}
