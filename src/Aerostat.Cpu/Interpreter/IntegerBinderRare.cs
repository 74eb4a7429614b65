using Iced.Intel;
using unsafe OpHandler = delegate*<Aerostat.Cpu.Interpreter, Aerostat.Cpu.CpuState*, Aerostat.Cpu.MicroOp*, Aerostat.Cpu.Outcome>;

namespace Aerostat.Cpu;

/// <content>What compilers and kernels use less.</content>
internal static unsafe partial class IntegerBinder
{
    private static OpHandler Rare(in Instruction i, MicroOp* op, DecodeContext c)
    {
        switch (i.Mnemonic)
        {
            case Mnemonic.Imul: return Imul(i, op);
            case Mnemonic.Mul: return Multiply(i, 0);
            case Mnemonic.Div: return Multiply(i, 2);
            case Mnemonic.Idiv: return Multiply(i, 3);
            case Mnemonic.Shld or Mnemonic.Shrd: return DoubleShift(i);
            case Mnemonic.Bsf or Mnemonic.Bsr or Mnemonic.Lzcnt or Mnemonic.Tzcnt or Mnemonic.Popcnt: return Scan(i);
            case Mnemonic.Andn or Mnemonic.Bextr or Mnemonic.Blsi or Mnemonic.Blsmsk or Mnemonic.Blsr or Mnemonic.Bzhi or Mnemonic.Pdep
                or Mnemonic.Pext or Mnemonic.Mulx or Mnemonic.Rorx or Mnemonic.Sarx or Mnemonic.Shlx or Mnemonic.Shrx or Mnemonic.Adcx or Mnemonic.Adox:
                return Extension(i);
            case Mnemonic.Crc32: return Checksum(i);
            case Mnemonic.Movbe: return MoveSwapped(i);
            case Mnemonic.Movnti or Mnemonic.Movdiri: return Size(i, 1) == 8 ? Move<ulong>(i, op) : Move<uint>(i, op);
            case Mnemonic.Bswap: return Pick(Size(i, 0), &MoveHandlers.Swap16, &MoveHandlers.Swap32, &MoveHandlers.Swap64);
            case Mnemonic.Cmpxchg8b: return &WideExchangeHandlers.Compare8;
            case Mnemonic.Cmpxchg16b:
                op->Aux = c.Stubs.CompareExchange16();
                return &WideExchangeHandlers.Compare16;
            case Mnemonic.Xlatb: return Xlat(i, op, c);
            case Mnemonic.Cbw: return &MoveHandlers.Cbw;
            case Mnemonic.Cwde: return &MoveHandlers.Cwde;
            case Mnemonic.Cdqe: return &MoveHandlers.Cdqe;
            case Mnemonic.Cwd: return &MoveHandlers.Cwd;
            case Mnemonic.Cdq: return &MoveHandlers.Cdq;
            case Mnemonic.Cqo: return &MoveHandlers.Cqo;
            case Mnemonic.Pusha: return &StackHandlers<ushort>.PushAll;
            case Mnemonic.Pushad: return &StackHandlers<uint>.PushAll;
            case Mnemonic.Popa: return &StackHandlers<ushort>.PopAll;
            case Mnemonic.Popad: return &StackHandlers<uint>.PopAll;
            case Mnemonic.Leave:
                return Pick(LeaveSize(i.Code), &StackHandlers<ushort>.Leave, &StackHandlers<uint>.Leave, &LongStackHandlers.Leave);
            case Mnemonic.Enter:
                return Pick(EnterSize(i.Code), &StackHandlers<ushort>.Enter, &StackHandlers<uint>.Enter, &StackHandlers<ulong>.Enter);
            case Mnemonic.Daa: return &MiscHandlers.Daa;
            case Mnemonic.Das: return &MiscHandlers.Das;
            case Mnemonic.Aaa: return &MiscHandlers.Aaa;
            case Mnemonic.Aas: return &MiscHandlers.Aas;
            case Mnemonic.Aam: return &MiscHandlers.Aam;
            case Mnemonic.Aad: return &MiscHandlers.Aad;
            case Mnemonic.Salc: return &MiscHandlers.Salc;
            case Mnemonic.Clc: return &MiscHandlers.Clc;
            case Mnemonic.Stc: return &MiscHandlers.Stc;
            case Mnemonic.Cmc: return &MiscHandlers.Cmc;
            case Mnemonic.Cld: return &MiscHandlers.Cld;
            case Mnemonic.Std: return &MiscHandlers.Std;
            case Mnemonic.Lahf: return &MiscHandlers.Lahf;
            case Mnemonic.Sahf: return &MiscHandlers.Sahf;
            case Mnemonic.Pause: return &MiscHandlers.Pause;
            case Mnemonic.Mfence: return &MiscHandlers.Fence;
            case Mnemonic.Clflush or Mnemonic.Clflushopt or Mnemonic.Clwb: return &MiscHandlers.Flush;
            case Mnemonic.Bound: return i.Code == Code.Bound_r16_m1616 ? &MiscHandlers.Bound16 : &MiscHandlers.Bound32;
            case Mnemonic.Rdrand or Mnemonic.Rdseed:
                return Pick(Size(i, 0), &MiscHandlers.Random<ushort>, &MiscHandlers.Random<uint>, &MiscHandlers.Random<ulong>);
            default: return null;
        }
    }

