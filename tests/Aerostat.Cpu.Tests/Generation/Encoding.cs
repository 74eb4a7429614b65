using Iced.Intel;

namespace Aerostat.Cpu.Tests;

/// <summary>One encoding of an instruction form: bytes, and what a state needs so that its memory operand lies in the window.</summary>
/// <param name="Instruction">As decoded from the bytes at <see cref="Layout.Start"/>.</param>
/// <param name="Bytes">Machine code.</param>
/// <param name="Bitness">32 or 64.</param>
internal sealed record Encoding(Instruction Instruction, byte[] Bytes, int Bitness)
{
    public bool HasMemory
    {
        get
        {
            for (int i = 0; i < Instruction.OpCount; i++)
            {
                if (Instruction.GetOpKind(i) == OpKind.Memory)
                    return true;
            }

            return false;
        }
    }

    /// <summary>Whether its addresses are cut to 16 bits, so that it needs the low window.</summary>
    public bool Low { get; init; }
}

/// <summary>Makes encodings of a form: register and memory operands of all shapes, boundary immediates, prefixes.</summary>
internal sealed class EncodingGenerator
{
    private readonly int _bitness;
    private readonly Rng _rng;
    private readonly Encoder _encoder;
    private readonly BufferWriter _buffer = new();

    private sealed class BufferWriter : CodeWriter
    {
        public List<byte> Bytes { get; } = [];

        public override void WriteByte(byte value) => Bytes.Add(value);
    }

    public EncodingGenerator(int bitness, Rng rng)
    {
        _bitness = bitness;
        _rng = rng;
        _encoder = Encoder.Create(bitness, _buffer);
        Address = Layout.StartRip(bitness);
    }

    /// <summary>When set, memory operands use this register and a small displacement only.</summary>
    public Register FixedBase { get; init; }

    /// <summary>When set, the 64-bit general registers that operands are taken from, in turn.</summary>
    public Register[] Among { get; init; } = [];

    private int _taken;

    /// <summary>Where the next instruction goes.</summary>
    public ulong Address { get; set; }

    /// <summary>Makes an encoding, or null when the random choices do not fit together.</summary>
    /// <param name="code">Form.</param>
    /// <param name="memory">Whether an operand that can be register or memory is memory.</param>
    public Encoding? TryMake(Code code, bool memory)
    {
        OpCodeInfo info = code.ToOpCode();
        Instruction i = default;
        i.Code = code;
        int addressBits = FixedBase != Register.None ? FixedBase.GetSize() * 8 : _bitness;
        if (info.AddressSize != 0)
            addressBits = info.AddressSize;
        else if (_rng.OneIn(5) && FixedBase == Register.None)
            addressBits = _bitness == 32 ? 16 : 32;
        _addressBits = addressBits;
        _aligned = info.CanUseLockPrefix || info.Mnemonic is Mnemonic.Xchg || info.Mnemonic.ToString().StartsWith("Sha", StringComparison.Ordinal);
        for (int k = 0; k < info.OpCount; k++)
        {
            if (!SetOperand(ref i, info, k, memory))
                return null;
        }

        bool hasMemory = false;
        for (int k = 0; k < i.OpCount; k++)
            hasMemory |= i.GetOpKind(k) == OpKind.Memory;
        if (hasMemory && info.CanUseLockPrefix && k0IsMemory(i) && _rng.OneIn(3))
            i.HasLockPrefix = true;
        if (info.CanUseRepPrefix && _rng.OneIn(2))
            i.HasRepPrefix = true;
        else if (info.CanUseRepnePrefix && _rng.OneIn(3))
            i.HasRepnePrefix = true;
        return Encode(i, code, addressBits);

        static bool k0IsMemory(in Instruction i) => i.Op0Kind == OpKind.Memory;
    }

    private int _addressBits;

