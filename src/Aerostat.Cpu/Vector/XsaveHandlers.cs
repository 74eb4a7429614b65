using System.Runtime.Intrinsics;
using Aerostat.X86;

namespace Aerostat.Cpu;

/// <summary>
/// XSAVE, XSAVEOPT, XSAVEC, XSAVES, XRSTOR and XRSTORS (Intel SDM vol. 1 chapter 13) for the components in <see cref="Components"/>.
/// IA32_XSS has no bits in the model, so the supervisor forms save user components in the compacted format.
/// </summary>
/// <remarks>The modified optimisation is not used: XSAVEOPT and XSAVES write every component in use.</remarks>
internal static unsafe class XsaveHandlers
{
    // SAFETY: components lie within the vCPU's area of XsaveBytes; local images have the same layout and size.

    private const ulong X87 = 1, Sse = 2, Avx = 4, Pkru = 1 << 9, Compacted = 1UL << 63;
    private const int LegacyBytes = 512, HeaderBytes = 64, ExtendedStart = 576;

    /// <summary>State components from bit 2 on: offset in the standard format (also in the vCPU's own area), size, 64-byte alignment in the compacted one.</summary>
    private static readonly (int Bit, int Offset, int Size, bool Aligned)[] Components = [(2, CpuState.YmmHighOffset, 256, false), (9, CpuState.PkruOffset, 8, false)];

    /// <summary>Components that exist here; XCR0 must stay within.</summary>
    public const ulong Supported = X87 | Sse | Avx | Pkru;

    /// <summary>XSAVE: standard format. OperandSize is 8 for the 64-bit forms of all of these.</summary>
    public static Outcome Save(Interpreter cpu, CpuState* s, MicroOp* op) => Save(cpu, s, op, compacted: false, onlyUsed: false);

    /// <summary>XSAVEOPT: standard format, without components in their initial configuration.</summary>
    public static Outcome SaveOptimized(Interpreter cpu, CpuState* s, MicroOp* op) => Save(cpu, s, op, compacted: false, onlyUsed: true);

    /// <summary>XSAVEC.</summary>
    public static Outcome SaveCompacted(Interpreter cpu, CpuState* s, MicroOp* op) => Save(cpu, s, op, compacted: true, onlyUsed: true);

    /// <summary>XSAVES.</summary>
    public static Outcome SaveSupervisor(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if (!Ready(cpu, s))
            return Outcome.Fault;
        return s->Cpl != 0 ? cpu.RaiseGp() : Save(cpu, s, op, compacted: true, onlyUsed: true);
    }

    /// <summary>XRSTOR, either format.</summary>
    public static Outcome Restore(Interpreter cpu, CpuState* s, MicroOp* op) => Restore(cpu, s, op, supervisor: false);

    /// <summary>XRSTORS: compacted format only.</summary>
    public static Outcome RestoreSupervisor(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if (!Ready(cpu, s))
            return Outcome.Fault;
        return s->Cpl != 0 ? cpu.RaiseGp() : Restore(cpu, s, op, supervisor: true);
    }

    /// <summary>XINUSE: components that are not in their initial configuration.</summary>
    public static ulong InUse(CpuState* s)
    {
        ulong used = 0;
        byte* area = s->Xsave;
        Vector128<byte> any = default;
        for (int k = 0; k < 8; k++)
            any |= Vector128.Load(area + CpuState.StOffset + (16 * k));
        if (*(ulong*)area != X87Environment.DefaultControl || X87Environment.InstructionPointer(area) != 0
            || X87Environment.DataPointer(area) != 0 || any != default)
        {
            used |= X87;
        }
        if (!IsZero(area + CpuState.XmmOffset, 256))
            used |= Sse;
        foreach ((int bit, int offset, int size, _) in Components)
        {
            if (!IsZero(area + offset, size))
                used |= 1UL << bit;
        }
        return used;
    }

    private static bool Ready(Interpreter cpu, CpuState* s)
    {
        if ((s->Cr4 & Cr4.OsXsave) == 0)
            cpu.RaiseUd();
        else if ((s->Cr0 & Cr0.Ts) != 0)
            cpu.Raise(Vector.DeviceNotAvailable);
        else
            return true;
        return false;
    }

