using System.Diagnostics;
using Aerostat.Platform;
using Aerostat.Processors;
using Aerostat.X86;

namespace Aerostat.Cpu;

/// <content>
/// The dispatcher: enters translated code where there is any, serves its exits, and steps everything else in the interpreter on the same
/// state. Generated code is only entered while nothing has to be looked at between instructions.
/// </content>
internal sealed unsafe partial class Interpreter
{
    private TranslationState? translation;
    private Action<ulong, uint>? watchCode;
    // Whether supervisor code is run with XMM registers loaded: kernels hardly use them.
    private bool supervisorVectors;

    /// <summary>Makes this vCPU run translated from now on.</summary>
    internal void EnableTranslation(int codeBytes, int threshold = TranslationState.DefaultThreshold, IBlockObserver? observer = null, int hotThreshold = TranslationState.DefaultHotThreshold)
    {
        translation = new TranslationState(this, codeBytes, threshold, hotThreshold, observer);
        watchCode = WatchCode;
    }

    /// <summary>See <see cref="BlockTranslator.SelfModifying"/>.</summary>
    internal HashSet<ulong>? SelfModifyingPages => translation?.Translator.SelfModifying;

    /// <summary>Tells that the code of a page has changed; any thread.</summary>
    internal void NoteCodeChange(ulong page)
    {
        if (translation == null)
            return;
        translation.NoteChange(page);
        SetRequest(Request.CodeChanged);
    }

    private ProcessorExit LoopTranslated(CpuState* s)
    {
        TranslationState t = translation!;
        HostThread.SetGsBase((nint)space.Base);
        while (true)
        {
            if (((s->Request & Deliverable(s)) | s->Shadow | s->Activity | debug | (int)(s->SystemFlags & (RFlags.Tf | RFlags.Rf))) != 0)
            {
                if (Attend(s, out ProcessorExit exit))
                    return exit;
                // Requests are looked at once more below, so a shadow that is not stepped over would be lost to what comes in between.
                if (((s->Shadow | debug) | (int)(s->SystemFlags & RFlags.Tf)) != 0)
                {
                    if (Step(s, out exit))
                        return exit;
                    continue;
                }
                // RF means nothing without breakpoints, and goes with the next instruction.
                s->SystemFlags &= ~RFlags.Rf;
            }
            if (s->Poll != 0)
            {
                // Lower the flag before looking at the requests again: whoever sets one afterwards raises the flag afterwards.
                s->Poll = 0;
                t.Cache.ArmTables();
                Interlocked.MemoryBarrier();
                if ((s->Request & Deliverable(s)) != 0)
                    continue;
            }
            if (s->Bitness == 64 && s->TlbSet != EmptySet)
            {
                TranslatedBlock* block = FindTranslation(s, t);
                t.Sought = false;
                // A table that was made for it may have been armed after a request had disarmed the others.
                if (s->Poll != 0)
                    continue;
                if (block != null)
                {
                    if (RunTranslated(s, t, block->Entry, block->Variant, out ProcessorExit exit))
                        return exit;
                    continue;
                }
            }
            else
            {
                t.Counters.Blocks[(int)(s->Bitness == 64 ? InterpretedBlock.CheckedAccesses : InterpretedBlock.OtherMode)]++;
            }
            if (RunInterpreted(s, out ProcessorExit left))
                return left;
        }
    }

    // Which requests can be served now; an interrupt or NMI that is masked must not throw generated code out again and again.
    private static int Deliverable(CpuState* s)
    {
        int mask = ~0;
        if ((s->SystemFlags & RFlags.If) == 0)
            mask &= ~(int)(Request.Interrupt | Request.InterruptWindow);
        if (s->NmiBlocked != 0)
            mask &= ~(int)(Request.Nmi | Request.SecondNmi);
        return mask;
    }

