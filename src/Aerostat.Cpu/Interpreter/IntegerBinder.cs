using Iced.Intel;
using unsafe OpHandler = delegate*<Aerostat.Cpu.Interpreter, Aerostat.Cpu.CpuState*, Aerostat.Cpu.MicroOp*, Aerostat.Cpu.Outcome>;

namespace Aerostat.Cpu;

/// <summary>Binds the integer instructions: picks the handler compiled for an instruction's operand size and operand forms.</summary>
internal static unsafe partial class IntegerBinder
{
    /// <summary>False: not an integer instruction.</summary>
    public static bool Bind(in Instruction i, MicroOp* op, DecodeContext c)
    {
        OpHandler h = Common(i, op, c);
        if (h == null)
            h = Rare(i, op, c);
        op->Handler = h;
        return h != null;
    }

    /// <summary>How the memory operand's address is made.</summary>
    public static AddressForm FormOf(MicroOp* op) => op->AddressKind switch
    {
        AddressKind.Flat => op->Index == CpuState.ZeroRegister ? AddressForm.Base : AddressForm.Indexed,
        AddressKind.Long when op->AddressBits == 64 && op->Segment >= Seg.Fs => AddressForm.Based,
        _ => AddressForm.Any,
    };

    private static OpHandler Common(in Instruction i, MicroOp* op, DecodeContext c)
    {
        switch (i.Mnemonic)
        {
            case Mnemonic.Mov: return Mov(i, op);
            case Mnemonic.Add: return Binary<AddOperation>(i, op);
            case Mnemonic.Adc: return Binary<AdcOperation>(i, op);
            case Mnemonic.Sub: return IsSameRegister(i) ? Clear(i) : Binary<SubOperation>(i, op);
            case Mnemonic.Sbb: return Binary<SbbOperation>(i, op);
            case Mnemonic.And: return Binary<AndOperation>(i, op);
            case Mnemonic.Or: return Binary<OrOperation>(i, op);
            case Mnemonic.Xor: return IsSameRegister(i) ? Clear(i) : Binary<XorOperation>(i, op);
            case Mnemonic.Cmp: return Binary<CmpOperation>(i, op);
            case Mnemonic.Test: return IsSameRegister(i) ? TestSame(i) : Binary<TestOperation>(i, op);
            case Mnemonic.Inc: return Unary<IncOperation>(i, op);
            case Mnemonic.Dec: return Unary<DecOperation>(i, op);
            case Mnemonic.Neg: return Unary<NegOperation>(i, op);
            case Mnemonic.Not: return Unary<NotOperation>(i, op);
            case Mnemonic.Lea: return Lea(i, op);
            case Mnemonic.Push: return Push(i, op, c);
            case Mnemonic.Pop: return Pop(i, op, c);
            case Mnemonic.Movzx: return Extend(i, op, signed: false);
            case Mnemonic.Movsx or Mnemonic.Movsxd: return Extend(i, op, signed: true);
            case Mnemonic.Shl or Mnemonic.Sal: return Shift<ShlOperation>(i, op);
            case Mnemonic.Shr: return Shift<ShrOperation>(i, op);
            case Mnemonic.Sar: return Shift<SarOperation>(i, op);
            case Mnemonic.Rol: return Shift<RolOperation>(i, op);
            case Mnemonic.Ror: return Shift<RorOperation>(i, op);
            case Mnemonic.Rcl: return Shift<RclOperation>(i, op);
            case Mnemonic.Rcr: return Shift<RcrOperation>(i, op);
            case Mnemonic.Xchg: return Exchange(i, op);
            case Mnemonic.Cmpxchg: return CompareExchange(i, op);
            case Mnemonic.Xadd: return ExchangeAdd(i);
            case Mnemonic.Bt: return Bit<BitTest>(i);
            case Mnemonic.Bts: return Bit<BitSet>(i);
            case Mnemonic.Btr: return Bit<BitReset>(i);
            case Mnemonic.Btc: return Bit<BitComplement>(i);
            case Mnemonic.Nop or Mnemonic.Endbr64 or Mnemonic.Endbr32 or Mnemonic.Reservednop or Mnemonic.Lfence or Mnemonic.Sfence
                or Mnemonic.Prefetch or Mnemonic.Prefetchw or Mnemonic.Prefetchwt1 or Mnemonic.Prefetchnta or Mnemonic.Prefetcht0
                or Mnemonic.Prefetcht1 or Mnemonic.Prefetcht2 or Mnemonic.Prefetchit0 or Mnemonic.Prefetchit1 or Mnemonic.Cldemote:
                return &MiscHandlers.Nop;
            case >= Mnemonic.Cmova and <= Mnemonic.Cmovs:
                return i.ConditionCode == ConditionCode.None || !i.Op0Register.IsGPR() ? null : ConditionalMove(i, op);
            case >= Mnemonic.Seta and <= Mnemonic.Sets:
                return i.ConditionCode == ConditionCode.None ? null : ConditionalSet(i);
            default: return null;
        }
    }

