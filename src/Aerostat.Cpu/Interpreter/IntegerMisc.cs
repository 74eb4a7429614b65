using System.Runtime.Intrinsics.X86;
using System.Security.Cryptography;
using Aerostat.X86;
using static Aerostat.Cpu.IntegerFlags;

namespace Aerostat.Cpu;

/// <content>Translation without an access.</content>
internal sealed unsafe partial class Interpreter
{
    /// <summary>Whether a byte may be read at <paramref name="linear"/>; reads nothing, so MMIO notices nothing. False: fault recorded.</summary>
    internal bool ProbeRead(CpuState* s, ulong linear, int segment)
    {
        TlbEntry* e = s->Tlb + ((linear >> 12) & (TlbEntries - 1));
        return (linear ^ e->ReadTag) < 4096
            || (CheckLinear(s, linear, segment, 1) && Translate(s, linear, DataAccess(s), out _));
    }
}

/// <summary>Decimal adjustment, single flags, fences, hints and random numbers.</summary>
internal static unsafe class MiscHandlers
{
    public static Outcome Nop(Interpreter cpu, CpuState* s, MicroOp* op) => Outcome.Next;

    public static Outcome Pause(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if (X86Base.IsSupported)
            X86Base.Pause();
        cpu.NotePause();
        return Outcome.Next;
    }

    /// <summary>The only reordering of an x86 host that a guest can see is a store after a later load; MFENCE stops it.</summary>
    public static Outcome Fence(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        Interlocked.MemoryBarrier();
        return Outcome.Next;
    }

    /// <summary>CLFLUSH and its kind: caches are not modelled, but the address is translated as for a read of one byte.</summary>
    public static Outcome Flush(Interpreter cpu, CpuState* s, MicroOp* op) =>
        cpu.ProbeRead(s, cpu.Linear(s, op, 1), op->Segment) ? Outcome.Next : Outcome.Fault;

    public static Outcome Clc(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        SetCarry(s, 0);
        return Outcome.Next;
    }

    public static Outcome Stc(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        SetCarry(s, 1);
        return Outcome.Next;
    }

    public static Outcome Cmc(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        s->FlagCarry ^= CarryBits;
        return Outcome.Next;
    }

    public static Outcome Cld(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        s->SystemFlags &= ~RFlags.Df;
        return Outcome.Next;
    }

    public static Outcome Std(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        s->SystemFlags |= RFlags.Df;
        return Outcome.Next;
    }

    public static Outcome Lahf(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        ((byte*)s->Gpr)[1] = (byte)CpuStateExtensions.GetRflags(s);
        return Outcome.Next;
    }

    public static Outcome Sahf(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        const uint Loaded = RFlags.Sf | RFlags.Zf | RFlags.Af | RFlags.Pf | RFlags.Cf;
        CpuStateExtensions.SetStatusFlags(s, (((byte*)s->Gpr)[1] & Loaded) | (CpuStateExtensions.Of(s) ? RFlags.Of : 0));
        return Outcome.Next;
    }

    public static Outcome Salc(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        *(byte*)s->Gpr = CpuStateExtensions.Cf(s) ? (byte)0xFF : (byte)0;
        return Outcome.Next;
    }

    public static Outcome Daa(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        byte al = (byte)s->Gpr[0], r = al;
        bool cf = CpuStateExtensions.Cf(s), high = al > 0x99 || cf, low = (al & 15) > 9 || CpuStateExtensions.Af(s);
        if (low)
            r += 6;
        if (high)
            r += 0x60;
        return Adjusted(s, r, high, low);
    }

    public static Outcome Das(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        byte al = (byte)s->Gpr[0], r = al;
        bool cf = CpuStateExtensions.Cf(s), high = al > 0x99 || cf, low = (al & 15) > 9 || CpuStateExtensions.Af(s);
        if (low)
            r -= 6;
        if (high)
            r -= 0x60;
        return Adjusted(s, r, high || (low && al < 6), low);
    }

    public static Outcome Aaa(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        bool adjust = (s->Gpr[0] & 15) > 9 || CpuStateExtensions.Af(s);
        ushort ax = (ushort)s->Gpr[0];
        if (adjust)
            ax += 0x106;
        *(ushort*)s->Gpr = (ushort)(ax & 0xFF0F);
        SetResult<byte>(s, (byte)(ax & 15));
        CpuStateExtensions.SetCarryFlags(s, adjust, of: false, adjust);
        return Outcome.Next;
    }

    public static Outcome Aas(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        bool adjust = (s->Gpr[0] & 15) > 9 || CpuStateExtensions.Af(s);
        ushort ax = (ushort)s->Gpr[0];
        if (adjust)
            ax -= 0x106;
        *(ushort*)s->Gpr = (ushort)(ax & 0xFF0F);
        SetResult<byte>(s, (byte)(ax & 15));
        CpuStateExtensions.SetCarryFlags(s, adjust, of: false, adjust);
        return Outcome.Next;
    }

    public static Outcome Aam(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        byte al = (byte)s->Gpr[0], divisor = (byte)op->Immediate;
        if (divisor == 0)
            return cpu.Raise(Vector.DivideError);
        (byte q, byte r) = Math.DivRem(al, divisor);
        *(ushort*)s->Gpr = (ushort)(r | (q << 8));
        SetLogic<byte>(s, r);
        return Outcome.Next;
    }

    public static Outcome Aad(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        byte r = (byte)(s->Gpr[0] + ((s->Gpr[0] >> 8) * op->Immediate));
        *(ushort*)s->Gpr = r;
        SetLogic<byte>(s, r);
        return Outcome.Next;
    }

    /// <summary>BOUND: the two bounds stand next to each other in memory; each needs only its own alignment.</summary>
    public static Outcome Bound16(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        ulong linear = cpu.Linear(s, op, 4);
        if (!cpu.Load<ushort>(s, linear, op->Segment, out ulong lower) || !cpu.Load<ushort>(s, (uint)(linear + 2), op->Segment, out ulong upper))
            return Outcome.Fault;
        short index = *(short*)((byte*)s + op->Dst);
        return index < (short)lower || index > (short)upper ? cpu.Raise(Vector.BoundRange) : Outcome.Next;
    }

    public static Outcome Bound32(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        ulong linear = cpu.Linear(s, op, 8);
        if (!cpu.Load<uint>(s, linear, op->Segment, out ulong lower) || !cpu.Load<uint>(s, (uint)(linear + 4), op->Segment, out ulong upper))
            return Outcome.Fault;
        int index = *(int*)((byte*)s + op->Dst);
        return index < (int)lower || index > (int)upper ? cpu.Raise(Vector.BoundRange) : Outcome.Next;
    }

    /// <summary>RDRAND and RDSEED: always at once, CF = 1 and the other status flags 0.</summary>
    public static Outcome Random<T>(Interpreter cpu, CpuState* s, MicroOp* op)
        where T : unmanaged
    {
        ulong v = 0;
        RandomNumberGenerator.Fill(new Span<byte>(&v, sizeof(ulong)));
        Interpreter.WriteRegister<T>(s, op->Dst, v);
        s->FlagZero = 1;
        s->FlagSignParity = 1;
        s->FlagCarry = CarryBits;
        return Outcome.Next;
    }

    private static Outcome Adjusted(CpuState* s, byte al, bool cf, bool af)
    {
        *(byte*)s->Gpr = al;
        SetResult<byte>(s, al);
        CpuStateExtensions.SetCarryFlags(s, cf, of: false, af);
        return Outcome.Next;
    }
}
