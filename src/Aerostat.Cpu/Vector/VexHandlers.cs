using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;
using Aerostat.X86;

namespace Aerostat.Cpu;

/// <summary>Where the operands of a VEX instruction are, two bits for each operand in <see cref="MicroOp.Places"/>.</summary>
internal static class VexPlace
{
    public const int Vector = 0, General = 1, Memory = 2;

    /// <summary>The bits of operand <paramref name="k"/>.</summary>
    public static byte Of(int k, int place) => (byte)(place << (2 * k));
}

/// <summary>
/// Runs AVX, AVX2, FMA and F16C instructions through host stubs. What <see cref="SseHandlers"/> says of exceptions holds here too. An
/// instruction with a 128-bit result clears the upper half of its register: the host's very instruction does.
/// </summary>
internal static unsafe class VexHandlers
{
    // SAFETY: register numbers are 0..15 from the decoder; a stub reads and writes 16 bytes at a register's pointer and 16 more at
    // VectorState.HighDistance behind it, or up to 32 bytes at Bounce and Result. The XSAVE area has room for all of these.

    /// <summary>
    /// Whether AVX instructions may run (Intel SDM vol. 2A section 2.4 and vol. 1 section 14.3); if not, return <see cref="Unusable"/>.
    /// </summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool Usable(CpuState* s) =>
        (s->Cr0 & (Cr0.Ts | Cr0.Pe)) == Cr0.Pe && (s->Cr4 & Cr4.OsXsave) != 0
        && (s->Xcr0 & (ExtendedState.Sse | ExtendedState.Avx)) == (ExtendedState.Sse | ExtendedState.Avx) && (s->SystemFlags & RFlags.Vm) == 0;

    /// <summary>#UD or #NM, in this order.</summary>
    [MethodImpl(MethodImplOptions.NoInlining)]
    public static Outcome Unusable(Interpreter cpu, CpuState* s) =>
        (s->Cr0 & Cr0.Pe) != 0 && (s->Cr4 & Cr4.OsXsave) != 0
        && (s->Xcr0 & (ExtendedState.Sse | ExtendedState.Avx)) == (ExtendedState.Sse | ExtendedState.Avx) && (s->SystemFlags & RFlags.Vm) == 0
            ? cpu.Raise(Vector.DeviceNotAvailable) : cpu.RaiseUd();

    /// <summary>An operation without floating-point exceptions.</summary>
    public static Outcome Integer(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if (!Usable(s))
            return Unusable(cpu, s);
        if (!Fetch(cpu, s, op))
            return Outcome.Fault;
        Call(s, op, Target(s, op), 0);
        return (op->Places & 3) == VexPlace.Memory ? Deposit(cpu, s, op) : Outcome.Next;
    }

    /// <summary>A floating-point operation.</summary>
    public static Outcome Float(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if (!Usable(s))
            return Unusable(cpu, s);
        // VCVTPS2PH: a fault must not leave flags in MXCSR.
        if ((op->Places & 3) == VexPlace.Memory && !cpu.ProbeWrite(s, cpu.Linear(s, op, op->OperandSize, write: true), op->Segment, op->OperandSize))
            return Outcome.Fault;
        if (!Fetch(cpu, s, op))
            return Outcome.Fault;
        uint* mxcsr = (uint*)(s->Xsave + CpuState.MxcsrOffset);
        uint control = *mxcsr;
        byte* target = Target(s, op);
        if ((control & VectorState.MxcsrMasks) == VectorState.MxcsrMasks)
        {
            *mxcsr = (uint)Call(s, op, target, control);
        }
        else
        {
            byte* result = s->Xsave + VectorState.Result;
            if (!Unmasked(cpu, s, op, result, out _))
                return Outcome.Fault;
            switch (op->Places & 3)
            {
                case VexPlace.General:
                    *(ulong*)target = *(ulong*)result;
                    break;
                case VexPlace.Vector:
                    *(Vector128<byte>*)target = *(Vector128<byte>*)result;
                    *(Vector128<byte>*)(target + VectorState.HighDistance) = *(Vector128<byte>*)(result + VectorState.HighDistance);
                    break;
                default:
                    break;
            }
        }
        return (op->Places & 3) == VexPlace.Memory ? Deposit(cpu, s, op) : Outcome.Next;
    }

    /// <summary>VCOMISS, VUCOMISD and the like: the result is in RFLAGS.</summary>
    public static Outcome Compare(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if (!Usable(s))
            return Unusable(cpu, s);
        if (!Fetch(cpu, s, op))
            return Outcome.Fault;
        uint* mxcsr = (uint*)(s->Xsave + CpuState.MxcsrOffset);
        uint control = *mxcsr;
        ulong r;
        if ((control & VectorState.MxcsrMasks) == VectorState.MxcsrMasks)
        {
            r = Call(s, op, s->Xsave + VectorState.Result, control);
            *mxcsr = (uint)r;
        }
        else if (!Unmasked(cpu, s, op, s->Xsave + VectorState.Result, out r))
        {
            return Outcome.Fault;
        }
        CpuStateExtensions.SetStatusFlags(s, (uint)(r >> 32));
        return Outcome.Next;
    }

