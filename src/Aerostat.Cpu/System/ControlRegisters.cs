using Aerostat.X86;
using Iced.Intel;

namespace Aerostat.Cpu;

/// <summary>MOV to and from control and debug registers, LMSW, SMSW, CLTS (Intel SDM vol. 3 sections 2.5 and 18.2).</summary>
internal static unsafe class ControlRegisters
{
    internal static bool Bind(in Instruction i, MicroOp* op, DecodeContext c)
    {
        bool is64 = c.Bitness == 64;
        switch (i.Code)
        {
            case Code.Mov_r32_cr or Code.Mov_r64_cr:
                op->Handler = is64 ? &ReadControl<ulong> : &ReadControl<uint>;
                return true;
            case Code.Mov_cr_r32 or Code.Mov_cr_r64:
                op->OperandSize = (byte)(is64 ? 8 : 4);
                switch (op->Dst)
                {
                    case 0:
                        op->Handler = &WriteCr0;
                        return true;
                    case 2:
                        op->Handler = &WriteCr2;
                        return true;
                    case 3:
                        op->Handler = &WriteCr3;
                        return true;
                    case 4:
                        op->Handler = &WriteCr4;
                        return true;
                    case 8:
                        op->Handler = &WriteCr8;
                        return true;
                    default:
                        op->Handler = &BlockDecoder.Undefined;
                        return true;
                }
            case Code.Mov_r32_dr or Code.Mov_r64_dr:
                op->Handler = is64 ? &ReadDebug<ulong> : &ReadDebug<uint>;
                return true;
            case Code.Mov_dr_r32 or Code.Mov_dr_r64:
                op->Handler = is64 ? &WriteDebug<ulong> : &WriteDebug<uint>;
                return true;
            case Code.Clts:
                op->Handler = &Clts;
                return true;
            case Code.Lmsw_rm16 or Code.Lmsw_r32m16 or Code.Lmsw_r64m16:
                op->Handler = i.Op0Kind == OpKind.Memory ? &LmswMemory : &LmswRegister;
                return true;
            case Code.Smsw_rm16 or Code.Smsw_r32m16 or Code.Smsw_r64m16:
                op->Handler = i.Op0Kind == OpKind.Memory ? &SmswMemory
                    : i.Code == Code.Smsw_rm16 ? &SmswRegister<ushort> : i.Code == Code.Smsw_r32m16 ? &SmswRegister<uint> : &SmswRegister<ulong>;
                return true;
            default:
                return false;
        }
    }

    private static ulong Operand(CpuState* s, MicroOp* op) =>
        op->OperandSize == 8 ? Interpreter.ReadRegister<ulong>(s, op->Src) : Interpreter.ReadRegister<uint>(s, op->Src);

    private static Outcome ReadControl<T>(Interpreter cpu, CpuState* s, MicroOp* op)
        where T : unmanaged
    {
        if (s->Cpl != 0)
            return cpu.RaiseGp();
        ulong value;
        switch (op->Src)
        {
            case 0:
                value = s->Cr0;
                break;
            case 2:
                value = s->Cr2;
                break;
            case 3:
                value = s->Cr3;
                break;
            case 4:
                value = s->Cr4;
                break;
            case 8:
                value = cpu.Handler.TaskPriority;
                break;
            default:
                return cpu.RaiseUd();
        }
        Interpreter.WriteRegister<T>(s, op->Dst, value);
        return Outcome.Next;
    }

    private static Outcome WriteCr0(Interpreter cpu, CpuState* s, MicroOp* op) =>
        s->Cpl != 0 ? cpu.RaiseGp() : cpu.SetCr0(s, Operand(s, op));

    private static Outcome WriteCr2(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if (s->Cpl != 0)
            return cpu.RaiseGp();
        s->Cr2 = Operand(s, op);
        return Outcome.Next;
    }

