using Aerostat.Processors;
using Aerostat.X86;
using Iced.Intel;
using Xunit;
using static Iced.Intel.AssemblerRegisters;

namespace Aerostat.Cpu.Tests;

/// <summary>Between STI and the instruction behind it nothing comes in, not even where that instruction misses the TLB.</summary>
public sealed class ShadowTests
{
    public static TheoryData<bool> Processors => TranslatorHypervisor.IsSupported ? [false, true] : [false];

    [Theory]
    [MemberData(nameof(Processors))]
    public void NoNmiBehindSti(bool translated)
    {
        using var m = new TestMachine(TestMode.Long, hypervisor: translated ? memory => new TranslatorHypervisor(memory, threshold: 0) : null);
        // Two pages that share a TLB entry, looked at in turn.
        const ulong page = 0x0000_7000_0000_0000, alias = page + ((ulong)4096 << 12);
        m.Tables.Map(page, TestMachine.FreeGpa, 0x1000, PageTableEntry.W);
        m.Tables.Map(alias, TestMachine.FreeGpa, 0x1000, PageTableEntry.W);
        m.State.Gpr[3] = page;
        m.State.Gpr[6] = alias;
        ulong code = m.Assemble(a =>
        {
            Label loop = a.CreateLabel(), shadowed = a.CreateLabel();
            a.lea(r8, __[shadowed]);
            a.Label(ref loop);
            a.cli();
            a.xchg(rbx, rsi);
            a.sti();
            a.Label(ref shadowed);
            a.test(__byte_ptr[rbx], 1);
            a.cli();
            a.inc(r9d);
            a.cmp(r10d, 300);
            a.jb(loop);
            a.hlt();
        });
        ulong handler = m.Assemble(
            a =>
            {
                Label elsewhere = a.CreateLabel();
                a.cmp(__qword_ptr[rsp], r8);
                a.jne(elsewhere);
                a.inc(r11d);
                a.Label(ref elsewhere);
                a.inc(r10d);
                a.iretq();
            },
            offset: 0x800);
        m.SetGate(Vector.Nmi, handler, TestMachine.KernelCs64, ist: 1);
        bool running = true;
        var source = new Thread(() =>
        {
            while (Volatile.Read(ref running))
            {
                m.Processor.RaiseNmi();
                Thread.SpinWait(200);
            }
        });
        source.Start();
        TestResult r = m.Run(0, code);
        Volatile.Write(ref running, false);
        source.Join();
        ulong behind = (uint)r.State.Gpr[11];
        Assert.Equal(ExitReason.Halted, r.Exit.Reason);
        Assert.True((uint)r.State.Gpr[10] >= 300);
        Assert.Equal(0UL, behind);
    }

    /// <summary>With nothing requested behind STI, the instruction there is translated first; what comes in meanwhile waits for it all the same.</summary>
    [Fact]
    public void NoNmiBehindStiThatComesDuringTranslation()
    {
        Assert.SkipUnless(TranslatorHypervisor.IsSupported, "this host cannot run the translator");
        Sender sender = new();
        using var m = new TestMachine(TestMode.Long, hypervisor: memory => new TranslatorHypervisor(memory, threshold: 0, sender));
        sender.Processor = m.Processor;
        ulong code = m.Assemble(a =>
        {
            Label shadowed = a.CreateLabel(), behind = a.CreateLabel();
            a.lea(r8, __[shadowed]);
            a.cli();
            // Not in one block with an instruction that uses vector registers.
            a.sti();
            a.Label(ref shadowed);
            a.paddd(xmm0, xmm1);
            a.lea(r10, __[behind]);
            a.jmp(r10);
            a.Label(ref behind);
            a.cli();
            a.hlt();
        });
        ulong handler = m.Assemble(
            a =>
            {
                a.mov(r9, __qword_ptr[rsp]);
                a.iretq();
            },
            offset: 0x800);
        m.SetGate(Vector.Nmi, handler, TestMachine.KernelCs64, ist: 1);
        sender.From = code + 1;
        TestResult r = m.Run(0, code);
        Assert.Equal(ExitReason.Halted, r.Exit.Reason);
        Assert.NotEqual(0, sender.Sent);
        Assert.True(r.State.Gpr[9] > r.State.Gpr[8], $"taken at {r.State.Gpr[9]:x}, behind STI is {r.State.Gpr[8]:x}");
    }

    private sealed class Sender : IBlockObserver
    {
        public IVirtualProcessor? Processor { get; set; }

        /// <summary>Gets or sets the address from which on a translation raises the NMI.</summary>
        public ulong From { get; set; }

        public int Sent { get; private set; }

        public void Translated(BlockView block)
        {
            if (block.Linear < From || Sent++ != 0)
                return;
            Processor!.RaiseNmi();
        }
    }
}
