using System.Runtime.InteropServices;
using Aerostat.X86;
using Iced.Intel;

namespace Aerostat.Cpu.Tests;

/// <summary>Makes states for an encoding: values that matter, and addresses that lie in the window.</summary>
internal sealed unsafe class StateGenerator(Rng rng)
{
    private const int Operand = Layout.OperandOffset;

    private readonly InstructionInfoFactory _info = new();
    private readonly byte[] _noise = MakeNoise();

    private static byte[] MakeNoise()
    {
        byte[] noise = new byte[1 << 16];
        new Rng(0).Fill(noise);
        return noise;
    }

    /// <summary>A case, or null when the choices would let the host reach memory that is not the case's.</summary>
    public TestCase? TryMake(Encoding e)
    {
        Instruction i = e.Instruction;
        var c = new TestCase { Code = e.Bytes, Bitness = e.Bitness, Low = e.Low };
        LaneKind kind = KindOf(i);
        FillState(ref c.State, kind);
        c.State.Rip = Layout.StartRip(e.Bitness);
        FillWindow(c.Window, kind);
        ref TestState s = ref c.State;
        ulong b = c.WindowBase;

        bool stack = i.IsStackInstruction || i.Mnemonic is Mnemonic.Enter or Mnemonic.Leave;
        if (stack || i.MemoryBase.GetFullRegister() == Register.RSP || rng.OneIn(2))
            s.Gpr[4] = b + Layout.StackOffset;
        if (i.Mnemonic is Mnemonic.Enter or Mnemonic.Leave)
            s.Gpr[5] = Merge(s.Gpr[5], b + Layout.StackOffset - 0x200, e.Bitness);
        if (stack && e.Low)
            s.Gpr[4] = Layout.Window + Layout.StackOffset;

        SpecialRegisters(ref s, i, e.Bitness);
        Strings(ref s, i, b);
        if (i.Mnemonic == Mnemonic.Vcvtps2ph)
            Halves(ref s, i.Op1Register);
        if (i.IsVsib)
            PlaceIndexes(ref s, i);
        bool hasMemory = false;
        for (int k = 0; k < i.OpCount; k++)
            hasMemory |= i.GetOpKind(k) == OpKind.Memory;
        ulong address = 0;
        if (hasMemory)
            address = PlaceOperand(ref s, i, b, e.Bitness);
        if (hasMemory || stack)
            SpecialMemory(c, ref s, i, address);
        if (e.Bitness != 64)
        {
            for (int k = 0; k < 16; k++)
                s.Gpr[k] = k < 8 ? (uint)s.Gpr[k] : 0;
            s.FsBase = s.GsBase = 0;
        }

        return IsContained(c, i) ? c : null;
    }

    private static ulong Merge(ulong old, ulong value, int bits) => bits == 64 ? value : bits == 32 ? (old & ~0xFFFFFFFFUL) | (uint)value : (old & ~0xFFFFUL) | (ushort)value;

    private static LaneKind KindOf(in Instruction i)
    {
        string name = i.Mnemonic.ToString();
        if (i.Encoding == EncodingKind.VEX && name.Length > 2 && name[0] == 'V')
            name = char.ToUpperInvariant(name[1]) + name[2..];
        if (name is "Cvtph2ps" || i.IsVsib)
            return LaneKind.Integer;
        if (name.EndsWith("ps", StringComparison.Ordinal) || name.EndsWith("ss", StringComparison.Ordinal) || name.StartsWith("Cvtps", StringComparison.Ordinal)
            || name.StartsWith("Cvtss", StringComparison.Ordinal) || name.StartsWith("Cvttps", StringComparison.Ordinal) || name.StartsWith("Cvttss", StringComparison.Ordinal))
            return LaneKind.Single;
        if (name.EndsWith("pd", StringComparison.Ordinal) || name.EndsWith("sd", StringComparison.Ordinal) || name.StartsWith("Cvtpd", StringComparison.Ordinal)
            || name.StartsWith("Cvtsd", StringComparison.Ordinal) || name.StartsWith("Cvttpd", StringComparison.Ordinal) || name.StartsWith("Cvttsd", StringComparison.Ordinal))
            return LaneKind.Double;
        return i.MemorySize switch
        {
            MemorySize.Float32 => LaneKind.Single,
            MemorySize.Float64 => LaneKind.Double,
            MemorySize.Float80 => LaneKind.Extended,
            _ => LaneKind.Integer,
        };
    }

