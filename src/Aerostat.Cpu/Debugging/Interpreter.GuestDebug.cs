using Aerostat.Processors;

namespace Aerostat.Cpu;

/// <content>
/// The host's debugger: breakpoints and steps that the guest does not see. Nothing of it is in <see cref="CpuState"/>.
/// </content>
/// <remarks>
/// Breakpoints cost nothing where there are none. Blocks end before an instruction whose offset in its page is that of a breakpoint, and no
/// cache leads to a block at a breakpoint, so it is met where blocks are looked up. The TLB holds no page with a watched byte: an access to
/// one takes the slow path, where it is compared; one that hits is abandoned like a fault and done again as a single step that notes its hits.
/// </remarks>
internal sealed unsafe partial class Interpreter
{
    // Bits of hostDebug and, with the guest's own, of debug: report a stop; step; step once to get over something; note hits of watchpoints.
    private const int HostReport = 4, HostStep = 8, HostStepOnce = 16, HostWatch = 32;

    // In place of a vector, recorded as a fault: a breakpoint was met; an access hit a watchpoint and must be done again by a step.
    private const int StopForDebugger = -1, StepForDebugger = -2;

    private GuestDebug hostRequest = GuestDebug.None;
    private int hostDebug;
    private ulong hostHits;
    private (ulong Start, ulong End, bool Reads, ulong Bit)[] watchpoints = [];
    private Dictionary<ulong, ulong> stops = [];
    // Offsets in a page before which blocks end, a bit each. They only grow while debugging goes on: debuggers take breakpoints out and put them
    // in again at every stop.
    private ulong[]? blockEnds;
    // Where a breakpoint has been reported: the next Run executes this instruction whatever stands there.
    private ulong? reportedAt;
    private bool deliveringEvent, stoppedBefore;

    /// <summary>Whether each iteration of a repeated instruction is one of its own.</summary>
    internal bool StepsIterations => (debug & (HostStep | HostWatch)) != 0;

    /// <summary>See <see cref="IVirtualProcessor.SetGuestDebug"/>. On the vCPU's thread, outside the guest; the request has been checked.</summary>
    internal void SetGuestDebug(GuestDebug request)
    {
        hostRequest = request;
        hostDebug = request.SingleStep ? HostStep : 0;
        hostHits = 0;
        var wanted = new Dictionary<ulong, ulong>();
        var watched = new List<(ulong, ulong, bool, ulong)>();
        for (int i = 0; i < request.Hardware.Count; i++)
        {
            HardwareBreakpoint b = request.Hardware[i];
            if (b.Kind == BreakpointKind.Execute)
                wanted[b.Address] = wanted.GetValueOrDefault(b.Address) | 1UL << i;
            else
                watched.Add((b.Address, b.Address + (ulong)b.Length - 1, b.Kind == BreakpointKind.ReadWrite, 1UL << i));
        }
        foreach (ulong address in request.Code)
            wanted[address] = wanted.GetValueOrDefault(address) | GuestDebugBits.Code;
        bool flush = watchpoints.Length != 0 || watched.Count != 0;
        watchpoints = [.. watched];
        SetStops(wanted, ended: request.IsNone);
        if (request.IsNone)
            reportedAt = null;
        if (flush)
            FlushTlb();
        UpdateMode();
    }

    private void SetStops(Dictionary<ulong, ulong> wanted, bool ended)
    {
        bool recut = false;
        if (ended)
        {
            recut = blockEnds != null;
            blockEnds = null;
        }
        foreach (ulong address in wanted.Keys)
        {
            blockEnds ??= new ulong[64];
            ref ulong word = ref blockEnds[(address & 4095) >> 6];
            recut |= (word >> (int)(address & 63) & 1) == 0;
            word |= 1UL << (int)(address & 63);
        }
        if (stops.Count != 0 || wanted.Count != 0)
            ForgetCodeMappings();
        stops = wanted;
        if (!recut)
            return;
        blocks.Clear();
        ForgetCodeMappings();
        if (translation == null)
            return;
        translation.Translator.BlockEnds = blockEnds;
        translation.Cache.Clear();
    }

    /// <summary>Whether blocks end before the instruction at an address (linear or physical: the offset in the page counts).</summary>
    internal static bool EndsBlocks(ulong[]? ends, ulong address) => ends != null && (ends[(address & 4095) >> 6] >> (int)(address & 63) & 1) != 0;

