using Aerostat.X86;

namespace Aerostat.Cpu;

/// <summary>
/// The x87 registers in their FXSAVE64 image: FCW at 0, FSW at 2, abridged tags at 4, FOP at 6, FIP at 8, FDP at 16, ST(0) to ST(7) from
/// 32. Registers lie there in stack order, tags in physical order, so moving TOP without touching registers rotates the image.
/// </summary>
internal static unsafe class X87Environment
{
    // SAFETY: an area is the vCPU's own or a 512-byte copy; an image has the 14 or 28 bytes of its format.

    /// <summary>FCW after FNINIT.</summary>
    public const ushort DefaultControl = 0x37F;

    /// <summary>FSW bits: exception flags with stack fault, error summary, busy.</summary>
    public const int Exceptions = 0x3F, ErrorSummary = 0x80, Busy = 0x8000, TopShift = 11;

    public static ref ushort Control(byte* area) => ref *(ushort*)area;

    public static ref ushort Status(byte* area) => ref *(ushort*)(area + 2);

    public static ref byte Tags(byte* area) => ref area[4];

    public static ref ushort Opcode(byte* area) => ref *(ushort*)(area + 6);

    public static ref ulong InstructionPointer(byte* area) => ref *(ulong*)(area + 8);

    public static ref ulong DataPointer(byte* area) => ref *(ulong*)(area + 16);

    public static int Top(byte* area) => Status(area) >> TopShift & 7;

    /// <summary>An unmasked exception waits for the next waiting instruction.</summary>
    public static bool IsPending(byte* area) => (Status(area) & ~Control(area) & Exceptions) != 0;

    /// <summary>Moves TOP and leaves each physical register what it was.</summary>
    public static void SetTop(byte* area, int top)
    {
        int turn = (top - Top(area)) & 7;
        Status(area) = (ushort)((Status(area) & ~(7 << TopShift)) | (top << TopShift));
        if (turn == 0)
            return;
        UInt128* st = (UInt128*)(area + CpuState.StOffset);
        UInt128* old = stackalloc UInt128[8];
        for (int k = 0; k < 8; k++)
            old[k] = st[k];
        for (int k = 0; k < 8; k++)
            st[k] = old[(k + turn) & 7];
    }

    /// <summary>Sets the control word as FLDCW does: reserved bits read as the processor has them, and the error summary follows the masks.</summary>
    public static void SetControl(byte* area, ushort value)
    {
        Control(area) = (ushort)((value & 0x1F3F) | 0x40);
        Summarize(area);
    }

    /// <summary>Sets the status word including TOP (physical registers stay where they are); error summary and busy follow the flags.</summary>
    public static void SetStatus(byte* area, ushort value)
    {
        SetTop(area, value >> TopShift & 7);
        Status(area) = value;
        Summarize(area);
    }

    /// <summary>Brings error summary and busy into line with flags and masks.</summary>
    public static void Summarize(byte* area)
    {
        int s = Status(area) & ~(ErrorSummary | Busy);
        Status(area) = (ushort)(IsPending(area) ? s | ErrorSummary | Busy : s);
    }

    /// <summary>FNINIT. The data registers keep their contents and become empty.</summary>
    public static void Initialize(byte* area)
    {
        SetTop(area, 0);
        Control(area) = DefaultControl;
        Status(area) = 0;
        Tags(area) = 0;
        Opcode(area) = 0;
        InstructionPointer(area) = 0;
        DataPointer(area) = 0;
    }

    /// <summary>The state after RESET, as XRSTOR's init optimisation gives it: also the data registers are zero.</summary>
    public static void Clear(byte* area)
    {
        new Span<byte>(area, 24).Clear();
        new Span<byte>(area + CpuState.StOffset, 128).Clear();
        Control(area) = DefaultControl;
    }

