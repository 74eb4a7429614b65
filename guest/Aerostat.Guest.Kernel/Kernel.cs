using System.Runtime;

namespace Aerostat.Guest.Kernel;

/// <summary>Where the start-up code calls into C#.</summary>
internal static unsafe class Kernel
{
    [RuntimeExport("KernelMain")]
    private static void Main(uint magic, byte* information)
    {
        Console.Initialize();
        Console.WriteLine("Aerostat guest kernel");
        InterruptTable.Load();
        if (!BootInformation.Read(magic, information))
            Panic.Stop("started by neither multiboot nor PVH");
        PageAllocator.Initialize(BootInformation.HasOption("poison", out _));
        AcpiTables acpi = AcpiTables.Read(BootInformation.AcpiRoot);
        Console.Write("loader ");
        Console.Write(BootInformation.Loader);
        Console.Write(", memory ");
        Console.Write(PageAllocator.TotalPages >> 8);
        Console.Write(" MiB, ACPI tables ");
        Console.Write((ulong)acpi.Count);
        Console.Write(", processors ");
        Console.Write((ulong)acpi.Processors);
        Console.Write('\n');
        if (BootInformation.HasOption("fault", out ulong kind))
            Fault(kind);
        if (BootInformation.HasOption("exit", out ulong code))
            Power.DebugExit((byte)code);
        Power.Off(acpi);
    }

    // The ways to go wrong that the tests look at.
    private static void Fault(ulong kind)
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
