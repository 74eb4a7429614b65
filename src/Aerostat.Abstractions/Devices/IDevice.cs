namespace Aerostat.Devices;

/// <summary>Anything on the board that a machine reset reaches.</summary>
public interface IDevice
{
    /// <summary>A short stable name, unique in the machine: "pit", "ioapic", "serial0".</summary>
    string Name { get; }

    /// <summary>Back to the power-on state.</summary>
    void Reset();
}

/// <summary>A device that answers port I/O. Calls may come from several vCPU threads at once: the device locks itself.</summary>
public interface IPortDevice
{
    /// <summary>Input of <paramref name="size"/> 1, 2 or 4 bytes; <paramref name="port"/> is absolute.</summary>
    uint ReadPort(ushort port, int size);

    /// <summary>Output of <paramref name="size"/> 1, 2 or 4 bytes.</summary>
    void WritePort(ushort port, int size, uint value);
}

/// <summary>A device that answers memory-mapped I/O. Calls may come from several vCPU threads at once: the device locks itself.</summary>
public interface IMmioDevice
{
    /// <summary>Read of <paramref name="size"/> 1, 2, 4 or 8 bytes at <paramref name="offset"/> from the device's base; may be unaligned.</summary>
    ulong ReadMmio(ulong offset, int size);

    /// <summary>Write of <paramref name="size"/> 1, 2, 4 or 8 bytes.</summary>
    void WriteMmio(ulong offset, int size, ulong value);
}
