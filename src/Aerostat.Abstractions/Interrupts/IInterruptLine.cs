namespace Aerostat.Interrupts;

/// <summary>
/// A level-signalled wire into an interrupt controller. Edge-triggered receivers look at the change from false to true.
/// May be called from any thread.
/// </summary>
public interface IInterruptLine
{
    /// <summary>Drives the wire.</summary>
    void Set(bool asserted);
}

/// <summary>Where message-signalled interrupts go (Intel SDM vol. 3 section 11.11). May be called from any thread.</summary>
public interface IMessageInterrupts
{
    /// <summary>Delivers one message.</summary>
    void Send(ulong address, uint data);
}

/// <summary>Conveniences for wires.</summary>
public static class InterruptLineExtensions
{
    /// <summary>Raises and lowers the wire: one edge.</summary>
    public static void Pulse(this IInterruptLine line)
    {
        line.Set(true);
        line.Set(false);
    }
}
