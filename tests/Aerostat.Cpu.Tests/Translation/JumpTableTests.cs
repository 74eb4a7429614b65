using Aerostat.X86;
using Iced.Intel;
using Xunit;
using static Iced.Intel.AssemblerRegisters;

namespace Aerostat.Cpu.Tests;

/// <summary>
/// The jump table knows 16 bits of an address' sum. A jump that finds another address' block there must arrive as if it had not: python and gcc
/// went wrong where code ran on across a page with flags in use, and that page's offset was another function's.
/// </summary>
public sealed class JumpTableTests
{
    // The same place in the table, in pages of their own.
    private const ulong First = 0x544000, Second = 0x7FFF_F054_4000;

    [Theory]
    [InlineData(First, Second)]
    [InlineData(Second, First)]
    public void FlagsSurviveAnotherBlocksEntry(ulong killer, ulong reader)
    {
        Assert.SkipUnless(TranslatorHypervisor.IsSupported, "the host is not x86-64");
        Assert.Equal(CodeCache.TableIndex(First), CodeCache.TableIndex(Second));
        using var m = new TestMachine(TestMode.Long, hypervisor: memory => new TranslatorHypervisor(memory, threshold: 0));
        m.Tables.Map(killer, TestMachine.FreeGpa, 0x1000, PageTableEntry.W);
        m.Tables.Map(reader - 0x1000, TestMachine.FreeGpa + 0x1000, 0x2000, PageTableEntry.W);
        // Needs no flags.
        m.Assemble(TestMachine.FreeGpa, killer, a =>
        {
            a.xor(eax, eax);
            a.ret();
        });
        // The last instruction of a page sets flags, the first of the next one reads them.
        m.Assemble(TestMachine.FreeGpa + 0x1FFE, reader - 2, a => a.cmp(edx, esi));
        m.Assemble(TestMachine.FreeGpa + 0x2000, reader, a =>
        {
            a.setb(cl);
            a.sete(ch);
            a.seto(bl);
            a.ret();
        });
        ulong code = m.Assemble(a =>
        {
            a.mov(r8, killer);
            a.mov(r9, reader - 2);
            foreach (uint left in (uint[])[1, 5, 0x8000_0000])
            {
                a.mov(edx, left);
                a.mov(esi, 5);
                a.call(r8);
                a.call(r9);
                a.movzx(ecx, cx);
                a.shl(r10, 16);
                a.or(r10, rcx);
                a.movzx(ebx, bl);
                a.shl(r11, 8);
                a.or(r11, rbx);
            }
            a.hlt();
        });
        TestResult r = m.Run(0, code);
        // CL, CH and BL for 1 - 5 (borrow), 5 - 5 (equal), 0x80000000 - 5 (overflow).
        Assert.Equal(0x0001_0100_0000UL, r.State.Gpr[10]);
        Assert.Equal(0x00_00_01UL, r.State.Gpr[11]);
    }

    /// <summary>Code that runs on to an address that is none faults there: the last indirect branch, which led to it, is not to blame.</summary>
    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void RunningOnPastTheLowerHalfFaultsThere(bool translated)
    {
        Assert.SkipWhen(translated && !TranslatorHypervisor.IsSupported, "the host is not x86-64");
        const ulong End = 0x8000_0000_0000;
        using var m = new TestMachine(TestMode.Long, hypervisor: translated ? memory => new TranslatorHypervisor(memory, threshold: 0) : null);
        m.Tables.Map(End - 0x1000, TestMachine.FreeGpa, 0x1000, PageTableEntry.W);
        m.Assemble(TestMachine.FreeGpa + 0xFF0, End - 16, a => a.jmp(r9));
        m.Assemble(TestMachine.FreeGpa + 0xFF9, End - 7, a =>
        {
            a.add(edx, 1);
            a.dec(ecx);
            a.jne(End - 16);
        });
        TestResult r = m.Run(0, m.Assemble(a =>
        {
            Label again = a.CreateLabel();
            a.mov(ecx, 4);
            a.xor(edx, edx);
            a.mov(r8, End - 7);
            a.lea(r9, __[again]);
            a.Label(ref again);
            a.jmp(r8);
        }));
        Assert.Equal((Vector.GeneralProtection, End), (r.Vector, r.Rip));
        Assert.Equal((0UL, 4UL), (r.State.Gpr[1], r.State.Gpr[2]));
    }
}
