using Aerostat.X86;

namespace Aerostat.Cpu;

/// <content>
/// The software TLB. There is one set for user mode, one for the supervisor without access to user pages (SMAP with AC clear, or
/// implicit accesses) and one for the supervisor otherwise, so that neither SYSCALL nor STAC has to flush anything. A fourth set stays
/// empty: it is in force while every access must be looked at (alignment checks, data breakpoints). Each recent PCID has its own sets, see
/// <see cref="TlbSpace"/>; the strict set is common to all of them, since what it holds is mostly global pages.
/// </content>
internal sealed unsafe partial class Interpreter
{
    internal const int UserSet = 0, StrictSet = 1, SupervisorSet = 2, EmptySet = 3, SetCount = 4;

    private readonly TlbMemory tlbMemory;
    private TlbEntry* tlbSets;
    private TlbEntry* emptyTlb;
    private TlbSpace space;

    /// <summary>How many checks of generated code may have a slot (see <see cref="CheckSite"/>), and where those begin.</summary>
    internal const int Slots = 1 << 16, SlotsOffset = 4096;

    /// <summary>How many blocks of generated code may count down how often they still run before they are made again, and where those numbers begin.</summary>
    internal const int Countdowns = 1 << 17, CountdownsOffset = SlotsOffset + (Slots * CheckSite.SlotBytes);

    /// <summary>Bytes of the state itself with slots and countdowns; the TLB sets follow, so that generated code reaches all from one base.</summary>
    internal const int StateBytes = CountdownsOffset + (Countdowns * sizeof(int));

    // Strict set: which entries may be in use, and which of them are not global.
    private readonly int[] strictFilled = new int[TlbEntries];
    private readonly int[] strictLocal = new int[TlbEntries];
    private int strictCount, strictLocalCount;

    // Grows when a write path may have to go from sets that are not in force.
    private int watchStamp;

    // Each epoch has a number of its own, so one comparison tells what is still true. `epoch` is that of the present space.
    private ulong lastEpoch = 2, epoch = 1, globalEpoch = 2;

    /// <summary>Grows when cached linear-to-code mappings become invalid or others come into force.</summary>
    private int mappings;

    // Linear pages (by hash) that code was found in through the caches that INVLPG concerns.
    private const int CodePageBits = 1 << 15;
    private readonly ulong[] codePages = new ulong[CodePageBits / 64];
    // The same for 2 MiB at once: INVLPG of a large page asks about all of it.
    private const int CodeRegionBits = 1 << 12, RegionShift = 21;
    private readonly ulong[] codeRegions = new ulong[CodeRegionBits / 64];
    // Where code was fetched from large pages, in whatever space, since mappings of code were forgotten.
    private readonly LargePageFilter largeCode = new();

    // A device's page that was accessed lately: such pages are not in the TLB. Holds as long as the epoch does, and until INVLPG.
    private ulong devicePage = ulong.MaxValue, deviceGpa, deviceEpoch;
    private int deviceSet;
    private bool deviceWrites;
    private long spaceUses;

    /// <summary>Whether a cached mapping made in this epoch still holds.</summary>
    private bool IsCurrent(ulong madeIn) => madeIn == epoch || madeIn == globalEpoch;

    /// <summary>Drops all cached translations of this vCPU, global ones and those of all PCIDs too.</summary>
    internal void FlushTlb()
    {
        UnbindChecks();
        foreach (TlbSpace other in tlbMemory.Spaces)
            if (other.IsPrepared)
                DropEntries(other);
        DropStrict();
        ForgetCodeMappings();
        tlbFlushes++;
    }

    /// <summary>Drops the present address space's translations but global ones (MOV to CR3, task switch).</summary>
    internal void FlushSpace()
    {
        FlushSpace(space);
        DropStrictLocal();
        mappings++;
        epoch = space.Epoch;
        translation?.Cache.FlushLocal();
    }

    private void FlushSpace(TlbSpace which)
    {
        UnbindChecks();
        DropEntries(which);
        which.Epoch = ++lastEpoch;
        translation?.Cache.FlushSpace(which.Number);
        tlbFlushes++;
    }

