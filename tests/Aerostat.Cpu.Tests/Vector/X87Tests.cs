using Aerostat.X86;
using Xunit;

namespace Aerostat.Cpu.Tests;

public sealed unsafe class X87Tests : IDisposable
{
    private const ulong One = 0x8000000000000000;

    private readonly VectorBench b = new();

    public void Dispose() => b.Dispose();

    [Fact]
    public void UnmaskedExceptionWaitsForTheNextWaitingInstruction()
    {
        Control(0x37E); // invalid unmasked
        b.Execute("D9E8"); // fld1
        b.Execute("D9FA"); // fsqrt, fine
        b.Execute("D9E0"); // fchs
        b.Execute("D9FA"); // fsqrt of -1
        Assert.Equal(0x8081, X87Environment.Status(b.Area) & 0x80FF);
        b.Execute("DFE0"); // fnstsw ax
        Assert.Equal(0x8081, (int)b.S->Gpr[0] & 0x80FF);
        b.Raises(Vector.FloatingPoint, "D9E8");
        b.Raises(Vector.FloatingPoint, "9B");
        b.Raises(Vector.FloatingPoint, "0FFCCA"); // paddb mm1,mm2
        b.Raises(Vector.FloatingPoint, "0F77"); // emms
        b.Raises(Vector.FloatingPoint, "D92B"); // fldcw
        b.Execute("DBE2"); // fnclex
        b.Execute("9B");
    }

    [Fact]
    public void UnmaskingAStickyFlagMakesItPending()
    {
        b.Execute("D9EE"); // fldz
        b.Execute("D9E8"); // fld1
        b.Execute("D8F1"); // fdiv st,st(1): divide by zero, masked
        b.Execute("9B");
        Control(0x37B);
        b.Raises(Vector.FloatingPoint, "9B");
        b.Execute("D933"); // fnstenv masks them all
        b.Execute("9B");
    }

    [Fact]
    public void UnmaskedOverflowDoesNotStore()
    {
        b.Memory.Fill(0xEE);
        b.Execute("D9E8");
        *(ushort*)(b.Area + CpuState.StOffset + 8) = 0x7000; // far above the range of float
        Control(0x37F & ~8);
        b.Execute("D91B"); // fstp dword [rbx]
        Assert.Equal(0xEEEEEEEE, BitConverter.ToUInt32(b.Memory));
        Assert.Equal(7, X87Environment.Top(b.Area)); // not popped either
        b.Execute("DBE2");
        Control(0x37F);
        b.Execute("D91B");
        Assert.Equal(float.PositiveInfinity, BitConverter.ToSingle(b.Memory));
        Assert.Equal(0, X87Environment.Top(b.Area));
    }

    [Fact]
    public void MmxRegistersArePhysicalRegisters()
    {
        b.Execute("D9E8"); // R7 = 1.0
        b.Execute("D9EB"); // R6 = pi
        b.Execute("D93B"); // fnstcw, to have an operand written
        b.Execute("0F6FCF"); // movq mm1,mm7
        Assert.Equal(0, X87Environment.Top(b.Area));
        Assert.Equal(0xFF, X87Environment.Tags(b.Area));
        Assert.Equal(One, b.St(1));
        Assert.Equal(0xFFFF, *(ushort*)(b.Area + CpuState.StOffset + 16 + 8));
        Assert.Equal(One, b.St(7));
        Assert.Equal(0x3FFF, *(ushort*)(b.Area + CpuState.StOffset + (7 * 16) + 8));
        b.Execute("0F77");
        Assert.Equal(0, X87Environment.Tags(b.Area));
    }

    [Theory]
    [InlineData("D933", "D923", 28, false)] // fnstenv, fldenv
    [InlineData("66D933", "66D923", 14, false)]
    [InlineData("DD33", "DD23", 108, false)] // fnsave, frstor
    [InlineData("66DD33", "66DD23", 94, false)]
    [InlineData("DD33", "DD23", 108, true)]
    [InlineData("66DD33", "66DD23", 94, true)]
    public void EnvironmentsComeBack(string store, string load, int size, bool real)
    {
        if (real)
            b.S->Cr0 &= ~Cr0.Pe;
        b.Memory.Fill(0xEE);
        BitConverter.TryWriteBytes(b.Memory[8..], (ushort)0x7FFF);
        b.Execute("D9E8");
        b.Execute("D9EE");
        b.Execute("DB2B"); // fld tbyte [rbx]: a NaN
        X87Environment.InstructionPointer(b.Area) = real ? 0x12345u : 0x1234;
        X87Environment.DataPointer(b.Area) = real ? 0x54321u : 0x4321;
        byte[] before = new Span<byte>(b.Area, 160).ToArray();
        b.Execute(store);
        Assert.Equal(0xEE, b.Memory[size]);
        Assert.NotEqual(0xEE, b.Memory[size - 1]);
        // Tags of R7, R6, R5: valid, zero, special; the others are empty.
        Assert.Equal(0b00_01_10_11_11_11_11_11, BitConverter.ToUInt16(b.Memory[(size is 28 or 108 ? 8 : 4)..]));
        b.Execute("DBE3"); // fninit
        b.Execute(load);
        Assert.Equal(Convert.ToHexString(before), Convert.ToHexString(new Span<byte>(b.Area, 160)));
    }

    [Fact]
    public void PointersNameTheLastInstruction()
    {
        b.S->Gpr[CpuState.BlockRip / 8] = 0x7F0012345678;
        b.Execute("DD4340"); // fld qword [rbx+40h]
        Assert.Equal(0x7F0012345678u, X87Environment.InstructionPointer(b.Area));
        Assert.Equal(VectorBench.Data + 0x40u, X87Environment.DataPointer(b.Area));
        Assert.Equal(0, X87Environment.Opcode(b.Area));
        b.S->Gpr[CpuState.BlockRip / 8] = 0x1000;
        b.Execute("D93B"); // fnstcw is a control instruction
        Assert.Equal(0x7F0012345678u, X87Environment.InstructionPointer(b.Area));
        Control(0x37E);
        b.Execute("D9E8");
        b.Execute("D9E0");
        b.Execute("D9FA"); // fsqrt, leaves an unmasked exception
        Assert.Equal(0x1FA, X87Environment.Opcode(b.Area));
        Assert.Equal(0x1000u, X87Environment.InstructionPointer(b.Area));
    }

    [Fact]
    public void ConditionalMovesAndComparisonsUseRflags()
    {
        b.Execute("D9EE"); // st(1) = 0
        b.Execute("D9E8"); // st(0) = 1
        CpuStateExtensions.SetRflags(b.S, RFlags.Zf);
        b.Execute("DAC1"); // fcmovb: CF is clear
        Assert.Equal(One, b.St(0));
        b.Execute("DBF1"); // fcomi st,st(1): 1 > 0
        Assert.Equal(0u, CpuStateExtensions.GetRflags(b.S) & (RFlags.Cf | RFlags.Zf | RFlags.Pf));
        CpuStateExtensions.SetRflags(b.S, RFlags.Cf);
        b.Execute("DAC1");
        Assert.Equal(0u, b.St(0));
        b.Execute("DBF1");
        Assert.Equal(RFlags.Zf, CpuStateExtensions.GetRflags(b.S) & (RFlags.Cf | RFlags.Zf | RFlags.Pf));
    }

    private void Control(ushort value)
    {
        BitConverter.TryWriteBytes(b.Memory[0x200..], value);
        b.Execute("D9AB00020000"); // fldcw [rbx+200h]
    }
}
