using Aerostat.Devices;

namespace Aerostat.Chipset;

/// <summary>
/// The memory addresses that PCI functions decode: what their base address registers say at the moment, as far as it lies in one of the
/// host bridge's windows. PCI Local Bus specification 3.0, 6.2.5.
/// <para>Not emulated: I/O space; where two functions decode the same address, the one that came first answers alone.</para>
/// </summary>
/// <remarks>Guests move base address registers while other vCPUs use them: the list is replaced as a whole and read without a lock.</remarks>
public sealed class PciMemorySpace
{
    private readonly Lock _lock = new();
    private readonly List<(ulong First, ulong Length)> _windows = [];
    private readonly Dictionary<PciEndpoint, List<IDisposable>> _attached = [];
    private Mapping[] _mappings = [];

    /// <summary>One base address register that decodes.</summary>
    /// <param name="Owner">The function.</param>
    /// <param name="First">First address.</param>
    /// <param name="Length">Bytes.</param>
    /// <param name="Target">What answers.</param>
    internal sealed record Mapping(PciEndpoint Owner, ulong First, ulong Length, IMmioDevice Target);

    /// <summary>What functions decode now, in the order in which they came.</summary>
    public IEnumerable<(string Name, ulong First, ulong Length)> Map => _mappings.Select(m => (m.Owner.Name, m.First, m.Length));

    /// <summary>The windows, in the order in which they were opened.</summary>
    public IReadOnlyList<(ulong First, ulong Length)> Windows => _windows;

    /// <summary>Passes writes to doorbells on; null: all come through the windows. Set before the first function is placed.</summary>
    public IDoorbells? Doorbells { get; init; }

    /// <summary>Opens a window; what is returned is to be put on the machine's bus there. Called while the board is built.</summary>
    public IMmioDevice OpenWindow(ulong first, ulong length)
    {
        _windows.Add((first, length));
        return new Window(this, first);
    }

    /// <summary>Replaces what one function decodes.</summary>
    internal void Replace(PciEndpoint owner, IReadOnlyList<Mapping> mappings)
    {
        lock (_lock)
        {
            IEnumerable<Mapping> others = _mappings.Where(m => m.Owner != owner);
            Mapping[] before = _mappings;
            _mappings = [.. others, .. mappings.Where(m => _windows.Any(w => m.First >= w.First && m.Length <= w.Length && m.First - w.First <= w.Length - m.Length))];
            if (Doorbells is not null && !before.Where(m => m.Owner == owner).SequenceEqual(_mappings.Where(m => m.Owner == owner)))
                Connect(owner, Doorbells);
        }
    }

    // Lock held. Where something else answers first, the doorbell is not this function's.
    private void Connect(PciEndpoint owner, IDoorbells doorbells)
    {
        if (_attached.Remove(owner, out List<IDisposable>? old))
            old.ForEach(d => d.Dispose());
        List<IDisposable> attached = [];
        foreach (Mapping mapping in _mappings)
        {
            if (mapping.Owner != owner || mapping.Target is not IDoorbellTarget target)
                continue;
            foreach (ulong offset in target.DoorbellOffsets)
                if (Find(mapping.First + offset) == mapping && doorbells.Attach(mapping.First + offset, 0, null, () => mapping.Target.WriteMmio(offset, 2, 0)) is { } doorbell)
                    attached.Add(doorbell);
        }
        if (attached.Count > 0)
            _attached.Add(owner, attached);
    }

    private Mapping? Find(ulong address)
    {
        foreach (Mapping mapping in Volatile.Read(ref _mappings))
            if (address - mapping.First < mapping.Length)
                return mapping;
        return null;
    }

    private ulong Read(ulong address, int size)
    {
        if (Find(address) is not { } mapping)
            return size == 1 ? 0xFF : ReadBytes(address, size);
        ulong offset = address - mapping.First;
        return (ulong)size <= mapping.Length - offset ? mapping.Target.ReadMmio(offset, size) : ReadBytes(address, size);
    }

    private ulong ReadBytes(ulong address, int size)
    {
        ulong value = 0;
        for (int i = 0; i < size; i++)
            value |= Read(address + (ulong)i, 1) << (8 * i);
        return value;
    }

    private void Write(ulong address, int size, ulong value)
    {
        if (Find(address) is { } mapping)
        {
            ulong offset = address - mapping.First;
            if ((ulong)size <= mapping.Length - offset)
            {
                mapping.Target.WriteMmio(offset, size, value);
                return;
            }
        }
        if (size == 1)
            return;
        for (int i = 0; i < size; i++)
            Write(address + (ulong)i, 1, (byte)(value >> (8 * i)));
    }

    private sealed class Window(PciMemorySpace space, ulong first) : IMmioDevice
    {
        public ulong ReadMmio(ulong offset, int size) => space.Read(first + offset, size);

        public void WriteMmio(ulong offset, int size, ulong value) => space.Write(first + offset, size, value);
    }
}
