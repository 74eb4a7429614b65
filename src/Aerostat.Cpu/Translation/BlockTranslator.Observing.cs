using Iced.Intel;

namespace Aerostat.Cpu;

/// <summary>Is told of every block when its code is complete, on the vCPU's thread.</summary>
internal interface IBlockObserver
{
    void Translated(BlockView block);
}

/// <summary>A block that has just been translated, as an observer sees it.</summary>
internal sealed unsafe class BlockView
{
    public required ulong Linear { get; init; }

    public required ulong Gpa { get; init; }

    public required int Variant { get; init; }

    public required bool Ungrouped { get; init; }

    /// <summary>Its instructions, in the order of execution.</summary>
    public required Instruction[] Guest { get; init; }

    /// <summary>Where the code of each instruction begins, then where what follows the last one does.</summary>
    public required nint[] Marks { get; init; }

    /// <summary>The block's host code: the entry that checks its address if it has one, the body, somewhere behind it where its calls and far branches go on, and elsewhere the slow paths.</summary>
    public required nint Start { get; init; }

    public required nint Entry { get; init; }

    public required nint End { get; init; }

    public nint Near { get; set; }

    public nint NearEnd { get; set; }

    public nint SlowPaths { get; set; }

    public nint SlowPathsEnd { get; set; }

    /// <summary>Number of its first slow path among those of all blocks that are made with it.</summary>
    public required int FirstCold { get; init; }

    public required int FirstRecord { get; init; }

    public required CodeCache Cache { get; init; }

    public required CpuState* State { get; init; }

    /// <summary>Whether the instruction at an address is part of it.</summary>
    public bool Contains(ulong address)
    {
        foreach (Instruction i in Guest)
            if (i.IP == address)
                return true;
        return false;
    }
}

/// <content>What observers are told.</content>
internal sealed unsafe partial class BlockTranslator
{
    private readonly nint[] marks = new nint[MaxInstructions + 1];
    // Blocks whose slow paths are not there yet; none without an observer.
    private readonly List<BlockView> observed = [];

    /// <summary>Who looks on; null: nobody.</summary>
    public IBlockObserver? Observer { get; set; }

    private void NoteBlock(nint start, int firstRecord, int firstCold)
    {
        if (Observer == null)
            return;
        observed.Add(new BlockView
        {
            Linear = linear,
            Gpa = gpa,
            Variant = variant,
            Ungrouped = ungrouped,
            Guest = code[..count],
            Marks = marks[..(count + 1)],
            Start = start,
            Entry = entry,
            End = a.Here,
            FirstRecord = firstRecord,
            FirstCold = firstCold,
            Cache = cache,
            State = state,
        });
    }

    // Code of cold[i] comes next, or the end of its kind. What others have added is the last block's.
    private void NoteCold(int i, bool near)
    {
        foreach (BlockView block in observed)
        {
            if (block.FirstCold > i)
                continue;
            if (near && block.Near == 0)
                block.Near = a.Here;
            else if (!near && block.SlowPaths == 0)
                block.SlowPaths = a.Here;
        }
        if (i < cold.Count || observed.Count == 0)
            return;
        for (int n = 0; n < observed.Count; n++)
        {
            BlockView? after = n + 1 < observed.Count ? observed[n + 1] : null;
            if (near)
                observed[n].NearEnd = after?.Near ?? a.Here;
            else
                observed[n].SlowPathsEnd = after?.SlowPaths ?? a.Here;
        }
    }

    private void Observe()
    {
        foreach (BlockView block in observed)
            Observer!.Translated(block);
        observed.Clear();
    }
}
