using System.Runtime.Intrinsics;
using Aerostat.X86;
using Iced.Intel;
using Xunit;

namespace Aerostat.Cpu.Tests;

public sealed unsafe class SseTests : IDisposable
{
    private readonly VectorBench b = new();

    public void Dispose() => b.Dispose();

    [Theory]
    [InlineData("0F284B01")] // movaps xmm1,[rbx+1]
    [InlineData("0F294B01")] // movaps [rbx+1],xmm1
    [InlineData("660FE74B01")] // movntdq [rbx+1],xmm1
    [InlineData("660F6F4B08")] // movdqa xmm1,[rbx+8]
    [InlineData("660FFC4B01")] // paddb xmm1,[rbx+1]
    [InlineData("660FEC4B01")] // paddsb xmm1,[rbx+1], a stub
    [InlineData("0F584B04")] // addps xmm1,[rbx+4]
    [InlineData("660F38174B01")] // ptest xmm1,[rbx+1]
    [InlineData("660F2D4308")] // cvtpd2pi mm0,[rbx+8]
    [InlineData("0FAE4308")] // fxsave [rbx+8]
    [InlineData("0FAE4B08")] // fxrstor [rbx+8]
    [InlineData("0FAE6320")] // xsave [rbx+20h]
    [InlineData("0FAE6B20")] // xrstor [rbx+20h]
    public void UnalignedOperandIsAProtectionFault(string code)
    {
        b.Raises(Vector.GeneralProtection, code);
        Assert.True(b.Cpu.raisedHasError);
    }

    [Theory]
    [InlineData("0F104B01")] // movups
    [InlineData("F30F6F4B01")] // movdqu
    [InlineData("F20FF04B01")] // lddqu
    [InlineData("660F3A634B0100")] // pcmpistri
    [InlineData("F20F584B01")] // addsd
    [InlineData("660F38304B01")] // pmovzxbw
    public void OtherOperandsNeedNoAlignment(string code) => b.Execute(code);

    [Fact]
    public void ControlRegistersDecideInTheRightOrder()
    {
        const string sse = "0F58CA", x87 = "D9E8", mmx = "0FFCCA", xsave = "0FAE23", wait = "9B";
        b.S->Cr0 |= Cr0.Ts;
        foreach (string code in (string[])[sse, x87, mmx, xsave, wait])
            b.Raises(Vector.DeviceNotAvailable, code);
        b.S->Cr0 &= ~Cr0.Mp;
        b.Execute(wait);
        b.S->Cr4 &= ~(Cr4.OsFxsr | Cr4.OsXsave);
        b.Raises(Vector.InvalidOpcode, sse);
        b.Raises(Vector.InvalidOpcode, xsave);
        b.Raises(Vector.InvalidOpcode, "0F2ACA"); // cvtpi2ps xmm1,mm2
        b.S->Cr0 &= ~Cr0.Ts;
        b.Execute(mmx);
        b.S->Cr4 |= Cr4.OsFxsr;
        b.S->Cr0 |= Cr0.Em;
        b.Raises(Vector.InvalidOpcode, sse);
        b.Raises(Vector.InvalidOpcode, mmx);
        b.Raises(Vector.DeviceNotAvailable, x87);
        b.Raises(Vector.DeviceNotAvailable, "0FAE03"); // fxsave
    }

    [Fact]
    public void MaskedExceptionsOnlySetFlags()
    {
        b.Xmm(1) = Vector128.Create(1.0, 3.0);
        b.Xmm(2) = Vector128.Create(0.0, 7.0);
        b.Execute("660F5ECA"); // divpd xmm1,xmm2
        Assert.Equal(Vector128.Create(double.PositiveInfinity, 3.0 / 7), b.Xmm(1));
        Assert.Equal(0x1F80u | 4 | 32, b.Mxcsr);
    }

    [Fact]
    public void UnmaskedDivideByZeroSuppressesRoundingFlags()
    {
        b.Mxcsr = 0x1F80 & ~(1u << 9);
        b.Xmm(1) = Vector128.Create(1.0, 3.0);
        b.Xmm(2) = Vector128.Create(0.0, 7.0);
        b.Raises(Vector.SimdFloatingPoint, "660F5ECA");
        Assert.Equal(Vector128.Create(1.0, 3.0), b.Xmm(1));
        Assert.Equal((0x1F80 & ~(1u << 9)) | 4, b.Mxcsr);

        b.S->Cr4 &= ~Cr4.OsXmmExcpt;
        b.Raises(Vector.InvalidOpcode, "660F5ECA");
    }

