using Aerostat.Platform;

namespace Aerostat.Memory;

/// <content>Page states, discarding and pinning: see <see cref="PageState"/>.</content>
public sealed unsafe partial class GuestMemory
{
    // Held while memory is given back, so that a pin is either seen or made after. Taken before the tracking lock.
    private readonly Lock discardLock = new();
    private readonly List<MemoryPin> pins = [];
    // The pages that the host is taking just now: the first, and how many, 0 for none.
    private ulong punchedFrom, punchedCount;

    /// <summary>
    /// Gives a range's memory back to the host; it reads as zeros then. Decoded code in it is invalidated and the pages count as
    /// written. All or nothing. May be asked for by the guest: never throws.
    /// </summary>
    public DiscardResult Discard(GuestAddress address, ulong length)
    {
        if (length == 0 || ((address.Value | length) & 4095) != 0)
            return DiscardResult.Unaligned;
        if (!Contains(address.Value, length))
            return DiscardResult.NotMemory;
        bool done;
        lock (discardLock)
        {
            if (IsPinned(address.Value, length))
                return DiscardResult.Pinned;
            done = Punch(address.Value, length);
            // After the fact: in between a page without memory counts as Zero, which is as true.
            if (done)
            {
                lock (trackingLock)
                    SetBits(discardedPages, address.Page, length >> 12, true);
                NoteEmptied(address.Page, length >> 12);
            }
        }
        // A host that refuses may have done so half-way.
        NotifyHostWrite(address.Value, length);
        return done ? DiscardResult.Done : DiscardResult.Refused;
    }

    /// <summary>
    /// Whether the host holds no memory for the page of an address that is RAM. It reads as zeros then, and whoever writes zeros there need not: the page
    /// would only be made to be cleared. False when in doubt. Exact at the moment of asking, as a write would be. Any thread.
    /// </summary>
    public bool IsHole(ulong address)
    {
        ulong page = address >> 12;
        // A page once seen to have memory is not asked for again until that is given back. The bit is only a hint, so it may be lost to a race.
        if (IsSet(heldPages, page))
            return false;
        if (IsSet(filePages, page))
        {
            Interlocked.Or(ref heldPages[page >> 6], 1UL << (int)(page & 63));
            return false;
        }
        byte* at = HostBase + (page << 12), limit = HostBase + Math.Min((page | (BlockPages - 1)) + 1, pageCount) * HostMapping.PageSize;
        if (!hostPages.TryNextHeld(at, limit, out byte* start, out byte* stop) || start > at)
            return !IsBeingPunched(page);
        // Who clears this page clears its neighbours too.
        for (ulong last = (ulong)(stop - HostBase) >> 12; page < last;)
        {
            ulong here = Math.Min(last - page, 64 - (page & 63));
            Interlocked.Or(ref heldPages[page >> 6], (ulong.MaxValue >> (int)(64 - here)) << (int)(page & 63));
            page += here;
        }
        return false;
    }

    // While the host takes pages it says that it does not hold them, and a processor of its own may still read and write what was there.
    private bool IsBeingPunched(ulong page)
    {
        Interlocked.MemoryBarrier();
        return page - Volatile.Read(ref punchedFrom) < Volatile.Read(ref punchedCount);
    }

    // Discard lock held.
    private bool DiscardHost(ulong firstPage, ulong count)
    {
        Volatile.Write(ref punchedFrom, firstPage);
        Volatile.Write(ref punchedCount, count);
        Interlocked.MemoryBarrier();
        bool done = HostMapping.Discard(HostBase + (firstPage << 12), count << 12);
        Volatile.Write(ref punchedCount, 0);
        return done;
    }

    /// <summary>Keeps a range from being discarded until the pin is disposed; null when any byte is not RAM.</summary>
    public MemoryPin? TryPin(GuestAddress address, ulong length)
    {
        if (!Contains(address.Value, length))
            return null;
        MemoryPin pin = new(this, address, length);
        lock (discardLock)
            pins.Add(pin);
        return pin;
    }

