namespace Aerostat.Guest.Kernel;

/// <summary>The ways to go wrong that the tests look at.</summary>
internal static unsafe class Faults
{
    public static void Make(ulong kind)
    {
        switch (kind)
        {
            case 0:
                *(ulong*)8 = 1;
                break;
            case 1:
                Processor.Undefined();
                break;
            case 2:
                int[] none = new int[3];
                none[(int)kind + (int)PageAllocator.TotalPages] = 1;
                break;
            case 3:
                *(byte*)Processor.ImageStart = 0;
                break;
            case 4:
                Recurse(kind);
                break;
            case 6:
            case 7:
            case 8:
            case 9:
                ProcessorFaults.Make(kind);
                break;
            default:
                ulong page = PageAllocator.Allocate(0);
                PageAllocator.Free(page, 0);
                *(ulong*)(page + 64) = 1;
                PageAllocator.Allocate(0);
                break;
        }
    }

    private static ulong Recurse(ulong depth)
    {
        ulong* words = stackalloc ulong[64];
        words[depth & 63] = depth;
        return Recurse(depth + 1) + words[(depth + 1) & 63];
    }
}
