using System.Diagnostics.CodeAnalysis;
using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;

namespace Aerostat.Cpu.Tests;

/// <summary>What an instruction works on, apart from memory; and, afterwards, how it ended.</summary>
[StructLayout(LayoutKind.Sequential)]
internal unsafe struct TestState
{
    /// <summary>RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8..R15.</summary>
    public fixed ulong Gpr[16];
    public ulong Rflags;
    public ulong Rip;
    public ulong FsBase;
    public ulong GsBase;
    /// <summary>-1: fell through to the end of the case; else the exception vector that ended it.</summary>
    public long Vector;
    public ulong Error;
    public ulong Cr2;
    public ulong Reserved;
    /// <summary>XSAVE64 image in the standard format with x87, SSE and AVX; its header counts for nothing.</summary>
    public fixed byte Fx[832];

    public const int ImageBytes = 832, YmmHighOffset = 576;

    public const int MxcsrOffset = 24, StOffset = 32, XmmOffset = 160, FcwOffset = 0, FswOffset = 2, FtwOffset = 4;

    public uint Mxcsr
    {
        readonly get { fixed (byte* p = Fx) return *(uint*)(p + MxcsrOffset); }
        set { fixed (byte* p = Fx) *(uint*)(p + MxcsrOffset) = value; }
    }

    public ushort Fcw
    {
        readonly get { fixed (byte* p = Fx) return *(ushort*)p; }
        set { fixed (byte* p = Fx) *(ushort*)p = value; }
    }

    public ushort Fsw
    {
        readonly get { fixed (byte* p = Fx) return *(ushort*)(p + FswOffset); }
        set { fixed (byte* p = Fx) *(ushort*)(p + FswOffset) = value; }
    }

    public byte Ftw
    {
        readonly get => Fx[FtwOffset];
        set => Fx[FtwOffset] = value;
    }

    /// <summary>All zero but what must not be: rounding and masks at their reset values, an empty x87 stack.</summary>
    public static TestState Clean()
    {
        TestState s = default;
        s.Fcw = 0x37F;
        s.Mxcsr = 0x1F80;
        s.Rflags = 0x202;
        s.Rip = Layout.Start;
        s.Gpr[4] = Layout.Window + Layout.StackOffset;
        return s;
    }

    [UnscopedRef]
    public Span<byte> Xmm(int n) => MemoryMarshal.CreateSpan(ref Unsafe.Add(ref Fx[0], XmmOffset + 16 * n), 16);

    /// <summary>Upper half of a YMM register.</summary>
    [UnscopedRef]
    public Span<byte> YmmHigh(int n) => MemoryMarshal.CreateSpan(ref Unsafe.Add(ref Fx[0], YmmHighOffset + 16 * n), 16);

    /// <summary>ST or MM slot: 10 bytes count, 6 are zero.</summary>
    [UnscopedRef]
    public Span<byte> St(int n) => MemoryMarshal.CreateSpan(ref Unsafe.Add(ref Fx[0], StOffset + 16 * n), 10);
}
