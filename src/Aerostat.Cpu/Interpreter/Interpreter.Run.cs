using System.Runtime.CompilerServices;
using Aerostat.Processors;
using Aerostat.X86;

namespace Aerostat.Cpu;

/// <content>The run loop: requests, interrupts, blocks, exceptions, single steps.</content>
internal sealed unsafe partial class Interpreter
{
    private const int ExecuteBreakpoints = 1, DataBreakpoints = 2;
    // A debug exception says which breakpoints were hit by it alone; the other bits are for software to clear.
    private const ulong Dr6Breakpoints = 15;
    internal const ulong Dr6SingleStep = 1 << 14;
    private const int BranchRing = 16;

    // From and to, in turn. The count is of both and never wraps in practice.
    private readonly ulong[] branches = new ulong[2 * BranchRing];
    private long branchNext;
    private int debug;

    internal long instructions;
    internal long blocksDecoded, jumpMisses, tlbFills, tlbFlushes, mmioReads, mmioWrites, codeWrites, shootdowns, blankShootdowns, interrupts, exceptions, steps, debugStops, spinYields;

    /// <summary>Runs until there is something to tell; see <see cref="IVirtualProcessor.Run"/>.</summary>
    internal ProcessorExit Run(IExitHandler handler)
    {
        guestHandler.Inner = handler;
        PrepareForDebugger(State);
        gate.Enter(this);
        try
        {
            return translation != null ? LoopTranslated(State) : Loop(State);
        }
        finally
        {
            ExecutionGate.Leave(this);
        }
    }

    /// <summary>
    /// As <see cref="Run"/>, for one instruction at most: takes what is pending, then executes. Null when there is nothing to tell.
    /// </summary>
    internal ProcessorExit? RunOne(IExitHandler handler)
    {
        guestHandler.Inner = handler;
        gate.Enter(this);
        try
        {
            return Attend(State, out ProcessorExit exit) || Step(State, out exit) ? exit : null;
        }
        finally
        {
            ExecutionGate.Leave(this);
        }
    }

    private ProcessorExit Loop(CpuState* s)
    {
        while (true)
        {
            if ((s->Request | s->Shadow | s->Activity | debug | (int)(s->SystemFlags & (RFlags.Tf | RFlags.Rf))) != 0)
            {
                if (Attend(s, out ProcessorExit exit))
                    return exit;
                if (debug == 0 && (s->SystemFlags & RFlags.Tf) == 0 && (s->Shadow == 0 || Volatile.Read(ref s->Request) == 0))
                {
                    // With nothing waiting, a shadow needs no single step: what comes from now on is looked at after the next instruction
                    // at the earliest. RF means nothing without breakpoints and goes with that instruction too.
                    s->Shadow = 0;
                    s->SystemFlags &= ~RFlags.Rf;
                }
                else if (((s->Shadow | debug) | (int)(s->SystemFlags & (RFlags.Tf | RFlags.Rf))) != 0)
                {
                    if (Step(s, out exit))
                        return exit;
                    continue;
                }
            }
            ulong rip = s->Rip;
            ulong linear = s->Bitness == 64 ? rip : (uint)(s->Cs.Base + rip);
            JumpEntry* e = jumpCache + JumpIndex(linear);
            Block* block = e->Block;
            if (e->Key != (linear ^ s->ModeKey) || !IsCurrent(e->Epoch) || !block->IsValid)
            {
                block = FetchBlock(s, linear);
                if (block == null)
                {
                    if (!DeliverRaised(s, EventKind.HardwareException))
                        return new ProcessorExit(ExitReason.Shutdown);
                    continue;
                }
            }
            if (s->Bitness != 64 && (uint)rip + (ulong)block->Length - 1 > s->Cs.Limit)
            {
                if (Step(s, out ProcessorExit exit))
                    return exit;
                continue;
            }
            s->Gpr[17] = rip;
            MicroOp* op = block->Ops;
            MicroOp* end = op + block->Count;
            Outcome outcome;
            do
            {
                outcome = op->Handler(this, s, op);
                if (outcome != Outcome.Next)
                    break;
                op++;
            }
            while (op != end);
            if (outcome == Outcome.Next)
            {
                instructions += block->Count;
                s->Rip = s->Bitness == 64 ? rip + (ulong)block->Length : (uint)(rip + (ulong)block->Length);
            }
            else
            {
                instructions += op - block->Ops + 1;
                if (outcome == Outcome.Jump)
                    NoteBranch(rip + op->Offset, op->Length, s->Rip);
                else if (Finish(s, op, outcome, out ProcessorExit exit))
                    return exit;
            }
        }
    }

