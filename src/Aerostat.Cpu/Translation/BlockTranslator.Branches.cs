using Iced.Intel;

namespace Aerostat.Cpu;

/// <content>
/// Branches. Within a page blocks are linked directly: they become stale together. Everything else goes through the jump table, what
/// is found there by a sum of its address checks whether it is meant. Every loop contains a backward branch within a page (which looks at <see cref="CpuState.Poll"/>) or a jump through
/// the table (which is exchanged for one full of exits), so a request is seen within one page of straight code.
/// </content>
internal sealed unsafe partial class BlockTranslator
{
    /// <summary>R10 = the target, then through the table.</summary>
    private void EmitTableJump(ulong target) => EmitTableJump(target, variant);

    private void EmitTableJump(ulong target, int toVariant)
    {
        // Code may run on to there. The dispatcher would blame the last indirect branch.
        if (!IsCanonical(target))
        {
            EmitLeave(ExitKind.Interpret, target, 0);
            return;
        }
        a.LoadState(Host.R14, Offset(&state->JumpTable[toVariant]));
        a.Constant(Host.R10, target);
        a.RM(0xFF, 4, Host.R14, Host.None, 0, cache.AddPlace(target, toVariant) * 8, wide: false);
    }

    /// <summary>To the address in R10.</summary>
    private void EmitIndirectJump(int record, bool asReturn = false)
    {
        // Noted so that a target that is not canonical can be blamed on this instruction.
        a.RM(0xC7, 0, Host.Rsp, Host.None, 0, Frame.IndirectSource, wide: false);
        a.Int32(record);
        a.LoadState(Host.R14, Offset(&state->JumpTable[variant]));
        CodeCache.EmitTableIndex(a);
        a.RM(0xFF, asReturn ? 6 : 4, Host.R14, Host.R11, 3, 0, wide: false);
        if (asReturn)
            a.Byte(0xC3);
    }

    private void EmitLink(nint site, ulong target) => EmitLink(site, target, variant);

    private void EmitLink(nint site, ulong target, int toVariant)
    {
        // A breakpoint that is set here again must be met.
        bool stop = Interpreter.EndsBlocks(BlockEnds, target);
        if (!stop && entry != 0 && target == linear && !ungrouped && toVariant == variant)
        {
            a.PointTo(site, entry);
            linksToSelf.Add(site);
            return;
        }
        TranslatedBlock* block = stop ? null : cache.Find(target, (gpa & ~4095UL) | (target & 4095), toVariant);
        if (block != null)
        {
            a.PointTo(site, block->Entry);
            cache.NoteLink(site, block);
            return;
        }
        int record = cache.AddRecord(new ExitRecord { Kind = ExitKind.Link, Rip = target, Retry = site });
        cold.Add(new Cold { Kind = ColdKind.Link, Site = site, Record = record });
    }

    /// <summary>An unconditional transfer; flags pass.</summary>
    private bool EmitGoto(ulong target, ulong from) => EmitGoto(target, backward: target <= from, GoesByTable(target, from));

    // Where flags are live there is no room for a poll.
    private bool GoesByTable(ulong target, ulong from) => !IsLinkable(target) || (target <= from && LiveAt(target, LookAheadDepth) != 0);

    private bool EmitGoto(ulong target, bool backward, bool byTable)
    {
        if (byTable)
        {
            EmitTableJump(target);
            return true;
        }
        if (backward)
        {
            EmitPollTest();
            EmitLink(a.Jcc(Condition.E), target);
            return EmitLeave(ExitKind.Poll, target, 0);
        }
        EmitLink(a.Jmp(), target);
        return true;
    }

    private bool EmitConditional(in Instruction i)
    {
        ulong target = i.NearBranchTarget;
        int condition = (int)i.ConditionCode - 1;
        bool backward = target <= i.IP;
        if (GoesByTable(target, i.IP))
        {
            cold.Add(new Cold { Kind = ColdKind.Table, Site = a.Jcc(condition), Target = target });
            return true;
        }
        if (!backward)
        {
            EmitLink(a.Jcc(condition), target);
            return true;
        }
        // Not taken, the flags are as they were; taken, nobody needs them.
        nint over = a.Jcc(condition ^ 1);
        EmitPollTest();
        EmitLink(a.Jcc(Condition.E), target);
        EmitLeave(ExitKind.Poll, target, 0);
        a.Bind(over);
        return true;
    }

    private void EmitPollTest()
    {
        // cmp dword gs:[Poll], 0
        a.RM(0x83, 7, Host.None, Host.None, 0, Offset(&state->Poll), wide: false, gs: true);
        a.Byte(0);
    }