    /// <summary>Size in bytes of an operand.</summary>
    private static int Size(in Instruction i, int operand) =>
        i.GetOpKind(operand) == OpKind.Register ? i.GetOpRegister(operand).GetSize() : i.MemorySize.GetSize();

    private static bool IsMemory(in Instruction i, int operand) => i.GetOpKind(operand) == OpKind.Memory;

    private static bool IsRegister(in Instruction i, int operand) => i.GetOpKind(operand) == OpKind.Register;

    private static bool IsSameRegister(in Instruction i) => IsRegister(i, 0) && IsRegister(i, 1) && i.Op0Register == i.Op1Register;

    /// <summary>Cuts the immediate to the operand size, as <see cref="ImmediateSource"/> promises.</summary>
    private static void CutImmediate(MicroOp* op, int size)
    {
        if (size < 8)
            op->Immediate &= (1UL << (size * 8)) - 1;
    }

    private static OpHandler Pick(int size, OpHandler h1, OpHandler h2, OpHandler h4, OpHandler h8) => size switch
    {
        1 => h1,
        2 => h2,
        4 => h4,
        _ => h8,
    };

    private static OpHandler Pick(int size, OpHandler h2, OpHandler h4, OpHandler h8) => size == 8 ? h8 : size == 4 ? h4 : h2;

    private static OpHandler Pick(int size, OpHandler h4, OpHandler h8) => size == 8 ? h8 : h4;

    private static OpHandler Clear(in Instruction i) =>
        Pick(Size(i, 0), &SameRegister<byte>.Clear, &SameRegister<ushort>.Clear, &SameRegister<uint>.Clear, &SameRegister<ulong>.Clear);

    private static OpHandler TestSame(in Instruction i) =>
        Pick(Size(i, 0), &SameRegister<byte>.Test, &SameRegister<ushort>.Test, &SameRegister<uint>.Test, &SameRegister<ulong>.Test);

    private static OpHandler Mov(in Instruction i, MicroOp* op)
    {
        // Segment, control and debug registers belong to the system family.
        if ((IsRegister(i, 0) && !i.Op0Register.IsGPR()) || (IsRegister(i, 1) && !i.Op1Register.IsGPR()))
            return null;
        return SizeOf(i) switch
        {
            1 => Move<byte>(i, op),
            2 => Move<ushort>(i, op),
            4 => Move<uint>(i, op),
            _ => Move<ulong>(i, op),
        };
    }

    // The first operand decides, but a moffs operand has no size of its own in some encodings: then the register does.
    private static int SizeOf(in Instruction i) => IsRegister(i, 0) ? Size(i, 0) : IsRegister(i, 1) ? Size(i, 1) : Size(i, 0);

