using Aerostat.Processors;
using Aerostat.X86;

namespace Aerostat.Kvm;

/// <content>
/// Breakpoints by linear address (KVM_GUESTDBG_USE_SW_BP): INT3 in a copy of the page that the address is mapped to (<see cref="KvmBreakpoints"/>). KVM tells of
/// every INT3; the guest's own go back into it.
/// </content>
internal sealed unsafe partial class KvmProcessor
{
    // Looked up before each entry, until they are mapped.
    private const int MostUnmapped = 64;
    private const uint BreakpointException = 3;

    // Linear to physical, as mapped when the vCPU was last looked at.
    private readonly Dictionary<ulong, ulong> planted = [];
    private ulong plantedFor;
    // The physical address of the one whose instruction is being executed.
    private ulong? lifted;

    /// <summary>
    /// Puts breakpoints where the page tables of now have their addresses: all when the tables may have changed or the caller says so, else those
    /// that were not mapped. Not in the middle of an instruction.
    /// </summary>
    private void Plant(bool all)
    {
        if (breakpoints is null || (debug.Code.Count == 0 && planted.Count == 0))
            return;
        KvmSpecialRegisters special = default;
        if (KvmCalls.Control(fd, KvmIoctl.GetSpecialRegisters, &special) < 0)
            return;
        all |= special.Cr3 != plantedFor;
        plantedFor = special.Cr3;
        if (!all && (planted.Count == debug.Code.Count || debug.Code.Count - planted.Count > MostUnmapped))
            return;
        List<ulong> added = [], removed = [];
        foreach (ulong linear in planted.Keys.Where(k => !debug.Code.Contains(k)).ToArray())
        {
            removed.Add(planted[linear]);
            planted.Remove(linear);
        }
        foreach (ulong linear in debug.Code)
        {
            bool known = planted.TryGetValue(linear, out ulong old);
            if (known && !all)
                continue;
            ulong? now = Translate(linear);
            if (known && now == old)
                continue;
            if (known)
            {
                removed.Add(old);
                planted.Remove(linear);
            }
            if (now is { } physical && memory.Contains(physical, 1))
            {
                added.Add(physical);
                planted.Add(linear, physical);
            }
        }
        try
        {
            breakpoints.Change(added, removed);
        }
        catch (GuestDebugException)
        {
            // Too many pages: those that are there stay, and the others are as if not mapped.
            foreach (ulong linear in planted.Where(p => added.Contains(p.Value)).Select(p => p.Key).ToArray())
                planted.Remove(linear);
            breakpoints.Change([], removed);
        }
    }

    private void Unplant()
    {
        breakpoints?.Change([], planted.Values);
        planted.Clear();
    }

    private ulong? Translate(ulong linear)
    {
        KvmTranslation translation = new() { Linear = linear };
        return KvmCalls.Control(fd, KvmIoctl.Translate, &translation) >= 0 && translation.Valid != 0 && translation.Physical != ulong.MaxValue ? translation.Physical : null;
    }

    // INT3. True: Run returns.
    private bool ReportInt3(ulong address, out ProcessorExit exit)
    {
        exit = default;
        // One that stands where ours has been taken away is the guest's.
        bool ours = Translate(address) is { } physical && breakpoints is not null && breakpoints.IsPlanted(physical) && physical != lifted;
        EndStepOver();
        if (!ours)
        {
            reportedAt = null;
            int result = Apply(debug, null, KvmGuestDebug.InjectBreakpoint);
            if (result >= 0)
                return false;
            exit = new ProcessorExit(ExitReason.InternalError, (ulong)-result);
            return true;
        }
        if (debug.Code.Contains(address))
        {
            reportedAt = address;
            exit = new ProcessorExit(ExitReason.Debug, GuestDebugBits.Code);
            return true;
        }
        // The same memory under another address, or another vCPU's breakpoint.
        reportedAt = address;
        BeginStepOver();
        return false;
    }

    /// <summary>
    /// Whether KVM's own emulator, which does not know INT3 in protected mode, has stumbled over one of ours: then it is as if that had been
    /// executed, and the #UD that KVM has prepared is taken back.
    /// </summary>
    private bool StumbledOverInt3(out ulong address)
    {
        address = 0;
        if (breakpoints is null || debug.Code.Count == 0 || !TryGetLinearRip(out address) || Translate(address) is not { } physical
            || !breakpoints.IsPlanted(physical) || physical == lifted)
            return false;
        KvmVcpuEvents events = ReadEvents();
        events.ExceptionInjected = events.ExceptionPending = 0;
        return KvmCalls.Control(fd, KvmIoctl.SetVcpuEvents, &events) >= 0;
    }

    private bool TryGetLinearRip(out ulong linear)
    {
        KvmRegisters registers = default;
        KvmSpecialRegisters special = default;
        linear = 0;
        if (KvmCalls.Control(fd, KvmIoctl.GetRegisters, &registers) < 0 || KvmCalls.Control(fd, KvmIoctl.GetSpecialRegisters, &special) < 0)
            return false;
        linear = registers.Rip + ((special.Efer & Efer.Lma) != 0 && special.Cs.L != 0 ? 0 : special.Cs.Base);
        return true;
    }
}
