using System;

namespace Aerostat.Guest.Kernel;

/// <summary>
/// Buddy allocator of physical pages with orders 0 to 10, as Linux has. Its lists are in tables of their own and never in free pages, for the host may take
/// what is in a free page (hints, reporting) or change it by mistake, which <see cref="Poison"/> finds.
/// </summary>
internal static unsafe class PageAllocator
{
    public const int PageSize = 4096;
    public const int MaxOrder = 10;

    private const uint None = 0xFFFF_FFFF;

    // A frame's state: an order when it begins a free block, that plus Allocated when it begins one that is in use, otherwise one of these.
    private const byte Allocated = 0x40, Inside = 0x80, Absent = 0xFF;
    private const byte Reported = 0x20;
    private const ulong PoisonWord = 0xAAAA_AAAA_AAAA_AAAA;

    // Below are the BIOS data area, ACPI's root pointer and video memory.
    private const ulong Lowest = 0x10_0000;

    private static SpinLock gate;
    private static Heads heads;
    private static uint* next;
    private static uint* previous;
    private static byte* state;
    private static uint frames;

    private struct Heads
    {
        public fixed uint First[MaxOrder + 1];
        public fixed uint Count[MaxOrder + 1];
    }

    /// <summary>Pages that the allocator has, free or not.</summary>
    public static ulong TotalPages { get; private set; }

    public static ulong FreePages { get; private set; }

    /// <summary>Whether freed pages are filled with a pattern that is checked when they are used again.</summary>
    public static bool Poison { get; private set; }

    /// <summary>Address after the highest page of memory.</summary>
    public static ulong End => (ulong)frames * PageSize;

    /// <summary>Takes over the memory that the loader tells of, but for the image and what the loader put behind it.</summary>
    public static void Initialize(bool poison)
    {
        for (int order = 0; order <= MaxOrder; order++)
            heads.First[order] = None;
        ulong end = 0;
        for (int i = 0; i < BootInformation.RangeCount; i++)
            if (BootInformation.RangeEnd(i) > end)
                end = BootInformation.RangeEnd(i);
        PageTables.Map(end);
        frames = (uint)(end / PageSize);
        ulong tableBytes = ((ulong)frames * 9 + 7 + PageSize - 1) & ~(PageSize - 1UL);
        ulong tables = Place(tableBytes);
        if (tables == 0)
            Panic.Stop("no room for the page tables of the allocator");
        next = (uint*)tables;
        previous = next + frames;
        state = (byte*)(previous + frames);
        Processor.FillWords(state, Absent * 0x0101_0101_0101_0101UL, ((ulong)frames + 7) / 8);
        Poison = poison;
        for (int i = 0; i < BootInformation.RangeCount; i++)
            Release(BootInformation.RangeStart(i), BootInformation.RangeEnd(i), tables, tables + tableBytes);
    }

    /// <summary>Takes a block of 2^order pages, aligned to its size; 0 when there is none.</summary>
    public static ulong Allocate(int order)
    {
        gate.Enter();
        uint frame = Take(order, out bool reported);
        gate.Exit();
        if (frame == None)
            return 0;
        if (Poison)
            CheckPoison(frame, order, reported);
        return (ulong)frame * PageSize;
    }

    /// <summary>Gives a block back that was taken with the same order.</summary>
    public static void Free(ulong address, int order)
    {
        uint frame = (uint)(address / PageSize);
        if (address % PageSize != 0 || frame >= frames || state[frame] != (Allocated | order))
            Panic.Stop("freed a block of pages that is not in use");
        if (Poison)
            Processor.FillWords((void*)address, PoisonWord, (ulong)PageSize / 8 << order);
        gate.Enter();
        // Two that free the same block have both come this far.
        if (state[frame] != (Allocated | order))
            Panic.Stop("freed a block of pages that is not in use");
        FreePages += 1UL << order;
        Join(frame, order);
        gate.Exit();
    }

    /// <summary>Blocks on the free list of an order.</summary>
    public static uint FreeBlocks(int order) => heads.Count[order];

    /// <summary>Names the free blocks of an order without taking them: what the hints of June 2018 report.</summary>
    /// <returns>How many addresses were written.</returns>
    public static uint ListFreeBlocks(int order, ulong* addresses, uint most)
    {
        uint count = 0;
        gate.Enter();
        for (uint frame = heads.First[order]; frame != None && count < most; frame = next[frame])
            addresses[count++] = (ulong)frame * PageSize;
        gate.Exit();
        return count;
    }

    /// <summary>Takes a free block of this order or a higher one that the host has not been told of; 0 when there is none.</summary>
    /// <param name="order">The least order.</param>
    /// <param name="found">The block's order.</param>
    public static ulong TakeUnreported(int order, out int found)
    {
        gate.Enter();
        ulong block = 0;
        for (found = MaxOrder; found >= order && block == 0; found--)
            for (uint frame = heads.First[found]; frame != None; frame = next[frame])
                if ((state[frame] & Reported) == 0)
                {
                    Remove(frame, found);
                    state[frame] = (byte)(Allocated | found);
                    FreePages -= 1UL << found;
                    block = (ulong)frame * PageSize;
                    break;
                }
        // The loop has gone one further.
        found++;
        gate.Exit();
        return block;
    }