    public void FillState(ref TestState s, LaneKind kind)
    {
        s = TestState.Clean();
        for (int k = 0; k < 16; k++)
            s.Gpr[k] = ValuePool.Integer(rng);
        s.Rflags = 0x202 | (rng.Next() & (RFlags.Status | RFlags.Df));
        if (rng.OneIn(4))
            s.Rflags |= RFlags.Id;
        if (rng.OneIn(16))
            s.Rflags |= RFlags.Ac;
        for (int k = 0; k < 16; k++)
            ValuePool.Lanes(rng, kind == LaneKind.Extended ? LaneKind.Integer : kind, s.Xmm(k));
        for (int k = 0; k < 16; k++)
            ValuePool.Lanes(rng, kind == LaneKind.Extended ? LaneKind.Integer : kind, s.YmmHigh(k));
        for (int k = 0; k < 8; k++)
            ValuePool.Extended(rng, s.St(k));

        s.Fcw = (ushort)(0x37F & ~0xF00 | ((int)rng.Next() & 0xC00) | rng.Pick<int>([0x300, 0x300, 0x200, 0]));
        if (rng.OneIn(8))
            s.Fcw = (ushort)(s.Fcw & ~0x3F | rng.Below(64));
        int status = (int)rng.Next() & 0x7F00;
        if (rng.OneIn(3))
            status |= rng.Below(128) & (rng.OneIn(4) ? 0x7F : 0x40 | (s.Fcw & 0x3F));
        // ES and B follow from flags and masks (Intel SDM vol. 1 section 8.1.3.3).
        if ((status & ~s.Fcw & 0x3F) != 0)
            status |= 0x8080;
        s.Fsw = (ushort)status;
        s.Ftw = rng.OneIn(2) ? (byte)0xFF : (byte)rng.Next();

        s.Mxcsr = 0x1F80 | ((uint)rng.Next() & 0x6000);
        if (rng.OneIn(3))
            s.Mxcsr |= (uint)rng.Next() & 0x8040;
        if (rng.OneIn(4))
            s.Mxcsr |= (uint)rng.Next() & 0x3F;
        if (rng.OneIn(6))
            s.Mxcsr = (s.Mxcsr & ~0x1F80u) | ((uint)rng.Next() & 0x1F80);
    }

    /// <summary>Fills a window with noise, and with values of a kind around the operand's place.</summary>
    public void FillWindow(Span<byte> window, LaneKind kind)
    {
        // Noise from a pool: making it anew for each case would cost more than running the case.
        _noise.AsSpan(rng.Below(_noise.Length - window.Length), window.Length).CopyTo(window);
        ValuePool.Lanes(rng, kind, window.Slice(Operand - 256, 768));
    }

    private void Strings(ref TestState s, in Instruction i, ulong b)
    {
        int addressBits = 0;
        bool source = false, destination = false;
        for (int k = 0; k < i.OpCount; k++)
        {
            OpKind o = i.GetOpKind(k);
            source |= o is OpKind.MemorySegSI or OpKind.MemorySegESI or OpKind.MemorySegRSI;
            destination |= o is OpKind.MemoryESDI or OpKind.MemoryESEDI or OpKind.MemoryESRDI or OpKind.MemorySegDI or OpKind.MemorySegEDI or OpKind.MemorySegRDI;
            addressBits = o switch
            {
                OpKind.MemorySegSI or OpKind.MemoryESDI or OpKind.MemorySegDI => 16,
                OpKind.MemorySegESI or OpKind.MemoryESEDI or OpKind.MemorySegEDI => 32,
                OpKind.MemorySegRSI or OpKind.MemoryESRDI or OpKind.MemorySegRDI => 64,
                _ => addressBits,
            };
        }

        if (source)
            s.Gpr[6] = Merge(s.Gpr[6], b + Operand + (ulong)(long)(rng.Below(64) - 32), addressBits);
        if (destination)
        {
            ulong at = b + Operand + (ulong)(long)(rng.Below(64) - 32);
            s.Gpr[7] = Merge(s.Gpr[7], rng.OneIn(24) ? Hole(addressBits, at) : at, addressBits);
        }

        // Some hosts look at the whole registers when they check for overlap, and then copy wrongly.
        if (source && destination && addressBits == 16)
            (s.Gpr[6], s.Gpr[7]) = ((ushort)s.Gpr[6], (ushort)s.Gpr[7]);
        if ((source || destination) && (i.HasRepPrefix || i.HasRepnePrefix))
            s.Gpr[1] = Merge(s.Gpr[1], (ulong)(rng.OneIn(4) ? rng.Below(40) : rng.Below(5)), addressBits);
    }