    /// <summary>Ends an instruction whose outcome was neither Next nor Jump; true: Run returns.</summary>
    private bool Finish(CpuState* s, MicroOp* op, Outcome outcome, out ProcessorExit exit)
    {
        ulong mask = s->Bitness == 64 ? ulong.MaxValue : uint.MaxValue;
        ulong here = (s->Gpr[17] + op->Offset) & mask, next = (here + op->Length) & mask;
        exit = default;
        switch (outcome)
        {
            case Outcome.Next:
            case Outcome.Stop:
                s->Rip = next;
                return false;
            case Outcome.Fault:
                instructions--;
                s->Rip = here;
                if (DeliverRaised(s, EventKind.HardwareException))
                    return false;
                exit = new ProcessorExit(ExitReason.Shutdown);
                return true;
            case Outcome.Trap:
                s->Rip = next;
                if (DeliverRaised(s, raisedVector is Vector.Breakpoint or Vector.Overflow ? EventKind.SoftwareException : EventKind.HardwareException))
                    return false;
                exit = new ProcessorExit(ExitReason.Shutdown);
                return true;
            case Outcome.Repeat:
                instructions--;
                s->Rip = here;
                // What comes between two iterations pushes RF = 1, so that the instruction does not meet its breakpoint again when it goes on
                // (Intel SDM vol. 3 section 18.3.1.1).
                s->SystemFlags |= RFlags.Rf;
                return false;
            default:
                s->Rip = next;
                exit = PendingExit;
                return true;
        }
    }

    /// <summary>
    /// Runs exactly one instruction with everything that is looked at between instructions: interrupt shadow, RF, TF, breakpoints and,
    /// outside 64-bit mode, the limit of CS.
    /// </summary>
    private bool Step(CpuState* s, out ProcessorExit exit) => hostDebug == 0 ? StepGuest(s, out exit) : StepDebugged(s, out exit);

    private bool StepGuest(CpuState* s, out ProcessorExit exit)
    {
        exit = default;
        steps++;
        ulong rip = s->Rip;
        ulong linear = s->Bitness == 64 ? rip : (uint)(s->Cs.Base + rip);
        if (s->PendingDebug != 0 && s->Shadow < MovSsShadow)
            return !DeliverPendingDebug(s, out exit);
        if ((debug & ExecuteBreakpoints) != 0 && (s->SystemFlags & RFlags.Rf) == 0 && s->Shadow < MovSsShadow && HitsExecuteBreakpoint(s, linear))
        {
            Raise(Vector.Debug);
            return !DeliverOrShutdown(s, EventKind.HardwareException, out exit);
        }
        Block* block = FetchBlock(s, linear);
        if (block == null)
            return !DeliverOrShutdown(s, EventKind.HardwareException, out exit);
        MicroOp* op = block->Ops;
        if (s->Bitness != 64 && (uint)rip + (ulong)op->Length - 1 > s->Cs.Limit)
        {
            RaiseGp();
            return !DeliverOrShutdown(s, EventKind.HardwareException, out exit);
        }
        uint before = s->SystemFlags;
        s->SystemFlags &= ~RFlags.Rf;
        s->Shadow = 0;
        s->Gpr[17] = rip;
        Outcome outcome = op->Handler(this, s, op);
        if (outcome == Outcome.Jump)
            NoteBranch(rip + op->Offset, op->Length, s->Rip);
        if (outcome is Outcome.Fault or Outcome.Repeat)
            s->SystemFlags |= before & RFlags.Rf;
        instructions++;
        if (outcome == Outcome.Fault)
            s->PendingDebug = hostHits = 0; // the fault takes the place of traps, and so do those of the restarted instruction
        bool leave = outcome != Outcome.Jump && Finish(s, op, outcome, out exit);
        if (outcome == Outcome.Fault || (leave && exit.Reason == ExitReason.Shutdown))
            return leave;

        // INT1 takes the place of traps that MOV SS has held off.
        if ((Iced.Intel.Code)op->Code == Iced.Intel.Code.Int1 && outcome == Outcome.Jump)
            s->PendingDebug = 0;

        // Traps after the instruction. A repeated string instruction traps after each iteration it made; software interrupts clear TF
        // on the way in and do not trap (Intel SDM vol. 3 section 18.3.1.4).
        if (((IsSystemCall(op) ? s->SystemFlags : before) & RFlags.Tf) != 0 && outcome != Outcome.Trap && !IsSoftwareInterrupt(op))
            s->PendingDebug |= Dr6SingleStep;
        if (s->PendingDebug != 0 && s->Shadow < MovSsShadow)
        {
            if (!DeliverPendingDebug(s, out ProcessorExit shutdown))
            {
                exit = shutdown;
                return true;
            }
            if (leave && exit.Reason == ExitReason.Halted)
            {
                // The trap wakes a processor that has just executed HLT.
                s->Activity = (int)ActivityState.Running;
                leave = false;
            }
        }
        return leave;
    }

