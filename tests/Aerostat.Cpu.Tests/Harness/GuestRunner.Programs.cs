using Aerostat.X86;

namespace Aerostat.Cpu.Tests;

/// <summary>What a program leaves behind besides registers and memory.</summary>
internal readonly record struct SystemResult(
    ushort Cs, ushort Ss, ulong Flags, ulong FsBase, ulong GsBase, ulong KernelGsBase, ulong Cr0, ulong Cr3, ulong Cr4, ulong SysenterCs, ulong SysenterEsp, ulong SysenterEip,
    ulong TscAux, ulong TaskPriority, int Shadow, int Io);

/// <content>Programs that may be privileged, on the software processors.</content>
internal sealed unsafe partial class GuestRunner
{
    /// <summary>The vector of <see cref="ProgramSystem.Interrupt"/>.</summary>
    public const int WaitingVector = 0x40;

    /// <summary>Instructions executed so far; <see cref="Aerostat.Processors.IVirtualProcessor.Counters"/> takes longer than a program.</summary>
    public long Instructions => _cpu!.instructions + _cpu.State->Executed;

    /// <summary>Forgets which pages have written to themselves, as if this were another machine.</summary>
    public void ForgetSelfModifying() => _cpu!.SelfModifyingPages!.Clear();

    /// <summary>Whether code has written to its own page since.</summary>
    public bool HasModifiedItself => _cpu!.SelfModifyingPages!.Count != 0;

    public Span<byte> FarWindow => new(_memory.HostBase + FarWindowGpa, Layout.WindowSize);

    /// <summary>As <see cref="Run"/>, for 64-bit code with system registers as <paramref name="system"/> says.</summary>
    public SystemResult Run(ref TestState s, int codeLength, in ProgramSystem system)
    {
        Load(s, 64);
        CpuState* c = _cpu!.State;
        if (system.Privileged)
        {
            c->Cpl = 0;
            c->Cs = new SegmentRegister { Selector = 0x10, Limit = uint.MaxValue, Attributes = 0xA09B };
            c->Ss = c->Ds = c->Es = new SegmentRegister { Selector = 0x18, Limit = uint.MaxValue, Attributes = 0xC093 };
        }
        ulong cr4 = _state.Cr4 | (system.Smap ? Cr4.Smap : 0);
        if (c->Cr0 != _state.Cr0 || c->Cr4 != cr4)
        {
            c->Cr0 = _state.Cr0;
            c->Cr4 = cr4;
            _cpu.FlushTlb();
        }
        c->Efer = _state.Efer;
        c->Star = 0x23UL << 48 | 0x10UL << 32;
        c->Lstar = system.Lstar;
        c->Fmask = system.Fmask;
        c->KernelGsBase = 16;
        c->TscAux = 7;
        c->SysenterCs = c->SysenterEsp = c->SysenterEip = c->PendingDebug = 0;
        c->Shadow = c->NmiBlocked = 0;
        c->Dr[6] = _state.Dr[6];
        _handler.Log.Clear();
        _handler.Interrupts.Clear();
        _handler.TaskPriority = 0;
        _handler.Msrs[0x80B] = 0;
        _handler.Acknowledged = () => _processor.SetInterruptRequest(false);
        _processor.SetInterruptRequest(system.Interrupt);
        if (system.Interrupt)
            _handler.Interrupts.Enqueue(WaitingVector);
        // From a watchdog that was about to wake this one.
        _cpu.ClearRequest(Request.Kick);
        _cpu.UpdateMode();
        RunLoaded(ref s, 64, codeLength, out (ushort Cs, ushort Ss) left);
        _processor.SetInterruptRequest(false);
        var io = new HashCode();
        foreach ((string kind, ulong address, int size, ulong value) in _handler.Log)
        {
            io.Add(kind);
            io.Add(address);
            io.Add(size);
            io.Add(value);
        }
        return new SystemResult(
            left.Cs, left.Ss, s.Rflags & ~(ulong)(RFlags.Status | RFlags.Rf), c->Fs.Base, c->Gs.Base, c->KernelGsBase, c->Cr0, c->Cr3, c->Cr4, c->SysenterCs, c->SysenterEsp, c->SysenterEip,
            c->TscAux, _handler.TaskPriority, c->Shadow, io.ToHashCode());
    }
}
