namespace Aerostat.Guest.Kernel;

/// <summary>
/// The page tables: all memory at its own address, in pages of 2 MiB but for those around the image, where nothing is both writable and executable, page 0
/// is absent (null), and so is the page below the stack (Intel SDM vol. 3, section 4.5).
/// </summary>
internal static unsafe class PageTables
{
    private const ulong Present = 1, Writable = 2, Large = 0x80, NoExecute = 1UL << 63, AddressMask = 0x000F_FFFF_FFFF_F000;
    private const ulong LargePage = 2UL << 20;

    /// <summary>Maps what is above the first 4 GiB. The tables come from behind the image, for there is no allocator yet.</summary>
    public static void Map(ulong end)
    {
        ulong* root = (ulong*)(Processor.ReadPageTables() & AddressMask);
        // Device registers of 64-bit PCI windows may be anywhere that one root entry reaches.
        for (ulong at = 4UL << 30; at < end; at += LargePage)
        {
            ulong* level3 = Next(root, at >> 39 & 511);
            ulong* level2 = Next(level3, at >> 30 & 511);
            level2[at >> 21 & 511] = at | Present | Writable | Large | NoExecute;
        }
        Protect(root);
        Processor.WritePageTables((ulong)root);
    }

    /// <summary>Makes device registers reachable that are above memory.</summary>
    public static void MapDevice(ulong address, ulong bytes)
    {
        const ulong Uncached = 0x18;
        ulong* root = (ulong*)(Processor.ReadPageTables() & AddressMask);
        for (ulong at = address & ~(LargePage - 1); at < address + bytes; at += LargePage)
        {
            ulong* level2 = Next(Next(root, at >> 39 & 511), at >> 30 & 511);
            ref ulong entry = ref level2[at >> 21 & 511];
            if ((entry & Present) == 0)
                entry = at | Present | Writable | Large | NoExecute | Uncached;
        }
    }

    /// <summary>Makes one page absent, so that an access to it is a fault: the one below a stack.</summary>
    public static void MakeAbsent(ulong address) => Set(address, 0);

    /// <summary>Makes a page of memory code, which can be run and not written, or data again.</summary>
    public static void SetCode(ulong page, bool code) => Set(page, code ? page | Present : page | Present | Writable | NoExecute);

    // The entry of one page of data, which takes the page of 2 MiB around it apart. Of one processor: others may still know what was there.
    private static void Set(ulong address, ulong value)
    {
        ulong* root = (ulong*)(Processor.ReadPageTables() & AddressMask);
        ulong* level2 = Next(Next(root, address >> 39 & 511), address >> 30 & 511);
        ref ulong large = ref level2[address >> 21 & 511];
        if ((large & Large) != 0)
        {
            ulong* split = TakePage();
            ulong start = address & ~(LargePage - 1);
            for (uint i = 0; i < 512; i++)
                split[i] = start + ((ulong)i << 12) | Present | Writable | NoExecute;
            large = (ulong)split | Present | Writable;
        }
        ((ulong*)(large & AddressMask))[address >> 12 & 511] = value;
        Processor.InvalidatePage(address);
    }

    private static void Protect(ulong* root)
    {
        ulong* level3 = (ulong*)(root[0] & AddressMask);
        for (ulong at = 0; at < 4UL << 30; at += LargePage)
        {
            ulong* level2 = (ulong*)(level3[at >> 30] & AddressMask);
            if (at >= LargePage && (at < (Processor.ImageStart & ~(LargePage - 1)) || at >= Processor.ImageEnd))
            {
                level2[at >> 21 & 511] |= NoExecute;
                continue;
            }
            ulong* level1 = TakePage();
            for (uint i = 0; i < 512; i++)
                level1[i] = SmallPage(at + ((ulong)i << 12));
            level2[at >> 21 & 511] = (ulong)level1 | Present | Writable;
        }
    }

    private static ulong SmallPage(ulong at)
    {
        if (at == 0 || at == Processor.FirstStackGuard)
            return 0;
        return at >= Processor.ImageStart && at < Processor.TextEnd ? at | Present : at | Present | Writable | NoExecute;
    }

    private static ulong* Next(ulong* table, ulong index)
    {
        if ((table[index] & Present) == 0)
            table[index] = (ulong)TakePage() | Present | Writable;
        return (ulong*)(table[index] & AddressMask);
    }

    private static ulong* TakePage()
    {
        ulong page = PageAllocator.End != 0 ? PageAllocator.Allocate(0) : BootInformation.TakePage();
        if (page == 0)
            Panic.Stop("no page for the page tables");
        Processor.FillWords((void*)page, 0, 512);
        return (ulong*)page;
    }
}