    /// <summary>Gives back what <see cref="TakeUnreported"/> gave, which the host knows to be free now: its content is poison or zero.</summary>
    public static void ReturnReported(ulong address, int order)
    {
        uint frame = (uint)(address / PageSize);
        gate.Enter();
        FreePages += 1UL << order;
        Insert(frame, order, reported: true);
        gate.Exit();
    }

    /// <summary>Checks free pages for poison where they are: one of several parts of memory. While it runs nobody may take or free pages.</summary>
    /// <returns>Pages that were looked at.</returns>
    public static ulong CheckFree(uint part, uint parts)
    {
        ulong pages = 0;
        for (uint frame = 0; frame < frames; frame++)
        {
            int order = state[frame] & ~Reported;
            // A block belongs to the part in whose stretch it begins.
            if (order > MaxOrder || (frame >> MaxOrder) % parts != part)
                continue;
            CheckPoison(frame, order, (state[frame] & Reported) != 0);
            pages += 1UL << order;
            frame += (1u << order) - 1;
        }
        return pages;
    }

    // The lock is held.
    private static uint Take(int order, out bool reported)
    {
        reported = false;
        int from = order;
        while (heads.First[from] == None)
            if (++from > MaxOrder)
                return None;
        uint frame = heads.First[from];
        reported = (state[frame] & Reported) != 0;
        Remove(frame, from);
        while (from > order)
        {
            from--;
            Insert(frame + (1u << from), from, reported);
        }
        state[frame] = (byte)(Allocated | order);
        FreePages -= 1UL << order;
        return frame;
    }

    private static ulong Place(ulong bytes)
    {
        for (int i = 0; i < BootInformation.RangeCount; i++)
        {
            ulong start = Math.Max(BootInformation.RangeStart(i), BootInformation.Reserved);
            if (start < BootInformation.RangeEnd(i) && BootInformation.RangeEnd(i) - start >= bytes)
                return start;
        }
        return 0;
    }

    // A stretch without the image and the tables, in the largest blocks.
    private static void Release(ulong start, ulong end, ulong hole, ulong holeEnd)
    {
        start = Math.Max(start, Lowest);
        if (start < BootInformation.Reserved && end > Processor.ImageStart)
        {
            Fill(start, Processor.ImageStart);
            start = BootInformation.Reserved;
        }
        if (start <= hole && hole < end)
        {
            Fill(start, hole);
            start = holeEnd;
        }
        Fill(start, end);
    }

    private static void Fill(ulong start, ulong end)
    {
        for (int order; start < end; start += (ulong)PageSize << order)
        {
            order = MaxOrder;
            while (((start / PageSize) & ((1u << order) - 1)) != 0 || end - start < (ulong)PageSize << order)
                order--;
            uint frame = (uint)(start / PageSize);
            for (uint i = 0; i < 1u << order; i++)
                state[frame + i] = Inside;
            TotalPages += 1UL << order;
            FreePages += 1UL << order;
            if (Poison)
                Processor.FillWords((void*)start, PoisonWord, (ulong)PageSize / 8 << order);
            Insert(frame, order, reported: false);
        }
    }

    private static void Join(uint frame, int order)
    {
        while (order < MaxOrder)
        {
            uint buddy = frame ^ (1u << order);
            if (buddy >= frames || (state[buddy] & ~Reported) != order)
                break;
            Remove(buddy, order);
            state[Math.Max(frame, buddy)] = Inside;
            frame = Math.Min(frame, buddy);
            order++;
        }
        Insert(frame, order, reported: false);
    }

    private static void Insert(uint frame, int order, bool reported)
    {
        uint first = heads.First[order];
        next[frame] = first;
        previous[frame] = None;
        if (first != None)
            previous[first] = frame;
        heads.First[order] = frame;
        heads.Count[order]++;
        state[frame] = (byte)(order | (reported ? Reported : 0));
    }

    private static void Remove(uint frame, int order)
    {
        if (previous[frame] == None)
            heads.First[order] = next[frame];
        else
            next[previous[frame]] = next[frame];
        if (next[frame] != None)
            previous[next[frame]] = previous[frame];
        heads.Count[order]--;
    }

    // Every page of the block is poison, or zero as a whole when the host may have taken it.
    private static void CheckPoison(uint frame, int order, bool reported)
    {
        for (uint page = 0; page < 1u << order; page++)
        {
            ulong* words = (ulong*)((ulong)(frame + page) * PageSize);
            ulong expected = reported && words[0] == 0 ? 0 : PoisonWord;
            for (int i = 0; i < PageSize / 8; i++)
                if (words[i] != expected)
                {
                    Console.Write("free page changed at 0x");
                    Console.WriteHex((ulong)(words + i));
                    Console.Write(": 0x");
                    Console.WriteHex(words[i], 16);
                    Panic.Stop("somebody wrote to a free page");
                }
        }
    }
}