    private Encoding? Encode(Instruction i, Code code, int addressBits)
    {
        _buffer.Bytes.Clear();
        if (!_encoder.TryEncode(i, Address, out _, out _))
            return null;
        byte[] bytes = [.. _buffer.Bytes];
        if (bytes.Length > 15)
            return null;
        var decoder = Decoder.Create(_bitness, bytes);
        decoder.IP = Address;
        decoder.Decode(out Instruction decoded);
        if (decoded.Code != code || decoded.Length != bytes.Length)
            return null;
        bool low = addressBits == 16 && UsesMemory(decoded);
        return new Encoding(decoded, bytes, _bitness) { Low = low };
    }

    private static bool UsesMemory(in Instruction i)
    {
        for (int k = 0; k < i.OpCount; k++)
        {
            if (i.GetOpKind(k) is OpKind.Memory or (>= OpKind.MemorySegSI and <= OpKind.MemoryESRDI))
                return true;
        }

        return false;
    }

    private static readonly Register[] Low8 =
        [Register.AL, Register.CL, Register.DL, Register.BL, Register.AH, Register.CH, Register.DH, Register.BH];

    private Register General(int bits)
    {
        int count = _bitness == 64 ? 16 : 8;
        int n = Among.Length > 0 ? Among[_taken++ % Among.Length] - Register.RAX : _rng.Below(count);
        return bits switch
        {
            8 when n < 8 && (_bitness == 32 || _rng.OneIn(2)) => Low8[n],
            8 => n < 4 ? Register.AL + n : n < 8 ? Register.SPL + (n - 4) : Register.R8L + (n - 8),
            16 => Register.AX + n,
            32 => Register.EAX + n,
            _ => Register.RAX + n,
        };
    }

    private Register Ymm() => Register.YMM0 + _rng.Below(_bitness == 64 ? 16 : 8);

    private Register Xmm() => Register.XMM0 + _rng.Below(_bitness == 64 ? 16 : 8);