    // Cuts what was decoded before a breakpoint. An instruction that a breakpoint points into the middle of is left alone.
    private int CutBlock(ulong gpa, int count, ref int length)
    {
        if (blockEnds == null)
            return count;
        MicroOp* ops = blocks.Scratch;
        for (int i = 1; i < count; i++)
        {
            if (!EndsBlocks(blockEnds, gpa + ops[i].Offset))
                continue;
            length = ops[i].Offset;
            return i;
        }
        return count;
    }

    /// <summary>Whether Run has to stop before the instruction at a linear address; if so, that is recorded as a fault is.</summary>
    private bool MeetsStop(ulong linear)
    {
        if (reportedAt == linear || !stops.TryGetValue(linear, out ulong bits))
            return false;
        hostHits |= bits;
        raisedVector = StopForDebugger;
        return true;
    }

    /// <summary>An access that may go on; false: it is to be abandoned as one that faults. Hits are noted when the instruction is a step.</summary>
    private bool PassesWatchpoints(ulong linear, int size, bool write)
    {
        ulong hits = WatchpointHits(linear, size, write);
        if (hits == 0)
            return true;
        if ((hostDebug & HostWatch) != 0 || deliveringEvent)
        {
            hostHits |= hits;
            if (deliveringEvent)
                RequestStop();
            return true;
        }
        raisedVector = StepForDebugger;
        return false;
    }

    private ulong WatchpointHits(ulong linear, int size, bool write)
    {
        linear = Unmask(State, linear);
        ulong hits = 0, last = linear + (ulong)size - 1;
        foreach ((ulong start, ulong end, bool reads, ulong bit) in watchpoints)
            if ((write || reads) && linear <= end && last >= start)
                hits |= bit;
        return hits;
    }

    private bool IsWatchedPage(ulong linear)
    {
        foreach ((ulong start, ulong _, bool _, ulong _) in watchpoints)
            if (((start ^ linear) & ~4095UL) == 0)
                return true;
        return false;
    }

    private void RequestStop()
    {
        hostDebug |= HostReport;
        debug |= HostReport;
    }

    /// <summary>Serves what was recorded in place of an exception.</summary>
    private void NoteForDebugger()
    {
        stoppedBefore = raisedVector == StopForDebugger;
        int bit = stoppedBefore ? HostReport : HostStepOnce;
        hostDebug |= bit;
        debug |= bit;
    }

    /// <summary>At the start of Run: gets over the breakpoint that was reported last.</summary>
    private void PrepareForDebugger(CpuState* s)
    {
        if (reportedAt == null)
            return;
        if (reportedAt == LinearRip(s) && stops.ContainsKey(reportedAt.Value))
            hostDebug |= HostStepOnce;
        else
            reportedAt = null;
        UpdateMode();
    }

    private static ulong LinearRip(CpuState* s) => s->Bitness == 64 ? s->Rip : (uint)(s->Cs.Base + s->Rip);

    // Neither a step nor getting over a breakpoint may end in an interrupt handler.
    private bool HoldsInterrupts(CpuState* s) =>
        s->Activity == (int)ActivityState.Running
        && ((hostDebug & HostStep) != 0 ? hostRequest.HoldInterrupts : (hostDebug & HostStepOnce) != 0 && reportedAt == LinearRip(s));

    private ProcessorExit ReportStop(CpuState* s)
    {
        ulong hits = hostHits;
        hostHits = 0;
        hostDebug &= ~(HostReport | HostStepOnce);
        UpdateMode();
        reportedAt = LinearRip(s);
        debugStops++;
        return new ProcessorExit(ExitReason.Debug, hits, s->Rip);
    }

    /// <summary>One instruction while the host's debugger wants to know of it.</summary>
    private bool StepDebugged(CpuState* s, out ProcessorExit exit)
    {
        if (watchpoints.Length != 0)
        {
            hostDebug |= HostWatch;
            UpdateMode();
        }
        stoppedBefore = false;
        bool leave = StepGuest(s, out exit);
        hostDebug &= ~HostWatch;
        UpdateMode();
        if (stoppedBefore)
        {
            // Nothing was executed.
            exit = ReportStop(s);
            return true;
        }
        reportedAt = null;
        hostDebug &= ~HostStepOnce;
        if ((hostDebug & HostStep) != 0)
        {
            hostHits |= GuestDebugBits.SingleStep;
            // So that a breakpoint here is not lost: the next Run does not stop at it again.
            if (stops.TryGetValue(LinearRip(s), out ulong bits))
                hostHits |= bits;
        }
        UpdateMode();
        if (hostHits == 0)
            return leave;
        if (leave && exit.Reason != ExitReason.Halted)
        {
            // The other reason goes first; this one is told by the next Run.
            RequestStop();
            return true;
        }
        exit = ReportStop(s);
        return true;
    }
}