    [Fact]
    public void UnmaskedUnderflowSeesExactTinyResults()
    {
        const uint unmasked = 0x1F80 & ~(1u << 11);
        b.Xmm(1) = Vector128.CreateScalar(double.Epsilon * 2);
        b.Xmm(2) = Vector128.CreateScalar(1.0);
        b.Execute("F20F59CA"); // mulsd xmm1,xmm2: tiny but exact, nothing while masked
        Assert.Equal(0x1F80u | 2, b.Mxcsr);
        // Flush-to-zero does nothing while underflow is unmasked.
        b.Mxcsr = unmasked | 0x8000;
        b.Raises(Vector.SimdFloatingPoint, "F20F59CA");
        Assert.Equal(unmasked | 0x8000 | 2 | 16, b.Mxcsr);
        Assert.Equal(double.Epsilon * 2, b.Xmm(1)[0]);
    }

    [Fact]
    public void ComparisonThatRaisesLeavesTheFlags()
    {
        b.Mxcsr = 0x1F00;
        b.Xmm(1) = Vector128.CreateScalar(double.NaN);
        CpuStateExtensions.SetRflags(b.S, RFlags.Cf | RFlags.Of | RFlags.Af);
        b.Raises(Vector.SimdFloatingPoint, "660F2FCA"); // comisd
        Assert.Equal(RFlags.Cf | RFlags.Of | RFlags.Af | RFlags.Fixed1, CpuStateExtensions.GetRflags(b.S));
        b.Execute("660F2ECA"); // ucomisd: quiet NaN is no exception
        Assert.Equal(RFlags.Cf | RFlags.Zf | RFlags.Pf | RFlags.Fixed1, CpuStateExtensions.GetRflags(b.S));
    }

    [Fact]
    public void GuestRoundingStaysInTheGuest()
    {
        b.Mxcsr = 0x1F80 | 0x4000; // up
        b.Xmm(1) = Vector128.CreateScalar(1.0);
        b.Xmm(2) = Vector128.CreateScalar(3.0);
        b.Execute("F20F5ECA"); // divsd
        Assert.Equal(0x3FD5555555555556, BitConverter.DoubleToInt64Bits(b.Xmm(1)[0]));
        Assert.Equal(0x3FD5555555555555, BitConverter.DoubleToInt64Bits(Math.Abs(1.0) / b.Xmm(2)[0]));
    }

    [Fact]
    public void ReservedMxcsrBitsAreRefused()
    {
        BitConverter.TryWriteBytes(b.Memory, 0x11F80u);
        b.Raises(Vector.GeneralProtection, "0FAE13"); // ldmxcsr
        Assert.Equal(0x1F80u, b.Mxcsr);
        BitConverter.TryWriteBytes(b.Memory, 0xFFFFu);
        b.Execute("0FAE13");
        Assert.Equal(0xFFFFu, b.Mxcsr);
        b.Execute("0FAE5B40"); // stmxcsr
        Assert.Equal(0xFFFFu, BitConverter.ToUInt32(b.Memory[0x40..]));
    }

    [Fact]
    public void MaskedStoreWritesSelectedBytesOnly()
    {
        b.Xmm(1) = Vector128.Create((byte)0x11).AsDouble();
        Vector128<byte> mask = Vector128<byte>.Zero.WithElement(2, (byte)0x80).WithElement(15, (byte)0xFF);
        b.Xmm(2) = mask.AsDouble();
        b.S->Gpr[7] = VectorBench.Data + 0xFF8; // across a page
        b.Execute("660FF7CA"); // maskmovdqu xmm1,xmm2
        Assert.Equal(0x11, b.Memory[0xFFA]);
        Assert.Equal(0, b.Memory[0xFF8]);
        Assert.Equal(0, b.Memory[0xFFB]);
    }

    [Fact]
    public void SegmentLimitHoldsForWideOperands()
    {
        using var legacy = new VectorBench(bitness: 32);
        legacy.S->Ds.Limit = VectorBench.Data + 14;
        legacy.Raises(Vector.GeneralProtection, "0F100B"); // movups xmm1,[ebx]
        legacy.Raises(Vector.GeneralProtection, "0FAE2B"); // xrstor [ebx]
        legacy.Raises(Vector.GeneralProtection, "0FAE23"); // xsave [ebx]
        legacy.S->Ss.Limit = 0x100;
        legacy.S->Gpr[5] = VectorBench.Data;
        legacy.Raises(Vector.StackFault, "0F104D00"); // movups xmm1,[ebp]
    }

