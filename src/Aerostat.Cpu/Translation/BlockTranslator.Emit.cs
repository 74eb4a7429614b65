using System.Runtime.Intrinsics.X86;
using Aerostat.X86;
using Iced.Intel;

namespace Aerostat.Cpu;

/// <content>Emission of instructions and memory accesses.</content>
internal sealed unsafe partial class BlockTranslator
{
    private enum ColdKind
    {
        /// <summary>A failed TLB check: recover the address and leave.</summary>
        Slow,
        /// <summary>The same where the address is a constant.</summary>
        Constant,
        /// <summary>Leave with a record.</summary>
        Leave,
        /// <summary>As Leave, the record being a link whose site is bound here.</summary>
        Link,
        /// <summary>Go to another page by the jump table.</summary>
        Table,
        /// <summary>What a call goes to whose follower is behind it.</summary>
        Call,
        /// <summary>The same for the address in R10.</summary>
        IndirectCall,
    }

    // What is executed as often as the rest; all else is put elsewhere.
    private static bool IsNear(ColdKind kind) => kind is ColdKind.Table or ColdKind.Call or ColdKind.IndirectCall;

    /// <summary>Code that is emitted behind the block, or elsewhere.</summary>
    private struct Cold
    {
        public ColdKind Kind;
        public nint Site, Site2;
        public int Record, TagOffset, Live, Check;
        public bool SpillToMemory, Write, Backward, ByTable;
        public FlagSource Source;
        public ulong Target;
    }

    private int TlbOffset => Interpreter.StateBytes + (variant % 3 * Interpreter.TlbEntries * sizeof(TlbEntry));

    // The instruction behind the next conditional branch from k on, or the block's end: what is counted together, for it runs together.
    private int SegmentEnd(int k)
    {
        while (k < count && treatments[k++] != Treatment.ConditionalBranch)
        {
        }
        return k;
    }

    /// <summary>Counts the instructions from <paramref name="k"/> to the next conditional branch; exits on the way take back what has not run.</summary>
    private void EmitCount(int k)
    {
        int n = SegmentEnd(k) - k;
        if (n != 0)
            a.AddToCount(cache.Thunks.Amount(n));
    }

    private void EmitBody()
    {
        for (int k = 0; k < count; k++)
        {
            ref Instruction i = ref code[k];
            if (stackMoves != 0 && k + 1 < count && live[k + 1] == 0 && MovesStack(k, out int move))
            {
                marks[k] = a.Here;
                stackMoves += move;
                continue;
            }
            if (!LeavesStack(k))
                SettleStack();
            nint start = marks[k] = a.Here;
            if (IsBeforePop(k))
                continue;
            source = sources[k];
            int records = cache.RecordCount, colds = cold.Count;
            bool done = treatments[k] switch
            {
                Treatment.Integer => EmitPlain(i, k, start),
                Treatment.Vector => IsLoaded(i) ? EmitPlain(i, k, start) : !vectors && EmitLeave(ExitKind.NeedsVectors, i.IP, 0),
                Treatment.Nothing => true,
                Treatment.Lea => EmitLea(i),
                Treatment.Push => EmitPush(i, k, start),
                Treatment.PushFlags => EmitPushFlags(i, k, start),
                Treatment.InterruptFlag => EmitSystemFlag(i, k),
                Treatment.BitString => EmitBitString(i, k, start),
                Treatment.ReadSegment => EmitReadSegment(i),
                Treatment.SwapGs => EmitSwapGs(),
                Treatment.AccessFlag => EmitSystemFlag(i, k),
                Treatment.AccessSwitch => EmitAccessSwitch(i),
                Treatment.SystemCall => EmitSystemCall(i),
                Treatment.SystemReturn => EmitSystemReturn(i),
                Treatment.ReadControl => EmitReadControl(i),
                Treatment.Cpuid => EmitCpuid(i, k),
                Treatment.String => EmitRepeat(i, k),
                Treatment.Pop => EmitPop(i, k, start),
                Treatment.Leave => EmitLeaveInstruction(i, k, start),
                Treatment.Divide => EmitDivide(i, k, start),
                Treatment.Branch => EmitGoto(i.NearBranchTarget, i.IP),
                Treatment.ConditionalBranch => EmitConditional(i),
                Treatment.IndirectBranch => EmitIndirect(i, k, start, call: false),
                Treatment.IndirectCall => EmitIndirect(i, k, start, call: true),
                Treatment.Call => EmitCall(i, k, start),
                Treatment.Return => EmitReturn(i, k, start),
                _ => false,
            };
            if (!done)
            {
                // Not in this form after all, or never: one step in the interpreter.
                a.Rewind(start);
                cache.RecordCount = records;
                cold.RemoveRange(colds, cold.Count - colds);
                int record = cache.AddRecord(new ExitRecord { Kind = ExitKind.Interpret, Rip = i.IP });
                EmitExit(record);
                if ((k < count - 1 || fallsThrough) && !uses[k].InGroup)
                    cache.Record((uint)record)->Next = a.Here;
            }
            NoteAhead(records, SegmentEnd(k) - k);
            if (treatments[k] == Treatment.ConditionalBranch && done)
                EmitCount(k + 1);
        }
        SettleStack();
        marks[count] = a.Here;
        if (fallsThrough)
        {
            // What ended the block is not an instruction; or it goes on in the next page and has a block of its own.
            if (count == 0 || (!crossing && count < MaxInstructions && IsLinkable(end)))
                EmitLeave(ExitKind.Interpret, end, 0);
            else
                EmitGoto(end, end - 1);
        }
    }

