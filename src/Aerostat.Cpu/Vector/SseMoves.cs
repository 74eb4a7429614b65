using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;
using System.Runtime.Intrinsics.X86;
using Aerostat.X86;

namespace Aerostat.Cpu;

/// <summary>SSE data movement, in C# because it is what kernels and memory copies do most. Dst and Src are XMM numbers or GPR offsets.</summary>
internal static unsafe class SseMoves
{
    // SAFETY: register numbers are 0..15 from the decoder, general registers are byte offsets inside CpuState; memory operands go through
    // the TLB.

    /// <summary>MOVAPS and the like between registers.</summary>
    public static Outcome Copy(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if (!VectorState.Usable(s))
            return VectorState.Unusable(cpu, s);
        *VectorState.Xmm(s, op->Dst) = *VectorState.Xmm(s, op->Src);
        return Outcome.Next;
    }

    /// <summary>MOVUPS, MOVDQU, LDDQU from memory.</summary>
    public static Outcome Load(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if (!VectorState.Usable(s))
            return VectorState.Unusable(cpu, s);
        if (!VectorState.Load128(cpu, s, cpu.Linear(s, op, 16), op->Segment, out Vector128<byte> v))
            return Outcome.Fault;
        *VectorState.Xmm(s, op->Dst) = v;
        return Outcome.Next;
    }

    /// <summary>MOVAPS, MOVDQA, MOVNTDQA from memory.</summary>
    public static Outcome LoadAligned(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if (!VectorState.Usable(s))
            return VectorState.Unusable(cpu, s);
        ulong linear = cpu.Linear(s, op, 16);
        if ((linear & 15) != 0)
            return cpu.RaiseGp();
        if (!VectorState.Load128(cpu, s, linear, op->Segment, out Vector128<byte> v))
            return Outcome.Fault;
        *VectorState.Xmm(s, op->Dst) = v;
        return Outcome.Next;
    }

    /// <summary>MOVUPS, MOVDQU to memory.</summary>
    public static Outcome Store(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if (!VectorState.Usable(s))
            return VectorState.Unusable(cpu, s);
        return VectorState.Store128(cpu, s, cpu.Linear(s, op, 16, write: true), op->Segment, *VectorState.Xmm(s, op->Src));
    }

    /// <summary>MOVAPS, MOVDQA and the non-temporal stores.</summary>
    public static Outcome StoreAligned(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if (!VectorState.Usable(s))
            return VectorState.Unusable(cpu, s);
        ulong linear = cpu.Linear(s, op, 16, write: true);
        if ((linear & 15) != 0)
            return cpu.RaiseGp();
        return VectorState.Store128(cpu, s, linear, op->Segment, *VectorState.Xmm(s, op->Src));
    }

    /// <summary>Loads T and clears the rest: MOVD, MOVQ, MOVSS, MOVSD from memory.</summary>
    public static Outcome LoadScalar<T>(Interpreter cpu, CpuState* s, MicroOp* op)
        where T : unmanaged
    {
        if (!VectorState.Usable(s))
            return VectorState.Unusable(cpu, s);
        if (!cpu.LoadOperand<T>(s, op, out ulong v))
            return Outcome.Fault;
        *VectorState.Xmm(s, op->Dst) = Vector128.CreateScalar(v).AsByte();
        return Outcome.Next;
    }

    /// <summary>Stores the low T: MOVD, MOVQ, MOVSS, MOVSD, MOVLPS, MOVLPD to memory.</summary>
    public static Outcome StoreScalar<T>(Interpreter cpu, CpuState* s, MicroOp* op)
        where T : unmanaged
    {
        if (!VectorState.Usable(s))
            return VectorState.Unusable(cpu, s);
        return cpu.StoreOperand<T>(s, op, *(ulong*)VectorState.Xmm(s, op->Src));
    }

    /// <summary>MOVSS and MOVSD between registers: the rest of the destination stays.</summary>
    public static Outcome MergeScalar<T>(Interpreter cpu, CpuState* s, MicroOp* op)
        where T : unmanaged
    {
        if (!VectorState.Usable(s))
            return VectorState.Unusable(cpu, s);
        *(T*)VectorState.Xmm(s, op->Dst) = *(T*)VectorState.Xmm(s, op->Src);
        return Outcome.Next;
    }

    /// <summary>MOVQ between registers: the upper half is cleared.</summary>
    public static Outcome CopyLow(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if (!VectorState.Usable(s))
            return VectorState.Unusable(cpu, s);
        *VectorState.Xmm(s, op->Dst) = Vector128.CreateScalar(*(ulong*)VectorState.Xmm(s, op->Src)).AsByte();
        return Outcome.Next;
    }

