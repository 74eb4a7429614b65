using Aerostat.Interrupts;

namespace Aerostat.Chipset;

/// <summary>What became of an interrupt at its receivers; with several, the highest counts.</summary>
internal enum Reception
{
    /// <summary>Nobody listens: masked, disabled, or without a destination.</summary>
    Lost,

    /// <summary>The same interrupt was already waiting to be taken: the guest will see one of the two.</summary>
    Merged,

    /// <summary>It waits to be taken.</summary>
    Accepted,
}

/// <summary>
/// A wire that says whether an edge reached the guest and when the guest has taken it, so that a periodic timer can make up for
/// ticks that the guest had no time for.
/// </summary>
internal interface ITickLine : IInterruptLine
{
    /// <summary>One edge.</summary>
    Reception Tick();

    /// <summary>
    /// Called when a processor has taken an edge of this line (INTA). On that processor's thread, without any lock; it may come
    /// for an interrupt of another line that shares the vector.
    /// </summary>
    Action? Taken { set; }
}
