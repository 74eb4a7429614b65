using Aerostat.X86;

namespace Aerostat.Cpu;

/// <content>
/// The software TLB. There is one set for user mode, one for the supervisor without access to user pages (SMAP with AC clear, or
/// implicit accesses) and one for the supervisor otherwise, so that neither SYSCALL nor STAC has to flush anything. A fourth set stays
/// empty: it is in force while every access must be looked at (alignment checks, data breakpoints).
/// </content>
internal sealed unsafe partial class Interpreter
{
    private const int UserSet = 0, StrictSet = 1, SupervisorSet = 2, EmptySet = 3, SetCount = 4;

    // Gpa of an entry that is listed as filled but holds nothing.
    private const ulong Vacant = ulong.MaxValue - 1;

    private readonly TlbEntry* tlbSets;
    private readonly TlbEntry* emptyTlb;
    private int tlbSet;

    /// <summary>Bytes reserved for the state itself; the TLB sets follow, so that generated code reaches both from one base.</summary>
    internal const int StateBytes = 4096;

    // Which entries may be in use (set * TlbEntries + index), so that a flush costs what was filled. An entry is in here while its Gpa is not all ones.
    private readonly int[] filled = new int[SetCount * TlbEntries];
    private int filledCount;

    // Linear range whose entries came from large pages since the last flush: INVLPG in it drops everything.
    private ulong largeLow = ulong.MaxValue, largeHigh;

    /// <summary>Grows when cached linear-to-code mappings become invalid.</summary>
    private ulong epoch = 1;

    /// <summary>Drops all cached translations of this vCPU, global ones too.</summary>
    internal void FlushTlb()
    {
        for (int i = 0; i < filledCount; i++)
            tlbSets[filled[i]] = emptyTlb[filled[i] & (TlbEntries - 1)];
        filledCount = 0;
        largeLow = ulong.MaxValue;
        largeHigh = 0;
        epoch++;
        tlbFlushes++;
    }

    /// <summary>INVLPG: drops the translations of one page (and, where large pages may be concerned, all).</summary>
    internal void InvalidatePage(ulong linear)
    {
        if (linear >= largeLow && linear < largeHigh)
        {
            FlushTlb();
            return;
        }
        ulong index = (linear >> 12) & (TlbEntries - 1);
        for (int i = 0; i < EmptySet; i++)
        {
            // Stays listed as filled.
            TlbEntry* e = tlbSets + ((uint)i * TlbEntries) + index;
            ulong gpa = e->Gpa == ulong.MaxValue ? ulong.MaxValue : Vacant;
            *e = emptyTlb[index];
            e->Gpa = gpa;
        }
        epoch++;
    }

    /// <summary>
    /// Makes writes to a guest physical page take the slow path again. Called on the vCPU's own thread, or while it is parked outside the guest.
    /// </summary>
    internal void DropWritePath(ulong gpaPage)
    {
        for (int i = 0; i < filledCount; i++)
        {
            TlbEntry* e = tlbSets + filled[i];
            if (e->Gpa == gpaPage)
                e->WriteTag = emptyTlb[filled[i] & (TlbEntries - 1)].WriteTag;
        }
    }

    /// <summary>As <see cref="DropWritePath"/>, for every page.</summary>
    internal void DropAllWritePaths()
    {
        for (int i = 0; i < EmptySet * TlbEntries; i++)
            tlbSets[i].WriteTag = emptyTlb[i & (TlbEntries - 1)].WriteTag;
    }

    private void FillTlb(CpuState* s, int set, ulong linear, in Translation t, bool writeAllowed)
    {
        if (set == EmptySet || (watchpoints.Length != 0 && IsWatchedPage(linear)))
            return;
        ulong page = linear & ~4095UL, gpa = t.Gpa & ~4095UL;
        int number = (set * TlbEntries) + (int)((linear >> 12) & (TlbEntries - 1));
        TlbEntry* e = tlbSets + number;
        if (e->Gpa == ulong.MaxValue)
            filled[filledCount++] = number;
        e->ReadTag = page;
        e->WriteTag = writeAllowed && t.Dirty && Memory.Watch[gpa >> 12] == 0 ? page : emptyTlb[(linear >> 12) & (TlbEntries - 1)].WriteTag;
        e->Host = Memory.HostBase + gpa;
        e->Gpa = gpa;
        tlbFills++;
        if (t.PageSize > 4096 && (s->Cr0 & Cr0.Pg) != 0)
        {
            ulong first = linear & ~(t.PageSize - 1);
            largeLow = Math.Min(largeLow, first);
            largeHigh = Math.Max(largeHigh, first + t.PageSize);
        }
    }

    /// <summary>Whether data writes through the present set are allowed for this translation without another look.</summary>
    private static bool WriteAllowed(CpuState* s, in Translation t) =>
        (t.Writable || (s->Cpl != 3 && (s->Cr0 & Cr0.Wp) == 0)) && !IsWriteDisabledByKey(s, t, s->Cpl == 3);

    private TlbEntry* AllocateTlb(out TlbEntry* empty)
    {
        // SAFETY: the allocation of State has room for the sets behind it.
        var sets = (TlbEntry*)((byte*)State + StateBytes);
        empty = sets + (EmptySet * TlbEntries);
        for (int i = 0; i < SetCount * TlbEntries; i++)
        {
            // The page of the neighbouring index: no linear address that selects this entry can match it.
            ulong never = (ulong)((i & (TlbEntries - 1)) ^ 1) << 12;
            sets[i] = new TlbEntry { ReadTag = never, WriteTag = never, Gpa = ulong.MaxValue };
        }
        return sets;
    }
}