    /// <summary>Moves RSP by so many bytes: at once, or with what follows and neither leaves nor looks at RSP.</summary>
    private void MoveStack(int k, int bytes)
    {
        stackMoves += bytes;
        // Where an exit goes on behind the instruction, RSP has been moved.
        if (!uses[k].InGroup && !(uses[k].Role == 2 && treatments[k] is Treatment.Push or Treatment.Pop))
            SettleStack();
    }

    private void SettleStack()
    {
        if (stackMoves != 0)
            a.Lea(Host.R15, Host.R15, Host.None, 0, stackMoves);
        stackMoves = 0;
    }

    // Whether an instruction neither leaves nor looks at RSP itself.
    private bool LeavesStack(int k) => uses[k].Role == 2 && treatments[k] switch
    {
        Treatment.Push or Treatment.Pop => code[k].Op0Register != Register.RSP,
        Treatment.Call or Treatment.Return => true,
        _ => false,
    };

    // Whether an instruction adds a constant to RSP or takes one from it.
    private bool MovesStack(int k, out int move)
    {
        ref Instruction i = ref code[k];
        bool adds = i.Code is Code.Add_rm64_imm8 or Code.Add_rm64_imm32;
        bool moves = treatments[k] == Treatment.Integer && (adds || i.Code is Code.Sub_rm64_imm8 or Code.Sub_rm64_imm32) && i.Op0Register == Register.RSP;
        long value = moves ? (long)i.GetImmediate(1) : 0;
        move = (int)(adds ? value : -value);
        return moves && Math.Abs(value) <= 1 << 20;
    }

    /// <summary>
    /// Whether RSP is moved before something is popped, with flags that may be live: then it is moved behind the check, which would overwrite them (<see cref="Reach(int, nint, int, bool, bool, int, bool, bool)"/>).
    /// </summary>
    private bool IsBeforePop(int k) =>
        !ungrouped && k + 1 < count && live[k + 1] != 0 && !uses[k].InGroup && MovesStack(k, out _)
        && ((treatments[k + 1] == Treatment.Pop && uses[k + 1].Role == 1) || treatments[k + 1] == Treatment.Return);

    // Exits that repeat an instruction are told how many have been counted that have not run.
    private void NoteAhead(int first, int ahead)
    {
        for (int r = first; r < cache.RecordCount; r++)
            if (cache.Record((uint)r)->Kind is ExitKind.Memory or ExitKind.Interpret or ExitKind.Division or ExitKind.NeedsVectors)
                cache.Record((uint)r)->Ahead += ahead;
    }

    private void EmitExit(int record)
    {
        a.Constant(Host.R11, (uint)record);
        a.Jmp(cache.Thunks.Exit(VectorLevel.Of(variant)));
    }

    private bool EmitLeave(ExitKind kind, ulong rip, nint next)
    {
        EmitExit(cache.AddRecord(new ExitRecord { Kind = kind, Rip = rip, Next = next }));
        return true;
    }