    private static OpHandler Move<T>(in Instruction i, MicroOp* op)
        where T : unmanaged
    {
        if (IsMemory(i, 1))
        {
            return FormOf(op) switch
            {
                AddressForm.Base => &MoveHandler<T, RegisterPlace, MemorySource<BaseAddress>>.Run,
                AddressForm.Indexed => &MoveHandler<T, RegisterPlace, MemorySource<IndexedAddress>>.Run,
                AddressForm.Based => &MoveHandler<T, RegisterPlace, MemorySource<BasedAddress>>.Run,
                _ => &MoveHandler<T, RegisterPlace, MemorySource<AnyAddress>>.Run,
            };
        }
        if (!IsMemory(i, 0))
        {
            if (IsRegister(i, 1))
                return &MoveHandler<T, RegisterPlace, SecondRegister>.Run;
            CutImmediate(op, sizeof(T));
            return &MoveHandler<T, RegisterPlace, ImmediateSource>.Run;
        }
        if (IsRegister(i, 1))
        {
            return FormOf(op) switch
            {
                AddressForm.Base => &MoveHandler<T, MemoryPlace<BaseAddress>, SecondRegister>.Run,
                AddressForm.Indexed => &MoveHandler<T, MemoryPlace<IndexedAddress>, SecondRegister>.Run,
                AddressForm.Based => &MoveHandler<T, MemoryPlace<BasedAddress>, SecondRegister>.Run,
                _ => &MoveHandler<T, MemoryPlace<AnyAddress>, SecondRegister>.Run,
            };
        }
        return FormOf(op) switch
        {
            AddressForm.Base => &MoveHandler<T, MemoryPlace<BaseAddress>, ImmediateSource>.Run,
            AddressForm.Indexed => &MoveHandler<T, MemoryPlace<IndexedAddress>, ImmediateSource>.Run,
            AddressForm.Based => &MoveHandler<T, MemoryPlace<BasedAddress>, ImmediateSource>.Run,
            _ => &MoveHandler<T, MemoryPlace<AnyAddress>, ImmediateSource>.Run,
        };
    }

    private static OpHandler Binary<TOperation>(in Instruction i, MicroOp* op)
        where TOperation : struct, IBinaryOperation
    {
        int size = Size(i, 0);
        if (!IsRegister(i, 1) && !IsMemory(i, 1))
            CutImmediate(op, size);
        return size switch
        {
            1 => Binary<TOperation, byte>(i, op),
            2 => Binary<TOperation, ushort>(i, op),
            4 => Binary<TOperation, uint>(i, op),
            _ => Binary<TOperation, ulong>(i, op),
        };
    }

    private static OpHandler Binary<TOperation, T>(in Instruction i, MicroOp* op)
        where TOperation : struct, IBinaryOperation
        where T : unmanaged
    {
        if (IsRegister(i, 0))
        {
            if (IsRegister(i, 1))
                return &BinaryHandler<TOperation, T, RegisterPlace, SecondRegister>.Run;
            if (!IsMemory(i, 1))
                return &BinaryHandler<TOperation, T, RegisterPlace, ImmediateSource>.Run;
            return FormOf(op) switch
            {
                AddressForm.Base => &BinaryHandler<TOperation, T, RegisterPlace, MemorySource<BaseAddress>>.Run,
                AddressForm.Indexed => &BinaryHandler<TOperation, T, RegisterPlace, MemorySource<IndexedAddress>>.Run,
                AddressForm.Based => &BinaryHandler<TOperation, T, RegisterPlace, MemorySource<BasedAddress>>.Run,
                _ => &BinaryHandler<TOperation, T, RegisterPlace, MemorySource<AnyAddress>>.Run,
            };
        }
        if (i.HasLockPrefix)
        {
            return IsRegister(i, 1)
                ? &BinaryHandler<TOperation, T, MemoryPlace<AnyAddress>, SecondRegister>.RunLocked
                : &BinaryHandler<TOperation, T, MemoryPlace<AnyAddress>, ImmediateSource>.RunLocked;
        }
        if (IsRegister(i, 1))
        {
            return FormOf(op) switch
            {
                AddressForm.Base => &BinaryHandler<TOperation, T, MemoryPlace<BaseAddress>, SecondRegister>.Run,
                AddressForm.Indexed => &BinaryHandler<TOperation, T, MemoryPlace<IndexedAddress>, SecondRegister>.Run,
                AddressForm.Based => &BinaryHandler<TOperation, T, MemoryPlace<BasedAddress>, SecondRegister>.Run,
                _ => &BinaryHandler<TOperation, T, MemoryPlace<AnyAddress>, SecondRegister>.Run,
            };
        }
        return FormOf(op) switch
        {
            AddressForm.Base => &BinaryHandler<TOperation, T, MemoryPlace<BaseAddress>, ImmediateSource>.Run,
            AddressForm.Indexed => &BinaryHandler<TOperation, T, MemoryPlace<IndexedAddress>, ImmediateSource>.Run,
            AddressForm.Based => &BinaryHandler<TOperation, T, MemoryPlace<BasedAddress>, ImmediateSource>.Run,
            _ => &BinaryHandler<TOperation, T, MemoryPlace<AnyAddress>, ImmediateSource>.Run,
        };
    }

