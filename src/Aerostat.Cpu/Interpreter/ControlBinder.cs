using Iced.Intel;
using unsafe OpHandler = delegate*<Aerostat.Cpu.Interpreter, Aerostat.Cpu.CpuState*, Aerostat.Cpu.MicroOp*, Aerostat.Cpu.Outcome>;

namespace Aerostat.Cpu;

/// <summary>Binds near control flow: Jcc, JMP, CALL, RET, LOOPcc, JCXZ.</summary>
internal static unsafe class ControlBinder
{
    /// <summary>False: not a near branch.</summary>
    public static bool Bind(in Instruction i, MicroOp* op, DecodeContext c)
    {
        OpHandler h = null;
        if (i.IsJccShortOrNear)
            h = Conditional(i, Target(i));
        else if (i.IsJmpShortOrNear)
            h = Pick(Target(i), &BranchHandler<Branch16>.Jump, &BranchHandler<Branch32>.Jump, &BranchHandler<Branch64>.Jump);
        else if (i.IsCallNear)
            h = Pick(Target(i), &BranchHandler<Branch16>.Call, &BranchHandler<Branch32>.Call, &LongCallHandlers.Call);
        else if (i.IsJmpNearIndirect || i.IsCallNearIndirect)
            h = Indirect(i, op);
        else if (i.Mnemonic == Mnemonic.Ret)
            h = Pick(ReturnWidth(i.Code), &BranchHandler<Branch16>.Return, &BranchHandler<Branch32>.Return, &LongCallHandlers.Return);
        else
            h = Counted(i);
        op->Handler = h;
        return h != null;
    }

    private static OpHandler Pick(int bits, OpHandler h16, OpHandler h32, OpHandler h64) => bits == 64 ? h64 : bits == 32 ? h32 : h16;

    private static int Target(in Instruction i) => i.Op0Kind switch
    {
        OpKind.NearBranch64 => 64,
        OpKind.NearBranch32 => 32,
        _ => 16,
    };

    private static int ReturnWidth(Code code) => code switch
    {
        Code.Retnq or Code.Retnq_imm16 => 64,
        Code.Retnd or Code.Retnd_imm16 => 32,
        _ => 16,
    };

    private static OpHandler Indirect(in Instruction i, MicroOp* op)
    {
        bool call = i.IsCallNearIndirect;
        if (i.Op0Kind == OpKind.Register)
        {
            int bits = i.Op0Register.GetSize() * 8;
            return call
                ? Pick(bits, &BranchHandler<Branch16>.CallIndirect<FirstRegister>, &BranchHandler<Branch32>.CallIndirect<FirstRegister>, &BranchHandler<Branch64>.CallIndirect<FirstRegister>)
                : Pick(bits, &BranchHandler<Branch16>.JumpIndirect<FirstRegister>, &BranchHandler<Branch32>.JumpIndirect<FirstRegister>, &BranchHandler<Branch64>.JumpIndirect<FirstRegister>);
        }
        int size = i.MemorySize.GetSize();
        if (size == 8)
        {
            return (IntegerBinder.FormOf(op), call) switch
            {
                (AddressForm.Base, true) => &BranchHandler<Branch64>.CallIndirect<MemorySource<BaseAddress>>,
                (AddressForm.Indexed, true) => &BranchHandler<Branch64>.CallIndirect<MemorySource<IndexedAddress>>,
                (AddressForm.Based, true) => &BranchHandler<Branch64>.CallIndirect<MemorySource<BasedAddress>>,
                (_, true) => &BranchHandler<Branch64>.CallIndirect<MemorySource<AnyAddress>>,
                (AddressForm.Base, false) => &BranchHandler<Branch64>.JumpIndirect<MemorySource<BaseAddress>>,
                (AddressForm.Indexed, false) => &BranchHandler<Branch64>.JumpIndirect<MemorySource<IndexedAddress>>,
                (AddressForm.Based, false) => &BranchHandler<Branch64>.JumpIndirect<MemorySource<BasedAddress>>,
                (_, false) => &BranchHandler<Branch64>.JumpIndirect<MemorySource<AnyAddress>>,
            };
        }
        if (size == 4)
            return call ? &BranchHandler<Branch32>.CallIndirect<MemorySource<AnyAddress>> : &BranchHandler<Branch32>.JumpIndirect<MemorySource<AnyAddress>>;
        return call ? &BranchHandler<Branch16>.CallIndirect<MemorySource<AnyAddress>> : &BranchHandler<Branch16>.JumpIndirect<MemorySource<AnyAddress>>;
    }

