using Aerostat.Devices;

namespace Aerostat.Machine;

/// <summary>
/// Memory-mapped I/O: guest physical ranges that devices answer. Built once with the board, then only read, from every vCPU
/// thread.
/// </summary>
/// <remarks>
/// An access that runs past the end of a device's range is cut into bytes. Addresses that nothing claims read as all ones
/// and swallow writes, as on a PC's bus after a master abort.
/// </remarks>
public sealed class MmioBus
{
    private sealed record Claim(string Name, ulong First, ulong Last, IMmioDevice Device);

    // Sorted by address; replaced as a whole.
    private Claim[] claims = [];
    private long unclaimed;

    /// <summary>Gives <paramref name="length"/> bytes from <paramref name="first"/> on to a device.</summary>
    /// <exception cref="InvalidOperationException">The range is empty, wraps or overlaps another.</exception>
    public void Add(string name, ulong first, ulong length, IMmioDevice device)
    {
        ulong last = first + length - 1;
        if (length == 0 || last < first)
            throw new InvalidOperationException($"{name} cannot claim 0x{length:x} bytes at 0x{first:x}");
        foreach (Claim c in claims)
            if (first <= c.Last && last >= c.First)
                throw new InvalidOperationException($"{name} at 0x{first:x}..0x{last:x} overlaps {c.Name} at 0x{c.First:x}..0x{c.Last:x}");
        int at = Array.FindIndex(claims, c => c.First > first);
        claims = at < 0 ? [.. claims, new Claim(name, first, last, device)] : [.. claims.AsSpan(0, at), new Claim(name, first, last, device), .. claims.AsSpan(at)];
    }

    /// <summary>Accesses that no device claimed, since creation.</summary>
    public long UnclaimedAccesses => Volatile.Read(ref unclaimed);

    /// <summary>What is where, in ascending order.</summary>
    public IEnumerable<(string Name, ulong First, ulong Last)> Map => claims.Select(c => (c.Name, c.First, c.Last));

    /// <summary>Read of 1, 2, 4 or 8 bytes.</summary>
    public ulong Read(ulong address, int size)
    {
        if (Find(address) is { } claim)
        {
            if ((ulong)(size - 1) <= claim.Last - address)
                return claim.Device.ReadMmio(address - claim.First, size);
        }
        else if (size == 1 || Find(address + (ulong)size - 1) is null)
        {
            Interlocked.Increment(ref unclaimed);
            return ulong.MaxValue >> (64 - (size * 8));
        }
        ulong value = 0;
        for (int i = 0; i < size; i++)
            value |= Read(address + (ulong)i, 1) << (i * 8);
        return value;
    }

    /// <summary>Write of 1, 2, 4 or 8 bytes.</summary>
    public void Write(ulong address, int size, ulong value)
    {
        if (Find(address) is { } claim)
        {
            if ((ulong)(size - 1) <= claim.Last - address)
            {
                claim.Device.WriteMmio(address - claim.First, size, value);
                return;
            }
        }
        else if (size == 1 || Find(address + (ulong)size - 1) is null)
        {
            Interlocked.Increment(ref unclaimed);
            return;
        }
        for (int i = 0; i < size; i++)
            Write(address + (ulong)i, 1, (byte)(value >> (i * 8)));
    }

    private Claim? Find(ulong address)
    {
        Claim[] all = claims;
        int low = 0, high = all.Length - 1;
        while (low <= high)
        {
            int middle = (low + high) >> 1;
            Claim c = all[middle];
            if (address < c.First)
                high = middle - 1;
            else if (address > c.Last)
                low = middle + 1;
            else
                return c;
        }
        return null;
    }
}