    private void EmitCold(in Cold c)
    {
        switch (c.Kind)
        {
            case ColdKind.Slow:
                a.Bind(c.Site);
                if (c.Check != 0)
                {
                    EmitSlotXor(c.Check);
                    a.Constant(Host.R11, (uint)c.Check);
                    a.Jmp(cache.Thunks.Again(variant % 3, c.Write));
                }
                if (c.Site2 != 0)
                    a.Bind(c.Site2);
                if (c.Check == 0)
                    a.RM(0x33, Host.R10, Host.R11, Host.None, 0, c.TagOffset, gs: true);
                else if (c.Site2 != 0)
                    EmitSlotXor(c.Check);
                if (c.Check != 0)
                    cache.Site(c.Check)->Leave = a.Here;
                goto case ColdKind.Constant;
            case ColdKind.Constant:
                if (c.Kind == ColdKind.Constant)
                {
                    a.Bind(c.Site);
                    a.Constant(Host.R10, c.Target);
                }
                EmitRestoreFlags(c.Live, c.SpillToMemory);
                source = c.Source;
                if (source.Origin != FlagOrigin.None)
                    EmitFlagsAgain();
                if (cache.Record((uint)c.Record)->Group)
                {
                    nint site = a.Jmp();
                    a.Bind(site);
                    cache.Record((uint)c.Record)->Next = site;
                }
                EmitExit(c.Record);
                break;
            case ColdKind.Leave:
            case ColdKind.Link:
                a.Bind(c.Site);
                if (c.Site2 != 0)
                    a.Bind(c.Site2);
                EmitExit(c.Record);
                break;
            case ColdKind.Call:
                a.Bind(c.Site);
                EmitPopReturn();
                EmitGoto(c.Target, c.Backward, c.ByTable);
                break;
            case ColdKind.IndirectCall:
                a.Bind(c.Site);
                EmitPopReturn();
                EmitIndirectJump(c.Record);
                break;
            default:
                a.Bind(c.Site);
                EmitTableJump(c.Target);
                break;
        }
    }

    // Registers ------------------------------------------------------------------------------------------------------

    private static int GuestNumber(Register r) => CpuOperand(r) >> 3;

    private static int CpuOperand(Register r) => OperandDecoder.RegisterOperand(r);

    private static bool IsHighByte(Register r) => r is >= Register.AH and <= Register.BH;

    private static Register Sized(int host, int size) => size switch
    {
        1 => host < 4 ? Register.AL + host : Register.SPL + (host - 4),
        2 => Register.AX + host,
        4 => Register.EAX + host,
        _ => Register.RAX + host,
    };

    // Host register that holds a guest register, loaded into the scratch register if it lives in memory.
    private int Use(int guest, int scratch)
    {
        int home = Homes.OfGuest[guest];
        if (home != Host.None)
            return home;
        a.LoadFrame(scratch, Frame.OfGuest[guest]);
        return scratch;
    }

    private void Assign(int guest, int host)
    {
        int home = Homes.OfGuest[guest];
        if (home != Host.None)
            a.Move(home, host);
        else
            a.StoreFrame(Frame.OfGuest[guest], host);
    }

    // Memory ---------------------------------------------------------------------------------------------------------

    /// <summary>
    /// <paramref name="to"/> = offset of the memory operand, without its segment, cut to 32 bits if <paramref name="narrow"/>. Uses R10 and R11; keeps flags.
    /// </summary>
    private void EmitAddress(in Instruction i, int to = Host.R10, bool narrow = false, int move = 0)
    {
        ulong displacement = i.MemoryDisplacement64 + (ulong)(long)move;
        if (i.IsIPRelativeMemoryOperand)
        {
            a.Constant(to, narrow ? (uint)displacement : displacement);
            return;
        }
        Register b = i.MemoryBase, x = i.MemoryIndex;
        bool wide = !(b.IsGPR32() || x.IsGPR32() || (b == Register.None && x == Register.None && i.MemoryDisplSize == 4 && IsAddress32(i)));
        if (b == Register.None && x == Register.None)
        {
            a.Constant(to, wide && !narrow ? displacement : (uint)displacement);
            return;
        }
        int hostBase = b == Register.None ? Host.None : Use(b.GetNumber(), Host.R10);
        int hostIndex = x == Register.None ? Host.None : Use(x.GetNumber(), Host.R11);
        int scale = i.MemoryIndexScale switch { 2 => 1, 4 => 2, 8 => 3, _ => 0 };
        if (hostIndex == Host.None && displacement == 0 && wide && !narrow)
            a.Move(to, hostBase);
        else
            a.Lea(to, hostBase, hostIndex, scale, (int)displacement, wide && !narrow);
    }

