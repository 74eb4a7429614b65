using Aerostat.X86;
using Iced.Intel;

namespace Aerostat.Cpu;

/// <summary>MOV, PUSH and POP of segment registers, LDS and its kin, and the instructions that test selectors.</summary>
internal static unsafe class SegmentInstructions
{
    internal static bool Bind(in Instruction i, MicroOp* op)
    {
        switch (i.Code)
        {
            case Code.Mov_Sreg_rm16 or Code.Mov_Sreg_r32m16 or Code.Mov_Sreg_r64m16:
                op->Handler = i.Op1Kind == OpKind.Memory ? &LoadFromMemory : &LoadFromRegister;
                return true;
            case Code.Mov_rm16_Sreg or Code.Mov_r32m16_Sreg or Code.Mov_r64m16_Sreg:
                // Dst or memory gets segment register Src.
                op->Handler = i.Op0Kind == OpKind.Memory ? &StoreToMemory : i.Code == Code.Mov_rm16_Sreg ? &StoreToRegister16 : &StoreToRegister;
                return true;
            case Code.Pushw_ES or Code.Pushw_CS or Code.Pushw_SS or Code.Pushw_DS or Code.Pushw_FS or Code.Pushw_GS:
                op->Handler = &Push<ushort>;
                return true;
            case Code.Pushd_ES or Code.Pushd_CS or Code.Pushd_SS or Code.Pushd_DS or Code.Pushd_FS or Code.Pushd_GS:
                op->Handler = &Push<uint>;
                return true;
            case Code.Pushq_FS or Code.Pushq_GS:
                op->Handler = &Push<ulong>;
                return true;
            case Code.Popw_ES or Code.Popw_SS or Code.Popw_DS or Code.Popw_FS or Code.Popw_GS:
                op->Handler = &Pop<ushort>;
                return true;
            case Code.Popd_ES or Code.Popd_SS or Code.Popd_DS or Code.Popd_FS or Code.Popd_GS:
                op->Handler = &Pop<uint>;
                return true;
            case Code.Popq_FS or Code.Popq_GS:
                op->Handler = &Pop<ulong>;
                return true;
            default:
                break;
        }
        switch (i.Mnemonic)
        {
            case Mnemonic.Les:
                return BindFarLoad(i, op, Seg.Es);
            case Mnemonic.Lss:
                return BindFarLoad(i, op, Seg.Ss);
            case Mnemonic.Lds:
                return BindFarLoad(i, op, Seg.Ds);
            case Mnemonic.Lfs:
                return BindFarLoad(i, op, Seg.Fs);
            case Mnemonic.Lgs:
                return BindFarLoad(i, op, Seg.Gs);
            case Mnemonic.Verr:
                op->Handler = Selector(i, 0) ? &Verify<RegisterSource, ReadAccess> : &Verify<MemorySource, ReadAccess>;
                return true;
            case Mnemonic.Verw:
                op->Handler = Selector(i, 0) ? &Verify<RegisterSource, WriteAccess> : &Verify<MemorySource, WriteAccess>;
                return true;
            case Mnemonic.Lar:
                op->OperandSize = (byte)(i.Code == Code.Lar_r16_rm16 ? 2 : i.Code == Code.Lar_r32_r32m16 ? 4 : 8);
                op->Handler = Selector(i, 1) ? &Lar<RegisterSource> : &Lar<MemorySource>;
                return true;
            case Mnemonic.Lsl:
                op->OperandSize = (byte)(i.Code == Code.Lsl_r16_rm16 ? 2 : i.Code == Code.Lsl_r32_r32m16 ? 4 : 8);
                op->Handler = Selector(i, 1) ? &Lsl<RegisterSource> : &Lsl<MemorySource>;
                return true;
            case Mnemonic.Arpl:
                op->Handler = Selector(i, 0) ? &ArplRegister : &ArplMemory;
                return true;
            default:
                return false;
        }
    }

    private static bool Selector(in Instruction i, int operand) => i.GetOpKind(operand) == OpKind.Register;

    private static bool BindFarLoad(in Instruction i, MicroOp* op, int segment)
    {
        op->Src2 = (byte)segment;
        op->OperandSize = (byte)i.Op0Register.GetSize();
        op->Handler = &LoadFar;
        return true;
    }