    // Values around the range of half precision.
    private void Halves(ref TestState s, Register register)
    {
        int n = register.GetNumber();
        for (int k = 0; k < 8; k++)
        {
            if (rng.OneIn(3))
                continue;
            uint value = ((uint)rng.Next() & 0x8000_0000) | (uint)(127 - 26 + rng.Below(44)) << 23 | ((uint)rng.Next() & 0x7F_FFFF & (uint.MaxValue << rng.Below(24)));
            MemoryMarshal.Write((k < 4 ? s.Xmm(n) : s.YmmHigh(n))[(4 * (k & 3))..], value);
        }
    }

    /// <summary>
    /// Gives a gather's index register small distances; elements that are masked off get any. Some of the selected ones lie in the hole.
    /// </summary>
    private void PlaceIndexes(ref TestState s, in Instruction i)
    {
        int index = i.MemoryIndex.GetNumber(), mask = i.Op2Register.GetNumber();
        int elements = GatherElements(i, out int indexSize, out int size);
        for (int k = 0; k < elements; k++)
        {
            Span<byte> lane = Lane(ref s, index, k * indexSize, indexSize), selector = Lane(ref s, mask, k * size, size);
            if ((selector[size - 1] & 0x80) == 0 && rng.OneIn(2))
                continue;
            long distance = rng.OneIn(30) ? (long)(Layout.Hole - Layout.Window) / i.MemoryIndexScale : rng.Below(256) - 128;
            if (indexSize == 4)
                MemoryMarshal.Write(lane, (int)distance);
            else
                MemoryMarshal.Write(lane, distance);
        }
    }

    private static int GatherElements(in Instruction i, out int indexSize, out int size)
    {
        indexSize = i.Mnemonic is Mnemonic.Vgatherqps or Mnemonic.Vgatherqpd or Mnemonic.Vpgatherqd or Mnemonic.Vpgatherqq ? 8 : 4;
        size = i.MemorySize.GetSize();
        return (i.Op0Register.IsYMM() || i.MemoryIndex.IsYMM() ? 32 : 16) / Math.Max(indexSize, size);
    }

    private static Span<byte> Lane(ref TestState s, int register, int offset, int size) =>
        (offset < 16 ? s.Xmm(register) : s.YmmHigh(register)).Slice(offset & 15, size);

    private ulong Hole(int addressBits, ulong otherwise) => addressBits == 16 ? otherwise : Layout.Hole + 0x100 + (ulong)rng.Below(16);