    private static OpHandler Conditional(in Instruction i, int bits) => i.ConditionCode switch
    {
        ConditionCode.o => Jump<IfOverflow>(bits),
        ConditionCode.no => Jump<IfNotOverflow>(bits),
        ConditionCode.b => Jump<IfBelow>(bits),
        ConditionCode.ae => Jump<IfNotBelow>(bits),
        ConditionCode.e => Jump<IfZero>(bits),
        ConditionCode.ne => Jump<IfNotZero>(bits),
        ConditionCode.be => Jump<IfNotAbove>(bits),
        ConditionCode.a => Jump<IfAbove>(bits),
        ConditionCode.s => Jump<IfSign>(bits),
        ConditionCode.ns => Jump<IfNotSign>(bits),
        ConditionCode.p => Jump<IfParity>(bits),
        ConditionCode.np => Jump<IfNotParity>(bits),
        ConditionCode.l => Jump<IfLess>(bits),
        ConditionCode.ge => Jump<IfNotLess>(bits),
        ConditionCode.le => Jump<IfNotGreater>(bits),
        _ => Jump<IfGreater>(bits),
    };

    private static OpHandler Jump<TCondition>(int bits)
        where TCondition : struct, ICondition =>
        Pick(bits, &JumpHandler<TCondition, Branch16>.Run, &JumpHandler<TCondition, Branch32>.Run, &JumpHandler<TCondition, Branch64>.Run);

    private static OpHandler Counted(in Instruction i)
    {
        switch (i.Code)
        {
            case Code.Jcxz_rel8_16 or Code.Jcxz_rel8_32:
                return JumpIfZero<ushort>(i);
            case Code.Jecxz_rel8_16 or Code.Jecxz_rel8_32 or Code.Jecxz_rel8_64:
                return JumpIfZero<uint>(i);
            case Code.Jrcxz_rel8_16 or Code.Jrcxz_rel8_64:
                return JumpIfZero<ulong>(i);
            case Code.Loop_rel8_16_CX or Code.Loop_rel8_32_CX or Code.Loope_rel8_16_CX or Code.Loope_rel8_32_CX
                or Code.Loopne_rel8_16_CX or Code.Loopne_rel8_32_CX:
                return Loop<ushort>(i);
            case Code.Loop_rel8_16_ECX or Code.Loop_rel8_32_ECX or Code.Loop_rel8_64_ECX or Code.Loope_rel8_16_ECX or Code.Loope_rel8_32_ECX
                or Code.Loope_rel8_64_ECX or Code.Loopne_rel8_16_ECX or Code.Loopne_rel8_32_ECX or Code.Loopne_rel8_64_ECX:
                return Loop<uint>(i);
            case Code.Loop_rel8_16_RCX or Code.Loop_rel8_64_RCX or Code.Loope_rel8_16_RCX or Code.Loope_rel8_64_RCX
                or Code.Loopne_rel8_16_RCX or Code.Loopne_rel8_64_RCX:
                return Loop<ulong>(i);
            default:
                return null;
        }
    }

    private static OpHandler JumpIfZero<TCount>(in Instruction i)
        where TCount : unmanaged =>
        Pick(Target(i), &BranchHandler<Branch16>.JumpIfZero<TCount>, &BranchHandler<Branch32>.JumpIfZero<TCount>, &BranchHandler<Branch64>.JumpIfZero<TCount>);

    private static OpHandler Loop<TCount>(in Instruction i)
        where TCount : unmanaged => i.Mnemonic switch
        {
            Mnemonic.Loope => Pick(Target(i), &BranchHandler<Branch16>.LoopIfZero<TCount>, &BranchHandler<Branch32>.LoopIfZero<TCount>, &BranchHandler<Branch64>.LoopIfZero<TCount>),
            Mnemonic.Loopne => Pick(Target(i), &BranchHandler<Branch16>.LoopIfNotZero<TCount>, &BranchHandler<Branch32>.LoopIfNotZero<TCount>, &BranchHandler<Branch64>.LoopIfNotZero<TCount>),
            _ => Pick(Target(i), &BranchHandler<Branch16>.Loop<TCount>, &BranchHandler<Branch32>.Loop<TCount>, &BranchHandler<Branch64>.Loop<TCount>),
        };
}
