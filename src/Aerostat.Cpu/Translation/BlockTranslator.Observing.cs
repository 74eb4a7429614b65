using Iced.Intel;

namespace Aerostat.Cpu;

/// <summary>Is told of every block when its code is complete, on the vCPU's thread.</summary>
internal interface IBlockObserver
{
    void Translated(in BlockView block);
}

/// <summary>A block that has just been translated, as an observer sees it during the call.</summary>
internal readonly unsafe ref struct BlockView
{
    public required ulong Linear { get; init; }

    public required ulong Gpa { get; init; }

    public required int Variant { get; init; }

    public required bool Ungrouped { get; init; }

    /// <summary>Its instructions, in the order of execution.</summary>
    public required ReadOnlySpan<Instruction> Guest { get; init; }

    /// <summary>Where the code of each instruction begins, then where what follows the last one does, then where the slow paths do.</summary>
    public required ReadOnlySpan<nint> Marks { get; init; }

    /// <summary>The block's host code: the entry that checks its address, the body from the second mark on, the slow paths.</summary>
    public required nint Start { get; init; }

    public required nint Entry { get; init; }

    public required nint End { get; init; }

    public required int FirstRecord { get; init; }

    public required CodeCache Cache { get; init; }

    public required CpuState* State { get; init; }

    /// <summary>Whether the instruction at an address is part of it.</summary>
    public bool Contains(ulong address)
    {
        foreach (ref readonly Instruction i in Guest)
            if (i.IP == address)
                return true;
        return false;
    }
}

/// <content>What observers are told.</content>
internal sealed unsafe partial class BlockTranslator
{
    private readonly nint[] marks = new nint[MaxInstructions + 2];

    /// <summary>Who looks on; null: nobody.</summary>
    public IBlockObserver? Observer { get; set; }

    private void Observe(nint start, int firstRecord) => Observer!.Translated(new BlockView
    {
        Linear = linear,
        Gpa = gpa,
        Variant = variant,
        Ungrouped = ungrouped,
        Guest = code.AsSpan(0, count),
        Marks = marks.AsSpan(0, count + 2),
        Start = start,
        Entry = entry,
        End = a.Here,
        FirstRecord = firstRecord,
        Cache = cache,
        State = state,
    });
}