    // Chooses where the operand lies and makes the base register (or the segment base) agree.
    private ulong PlaceOperand(ref TestState s, in Instruction i, ulong b, int bitness)
    {
        int size = Math.Max(1, i.MemorySize.GetSize());
        bool locked = i.HasLockPrefix || i.Mnemonic is Mnemonic.Xchg;
        // The SHA instructions demand alignment by the manual, but not on every host.
        bool aligned = locked || i.Mnemonic.ToString().StartsWith("Sha", StringComparison.Ordinal);
        int offset;
        if (size > 64 || i.Mnemonic is Mnemonic.Fxsave or Mnemonic.Fxrstor or Mnemonic.Fxsave64 or Mnemonic.Fxrstor64)
            offset = Operand - 256 + (rng.OneIn(16) ? rng.Below(16) : 0);
        else if (rng.OneIn(3) && !aligned)
            offset = Operand - rng.Below(size * 2 + 8);
        else
            offset = Operand - 64 + 64 * rng.Below(2) + (locked ? size * rng.Below(Math.Max(1, 16 / size)) : 0);
        ulong target = b + (ulong)offset;
        int addressBits = AddressBits(i, bitness);
        if (rng.OneIn(24) && addressBits != 16)
            target = rng.OneIn(3) && size <= 64 && !aligned ? b + Layout.WindowSize - (ulong)(size / 2) : Layout.Hole + 0x200;

        ulong mask = addressBits == 64 ? ulong.MaxValue : addressBits == 32 ? uint.MaxValue : 0xFFFF;
        ulong index = i.IsVsib ? 0 : Register64(ref s, i.MemoryIndex) * (ulong)i.MemoryIndexScale;
        ulong displacement = i.MemoryDisplacement64;
        bool segmented = i.SegmentPrefix is Register.FS or Register.GS;
        ulong segmentBase = 0;
        if (i.MemoryIndex == Register.AL)
        {
            index = (byte)s.Gpr[0];
            segmentBase = 0;
        }

        if (i.MemoryBase is Register.None or Register.RIP or Register.EIP)
        {
            ulong fixedAddress = (displacement + index) & mask;
            if (segmented)
                segmentBase = 16 * (ulong)rng.Below(8);
            if (i.MemoryBase == Register.None && i.MemoryIndex != Register.None && !i.IsVsib)
                SetRegister(ref s, i.MemoryIndex, i.MemoryIndexScale == 1 ? target - displacement : 0, addressBits);
            target = fixedAddress + segmentBase;
        }
        else if (i.MemoryBase.GetFullRegister() == Register.RSP)
        {
            if (segmented)
                segmentBase = 16 * (ulong)rng.Below(8);
            s.Gpr[4] = Merge(s.Gpr[4], b + Layout.StackOffset, addressBits);
            target = ((s.Gpr[4] + displacement) & mask) + segmentBase;
        }
        else
        {
            if (segmented)
                segmentBase = addressBits == 64 && rng.OneIn(2) ? (ulong)((long)rng.Next() >> 17) : rng.Next() & 0xFFFFFF8;
            if (segmented && target < segmentBase && addressBits != 64)
                segmentBase = 0;
            SetRegister(ref s, i.MemoryBase, target - segmentBase - index - displacement, addressBits);
        }

        if (i.SegmentPrefix == Register.FS)
            s.FsBase = segmentBase;
        else if (i.SegmentPrefix == Register.GS)
            s.GsBase = segmentBase;
        return target;
    }

    private static int AddressBits(in Instruction i, int bitness)
    {
        if (i.MemoryBase is Register.RIP)
            return 64;
        if (i.MemoryBase is Register.EIP)
            return 32;
        Register r = i.MemoryBase != Register.None || i.IsVsib ? i.MemoryBase : i.MemoryIndex;
        return r switch
        {
            >= Register.AX and <= Register.R15W => 16,
            >= Register.EAX and <= Register.R15D => 32,
            >= Register.RAX and <= Register.R15 => 64,
            _ => i.MemoryDisplSize switch { 2 => 16, 4 => 32, _ => bitness },
        };
    }

    private static ulong Register64(ref TestState s, Register r)
    {
        if (r is Register.None or Register.AL)
            return 0;
        int n = r.GetFullRegister() - Register.RAX;
        ulong v = s.Gpr[n];
        return r.GetSize() switch { 2 => (ushort)v, 4 => (uint)v, _ => v };
    }

    private static void SetRegister(ref TestState s, Register r, ulong value, int bits)
    {
        int n = r.GetFullRegister() - Register.RAX;
        s.Gpr[n] = Merge(s.Gpr[n], value, bits);
    }