    /// <summary>One block in the interpreter; true: Run returns.</summary>
    private bool RunInterpreted(CpuState* s, out ProcessorExit exit)
    {
        exit = default;
        ulong rip = s->Rip;
        ulong linear = s->Bitness == 64 ? rip : (uint)(s->Cs.Base + rip);
        JumpEntry* e = jumpCache + JumpIndex(linear);
        Block* block = e->Block;
        if (e->Key != (linear ^ s->ModeKey) || !IsCurrent(e->Epoch) || !block->IsValid)
        {
            block = FetchBlock(s, linear);
            if (block == null)
            {
                exit = new ProcessorExit(ExitReason.Shutdown);
                return !DeliverRaised(s, EventKind.HardwareException);
            }
        }
        if (s->Bitness != 64 && (uint)rip + (ulong)block->Length - 1 > s->Cs.Limit)
            return Step(s, out exit);
        s->Gpr[17] = rip;
        MicroOp* op = block->Ops;
        MicroOp* end = op + block->Count;
        Outcome outcome;
        do
        {
            outcome = op->Handler(this, s, op);
            if (outcome != Outcome.Next)
                break;
            op++;
        }
        while (op != end);
        if (outcome == Outcome.Next)
        {
            instructions += block->Count;
            s->Rip = s->Bitness == 64 ? rip + (ulong)block->Length : (uint)(rip + (ulong)block->Length);
            return false;
        }
        instructions += op - block->Ops + 1;
        return EndInterpreted(s, op, rip, outcome, out exit);
    }

    /// <summary>One instruction of 64-bit code at RIP; true: Run returns.</summary>
    private bool InterpretOne(CpuState* s, out ProcessorExit exit, out Outcome outcome)
    {
        exit = default;
        outcome = Outcome.Fault;
        ulong rip = s->Rip;
        JumpEntry* e = singles + JumpIndex(rip);
        Block* block = e->Block;
        if (e->Key != (rip ^ s->ModeKey) || !IsCurrent(e->Epoch) || !block->IsValid)
        {
            block = FetchBlock(s, rip, single: true);
            if (block == null)
            {
                exit = new ProcessorExit(ExitReason.Shutdown);
                return !DeliverRaised(s, EventKind.HardwareException);
            }
        }
        s->Gpr[17] = rip;
        MicroOp* op = block->Ops;
        translation!.Counters.Interpreted(op->Code);
        outcome = op->Handler(this, s, op);
        instructions++;
        if (outcome == Outcome.Next)
        {
            s->Rip = rip + op->Length;
            return false;
        }
        return EndInterpreted(s, op, rip, outcome, out exit);
    }

    private bool EndInterpreted(CpuState* s, MicroOp* op, ulong rip, Outcome outcome, out ProcessorExit exit)
    {
        exit = default;
        if (outcome != Outcome.Jump)
            return Finish(s, op, outcome, out exit);
        NoteBranch(rip + op->Offset, op->Length, s->Rip);
        return false;
    }

    private int Variant(CpuState* s)
    {
        bool vectors = (s->Cr0 & (Cr0.Em | Cr0.Ts)) == 0 && (s->Cr4 & Cr4.OsFxsr) != 0
            && (*(uint*)(s->Xsave + CpuState.MxcsrOffset) & VectorState.MxcsrMasks) == VectorState.MxcsrMasks;
        // Where the guest may use YMM registers, code that uses XMM registers gets them loaded too: most user code meets a VEX instruction soon.
        int level = !vectors ? VectorLevel.None : VexHandlers.Usable(s) ? VectorLevel.Ymm : VectorLevel.Xmm;
        // SYSRET may come before the next way out.
        s->UserEntry = (ulong)translation!.Cache.Thunks.UserEntry(level);
        if (!vectors)
            return s->TlbSet;
        if (s->TlbSet == UserSet)
        {
            supervisorVectors = false;
            return UserSet + (3 * level);
        }
        return supervisorVectors ? s->TlbSet + (3 * level) : s->TlbSet;
    }

