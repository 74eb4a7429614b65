using System.Runtime;

namespace Aerostat.Guest.Kernel;

/// <summary>
/// The IDT, which all processors share, and of each its GDT with a TSS whose one other stack is for double faults: an overflowing stack can be told of
/// (Intel SDM vol. 3, sections 6.10 and 7.7).
/// </summary>
internal static unsafe class InterruptTable
{
    private const int Vectors = 256, Exceptions = 32, NonMaskable = 2, DoubleFault = 8, TaskSelector = 24;
    private const ulong InterruptGate = 0x8E00_0008_0000;

    private static Gates gates;
    private static Counts counts;

    private struct Gates
    {
        public fixed ulong Words[Vectors * 2];
    }

    private struct Counts
    {
        public fixed uint Of[Vectors];
    }

    /// <summary>Interrupts of a vector that came to the first processor.</summary>
    public static uint CountOf(byte vector) => counts.Of[vector];

    /// <summary>Has this processor use its tables.</summary>
    public static void Load(ProcessorData* data)
    {
        fixed (Gates* all = &gates)
        {
            ulong* gate = all->Words;
            for (int vector = 0; vector < Vectors && data->Index == 0; vector++)
            {
                ulong entry = Processor.Entries + ((ulong)vector * 16);
                ulong stack = vector == DoubleFault ? 1UL << 32 : 0;
                gate[vector * 2] = (entry & 0xFFFF) | InterruptGate | stack | (entry >> 16 << 48);
                gate[(vector * 2) + 1] = entry >> 32;
            }
            data->Segments[1] = 0x00AF_9B00_0000_FFFF;
            data->Segments[2] = 0x00CF_9300_0000_FFFF;
            ulong task = (ulong)data->Task;
            data->Segments[3] = (ProcessorData.TaskSize - 1) | ((task & 0xFF_FFFF) << 16) | (0x89UL << 40) | (task >> 24 << 56);
            data->Segments[4] = task >> 32;
            // IST1.
            *(ulong*)(data->Task + 36) = (ulong)data->FaultStack + ProcessorData.FaultStackSize;
            *(ushort*)(data->Task + 102) = ProcessorData.TaskSize;
            LoadPointer(data, (5 * 8) - 1, (ulong)data->Segments);
            Processor.LoadGlobalTable(data->Pointer);
            Processor.LoadTask(TaskSelector);
            LoadPointer(data, (Vectors * 16) - 1, (ulong)gate);
            Processor.LoadInterruptTable(data->Pointer);
        }
    }

    private static void LoadPointer(ProcessorData* data, ushort limit, ulong address)
    {
        *(ushort*)data->Pointer = limit;
        *(ulong*)(data->Pointer + 2) = address;
    }

    [RuntimeExport("KernelInterrupt")]
    private static void Enter(InterruptFrame* frame)
    {
        if (frame->Vector == NonMaskable && Panic.IsStopping)
            Panic.StandStill(frame);
        if (frame->Vector < Exceptions)
            Panic.Stop(frame);
        if (frame->Vector == LocalApic.SpuriousVector)
            return;
        if (Processors.Current->Index == 0)
        {
            counts.Of[(int)frame->Vector]++;
            Kernel.Interrupted();
        }
        LocalApic.End();
    }
}
