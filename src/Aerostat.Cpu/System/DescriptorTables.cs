using Aerostat.X86;
using Iced.Intel;

namespace Aerostat.Cpu;

/// <summary>LGDT, LIDT, LLDT, LTR and their stores (Intel SDM vol. 3 section 2.8.1).</summary>
internal static unsafe class DescriptorTables
{
    internal static bool Bind(in Instruction i, MicroOp* op, DecodeContext c)
    {
        op->OperandSize = (byte)(c.Bitness == 64 ? 8 : 4);
        switch (i.Code)
        {
            case Code.Lgdt_m1632_16:
                op->OperandSize = 2;
                op->Handler = &Lgdt;
                return true;
            case Code.Lgdt_m1632 or Code.Lgdt_m1664:
                op->Handler = &Lgdt;
                return true;
            case Code.Lidt_m1632_16:
                op->OperandSize = 2;
                op->Handler = &Lidt;
                return true;
            case Code.Lidt_m1632 or Code.Lidt_m1664:
                op->Handler = &Lidt;
                return true;
            case Code.Sgdt_m1632_16 or Code.Sgdt_m1632 or Code.Sgdt_m1664:
                op->Handler = &Sgdt;
                return true;
            case Code.Sidt_m1632_16 or Code.Sidt_m1632 or Code.Sidt_m1664:
                op->Handler = &Sidt;
                return true;
            default:
                break;
        }
        bool register = i.OpCount > 0 && i.Op0Kind == OpKind.Register;
        switch (i.Mnemonic)
        {
            case Mnemonic.Lldt:
                op->Handler = register ? &LldtRegister : &LldtMemory;
                return true;
            case Mnemonic.Ltr:
                op->Handler = register ? &LtrRegister : &LtrMemory;
                return true;
            case Mnemonic.Sldt:
                op->OperandSize = (byte)(i.Code == Code.Sldt_rm16 ? 2 : 8);
                op->Handler = register ? &SldtRegister : &SldtMemory;
                return true;
            case Mnemonic.Str:
                op->OperandSize = (byte)(i.Code == Code.Str_rm16 ? 2 : 8);
                op->Handler = register ? &StrRegister : &StrMemory;
                return true;
            default:
                return false;
        }
    }

    /// <summary>Whether UMIP keeps the system registers from this code.</summary>
    internal static bool Hidden(CpuState* s) => s->Cpl != 0 && (s->Cr4 & Cr4.Umip) != 0;

    private static bool LoadTable(Interpreter cpu, CpuState* s, MicroOp* op, out uint limit, out ulong b)
    {
        limit = 0;
        b = 0;
        if (s->Cpl != 0)
        {
            cpu.RaiseGp();
            return false;
        }
        int bytes = op->OperandSize == 8 ? 10 : 6;
        byte* data = stackalloc byte[16];
        // SAFETY: at most 10 bytes are read into the 16.
        if (!cpu.LoadBytes(s, cpu.Linear(s, op, bytes), op->Segment, data, bytes))
            return false;
        limit = *(ushort*)data;
        b = op->OperandSize == 8 ? *(ulong*)(data + 2) : op->OperandSize == 4 ? *(uint*)(data + 2) : *(uint*)(data + 2) & 0xFF_FFFF;
        if (op->OperandSize == 8 && !cpu.IsLoadable(b))
        {
            cpu.RaiseGp();
            return false;
        }
        return true;
    }

    private static Outcome StoreTable(Interpreter cpu, CpuState* s, MicroOp* op, uint limit, ulong b)
    {
        if (Hidden(s))
            return cpu.RaiseGp();
        int bytes = op->OperandSize == 8 ? 10 : 6;
        byte* data = stackalloc byte[16];
        // SAFETY: at most 10 of the 16 bytes are used.
        *(ushort*)data = (ushort)limit;
        *(ulong*)(data + 2) = b;
        return cpu.StoreBytes(s, cpu.Linear(s, op, bytes, write: true), op->Segment, data, bytes);
    }

    private static Outcome Lgdt(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if (!LoadTable(cpu, s, op, out uint limit, out ulong b))
            return Outcome.Fault;
        (s->GdtLimit, s->GdtBase) = (limit, b);
        return Outcome.Next;
    }

    private static Outcome Lidt(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if (!LoadTable(cpu, s, op, out uint limit, out ulong b))
            return Outcome.Fault;
        (s->IdtLimit, s->IdtBase) = (limit, b);
        return Outcome.Next;
    }

    private static Outcome Sgdt(Interpreter cpu, CpuState* s, MicroOp* op) => StoreTable(cpu, s, op, s->GdtLimit, s->GdtBase);

    private static Outcome Sidt(Interpreter cpu, CpuState* s, MicroOp* op) => StoreTable(cpu, s, op, s->IdtLimit, s->IdtBase);

    private static Outcome LldtRegister(Interpreter cpu, CpuState* s, MicroOp* op) => cpu.LoadLdt(s, Interpreter.ReadRegister<ushort>(s, op->Dst));

    private static Outcome LtrRegister(Interpreter cpu, CpuState* s, MicroOp* op) => cpu.LoadTaskRegister(s, Interpreter.ReadRegister<ushort>(s, op->Dst));

    // Privilege is checked before the operand is read.
    private static Outcome LldtMemory(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if (!Interpreter.IsProtected(s))
            return cpu.RaiseUd();
        if (s->Cpl != 0)
            return cpu.RaiseGp();
        return cpu.LoadOperand<ushort>(s, op, out ulong selector) ? cpu.LoadLdt(s, selector) : Outcome.Fault;
    }

    private static Outcome LtrMemory(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if (!Interpreter.IsProtected(s))
            return cpu.RaiseUd();
        if (s->Cpl != 0)
            return cpu.RaiseGp();
        return cpu.LoadOperand<ushort>(s, op, out ulong selector) ? cpu.LoadTaskRegister(s, selector) : Outcome.Fault;
    }

    private static Outcome StoreRegister(Interpreter cpu, CpuState* s, MicroOp* op, ushort selector)
    {
        if (!Interpreter.IsProtected(s))
            return cpu.RaiseUd();
        if (Hidden(s))
            return cpu.RaiseGp();
        if (op->OperandSize == 2)
            Interpreter.WriteRegister<ushort>(s, op->Dst, selector);
        else
            Interpreter.WriteRegister<ulong>(s, op->Dst, selector);
        return Outcome.Next;
    }

    private static Outcome StoreMemory(Interpreter cpu, CpuState* s, MicroOp* op, ushort selector)
    {
        if (!Interpreter.IsProtected(s))
            return cpu.RaiseUd();
        return Hidden(s) ? cpu.RaiseGp() : cpu.StoreOperand<ushort>(s, op, selector);
    }

    private static Outcome SldtRegister(Interpreter cpu, CpuState* s, MicroOp* op) => StoreRegister(cpu, s, op, s->Ldtr.Selector);

    private static Outcome SldtMemory(Interpreter cpu, CpuState* s, MicroOp* op) => StoreMemory(cpu, s, op, s->Ldtr.Selector);

    private static Outcome StrRegister(Interpreter cpu, CpuState* s, MicroOp* op) => StoreRegister(cpu, s, op, s->Tr.Selector);

    private static Outcome StrMemory(Interpreter cpu, CpuState* s, MicroOp* op) => StoreMemory(cpu, s, op, s->Tr.Selector);
}