    private bool SetOperand(ref Instruction i, OpCodeInfo info, int k, bool memory)
    {
        OpCodeOperandKind kind = info.GetOpKind(k);
        switch (kind)
        {
            case OpCodeOperandKind.r8_reg or OpCodeOperandKind.r8_opcode:
                return SetRegister(ref i, k, General(8));
            case OpCodeOperandKind.r16_reg or OpCodeOperandKind.r16_opcode or OpCodeOperandKind.r16_rm:
                return SetRegister(ref i, k, General(16));
            case OpCodeOperandKind.r32_reg or OpCodeOperandKind.r32_opcode or OpCodeOperandKind.r32_rm or OpCodeOperandKind.r32_vvvv:
                return SetRegister(ref i, k, General(32));
            case OpCodeOperandKind.r64_reg or OpCodeOperandKind.r64_opcode or OpCodeOperandKind.r64_rm or OpCodeOperandKind.r64_vvvv:
                return SetRegister(ref i, k, General(64));
            case OpCodeOperandKind.r8_or_mem:
                return memory ? SetMemory(ref i, k) : SetRegister(ref i, k, General(8));
            case OpCodeOperandKind.r16_or_mem:
                return memory ? SetMemory(ref i, k) : SetRegister(ref i, k, General(16));
            case OpCodeOperandKind.r32_or_mem:
                return memory ? SetMemory(ref i, k) : SetRegister(ref i, k, General(32));
            case OpCodeOperandKind.r64_or_mem:
                return memory ? SetMemory(ref i, k) : SetRegister(ref i, k, General(64));
            case OpCodeOperandKind.mm_reg or OpCodeOperandKind.mm_rm:
                return SetRegister(ref i, k, Register.MM0 + _rng.Below(8));
            case OpCodeOperandKind.mm_or_mem:
                return memory ? SetMemory(ref i, k) : SetRegister(ref i, k, Register.MM0 + _rng.Below(8));
            case OpCodeOperandKind.xmm_reg or OpCodeOperandKind.xmm_rm or OpCodeOperandKind.xmm_vvvv or OpCodeOperandKind.xmm_is4:
                return SetRegister(ref i, k, Xmm());
            case OpCodeOperandKind.xmm_or_mem:
                return memory ? SetMemory(ref i, k) : SetRegister(ref i, k, Xmm());
            case OpCodeOperandKind.ymm_reg or OpCodeOperandKind.ymm_rm or OpCodeOperandKind.ymm_vvvv or OpCodeOperandKind.ymm_is4:
                return SetRegister(ref i, k, Ymm());
            case OpCodeOperandKind.ymm_or_mem:
                return memory ? SetMemory(ref i, k) : SetRegister(ref i, k, Ymm());
            case OpCodeOperandKind.mem_vsib32x or OpCodeOperandKind.mem_vsib64x:
                return SetGather(ref i, k, Xmm());
            case OpCodeOperandKind.mem_vsib32y or OpCodeOperandKind.mem_vsib64y:
                return SetGather(ref i, k, Ymm());
            case OpCodeOperandKind.mem:
                return SetMemory(ref i, k);
            case OpCodeOperandKind.seg_reg:
                return SetRegister(ref i, k, _rng.Pick<Register>([Register.ES, Register.SS, Register.DS, Register.FS, Register.GS]));
            case OpCodeOperandKind.es:
                return SetRegister(ref i, k, Register.ES);
            case OpCodeOperandKind.cs:
                return SetRegister(ref i, k, Register.CS);
            case OpCodeOperandKind.ss:
                return SetRegister(ref i, k, Register.SS);
            case OpCodeOperandKind.ds:
                return SetRegister(ref i, k, Register.DS);
            case OpCodeOperandKind.fs:
                return SetRegister(ref i, k, Register.FS);
            case OpCodeOperandKind.gs:
                return SetRegister(ref i, k, Register.GS);
            case OpCodeOperandKind.farbr2_2:
                i.SetOpKind(k, OpKind.FarBranch16);
                i.FarBranch16 = (ushort)_rng.Next();
                i.FarBranchSelector = (ushort)_rng.Next();
                return true;
            case OpCodeOperandKind.farbr4_2:
                i.SetOpKind(k, OpKind.FarBranch32);
                i.FarBranch32 = (uint)_rng.Next();
                i.FarBranchSelector = (ushort)_rng.Next();
                return true;
            case OpCodeOperandKind.cr_reg:
                return SetRegister(ref i, k, _rng.Pick<Register>([Register.CR0, Register.CR2, Register.CR3, Register.CR4]));
            case OpCodeOperandKind.dr_reg:
                return SetRegister(ref i, k, Register.DR0 + _rng.Below(4));
            case OpCodeOperandKind.st0:
                return SetRegister(ref i, k, Register.ST0);
            case OpCodeOperandKind.sti_opcode:
                return SetRegister(ref i, k, Register.ST0 + _rng.Below(8));
            case OpCodeOperandKind.al:
                return SetRegister(ref i, k, Register.AL);
            case OpCodeOperandKind.cl:
                return SetRegister(ref i, k, Register.CL);
            case OpCodeOperandKind.ax:
                return SetRegister(ref i, k, Register.AX);
            case OpCodeOperandKind.dx:
                return SetRegister(ref i, k, Register.DX);
            case OpCodeOperandKind.eax:
                return SetRegister(ref i, k, Register.EAX);
            case OpCodeOperandKind.rax:
                return SetRegister(ref i, k, Register.RAX);
            case OpCodeOperandKind.imm8:
                i.SetOpKind(k, k > 0 && i.Mnemonic is Mnemonic.Enter ? OpKind.Immediate8_2nd : OpKind.Immediate8);
                if (i.Mnemonic is Mnemonic.Enter)
                    i.Immediate8_2nd = ValuePool.Count(_rng);
                else
                    i.Immediate8 = ValuePool.Count(_rng);
                return true;
            case OpCodeOperandKind.imm8_const_1:
                i.SetOpKind(k, OpKind.Immediate8);
                i.Immediate8 = 1;
                return true;
            case OpCodeOperandKind.imm16:
                i.SetOpKind(k, OpKind.Immediate16);
                i.Immediate16 = i.Mnemonic is Mnemonic.Enter or Mnemonic.Ret ? (ushort)_rng.Below(64) : (ushort)ValuePool.Integer(_rng);
                return true;
            case OpCodeOperandKind.imm32:
                i.SetOpKind(k, OpKind.Immediate32);
                i.Immediate32 = (uint)ValuePool.Integer(_rng);
                return true;
            case OpCodeOperandKind.imm64:
                i.SetOpKind(k, OpKind.Immediate64);
                i.Immediate64 = ValuePool.Integer(_rng);
                return true;
            case OpCodeOperandKind.imm8sex16:
                i.SetOpKind(k, OpKind.Immediate8to16);
                i.Immediate8to16 = (sbyte)ValuePool.Integer(_rng);
                return true;
            case OpCodeOperandKind.imm8sex32:
                i.SetOpKind(k, OpKind.Immediate8to32);
                i.Immediate8to32 = (sbyte)ValuePool.Integer(_rng);
                return true;
            case OpCodeOperandKind.imm8sex64:
                i.SetOpKind(k, OpKind.Immediate8to64);
                i.Immediate8to64 = (sbyte)ValuePool.Integer(_rng);
                return true;
            case OpCodeOperandKind.imm32sex64:
                i.SetOpKind(k, OpKind.Immediate32to64);
                i.Immediate32to64 = (int)ValuePool.Integer(_rng);
                return true;
            case OpCodeOperandKind.br16_1 or OpCodeOperandKind.br16_2:
                i.SetOpKind(k, OpKind.NearBranch16);
                i.NearBranch16 = (ushort)(Address + (ulong)(_rng.OneIn(2) ? 0x40 : -0x40));
                return true;
            case OpCodeOperandKind.br32_1 or OpCodeOperandKind.br32_4:
                i.SetOpKind(k, OpKind.NearBranch32);
                i.NearBranch32 = (uint)BranchTarget();
                return true;
            case OpCodeOperandKind.br64_1 or OpCodeOperandKind.br64_4:
                i.SetOpKind(k, OpKind.NearBranch64);
                i.NearBranch64 = BranchTarget();
                return true;
            case OpCodeOperandKind.mem_offs:
                i.SetOpKind(k, OpKind.Memory);
                i.MemoryDisplSize = _addressBits / 8;
                i.MemoryDisplacement64 = (_addressBits == 16 ? Layout.LowWindow : Layout.Window) + (ulong)OperandOffset();
                return true;
            case OpCodeOperandKind.seg_rSI:
                i.SetOpKind(k, _addressBits switch { 16 => OpKind.MemorySegSI, 32 => OpKind.MemorySegESI, _ => OpKind.MemorySegRSI });
                return true;
            case OpCodeOperandKind.es_rDI:
                i.SetOpKind(k, _addressBits switch { 16 => OpKind.MemoryESDI, 32 => OpKind.MemoryESEDI, _ => OpKind.MemoryESRDI });
                return true;
            case OpCodeOperandKind.seg_rDI:
                i.SetOpKind(k, _addressBits switch { 16 => OpKind.MemorySegDI, 32 => OpKind.MemorySegEDI, _ => OpKind.MemorySegRDI });
                return true;
            case OpCodeOperandKind.seg_rBX_al:
                i.SetOpKind(k, OpKind.Memory);
                i.MemoryBase = _addressBits switch { 16 => Register.BX, 32 => Register.EBX, _ => Register.RBX };
                i.MemoryIndex = Register.AL;
                return true;
            default:
                throw new InvalidOperationException($"{info.Code}: operand kind {kind} is not known");
        }
    }

