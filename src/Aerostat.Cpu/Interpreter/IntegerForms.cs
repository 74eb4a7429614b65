using System.Runtime.CompilerServices;

namespace Aerostat.Cpu;

/// <summary>How a memory operand's linear address is made, as a type, so that each handler is compiled for one way.</summary>
internal unsafe interface IAddress
{
    static abstract ulong Linear<T>(Interpreter cpu, CpuState* s, MicroOp* op, bool write)
        where T : unmanaged;
}

/// <summary>64-bit code, no index, no segment base: also RIP-relative and absolute.</summary>
internal readonly unsafe struct BaseAddress : IAddress
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static ulong Linear<T>(Interpreter cpu, CpuState* s, MicroOp* op, bool write)
        where T : unmanaged => *(ulong*)((byte*)s + op->Base) + (ulong)op->Displacement;
}

/// <summary>64-bit code with an index, no segment base.</summary>
internal readonly unsafe struct IndexedAddress : IAddress
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static ulong Linear<T>(Interpreter cpu, CpuState* s, MicroOp* op, bool write)
        where T : unmanaged =>
        *(ulong*)((byte*)s + op->Base) + (*(ulong*)((byte*)s + op->Index) << op->Scale) + (ulong)op->Displacement;
}

/// <summary>64-bit code and 64-bit address size with an FS or GS base.</summary>
internal readonly unsafe struct BasedAddress : IAddress
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static ulong Linear<T>(Interpreter cpu, CpuState* s, MicroOp* op, bool write)
        where T : unmanaged =>
        *(ulong*)((byte*)s + op->Base) + (*(ulong*)((byte*)s + op->Index) << op->Scale) + (ulong)op->Displacement
        + CpuStateExtensions.Segment(s, op->Segment)->Base;
}

/// <summary>Any address, told apart at run time: 16- and 32-bit code with its segment checks, and operations too rare for forms of their own.</summary>
internal readonly unsafe struct AnyAddress : IAddress
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static ulong Linear<T>(Interpreter cpu, CpuState* s, MicroOp* op, bool write)
        where T : unmanaged => cpu.Linear(s, op, sizeof(T), write);
}

/// <summary>Which <see cref="IAddress"/> an operation needs.</summary>
internal enum AddressForm
{
    Base,
    Indexed,
    Based,
    Any,
}

/// <summary>
/// The part of a memory access that the TLB serves at once. The common handlers try this first and else hand the whole instruction to a
/// second method, so that the first needs no stack frame.
/// </summary>
internal static unsafe class FastMemory
{
    // SAFETY: an entry whose tag matches holds the host address of a whole mapped page, and the comparison leaves room for the operand. The
    // operand bytes of an operation are register offsets inside CpuState, as OperandDecoder makes them.

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool TryLoad<T>(CpuState* s, ulong linear, out ulong value)
        where T : unmanaged
    {
        TlbEntry* e = s->Tlb + ((linear >> 12) & (Interpreter.TlbEntries - 1));
        ulong t = linear ^ e->ReadTag;
        if (t <= (ulong)(4096 - sizeof(T)))
        {
            value = Interpreter.ReadAs<T>(e->ReadHost + t);
            return true;
        }
        value = 0;
        return false;
    }

    /// <summary>Host address for writing; false: not served here, no fault recorded.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool TryMap<T>(CpuState* s, ulong linear, out byte* mapped)
        where T : unmanaged
    {
        TlbEntry* e = s->Tlb + ((linear >> 12) & (Interpreter.TlbEntries - 1));
        ulong t = linear ^ e->WriteTag;
        if (t <= (ulong)(4096 - sizeof(T)))
        {
            mapped = e->WriteHost + t;
            return true;
        }
        mapped = null;
        return false;
    }
}

/// <summary>An operand that is read.</summary>
internal unsafe interface ISource
{
    /// <summary>False: not to be had without the slow path; nothing has happened.</summary>
    static abstract bool TryRead<T>(Interpreter cpu, CpuState* s, MicroOp* op, out ulong value)
        where T : unmanaged;

