namespace Aerostat.Cpu;

/// <summary>Host registers by their encoding.</summary>
internal static class Host
{
    public const int Rax = 0, Rcx = 1, Rdx = 2, Rbx = 3, Rsp = 4, Rbp = 5, Rsi = 6, Rdi = 7, R8 = 8, R9 = 9, R10 = 10, R11 = 11,
        R12 = 12, R13 = 13, R14 = 14, R15 = 15, None = -1;
}

/// <summary>Condition codes as encoded in Jcc and SETcc.</summary>
internal static class Condition
{
    public const int O = 0, B = 2, Ae = 3, E = 4, Ne = 5, Be = 6, A = 7, S = 8, Ns = 9;
}

/// <summary>
/// Writes the few host instructions that translated code is made of besides the guest's own. Writes at the writable address of code
/// memory; addresses handed out and taken are those at which the code will run.
/// </summary>
internal sealed unsafe class HostAssembler
{
    private byte* next, end;
    private long toExecutable;

    /// <summary>Where the next byte will run.</summary>
    public nint Here => (nint)(next + toExecutable);

    /// <summary>Whether everything since <see cref="Start"/> fitted.</summary>
    public bool Overflowed { get; private set; }

    /// <summary>Starts at a writable address that will run at <paramref name="executable"/>.</summary>
    public void Start(byte* writable, nint executable, int capacity)
    {
        next = writable;
        end = writable + capacity;
        toExecutable = executable - (nint)writable;
        Overflowed = false;
    }

    /// <summary>Goes back to an earlier <see cref="Here"/>.</summary>
    public void Rewind(nint here) => next = (byte*)(here - (nint)toExecutable);

    public void Byte(int value)
    {
        // SAFETY: the only store of single bytes, bounded by the range given to Start.
        if (next < end)
            *next++ = (byte)value;
        else
            Overflowed = true;
    }

    public void Int32(int value)
    {
        Byte(value);
        Byte(value >> 8);
        Byte(value >> 16);
        Byte(value >> 24);
    }

    public void Int64(ulong value)
    {
        Int32((int)value);
        Int32((int)(value >> 32));
    }

    /// <summary>An instruction with register operands: <paramref name="opcode"/> may be 0x0Fxx.</summary>
    public void RR(int opcode, int reg, int rm, bool wide = true, bool byteRegisters = false)
    {
        int rex = (wide ? 8 : 0) | (reg >> 3 << 2) | (rm >> 3);
        if (rex != 0 || (byteRegisters && (reg is >= 4 and < 8 || rm is >= 4 and < 8)))
            Byte(0x40 | rex);
        Opcode(opcode);
        Byte(0xC0 | (reg & 7) << 3 | (rm & 7));
    }

    /// <summary>An instruction with a memory operand [base + index * 2^scale + displacement], either register <see cref="Host.None"/>.</summary>
    public void RM(int opcode, int reg, int baseRegister, int index, int scale, int displacement, bool wide = true, bool gs = false, bool byteRegister = false)
    {
        if (gs)
            Byte(0x65);
        int rex = (wide ? 8 : 0) | (reg >> 3 << 2) | (index > 0 ? index >> 3 << 1 : 0) | (baseRegister > 0 ? baseRegister >> 3 : 0);
        if (rex != 0 || (byteRegister && reg is >= 4 and < 8))
            Byte(0x40 | rex);
        Opcode(opcode);
        int r = (reg & 7) << 3;
        if (baseRegister == Host.None)
        {
            Byte(r | 4);
            Byte((index == Host.None ? 4 << 3 : scale << 6 | (index & 7) << 3) | 5);
            Int32(displacement);
            return;
        }
        int mode = displacement == 0 && (baseRegister & 7) != 5 ? 0 : displacement is >= -128 and <= 127 ? 0x40 : 0x80;
        if (index != Host.None || (baseRegister & 7) == 4)
        {
            Byte(mode | r | 4);
            Byte((index == Host.None ? 4 << 3 : scale << 6 | (index & 7) << 3) | (baseRegister & 7));
        }
        else
        {
            Byte(mode | r | (baseRegister & 7));
        }
        if (mode == 0x40)
            Byte(displacement);
        else if (mode == 0x80)
            Int32(displacement);
    }

    /// <summary>No-operations up to a multiple of <paramref name="alignment"/>, in as few instructions as possible.</summary>
    public void AlignCode(int alignment) => NoOperations((int)(-Here & (alignment - 1)));

    /// <summary>No-operations of so many bytes, in as few instructions as possible.</summary>
    public void NoOperations(int left)
    {
        while (left > 0)
        {
            int n = Math.Min(left, 9);
            left -= n;
            if (n == 1)
            {
                Byte(0x90);
                continue;
            }
            // 66 prefixes and NOP r/m32 with displacements of all sizes (Intel SDM vol. 2, NOP).
            if (n is 2)
            {
                Byte(0x66);
                Byte(0x90);
                continue;
            }
            if (n is 6 or 9)
            {
                Byte(0x66);
                n--;
            }
            Byte(0x0F);
            Byte(0x1F);
            switch (n)
            {
                case 3:
                    Byte(0x00);
                    break;
                case 4:
                    Byte(0x40);
                    Byte(0);
                    break;
                case 5:
                    Byte(0x44);
                    Byte(0);
                    Byte(0);
                    break;
                case 7:
                    Byte(0x80);
                    Int32(0);
                    break;
                default:
                    Byte(0x84);
                    Byte(0);
                    Int32(0);
                    break;
            }
        }
    }