    /// <summary>VPTEST, VTESTPS, VTESTPD: the result is in RFLAGS.</summary>
    public static Outcome Test(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if (!Usable(s))
            return Unusable(cpu, s);
        if (!Fetch(cpu, s, op))
            return Outcome.Fault;
        ulong r = Call(s, op, s->Xsave + VectorState.Result, 0);
        CpuStateExtensions.SetStatusFlags(s, (uint)(r >> 32));
        return Outcome.Next;
    }

    /// <summary>VPCMPESTRI and its family: as the legacy forms, and a mask result clears the upper half of YMM0. Src2 is 1 for a mask result.</summary>
    public static Outcome CompareStrings<TSrc>(Interpreter cpu, CpuState* s, MicroOp* op)
        where TSrc : struct, IStubSource
    {
        if (!Usable(s))
            return Unusable(cpu, s);
        if (!TSrc.Fetch(cpu, s, op, out byte* source))
            return Outcome.Fault;
        SseHandlers.RunCompareStrings(s, op, source);
        if (op->Src2 != 0)
            *VectorState.YmmHigh(s, 0) = default;
        return Outcome.Next;
    }

    /// <summary>VLDMXCSR.</summary>
    public static Outcome LoadMxcsr(Interpreter cpu, CpuState* s, MicroOp* op) => Usable(s) ? SseHandlers.LoadMxcsrUnchecked(cpu, s, op) : Unusable(cpu, s);

    /// <summary>VSTMXCSR.</summary>
    public static Outcome StoreMxcsr(Interpreter cpu, CpuState* s, MicroOp* op) =>
        Usable(s) ? cpu.StoreOperand<uint>(s, op, *(uint*)(s->Xsave + CpuState.MxcsrOffset)) : Unusable(cpu, s);

    private static byte* Pointer(CpuState* s, int place, byte number) =>
        place == VexPlace.Vector ? (byte*)VectorState.Xmm(s, number)
        : place == VexPlace.General ? (byte*)s + number
        : s->Xsave + VectorState.Bounce;

    private static byte* Target(CpuState* s, MicroOp* op) =>
        (op->Places & 3) == VexPlace.Memory ? s->Xsave + VectorState.Result : Pointer(s, op->Places & 3, op->Dst);

    // Brings a source in memory to the bounce buffer.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static bool Fetch(Interpreter cpu, CpuState* s, MicroOp* op) =>
        (op->Places & 0b10101000) == 0 || cpu.LoadBytes(s, cpu.Linear(s, op, op->OperandSize), op->Segment, s->Xsave + VectorState.Bounce, op->OperandSize);

    private static Outcome Deposit(Interpreter cpu, CpuState* s, MicroOp* op) =>
        cpu.StoreBytes(s, cpu.Linear(s, op, op->OperandSize, write: true), op->Segment, s->Xsave + VectorState.Result, op->OperandSize);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static ulong Call(CpuState* s, MicroOp* op, byte* result, uint control)
    {
        int places = op->Places;
        byte* first = Pointer(s, places & 1, op->Dst);
        // SAFETY: Aux is a stub that HostStubs made for this very form; all pointers are into the vCPU's own state.
        return ((delegate* unmanaged[SuppressGCTransition]<byte*, byte*, byte*, byte*, uint, byte*, ulong>)op->Aux)(
            result, Pointer(s, places >> 2 & 3, op->Src), Pointer(s, places >> 4 & 3, op->Src2), Pointer(s, places >> 6, op->Src3), control, first);
    }

    /// <summary>As <see cref="SseHandlers.Unmasked"/>.</summary>
    [MethodImpl(MethodImplOptions.NoInlining)]
    private static bool Unmasked(Interpreter cpu, CpuState* s, MicroOp* op, byte* result, out ulong answer)
    {
        uint* mxcsr = (uint*)(s->Xsave + CpuState.MxcsrOffset);
        uint control = *mxcsr;
        uint enabled = SseHandlers.Enabled(control);
        uint run = SseHandlers.MaskedControl(control);
        answer = Call(s, op, result, run);
        uint raised = (uint)answer & SseHandlers.Flags;
        if ((raised & enabled & SseHandlers.InvalidDenormalZero) != 0)
        {
            *mxcsr = control | (raised & SseHandlers.InvalidDenormalZero);
            return SseHandlers.Raise(cpu, s);
        }
        if ((enabled & SseHandlers.Underflow) != 0 && (raised & SseHandlers.Underflow) == 0)
        {
            raised |= op->Narrows
                ? TinyHalves(result, op->OperandSize)
                : (uint)Call(s, op, s->Xsave + VectorState.Spare, run | SseHandlers.FlushToZero) & SseHandlers.Underflow;
        }
        *mxcsr = control | raised;
        return (raised & enabled) == 0 || SseHandlers.Raise(cpu, s);
    }

    // VCVTPS2PH takes no notice of flush-to-zero. What is exact and tiny is a half-precision denormal.
    private static uint TinyHalves(byte* result, int bytes)
    {
        for (int k = 0; k < bytes / 2; k++)
        {
            int half = ((ushort*)result)[k] & 0x7FFF;
            if (half is > 0 and < 0x400)
                return SseHandlers.Underflow;
        }
        return 0;
    }
}
