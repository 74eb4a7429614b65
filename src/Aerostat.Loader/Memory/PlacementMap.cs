namespace Aerostat.Loader;

/// <summary>Finds room in the usable part of an E820 map. Addresses are 64-bit and sums are checked, since sizes come from files.</summary>
internal sealed class PlacementMap
{
    private readonly List<(ulong Start, ulong End)> free = [];

    public PlacementMap(E820Map map)
    {
        foreach (E820Entry entry in map.Entries)
            if (entry.Type == E820Type.Usable)
                free.Add((entry.Base, entry.End));
    }

    /// <summary>Usable bytes below 4 GiB.</summary>
    public ulong LowEnd => free.Where(f => f.End <= 1UL << 32).Select(f => f.End).DefaultIfEmpty(0UL).Max();

    /// <summary>Whether the whole range is free.</summary>
    public bool IsFree(ulong start, ulong size) =>
        size <= ulong.MaxValue - start && free.Any(f => start >= f.Start && start + size <= f.End);

    /// <summary>Takes a range out, whether it was free or not.</summary>
    public void Take(ulong start, ulong size)
    {
        ulong end = size > ulong.MaxValue - start ? ulong.MaxValue : start + size;
        if (size == 0)
            return;
        for (int i = free.Count - 1; i >= 0; i--)
        {
            (ulong s, ulong e) = free[i];
            if (end <= s || start >= e)
                continue;
            free.RemoveAt(i);
            if (end < e)
                free.Insert(i, (end, e));
            if (start > s)
                free.Insert(i, (s, start));
        }
    }

    /// <summary>Highest aligned place in [min, max) or null. A found place is taken.</summary>
    public ulong? TakeHighest(ulong size, ulong alignment, ulong min, ulong max)
    {
        for (int i = free.Count - 1; i >= 0; i--)
        {
            ulong start = Math.Max(free[i].Start, min), end = Math.Min(free[i].End, max);
            if (end <= start || end - start < size)
                continue;
            ulong at = (end - size) & ~(alignment - 1);
            if (at < start)
                continue;
            Take(at, size);
            return at;
        }
        return null;
    }

    /// <summary>Lowest aligned place in [min, max) or null. A found place is taken.</summary>
    public ulong? TakeLowest(ulong size, ulong alignment, ulong min, ulong max)
    {
        foreach ((ulong s, ulong e) in free)
        {
            ulong start = Math.Max(s, min), end = Math.Min(e, max);
            if (end <= start || start > ulong.MaxValue - (alignment - 1))
                continue;
            ulong at = (start + alignment - 1) & ~(alignment - 1);
            if (at >= end || end - at < size)
                continue;
            Take(at, size);
            return at;
        }
        return null;
    }

    /// <summary>Largest free run in [min, max).</summary>
    public ulong Largest(ulong min, ulong max) => free
        .Select(f => (Start: Math.Max(f.Start, min), End: Math.Min(f.End, max)))
        .Where(f => f.End > f.Start).Select(f => f.End - f.Start).DefaultIfEmpty(0UL).Max();
}
