using Aerostat.Memory;
using Aerostat.X86;
using Iced.Intel;
using Xunit;
using static Iced.Intel.AssemblerRegisters;

namespace Aerostat.Cpu.Tests;

/// <summary>
/// Functions' beginnings and ends, where RSP moves together with pushes and behind the check for pops: wherever the stack is, also across and
/// beyond the end of what is mapped, they leave what the interpreter leaves, and fault as it does.
/// </summary>
public sealed class StackMoveTests
{
    private const ulong Stack = 0x4000_0000, End = Stack + 0x2000;

    private static TestMachine Create(bool translated, int hotThreshold = 0)
    {
        TestMachine m = new(TestMode.Long, hypervisor: memory => translated ? new TranslatorHypervisor(memory, threshold: 0, hotThreshold: hotThreshold) : new InterpreterHypervisor(memory));
        m.Tables.Map(Stack, TestMachine.FreeGpa, 0x1000, PageTableEntry.P | PageTableEntry.W | PageTableEntry.U | PageTableEntry.A | PageTableEntry.D);
        // Not to be written to.
        m.Tables.Map(Stack + 0x1000, TestMachine.FreeGpa + 0x1000, 0x1000, PageTableEntry.P | PageTableEntry.U | PageTableEntry.A);
        return m;
    }

    private static readonly string[] s_ends = ["add and return", "add and pops", "sub and pops", "add, pop and more", "add and write"];

    public static TheoryData<string, int> Ends
    {
        get
        {
            var data = new TheoryData<string, int>();
            foreach (string end in s_ends)
                foreach (int threshold in (int[])[0, 1, 2])
                    data.Add(end, threshold);
            return data;
        }
    }

    [Theory]
    [MemberData(nameof(Ends))]
    public void AFunctionsEnd(string end, int hotThreshold)
    {
        // Each with the stack that the calls of a program get in turn: within a page, across its end, at the end of all, beyond that, and where no address is.
        foreach (ulong at in (ulong[])[Stack + 0x800, Stack + 0xFC8, Stack + 0xFD8, Stack + 0xFF1, Stack + 0x1F00, End - 0x38, End - 0x28, End - 0x18, End - 8, End + 0x100, 0x7FFF_FFFF_FFE0, 0x8000_0000_0000_0000])
        {
            Compare(hotThreshold, a =>
            {
                a.cmp(eax, ecx);
                switch (end)
                {
                    case "add and return":
                        a.add(rsp, 0x10);
                        break;
                    case "add and pops":
                        a.add(rsp, 8);
                        a.pop(rbx);
                        a.pop(r10);
                        a.pop(rbp);
                        break;
                    case "sub and pops":
                        a.sub(rsp, -0x18);
                        a.pop(r11);
                        a.pop(rbx);
                        break;
                    case "add, pop and more":
                        a.add(rsp, 0x188);
                        a.pop(rbx);
                        a.mov(rdx, __[rsp]);
                        a.adc(edx, 0);
                        a.pop(rsi);
                        break;
                    case "add and write":
                        a.add(rsp, 8);
                        a.pop(rbx);
                        a.mov(__[rsp - 0x10], rcx);
                        a.pop(rsi);
                        break;
                }
                a.ret();
            }, at);
        }
    }

    [Theory]
    [InlineData(0)]
    [InlineData(1)]
    public void AFunctionsBeginning(int hotThreshold)
    {
        foreach (ulong at in (ulong[])[Stack + 0x800, Stack + 0x18, Stack + 8, Stack, Stack + 0x1010, Stack + 0x1000, 0x8000])
        {
            Compare(hotThreshold, a =>
            {
                a.push(rbp);
                a.push(r14);
                a.sub(rsp, 0x18);
                a.xor(eax, eax);
                a.mov(__[rsp + 8], rcx);
                a.push(rbx);
                a.add(rsp, 8);
                a.add(rax, __[rsp + 8]);
                a.add(rsp, 0x18);
                a.pop(r14);
                a.pop(rbp);
                a.mov(rsp, rdi);
                a.ret();
            }, at);
        }
    }

    // Runs the end of a function four times with RSP as given, with different flags; all of the stack leads back.
    private static void Compare(int hotThreshold, Action<Assembler> function, ulong at)
    {
        using TestMachine oracle = Create(translated: false), translated = Create(translated: true, hotThreshold);
        TestResult x = Run(oracle), y = Run(translated);
        string where = $"{at:x}";
        Assert.Equal((where, x.Vector, x.Error, x.Rip, x.Rsp, x.Rflags, x.State.Cr2), (where, y.Vector, y.Error, y.Rip, y.Rsp, y.Rflags, y.State.Cr2));
        for (int r = 0; r < 16; r++)
            Assert.Equal((where, r, x.State.Gpr[r]), (where, r, y.State.Gpr[r]));
        Assert.Equal(oracle.Processor.Counters.Instructions, translated.Processor.Counters.Instructions);

        TestResult Run(TestMachine m)
        {
            ulong back = m.Assemble(a =>
            {
                a.setb(bh);
                a.seto(bl);
                a.add(r15, rbx);
                a.add(r15, rsp);
                a.jmp(TestMachine.UserCode);
            }, offset: 0x800, user: true);
            for (ulong i = 0; i < 0x2000; i += 8)
                m.Memory.Write(new GuestAddress(TestMachine.FreeGpa + i), back);
            ulong code = m.Assemble(a =>
            {
                Label again = a.CreateLabel();
                a.cmp(r8d, 6);
                a.jb(again);
                a.int3();
                a.Label(ref again);
                a.inc(r8d);
                a.mov(ecx, r8d);
                a.and(ecx, 3);
                a.mov(rsp, at);
                a.mov(rdi, Stack + 0x400);
                a.mov(eax, 2);
                function(a);
            }, user: true);
            m.State.Gpr[8] = 0;
            m.State.Gpr[15] = 0;
            return m.Run(3, code);
        }
    }
}
