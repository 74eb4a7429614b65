using System.Numerics;
using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics.X86;
using Aerostat.X86;
using static Aerostat.Cpu.IntegerFlags;

namespace Aerostat.Cpu;

/// <summary>BT, BTS, BTR, BTC: what becomes of the operand.</summary>
internal unsafe interface IBitOperation
{
    static abstract bool Writes { get; }

    static abstract ulong Apply(ulong value, ulong bit);
}

internal readonly struct BitTest : IBitOperation
{
    public static bool Writes => false;

    public static ulong Apply(ulong value, ulong bit) => value;
}

internal readonly struct BitSet : IBitOperation
{
    public static bool Writes => true;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static ulong Apply(ulong value, ulong bit) => value | bit;
}

internal readonly struct BitReset : IBitOperation
{
    public static bool Writes => true;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static ulong Apply(ulong value, ulong bit) => value & ~bit;
}

internal readonly struct BitComplement : IBitOperation
{
    public static bool Writes => true;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static ulong Apply(ulong value, ulong bit) => value ^ bit;
}

/// <summary>BT, BTS, BTR, BTC. Only CF changes.</summary>
internal static unsafe class BitHandler<TOperation, T>
    where TOperation : struct, IBitOperation
    where T : unmanaged
{
    public static Outcome Register<TSource>(Interpreter cpu, CpuState* s, MicroOp* op)
        where TSource : struct, ISource
    {
        TSource.Read<T>(cpu, s, op, out ulong index);
        int n = (int)index & ((sizeof(T) * 8) - 1);
        ulong v = Interpreter.ReadRegister<T>(s, op->Dst);
        if (TOperation.Writes)
            Interpreter.WriteRegister<T>(s, op->Dst, TOperation.Apply(v, 1UL << n));
        SetCarry(s, (v >> n) & 1);
        return Outcome.Next;
    }

    /// <summary>An immediate index stays within the operand.</summary>
    public static Outcome MemoryImmediate(Interpreter cpu, CpuState* s, MicroOp* op) =>
        Memory(cpu, s, op, cpu.Linear(s, op, sizeof(T), TOperation.Writes), (int)op->Immediate & ((sizeof(T) * 8) - 1));

    /// <summary>A register index is signed and reaches beyond the operand, in steps of its size (Intel SDM vol. 2A, BT).</summary>
    public static Outcome MemoryRegister(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        long index = (long)Sign<T>(Interpreter.ReadRegister<T>(s, op->Src));
        int shift = sizeof(T) == 8 ? 6 : sizeof(T) == 4 ? 5 : 4;
        ulong a = Interpreter.EffectiveAddress(s, op) + (ulong)((index >> shift) * sizeof(T));
        a = op->AddressBits == 64 ? a : op->AddressBits == 32 ? (uint)a : (ushort)a;
        return Memory(cpu, s, op, cpu.SegmentLinear(s, op->Segment, a, sizeof(T), TOperation.Writes), (int)index & ((sizeof(T) * 8) - 1));
    }

    private static Outcome Memory(Interpreter cpu, CpuState* s, MicroOp* op, ulong linear, int n)
    {
        ulong v;
        if (!TOperation.Writes)
        {
            if (!cpu.Load<T>(s, linear, op->Segment, out v))
                return Outcome.Fault;
            SetCarry(s, (v >> n) & 1);
            return Outcome.Next;
        }
        byte* p = cpu.MapRmwAt<T>(s, linear, op->Segment);
        if (p == null)
            return Outcome.Fault;
        v = Interpreter.ReadAs<T>(p);
        if ((op->Flags & MicroOpFlags.Lock) == 0)
        {
            Interpreter.WriteAs<T>(p, TOperation.Apply(v, 1UL << n));
        }
        else
        {
            ulong seen;
            while ((seen = Atomic.CompareExchange<T>(p, TOperation.Apply(v, 1UL << n), v)) != v)
                v = seen;
        }
        SetCarry(s, (v >> n) & 1);
        return cpu.FinishRmw(s);
    }
}

