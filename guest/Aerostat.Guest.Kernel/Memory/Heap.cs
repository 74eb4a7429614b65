using System.Runtime;
using Internal.Runtime;

namespace Aerostat.Guest.Kernel;

/// <summary>
/// Where C# objects are. There is no collector: what is made lives as long as the kernel, so drivers make their objects when they start and none afterwards.
/// </summary>
internal static unsafe class Heap
{
    private const int ChunkOrder = 4;
    private const ulong ChunkSize = (ulong)PageAllocator.PageSize << ChunkOrder;

    private static SpinLock gate;
    private static ulong at;
    private static ulong end;

    /// <summary>Bytes of all objects.</summary>
    public static ulong UsedBytes { get; private set; }

    [RuntimeExport("RhpNewFast")]
    private static void* NewObject(MethodTable* type)
    {
        void** made = Take(type->BaseSize);
        *made = type;
        return made;
    }

    [RuntimeExport("RhpNewArrayFast")]
    private static void* NewArray(MethodTable* type, int length)
    {
        if (length < 0)
            Panic.Stop("an array of a negative length");
        void** made = Take(type->BaseSize + ((ulong)(uint)length * type->ComponentSize));
        made[0] = type;
        *(int*)(made + 1) = length;
        return made;
    }

    [RuntimeExport("RhpNewPtrArrayFast")]
    private static void* NewArrayOfObjects(MethodTable* type, int length) => NewArray(type, length);

    // The size includes the word before the object, which only locks and hash codes would use.
    private static void** Take(ulong size)
    {
        size = (size + 15) & ~15UL;
        if (size > ChunkSize / 4)
        {
            int order = 0;
            while ((ulong)PageAllocator.PageSize << order < size)
                order++;
            ulong large = order <= PageAllocator.MaxOrder ? PageAllocator.Allocate(order) : 0;
            gate.Enter();
            UsedBytes += size;
            gate.Exit();
            return Clear(large, size);
        }
        gate.Enter();
        UsedBytes += size;
        if (end - at < size)
        {
            at = PageAllocator.Allocate(ChunkOrder);
            end = at + ChunkSize;
        }
        ulong start = at;
        at += size;
        gate.Exit();
        return Clear(start, size);
    }

    private static void** Clear(ulong start, ulong size)
    {
        if (start < PageAllocator.PageSize)
            Panic.Stop("out of memory for objects");
        Processor.FillWords((void*)start, 0, size / 8);
        return (void**)(start + 8);
    }
}
