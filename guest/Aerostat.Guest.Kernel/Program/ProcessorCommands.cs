namespace Aerostat.Guest.Kernel;

/// <summary>The shell's commands that several processors do at a time.</summary>
internal static unsafe class ProcessorCommands
{
    /// <summary>Lists the processors.</summary>
    public static void Show()
    {
        for (uint i = 0; i < Processors.Count; i++)
        {
            ProcessorData* data = Processors.At(i);
            Shell.Figure("processor", i);
            Shell.Figure("apic-id", data->ApicId);
            Shell.Figure("done", data->Done, last: true);
        }
        Shell.Figure("processors", Processors.Count, last: true);
    }

    /// <summary>Every word of a chain of pages is what was written to it: how many are not.</summary>
    public static ulong CountWrong(ulong held)
    {
        CheckHeld work = new(held);
        Processors.RunOnAll(work);
        return work.Wrong;
    }

    /// <summary>Looks at all free pages for what somebody wrote there.</summary>
    public static void CheckFree()
    {
        if (!PageAllocator.Poison)
        {
            Console.WriteLine("free pages are not filled with a pattern; start with 'poison'");
            return;
        }
        CheckPoison work = new();
        Processors.RunOnAll(work);
        Shell.Figure("free-pages", PageAllocator.FreePages);
        Shell.Figure("checked-pages", work.Pages, last: true);
    }

    /// <summary>All processors take pages, write to them, look whether they are still theirs, and free them; so many times each.</summary>
    public static void Churn(ulong rounds)
    {
        ChurnPages work = new(rounds == 0 ? 1000 : rounds);
        ulong before = PageAllocator.FreePages;
        Processors.RunOnAll(work);
        Shell.Figure("rounds", work.Rounds);
        Shell.Figure("none-free", work.Failed);
        Shell.Figure("wrong-words", work.Wrong);
        Shell.Figure("lost-pages", before - PageAllocator.FreePages, last: true);
    }

    private sealed class CheckHeld(ulong held) : ProcessorWork
    {
        private uint wrong;

        public ulong Wrong => wrong;

        // Each follows the whole chain, and looks at its pages only.
        public override void Run(uint part, uint parts)
        {
            uint found = 0;
            uint index = 0;
            for (ulong page = held; page != 0; page = *(ulong*)page, index++)
                for (uint i = 1; index % parts == part && i < PageAllocator.PageSize / 8; i++)
                    if (((ulong*)page)[i] != page)
                        found++;
            fixed (uint* at = &wrong)
                Processor.AddExchange(at, found);
        }
    }

    private sealed class CheckPoison : ProcessorWork
    {
        private uint pages;

        public ulong Pages => pages;

        public override void Run(uint part, uint parts)
        {
            uint looked = (uint)PageAllocator.CheckFree(part, parts);
            fixed (uint* at = &pages)
                Processor.AddExchange(at, looked);
        }
    }

    private sealed class ChurnPages(ulong rounds) : ProcessorWork
    {
        private const int AtOnce = 16, MostOrder = 3;

        private uint wrong;
        private uint failed;
        private uint done;

        public ulong Wrong => wrong;

        public ulong Failed => failed;

        public ulong Rounds => done;

        public override void Run(uint part, uint parts)
        {
            ulong* blocks = stackalloc ulong[AtOnce];
            int* orders = stackalloc int[AtOnce];
            for (int i = 0; i < AtOnce; i++)
                blocks[i] = 0;
            uint random = (part * 0x9E37_79B9) + 1, bad = 0, none = 0;
            for (ulong round = 0; round < rounds; round++)
            {
                random = (random * 1_664_525) + 1_013_904_223;
                int slot = (int)(random >> 28);
                if (blocks[slot] != 0)
                    bad += Free(blocks[slot], orders[slot], part);
                orders[slot] = (int)(random >> 20 & MostOrder);
                blocks[slot] = PageAllocator.Allocate(orders[slot]);
                if (blocks[slot] == 0)
                    none++;
                else
                    Processor.FillWords((void*)blocks[slot], Mark(blocks[slot], part), (ulong)PageAllocator.PageSize / 8 << orders[slot]);
            }
            for (int i = 0; i < AtOnce; i++)
                if (blocks[i] != 0)
                    bad += Free(blocks[i], orders[i], part);
            fixed (uint* at = &wrong)
                Processor.AddExchange(at, bad);
            fixed (uint* at = &failed)
                Processor.AddExchange(at, none);
            fixed (uint* at = &done)
                Processor.AddExchange(at, (uint)rounds);
        }

        private static uint Free(ulong block, int order, uint part)
        {
            uint bad = 0;
            for (uint i = 0; i < (uint)PageAllocator.PageSize / 8 << order; i++)
                if (((ulong*)block)[i] != Mark(block, part))
                    bad++;
            PageAllocator.Free(block, order);
            return bad;
        }

        private static ulong Mark(ulong block, uint part) => block | part;
    }
}
