using System.Runtime.CompilerServices;

namespace Aerostat.Cpu;

/// <summary>PUSH and POP of 64 bits in 64-bit code.</summary>
internal static unsafe class LongStackHandlers
{
    public static Outcome Push<TSource>(Interpreter cpu, CpuState* s, MicroOp* op)
        where TSource : struct, ISource
    {
        ulong rsp = s->Gpr[4] - 8;
        if (!TSource.TryRead<ulong>(cpu, s, op, out ulong v))
            return StackHandlers<ulong>.Push<TSource>(cpu, s, op);
        if (!FastMemory.TryMap<ulong>(s, rsp, out byte* p))
            return StackHandlers<ulong>.Push<TSource>(cpu, s, op);
        *(ulong*)p = v;
        s->Gpr[4] = rsp;
        return Outcome.Next;
    }

    public static Outcome PopRegister(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        ulong rsp = s->Gpr[4];
        if (!FastMemory.TryLoad<ulong>(s, rsp, out ulong v))
            return StackHandlers<ulong>.PopRegister(cpu, s, op);
        s->Gpr[4] = rsp + 8;
        *(ulong*)((byte*)s + op->Dst) = v;
        return Outcome.Next;
    }

    public static Outcome Leave(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        ulong frame = s->Gpr[5];
        if (!FastMemory.TryLoad<ulong>(s, frame, out ulong v))
            return StackHandlers<ulong>.Leave(cpu, s, op);
        s->Gpr[4] = frame + 8;
        s->Gpr[5] = v;
        return Outcome.Next;
    }
}

/// <summary>The stack instructions in every mode, by operand size.</summary>
internal static unsafe class StackHandlers<T>
    where T : unmanaged
{
    [MethodImpl(MethodImplOptions.NoInlining)]
    public static Outcome Push<TSource>(Interpreter cpu, CpuState* s, MicroOp* op)
        where TSource : struct, ISource =>
        TSource.Read<T>(cpu, s, op, out ulong v) ? cpu.Push<T>(s, v) : Outcome.Fault;

    [MethodImpl(MethodImplOptions.NoInlining)]
    public static Outcome PopRegister(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if (!cpu.Pop<T>(s, out ulong v))
            return Outcome.Fault;
        Interpreter.WriteRegister<T>(s, op->Dst, v);
        return Outcome.Next;
    }

    /// <summary>The address is made with the stack pointer as it is after the pop (Intel SDM vol. 2B, POP).</summary>
    public static Outcome PopMemory(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        ulong rsp = s->Gpr[4];
        if (!cpu.Pop<T>(s, out ulong v))
            return Outcome.Fault;
        Outcome o = cpu.StoreOperand<T>(s, op, v);
        if (o == Outcome.Fault)
            s->Gpr[4] = rsp;
        return o;
    }

    public static Outcome PushAll(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        ulong rsp = s->Gpr[4];
        Outcome result = Outcome.Next;
        for (int k = 0; k < 8; k++)
        {
            Outcome o = cpu.Push<T>(s, k == 4 ? rsp : s->Gpr[k]);
            if (o == Outcome.Fault)
            {
                s->Gpr[4] = rsp;
                return o;
            }
            result |= o;
        }
        return result;
    }

    public static Outcome PopAll(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        ulong* values = stackalloc ulong[8];
        for (int k = 0; k < 8; k++)
        {
            if (!cpu.PeekStack<T>(s, k * sizeof(T), out values[k]))
                return Outcome.Fault;
        }
        for (int k = 0; k < 8; k++)
        {
            // The stack pointer's copy is thrown away.
            if (k != 3)
                Interpreter.WriteRegister<T>(s, (byte)((7 - k) * 8), values[k]);
        }
        Interpreter.MoveStackPointer(s, 8 * sizeof(T));
        return Outcome.Next;
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    public static Outcome Leave(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        ulong rsp = s->Gpr[4];
        s->Gpr[4] = (rsp & ~s->StackMask) | (s->Gpr[5] & s->StackMask);
        if (!cpu.Pop<T>(s, out ulong v))
        {
            s->Gpr[4] = rsp;
            return Outcome.Fault;
        }
        Interpreter.WriteRegister<T>(s, 5 * 8, v);
        return Outcome.Next;
    }

    /// <summary>ENTER: Immediate is the room to make, Aux the nesting level.</summary>
    public static Outcome Enter(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        ulong rsp = s->Gpr[4];
        int level = (int)op->Aux & 31;
        Outcome result = cpu.Push<T>(s, s->Gpr[5]);
        if (result == Outcome.Fault)
            return result;
        ulong frame = s->Gpr[4], bp = s->Gpr[5];
        for (int k = 1; k <= level; k++)
        {
            ulong v = frame;
            if (k < level)
            {
                bp -= (ulong)sizeof(T);
                if (!cpu.Load<T>(s, cpu.SegmentLinear(s, Seg.Ss, bp & s->StackMask, sizeof(T), write: false), Seg.Ss, out v))
                    return Undo(s, rsp);
            }
            Outcome o = cpu.Push<T>(s, v);
            if (o == Outcome.Fault)
                return Undo(s, rsp);
            result |= o;
        }
        Interpreter.MoveStackPointer(s, -(long)op->Immediate);
        // A write at the new top of the stack must be possible (Intel SDM vol. 2A, ENTER).
        if (cpu.MapRmwAt<T>(s, cpu.SegmentLinear(s, Seg.Ss, s->Gpr[4] & s->StackMask, sizeof(T), write: true), Seg.Ss) == null)
            return Undo(s, rsp);
        result |= cpu.FinishRmw(s);
        Interpreter.WriteRegister<T>(s, 5 * 8, frame);
        return result;
    }

    private static Outcome Undo(CpuState* s, ulong rsp)
    {
        s->Gpr[4] = rsp;
        return Outcome.Fault;
    }
}
