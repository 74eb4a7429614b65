using Aerostat.Processors;

namespace Aerostat.Cpu;

/// <summary>The interpreter of one vCPU behind the seam that all processors share.</summary>
internal sealed unsafe class SoftwareProcessor(Interpreter interpreter) : IVirtualProcessor
{
    private readonly ProcessorCounters counters = new();

    /// <summary>The engine, for tests.</summary>
    internal Interpreter Interpreter => interpreter;

    /// <inheritdoc/>
    public int Index => interpreter.Index;

    /// <inheritdoc/>
    public ITimestampCounter Timestamp => interpreter.Timestamp;

    /// <inheritdoc/>
    public bool IsIn64BitMode => interpreter.State->Bitness == 64;

    /// <inheritdoc/>
    public bool HasWork => interpreter.HasWork;

    /// <inheritdoc/>
    public Action? WakeUp { get; set; }

    /// <inheritdoc/>
    public ProcessorCounters Counters
    {
        get
        {
            counters.Instructions = interpreter.instructions + interpreter.State->Executed;
            lock (counters.Named)
            {
                counters.Named["blocks-decoded"] = interpreter.blocksDecoded;
                counters.Named["jump-cache-misses"] = interpreter.jumpMisses;
                counters.Named["tlb-fills"] = interpreter.tlbFills;
                counters.Named["tlb-flushes"] = interpreter.tlbFlushes;
                counters.Named["mmio-reads"] = interpreter.mmioReads;
                counters.Named["mmio-writes"] = interpreter.mmioWrites;
                counters.Named["code-writes"] = interpreter.codeWrites;
                counters.Named["code-shootdowns"] = interpreter.shootdowns;
                counters.Named["blank-shootdowns"] = interpreter.blankShootdowns;
                counters.Named["spin-yields"] = interpreter.spinYields;
                counters.Named["interrupts"] = interpreter.interrupts;
                counters.Named["exceptions"] = interpreter.exceptions;
                counters.Named["single-steps"] = interpreter.steps;
                counters.Named["debug-stops"] = interpreter.debugStops;
                counters.Named["block-cache-evictions"] = interpreter.BlockEvictions;
                interpreter.TranslationCounters(counters.Named);
            }
            return counters;
        }
    }

    /// <inheritdoc/>
    public IReadOnlyList<(ulong From, ulong To)> LastBranches => interpreter.LastBranches();

    /// <inheritdoc/>
    public IReadOnlyList<DeliveredEvent> FaultsBeforeShutdown => interpreter.FaultsBeforeShutdown();

    /// <inheritdoc/>
    public ProcessorExit Run(IExitHandler handler) => interpreter.Run(handler);

    /// <inheritdoc/>
    public void Kick()
    {
        interpreter.SetRequest(Request.Kick);
        WakeUp?.Invoke();
    }

    /// <inheritdoc/>
    public void SetInterruptRequest(bool asserted)
    {
        if (!asserted)
        {
            interpreter.ClearRequest(Request.Interrupt);
            return;
        }
        interpreter.SetRequest(Request.Interrupt);
        WakeUp?.Invoke();
    }

    /// <inheritdoc/>
    public void RaiseNmi()
    {
        interpreter.RaiseNmi();
        WakeUp?.Invoke();
    }

    /// <inheritdoc/>
    public void RaiseInit()
    {
        interpreter.RaiseInit();
        WakeUp?.Invoke();
    }

    /// <inheritdoc/>
    public void RaiseStartup(byte vector)
    {
        interpreter.RaiseStartup(vector);
        WakeUp?.Invoke();
    }

    /// <inheritdoc/>
    public void RequestInterruptWindow() => interpreter.SetRequest(Request.InterruptWindow);

    /// <inheritdoc/>
    public ProcessorState GetState() => interpreter.GetState();

    /// <inheritdoc/>
    public void SetState(ProcessorState state)
    {
        interpreter.SetState(state);
        interpreter.UpdateMode();
        interpreter.ResetPcids();
        interpreter.FlushTlb();
    }

    /// <inheritdoc/>
    public GuestDebugSupport DebugSupport => GuestDebugSupport.Hardware | GuestDebugSupport.SingleStep | GuestDebugSupport.Code;

    /// <inheritdoc/>
    public void SetGuestDebug(GuestDebug debug)
    {
        ArgumentNullException.ThrowIfNull(debug);
        debug.Validate(DebugSupport);
        interpreter.SetGuestDebug(debug);
    }

    /// <inheritdoc/>
    public void Reset()
    {
        interpreter.ClearRequest((Request)~0);
        interpreter.ResetState(init: false);
        interpreter.UpdateMode();
        interpreter.ResetPcids();
        interpreter.FlushTlb();
    }

    /// <inheritdoc/>
    public void Dispose() => interpreter.Dispose();
}