    private static OpHandler Unary<TOperation>(in Instruction i, MicroOp* op)
        where TOperation : struct, IUnaryOperation => Size(i, 0) switch
        {
            1 => Unary<TOperation, byte>(i, op),
            2 => Unary<TOperation, ushort>(i, op),
            4 => Unary<TOperation, uint>(i, op),
            _ => Unary<TOperation, ulong>(i, op),
        };

    private static OpHandler Unary<TOperation, T>(in Instruction i, MicroOp* op)
        where TOperation : struct, IUnaryOperation
        where T : unmanaged
    {
        if (IsRegister(i, 0))
            return &UnaryHandler<TOperation, T, RegisterPlace>.Run;
        if (i.HasLockPrefix)
            return &UnaryHandler<TOperation, T, MemoryPlace<AnyAddress>>.RunLocked;
        return FormOf(op) switch
        {
            AddressForm.Base => &UnaryHandler<TOperation, T, MemoryPlace<BaseAddress>>.Run,
            AddressForm.Based => &UnaryHandler<TOperation, T, MemoryPlace<BasedAddress>>.Run,
            _ => &UnaryHandler<TOperation, T, MemoryPlace<AnyAddress>>.Run,
        };
    }

    private static OpHandler Lea(in Instruction i, MicroOp* op)
    {
        int size = Size(i, 0);
        if (size == 8 && op->AddressBits == 64)
            return op->Index == CpuState.ZeroRegister ? &MoveHandlers.LeaBase : &MoveHandlers.LeaIndexed;
        return Pick(size, &MoveHandlers.Lea<ushort>, &MoveHandlers.Lea<uint>, &MoveHandlers.Lea<ulong>);
    }

    private static OpHandler Push(in Instruction i, MicroOp* op, DecodeContext c)
    {
        if (IsRegister(i, 0) && !i.Op0Register.IsGPR())
            return null;
        int size = -i.StackPointerIncrement;
        if (IsRegister(i, 0))
        {
            return Pick(size, &StackHandlers<ushort>.Push<FirstRegister>, &StackHandlers<uint>.Push<FirstRegister>,
                &LongStackHandlers.Push<FirstRegister>);
        }
        if (IsMemory(i, 0))
        {
            return Pick(size, &StackHandlers<ushort>.Push<MemorySource<AnyAddress>>, &StackHandlers<uint>.Push<MemorySource<AnyAddress>>,
                &LongStackHandlers.Push<MemorySource<AnyAddress>>);
        }
        CutImmediate(op, size);
        return Pick(size, &StackHandlers<ushort>.Push<ImmediateSource>, &StackHandlers<uint>.Push<ImmediateSource>,
            &LongStackHandlers.Push<ImmediateSource>);
    }