    /// <summary>The translation for RIP, made now if the code is warm; null: interpret.</summary>
    private TranslatedBlock* FindTranslation(CpuState* s, TranslationState t)
    {
        ulong rip = s->Rip;
        // The interpreter looks for breakpoints; nothing leads past it to where one is.
        if (stops.Count != 0 && stops.ContainsKey(rip))
            return null;
        // What has never been warm no block was ever made of.
        ref byte heat = ref t.HeatOf(rip);
        if (heat < t.Threshold)
        {
            heat++;
            t.Counters.Blocks[(int)InterpretedBlock.Cold]++;
            return null;
        }
        int variant = Variant(s);
        LookasideEntry* e = t.Lookaside + ((rip ^ (rip >> 12)) & (TranslationState.LookasideEntries - 1));
        if (e->Linear == rip && IsCurrent(e->Epoch) && e->Variant == variant + 1 && e->Age == t.Cache.Age && e->Block->IsValid)
        {
            if (t.Sought)
                t.Cache.Publish(e->Block, space.Number, e->Epoch == globalEpoch);
            return e->Block;
        }
        if (!IsCanonical(s, rip) || !TranslateFetch(s, rip, out ulong gpa, out bool global) || Memory.TryGetPage(gpa) == null)
        {
            t.Counters.Blocks[(int)InterpretedBlock.NotFetched]++;
            return null;
        }
        ulong second = TranslatedBlock.OnePage;
        if (t.Translator.CrossesPage(Memory, gpa))
        {
            ulong behind = (rip | 4095) + 1;
            if (!IsCanonical(s, behind) || !TranslateFetch(s, behind, out second, out bool globalToo) || Memory.TryGetPage(second) == null)
            {
                t.Counters.Blocks[(int)InterpretedBlock.NotFetched]++;
                return null;
            }
            global &= globalToo;
        }
        ulong madeIn = global ? globalEpoch : epoch;
        TranslatedBlock* block = t.Cache.Find(rip, gpa, variant, second);
        if (block == null)
        {
            t.Cache.Reserve();
            block = t.Translator.Translate(Memory, watchCode!, rip, gpa, variant, second);
        }
        else if (stops.Count == 0 && second == TranslatedBlock.OnePage)
        {
            // One miss is enough for what the page holds, as after the start of a program that has run before.
            ref (ulong Linear, ulong Epoch, int Variant) published = ref t.PublishedPages[(rip >> 12) & (TranslationState.PublishedEntries - 1)];
            if (published != (rip >> 12, madeIn, variant))
            {
                published = (rip >> 12, madeIn, variant);
                t.Cache.PublishPage(block, space.Number, global);
            }
        }
        *e = new LookasideEntry { Linear = rip, Epoch = madeIn, Variant = variant + 1, Age = t.Cache.Age, Block = block };
        if (t.Sought)
            t.Cache.Publish(block, space.Number, global);
        return block;
    }

