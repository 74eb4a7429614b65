using Aerostat.Memory;
using Aerostat.Processors;
using Aerostat.X86;
using Iced.Intel;
using Xunit;
using static Iced.Intel.AssemblerRegisters;

namespace Aerostat.Cpu.Tests;

/// <content>Memory that was given back to the host: blank again, but only for who cannot have written since, nor can without saying so.</content>
public sealed partial class BlankMemoryTests
{
    private const int Several = 16;

    // OUT to this port gives everything back.
    private const byte GiveBack = 0x80;

    private static TestMachine CreateGivingBack(bool translated, int processors = 1)
    {
        TestMachine m = Create(translated, Several, processors);
        m.Handler.PortWritten = (_, _) => Assert.Equal(DiscardResult.Done, m.Memory.Discard(new GuestAddress(Free), Several * Block));
        return m;
    }

    // From one written page to the next: one in each block, each in an entry of the TLB of its own.
    private const int Stride = (int)Block + 0x1000;

    // A qword in one page of each block: the first is at the offset in the first block.
    private static void WriteAll(Assembler a, int offset, int blocks = Several)
    {
        Label next = a.CreateLabel();
        a.mov(rsi, rbx);
        a.mov(edx, blocks);
        a.Label(ref next);
        a.mov(__qword_ptr[rsi + offset], rdx);
        a.add(rsi, Stride);
        a.dec(edx);
        a.jne(next);
    }

