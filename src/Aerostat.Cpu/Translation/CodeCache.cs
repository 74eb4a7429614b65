using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using Aerostat.Platform;

namespace Aerostat.Cpu;

/// <summary>
/// A piece of translated code: guest instructions of one physical page, as seen at one linear address in one variant; or a single instruction that goes on
/// in a second page.
/// </summary>
[StructLayout(LayoutKind.Sequential)]
internal unsafe struct TranslatedBlock
{
    /// <summary><see cref="Second"/> of blocks that lie in one page.</summary>
    public const ulong OnePage = ulong.MaxValue;

    public ulong Linear;
    public ulong Gpa;
    /// <summary>Physical address of the second page, or <see cref="OnePage"/>.</summary>
    public ulong Second;
    public int Variant;
    /// <summary>Number of its countdown, 0: none.</summary>
    public int Countdown;
    /// <summary>Host code of the countdown, which <see cref="Entry"/> begins with.</summary>
    public int CountdownBytes;
    /// <summary>Its checks with slots.</summary>
    public int FirstCheck, Checks;
    /// <summary>First of the direct jumps that lead to <see cref="Entry"/>, 0: none is known.</summary>
    public int Links;
    public Temperature Temperature;
    /// <summary>Whether it is being found out how often it runs, since when (guest instructions in units of 1024), and how many times it was too seldom.</summary>
    public bool Timed;
    public byte TimesSeldom;
    public uint TimedSince;
    /// <summary>Whether jumps have looked for it by its address' sum (<see cref="CodeCache.TableIndex"/>).</summary>
    public bool KnownBySum;
    public uint DecodedGeneration, SecondDecodedGeneration;
    /// <summary>Generations of the code in its page and in the second one (the same, if there is none).</summary>
    public uint* Generation, SecondGeneration;
    /// <summary>Entry for jumps that know this is the right block.</summary>
    public nint Entry;
    /// <summary>Entry that compares R10 with <see cref="Linear"/> first; 0: there is none yet.</summary>
    public nint CheckedEntry;
    /// <summary>The landing pad of a call that returns here, which takes the place of <see cref="CheckedEntry"/> in jump tables; or 0.</summary>
    public nint Pad;
    public TranslatedBlock* NextInBucket;
    public TranslatedBlock* NextInPage, NextInSecondPage;

    public readonly bool IsValid => *Generation == DecodedGeneration && *SecondGeneration == SecondDecodedGeneration;
}

/// <summary>How much is known about how often a block runs.</summary>
internal enum Temperature : byte
{
    /// <summary>Not much: its checks search, and it counts down to when it may be worth more.</summary>
    Warm,
    /// <summary>Many times, but seldom among others, so that it is worth no more.</summary>
    Settled,
    /// <summary>It runs often: its checks have slots, and for some executions it is found out which of them pay.</summary>
    OnTrial,
    /// <summary>Nothing more has to be found out.</summary>
    Hot,
}

/// <summary>A direct jump to a block: where its distance is.</summary>
internal struct LinkSite
{
    public nint Site;
    public int Next;
}

/// <summary>A call in generated code, found by its return address.</summary>
internal unsafe struct CallSite
{
    /// <summary>The block it is in; its page also holds the return address.</summary>
    public TranslatedBlock* Block;
    /// <summary>Return address, and what tells calls apart that end there.</summary>
    public ulong Next, Target;
    /// <summary>The host's call, and the landing pad behind it.</summary>
    public nint Start, Pad;
}

/// <summary>Why generated code came back.</summary>
internal enum ExitKind : byte
{
    /// <summary>The jump table has no entry for the address in R10.</summary>
    Miss,
    /// <summary>A direct branch that has not been linked yet.</summary>
    Link,
    /// <summary>Somebody asked for attention at a backward branch.</summary>
    Poll,
    /// <summary>A memory access that the TLB cannot serve; the address is in R10.</summary>
    Memory,
    /// <summary>The instruction is not translated.</summary>
    Interpret,
    /// <summary>The instruction is only translated where XMM registers are loaded.</summary>
    NeedsVectors,
    /// <summary>A division that might fault.</summary>
    Division,
    /// <summary>A block has run so often that it is made again, or has been on trial long enough; the record has the block in place of where to try again.</summary>
    Countdown,
}