/// <summary>BSF, BSR, LZCNT, TZCNT, POPCNT.</summary>
internal static unsafe class BitScanHandler<T, TSource>
    where T : unmanaged
    where TSource : struct, ISource
{
    // With a source of zero the destination stays as it is, as all processors do and AMD documents.
    public static Outcome Forward(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if (!TSource.Read<T>(cpu, s, op, out ulong v))
            return Outcome.Fault;
        s->FlagZero = v;
        if (v != 0)
            Interpreter.WriteRegister<T>(s, op->Dst, (ulong)BitOperations.TrailingZeroCount(v));
        return Outcome.Next;
    }

    public static Outcome Reverse(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if (!TSource.Read<T>(cpu, s, op, out ulong v))
            return Outcome.Fault;
        s->FlagZero = v;
        if (v != 0)
            Interpreter.WriteRegister<T>(s, op->Dst, (ulong)(63 - BitOperations.LeadingZeroCount(v)));
        return Outcome.Next;
    }

    public static Outcome LeadingZeros(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if (!TSource.Read<T>(cpu, s, op, out ulong v))
            return Outcome.Fault;
        ulong r = (ulong)(BitOperations.LeadingZeroCount(v) - (64 - (sizeof(T) * 8)));
        Interpreter.WriteRegister<T>(s, op->Dst, r);
        s->FlagZero = r;
        SetCarry(s, v == 0 ? 1UL : 0);
        return Outcome.Next;
    }

    public static Outcome TrailingZeros(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if (!TSource.Read<T>(cpu, s, op, out ulong v))
            return Outcome.Fault;
        ulong r = v == 0 ? (ulong)sizeof(T) * 8 : (ulong)BitOperations.TrailingZeroCount(v);
        Interpreter.WriteRegister<T>(s, op->Dst, r);
        s->FlagZero = r;
        SetCarry(s, v == 0 ? 1UL : 0);
        return Outcome.Next;
    }

    public static Outcome PopulationCount(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if (!TSource.Read<T>(cpu, s, op, out ulong v))
            return Outcome.Fault;
        Interpreter.WriteRegister<T>(s, op->Dst, (ulong)BitOperations.PopCount(v));
        s->FlagZero = v;
        s->FlagSignParity = 1;
        s->FlagCarry = 0;
        return Outcome.Next;
    }
}

/// <summary>What the VEX-encoded integer instructions share.</summary>
internal static unsafe class BitExtensions
{
    /// <summary>VEX exists in protected mode only (Intel SDM vol. 2A section 2.3).</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool Allowed(CpuState* s) =>
        s->Bitness == 64 || ((s->Cr0 & Cr0.Pe) != 0 && (s->SystemFlags & RFlags.Vm) == 0);

    /// <summary>ZF and SF of the result, CF as given, OF and AF 0.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void SetFlags<T>(CpuState* s, ulong result, bool carry)
        where T : unmanaged
    {
        SetResult<T>(s, result);
        s->FlagCarry = carry ? CarryBits : 0;
    }

    public static ulong Deposit(ulong value, ulong mask)
    {
        if (Bmi2.X64.IsSupported)
            return Bmi2.X64.ParallelBitDeposit(value, mask);
        ulong r = 0;
        for (; mask != 0; mask &= mask - 1, value >>= 1)
            r |= (value & 1) != 0 ? mask & (0 - mask) : 0;
        return r;
    }

    public static ulong Extract(ulong value, ulong mask)
    {
        if (Bmi2.X64.IsSupported)
            return Bmi2.X64.ParallelBitExtract(value, mask);
        ulong r = 0;
        for (int k = 0; mask != 0; mask &= mask - 1, k++)
            r |= (value & mask & (0 - mask)) != 0 ? 1UL << k : 0;
        return r;
    }
}

