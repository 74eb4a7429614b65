using Aerostat.X86;
using Iced.Intel;
using Xunit;
using static Iced.Intel.AssemblerRegisters;

namespace Aerostat.Cpu.Tests;

/// <summary>Instructions whose memory operand is a device: the device sees each access once, with its size.</summary>
public class MmioTests : ProcessorTests
{
    private const ulong Device = 0xFED0_0000;

    private TestMachine CreateMachine()
    {
        TestMachine m = Machine(TestMode.Long);
        m.Tables.Map(0x60000, Device, 0x1000, PageTableEntry.W);
        m.State.Gpr[3] = 0x60010;
        m.Handler.Input = (kind, address, size) => kind == "read" ? 0x8877665544332211UL >> (int)(8 * (address & 7)) : 0xFFFFFFFF;
        return m;
    }

    private static List<(string, ulong, int, ulong)> Log(TestMachine m, Action<Assembler> body, out TestResult result)
    {
        m.Handler.Log.Clear();
        ulong code = m.Assemble(a =>
        {
            body(a);
            a.int3();
        });
        result = m.Run(0, code);
        Assert.Equal(Vector.Breakpoint, result.Vector);
        return m.Handler.Log;
    }

    [Fact]
    public void LoadsAndStoresKeepTheirSize()
    {
        using TestMachine m = CreateMachine();
        Assert.Equal([("read", Device + 0x10, 1, 0x8877665544332211)], Log(m, a => a.movzx(eax, __byte_ptr[rbx]), out TestResult r));
        Assert.Equal(0x11UL, r.State.Gpr[0]);
        Assert.Equal([("read", Device + 0x10, 2, 0x8877665544332211)], Log(m, a => a.mov(ax, __word_ptr[rbx]), out _));
        Assert.Equal([("read", Device + 0x10, 4, 0x8877665544332211)], Log(m, a => a.mov(eax, __dword_ptr[rbx]), out r));
        Assert.Equal(0x44332211UL, r.State.Gpr[0]);
        Assert.Equal([("read", Device + 0x10, 8, 0x8877665544332211)], Log(m, a => a.mov(rax, __qword_ptr[rbx]), out r));
        Assert.Equal(0x8877665544332211UL, r.State.Gpr[0]);
        m.State.Gpr[0] = 0x123456789ABCDEF0;
        Assert.Equal([("write", Device + 0x10, 1, 0xF0)], Cut(Log(m, a => a.mov(__byte_ptr[rbx], al), out _)));
        Assert.Equal([("write", Device + 0x10, 2, 0xDEF0)], Cut(Log(m, a => a.mov(__word_ptr[rbx], ax), out _)));
        Assert.Equal([("write", Device + 0x10, 4, 0x9ABCDEF0)], Cut(Log(m, a => a.mov(__dword_ptr[rbx], eax), out _)));
        Assert.Equal([("write", Device + 0x10, 8, 0x123456789ABCDEF0)], Cut(Log(m, a => a.mov(__qword_ptr[rbx], rax), out _)));
    }

    private static IEnumerable<(string, ulong, int, ulong)> Cut(List<(string Kind, ulong Address, int Size, ulong Value)> log) =>
        log.Select(e => (e.Kind, e.Address, e.Size, e.Size == 8 ? e.Value : e.Value & ((1UL << (8 * e.Size)) - 1)));

    [Theory]
    [InlineData("add", 0x44332211UL + 5)]
    [InlineData("lock", 0x44332211UL + 5)]
    [InlineData("xchg", 5UL)]
    [InlineData("not", 0xBBCCDDEEUL)]
    [InlineData("bts", 0x44332211UL | 0x80000000)]
    [InlineData("shl", 0x88664422UL)]
    [InlineData("xadd", 0x44332211UL + 5)]
    public void ReadModifyWriteIsOneReadAndOneWrite(string kind, ulong written)
    {
        using TestMachine m = CreateMachine();
        m.State.Gpr[0] = 5;
        var log = Cut(Log(
            m,
            a =>
            {
                switch (kind)
                {
                    case "add": a.add(__dword_ptr[rbx], eax); break;
                    case "lock": a.@lock.add(__dword_ptr[rbx], eax); break;
                    case "xchg": a.xchg(__dword_ptr[rbx], eax); break;
                    case "not": a.not(__dword_ptr[rbx]); break;
                    case "bts": a.bts(__dword_ptr[rbx], 31); break;
                    case "shl": a.shl(__dword_ptr[rbx], 1); break;
                    default: a.xadd(__dword_ptr[rbx], eax); break;
                }
            },
            out _)).ToList();
        Assert.Equal([("read", Device + 0x10, 4, 0x44332211), ("write", Device + 0x10, 4, written)], log);
    }

    [Fact]
    public void StringsTouchTheDeviceOnceAnElement()
    {
        using TestMachine m = CreateMachine();
        var log = Log(
            m,
            a =>
            {
                a.mov(rsi, rbx);
                a.mov(edi, (uint)TestMachine.Data);
                a.mov(ecx, 3);
                a.rep.movsd();
            },
            out TestResult r);
        Assert.Equal([("read", Device + 0x10, 4), ("read", Device + 0x14, 4), ("read", Device + 0x18, 4)], log.Select(e => (e.Item1, e.Item2, e.Item3)));
        Assert.Equal((0UL, TestMachine.Data + 12), (r.State.Gpr[1], r.State.Gpr[7]));
        log = Log(
            m,
            a =>
            {
                a.mov(rdi, rbx);
                a.mov(eax, 0x55AA);
                a.mov(ecx, 2);
                a.rep.stosw();
            },
            out _);
        Assert.Equal([("write", Device + 0x10, 2), ("write", Device + 0x12, 2)], log.Select(e => (e.Item1, e.Item2, e.Item3)));
    }