    private static Outcome WriteCr3(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if (s->Cpl != 0)
            return cpu.RaiseGp();
        ulong value = Operand(s, op);
        bool pcids = (s->Cr4 & Cr4.Pcide) != 0;
        if (Interpreter.IsLongMode(s))
        {
            ulong reserved = (ulong.MaxValue << cpu.Model.PhysicalBits) & ~cpu.Model.Cr3Mask;
            if (pcids)
                reserved &= ~(1UL << 63);
            if ((value & reserved) != 0)
                return cpu.RaiseGp();
        }
        // With PCIDs, bit 63 says that translations of the new one may stay.
        cpu.LoadCr3(s, pcids ? value & ~(1UL << 63) : value, keep: pcids && value >> 63 != 0);
        return Outcome.Stop;
    }

    private static Outcome WriteCr4(Interpreter cpu, CpuState* s, MicroOp* op) =>
        s->Cpl != 0 ? cpu.RaiseGp() : cpu.SetCr4(s, Operand(s, op));

    private static Outcome WriteCr8(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        ulong value = Operand(s, op);
        if (s->Cpl != 0 || value > 15)
            return cpu.RaiseGp();
        cpu.Handler.TaskPriority = value;
        return Outcome.Stop;
    }

    private static Outcome Clts(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if (s->Cpl != 0)
            return cpu.RaiseGp();
        s->Cr0 &= ~Cr0.Ts;
        return Outcome.Next;
    }

    // LMSW sets PE, MP, EM and TS and cannot clear PE.
    private static Outcome Lmsw(Interpreter cpu, CpuState* s, ulong value) =>
        cpu.SetCr0(s, (s->Cr0 & ~(Cr0.Mp | Cr0.Em | Cr0.Ts)) | (value & 15));

    private static Outcome LmswRegister(Interpreter cpu, CpuState* s, MicroOp* op) =>
        s->Cpl != 0 ? cpu.RaiseGp() : Lmsw(cpu, s, Interpreter.ReadRegister<ushort>(s, op->Dst));

    private static Outcome LmswMemory(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if (s->Cpl != 0)
            return cpu.RaiseGp();
        return cpu.LoadOperand<ushort>(s, op, out ulong value) ? Lmsw(cpu, s, value) : Outcome.Fault;
    }

    private static Outcome SmswRegister<T>(Interpreter cpu, CpuState* s, MicroOp* op)
        where T : unmanaged
    {
        if (DescriptorTables.Hidden(s))
            return cpu.RaiseGp();
        Interpreter.WriteRegister<T>(s, op->Dst, s->Cr0);
        return Outcome.Next;
    }

    private static Outcome SmswMemory(Interpreter cpu, CpuState* s, MicroOp* op) =>
        DescriptorTables.Hidden(s) ? cpu.RaiseGp() : cpu.StoreOperand<ushort>(s, op, s->Cr0);

    private static Outcome ReadDebug<T>(Interpreter cpu, CpuState* s, MicroOp* op)
        where T : unmanaged
    {
        int n = op->Src;
        if (!cpu.CheckDebugAccess(s, ref n))
            return Outcome.Fault;
        Interpreter.WriteRegister<T>(s, op->Dst, s->Dr[n]);
        return Outcome.Next;
    }

    private static Outcome WriteDebug<T>(Interpreter cpu, CpuState* s, MicroOp* op)
        where T : unmanaged
    {
        int n = op->Dst;
        if (!cpu.CheckDebugAccess(s, ref n))
            return Outcome.Fault;
        ulong value = Interpreter.ReadRegister<T>(s, op->Src);
        if (n >= 6 && value >> 32 != 0)
            return cpu.RaiseGp();
        s->Dr[n] = n switch
        {
            6 => Interpreter.FixDr6(value),
            7 => Interpreter.FixDr7(value),
            _ => value,
        };
        cpu.UpdateMode();
        return Outcome.Stop;
    }
}
