using System.Runtime.Intrinsics;
using Aerostat.X86;

namespace Aerostat.Cpu;

/// <summary>Operands of an MMX instruction (kept in MicroOp.Src2).</summary>
[Flags]
internal enum MmxForm : byte
{
    None = 0,
    /// <summary>The first operand is an MMX, XMM or general register.</summary>
    ToMmx = 1,
    ToXmm = 2,
    ToGeneral = 4,
    /// <summary>The second operand is an MMX, XMM or general register, or in memory.</summary>
    FromMmx = 8,
    FromXmm = 16,
    FromGeneral = 32,
    FromMemory = 64,
    /// <summary>Raises SIMD floating-point exceptions.</summary>
    Float = 128,
}

/// <summary>
/// MMX instructions. Their registers are the significands of the physical x87 registers: each of these instructions sets TOP to 0 and marks
/// all registers valid, one that writes a register sets its exponent to all ones, and a pending x87 exception comes first (Intel SDM vol. 3
/// section 14.2).
/// </summary>
internal static unsafe class MmxHandlers
{
    // SAFETY: all pointers go into the vCPU's XSAVE area or register file: register numbers come from the decoder (0..7, 0..15), and stubs
    // only follow these.

    /// <summary>An instruction that runs in a stub.</summary>
    public static Outcome Run(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        MmxForm form = (MmxForm)op->Src2;
        if (!Ready(cpu, s, usesXmm: (form & (MmxForm.ToXmm | MmxForm.FromXmm)) != 0))
            return Outcome.Fault;
        byte* source;
        if ((form & MmxForm.FromMemory) != 0)
        {
            source = s->Xsave + VectorState.Bounce;
            int size = op->OperandSize;
            if (size == 16 && (cpu.Linear(s, op, size) & 15) != 0)
                return cpu.RaiseGp();
            if (!VectorState.LoadSized(cpu, s, op, size, source))
                return Outcome.Fault;
        }
        else if ((form & MmxForm.FromMmx) != 0)
        {
            source = Register(s, op->Src);
        }
        else
        {
            source = (form & MmxForm.FromXmm) != 0 ? (byte*)VectorState.Xmm(s, op->Src) : (byte*)s + op->Src;
        }
        byte* target = (form & MmxForm.ToMmx) != 0 ? Register(s, op->Dst)
            : (form & MmxForm.ToXmm) != 0 ? (byte*)VectorState.Xmm(s, op->Dst) : (byte*)s + op->Dst;
        byte* result = s->Xsave + VectorState.Result;
        if ((form & MmxForm.Float) != 0)
        {
            if (!SseHandlers.Unmasked(cpu, s, op, target, source, result, out _))
                return Outcome.Fault;
        }
        else
        {
            SseHandlers.Call(s, op, target, source, result, 0);
        }
        Enter(s);
        if ((form & MmxForm.ToMmx) != 0)
            Write(s, op->Dst, *(ulong*)result);
        else if ((form & MmxForm.ToXmm) != 0)
            *(Vector128<byte>*)target = *(Vector128<byte>*)result;
        else
            *(ulong*)target = *(ulong*)result;
        return Outcome.Next;
    }

    /// <summary>EMMS: TOP 0, all registers empty.</summary>
    public static Outcome Emms(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if (!Ready(cpu, s, usesXmm: false))
            return Outcome.Fault;
        Enter(s);
        X87Environment.Tags(s->Xsave) = 0;
        return Outcome.Next;
    }

    /// <summary>MOVQ mm, mm.</summary>
    public static Outcome Copy(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if (!Ready(cpu, s, usesXmm: false))
            return Outcome.Fault;
        Enter(s);
        Write(s, op->Dst, *(ulong*)Register(s, op->Src));
        return Outcome.Next;
    }

    /// <summary>MOVD, MOVQ from memory.</summary>
    public static Outcome Load<T>(Interpreter cpu, CpuState* s, MicroOp* op)
        where T : unmanaged
    {
        if (!Ready(cpu, s, usesXmm: false) || !cpu.LoadOperand<T>(s, op, out ulong v))
            return Outcome.Fault;
        Enter(s);
        Write(s, op->Dst, v);
        return Outcome.Next;
    }

    /// <summary>MOVD, MOVQ and MOVNTQ to memory.</summary>
    public static Outcome Store<T>(Interpreter cpu, CpuState* s, MicroOp* op)
        where T : unmanaged
    {
        if (!Ready(cpu, s, usesXmm: false))
            return Outcome.Fault;
        Outcome o = cpu.StoreOperand<T>(s, op, *(ulong*)Register(s, op->Src));
        if (o != Outcome.Fault)
            Enter(s);
        return o;
    }

    /// <summary>MOVD, MOVQ from a general register.</summary>
    public static Outcome FromGeneral<T>(Interpreter cpu, CpuState* s, MicroOp* op)
        where T : unmanaged
    {
        if (!Ready(cpu, s, usesXmm: false))
            return Outcome.Fault;
        Enter(s);
        ulong v = *(ulong*)((byte*)s + op->Src);
        Write(s, op->Dst, sizeof(T) == 4 ? (uint)v : v);
        return Outcome.Next;
    }

    /// <summary>MOVD, MOVQ to a general register.</summary>
    public static Outcome ToGeneral<T>(Interpreter cpu, CpuState* s, MicroOp* op)
        where T : unmanaged
    {
        if (!Ready(cpu, s, usesXmm: false))
            return Outcome.Fault;
        Enter(s);
        ulong v = *(ulong*)Register(s, op->Src);
        *(ulong*)((byte*)s + op->Dst) = sizeof(T) == 4 ? (uint)v : v;
        return Outcome.Next;
    }

    /// <summary>MASKMOVQ.</summary>
    public static Outcome MaskedStore(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if (!Ready(cpu, s, usesXmm: false))
            return Outcome.Fault;
        ulong data = *(ulong*)Register(s, op->Src);
        uint mask = Vector64.Create(*(ulong*)Register(s, op->Src2)).AsByte().ExtractMostSignificantBits();
        Outcome o = SseMoves.StoreMasked(cpu, s, op, (byte*)&data, mask, 8);
        if (o != Outcome.Fault)
            Enter(s);
        return o;
    }

    // #UD, #NM, #MF in this order.
    private static bool Ready(Interpreter cpu, CpuState* s, bool usesXmm)
    {
        if ((s->Cr0 & Cr0.Em) != 0 || (usesXmm && (s->Cr4 & Cr4.OsFxsr) == 0))
            cpu.RaiseUd();
        else if ((s->Cr0 & Cr0.Ts) != 0)
            cpu.Raise(Vector.DeviceNotAvailable);
        else if (X87Environment.IsPending(s->Xsave))
            cpu.Raise(Vector.FloatingPoint);
        else
            return true;
        return false;
    }

    // MMX register n is physical register n, wherever TOP is.
    private static byte* Register(CpuState* s, int n) =>
        s->Xsave + CpuState.StOffset + (16 * ((n - X87Environment.Top(s->Xsave)) & 7));

    private static void Enter(CpuState* s)
    {
        X87Environment.SetTop(s->Xsave, 0);
        X87Environment.Tags(s->Xsave) = 0xFF;
    }

    private static void Write(CpuState* s, int n, ulong value)
    {
        byte* r = s->Xsave + CpuState.StOffset + (16 * n);
        *(ulong*)r = value;
        *(ushort*)(r + 8) = 0xFFFF;
    }
}
