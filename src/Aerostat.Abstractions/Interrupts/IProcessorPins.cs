namespace Aerostat.Interrupts;

/// <summary>The interrupt inputs of a virtual processor. Every member may be called from any thread and returns at once.</summary>
public interface IProcessorPins
{
    /// <summary>The INTR wire: while true, the processor asks for a vector as soon as it can take one.</summary>
    void SetInterruptRequest(bool asserted);

    /// <summary>Latches one NMI.</summary>
    void RaiseNmi();

    /// <summary>INIT: the processor resets to the wait-for-SIPI state.</summary>
    void RaiseInit();

    /// <summary>Start-up IPI: a processor waiting for it starts at <paramref name="vector"/> * 4096. Ignored otherwise.</summary>
    void RaiseStartup(byte vector);
}
