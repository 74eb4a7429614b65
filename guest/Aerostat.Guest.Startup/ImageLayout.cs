namespace Aerostat.Guest.Startup;

/// <summary>Where things are in the image. The linker script fills a table at a fixed place, so that the code needs no relocations.</summary>
internal static class ImageLayout
{
    /// <summary>Where the image is loaded, linked and run: physical and virtual addresses are the same.</summary>
    public const uint Base = 0x10_0000;

    /// <summary>Addresses of 8 bytes each, after the multiboot header.</summary>
    public const uint Table = Base + 0x40;

    /// <summary>The assembled code.</summary>
    public const uint Code = Base + 0x80;

    /// <summary>Table entry: the C# method that is called in long mode.</summary>
    public const uint MainSlot = Table;

    /// <summary>Table entry: the C# method that every interrupt and exception calls.</summary>
    public const uint InterruptSlot = Table + 8;

    /// <summary>Table entry: end of the first stack.</summary>
    public const uint StackSlot = Table + 16;

    /// <summary>Table entry: six zeroed pages for the first page tables.</summary>
    public const uint PageTablesSlot = Table + 24;

    /// <summary>Table entry: the C# method that is called on each further processor.</summary>
    public const uint ApplicationMainSlot = Table + 32;

    /// <summary>Table entry: 8 bytes in which the stack of the processor that is being started is left for it.</summary>
    public const uint ApplicationStackSlot = Table + 40;
}
