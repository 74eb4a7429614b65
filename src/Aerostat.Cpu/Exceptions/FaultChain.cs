using Aerostat.Processors;
using Aerostat.X86;

namespace Aerostat.Cpu;

/// <summary>
/// The events whose delivery failed one after the other: what a triple fault began with is nowhere in the state it leaves behind.
/// </summary>
internal sealed unsafe class FaultChain(int longest)
{
    private readonly DeliveredEvent[] events = new DeliveredEvent[longest];
    private int count;

    /// <summary>First first.</summary>
    public IReadOnlyList<DeliveredEvent> Read() => events[..count];

    /// <summary>A new delivery has met its first exception.</summary>
    public void Clear() => count = 0;

    /// <summary>Adds an event that is to be delivered.</summary>
    public void Add(CpuState* s, EventKind kind, int vector, bool hasError, uint error, ulong faultAddress)
    {
        if (count == events.Length)
            return;
        EventOrigin origin = kind switch
        {
            EventKind.HardwareException => EventOrigin.Exception,
            EventKind.ExternalInterrupt => EventOrigin.ExternalInterrupt,
            EventKind.Nmi => EventOrigin.Nmi,
            _ => EventOrigin.Instruction,
        };
        events[count++] = new DeliveredEvent(
            origin, vector, hasError ? error : null, origin == EventOrigin.Exception && vector == Vector.PageFault ? faultAddress : null, s->Cs.Selector, s->Rip);
    }
}
