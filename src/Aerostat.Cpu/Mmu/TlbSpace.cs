using Aerostat.Platform;

namespace Aerostat.Cpu;

/// <summary>
/// One address space's part of a vCPU's software TLB: the user's and the supervisor's set for one PCID (Intel SDM vol. 3 section 5.10.1).
/// </summary>
/// <remarks>
/// Generated code reaches the state and the sets behind it from one base. So each space is a view of its own: the same page of
/// state, then its own user set, the strict set that all share, its own supervisor set, and the empty set that all share. Another
/// space comes into force by another base; nothing is copied and no code is changed.
/// </remarks>
internal sealed unsafe class TlbSpace(TlbMemory memory, int number, nint view)
{
    public const int NoPcid = -1;

    public int Number => number;

    /// <summary>The view: state, then sets.</summary>
    public byte* Base => (byte*)view;

    /// <summary>The PCID this belongs to, or <see cref="NoPcid"/>.</summary>
    public int Pcid { get; set; } = NoPcid;

    /// <summary>The epoch of cached linear-to-code mappings.</summary>
    public ulong Epoch { get; set; }

    public long LastUse { get; set; }

    /// <summary>The bits of CR3 for linear-address masking under which it was last in force.</summary>
    public ulong Masks { get; set; }

    /// <summary>Up to which point write paths have been dropped.</summary>
    public int WatchStamp { get; set; }

    /// <summary>Which entries may be in use (set * entries + index), so that a flush costs what was filled.</summary>
    public int[] Filled { get; private set; } = [];

    public int FilledCount { get; set; }

    /// <summary>Where large pages were used since the last flush.</summary>
    public LargePageFilter Large { get; } = new();

    /// <summary>Whether the sets have been set up; memory of spaces that are never used is not touched.</summary>
    public bool IsPrepared => Filled.Length != 0;

    public void Prepare()
    {
        if (IsPrepared)
            return;
        Filled = new int[2 * Interpreter.TlbEntries];
        var sets = (TlbEntry*)(Base + Interpreter.StateBytes);
        memory.Empty(sets + (Interpreter.UserSet * Interpreter.TlbEntries));
        memory.Empty(sets + (Interpreter.SupervisorSet * Interpreter.TlbEntries));
    }
}

/// <summary>The memory of a vCPU's state and TLB, with a view for each <see cref="TlbSpace"/>.</summary>
internal sealed unsafe class TlbMemory : IDisposable
{
    /// <summary>Linux uses six PCIDs at a time (and twelve with page-table isolation).</summary>
    public const int SpaceCount = 8;
    private const int SetBytes = Interpreter.TlbEntries * 32;
    private const ulong ViewBytes = Interpreter.StateBytes + (Interpreter.SetCount * (ulong)SetBytes);

    // A page with the bits of an address that is canonical under no paging mode and no masking (Intel SDM vol. 1 section 3.3.7.1, vol. 3 chapter 4):
    // bit 63 set, bits 56 and 47 clear, and the index left open.
    private const ulong NeverBits = 0x7EFF_7FFF_FF00_0000;
    private const int SpareBytes = 2 * 4096;

    private readonly MemoryFile file;
    private readonly byte* views;
    private readonly byte* spare;
    private readonly ulong never = 1UL << 63 | ((ulong)Random.Shared.NextInt64(long.MaxValue) & NeverBits);