    /// <summary>
    /// Notes that the contents of pages do not matter until the guest writes them. Only whole pages inside the range count. When this
    /// returns every further write is noticed. Not to be called by a thread that is inside the guest.
    /// </summary>
    /// <returns>False when any byte is not RAM.</returns>
    public bool MarkHinted(GuestAddress address, ulong length)
    {
        if (!Contains(address.Value, length))
            return false;
        ulong first = (address.Value + 4095) >> 12, last = (address.Value + length) >> 12;
        if (first >= last)
            return true;
        for (ulong page = first; page < last;)
        {
            // A bounded number under each lock: processors wait for it.
            ulong stop = Math.Min(page + ArmStep, last);
            lock (trackingLock)
            {
                SetBits(hintedPages, page, stop - page, true);
                for (; page < stop; page++)
                    Volatile.Write(ref watch[page], (byte)(watch[page] | (byte)PageWatch.Hinted));
            }
        }
        TightenWatch();
        return true;
    }

    /// <summary>Forgets all hints: the pages are data again.</summary>
    public void ClearHints()
    {
        for (ulong word = 0; word < (pageCount + 63) / 64; word++)
        {
            // SAFETY: word is below the bitmap's length. A look without the lock skips the great empty stretches.
            int next = new ReadOnlySpan<ulong>(hintedPages + word, (int)Math.Min((pageCount + 63) / 64 - word, 1 << 20)).IndexOfAnyExcept(0UL);
            if (next < 0)
            {
                word += (1 << 20) - 1;
                continue;
            }
            word += (uint)next;
            lock (trackingLock)
            {
                for (ulong set = hintedPages[word]; set != 0; set &= set - 1)
                {
                    ulong page = (word << 6) + ulong.TrailingZeroCount(set);
                    Volatile.Write(ref watch[page], (byte)(watch[page] & ~(byte)PageWatch.Hinted));
                }
                hintedPages[word] = 0;
            }
        }
    }

    /// <summary>The state of each page of a range, as the longest runs of pages in the same state; holes of the memory map are left out.</summary>
    /// <param name="address">Where to start; rounded down to a page.</param>
    /// <param name="length">Bytes; rounded up to whole pages.</param>
    /// <remarks>Each run is exact at the moment it is made; the guest goes on. Costs a system call a run.</remarks>
    public IEnumerable<PageRange> GetPageRanges(GuestAddress address, ulong length)
    {
        CollectPendingWrites();
        foreach (PageRange range in GetPageRangesAsKnown(address, length))
            yield return range;
    }

    /// <summary>As <see cref="GetPageRanges(GuestAddress, ulong)"/>, without asking for writes that were not notified of yet: for who has just done that.</summary>
    public IEnumerable<PageRange> GetPageRangesAsKnown(GuestAddress address, ulong length)
    {
        ulong from = address.Value & ~4095UL;
        ulong to = length >= end - Math.Min(from, end) ? end : (address.Value + length + 4095) & ~4095UL;
        foreach (Extent e in extents)
        {
            PageRange? pending = null;
            for (ulong at = Math.Max(from, e.Start), stop = Math.Min(to, e.End); at < stop;)
            {
                PageRange run = NextRun(at, stop);
                at = run.End;
                // A change between two looks can cut a run in two: join what belongs together.
                if (pending is { } p && p.State == run.State)
                    pending = p with { Length = p.Length + run.Length };
                else
                {
                    if (pending is { } whole)
                        yield return whole;
                    pending = run;
                }
            }
            if (pending is { } last)
                yield return last;
        }
    }

    /// <summary>As <see cref="GetPageRanges(GuestAddress, ulong)"/>, for all of RAM.</summary>
    public IEnumerable<PageRange> GetPageRanges() => GetPageRanges(new GuestAddress(0), end);

    /// <summary>How much of RAM is in which state. Walks the page map: for people and policies, not for every second of many machines.</summary>
    public PageTotals GetPageTotals()
    {
        Span<ulong> totals = stackalloc ulong[4];
        totals.Clear();
        foreach (PageRange range in GetPageRanges())
            totals[(int)range.State] += range.Length;
        return new PageTotals(totals[(int)PageState.Data], totals[(int)PageState.Zero], totals[(int)PageState.Discarded], totals[(int)PageState.Hinted]);
    }

