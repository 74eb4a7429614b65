namespace Aerostat.Processors;

/// <summary>Why <see cref="IVirtualProcessor.Run"/> came back.</summary>
public enum ExitReason
{
    /// <summary>Kicked from another thread.</summary>
    Interrupted,
    /// <summary>HLT (or MWAIT) with nothing pending: sleep until <see cref="IVirtualProcessor.HasWork"/>.</summary>
    Halted,
    /// <summary>In the wait-for-SIPI state.</summary>
    WaitForStartup,
    /// <summary>The guest can take an external interrupt now (see <see cref="IVirtualProcessor.RequestInterruptWindow"/>).</summary>
    InterruptWindow,
    /// <summary>A debug event that belongs to the host's debugger. Detail: <see cref="GuestDebugBits"/>; Address: RIP.</summary>
    Debug,
    /// <summary>Triple fault. The processor is in the shutdown state until Reset.</summary>
    Shutdown,
    /// <summary>The processor refused to enter the guest. Detail: the hardware's error number.</summary>
    FailedEntry,
    /// <summary>The exit handler asked to leave (reset, power-off, debug-exit).</summary>
    HandlerRequest,
    /// <summary>The host's hypervisor could not go on with the guest. Detail: its own number for what went wrong.</summary>
    InternalError,
    /// <summary>Something this program does not know. Detail: the hardware's own reason code. Stays the last: counters are as many.</summary>
    Unknown,
}

/// <summary>An exit that the processor did not serve in place.</summary>
/// <param name="Reason">Why.</param>
/// <param name="Detail">Depends on the reason.</param>
/// <param name="Address">Where, for reasons that have a place.</param>
public readonly record struct ProcessorExit(ExitReason Reason, ulong Detail = 0, ulong Address = 0);
