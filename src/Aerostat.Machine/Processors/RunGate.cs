namespace Aerostat.Machine;

/// <summary>
/// One flag that all vCPUs of a machine look at before each entry and after each call to a device: when it is up, no further
/// guest instruction runs until the machine has decided what becomes of a reset, power-off or the like.
/// </summary>
internal sealed class RunGate
{
    private volatile bool closed;

    /// <summary>Whether vCPUs must leave the guest and stay out.</summary>
    public bool Closed
    {
        get => closed;
        set => closed = value;
    }
}