    /// <summary>MOV to CR3 with a value that has been checked: another address space, or the same one flushed (Intel SDM vol. 3 section 5.10.4.1).</summary>
    /// <param name="s">State.</param>
    /// <param name="value">New CR3, bit 63 clear.</param>
    /// <param name="keep">Bit 63: translations of the new PCID may stay.</param>
    internal void LoadCr3(CpuState* s, ulong value, bool keep)
    {
        bool sameMasks = HasMasks(s, value);
        s->Cr3 = value;
        if (!sameMasks)
            FlushTlb();
        if ((s->Cr4 & Cr4.Pcide) == 0)
        {
            FlushSpace();
            return;
        }
        int pcid = (int)value & 0xFFF;
        if (space.Pcid == pcid)
        {
            if (!keep)
                FlushSpace();
            return;
        }
        TlbSpace? next = FindSpace(pcid);
        if (next == null)
        {
            next = tlbMemory.LeastRecentlyUsed(space);
            next.Prepare();
            FlushSpace(next);
            next.Pcid = pcid;
        }
        else if (!keep)
        {
            FlushSpace(next);
        }
        Activate(s, next);
        if (next.Masks != (value & MaskBits))
        {
            next.Masks = value & MaskBits;
            FlushTlb();
        }
    }

    /// <summary>INVPCID of one PCID (type 1): its translations but global ones.</summary>
    internal void FlushPcid(int pcid)
    {
        if (pcid == space.Pcid)
            FlushSpace();
        else if (FindSpace(pcid) is { } other)
            FlushSpace(other);
    }

    /// <summary>PCIDs come or go: everything is flushed, and what is left in force belongs to PCID 0.</summary>
    internal void ResetPcids()
    {
        foreach (TlbSpace other in tlbMemory.Spaces)
            other.Pcid = TlbSpace.NoPcid;
        space.Pcid = (State->Cr4 & Cr4.Pcide) != 0 ? (int)State->Cr3 & 0xFFF : 0;
    }

    private TlbSpace? FindSpace(int pcid)
    {
        foreach (TlbSpace other in tlbMemory.Spaces)
            if (other.Pcid == pcid)
                return other;
        return null;
    }

    private void Activate(CpuState* s, TlbSpace next)
    {
        UnbindChecks();
        DropStrictLocal();
        space = next;
        next.LastUse = ++spaceUses;
        epoch = next.Epoch;
        mappings++;
        UseSets();
        s->Tlb = tlbSets + (s->TlbSet * TlbEntries);
        if (next.WatchStamp != watchStamp)
        {
            // Pages may have been watched while this space was not in force, or noted as blank.
            next.WatchStamp = watchStamp;
            for (int i = 0; i < next.FilledCount; i++)
            {
                TlbEntry* e = tlbSets + next.Filled[i];
                if (tlbMemory.IsFilled(e) && !MayKeepWritePath((ulong)(e->ReadHost - Memory.HostBase)))
                    DropWrites(e, next.Filled[i]);
            }
        }
        translation?.SelectSpace(next);
    }

    private bool MayKeepWritePath(ulong gpa) => Memory.Watch[gpa >> 12] == 0 && Memory.WrittenBlocks[gpa / BlankBytes] != 0;

    private void UseSets()
    {
        tlbSets = (TlbEntry*)(space.Base + StateBytes);
        emptyTlb = tlbSets + (EmptySet * TlbEntries);
        State->TlbSets = tlbSets;
    }

    // Checks in generated code keep the page they found last to themselves, as REP STOS does.
    private void UnbindChecks()
    {
        State->BlankTag = NoBlank;
        if (State->BoundChecks != 0)
            translation!.Cache.UnbindChecks();
    }

    private void DropEntries(TlbSpace which)
    {
        var sets = (TlbEntry*)(which.Base + StateBytes);
        for (int i = 0; i < which.FilledCount; i++)
            sets[which.Filled[i]] = emptyTlb[which.Filled[i] & (TlbEntries - 1)];
        which.FilledCount = 0;
        which.Large.Clear();
    }

    private void DropStrict()
    {
        TlbEntry* set = tlbSets + (StrictSet * TlbEntries);
        for (int i = 0; i < strictCount; i++)
            set[strictFilled[i]] = emptyTlb[strictFilled[i]];
        strictCount = strictLocalCount = 0;
        tlbMemory.StrictLarge.Clear();
    }