    /// <summary>The 16-bit tag word: 00 valid, 01 zero, 10 special, 11 empty, two bits for each physical register.</summary>
    public static ushort FullTags(byte* area)
    {
        int full = 0, top = Top(area);
        for (int r = 0; r < 8; r++)
        {
            int tag = 3;
            if ((Tags(area) >> r & 1) != 0)
            {
                byte* st = area + CpuState.StOffset + (16 * ((r - top) & 7));
                ulong significand = *(ulong*)st;
                int exponent = *(ushort*)(st + 8) & 0x7FFF;
                tag = exponent == 0 && significand == 0 ? 1 : exponent is 0 or 0x7FFF || (long)significand >= 0 ? 2 : 0;
            }
            full |= tag << (2 * r);
        }
        return (ushort)full;
    }

    /// <summary>Sets the abridged tags from a 16-bit tag word: a register is empty or not, the rest is computed anew when asked for.</summary>
    public static void SetFullTags(byte* area, ushort full)
    {
        int tags = 0;
        for (int r = 0; r < 8; r++)
        {
            if ((full >> (2 * r) & 3) != 3)
                tags |= 1 << r;
        }
        Tags(area) = (byte)tags;
    }

    /// <summary>
    /// Writes the environment in one of its four formats (Intel SDM vol. 1 figures 8-9 to 8-12): 14 or 28 bytes, protected or real mode.
    /// FCS and FDS are zero (CPUID.7.EBX[13]).
    /// </summary>
    public static void Store(byte* area, byte* image, bool wide, bool real)
    {
        ulong ip = InstructionPointer(area), dp = DataPointer(area);
        ushort opcode = (ushort)(Opcode(area) & 0x7FF);
        if (!wide)
        {
            ushort* w = (ushort*)image;
            w[0] = Control(area);
            w[1] = Status(area);
            w[2] = FullTags(area);
            w[3] = (ushort)ip;
            w[4] = real ? (ushort)(((ip >> 4) & 0xF000) | opcode) : (ushort)0;
            w[5] = (ushort)dp;
            w[6] = real ? (ushort)((dp >> 4) & 0xF000) : (ushort)0;
            return;
        }
        uint* d = (uint*)image;
        d[0] = 0xFFFF0000 | Control(area);
        d[1] = 0xFFFF0000 | Status(area);
        d[2] = 0xFFFF0000 | FullTags(area);
        if (real)
        {
            d[3] = 0xFFFF0000 | (ushort)ip;
            d[4] = (uint)((ip >> 4) & 0x0FFFF000) | opcode;
            d[5] = 0xFFFF0000 | (ushort)dp;
            d[6] = (uint)((dp >> 4) & 0x0FFFF000);
        }
        else
        {
            d[3] = (uint)ip;
            d[4] = (uint)opcode << 16;
            d[5] = (uint)dp;
            d[6] = 0xFFFF0000;
        }
    }

    /// <summary>Reads the environment back from one of its formats.</summary>
    public static void Load(byte* area, byte* image, bool wide, bool real)
    {
        ushort status, tags;
        if (!wide)
        {
            ushort* w = (ushort*)image;
            Control(area) = (ushort)((w[0] & 0x1F3F) | 0x40);
            status = w[1];
            tags = w[2];
            InstructionPointer(area) = w[3] | (real ? (ulong)(w[4] & 0xF000) << 4 : 0);
            DataPointer(area) = w[5] | (real ? (ulong)(w[6] & 0xF000) << 4 : 0);
            Opcode(area) = real ? (ushort)(w[4] & 0x7FF) : (ushort)0;
        }
        else
        {
            uint* d = (uint*)image;
            Control(area) = (ushort)((d[0] & 0x1F3F) | 0x40);
            status = (ushort)d[1];
            tags = (ushort)d[2];
            InstructionPointer(area) = real ? (ushort)d[3] | ((d[4] & 0x0FFFF000) << 4) : d[3];
            DataPointer(area) = real ? (ushort)d[5] | ((d[6] & 0x0FFFF000) << 4) : d[5];
            Opcode(area) = (ushort)((real ? d[4] : d[4] >> 16) & 0x7FF);
        }
        SetStatus(area, status);
        SetFullTags(area, tags);
    }
}