    // Register values that must agree with each other; before the operand is placed, which has the last word.
    private void SpecialRegisters(ref TestState s, in Instruction i, int bitness)
    {
        switch (i.Mnemonic)
        {
            case Mnemonic.Bt or Mnemonic.Bts or Mnemonic.Btr or Mnemonic.Btc when i.Op0Kind == OpKind.Memory && i.Op1Kind == OpKind.Register:
                {
                    // A bit offset reaches up to 2^63 bits away; keep it in the window, and locked ones in their cache line.
                    int distance = i.HasLockPrefix ? rng.Below(i.MemorySize.GetSize() * 8) : rng.Below(8192) - 4096;
                    SetRegister(ref s, i.Op1Register, (ulong)distance, i.Op1Register.GetSize() * 8);
                    break;
                }

            case Mnemonic.Cmpxchg when i.Op0Kind == OpKind.Register && rng.OneIn(2):
                if (i.Op0Register is not (Register.AH or Register.BH or Register.CH or Register.DH))
                    SetRegister(ref s, i.Op0Register, s.Gpr[0], 64);
                break;
            case Mnemonic.Div or Mnemonic.Idiv when rng.OneIn(2):
                // The upper half is often what makes it overflow.
                int half = rng.Pick<int>([8, 16, 32, 64]);
                s.Gpr[2] = (i.Mnemonic is Mnemonic.Idiv && (s.Gpr[0] >> (half - 1) & 1) != 0 ? ulong.MaxValue : 0) ^ (rng.OneIn(4) ? 1UL : 0);
                break;
            case Mnemonic.Jmp or Mnemonic.Call when i.Op0Kind is OpKind.Register:
                SetRegister(ref s, i.Op0Register, Layout.StartRip(bitness) + 0x20 + (ulong)rng.Below(64), bitness == 64 ? 64 : i.Op0Register.GetSize() * 8);
                break;
            case Mnemonic.Loop or Mnemonic.Loope or Mnemonic.Loopne or Mnemonic.Jcxz or Mnemonic.Jecxz or Mnemonic.Jrcxz when rng.OneIn(2):
                s.Gpr[1] = (rng.Next() << rng.Pick<int>([16, 32])) | (uint)rng.Below(3);
                break;
            case Mnemonic.Bextr or Mnemonic.Bzhi when i.Op2Kind == OpKind.Register && rng.OneIn(2):
                SetRegister(ref s, i.Op2Register, (ulong)(ValuePool.Count(rng) | ValuePool.Count(rng) << 8), 64);
                break;
        }
    }

    // Memory operands that are images, addresses, or must agree with registers.
    private void SpecialMemory(TestCase c, ref TestState s, in Instruction i, ulong address)
    {
        bool inside = address >= c.WindowBase && address <= c.WindowBase + Layout.WindowSize - 512;
        Span<byte> operand = inside ? c.Window.AsSpan((int)(address - c.WindowBase), 512) : new byte[512];
        switch (i.Mnemonic)
        {
            case Mnemonic.Cmpxchg when i.Op0Kind == OpKind.Memory && rng.OneIn(2):
                MemoryMarshal.Write(operand, s.Gpr[0]);
                break;
            case Mnemonic.Cmpxchg8b when rng.OneIn(2):
                MemoryMarshal.Write(operand, (uint)s.Gpr[0]);
                MemoryMarshal.Write(operand[4..], (uint)s.Gpr[2]);
                break;
            case Mnemonic.Cmpxchg16b when rng.OneIn(2):
                MemoryMarshal.Write(operand, s.Gpr[0]);
                MemoryMarshal.Write(operand[8..], s.Gpr[2]);
                break;
            case Mnemonic.Ldmxcsr or Mnemonic.Vldmxcsr:
                // Bit 17 exists on some processors.
                MemoryMarshal.Write(operand, (uint)rng.Next() & (rng.OneIn(8) ? ~0x20000u : 0xFFFF));
                break;
            case Mnemonic.Fldcw:
                MemoryMarshal.Write(operand, (ushort)(0x340 | ((uint)rng.Next() & 0xF3F)));
                break;
            case Mnemonic.Fxrstor or Mnemonic.Fxrstor64:
                {
                    TestState image = default;
                    FillState(ref image, LaneKind.Integer);
                    new ReadOnlySpan<byte>(image.Fx, 512).CopyTo(operand);
                    if (rng.OneIn(16))
                        operand[27] = 1;
                    break;
                }

            case Mnemonic.Fldenv or Mnemonic.Frstor:
                {
                    bool wide = i.MemorySize is MemorySize.FpuEnv28 or MemorySize.FpuState108;
                    int step = wide ? 4 : 2;
                    operand[..(step * 7)].Clear();
                    TestState image = default;
                    FillState(ref image, LaneKind.Integer);
                    MemoryMarshal.Write(operand, image.Fcw);
                    MemoryMarshal.Write(operand[step..], image.Fsw);
                    MemoryMarshal.Write(operand[(2 * step)..], (ushort)rng.Next());
                    if (i.Mnemonic == Mnemonic.Frstor)
                    {
                        for (int k = 0; k < 8; k++)
                            ValuePool.Extended(rng, operand.Slice(7 * step + 10 * k, 10));
                    }

                    break;
                }

            case Mnemonic.Jmp or Mnemonic.Call when i.Op0Kind is OpKind.Memory:
                MemoryMarshal.Write(operand, Layout.StartRip(c.Bitness) + 0x20 + (ulong)rng.Below(64));
                break;
            case Mnemonic.Ret:
                MemoryMarshal.Write(c.Window.AsSpan(Layout.StackOffset), Layout.StartRip(c.Bitness) + 0x20 + (ulong)rng.Below(64));
                break;
            case Mnemonic.Popf or Mnemonic.Popfd or Mnemonic.Popfq:
                MemoryMarshal.Write(c.Window.AsSpan(Layout.StackOffset), (rng.Next() & (RFlags.Status | RFlags.Df | RFlags.Ac | RFlags.Id | RFlags.Iopl)) | RFlags.If | 2);
                break;
            case Mnemonic.Cmpsb or Mnemonic.Cmpsw or Mnemonic.Cmpsd or Mnemonic.Cmpsq or Mnemonic.Scasb or Mnemonic.Scasw or Mnemonic.Scasd or Mnemonic.Scasq when rng.OneIn(2):
                {
                    // Long runs of equal elements, with an occasional difference.
                    Span<byte> area = c.Window.AsSpan(Operand - 512, 1024);
                    area.Clear();
                    for (int k = 0; k < 4; k++)
                        area[rng.Below(1024)] = 1;
                    s.Gpr[0] &= rng.OneIn(4) ? ulong.MaxValue : 0;
                    break;
                }
        }
    }