    private static Outcome Save(Interpreter cpu, CpuState* s, MicroOp* op, bool compacted, bool onlyUsed)
    {
        if (!Ready(cpu, s))
            return Outcome.Fault;
        ulong requested = Requested(s);
        int end = EndOf(requested, compacted);
        ulong linear = cpu.Linear(s, op, end, write: true);
        if ((linear & 63) != 0)
            return cpu.RaiseGp();
        // All or nothing as far as the pages go; the area is written in pieces.
        if (!cpu.ProbeWrite(s, linear, op->Segment, 1) || !cpu.ProbeWrite(s, VectorState.Advance(s, linear, end - 1), op->Segment, 1))
            return Outcome.Fault;
        Outcome result = Outcome.Next;

        byte* area = s->Xsave;
        ulong used = InUse(s) & requested;
        // In the compacted format MXCSR belongs to the SSE component and counts for it (section 13.10).
        if (compacted && (requested & Sse) != 0 && *(uint*)(area + CpuState.MxcsrOffset) != VectorState.MxcsrDefault)
            used |= Sse;
        ulong written = onlyUsed ? used : requested;
        byte* image = stackalloc byte[LegacyBytes];
        if ((written & X87) != 0)
        {
            StateHandlers.WriteX87(area, image, op->OperandSize == 8);
            Write(cpu, s, op, linear, 0, image, 24, ref result);
            Write(cpu, s, op, linear, CpuState.StOffset, image + CpuState.StOffset, 128, ref result);
        }
        if ((written & Sse) != 0 || (!compacted && (requested & (Sse | Avx)) != 0))
        {
            uint* mxcsr = stackalloc uint[2];
            mxcsr[0] = *(uint*)(area + CpuState.MxcsrOffset);
            mxcsr[1] = VectorState.MxcsrValid;
            Write(cpu, s, op, linear, CpuState.MxcsrOffset, (byte*)mxcsr, 8, ref result);
        }
        if ((written & Sse) != 0)
            Write(cpu, s, op, linear, CpuState.XmmOffset, area + CpuState.XmmOffset, XmmBytes(s), ref result);
        int place = ExtendedStart;
        foreach ((int bit, int offset, int size, bool aligned) in Components)
        {
            if ((requested >> bit & 1) == 0)
                continue;
            place = compacted ? aligned ? (place + 63) & ~63 : place : offset;
            if ((written >> bit & 1) != 0)
                Write(cpu, s, op, linear, place, area + offset, YmmBytes(s, bit, size), ref result);
            place += size;
        }

        ulong* header = stackalloc ulong[2];
        if (compacted)
        {
            header[0] = used;
            header[1] = requested | Compacted;
            Write(cpu, s, op, linear, LegacyBytes, (byte*)header, 16, ref result);
        }
        else
        {
            // XSTATE_BV keeps its bits for what was not asked for; XCOMP_BV is not written (section 13.7).
            if (!cpu.Load<ulong>(s, VectorState.Advance(s, linear, LegacyBytes), op->Segment, out ulong old))
                return Outcome.Fault;
            header[0] = (old & ~requested) | used;
            Write(cpu, s, op, linear, LegacyBytes, (byte*)header, 8, ref result);
        }
        return result;
    }

