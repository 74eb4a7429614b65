using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;

namespace Aerostat.Cpu;

/// <summary>VEX moves between registers and memory, and those that clear.</summary>
internal static unsafe class VexMoves
{
    // SAFETY: register numbers are 0..15 from the decoder, and memory goes through the TLB; as VectorState.

    public static Outcome Load128(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if (!VexHandlers.Usable(s))
            return VexHandlers.Unusable(cpu, s);
        if (!VectorState.Load128(cpu, s, cpu.Linear(s, op, 16), op->Segment, out Vector128<byte> v))
            return Outcome.Fault;
        *VectorState.Xmm(s, op->Dst) = v;
        *VectorState.YmmHigh(s, op->Dst) = default;
        return Outcome.Next;
    }

    public static Outcome Load256(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if (!VexHandlers.Usable(s))
            return VexHandlers.Unusable(cpu, s);
        return Load(cpu, s, op, cpu.Linear(s, op, 32), 32);
    }

    /// <summary>VMOVAPS, VMOVAPD, VMOVDQA, VMOVNTDQA from memory, either size.</summary>
    public static Outcome LoadAligned(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if (!VexHandlers.Usable(s))
            return VexHandlers.Unusable(cpu, s);
        int size = op->OperandSize;
        ulong linear = cpu.Linear(s, op, size);
        return (linear & (ulong)(size - 1)) != 0 ? cpu.RaiseGp() : Load(cpu, s, op, linear, size);
    }

    public static Outcome Store128(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if (!VexHandlers.Usable(s))
            return VexHandlers.Unusable(cpu, s);
        return VectorState.Store128(cpu, s, cpu.Linear(s, op, 16, write: true), op->Segment, *VectorState.Xmm(s, op->Src));
    }

    public static Outcome Store256(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if (!VexHandlers.Usable(s))
            return VexHandlers.Unusable(cpu, s);
        return Store(cpu, s, op, cpu.Linear(s, op, 32, write: true), 32);
    }

    /// <summary>VMOVAPS, VMOVAPD, VMOVDQA to memory and the non-temporal stores, either size.</summary>
    public static Outcome StoreAligned(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if (!VexHandlers.Usable(s))
            return VexHandlers.Unusable(cpu, s);
        int size = op->OperandSize;
        ulong linear = cpu.Linear(s, op, size, write: true);
        return (linear & (ulong)(size - 1)) != 0 ? cpu.RaiseGp() : Store(cpu, s, op, linear, size);
    }

    public static Outcome Copy128(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if (!VexHandlers.Usable(s))
            return VexHandlers.Unusable(cpu, s);
        *VectorState.Xmm(s, op->Dst) = *VectorState.Xmm(s, op->Src);
        *VectorState.YmmHigh(s, op->Dst) = default;
        return Outcome.Next;
    }

    public static Outcome Copy256(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if (!VexHandlers.Usable(s))
            return VexHandlers.Unusable(cpu, s);
        *VectorState.Xmm(s, op->Dst) = *VectorState.Xmm(s, op->Src);
        *VectorState.YmmHigh(s, op->Dst) = *VectorState.YmmHigh(s, op->Src);
        return Outcome.Next;
    }

    /// <summary>VZEROUPPER: outside 64-bit mode, of the eight registers that exist there.</summary>
    public static Outcome ZeroUpper(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if (!VexHandlers.Usable(s))
            return VexHandlers.Unusable(cpu, s);
        new Span<byte>(VectorState.YmmHigh(s, 0), s->Bitness == 64 ? 256 : 128).Clear();
        return Outcome.Next;
    }

    /// <summary>VZEROALL.</summary>
    public static Outcome ZeroAll(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if (!VexHandlers.Usable(s))
            return VexHandlers.Unusable(cpu, s);
        int bytes = s->Bitness == 64 ? 256 : 128;
        new Span<byte>(VectorState.Xmm(s, 0), bytes).Clear();
        new Span<byte>(VectorState.YmmHigh(s, 0), bytes).Clear();
        return Outcome.Next;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Outcome Load(Interpreter cpu, CpuState* s, MicroOp* op, ulong linear, int size)
    {
        byte* p = cpu.PeekRead(s, linear, out int bytes);
        if (p == null || bytes < size)
        {
            p = s->Xsave + VectorState.Bounce;
            if (!cpu.LoadBytes(s, linear, op->Segment, p, size))
                return Outcome.Fault;
        }
        *VectorState.Xmm(s, op->Dst) = Vector128.Load(p);
        *VectorState.YmmHigh(s, op->Dst) = size == 32 ? Vector128.Load(p + 16) : default;
        return Outcome.Next;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static Outcome Store(Interpreter cpu, CpuState* s, MicroOp* op, ulong linear, int size)
    {
        byte* p = cpu.PeekWrite(s, linear, out int bytes);
        bool direct = p != null && bytes >= size;
        byte* target = direct ? p : s->Xsave + VectorState.Result;
        VectorState.Xmm(s, op->Src)->Store(target);
        if (size == 32)
            VectorState.YmmHigh(s, op->Src)->Store(target + 16);
        return direct ? Outcome.Next : cpu.StoreBytes(s, linear, op->Segment, target, size);
    }
}
