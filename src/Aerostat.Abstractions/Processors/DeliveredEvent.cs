namespace Aerostat.Processors;

/// <summary>Where an interrupt or exception comes from.</summary>
public enum EventOrigin
{
    /// <summary>An exception that the processor found.</summary>
    Exception,
    /// <summary>An interrupt controller.</summary>
    ExternalInterrupt,
    /// <summary>A non-maskable interrupt.</summary>
    Nmi,
    /// <summary>An instruction that asks for it: INT n, INT3, INTO, INT1.</summary>
    Instruction,
}

/// <summary>An interrupt or exception that a processor tried to deliver to its guest.</summary>
/// <param name="Origin">Where it comes from.</param>
/// <param name="Vector">Vector, 0..255.</param>
/// <param name="Error">Its error code, or null without one.</param>
/// <param name="FaultAddress">With a page fault: the linear address (CR2).</param>
/// <param name="Cs">Selector in CS when it was raised.</param>
/// <param name="Rip">Where it was raised: the return address, that of the instruction itself with a fault.</param>
public readonly record struct DeliveredEvent(EventOrigin Origin, int Vector, uint? Error, ulong? FaultAddress, ushort Cs, ulong Rip);