/// <summary>What the dispatcher has to know about one exit; its number is in R11 at the exit.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct ExitRecord
{
    /// <summary>Guest address to go on at: of this instruction, or of the branch's target.</summary>
    public ulong Rip;
    /// <summary>Where generated code can try again; for links, where the distance of the jump is.</summary>
    public nint Retry;
    /// <summary>
    /// Where generated code goes on if the interpreter has executed the instruction; 0: look the next one up. For groups, where the distance of the jump is that
    /// a failed check makes; 0: it has been sent to code without groups.
    /// </summary>
    public nint Next;
    public ExitKind Kind;
    private byte flags;
    private ushort size;
    private int extra;

    /// <summary>For indirect branches: what to add to RSP to undo it.</summary>
    public int StackUndo
    {
        readonly get => extra;
        set => extra = value;
    }

    /// <summary>For memory accesses: number of the <see cref="CheckSite"/>, 0: none.</summary>
    public int Check
    {
        readonly get => extra;
        set => extra = value;
    }

    /// <summary>Bytes of the access, up to 1023.</summary>
    public int Size
    {
        readonly get => size & 1023;
        set => size = (ushort)((size & ~1023) | value);
    }

    /// <summary>Instructions, from this one on, that have been counted but have not run; up to 63.</summary>
    public int Ahead
    {
        readonly get => size >> 10;
        set => size = (ushort)((size & 1023) | value << 10);
    }

    public bool Write
    {
        readonly get => (flags & 1) != 0;
        set => Set(1, value);
    }

    /// <summary>Address bits that must be clear: 0, 15 or 31.</summary>
    public int Alignment
    {
        readonly get => (flags & 2) != 0 ? 15 : (flags & 16) != 0 ? 31 : 0;
        set
        {
            Set(2, value == 15);
            Set(16, value == 31);
        }
    }

    /// <summary>The check was for a group: where it cannot be met, code without groups goes on.</summary>
    public bool Group
    {
        readonly get => (flags & 4) != 0;
        set => Set(4, value);
    }

    /// <summary>Whether the first access of a group itself writes.</summary>
    public bool LeaderWrites
    {
        readonly get => (flags & 8) != 0;
        set => Set(8, value);
    }

    // There are about as many records as translated instructions, so each byte counts.
    private void Set(byte flag, bool value) => flags = (byte)(value ? flags | flag : flags & ~flag);
}

/// <summary>
/// Code memory of one vCPU with its index: blocks by address, blocks by physical page, jump tables, exits. Bounded; when anything is
/// full everything is forgotten at once.
/// </summary>
internal sealed unsafe partial class CodeCache : IDisposable
{
    public const int Variants = 3 * VectorLevel.Count, TableEntries = 1 << 16;
    /// <summary>Exit number of a jump-table miss.</summary>
    public const uint MissRecord = 0;
    /// <summary>Added to the variant of blocks without groups, which are reached from a failed group only.</summary>
    public const int Ungrouped = 16;
    private const int BucketBits = 16, Buckets = 1 << BucketBits;
    private const int CallSites = 1 << 13;
    private const int MaxBlocks = 1 << 19, MaxRecords = 1 << 21, MaxLinks = 1 << 20;
    private const int WorstBlock = 64 << 10, WorstStub = 256;
    // Slow paths are put into pieces of this size, taken from the end of the memory: what is executed all the time lies together, and fewer of the host's cache lines hold it.
    private const int SlowPiece = 256 << 10;

