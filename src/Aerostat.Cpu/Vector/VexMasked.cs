using System.Numerics;
using System.Runtime.Intrinsics;
using Aerostat.X86;

namespace Aerostat.Cpu;

/// <summary>
/// Masked moves and gathers: an element whose mask bit is clear is not touched at all, whatever its address. They are done here element by
/// element, never by the host's instruction, since each element has a guest address of its own.
/// </summary>
internal static unsafe class VexMasked
{
    // SAFETY: element numbers stay below 32 bytes; a vector's halves are VectorState.HighDistance apart.

    /// <summary>VMASKMOVPS and the like from memory: elements that are masked off become zero; a fault changes nothing.</summary>
    public static Outcome Load<T>(Interpreter cpu, CpuState* s, MicroOp* op)
        where T : unmanaged
    {
        if (!VexHandlers.Usable(s))
            return VexHandlers.Unusable(cpu, s);
        int count = op->OperandSize / sizeof(T);
        T* values = stackalloc T[8];
        uint flags = SuspendAlignmentCheck(s);
        for (int k = 0; k < count; k++)
        {
            values[k] = default;
            if (!IsSelected<T>(s, op->Src, k))
                continue;
            if (!cpu.Load<T>(s, ElementLinear(cpu, s, op, (ulong)(k * sizeof(T)), sizeof(T), write: false), op->Segment, out ulong v))
            {
                s->SystemFlags = flags;
                return Outcome.Fault;
            }
            Interpreter.WriteAs<T>((byte*)(values + k), v);
        }
        s->SystemFlags = flags;
        *VectorState.Xmm(s, op->Dst) = *(Vector128<byte>*)values;
        *VectorState.YmmHigh(s, op->Dst) = op->OperandSize == 32 ? *((Vector128<byte>*)values + 1) : default;
        return Outcome.Next;
    }

    /// <summary>VMASKMOVPS and the like to memory: every selected element is checked before the first is written.</summary>
    public static Outcome Store<T>(Interpreter cpu, CpuState* s, MicroOp* op)
        where T : unmanaged
    {
        if (!VexHandlers.Usable(s))
            return VexHandlers.Unusable(cpu, s);
        int count = op->OperandSize / sizeof(T);
        uint flags = SuspendAlignmentCheck(s);
        Outcome result = Outcome.Next;
        for (int k = 0; k < count && result == Outcome.Next; k++)
        {
            if (IsSelected<T>(s, op->Src, k) && !cpu.ProbeWrite(s, ElementLinear(cpu, s, op, (ulong)(k * sizeof(T)), sizeof(T), write: true), op->Segment, sizeof(T)))
                result = Outcome.Fault;
        }
        for (int k = 0; k < count && result != Outcome.Fault; k++)
        {
            if (!IsSelected<T>(s, op->Src, k))
                continue;
            ulong linear = ElementLinear(cpu, s, op, (ulong)(k * sizeof(T)), sizeof(T), write: true);
            Outcome o = cpu.Store<T>(s, linear, op->Segment, Interpreter.ReadAs<T>(Element<T>(s, op->Src2, k)));
            if (o != Outcome.Next)
                result = o;
        }
        s->SystemFlags = flags;
        return result;
    }

    /// <summary>VMASKMOVDQU.</summary>
    public static Outcome StoreBytes(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if (!VexHandlers.Usable(s))
            return VexHandlers.Unusable(cpu, s);
        Vector128<byte> data = *VectorState.Xmm(s, op->Src);
        return SseMoves.StoreMasked(cpu, s, op, (byte*)&data, VectorState.Xmm(s, op->Src2)->ExtractMostSignificantBits(), 16);
    }

    /// <summary>
    /// VGATHERDPS and the like. OperandSize is the number of elements. Each element that has arrived clears its mask, so that after a
    /// fault the instruction goes on where it stopped (Intel SDM vol. 2, VPGATHERDD). Of the mask of what is left the sign counts.
    /// </summary>
    public static Outcome Gather<TIndex, T>(Interpreter cpu, CpuState* s, MicroOp* op)
        where TIndex : unmanaged, IBinaryInteger<TIndex>
        where T : unmanaged
    {
        if (!VexHandlers.Usable(s))
            return VexHandlers.Unusable(cpu, s);
        int count = op->OperandSize;
        uint flags = SuspendAlignmentCheck(s);
        for (int k = 0; k < count; k++)
        {
            byte* mask = Element<T>(s, op->Src2, k);
            if (!IsSelected<T>(s, op->Src2, k))
            {
                Interpreter.WriteAs<T>(mask, 0);
                continue;
            }
            ulong raw = Interpreter.ReadAs<TIndex>(Element<TIndex>(s, op->Src3, k));
            ulong index = sizeof(TIndex) == 4 ? (ulong)(int)raw : raw;
            if (!cpu.Load<T>(s, ElementLinear(cpu, s, op, index << op->Scale, sizeof(T), write: false), op->Segment, out ulong v))
            {
                s->SystemFlags = flags;
                return Outcome.Fault;
            }
            Interpreter.WriteAs<T>(Element<T>(s, op->Dst, k), v);
            Interpreter.WriteAs<T>(mask, 0);
        }
        s->SystemFlags = flags;
        int bytes = count * sizeof(T);
        *VectorState.Xmm(s, op->Src2) = default;
        *VectorState.YmmHigh(s, op->Src2) = default;
        if (bytes < 32)
            *VectorState.YmmHigh(s, op->Dst) = default;
        if (bytes < 16)
            ((ulong*)VectorState.Xmm(s, op->Dst))[1] = 0;
        return Outcome.Next;
    }

    private static byte* Element<T>(CpuState* s, int register, int k)
        where T : unmanaged
    {
        int offset = k * sizeof(T);
        return (byte*)VectorState.Xmm(s, register) + offset + (offset >= 16 ? VectorState.HighDistance - 16 : 0);
    }

    private static bool IsSelected<T>(CpuState* s, int register, int k)
        where T : unmanaged => (sbyte)Element<T>(s, register, k)[sizeof(T) - 1] < 0;

    private static ulong ElementLinear(Interpreter cpu, CpuState* s, MicroOp* op, ulong distance, int size, bool write)
    {
        ulong offset = Interpreter.EffectiveAddress(s, op) + distance;
        if (op->AddressBits != 64)
            offset = op->AddressBits == 32 ? (uint)offset : (ushort)offset;
        return op->AddressKind == AddressKind.Flat ? offset : cpu.SegmentLinear(s, op->Segment, offset, size, write);
    }

    // These instructions never raise #AC. Answers the flags to put back; at privilege levels below 3 AC means something else and #AC does not exist.
    private static uint SuspendAlignmentCheck(CpuState* s)
    {
        uint flags = s->SystemFlags;
        if (s->Cpl == 3)
            s->SystemFlags &= ~RFlags.Ac;
        return flags;
    }
}
