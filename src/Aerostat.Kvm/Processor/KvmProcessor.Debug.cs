using Aerostat.Processors;

namespace Aerostat.Kvm;

/// <content>
/// The host's debugger (KVM_SET_GUEST_DEBUG). KVM puts the host's breakpoints into the processor's debug registers in place of the guest's,
/// and steps with TF, both hidden from the guest.
/// </content>
internal sealed unsafe partial class KvmProcessor
{
    // KVM_GUESTDBG_BLOCKIRQ, since Linux 5.16.
    private const uint BlockInterrupts = 0x100000;

    private GuestDebug debug = GuestDebug.None;
    private const byte HaltOpcode = 0xF4;

    private ulong? reportedAt, steppingOver;
    private bool runsAlone;

    /// <inheritdoc/>
    public GuestDebugSupport DebugSupport => !capabilities.GuestDebug ? GuestDebugSupport.None
        : GuestDebugSupport.Hardware | GuestDebugSupport.SingleStep | (breakpoints is null ? 0 : GuestDebugSupport.Code);

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
        Plant(all: true);
    }

    // Tells KVM; with an address, what it takes to execute the one instruction there without stopping before it; with further bits, those as well.
    private int Apply(GuestDebug debug, ulong? stepOver, uint also = 0)
    {
        KvmGuestDebug request = default;
        if (!debug.IsNone)
            request.Control = KvmGuestDebug.Enable | also;
        // Breakpoints are in the way of all vCPUs: whoever sets some sets them for each that is to run.
        if (debug.Code.Count != 0)
            request.Control |= KvmGuestDebug.SoftwareBreakpoints;
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
        if (run->DebugException == BreakpointException)
            return ReportInt3(run->DebugAddress, out exit);
        ulong bits = run->DebugDr6 & (GuestDebugBits.Hardware | GuestDebugBits.SingleStep);
        exit = default;
        if (steppingOver is not null)
        {
            EndStepOver();
            reportedAt = null;
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
        bool hardware = debug.Hardware.Any(b => b.Kind == BreakpointKind.Execute && b.Address == address);
        ulong? physical = breakpoints is not null && debug.Code.Count != 0 && Translate(address) is { } found && breakpoints.IsPlanted(found) ? found : null;
        if (!hardware && physical is null)
            return;
        if (!TryGetLinearRip(out ulong linear) || linear != address || Apply(debug, address) < 0)
            return;
        steppingOver = address;
        lifted = physical;
        if (physical is not { } one)
            return;
        // Nobody else shall run past it meanwhile. HLT may take for ever, and what ends it may come from another.
        if (memory.TryRead(new(one), out byte opcode) && opcode != HaltOpcode)
        {
            slots.LetOnly(this);
            runsAlone = true;
        }
        breakpoints!.Lift(one, true);
    }

    // Also when Run is left for another reason before the instruction was executed; then the next Run begins anew.
    private void EndStepOver()
    {
        if (steppingOver is not { } address)
            return;
        steppingOver = null;
        reportedAt = address;
        if (lifted is { } physical)
            breakpoints!.Lift(physical, false);
        if (runsAlone)
            slots.LetAll();
        runsAlone = false;
        lifted = null;
        _ = Apply(debug, null);
    }
}