    private void DropStrictLocal()
    {
        if (strictLocalCount == TlbEntries)
        {
            // More than were noted.
            DropStrict();
            return;
        }
        for (int i = 0; i < strictLocalCount; i++)
            Vacate(tlbSets + (StrictSet * TlbEntries) + strictLocal[i], strictLocal[i]);
        strictLocalCount = 0;
    }

    // Stays listed as filled.
    private void Vacate(TlbEntry* e, int index)
    {
        bool listed = !tlbMemory.IsUnlisted(e);
        *e = emptyTlb[index];
        if (listed)
            e->ReadHost = tlbMemory.Vacant;
    }

    /// <summary>Linear addresses lead to other code from now on, in every address space.</summary>
    private void ForgetCodeMappings()
    {
        mappings++;
        globalEpoch = ++lastEpoch;
        foreach (TlbSpace other in tlbMemory.Spaces)
            other.Epoch = ++lastEpoch;
        epoch = space.Epoch;
        Array.Clear(codePages);
        Array.Clear(codeRegions);
        largeCode.Clear();
        translation?.Cache.FlushTables();
    }

    private static int CodeRegionHash(ulong linear) => (int)((linear >> RegionShift) * 0x9E37_79B9_7F4A_7C15UL >> 52);

    private static int CodePageHash(ulong linear) => (int)((linear >> 12) * 0x9E37_79B9_7F4A_7C15UL >> 49);

    private void NoteCodePage(ulong linear)
    {
        int bit = CodePageHash(linear);
        codePages[bit >> 6] |= 1UL << bit;
        bit = CodeRegionHash(linear);
        codeRegions[bit >> 6] |= 1UL << bit;
    }

    /// <summary>
    /// INVLPG: drops the translations of one page, those of a large page too, whatever part of it was used (Intel SDM vol. 3 section 5.10.4.1).
    /// Global ones go in every space; that others go there too is allowed.
    /// </summary>
    internal void InvalidatePage(ulong linear)
    {
        UnbindChecks();
        devicePage = ulong.MaxValue;
        ulong size = Math.Max(tlbMemory.StrictLarge.SizeAt(linear), largeCode.SizeAt(linear));
        foreach (TlbSpace other in tlbMemory.Spaces)
            if (other.IsPrepared)
                size = Math.Max(size, other.Large.SizeAt(linear));
        if (size > LargePageFilter.Small)
        {
            FlushTlb();
            return;
        }
        bool code = false;
        ulong first = size == 0 ? linear & ~4095UL : linear & ~(size - 1);
        int pages = size == 0 ? 1 : (int)(size >> 12);
        foreach (TlbSpace other in tlbMemory.Spaces)
        {
            if (!other.IsPrepared)
                continue;
            var sets = (TlbEntry*)(other.Base + StateBytes);
            if (pages > 1)
            {
                for (int i = 0; i < other.FilledCount; i++)
                    DropWithin(sets + other.Filled[i], other.Filled[i], first, size);
                continue;
            }
            DropPage(sets + (UserSet * TlbEntries), first);
            DropPage(sets + (SupervisorSet * TlbEntries), first);
        }
        if (pages > 1)
        {
            for (int i = 0; i < strictCount; i++)
                DropWithin(tlbSets + (StrictSet * TlbEntries) + strictFilled[i], strictFilled[i], first, size);
        }
        else
        {
            DropPage(tlbSets + (StrictSet * TlbEntries), first);
        }
        int region = CodeRegionHash(first);
        bool anyCode = (size >> RegionShift) > 1 || (codeRegions[region >> 6] & (1UL << region)) != 0;
        for (int i = 0; anyCode && i < pages; i++)
        {
            int bit = CodePageHash(first + ((ulong)i << 12));
            code |= (codePages[bit >> 6] & (1UL << bit)) != 0;
        }
        if (code)
            ForgetCodeMappings();
    }

    private void DropPage(TlbEntry* set, ulong page)
    {
        int index = (int)(page >> 12) & (TlbEntries - 1);
        if (((set[index].ReadTag ^ page) & comparedBits) == 0)
            Vacate(set + index, index);
    }

    private void DropWithin(TlbEntry* e, int number, ulong first, ulong size)
    {
        if (tlbMemory.IsFilled(e) && ((e->ReadTag ^ first) & comparedBits & ~(size - 1)) == 0)
            Vacate(e, number & (TlbEntries - 1));
    }

