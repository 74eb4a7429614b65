using System.Runtime.Intrinsics.X86;
using Iced.Intel;

namespace Aerostat.Cpu;

/// <content>
/// Groups: memory accesses of a block whose addresses differ by constants are checked once, by the first of them, for the whole span; R14 then
/// points to it. Between the first and the last access of a group nothing may run that could change what the check found, so an
/// exit there that steps in the interpreter does not come back into the block.
/// </content>
internal sealed unsafe partial class BlockTranslator
{
    // A span that crosses a page costs a trip through the dispatcher each time, so spans are kept short.
    private const int LongestSpan = 512;

    /// <summary>The one access of an instruction that may take part in a group, and where it stands there.</summary>
    private struct MemoryUse
    {
        public bool Present, Write, Aligned, SpoilsPointer, Barrier;
        public int Size, Scale, Segment;
        // Identities of the values that base and index had, 0: none. Equal ones differ by what Position says.
        public int BaseValue, IndexValue;
        public long Position;
        /// <summary>0: on its own, 1: first of a group, 2: further member.</summary>
        public int Role;
        /// <summary>For the first: distance from it to the start of the span; for members: from the start of the span.</summary>
        public int Delta;
        public int Span;
        public bool SpanWrites, SpanAligned;
        /// <summary>R14 is in use behind this instruction.</summary>
        public bool InGroup;
        /// <summary>R14 was in use before this instruction.</summary>
        public bool PointerLive;
    }

    private readonly MemoryUse[] uses = new MemoryUse[MaxInstructions];
    private readonly int[] values = new int[16];
    private readonly long[] offsets = new long[16];
    private int nextValue;

    private void PlanGroups()
    {
        nextValue = 1;
        for (int r = 0; r < 16; r++)
            Renew(r);
        lastSource = default;
        for (int k = 0; k < count; k++)
        {
            uses[k] = default;
            Describe(code[k], treatments[k], ref uses[k]);
            NoteSource(k);
            Track(code[k], treatments[k]);
            TrackSource(code[k], treatments[k]);
        }
        if (ungrouped)
            return;
        for (int k = 0; k < count; k++)
            if (uses[k] is { Present: true, Role: 0, SpoilsPointer: false })
                k = TryGroup(k);
    }

    private void Renew(int register)
    {
        values[register] = nextValue++;
        offsets[register] = 0;
    }

    // Answers the last instruction that the search may skip: the group's last member, or the first itself.
    private int TryGroup(int first)
    {
        ref MemoryUse lead = ref uses[first];
        long low = lead.Position, high = lead.Position + lead.Size;
        bool writes = lead.Write;
        long aligned = lead.Aligned ? lead.Position : long.MinValue;
        int last = first, members = 1;
        Span<int> joined = stackalloc int[MaxInstructions];
        joined[0] = first;
        for (int k = first + 1; k < count; k++)
        {
            ref MemoryUse u = ref uses[k];
            if (u.Barrier)
                break;
            bool matches = u.Present && u.BaseValue == lead.BaseValue && u.IndexValue == lead.IndexValue && u.Scale == lead.Scale && u.Segment == lead.Segment;
            if (matches)
            {
                long l = Math.Min(low, u.Position), h = Math.Max(high, u.Position + u.Size);
                bool fits = h - l <= LongestSpan && !u.SpoilsPointer
                    && (!u.Aligned || aligned == long.MinValue || ((u.Position - aligned) & 15) == 0);
                if (fits)
                {
                    (low, high) = (l, h);
                    writes |= u.Write;
                    if (u.Aligned && aligned == long.MinValue)
                        aligned = u.Position;
                    joined[members++] = k;
                    last = k;
                    continue;
                }
            }
            if (u.SpoilsPointer)
                break;
        }
        if (members == 1)
            return first;
        if (aligned != long.MinValue)
            low -= (low - aligned) & 15;
        for (int m = 0; m < members; m++)
        {
            ref MemoryUse u = ref uses[joined[m]];
            u.Role = m == 0 ? 1 : 2;
            u.Delta = (int)(u.Position - low);
        }
        lead.Span = (int)(high - low);
        lead.SpanWrites = writes;
        lead.SpanAligned = aligned != long.MinValue;
        for (int k = first; k <= last; k++)
        {
            uses[k].InGroup = k < last;
            uses[k].PointerLive = k > first;
        }
        return last;
    }

