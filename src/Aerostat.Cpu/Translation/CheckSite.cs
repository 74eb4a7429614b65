using System.Runtime.InteropServices;

namespace Aerostat.Cpu;

/// <summary>
/// One check of a memory access in generated code. Most go to the page they went to last time, so each predicts its TLB entry: then neither the entry's host
/// page nor its tag have to wait for the address. A wrong prediction is found out by the tag; <see cref="Thunks.Again"/> makes another. Where
/// that happens too often the check is changed to search as usual.
/// </summary>
[StructLayout(LayoutKind.Explicit, Size = 1 << Shift)]
internal struct CheckSite
{
    public const int Shift = 5, OffsetOfContinue = 0, OffsetOfLeave = 8, OffsetOfLimit = 16, OffsetOfMisses = 24;

    /// <summary>Where generated code goes on with the offset in the page in R10 and the entry's offset in its set in R11.</summary>
    [FieldOffset(OffsetOfContinue)]
    public nint Continue;
    /// <summary>Where it leaves, with the address in R10.</summary>
    [FieldOffset(OffsetOfLeave)]
    public nint Leave;
    /// <summary>Largest offset in the page.</summary>
    [FieldOffset(OffsetOfLimit)]
    public ulong Limit;
    /// <summary>How many more wrong predictions until the dispatcher is asked.</summary>
    [FieldOffset(OffsetOfMisses)]
    public int Misses;
    /// <summary>Guest instructions executed when that was set, in units of 1024.</summary>
    [FieldOffset(OffsetOfMisses + 4)]
    public uint Since;

    /// <summary>Wrong predictions between two looks at whether this is worth it, and how many guest instructions apart they have to be.</summary>
    public const int Patience = 64, WorthInstructions = 1024;
}
