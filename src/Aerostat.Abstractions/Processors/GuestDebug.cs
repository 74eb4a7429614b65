namespace Aerostat.Processors;

/// <summary>What a hardware breakpoint looks for.</summary>
public enum BreakpointKind
{
    /// <summary>The instruction at the address is about to be executed.</summary>
    Execute,
    /// <summary>A byte of the range has been written.</summary>
    Write,
    /// <summary>A byte of the range has been read or written.</summary>
    ReadWrite,
}

/// <summary>A breakpoint as the processor's debug registers can hold it (Intel SDM vol. 3 section 18.2).</summary>
/// <param name="Kind">What it looks for.</param>
/// <param name="Address">Linear address, a multiple of <paramref name="Length"/>.</param>
/// <param name="Length">Bytes: 1 for <see cref="BreakpointKind.Execute"/>; otherwise 1, 2, 4 or 8.</param>
public readonly record struct HardwareBreakpoint(BreakpointKind Kind, ulong Address, int Length = 1);

/// <summary>What a processor can do for a debugger.</summary>
[Flags]
public enum GuestDebugSupport
{
    /// <summary>Nothing.</summary>
    None = 0,
    /// <summary>Up to <see cref="GuestDebug.MostHardware"/> hardware breakpoints.</summary>
    Hardware = 1,
    /// <summary>One instruction at a time.</summary>
    SingleStep = 2,
    /// <summary>Breakpoints by address, in any number, without a change to guest memory.</summary>
    Code = 4,
}

/// <summary>
/// What the host's debugger asks of one virtual processor. None of it is visible to the guest: its debug registers, DR6 and TF go on
/// working beside it, and pushed flags show its own TF alone.
/// </summary>
/// <remarks>
/// A processor stops before the instruction of an execute or code breakpoint, and after one that has met a data breakpoint. It does not stop
/// again at the address where it stopped last: the next Run executes that instruction first, unless the instruction pointer has been changed.
/// </remarks>
public sealed class GuestDebug
{
    /// <summary>Hardware breakpoints that there can be at a time.</summary>
    public const int MostHardware = 4;

    /// <summary>Code breakpoints that there can be at a time.</summary>
    public const int MostCode = 65536;

    /// <summary>No debugging.</summary>
    public static GuestDebug None { get; } = new();

    /// <summary>Up to <see cref="MostHardware"/> breakpoints; their place is their number in DR6.</summary>
    public IReadOnlyList<HardwareBreakpoint> Hardware { get; init; } = [];

    /// <summary>Linear addresses before whose instructions to stop.</summary>
    public IReadOnlySet<ulong> Code { get; init; } = new HashSet<ulong>();

    /// <summary>Stop after one instruction, or after the delivery of the exception it raises.</summary>
    public bool SingleStep { get; init; }

    /// <summary>
    /// Keep interrupts and NMIs pending while single-stepping, so that a step does not end in a handler. A processor that has halted takes them
    /// all the same: nothing else would end its step.
    /// </summary>
    public bool HoldInterrupts { get; init; } = true;

    /// <summary>Whether nothing is asked for.</summary>
    public bool IsNone => Hardware.Count == 0 && Code.Count == 0 && !SingleStep;

    /// <summary>Refuses what no processor can do.</summary>
    /// <param name="support">What this processor can do.</param>
    /// <exception cref="GuestDebugException">Too many breakpoints, a wrong length, an address that is not aligned, or something that is not supported.</exception>
    public void Validate(GuestDebugSupport support)
    {
        if (Hardware.Count > MostHardware)
            throw new GuestDebugException(GuestDebugError.TooMany, $"{Hardware.Count} hardware breakpoints; there are 0 to {MostHardware}");
        if (Code.Count > MostCode)
            throw new GuestDebugException(GuestDebugError.TooMany, $"{Code.Count} code breakpoints; there can be 0 to {MostCode}");
        foreach (HardwareBreakpoint b in Hardware)
        {
            if (b.Kind is < BreakpointKind.Execute or > BreakpointKind.ReadWrite)
                throw new GuestDebugException(GuestDebugError.Kind, $"breakpoint kind {(int)b.Kind}; it is 0 (execute), 1 (write) or 2 (read or write)");
            if (b.Kind == BreakpointKind.Execute && b.Length != 1)
                throw new GuestDebugException(GuestDebugError.Length, $"an execute breakpoint of {b.Length} bytes; its length is 1");
            if (b.Length is not (1 or 2 or 4 or 8))
                throw new GuestDebugException(GuestDebugError.Length, $"a breakpoint of {b.Length} bytes; its length is 1, 2, 4 or 8");
            if ((b.Address & ((ulong)b.Length - 1)) != 0)
                throw new GuestDebugException(GuestDebugError.Alignment, $"a breakpoint of {b.Length} bytes at 0x{b.Address:x}; its address is a multiple of {b.Length}");
        }
        GuestDebugSupport needed = (Hardware.Count != 0 ? GuestDebugSupport.Hardware : 0)
            | (Code.Count != 0 ? GuestDebugSupport.Code : 0)
            | (SingleStep ? GuestDebugSupport.SingleStep : 0);
        if ((needed & ~support) != 0)
            throw new GuestDebugException(GuestDebugError.Unsupported, $"this processor has no {needed & ~support} debugging; it has {support}");
    }
}

/// <summary>What is wrong with a <see cref="GuestDebug"/>.</summary>
public enum GuestDebugError
{
    /// <summary>More breakpoints than there can be.</summary>
    TooMany,
    /// <summary>No such kind of breakpoint.</summary>
    Kind,
    /// <summary>A length that breakpoints of this kind do not have.</summary>
    Length,
    /// <summary>The address is not a multiple of the length.</summary>
    Alignment,
    /// <summary>This processor cannot do it.</summary>
    Unsupported,
}

/// <summary>A <see cref="GuestDebug"/> was refused; what was in force before still is. The message names the valid range.</summary>
public sealed class GuestDebugException(GuestDebugError error, string message) : Exception(message)
{
    /// <summary>What is wrong.</summary>
    public GuestDebugError Error { get; } = error;
}

/// <summary>Bits of <see cref="ProcessorExit.Detail"/> for <see cref="ExitReason.Debug"/>: those of DR6, and one of ours.</summary>
public static class GuestDebugBits
{
    /// <summary>The hardware breakpoints by number.</summary>
    public const ulong Hardware = 15;

    /// <summary>DR6.BS: a single step is complete.</summary>
    public const ulong SingleStep = 1 << 14;

    /// <summary>A code breakpoint; above what DR6 has.</summary>
    public const ulong Code = 1UL << 32;
}