    /// <summary>Whether every address the instruction uses is in the window, in the code or in the hole.</summary>
    public bool IsContained(TestCase c, in Instruction i)
    {
        _checked = c;
        ref TestState s = ref c.State;
        foreach (UsedMemory m in _info.GetInfo(i).GetUsedMemory())
        {
            if (m.Access == OpAccess.NoMemAccess)
                continue;
            if (i.IsVsib)
            {
                int elements = GatherElements(i, out _, out int size);
                for (int k = 0; k < elements; k++)
                {
                    bool selected = (Lane(ref s, i.Op2Register.GetNumber(), k * size, size)[size - 1] & 0x80) != 0;
                    if (selected && (!m.TryGetVirtualAddress(k, out ulong element, TryGetRegister) || !IsInside(c, element)))
                        return false;
                }

                continue;
            }

            if (!m.TryGetVirtualAddress(0, out ulong at, TryGetRegister))
                return false;
            if (i.Mnemonic is Mnemonic.Bt or Mnemonic.Bts or Mnemonic.Btr or Mnemonic.Btc && i.Op1Kind == OpKind.Register)
            {
                long distance = (long)(s.Gpr[i.Op1Register.GetFullRegister() - Register.RAX] << (64 - 8 * i.Op1Register.GetSize())) >> (64 - 8 * i.Op1Register.GetSize());
                at += (ulong)(distance >> 3);
            }

            if (!IsInside(c, at))
                return false;
        }

        return true;
    }

    private static bool IsInside(TestCase c, ulong at)
    {
        if (c.Bitness != 64)
            at = (uint)at;
        return (at >= c.WindowBase - 0x100 && at <= c.WindowBase + Layout.WindowSize)
            || (at >= Layout.Window - 0x100 && at <= Layout.Window + Layout.WindowSize)
            || (at >= Layout.Hole && at < Layout.Hole + Layout.HoleSize - 0x1000)
            || (at >= Layout.Code && at < Layout.Code + Layout.CodeSize - 64);
    }

    private TestCase? _checked;

    private bool TryGetRegister(Register register, int elementIndex, int elementSize, out ulong value)
    {
        ref TestState s = ref _checked!.State;
        switch (register)
        {
            case Register.FS:
                value = s.FsBase;
                return true;
            case Register.GS:
                value = s.GsBase;
                return true;
            case Register.ES or Register.CS or Register.SS or Register.DS:
                value = 0;
                return true;
            case Register.AL:
                value = (byte)s.Gpr[0];
                return true;
            case >= Register.XMM0 and <= Register.YMM31:
                Span<byte> lane = Lane(ref s, register.GetNumber(), elementIndex * elementSize, elementSize);
                value = elementSize == 4 ? (ulong)MemoryMarshal.Read<int>(lane) : MemoryMarshal.Read<ulong>(lane);
                return true;
            default:
                ulong v = s.Gpr[register.GetFullRegister() - Register.RAX];
                value = register.GetSize() switch { 2 => (ushort)v, 4 => (uint)v, _ => v };
                return true;
        }
    }
}