/// <summary>BMI1, BMI2 and ADX. The source is whichever operand may be memory.</summary>
internal static unsafe class BitExtensionHandler<T, TSource>
    where T : unmanaged
    where TSource : struct, ISource
{
    public static Outcome Andn(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if (!Read(cpu, s, op, out ulong v, out Outcome o))
            return o;
        ulong r = ~Interpreter.ReadRegister<T>(s, op->Src) & v;
        Interpreter.WriteRegister<T>(s, op->Dst, r);
        BitExtensions.SetFlags<T>(s, r, carry: false);
        return Outcome.Next;
    }

    public static Outcome Bextr(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if (!Read(cpu, s, op, out ulong v, out Outcome o))
            return o;
        ulong control = Interpreter.ReadRegister<T>(s, op->Src2);
        int start = (byte)control, length = (byte)(control >> 8);
        ulong r = start >= sizeof(T) * 8 ? 0 : v >> start;
        if (length < sizeof(T) * 8)
            r &= (1UL << length) - 1;
        Interpreter.WriteRegister<T>(s, op->Dst, r);
        BitExtensions.SetFlags<T>(s, r, carry: false);
        return Outcome.Next;
    }

    public static Outcome Blsi(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if (!Read(cpu, s, op, out ulong v, out Outcome o))
            return o;
        ulong r = v & (0 - v);
        Interpreter.WriteRegister<T>(s, op->Dst, r);
        BitExtensions.SetFlags<T>(s, r, v != 0);
        return Outcome.Next;
    }

    public static Outcome Blsmsk(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if (!Read(cpu, s, op, out ulong v, out Outcome o))
            return o;
        ulong r = Cut<T>(v ^ (v - 1));
        Interpreter.WriteRegister<T>(s, op->Dst, r);
        BitExtensions.SetFlags<T>(s, r, v == 0);
        return Outcome.Next;
    }

    public static Outcome Blsr(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if (!Read(cpu, s, op, out ulong v, out Outcome o))
            return o;
        ulong r = v & (v - 1);
        Interpreter.WriteRegister<T>(s, op->Dst, r);
        BitExtensions.SetFlags<T>(s, r, v == 0);
        return Outcome.Next;
    }

    public static Outcome Bzhi(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if (!Read(cpu, s, op, out ulong v, out Outcome o))
            return o;
        int n = (byte)Interpreter.ReadRegister<T>(s, op->Src2);
        bool beyond = n >= sizeof(T) * 8;
        ulong r = beyond ? v : v & ((1UL << n) - 1);
        Interpreter.WriteRegister<T>(s, op->Dst, r);
        BitExtensions.SetFlags<T>(s, r, beyond);
        return Outcome.Next;
    }

    public static Outcome Pdep(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if (!Read(cpu, s, op, out ulong v, out Outcome o))
            return o;
        Interpreter.WriteRegister<T>(s, op->Dst, BitExtensions.Deposit(Interpreter.ReadRegister<T>(s, op->Src), v));
        return Outcome.Next;
    }

    public static Outcome Pext(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if (!Read(cpu, s, op, out ulong v, out Outcome o))
            return o;
        Interpreter.WriteRegister<T>(s, op->Dst, BitExtensions.Extract(Interpreter.ReadRegister<T>(s, op->Src), v));
        return Outcome.Next;
    }

    public static Outcome Rorx(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if (!Read(cpu, s, op, out ulong v, out Outcome o))
            return o;
        int n = (int)op->Immediate;
        Interpreter.WriteRegister<T>(s, op->Dst, sizeof(T) == 8 ? BitOperations.RotateRight(v, n) : BitOperations.RotateRight((uint)v, n));
        return Outcome.Next;
    }

    public static Outcome Sarx(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if (!Read(cpu, s, op, out ulong v, out Outcome o))
            return o;
        int n = (int)Interpreter.ReadRegister<T>(s, op->Src2) & ((sizeof(T) * 8) - 1);
        Interpreter.WriteRegister<T>(s, op->Dst, (ulong)((long)Sign<T>(v) >> n));
        return Outcome.Next;
    }

    public static Outcome Shlx(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if (!Read(cpu, s, op, out ulong v, out Outcome o))
            return o;
        int n = (int)Interpreter.ReadRegister<T>(s, op->Src2) & ((sizeof(T) * 8) - 1);
        Interpreter.WriteRegister<T>(s, op->Dst, v << n);
        return Outcome.Next;
    }

    public static Outcome Shrx(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if (!Read(cpu, s, op, out ulong v, out Outcome o))
            return o;
        int n = (int)Interpreter.ReadRegister<T>(s, op->Src2) & ((sizeof(T) * 8) - 1);
        Interpreter.WriteRegister<T>(s, op->Dst, v >> n);
        return Outcome.Next;
    }

    public static Outcome Adcx(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if (!TSource.Read<T>(cpu, s, op, out ulong v))
            return Outcome.Fault;
        SetCarry(s, AddWithCarry(s, op, v, s->FlagCarry >> 63));
        return Outcome.Next;
    }

    public static Outcome Adox(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if (!TSource.Read<T>(cpu, s, op, out ulong v))
            return Outcome.Fault;
        SetOverflow(s, AddWithCarry(s, op, v, CpuStateExtensions.Of(s) ? 1UL : 0));
        return Outcome.Next;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static ulong AddWithCarry(CpuState* s, MicroOp* op, ulong v, ulong carry)
    {
        ulong a = Interpreter.ReadRegister<T>(s, op->Dst), r = Cut<T>(a + v + carry);
        Interpreter.WriteRegister<T>(s, op->Dst, r);
        return (AddCarries(a, v, r) >> ((sizeof(T) * 8) - 1)) & 1;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static bool Read(Interpreter cpu, CpuState* s, MicroOp* op, out ulong value, out Outcome outcome)
    {
        if (!BitExtensions.Allowed(s))
        {
            value = 0;
            outcome = cpu.RaiseUd();
            return false;
        }
        outcome = Outcome.Fault;
        return TSource.Read<T>(cpu, s, op, out value);
    }
}

/// <summary>CRC32 (polynomial 0x11EDC6F41, bit-reflected; Intel SDM vol. 2A, CRC32).</summary>
internal static unsafe class ChecksumHandler<T, TSource>
    where T : unmanaged
    where TSource : struct, ISource
{
    public static Outcome Run(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if (!TSource.Read<T>(cpu, s, op, out ulong v))
            return Outcome.Fault;
        uint crc = (uint)Interpreter.ReadRegister<uint>(s, op->Dst);
        crc = sizeof(T) switch
        {
            1 => BitOperations.Crc32C(crc, (byte)v),
            2 => BitOperations.Crc32C(crc, (ushort)v),
            4 => BitOperations.Crc32C(crc, (uint)v),
            _ => BitOperations.Crc32C(crc, v),
        };
        Interpreter.WriteRegister<uint>(s, op->Dst, crc);
        return Outcome.Next;
    }
}