    private static int LeaveSize(Code code) => code switch
    {
        Code.Leaveq => 8,
        Code.Leaved => 4,
        _ => 2,
    };

    private static int EnterSize(Code code) => code switch
    {
        Code.Enterq_imm16_imm8 => 8,
        Code.Enterd_imm16_imm8 => 4,
        _ => 2,
    };

    // The index is AL, which the common decoding of addresses does not know.
    private static OpHandler Xlat(in Instruction i, MicroOp* op, DecodeContext c)
    {
        op->AddressBits = (byte)(i.MemoryBase.GetSize() * 8);
        op->Index = CpuState.ZeroRegister;
        op->AddressKind = c.Bitness == 64 ? AddressKind.Long : AddressKind.Legacy;
        return &MoveHandlers.Xlat;
    }

    private static OpHandler Imul(in Instruction i, MicroOp* op)
    {
        int size = Size(i, 0);
        if (i.OpCount == 1)
            return Multiply(i, 1);
        bool register = IsRegister(i, 1);
        if (i.OpCount == 2)
        {
            return register
                ? Pick(size, &MultiplyHandler<ushort, SecondRegister>.Imul2, &MultiplyHandler<uint, SecondRegister>.Imul2, &MultiplyHandler<ulong, SecondRegister>.Imul2)
                : Pick(size, &MultiplyHandler<ushort, MemorySource<AnyAddress>>.Imul2, &MultiplyHandler<uint, MemorySource<AnyAddress>>.Imul2, &MultiplyHandler<ulong, MemorySource<AnyAddress>>.Imul2);
        }
        return register
            ? Pick(size, &MultiplyHandler<ushort, SecondRegister>.Imul3, &MultiplyHandler<uint, SecondRegister>.Imul3, &MultiplyHandler<ulong, SecondRegister>.Imul3)
            : Pick(size, &MultiplyHandler<ushort, MemorySource<AnyAddress>>.Imul3, &MultiplyHandler<uint, MemorySource<AnyAddress>>.Imul3, &MultiplyHandler<ulong, MemorySource<AnyAddress>>.Imul3);
    }

    private static OpHandler Multiply(in Instruction i, int which) => (Size(i, 0), IsRegister(i, 0)) switch
    {
        (1, true) => Multiply<byte, FirstRegister>(which),
        (2, true) => Multiply<ushort, FirstRegister>(which),
        (4, true) => Multiply<uint, FirstRegister>(which),
        (_, true) => Multiply<ulong, FirstRegister>(which),
        (1, false) => Multiply<byte, MemorySource<AnyAddress>>(which),
        (2, false) => Multiply<ushort, MemorySource<AnyAddress>>(which),
        (4, false) => Multiply<uint, MemorySource<AnyAddress>>(which),
        (_, false) => Multiply<ulong, MemorySource<AnyAddress>>(which),
    };

    private static OpHandler Multiply<T, TSource>(int which)
        where T : unmanaged
        where TSource : struct, ISource => which switch
        {
            0 => &MultiplyHandler<T, TSource>.Mul,
            1 => &MultiplyHandler<T, TSource>.Imul,
            2 => &MultiplyHandler<T, TSource>.Div,
            _ => &MultiplyHandler<T, TSource>.Idiv,
        };

    private static OpHandler DoubleShift(in Instruction i) => (Size(i, 0), IsRegister(i, 0)) switch
    {
        (2, true) => DoubleShift<ushort, RegisterPlace>(i),
        (4, true) => DoubleShift<uint, RegisterPlace>(i),
        (_, true) => DoubleShift<ulong, RegisterPlace>(i),
        (2, false) => DoubleShift<ushort, MemoryPlace<AnyAddress>>(i),
        (4, false) => DoubleShift<uint, MemoryPlace<AnyAddress>>(i),
        (_, false) => DoubleShift<ulong, MemoryPlace<AnyAddress>>(i),
    };

    private static OpHandler DoubleShift<T, TPlace>(in Instruction i)
        where T : unmanaged
        where TPlace : struct, IPlace => (i.Mnemonic == Mnemonic.Shld, IsRegister(i, 2)) switch
        {
            (true, false) => &DoubleShiftHandler<T, TPlace>.LeftConstant,
            (true, true) => &DoubleShiftHandler<T, TPlace>.LeftVariable,
            (false, false) => &DoubleShiftHandler<T, TPlace>.RightConstant,
            (false, true) => &DoubleShiftHandler<T, TPlace>.RightVariable,
        };

    private static OpHandler Scan(in Instruction i) => (Size(i, 0), IsRegister(i, 1)) switch
    {
        (2, true) => Scan<ushort, SecondRegister>(i.Mnemonic),
        (4, true) => Scan<uint, SecondRegister>(i.Mnemonic),
        (_, true) => Scan<ulong, SecondRegister>(i.Mnemonic),
        (2, false) => Scan<ushort, MemorySource<AnyAddress>>(i.Mnemonic),
        (4, false) => Scan<uint, MemorySource<AnyAddress>>(i.Mnemonic),
        (_, false) => Scan<ulong, MemorySource<AnyAddress>>(i.Mnemonic),
    };

