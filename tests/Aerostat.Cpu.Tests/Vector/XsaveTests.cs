using System.Runtime.Intrinsics;
using Aerostat.X86;
using Xunit;

namespace Aerostat.Cpu.Tests;

public sealed unsafe class XsaveTests : IDisposable
{
    private const ulong Compacted = 1UL << 63;

    private readonly VectorBench b = new();

    public void Dispose() => b.Dispose();

    private ref ulong StateBv => ref *(ulong*)Pointer(512);

    private ref ulong CompBv => ref *(ulong*)Pointer(520);

    private byte* Pointer(int offset)
    {
        fixed (byte* p = b.Memory)
            return p + offset;
    }

    [Theory]
    [InlineData(64, "480FAE03", "480FAE0B", 416)] // fxsave64, fxrstor64
    [InlineData(32, "0FAE03", "0FAE0B", 288)]
    public void LegacyStateComesBack(int bitness, string save, string restore, int written)
    {
        b.S->Bitness = bitness;
        new Random(1).NextBytes(new Span<byte>(b.Area + CpuState.XmmOffset, 256));
        b.Execute("D9EB"); // fldpi
        b.Mxcsr = 0x1FA5;
        byte[] before = new Span<byte>(b.Area, 416).ToArray();
        b.Memory.Fill(0xEE);
        b.Execute(save);
        Assert.Equal(-1, b.Memory[written..512].IndexOfAnyExcept((byte)0xEE));
        b.Execute("DBE3");
        b.Mxcsr = 0x1F80;
        new Span<byte>(b.Area + CpuState.XmmOffset, written - 160).Clear();
        b.Execute(restore);
        Assert.Equal(Convert.ToHexString(before), Convert.ToHexString(new Span<byte>(b.Area, 416)));
        b.Memory[26] = 1;
        b.Raises(Vector.GeneralProtection, restore);
    }

    [Fact]
    public void StandardFormatKeepsWhatWasNotAskedFor()
    {
        b.Memory.Fill(0xEE);
        StateBv = 0xF00;
        b.Xmm(3) = Vector128.Create(1.0, 2.0);
        b.S->Gpr[0] = 2; // SSE
        b.Execute("0FAE23"); // xsave
        Assert.Equal(0xF02u, StateBv);
        Assert.Equal(0xEEEEEEEEEEEEEEEE, CompBv);
        Assert.Equal(0xEE, b.Memory[0]);
        Assert.Equal(0xEE, b.Memory[32]);
        Assert.Equal(0x1F80u, *(uint*)Pointer(24));
        Assert.Equal(0xFFFFu, *(uint*)Pointer(28));
        Assert.Equal(1.0, *(double*)Pointer(160 + 48));
        Assert.Equal(0xEE, b.Memory[416]);
    }

    [Fact]
    public void OptimisedFormsSkipInitialComponents()
    {
        b.Memory.Fill(0xEE);
        StateBv = 3;
        b.S->Gpr[0] = 3;
        b.Execute("0FAE33"); // xsaveopt
        Assert.Equal(0u, StateBv);
        Assert.Equal(0xEE, b.Memory[0]);
        Assert.Equal(0xEE, b.Memory[160]);
        Assert.Equal(0x1F80u, *(uint*)Pointer(24)); // always with SSE or AVX
    }

    [Fact]
    public void CompactedFormatHoldsTheUpperHalvesOfYmm()
    {
        b.S->Xcr0 = 7;
        new Random(2).NextBytes(new Span<byte>(b.Area + CpuState.YmmHighOffset, 256));
        byte[] high = new Span<byte>(b.Area + CpuState.YmmHighOffset, 256).ToArray();
        b.Mxcsr = 0x1F81;
        b.S->Gpr[0] = 7;
        b.Execute("0FC723"); // xsavec
        Assert.Equal(6u, StateBv); // MXCSR counts for SSE here
        Assert.Equal(7 | Compacted, CompBv);
        Assert.Equal(high, b.Memory[576..832].ToArray());

        new Span<byte>(b.Area + CpuState.YmmHighOffset, 256).Clear();
        b.Mxcsr = 0x1F80;
        b.Xmm(1) = Vector128.Create(5.0);
        b.Execute("D9E8");
        b.Execute("0FAE2B"); // xrstor
        Assert.Equal(high, new Span<byte>(b.Area + CpuState.YmmHighOffset, 256).ToArray());
        Assert.Equal(0x1F81u, b.Mxcsr);
        Assert.Equal(Vector128<double>.Zero, b.Xmm(1));
        Assert.Equal(0, X87Environment.Tags(b.Area)); // not in XSTATE_BV: initial
    }

    [Theory]
    [InlineData(0x4, 0, 0, false)] // a component that XCR0 has not
    [InlineData(0x3, 0x3, 0, false)] // XCOMP_BV without bit 63
    [InlineData(0x1, 0, 1, false)]
    [InlineData(0x3, 0x8000000000000001, 0, false)] // present but not in the layout
    [InlineData(0x1, 0x8000000000000005, 0, false)]
    [InlineData(0x3, 0x8000000000000003, 1, false)]
    [InlineData(0x3, 0x8000000000000003, 0, true)]
    [InlineData(0x3, 0, 0, true)]
    public void MalformedHeadersAreRefused(ulong present, ulong layout, byte reserved, bool accepted)
    {
        *(uint*)Pointer(24) = 0x1F80;
        StateBv = present;
        CompBv = layout;
        b.Memory[528] = reserved;
        b.S->Gpr[0] = 3;
        if (accepted)
            b.Execute("0FAE2B");
        else
            b.Raises(Vector.GeneralProtection, "0FAE2B");
    }

    [Fact]
    public void StandardRestoreLoadsMxcsrEvenForInitialSse()
    {
        *(uint*)Pointer(24) = 0x1FBF;
        b.Xmm(4) = Vector128.Create(1.0);
        b.S->Gpr[0] = 2;
        b.Execute("0FAE2B");
        Assert.Equal(0x1FBFu, b.Mxcsr);
        Assert.Equal(Vector128<double>.Zero, b.Xmm(4));
        *(uint*)Pointer(24) = 0x10000;
        b.Raises(Vector.GeneralProtection, "0FAE2B");
    }

    [Fact]
    public void SupervisorFormsNeedPrivilegeAndTheCompactedFormat()
    {
        b.S->Gpr[0] = 3;
        b.S->Cpl = 3;
        b.Raises(Vector.GeneralProtection, "0FC72B"); // xsaves
        b.Raises(Vector.GeneralProtection, "0FC71B"); // xrstors
        b.S->Cpl = 0;
        b.Raises(Vector.GeneralProtection, "0FC71B");
        b.Execute("0FC72B");
        b.Execute("0FC71B");
    }
}