    /// <summary>
    /// Makes writes to a guest physical page take the slow path again. Called on the vCPU's own thread, or while it is parked outside the guest.
    /// </summary>
    internal void DropWritePath(ulong gpaPage)
    {
        UnbindChecks();
        watchStamp++;
        space.WatchStamp = watchStamp;
        for (int i = 0; i < space.FilledCount; i++)
            DropWritePath(tlbSets + space.Filled[i], space.Filled[i], gpaPage);
        for (int i = 0; i < strictCount; i++)
            DropWritePath(tlbSets + (StrictSet * TlbEntries) + strictFilled[i], strictFilled[i], gpaPage);
    }

    private void DropWritePath(TlbEntry* e, int index, ulong gpaPage)
    {
        if (e->ReadHost == Memory.HostBase + gpaPage)
            DropWrites(e, index);
    }

    private void DropWrites(TlbEntry* e, int index)
    {
        TlbEntry* empty = emptyTlb + (index & (TlbEntries - 1));
        e->WriteTag = empty->WriteTag;
        e->WriteHost = empty->WriteHost;
    }

    /// <summary>As <see cref="DropWritePath(ulong)"/>, for every page.</summary>
    internal void DropAllWritePaths()
    {
        UnbindChecks();
        watchStamp++;
        space.WatchStamp = watchStamp;
        for (int i = 0; i < EmptySet * TlbEntries; i++)
            DropWrites(tlbSets + i, i);
    }

    /// <summary>Notes that a data access through the present set leads to a device.</summary>
    private void NoteDevice(CpuState* s, ulong linear, ulong gpa, bool write)
    {
        if (s->TlbSet == EmptySet || watchpoints.Length != 0)
            return;
        (devicePage, deviceGpa, deviceEpoch, deviceSet, deviceWrites) = (linear & ~4095UL, gpa & ~4095UL, epoch, s->TlbSet, write);
    }

    /// <summary>Whether it is known to, and where.</summary>
    private bool IsDevice(CpuState* s, ulong linear, bool write, out ulong gpa)
    {
        gpa = deviceGpa | (linear & 4095);
        return (linear & ~4095UL) == devicePage && deviceEpoch == epoch && deviceSet == s->TlbSet && (!write || deviceWrites) && watchpoints.Length == 0;
    }

    private void FillTlb(CpuState* s, int set, ulong linear, in Translation t, bool writeAllowed)
    {
        ulong masked = Unmask(s, linear);
        // Also where no path is kept: whoever fills for a write writes next.
        if (writeAllowed)
            Memory.NoteWriting(t.Gpa);
        if (set == EmptySet || (watchpoints.Length != 0 && IsWatchedPage(masked)))
            return;
        ulong page = linear & ~4095UL, gpa = t.Gpa & ~4095UL;
        int index = (int)((linear >> 12) & (TlbEntries - 1)), number = (set * TlbEntries) + index;
        TlbEntry* e = tlbSets + number;
        if (tlbMemory.IsUnlisted(e))
        {
            if (set == StrictSet)
                strictFilled[strictCount++] = index;
            else
                space.Filled[space.FilledCount++] = number;
        }
        if (set == StrictSet && !t.Global && strictLocalCount < TlbEntries)
            strictLocal[strictLocalCount++] = index;
        e->ReadTag = page;
        e->ReadHost = Memory.HostBase + gpa;
        if (writeAllowed && t.Dirty && Memory.Watch[gpa >> 12] == 0)
        {
            e->WriteTag = page;
            e->WriteHost = e->ReadHost;
        }
        else
        {
            DropWrites(e, index);
        }
        tlbFills++;
        if (t.PageSize > 4096 && (s->Cr0 & Cr0.Pg) != 0)
            (set == StrictSet ? tlbMemory.StrictLarge : space.Large).Note(masked, t.PageSize);
    }

    /// <summary>Whether data writes through the present set are allowed for this translation without another look.</summary>
    private static bool WriteAllowed(CpuState* s, in Translation t) =>
        (t.Writable || (s->Cpl != 3 && (s->Cr0 & Cr0.Wp) == 0)) && !IsWriteDisabledByKey(s, t, s->Cpl == 3);
}