    private static Outcome Load(Interpreter cpu, CpuState* s, int segment, ulong selector)
    {
        if (segment == Seg.Cs)
            return cpu.RaiseUd();
        if (!cpu.LoadSegment(s, segment, (ushort)selector))
            return Outcome.Fault;
        if (segment != Seg.Ss)
            return Outcome.Next;
        s->Shadow = Interpreter.MovSsShadow;
        return Outcome.Stop;
    }

    private static Outcome LoadFromRegister(Interpreter cpu, CpuState* s, MicroOp* op) =>
        Load(cpu, s, op->Dst, Interpreter.ReadRegister<ushort>(s, op->Src));

    private static Outcome LoadFromMemory(Interpreter cpu, CpuState* s, MicroOp* op) =>
        cpu.LoadOperand<ushort>(s, op, out ulong selector) ? Load(cpu, s, op->Dst, selector) : Outcome.Fault;

    private static Outcome StoreToMemory(Interpreter cpu, CpuState* s, MicroOp* op) =>
        cpu.StoreOperand<ushort>(s, op, CpuStateExtensions.Segment(s, op->Src)->Selector);

    private static Outcome StoreToRegister16(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        Interpreter.WriteRegister<ushort>(s, op->Dst, CpuStateExtensions.Segment(s, op->Src)->Selector);
        return Outcome.Next;
    }

    private static Outcome StoreToRegister(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        Interpreter.WriteRegister<ulong>(s, op->Dst, CpuStateExtensions.Segment(s, op->Src)->Selector);
        return Outcome.Next;
    }

    private static Outcome Push<T>(Interpreter cpu, CpuState* s, MicroOp* op)
        where T : unmanaged => cpu.Push<T>(s, CpuStateExtensions.Segment(s, op->Dst)->Selector);

    private static Outcome Pop<T>(Interpreter cpu, CpuState* s, MicroOp* op)
        where T : unmanaged
    {
        if (!cpu.PeekStack<T>(s, 0, out ulong selector))
            return Outcome.Fault;
        // POP SS moves the pointer of the stack it leaves; the width of the new one does not matter for it.
        ulong mask = s->StackMask;
        Outcome o = Load(cpu, s, op->Dst, selector);
        if (o != Outcome.Fault)
            s->Gpr[4] = (s->Gpr[4] & ~mask) | ((s->Gpr[4] + (ulong)sizeof(T)) & mask);
        return o;
    }

    private static Outcome LoadFar(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        byte dst = op->Dst, size = op->OperandSize;
        if (!cpu.LoadFarPointer(s, op, out ushort selector, out ulong offset))
            return Outcome.Fault;
        Outcome o = Load(cpu, s, op->Src2, selector);
        if (o == Outcome.Fault)
            return o;
        if (size == 2)
            Interpreter.WriteRegister<ushort>(s, dst, offset);
        else
            Interpreter.WriteRegister<ulong>(s, dst, offset);
        // LSS sets no shadow (Intel SDM vol. 3 section 7.8.3).
        s->Shadow = 0;
        return o;
    }

    private interface ISource
    {
        static abstract bool Read(Interpreter cpu, CpuState* s, MicroOp* op, byte register, out ulong selector);
    }

    private readonly struct RegisterSource : ISource
    {
        public static bool Read(Interpreter cpu, CpuState* s, MicroOp* op, byte register, out ulong selector)
        {
            selector = Interpreter.ReadRegister<ushort>(s, register);
            return true;
        }
    }

    private readonly struct MemorySource : ISource
    {
        public static bool Read(Interpreter cpu, CpuState* s, MicroOp* op, byte register, out ulong selector) => cpu.LoadOperand<ushort>(s, op, out selector);
    }

    private interface IAccess
    {
        static abstract bool Allows(in Descriptor d);
    }

    private readonly struct ReadAccess : IAccess
    {
        public static bool Allows(in Descriptor d) => d.IsReadable;
    }

    private readonly struct WriteAccess : IAccess
    {
        public static bool Allows(in Descriptor d) => d.IsWritableData;
    }

    private static void SetZf(CpuState* s, bool zf) => s->FlagZero = zf ? 0UL : 1;

    private static Outcome Verify<TSource, TAccess>(Interpreter cpu, CpuState* s, MicroOp* op)
        where TSource : struct, ISource
        where TAccess : struct, IAccess
    {
        if (!Interpreter.IsProtected(s))
            return cpu.RaiseUd();
        if (!TSource.Read(cpu, s, op, op->Dst, out ulong selector) || !cpu.TryInspect(s, selector, out Descriptor d, out bool found))
            return Outcome.Fault;
        SetZf(s, found && d.Type >= 0x10 && TAccess.Allows(d) && Visible(s, selector, d));
        return Outcome.Next;
    }

