using System.Runtime.CompilerServices;

namespace Aerostat.Cpu;

/// <summary>A condition of Jcc, SETcc and CMOVcc (Intel SDM vol. 1 appendix B).</summary>
internal unsafe interface ICondition
{
    static abstract bool Test(CpuState* s);
}

internal readonly unsafe struct IfOverflow : ICondition
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool Test(CpuState* s) => CpuStateExtensions.Of(s);
}

internal readonly unsafe struct IfNotOverflow : ICondition
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool Test(CpuState* s) => !CpuStateExtensions.Of(s);
}

internal readonly unsafe struct IfBelow : ICondition
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool Test(CpuState* s) => (long)s->FlagCarry < 0;
}

internal readonly unsafe struct IfNotBelow : ICondition
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool Test(CpuState* s) => (long)s->FlagCarry >= 0;
}

internal readonly unsafe struct IfZero : ICondition
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool Test(CpuState* s) => s->FlagZero == 0;
}

internal readonly unsafe struct IfNotZero : ICondition
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool Test(CpuState* s) => s->FlagZero != 0;
}

internal readonly unsafe struct IfNotAbove : ICondition
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool Test(CpuState* s) => (long)s->FlagCarry < 0 || s->FlagZero == 0;
}

internal readonly unsafe struct IfAbove : ICondition
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool Test(CpuState* s) => (long)s->FlagCarry >= 0 && s->FlagZero != 0;
}

internal readonly unsafe struct IfSign : ICondition
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool Test(CpuState* s) => (long)s->FlagSignParity < 0;
}

internal readonly unsafe struct IfNotSign : ICondition
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool Test(CpuState* s) => (long)s->FlagSignParity >= 0;
}

internal readonly unsafe struct IfParity : ICondition
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool Test(CpuState* s) => CpuStateExtensions.Pf(s);
}

internal readonly unsafe struct IfNotParity : ICondition
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool Test(CpuState* s) => !CpuStateExtensions.Pf(s);
}

internal readonly unsafe struct IfLess : ICondition
{
    // SF ^ OF, each at bit 63.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool Test(CpuState* s) => (long)(s->FlagSignParity ^ s->FlagCarry ^ (s->FlagCarry << 1)) < 0;
}

internal readonly unsafe struct IfNotLess : ICondition
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool Test(CpuState* s) => !IfLess.Test(s);
}

internal readonly unsafe struct IfNotGreater : ICondition
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool Test(CpuState* s) => s->FlagZero == 0 || IfLess.Test(s);
}

internal readonly unsafe struct IfGreater : ICondition
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool Test(CpuState* s) => s->FlagZero != 0 && !IfLess.Test(s);
}

/// <summary>SETcc and CMOVcc.</summary>
internal static unsafe class ConditionHandler<TCondition>
    where TCondition : struct, ICondition
{
    public static Outcome Set<TPlace>(Interpreter cpu, CpuState* s, MicroOp* op)
        where TPlace : struct, IPlace => TPlace.Write<byte>(cpu, s, op, TCondition.Test(s) ? 1UL : 0);

    /// <summary>The source is always read; a 32-bit destination loses its upper half either way.</summary>
    public static Outcome Move<T, TSource>(Interpreter cpu, CpuState* s, MicroOp* op)
        where T : unmanaged
        where TSource : struct, ISource
    {
        if (!TSource.TryRead<T>(cpu, s, op, out ulong v))
            return MoveSlow<T, TSource>(cpu, s, op);
        return Finish<T>(s, op, v);
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private static Outcome MoveSlow<T, TSource>(Interpreter cpu, CpuState* s, MicroOp* op)
        where T : unmanaged
        where TSource : struct, ISource => TSource.Read<T>(cpu, s, op, out ulong v) ? Finish<T>(s, op, v) : Outcome.Fault;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Outcome Finish<T>(CpuState* s, MicroOp* op, ulong v)
        where T : unmanaged
    {
        if (TCondition.Test(s))
            Interpreter.WriteRegister<T>(s, op->Dst, v);
        else if (sizeof(T) == 4)
            *(ulong*)((byte*)s + op->Dst) = *(uint*)((byte*)s + op->Dst);
        return Outcome.Next;
    }
}
