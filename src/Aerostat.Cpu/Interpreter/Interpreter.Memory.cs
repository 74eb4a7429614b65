using System.Runtime.CompilerServices;
using Aerostat.X86;

namespace Aerostat.Cpu;

/// <content>Memory access as instructions see it: effective address, segmentation, TLB, faults.</content>
internal sealed unsafe partial class Interpreter
{
    /// <summary>Entries of one TLB set.</summary>
    internal const int TlbEntries = 8192;

    /// <summary>
    /// A linear address that no TLB entry matches: stands for a segment violation, which the slow path turns into #GP or #SS.
    /// </summary>
    internal const ulong SegmentViolation = 0x8000_0000_0000_0000;

    /// <summary>Effective address (offset within the segment) of the memory operand, cut to the address size.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal static ulong EffectiveAddress(CpuState* s, MicroOp* op)
    {
        ulong a = *(ulong*)((byte*)s + op->Base) + (*(ulong*)((byte*)s + op->Index) << op->Scale) + (ulong)op->Displacement;
        return op->AddressBits == 64 ? a : op->AddressBits == 32 ? (uint)a : (ushort)a;
    }

    /// <summary>
    /// Linear address of the memory operand of <paramref name="size"/> bytes. A segment violation gives <see cref="SegmentViolation"/>.
    /// </summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal ulong Linear(CpuState* s, MicroOp* op, int size, bool write = false)
    {
        if (op->AddressKind == AddressKind.Flat)
            return *(ulong*)((byte*)s + op->Base) + (*(ulong*)((byte*)s + op->Index) << op->Scale) + (ulong)op->Displacement;
        return SegmentLinear(s, op->Segment, EffectiveAddress(s, op), size, write);
    }

    /// <summary>Linear address of <paramref name="offset"/> in a segment, with the checks of the present mode.</summary>
    internal ulong SegmentLinear(CpuState* s, int segment, ulong offset, int size, bool write)
    {
        SegmentRegister* r = CpuStateExtensions.Segment(s, segment);
        if (s->Bitness == 64)
            return segment >= Seg.Fs ? offset + r->Base : offset;
        uint o = (uint)offset, last = o + (uint)size - 1;
        uint type = r->Attributes;
        if ((type & SegmentRegister.Unusable) != 0)
            return SegmentViolation;
        if ((s->Cr0 & Cr0.Pe) != 0 && (s->SystemFlags & RFlags.Vm) == 0)
        {
            bool code = (type & 8) != 0;
            if (write ? code || (type & 2) == 0 : code && (type & 2) == 0)
                return SegmentViolation;
        }
        // Expand-down data segments are valid above the limit (Intel SDM vol. 3 section 6.3).
        if ((type & 0xC) == 4)
        {
            uint top = (type & SegmentRegister.Db) != 0 ? uint.MaxValue : 0xFFFF;
            if (o <= r->Limit || last > top || last < o)
                return SegmentViolation;
        }
        else if (last > r->Limit || last < o)
        {
            return SegmentViolation;
        }
        return (uint)(r->Base + o);
    }

    /// <summary>
    /// Reads <c>sizeof(T)</c> bytes (T is byte, ushort, uint or ulong) zero-extended. False: a fault is recorded, return <see cref="Outcome.Fault"/>.
    /// <paramref name="segment"/> decides between #SS and #GP.
    /// </summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal bool Load<T>(CpuState* s, ulong linear, int segment, out ulong value)
        where T : unmanaged
    {
        TlbEntry* e = s->Tlb + ((linear >> 12) & (TlbEntries - 1));
        ulong t = linear ^ e->ReadTag;
        if (t <= (ulong)(4096 - sizeof(T)))
        {
            value = ReadAs<T>(e->ReadHost + t);
            return true;
        }
        return LoadSlow(s, linear, segment, sizeof(T), out value);
    }

    /// <summary>Reads the memory operand of <paramref name="op"/>.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal bool LoadOperand<T>(CpuState* s, MicroOp* op, out ulong value)
        where T : unmanaged => Load<T>(s, Linear(s, op, sizeof(T)), op->Segment, out value);