    private readonly ExecutableMemory memory;
    private readonly CpuState* state;
    private readonly TranslatedBlock** buckets;
    private readonly TranslatedBlock** pages;
    private readonly TranslatedBlock** secondPages;
    private readonly TranslatedBlock* blocks;
    private readonly ExitRecord* records;
    private readonly CallSite* callSites;
    private readonly CheckSite* checkSites;
    private readonly int* bound;
    private readonly LinkSite* links;
    private readonly HostAssembler stubs = new();
    private byte* writable;
    private int blockCount, recordCount, checkCount, linkCount, countdownCount;
    // Code goes up to the lowest piece of slow paths.
    private nint next, limit, nextSlow, slowLimit;

    public CodeCache(CpuState* state, int bytes, bool visibleToProfilers, bool translatesSysret = false)
    {
        this.state = state;
        TranslatesSysret = translatesSysret;
        memory = new ExecutableMemory(bytes, visibleToProfilers: visibleToProfilers);
        buckets = (TranslatedBlock**)HostMapping.AllocateLazy(Buckets * (ulong)sizeof(nint));
        pages = (TranslatedBlock**)HostMapping.AllocateLazy(Buckets * (ulong)sizeof(nint));
        secondPages = (TranslatedBlock**)HostMapping.AllocateLazy(Buckets * (ulong)sizeof(nint));
        blocks = (TranslatedBlock*)HostMapping.AllocateLazy(MaxBlocks * (ulong)sizeof(TranslatedBlock));
        records = (ExitRecord*)HostMapping.AllocateLazy(MaxRecords * (ulong)sizeof(ExitRecord));
        callSites = (CallSite*)HostMapping.AllocateLazy(CallSites * (ulong)sizeof(CallSite));
        checkSites = (CheckSite*)HostMapping.AllocateLazy(Interpreter.Slots * (ulong)sizeof(CheckSite));
        state->CheckSites = (ulong)checkSites;
        bound = (int*)HostMapping.AllocateLazy(Interpreter.Slots * sizeof(int));
        state->BoundList = (ulong)bound;
        links = (LinkSite*)HostMapping.AllocateLazy(MaxLinks * (ulong)sizeof(LinkSite));
        second = (SecondEntry*)HostMapping.AllocateLazy(SecondEntries * (ulong)sizeof(SecondEntry));
        state->SecondTable = (ulong)second;
        places = (Place*)HostMapping.AllocateLazy(MaxPlaces * (ulong)sizeof(Place));
        placesByHash = (int*)HostMapping.AllocateLazy((1 << PlaceBits) * sizeof(int));
        Thunks = new Thunks(state);
        TakeMemory();
        MakeMissTables();
    }

    public Thunks Thunks { get; }

    /// <summary>Whether the processor's SYSRET is the one that generated code has: Intel's.</summary>
    public bool TranslatesSysret { get; }

    /// <summary>Whether CR4.SMAP is set, which all code that is here takes for granted.</summary>
    public bool Smap { get; private set; }

    /// <summary>Notes CR4.SMAP; when it has changed everything is forgotten.</summary>
    public void SelectSmap(bool on)
    {
        if (on == Smap)
            return;
        Smap = on;
        Clear();
    }

    /// <summary>How often everything was forgotten because something was full.</summary>
    public long Evictions { get; private set; }

    /// <summary>Grows whenever code addresses become stale.</summary>
    public int Age { get; private set; }

    public int BlockCount => blockCount;

    public long BytesUsed => next - memory.Base + (memory.Base + memory.Capacity - limit) - (slowLimit - nextSlow);

    public ExitRecord* Record(ulong number) => records + (uint)number;

    /// <summary>Room for the largest block with what follows it; false: everything was forgotten first.</summary>
    public bool Reserve()
    {
        if (HasRoom)
            return true;
        Clear();
        Evictions++;
        return false;
    }

    /// <summary>Whether a few instructions can be added without forgetting anything.</summary>
    public bool HasRoomForStub => limit - next >= WorstStub;

    public void BeginCode(HostAssembler a)
    {
        next = (next + 15) & -16;
        a.Start(writable + (next - memory.Base), next, WorstBlock - 16);
    }