    private void Describe(in Instruction i, Treatment t, ref MemoryUse u)
    {
        switch (t)
        {
            case Treatment.Integer:
            case Treatment.Vector:
                int inMemory = 0, seen = 0;
                bool memory = false, highByte = false;
                for (int n = 0; n < i.OpCount; n++)
                {
                    if (i.GetOpKind(n) == OpKind.Memory)
                    {
                        memory = true;
                        OpAccess access = AccessOf(i, n);
                        u.Write = access is OpAccess.Write or OpAccess.ReadWrite or OpAccess.CondWrite or OpAccess.ReadCondWrite;
                    }
                    else if (i.GetOpKind(n) == OpKind.Register && IsHighByte(i.GetOpRegister(n)))
                    {
                        highByte = true;
                    }
                    else if (i.GetOpKind(n) == OpKind.Register && i.GetOpRegister(n).IsGPR())
                    {
                        int guest = GuestNumber(i.GetOpRegister(n));
                        if (Homes.OfGuest[guest] == Host.None && (seen & 1 << guest) == 0)
                        {
                            seen |= 1 << guest;
                            inMemory++;
                        }
                    }
                }
                // Without an access, three registers from memory need R14 too; with one, two do unless R10 is free.
                u.SpoilsPointer = inMemory >= (memory ? 2 : 3);
                if (memory)
                {
                    int size = i.MemorySize.GetSize();
                    u.Aligned = MustBeAligned(i, t);
                    // A group knows of no other alignment than 16.
                    if (!u.Aligned || size == 16)
                        Place(i, size, ref u);
                }
                // AH..BH cannot be encoded together with the registers that point to memory; EmitPlain's way around takes RORX.
                if ((t == Treatment.Vector && !IsLoaded(i)) || (memory && highByte && !Bmi2.IsSupported))
                {
                    u.Barrier = true;
                    u.Present = false;
                }
                break;
            case Treatment.Divide when i.Op0Kind == OpKind.Memory:
            case Treatment.IndirectBranch when i.Op0Kind == OpKind.Memory:
                Place(i, i.MemorySize.GetSize(), ref u);
                break;
            case Treatment.Push when i.Op0Kind != OpKind.Memory:
            case Treatment.PushFlags:
            case Treatment.Call:
            case Treatment.IndirectCall when i.Op0Kind != OpKind.Memory:
                PlaceStack(-8, write: true, ref u);
                break;
            case Treatment.Pop:
            case Treatment.Return:
                PlaceStack(0, write: false, ref u);
                break;
            case Treatment.Push:
            case Treatment.IndirectCall:
            case Treatment.Leave:
                u.SpoilsPointer = true;
                break;
            case Treatment.SwapGs:
            case Treatment.Cpuid:
            case Treatment.String:
            case Treatment.Interpret:
                u.Barrier = true;
                break;
            default:
                break;
        }
    }

    private void PlaceStack(int displacement, bool write, ref MemoryUse u)
    {
        u.Present = true;
        u.Size = 8;
        u.Write = write;
        u.Segment = -1;
        u.BaseValue = values[4];
        u.Position = offsets[4] + displacement;
    }

