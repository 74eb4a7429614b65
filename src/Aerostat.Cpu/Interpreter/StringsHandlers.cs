using System.Runtime.CompilerServices;
using Aerostat.X86;

namespace Aerostat.Cpu;

/// <summary>
/// MOVS, STOS, LODS, SCAS, CMPS of one element size, alone or repeated. A repeated instruction keeps RCX, RSI and RDI exact after each piece of
/// work, so that a fault or an interruption finds them as the architecture wants (Intel SDM vol. 1 section 7.3.9.2). Pieces stay within one
/// page on each side.
/// </summary>
internal static unsafe class StringHandlers<T>
    where T : unmanaged
{
    // SAFETY: Peek gives the host address of a page; Run keeps every piece inside it, in the direction of DF.
    private const ulong ByteBudget = 64 << 10;
    /// <summary>Bytes from which on clearing a page is worth the question whether it is clear.</summary>
    public const ulong WorthAsking = 2048;
    private const int SlowBudget = 4096;
    private const byte Rcx = 1 * 8, Rsi = 6 * 8, Rdi = 7 * 8;

    public static Outcome Move(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        ulong mask = AddressMask(op), si = s->Gpr[6] & mask, di = s->Gpr[7] & mask;
        if (!cpu.Load<T>(s, cpu.SegmentLinear(s, op->Segment, si, sizeof(T), write: false), op->Segment, out ulong v))
            return Outcome.Fault;
        Outcome o = cpu.Store<T>(s, cpu.SegmentLinear(s, Seg.Es, di, sizeof(T), write: true), Seg.Es, v);
        if (o != Outcome.Fault)
        {
            Advance(s, op, Rsi, si, 1);
            Advance(s, op, Rdi, di, 1);
        }
        return o;
    }

    public static Outcome Store(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        ulong di = s->Gpr[7] & AddressMask(op);
        Outcome o = cpu.Store<T>(s, cpu.SegmentLinear(s, Seg.Es, di, sizeof(T), write: true), Seg.Es, s->Gpr[0]);
        if (o != Outcome.Fault)
            Advance(s, op, Rdi, di, 1);
        return o;
    }

    public static Outcome Load(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        ulong si = s->Gpr[6] & AddressMask(op);
        if (!cpu.Load<T>(s, cpu.SegmentLinear(s, op->Segment, si, sizeof(T), write: false), op->Segment, out ulong v))
            return Outcome.Fault;
        Interpreter.WriteRegister<T>(s, 0, v);
        Advance(s, op, Rsi, si, 1);
        return Outcome.Next;
    }

    public static Outcome Scan(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        ulong di = s->Gpr[7] & AddressMask(op);
        if (!cpu.Load<T>(s, cpu.SegmentLinear(s, Seg.Es, di, sizeof(T), write: false), Seg.Es, out ulong v))
            return Outcome.Fault;
        IntegerFlags.Compare<T>(s, IntegerFlags.Cut<T>(s->Gpr[0]), v);
        Advance(s, op, Rdi, di, 1);
        return Outcome.Next;
    }

    public static Outcome Compare(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        ulong mask = AddressMask(op), si = s->Gpr[6] & mask, di = s->Gpr[7] & mask;
        if (!cpu.Load<T>(s, cpu.SegmentLinear(s, op->Segment, si, sizeof(T), write: false), op->Segment, out ulong a)
            || !cpu.Load<T>(s, cpu.SegmentLinear(s, Seg.Es, di, sizeof(T), write: false), Seg.Es, out ulong b))
            return Outcome.Fault;
        IntegerFlags.Compare<T>(s, a, b);
        Advance(s, op, Rsi, si, 1);
        Advance(s, op, Rdi, di, 1);
        return Outcome.Next;
    }

    public static Outcome RepeatMove(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        ulong mask = AddressMask(op), bytes = Budget(cpu, s, ByteBudget);
        int slow = 0;
        for (ulong count = s->Gpr[1] & mask; count != 0;)
        {
            ulong si = s->Gpr[6] & mask, di = s->Gpr[7] & mask;
            ulong source = cpu.SegmentLinear(s, op->Segment, si, sizeof(T), write: false);
            ulong target = cpu.SegmentLinear(s, Seg.Es, di, sizeof(T), write: true);
            byte* from = cpu.PeekRead(s, source, out _), to = cpu.PeekWrite(s, target, out _);
            ulong n = from == null || to == null ? 0 : Math.Min(Math.Min(count, bytes / (ulong)sizeof(T)),
                Math.Min(Run(cpu, s, mask, op->Segment, si, source, write: false), Run(cpu, s, mask, Seg.Es, di, target, write: true)));
            Outcome o = Outcome.Next;
            if (n == 0)
            {
                o = Move(cpu, s, op);
                if (o == Outcome.Fault)
                    return o;
                n = 1;
                slow++;
            }
            else
            {
                if (Backward(s))
                    CopyBackward(from, to, n);
                else
                    CopyForward(from, to, n);
                Advance(s, op, Rsi, si, n);
                Advance(s, op, Rdi, di, n);
            }
            count -= n;
            WriteAddress(s, op, Rcx, count);
            bytes -= Math.Min(bytes, n * (ulong)sizeof(T));
            if (count == 0)
                return o;
            if (o != Outcome.Next || bytes < (ulong)sizeof(T) || slow >= SlowBudget || IsInterrupted(cpu, s))
                return Outcome.Repeat;
        }
        return Outcome.Next;
    }

    public static Outcome RepeatStore(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        ulong mask = AddressMask(op), bytes = Budget(cpu, s, ByteBudget);
        int slow = 0;
        cpu.holeFound = null;
        for (ulong count = s->Gpr[1] & mask; count != 0;)
        {
            ulong di = s->Gpr[7] & mask;
            ulong target = cpu.SegmentLinear(s, Seg.Es, di, sizeof(T), write: true);
            byte* to = cpu.PeekWrite(s, target, out _);
            bool isBlank = false;
            if (to == null && count >= WorthAsking / (ulong)sizeof(T) && IntegerFlags.Cut<T>(s->Gpr[0]) == 0)
            {
                if (!cpu.FindPageToClear(s, target, sizeof(T), out isBlank))
                    return Outcome.Fault;
                to = cpu.PeekWrite(s, target, out _);
            }
            ulong n = to == null && !isBlank ? 0 : Math.Min(Math.Min(count, bytes / (ulong)sizeof(T)), Run(cpu, s, mask, Seg.Es, di, target, write: true));
            Outcome o = Outcome.Next;
            if (isBlank && n != 0)
                Advance(s, op, Rdi, di, n);
            else if (n == 0)
            {
                o = Store(cpu, s, op);
                if (o == Outcome.Fault)
                    return o;
                n = 1;
                slow++;
            }
            else
            {
                byte* low = Backward(s) ? to - ((n - 1) * (ulong)sizeof(T)) : to;
                ulong v = s->Gpr[0];
                // Kernels clear pages as they give them out (Linux: init_on_alloc). One that the host does not hold is clear already. If it was asked for the
                // first of these zeros just now, all of them were stored then: the order of one instruction's string stores is its own business (Intel
                // SDM vol. 3 section 10.2.4).
                bool isClear = IntegerFlags.Cut<T>(v) == 0 && n * (ulong)sizeof(T) >= WorthAsking
                    && (cpu.holeFound == (byte*)((nuint)low & ~(nuint)4095) || cpu.Memory.IsHole((ulong)(low - cpu.Memory.HostBase)));
                if (!isClear && IntegerFlags.Cut<T>(v) == 0)
                    new Span<T>(low, (int)n).Clear();
                else if (!isClear)
                    new Span<T>(low, (int)n).Fill(*(T*)&v);
                Advance(s, op, Rdi, di, n);
            }
            count -= n;
            WriteAddress(s, op, Rcx, count);
            bytes -= Math.Min(bytes, n * (ulong)sizeof(T));
            if (count == 0)
                return o;
            if (o != Outcome.Next || bytes < (ulong)sizeof(T) || slow >= SlowBudget || IsInterrupted(cpu, s))
                return Outcome.Repeat;
        }
        return Outcome.Next;
    }

    public static Outcome RepeatLoad(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        ulong mask = AddressMask(op);
        int left = (s->SystemFlags & RFlags.Tf) != 0 ? 1 : SlowBudget;
        for (ulong count = s->Gpr[1] & mask; count != 0;)
        {
            if (Load(cpu, s, op) == Outcome.Fault)
                return Outcome.Fault;
            WriteAddress(s, op, Rcx, --count);
            if (count != 0 && (--left <= 0 || IsInterrupted(cpu, s)))
                return Outcome.Repeat;
        }
        return Outcome.Next;
    }

    /// <summary>REPE (F3) goes on while equal, REPNE (F2) while not.</summary>
    public static Outcome RepeatScan(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        ulong mask = AddressMask(op), bytes = Budget(cpu, s, ByteBudget);
        bool whileEqual = (op->Flags & MicroOpFlags.Rep) != 0;
        int slow = 0;
        for (ulong count = s->Gpr[1] & mask; count != 0;)
        {
            ulong di = s->Gpr[7] & mask;
            ulong target = cpu.SegmentLinear(s, Seg.Es, di, sizeof(T), write: false);
            byte* p = cpu.PeekRead(s, target, out _);
            ulong n = p == null ? 0 : Math.Min(Math.Min(count, bytes / (ulong)sizeof(T)), Run(cpu, s, mask, Seg.Es, di, target, write: false));
            if (n == 0)
            {
                if (Scan(cpu, s, op) == Outcome.Fault)
                    return Outcome.Fault;
                n = 1;
                slow++;
            }
            else
            {
                ulong a = IntegerFlags.Cut<T>(s->Gpr[0]), v = 0, done = 0;
                long step = Backward(s) ? -sizeof(T) : sizeof(T);
                do
                {
                    v = Interpreter.ReadAs<T>(p);
                    p += step;
                    done++;
                }
                while (done < n && (a == v) == whileEqual);
                IntegerFlags.Compare<T>(s, a, v);
                n = done;
                Advance(s, op, Rdi, di, n);
            }
            count -= n;
            WriteAddress(s, op, Rcx, count);
            if (count == 0 || (s->FlagZero == 0) != whileEqual)
                return Outcome.Next;
            bytes -= Math.Min(bytes, n * (ulong)sizeof(T));
            if (bytes < (ulong)sizeof(T) || slow >= SlowBudget || IsInterrupted(cpu, s))
                return Outcome.Repeat;
        }
        return Outcome.Next;
    }

    public static Outcome RepeatCompare(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        ulong mask = AddressMask(op), bytes = Budget(cpu, s, ByteBudget);
        bool whileEqual = (op->Flags & MicroOpFlags.Rep) != 0;
        int slow = 0;
        for (ulong count = s->Gpr[1] & mask; count != 0;)
        {
            ulong si = s->Gpr[6] & mask, di = s->Gpr[7] & mask;
            ulong source = cpu.SegmentLinear(s, op->Segment, si, sizeof(T), write: false);
            ulong target = cpu.SegmentLinear(s, Seg.Es, di, sizeof(T), write: false);
            byte* p = cpu.PeekRead(s, source, out _), q = cpu.PeekRead(s, target, out _);
            ulong n = p == null || q == null ? 0 : Math.Min(Math.Min(count, bytes / (ulong)sizeof(T)),
                Math.Min(Run(cpu, s, mask, op->Segment, si, source, write: false), Run(cpu, s, mask, Seg.Es, di, target, write: false)));
            if (n == 0)
            {
                if (Compare(cpu, s, op) == Outcome.Fault)
                    return Outcome.Fault;
                n = 1;
                slow++;
            }
            else
            {
                ulong a = 0, b = 0, done = 0;
                long step = Backward(s) ? -sizeof(T) : sizeof(T);
                do
                {
                    a = Interpreter.ReadAs<T>(p);
                    b = Interpreter.ReadAs<T>(q);
                    p += step;
                    q += step;
                    done++;
                }
                while (done < n && (a == b) == whileEqual);
                IntegerFlags.Compare<T>(s, a, b);
                n = done;
                Advance(s, op, Rsi, si, n);
                Advance(s, op, Rdi, di, n);
            }
            count -= n;
            WriteAddress(s, op, Rcx, count);
            if (count == 0 || (s->FlagZero == 0) != whileEqual)
                return Outcome.Next;
            bytes -= Math.Min(bytes, n * (ulong)sizeof(T));
            if (bytes < (ulong)sizeof(T) || slow >= SlowBudget || IsInterrupted(cpu, s))
                return Outcome.Repeat;
        }
        return Outcome.Next;
    }

    // Requests, and data breakpoints that this iteration has met.
    private static bool IsInterrupted(Interpreter cpu, CpuState* s) => Volatile.Read(ref s->Request) != 0 || s->PendingDebug != 0 || cpu.StepsIterations;

    private static ulong AddressMask(MicroOp* op) =>
        op->AddressBits == 64 ? ulong.MaxValue : op->AddressBits == 32 ? uint.MaxValue : ushort.MaxValue;

    private static bool Backward(CpuState* s) => (s->SystemFlags & RFlags.Df) != 0;

    // Under single step each element is a step of its own.
    private static ulong Budget(Interpreter cpu, CpuState* s, ulong usual) => (s->SystemFlags & RFlags.Tf) != 0 || cpu.StepsIterations ? (ulong)sizeof(T) : usual;

    // A 16-bit address leaves the upper register bits, a 32-bit one clears them.
    private static void WriteAddress(CpuState* s, MicroOp* op, byte register, ulong value)
    {
        if (op->AddressBits == 64)
            *(ulong*)((byte*)s + register) = value;
        else if (op->AddressBits == 32)
            *(ulong*)((byte*)s + register) = (uint)value;
        else
            *(ushort*)((byte*)s + register) = (ushort)value;
    }

    private static void Advance(CpuState* s, MicroOp* op, byte register, ulong from, ulong elements)
    {
        ulong distance = elements * (ulong)sizeof(T);
        WriteAddress(s, op, register, Backward(s) ? from - distance : from + distance);
    }

    /// <summary>
    /// How many elements from an offset on (in the direction of DF) lie in this page, before the address wraps, and within the segment; the
    /// first is known to be valid if it does not cross the page. 0: it does, or the address wraps inside it.
    /// </summary>
    private static ulong Run(Interpreter cpu, CpuState* s, ulong mask, int segment, ulong offset, ulong linear, bool write)
    {
        ulong inPage = linear & 4095, size = (ulong)sizeof(T), n;
        if (inPage + size > 4096 || mask - offset < size - 1)
            return 0;
        if (Backward(s))
        {
            n = Math.Min(inPage / size, offset / size) + 1;
        }
        else
        {
            n = (4096 - inPage) / size;
            if (mask != ulong.MaxValue)
                n = Math.Min(n, (mask - offset + 1) / size);
        }
        if (s->Bitness != 64 && n > 1)
        {
            ulong distance = (n - 1) * size;
            ulong last = Backward(s) ? offset - distance : offset + distance;
            ulong expected = Backward(s) ? linear - distance : linear + distance;
            if (cpu.SegmentLinear(s, segment, last, sizeof(T), write) != expected)
                return 1;
        }
        return n;
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private static void CopyForward(byte* from, byte* to, ulong n)
    {
        ulong bytes = n * (ulong)sizeof(T);
        if ((ulong)(to - from) >= bytes || to == from)
        {
            Buffer.MemoryCopy(from, to, bytes, bytes);
            return;
        }
        // The target overlaps what is still to be read: the pattern below it repeats.
        for (ulong k = 0; k < bytes; k += (ulong)sizeof(T))
            Interpreter.WriteAs<T>(to + k, Interpreter.ReadAs<T>(from + k));
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private static void CopyBackward(byte* from, byte* to, ulong n)
    {
        ulong bytes = n * (ulong)sizeof(T), back = bytes - (ulong)sizeof(T);
        if ((ulong)(from - to) >= bytes || to == from)
        {
            Buffer.MemoryCopy(from - back, to - back, bytes, bytes);
            return;
        }
        for (ulong k = 0; k < bytes; k += (ulong)sizeof(T))
            Interpreter.WriteAs<T>(to - k, Interpreter.ReadAs<T>(from - k));
    }
}