    private ulong BranchTarget() => Address + (ulong)((long)(_rng.OneIn(2) ? 0x20 + _rng.Below(0x50) : -0x20 - _rng.Below(0x40)));

    /// <summary>Where in the window an absolute operand lies.</summary>
    private int OperandOffset() => Layout.OperandOffset + (_rng.OneIn(3) && !_aligned ? -_rng.Below(40) : 16 * _rng.Below(8));

    private bool _aligned;

    private static bool SetRegister(ref Instruction i, int k, Register register)
    {
        i.SetOpKind(k, OpKind.Register);
        i.SetOpRegister(k, register);
        return true;
    }

    private static readonly (Register, Register)[] Pairs16 =
    [
        (Register.BX, Register.SI), (Register.BX, Register.DI), (Register.BP, Register.SI), (Register.BP, Register.DI), (Register.SI, Register.None),
        (Register.DI, Register.None), (Register.BP, Register.None), (Register.BX, Register.None), (Register.None, Register.None),
    ];

    // Any memory operand that can have an index, with a vector register for it.
    private bool SetGather(ref Instruction i, int k, Register index)
    {
        if (_addressBits == 16)
            return false;
        SetMemory(ref i, k);
        if (i.MemoryBase is Register.RIP or Register.EIP)
            return false;
        i.MemoryIndex = index;
        i.MemoryIndexScale = 1 << _rng.Below(4);
        return true;
    }

