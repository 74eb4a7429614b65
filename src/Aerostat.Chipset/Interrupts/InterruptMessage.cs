namespace Aerostat.Chipset;

/// <summary>Delivery mode of an interrupt message (Intel SDM vol. 3, 11.6.1, figure 11-12).</summary>
internal enum DeliveryMode : byte
{
    Fixed = 0,
    LowestPriority = 1,
    Smi = 2,
    Reserved = 3,
    Nmi = 4,
    Init = 5,
    Startup = 6,
    ExtInt = 7,
}

/// <summary>One message on the interrupt fabric.</summary>
/// <param name="Destination">APIC ID or logical destination.</param>
/// <param name="Wide">The destination has 32 bits (from an APIC in x2APIC mode) instead of 8.</param>
/// <param name="Logical">Logical destination mode.</param>
/// <param name="Mode">What to deliver.</param>
/// <param name="Vector">Vector, or page number of a start-up IPI.</param>
/// <param name="Level">Level-triggered: the EOI goes back to the I/O APICs.</param>
/// <param name="OneOf">Only one of the matching processors takes it (lowest priority).</param>
internal readonly record struct InterruptMessage(
    uint Destination, bool Wide, bool Logical, DeliveryMode Mode, byte Vector, bool Level, bool OneOf)
{
    /// <summary>The destination that means every processor.</summary>
    public bool IsBroadcast => Destination == (Wide ? 0xFFFF_FFFF : 0xFF);
}
