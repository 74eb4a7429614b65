using Aerostat.Processors;
using Aerostat.X86;

namespace Aerostat.Kvm;

/// <content>The loop around KVM_RUN, and what other threads ask of it.</content>
internal sealed unsafe partial class KvmProcessor
{
    private const ulong ApicBaseAddress = 0xFEE0_0000, ApicBaseBootstrap = 1 << 8, ApicBaseEnable = 1 << 11;

    private readonly Lock pinLock = new();
    private ActivityState activity;
    // Raised with every request; the requests themselves follow. Changed by any thread.
    private int attention;
    private volatile bool interruptRequest, kickRequest, initRequest;
    private volatile int nmiRequests, startupVector = -1;
    // The last exit was in the middle of an instruction: KVM_RUN has to be called once more before there is a state to speak of.
    private bool incomplete;
    // The state was replaced: what the shared page says about interrupts is older.
    private bool stale = true;
    private bool localApicEnabled = true;
    private bool windowWanted;
    private long entries, interrupts, returns;
    private volatile bool inGuest;

    /// <inheritdoc/>
    public ProcessorExit Run(IExitHandler handler)
    {
        Enter();
        try
        {
            timestamp.Resume();
            Plant(all: true);
            BeginStepOver();
            ProcessorExit exit = Loop(handler);
            timestamp.Anchor();
            return exit;
        }
        finally
        {
            // Also after an error: others may be waiting for this one to have stepped.
            EndStepOver();
            Leave();
        }
    }

    private ProcessorExit Loop(IExitHandler handler)
    {
        while (true)
        {
            ProcessorExit exit;
            bool nmi = false;
            if (Volatile.Read(ref attention) != 0)
            {
                run->ImmediateExit = 0;
                Interlocked.Exchange(ref attention, 0);
                if (Attend(handler, ref nmi, out exit))
                    return exit;
            }
            if (activity != ActivityState.Running && StaysOut(handler, out exit))
                return exit;
            if (localApics is null && localApicEnabled != handler.LocalApicEnabled)
                FollowLocalApic(handler.LocalApicEnabled);
            if (debug.Code.Count != 0 && steppingOver is null)
                Plant(all: false);
            ulong priority = 0;
            if (localApics is null)
                run->Cr8 = priority = handler.TaskPriority;
            run->RequestInterruptWindow = OfferInterrupt(handler, nmi) || windowWanted ? (byte)1 : (byte)0;
            if (activity == ActivityState.Shutdown)
                return new ProcessorExit(ExitReason.Shutdown);
            if (windowWanted && !stale && !injected && !incomplete && run->ReadyForInterrupt != 0)
                return OpenWindow();
            if (EnterOnce(handler, priority, out exit))
                return exit;
            if (handler.LeaveRequested)
                return Complete(handler, out exit) ? exit : new ProcessorExit(ExitReason.HandlerRequest);
        }
    }

    /// <summary>KVM_RUN once, and what it came back for. True: Run returns.</summary>
    private bool EnterOnce(IExitHandler handler, ulong priority, out ProcessorExit exit)
    {
        entries++;
        inGuest = true;
        // Whoever replaces memory slots, or wants the guest for itself, forbids entries, then looks whether somebody is inside.
        Interlocked.MemoryBarrier();
        while (!slots.MayEnter(this))
        {
            inGuest = false;
            slots.WaitToEnter();
            inGuest = true;
            Interlocked.MemoryBarrier();
        }
        int result = KvmCalls.Control(fd, KvmIoctl.Run);
        inGuest = false;
        Volatile.Write(ref returns, returns + 1);
        stale = false;
        gathered?.Drain((byte*)run, handler);
        if (localApics is null && run->Cr8 != priority)
            handler.TaskPriority = run->Cr8;
        if (result >= 0)
            return Dispatch(handler, out exit);
        incomplete = injected = false;
        if (result is -KvmCalls.Interrupted or -KvmCalls.TryAgain)
        {
            exitCounts[(int)KvmExit.Interrupted]++;
            KvmCalls.ConsumeKick();
            // In this order: whoever raises attention sets the flag afterwards.
            run->ImmediateExit = 0;
            Interlocked.MemoryBarrier();
            exit = default;
            return false;
        }
        exit = new ProcessorExit(ExitReason.InternalError, (ulong)-result);
        return true;
    }

    /// <summary>
    /// Ends an instruction that waits for what was read from a port, an address or an MSR, without a further one being run. True: that itself
    /// gave a reason to return.
    /// </summary>
    private bool Complete(IExitHandler handler, out ProcessorExit exit)
    {
        exit = default;
        while (incomplete)
        {
            run->ImmediateExit = 1;
            run->RequestInterruptWindow = 0;
            ulong priority = 0;
            if (localApics is null)
                run->Cr8 = priority = handler.TaskPriority;
            if (EnterOnce(handler, priority, out exit))
                return true;
        }
        return false;
    }

