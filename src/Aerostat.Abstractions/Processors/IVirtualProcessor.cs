using Aerostat.Interrupts;

namespace Aerostat.Processors;

/// <summary>
/// A virtual processor. All members belong to the thread that runs it, except <see cref="Kick"/> and those of
/// <see cref="IProcessorPins"/>, which may be called from any thread at any time.
/// </summary>
public interface IVirtualProcessor : IProcessorPins, IDisposable
{
    /// <summary>vCPU number.</summary>
    int Index { get; }

    /// <summary>The guest's time-stamp counter.</summary>
    ITimestampCounter Timestamp { get; }

    /// <summary>
    /// Enters the guest and stays there until something must be decided outside. What can be served in place is
    /// served by calling <paramref name="handler"/>. A processor that waits for a start-up IPI returns
    /// <see cref="ExitReason.WaitForStartup"/>; one that has halted returns <see cref="ExitReason.Halted"/>, and its next
    /// Run returns Halted again unless an interrupt, NMI, INIT or SIPI has arrived meanwhile.
    /// </summary>
    ProcessorExit Run(IExitHandler handler);

    /// <summary>Makes the current or else the next <see cref="Run"/> return <see cref="ExitReason.Interrupted"/> soon.</summary>
    void Kick();

    /// <summary>
    /// Makes Run return <see cref="ExitReason.InterruptWindow"/>, once, as soon as the guest can take an external interrupt: interrupts are on and
    /// no STI or MOV SS shadow holds. For owners that want to decide at that moment; vectors themselves come by
    /// <see cref="IExitHandler.AcknowledgeInterrupt"/>. On the processor's thread, outside Run.
    /// </summary>
    void RequestInterruptWindow();

    /// <summary>Whether the code segment is a 64-bit one. On the processor's thread; cheap, for exit handlers.</summary>
    bool IsIn64BitMode
    {
        get
        {
            const ulong longModeActive = 1 << 10;
            const uint longSegment = 1 << 13;
            ProcessorState state = GetState();
            return (state.Efer & longModeActive) != 0 && (state.Segments[1].Attributes & longSegment) != 0;
        }
    }

    /// <summary>Reads the whole architectural state.</summary>
    ProcessorState GetState();

    /// <summary>Replaces the whole architectural state.</summary>
    void SetState(ProcessorState state);

    /// <summary>Power-on reset (Intel SDM vol. 3 section 10.1): vCPU 0 starts at F000:FFF0, the others wait for SIPI.</summary>
    void Reset();

    /// <summary>What <see cref="SetGuestDebug"/> accepts.</summary>
    GuestDebugSupport DebugSupport => GuestDebugSupport.None;

    /// <summary>
    /// Replaces what the host's debugger asks for, from the next <see cref="Run"/> on; <see cref="GuestDebug.None"/> ends debugging without a
    /// trace. What is asked for survives <see cref="Reset"/> and <see cref="SetState"/>. Stops come as <see cref="ExitReason.Debug"/>.
    /// </summary>
    /// <exception cref="GuestDebugException">The request is wrong; nothing has changed.</exception>
    void SetGuestDebug(GuestDebug debug) => debug.Validate(DebugSupport);

    /// <summary>Whether a halted processor now has a reason to run (interrupt with IF set, NMI, INIT, SIPI, kick).</summary>
    bool HasWork { get; }

    /// <summary>
    /// Called, from any thread, when <see cref="HasWork"/> may have become true: the owner wakes the sleeping vCPU thread.
    /// </summary>
    Action? WakeUp { get; set; }

    /// <summary>Counters since creation, for statistics. May be read from another thread; values may then be slightly old.</summary>
    ProcessorCounters Counters { get; }

    /// <summary>The last branches taken, newest first, for crash reports; may be empty.</summary>
    IReadOnlyList<(ulong From, ulong To)> LastBranches { get; }

    /// <summary>
    /// After a triple fault: the event whose delivery began it, then each exception that the delivery met, the double fault among them; empty
    /// where the processor does not tell. On the processor's thread.
    /// </summary>
    IReadOnlyList<DeliveredEvent> FaultsBeforeShutdown => [];
}

/// <summary>Counters of one virtual processor.</summary>
public sealed class ProcessorCounters
{
    /// <summary>Guest instructions completed.</summary>
    public long Instructions;

    /// <summary>Named counters of this processor kind: slow paths, blocks decoded, TLB misses and the like.</summary>
    public Dictionary<string, long> Named { get; } = [];
}