    public void Move(int to, int from)
    {
        if (to != from)
            RR(0x8B, to, from);
    }

    /// <summary>Loads a constant without touching flags, in the shortest form.</summary>
    public void Constant(int register, ulong value)
    {
        if (value <= uint.MaxValue)
        {
            if (register >= 8)
                Byte(0x41);
            Byte(0xB8 | (register & 7));
            Int32((int)value);
        }
        else if ((long)value == (int)value)
        {
            Byte(0x48 | (register >> 3));
            Byte(0xC7);
            Byte(0xC0 | (register & 7));
            Int32((int)value);
        }
        else
        {
            Byte(0x48 | (register >> 3));
            Byte(0xB8 | (register & 7));
            Int64(value);
        }
    }

    /// <summary>mov register, gs:[offset]</summary>
    public void LoadState(int register, int offset, bool wide = true) => RM(0x8B, register, Host.None, Host.None, 0, offset, wide, gs: true);

    /// <summary>mov gs:[offset], register</summary>
    public void StoreState(int offset, int register, bool wide = true) => RM(0x89, register, Host.None, Host.None, 0, offset, wide, gs: true);

    /// <summary>mov register, [rsp + offset]</summary>
    public void LoadFrame(int register, int offset) => RM(0x8B, register, Host.Rsp, Host.None, 0, offset);

    /// <summary>mov [rsp + offset], register</summary>
    public void StoreFrame(int offset, int register) => RM(0x89, register, Host.Rsp, Host.None, 0, offset);

    public void Lea(int to, int baseRegister, int index, int scale, int displacement, bool wide = true) =>
        RM(0x8D, to, baseRegister, index, scale, displacement, wide);

    /// <summary>rorx to, from, count: leaves the flags alone (BMI2).</summary>
    public void RotateRight(int to, int from, int count, bool wide = false)
    {
        // VEX.R and VEX.B are inverted.
        Byte(0xC4);
        Byte(0x43 | (to < 8 ? 0x80 : 0) | (from < 8 ? 0x20 : 0));
        Byte(wide ? 0xFB : 0x7B);
        Byte(0xF0);
        Byte(0xC0 | (to & 7) << 3 | (from & 7));
        Byte(count);
    }

    /// <summary>paddq mm0, [address]: leaves the flags alone.</summary>
    public void AddToCount(nint address) => WithCount(0xD4, address);

    /// <summary>psubq mm0, [address]</summary>
    public void TakeFromCount(nint address) => WithCount(0xFB, address);

    /// <summary>movq mm0, gs:[offset]</summary>
    public void LoadCount(int offset) => RM(0x0F6F, 0, Host.None, Host.None, 0, offset, wide: false, gs: true);

    /// <summary>movq gs:[offset], mm0, and the x87 registers are free again (EMMS).</summary>
    public void StoreCount(int offset)
    {
        RM(0x0F7F, 0, Host.None, Host.None, 0, offset, wide: false, gs: true);
        Byte(0x0F);
        Byte(0x77);
    }

    private void WithCount(int opcode, nint address)
    {
        Byte(0x0F);
        Byte(opcode);
        // [rip + distance]
        Byte(0x05);
        Int32(0);
        PointTo(Here - 4, address);
    }

    public void Lahf() => Byte(0x9F);

    public void Sahf() => Byte(0x9E);

    /// <summary>seto al</summary>
    public void SetOverflowAl()
    {
        Byte(0x0F);
        Byte(0x90);
        Byte(0xC0);
    }

    /// <summary>add al, 0x7F: sets OF when AL is 1, clears it when AL is 0.</summary>
    public void RestoreOverflow()
    {
        Byte(0x04);
        Byte(0x7F);
    }

    /// <summary>A conditional jump with a 32-bit distance; answers where the distance is, to be given to <see cref="Bind"/>.</summary>
    public nint Jcc(int condition)
    {
        Byte(0x0F);
        Byte(0x80 | condition);
        Int32(0);
        return Here - 4;
    }

    /// <summary>As <see cref="Jcc(int)"/> to a known address.</summary>
    public void Jcc(int condition, nint target)
    {
        nint site = Jcc(condition);
        PointTo(site, target);
    }

    public nint Call()
    {
        Byte(0xE8);
        Int32(0);
        return Here - 4;
    }

    public nint Jmp()
    {
        Byte(0xE9);
        Int32(0);
        return Here - 4;
    }

    public void Jmp(nint target)
    {
        nint site = Jmp();
        PointTo(site, target);
    }

    /// <summary>Makes a jump go to where the next byte will be.</summary>
    public void Bind(nint site) => PointTo(site, Here);

    /// <summary>Makes a jump go to an address.</summary>
    public void PointTo(nint site, nint target)
    {
        if (!Overflowed)
            *(int*)(site - (nint)toExecutable) = (int)(target - (site + 4));
    }

    private void Opcode(int opcode)
    {
        if (opcode > 0xFF)
            Byte(opcode >> 8);
        Byte(opcode);
    }
}
