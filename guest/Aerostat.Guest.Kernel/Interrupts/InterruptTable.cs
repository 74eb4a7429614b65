using System.Runtime;

namespace Aerostat.Guest.Kernel;

/// <summary>The IDT, and a TSS whose one other stack is for double faults: an overflowing stack can be told of (Intel SDM vol. 3, sections 6.10 and 7.7).</summary>
internal static unsafe class InterruptTable
{
    private const int Vectors = 256, Exceptions = 32, DoubleFault = 8, TaskSize = 104, TaskSelector = 24, FaultStackSize = 8192;
    private const ulong InterruptGate = 0x8E00_0008_0000;

    private static Tables tables;

    private struct Tables
    {
        public fixed ulong Gates[Vectors * 2];
        public fixed ulong Segments[5];
        public fixed byte Task[TaskSize];
        public fixed byte Pointer[10];
        public fixed ulong FaultStack[FaultStackSize / 8];
    }

    public static void Load()
    {
        fixed (Tables* t = &tables)
        {
            for (int vector = 0; vector < Vectors; vector++)
            {
                ulong entry = Processor.Entries + ((ulong)vector * 16);
                ulong stack = vector == DoubleFault ? 1UL << 32 : 0;
                t->Gates[vector * 2] = (entry & 0xFFFF) | InterruptGate | stack | (entry >> 16 << 48);
                t->Gates[(vector * 2) + 1] = entry >> 32;
            }
            t->Segments[1] = 0x00AF_9B00_0000_FFFF;
            t->Segments[2] = 0x00CF_9300_0000_FFFF;
            ulong task = (ulong)t->Task;
            t->Segments[3] = (TaskSize - 1) | ((task & 0xFF_FFFF) << 16) | (0x89UL << 40) | (task >> 24 << 56);
            t->Segments[4] = task >> 32;
            // IST1.
            *(ulong*)(t->Task + 36) = (ulong)t->FaultStack + FaultStackSize;
            *(ushort*)(t->Task + 102) = TaskSize;
            LoadPointer(t, (5 * 8) - 1, (ulong)t->Segments);
            Processor.LoadGlobalTable(t->Pointer);
            Processor.LoadTask(TaskSelector);
            LoadPointer(t, (Vectors * 16) - 1, (ulong)t->Gates);
            Processor.LoadInterruptTable(t->Pointer);
        }
    }

    private static void LoadPointer(Tables* t, ushort limit, ulong address)
    {
        *(ushort*)t->Pointer = limit;
        *(ulong*)(t->Pointer + 2) = address;
    }

    [RuntimeExport("KernelInterrupt")]
    private static void Enter(InterruptFrame* frame)
    {
        if (frame->Vector < Exceptions)
            Panic.Stop(frame);
        if (frame->Vector == LocalApic.SpuriousVector)
            return;
        Kernel.Interrupted();
        LocalApic.End();
    }
}
