using System.Runtime.Intrinsics;
using Aerostat.X86;
using Iced.Intel;
using Xunit;

namespace Aerostat.Cpu.Tests;

/// <summary>What the comparison with the host cannot show of AVX: system state, partial completion, host stubs.</summary>
public sealed unsafe class VexTests : IDisposable
{
    private const string Add256 = "C5F458C2"; // vaddps ymm0,ymm1,ymm2
    private const string Copy128 = "C5F828C1"; // vmovaps xmm0,xmm1
    private const string Gather = "C4E26990040B"; // vpgatherdd xmm0,[rbx+xmm1],xmm2

    private readonly VectorBench b = new();

    public VexTests()
    {
        Assert.SkipUnless(CpuModels.HostHasV3, "the host lacks AVX2, FMA or F16C");
        b.S->Xcr0 = 7;
    }

    public void Dispose() => b.Dispose();

    [Theory]
    [InlineData(Add256)]
    [InlineData(Copy128)]
    [InlineData("C5F877")] // vzeroupper
    [InlineData(Gather)]
    [InlineData("C4E27D2C03")] // vmaskmovps ymm0,ymm0,[rbx]
    [InlineData("C4E27917C1")] // vptest xmm0,xmm1
    [InlineData("C5F8AE13")] // vldmxcsr [rbx]
    [InlineData("C4E37963C100")] // vpcmpistri xmm0,xmm1,0
    public void TheSystemHasToEnableAvx(string code)
    {
        *(uint*)Pointer(0) = 0x1F80;
        b.Execute(code);
        b.S->Cr0 |= Cr0.Em; // of no account
        b.Execute(code);
        b.S->Cr0 |= Cr0.Ts;
        b.Raises(Vector.DeviceNotAvailable, code);
        b.S->Xcr0 = 3;
        b.Raises(Vector.InvalidOpcode, code);
        b.S->Xcr0 = 7;
        b.S->Cr4 &= ~Cr4.OsXsave;
        b.Raises(Vector.InvalidOpcode, code);
        b.S->Cr4 |= Cr4.OsXsave;
        b.S->Cr0 &= ~(Cr0.Ts | Cr0.Pe);
        b.Raises(Vector.InvalidOpcode, code);
        b.S->Cr0 |= Cr0.Pe;
        b.S->SystemFlags |= RFlags.Vm;
        b.Raises(Vector.InvalidOpcode, code);
        b.S->SystemFlags &= ~RFlags.Vm;
        b.Execute(code);
    }

    [Fact]
    public void VexClearsTheUpperHalfAndLegacyKeepsIt()
    {
        Vector128<byte> mark = Vector128.Create((byte)0xA5);
        *VectorState.YmmHigh(b.S, 0) = mark;
        b.Execute("0F28C1"); // movaps xmm0,xmm1
        b.Execute("0F58C1"); // addps xmm0,xmm1
        Assert.Equal(mark, *VectorState.YmmHigh(b.S, 0));
        b.Execute(Copy128);
        Assert.Equal(default, *VectorState.YmmHigh(b.S, 0));
        *VectorState.YmmHigh(b.S, 0) = mark;
        b.Execute("C4E37960C100"); // vpcmpestrm xmm0,xmm1,0: the result is in XMM0
        Assert.Equal(default, *VectorState.YmmHigh(b.S, 0));
    }

    [Theory]
    [InlineData("C5FC2803", 32)] // vmovaps ymm0,[rbx]
    [InlineData("C5F82803", 16)]
    [InlineData("C5FD7F03", 32)] // vmovdqa [rbx],ymm0
    [InlineData("C4E27D2A03", 32)] // vmovntdqa ymm0,[rbx]
    [InlineData("C5FDE703", 32)] // vmovntdq [rbx],ymm0
    public void AlignedMovesAreTheOnlyOnesThatNeedIt(string code, int alignment)
    {
        for (int distance = 0; distance < 32; distance++)
        {
            b.S->Gpr[3] = VectorBench.Data + (ulong)distance;
            b.Execute("C5FC1003"); // vmovups ymm0,[rbx]
            b.Execute("C5F45813"); // vaddps ymm2,ymm1,[rbx]
            if (distance % alignment == 0)
                b.Execute(code);
            else
                b.Raises(Vector.GeneralProtection, code);
        }
    }

