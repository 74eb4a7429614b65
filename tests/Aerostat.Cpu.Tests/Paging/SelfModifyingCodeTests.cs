using Aerostat.Memory;
using Aerostat.X86;
using Iced.Intel;
using Xunit;
using static Iced.Intel.AssemblerRegisters;

namespace Aerostat.Cpu.Tests;

/// <summary>Code that changes code: the processor must never run a stale copy (Intel SDM vol. 3 section 10.1.3, same processor, same linear address).</summary>
public sealed class SelfModifyingCodeTests
{
    private static TestMachine CreateMachine()
    {
        Assert.Equal(0x10000UL, TestMachine.KernelCode - TestMachine.UserCode);
        return new TestMachine(TestMode.Long);
    }

    /// <summary>A store into the very next instruction.</summary>
    [Theory]
    [InlineData(1)]
    [InlineData(2)]
    [InlineData(4)]
    [InlineData(8)]
    public void NextInstruction(int size)
    {
        using TestMachine m = CreateMachine();
        // MOV EAX,1 becomes MOV EAX,2; the immediate's bytes above are zero before and after.
        ulong code = m.Assemble(a =>
        {
            Label next = a.CreateLabel();
            a.lea(rbx, __[next]);
            a.mov(rcx, 0xCCCCCC00_000002_B8UL);
            switch (size)
            {
                case 1:
                    a.mov(__byte_ptr[rbx + 1], 2);
                    break;
                case 2:
                    a.mov(__word_ptr[rbx + 1], 2);
                    break;
                case 4:
                    a.mov(__dword_ptr[rbx + 1], 2);
                    break;
                default:
                    a.mov(__qword_ptr[rbx], rcx);
                    break;
            }

            a.Label(ref next);
            a.mov(eax, 1);
            a.int3();
        });
        TestResult r = m.Run(0, code);
        Assert.Equal(Vector.Breakpoint, r.Vector);
        Assert.Equal(2UL, r.State.Gpr[0]);
    }

    /// <summary>Read-modify-write, string, SSE and x87 stores, and the pushes of a call, into the running block.</summary>
    [Theory]
    [InlineData("add")]
    [InlineData("lock")]
    [InlineData("xchg")]
    [InlineData("stos")]
    [InlineData("rep movs")]
    [InlineData("movups")]
    [InlineData("fistp")]
    [InlineData("push")]
    [InlineData("bts")]
    public void EveryKindOfStore(string kind)
    {
        using TestMachine m = CreateMachine();
        m.Memory.Write(new GuestAddress(TestMachine.Data), 2u);
        // MOVUPS: MOV EAX,2; INT3; ...
        byte[] sixteen = [0xB8, 2, 0, 0, 0, 0xCC, 0xCC, 0xCC, 0xCC, 0xCC, 0xCC, 0xCC, 0xCC, 0xCC, 0xCC, 0xCC];
        m.Memory.Write(new GuestAddress(TestMachine.Data + 16), sixteen);
        ulong code = m.Assemble(a =>
        {
            Label next = a.CreateLabel();
            a.lea(rdi, __[next]);
            a.mov(esi, (uint)TestMachine.Data);
            a.mov(ecx, 1);
            a.mov(eax, 2);
            a.fld1();
            a.fadd(st0, st0);
            switch (kind)
            {
                case "add": a.add(__byte_ptr[rdi + 1], 1); break;
                case "lock": a.@lock.inc(__dword_ptr[rdi + 1]); break;
                case "xchg": a.xchg(__dword_ptr[rdi + 1], eax); break;
                case "stos":
                    a.inc(rdi);
                    a.stosd();
                    break;
                case "rep movs":
                    a.inc(rdi);
                    a.rep.movsd();
                    break;
                case "movups":
                    a.movups(xmm0, __xmmword_ptr[rsi + 16]);
                    a.movups(__xmmword_ptr[rdi], xmm0);
                    break;
                case "fistp": a.fistp(__dword_ptr[rdi + 1]); break;
                case "push":
                    a.mov(rbx, 0x00CC_CCCC_0000_0002UL);
                    a.lea(rsp, __[rdi + 9]);
                    a.push(rbx);
                    a.mov(esp, (uint)TestMachine.KernelStack);
                    break;
                default:
                    a.btr(__dword_ptr[rdi + 1], 0);
                    a.bts(__dword_ptr[rdi + 1], 1);
                    break;
            }

            a.Label(ref next);
            a.mov(eax, 1);
            a.int3();
            for (int k = 0; k < 16; k++)
                a.int3();
        });
        TestResult r = m.Run(0, code);
        Assert.Equal(Vector.Breakpoint, r.Vector);
        Assert.Equal(2UL, r.State.Gpr[0]);
    }

    /// <summary>Code already run many times is changed through another linear address of the same memory, from the same and another page.</summary>
    [Fact]
    public void ThroughAnAlias()
    {
        using TestMachine m = CreateMachine();
        ulong code = m.Assemble(a =>
        {
            Label loop = a.CreateLabel(), same = a.CreateLabel();
            a.xor(eax, eax);
            a.mov(ecx, 1000);
            a.Label(ref loop);
            a.add(eax, 1);
            // The user's view of the same bytes: the immediate of ADD.
            a.cmp(ecx, 500);
            a.jne(same);
            a.lea(rbx, __[loop]);
            a.mov(__byte_ptr[rbx + -0x10000 + 1], 3);
            a.Label(ref same);
            a.dec(ecx);
            a.jnz(loop);
            a.int3();
        });
        TestResult r = m.Run(0, code);
        Assert.Equal(Vector.Breakpoint, r.Vector);
        // 501 passes before the change takes hold, at the pass where ECX is 500, then 499 passes of 3.
        Assert.Equal(501UL + 499 * 3, r.State.Gpr[0]);
    }