    /// <summary>False: a fault is recorded.</summary>
    static abstract bool Read<T>(Interpreter cpu, CpuState* s, MicroOp* op, out ulong value)
        where T : unmanaged;
}

/// <summary>Register operand 0 (<see cref="MicroOp.Dst"/>).</summary>
internal readonly unsafe struct FirstRegister : ISource
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool TryRead<T>(Interpreter cpu, CpuState* s, MicroOp* op, out ulong value)
        where T : unmanaged => Read<T>(cpu, s, op, out value);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool Read<T>(Interpreter cpu, CpuState* s, MicroOp* op, out ulong value)
        where T : unmanaged
    {
        value = Interpreter.ReadRegister<T>(s, op->Dst);
        return true;
    }
}

/// <summary>Register operand 1 (<see cref="MicroOp.Src"/>).</summary>
internal readonly unsafe struct SecondRegister : ISource
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool TryRead<T>(Interpreter cpu, CpuState* s, MicroOp* op, out ulong value)
        where T : unmanaged => Read<T>(cpu, s, op, out value);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool Read<T>(Interpreter cpu, CpuState* s, MicroOp* op, out ulong value)
        where T : unmanaged
    {
        value = Interpreter.ReadRegister<T>(s, op->Src);
        return true;
    }
}

/// <summary>Register operand 2 (<see cref="MicroOp.Src2"/>).</summary>
internal readonly unsafe struct ThirdRegister : ISource
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool TryRead<T>(Interpreter cpu, CpuState* s, MicroOp* op, out ulong value)
        where T : unmanaged => Read<T>(cpu, s, op, out value);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool Read<T>(Interpreter cpu, CpuState* s, MicroOp* op, out ulong value)
        where T : unmanaged
    {
        value = Interpreter.ReadRegister<T>(s, op->Src2);
        return true;
    }
}

/// <summary>Immediate, cut to the operand size when it was bound.</summary>
internal readonly unsafe struct ImmediateSource : ISource
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool TryRead<T>(Interpreter cpu, CpuState* s, MicroOp* op, out ulong value)
        where T : unmanaged => Read<T>(cpu, s, op, out value);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool Read<T>(Interpreter cpu, CpuState* s, MicroOp* op, out ulong value)
        where T : unmanaged
    {
        value = op->Immediate;
        return true;
    }
}

/// <summary>Memory operand.</summary>
internal readonly unsafe struct MemorySource<TAddress> : ISource
    where TAddress : struct, IAddress
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool TryRead<T>(Interpreter cpu, CpuState* s, MicroOp* op, out ulong value)
        where T : unmanaged => FastMemory.TryLoad<T>(s, TAddress.Linear<T>(cpu, s, op, write: false), out value);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool Read<T>(Interpreter cpu, CpuState* s, MicroOp* op, out ulong value)
        where T : unmanaged => cpu.Load<T>(s, TAddress.Linear<T>(cpu, s, op, write: false), op->Segment, out value);
}

/// <summary>An operand that is written, or read and written.</summary>
internal unsafe interface IPlace : ISource
{
    /// <summary>Host address of the operand for reading and writing; false: not to be had without the slow path, nothing has happened.</summary>
    static abstract bool TryMap<T>(Interpreter cpu, CpuState* s, MicroOp* op, out byte* mapped)
        where T : unmanaged;

    /// <summary>Writes what <see cref="TryMap"/> found.</summary>
    static abstract void Set<T>(byte* mapped, ulong value)
        where T : unmanaged;

    /// <summary>Host address of the operand for reading and writing, or null with a fault recorded.</summary>
    static abstract byte* Map<T>(Interpreter cpu, CpuState* s, MicroOp* op)
        where T : unmanaged;

