using Aerostat.Devices;

namespace Aerostat.Chipset;

/// <summary>
/// A port that ends the run with the exit status (value &lt;&lt; 1) | 1, as kvm-unit-tests expects ("isa-debug-exit").
/// <para>Not emulated: nothing; it has no state.</para>
/// </summary>
public sealed class DebugExit : IDevice, IPortDevice
{
    private readonly Action<int> _exit;

    /// <summary>Makes the port.</summary>
    /// <param name="port">Its address.</param>
    /// <param name="exit">Called on a vCPU thread with the exit status, possibly several times; must return at once.</param>
    public DebugExit(ushort port, Action<int> exit)
    {
        Port = port;
        _exit = exit;
    }

    /// <inheritdoc/>
    public string Name => "debug-exit";

    /// <summary>Its address; it takes four ports, so that a dword output is one access.</summary>
    public ushort Port { get; }

    /// <inheritdoc/>
    public void Reset()
    {
    }

    /// <inheritdoc/>
    public uint ReadPort(ushort port, int size) => 0;

    /// <inheritdoc/>
    public void WritePort(ushort port, int size, uint value)
    {
        if (port == Port)
            _exit(unchecked((int)(value << 1 | 1)));
    }
}
