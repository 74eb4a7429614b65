namespace Aerostat.Memory;

/// <summary>
/// Which pages of one region were written since the last look; made by <see cref="GuestMemory.StartDirtyLog"/>.
/// </summary>
/// <remarks>
/// How it works. A page is either clean, with <see cref="PageWatch.Clean"/> set, or dirty, with its bit here set and Clean clear. The first write
/// to a clean page goes the slow way, ends in NotifyWrite and turns the page dirty; later writes may take a processor's fast path.
/// Looking turns the dirty pages clean again and has every processor drop its fast write paths before it answers.
/// <para>What the caller may rely on: who starts the log, or takes the bits, and then copies the pages, ends up with true copies once a
/// round of taking and copying finds nothing more (with processors and devices at rest for the last one). The races, and why they are harmless:</para>
/// <list type="bullet">
/// <item>A write through a fast path between setting Clean and dropping the path is not logged. But it is in memory before Start or
/// GetAndClear returns, so the copy made afterwards has it.</item>
/// <item>A write of a device thread is a store, a fence, a look at the watch byte. If the look came before Clean was set, the store is
/// visible before GetAndClear returns (a barrier in every thread of the process sees to it). If it came after, the page is logged.</item>
/// <item>A store made before, notified after GetAndClear: the page is logged once more and copied once more, in vain.</item>
/// <item>Two writers of one clean page: both go the slow way, the second finds it dirty. One lock orders them with GetAndClear.</item>
/// </list>
/// </remarks>
public sealed class DirtyLog : IDisposable
{
    private readonly GuestMemory memory;
    private readonly ulong[] bits;
    private readonly Lock harvestLock = new();
    private bool stopped;

    internal DirtyLog(GuestMemory memory, MemoryRegion region)
    {
        this.memory = memory;
        Region = region;
        FirstPage = region.Base.Page;
        PageCount = region.Size >> 12;
        bits = new ulong[checked((int)((PageCount + 63) / 64))];
    }

    /// <summary>The logged region.</summary>
    public MemoryRegion Region { get; }

    /// <summary>Words that <see cref="GetAndClear"/> fills: one bit for each page, page 0 of the region in bit 0 of word 0.</summary>
    public int WordCount => bits.Length;

    internal ulong FirstPage { get; }

    internal ulong PageCount { get; }

    internal Span<ulong> Bits => bits;

    /// <summary>
    /// Takes the bits of the pages written since the last call (or the start) and goes on logging. Copy the pages afterwards, not before.
    /// Not to be called by a thread that is inside the guest.
    /// </summary>
    /// <param name="bitmap">At least <see cref="WordCount"/> words; overwritten.</param>
    /// <returns>How many pages.</returns>
    /// <exception cref="ArgumentException">The bitmap is too short.</exception>
    /// <exception cref="ObjectDisposedException">Stopped.</exception>
    public long GetAndClear(Span<ulong> bitmap)
    {
        if (bitmap.Length < bits.Length)
            throw new ArgumentException($"the bitmap has {bitmap.Length} words, {bits.Length} are needed", nameof(bitmap));
        bitmap[..bits.Length].Clear();
        lock (harvestLock)
        {
            ObjectDisposedException.ThrowIf(stopped, this);
            return memory.HarvestDirtyLog(this, bitmap);
        }
    }

    /// <summary>How many pages are dirty now, for progress reports.</summary>
    public long CountDirty()
    {
        long count = 0;
        foreach (ulong word in bits)
            count += long.PopCount((long)word);
        return count;
    }

    /// <summary>Ends logging; writes may take the fast path again.</summary>
    public void Stop()
    {
        lock (harvestLock)
        {
            if (stopped)
                return;
            stopped = true;
            memory.StopDirtyLog(this);
        }
    }

    /// <summary>As <see cref="Stop"/>.</summary>
    public void Dispose() => Stop();
}