    /// <summary>Writes what <see cref="Map"/> found.</summary>
    static abstract Outcome Update<T>(Interpreter cpu, CpuState* s, MicroOp* op, byte* mapped, ulong value)
        where T : unmanaged;

    /// <summary>Writes without reading.</summary>
    static abstract Outcome Write<T>(Interpreter cpu, CpuState* s, MicroOp* op, ulong value)
        where T : unmanaged;

    /// <summary>Whether <see cref="Map"/> can fail.</summary>
    static abstract bool IsMemory { get; }
}

/// <summary>Register operand 0.</summary>
internal readonly unsafe struct RegisterPlace : IPlace
{
    public static bool IsMemory => false;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool TryRead<T>(Interpreter cpu, CpuState* s, MicroOp* op, out ulong value)
        where T : unmanaged => Read<T>(cpu, s, op, out value);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool Read<T>(Interpreter cpu, CpuState* s, MicroOp* op, out ulong value)
        where T : unmanaged
    {
        value = Interpreter.ReadRegister<T>(s, op->Dst);
        return true;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool TryMap<T>(Interpreter cpu, CpuState* s, MicroOp* op, out byte* mapped)
        where T : unmanaged
    {
        mapped = (byte*)s + op->Dst;
        return true;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Set<T>(byte* mapped, ulong value)
        where T : unmanaged
    {
        // A 32-bit result clears the upper half.
        if (sizeof(T) == 4)
            *(ulong*)mapped = (uint)value;
        else
            Interpreter.WriteAs<T>(mapped, value);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static byte* Map<T>(Interpreter cpu, CpuState* s, MicroOp* op)
        where T : unmanaged => (byte*)s + op->Dst;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Outcome Update<T>(Interpreter cpu, CpuState* s, MicroOp* op, byte* mapped, ulong value)
        where T : unmanaged
    {
        Set<T>(mapped, value);
        return Outcome.Next;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Outcome Write<T>(Interpreter cpu, CpuState* s, MicroOp* op, ulong value)
        where T : unmanaged
    {
        Interpreter.WriteRegister<T>(s, op->Dst, value);
        return Outcome.Next;
    }
}

/// <summary>Memory operand.</summary>
internal readonly unsafe struct MemoryPlace<TAddress> : IPlace
    where TAddress : struct, IAddress
{
    public static bool IsMemory => true;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool TryRead<T>(Interpreter cpu, CpuState* s, MicroOp* op, out ulong value)
        where T : unmanaged => FastMemory.TryLoad<T>(s, TAddress.Linear<T>(cpu, s, op, write: false), out value);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool Read<T>(Interpreter cpu, CpuState* s, MicroOp* op, out ulong value)
        where T : unmanaged => cpu.Load<T>(s, TAddress.Linear<T>(cpu, s, op, write: false), op->Segment, out value);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool TryMap<T>(Interpreter cpu, CpuState* s, MicroOp* op, out byte* mapped)
        where T : unmanaged => FastMemory.TryMap<T>(s, TAddress.Linear<T>(cpu, s, op, write: true), out mapped);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Set<T>(byte* mapped, ulong value)
        where T : unmanaged => Interpreter.WriteAs<T>(mapped, value);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static byte* Map<T>(Interpreter cpu, CpuState* s, MicroOp* op)
        where T : unmanaged => cpu.MapRmwAt<T>(s, TAddress.Linear<T>(cpu, s, op, write: true), op->Segment);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Outcome Update<T>(Interpreter cpu, CpuState* s, MicroOp* op, byte* mapped, ulong value)
        where T : unmanaged
    {
        Interpreter.WriteAs<T>(mapped, value);
        return cpu.FinishRmw(s);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Outcome Write<T>(Interpreter cpu, CpuState* s, MicroOp* op, ulong value)
        where T : unmanaged => cpu.Store<T>(s, TAddress.Linear<T>(cpu, s, op, write: true), op->Segment, value);
}