    private void Place(in Instruction i, int size, ref MemoryUse u)
    {
        Register b = i.MemoryBase, x = i.MemoryIndex;
        if (b == Register.EIP || b.IsGPR32() || x.IsGPR32() || (b == Register.None && x == Register.None && i.MemoryDisplSize == 4))
            return;
        if (b != Register.None && !i.IsIPRelativeMemoryOperand && Math.Abs((long)i.MemoryDisplacement64) > 1 << 30)
            return;
        if (x != Register.None && Math.Abs((long)i.MemoryDisplacement64) > 1 << 30)
            return;
        u.Present = true;
        u.Size = size;
        u.Segment = SegmentOffset(i);
        u.Position = (long)i.MemoryDisplacement64;
        if (i.IsIPRelativeMemoryOperand)
            return;
        if (b != Register.None)
        {
            u.BaseValue = values[b.GetNumber()];
            u.Position += offsets[b.GetNumber()];
        }
        if (x != Register.None)
        {
            u.Scale = i.MemoryIndexScale;
            u.IndexValue = values[x.GetNumber()];
            u.Position += offsets[x.GetNumber()] * u.Scale;
        }
    }

    // Follows what an instruction does to general registers.
    private void Track(in Instruction i, Treatment t)
    {
        switch (t)
        {
            case Treatment.Nothing or Treatment.ConditionalBranch or Treatment.Branch:
                return;
            case Treatment.InterruptFlag:
            case Treatment.AccessFlag:
                return;
            case Treatment.Push:
            case Treatment.PushFlags:
            case Treatment.Call:
            case Treatment.IndirectCall:
                offsets[4] -= 8;
                return;
            case Treatment.Pop:
                offsets[4] += 8;
                Renew(GuestNumber(i.Op0Register));
                return;
            case Treatment.Lea when i.Op0Register.IsGPR64() && i.MemoryBase.IsGPR64() && i.MemoryIndex == Register.None:
                Copy(i.Op0Register.GetNumber(), i.MemoryBase.GetNumber(), (long)i.MemoryDisplacement64);
                return;
            case Treatment.Integer when i.Code is Code.Mov_r64_rm64 or Code.Mov_rm64_r64 && i.Op0Kind == OpKind.Register && i.Op1Kind == OpKind.Register:
                Copy(i.Op0Register.GetNumber(), i.Op1Register.GetNumber(), 0);
                return;
            case Treatment.Integer when i.Code is Code.Add_rm64_imm8 or Code.Add_rm64_imm32 or Code.Add_RAX_imm32 && i.Op0Kind == OpKind.Register:
                offsets[i.Op0Register.GetNumber()] += (long)i.GetImmediate(1);
                return;
            case Treatment.Integer when i.Code is Code.Sub_rm64_imm8 or Code.Sub_rm64_imm32 or Code.Sub_RAX_imm32 && i.Op0Kind == OpKind.Register:
                offsets[i.Op0Register.GetNumber()] -= (long)i.GetImmediate(1);
                return;
            default:
                break;
        }
        if (t == Treatment.Integer && i.Mnemonic is Mnemonic.Cmp or Mnemonic.Test)
            return;
        if (t == Treatment.Integer && i.Mnemonic is Mnemonic.Mov or Mnemonic.Movzx or Mnemonic.Movsx or Mnemonic.Movsxd or Mnemonic.Add or Mnemonic.Sub or Mnemonic.And or Mnemonic.Or or Mnemonic.Xor)
        {
            if (i.Op0Kind == OpKind.Register)
                Renew(GuestNumber(i.Op0Register));
            return;
        }
        foreach (UsedRegister r in infos.GetInfo(i).GetUsedRegisters())
            if (r.Access is not (OpAccess.Read or OpAccess.CondRead) && r.Register.IsGPR())
                Renew(r.Register.GetFullRegister().GetNumber());
    }

    private void Copy(int to, int from, long distance)
    {
        values[to] = values[from];
        offsets[to] = offsets[from] + distance;
    }

    private void EmitStackAddress(int displacement)
    {
        if (displacement == 0)
            a.Move(Host.R10, Host.R15);
        else
            a.Lea(Host.R10, Host.R15, Host.None, 0, displacement);
    }