    // A 32-bit absolute address is one with an address-size prefix; without it the displacement is sign-extended already.
    private static bool IsAddress32(in Instruction i) => i.MemoryDisplacement64 <= uint.MaxValue;

    private int SegmentOffset(in Instruction i) => i.MemorySegment switch
    {
        Register.FS => Offset(&state->Fs.Base),
        Register.GS => Offset(&state->Gs.Base),
        _ => -1,
    };

    /// <summary>
    /// Turns the address in R10 into a host address, or leaves. Keeps the flags in <paramref name="liveFlags"/> and all registers but R10, R11 and,
    /// with live flags, R14 (unless it is asked to spill to memory).
    /// </summary>
    private void EmitCheck(ulong rip, nint retry, int size, bool write, int alignment, int liveFlags, int segment, bool spillToMemory = false, bool indexed = false, int check = 0, bool relative = false)
    {
        int tag = TlbOffset + (write ? 16 : 0);
        bool again = source.Origin != FlagOrigin.None;
        int saved = again ? 0 : liveFlags;
        EmitSaveFlags(saved, spillToMemory);
        if (segment >= 0)
            a.RM(0x03, Host.R10, Host.None, Host.None, 0, segment, gs: true);
        if (check != 0)
        {
            EmitSlotXor(check);
        }
        else
        {
            EmitSearch();
            a.RM(0x33, Host.R10, Host.R11, Host.None, 0, tag, gs: true);
        }
        nint slow = EmitLimit(4096 - size), slow2 = 0, going = a.Here;
        if (alignment != 0)
            slow2 = EmitAlignment(alignment);
        // Where R11 is free the two loads do not wait for each other.
        (int load, int to) = indexed ? (0x8B, Host.R11) : (0x03, Host.R10);
        if (check != 0)
            a.RM(load, to, Host.None, Host.None, 0, CheckSite.SlotOf(check) + 8, gs: true);
        else
            a.RM(load, to, Host.R11, Host.None, 0, tag + 8, gs: true);
        if (check != 0)
        {
            cache.SetCheck(check, new CheckSite
            {
                Continue = going,
                Limit = (ulong)(4096 - size),
                Misses = CheckSite.Patience,
                Relative = relative,
                Instruction = Physical(rip),
                Linear = linear,
                Gpa = gpa,
                Variant = variant,
            });
        }
        if (again && liveFlags != 0)
            EmitFlagsAgain();
        EmitRestoreFlags(saved, spillToMemory);
        int record = cache.AddRecord(new ExitRecord
        {
            Kind = ExitKind.Memory,
            Rip = rip,
            Retry = retry,
            Size = size,
            Write = write,
            Alignment = alignment,
            Check = check,
        });
        cold.Add(new Cold { Kind = ColdKind.Slow, Site = slow, Site2 = slow2, Record = record, Check = check, TagOffset = tag, Write = write, Live = saved, SpillToMemory = spillToMemory, Source = source });
    }

    private void EmitSlotXor(int check) => a.RM(0x33, Host.R10, Host.None, Host.None, 0, CheckSite.SlotOf(check), gs: true);

    private nint EmitLimit(int limit)
    {
        a.RR(0x81, 7, Host.R10);
        a.Int32(limit);
        return a.Jcc(Condition.A);
    }

    // test r10b, alignment
    private nint EmitAlignment(int alignment)
    {
        a.RR(0xF6, 0, Host.R10, wide: false);
        a.Byte(alignment);
        return a.Jcc(Condition.Ne);
    }

    /// <summary>For an access in a loop or of a block that runs often, a check that keeps its page to itself; 0: it searches.</summary>
    private int AddCheck(in Instruction i) => (loops || temperature > Temperature.Settled) && !ungrouped && !(Searching.Count != 0 && Searching.Contains(Physical(i.IP))) ? cache.AddCheck() : 0;

    private ulong Physical(ulong ip) => (gpa & ~4095UL) | (ip & 4095);