    private bool DeliverPendingDebug(CpuState* s, out ProcessorExit exit)
    {
        s->Dr[6] = (s->Dr[6] & ~Dr6Breakpoints) | s->PendingDebug;
        s->PendingDebug = 0;
        Raise(Vector.Debug);
        return DeliverOrShutdown(s, EventKind.HardwareException, out exit);
    }

    /// <summary>Value of <see cref="CpuState.Shadow"/> after MOV SS and POP SS, which hold debug exceptions off too; STI leaves 1.</summary>
    internal const int MovSsShadow = 2;

    private static bool IsSoftwareInterrupt(MicroOp* op) =>
        (Iced.Intel.Code)op->Code is Iced.Intel.Code.Int_imm8 or Iced.Intel.Code.Int3 or Iced.Intel.Code.Into or Iced.Intel.Code.Int1;

    // SYSCALL and SYSRET look at TF when they are done: IA32_FMASK can keep the trap out of the kernel, and the way back takes it.
    private static bool IsSystemCall(MicroOp* op) =>
        (Iced.Intel.Code)op->Code is Iced.Intel.Code.Syscall or Iced.Intel.Code.Sysretd or Iced.Intel.Code.Sysretq;

    private bool HitsExecuteBreakpoint(CpuState* s, ulong linear)
    {
        ulong hits = 0;
        for (int i = 0; i < 4; i++)
            if (((s->Dr[7] >> (i * 2)) & 3) != 0 && ((s->Dr[7] >> (16 + (i * 4))) & 3) == 0 && s->Dr[i] == linear)
                hits |= 1UL << i;
        if (hits == 0)
            return false;
        s->Dr[6] = (s->Dr[6] & ~Dr6Breakpoints) | hits;
        return true;
    }