    private static int CountBlank(TestMachine m, int blocks) => Enumerable.Range(0, blocks).Count(b => m.Memory.IsBlank(Free + ((ulong)b * Block)));

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void WhatWasGivenBackIsBlankAgain(bool translated)
    {
        using TestMachine m = CreateGivingBack(translated);
        TestResult r = m.Run(0, m.Assemble(a =>
        {
            WriteAll(a, 0x5008);
            a.@out(GiveBack, al);
            Clear(a, 0x5000, 0x3000);
            a.hlt();
        }));
        Assert.Equal((ExitReason.Halted, -1), (r.Exit.Reason, r.Vector));
        Assert.Equal(Several, CountBlank(m, Several));
        Assert.Equal((0UL, Base + 0x8000), (r.State.Gpr[1], r.State.Gpr[7]));
        Assert.Equal(1, m.Processor.Counters.Named["blank-shootdowns"]);
        Assert.True(IsZero(m, 0, Several * (int)Block));
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void AWritePathFromBeforeIsGone(bool translated)
    {
        foreach (bool clear in (bool[])[false, true])
        {
            using TestMachine m = CreateGivingBack(translated);
            TestResult r = m.Run(0, m.Assemble(a =>
            {
                // Twice, so that generated code has bound its checks.
                WriteAll(a, 0x5008);
                WriteAll(a, 0x5008);
                a.@out(GiveBack, al);
                Clear(a, 0x9000, 0x1000);
                WriteAll(a, 0x5008);
                // By no path that was left behind either.
                a.mov(rdx, cr3);
                a.mov(cr3, rdx);
                for (ulong b = 0; clear && b < Several; b++)
                    Clear(a, (b * Stride) + 0x5000, 0x1000);
                a.hlt();
            }));
            Assert.Equal((ExitReason.Halted, -1), (r.Exit.Reason, r.Vector));
            Assert.Equal(1, m.Processor.Counters.Named["blank-shootdowns"]);
            Assert.Equal(0, CountBlank(m, Several));
            for (int b = 0; b < Several; b++)
                Assert.Equal(clear ? 0 : (ulong)(Several - b), m.Memory.Read<ulong>(new GuestAddress(Free + ((ulong)b * Stride) + 0x5008)));
        }
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void WhatAHostileGuestWritesToMemoryThatItGaveAwayIsCleared(bool translated)
    {
        using TestMachine m = CreateGivingBack(translated);
        TestResult r = m.Run(0, m.Assemble(a =>
        {
            WriteAll(a, 0x5008);
            a.@out(GiveBack, al);
            WriteAll(a, 0x5010, 3);
            // What is noted is all that was given back and that nobody has written to since.
            Clear(a, ((Several - 1) * Block) + 0x9000, 0x1000);
            for (ulong b = 0; b < 3; b++)
                Clear(a, (b * Stride) + 0x5000, 0x1000);
            a.hlt();
        }));
        Assert.Equal((ExitReason.Halted, -1), (r.Exit.Reason, r.Vector));
        Assert.Equal(Several - 3, CountBlank(m, Several));
        Assert.True(IsZero(m, 0, Several * (int)Block));
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void ThePathsOfAnotherAddressSpaceAreGoneToo(bool translated)
    {
        using TestMachine m = CreateGivingBack(translated);
        m.State.Cr4 |= Cr4.Pcide;
        TestResult r = m.Run(0, m.Assemble(a =>
        {
            SwitchTo(a, m.Tables.Root | 1);
            WriteAll(a, 0x5008);
            SwitchTo(a, m.Tables.Root | 2);
            a.@out(GiveBack, al);
            Clear(a, 0x9000, 0x1000);
            SwitchTo(a, m.Tables.Root | 1);
            WriteAll(a, 0x5008);
            SwitchTo(a, m.Tables.Root | 2);
            for (ulong b = 0; b < Several; b++)
                Clear(a, (b * Stride) + 0x5000, 0x1000);
            a.hlt();
        }));
        Assert.Equal((ExitReason.Halted, -1), (r.Exit.Reason, r.Vector));
        Assert.Equal(1, m.Processor.Counters.Named["blank-shootdowns"]);
        Assert.Equal(0, CountBlank(m, Several));
        Assert.True(IsZero(m, 0, Several * (int)Block));

        // The translations of the other stay.
        static void SwitchTo(Assembler a, ulong cr3Value)
        {
            a.mov(rdx, cr3Value | 1UL << 63);
            a.mov(cr3, rdx);
        }
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void WhatTheHostWroteToOnceIsNeverBlank(bool translated)
    {
        using TestMachine m = CreateGivingBack(translated);
        m.Memory.Write(new GuestAddress(Free + (2 * Block) + 0x7000), 1UL);
        TestResult r = m.Run(0, m.Assemble(a =>
        {
            WriteAll(a, 0x5008);
            a.@out(GiveBack, al);
            Clear(a, 0x9000, 0x1000);
            Clear(a, (2 * Block) + 0x9000, 0x1000);
            a.hlt();
        }));
        Assert.Equal((ExitReason.Halted, -1), (r.Exit.Reason, r.Vector));
        Assert.Equal(Several - 1, CountBlank(m, Several));
        Assert.False(m.Memory.IsBlank(Free + (2 * Block)));
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void ALogOfWritesHasWhatIsClearedInMemoryThatWasGivenBack(bool translated)
    {
        using TestMachine m = CreateGivingBack(translated);
        m.Run(0, m.Assemble(a =>
        {
            WriteAll(a, 0x1008);
            a.@out(GiveBack, al);
            Clear(a, 0x5000, 0x1000);
            a.hlt();
        }));
        Assert.Equal(Several, CountBlank(m, Several));
        AssertLogged(m, m.Assemble(a =>
        {
            Clear(a, 0x1000, 0x2000);
            a.hlt();
        }), 0b110);
    }

    /// <summary>The other processor has written to all blocks, and writes again by the paths that it has kept, after the first has found them blank.</summary>
    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void ThePathsOfAnotherProcessorAreGoneToo(bool translated)
    {
        const int rounds = 100;
        const int flag = (int)TestMachine.Data, acknowledged = flag + 0x100;
        using TestMachine m = CreateGivingBack(translated, processors: 2);
        ProcessorState[] ends = RunBoth(m, a =>
        {
            Label again = a.CreateLabel(), wait = a.CreateLabel(), writer = a.CreateLabel(), late = a.CreateLabel(), last = a.CreateLabel(), next = a.CreateLabel();
            a.mov(r13d, 1);
            a.test(r14d, r14d);
            a.jne(writer);
            a.Label(ref again);
            a.mov(__dword_ptr[flag], r13d);
            WaitFor(a, ref wait, acknowledged);
            // All that the other wrote is given back, and noted as blank by the first clear.
            a.@out(GiveBack, al);
            Clear(a, 0x9000, 0x1000);
            a.inc(r13d);
            a.mov(__dword_ptr[flag], r13d);
            WaitFor(a, ref last, acknowledged);
            a.lea(r15, __[rbx]);
            a.mov(r10d, Several);
            a.Label(ref next);
            a.lea(rdi, __[r15 + 0x5000]);
            a.xor(eax, eax);
            a.mov(ecx, 0x1000);
            a.rep.stosb();
            a.add(r12, __qword_ptr[r15 + 0x5008]);
            a.add(r15, Stride);
            a.dec(r10d);
            a.jne(next);
            a.inc(r13d);
            a.cmp(r13d, 2 * rounds);
            a.jbe(again);
            a.hlt();
            a.Label(ref writer);
            a.nop();
            WaitFor(a, ref late, flag);
            WriteAll(a, 0x5008);
            a.mov(__dword_ptr[acknowledged], r13d);
            a.inc(r13d);
            a.cmp(r13d, 2 * rounds);
            a.jbe(late);
            a.hlt();
        }, m.Handler);
        Assert.Equal(0UL, ends[0].Gpr[12]);
        // Once for each time that all was given back.
        Assert.Equal(rounds, m.Processors.Sum(p => p.Counters.Named["blank-shootdowns"]));
    }

    /// <summary>Two processors write and clear in all blocks, each in pages of its own, while the host takes memory away: what was cleared is clear.</summary>
    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void TwoProcessorsWriteAndClearWhileTheHostTakesMemory(bool translated)
    {
        const int blocks = 24;
        int steps = translated ? 400_000 : 100_000;
        using TestMachine m = Create(translated, blocks, processors: 2);
        using var end = new CancellationTokenSource();
        long taken = 0, seenBlank = 0;
        Thread host = new(() =>
        {
            var random = new Random(1);
            while (!end.IsCancellationRequested)
            {
                // All of it, a few blocks, or half a block.
                (ulong first, ulong bytes) = random.Next(3) switch
                {
                    0 => (0UL, blocks * Block),
                    1 => ((ulong)random.Next(blocks - 4) * Block, 4 * Block),
                    _ => ((ulong)random.Next(2 * blocks) * (Block / 2), Block / 2),
                };
                Assert.Equal(DiscardResult.Done, m.Memory.Discard(new GuestAddress(Free + first), bytes));
                taken++;
                if (CountBlank(m, blocks) > 0)
                    seenBlank++;
                Thread.Sleep(random.Next(2));
            }
        });
        host.Start();
        ProcessorState[] ends = RunBoth(m, a =>
        {
            Label again = a.CreateLabel();
            a.mov(r13d, steps);
            a.lea(r8d, __[r14 + 12345]);
            // R9: its first page of 64 in a block; the other's pages are between.
            a.mov(r9, r14);
            a.shl(r9, 12);
            a.add(r9, rbx);
            a.Label(ref again);
            // Any block and any of its pages there.
            a.imul(r8d, r8d, 1664525);
            a.add(r8d, 1013904223);
            a.mov(eax, r8d);
            a.shr(eax, 16);
            a.xor(edx, edx);
            a.mov(ecx, blocks);
            a.div(ecx);
            a.shl(rdx, 21);
            a.and(eax, 63);
            a.shl(rax, 13);
            a.lea(r15, __[r9 + rdx]);
            a.add(r15, rax);
            // Without a path now and then.
            Label keep = a.CreateLabel(), clean = a.CreateLabel();
            a.test(r8d, 7 << 8);
            a.jne(keep);
            a.mov(rdx, cr3);
            a.mov(cr3, rdx);
            a.Label(ref keep);
            a.mov(rdi, r15);
            a.xor(eax, eax);
            a.mov(ecx, 0x1000);
            a.rep.stosb();
            a.or(r12, __qword_ptr[r15 + 8]);
            a.or(r12, __qword_ptr[r15 + 0xFF8]);
            // In every other page something is left behind.
            a.test(r8d, 1 << 12);
            a.je(clean);
            a.mov(__qword_ptr[r15 + 8], r13);
            a.mov(__qword_ptr[r15 + 0xFF8], r13);
            a.Label(ref clean);
            a.dec(r13d);
            a.jne(again);
            a.hlt();
        }, m.Handler);
        end.Cancel();
        host.Join();
        Assert.Equal((0UL, 0UL), (ends[0].Gpr[12], ends[1].Gpr[12]));
        Assert.True(taken > 10);
        for (int b = 0; b < blocks; b++)
            if (m.Memory.IsBlank(Free + ((ulong)b * Block)))
                Assert.True(IsZero(m, (ulong)b * Block, (int)Block), $"block {b} is blank and not clear");
        long shootdowns = m.Processors.Sum(p => p.Counters.Named["blank-shootdowns"]);
        TestContext.Current.TestOutputHelper?.WriteLine($"{taken} times taken, {seenBlank} times blank, {shootdowns} interruptions");
        Assert.True(shootdowns > 10, $"{shootdowns} interruptions for {taken} times that memory was taken");
    }
}