    // ADD or SUB of a constant, with their flags.
    private void EmitStackMove(int k)
    {
        ref Instruction i = ref code[k];
        EmitImmediate(i.Mnemonic == Mnemonic.Add ? 0 : 5, Host.R15, (int)(long)i.GetImmediate(1), wide: true);
    }

    /// <summary>
    /// Makes the memory operand of instruction <paramref name="k"/> reachable: the answer is the host register to address it by and the distance from
    /// there. Stack accesses are at RSP + <paramref name="displacement"/>.
    /// </summary>
    private (int Register, int Distance) Reach(int k, nint start, int size, bool write, bool aligned, int displacement, bool stack, bool spillToMemory = false) =>
        Reach(k, start, size, write, aligned, displacement, stack, spillToMemory, mayIndex: false, out _);

    /// <summary>How an operand is reached: by the register that <see cref="Reach(int, nint, int, bool, bool, int, bool, bool)"/> answers, with R11 added to that, or with R11 added to the guest's own address.</summary>
    private enum Reached
    {
        Direct,
        Indexed,
        Relative,
    }

    /// <summary>As the other; only if <paramref name="mayIndex"/> the answer may need R11.</summary>
    private (int Register, int Distance) Reach(int k, nint start, int size, bool write, bool aligned, int displacement, bool stack, bool spillToMemory, bool mayIndex, out Reached form)
    {
        ref MemoryUse u = ref uses[k];
        ref Instruction i = ref code[k];
        form = Reached.Direct;
        if (u.Role == 2)
            return (Host.R14, u.Delta);
        int move = u.Role == 1 ? -u.Delta : 0;
        int segment = stack ? -1 : SegmentOffset(i);
        int bytes = u.Role == 1 ? u.Span : size;
        bool writes = u.Role == 1 ? u.SpanWrites : write;
        int alignment = u.Role == 1 ? (u.SpanAligned ? 15 : 0) : aligned ? size - 1 : 0;
        bool spill = u.Role == 0 && (spillToMemory || u.PointerLive || u.InGroup);
        int distance = 0;
        bool relative = false;
        if (!stack && segment < 0 && IsConstantAddress(i) && i.MemoryDisplacement64 + (ulong)(long)move is var address
            && (address & 4095) + (ulong)bytes <= 4096 && (address & (ulong)alignment) == 0 && IsCanonical(address))
        {
            EmitConstantCheck(i.IP, start, address, bytes, writes, alignment, live[k], spill);
            distance = (int)(address & 4095);
        }
        else
        {
            // What is before the check: this instruction, or the one before it too.
            bool late = stack && k > 0 && IsBeforePop(k - 1);
            int from = late ? k - 1 : k;
            if (late)
            {
                MovesStack(from, out int before);
                displacement += before;
                source = sources[from];
            }
            if (stack)
                EmitStackAddress(displacement + move);
            else
                EmitAddress(i, move: move);
            // Where R11 is needed for the flags, it is not free.
            bool free = live[from] == 0 || source.Origin == FlagOrigin.None;
            int check = AddCheck(i);
            relative = free && check != 0 && segment < 0 && (mayIndex || u.Role == 1) && (stack ? u.Role == 1 : HasOneRegister(i));
            bool indexed = relative || (free && mayIndex && u.Role == 0);
            EmitCheck(i.IP, start, bytes, writes, alignment, live[from], segment, spill, indexed, check, relative);
            if (u.Role == 0)
                form = relative ? Reached.Relative : indexed ? Reached.Indexed : Reached.Direct;
            else if (relative)
                EmitGroupPointer(i, stack, stack ? displacement + move : (int)i.MemoryDisplacement64 + move);
            if (late)
            {
                ExitRecord* exit = cache.Record((uint)cache.RecordCount - 1);
                exit->Rip = code[from].IP;
                exit->Ahead = 1;
                EmitStackMove(from);
            }
        }
        if (u.Role == 0)
            return (Host.R10, distance);
        ExitRecord* record = cache.Record((uint)cache.RecordCount - 1);
        record->Group = true;
        record->LeaderWrites = write;
        if (distance != 0)
            a.Lea(Host.R14, Host.R10, Host.None, 0, distance);
        else if (!relative)
            a.Move(Host.R14, Host.R10);
        return (Host.R14, u.Delta);
    }