    /// <summary>Writes the low <c>sizeof(T)</c> bytes of <paramref name="value"/>. Next, Fault, or Stop when decoded code was hit.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal Outcome Store<T>(CpuState* s, ulong linear, int segment, ulong value)
        where T : unmanaged
    {
        TlbEntry* e = s->Tlb + ((linear >> 12) & (TlbEntries - 1));
        ulong t = linear ^ e->WriteTag;
        if (t <= (ulong)(4096 - sizeof(T)))
        {
            WriteAs<T>(e->WriteHost + t, value);
            return Outcome.Next;
        }
        return StoreSlow(s, linear, segment, sizeof(T), value);
    }

    /// <summary>Writes the memory operand of <paramref name="op"/>.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal Outcome StoreOperand<T>(CpuState* s, MicroOp* op, ulong value)
        where T : unmanaged => Store<T>(s, Linear(s, op, sizeof(T), write: true), op->Segment, value);

    /// <summary>
    /// Host pointer for a read-modify-write of the memory operand, or null with a fault recorded (write permission is needed even
    /// if nothing will be written). Use host atomics on it for LOCK. When done, return <see cref="FinishRmw"/>; a handler that does not
    /// change the value must still call it.
    /// </summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal byte* MapRmw<T>(CpuState* s, MicroOp* op)
        where T : unmanaged
    {
        ulong linear = Linear(s, op, sizeof(T), write: true);
        return MapRmwAt<T>(s, linear, op->Segment);
    }

    /// <summary>As <see cref="MapRmw"/> for a linear address.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal byte* MapRmwAt<T>(CpuState* s, ulong linear, int segment)
        where T : unmanaged
    {
        TlbEntry* e = s->Tlb + ((linear >> 12) & (TlbEntries - 1));
        ulong t = linear ^ e->WriteTag;
        if (t <= (ulong)(4096 - sizeof(T)))
            return e->WriteHost + t;
        return MapRmwSlow(s, linear, segment, sizeof(T));
    }

    /// <summary>Ends a read-modify-write: Next or Stop.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal Outcome FinishRmw(CpuState* s) => s->RmwPending == 0 ? Outcome.Next : FinishRmwSlow(s);

    /// <summary>
    /// Host pointer for reading at <paramref name="linear"/> when its page is plain RAM in the TLB, else null (nothing is filled, nothing
    /// faults: do one element with <see cref="Load"/> and ask again). <paramref name="bytes"/>: up to the end of the page.
    /// </summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal byte* PeekRead(CpuState* s, ulong linear, out int bytes)
    {
        TlbEntry* e = s->Tlb + ((linear >> 12) & (TlbEntries - 1));
        ulong t = linear ^ e->ReadTag;
        bytes = 4096 - (int)(linear & 4095);
        return t < 4096 ? e->ReadHost + t : null;
    }

    /// <summary>As <see cref="PeekRead"/>, for writing to a page that nobody watches.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal byte* PeekWrite(CpuState* s, ulong linear, out int bytes)
    {
        TlbEntry* e = s->Tlb + ((linear >> 12) & (TlbEntries - 1));
        ulong t = linear ^ e->WriteTag;
        bytes = 4096 - (int)(linear & 4095);
        return t < 4096 ? e->WriteHost + t : null;
    }

    /// <summary>
    /// Copies <paramref name="count"/> bytes (any length up to 4096) out of guest linear memory into <paramref name="destination"/>; false: fault
    /// recorded, nothing to undo. For wide operands: SIMD, FXRSTOR, descriptor tables by the user's own access rights.
    /// </summary>
    internal bool LoadBytes(CpuState* s, ulong linear, int segment, byte* destination, int count)
    {
        byte* p = PeekRead(s, linear, out int bytes);
        if (p != null && count <= bytes)
        {
            Buffer.MemoryCopy(p, destination, count, count);
            return true;
        }
        return LoadBytesSlow(s, linear, segment, destination, count);
    }

