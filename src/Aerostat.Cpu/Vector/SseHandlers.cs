using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;
using Aerostat.X86;

namespace Aerostat.Cpu;

/// <summary>Where a stub finds its second operand.</summary>
internal unsafe interface IStubSource
{
    /// <summary>Host pointer to the operand; false: fault recorded.</summary>
    static abstract bool Fetch(Interpreter cpu, CpuState* s, MicroOp* op, out byte* operand);
}

/// <summary>What a stub's first operand is.</summary>
internal unsafe interface IStubDestination
{
    /// <summary>Whether the result goes to guest memory, hence through a buffer.</summary>
    static abstract bool IsMemory { get; }

    /// <summary>Where the first operand is read from.</summary>
    static abstract byte* Locate(CpuState* s, MicroOp* op);

    /// <summary>Where the result goes.</summary>
    static abstract byte* LocateResult(CpuState* s, MicroOp* op);
}

/// <summary>
/// Runs SSE instructions through host stubs. Floating-point forms run with the guest's rounding, DAZ and FTZ and all exceptions masked;
/// the flags that come out are added to the guest's MXCSR, and an unmasked one raises #XM with the destination unchanged.
/// </summary>
/// <remarks>
/// Intel SDM vol. 1 sections 11.5.2 and 11.5.3. An unmasked invalid, denormal or divide-by-zero exception in any element leaves the
/// flags of rounding (overflow, underflow, precision) as they were. Unmasked underflow means a tiny result even if it is exact: a second run
/// with FTZ tells. Approximated: with overflow or underflow unmasked the precision flag is that of the masked result, where a processor
/// looks at the result with its exponent wrapped; and DPPS and DPPD, which consist of several operations, report the flags of all of
/// them where a processor stops at the first with an unmasked exception.
/// </remarks>
internal static unsafe class SseHandlers
{
    internal const uint InvalidDenormalZero = 7, Underflow = 16, Flags = 0x3F, FlushToZero = 0x8000;

    public readonly struct Xmm : IStubSource, IStubDestination
    {
        public static bool IsMemory => false;

        public static bool Fetch(Interpreter cpu, CpuState* s, MicroOp* op, out byte* operand)
        {
            operand = (byte*)VectorState.Xmm(s, op->Src);
            return true;
        }

        public static byte* Locate(CpuState* s, MicroOp* op) => (byte*)VectorState.Xmm(s, op->Dst);

        public static byte* LocateResult(CpuState* s, MicroOp* op) => (byte*)VectorState.Xmm(s, op->Dst);
    }

    public readonly struct General : IStubSource, IStubDestination
    {
        public static bool IsMemory => false;

        public static bool Fetch(Interpreter cpu, CpuState* s, MicroOp* op, out byte* operand)
        {
            operand = (byte*)s + op->Src;
            return true;
        }

        public static byte* Locate(CpuState* s, MicroOp* op) => (byte*)s + op->Dst;

        public static byte* LocateResult(CpuState* s, MicroOp* op) => (byte*)s + op->Dst;
    }

    /// <summary>A 16-byte operand that must be aligned (Intel SDM vol. 2 section 2.4, exception types 1, 2 and 4 without VEX).</summary>
    public readonly struct Aligned : IStubSource
    {
        public static bool Fetch(Interpreter cpu, CpuState* s, MicroOp* op, out byte* operand)
        {
            operand = s->Xsave + VectorState.Bounce;
            ulong linear = cpu.Linear(s, op, 16);
            if ((linear & 15) != 0)
            {
                cpu.RaiseGp();
                return false;
            }
            bool done = VectorState.Load128(cpu, s, linear, op->Segment, out Vector128<byte> v);
            *(Vector128<byte>*)operand = v;
            return done;
        }
    }

    /// <summary>A scalar operand of 4 or 8 bytes.</summary>
    public readonly struct Scalar<T> : IStubSource
        where T : unmanaged
    {
        public static bool Fetch(Interpreter cpu, CpuState* s, MicroOp* op, out byte* operand)
        {
            operand = s->Xsave + VectorState.Bounce;
            bool done = cpu.LoadOperand<T>(s, op, out ulong v);
            *(ulong*)operand = v;
            return done;
        }
    }