    /// <summary>Runs generated code from an address and serves its exits as long as it can go on where it left; true: Run returns.</summary>
    private bool RunTranslated(CpuState* s, TranslationState t, nint entry, int variant, out ProcessorExit exit)
    {
        exit = default;
        ulong zero = 0, signParity = 0, carry = 0;
        bool known = false;
        while (true)
        {
            // Most of what is interpreted in between leaves flags alone.
            if (!known || s->FlagZero != zero || s->FlagSignParity != signParity || s->FlagCarry != carry)
                s->HostFlags = ToHostFlags(s);
            s->EntryTarget = (ulong)entry;
            t.Counters.Entries++;
            t.Cache.Thunks.Enter(VectorLevel.Of(variant));
            FromHostFlags(s);
            (zero, signParity, carry) = (s->FlagZero, s->FlagSignParity, s->FlagCarry);
            known = true;
            ExitRecord* record = t.Cache.Record(s->ExitRecord);
            variant = s->TlbSet + (3 * s->Level);
            t.Counters.Exits[(int)record->Kind]++;
            s->Rip = record->Rip;
            s->Executed -= record->Ahead;
            switch (record->Kind)
            {
                case ExitKind.Miss:
                    s->Rip = s->ExitAddress;
                    t.Sought = s->Poll == 0;
                    // With no branch to blame this is where the interpreter has left off.
                    if (IsCanonical(s, s->Rip) || s->IndirectSource == CodeCache.MissRecord)
                        return false;
                    // The branch faults, not its target: undo it and let the interpreter do it again.
                    record = t.Cache.Record(s->IndirectSource);
                    s->Rip = record->Rip;
                    s->Executed -= record->Ahead;
                    s->Gpr[4] += (ulong)record->StackUndo;
                    return InterpretOne(s, out exit, out _);
                case ExitKind.Link:
                    FollowLink(s, t, record, variant);
                    return false;
                case ExitKind.Poll:
                    return false;
                case ExitKind.Countdown:
                    // Nothing else is looked at here, so the flags that this block does not need are nobody's.
                    entry = CountedDown(t, (TranslatedBlock*)record->Retry, Now(s))->Entry;
                    continue;
                case ExitKind.Memory:
                    if (record->Check != 0 && t.Cache.Site(record->Check)->Misses < 0)
                        ReviewCheck(t, t.Cache.Site(record->Check), Now(s));
                    if (Refill(s, record, out SlowAccess reason))
                    {
                        t.Counters.TlbRefills++;
                        // Whoever waits for this vCPU does not wait for an instruction that misses again and again. But the instruction is
                        // executed first: it may stand behind STI.
                        if (s->Poll != 0)
                            break;
                        entry = record->Retry;
                        s->Executed += record->Ahead;
                        continue;
                    }
                    if (record->Group)
                    {
                        t.Counters.GroupFailures++;
                        TranslatedBlock* alone = FindUngrouped(s, t, variant);
                        if (alone != null)
                        {
                            // As in FollowLink.
                            if (!EndsBlocks(blockEnds, record->Rip))
                                t.Translator.LinkGroup(record, alone->Entry);
                            entry = alone->Entry;
                            continue;
                        }
                    }
                    t.Counters.SlowAccesses[(int)reason]++;
                    break;
                case ExitKind.NeedsVectors:
                    if (s->TlbSet != UserSet && (s->Cr0 & (Cr0.Em | Cr0.Ts)) == 0 && !supervisorVectors)
                    {
                        supervisorVectors = true;
                        if (Variant(s) >= 3)
                            return false;
                    }
                    break;
                default:
                    break;
            }
            int before = mappings;
            nint next = record->Group ? 0 : record->Next;
            int ahead = record->Ahead;
            int age = t.Cache.Age;
            if (InterpretOne(s, out exit, out Outcome outcome))
                return true;
            if (outcome != Outcome.Next || next == 0 || before != mappings || age != t.Cache.Age || s->Poll != 0 || Variant(s) != variant)
            {
                t.Counters.Leaves[(int)(outcome != Outcome.Next ? BlockLeave.Branched
                    : next == 0 ? BlockLeave.NoContinuation
                    : before != mappings ? BlockLeave.MappingChanged
                    : age != t.Cache.Age ? BlockLeave.CodeForgotten
                    : s->Poll != 0 ? BlockLeave.Requested
                    : BlockLeave.VariantChanged)]++;
                if (!TryGoOn(s, t, ref variant, out entry))
                    return false;
                continue;
            }
            entry = next;
            s->Executed += ahead - 1;
        }
    }

    // A direct branch within a page, taken for the first time: from now on it goes straight to its target.
    private void FollowLink(CpuState* s, TranslationState t, ExitRecord* record, int variant)
    {
        nint site = record->Retry;
        int age = t.Cache.Age;
        if (s->Poll != 0)
            return;
        TranslatedBlock* block = FindTranslation(s, t);
        // A breakpoint that is set here again must be met, so no jump goes straight to where one has been.
        if (block != null && !EndsBlocks(blockEnds, block->Linear) && age == t.Cache.Age && block->Variant == variant && s->Poll == 0
            && block->Second == TranslatedBlock.OnePage)
            t.Cache.Link(site, block);
    }

