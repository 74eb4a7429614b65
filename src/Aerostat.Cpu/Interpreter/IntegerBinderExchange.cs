using Iced.Intel;
using unsafe OpHandler = delegate*<Aerostat.Cpu.Interpreter, Aerostat.Cpu.CpuState*, Aerostat.Cpu.MicroOp*, Aerostat.Cpu.Outcome>;

namespace Aerostat.Cpu;

/// <content>Exchanges, single bits and conditions.</content>
internal static unsafe partial class IntegerBinder
{
    private static OpHandler Exchange(in Instruction i, MicroOp* op) => SizeOf(i) switch
    {
        1 => Exchange<byte>(i, op),
        2 => Exchange<ushort>(i, op),
        4 => Exchange<uint>(i, op),
        _ => Exchange<ulong>(i, op),
    };

    private static OpHandler Exchange<T>(in Instruction i, MicroOp* op)
        where T : unmanaged
    {
        if (IsRegister(i, 0) && IsRegister(i, 1))
            return &MoveHandlers.ExchangeRegisters<T>;
        if (IsRegister(i, 0))
            op->Src = op->Dst;
        return FormOf(op) == AddressForm.Base ? &MoveHandlers.ExchangeMemory<T, BaseAddress> : &MoveHandlers.ExchangeMemory<T, AnyAddress>;
    }

    private static OpHandler CompareExchange(in Instruction i, MicroOp* op) => Size(i, 0) switch
    {
        1 => CompareExchange<byte>(i, op),
        2 => CompareExchange<ushort>(i, op),
        4 => CompareExchange<uint>(i, op),
        _ => CompareExchange<ulong>(i, op),
    };

    private static OpHandler CompareExchange<T>(in Instruction i, MicroOp* op)
        where T : unmanaged
    {
        if (IsRegister(i, 0))
            return &ExchangeHandler<T>.CompareRegister;
        return (i.HasLockPrefix, FormOf(op)) switch
        {
            (true, AddressForm.Base) => &ExchangeHandler<T>.CompareLocked<BaseAddress>,
            (true, _) => &ExchangeHandler<T>.CompareLocked<AnyAddress>,
            (false, AddressForm.Based) => &ExchangeHandler<T>.CompareMemory<BasedAddress>,
            (false, _) => &ExchangeHandler<T>.CompareMemory<AnyAddress>,
        };
    }

    private static OpHandler ExchangeAdd(in Instruction i) => IsRegister(i, 0)
        ? Pick(Size(i, 0), &ExchangeHandler<byte>.AddRegister, &ExchangeHandler<ushort>.AddRegister, &ExchangeHandler<uint>.AddRegister, &ExchangeHandler<ulong>.AddRegister)
        : Pick(Size(i, 0), &ExchangeHandler<byte>.AddMemory, &ExchangeHandler<ushort>.AddMemory, &ExchangeHandler<uint>.AddMemory, &ExchangeHandler<ulong>.AddMemory);

    private static OpHandler Bit<TOperation>(in Instruction i)
        where TOperation : struct, IBitOperation => Size(i, 0) switch
        {
            2 => Bit<TOperation, ushort>(i),
            4 => Bit<TOperation, uint>(i),
            _ => Bit<TOperation, ulong>(i),
        };

    private static OpHandler Bit<TOperation, T>(in Instruction i)
        where TOperation : struct, IBitOperation
        where T : unmanaged
    {
        if (IsRegister(i, 0))
            return IsRegister(i, 1) ? &BitHandler<TOperation, T>.Register<SecondRegister> : &BitHandler<TOperation, T>.Register<ImmediateSource>;
        return IsRegister(i, 1) ? &BitHandler<TOperation, T>.MemoryRegister : &BitHandler<TOperation, T>.MemoryImmediate;
    }

    private static OpHandler ConditionalSet(in Instruction i)
    {
        bool register = IsRegister(i, 0);
        return i.ConditionCode switch
        {
            ConditionCode.o => Set<IfOverflow>(register),
            ConditionCode.no => Set<IfNotOverflow>(register),
            ConditionCode.b => Set<IfBelow>(register),
            ConditionCode.ae => Set<IfNotBelow>(register),
            ConditionCode.e => Set<IfZero>(register),
            ConditionCode.ne => Set<IfNotZero>(register),
            ConditionCode.be => Set<IfNotAbove>(register),
            ConditionCode.a => Set<IfAbove>(register),
            ConditionCode.s => Set<IfSign>(register),
            ConditionCode.ns => Set<IfNotSign>(register),
            ConditionCode.p => Set<IfParity>(register),
            ConditionCode.np => Set<IfNotParity>(register),
            ConditionCode.l => Set<IfLess>(register),
            ConditionCode.ge => Set<IfNotLess>(register),
            ConditionCode.le => Set<IfNotGreater>(register),
            _ => Set<IfGreater>(register),
        };
    }

    private static OpHandler Set<TCondition>(bool register)
        where TCondition : struct, ICondition =>
        register ? &ConditionHandler<TCondition>.Set<RegisterPlace> : &ConditionHandler<TCondition>.Set<MemoryPlace<AnyAddress>>;

    private static OpHandler ConditionalMove(in Instruction i, MicroOp* op) => i.ConditionCode switch
    {
        ConditionCode.o => MoveIf<IfOverflow>(i),
        ConditionCode.no => MoveIf<IfNotOverflow>(i),
        ConditionCode.b => MoveIf<IfBelow>(i),
        ConditionCode.ae => MoveIf<IfNotBelow>(i),
        ConditionCode.e => MoveIf<IfZero>(i),
        ConditionCode.ne => MoveIf<IfNotZero>(i),
        ConditionCode.be => MoveIf<IfNotAbove>(i),
        ConditionCode.a => MoveIf<IfAbove>(i),
        ConditionCode.s => MoveIf<IfSign>(i),
        ConditionCode.ns => MoveIf<IfNotSign>(i),
        ConditionCode.p => MoveIf<IfParity>(i),
        ConditionCode.np => MoveIf<IfNotParity>(i),
        ConditionCode.l => MoveIf<IfLess>(i),
        ConditionCode.ge => MoveIf<IfNotLess>(i),
        ConditionCode.le => MoveIf<IfNotGreater>(i),
        _ => MoveIf<IfGreater>(i),
    };

    private static OpHandler MoveIf<TCondition>(in Instruction i)
        where TCondition : struct, ICondition => IsRegister(i, 1)
            ? Pick(Size(i, 0), &ConditionHandler<TCondition>.Move<ushort, SecondRegister>, &ConditionHandler<TCondition>.Move<uint, SecondRegister>, &ConditionHandler<TCondition>.Move<ulong, SecondRegister>)
            : Pick(Size(i, 0), &ConditionHandler<TCondition>.Move<ushort, MemorySource<AnyAddress>>, &ConditionHandler<TCondition>.Move<uint, MemorySource<AnyAddress>>, &ConditionHandler<TCondition>.Move<ulong, MemorySource<AnyAddress>>);
}