    private static OpHandler Pop(in Instruction i, MicroOp* op, DecodeContext c)
    {
        if (IsRegister(i, 0) && !i.Op0Register.IsGPR())
            return null;
        int size = i.StackPointerIncrement;
        return IsRegister(i, 0)
            ? Pick(size, &StackHandlers<ushort>.PopRegister, &StackHandlers<uint>.PopRegister, &LongStackHandlers.PopRegister)
            : Pick(size, &StackHandlers<ushort>.PopMemory, &StackHandlers<uint>.PopMemory, &StackHandlers<ulong>.PopMemory);
    }

    private static OpHandler Extend(in Instruction i, MicroOp* op, bool signed)
    {
        int to = Size(i, 0), from = Size(i, 1);
        if (from == to)
            return Pick(to, Move<ushort>(i, op), Move<uint>(i, op), Move<ulong>(i, op));
        // A zero extension into 32 or 64 bits is the same thing.
        if (!signed && to == 8)
            to = 4;
        return (to, from) switch
        {
            (2, 1) => Extend<ushort, byte>(i, op, signed),
            (4, 1) => Extend<uint, byte>(i, op, signed),
            (4, 2) => Extend<uint, ushort>(i, op, signed),
            (8, 1) => Extend<ulong, byte>(i, op, signed),
            (8, 2) => Extend<ulong, ushort>(i, op, signed),
            (8, 4) => Extend<ulong, uint>(i, op, signed),
            _ => null,
        };
    }

    private static OpHandler Extend<T, TFrom>(in Instruction i, MicroOp* op, bool signed)
        where T : unmanaged
        where TFrom : unmanaged
    {
        if (IsRegister(i, 1))
            return signed ? &ExtendHandler<T, TFrom, SecondRegister>.Signed : &ExtendHandler<T, TFrom, SecondRegister>.Zero;
        return (FormOf(op), signed) switch
        {
            (AddressForm.Base, false) => &ExtendHandler<T, TFrom, MemorySource<BaseAddress>>.Zero,
            (AddressForm.Indexed, false) => &ExtendHandler<T, TFrom, MemorySource<IndexedAddress>>.Zero,
            (AddressForm.Based, false) => &ExtendHandler<T, TFrom, MemorySource<BasedAddress>>.Zero,
            (_, false) => &ExtendHandler<T, TFrom, MemorySource<AnyAddress>>.Zero,
            (AddressForm.Base, true) => &ExtendHandler<T, TFrom, MemorySource<BaseAddress>>.Signed,
            (AddressForm.Indexed, true) => &ExtendHandler<T, TFrom, MemorySource<IndexedAddress>>.Signed,
            (AddressForm.Based, true) => &ExtendHandler<T, TFrom, MemorySource<BasedAddress>>.Signed,
            (_, true) => &ExtendHandler<T, TFrom, MemorySource<AnyAddress>>.Signed,
        };
    }

    private static OpHandler Shift<TOperation>(in Instruction i, MicroOp* op)
        where TOperation : struct, IShiftOperation => Size(i, 0) switch
        {
            1 => Shift<TOperation, byte>(i, op),
            2 => Shift<TOperation, ushort>(i, op),
            4 => Shift<TOperation, uint>(i, op),
            _ => Shift<TOperation, ulong>(i, op),
        };

    private static OpHandler Shift<TOperation, T>(in Instruction i, MicroOp* op)
        where TOperation : struct, IShiftOperation
        where T : unmanaged
    {
        if (!IsRegister(i, 1))
        {
            op->Immediate &= sizeof(T) == 8 ? 63UL : 31UL;
            if (op->Immediate != 0)
            {
                return IsRegister(i, 0)
                    ? &ShiftHandler<TOperation, T, RegisterPlace>.RunConstant
                    : &ShiftHandler<TOperation, T, MemoryPlace<AnyAddress>>.RunConstant;
            }
            op->Src = CpuState.ZeroRegister;
        }
        return IsRegister(i, 0)
            ? &ShiftHandler<TOperation, T, RegisterPlace>.RunVariable
            : &ShiftHandler<TOperation, T, MemoryPlace<AnyAddress>>.RunVariable;
    }
}
