using System.Runtime.CompilerServices;
using static Aerostat.Cpu.IntegerFlags;

namespace Aerostat.Cpu;

/// <summary>CMPXCHG and XADD.</summary>
internal static unsafe class ExchangeHandler<T>
    where T : unmanaged
{
    public static Outcome CompareRegister(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        ulong a = Cut<T>(s->Gpr[0]), v = Interpreter.ReadRegister<T>(s, op->Dst);
        if (a == v)
            Interpreter.WriteRegister<T>(s, op->Dst, Interpreter.ReadRegister<T>(s, op->Src));
        else
            Interpreter.WriteRegister<T>(s, 0, v);
        Compare<T>(s, a, v);
        return Outcome.Next;
    }

    public static Outcome CompareMemory<TAddress>(Interpreter cpu, CpuState* s, MicroOp* op)
        where TAddress : struct, IAddress
    {
        byte* p = MemoryPlace<TAddress>.Map<T>(cpu, s, op);
        if (p == null)
            return Outcome.Fault;
        ulong a = Cut<T>(s->Gpr[0]), v = Interpreter.ReadAs<T>(p);
        if (a == v)
            Interpreter.WriteAs<T>(p, Interpreter.ReadRegister<T>(s, op->Src));
        else
            Interpreter.WriteRegister<T>(s, 0, v);
        Compare<T>(s, a, v);
        return cpu.FinishRmw(s);
    }

    public static Outcome CompareLocked<TAddress>(Interpreter cpu, CpuState* s, MicroOp* op)
        where TAddress : struct, IAddress
    {
        byte* p = MemoryPlace<TAddress>.Map<T>(cpu, s, op);
        if (p == null)
            return Outcome.Fault;
        ulong a = Cut<T>(s->Gpr[0]);
        ulong v = Atomic.CompareExchange<T>(p, Interpreter.ReadRegister<T>(s, op->Src), a);
        if (a != v)
            Interpreter.WriteRegister<T>(s, 0, v);
        Compare<T>(s, a, v);
        return cpu.FinishRmw(s);
    }

    public static Outcome AddRegister(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        ulong a = Interpreter.ReadRegister<T>(s, op->Dst);
        ulong r = AddOperation.Apply<T>(s, a, Interpreter.ReadRegister<T>(s, op->Src));
        Interpreter.WriteRegister<T>(s, op->Src, a);
        Interpreter.WriteRegister<T>(s, op->Dst, r);
        return Outcome.Next;
    }

    public static Outcome AddMemory(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        byte* p = cpu.MapRmw<T>(s, op);
        if (p == null)
            return Outcome.Fault;
        ulong b = Interpreter.ReadRegister<T>(s, op->Src), old = Interpreter.ReadAs<T>(p);
        if ((op->Flags & MicroOpFlags.Lock) != 0)
        {
            ulong seen;
            while ((seen = Atomic.CompareExchange<T>(p, old + b, old)) != old)
                old = seen;
            AddOperation.Apply<T>(s, old, b);
        }
        else
        {
            Interpreter.WriteAs<T>(p, AddOperation.Apply<T>(s, old, b));
        }
        Interpreter.WriteRegister<T>(s, op->Src, old);
        return cpu.FinishRmw(s);
    }
}

/// <summary>CMPXCHG8B and CMPXCHG16B; both need a writable operand even when they do not store.</summary>
internal static unsafe class WideExchangeHandlers
{
    public static Outcome Compare8(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        byte* p = cpu.MapRmw<ulong>(s, op);
        if (p == null)
            return Outcome.Fault;
        ulong expected = (uint)s->Gpr[0] | (s->Gpr[2] << 32), value = (uint)s->Gpr[3] | (s->Gpr[1] << 32);
        ulong seen = Atomic.CompareExchange<ulong>(p, value, expected);
        if (seen == expected)
        {
            s->FlagZero = 0;
        }
        else
        {
            s->Gpr[0] = (uint)seen;
            s->Gpr[2] = seen >> 32;
            s->FlagZero = 1;
        }
        return cpu.FinishRmw(s);
    }

    public static Outcome Compare16(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        ulong linear = cpu.Linear(s, op, 16, write: true);
        if ((linear & 15) != 0)
            return cpu.RaiseGp();
        ulong* p = (ulong*)cpu.MapRmwAt<UInt128>(s, linear, op->Segment);
        if (p == null)
            return Outcome.Fault;
        ulong* seen = stackalloc ulong[2];
        seen[0] = s->Gpr[0];
        seen[1] = s->Gpr[2];
        if (CompareExchange(op->Aux, p, seen, s->Gpr[3], s->Gpr[1]))
        {
            s->FlagZero = 0;
        }
        else
        {
            s->Gpr[0] = seen[0];
            s->Gpr[2] = seen[1];
            s->FlagZero = 1;
        }
        return cpu.FinishRmw(s);
    }

    private static bool CompareExchange(nint routine, ulong* p, ulong* seen, ulong low, ulong high)
    {
        // SAFETY: HostStubs gives the routine this signature; p is 16 aligned bytes of guest memory or of the bounce buffer.
        if (routine != 0)
            return ((delegate* unmanaged[SuppressGCTransition]<ulong*, ulong*, ulong, ulong, ulong>)routine)(p, seen, low, high) != 0;
        // .NET has no exchange of 16 bytes, so a host without the instruction has it for one vCPU only.
        bool equal = p[0] == seen[0] && p[1] == seen[1];
        (seen[0], seen[1]) = (p[0], p[1]);
        if (equal)
            (p[0], p[1]) = (low, high);
        return equal;
    }
}
