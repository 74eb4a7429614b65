namespace Aerostat.Cpu.Tests;

/// <summary>Linear addresses that the native and the interpreted side of a case have in common.</summary>
internal static class Layout
{
    /// <summary>The window: data (and the stack) of a case. Nothing is mapped next to it.</summary>
    public const ulong Window = 0x1000_0000;

    /// <summary>The window of cases with a 16-bit address size.</summary>
    public const ulong LowWindow = 0x8000;

    /// <summary>Bytes of a window.</summary>
    public const int WindowSize = 0x3000;

    /// <summary>Offset in the window around which memory operands lie: a page boundary.</summary>
    public const int OperandOffset = 0x1000;

    /// <summary>Offset in the window of the initial stack pointer.</summary>
    public const int StackOffset = 0x2800;

    /// <summary>The code page and its length; the case starts in its middle.</summary>
    public const ulong Code = 0x2000_0000;

    public const int CodeSize = 0x2000;

    /// <summary>The code pages once more, for writing (guests only).</summary>
    public const ulong CodeAlias = 0x2010_0000;

    /// <summary>
    /// Distance between areas of code, of which there are three: addresses in them share their places in the translator's jump tables. The second and the third are for guests only.
    /// </summary>
    public const ulong AreaDistance = 0x1000_0000;

    /// <summary>A second window whose pages share entries of the software TLB with those of the first (guests only).</summary>
    public const ulong FarWindow = Window + 0x0100_0000;

    /// <summary>Offset in the far window of pointers to code: on the page that shares entries with the stack's.</summary>
    public const int PointerOffset = 0x2F00;

    /// <summary>Where the instructions of a case begin.</summary>
    public const ulong Start = Code + 0x800;

    /// <summary>Where the instructions begin as RIP sees it: 16-bit code has a segment that starts at <see cref="Code"/>.</summary>
    public static ulong StartRip(int bitness) => bitness == 16 ? Start - Code : Start;

    /// <summary>Never mapped, on either side.</summary>
    public const ulong Hole = 0x5000_0000;

    public const int HoleSize = 0x10000;
}
