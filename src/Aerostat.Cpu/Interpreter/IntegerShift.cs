using System.Runtime.CompilerServices;
using static Aerostat.Cpu.IntegerFlags;

namespace Aerostat.Cpu;

/// <summary>A shift or rotate by a count that is masked and not zero. OF for counts above 1 follows what processors do.</summary>
internal unsafe interface IShiftOperation
{
    static abstract ulong Apply<T>(CpuState* s, ulong a, int count)
        where T : unmanaged;
}

internal readonly unsafe struct ShlOperation : IShiftOperation
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static ulong Apply<T>(CpuState* s, ulong a, int count)
        where T : unmanaged
    {
        ulong before = a << (count - 1);
        ulong r = Cut<T>(before << 1);
        SetResult<T>(s, r);
        // The bit that leaves last is CF, the one after it the new sign: CF ^ OF.
        s->FlagCarry = sizeof(T) == 8 ? before & CarryBits : (before << (64 - (sizeof(T) * 8))) & CarryBits;
        return r;
    }
}

internal readonly unsafe struct ShrOperation : IShiftOperation
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static ulong Apply<T>(CpuState* s, ulong a, int count)
        where T : unmanaged
    {
        ulong before = a >> (count - 1);
        ulong r = before >> 1;
        SetResult<T>(s, r);
        s->FlagCarry = (before << 63) | (((before ^ (before >> ((sizeof(T) * 8) - 1))) & 1) << 62);
        return r;
    }
}

internal readonly unsafe struct SarOperation : IShiftOperation
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static ulong Apply<T>(CpuState* s, ulong a, int count)
        where T : unmanaged
    {
        long before = (long)Sign<T>(a) >> (count - 1);
        ulong r = Cut<T>((ulong)(before >> 1));
        SetResult<T>(s, r);
        s->FlagCarry = (0 - ((ulong)before & 1)) & CarryBits;
        return r;
    }
}

internal readonly unsafe struct RolOperation : IShiftOperation
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static ulong Apply<T>(CpuState* s, ulong a, int count)
        where T : unmanaged
    {
        int n = count & ((sizeof(T) * 8) - 1);
        ulong r = n == 0 ? a : Cut<T>((a << n) | (a >> ((sizeof(T) * 8) - n)));
        s->FlagCarry = (s->FlagCarry & AuxiliaryBit) | (r << 63) | ((r >> ((sizeof(T) * 8) - 1)) << 62);
        return r;
    }
}

internal readonly unsafe struct RorOperation : IShiftOperation
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static ulong Apply<T>(CpuState* s, ulong a, int count)
        where T : unmanaged
    {
        int n = count & ((sizeof(T) * 8) - 1);
        ulong r = n == 0 ? a : Cut<T>((a >> n) | (a << ((sizeof(T) * 8) - n)));
        s->FlagCarry = (s->FlagCarry & AuxiliaryBit) | ((r << (64 - (sizeof(T) * 8))) & CarryBits);
        return r;
    }
}

internal readonly unsafe struct RclOperation : IShiftOperation
{
    public static ulong Apply<T>(CpuState* s, ulong a, int count)
        where T : unmanaged
    {
        int bits = sizeof(T) * 8;
        if (sizeof(T) < 4)
            count %= bits + 1;
        if (count == 0)
            return a;
        ulong carry = s->FlagCarry >> 63;
        // CF sits between the top and the bottom: bits + 1 positions.
        ulong low = count == 1 ? 0 : a >> (bits + 1 - count);
        ulong r = Cut<T>((a << (count - 1) << 1) | (carry << (count - 1)) | low);
        ulong cf = (a >> (bits - count)) & 1;
        s->FlagCarry = (s->FlagCarry & AuxiliaryBit) | (cf << 63) | ((r >> (bits - 1)) << 62);
        return r;
    }
}

internal readonly unsafe struct RcrOperation : IShiftOperation
{
    public static ulong Apply<T>(CpuState* s, ulong a, int count)
        where T : unmanaged
    {
        int bits = sizeof(T) * 8;
        if (sizeof(T) < 4)
            count %= bits + 1;
        if (count == 0)
            return a;
        ulong carry = s->FlagCarry >> 63;
        ulong high = count == 1 ? 0 : a << (bits + 1 - count);
        ulong r = Cut<T>((a >> (count - 1) >> 1) | (carry << (bits - count)) | high);
        ulong cf = (a >> (count - 1)) & 1;
        ulong of = ((r >> (bits - 1)) ^ (r >> (bits - 2))) & 1;
        s->FlagCarry = (s->FlagCarry & AuxiliaryBit) | (cf << 63) | ((cf ^ of) << 62);
        return r;
    }
}