    private bool SetMemory(ref Instruction i, int k)
    {
        i.SetOpKind(k, OpKind.Memory);
        if (FixedBase != Register.None)
        {
            i.MemoryBase = FixedBase;
            i.MemoryDisplSize = 1;
            i.MemoryDisplacement64 = (ulong)(_rng.OneIn(4) && !_aligned ? (sbyte)_rng.Next() : 16 * (_rng.Below(8) - 4));
            if (_bitness != 64)
                i.MemoryDisplacement64 = (uint)i.MemoryDisplacement64;
            return true;
        }

        if (_addressBits == 16)
        {
            (Register b, Register x) = _rng.Pick<(Register, Register)>(Pairs16);
            i.MemoryBase = b;
            i.MemoryIndex = x;
            i.MemoryDisplSize = b == Register.None ? 2 : _rng.Pick<int>(b == Register.BP && x == Register.None ? [1, 2] : [0, 1, 2]);
            i.MemoryDisplacement64 = b == Register.None ? (ushort)(Layout.LowWindow + (ulong)OperandOffset())
                : i.MemoryDisplSize == 0 ? 0UL : i.MemoryDisplSize == 1 ? (ushort)(sbyte)_rng.Next() : (ushort)_rng.Next();
            return true;
        }

        Register first = _addressBits == 64 ? Register.RAX : Register.EAX;
        int count = _bitness == 64 ? 16 : 8;
        int shape = _rng.Below(8);
        if (_bitness == 64 && shape == 0)
        {
            i.MemoryBase = _addressBits == 64 ? Register.RIP : Register.EIP;
            i.MemoryDisplSize = 8;
            i.MemoryDisplacement64 = Layout.Window + (ulong)OperandOffset();
            return true;
        }

        if (shape == 1)
        {
            i.MemoryDisplSize = _addressBits == 64 ? 8 : 4;
            i.MemoryDisplacement64 = Layout.Window + (ulong)OperandOffset();
            return true;
        }

        Register b2 = first + _rng.Below(count);
        i.MemoryBase = b2;
        if (shape >= 5)
        {
            Register x2 = first + _rng.Below(count);
            if (x2 == first + 4 || x2 == b2)
                return false;
            i.MemoryIndex = x2;
            i.MemoryIndexScale = 1 << _rng.Below(4);
        }

        switch (_rng.Below(3))
        {
            case 1:
                i.MemoryDisplSize = 1;
                i.MemoryDisplacement64 = (ulong)(sbyte)_rng.Next();
                break;
            case 2:
                i.MemoryDisplSize = _addressBits == 64 ? 8 : 4;
                i.MemoryDisplacement64 = (ulong)((int)_rng.Next() >> _rng.Below(24));
                break;
        }

        if (b2 == first + 4)
        {
            // The stack pointer keeps its place, so that a push by the same instruction stays in the window.
            i.MemoryDisplSize = 1;
            i.MemoryDisplacement64 = (ulong)(16L * (_rng.Below(4) - 1));
            i.MemoryIndex = Register.None;
            i.MemoryIndexScale = 1;
        }

        if (_addressBits == 32)
            i.MemoryDisplacement64 = (uint)i.MemoryDisplacement64;
        if (_rng.OneIn(8))
            i.SegmentPrefix = _bitness == 64 ? _rng.Pick<Register>([Register.FS, Register.GS, Register.CS, Register.ES]) : _rng.Pick<Register>([Register.ES, Register.SS, Register.DS]);
        return true;
    }
}
