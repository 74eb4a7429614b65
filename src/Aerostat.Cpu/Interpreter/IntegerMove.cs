using System.Buffers.Binary;
using System.Runtime.CompilerServices;
using static Aerostat.Cpu.IntegerFlags;

namespace Aerostat.Cpu;

/// <summary>MOV, MOVNTI, MOVDIRI, and MOVSXD without extension.</summary>
internal static unsafe class MoveHandler<T, TPlace, TSource>
    where T : unmanaged
    where TPlace : struct, IPlace
    where TSource : struct, ISource
{
    public static Outcome Run(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if (!TSource.TryRead<T>(cpu, s, op, out ulong v))
            return RunSlow(cpu, s, op);
        if (!TPlace.TryMap<T>(cpu, s, op, out byte* p))
            return RunSlow(cpu, s, op);
        TPlace.Set<T>(p, v);
        return Outcome.Next;
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private static Outcome RunSlow(Interpreter cpu, CpuState* s, MicroOp* op) =>
        TSource.Read<T>(cpu, s, op, out ulong v) ? TPlace.Write<T>(cpu, s, op, v) : Outcome.Fault;

    public static Outcome RunSwapped(Interpreter cpu, CpuState* s, MicroOp* op) =>
        TSource.Read<T>(cpu, s, op, out ulong v) ? TPlace.Write<T>(cpu, s, op, ByteOrder.Swap<T>(v)) : Outcome.Fault;
}

internal static unsafe class ByteOrder
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static ulong Swap<T>(ulong v)
        where T : unmanaged => BinaryPrimitives.ReverseEndianness(v) >> (64 - (sizeof(T) * 8));
}

/// <summary>MOVZX, MOVSX, MOVSXD: a <typeparamref name="TFrom"/> widened into a <typeparamref name="T"/> register.</summary>
internal static unsafe class ExtendHandler<T, TFrom, TSource>
    where T : unmanaged
    where TFrom : unmanaged
    where TSource : struct, ISource
{
    public static Outcome Zero(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if (!TSource.TryRead<TFrom>(cpu, s, op, out ulong v))
            return ZeroSlow(cpu, s, op);
        Interpreter.WriteRegister<T>(s, op->Dst, v);
        return Outcome.Next;
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private static Outcome ZeroSlow(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if (!TSource.Read<TFrom>(cpu, s, op, out ulong v))
            return Outcome.Fault;
        Interpreter.WriteRegister<T>(s, op->Dst, v);
        return Outcome.Next;
    }

    public static Outcome Signed(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if (!TSource.TryRead<TFrom>(cpu, s, op, out ulong v))
            return SignedSlow(cpu, s, op);
        Interpreter.WriteRegister<T>(s, op->Dst, Sign<TFrom>(v));
        return Outcome.Next;
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private static Outcome SignedSlow(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if (!TSource.Read<TFrom>(cpu, s, op, out ulong v))
            return Outcome.Fault;
        Interpreter.WriteRegister<T>(s, op->Dst, Sign<TFrom>(v));
        return Outcome.Next;
    }
}

/// <summary>LEA, XCHG, BSWAP, XLAT, and the widenings of the accumulator.</summary>
internal static unsafe class MoveHandlers
{
    public static Outcome LeaBase(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        *(ulong*)((byte*)s + op->Dst) = *(ulong*)((byte*)s + op->Base) + (ulong)op->Displacement;
        return Outcome.Next;
    }

    public static Outcome LeaIndexed(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        *(ulong*)((byte*)s + op->Dst) =
            *(ulong*)((byte*)s + op->Base) + (*(ulong*)((byte*)s + op->Index) << op->Scale) + (ulong)op->Displacement;
        return Outcome.Next;
    }

    public static Outcome Lea<T>(Interpreter cpu, CpuState* s, MicroOp* op)
        where T : unmanaged
    {
        Interpreter.WriteRegister<T>(s, op->Dst, Interpreter.EffectiveAddress(s, op));
        return Outcome.Next;
    }

    public static Outcome ExchangeRegisters<T>(Interpreter cpu, CpuState* s, MicroOp* op)
        where T : unmanaged
    {
        ulong a = Interpreter.ReadRegister<T>(s, op->Dst), b = Interpreter.ReadRegister<T>(s, op->Src);
        Interpreter.WriteRegister<T>(s, op->Dst, b);
        Interpreter.WriteRegister<T>(s, op->Src, a);
        return Outcome.Next;
    }

    /// <summary>XCHG with memory, always atomic; the register is operand 1, or operand 0 (moved to Src when bound).</summary>
    public static Outcome ExchangeMemory<T, TAddress>(Interpreter cpu, CpuState* s, MicroOp* op)
        where T : unmanaged
        where TAddress : struct, IAddress
    {
        byte* p = MemoryPlace<TAddress>.Map<T>(cpu, s, op);
        if (p == null)
            return Outcome.Fault;
        Interpreter.WriteRegister<T>(s, op->Src, Atomic.Exchange<T>(p, Interpreter.ReadRegister<T>(s, op->Src)));
        return cpu.FinishRmw(s);
    }

    public static Outcome Swap32(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        ulong* r = (ulong*)((byte*)s + op->Dst);
        *r = BinaryPrimitives.ReverseEndianness((uint)*r);
        return Outcome.Next;
    }

    public static Outcome Swap64(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        ulong* r = (ulong*)((byte*)s + op->Dst);
        *r = BinaryPrimitives.ReverseEndianness(*r);
        return Outcome.Next;
    }

    /// <summary>Undefined by the manual; processors give zero.</summary>
    public static Outcome Swap16(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        *(ushort*)((byte*)s + op->Dst) = 0;
        return Outcome.Next;
    }

    public static Outcome Xlat(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        ulong a = s->Gpr[3] + (byte)s->Gpr[0];
        a = op->AddressBits == 64 ? a : op->AddressBits == 32 ? (uint)a : (ushort)a;
        if (!cpu.Load<byte>(s, cpu.SegmentLinear(s, op->Segment, a, 1, write: false), op->Segment, out ulong v))
            return Outcome.Fault;
        *(byte*)s->Gpr = (byte)v;
        return Outcome.Next;
    }

    public static Outcome Cbw(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        *(short*)s->Gpr = *(sbyte*)s->Gpr;
        return Outcome.Next;
    }

    public static Outcome Cwde(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        s->Gpr[0] = (uint)(short)s->Gpr[0];
        return Outcome.Next;
    }

    public static Outcome Cdqe(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        s->Gpr[0] = (ulong)(int)s->Gpr[0];
        return Outcome.Next;
    }

    public static Outcome Cwd(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        *(ushort*)(s->Gpr + 2) = (ushort)((short)s->Gpr[0] >> 15);
        return Outcome.Next;
    }

    public static Outcome Cdq(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        s->Gpr[2] = (uint)((int)s->Gpr[0] >> 31);
        return Outcome.Next;
    }

    public static Outcome Cqo(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        s->Gpr[2] = (ulong)((long)s->Gpr[0] >> 63);
        return Outcome.Next;
    }
}
