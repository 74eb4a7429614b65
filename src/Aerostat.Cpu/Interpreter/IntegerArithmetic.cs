using System.Runtime.CompilerServices;
using static Aerostat.Cpu.IntegerFlags;

namespace Aerostat.Cpu;

/// <summary>An operation of two operands: <c>a = a op b</c>, with its flags.</summary>
internal unsafe interface IBinaryOperation
{
    /// <summary>False for CMP and TEST.</summary>
    static abstract bool Writes { get; }

    static abstract ulong Apply<T>(CpuState* s, ulong a, ulong b)
        where T : unmanaged;
}

internal readonly unsafe struct AddOperation : IBinaryOperation
{
    public static bool Writes => true;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static ulong Apply<T>(CpuState* s, ulong a, ulong b)
        where T : unmanaged
    {
        ulong r = Cut<T>(a + b);
        SetResult<T>(s, r);
        SetCarries<T>(s, AddCarries(a, b, r));
        return r;
    }
}

internal readonly unsafe struct AdcOperation : IBinaryOperation
{
    public static bool Writes => true;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static ulong Apply<T>(CpuState* s, ulong a, ulong b)
        where T : unmanaged
    {
        ulong r = Cut<T>(a + b + (s->FlagCarry >> 63));
        SetResult<T>(s, r);
        SetCarries<T>(s, AddCarries(a, b, r));
        return r;
    }
}

internal readonly unsafe struct SubOperation : IBinaryOperation
{
    public static bool Writes => true;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static ulong Apply<T>(CpuState* s, ulong a, ulong b)
        where T : unmanaged => Compare<T>(s, a, b);
}

internal readonly unsafe struct SbbOperation : IBinaryOperation
{
    public static bool Writes => true;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static ulong Apply<T>(CpuState* s, ulong a, ulong b)
        where T : unmanaged
    {
        ulong r = Cut<T>(a - b - (s->FlagCarry >> 63));
        SetResult<T>(s, r);
        SetCarries<T>(s, SubtractBorrows(a, b, r));
        return r;
    }
}

internal readonly unsafe struct CmpOperation : IBinaryOperation
{
    public static bool Writes => false;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static ulong Apply<T>(CpuState* s, ulong a, ulong b)
        where T : unmanaged => Compare<T>(s, a, b);
}

internal readonly unsafe struct AndOperation : IBinaryOperation
{
    public static bool Writes => true;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static ulong Apply<T>(CpuState* s, ulong a, ulong b)
        where T : unmanaged
    {
        ulong r = a & b;
        SetLogic<T>(s, r);
        return r;
    }
}

internal readonly unsafe struct OrOperation : IBinaryOperation
{
    public static bool Writes => true;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static ulong Apply<T>(CpuState* s, ulong a, ulong b)
        where T : unmanaged
    {
        ulong r = a | b;
        SetLogic<T>(s, r);
        return r;
    }
}

internal readonly unsafe struct XorOperation : IBinaryOperation
{
    public static bool Writes => true;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static ulong Apply<T>(CpuState* s, ulong a, ulong b)
        where T : unmanaged
    {
        ulong r = a ^ b;
        SetLogic<T>(s, r);
        return r;
    }
}

internal readonly unsafe struct TestOperation : IBinaryOperation
{
    public static bool Writes => false;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static ulong Apply<T>(CpuState* s, ulong a, ulong b)
        where T : unmanaged
    {
        SetLogic<T>(s, a & b);
        return 0;
    }
}

/// <summary>An operation of one operand, with its flags.</summary>
internal unsafe interface IUnaryOperation
{
    static abstract ulong Apply<T>(CpuState* s, ulong a)
        where T : unmanaged;
}

internal readonly unsafe struct IncOperation : IUnaryOperation
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static ulong Apply<T>(CpuState* s, ulong a)
        where T : unmanaged
    {
        ulong old = s->FlagCarry;
        ulong r = Cut<T>(a + 1);
        SetResult<T>(s, r);
        SetCarries<T>(s, a & ~r);
        KeepCarry(s, old);
        return r;
    }

    // CF stays; OF is the difference of the two upper bits, so both are turned over when CF is wrong.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal static void KeepCarry(CpuState* s, ulong old)
    {
        ulong v = s->FlagCarry;
        s->FlagCarry = v ^ ((ulong)((long)(v ^ old) >> 63) & CarryBits);
    }
}

internal readonly unsafe struct DecOperation : IUnaryOperation
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static ulong Apply<T>(CpuState* s, ulong a)
        where T : unmanaged
    {
        ulong old = s->FlagCarry;
        ulong r = Cut<T>(a - 1);
        SetResult<T>(s, r);
        SetCarries<T>(s, ~a & r);
        IncOperation.KeepCarry(s, old);
        return r;
    }
}

internal readonly unsafe struct NegOperation : IUnaryOperation
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static ulong Apply<T>(CpuState* s, ulong a)
        where T : unmanaged
    {
        ulong r = Cut<T>(0 - a);
        SetResult<T>(s, r);
        SetCarries<T>(s, a | r);
        return r;
    }
}

internal readonly unsafe struct NotOperation : IUnaryOperation
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static ulong Apply<T>(CpuState* s, ulong a)
        where T : unmanaged => Cut<T>(~a);
}