    [Fact]
    public void WideAccessesCoverTheirBytesOnce()
    {
        using TestMachine m = CreateMachine();
        var log = Log(m, a => a.movups(xmm0, __xmmword_ptr[rbx]), out TestResult r);
        Assert.Equal(16, log.Sum(e => e.Item3));
        Assert.Equal(BitConverter.GetBytes(0x8877665544332211), r.State.Xsave.AsSpan(160, 8).ToArray());
        log = Log(m, a => a.movaps(__xmmword_ptr[rbx], xmm0), out _);
        Assert.Equal(16, log.Sum(e => e.Item3));
        Assert.All(log, e => Assert.Equal("write", e.Item1));
        log = Log(
            m,
            a =>
            {
                a.fld1();
                a.fstp(__tbyte_ptr[rbx]);
            },
            out _);
        Assert.Equal(10, log.Sum(e => e.Item3));
    }

    [Fact]
    public void StackAndIndirectBranches()
    {
        using TestMachine m = CreateMachine();
        var log = Cut(Log(
            m,
            a =>
            {
                a.lea(rsp, __[rbx + 8]);
                a.push(0x1234);
                a.mov(esp, (uint)TestMachine.KernelStack);
            },
            out _)).ToList();
        Assert.Equal([("write", Device + 0x10, 8, 0x1234UL)], log);
        m.Handler.Input = (_, _, _) => TestMachine.KernelCode + 0x80;
        m.Code(0x80, 0xCC);
        m.Handler.Log.Clear();
        ulong code = m.Assemble(a => a.jmp(__qword_ptr[rbx]));
        TestResult r = m.Run(0, code);
        Assert.Equal(TestMachine.KernelCode + 0x81, r.Rip);
        Assert.Single(m.Handler.Log);
    }

    /// <summary>Code fetched from a device.</summary>
    [Fact]
    public void CodeInADevice()
    {
        using TestMachine m = CreateMachine();
        byte[] code = [0xB8, 0x2A, 0, 0, 0, 0xCC];
        m.Handler.Input = (_, address, size) =>
        {
            ulong v = 0;
            for (int k = 0; k < size; k++)
            {
                ulong at = address - (Device + 0x10) + (ulong)k;
                v |= (ulong)(at < (ulong)code.Length ? code[at] : 0xCC) << (8 * k);
            }

            return v;
        };
        TestResult r = m.Run(0, 0x60010);
        Assert.Equal((Vector.Breakpoint, 0x60016UL, 0x2AUL), (r.Vector, r.Rip, r.State.Gpr[0]));
    }

    [Fact]
    public void PortsSeeTheirSizes()
    {
        using TestMachine m = CreateMachine();
        m.Handler.Input = (_, port, _) => 0xA1B2C3D4;
        var log = Log(
            m,
            a =>
            {
                a.mov(eax, 0x12345678);
                a.@out(0x80, al);
                a.mov(dx, 0x1234);
                a.@out(dx, ax);
                a.@out(dx, eax);
                a.@in(al, dx);
                a.mov(r8, rax);
                a.@in(ax, 0x60);
                a.mov(r9, rax);
                a.@in(eax, dx);
            },
            out TestResult r);
        Assert.Equal(
            [("out", 0x80UL, 1), ("out", 0x1234UL, 2), ("out", 0x1234UL, 4), ("in", 0x1234UL, 1), ("in", 0x60UL, 2), ("in", 0x1234UL, 4)],
            log.Select(e => (e.Item1, e.Item2, e.Item3)));
        Assert.Equal((0x123456D4UL, 0x1234C3D4UL, 0xA1B2C3D4UL), (r.State.Gpr[8], r.State.Gpr[9], r.State.Gpr[0]));
    }

    [Fact]
    public void RepeatedPorts()
    {
        using TestMachine m = CreateMachine();
        m.Handler.Input = (_, _, _) => 0xA1B2C3D4;
        var log = Log(
            m,
            a =>
            {
                a.mov(edx, 0x1F0);
                a.mov(edi, (uint)TestMachine.Data);
                a.mov(ecx, 3);
                a.rep.insw();
                a.mov(esi, (uint)TestMachine.Data);
                a.mov(ecx, 3);
                a.rep.outsw();
            },
            out TestResult r);
        Assert.Equal(6, log.Count);
        Assert.All(log, e => Assert.Equal(2, e.Item3));
        Assert.All(log.Skip(3), e => Assert.Equal(("out", 0xC3D4UL), (e.Item1, e.Item4)));
        Assert.Equal((0UL, TestMachine.Data + 6, TestMachine.Data + 6), (r.State.Gpr[1], r.State.Gpr[6], r.State.Gpr[7]));
    }
}

/// <summary>The same through the translator.</summary>
public sealed class TranslatedMmioTests : MmioTests
{
    private protected override bool Translated => true;
}
