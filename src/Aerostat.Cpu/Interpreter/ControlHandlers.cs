using System.Runtime.CompilerServices;
using Aerostat.X86;

namespace Aerostat.Cpu;

/// <summary>The width of near branches: what the target is cut to, how it is checked, what a call pushes.</summary>
internal unsafe interface IBranchWidth
{
    /// <summary>Checks a target and goes there: Jump, or Fault with nothing changed.</summary>
    static abstract Outcome Go(Interpreter cpu, CpuState* s, ulong target);

    /// <summary>As <see cref="Go"/> without going; the target comes back cut to the width.</summary>
    static abstract bool Check(Interpreter cpu, CpuState* s, ref ulong target);

    /// <summary>Address of the next instruction.</summary>
    static abstract ulong Next(CpuState* s, MicroOp* op);

    static abstract Outcome Push(Interpreter cpu, CpuState* s, ulong value);

    /// <summary>Reads the top of the stack.</summary>
    static abstract bool Top(Interpreter cpu, CpuState* s, out ulong value);

    static abstract void Drop(CpuState* s, ulong more);

    static abstract bool Read<TSource>(Interpreter cpu, CpuState* s, MicroOp* op, out ulong value)
        where TSource : struct, ISource;
}

/// <summary>64-bit code.</summary>
internal readonly unsafe struct Branch64 : IBranchWidth
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Outcome Go(Interpreter cpu, CpuState* s, ulong target)
    {
        if ((target + (1UL << 47)) >> 48 != 0)
            return GoFar(cpu, s, target);
        s->Rip = target;
        return Outcome.Jump;
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private static Outcome GoFar(Interpreter cpu, CpuState* s, ulong target)
    {
        if (!IsWideCanonical(s, target))
            return cpu.RaiseGp();
        s->Rip = target;
        return Outcome.Jump;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool Check(Interpreter cpu, CpuState* s, ref ulong target)
    {
        if ((target + (1UL << 47)) >> 48 == 0 || IsWideCanonical(s, target))
            return true;
        cpu.RaiseGp();
        return false;
    }

    // 57-bit linear addresses (Intel SDM vol. 3 section 5.5.1).
    private static bool IsWideCanonical(CpuState* s, ulong target) => (s->Cr4 & Cr4.La57) != 0 && (target + (1UL << 56)) >> 57 == 0;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static ulong Next(CpuState* s, MicroOp* op) => s->Gpr[17] + op->Offset + op->Length;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Outcome Push(Interpreter cpu, CpuState* s, ulong value)
    {
        ulong rsp = s->Gpr[4] - 8;
        Outcome o = cpu.Store<ulong>(s, rsp, Seg.Ss, value);
        if (o != Outcome.Fault)
            s->Gpr[4] = rsp;
        return o;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool Top(Interpreter cpu, CpuState* s, out ulong value) => cpu.Load<ulong>(s, s->Gpr[4], Seg.Ss, out value);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Drop(CpuState* s, ulong more) => s->Gpr[4] += 8 + more;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool Read<TSource>(Interpreter cpu, CpuState* s, MicroOp* op, out ulong value)
        where TSource : struct, ISource => TSource.Read<ulong>(cpu, s, op, out value);
}

/// <summary>32-bit operand size in 16- and 32-bit code.</summary>
internal readonly unsafe struct Branch32 : IBranchWidth
{
    public static Outcome Go(Interpreter cpu, CpuState* s, ulong target)
    {
        if (!Check(cpu, s, ref target))
            return Outcome.Fault;
        s->Rip = target;
        return Outcome.Jump;
    }

    public static bool Check(Interpreter cpu, CpuState* s, ref ulong target)
    {
        target = (uint)target;
        if (target <= s->Cs.Limit)
            return true;
        cpu.RaiseGp();
        return false;
    }

    public static ulong Next(CpuState* s, MicroOp* op)
    {
        ulong next = s->Gpr[17] + op->Offset + op->Length;
        return s->Bitness == 16 ? (ushort)next : (uint)next;
    }

    public static Outcome Push(Interpreter cpu, CpuState* s, ulong value) => cpu.Push<uint>(s, value);

    public static bool Top(Interpreter cpu, CpuState* s, out ulong value) => cpu.PeekStack<uint>(s, 0, out value);

    public static void Drop(CpuState* s, ulong more) => Interpreter.MoveStackPointer(s, 4 + (long)more);

    public static bool Read<TSource>(Interpreter cpu, CpuState* s, MicroOp* op, out ulong value)
        where TSource : struct, ISource => TSource.Read<uint>(cpu, s, op, out value);
}

/// <summary>16-bit operand size.</summary>
internal readonly unsafe struct Branch16 : IBranchWidth
{
    public static Outcome Go(Interpreter cpu, CpuState* s, ulong target)
    {
        if (!Check(cpu, s, ref target))
            return Outcome.Fault;
        s->Rip = target;
        return Outcome.Jump;
    }

    public static bool Check(Interpreter cpu, CpuState* s, ref ulong target)
    {
        target = (ushort)target;
        if (s->Bitness == 64 || target <= s->Cs.Limit)
            return true;
        cpu.RaiseGp();
        return false;
    }

    public static ulong Next(CpuState* s, MicroOp* op) => (ushort)(s->Gpr[17] + op->Offset + op->Length);

    public static Outcome Push(Interpreter cpu, CpuState* s, ulong value) => cpu.Push<ushort>(s, value);

    public static bool Top(Interpreter cpu, CpuState* s, out ulong value) => cpu.PeekStack<ushort>(s, 0, out value);

    public static void Drop(CpuState* s, ulong more) => Interpreter.MoveStackPointer(s, 2 + (long)more);

    public static bool Read<TSource>(Interpreter cpu, CpuState* s, MicroOp* op, out ulong value)
        where TSource : struct, ISource => TSource.Read<ushort>(cpu, s, op, out value);
}

/// <summary>Jcc.</summary>
internal static unsafe class JumpHandler<TCondition, TWidth>
    where TCondition : struct, ICondition
    where TWidth : struct, IBranchWidth
{
    public static Outcome Run(Interpreter cpu, CpuState* s, MicroOp* op) =>
        TCondition.Test(s) ? TWidth.Go(cpu, s, s->Gpr[17] + op->Immediate) : Outcome.Next;
}

/// <summary>CALL and RET in 64-bit code when the TLB knows the stack; else <see cref="BranchHandler{TWidth}"/> does the whole.</summary>
internal static unsafe class LongCallHandlers
{
    public static Outcome Call(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        ulong target = s->Gpr[17] + op->Immediate, rsp = s->Gpr[4] - 8;
        if (!FastMemory.TryMap<ulong>(s, rsp, out byte* p) || (target + (1UL << 47)) >> 48 != 0)
            return BranchHandler<Branch64>.Call(cpu, s, op);
        *(ulong*)p = s->Gpr[17] + op->Offset + op->Length;
        s->Gpr[4] = rsp;
        s->Rip = target;
        return Outcome.Jump;
    }

    public static Outcome Return(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        ulong rsp = s->Gpr[4];
        if (!FastMemory.TryLoad<ulong>(s, rsp, out ulong target) || (target + (1UL << 47)) >> 48 != 0)
            return BranchHandler<Branch64>.Return(cpu, s, op);
        s->Gpr[4] = rsp + 8 + op->Immediate;
        s->Rip = target;
        return Outcome.Jump;
    }
}

/// <summary>JMP, CALL, RET near, and the branches that count in CX, ECX or RCX.</summary>
internal static unsafe class BranchHandler<TWidth>
    where TWidth : struct, IBranchWidth
{
    public static Outcome Jump(Interpreter cpu, CpuState* s, MicroOp* op) => TWidth.Go(cpu, s, s->Gpr[17] + op->Immediate);

    public static Outcome JumpIndirect<TSource>(Interpreter cpu, CpuState* s, MicroOp* op)
        where TSource : struct, ISource => TWidth.Read<TSource>(cpu, s, op, out ulong target) ? TWidth.Go(cpu, s, target) : Outcome.Fault;

    [MethodImpl(MethodImplOptions.NoInlining)]
    public static Outcome Call(Interpreter cpu, CpuState* s, MicroOp* op) => CallTo(cpu, s, op, s->Gpr[17] + op->Immediate);

    public static Outcome CallIndirect<TSource>(Interpreter cpu, CpuState* s, MicroOp* op)
        where TSource : struct, ISource => TWidth.Read<TSource>(cpu, s, op, out ulong target) ? CallTo(cpu, s, op, target) : Outcome.Fault;

    [MethodImpl(MethodImplOptions.NoInlining)]
    public static Outcome Return(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if (!TWidth.Top(cpu, s, out ulong target) || !TWidth.Check(cpu, s, ref target))
            return Outcome.Fault;
        TWidth.Drop(s, op->Immediate);
        s->Rip = target;
        return Outcome.Jump;
    }

    public static Outcome JumpIfZero<TCount>(Interpreter cpu, CpuState* s, MicroOp* op)
        where TCount : unmanaged =>
        Interpreter.ReadRegister<TCount>(s, 8) == 0 ? TWidth.Go(cpu, s, s->Gpr[17] + op->Immediate) : Outcome.Next;

    public static Outcome Loop<TCount>(Interpreter cpu, CpuState* s, MicroOp* op)
        where TCount : unmanaged => LoopIf<TCount>(cpu, s, op, true);

    public static Outcome LoopIfZero<TCount>(Interpreter cpu, CpuState* s, MicroOp* op)
        where TCount : unmanaged => LoopIf<TCount>(cpu, s, op, s->FlagZero == 0);

    public static Outcome LoopIfNotZero<TCount>(Interpreter cpu, CpuState* s, MicroOp* op)
        where TCount : unmanaged => LoopIf<TCount>(cpu, s, op, s->FlagZero != 0);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Outcome CallTo(Interpreter cpu, CpuState* s, MicroOp* op, ulong target)
    {
        if (!TWidth.Check(cpu, s, ref target) || TWidth.Push(cpu, s, TWidth.Next(s, op)) == Outcome.Fault)
            return Outcome.Fault;
        s->Rip = target;
        return Outcome.Jump;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Outcome LoopIf<TCount>(Interpreter cpu, CpuState* s, MicroOp* op, bool condition)
        where TCount : unmanaged
    {
        ulong count = IntegerFlags.Cut<TCount>(s->Gpr[1] - 1);
        Outcome o = Outcome.Next;
        if (count != 0 && condition)
        {
            o = TWidth.Go(cpu, s, s->Gpr[17] + op->Immediate);
            if (o == Outcome.Fault)
                return o;
        }
        Interpreter.WriteRegister<TCount>(s, 8, count);
        return o;
    }
}
