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

    /// <summary>Where the code of each instruction begins, then where what follows the last one does.</summary>
    public required ReadOnlySpan<nint> Marks { get; init; }

    /// <summary>The block's host code: the entry that checks its address, the body, and somewhere behind it the slow paths.</summary>
    public required nint Start { get; init; }

    public required nint Entry { get; init; }

    public required nint End { get; init; }

    public required nint SlowPaths { get; init; }

    public required nint SlowPathsEnd { get; init; }

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
    private readonly nint[] marks = new nint[MaxInstructions + 1];
    private readonly List<Part> parts = [];

    // A block whose slow paths are not there yet.
    private sealed record Part(ulong Linear, ulong Gpa, Instruction[] Guest, nint[] Marks, nint Start, nint Entry, nint End, int FirstRecord, int FirstCold)
    {
        public nint SlowPaths { get; set; }
    }

    /// <summary>Who looks on; null: nobody.</summary>
    public IBlockObserver? Observer { get; set; }

    private void NotePart(nint start, int firstRecord, int firstCold) =>
        parts.Add(new Part(linear, gpa, code.AsSpan(0, count).ToArray(), marks.AsSpan(0, count + 1).ToArray(), start, entry, a.Here, firstRecord, firstCold));

    // Slow path i comes next. Those that belong to none, for they were added by others, are the last block's.
    private int NoteSlowPaths(int part, int i)
    {
        for (; part < parts.Count && parts[part].FirstCold <= i; part++)
            parts[part].SlowPaths = a.Here;
        return part;
    }

    private void Observe()
    {
        for (int n = 0; n < parts.Count; n++)
        {
            Part p = parts[n];
            Observer!.Translated(new BlockView
            {
                Linear = p.Linear,
                Gpa = p.Gpa,
                Variant = variant,
                Ungrouped = ungrouped,
                Guest = p.Guest,
                Marks = p.Marks,
                Start = p.Start,
                Entry = p.Entry,
                End = p.End,
                SlowPaths = p.SlowPaths,
                SlowPathsEnd = n + 1 < parts.Count ? parts[n + 1].SlowPaths : a.Here,
                FirstRecord = p.FirstRecord,
                Cache = cache,
                State = state,
            });
        }
        parts.Clear();
    }
}
