using Aerostat.X86;
using Iced.Intel;

namespace Aerostat.Cpu;

/// <summary>Software interrupts, IRET and far JMP, CALL and RET.</summary>
internal static unsafe class FarTransfers
{
    internal static bool Bind(in Instruction i, MicroOp* op, DecodeContext c)
    {
        switch (i.Code)
        {
            case Code.Int_imm8:
                op->Handler = &Int;
                return true;
            case Code.Int3:
                op->Handler = &Int3;
                return true;
            case Code.Into:
                op->Handler = &Into;
                return true;
            case Code.Int1:
                op->Handler = &Int1;
                return true;
            case Code.Iretw or Code.Iretd or Code.Iretq:
                op->OperandSize = (byte)(i.Code == Code.Iretw ? 2 : i.Code == Code.Iretd ? 4 : 8);
                op->Handler = op->OperandSize == 8 ? &IretLong : &Iret;
                return true;
            case Code.Retfw or Code.Retfw_imm16:
                op->OperandSize = 2;
                op->Handler = &ReturnFar;
                return true;
            case Code.Retfd or Code.Retfd_imm16:
                op->OperandSize = 4;
                op->Handler = &ReturnFar;
                return true;
            case Code.Retfq or Code.Retfq_imm16:
                op->OperandSize = 8;
                op->Handler = &ReturnFar;
                return true;
            case Code.Jmp_ptr1616 or Code.Call_ptr1616:
            case Code.Jmp_ptr1632 or Code.Call_ptr1632:
                op->OperandSize = (byte)(i.Code is Code.Jmp_ptr1616 or Code.Call_ptr1616 ? 2 : 4);
                op->Handler = i.Mnemonic == Mnemonic.Call ? &CallDirect : &JumpDirect;
                return true;
            case Code.Jmp_m1616 or Code.Jmp_m1632 or Code.Jmp_m1664:
                op->OperandSize = (byte)(i.Code == Code.Jmp_m1616 ? 2 : i.Code == Code.Jmp_m1632 ? 4 : 8);
                op->Handler = &JumpIndirect;
                return true;
            case Code.Call_m1616 or Code.Call_m1632 or Code.Call_m1664:
                op->OperandSize = (byte)(i.Code == Code.Call_m1616 ? 2 : i.Code == Code.Call_m1632 ? 4 : 8);
                op->Handler = &CallIndirect;
                return true;
            default:
                return false;
        }
    }

    private static Outcome SoftwareEvent(Interpreter cpu, CpuState* s, MicroOp* op, EventKind kind, int vector) =>
        cpu.TryDeliver(s, kind, vector, hasError: false, 0, Interpreter.NextRip(s, op)) ? Outcome.Jump : Outcome.Fault;

    // In virtual-8086 mode INT n, unlike INT3 and INTO, needs IOPL 3 (Intel SDM vol. 3 section 21.2.7).
    private static Outcome Int(Interpreter cpu, CpuState* s, MicroOp* op) =>
        Interpreter.IsVm86Restricted(s) ? cpu.RaiseGp() : SoftwareEvent(cpu, s, op, EventKind.SoftwareInterrupt, (byte)op->Immediate);

    private static Outcome Int3(Interpreter cpu, CpuState* s, MicroOp* op) => SoftwareEvent(cpu, s, op, EventKind.SoftwareException, Vector.Breakpoint);

    private static Outcome Into(Interpreter cpu, CpuState* s, MicroOp* op) =>
        CpuStateExtensions.Of(s) ? SoftwareEvent(cpu, s, op, EventKind.SoftwareException, Vector.Overflow) : Outcome.Next;

    private static Outcome Int1(Interpreter cpu, CpuState* s, MicroOp* op) =>
        SoftwareEvent(cpu, s, op, EventKind.PrivilegedSoftwareException, Vector.Debug);

    private static Outcome Iret(Interpreter cpu, CpuState* s, MicroOp* op) =>
        cpu.InterruptReturn(s, op->OperandSize, Interpreter.NextRip(s, op));

    private static Outcome IretLong(Interpreter cpu, CpuState* s, MicroOp* op) => cpu.InterruptReturn64(s, 8);

    private static Outcome ReturnFar(Interpreter cpu, CpuState* s, MicroOp* op) => cpu.ReturnFar(s, op->OperandSize, (ushort)op->Immediate);

    private static Outcome JumpDirect(Interpreter cpu, CpuState* s, MicroOp* op) =>
        cpu.JumpFar(s, (ushort)op->Aux, op->Immediate, Interpreter.NextRip(s, op));

    private static Outcome CallDirect(Interpreter cpu, CpuState* s, MicroOp* op) =>
        cpu.CallFar(s, (ushort)op->Aux, op->Immediate, op->OperandSize, Interpreter.NextRip(s, op));

    private static Outcome JumpIndirect(Interpreter cpu, CpuState* s, MicroOp* op) =>
        cpu.LoadFarPointer(s, op, out ushort selector, out ulong offset)
            ? cpu.JumpFar(s, selector, offset, Interpreter.NextRip(s, op)) : Outcome.Fault;

    private static Outcome CallIndirect(Interpreter cpu, CpuState* s, MicroOp* op) =>
        cpu.LoadFarPointer(s, op, out ushort selector, out ulong offset)
            ? cpu.CallFar(s, selector, offset, op->OperandSize, Interpreter.NextRip(s, op)) : Outcome.Fault;
}
