namespace Aerostat.Chipset;

/// <summary>One PCI function, as configuration cycles see it. Calls come from any vCPU thread; the bus serialises them.</summary>
public interface IPciFunction
{
    /// <summary>
    /// Reads 1, 2 or 4 bytes of configuration space. <paramref name="offset"/> is 0..4095 (0..255 through CF8/CFC) and naturally
    /// aligned.
    /// </summary>
    uint ReadConfig(int offset, int size);

    /// <summary>Writes 1, 2 or 4 bytes.</summary>
    void WriteConfig(int offset, int size, uint value);
}
