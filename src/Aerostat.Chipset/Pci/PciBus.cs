namespace Aerostat.Chipset;

/// <summary>
/// PCI bus 0 with its 32 device slots of 8 functions: PCI Local Bus specification 3.0, chapter 6.
/// <para>Not emulated: bridges and further buses; a cycle nobody claims reads as all ones.</para>
/// </summary>
public sealed class PciBus
{
    private readonly Lock _lock = new();
    private readonly IPciFunction?[] _functions = new IPciFunction?[256];

    /// <summary>Puts a function into a slot.</summary>
    /// <param name="device">0..31.</param>
    /// <param name="function">0..7; function 0 of a device must exist for the others to be found.</param>
    /// <param name="target">The function.</param>
    /// <exception cref="InvalidOperationException">The slot is taken.</exception>
    public void Attach(int device, int function, IPciFunction target)
    {
        ArgumentOutOfRangeException.ThrowIfGreaterThan((uint)device, 31u);
        ArgumentOutOfRangeException.ThrowIfGreaterThan((uint)function, 7u);
        lock (_lock)
        {
            ref IPciFunction? slot = ref _functions[device << 3 | function];
            if (slot is not null)
                throw new InvalidOperationException($"PCI slot 00:{device:x2}.{function} is taken.");
            slot = target;
        }
    }

    /// <summary>Takes a function out of its slot; does nothing when the slot is empty.</summary>
    public void Detach(int device, int function)
    {
        lock (_lock)
            _functions[(device & 31) << 3 | function & 7] = null;
    }

    /// <summary>The functions and their slots, in order.</summary>
    public IReadOnlyList<(int Device, int Function, IPciFunction Target)> Functions
    {
        get
        {
            lock (_lock)
                return [.. _functions.Index().Where(f => f.Item is not null).Select(f => (f.Index >> 3, f.Index & 7, f.Item!))];
        }
    }

    /// <summary>
    /// A configuration read of 1, 2 or 4 bytes that does not cross a dword; <paramref name="address"/> is bus &lt;&lt; 20 |
    /// device &lt;&lt; 15 | function &lt;&lt; 12 | offset.
    /// </summary>
    internal uint Read(uint address, int size)
    {
        if (address >> 20 == 0)
        {
            lock (_lock)
            {
                if (_functions[address >> 12 & 0xFF] is { } target)
                    return target.ReadConfig((int)(address & 0xFFF), size);
            }
        }
        return uint.MaxValue >> (32 - 8 * size);
    }

    internal void Write(uint address, int size, uint value)
    {
        if (address >> 20 != 0)
            return;
        lock (_lock)
            _functions[address >> 12 & 0xFF]?.WriteConfig((int)(address & 0xFFF), size, value & uint.MaxValue >> (32 - 8 * size));
    }
}