/// <summary>ADD, ADC, SUB, SBB, AND, OR, XOR, CMP, TEST.</summary>
internal static unsafe class BinaryHandler<TOperation, T, TPlace, TSource>
    where TOperation : struct, IBinaryOperation
    where T : unmanaged
    where TPlace : struct, IPlace
    where TSource : struct, ISource
{
    public static Outcome Run(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if (!TSource.TryRead<T>(cpu, s, op, out ulong b))
            return RunSlow(cpu, s, op);
        if (!TOperation.Writes)
        {
            if (!TPlace.TryRead<T>(cpu, s, op, out ulong a))
                return RunSlow(cpu, s, op);
            TOperation.Apply<T>(s, a, b);
            return Outcome.Next;
        }
        if (!TPlace.TryMap<T>(cpu, s, op, out byte* p))
            return RunSlow(cpu, s, op);
        TPlace.Set<T>(p, TOperation.Apply<T>(s, Interpreter.ReadAs<T>(p), b));
        return Outcome.Next;
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private static Outcome RunSlow(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if (!TSource.Read<T>(cpu, s, op, out ulong b))
            return Outcome.Fault;
        if (!TOperation.Writes)
        {
            if (!TPlace.Read<T>(cpu, s, op, out ulong a))
                return Outcome.Fault;
            TOperation.Apply<T>(s, a, b);
            return Outcome.Next;
        }
        byte* p = TPlace.Map<T>(cpu, s, op);
        if (TPlace.IsMemory && p == null)
            return Outcome.Fault;
        return TPlace.Update<T>(cpu, s, op, p, TOperation.Apply<T>(s, Interpreter.ReadAs<T>(p), b));
    }

    /// <summary>With LOCK.</summary>
    public static Outcome RunLocked(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        TSource.Read<T>(cpu, s, op, out ulong b);
        byte* p = TPlace.Map<T>(cpu, s, op);
        if (p == null)
            return Outcome.Fault;
        ulong carry = s->FlagCarry, old = Interpreter.ReadAs<T>(p), seen;
        while ((seen = Atomic.CompareExchange<T>(p, TOperation.Apply<T>(s, old, b), old)) != old)
        {
            old = seen;
            s->FlagCarry = carry;
        }
        return cpu.FinishRmw(s);
    }
}

/// <summary>INC, DEC, NEG, NOT.</summary>
internal static unsafe class UnaryHandler<TOperation, T, TPlace>
    where TOperation : struct, IUnaryOperation
    where T : unmanaged
    where TPlace : struct, IPlace
{
    public static Outcome Run(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if (!TPlace.TryMap<T>(cpu, s, op, out byte* p))
            return RunSlow(cpu, s, op);
        TPlace.Set<T>(p, TOperation.Apply<T>(s, Interpreter.ReadAs<T>(p)));
        return Outcome.Next;
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private static Outcome RunSlow(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        byte* p = TPlace.Map<T>(cpu, s, op);
        if (TPlace.IsMemory && p == null)
            return Outcome.Fault;
        return TPlace.Update<T>(cpu, s, op, p, TOperation.Apply<T>(s, Interpreter.ReadAs<T>(p)));
    }

    /// <summary>With LOCK.</summary>
    public static Outcome RunLocked(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        byte* p = TPlace.Map<T>(cpu, s, op);
        if (p == null)
            return Outcome.Fault;
        ulong carry = s->FlagCarry, old = Interpreter.ReadAs<T>(p), seen;
        while ((seen = Atomic.CompareExchange<T>(p, TOperation.Apply<T>(s, old), old)) != old)
        {
            old = seen;
            s->FlagCarry = carry;
        }
        return cpu.FinishRmw(s);
    }
}

/// <summary>XOR r,r, SUB r,r and TEST r,r.</summary>
internal static unsafe class SameRegister<T>
    where T : unmanaged
{
    public static Outcome Clear(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        Interpreter.WriteRegister<T>(s, op->Dst, 0);
        s->FlagZero = 0;
        s->FlagSignParity = 0;
        s->FlagCarry = 0;
        return Outcome.Next;
    }

    public static Outcome Test(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        SetLogic<T>(s, Interpreter.ReadRegister<T>(s, op->Dst));
        return Outcome.Next;
    }
}

/// <summary>Host atomics on guest memory; x86 hosts have them at any alignment.</summary>
internal static unsafe class Atomic
{
    // SAFETY: callers pass what MapRmw gave for an operand of this size.

    /// <summary>Stores <paramref name="value"/> if memory holds <paramref name="expected"/>; returns what was there.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static ulong CompareExchange<T>(byte* p, ulong value, ulong expected)
        where T : unmanaged => sizeof(T) switch
        {
            1 => Interlocked.CompareExchange(ref *p, (byte)value, (byte)expected),
            2 => Interlocked.CompareExchange(ref *(ushort*)p, (ushort)value, (ushort)expected),
            4 => Interlocked.CompareExchange(ref *(uint*)p, (uint)value, (uint)expected),
            _ => Interlocked.CompareExchange(ref *(ulong*)p, value, expected),
        };

    /// <summary>Stores and returns what was there.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static ulong Exchange<T>(byte* p, ulong value)
        where T : unmanaged => sizeof(T) switch
        {
            1 => Interlocked.Exchange(ref *p, (byte)value),
            2 => Interlocked.Exchange(ref *(ushort*)p, (ushort)value),
            4 => Interlocked.Exchange(ref *(uint*)p, (uint)value),
            _ => Interlocked.Exchange(ref *(ulong*)p, value),
        };
}