    /// <summary>MOVD, MOVQ from a general register.</summary>
    public static Outcome FromGeneral<T>(Interpreter cpu, CpuState* s, MicroOp* op)
        where T : unmanaged
    {
        if (!VectorState.Usable(s))
            return VectorState.Unusable(cpu, s);
        ulong v = *(ulong*)((byte*)s + op->Src);
        *VectorState.Xmm(s, op->Dst) = Vector128.CreateScalar(sizeof(T) == 4 ? (uint)v : v).AsByte();
        return Outcome.Next;
    }

    /// <summary>MOVD, MOVQ to a general register; a 32-bit result clears the upper half.</summary>
    public static Outcome ToGeneral<T>(Interpreter cpu, CpuState* s, MicroOp* op)
        where T : unmanaged
    {
        if (!VectorState.Usable(s))
            return VectorState.Unusable(cpu, s);
        ulong v = *(ulong*)VectorState.Xmm(s, op->Src);
        *(ulong*)((byte*)s + op->Dst) = sizeof(T) == 4 ? (uint)v : v;
        return Outcome.Next;
    }

    /// <summary>MOVLPS, MOVLPD from memory (half 0), MOVHPS, MOVHPD (half 1).</summary>
    public static Outcome LoadHalf(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if (!VectorState.Usable(s))
            return VectorState.Unusable(cpu, s);
        if (!cpu.LoadOperand<ulong>(s, op, out ulong v))
            return Outcome.Fault;
        ((ulong*)VectorState.Xmm(s, op->Dst))[op->Aux] = v;
        return Outcome.Next;
    }

    /// <summary>MOVHPS, MOVHPD to memory.</summary>
    public static Outcome StoreHigh(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if (!VectorState.Usable(s))
            return VectorState.Unusable(cpu, s);
        return cpu.StoreOperand<ulong>(s, op, ((ulong*)VectorState.Xmm(s, op->Src))[1]);
    }

    /// <summary>MOVHLPS.</summary>
    public static Outcome HighToLow(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if (!VectorState.Usable(s))
            return VectorState.Unusable(cpu, s);
        *(ulong*)VectorState.Xmm(s, op->Dst) = ((ulong*)VectorState.Xmm(s, op->Src))[1];
        return Outcome.Next;
    }

    /// <summary>MOVLHPS.</summary>
    public static Outcome LowToHigh(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if (!VectorState.Usable(s))
            return VectorState.Unusable(cpu, s);
        ((ulong*)VectorState.Xmm(s, op->Dst))[1] = *(ulong*)VectorState.Xmm(s, op->Src);
        return Outcome.Next;
    }

    /// <summary>PMOVMSKB.</summary>
    public static Outcome ByteMask(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if (!VectorState.Usable(s))
            return VectorState.Unusable(cpu, s);
        *(ulong*)((byte*)s + op->Dst) = VectorState.Xmm(s, op->Src)->ExtractMostSignificantBits();
        return Outcome.Next;
    }

    /// <summary>MASKMOVDQU: the bytes of the first register whose byte in the second has bit 7 set go to [rDI].</summary>
    public static Outcome MaskedStore(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if (!VectorState.Usable(s))
            return VectorState.Unusable(cpu, s);
        Vector128<byte> data = *VectorState.Xmm(s, op->Src);
        return StoreMasked(cpu, s, op, (byte*)&data, VectorState.Xmm(s, op->Src2)->ExtractMostSignificantBits(), 16);
    }

    /// <summary>
    /// Writes the bytes named by <paramref name="mask"/> to [rDI]. Both ends are checked before the first byte is written. An all-zero
    /// mask touches nothing (the manual lets implementations fault or not).
    /// </summary>
    public static Outcome StoreMasked(Interpreter cpu, CpuState* s, MicroOp* op, byte* data, uint mask, int size)
    {
        if (mask == 0)
            return Outcome.Next;
        ulong rdi = s->Gpr[7];
        ulong offset = op->AddressBits == 64 ? rdi : op->AddressBits == 32 ? (uint)rdi : (ushort)rdi;
        ulong linear = cpu.SegmentLinear(s, op->Segment, offset, size, write: true);
        int first = System.Numerics.BitOperations.TrailingZeroCount(mask);
        int last = 31 - System.Numerics.BitOperations.LeadingZeroCount(mask);
        if (!cpu.ProbeWrite(s, VectorState.Advance(s, linear, first), op->Segment, 1) || !cpu.ProbeWrite(s, VectorState.Advance(s, linear, last), op->Segment, 1))
            return Outcome.Fault;
        Outcome result = Outcome.Next;
        for (int k = first; k <= last && result != Outcome.Fault; k++)
        {
            if ((mask >> k & 1) == 0)
                continue;
            Outcome o = cpu.Store<byte>(s, VectorState.Advance(s, linear, k), op->Segment, data[k]);
            if (o != Outcome.Next)
                result = o;
        }
        return result;
    }
}