    /// <summary>Any other memory operand, of OperandSize bytes and any alignment; also the first operand in memory.</summary>
    public readonly struct Memory : IStubSource, IStubDestination
    {
        public static bool IsMemory => true;

        public static bool Fetch(Interpreter cpu, CpuState* s, MicroOp* op, out byte* operand)
        {
            operand = s->Xsave + VectorState.Bounce;
            return VectorState.LoadSized(cpu, s, op, op->OperandSize, operand);
        }

        public static byte* Locate(CpuState* s, MicroOp* op) => s->Xsave + VectorState.Bounce;

        public static byte* LocateResult(CpuState* s, MicroOp* op) => s->Xsave + VectorState.Result;
    }

    /// <summary>Calls the stub of an operation. XMM0 goes along as the implicit operand.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static ulong Call(CpuState* s, MicroOp* op, byte* first, byte* second, byte* result, uint control) =>
        // SAFETY: Aux is a stub that HostStubs made for this very form; all pointers are into the vCPU's own state.
        ((delegate* unmanaged[SuppressGCTransition]<byte*, byte*, byte*, uint, byte*, ulong>)op->Aux)(
            first, second, result, control, s->Xsave + CpuState.XmmOffset);

    /// <summary>An operation without floating-point exceptions.</summary>
    public static Outcome Integer<TDst, TSrc>(Interpreter cpu, CpuState* s, MicroOp* op)
        where TDst : struct, IStubDestination
        where TSrc : struct, IStubSource
    {
        if (!VectorState.Usable(s))
            return VectorState.Unusable(cpu, s);
        if (!TSrc.Fetch(cpu, s, op, out byte* source))
            return Outcome.Fault;
        byte* result = TDst.LocateResult(s, op);
        Call(s, op, TDst.Locate(s, op), source, result, 0);
        return TDst.IsMemory
            ? cpu.StoreBytes(s, cpu.Linear(s, op, op->OperandSize, write: true), op->Segment, result, op->OperandSize)
            : Outcome.Next;
    }

    /// <summary>A floating-point operation.</summary>
    public static Outcome Float<TDst, TSrc>(Interpreter cpu, CpuState* s, MicroOp* op)
        where TDst : struct, IStubDestination
        where TSrc : struct, IStubSource
    {
        if (!VectorState.Usable(s))
            return VectorState.Unusable(cpu, s);
        if (!TSrc.Fetch(cpu, s, op, out byte* source))
            return Outcome.Fault;
        uint* mxcsr = (uint*)(s->Xsave + CpuState.MxcsrOffset);
        uint control = *mxcsr;
        byte* target = TDst.Locate(s, op);
        if ((control & VectorState.MxcsrMasks) == VectorState.MxcsrMasks)
        {
            *mxcsr = (uint)Call(s, op, target, source, target, control);
            return Outcome.Next;
        }
        // A register result is at most 16 bytes; a general register takes the low 8.
        byte* result = s->Xsave + VectorState.Result;
        if (!Unmasked(cpu, s, op, target, source, result, out _))
            return Outcome.Fault;
        if (typeof(TDst) == typeof(General))
            *(ulong*)target = *(ulong*)result;
        else
            *(Vector128<byte>*)target = *(Vector128<byte>*)result;
        return Outcome.Next;
    }

    /// <summary>COMISS, UCOMISD and the like: the result is in RFLAGS.</summary>
    public static Outcome Compare<TSrc>(Interpreter cpu, CpuState* s, MicroOp* op)
        where TSrc : struct, IStubSource
    {
        if (!VectorState.Usable(s))
            return VectorState.Unusable(cpu, s);
        if (!TSrc.Fetch(cpu, s, op, out byte* source))
            return Outcome.Fault;
        uint* mxcsr = (uint*)(s->Xsave + CpuState.MxcsrOffset);
        uint control = *mxcsr;
        byte* first = (byte*)VectorState.Xmm(s, op->Dst);
        ulong r;
        if ((control & VectorState.MxcsrMasks) == VectorState.MxcsrMasks)
        {
            r = Call(s, op, first, source, null, control);
            *mxcsr = (uint)r;
        }
        else if (!Unmasked(cpu, s, op, first, source, null, out r))
        {
            return Outcome.Fault;
        }
        CpuStateExtensions.SetStatusFlags(s, (uint)(r >> 32));
        return Outcome.Next;
    }

    /// <summary>PTEST: the result is in RFLAGS.</summary>
    public static Outcome Test<TSrc>(Interpreter cpu, CpuState* s, MicroOp* op)
        where TSrc : struct, IStubSource
    {
        if (!VectorState.Usable(s))
            return VectorState.Unusable(cpu, s);
        if (!TSrc.Fetch(cpu, s, op, out byte* source))
            return Outcome.Fault;
        ulong r = Call(s, op, (byte*)VectorState.Xmm(s, op->Dst), source, null, 0);
        CpuStateExtensions.SetStatusFlags(s, (uint)(r >> 32));
        return Outcome.Next;
    }