    [Fact]
    public void EveryNamedFormBinds()
    {
        CpuidFeature[] features =
        [
            CpuidFeature.MMX, CpuidFeature.SSE, CpuidFeature.SSE2, CpuidFeature.SSE3, CpuidFeature.SSSE3, CpuidFeature.SSE4_1, CpuidFeature.SSE4_2,
            CpuidFeature.AES, CpuidFeature.PCLMULQDQ, CpuidFeature.SHA,
        ];
        foreach (Code code in Enum.GetValues<Code>())
        {
            OpCodeInfo o = code.ToOpCode();
            if (!o.IsInstruction || o.Encoding != EncodingKind.Legacy || !code.CpuidFeatures().Intersect(features).Any() || !code.CpuidFeatures().All(HostStubs.CanRun))
                continue;
            // Those of the integer instructions.
            if (code.Mnemonic() is Mnemonic.Crc32 or Mnemonic.Movnti or Mnemonic.Lfence or Mnemonic.Mfence or Mnemonic.Sfence
                or Mnemonic.Prefetchnta or Mnemonic.Prefetcht0 or Mnemonic.Prefetcht1 or Mnemonic.Prefetcht2 or Mnemonic.Pause)
                continue;
            foreach (bool memory in (bool[])[false, true])
            {
                Instruction i = new() { Code = code };
                bool encodable = true;
                for (int k = 0; k < o.OpCount; k++)
                    encodable &= SetOperand(ref i, k, o.GetOpKind(k), memory);
                if (!encodable)
                    continue;
                MicroOp op;
                OperandDecoder.Fill(i, &op, 64);
                Assert.True(VectorBinder.Bind(i, &op, new DecodeContext(64, b.Stubs)), $"{code}, memory {memory}");
            }
        }
    }

    private static bool SetOperand(ref Instruction i, int k, OpCodeOperandKind kind, bool memory)
    {
        switch (kind)
        {
            case OpCodeOperandKind.mem:
            case OpCodeOperandKind.xmm_or_mem or OpCodeOperandKind.mm_or_mem or OpCodeOperandKind.r32_or_mem or OpCodeOperandKind.r64_or_mem when memory:
                i.SetOpKind(k, OpKind.Memory);
                i.MemoryBase = Register.RBX;
                return true;
            case OpCodeOperandKind.imm8:
                i.SetOpKind(k, OpKind.Immediate8);
                return true;
            case OpCodeOperandKind.seg_rDI:
                i.SetOpKind(k, OpKind.MemorySegRDI);
                return true;
            case OpCodeOperandKind.xmm_reg or OpCodeOperandKind.xmm_rm or OpCodeOperandKind.xmm_or_mem:
                i.SetOpRegister(k, Register.XMM3);
                break;
            case OpCodeOperandKind.mm_reg or OpCodeOperandKind.mm_rm or OpCodeOperandKind.mm_or_mem:
                i.SetOpRegister(k, Register.MM3);
                break;
            case OpCodeOperandKind.r32_reg or OpCodeOperandKind.r32_rm or OpCodeOperandKind.r32_or_mem:
                i.SetOpRegister(k, Register.ECX);
                break;
            case OpCodeOperandKind.r64_reg or OpCodeOperandKind.r64_rm or OpCodeOperandKind.r64_or_mem:
                i.SetOpRegister(k, Register.RCX);
                break;
            default:
                return false;
        }
        i.SetOpKind(k, OpKind.Register);
        return true;
    }

    [Theory]
    [InlineData("62F17C4858CA")] // vaddps with ZMM registers: part of AVX-512
    [InlineData("A7")] // cmpsd of strings shares its mnemonic
    [InlineData("90")]
    public void OthersAreLeftAlone(string code)
    {
        VectorBench.Bind(b.Stubs, Convert.FromHexString(code), 64, out bool bound);
        Assert.False(bound);
    }

    [Fact]
    public void AFormHasOneStub()
    {
        MicroOp x = VectorBench.Bind(b.Stubs, Convert.FromHexString("660FECCA"), 64, out _); // paddsb xmm1,xmm2
        MicroOp y = VectorBench.Bind(b.Stubs, Convert.FromHexString("66450FECFE"), 64, out _); // paddsb xmm15,xmm14
        MicroOp m = VectorBench.Bind(b.Stubs, Convert.FromHexString("660FEC4B10"), 64, out _);
        MicroOp n = VectorBench.Bind(b.Stubs, Convert.FromHexString("2E66420FEC4CE3F0"), 64, out _); // another address and segment
        Assert.Equal(x.Aux, y.Aux);
        Assert.Equal(m.Aux, n.Aux);
        Assert.NotEqual(x.Aux, m.Aux);
        MicroOp one = VectorBench.Bind(b.Stubs, Convert.FromHexString("660F70CA01"), 64, out _); // pshufd
        MicroOp two = VectorBench.Bind(b.Stubs, Convert.FromHexString("660F70CA02"), 64, out _);
        Assert.NotEqual(one.Aux, two.Aux);
    }
}