    /// <summary>Code for RIP in which each access is checked on its own.</summary>
    private TranslatedBlock* FindUngrouped(CpuState* s, TranslationState t, int variant)
    {
        ulong rip = s->Rip;
        LookasideEntry* e = t.Lookaside + ((rip ^ (rip >> 12)) & (TranslationState.LookasideEntries - 1)) + TranslationState.LookasideEntries;
        if (e->Linear == rip && IsCurrent(e->Epoch) && e->Variant == variant + 1 && e->Age == t.Cache.Age && e->Block->IsValid)
            return e->Block;
        if (!TranslateFetch(s, rip, out ulong gpa, out bool global) || Memory.TryGetPage(gpa) == null)
            return null;
        TranslatedBlock* block = t.Cache.Find(rip, gpa, variant | CodeCache.Ungrouped);
        if (block == null)
        {
            // All code may have been forgotten to make room; then the block is entered by the ordinary way.
            if (!t.Cache.Reserve())
                return null;
            block = t.Translator.Translate(Memory, watchCode!, rip, gpa, variant, withoutGroups: true);
        }
        *e = new LookasideEntry
        {
            Linear = rip,
            Epoch = global ? globalEpoch : epoch,
            Variant = variant + 1,
            Age = t.Cache.Age,
            Block = block,
        };
        return block;
    }

    // Guest instructions in units of 1024.
    private uint Now(CpuState* s) => (uint)((instructions + s->Executed) >> 10);

    // A check has found other pages so often that it is time to ask whether a slot pays: the way to another page costs about twenty cycles.
    private void ReviewCheck(TranslationState t, CheckSite* site, uint now)
    {
        bool often = now - site->Since < CheckSite.Patience * CheckSite.WorthInstructions >> 10;
        site->Since = now;
        site->Misses = CheckSite.Patience;
        TranslatedBlock* block = often && t.Cache.HasRoom ? t.Cache.Find(site->Linear, site->Gpa, site->Variant) : null;
        if (block == null)
            return;
        t.Translator.Search(site->Instruction);
        t.Counters.Searches++;
        MakeAgain(t, block, Temperature.Hot);
    }

    /// <summary>
    /// A block has counted down: from now on it is timed, that is over and it is settled or on trial, or the trial is over. Answers what takes its place, or itself.
    /// </summary>
    private TranslatedBlock* CountedDown(TranslationState t, TranslatedBlock* block, uint now)
    {
        if (!block->IsValid || !t.Cache.HasRoom)
        {
            t.Cache.Countdown(block->Countdown) = t.HotThreshold;
            return block;
        }
        if (block->Temperature == Temperature.Warm)
            return Time(t, block, now);
        int searching = 0;
        for (int i = 0; i < block->Checks; i++)
        {
            CheckSite* site = t.Cache.Site(block->FirstCheck + i);
            if ((CheckSite.Patience - 1 - site->Misses) * CheckSite.WorthExecutions <= t.Trial)
                continue;
            t.Translator.Search(site->Instruction);
            searching++;
        }
        t.Counters.Searches += searching;
        if (searching != 0)
            return MakeAgain(t, block, Temperature.Hot);
        t.Translator.EndCountdown(block, Temperature.Hot);
        return block;
    }

    // Whether a warm block runs often among others: if so, it goes on trial; if it has been seldom often enough, it settles.
    private TranslatedBlock* Time(TranslationState t, TranslatedBlock* block, uint now)
    {
        bool often = now - block->TimedSince <= (uint)t.Timing * TranslationState.HotWithin >> 10;
        if (block->Timed && often)
        {
            t.Counters.Trials++;
            return MakeAgain(t, block, Temperature.OnTrial);
        }
        if (block->Timed && ++block->TimesSeldom == TranslationState.Timings)
        {
            t.Translator.EndCountdown(block, Temperature.Settled);
            return block;
        }
        block->Timed = !block->Timed;
        block->TimedSince = now;
        t.Cache.Countdown(block->Countdown) = block->Timed ? t.Timing : t.HotThreshold << block->TimesSeldom;
        return block;
    }