    /// <summary>
    /// PCMPESTRI and its family: the result goes to ECX or XMM0 and RFLAGS. Src2 is 1 for a mask result; the lengths are read from RAX and
    /// RDX by the forms that have them.
    /// </summary>
    public static Outcome CompareStrings<TSrc>(Interpreter cpu, CpuState* s, MicroOp* op)
        where TSrc : struct, IStubSource
    {
        if (!VectorState.Usable(s))
            return VectorState.Unusable(cpu, s);
        if (!TSrc.Fetch(cpu, s, op, out byte* source))
            return Outcome.Fault;
        RunCompareStrings(s, op, source);
        return Outcome.Next;
    }

    internal static void RunCompareStrings(CpuState* s, MicroOp* op, byte* source)
    {
        byte* result = op->Src2 != 0 ? (byte*)VectorState.Xmm(s, 0) : (byte*)&s->Gpr[1];
        // SAFETY: as Call; the fifth argument is the state itself, whose first member is RAX.
        ulong r = ((delegate* unmanaged[SuppressGCTransition]<byte*, byte*, byte*, uint, byte*, ulong>)op->Aux)(
            (byte*)VectorState.Xmm(s, op->Dst), source, result, 0, (byte*)s->Gpr);
        CpuStateExtensions.SetStatusFlags(s, (uint)(r >> 32));
    }

    /// <summary>LDMXCSR.</summary>
    public static Outcome LoadMxcsr(Interpreter cpu, CpuState* s, MicroOp* op) =>
        VectorState.Usable(s) ? LoadMxcsrUnchecked(cpu, s, op) : VectorState.Unusable(cpu, s);

    internal static Outcome LoadMxcsrUnchecked(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if (!cpu.LoadOperand<uint>(s, op, out ulong v))
            return Outcome.Fault;
        if ((v & ~(ulong)VectorState.MxcsrValid) != 0)
            return cpu.RaiseGp();
        *(uint*)(s->Xsave + CpuState.MxcsrOffset) = (uint)v;
        return Outcome.Next;
    }

    /// <summary>STMXCSR.</summary>
    public static Outcome StoreMxcsr(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if (!VectorState.Usable(s))
            return VectorState.Unusable(cpu, s);
        return cpu.StoreOperand<uint>(s, op, *(uint*)(s->Xsave + CpuState.MxcsrOffset));
    }

    /// <summary>Runs a floating-point stub for a guest that has unmasked exceptions. False: #XM (or #UD) recorded, result to be dropped.</summary>
    [MethodImpl(MethodImplOptions.NoInlining)]
    internal static bool Unmasked(Interpreter cpu, CpuState* s, MicroOp* op, byte* first, byte* source, byte* result, out ulong answer)
    {
        uint* mxcsr = (uint*)(s->Xsave + CpuState.MxcsrOffset);
        uint control = *mxcsr;
        uint enabled = Enabled(control);
        uint run = MaskedControl(control);
        answer = Call(s, op, first, source, result, run);
        uint raised = (uint)answer & Flags;
        if ((raised & enabled & InvalidDenormalZero) != 0)
        {
            *mxcsr = control | (raised & InvalidDenormalZero);
            return Raise(cpu, s);
        }
        if ((enabled & Underflow) != 0 && (raised & Underflow) == 0)
        {
            byte* dropped = s->Xsave + VectorState.Spare;
            raised |= (uint)Call(s, op, first, source, dropped, run | FlushToZero) & Underflow;
        }
        *mxcsr = control | raised;
        return (raised & enabled) == 0 || Raise(cpu, s);
    }

    /// <summary>The exceptions that are unmasked, in the places of their flags.</summary>
    internal static uint Enabled(uint control) => ~(control >> 7) & Flags;

    /// <summary>What a stub runs with instead: everything masked, no flags. Flush-to-zero has no effect while underflow is unmasked.</summary>
    internal static uint MaskedControl(uint control)
    {
        uint run = (control & ~Flags) | VectorState.MxcsrMasks;
        return (Enabled(control) & Underflow) != 0 ? run & ~FlushToZero : run;
    }

    internal static bool Raise(Interpreter cpu, CpuState* s)
    {
        if ((s->Cr4 & Cr4.OsXmmExcpt) != 0)
            cpu.Raise(Vector.SimdFloatingPoint);
        else
            cpu.RaiseUd();
        return false;
    }
}