    /// <summary>R11 = the offset of the entry for the address in R10: bits 12.. times the size of an entry.</summary>
    private void EmitSearch()
    {
        if (Bmi2.IsSupported)
        {
            a.RotateRight(Host.R11, Host.R10, 7);
        }
        else
        {
            a.RR(0x8B, Host.R11, Host.R10, wide: false);
            a.RR(0xC1, 5, Host.R11, wide: false);
            a.Byte(7);
        }
        a.RR(0x81, 4, Host.R11, wide: false);
        a.Int32(Thunks.EntryMask);
    }

    private void EmitSaveFlags(int liveFlags, bool spillToMemory)
    {
        if (liveFlags == 0)
            return;
        if (spillToMemory)
            a.StoreFrame(Frame.Spill, Host.Rax);
        else
            a.Move(Host.R14, Host.Rax);
        a.Lahf();
        if ((liveFlags & FlagEffects.Overflow) != 0)
            a.SetOverflowAl();
    }

    private void EmitRestoreFlags(int liveFlags, bool spillToMemory)
    {
        if (liveFlags == 0)
            return;
        if ((liveFlags & FlagEffects.Overflow) != 0)
            a.RestoreOverflow();
        a.Sahf();
        if (spillToMemory)
            a.LoadFrame(Host.Rax, Frame.Spill);
        else
            a.Move(Host.Rax, Host.R14);
    }

    /// <summary>Tells the exits of an instruction, from record <paramref name="first"/> on, where the next one starts.</summary>
    private void SetNext(int first, int k)
    {
        // The interpreter may change what the group's check has found.
        if (uses[k].InGroup)
            return;
        for (int r = first; r < cache.RecordCount; r++)
            cache.Record((uint)r)->Next = a.Here;
    }

    // Instructions ---------------------------------------------------------------------------------------------------

    // What an instruction does with an operand. Iced knows it of all; of the most frequent ones it takes less time to see.
    private OpAccess AccessOf(in Instruction i, int operand) => i.Mnemonic switch
    {
        Mnemonic.Cmp or Mnemonic.Test => OpAccess.Read,
        Mnemonic.Mov or Mnemonic.Movzx or Mnemonic.Movsx or Mnemonic.Movsxd => operand == 0 ? OpAccess.Write : OpAccess.Read,
        Mnemonic.Add or Mnemonic.Sub or Mnemonic.And or Mnemonic.Or or Mnemonic.Xor => operand == 0 ? OpAccess.ReadWrite : OpAccess.Read,
        _ => infos.GetInfo(i, InstructionInfoOptions.NoRegisterUsage).GetOpAccess(operand),
    };

