namespace Aerostat.Chipset;

/// <summary>The far end of a serial line, for what the guest sends.</summary>
public interface ICharacterBackend
{
    /// <summary>
    /// Takes what the guest has sent. Called on vCPU threads, usually one byte at a time and never under a device lock; must
    /// return at once (a back end that can stall keeps its own bounded buffer and drops or pauses on its own side).
    /// </summary>
    void Write(ReadOnlySpan<byte> data);
}