/// <summary>Shifts and rotates.</summary>
internal static unsafe class ShiftHandler<TOperation, T, TPlace>
    where TOperation : struct, IShiftOperation
    where T : unmanaged
    where TPlace : struct, IPlace
{
    /// <summary>By a constant that is masked and not zero.</summary>
    public static Outcome RunConstant(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if (!TPlace.TryMap<T>(cpu, s, op, out byte* p))
            return RunConstantSlow(cpu, s, op);
        TPlace.Set<T>(p, TOperation.Apply<T>(s, Interpreter.ReadAs<T>(p), (int)op->Immediate));
        return Outcome.Next;
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private static Outcome RunConstantSlow(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        byte* p = TPlace.Map<T>(cpu, s, op);
        if (TPlace.IsMemory && p == null)
            return Outcome.Fault;
        return TPlace.Update<T>(cpu, s, op, p, TOperation.Apply<T>(s, Interpreter.ReadAs<T>(p), (int)op->Immediate));
    }

    /// <summary>By CL, or by a constant 0 (Src is then a register of zeros). A count of 0 leaves the flags, but a 32-bit register is written.</summary>
    public static Outcome RunVariable(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        int count = *((byte*)s + op->Src) & (sizeof(T) == 8 ? 63 : 31);
        byte* p = TPlace.Map<T>(cpu, s, op);
        if (TPlace.IsMemory && p == null)
            return Outcome.Fault;
        ulong a = Interpreter.ReadAs<T>(p);
        return TPlace.Update<T>(cpu, s, op, p, count == 0 ? a : TOperation.Apply<T>(s, a, count));
    }
}

/// <summary>SHLD and SHRD.</summary>
internal static unsafe class DoubleShiftHandler<T, TPlace>
    where T : unmanaged
    where TPlace : struct, IPlace
{
    public static Outcome LeftConstant(Interpreter cpu, CpuState* s, MicroOp* op) => Left(cpu, s, op, (int)op->Immediate);

    public static Outcome LeftVariable(Interpreter cpu, CpuState* s, MicroOp* op) => Left(cpu, s, op, (int)s->Gpr[1]);

    public static Outcome RightConstant(Interpreter cpu, CpuState* s, MicroOp* op) => Right(cpu, s, op, (int)op->Immediate);

    public static Outcome RightVariable(Interpreter cpu, CpuState* s, MicroOp* op) => Right(cpu, s, op, (int)s->Gpr[1]);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Outcome Left(Interpreter cpu, CpuState* s, MicroOp* op, int count)
    {
        count &= sizeof(T) == 8 ? 63 : 31;
        byte* p = TPlace.Map<T>(cpu, s, op);
        if (TPlace.IsMemory && p == null)
            return Outcome.Fault;
        ulong a = Interpreter.ReadAs<T>(p), b = Interpreter.ReadRegister<T>(s, op->Src);
        if (count == 0)
            return TPlace.Update<T>(cpu, s, op, p, a);
        int bits = sizeof(T) * 8;
        ulong r, cf;
        if (sizeof(T) == 2)
        {
            // Counts above 16 are undefined; processors go on with the destination's own bits.
            ulong wide = (a << 32) | (b << 16) | a;
            r = (ushort)((wide << count) >> 32);
            cf = (wide >> (48 - count)) & 1;
        }
        else
        {
            r = Cut<T>((a << count) | (b >> (bits - count)));
            cf = (a >> (bits - count)) & 1;
        }
        SetResult<T>(s, r);
        s->FlagCarry = (cf << 63) | ((r >> (bits - 1)) << 62);
        return TPlace.Update<T>(cpu, s, op, p, r);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Outcome Right(Interpreter cpu, CpuState* s, MicroOp* op, int count)
    {
        count &= sizeof(T) == 8 ? 63 : 31;
        byte* p = TPlace.Map<T>(cpu, s, op);
        if (TPlace.IsMemory && p == null)
            return Outcome.Fault;
        ulong a = Interpreter.ReadAs<T>(p), b = Interpreter.ReadRegister<T>(s, op->Src);
        if (count == 0)
            return TPlace.Update<T>(cpu, s, op, p, a);
        int bits = sizeof(T) * 8;
        ulong r, cf;
        if (sizeof(T) == 2)
        {
            ulong wide = (a << 32) | (b << 16) | a;
            r = (ushort)(wide >> count);
            cf = (wide >> (count - 1)) & 1;
        }
        else
        {
            r = Cut<T>((a >> count) | (b << (bits - count)));
            cf = (a >> (count - 1)) & 1;
        }
        ulong of = ((r >> (bits - 1)) ^ (r >> (bits - 2))) & 1;
        SetResult<T>(s, r);
        s->FlagCarry = (cf << 63) | ((cf ^ of) << 62);
        return TPlace.Update<T>(cpu, s, op, p, r);
    }
}
