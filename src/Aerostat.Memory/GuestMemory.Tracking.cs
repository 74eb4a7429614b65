using System.Runtime.CompilerServices;
using Aerostat.Platform;

namespace Aerostat.Memory;

/// <summary>Why writes to a page must take the slow path.</summary>
[Flags]
public enum PageWatch : byte
{
    /// <summary>Writes may go straight to memory.</summary>
    None = 0,
    /// <summary>Some processor holds decoded code from this page.</summary>
    Code = 1,
    /// <summary>The dirty log is armed and the page is still clean.</summary>
    Clean = 2,
    /// <summary>The guest said the contents do not matter, until it writes.</summary>
    Hinted = 4,
}

/// <content>
/// Write watching. A processor may keep a fast path for writes to a page only while its watch byte is zero. Setting a bit
/// therefore takes two steps: set it, then make every processor forget its fast write paths and wait until all have. Clearing
/// a bit takes nothing: a processor finds out the next time it goes the slow way.
/// <para>
/// Every write follows one rule: store first, then <see cref="NotifyWrite"/> (processors) or <see cref="NotifyHostWrite"/> (all
/// others). Between the two the bit's owner does not know of the write yet; it learns of it in a moment and looks again.
/// A writer that is not stopped by the second step above (a device thread) must have its store visible before it looks at
/// the watch byte, so NotifyHostWrite starts with a full fence; a processor's stores are visible because it takes part.
/// </para>
/// <para>
/// Code tracking. To decode, a processor (1) reads <see cref="CodeGeneration"/> of the page, (2) marks the bytes, (3) reads and
/// decodes them. The code is valid while the page's generation is the one of step 1. The order matters: a write between
/// marking and reading the generation takes the mark away and moves the generation on, and code tagged with the new
/// generation would then be unwatched. For step 2: <see cref="TryMarkCode"/> when the page is watched already; otherwise
/// <see cref="MarkCode"/> while no other processor is in the guest, with all fast write paths to the page dropped before any goes back
/// in. (Were others in the guest, a second decoder could see the mark before a third processor has dropped its fast path.)
/// A write to a watched page moves the generation on when it hit a marked 64-byte chunk.
/// </para>
/// </content>
public sealed unsafe partial class GuestMemory
{
    // SAFETY: the arrays below have an element (or bit) for each page under End and live until Dispose; every page number used as an
    // index comes from an address that is RAM, by the callers' contract or a check.

    // All changes of watch bytes, chunks, generations, dirty bits and page marks.
    private readonly Lock trackingLock = new();
    private byte* watch;
    private uint* generations;
    private ulong* codeChunks;
    private ulong* discardedPages;
    private ulong* hintedPages;
    private ulong* heldPages;
    private ulong pageCount;

    /// <summary>
    /// Raised when watch bits have been set that processors may not know of: each subscriber drops its fast write paths (all
    /// pages) before it returns. Raised on the thread that armed, without locks held; that thread is not inside the guest.
    /// </summary>
    public event Action? WatchTightened;

    /// <summary>
    /// Raised, without locks held, before questions about the guest's writes are answered: a processor that learns of writes late (KVM, from
    /// the kernel's bitmap) notifies of those it has not told of yet before it returns.
    /// </summary>
    public event Action? CollectWrites;

    /// <summary>
    /// Raised when a page's code generation has moved on, with the page's number, on the thread that wrote, before its notification returns.
    /// Without locks held; subscribers must not write to guest memory.
    /// </summary>
    public event Action<ulong>? CodeChanged;

    /// <summary>Watch byte of each page (<see cref="PageWatch"/>), indexed by page frame number below <see cref="End"/>.</summary>
    public byte* Watch => watch;

    /// <summary>A bit for each page that <see cref="IsHole"/> has found to have memory and that has not been given back since; for other pages it says nothing.</summary>
    public ulong* HeldPages => heldPages;

    /// <summary>Code generation of each page, indexed by page frame number.</summary>
    public uint* CodeGeneration => generations;

    /// <summary>
    /// Marks bytes within one page of RAM as decoded. True: the page was not watched for code before, and every fast write path to
    /// it must go. See the class's notes on code tracking for when this may be called.
    /// </summary>
    public bool MarkCode(ulong address, uint length)
    {
        ulong page = address >> 12, chunks = ChunkMask(address & 4095, (address & 4095) + length - 1);
        bool isNew;
        lock (trackingLock)
        {
            isNew = (watch[page] & (byte)PageWatch.Code) == 0;
            Volatile.Write(ref codeChunks[page], codeChunks[page] | chunks);
            Volatile.Write(ref watch[page], (byte)(watch[page] | (byte)PageWatch.Code));
        }
        Interlocked.MemoryBarrier();
        return isNew;
    }

    /// <summary>
    /// Marks bytes within one page of RAM as decoded if the page is watched for code already. False: it is not, nothing was
    /// marked, and <see cref="MarkCode"/> is to be called with the other processors out of the guest.
    /// </summary>
    public bool TryMarkCode(ulong address, uint length)
    {
        ulong page = address >> 12, chunks = ChunkMask(address & 4095, (address & 4095) + length - 1);
        // Without the lock: a write that takes the marks away meanwhile also moves the generation on, which the caller has read before.
        if ((Volatile.Read(ref watch[page]) & (byte)PageWatch.Code) != 0 && (Volatile.Read(ref codeChunks[page]) & chunks) == chunks)
            return true;
        lock (trackingLock)
        {
            if ((watch[page] & (byte)PageWatch.Code) == 0)
                return false;
            Volatile.Write(ref codeChunks[page], codeChunks[page] | chunks);
        }
        // Against the look without the lock in NotifyWatched: marking comes before the caller's reading of the bytes.
        Interlocked.MemoryBarrier();
        return true;
    }

