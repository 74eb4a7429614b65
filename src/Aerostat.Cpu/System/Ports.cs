using Aerostat.X86;
using Iced.Intel;

namespace Aerostat.Cpu;

/// <summary>IN, OUT, INS and OUTS with their permission checks (Intel SDM vol. 1 chapter 19).</summary>
internal static unsafe class Ports
{
    // How much of a repeated transfer is done before interrupts are looked at.
    private const int Chunk = 64;

    internal static bool Bind(in Instruction i, MicroOp* op)
    {
        switch (i.Code)
        {
            case Code.In_AL_imm8:
                op->Handler = &InImmediate<byte>;
                return true;
            case Code.In_AX_imm8:
                op->Handler = &InImmediate<ushort>;
                return true;
            case Code.In_EAX_imm8:
                op->Handler = &InImmediate<uint>;
                return true;
            case Code.In_AL_DX:
                op->Handler = &InDx<byte>;
                return true;
            case Code.In_AX_DX:
                op->Handler = &InDx<ushort>;
                return true;
            case Code.In_EAX_DX:
                op->Handler = &InDx<uint>;
                return true;
            case Code.Out_imm8_AL:
                op->Handler = &OutImmediate<byte>;
                return true;
            case Code.Out_imm8_AX:
                op->Handler = &OutImmediate<ushort>;
                return true;
            case Code.Out_imm8_EAX:
                op->Handler = &OutImmediate<uint>;
                return true;
            case Code.Out_DX_AL:
                op->Handler = &OutDx<byte>;
                return true;
            case Code.Out_DX_AX:
                op->Handler = &OutDx<ushort>;
                return true;
            case Code.Out_DX_EAX:
                op->Handler = &OutDx<uint>;
                return true;
            case Code.Insb_m8_DX:
                op->Handler = &Ins<byte>;
                return true;
            case Code.Insw_m16_DX:
                op->Handler = &Ins<ushort>;
                return true;
            case Code.Insd_m32_DX:
                op->Handler = &Ins<uint>;
                return true;
            case Code.Outsb_DX_m8:
                op->Handler = &Outs<byte>;
                return true;
            case Code.Outsw_DX_m16:
                op->Handler = &Outs<ushort>;
                return true;
            case Code.Outsd_DX_m32:
                op->Handler = &Outs<uint>;
                return true;
            default:
                return false;
        }
    }

    // A device may have raised an interrupt or asked to leave.
    private static Outcome Done(CpuState* s) => s->Request != 0 ? Outcome.Stop : Outcome.Next;

    private static Outcome In<T>(Interpreter cpu, CpuState* s, ushort port)
        where T : unmanaged
    {
        if (!cpu.MayUsePort(s, port, sizeof(T)))
            return Outcome.Fault;
        Interpreter.WriteRegister<T>(s, 0, cpu.Handler.ReadPort(port, sizeof(T)));
        cpu.CheckPortBreakpoints(s, port, sizeof(T));
        return Done(s);
    }

    private static Outcome Out<T>(Interpreter cpu, CpuState* s, ushort port)
        where T : unmanaged
    {
        if (!cpu.MayUsePort(s, port, sizeof(T)))
            return Outcome.Fault;
        cpu.Handler.WritePort(port, sizeof(T), (uint)Interpreter.ReadRegister<T>(s, 0));
        cpu.CheckPortBreakpoints(s, port, sizeof(T));
        return Done(s);
    }

    private static Outcome InImmediate<T>(Interpreter cpu, CpuState* s, MicroOp* op)
        where T : unmanaged => In<T>(cpu, s, (byte)op->Immediate);

    private static Outcome InDx<T>(Interpreter cpu, CpuState* s, MicroOp* op)
        where T : unmanaged
    {
        ushort port = (ushort)s->Gpr[2];
        if (sizeof(T) == 4 && cpu.Handler.IsBackdoor(port) && cpu.Handler.CallBackdoor(port, s->Cpl, Registers(s)))
        {
            cpu.CheckPortBreakpoints(s, port, sizeof(T));
            // The hypervisor may have changed any register, and guest memory.
            return Outcome.Stop;
        }
        return In<T>(cpu, s, port);
    }

    // SAFETY: the general registers are the first 16 elements of the state.
    private static Span<ulong> Registers(CpuState* s) => new(s->Gpr, 16);

    private static Outcome OutImmediate<T>(Interpreter cpu, CpuState* s, MicroOp* op)
        where T : unmanaged => Out<T>(cpu, s, (byte)op->Immediate);

    private static Outcome OutDx<T>(Interpreter cpu, CpuState* s, MicroOp* op)
        where T : unmanaged => Out<T>(cpu, s, (ushort)s->Gpr[2]);