    private TranslatedBlock* MakeAgain(TranslationState t, TranslatedBlock* block, Temperature temperature) =>
        t.Translator.Translate(Memory, watchCode!, block->Linear, block->Gpa, block->Variant, temperature: temperature, replacing: block);

    /// <summary>Fills the TLB for an access that failed; false: the interpreter has to do it.</summary>
    private bool Refill(CpuState* s, ExitRecord* record, out SlowAccess reason)
    {
        ulong linear = s->ExitAddress;
        bool aligned = (linear & (uint)record->Alignment) == 0;
        reason = (linear & 4095) + (uint)record->Size > 4096 ? SlowAccess.PageCrossing : aligned ? SlowAccess.NotCanonical : SlowAccess.Misaligned;
        if ((linear & 4095) + (uint)record->Size > 4096 || !aligned || !IsCanonical(s, Unmask(s, linear)))
            return false;
        reason = SlowAccess.Device;
        if (IsDevice(s, linear, record->Write, out _))
            return false;
        reason = SlowAccess.Fault;
        // A group's check must not set the dirty flag for a write that may not happen.
        bool writes = record->Group ? record->LeaderWrites : record->Write;
        Access access = DataAccess(s) | (writes ? Access.Write : 0);
        if (!Translate(s, linear, access, out Translation t))
            return false;
        reason = SlowAccess.Device;
        if (Memory.TryGetPage(t.Gpa) == null)
            return false;
        reason = SlowAccess.WatchedPage;
        if (record->Write && Memory.Watch[t.Gpa >> 12] != 0)
            return false;
        FillTlb(s, s->TlbSet, linear, t, writes || WriteAllowed(s, t));
        TlbEntry* e = s->Tlb + ((linear >> 12) & (TlbEntries - 1));
        return (record->Write ? e->WriteTag : e->ReadTag) == (linear & ~4095UL);
    }

    private static uint ToHostFlags(CpuState* s) =>
        (CpuStateExtensions.Of(s) ? 1u : 0)
        | (CpuStateExtensions.Cf(s) ? 1u << 8 : 0) | 1u << 9 | (CpuStateExtensions.Pf(s) ? 1u << 10 : 0) | (CpuStateExtensions.Af(s) ? 1u << 12 : 0)
        | (CpuStateExtensions.Zf(s) ? 1u << 14 : 0) | (CpuStateExtensions.Sf(s) ? 1u << 15 : 0);

    private static void FromHostFlags(CpuState* s)
    {
        uint f = s->HostFlags;
        s->FlagZero = (f & 1u << 14) != 0 ? 0UL : 1;
        s->FlagSignParity = ((f & 1u << 15) != 0 ? 1UL << 63 : 0) | ((f & 1u << 10) != 0 ? 0UL : 1);
        ulong carry = f >> 8 & 1;
        s->FlagCarry = (carry << 63) | ((carry ^ (f & 1)) << 62) | ((f >> 12 & 1) << 3);
    }

    internal void TranslationCounters(Dictionary<string, long> named)
    {
        if (translation == null)
            return;
        named["translated-blocks"] = translation.Translator.BlocksTranslated;
        named["translated-instructions"] = translation.Translator.InstructionsTranslated;
        named["translation-microseconds"] = (long)Stopwatch.GetElapsedTime(0, translation.Translator.Ticks).TotalMicroseconds;
        named["translated-bytes"] = translation.Cache.BytesUsed;
        named["code-cache-evictions"] = translation.Cache.Evictions;
        translation.Counters.AddTo(named);
    }
}