    /// <summary>Lets bytes be written that were emitted before. Only this vCPU runs this code, and it is outside now.</summary>
    public void Rewrite(HostAssembler a, nint address, int bytes) => a.Start(writable + (address - memory.Base), address, bytes);

    public void EndCode(HostAssembler a)
    {
        next = a.Here;
        memory.Settle(next);
    }

    /// <summary>Ends the code; what comes now is executed seldom, and takes no more than so many bytes.</summary>
    public void BeginSlowPaths(HostAssembler a, int bytes)
    {
        EndCode(a);
        if (slowLimit - nextSlow < bytes)
        {
            limit -= SlowPiece;
            (nextSlow, slowLimit) = (limit, limit + SlowPiece);
        }
        a.Start(writable + (nextSlow - memory.Base), nextSlow, (int)(slowLimit - nextSlow));
    }

    public void EndSlowPaths(HostAssembler a) => nextSlow = a.Here;

    public int AddRecord(in ExitRecord record)
    {
        records[recordCount] = record;
        return recordCount++;
    }

    public int RecordCount
    {
        get => recordCount;
        set => recordCount = value;
    }

    /// <summary>A number for a check that keeps its page to itself, from 1 on; 0: there are too many already.</summary>
    public int AddCheck()
    {
        if (checkCount == Interpreter.Slots)
            return 0;
        // It may stay unused.
        checkSites[checkCount] = new CheckSite { Misses = CheckSite.Patience };
        return checkCount++;
    }

    /// <summary>The number that <see cref="AddCheck"/> will answer next.</summary>
    public int NextCheck => checkCount;

    /// <summary>A number for a block's countdown, from 1 on; 0: there are too many already.</summary>
    public int AddCountdown() => countdownCount == Interpreter.Countdowns ? 0 : countdownCount++;

    /// <summary>How often a block still runs until it asks what becomes of it.</summary>
    public ref int Countdown(int number) => ref ((int*)((byte*)state + Interpreter.CountdownsOffset))[number];

    public CheckSite* Site(int number) => checkSites + number;

    /// <summary>Says what a check is like; it has not found a page yet.</summary>
    public void SetCheck(int number, in CheckSite site)
    {
        checkSites[number] = site;
        Unbind(number);
    }

    /// <summary>Lets all checks forget the pages they have found.</summary>
    public void UnbindChecks()
    {
        for (ulong i = 0; i < state->BoundChecks; i++)
        {
            Unbind(bound[i]);
            checkSites[bound[i]].Bound = false;
        }
        state->BoundChecks = 0;
    }

    // Even who finds the tag that no address has would not reach anybody's memory.
    private void Unbind(int check)
    {
        var slot = (ulong*)((byte*)state + CheckSite.SlotOf(check));
        slot[0] = state->NoTag;
        slot[1] = checkSites[check].Relative ? state->NoHost - state->NoTag : state->NoHost;
    }

    public TranslatedBlock* AddBlock(in TranslatedBlock block)
    {
        TranslatedBlock* b = blocks + blockCount++;
        *b = block;
        TranslatedBlock** bucket = buckets + Bucket(block.Linear, block.Gpa, block.Variant);
        b->NextInBucket = *bucket;
        *bucket = b;
        TranslatedBlock** page = pages + PageBucket(block.Gpa >> 12);
        b->NextInPage = *page;
        *page = b;
        if (block.Second != TranslatedBlock.OnePage)
        {
            TranslatedBlock** second = secondPages + PageBucket(block.Second >> 12);
            b->NextInSecondPage = *second;
            *second = b;
        }
        return b;
    }

    public TranslatedBlock* Find(ulong linear, ulong gpa, int variant, ulong second = TranslatedBlock.OnePage)
    {
        for (TranslatedBlock* b = buckets[Bucket(linear, gpa, variant)]; b != null; b = b->NextInBucket)
            if (b->Linear == linear && b->Gpa == gpa && b->Variant == variant && b->Second == second && b->IsValid)
                return b;
        return null;
    }