    /// <summary>A fault in the third element: what has arrived by then stays, and the mask says what is left.</summary>
    [Fact]
    public void AGatherGoesOnWhereItStopped()
    {
        const string gather = "C4E26D91040B"; // vpgatherqd xmm0,[rbx+ymm1],xmm2
        for (int k = 0; k < 4; k++)
            *(int*)Pointer(16 * k) = 100 + k;
        *(Vector128<int>*)VectorState.Xmm(b.S, 0) = Vector128.Create(-1, -2, -3, -4);
        *(Vector128<long>*)VectorState.Xmm(b.S, 1) = Vector128.Create(0L, 16);
        *(Vector128<long>*)VectorState.YmmHigh(b.S, 1) = Vector128.Create(1L << 62, 48);
        *(Vector128<uint>*)VectorState.Xmm(b.S, 2) = Vector128.Create(0x80000000, 0, 0x80000000, 0x80000001);
        *VectorState.YmmHigh(b.S, 0) = Vector128.Create((byte)7);
        b.Raises(Vector.GeneralProtection, gather);
        Assert.Equal(Vector128.Create(100, -2, -3, -4), *(Vector128<int>*)VectorState.Xmm(b.S, 0));
        Assert.Equal(0b1100u, ((Vector128<int>*)VectorState.Xmm(b.S, 2))->ExtractMostSignificantBits());
        *(long*)VectorState.YmmHigh(b.S, 1) = 32;
        b.Execute(gather);
        Assert.Equal(Vector128.Create(100, -2, 102, 103), *(Vector128<int>*)VectorState.Xmm(b.S, 0));
        Assert.Equal(default, *VectorState.Xmm(b.S, 2));
        Assert.Equal(default, *VectorState.YmmHigh(b.S, 0));
    }

    [Fact]
    public void MaskedElementsAreNotTouched()
    {
        // The base is not canonical, and nothing is selected.
        b.S->Gpr[3] = 1UL << 62;
        *VectorState.Xmm(b.S, 2) = default;
        *VectorState.YmmHigh(b.S, 2) = default;
        b.Execute("C4E26D2C03"); // vmaskmovps ymm0,ymm2,[rbx]
        b.Execute("C4E26D2E03"); // vmaskmovps [rbx],ymm2,ymm0
        b.Execute(Gather);
        ((byte*)VectorState.YmmHigh(b.S, 2))[15] = 0x80;
        b.Raises(Vector.GeneralProtection, "C4E26D2C03");
        b.Raises(Vector.GeneralProtection, "C4E26D2E03");
    }

    /// <summary>Every form with every immediate: what a guest that wants to use up code memory can make.</summary>
    [Fact]
    public void StubsNeverRunOut()
    {
        using var stubs = new HostStubs();
        var encodings = new EncodingGenerator(64, new Rng(1)) { Address = 0x800 };
        int made = 0;
        MicroOp op;
        foreach (Code code in FormCatalog.AllCodes(64))
        {
            OpCodeInfo info = code.ToOpCode();
            if (info.OpCount == 0 || info.GetOpKind(info.OpCount - 1) != OpCodeOperandKind.imm8)
                continue;
            foreach (bool memory in (bool[])[false, true])
            {
                Encoding? e = null;
                for (int k = 0; k < 20 && e == null; k++)
                    e = encodings.TryMake(code, memory);
                if (e == null)
                    continue;
                Instruction i = e.Instruction;
                OperandDecoder.Fill(i, &op, 64);
                if (!VectorBinder.Bind(i, &op, new DecodeContext(64, stubs)) || op.Aux == 0)
                    continue;
                for (int immediate = 0; immediate < 256; immediate++)
                {
                    i.Immediate8 = (byte)immediate;
                    OperandDecoder.Fill(i, &op, 64);
                    Assert.True(VectorBinder.Bind(i, &op, new DecodeContext(64, stubs)), $"{code} {immediate}");
                    Assert.NotEqual(0, op.Aux);
                    made++;
                }
            }
        }

        Console.WriteLine($"{made} forms, {stubs.BytesUsed} bytes of code");
        Assert.True(made > 30_000);
        Assert.InRange(stubs.BytesUsed, 1, 16 << 20);
    }

    private byte* Pointer(int offset)
    {
        fixed (byte* p = b.Memory)
            return p + offset;
    }
}