    /// <summary>Looks at everything that is not plain execution; true: Run returns <paramref name="exit"/>.</summary>
    private bool Attend(CpuState* s, out ProcessorExit exit)
    {
        exit = default;
        if ((hostDebug & HostReport) != 0)
        {
            exit = ReportStop(s);
            return true;
        }
        var request = (Request)Volatile.Read(ref s->Request);
        bool halted = s->Activity == (int)ActivityState.Halted;
        if ((request & Request.TlbShootdown) != 0)
        {
            ClearRequest(Request.TlbShootdown);
            ExecutionGate.Leave(this);
            gate.Enter(this);
        }
        if ((request & Request.CodeChanged) != 0)
        {
            ClearRequest(Request.CodeChanged);
            translation?.DropChangedCode();
        }
        if ((request & Request.HandlerExit) != 0)
        {
            ClearRequest(Request.HandlerExit);
            exit = new ProcessorExit(ExitReason.HandlerRequest);
            return true;
        }
        if ((request & Request.Kick) != 0)
        {
            ClearRequest(Request.Kick);
            exit = new ProcessorExit(ExitReason.Interrupted);
            return true;
        }
        if ((request & Request.Init) != 0)
        {
            ClearRequest(Request.Init | Request.Nmi | Request.SecondNmi | Request.Injected);
            ResetState(init: true);
            UpdateMode();
            FlushTlb();
            s->Activity = (int)(Index == 0 ? ActivityState.Running : ActivityState.WaitForStartup);
        }
        switch ((ActivityState)s->Activity)
        {
            case ActivityState.WaitForStartup:
                if (((Request)Volatile.Read(ref s->Request) & Request.Startup) == 0)
                {
                    exit = new ProcessorExit(ExitReason.WaitForStartup);
                    return true;
                }
                StartUp(s);
                break;
            case ActivityState.Shutdown:
                exit = new ProcessorExit(ExitReason.Shutdown);
                return true;
        }
        // A start-up IPI to a processor that does not wait for one is ignored.
        if ((request & (Request.Startup | Request.Init)) == Request.Startup)
            DropStartup();
        if (hostDebug != 0 && HoldsInterrupts(s))
            request &= ~(Request.Nmi | Request.Interrupt);
        if ((request & Request.Injected) != 0)
        {
            // Acknowledged before the state was saved: whether interrupts are on was asked then.
            ClearRequest(Request.Injected);
            s->Activity = (int)ActivityState.Running;
            if (!DeliverEvent(s, EventKind.ExternalInterrupt, injectedVector))
            {
                exit = new ProcessorExit(ExitReason.Shutdown);
                return true;
            }
        }
        else if ((request & Request.Nmi) != 0 && s->NmiBlocked == 0 && s->Shadow == 0)
        {
            // In this order: one that comes in between must find either the first still there and not blocked, or the latch free.
            TakeNmi();
            s->NmiBlocked = 1;
            s->Activity = (int)ActivityState.Running;
            if (!DeliverEvent(s, EventKind.Nmi, Vector.Nmi))
            {
                exit = new ProcessorExit(ExitReason.Shutdown);
                return true;
            }
        }
        else if ((request & Request.Interrupt) != 0 && (s->SystemFlags & RFlags.If) != 0 && s->Shadow == 0)
        {
            int vector = Handler.AcknowledgeInterrupt();
            if (vector >= 0)
            {
                interrupts++;
                s->Activity = (int)ActivityState.Running;
                if (!DeliverEvent(s, EventKind.ExternalInterrupt, vector))
                {
                    exit = new ProcessorExit(ExitReason.Shutdown);
                    return true;
                }
            }
        }
        else if ((request & Request.InterruptWindow) != 0 && (s->SystemFlags & RFlags.If) != 0 && s->Shadow == 0)
        {
            ClearRequest(Request.InterruptWindow);
            exit = new ProcessorExit(ExitReason.InterruptWindow);
            return true;
        }
        if (s->Activity == (int)ActivityState.Halted)
        {
            exit = new ProcessorExit(ExitReason.Halted);
            return true;
        }
        if (halted && (hostDebug & HostStep) != 0)
        {
            // What ended the halt is this step.
            hostHits |= GuestDebugBits.SingleStep;
            exit = ReportStop(s);
            return true;
        }
        return false;
    }

    private void StartUp(CpuState* s)
    {
        ClearRequest(Request.Startup);
        s->Cs.Selector = (ushort)(startupVector << 8);
        s->Cs.Base = (ulong)startupVector << 12;
        s->Rip = 0;
        s->Activity = (int)ActivityState.Running;
        UpdateMode();
        ForgetCodeMappings();
    }

    private volatile int startupVector;
    private byte injectedVector;