    /// <summary>Data next to code in the same page, and in the same block of bytes, does not disturb it.</summary>
    [Fact]
    public void DataNextToCode()
    {
        using TestMachine m = CreateMachine();
        ulong code = m.Assemble(a =>
        {
            Label data = a.CreateLabel(), loop = a.CreateLabel();
            a.mov(ecx, 1000);
            a.Label(ref loop);
            a.inc(__qword_ptr[data]);
            a.dec(ecx);
            a.jnz(loop);
            a.mov(rax, __qword_ptr[data]);
            a.int3();
            a.Label(ref data);
            a.dq(0UL);
        });
        Assert.Equal(1000UL, m.Run(0, code).State.Gpr[0]);
    }

    /// <summary>An instruction across two pages, each of whose halves is changed.</summary>
    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void InstructionAcrossPages(bool second)
    {
        using TestMachine m = CreateMachine();
        // ADD EAX,imm32 (05 id) with two of its bytes on the first page.
        const int at = 0x1000 - 2;
        m.Code(at, 0x05, 1, 0, 0, 0, 0xFF, 0xE3);
        ulong code = m.Assemble(a =>
        {
            a.xor(eax, eax);
            a.mov(rbx, TestMachine.KernelCode + 0x40);
            a.mov(ecx, 10);
            a.jmp(TestMachine.KernelCode + at);
        });
        m.Assemble(
            a =>
            {
                Label done = a.CreateLabel();
                a.dec(ecx);
                a.je(done);
                a.cmp(ecx, 5);
                a.jne(TestMachine.KernelCode + at);
                a.mov(edx, (uint)(TestMachine.KernelCode + at + (second ? 2u : 1)));
                a.mov(__byte_ptr[rdx], 2);
                a.jmp(TestMachine.KernelCode + at);
                a.Label(ref done);
                a.int3();
            },
            0x40);
        TestResult r = m.Run(0, code);
        Assert.Equal(Vector.Breakpoint, r.Vector);
        // Five passes of 1, then five with the changed immediate: 2 in the first byte, or 0x201.
        Assert.Equal(5 + 5 * (second ? 0x201UL : 2), r.State.Gpr[0]);
    }

    /// <summary>A code page remapped by the page table and INVLPG.</summary>
    [Fact]
    public void RemappedCode()
    {
        using TestMachine m = CreateMachine();
        const ulong page = 0x60000;
        m.Tables.Map(page, TestMachine.FreeGpa, 0x1000, PageTableEntry.W);
        m.Memory.Write(new GuestAddress(TestMachine.FreeGpa), [0xB8, 1, 0, 0, 0, 0xC3]);
        m.Memory.Write(new GuestAddress(TestMachine.FreeGpa + 0x1000), [0xB8, 2, 0, 0, 0, 0xC3]);
        ulong entry = m.Tables.EntryAddress(page, 1);
        m.Tables.Map(0x50000, entry & ~4095UL, 0x1000, PageTableEntry.W);
        m.State.Gpr[6] = 0x50000 + (entry & 4095);
        m.State.Gpr[2] = (TestMachine.FreeGpa + 0x1000) | PageTableEntry.P | PageTableEntry.W;
        ulong code = m.Assemble(a =>
        {
            a.mov(ebx, (uint)page);
            a.call(rbx);
            a.mov(r8d, eax);
            a.call(rbx);
            a.mov(__qword_ptr[rsi], rdx);
            a.invlpg(__[rbx]);
            a.call(rbx);
            a.int3();
        });
        TestResult r = m.Run(0, code);
        Assert.Equal((1UL, 2UL), (r.State.Gpr[8], r.State.Gpr[0]));
    }

    /// <summary>Code changed from outside the processor (a device, a debugger) between two runs.</summary>
    [Fact]
    public void ChangedByTheHost()
    {
        using TestMachine m = CreateMachine();
        for (byte k = 1; k < 10; k++)
        {
            m.Code(0, 0xB8, k, 0, 0, 0, 0xCC);
            Assert.Equal((ulong)k, m.Run(0, TestMachine.KernelCode).State.Gpr[0]);
        }
    }

    /// <summary>The same bytes run as 64-bit and as 32-bit code.</summary>
    [Fact]
    public void SameBytesInTwoModes()
    {
        using TestMachine m = CreateMachine();
        // 48 FF C0 is INC RAX, or DEC EAX; INC EAX.
        m.Code(0, 0x48, 0xFF, 0xC0, 0xCC);
        m.State.Gpr[0] = 5;
        Assert.Equal(6UL, m.Run(3, TestMachine.UserCode).State.Gpr[0]);
        m.Enter(3, TestMachine.UserCode);
        m.State.Segments[1] = new(TestMachine.UserCs32, 0, uint.MaxValue, 0xC0FB);
        m.Processor.SetState(m.State);
        Assert.Equal(5UL, m.Continue().State.Gpr[0]);
        Assert.Equal(6UL, m.Run(3, TestMachine.UserCode).State.Gpr[0]);
    }
}