    /// <summary>
    /// From now on the failed check of a group goes straight to code in which each access is checked on its own: a span that crosses a page, or a page
    /// of which not all may be written, will fail again. Whether its page is in the TLB is found out there.
    /// </summary>
    public void LinkGroup(ExitRecord* record, nint alone)
    {
        if (record->Next == 0 || !cache.HasRoomForStub)
            return;
        cache.BeginCode(a);
        nint stub = a.Here;
        // As the dispatcher does at an exit, with the flags kept.
        if (record->Ahead != 0)
            a.TakeFromCount(cache.Thunks.Amount(record->Ahead));
        a.Jmp(alone);
        cache.EndCode(a);
        cache.Link(record->Next, stub);
        record->Next = 0;
    }

    // R14 = where the guest's address leads, with the distance to there in R11.
    private void EmitGroupPointer(in Instruction i, bool stack, int displacement)
    {
        if (stack)
            a.Lea(Host.R14, Host.R15, Host.R11, 0, displacement);
        else if (i.MemoryBase != Register.None)
            a.Lea(Host.R14, Homes.OfGuest[i.MemoryBase.GetNumber()], Host.R11, 0, displacement);
        else
            a.Lea(Host.R14, Host.R11, Homes.OfGuest[i.MemoryIndex.GetNumber()], i.MemoryIndexScale switch { 2 => 1, 4 => 2, 8 => 3, _ => 0 }, displacement);
    }

    // Whether a memory operand is a single register that the host keeps in one of its own, as an address of 64 bits.
    private static bool HasOneRegister(in Instruction i)
    {
        Register b = i.MemoryBase, x = i.MemoryIndex;
        Register only = b == Register.None ? x : x == Register.None ? b : Register.None;
        return only.IsGPR64() && Homes.OfGuest[only.GetNumber()] != Host.None;
    }

    private static bool IsConstantAddress(in Instruction i) => i.MemoryBase == Register.RIP
        || (i.MemoryBase == Register.None && i.MemoryIndex == Register.None && i.MemoryDisplSize != 4);

    /// <summary>As <see cref="EmitCheck"/> for an address that is known and lies within a page: R10 = the host's page.</summary>
    private void EmitConstantCheck(ulong rip, nint retry, ulong address, int size, bool write, int alignment, int liveFlags, bool spillToMemory)
    {
        ulong page = address & ~4095UL;
        int entryOffset = TlbOffset + ((int)(address >> 12) & (Interpreter.TlbEntries - 1)) * sizeof(TlbEntry);
        int tag = entryOffset + (write ? 16 : 0);
        bool again = source.Origin != FlagOrigin.None;
        int saved = again ? 0 : liveFlags;
        EmitSaveFlags(saved, spillToMemory);
        if ((long)page == (int)page)
        {
            a.RM(0x81, 7, Host.None, Host.None, 0, tag, gs: true);
            a.Int32((int)page);
        }
        else
        {
            a.Constant(Host.R10, page);
            a.RM(0x3B, Host.R10, Host.None, Host.None, 0, tag, gs: true);
        }
        nint slow = a.Jcc(Condition.Ne);
        a.LoadState(Host.R10, tag + 8);
        if (again && liveFlags != 0)
            EmitFlagsAgain();
        EmitRestoreFlags(saved, spillToMemory);
        int record = cache.AddRecord(new ExitRecord { Kind = ExitKind.Memory, Rip = rip, Retry = retry, Size = size, Write = write, Alignment = alignment });
        cold.Add(new Cold { Kind = ColdKind.Constant, Site = slow, Record = record, Target = address, Live = saved, SpillToMemory = spillToMemory, Source = source });
    }
}