    /// <summary>
    /// NMI; any thread. A processor that handles one latches one more. This one may look a block later than a real one would, and by then
    /// two may have come, of which the first would be in its handler already.
    /// </summary>
    internal void RaiseNmi()
    {
        ref int word = ref State->Request;
        int before, bit;
        do
        {
            before = Volatile.Read(ref word);
            bit = (int)((before & (int)Request.Nmi) != 0 && Volatile.Read(ref State->NmiBlocked) == 0 ? Request.SecondNmi : Request.Nmi);
        }
        while (Interlocked.CompareExchange(ref word, before | bit, before) != before);
        translation?.Poke();
    }

    // The second is set only beside the first, and goes first.
    private void TakeNmi()
    {
        ref int word = ref State->Request;
        int before, bit;
        do
        {
            before = Volatile.Read(ref word);
            bit = (int)((before & (int)Request.SecondNmi) != 0 ? Request.SecondNmi : Request.Nmi);
        }
        while (Interlocked.CompareExchange(ref word, before & ~bit, before) != before);
    }

    // INIT and another start-up IPI may have come since the caller looked: that one is for the processor as it will be after INIT.
    private void DropStartup()
    {
        ref int word = ref State->Request;
        int before;
        do
        {
            before = Volatile.Read(ref word);
            if ((before & (int)Request.Init) != 0)
                return;
        }
        while (Interlocked.CompareExchange(ref word, before & ~(int)Request.Startup, before) != before);
    }

    /// <summary>INIT; any thread. Start-up IPIs from before it are void; one that comes after it waits until INIT has been taken.</summary>
    internal void RaiseInit()
    {
        ClearRequest(Request.Startup);
        SetRequest(Request.Init);
    }

    /// <summary>Start-up IPI; any thread.</summary>
    internal void RaiseStartup(byte vector)
    {
        startupVector = vector;
        SetRequest(Request.Startup);
    }

    private bool DeliverRaised(CpuState* s, EventKind kind)
    {
        if (raisedVector < 0)
        {
            NoteForDebugger();
            return true;
        }
        exceptions++;
        ulong from = s->Rip;
        if (!Deliver(s, kind, raisedVector, raisedHasError, raisedError))
            return Shutdown(s);
        NoteBranch(from, 0, s->Rip);
        return true;
    }

    private bool DeliverEvent(CpuState* s, EventKind kind, int vector) => Deliver(s, kind, vector, hasError: false, 0) || Shutdown(s);

    private bool DeliverOrShutdown(CpuState* s, EventKind kind, out ProcessorExit exit)
    {
        exit = new ProcessorExit(ExitReason.Shutdown);
        return DeliverRaised(s, kind);
    }

    private static bool Shutdown(CpuState* s)
    {
        s->Activity = (int)ActivityState.Shutdown;
        return false;
    }

    /// <summary>Whether Run would do something now.</summary>
    internal bool HasWork
    {
        get
        {
            CpuState* s = State;
            var request = (Request)Volatile.Read(ref s->Request);
            if ((request & (Request.Kick | Request.Init | Request.HandlerExit)) != 0)
                return true;
            return (ActivityState)s->Activity switch
            {
                ActivityState.WaitForStartup => (request & Request.Startup) != 0,
                ActivityState.Shutdown => false,
                ActivityState.Halted => ((request & Request.Nmi) != 0 && s->NmiBlocked == 0)
                    || ((request & (Request.Interrupt | Request.InterruptWindow)) != 0 && (s->SystemFlags & RFlags.If) != 0),
                _ => true,
            };
        }
    }

    // A conditional branch that is not taken goes on behind itself.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private void NoteBranch(ulong from, uint length, ulong to)
    {
        if (to == from + length)
            return;
        long at = branchNext & ((2 * BranchRing) - 1);
        branches[at] = from;
        branches[at + 1] = to;
        branchNext += 2;
    }

    /// <summary>The last branches taken and exceptions delivered, newest first.</summary>
    internal List<(ulong From, ulong To)> LastBranches()
    {
        var list = new List<(ulong, ulong)>();
        for (long next = branchNext - 2; next >= 0 && list.Count < BranchRing; next -= 2)
        {
            long at = next & ((2 * BranchRing) - 1);
            list.Add((branches[at], branches[at + 1]));
        }
        return list;
    }
}
