using System.Runtime;
using System.Runtime.CompilerServices;

namespace Aerostat.Guest.Kernel;

/// <summary>Where the start-up code calls into C#: makes the machine usable, and calls the guest's own GuestMain.</summary>
internal static unsafe class Kernel
{
    private static bool interrupted;

    // The same for who waits inside of something: the program's own wait is not to miss what came meanwhile.
    private static bool interruptedInside;

    /// <summary>Notes that there may be something to do; called with interrupts off.</summary>
    public static void Interrupted() => interrupted = interruptedInside = true;

    /// <summary>Waits for the next interrupt, unless one came since the last time.</summary>
    public static void WaitForInterrupt()
    {
        Processor.DisableInterrupts();
        if (!interrupted)
            Processor.EnableAndHalt();
        interrupted = false;
        Processor.EnableInterrupts();
    }

    /// <summary>The same for a driver in the midst of something.</summary>
    public static void WaitInside()
    {
        Processor.DisableInterrupts();
        if (!interruptedInside)
            Processor.EnableAndHalt();
        interruptedInside = false;
        Processor.EnableInterrupts();
    }

    [RuntimeImport("*", "GuestMain"), MethodImpl(MethodImplOptions.InternalCall)]
    private static extern void GuestMain();

    [RuntimeExport("KernelMain")]
    private static void Main(uint magic, byte* information)
    {
        Processors.Initialize();
        Console.Initialize();
        Console.WriteLine("Aerostat guest kernel");
        if (!BootInformation.Read(magic, information))
            Panic.Stop("started by neither multiboot nor PVH");
        PageAllocator.Initialize(BootInformation.HasOption("poison", out _));
        AcpiTables tables = AcpiTables.Read(BootInformation.AcpiRoot);
        Power.Initialize(tables);
        Clock.Initialize(tables);
        LocalApic.Initialize(tables);
        Console.Write("loader ");
        Console.Write(BootInformation.Loader);
        Console.Write(", memory ");
        Console.Write(PageAllocator.TotalPages >> 8);
        Console.Write(" MiB, ACPI tables ");
        Console.Write((ulong)tables.Count);
        Console.Write(", processors ");
        Console.Write((ulong)tables.Processors);
        Console.Write('\n');
        Processors.StartOthers(tables, BootInformation.HasOption("cpus", out ulong most) ? (uint)most : Processors.Most);
        Processor.EnableInterrupts();
        GuestMain();
        Power.Off();
    }
}
