namespace Aerostat.Memory;

/// <content>Dirty logs: see <see cref="DirtyLog"/> for the protocol.</content>
public sealed unsafe partial class GuestMemory
{
    private const ulong EightClean = 0x0202_0202_0202_0202;
    private const int ArmStep = 1 << 16;

    // Replaced as a whole under the tracking lock.
    private DirtyLog[] dirtyLogs = [];

    /// <summary>
    /// Starts to log writes to a region. When this returns every further write is logged; those before it are in memory.
    /// Not to be called by a thread that is inside the guest.
    /// </summary>
    /// <exception cref="ArgumentException">Not a region of this memory.</exception>
    /// <exception cref="InvalidOperationException">The region is being logged already.</exception>
    public DirtyLog StartDirtyLog(MemoryRegion region)
    {
        if (!regions.Contains(region))
            throw new ArgumentException($"region {region.Name} is not of this memory", nameof(region));
        DirtyLog log = new(this, region);
        lock (trackingLock)
        {
            if (dirtyLogs.Any(l => l.Region == region))
                throw new InvalidOperationException($"writes to region {region.Name} are being logged already");
            dirtyLogs = [.. dirtyLogs, log];
        }
        ForEachWord(log, static (word) => word | EightClean, static (b) => (byte)(b | (byte)PageWatch.Clean));
        TightenWatch();
        return log;
    }

    /// <summary>Ends a log.</summary>
    internal void StopDirtyLog(DirtyLog log)
    {
        lock (trackingLock)
        {
            if (!dirtyLogs.Contains(log))
                return;
            dirtyLogs = [.. dirtyLogs.Where(l => l != log)];
        }
        if (Volatile.Read(ref disposed) == 0)
            ForEachWord(log, static (word) => word & ~EightClean, static (b) => (byte)(b & ~(byte)PageWatch.Clean));
    }

    /// <summary>Moves a log's bits to <paramref name="bitmap"/> and watches those pages again. Answers how many there were.</summary>
    internal long HarvestDirtyLog(DirtyLog log, Span<ulong> bitmap)
    {
        CollectPendingWrites();
        long count = 0;
        Span<ulong> bits = log.Bits;
        for (int word = 0; word < bits.Length;)
        {
            // A bit set just after this look belongs to the next harvest.
            int next = bits[word..].IndexOfAnyExcept(0UL);
            if (next < 0)
                break;
            word += next;
            // Some words at a time: processors wait for this lock.
            int stop = Math.Min(word + 64, bits.Length);
            lock (trackingLock)
            {
                for (; word < stop; word++)
                {
                    ulong set = bits[word];
                    if (set == 0)
                        continue;
                    bits[word] = 0;
                    bitmap[word] = set;
                    count += long.PopCount((long)set);
                    for (byte* page = watch + log.FirstPage + ((ulong)word << 6); set != 0; set &= set - 1)
                    {
                        int bit = (int)ulong.TrailingZeroCount(set);
                        Volatile.Write(ref page[bit], (byte)(page[bit] | (byte)PageWatch.Clean));
                    }
                }
            }
        }
        if (count > 0)
            TightenWatch();
        return count;
    }

    // Tracking lock held.
    private void LogDirty(ulong page)
    {
        foreach (DirtyLog log in dirtyLogs)
        {
            ulong index = page - log.FirstPage;
            if (index < log.PageCount)
            {
                log.Bits[(int)(index >> 6)] |= 1UL << (int)(index & 63);
                return;
            }
        }
    }

    // Changes the watch bytes of a log's pages, eight at a time, a bounded number under each lock.
    private void ForEachWord(DirtyLog log, Func<ulong, ulong> eight, Func<byte, byte> one)
    {
        ulong page = log.FirstPage, last = page + log.PageCount;
        while (page < last)
        {
            ulong stop = Math.Min(page + ArmStep, last);
            lock (trackingLock)
            {
                for (; page < stop && (page & 7) != 0; page++)
                    Volatile.Write(ref watch[page], one(watch[page]));
                // SAFETY: every writer of watch bytes holds the lock; readers look at single bytes.
                for (; page + 8 <= stop; page += 8)
                    Volatile.Write(ref *(ulong*)(watch + page), eight(*(ulong*)(watch + page)));
                for (; page < stop; page++)
                    Volatile.Write(ref watch[page], one(watch[page]));
            }
        }
    }
}