    internal void Unpin(MemoryPin pin)
    {
        lock (discardLock)
            pins.Remove(pin);
    }

    // Gives whole pages back without calling them discarded; false: pinned, or the host refuses.
    private bool TryPunch(ulong address, ulong length)
    {
        lock (discardLock)
            return !IsPinned(address, length) && Punch(address, length);
    }

    // Discard lock held; the range is page-aligned RAM.
    private bool Punch(ulong address, ulong length)
    {
        foreach (Extent e in extents)
            if (address - e.Start < e.End - e.Start)
            {
                if (!DropFilePages(e, address, length))
                    return false;
                if (!DiscardHost(address >> 12, length >> 12))
                    return false;
                Forget(address >> 12, length >> 12);
                NoteTorn(address, length);
                return true;
            }
        return false;
    }

    // Discard lock held. The host does not hold these pages any more.
    private void Forget(ulong first, ulong count)
    {
        SetBits(waitingPages, first, count, false);
        lock (trackingLock)
        {
            SetBits(discardedPages, first, count, false);
            SetBits(heldPages, first, count, false);
        }
    }

    private bool IsPinned(ulong address, ulong length)
    {
        foreach (MemoryPin pin in pins)
            if (pin.Length != 0 && pin.Start.Value < address + length && address < pin.Start.Value + pin.Length)
                return true;
        return false;
    }

    private PageRange NextRun(ulong address, ulong stop)
    {
        ulong first = address >> 12;
        bool shown = IsSet(filePages, first);
        stop = EndOfRun(filePages, first, stop >> 12, shown) << 12;
        if (shown)
        {
            bool hinted = IsSet(hintedPages, first);
            return new PageRange(new GuestAddress(address), (EndOfRun(hintedPages, first, stop >> 12, hinted) << 12) - address, hinted ? PageState.Hinted : PageState.Data);
        }
        ulong dataStart = stop, dataStop = stop;
        if (hostPages.TryNextHeld(HostBase + address, HostBase + stop, out byte* start, out byte* until))
            (dataStart, dataStop) = ((ulong)(start - HostBase), (ulong)(until - HostBase));
        bool held = dataStart <= address;
        ulong limit = held ? dataStop : dataStart;
        ulong page = address >> 12;
        bool marked = IsSet(held ? hintedPages : discardedPages, page);
        ulong runEnd = EndOfRun(held ? hintedPages : discardedPages, page, limit >> 12, marked) << 12;
        PageState state = held ? (marked ? PageState.Hinted : PageState.Data) : marked ? PageState.Discarded : PageState.Zero;
        return new PageRange(new GuestAddress(address), runEnd - address, state);
    }

    private static bool IsSet(ulong* bitmap, ulong bit) => (Volatile.Read(ref bitmap[bit >> 6]) >> (int)(bit & 63) & 1) != 0;

    // First bit at or after `bit` (and at most `limit`) that is not like `value`.
    private static ulong EndOfRun(ulong* bitmap, ulong bit, ulong limit, bool value)
    {
        while (bit < limit)
        {
            ulong word = Volatile.Read(ref bitmap[bit >> 6]);
            ulong other = (value ? ~word : word) >> (int)(bit & 63);
            if (other != 0)
                return Math.Min(limit, bit + ulong.TrailingZeroCount(other));
            bit = (bit | 63) + 1;
        }
        return limit;
    }

    // The lock of the bitmap's writers held.
    private static void SetBits(ulong* bitmap, ulong first, ulong count, bool value)
    {
        for (ulong bit = first, stop = first + count; bit < stop;)
        {
            ulong here = Math.Min(stop - bit, 64 - (bit & 63));
            ulong mask = (ulong.MaxValue >> (int)(64 - here)) << (int)(bit & 63);
            ulong word = bitmap[bit >> 6];
            ulong changed = value ? word | mask : word & ~mask;
            if (changed != word)
                Volatile.Write(ref bitmap[bit >> 6], changed);
            bit += here;
        }
    }
}
