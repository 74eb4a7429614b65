using Aerostat.X86;
using static Aerostat.Cpu.IntegerFlags;

namespace Aerostat.Cpu;

/// <summary>
/// MUL, IMUL, DIV, IDIV. A product's CF and OF say whether its upper half matters; SF, ZF and PF are undefined and stay, AF is 0.
/// </summary>
internal static unsafe class MultiplyHandler<T, TSource>
    where T : unmanaged
    where TSource : struct, ISource
{
    public static Outcome Mul(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if (!TSource.Read<T>(cpu, s, op, out ulong b))
            return Outcome.Fault;
        ulong a = Cut<T>(s->Gpr[0]), high, low;
        if (sizeof(T) == 8)
        {
            high = Math.BigMul(a, b, out low);
        }
        else
        {
            ulong p = a * b;
            low = Cut<T>(p);
            high = p >> (sizeof(T) * 8);
        }
        WriteProduct(s, high, low);
        SetProduct(s, high != 0);
        return Outcome.Next;
    }

    public static Outcome Imul(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if (!TSource.Read<T>(cpu, s, op, out ulong b))
            return Outcome.Fault;
        bool overflow = Signed(s->Gpr[0], b, out ulong high, out ulong low);
        WriteProduct(s, high, low);
        SetProduct(s, overflow);
        return Outcome.Next;
    }

    /// <summary>Two operands: Dst *= source.</summary>
    public static Outcome Imul2(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if (!TSource.Read<T>(cpu, s, op, out ulong b))
            return Outcome.Fault;
        bool overflow = Signed(Interpreter.ReadRegister<T>(s, op->Dst), b, out _, out ulong low);
        Interpreter.WriteRegister<T>(s, op->Dst, low);
        SetProduct(s, overflow);
        return Outcome.Next;
    }

    /// <summary>Three operands: Dst = source * immediate.</summary>
    public static Outcome Imul3(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if (!TSource.Read<T>(cpu, s, op, out ulong b))
            return Outcome.Fault;
        bool overflow = Signed(op->Immediate, b, out _, out ulong low);
        Interpreter.WriteRegister<T>(s, op->Dst, low);
        SetProduct(s, overflow);
        return Outcome.Next;
    }

    public static Outcome Mulx(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if (!BitExtensions.Allowed(s))
            return cpu.RaiseUd();
        if (!TSource.Read<T>(cpu, s, op, out ulong b))
            return Outcome.Fault;
        ulong high, low;
        if (sizeof(T) == 8)
        {
            high = Math.BigMul(s->Gpr[2], b, out low);
        }
        else
        {
            ulong p = (uint)s->Gpr[2] * b;
            low = (uint)p;
            high = p >> 32;
        }
        Interpreter.WriteRegister<T>(s, op->Src, low);
        Interpreter.WriteRegister<T>(s, op->Dst, high);
        return Outcome.Next;
    }

    public static Outcome Div(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if (!TSource.Read<T>(cpu, s, op, out ulong d))
            return Outcome.Fault;
        ulong q, r;
        if (sizeof(T) == 8)
        {
            ulong high = s->Gpr[2], low = s->Gpr[0];
            if (high >= d)
                return cpu.Raise(Vector.DivideError);
            if (high == 0)
            {
                (q, r) = Math.DivRem(low, d);
            }
            else
            {
                var n = new UInt128(high, low);
                q = (ulong)(n / d);
                r = low - (q * d);
            }
        }
        else
        {
            if (d == 0)
                return cpu.Raise(Vector.DivideError);
            ulong n = Dividend(s);
            if (n <= uint.MaxValue)
            {
                (uint q32, uint r32) = Math.DivRem((uint)n, (uint)d);
                q = q32;
                r = r32;
            }
            else
            {
                (q, r) = Math.DivRem(n, d);
            }
            if (q != Cut<T>(q))
                return cpu.Raise(Vector.DivideError);
        }
        WriteQuotient(s, q, r);
        return Outcome.Next;
    }

    public static Outcome Idiv(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if (!TSource.Read<T>(cpu, s, op, out ulong v))
            return Outcome.Fault;
        long d = (long)Sign<T>(v);
        if (d == 0)
            return cpu.Raise(Vector.DivideError);
        long q, r;
        if (sizeof(T) == 8)
        {
            long high = (long)s->Gpr[2], low = (long)s->Gpr[0];
            if (high == low >> 63 && d != -1)
            {
                (q, r) = Math.DivRem(low, d);
            }
            else
            {
                // By magnitudes: the quotient fits when it is below 2^63, or is 2^63 and negative.
                bool negative = high < 0, negativeQuotient = negative != (d < 0);
                var n = new UInt128((ulong)high, (ulong)low);
                if (negative)
                    n = UInt128.Zero - n;
                ulong magnitude = d < 0 ? 0 - (ulong)d : (ulong)d;
                if ((ulong)(n >> 64) >= magnitude)
                    return cpu.Raise(Vector.DivideError);
                ulong uq = (ulong)(n / magnitude);
                if (uq > (negativeQuotient ? 1UL << 63 : long.MaxValue))
                    return cpu.Raise(Vector.DivideError);
                ulong ur = (ulong)n - (uq * magnitude);
                q = negativeQuotient ? (long)(0 - uq) : (long)uq;
                r = negative ? (long)(0 - ur) : (long)ur;
            }
        }
        else
        {
            ulong wide = Dividend(s);
            long n = sizeof(T) == 4 ? (long)wide : sizeof(T) == 2 ? (int)wide : (short)wide;
            if (d == -1)
            {
                // long.MinValue / -1 would trap on the host; it stays negative here and does not fit.
                q = unchecked(-n);
                r = 0;
            }
            else
            {
                (q, r) = Math.DivRem(n, d);
            }
            if (q != (long)Sign<T>((ulong)q) || n == long.MinValue)
                return cpu.Raise(Vector.DivideError);
        }
        WriteQuotient(s, (ulong)q, (ulong)r);
        return Outcome.Next;
    }

    private static bool Signed(ulong a, ulong b, out ulong high, out ulong low)
    {
        if (sizeof(T) == 8)
        {
            high = (ulong)Math.BigMul((long)a, (long)b, out long l);
            low = (ulong)l;
            return (long)high != l >> 63;
        }
        long p = (long)Sign<T>(a) * (long)Sign<T>(b);
        low = Cut<T>((ulong)p);
        high = (ulong)(p >> (sizeof(T) * 8));
        return p != (long)Sign<T>(low);
    }

    private static void SetProduct(CpuState* s, bool overflow) => s->FlagCarry = (overflow ? 1UL : 0) << 63;

    private static void WriteProduct(CpuState* s, ulong high, ulong low)
    {
        if (sizeof(T) == 1)
        {
            *(ushort*)s->Gpr = (ushort)((byte)low | (high << 8));
            return;
        }
        Interpreter.WriteRegister<T>(s, 0, low);
        Interpreter.WriteRegister<T>(s, 2 * 8, high);
    }

    private static ulong Dividend(CpuState* s) => sizeof(T) switch
    {
        1 => (ushort)s->Gpr[0],
        2 => (ushort)s->Gpr[0] | ((ulong)(ushort)s->Gpr[2] << 16),
        _ => (uint)s->Gpr[0] | (s->Gpr[2] << 32),
    };

    private static void WriteQuotient(CpuState* s, ulong quotient, ulong remainder)
    {
        if (sizeof(T) == 1)
        {
            *(ushort*)s->Gpr = (ushort)((byte)quotient | (remainder << 8));
            return;
        }
        Interpreter.WriteRegister<T>(s, 0, quotient);
        Interpreter.WriteRegister<T>(s, 2 * 8, remainder);
    }
}