    /// <summary>Pushes the address of the next instruction.</summary>
    private void EmitPushReturn(in Instruction i, int k, nint start, bool keepR14)
    {
        (int pointer, int distance) = Reach(k, start, 8, write: true, aligned: false, -8, stack: true, spillToMemory: keepR14);
        ulong next = i.NextIP;
        if ((long)next == (int)next)
        {
            a.RM(0xC7, 0, pointer, Host.None, 0, distance);
            a.Int32((int)next);
        }
        else
        {
            a.Constant(Host.R11, next);
            a.RM(0x89, Host.R11, pointer, Host.None, 0, distance);
        }
        MoveStack(k, -8);
    }

    private bool EmitCall(in Instruction i, int k, nint start)
    {
        EmitPushReturn(i, k, start, keepR14: false);
        ulong target = i.NearBranchTarget;
        if (!BeginCallSite(i.NextIP, target, out nint call))
            return true;
        bool backward = target <= i.IP, byTable = GoesByTable(target, i.IP);
        if (call == 0)
            return EmitGoto(target, backward, byTable);
        cold.Add(new Cold { Kind = ColdKind.Call, Site = call, Target = target, Backward = backward, ByTable = byTable });
        return true;
    }

    /// <summary>
    /// Calls the code behind, which takes the host's return address away again, so that the host's own predictor of returns follows the guest's calls. What
    /// it will predict is the landing pad behind the call, which therefore is what the jump table has for the return address. Nothing else depends on it.
    /// False: there is the like for this call already, and a jump to it has been emitted.
    /// </summary>
    /// <param name="next">The return address. Where the code there is about as warm as this, it becomes the <see cref="follower"/>: it follows the host's call.</param>
    /// <param name="target">What tells calls apart that return there.</param>
    /// <param name="call">With a follower, the call, which goes to one of the slow paths; else 0.</param>
    private bool BeginCallSite(ulong next, ulong target, out nint call)
    {
        call = 0;
        if (!IsLinkable(next) || ungrouped || crossing)
            return true;
        nint site = cache.FindCallSite(next, gpa, variant, target, replaced, temperature);
        if (site != 0)
        {
            a.Jmp(site);
            return false;
        }
        site = a.Here;
        nint over = a.Call();
        callSite = new CallSite { Next = next, Target = target, Start = site, Pad = a.Here };
        if (!Interpreter.EndsBlocks(BlockEnds, next) && (cache.Find(next, Physical(next), variant) == null ? isWarm(next) : temperature > Temperature.Settled))
        {
            follower = next;
            call = over;
            return true;
        }
        EmitLandingPad(next);
        a.Bind(over);
        EmitPopReturn();
        return true;
    }

    private void EmitLandingPad(ulong next)
    {
        cache.EmitEntryCheck(a, next, variant);
        EmitLink(a.Jmp(), next);
    }

    // pop r11: cheaper than an addition, for processors follow pushes and pops by themselves.
    private void EmitPopReturn()
    {
        a.Byte(0x41);
        a.Byte(0x5B);
    }

    private bool EmitIndirect(in Instruction i, int k, nint start, bool call)
    {
        if (i.Op0Kind == OpKind.Memory)
        {
            if (i.MemoryBase == Register.EIP)
                return false;
            if (call)
            {
                EmitAddress(i);
                EmitCheck(i.IP, start, 8, write: false, alignment: 0, live[k], SegmentOffset(i), check: AddCheck(i));
                a.RM(0x8B, Host.R14, Host.R10, Host.None, 0, 0);
                // Tried again from here on: the two pages may share a TLB entry, and then trying again from the start would never end.
                EmitPushReturn(i, k, a.Here, keepR14: true);
                a.Move(Host.R10, Host.R14);
            }
            else
            {
                (int pointer, int distance) = Reach(k, start, 8, write: false, aligned: false, 0, stack: false);
                a.RM(0x8B, Host.R10, pointer, Host.None, 0, distance);
            }
        }
        else
        {
            int guest = GuestNumber(i.Op0Register);
            if (guest == 4)
                return false;
            if (call)
                EmitPushReturn(i, k, start, keepR14: false);
            int host = Use(guest, Host.R10);
            a.Move(Host.R10, host);
        }
        int record = cache.AddRecord(new ExitRecord { Kind = ExitKind.Interpret, Rip = i.IP, StackUndo = call ? 8 : 0 });
        nint site = 0;
        if (call && !BeginCallSite(i.NextIP, i.IP, out site))
            return true;
        if (site == 0)
            EmitIndirectJump(record);
        else
            cold.Add(new Cold { Kind = ColdKind.IndirectCall, Site = site, Record = record });
        return true;
    }

    private bool EmitReturn(in Instruction i, int k, nint start)
    {
        int extra = i.Code == Code.Retnq_imm16 ? i.Immediate16 : 0;
        (int pointer, int distance) = Reach(k, start, 8, write: false, aligned: false, 0, stack: true);
        a.RM(0x8B, Host.R10, pointer, Host.None, 0, distance);
        MoveStack(k, 8 + extra);
        EmitIndirectJump(cache.AddRecord(new ExitRecord { Kind = ExitKind.Interpret, Rip = i.IP, StackUndo = -8 - extra }), asReturn: true);
        return true;
    }
}