    /// <summary>Copies bytes into guest linear memory. All pages are checked before the first byte is written. Next, Fault or Stop.</summary>
    internal Outcome StoreBytes(CpuState* s, ulong linear, int segment, byte* source, int count)
    {
        byte* p = PeekWrite(s, linear, out int bytes);
        if (p != null && count <= bytes)
        {
            Buffer.MemoryCopy(source, p, count, count);
            return Outcome.Next;
        }
        return StoreBytesSlow(s, linear, segment, source, count);
    }

    /// <summary>Pushes <c>sizeof(T)</c> bytes; RSP changes only when the write succeeded.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal Outcome Push<T>(CpuState* s, ulong value)
        where T : unmanaged
    {
        ulong rsp = s->Gpr[4] - (ulong)sizeof(T);
        if (s->Bitness == 64)
        {
            Outcome o = Store<T>(s, rsp, Seg.Ss, value);
            if (o != Outcome.Fault)
                s->Gpr[4] = rsp;
            return o;
        }
        return PushLegacy<T>(s, value);
    }

    /// <summary>Pops <c>sizeof(T)</c> bytes; RSP has moved when it returns true.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal bool Pop<T>(CpuState* s, out ulong value)
        where T : unmanaged
    {
        if (s->Bitness == 64)
        {
            if (!Load<T>(s, s->Gpr[4], Seg.Ss, out value))
                return false;
            s->Gpr[4] += (ulong)sizeof(T);
            return true;
        }
        return PopLegacy<T>(s, out value);
    }

    /// <summary>Reads at <paramref name="distance"/> bytes above the stack pointer without moving it.</summary>
    internal bool PeekStack<T>(CpuState* s, int distance, out ulong value)
        where T : unmanaged
    {
        ulong offset = (s->Gpr[4] + (ulong)distance) & s->StackMask;
        return Load<T>(s, SegmentLinear(s, Seg.Ss, offset, sizeof(T), write: false), Seg.Ss, out value);
    }

    /// <summary>Adds to the stack pointer, keeping the bits outside the stack's width.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal static void MoveStackPointer(CpuState* s, long distance) =>
        s->Gpr[4] = (s->Gpr[4] & ~s->StackMask) | ((s->Gpr[4] + (ulong)distance) & s->StackMask);

    private Outcome PushLegacy<T>(CpuState* s, ulong value)
        where T : unmanaged
    {
        ulong offset = (s->Gpr[4] - (ulong)sizeof(T)) & s->StackMask;
        Outcome o = Store<T>(s, SegmentLinear(s, Seg.Ss, offset, sizeof(T), write: true), Seg.Ss, value);
        if (o != Outcome.Fault)
            s->Gpr[4] = (s->Gpr[4] & ~s->StackMask) | offset;
        return o;
    }

    private bool PopLegacy<T>(CpuState* s, out ulong value)
        where T : unmanaged
    {
        if (!PeekStack<T>(s, 0, out value))
            return false;
        MoveStackPointer(s, sizeof(T));
        return true;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal static ulong ReadAs<T>(byte* p)
        where T : unmanaged => sizeof(T) switch
        {
            1 => *p,
            2 => *(ushort*)p,
            4 => *(uint*)p,
            _ => *(ulong*)p,
        };

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal static void WriteAs<T>(byte* p, ulong value)
        where T : unmanaged
    {
        switch (sizeof(T))
        {
            case 1: *p = (byte)value; break;
            case 2: *(ushort*)p = (ushort)value; break;
            case 4: *(uint*)p = (uint)value; break;
            default: *(ulong*)p = value; break;
        }
    }

    /// <summary>Reads a register operand (byte offset into the state), zero-extended.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal static ulong ReadRegister<T>(CpuState* s, byte register)
        where T : unmanaged => ReadAs<T>((byte*)s + register);

    /// <summary>Writes a register operand; a 32-bit write clears the upper half.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal static void WriteRegister<T>(CpuState* s, byte register, ulong value)
        where T : unmanaged
    {
        byte* p = (byte*)s + register;
        switch (sizeof(T))
        {
            case 1: *p = (byte)value; break;
            case 2: *(ushort*)p = (ushort)value; break;
            case 4: *(ulong*)p = (uint)value; break;
            default: *(ulong*)p = value; break;
        }
    }
}
