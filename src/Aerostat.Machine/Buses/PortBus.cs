using System.Buffers.Binary;
using Aerostat.Devices;

namespace Aerostat.Machine;

/// <summary>
/// The 64 Ki I/O ports. Built once with the board, then only read, from every vCPU thread.
/// </summary>
/// <remarks>
/// An access belongs to the device that claims its first port, and is handed over whole: that is how the dword port 0xCF8
/// and the byte port 0xCF9 live side by side. One that is wider than its device takes, or starts at a port that nothing
/// claims, is cut into halves that are looked up anew, low part first (on ISA a 16-bit access to an 8-bit card becomes two
/// cycles). Ports that nothing claims read as all ones and swallow writes.
/// </remarks>
public sealed class PortBus
{
    private readonly record struct Claim(string Name, ushort First, ushort Last, int Widest, IPortDevice? Device);

    private readonly byte[] owner = new byte[65536];
    private readonly Claim[] claims = new Claim[256];
    private int claimCount = 1;
    private long unclaimed;

    /// <summary>An empty bus.</summary>
    public PortBus() => claims[0] = new("unclaimed", 0, 65535, 4, null);

    /// <summary>Gives <paramref name="count"/> ports from <paramref name="first"/> on to a device.</summary>
    /// <param name="name">Who claims, for errors.</param>
    /// <param name="first">First port.</param>
    /// <param name="count">Number of ports.</param>
    /// <param name="device">Who answers.</param>
    /// <param name="widest">Widest access in bytes that the device takes: 1, 2 or 4.</param>
    /// <exception cref="InvalidOperationException">A port is taken, or there are too many claims.</exception>
    public void Add(string name, ushort first, int count, IPortDevice device, int widest = 4)
    {
        int last = first + count - 1;
        if (count < 1 || last > 65535 || claimCount == claims.Length)
            throw new InvalidOperationException($"{name} cannot claim {count} ports at 0x{first:x}");
        for (int port = first; port <= last; port++)
            if (owner[port] != 0)
                throw new InvalidOperationException($"{name} and {claims[owner[port]].Name} both claim port 0x{port:x}");
        claims[claimCount] = new(name, first, (ushort)last, widest, device);
        owner.AsSpan(first, count).Fill((byte)claimCount++);
    }

    /// <summary>Accesses that no device claimed, since creation.</summary>
    public long UnclaimedAccesses => Volatile.Read(ref unclaimed);

    /// <summary>What is where, in order of the first port.</summary>
    public IEnumerable<(string Name, ushort First, ushort Last)> Map =>
        claims.Take(claimCount).Skip(1).OrderBy(c => c.First).Select(c => (c.Name, c.First, c.Last));

    /// <summary>Input.</summary>
    public uint Read(ushort port, int size)
    {
        ref readonly Claim claim = ref claims[owner[port]];
        if (claim.Device is { } device && size <= claim.Widest)
            return device.ReadPort(port, size);
        if (IsUnclaimed(port, size))
        {
            Interlocked.Increment(ref unclaimed);
            return uint.MaxValue >> (32 - (size * 8));
        }
        int half = size / 2;
        return Read(port, half) | (Read((ushort)(port + half), half) << (half * 8));
    }

    /// <summary>Output.</summary>
    public void Write(ushort port, int size, uint value)
    {
        ref readonly Claim claim = ref claims[owner[port]];
        if (claim.Device is { } device && size <= claim.Widest)
        {
            device.WritePort(port, size, value);
            return;
        }
        if (IsUnclaimed(port, size))
        {
            Interlocked.Increment(ref unclaimed);
            return;
        }
        int half = size / 2;
        Write(port, half, value & (uint.MaxValue >> (32 - (half * 8))));
        Write((ushort)(port + half), half, value >> (half * 8));
    }

    // Whether nobody has any of these ports: then there is nothing to cut into halves for. Past the last port a wide access begins anew at the first.
    private bool IsUnclaimed(ushort port, int size) => size == 1
        ? owner[port] == 0
        : port + size <= owner.Length && (size == 2 ? BinaryPrimitives.ReadUInt16LittleEndian(owner.AsSpan(port)) : BinaryPrimitives.ReadUInt32LittleEndian(owner.AsSpan(port))) == 0;
}
