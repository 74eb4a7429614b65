namespace Aerostat.Snapshots;

/// <summary>
/// What is known of the pages of one region while a snapshot is taken of a machine that goes on: which still are to be looked at, which the
/// guest has disowned by a hint, and which it has written since hints were asked for. Bits only; who reads and copies is <see cref="MemoryWriter"/>.
/// </summary>
/// <remarks>
/// The order of things, each in its place for a reason (virtio 1.2, 5.5.6.6: the device may assume that what a hinted page contains does not
/// matter, unless the driver has written to it since the command id was published):
/// <list type="number">
/// <item>The log of writes runs, and <see cref="Begin"/> has been called, before the command id is published. A write that comes between the two is
/// taken for one that came after, which costs a page and loses nothing.</item>
/// <item>Every look at the log goes through <see cref="Wrote"/>, which forgets nothing until the end of the snapshot: a page that was written once
/// since the id was published is never skipped, however late its hint is taken out of the queue. So it does not matter in which order hints,
/// looks and reuse by the guest come, and no hint takes anything out of the log.</item>
/// <item>A page is looked at after the look at the log that put it on the list: a write that comes later puts it there again.</item>
/// <item>The last look at the log, and at the pages it names, comes when processors and devices stand still.</item>
/// </list>
/// Nothing is given back to the host because of a hint: between a look at a page and that, the guest could write.
/// <para>A guest that zeroes pages as it takes them (init_on_alloc, Debian's default) writes every page before it names it. Those hints
/// count for nothing here, and the pages are found to be zeros.</para>
/// </remarks>
internal sealed class PassPages(ulong pages)
{
    private readonly ulong[] todo = new ulong[(pages + 63) / 64], written = new ulong[(pages + 63) / 64], hinted = new ulong[(pages + 63) / 64];

    /// <summary>Pages of the region.</summary>
    public ulong Count => pages;

    /// <summary>Pages that are to be looked at.</summary>
    public ReadOnlySpan<ulong> ToDo => todo;

    /// <summary>Puts all pages on the list, or those whose bits are set.</summary>
    public void Begin(ReadOnlySpan<ulong> changed, bool all)
    {
        if (!all)
        {
            changed[..todo.Length].CopyTo(todo);
            return;
        }
        todo.AsSpan().Fill(ulong.MaxValue);
        if (pages % 64 != 0)
            todo[^1] = (1UL << (int)(pages % 64)) - 1;
    }

    /// <summary>Pages that the log says were written since it was last looked at.</summary>
    public void Wrote(ReadOnlySpan<ulong> fresh)
    {
        for (int word = 0; word < todo.Length; word++)
        {
            if (fresh[word] == 0)
                continue;
            todo[word] |= fresh[word];
            written[word] |= fresh[word];
        }
    }

    /// <summary>The guest does not care for pages, unless it has written them since the hints were asked for. Any thread, at any time.</summary>
    public void Hint(ulong first, ulong count)
    {
        for (ulong page = first, stop = Math.Min(pages, first + count); page < stop;)
        {
            ulong here = Math.Min(stop - page, 64 - (page & 63));
            Interlocked.Or(ref hinted[page >> 6], (ulong.MaxValue >> (int)(64 - here)) << (int)(page & 63));
            page += here;
        }
    }

    /// <summary>Forgets all hints.</summary>
    public void DropHints()
    {
        foreach (ref ulong word in hinted.AsSpan())
            Interlocked.Exchange(ref word, 0);
    }

    /// <summary>Whether the contents of a page do not matter.</summary>
    public bool IsDisowned(ulong page) =>
        (Volatile.Read(ref hinted[page >> 6]) & ~written[page >> 6] & 1UL << (int)(page & 63)) != 0;

    /// <summary>The first page at or after <paramref name="page"/>, and before <paramref name="limit"/>, that is disowned, or is not, as wanted.</summary>
    public ulong FindDisowned(ulong page, ulong limit, bool wanted)
    {
        while (page < limit)
        {
            ulong word = Volatile.Read(ref hinted[page >> 6]) & ~written[page >> 6];
            ulong match = (wanted ? word : ~word) >> (int)(page & 63);
            if (match != 0)
                return Math.Min(limit, page + ulong.TrailingZeroCount(match));
            page = (page | 63) + 1;
        }
        return limit;
    }

    /// <summary>Takes the next pages off the list, from <paramref name="page"/> on; false: none are left there.</summary>
    public bool TryTake(ref ulong page, out ulong count)
    {
        count = 0;
        while (page < pages)
        {
            ulong rest = todo[page >> 6] >> (int)(page & 63);
            if (rest == 0)
            {
                page = (page | 63) + 1;
                continue;
            }
            page += ulong.TrailingZeroCount(rest);
            break;
        }
        if (page >= pages)
            return false;
        for (ulong at = page; at < pages;)
        {
            int shift = (int)(at & 63);
            ulong run = Math.Min(ulong.TrailingZeroCount(~(todo[at >> 6] >> shift)), (ulong)(64 - shift));
            if (run == 0)
                break;
            todo[at >> 6] &= ~((ulong.MaxValue >> (int)(64 - run)) << shift);
            at += run;
            count += run;
        }
        return true;
    }

    /// <summary>How many pages are on the list.</summary>
    public ulong CountToDo()
    {
        ulong sum = 0;
        foreach (ulong word in todo)
            sum += ulong.PopCount(word);
        return sum;
    }
}
