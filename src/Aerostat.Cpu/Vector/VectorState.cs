using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;
using Aerostat.X86;

namespace Aerostat.Cpu;

/// <summary>Checks and places that all vector and floating-point handlers share.</summary>
internal static unsafe class VectorState
{
    // SAFETY: the XSAVE area is XsaveBytes long and 64-byte aligned; register numbers are 0..15. PeekRead and PeekWrite tell how
    // many bytes a pointer is good for.

    /// <summary>
    /// A 32-byte operand and two results behind the architectural state in the XSAVE area (which ends at 840 with protection keys): aligned
    /// host memory of this vCPU, where memory operands are brought before anything looks at them. A result is 32 bytes, or two halves
    /// <see cref="HighDistance"/> apart.
    /// </summary>
    public const int Bounce = 896, Result = 928, Spare = 960;

    /// <summary>From the lower to the upper half of a YMM register, and so too from either half of a vector result to the other.</summary>
    public const int HighDistance = CpuState.YmmHighOffset - CpuState.XmmOffset;

    /// <summary>MXCSR after reset: all exceptions masked, round to nearest.</summary>
    public const uint MxcsrDefault = 0x1F80;

    /// <summary>MXCSR bits that may be set (no misaligned-exception mask), also what FXSAVE answers as MXCSR_MASK.</summary>
    public const uint MxcsrValid = 0xFFFF;

    /// <summary>The six exception masks of MXCSR.</summary>
    public const uint MxcsrMasks = 0x1F80;

    /// <summary>XMM register <paramref name="n"/>.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector128<byte>* Xmm(CpuState* s, int n) => (Vector128<byte>*)(s->Xsave + CpuState.XmmOffset) + n;

    /// <summary>Upper half of YMM register <paramref name="n"/>.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector128<byte>* YmmHigh(CpuState* s, int n) => (Vector128<byte>*)(s->Xsave + CpuState.YmmHighOffset) + n;

    /// <summary>Whether SSE instructions may run (Intel SDM vol. 3 table 2-2); if not, return <see cref="Unusable"/>.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool Usable(CpuState* s) => ((s->Cr0 & (Cr0.Em | Cr0.Ts)) | (~s->Cr4 & Cr4.OsFxsr)) == 0;

    /// <summary>#UD or #NM, in this order.</summary>
    [MethodImpl(MethodImplOptions.NoInlining)]
    public static Outcome Unusable(Interpreter cpu, CpuState* s) =>
        (s->Cr0 & Cr0.Em) != 0 || (s->Cr4 & Cr4.OsFxsr) == 0 ? cpu.RaiseUd() : cpu.Raise(Vector.DeviceNotAvailable);

    /// <summary>A linear address further on in an operand: wraps at 4 GiB outside 64-bit mode, and a segment violation stays one.</summary>
    public static ulong Advance(CpuState* s, ulong linear, int distance) =>
        linear == Interpreter.SegmentViolation ? linear : s->Bitness == 64 ? linear + (uint)distance : (uint)linear + (uint)distance;

    /// <summary>Reads 16 bytes; false: fault recorded.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool Load128(Interpreter cpu, CpuState* s, ulong linear, int segment, out Vector128<byte> value)
    {
        byte* p = cpu.PeekRead(s, linear, out int bytes);
        if (p != null && bytes >= 16)
        {
            value = Vector128.Load(p);
            return true;
        }
        return Load128Slow(cpu, s, linear, segment, out value);
    }

    /// <summary>Writes 16 bytes: Next, Fault or Stop.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Outcome Store128(Interpreter cpu, CpuState* s, ulong linear, int segment, Vector128<byte> value)
    {
        byte* p = cpu.PeekWrite(s, linear, out int bytes);
        if (p != null && bytes >= 16)
        {
            value.Store(p);
            return Outcome.Next;
        }
        return Store128Slow(cpu, s, linear, segment, value);
    }

    /// <summary>Reads <paramref name="size"/> bytes (1 to 16) of the memory operand into <paramref name="destination"/>, the rest of 16 bytes becomes zero.</summary>
    public static bool LoadSized(Interpreter cpu, CpuState* s, MicroOp* op, int size, byte* destination)
    {
        ulong linear = cpu.Linear(s, op, size);
        *(Vector128<byte>*)destination = default;
        return cpu.LoadBytes(s, linear, op->Segment, destination, size);
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private static bool Load128Slow(Interpreter cpu, CpuState* s, ulong linear, int segment, out Vector128<byte> value)
    {
        byte* bounce = s->Xsave + Bounce;
        bool done = cpu.LoadBytes(s, linear, segment, bounce, 16);
        value = *(Vector128<byte>*)bounce;
        return done;
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private static Outcome Store128Slow(Interpreter cpu, CpuState* s, ulong linear, int segment, Vector128<byte> value) =>
        cpu.StoreBytes(s, linear, segment, (byte*)&value, 16);
}