    /// <summary>
    /// To be called by a processor after a write to RAM that did not go through its fast path. True: decoded code was hit.
    /// The range must be RAM.
    /// </summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public bool NotifyWrite(ulong address, ulong length)
    {
        ulong page = address >> 12;
        if (((address + length - 1) >> 12) != page)
            return NotifyPages(address, length);
        return Volatile.Read(ref watch[page]) != 0 && NotifyWatched(page, address, address + length);
    }

    /// <summary>As <see cref="NotifyWrite"/>, for writers that are not processors: devices, loaders, debuggers.</summary>
    public bool NotifyHostWrite(ulong address, ulong length)
    {
        Interlocked.MemoryBarrier();
        return NotifyWrite(address, length);
    }

    // Bits first/64..last/64 of a page's chunks. Both are within one page, except that a length that runs over it is cut off.
    private static ulong ChunkMask(ulong first, ulong last) =>
        (ulong.MaxValue >> (63 - (int)Math.Min(last >> 6, 63))) & (ulong.MaxValue << (int)(first >> 6));

    private bool NotifyPages(ulong address, ulong length)
    {
        if (length == 0)
            return false;
        bool hit = false;
        ulong stop = address + length, lastPage = (stop - 1) >> 12;
        for (ulong page = address >> 12; page <= lastPage; page++)
        {
            // SAFETY: the range is RAM, so its pages are below pageCount. Long ranges are mostly unwatched.
            int clean = new ReadOnlySpan<byte>(watch + page, (int)Math.Min(lastPage - page + 1, 1 << 20)).IndexOfAnyExcept((byte)0);
            if (clean < 0)
            {
                page += (1 << 20) - 1;
                continue;
            }
            page += (uint)clean;
            hit |= NotifyWatched(page, Math.Max(address, page << 12), Math.Min(stop, (page + 1) << 12));
        }
        return hit;
    }

    private bool NotifyWatched(ulong page, ulong start, ulong stop)
    {
        if (start == stop)
            return false;
        // Data in a page that holds code as well is written often, so this case does without the lock: the store, a fence, a look at
        // the chunks here; marking, a fence, reading the bytes in a decoder. One of the two sees the other.
        if (Volatile.Read(ref watch[page]) == (byte)PageWatch.Code)
        {
            Interlocked.MemoryBarrier();
            if ((Volatile.Read(ref codeChunks[page]) & ChunkMask(start & 4095, (stop - 1) & 4095)) == 0)
                return false;
        }
        bool hit = false;
        lock (trackingLock)
        {
            byte flags = watch[page];
            if ((flags & (byte)PageWatch.Clean) != 0)
                LogDirty(page);
            if ((flags & (byte)PageWatch.Hinted) != 0)
                hintedPages[page >> 6] &= ~(1UL << (int)(page & 63));
            flags &= (byte)PageWatch.Code;
            if (flags != 0 && (codeChunks[page] & ChunkMask(start & 4095, (stop - 1) & 4095)) != 0)
            {
                hit = true;
                codeChunks[page] = 0;
                Volatile.Write(ref generations[page], generations[page] + 1);
                flags = 0;
            }
            Volatile.Write(ref watch[page], flags);
        }
        if (hit)
            CodeChanged?.Invoke(page);
        return hit;
    }

    private void CollectPendingWrites() => CollectWrites?.Invoke();

    // After watch bits were set, without locks held: when this returns, every write is either visible or will be notified.
    private void TightenWatch()
    {
        // Device threads take no part in the event. After this barrier, one that has looked at a watch byte before has
        // its store visible, and one that has not will see the bit.
        Interlocked.MemoryBarrierProcessWide();
        WatchTightened?.Invoke();
    }

    private void InitializeTracking()
    {
        pageCount = end >> 12;
        watch = HostMapping.AllocateLazy(pageCount);
        generations = (uint*)HostMapping.AllocateLazy(pageCount * sizeof(uint));
        codeChunks = (ulong*)HostMapping.AllocateLazy(pageCount * sizeof(ulong));
        discardedPages = (ulong*)HostMapping.AllocateLazy(BitmapBytes);
        hintedPages = (ulong*)HostMapping.AllocateLazy(BitmapBytes);
        heldPages = (ulong*)HostMapping.AllocateLazy(BitmapBytes);
        filePages = (ulong*)HostMapping.AllocateLazy(BitmapBytes);
        awayPages = (ulong*)HostMapping.AllocateLazy(BitmapBytes);
        waitingPages = (ulong*)HostMapping.AllocateLazy(BitmapBytes);
        blockStates = HostMapping.AllocateLazy(BlockCount);
    }

    // Whole blocks, which are looked at in one.
    private ulong BitmapBytes => BlockCount * (BlockPages / 8);

    private void DisposeTracking()
    {
        Free(watch, pageCount);
        Free(generations, pageCount * sizeof(uint));
        Free(codeChunks, pageCount * sizeof(ulong));
        Free(discardedPages, BitmapBytes);
        Free(hintedPages, BitmapBytes);
        Free(heldPages, BitmapBytes);
        Free(filePages, BitmapBytes);
        Free(awayPages, BitmapBytes);
        Free(waitingPages, BitmapBytes);
        Free(blockStates, BlockCount);

        static void Free(void* address, ulong bytes)
        {
            if (address != null)
                HostMapping.Unmap((byte*)address, bytes);
        }
    }
}
