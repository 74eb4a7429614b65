using System.Runtime.InteropServices;

namespace Aerostat.Cpu;

/// <summary>
/// One check of a memory access in generated code that keeps the page it found last to itself: a tag as in <see cref="TlbEntry"/> and what leads from there to
/// the host's memory, both at constant addresses (<see cref="SlotOf"/>), so that neither waits for the guest's address. Another page is found by
/// <see cref="Thunks.Again"/>; where that happens too often the block is made again with a check that searches as others do. Whatever takes something out of the
/// TLB lets all checks forget their pages (<see cref="CodeCache.UnbindChecks"/>).
/// </summary>
[StructLayout(LayoutKind.Explicit, Size = 1 << Shift)]
internal struct CheckSite
{
    public const int Shift = 6, OffsetOfContinue = 0, OffsetOfLeave = 8, OffsetOfLimit = 16, OffsetOfMisses = 24, OffsetOfRelative = 25, OffsetOfBound = 26;

    /// <summary>Bytes of a slot: the tag, then how to go on from there.</summary>
    public const int SlotBytes = 16;

    /// <summary>Where generated code goes on with the offset in the page in R10, the slot being right.</summary>
    [FieldOffset(OffsetOfContinue)]
    public nint Continue;
    /// <summary>Where it leaves, with the address in R10.</summary>
    [FieldOffset(OffsetOfLeave)]
    public nint Leave;
    /// <summary>Largest offset in the page.</summary>
    [FieldOffset(OffsetOfLimit)]
    public ulong Limit;
    /// <summary>How many more wrong pages until the dispatcher is asked.</summary>
    [FieldOffset(OffsetOfMisses)]
    public sbyte Misses;
    /// <summary>Whether the slot holds the distance from guest address to host address, in place of the host's page.</summary>
    [FieldOffset(OffsetOfRelative)]
    public bool Relative;
    /// <summary>Whether the slot holds something, and is listed.</summary>
    [FieldOffset(OffsetOfBound)]
    public bool Bound;
    /// <summary>Guest instructions executed when <see cref="Misses"/> was set, in units of 1024.</summary>
    [FieldOffset(28)]
    public uint Since;
    /// <summary>Physical address of the instruction.</summary>
    [FieldOffset(32)]
    public ulong Instruction;
    /// <summary>The block it is in: linear and physical address, and variant.</summary>
    [FieldOffset(40)]
    public ulong Linear;
    [FieldOffset(48)]
    public ulong Gpa;
    [FieldOffset(56)]
    public int Variant;

    /// <summary>Wrong pages between two looks at whether this is worth it, and how many guest instructions apart they have to be.</summary>
    public const int Patience = 64, WorthInstructions = 1024;

    /// <summary>Executions of a block on trial for each wrong page that a slot is worth at least: a wrong one costs about ten times what a right one saves.</summary>
    public const int WorthExecutions = 16;

    /// <summary>Where a check's slot is in the state.</summary>
    public static int SlotOf(int check) => Interpreter.SlotsOffset + (check * SlotBytes);
}