    // What other threads have asked for. True: Run returns.
    private bool Attend(IExitHandler handler, ref bool nmi, out ProcessorExit exit)
    {
        exit = default;
        if (kickRequest)
        {
            if (Complete(handler, out exit))
            {
                Interlocked.Exchange(ref attention, 1);
                return true;
            }
            kickRequest = false;
            // The other requests keep until the next Run.
            Interlocked.Exchange(ref attention, 1);
            exit = new ProcessorExit(ExitReason.Interrupted);
            return true;
        }
        if (initRequest)
        {
            if (Complete(handler, out exit))
                return true;
            initRequest = false;
            nmiRequests = 0;
            Initialize();
        }
        int startup = startupVector;
        if (startup >= 0)
        {
            startupVector = -1;
            if (activity == ActivityState.WaitForStartup)
                StartUp((byte)startup);
        }
        while (nmiRequests > 0 && activity != ActivityState.WaitForStartup)
        {
            lock (pinLock)
                nmiRequests--;
            nmi = true;
            _ = KvmCalls.Control(fd, KvmIoctl.Nmi);
        }
        return false;
    }

    // A processor that does not run: whether it goes on doing so, and what to tell.
    private bool StaysOut(IExitHandler handler, out ProcessorExit exit)
    {
        exit = default;
        switch (activity)
        {
            case ActivityState.WaitForStartup:
                exit = new ProcessorExit(ExitReason.WaitForStartup);
                return true;
            case ActivityState.Shutdown:
                exit = new ProcessorExit(ExitReason.Shutdown);
                return true;
        }
        if (NmiIsDue())
        {
            activity = ActivityState.Running;
            return false;
        }
        if (interruptRequest && InterruptsEnabled)
        {
            int vector = handler.AcknowledgeInterrupt();
            if (vector >= 0)
            {
                if (!TryInject(vector))
                {
                    exit = new ProcessorExit(ExitReason.Shutdown);
                    return true;
                }
                activity = ActivityState.Running;
                return false;
            }
        }
        exit = windowWanted && InterruptsEnabled ? OpenWindow() : new ProcessorExit(ExitReason.Halted);
        return true;
    }

    /// <inheritdoc/>
    public bool HasWork
    {
        get
        {
            if (kickRequest || initRequest)
                return true;
            return activity switch
            {
                ActivityState.WaitForStartup => startupVector >= 0,
                ActivityState.Shutdown => false,
                ActivityState.Halted => ((interruptRequest || windowWanted) && InterruptsEnabled) || ((nmiRequests > 0 || NmiIsPending) && NmiIsOpen),
                _ => true,
            };
        }
    }

    private ProcessorExit OpenWindow()
    {
        windowWanted = false;
        return new ProcessorExit(ExitReason.InterruptWindow);
    }

    /// <inheritdoc/>
    public void RequestInterruptWindow() => windowWanted = true;

    // Gives the kernel a vector when the guest can take one now. True: it is to tell when the guest can.
    private bool OfferInterrupt(IExitHandler handler, bool nmiFirst)
    {
        if (!interruptRequest || injected || HoldsInterrupts)
            return interruptRequest && !HoldsInterrupts;
        if (stale || nmiFirst || run->ReadyForInterrupt == 0)
            return true;
        int vector = handler.AcknowledgeInterrupt();
        if (vector >= 0)
            TryInject(vector);
        return interruptRequest;
    }

    // False: there is no room for it on the stack, and the processor has shut down.
    private bool TryInject(int vector)
    {
        interrupts++;
        if (!incomplete && !HasRoomForInterrupt(vector))
            return false;
        injected = true;
        uint number = (byte)vector;
        KvmException.Check(KvmCalls.Control(fd, KvmIoctl.Interrupt, &number), $"interrupt {vector}");
        return true;
    }

    // The flag in CPUID that follows IA32_APIC_BASE is kept by the kernel, which does not see the guest's writes.
    private void FollowLocalApic(bool enabled)
    {
        localApicEnabled = enabled;
        WriteMsr(Msr.ApicBase, ApicBaseAddress | (Index == 0 ? ApicBaseBootstrap : 0) | (enabled ? ApicBaseEnable : 0));
    }

    /// <inheritdoc/>
    public void Kick()
    {
        kickRequest = true;
        Notify();
        WakeUp?.Invoke();
    }

    /// <inheritdoc/>
    public void SetInterruptRequest(bool asserted)
    {
        interruptRequest = asserted;
        if (!asserted)
            return;
        Notify();
        WakeUp?.Invoke();
    }

    /// <inheritdoc/>
    public void RaiseNmi()
    {
        // One that is being served and one that waits: the kernel drops what is more.
        lock (pinLock)
            nmiRequests = Math.Min(nmiRequests + 1, 2);
        Notify();
        WakeUp?.Invoke();
    }

    /// <inheritdoc/>
    public void RaiseInit()
    {
        startupVector = -1;
        initRequest = true;
        Notify();
        WakeUp?.Invoke();
    }

    /// <inheritdoc/>
    public void RaiseStartup(byte vector)
    {
        startupVector = vector;
        Notify();
        WakeUp?.Invoke();
    }
}
