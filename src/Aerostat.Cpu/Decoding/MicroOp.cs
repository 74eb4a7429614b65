using System.Runtime.InteropServices;

namespace Aerostat.Cpu;

/// <summary>What an instruction's handler asks of the run loop.</summary>
internal enum Outcome
{
    /// <summary>Done; go on with the next instruction of the block.</summary>
    Next = 0,
    /// <summary>Done; RIP has been set by the handler. Leave the block.</summary>
    Jump = 1,
    /// <summary>Done; RIP is the next instruction. Leave the block and look at requests, mode and code again.</summary>
    Stop = 2,
    /// <summary>An exception has been recorded with one of the Raise methods; RIP stays at this instruction, nothing else has changed.</summary>
    Fault = 3,
    /// <summary>Not finished (an interruptible string instruction): RIP stays at this instruction, requests are looked at, then it runs again.</summary>
    Repeat = 4,
    /// <summary>Done; RIP is the next instruction, and Run returns with the exit that the handler has recorded (HLT and the like).</summary>
    Exit = 5,
    /// <summary>As Fault, but a trap: RIP is the next instruction when the exception is delivered (#DB, INT3, INTO).</summary>
    Trap = 6,
}

/// <summary>Properties of a decoded instruction.</summary>
[Flags]
internal enum MicroOpFlags : byte
{
    None = 0,
    Lock = 1,
    Rep = 2,
    RepNe = 4,
}

/// <summary>How the linear address of a memory operand is made.</summary>
internal enum AddressKind : byte
{
    /// <summary>64-bit, no segment base: base + index * scale + displacement.</summary>
    Flat = 0,
    /// <summary>64-bit code with an FS or GS base, or a 32-bit address size.</summary>
    Long = 1,
    /// <summary>16- or 32-bit code: offset mask, limit and type check, segment base.</summary>
    Legacy = 2,
}

/// <summary>
/// One decoded instruction. Register operands are byte offsets into <see cref="CpuState"/> (register number * 8, + 1 for AH..BH).
/// </summary>
[StructLayout(LayoutKind.Sequential, Size = 64)]
internal unsafe struct MicroOp
{
    /// <summary>Executes the instruction.</summary>
    public delegate*<Interpreter, CpuState*, MicroOp*, Outcome> Handler;
    /// <summary>Immediate, sign- or zero-extended to 64 bits as the instruction defines; for near branches the displacement from the block's start.</summary>
    public ulong Immediate;
    /// <summary>Displacement of the memory operand. RIP-relative operands have <see cref="Base"/> = CpuState.BlockRip.</summary>
    public long Displacement;
    /// <summary>Whatever else a family of handlers needs: a host stub, a table.</summary>
    public nint Aux;
    /// <summary>First register operand (usually destination).</summary>
    public byte Dst;
    /// <summary>Second register operand.</summary>
    public byte Src;
    /// <summary>Third register operand.</summary>
    public byte Src2;
    /// <summary>Fourth register operand, or the index register of a gather.</summary>
    public byte Src3;
    /// <summary>Where the operands of a VEX instruction are: <see cref="VexPlace"/>, two bits each.</summary>
    public byte Places;
    /// <summary>VCVTPS2PH, whose result is smaller than its source.</summary>
    public bool Narrows;
    public byte Base;
    public byte Index;
    /// <summary>0..3.</summary>
    public byte Scale;
    /// <summary>Segment of the memory operand (<see cref="Seg"/>), default or override.</summary>
    public byte Segment;
    public AddressKind AddressKind;
    /// <summary>Address size in bits: 16, 32 or 64.</summary>
    public byte AddressBits;
    /// <summary>Operand size in bytes: 1, 2, 4 or 8, where a handler is not made for one size.</summary>
    public byte OperandSize;
    /// <summary>Length in bytes, 1..15.</summary>
    public byte Length;
    public MicroOpFlags Flags;
    /// <summary>Distance of the instruction from the start of its block.</summary>
    public ushort Offset;
    /// <summary>Iced's Code, for handlers that serve several and for dumps.</summary>
    public ushort Code;
}