    private static ulong AddressMask(MicroOp* op) => op->AddressBits == 64 ? ulong.MaxValue : op->AddressBits == 32 ? uint.MaxValue : 0xFFFFu;

    private static void Advance(CpuState* s, int register, ulong mask, long distance)
    {
        ulong value = (s->Gpr[register] + (ulong)distance) & mask;
        // A 32-bit address size clears the upper half, a 16-bit one keeps all above.
        s->Gpr[register] = mask == 0xFFFF ? (s->Gpr[register] & ~mask) | value : value;
    }

    private static bool IsRepeated(MicroOp* op) => (op->Flags & (MicroOpFlags.Rep | MicroOpFlags.RepNe)) != 0;

    // Moving nothing asks whether something may be moved.
    private static bool IsTransfer(Interpreter cpu, CpuState* s, ushort port, bool output) =>
        cpu.Handler.IsBackdoor(port) && cpu.Handler.TransferBackdoor(port, output, [], Registers(s));

    private static Outcome Ins<T>(Interpreter cpu, CpuState* s, MicroOp* op)
        where T : unmanaged
    {
        ushort port = (ushort)s->Gpr[2];
        bool repeated = IsRepeated(op);
        bool backdoor = sizeof(T) == 1 && repeated && IsTransfer(cpu, s, port, output: false);
        if (!backdoor && !cpu.MayUsePort(s, port, sizeof(T)))
            return Outcome.Fault;
        ulong mask = AddressMask(op);
        long step = (s->SystemFlags & RFlags.Df) != 0 ? -sizeof(T) : sizeof(T);
        for (int n = 0; n < Chunk; n++)
        {
            if (repeated && (s->Gpr[1] & mask) == 0)
                return Done(s);
            // The destination is checked before the device is read: what a device gives is given once.
            ulong linear = cpu.SegmentLinear(s, Seg.Es, s->Gpr[7] & mask, sizeof(T), write: true);
            byte* p = cpu.MapRmwAt<T>(s, linear, Seg.Es);
            if (p == null)
                return Outcome.Fault;
            byte moved = 0;
            Interpreter.WriteAs<T>(p, backdoor && cpu.Handler.TransferBackdoor(port, false, new Span<byte>(ref moved), Registers(s)) ? moved : cpu.Handler.ReadPort(port, sizeof(T)));
            cpu.CheckPortBreakpoints(s, port, sizeof(T));
            Outcome o = cpu.FinishRmw(s);
            Advance(s, 7, mask, step);
            if (!repeated)
                return o == Outcome.Next ? Done(s) : o;
            Advance(s, 1, mask, -1);
            if (o != Outcome.Next || (s->SystemFlags & RFlags.Tf) != 0 || s->Request != 0 || s->PendingDebug != 0 || cpu.StepsIterations)
                break;
        }
        return (s->Gpr[1] & mask) == 0 ? Outcome.Stop : Outcome.Repeat;
    }

    private static Outcome Outs<T>(Interpreter cpu, CpuState* s, MicroOp* op)
        where T : unmanaged
    {
        ushort port = (ushort)s->Gpr[2];
        bool repeated = IsRepeated(op);
        bool backdoor = sizeof(T) == 1 && repeated && IsTransfer(cpu, s, port, output: true);
        if (!backdoor && !cpu.MayUsePort(s, port, sizeof(T)))
            return Outcome.Fault;
        ulong mask = AddressMask(op);
        long step = (s->SystemFlags & RFlags.Df) != 0 ? -sizeof(T) : sizeof(T);
        for (int n = 0; n < Chunk; n++)
        {
            if (repeated && (s->Gpr[1] & mask) == 0)
                return Done(s);
            ulong linear = cpu.SegmentLinear(s, op->Segment, s->Gpr[6] & mask, sizeof(T), write: false);
            if (!cpu.Load<T>(s, linear, op->Segment, out ulong value))
                return Outcome.Fault;
            byte moved = (byte)value;
            if (!backdoor || !cpu.Handler.TransferBackdoor(port, true, new Span<byte>(ref moved), Registers(s)))
                cpu.Handler.WritePort(port, sizeof(T), (uint)value);
            cpu.CheckPortBreakpoints(s, port, sizeof(T));
            Advance(s, 6, mask, step);
            if (!repeated)
                return Done(s);
            Advance(s, 1, mask, -1);
            if ((s->SystemFlags & RFlags.Tf) != 0 || s->Request != 0 || s->PendingDebug != 0 || cpu.StepsIterations)
                break;
        }
        return (s->Gpr[1] & mask) == 0 ? Outcome.Stop : Outcome.Repeat;
    }
}
