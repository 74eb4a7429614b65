using System.Runtime.CompilerServices;

namespace Aerostat.Cpu;

/// <summary>Operand widths and the lazy flags of results (<see cref="CpuState"/> has their layout).</summary>
internal static unsafe class IntegerFlags
{
    /// <summary>CF, and CF ^ OF below it, in <see cref="CpuState.FlagCarry"/>.</summary>
    public const ulong CarryBits = 3UL << 62;
    /// <summary>AF in <see cref="CpuState.FlagCarry"/>.</summary>
    public const ulong AuxiliaryBit = 8;

    /// <summary>The low bits of a value, as many as the operand has.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static ulong Cut<T>(ulong value)
        where T : unmanaged => sizeof(T) switch
        {
            1 => (byte)value,
            2 => (ushort)value,
            4 => (uint)value,
            _ => value,
        };

    /// <summary>The low bits of a value, sign-extended.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static ulong Sign<T>(ulong value)
        where T : unmanaged => sizeof(T) switch
        {
            1 => (ulong)(sbyte)value,
            2 => (ulong)(short)value,
            4 => (ulong)(int)value,
            _ => value,
        };

    /// <summary>Width in bits.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static int Bits<T>()
        where T : unmanaged => sizeof(T) * 8;

    /// <summary>ZF, SF and PF of a zero-extended result.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void SetResult<T>(CpuState* s, ulong result)
        where T : unmanaged
    {
        s->FlagZero = result;
        s->FlagSignParity = Sign<T>(result);
    }

    /// <summary>CF, OF and AF from the carries (or borrows) out of each bit; nothing above the operand's width may be set.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void SetCarries<T>(CpuState* s, ulong carries)
        where T : unmanaged => s->FlagCarry = sizeof(T) == 8 ? carries : (carries << (64 - (sizeof(T) * 8))) | carries;

    /// <summary>All flags of a bitwise operation: CF, OF and AF are 0.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void SetLogic<T>(CpuState* s, ulong result)
        where T : unmanaged
    {
        SetResult<T>(s, result);
        s->FlagCarry = 0;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static ulong AddCarries(ulong a, ulong b, ulong result) => (a & b) | ((a | b) & ~result);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static ulong SubtractBorrows(ulong a, ulong b, ulong result) => (~a & b) | (~(a ^ b) & result);

    /// <summary>All flags of <c>a - b</c>; returns the difference.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static ulong Compare<T>(CpuState* s, ulong a, ulong b)
        where T : unmanaged
    {
        ulong r = Cut<T>(a - b);
        SetResult<T>(s, r);
        SetCarries<T>(s, SubtractBorrows(a, b, r));
        return r;
    }

    /// <summary>Sets CF (0 or 1) and keeps OF and AF.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void SetCarry(CpuState* s, ulong carry)
    {
        ulong old = s->FlagCarry;
        s->FlagCarry = old ^ ((0 - ((old >> 63) ^ carry)) & CarryBits);
    }

    /// <summary>Sets OF (0 or 1) and keeps CF and AF.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void SetOverflow(CpuState* s, ulong overflow)
    {
        ulong old = s->FlagCarry;
        s->FlagCarry = (old & ~(1UL << 62)) | ((((old >> 63) ^ overflow) & 1) << 62);
    }
}