    /// <summary>Makes a jump at <paramref name="site"/> go straight to a block, and to what takes its place.</summary>
    public void Link(nint site, TranslatedBlock* target)
    {
        Link(site, target->Entry);
        NoteLink(site, target);
    }

    /// <summary>Notes a jump that goes straight to a block.</summary>
    public void NoteLink(nint site, TranslatedBlock* target)
    {
        // Without a note a jump goes the longer way once another block has taken the place.
        if (linkCount == MaxLinks)
            return;
        links[linkCount] = new LinkSite { Site = site, Next = target->Links };
        target->Links = linkCount++;
    }

    /// <summary>Makes a jump at <paramref name="site"/> go straight to <paramref name="target"/>. Only this vCPU runs this code, and it is outside now.</summary>
    public void Link(nint site, nint target) => *(int*)(writable + (site - memory.Base)) = (int)(target - (site + 4));

    /// <summary>Notes a call, so that what it returns to is published with its landing pad.</summary>
    public void AddCallSite(in CallSite site)
    {
        *CallSiteOf(site.Next) = site;
        ChangePad(site.Next, site.Block->Gpa, site.Block->Variant);
    }

    /// <summary>The host code of a call that is translated already, in a block that runs as often as the one that asks; 0: there is none.</summary>
    public nint FindCallSite(ulong next, ulong gpa, int variant, ulong target, TranslatedBlock* butIn, Temperature temperature)
    {
        CallSite* c = CallSiteOf(next);
        return c->Block != null && c->Block != butIn && c->Next == next && c->Target == target && c->Block->Gpa >> 12 == gpa >> 12 && c->Block->Variant == variant && c->Block->IsValid
            && c->Block->Temperature >= temperature ? c->Start : 0;
    }

    // A call that returns to a block may have been translated again: then the host's returns will be predicted to go to another landing pad.
    private void ChangePad(ulong next, ulong gpa, int variant)
    {
        TranslatedBlock* b = Find(next, (gpa & ~4095UL) | (next & 4095), variant);
        if (b == null || (b->Pad == 0 && !b->KnownBySum))
            return;
        Unpublish(b);
        b->Pad = 0;
    }

    private void FindPad(TranslatedBlock* b)
    {
        CallSite* c = CallSiteOf(b->Linear);
        if (b->Pad == 0 && c->Block != null && c->Next == b->Linear && c->Block->Gpa >> 12 == b->Gpa >> 12 && c->Block->Variant == b->Variant && c->Block->IsValid)
            b->Pad = c->Pad;
    }

    private CallSite* CallSiteOf(ulong next) => callSites + (((uint)next ^ (uint)(next >> 13)) & (CallSites - 1));

    /// <summary>Whether another block, with what follows it, can be added without forgetting anything.</summary>
    public bool HasRoom => limit - next >= WorstBlock + SlowPiece && blockCount <= MaxBlocks - BlockTranslator.MostInARow && recordCount < MaxRecords - 4096;

    /// <summary>Another block takes the place of one that is still in use: who comes to it goes on to the other.</summary>
    public void Replace(HostAssembler a, TranslatedBlock* old, TranslatedBlock* other)
    {
        Rewrite(a, old->Entry, 5);
        a.Jmp(other->Entry);
        for (int i = old->Links; i != 0;)
        {
            int after = links[i].Next;
            Link(links[i].Site, other->Entry);
            links[i].Next = other->Links;
            other->Links = i;
            i = after;
        }
        old->Links = 0;
        ChangePlace(old, other->Entry);
        other->KnownBySum |= old->KnownBySum;
        Forget(old);
        old->SecondDecodedGeneration = ~old->DecodedGeneration;
        old->SecondGeneration = &old->DecodedGeneration;
    }