    /// <summary>Whether software at this privilege may know about a segment through this selector.</summary>
    private static bool Visible(CpuState* s, ulong selector, in Descriptor d) =>
        d.IsConforming || (d.Dpl >= s->Cpl && d.Dpl >= ((int)selector & 3));

    private static Outcome Lar<TSource>(Interpreter cpu, CpuState* s, MicroOp* op)
        where TSource : struct, ISource
    {
        if (!Interpreter.IsProtected(s))
            return cpu.RaiseUd();
        if (!TSource.Read(cpu, s, op, op->Src, out ulong selector) || !cpu.TryInspect(s, selector, out Descriptor d, out bool found))
            return Outcome.Fault;
        const uint Legacy = 1u << Descriptor.Tss16 | 1u << Descriptor.Ldt | 1u << Descriptor.Tss16Busy | 1u << Descriptor.CallGate16
            | 1u << Descriptor.TaskGate | 1u << Descriptor.Tss32 | 1u << Descriptor.Tss32Busy | 1u << Descriptor.CallGate32;
        const uint Long = 1u << Descriptor.Ldt | 1u << Descriptor.Tss32 | 1u << Descriptor.Tss32Busy | 1u << Descriptor.CallGate32;
        bool ok = found && Visible(s, selector, d) && (d.Type >= 0x10 || ((Interpreter.IsLongMode(s) ? Long : Legacy) >> d.Type & 1) != 0);
        SetZf(s, ok);
        if (ok)
            WriteResult(s, op, (uint)(d.Raw >> 32) & 0x00FF_FF00);
        return Outcome.Next;
    }

    private static Outcome Lsl<TSource>(Interpreter cpu, CpuState* s, MicroOp* op)
        where TSource : struct, ISource
    {
        if (!Interpreter.IsProtected(s))
            return cpu.RaiseUd();
        if (!TSource.Read(cpu, s, op, op->Src, out ulong selector) || !cpu.TryInspect(s, selector, out Descriptor d, out bool found))
            return Outcome.Fault;
        const uint Legacy = 1u << Descriptor.Tss16 | 1u << Descriptor.Ldt | 1u << Descriptor.Tss16Busy | 1u << Descriptor.Tss32 | 1u << Descriptor.Tss32Busy;
        const uint Long = 1u << Descriptor.Ldt | 1u << Descriptor.Tss32 | 1u << Descriptor.Tss32Busy;
        bool ok = found && Visible(s, selector, d) && (d.Type >= 0x10 || ((Interpreter.IsLongMode(s) ? Long : Legacy) >> d.Type & 1) != 0);
        SetZf(s, ok);
        if (ok)
            WriteResult(s, op, d.Limit);
        return Outcome.Next;
    }

    private static void WriteResult(CpuState* s, MicroOp* op, uint value)
    {
        if (op->OperandSize == 2)
            Interpreter.WriteRegister<ushort>(s, op->Dst, value);
        else
            Interpreter.WriteRegister<uint>(s, op->Dst, value);
    }

    private static Outcome ArplRegister(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if (!Interpreter.IsProtected(s))
            return cpu.RaiseUd();
        ulong selector = Interpreter.ReadRegister<ushort>(s, op->Dst), rpl = Interpreter.ReadRegister<ushort>(s, op->Src) & 3;
        bool adjust = (selector & 3) < rpl;
        if (adjust)
            Interpreter.WriteRegister<ushort>(s, op->Dst, (selector & ~3UL) | rpl);
        SetZf(s, adjust);
        return Outcome.Next;
    }

    private static Outcome ArplMemory(Interpreter cpu, CpuState* s, MicroOp* op)
    {
        if (!Interpreter.IsProtected(s))
            return cpu.RaiseUd();
        ulong rpl = Interpreter.ReadRegister<ushort>(s, op->Src) & 3;
        byte* p = cpu.MapRmw<ushort>(s, op);
        if (p == null)
            return Outcome.Fault;
        ulong selector = *(ushort*)p;
        bool adjust = (selector & 3) < rpl;
        if (adjust)
            *(ushort*)p = (ushort)((selector & ~3UL) | rpl);
        SetZf(s, adjust);
        return cpu.FinishRmw(s);
    }
}