    private static OpHandler Scan<T, TSource>(Mnemonic m)
        where T : unmanaged
        where TSource : struct, ISource => m switch
        {
            Mnemonic.Bsf => &BitScanHandler<T, TSource>.Forward,
            Mnemonic.Bsr => &BitScanHandler<T, TSource>.Reverse,
            Mnemonic.Lzcnt => &BitScanHandler<T, TSource>.LeadingZeros,
            Mnemonic.Tzcnt => &BitScanHandler<T, TSource>.TrailingZeros,
            _ => &BitScanHandler<T, TSource>.PopulationCount,
        };

    private static OpHandler Extension(in Instruction i)
    {
        // Operand 2 is the one that may be memory for these, operand 1 for the others.
        if (i.Mnemonic is Mnemonic.Andn or Mnemonic.Pdep or Mnemonic.Pext or Mnemonic.Mulx)
            return (Size(i, 0), IsRegister(i, 2)) switch
            {
                (4, true) => Extension<uint, ThirdRegister>(i.Mnemonic),
                (_, true) => Extension<ulong, ThirdRegister>(i.Mnemonic),
                (4, false) => Extension<uint, MemorySource<AnyAddress>>(i.Mnemonic),
                (_, false) => Extension<ulong, MemorySource<AnyAddress>>(i.Mnemonic),
            };
        return (Size(i, 0), IsRegister(i, 1)) switch
        {
            (4, true) => Extension<uint, SecondRegister>(i.Mnemonic),
            (_, true) => Extension<ulong, SecondRegister>(i.Mnemonic),
            (4, false) => Extension<uint, MemorySource<AnyAddress>>(i.Mnemonic),
            (_, false) => Extension<ulong, MemorySource<AnyAddress>>(i.Mnemonic),
        };
    }

    private static OpHandler Extension<T, TSource>(Mnemonic m)
        where T : unmanaged
        where TSource : struct, ISource => m switch
        {
            Mnemonic.Andn => &BitExtensionHandler<T, TSource>.Andn,
            Mnemonic.Bextr => &BitExtensionHandler<T, TSource>.Bextr,
            Mnemonic.Blsi => &BitExtensionHandler<T, TSource>.Blsi,
            Mnemonic.Blsmsk => &BitExtensionHandler<T, TSource>.Blsmsk,
            Mnemonic.Blsr => &BitExtensionHandler<T, TSource>.Blsr,
            Mnemonic.Bzhi => &BitExtensionHandler<T, TSource>.Bzhi,
            Mnemonic.Pdep => &BitExtensionHandler<T, TSource>.Pdep,
            Mnemonic.Pext => &BitExtensionHandler<T, TSource>.Pext,
            Mnemonic.Mulx => &MultiplyHandler<T, TSource>.Mulx,
            Mnemonic.Rorx => &BitExtensionHandler<T, TSource>.Rorx,
            Mnemonic.Sarx => &BitExtensionHandler<T, TSource>.Sarx,
            Mnemonic.Shlx => &BitExtensionHandler<T, TSource>.Shlx,
            Mnemonic.Shrx => &BitExtensionHandler<T, TSource>.Shrx,
            Mnemonic.Adcx => &BitExtensionHandler<T, TSource>.Adcx,
            _ => &BitExtensionHandler<T, TSource>.Adox,
        };

    private static OpHandler Checksum(in Instruction i) => IsRegister(i, 1)
        ? Pick(Size(i, 1), &ChecksumHandler<byte, SecondRegister>.Run, &ChecksumHandler<ushort, SecondRegister>.Run, &ChecksumHandler<uint, SecondRegister>.Run, &ChecksumHandler<ulong, SecondRegister>.Run)
        : Pick(Size(i, 1), &ChecksumHandler<byte, MemorySource<AnyAddress>>.Run, &ChecksumHandler<ushort, MemorySource<AnyAddress>>.Run, &ChecksumHandler<uint, MemorySource<AnyAddress>>.Run, &ChecksumHandler<ulong, MemorySource<AnyAddress>>.Run);

    private static OpHandler MoveSwapped(in Instruction i) => IsRegister(i, 0)
        ? Pick(Size(i, 0), &MoveHandler<ushort, RegisterPlace, MemorySource<AnyAddress>>.RunSwapped, &MoveHandler<uint, RegisterPlace, MemorySource<AnyAddress>>.RunSwapped, &MoveHandler<ulong, RegisterPlace, MemorySource<AnyAddress>>.RunSwapped)
        : Pick(Size(i, 1), &MoveHandler<ushort, MemoryPlace<AnyAddress>, SecondRegister>.RunSwapped, &MoveHandler<uint, MemoryPlace<AnyAddress>, SecondRegister>.RunSwapped, &MoveHandler<ulong, MemoryPlace<AnyAddress>, SecondRegister>.RunSwapped);
}