    /// <summary>From now on a block is entered further on.</summary>
    public void MoveEntry(TranslatedBlock* b, nint entry)
    {
        // While it can be told by the old one, which the second table has, too.
        ChangePlace(b, entry);
        Unpublish(b);
        // A check behind the block leads to where it began. Who looks for one gets another.
        if (b->CheckedEntry > b->Entry)
            b->CheckedEntry = 0;
        b->Entry = entry;
        for (int i = b->Links; i != 0; i = links[i].Next)
            Link(links[i].Site, entry);
    }

    /// <summary>Forgets the blocks of a physical page whose code has changed.</summary>
    public void DropPage(ulong page)
    {
        TranslatedBlock** link = pages + PageBucket(page);
        while (*link != null)
        {
            TranslatedBlock* b = *link;
            if (b->Gpa >> 12 != page)
            {
                link = &b->NextInPage;
                continue;
            }
            *link = b->NextInPage;
            Forget(b);
        }
        link = secondPages + PageBucket(page);
        while (*link != null)
        {
            TranslatedBlock* b = *link;
            if (b->Second >> 12 != page)
            {
                link = &b->NextInSecondPage;
                continue;
            }
            // It stays among those of its first page, not valid any more.
            *link = b->NextInSecondPage;
            Forget(b);
        }
    }

    private void Forget(TranslatedBlock* b)
    {
        Unpublish(b);
        for (TranslatedBlock** h = buckets + Bucket(b->Linear, b->Gpa, b->Variant); *h != null; h = &(*h)->NextInBucket)
        {
            if (*h == b)
            {
                *h = b->NextInBucket;
                break;
            }
        }
    }

    public void Clear()
    {
        FlushTables();
        new Span<nint>(buckets, Buckets).Clear();
        new Span<nint>(pages, Buckets).Clear();
        new Span<nint>(secondPages, Buckets).Clear();
        new Span<CallSite>(callSites, CallSites).Clear();
        memory.Clear();
        TakeMemory();
    }

    private void TakeMemory()
    {
        Age++;
        memory.TryAllocate(memory.Capacity, 1, out nint address);
        writable = memory.ToWritable(address);
        next = address;
        limit = nextSlow = slowLimit = address + memory.Capacity;
        blockCount = 0;
        recordCount = 1;
        UnbindChecks();
        checkCount = 1;
        linkCount = 1;
        countdownCount = 1;
        ForgetPlaces();
        records[0] = new ExitRecord { Kind = ExitKind.Miss };
        BeginCode(stubs);
        Thunks.Emit(stubs, Smap);
        EndCode(stubs);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static int Bucket(ulong linear, ulong gpa, int variant) =>
        (int)(((linear ^ (gpa >> 12 << 20) ^ ((ulong)variant << 60)) * 0x9E37_79B9_7F4A_7C15UL) >> (64 - BucketBits));

    private static int PageBucket(ulong page) => (int)((page * 0x9E37_79B9_7F4A_7C15UL) >> (64 - BucketBits));

    public void Dispose()
    {
        memory.Dispose();
        HostMapping.Unmap((byte*)buckets, Buckets * (ulong)sizeof(nint));
        HostMapping.Unmap((byte*)pages, Buckets * (ulong)sizeof(nint));
        HostMapping.Unmap((byte*)secondPages, Buckets * (ulong)sizeof(nint));
        HostMapping.Unmap((byte*)callSites, CallSites * (ulong)sizeof(CallSite));
        HostMapping.Unmap((byte*)blocks, MaxBlocks * (ulong)sizeof(TranslatedBlock));
        HostMapping.Unmap((byte*)records, MaxRecords * (ulong)sizeof(ExitRecord));
        HostMapping.Unmap((byte*)checkSites, Interpreter.Slots * (ulong)sizeof(CheckSite));
        HostMapping.Unmap((byte*)bound, Interpreter.Slots * sizeof(int));
        HostMapping.Unmap((byte*)links, MaxLinks * (ulong)sizeof(LinkSite));
        HostMapping.Unmap((byte*)second, SecondEntries * (ulong)sizeof(SecondEntry));
        FreeTables();
    }
}