    private static Outcome Restore(Interpreter cpu, CpuState* s, MicroOp* op, bool supervisor)
    {
        if (!Ready(cpu, s))
            return Outcome.Fault;
        ulong requested = Requested(s);
        ulong linear = cpu.Linear(s, op, ExtendedStart);
        if ((linear & 63) != 0)
            return cpu.RaiseGp();
        ulong* header = stackalloc ulong[8];
        if (!cpu.LoadBytes(s, VectorState.Advance(s, linear, LegacyBytes), op->Segment, (byte*)header, HeaderBytes))
            return Outcome.Fault;
        ulong present = header[0], layout = header[1];
        bool compacted = (layout & Compacted) != 0;
        ulong reserved = header[2];
        if (compacted)
            reserved |= header[3] | header[4] | header[5] | header[6] | header[7];
        if (reserved != 0
            || (supervisor && !compacted)
            || (compacted && ((layout & ~Compacted & ~s->Xcr0) != 0 || (present & ~layout) != 0 || (present & Compacted) != 0))
            || (!compacted && (layout != 0 || (present & ~s->Xcr0) != 0)))
        {
            return cpu.RaiseGp();
        }

        // Everything is read and checked before the first register changes.
        ulong load = requested & present;
        byte* image = stackalloc byte[CpuState.XsaveBytes];
        int end = compacted ? EndOf(layout & ~Compacted & s->Xcr0, true) : EndOf(load, false);
        if (end > ExtendedStart)
            linear = cpu.Linear(s, op, end);
        bool mxcsrLoaded = compacted ? (load & Sse) != 0 : (requested & (Sse | Avx)) != 0;
        if (((load & (X87 | Sse)) != 0 || mxcsrLoaded) && !cpu.LoadBytes(s, linear, op->Segment, image, LegacyBytes))
            return Outcome.Fault;
        if (mxcsrLoaded && (*(uint*)(image + CpuState.MxcsrOffset) & ~VectorState.MxcsrValid) != 0)
            return cpu.RaiseGp();
        int place = ExtendedStart;
        foreach ((int bit, int offset, int size, bool aligned) in Components)
        {
            if (((compacted ? layout : load) >> bit & 1) == 0)
                continue;
            place = compacted ? aligned ? (place + 63) & ~63 : place : offset;
            if ((load >> bit & 1) != 0 && !cpu.LoadBytes(s, VectorState.Advance(s, linear, place), op->Segment, image + offset, size))
                return Outcome.Fault;
            place += size;
        }

        byte* area = s->Xsave;
        uint pkru = *(uint*)(area + CpuState.PkruOffset);
        if ((load & X87) != 0)
            StateHandlers.ReadX87(area, image, op->OperandSize == 8);
        else if ((requested & X87) != 0)
            X87Environment.Clear(area);
        if (mxcsrLoaded)
            *(uint*)(area + CpuState.MxcsrOffset) = *(uint*)(image + CpuState.MxcsrOffset);
        else if (compacted && (requested & Sse) != 0)
            *(uint*)(area + CpuState.MxcsrOffset) = VectorState.MxcsrDefault;
        if ((load & Sse) != 0)
            Buffer.MemoryCopy(image + CpuState.XmmOffset, area + CpuState.XmmOffset, 256, XmmBytes(s));
        else if ((requested & Sse) != 0)
            new Span<byte>(area + CpuState.XmmOffset, XmmBytes(s)).Clear();
        foreach ((int bit, int offset, int size, _) in Components)
        {
            int bytes = YmmBytes(s, bit, size);
            if ((load >> bit & 1) != 0)
                Buffer.MemoryCopy(image + offset, area + offset, size, bytes);
            else if ((requested >> bit & 1) != 0)
                new Span<byte>(area + offset, bytes).Clear();
        }
        if (*(uint*)(area + CpuState.PkruOffset) != pkru)
        {
            cpu.FlushTlb();
            return Outcome.Stop;
        }
        return Outcome.Next;
    }

    // RFBM: what EDX:EAX asks for within XCR0.
    private static ulong Requested(CpuState* s) => ((s->Gpr[2] << 32) | (uint)s->Gpr[0]) & s->Xcr0 & Supported;

    private static int EndOf(ulong mask, bool compacted)
    {
        int end = ExtendedStart;
        foreach ((int bit, int offset, int size, bool aligned) in Components)
        {
            if ((mask >> bit & 1) != 0)
                end = (compacted ? aligned ? (end + 63) & ~63 : end : offset) + size;
        }
        return end;
    }

    // Registers 8 to 15 are neither saved nor restored outside 64-bit mode (section 13.5.2, 13.5.3).
    private static int XmmBytes(CpuState* s) => s->Bitness == 64 ? 256 : 128;

    private static int YmmBytes(CpuState* s, int bit, int size) => bit == 2 && s->Bitness != 64 ? 128 : size;

    private static bool IsZero(byte* p, int bytes) => !new ReadOnlySpan<byte>(p, bytes).ContainsAnyExcept((byte)0);

    private static void Write(Interpreter cpu, CpuState* s, MicroOp* op, ulong linear, int offset, byte* source, int bytes, ref Outcome result)
    {
        Outcome o = cpu.StoreBytes(s, VectorState.Advance(s, linear, offset), op->Segment, source, bytes);
        // The probe has shown that the pages can be written: a fault here means another processor took one away meanwhile. It stands.
        if (o != Outcome.Next && result != Outcome.Fault)
            result = o;
    }
}
