namespace Aerostat.Virtio;

/// <summary>A set of page numbers with its count: a bit for each page, made when the first comes.</summary>
internal sealed class PageSet(ulong pages)
{
    private ulong[]? _bits;

    public ulong Count { get; private set; }

    /// <summary>Adds or removes a page; false: it was so already, or is no page of ours.</summary>
    public bool Set(ulong page, bool member)
    {
        if (page >= pages || (_bits is null && !member))
            return false;
        _bits ??= new ulong[(pages + 63) / 64];
        ref ulong word = ref _bits[page >> 6];
        ulong bit = 1UL << (int)(page & 63);
        if ((word & bit) != 0 == member)
            return false;
        word ^= bit;
        Count = member ? Count + 1 : Count - 1;
        return true;
    }

    public void Clear()
    {
        _bits = null;
        Count = 0;
    }

    /// <summary>First page and number of pages of each run, one behind the other.</summary>
    public ulong[] ToRuns()
    {
        List<ulong> runs = [];
        for (ulong page = 0; _bits is not null && page < pages; page++)
        {
            if ((page & 63) == 0 && _bits[page >> 6] == 0)
            {
                page |= 63;
                continue;
            }
            if ((_bits[page >> 6] >> (int)(page & 63) & 1) == 0)
                continue;
            if (runs.Count > 0 && runs[^2] + runs[^1] == page)
                runs[^1]++;
            else
                runs.AddRange([page, 1]);
        }
        return [.. runs];
    }

    public void FromRuns(ReadOnlySpan<ulong> runs)
    {
        Clear();
        for (int i = 0; i + 1 < runs.Length; i += 2)
        {
            ulong stop = runs[i + 1] > pages || runs[i] > pages - runs[i + 1] ? pages : runs[i] + runs[i + 1];
            for (ulong page = runs[i]; page < stop; page++)
                Set(page, true);
        }
    }
}
