using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;
using System.Runtime.Intrinsics.X86;

namespace Aerostat.Cpu;

/// <summary>A packed operation on two 16-byte registers.</summary>
internal interface IPacked
{
    static abstract Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b);
}

/// <summary>The packed integer operations that are frequent enough to skip the stub.</summary>
internal static unsafe class SseIntegers
{
    // SAFETY: register numbers are 0..15 from the decoder, and memory operands go through the TLB; as VectorState.

    /// <summary>Register, register.</summary>
    public static Outcome Registers<TOp>(Interpreter cpu, CpuState* s, MicroOp* op)
        where TOp : struct, IPacked
    {
        if (!VectorState.Usable(s))
            return VectorState.Unusable(cpu, s);
        Vector128<byte>* d = VectorState.Xmm(s, op->Dst);
        *d = TOp.Apply(*d, *VectorState.Xmm(s, op->Src));
        return Outcome.Next;
    }

    /// <summary>Register, aligned memory.</summary>
    public static Outcome Memory<TOp>(Interpreter cpu, CpuState* s, MicroOp* op)
        where TOp : struct, IPacked
    {
        if (!VectorState.Usable(s))
            return VectorState.Unusable(cpu, s);
        ulong linear = cpu.Linear(s, op, 16);
        if ((linear & 15) != 0)
            return cpu.RaiseGp();
        if (!VectorState.Load128(cpu, s, linear, op->Segment, out Vector128<byte> v))
            return Outcome.Fault;
        Vector128<byte>* d = VectorState.Xmm(s, op->Dst);
        *d = TOp.Apply(*d, v);
        return Outcome.Next;
    }

    public readonly struct Xor : IPacked
    {
        public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b) => a ^ b;
    }

    public readonly struct And : IPacked
    {
        public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b) => a & b;
    }

    public readonly struct AndNot : IPacked
    {
        public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b) => ~a & b;
    }

    public readonly struct Or : IPacked
    {
        public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b) => a | b;
    }

    public readonly struct AddByte : IPacked
    {
        public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b) => a + b;
    }

    public readonly struct AddWord : IPacked
    {
        public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b) => (a.AsUInt16() + b.AsUInt16()).AsByte();
    }

    public readonly struct AddDword : IPacked
    {
        public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b) => (a.AsUInt32() + b.AsUInt32()).AsByte();
    }

    public readonly struct AddQword : IPacked
    {
        public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b) => (a.AsUInt64() + b.AsUInt64()).AsByte();
    }

    public readonly struct SubByte : IPacked
    {
        public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b) => a - b;
    }

    public readonly struct SubWord : IPacked
    {
        public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b) => (a.AsUInt16() - b.AsUInt16()).AsByte();
    }

    public readonly struct SubDword : IPacked
    {
        public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b) => (a.AsUInt32() - b.AsUInt32()).AsByte();
    }

    public readonly struct SubQword : IPacked
    {
        public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b) => (a.AsUInt64() - b.AsUInt64()).AsByte();
    }

    public readonly struct EqualByte : IPacked
    {
        public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b) => Vector128.Equals(a, b);
    }

    public readonly struct EqualWord : IPacked
    {
        public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b) => Vector128.Equals(a.AsUInt16(), b.AsUInt16()).AsByte();
    }

    public readonly struct EqualDword : IPacked
    {
        public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b) => Vector128.Equals(a.AsUInt32(), b.AsUInt32()).AsByte();
    }

    public readonly struct GreaterByte : IPacked
    {
        public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b) => Vector128.GreaterThan(a.AsSByte(), b.AsSByte()).AsByte();
    }

    public readonly struct GreaterWord : IPacked
    {
        public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b) => Vector128.GreaterThan(a.AsInt16(), b.AsInt16()).AsByte();
    }

    public readonly struct GreaterDword : IPacked
    {
        public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b) => Vector128.GreaterThan(a.AsInt32(), b.AsInt32()).AsByte();
    }

    public readonly struct MinUnsignedByte : IPacked
    {
        public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b) => Vector128.Min(a, b);
    }

    public readonly struct MaxUnsignedByte : IPacked
    {
        public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b) => Vector128.Max(a, b);
    }

    public readonly struct UnpackLowByte : IPacked
    {
        public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b) => Sse2.UnpackLow(a, b);
    }

    public readonly struct UnpackLowWord : IPacked
    {
        public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b) => Sse2.UnpackLow(a.AsUInt16(), b.AsUInt16()).AsByte();
    }

    public readonly struct UnpackLowDword : IPacked
    {
        public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b) => Sse2.UnpackLow(a.AsUInt32(), b.AsUInt32()).AsByte();
    }

    public readonly struct UnpackLowQword : IPacked
    {
        public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b) => Sse2.UnpackLow(a.AsUInt64(), b.AsUInt64()).AsByte();
    }

    public readonly struct UnpackHighByte : IPacked
    {
        public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b) => Sse2.UnpackHigh(a, b);
    }

    public readonly struct UnpackHighWord : IPacked
    {
        public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b) => Sse2.UnpackHigh(a.AsUInt16(), b.AsUInt16()).AsByte();
    }

    public readonly struct UnpackHighDword : IPacked
    {
        public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b) => Sse2.UnpackHigh(a.AsUInt32(), b.AsUInt32()).AsByte();
    }

    public readonly struct UnpackHighQword : IPacked
    {
        public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b) => Sse2.UnpackHigh(a.AsUInt64(), b.AsUInt64()).AsByte();
    }

    public readonly struct ShuffleByte : IPacked
    {
        public static Vector128<byte> Apply(Vector128<byte> a, Vector128<byte> b) => Ssse3.Shuffle(a, b);
    }
}