    private bool EmitPlain(in Instruction i, int k, nint start)
    {
        int first = cache.RecordCount, memory = -1;
        Span<int> guests = stackalloc int[4], scratches = stackalloc int[4];
        int used = 0, high = -1;
        for (int n = 0; n < i.OpCount; n++)
        {
            if (i.GetOpKind(n) == OpKind.Memory)
            {
                memory = n;
                continue;
            }
            if (i.GetOpKind(n) != OpKind.Register || !i.GetOpRegister(n).IsGPR())
                continue;
            if (IsHighByte(i.GetOpRegister(n)))
            {
                high = n;
                continue;
            }
            int guest = GuestNumber(i.GetOpRegister(n));
            if (Homes.OfGuest[guest] == Host.None && !guests[..used].Contains(guest))
                guests[used++] = guest;
        }
        if (used != 0 && memory < 0 && high < 0 && EmitInFrame(i))
            return true;
        bool grouped = uses[k].PointerLive || uses[k].InGroup;
        ReadOnlySpan<int> free = memory < 0 ? [Host.R10, Host.R11, Host.R14]
            : uses[k].Role != 0 ? [Host.R11, Host.R10]
            : [Host.R11, Host.R14];
        if (used > (grouped ? Math.Min(free.Length, memory >= 0 && uses[k].Role == 0 ? 1 : 2) : free.Length))
            return false;
        for (int n = 0; n < used; n++)
            scratches[n] = free[n];

        Instruction copy = i;
        copy.SegmentPrefix = Register.None;
        if (memory >= 0)
        {
            OpAccess access = AccessOf(i, memory);
            bool write = access is OpAccess.Write or OpAccess.ReadWrite or OpAccess.CondWrite or OpAccess.ReadCondWrite;
            if (!write && access is not (OpAccess.Read or OpAccess.CondRead))
                return false;
            int size = i.MemorySize.GetSize();
            bool aligned = MustBeAligned(i, treatments[k]);
            (int pointer, int distance) = Reach(k, start, size, write, aligned, 0, stack: false, spillToMemory: false, mayIndex: used == 0 && high < 0, out Reached form);
            if (form == Reached.Relative)
            {
                // The guest's own operand, with what leads to the host's memory in R11.
                if (i.MemoryBase != Register.None)
                {
                    copy.MemoryBase = Sized(Homes.OfGuest[i.MemoryBase.GetNumber()], 8);
                    copy.MemoryIndex = Register.R11;
                    copy.MemoryIndexScale = 1;
                }
                else
                {
                    copy.MemoryBase = Register.R11;
                    copy.MemoryIndex = Sized(Homes.OfGuest[i.MemoryIndex.GetNumber()], 8);
                }
            }
            else
            {
                copy.MemoryBase = Sized(pointer, 8);
                copy.MemoryIndex = form == Reached.Indexed ? Register.R11 : Register.None;
                copy.MemoryIndexScale = 1;
                copy.MemoryDisplacement64 = (ulong)distance;
                copy.MemoryDisplSize = distance == 0 ? 0 : distance is >= -128 and <= 127 ? 1 : 8;
            }
        }
        // AH..BH cannot be encoded together with a pointer in R10 or R14: R11 stands in for them.
        int highHost = memory >= 0 && high >= 0 ? i.GetOpRegister(high) - Register.AH : -1;
        if (highHost >= 0)
        {
            if (!Bmi2.IsSupported || used != 0)
                return false;
            if (AccessOf(i, high) != OpAccess.Write)
                a.RotateRight(Host.R11, highHost, 8);
            copy.SetOpRegister(high, Register.R11L);
        }
        int loaded = 0, written = 0;
        for (int n = 0; n < i.OpCount; n++)
        {
            if (i.GetOpKind(n) != OpKind.Register || !i.GetOpRegister(n).IsGPR() || IsHighByte(i.GetOpRegister(n)))
                continue;
            Register r = i.GetOpRegister(n);
            int guest = GuestNumber(r), host = Homes.OfGuest[guest];
            if (host == Host.None)
            {
                int slot = guests[..used].IndexOf(guest);
                host = scratches[slot];
                OpAccess access = AccessOf(i, n);
                if ((access != OpAccess.Write || r.GetSize() < 4) && (loaded & 1 << slot) == 0)
                {
                    a.LoadFrame(host, Frame.OfGuest[guest]);
                    loaded |= 1 << slot;
                }
                if (access is not (OpAccess.Read or OpAccess.CondRead or OpAccess.None))
                    written |= 1 << slot;
            }
            copy.SetOpRegister(n, Sized(host, r.GetSize()));
        }
        if (!encoder.TryEncode(copy, (ulong)a.Here, out _, out _))
            return false;
        if (highHost >= 0 && AccessOf(i, high) is not (OpAccess.Read or OpAccess.CondRead))
        {
            a.RotateRight(highHost, highHost, 8, wide: true);
            a.RR(0x8A, highHost, Host.R11, wide: false);
            a.RotateRight(highHost, highHost, 56, wide: true);
        }
        for (int n = 0; n < used; n++)
            if ((written & 1 << n) != 0)
                a.StoreFrame(Frame.OfGuest[guests[n]], scratches[n]);
        SetNext(first, k);
        return true;
    }

    private bool EmitLea(in Instruction i)
    {
        if (i.MemoryBase == Register.EIP)
            return false;
        int guest = GuestNumber(i.Op0Register), size = i.Op0Register.GetSize();
        int home = Homes.OfGuest[guest];
        EmitAddress(i, home != Host.None ? home : Host.R10, size == 4);
        if (home == Host.None)
            a.StoreFrame(Frame.OfGuest[guest], Host.R10);
        return true;
    }