    public TlbMemory()
    {
        // The file: state, strict set, empty set, then two sets for each space.
        file = new MemoryFile("aerostat-tlb", Interpreter.StateBytes + ((2 + (2 * SpaceCount)) * (ulong)SetBytes));
        spare = HostMapping.AllocateLazy(SpareBytes);
        views = HostMapping.Reserve(SpaceCount * ViewBytes);
        Spaces = new TlbSpace[SpaceCount];
        for (int i = 0; i < SpaceCount; i++)
        {
            byte* view = views + ((ulong)i * ViewBytes), sets = view + Interpreter.StateBytes;
            long own = Interpreter.StateBytes + ((2 + (2 * i)) * (long)SetBytes);
            // SAFETY: each piece lies inside the reservation, page aligned.
            HostMapping.MapSharedAt(view, Interpreter.StateBytes, file.Descriptor, 0);
            HostMapping.MapSharedAt(sets + (Interpreter.UserSet * SetBytes), SetBytes, file.Descriptor, own);
            HostMapping.MapSharedAt(sets + (Interpreter.StrictSet * SetBytes), SetBytes, file.Descriptor, Interpreter.StateBytes);
            HostMapping.MapSharedAt(sets + (Interpreter.SupervisorSet * SetBytes), SetBytes, file.Descriptor, own + SetBytes);
            HostMapping.MapSharedAt(sets + (Interpreter.EmptySet * SetBytes), SetBytes, file.Descriptor, Interpreter.StateBytes + SetBytes);
            Spaces[i] = new TlbSpace(this, i, (nint)view);
        }
        var first = (TlbEntry*)(views + Interpreter.StateBytes);
        Empty(first + (Interpreter.StrictSet * Interpreter.TlbEntries));
        Empty(first + (Interpreter.EmptySet * Interpreter.TlbEntries));
        Spaces[0].Prepare();
    }

    public TlbSpace[] Spaces { get; }

    /// <summary>A tag that no address has.</summary>
    public ulong NoTag => never;

    /// <summary>The host address that goes with it: a page of the vCPU's own.</summary>
    public ulong Spare => (ulong)spare;

    /// <summary>Where large pages were used through the strict set.</summary>
    public LargePageFilter StrictLarge { get; } = new();

    public TlbSpace LeastRecentlyUsed(TlbSpace but)
    {
        TlbSpace? oldest = null;
        foreach (TlbSpace s in Spaces)
            if (s != but && (oldest == null || s.LastUse < oldest.LastUse))
                oldest = s;
        return oldest!;
    }

    /// <summary>Whether an entry is in no list of those that are filled.</summary>
    public bool IsUnlisted(TlbEntry* e) => e->ReadHost == spare;

    /// <summary>Whether an entry serves a page.</summary>
    public bool IsFilled(TlbEntry* e) => (nuint)(e->ReadHost - spare) >= SpareBytes;

    /// <summary>The host address by which an entry that is listed as filled but holds nothing is told.</summary>
    public byte* Vacant => spare + 1;

    public void Empty(TlbEntry* set)
    {
        // With the index of the neighbour: no linear address that selects this entry can match it.
        for (int i = 0; i < Interpreter.TlbEntries; i++)
        {
            ulong tag = never | (ulong)(i ^ 1) << 12;
            set[i] = new TlbEntry { ReadTag = tag, ReadHost = spare, WriteTag = tag, WriteHost = spare };
        }
    }

    public void Dispose()
    {
        HostMapping.Unmap(spare, SpareBytes);
        HostMapping.Unmap(views, SpaceCount * ViewBytes);
        file.Dispose();
    }
}

/// <summary>Where large pages were used, by hash: an answer of no is certain.</summary>
internal sealed class LargePageFilter
{
    /// <summary>The largest page of all sizes but 1 GiB.</summary>
    public const ulong Small = 4 << 20;

    private const ulong Huge = 1 << 30;
    private const int Bits = 4096, Words = Bits / 64;
    // First half for pages of 2 and 4 MiB, second half for those of 1 GiB.
    private readonly ulong[] used = new ulong[2 * Words];
    private bool any;

    /// <summary>A page of <paramref name="size"/> bytes was used at an address.</summary>
    public void Note(ulong linear, ulong size)
    {
        any = true;
        int bit = size > Small ? Bits + Hash(linear >> 30) : Hash(linear >> 22);
        used[bit >> 6] |= 1UL << bit;
    }

    /// <summary>The largest size that a large page at an address may have had; 0: there was none.</summary>
    public ulong SizeAt(ulong linear)
    {
        if (!any)
            return 0;
        int huge = Bits + Hash(linear >> 30), small = Hash(linear >> 22);
        if ((used[huge >> 6] & (1UL << huge)) != 0)
            return Huge;
        return (used[small >> 6] & (1UL << small)) != 0 ? Small : 0;
    }

    public void Clear()
    {
        if (any)
            Array.Clear(used);
        any = false;
    }

    private static int Hash(ulong number) => (int)(number * 0x9E37_79B9_7F4A_7C15UL >> 52);
}
