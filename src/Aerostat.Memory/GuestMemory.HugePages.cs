using Aerostat.Platform;

namespace Aerostat.Memory;

/// <content>
/// Huge pages. Where the host gives them, 512 pages of the guest's are one of the host's, a block: touching any of them takes 2 MiB, and giving one back frees
/// nothing as long as another is in use. What the host holds goes by single pages all the same, because of a map of the pages that balloons have taken:
/// <list type="bullet">
/// <item>A page that a balloon takes (<see cref="TakeAway"/>) waits until its block is complete, which is given back as a whole, in a hundredth of the time
/// that its pages would take one by one. A block that is still not complete a moment later is taken apart, and the host has what was taken of it.</item>
/// <item>As long as some pages of a block are away and others are not, it is made of small pages: neither a fault nor the host's daemon (khugepaged) fills it
/// up again. Balloons say when pages are back (<see cref="BringBack"/>).</item>
/// </list>
/// </content>
public sealed unsafe partial class GuestMemory
{
    private const ulong BlockBytes = HostMapping.HugePageSize, BlockPages = BlockBytes / HostMapping.PageSize;
    private const int MostTorn = 64;
    // Each run of blocks that are made of small pages is a mapping and ends one before it: see MaxFileRuns.
    private const int MaxSmallRuns = 8192;
    private static readonly TimeSpan s_settleAfter = TimeSpan.FromMilliseconds(20);

    // Held while pages that went later are told of, so that who settles knows afterwards that all were. Taken before the discard lock.
    private readonly Lock tellingLock = new();

    // All under the discard lock.
    private readonly HashSet<ulong> torn = [];
    private readonly HashSet<ulong> small = [];
    private readonly List<(ulong Address, ulong Length)> emptied = [];
    // Pages that balloons have; and those of them whose memory is still there.
    private ulong* awayPages;
    private ulong* waitingPages;
    private int smallRuns;
    private bool anyAway;
    private Timer? settling;
    private bool settled;

    /// <summary>Whether the host is asked for huge pages.</summary>
    public bool HugePages { get; }

    /// <summary>
    /// As <see cref="Discard"/>, for pages that the guest does not use until they are brought back: what is in them then is nobody's business, and
    /// the host may get them a moment later than this returns. Until then they are held, and read as they did.
    /// </summary>
    public DiscardResult TakeAway(GuestAddress address, ulong length)
    {
        if (!HugePages)
            return Discard(address, length);
        if (length == 0 || ((address.Value | length) & 4095) != 0)
            return DiscardResult.Unaligned;
        if (!Contains(address.Value, length))
            return DiscardResult.NotMemory;
        DiscardResult result;
        lock (discardLock)
            result = TakeBlocks(address.Value, length);
        if (result == DiscardResult.Done)
            NotifyHostWrite(address.Value, length);
        NotifyEmptied();
        return result;
    }

    /// <summary>
    /// The guest is about to use pages again that were taken away. May be asked for by the guest, for any pages: never throws, and what is not RAM is ignored.
    /// </summary>
    public void BringBack(GuestAddress address, ulong length)
    {
        if (!HugePages || length == 0 || ((address.Value | length) & 4095) != 0 || !Contains(address.Value, length))
            return;
        lock (discardLock)
        {
            ulong page = address.Page, last = page + (length >> 12);
            while (anyAway && page < last)
            {
                ulong block = page / BlockPages, here = Math.Min(last, (block + 1) * BlockPages) - page;
                SetBits(awayPages, page, here, false);
                SetBits(waitingPages, page, here, false);
                page += here;
                MakeSmall(block, IsSetInPart(awayPages, block));
            }
        }
    }

    /// <summary>No page is away any more.</summary>
    public void BringAllBack()
    {
        lock (discardLock)
        {
            foreach (Extent e in extents)
                BringBack(new GuestAddress(e.Start), e.End - e.Start);
            anyAway = false;
        }
    }

    /// <summary>
    /// Gives the host what waits, and takes huge pages apart for it. This happens by itself within a moment, on a thread of its own; when this returns, none
    /// of what was taken away before changes any more, and those who take note of writes know of all that did.
    /// </summary>
    public void Settle()
    {
        lock (tellingLock)
        {
            lock (discardLock)
                SettleTorn();
            NotifyEmptied();
        }
    }

