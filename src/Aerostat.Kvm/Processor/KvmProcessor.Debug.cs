using Aerostat.Processors;
using Aerostat.X86;

namespace Aerostat.Kvm;

/// <content>
/// The host's debugger (KVM_SET_GUEST_DEBUG). KVM puts the host's breakpoints into the processor's debug registers in place of the guest's,
/// and steps with TF, both hidden from the guest. What it lacks is breakpoints by address without a change to memory.
/// </content>
internal sealed unsafe partial class KvmProcessor
{
    // KVM_GUESTDBG_BLOCKIRQ, since Linux 5.16.
    private const uint BlockInterrupts = 0x100000;

    private GuestDebug debug = GuestDebug.None;
    private ulong? reportedAt, steppingOver;

    /// <inheritdoc/>
    public GuestDebugSupport DebugSupport => capabilities.GuestDebug ? GuestDebugSupport.Hardware | GuestDebugSupport.SingleStep : GuestDebugSupport.None;

    // A step is not to end in a handler. One that has halted takes interrupts all the same.
    private bool HoldsInterrupts => (steppingOver is not null || (debug.SingleStep && debug.HoldInterrupts)) && activity == ActivityState.Running;

    /// <inheritdoc/>
    public void SetGuestDebug(GuestDebug debug)
    {
        ArgumentNullException.ThrowIfNull(debug);
        debug.Validate(DebugSupport);
        int result = Apply(debug, null);
        if (result < 0)
            throw new GuestDebugException(GuestDebugError.Unsupported, $"KVM refuses this debugging (error {-result})");
        this.debug = debug;
        if (debug.IsNone)
            reportedAt = null;
    }

    // Tells KVM; with an address, what it takes to execute the one instruction there without stopping before it.
    private int Apply(GuestDebug debug, ulong? stepOver)
    {
        KvmGuestDebug request = default;
        if (!debug.IsNone)
            request.Control = KvmGuestDebug.Enable;
        if (debug.SingleStep || stepOver is not null)
            request.Control |= KvmGuestDebug.SingleStep | ((debug.HoldInterrupts || stepOver is not null) && capabilities.BlocksInterruptsInSteps ? BlockInterrupts : 0);
        // DR7: "exact" and the bit that is always set; enabled globally, kind and length by number (Intel SDM vol. 3 section 18.2.4).
        ulong dr7 = 0x600;
        for (int i = 0; i < debug.Hardware.Count; i++)
        {
            HardwareBreakpoint b = debug.Hardware[i];
            if (b.Kind == BreakpointKind.Execute && b.Address == stepOver)
                continue;
            ulong kind = b.Kind switch { BreakpointKind.Execute => 0UL, BreakpointKind.Write => 1, _ => 3 };
            ulong length = b.Length switch { 1 => 0UL, 2 => 1, 8 => 2, _ => 3 };
            request.DebugRegisters[i] = b.Address;
            dr7 |= (2UL << (i * 2)) | (((length << 2) | kind) << (16 + (i * 4)));
        }
        if (debug.Hardware.Count != 0)
        {
            request.Control |= KvmGuestDebug.HardwareBreakpoints;
            request.DebugRegisters[7] = dr7;
        }
        return KvmCalls.Control(fd, KvmIoctl.SetGuestDebug, &request);
    }

    // A debug exit. True: it is the debugger's.
    private bool ReportDebug(out ProcessorExit exit)
    {
        ulong bits = run->DebugDr6 & (GuestDebugBits.Hardware | GuestDebugBits.SingleStep);
        exit = default;
        if (steppingOver is not null)
        {
            EndStepOver();
            if (!debug.SingleStep && (bits & GuestDebugBits.Hardware) == 0)
                return false;
            if (!debug.SingleStep)
                bits &= ~GuestDebugBits.SingleStep;
        }
        reportedAt = run->DebugAddress;
        exit = new ProcessorExit(ExitReason.Debug, bits);
        return true;
    }

    // The instruction at which an execute breakpoint was reported is executed first, whatever stands there. (RF would say so to a processor,
    // but KVM's own emulator does not look at it.)
    private void BeginStepOver()
    {
        if (reportedAt is not { } address)
            return;
        reportedAt = null;
        if (!debug.Hardware.Any(b => b.Kind == BreakpointKind.Execute && b.Address == address))
            return;
        KvmRegisters registers = default;
        KvmSpecialRegisters special = default;
        if (KvmCalls.Control(fd, KvmIoctl.GetRegisters, &registers) < 0 || KvmCalls.Control(fd, KvmIoctl.GetSpecialRegisters, &special) < 0)
            return;
        ulong linear = registers.Rip + ((special.Efer & Efer.Lma) != 0 && special.Cs.L != 0 ? 0 : special.Cs.Base);
        if (linear == address && Apply(debug, address) >= 0)
            steppingOver = address;
    }

    // Also when Run is left for another reason before the instruction was executed; then the next Run begins anew.
    private void EndStepOver()
    {
        if (steppingOver is not { } address)
            return;
        steppingOver = null;
        reportedAt = address;
        _ = Apply(debug, null);
    }
}