    private bool EmitPush(in Instruction i, int k, nint start)
    {
        int first = cache.RecordCount;
        bool fromMemory = i.Op0Kind == OpKind.Memory;
        if (fromMemory)
        {
            if (i.MemoryBase == Register.EIP || i.MemorySize.GetSize() != 8)
                return false;
            EmitAddress(i);
            EmitCheck(i.IP, start, 8, write: false, alignment: 0, live[k], SegmentOffset(i), check: AddCheck(i));
            a.RM(0x8B, Host.R14, Host.R10, Host.None, 0, 0);
            // As in EmitIndirect.
            start = a.Here;
        }
        (int pointer, int distance) = Reach(k, start, 8, write: true, aligned: false, -8, stack: true, spillToMemory: fromMemory);
        if (fromMemory)
        {
            a.RM(0x89, Host.R14, Host.R10, Host.None, 0, 0);
        }
        else if (i.Op0Kind == OpKind.Register)
        {
            a.RM(0x89, Use(GuestNumber(i.Op0Register), Host.R11), pointer, Host.None, 0, distance);
        }
        else
        {
            a.RM(0xC7, 0, pointer, Host.None, 0, distance);
            a.Int32((int)i.GetImmediate(0));
        }
        MoveStack(k, -8);
        SetNext(first, k);
        return true;
    }

    private bool EmitPop(in Instruction i, int k, nint start)
    {
        int first = cache.RecordCount, guest = GuestNumber(i.Op0Register);
        (int pointer, int distance) = Reach(k, start, 8, write: false, aligned: false, 0, stack: true);
        int home = Homes.OfGuest[guest];
        if (home == Host.None || guest == 4)
        {
            a.RM(0x8B, Host.R11, pointer, Host.None, 0, distance);
            if (guest != 4)
                MoveStack(k, 8);
            Assign(guest, Host.R11);
        }
        else
        {
            a.RM(0x8B, home, pointer, Host.None, 0, distance);
            MoveStack(k, 8);
        }
        SetNext(first, k);
        return true;
    }

    private bool EmitLeaveInstruction(in Instruction i, int k, nint start)
    {
        int first = cache.RecordCount;
        a.Move(Host.R10, Host.Rbp);
        EmitCheck(i.IP, start, 8, write: false, alignment: 0, live[k], -1, check: AddCheck(i));
        a.Lea(Host.R15, Host.Rbp, Host.None, 0, 8);
        a.RM(0x8B, Host.Rbp, Host.R10, Host.None, 0, 0);
        SetNext(first, k);
        return true;
    }

    /// <summary>
    /// A division that cannot fault runs as itself: unsigned with a high half below the divisor; signed with a sign-extended dividend and a divisor
    /// that is neither 0 nor -1.
    /// </summary>
    private bool EmitDivide(in Instruction i, int k, nint start)
    {
        int first = cache.RecordCount;
        bool signed = i.Mnemonic == Mnemonic.Idiv;
        bool wide = i.Code is Code.Div_rm64 or Code.Idiv_rm64;
        int divisor;
        if (i.Op0Kind == OpKind.Memory)
        {
            if (i.MemoryBase == Register.EIP)
                return false;
            (int pointer, int distance) = Reach(k, start, wide ? 8 : 4, write: false, aligned: false, 0, stack: false);
            a.RM(0x8B, Host.R10, pointer, Host.None, 0, distance, wide);
            divisor = Host.R10;
        }
        else
        {
            divisor = Use(GuestNumber(i.Op0Register), Host.R10);
        }
        int record = cache.AddRecord(new ExitRecord { Kind = ExitKind.Division, Rip = i.IP });
        nint site, site2 = 0;
        if (signed)
        {
            a.RR(0x8B, Host.R11, Host.Rax, wide);
            a.RR(0xC1, 7, Host.R11, wide);
            a.Byte(wide ? 63 : 31);
            a.RR(0x3B, Host.R11, Host.Rdx, wide);
            site = a.Jcc(Condition.Ne);
            a.Lea(Host.R11, divisor, Host.None, 0, 1, wide);
            a.RR(0x83, 7, Host.R11, wide);
            a.Byte(1);
            site2 = a.Jcc(Condition.Be);
        }
        else
        {
            a.RR(0x3B, Host.Rdx, divisor, wide);
            site = a.Jcc(Condition.Ae);
        }
        a.RR(0xF7, signed ? 7 : 6, divisor, wide);
        cold.Add(new Cold { Kind = ColdKind.Leave, Site = site, Site2 = site2, Record = record });
        SetNext(first, k);
        return true;
    }
}