    // Discard lock held, as in all of the following.
    private DiscardResult TakeBlocks(ulong address, ulong length)
    {
        if (IsPinned(address, length))
            return DiscardResult.Pinned;
        foreach (Extent e in extents)
            if (address - e.Start < e.End - e.Start && !DropFilePages(e, address, length))
                return DiscardResult.Refused;
        anyAway = true;
        ulong page = address >> 12, last = page + (length >> 12), whole = page, wholeStop = page;
        bool done = true;
        while (page < last)
        {
            ulong block = page / BlockPages, here = Math.Min(last, (block + 1) * BlockPages) - page;
            SetBits(awayPages, page, here, true);
            SetBits(waitingPages, page, here, true);
            page += here;
            if (IsAllSet(awayPages, block) && !IsPinned(block * BlockBytes, BlockBytes))
            {
                if (block * BlockPages != wholeStop)
                {
                    done &= Empty(whole, wholeStop);
                    whole = block * BlockPages;
                }
                wholeStop = (block + 1) * BlockPages;
                MakeSmall(block, wanted: false);
            }
            else
                Tear(block);
        }
        done &= Empty(whole, wholeStop);
        return done ? DiscardResult.Done : DiscardResult.Refused;
    }

    // Gives pages back that are away.
    private bool Empty(ulong first, ulong stop)
    {
        if (first >= stop)
            return true;
        if (!DiscardHost(first, stop - first))
            return false;
        Forget(first, stop - first);
        lock (trackingLock)
            SetBits(discardedPages, first, stop - first, true);
        NoteEmptied(first, stop - first);
        return true;
    }

    // The range was given back: blocks that are in it in part may still be in one piece.
    private void NoteTorn(ulong address, ulong length)
    {
        ulong last = address + length;
        if (!HugePages)
            return;
        if (address % BlockBytes != 0)
            Tear(address / BlockBytes);
        if (last % BlockBytes != 0)
            Tear(last / BlockBytes);
    }

    private void Tear(ulong block)
    {
        torn.Add(block);
        if (torn.Count > MostTorn)
            SettleTorn();
        else if (torn.Count == 1 && !settled)
        {
            settling ??= new Timer(static m => ((GuestMemory)m!).Settle(), this, Timeout.InfiniteTimeSpan, Timeout.InfiniteTimeSpan);
            settling.Change(s_settleAfter, Timeout.InfiniteTimeSpan);
        }
    }

    private void SettleTorn()
    {
        foreach (ulong block in settled ? [] : torn)
        {
            ulong first = block * BlockPages, last = Math.Min(first + BlockPages, pageCount);
            for (ulong page = first, stop; page < last; page = stop)
            {
                bool waits = IsSet(waitingPages, page);
                stop = EndOfRun(waitingPages, page, last, waits);
                if (waits && !IsPinned(page << 12, (stop - page) << 12) && Empty(page, stop))
                    emptied.Add((page << 12, (stop - page) << 12));
            }
            MakeSmall(block, IsSetInPart(awayPages, block));
            // Of a block that is gone as a whole there is nothing to take apart.
            if (hostPages.TryNextHeld(HostBase + (first << 12), HostBase + (last << 12), out byte* held, out _))
                _ = HostMapping.AdviseCold(held, HostMapping.PageSize);
        }
        torn.Clear();
    }

    // Pages whose memory went later than those who take note of writes were told. Without the discard lock.
    private void NotifyEmptied()
    {
        lock (tellingLock)
        {
            (ulong Address, ulong Length)[] ranges;
            lock (discardLock)
            {
                if (emptied.Count == 0)
                    return;
                ranges = [.. emptied];
                emptied.Clear();
            }
            foreach ((ulong address, ulong length) in ranges)
                NotifyHostWrite(address, length);
        }
    }

    private void MakeSmall(ulong block, bool wanted)
    {
        ulong first = block * BlockPages;
        // Where a file is shown there are no huge pages.
        if (wanted == small.Contains(block) || !Contains(first << 12, BlockBytes) || EndOfRun(filePages, first, first + BlockPages, false) != first + BlockPages)
            return;
        int beside = (small.Contains(block - 1) ? 1 : 0) + (small.Contains(block + 1) ? 1 : 0), change = wanted ? 1 - beside : beside - 1;
        if ((change > 0 && smallRuns >= MaxSmallRuns) || !HostMapping.AdviseHugePages(HostBase + (first << 12), BlockBytes, !wanted))
            return;
        smallRuns += change;
        _ = wanted ? small.Add(block) : small.Remove(block);
    }

    // SAFETY: bitmaps have whole blocks (BitmapBytes).
    private static bool IsAllSet(ulong* bitmap, ulong block) => !WordsOf(bitmap, block).ContainsAnyExcept(ulong.MaxValue);

    private static bool IsSetInPart(ulong* bitmap, ulong block) => WordsOf(bitmap, block).ContainsAnyExcept(0UL) && !IsAllSet(bitmap, block);

    private static ReadOnlySpan<ulong> WordsOf(ulong* bitmap, ulong block) => new(bitmap + (block * (BlockPages / 64)), (int)BlockPages / 64);

    private void StopSettling()
    {
        // The timer's thread may be telling of writes, for which it looks at what is about to be unmapped.
        lock (tellingLock)
            lock (discardLock)
            {
                settled = true;
                torn.Clear();
                emptied.Clear();
                settling?.Dispose();
            }
    }
}
