using System.Runtime.InteropServices;
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

    private readonly TlbEntry* tlbSets;
    private readonly TlbEntry* emptyTlb;
    private int tlbSet;
    private int filledSets;

    // Linear range whose entries came from large pages since the last flush: INVLPG in it drops everything.
    private ulong largeLow = ulong.MaxValue, largeHigh;

    /// <summary>Grows when cached linear-to-code mappings become invalid.</summary>
    private ulong epoch = 1;

    /// <summary>Drops all cached translations of this vCPU, global ones too.</summary>
    internal void FlushTlb()
    {
        for (int i = 0; i < EmptySet; i++)
            if ((filledSets & (1 << i)) != 0)
                Buffer.MemoryCopy(emptyTlb, tlbSets + (i * TlbEntries), TlbEntries * sizeof(TlbEntry), TlbEntries * sizeof(TlbEntry));
        filledSets = 0;
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
            tlbSets[((uint)i * TlbEntries) + index] = emptyTlb[index];
        epoch++;
    }

    /// <summary>
    /// Makes writes to a guest physical page take the slow path again. Called on the vCPU's own thread, or while it is parked outside the guest.
    /// </summary>
    internal void DropWritePath(ulong gpaPage)
    {
        for (int i = 0; i < EmptySet; i++)
        {
            if ((filledSets & (1 << i)) == 0)
                continue;
            TlbEntry* set = tlbSets + (i * TlbEntries);
            for (int j = 0; j < TlbEntries; j++)
                if (set[j].Gpa == gpaPage)
                    set[j].WriteTag = emptyTlb[j].WriteTag;
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
        if (set == EmptySet)
            return;
        ulong page = linear & ~4095UL, gpa = t.Gpa & ~4095UL;
        TlbEntry* e = tlbSets + (set * TlbEntries) + (int)((linear >> 12) & (TlbEntries - 1));
        e->ReadTag = page;
        e->WriteTag = writeAllowed && t.Dirty && Memory.Watch[gpa >> 12] == 0 ? page : emptyTlb[(linear >> 12) & (TlbEntries - 1)].WriteTag;
        e->Host = Memory.HostBase + gpa;
        e->Gpa = gpa;
        filledSets |= 1 << set;
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
        var sets = (TlbEntry*)NativeMemory.AlignedAlloc(SetCount * TlbEntries * (nuint)sizeof(TlbEntry), 4096);
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
