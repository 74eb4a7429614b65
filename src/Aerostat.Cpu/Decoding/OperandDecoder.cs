using Iced.Intel;

namespace Aerostat.Cpu;

/// <summary>What binders need to know besides the instruction itself.</summary>
/// <param name="Bitness">Code size: 16, 32 or 64.</param>
/// <param name="Stubs">Makes host stubs for instructions that run as themselves.</param>
internal readonly record struct DecodeContext(int Bitness, HostStubs Stubs);

/// <summary>Fills the parts of a <see cref="MicroOp"/> that all families of instructions share.</summary>
internal static unsafe class OperandDecoder
{
    /// <summary>
    /// Fills length, flags, code, the memory operand, immediates and registers: Dst, Src, Src2 and Src3 stand for operands 0 to 3 where those
    /// are registers. The instruction was decoded with its block at address 0, so that RIP-relative operands and branch targets are
    /// distances from the block's start.
    /// </summary>
    public static void Fill(in Instruction i, MicroOp* op, int bitness)
    {
        *op = default;
        op->Length = (byte)i.Length;
        op->Offset = (ushort)i.IP;
        op->Code = (ushort)i.Code;
        op->Base = op->Index = CpuState.ZeroRegister;
        op->AddressBits = (byte)bitness;
        op->AddressKind = bitness == 64 ? AddressKind.Flat : AddressKind.Legacy;
        op->Segment = Seg.Ds;
        if (i.HasLockPrefix)
            op->Flags |= MicroOpFlags.Lock;
        if (i.HasRepPrefix)
            op->Flags |= MicroOpFlags.Rep;
        if (i.HasRepnePrefix)
            op->Flags |= MicroOpFlags.RepNe;
        int count = i.OpCount;
        for (int k = 0; k < count; k++)
        {
            switch (i.GetOpKind(k))
            {
                case OpKind.Register:
                    byte r = RegisterOperand(i.GetOpRegister(k));
                    if (k == 0)
                        op->Dst = r;
                    else if (k == 1)
                        op->Src = r;
                    else if (k == 2)
                        op->Src2 = r;
                    else if (k == 3)
                        op->Src3 = r;
                    break;
                case OpKind.NearBranch16:
                case OpKind.NearBranch32:
                case OpKind.NearBranch64:
                    op->Immediate = i.NearBranchTarget;
                    break;
                case OpKind.FarBranch16:
                    op->Immediate = i.FarBranch16;
                    op->Aux = i.FarBranchSelector;
                    break;
                case OpKind.FarBranch32:
                    op->Immediate = i.FarBranch32;
                    op->Aux = i.FarBranchSelector;
                    break;
                case OpKind.Memory:
                    FillMemory(i, op, bitness);
                    break;
                case OpKind.MemorySegSI:
                case OpKind.MemorySegDI:
                    FillStringAddress(i, op, 16, bitness);
                    break;
                case OpKind.MemorySegESI:
                case OpKind.MemorySegEDI:
                    FillStringAddress(i, op, 32, bitness);
                    break;
                case OpKind.MemorySegRSI:
                case OpKind.MemorySegRDI:
                    FillStringAddress(i, op, 64, bitness);
                    break;
                case OpKind.MemoryESDI:
                    op->AddressBits = 16;
                    break;
                case OpKind.MemoryESEDI:
                    op->AddressBits = 32;
                    break;
                case OpKind.MemoryESRDI:
                    op->AddressBits = 64;
                    break;
                case OpKind.Immediate8_2nd:
                    op->Aux = i.Immediate8_2nd;
                    break;
                default:
                    op->Immediate = i.GetImmediate(k);
                    break;
            }
        }
    }

    /// <summary>A general register as its byte offset into the state; any other register as its number (CS is 1, XMM3 is 3, CR8 is 8).</summary>
    public static byte RegisterOperand(Register r)
    {
        if (r is >= Register.SPL and <= Register.R15L)
            return (byte)((r - Register.SPL + 4) * 8);
        if (r is >= Register.AH and <= Register.BH)
            return (byte)(((r - Register.AH) * 8) + 1);
        if (r.IsGPR())
            return (byte)(r.GetNumber() * 8);
        return (byte)r.GetNumber();
    }

    private static void FillMemory(in Instruction i, MicroOp* op, int bitness)
    {
        Register b = i.MemoryBase, x = i.MemoryIndex;
        op->Displacement = (long)i.MemoryDisplacement64;
        int bits = bitness;
        if (b is Register.RIP or Register.EIP)
        {
            op->Base = CpuState.BlockRip;
            bits = b == Register.RIP ? 64 : 32;
        }
        else
        {
            if (b != Register.None)
            {
                op->Base = (byte)(b.GetNumber() * 8);
                bits = b.GetSize() * 8;
            }
            if (x != Register.None && !x.IsVectorRegister())
            {
                op->Index = (byte)(x.GetNumber() * 8);
                op->Scale = (byte)System.Numerics.BitOperations.Log2((uint)i.MemoryIndexScale);
                bits = x.GetSize() * 8;
            }
            if (x.IsVectorRegister())
            {
                op->Src3 = (byte)x.GetNumber();
                op->Scale = (byte)System.Numerics.BitOperations.Log2((uint)i.MemoryIndexScale);
                if (b == Register.None)
                    bits = i.MemoryDisplSize == 8 ? 64 : 32;
            }
            if (b == Register.None && x == Register.None)
                bits = i.MemoryDisplSize switch { 2 => 16, 4 when bitness != 64 => 32, 8 => 64, _ => bitness };
        }
        op->AddressBits = (byte)bits;
        op->Segment = (byte)i.MemorySegment.GetNumber();
        if (bitness == 64)
            op->AddressKind = bits == 64 && op->Segment < Seg.Fs ? AddressKind.Flat : AddressKind.Long;
    }

    private static void FillStringAddress(in Instruction i, MicroOp* op, int bits, int bitness)
    {
        op->AddressBits = (byte)bits;
        op->Segment = (byte)i.MemorySegment.GetNumber();
        if (bitness == 64)
            op->AddressKind = AddressKind.Long;
    }
}
