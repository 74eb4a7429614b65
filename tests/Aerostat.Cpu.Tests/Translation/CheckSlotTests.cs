using Aerostat.Memory;
using Aerostat.Processors;
using Aerostat.X86;
using Iced.Intel;
using Xunit;
using static Iced.Intel.AssemblerRegisters;

namespace Aerostat.Cpu.Tests;

/// <summary>Checks in loops, which keep the page they found: others are found as well, and what the TLB forgets they forget too.</summary>
public sealed class CheckSlotTests
{
    private const int PageCount = 4;
    private const ulong Pages = 0x4000_0000, Unmapped = Pages + (PageCount << 12);

    private static TestMachine Create(Func<GuestMemory, IHypervisor> hypervisor)
    {
        const ulong flags = PageTableEntry.P | PageTableEntry.W | PageTableEntry.U | PageTableEntry.A | PageTableEntry.D;
        TestMachine m = new(TestMode.Long, hypervisor: hypervisor);
        m.Tables.Map(Pages, TestMachine.FreeGpa, PageCount << 12, flags);
        for (ulong page = 0; page < PageCount; page++)
            m.Memory.Write(new GuestAddress(TestMachine.FreeGpa + (page << 12) + 0x10), BitConverter.GetBytes(1UL << (int)(16 * page)));
        return m;
    }

    private static void AddFromPage(Assembler a, int shift)
    {
        a.mov(ebx, ecx);
        a.shr(ebx, (byte)shift);
        a.and(ebx, PageCount - 1);
        a.shl(ebx, 12);
        a.add(rbx, (int)Pages);
        a.add(rax, __qword_ptr[rbx + 0x10]);
    }

    private static void Count(Assembler a)
    {
        a.lea(rdi, __[rbx + rcx]);
        a.and(rdi, -8);
        a.inc(__qword_ptr[rdi]);
    }

    // Adds up what lies at 0x10 of the pages and counts all over them, another page every 2^shift times; then reads where no page is.
    private static ulong Walk(TestMachine m, int shift) => m.Assemble(a =>
    {
        a.mov(ecx, 4000);
        a.xor(eax, eax);
        Label loop = a.CreateLabel();
        a.Label(ref loop);
        AddFromPage(a, shift);
        Count(a);
        a.dec(ecx);
        a.jne(loop);
        a.mov(ebx, (uint)Unmapped);
        a.mov(rax, __qword_ptr[rbx + 0x10]);
    });

    [Theory]
    [InlineData(0, true)]
    [InlineData(9, false)]
    public void ManyPagesAreReachedOneWayOrTheOther(int shift, bool searches)
    {
        using TestMachine oracle = Create(m => new InterpreterHypervisor(m)), translated = Create(m => new TranslatorHypervisor(m, threshold: 0));
        Compare(oracle, translated, oracle.Run(0, Walk(oracle, shift)), translated.Run(0, Walk(translated, shift)));
        Assert.Equal(searches, translated.Processor.Counters.Named["checks-that-search"] > 0);
    }

    private static void Compare(TestMachine oracle, TestMachine translated, in TestResult a, in TestResult b)
    {
        Assert.Equal(Vector.PageFault, a.Vector);
        Assert.Equal((a.Vector, a.Rip, a.Error, a.State.Gpr[0], a.State.Cr2), (b.Vector, b.Rip, b.Error, b.State.Gpr[0], b.State.Cr2));
        byte[] x = new byte[PageCount << 12], y = new byte[PageCount << 12];
        Assert.True(oracle.Memory.TryRead(new GuestAddress(TestMachine.FreeGpa), x));
        Assert.True(translated.Memory.TryRead(new GuestAddress(TestMachine.FreeGpa), y));
        Assert.Equal(x, y);
    }

    // The same by two blocks that jump to each other, perhaps with a loop in between that waits.
    private static ulong WalkInTurn(TestMachine m, int shift, int times = 4000, int wait = 0) => m.Assemble(a =>
    {
        Label first = a.CreateLabel(), second = a.CreateLabel(), waiting = a.CreateLabel();
        a.mov(ecx, times);
        a.xor(eax, eax);
        a.jmp(first);
        a.Label(ref second);
        if (wait != 0)
        {
            a.mov(edx, wait);
            a.Label(ref waiting);
            a.dec(edx);
            a.jne(waiting);
        }
        Count(a);
        a.dec(ecx);
        a.jne(first);
        a.mov(ebx, (uint)Unmapped);
        a.mov(rax, __qword_ptr[rbx + 0x10]);
        a.int3();
        a.Label(ref first);
        AddFromPage(a, shift);
        a.jmp(second);
    });

    /// <summary>Blocks that run often get slots where those pay.</summary>
    [Theory]
    [InlineData(0, 50, true)]
    [InlineData(0, 1, true)]
    [InlineData(9, 50, false)]
    [InlineData(9, 1, false)]
    [InlineData(9, 0, false)]
    public void BlocksThatRunOftenGetSlotsWhereThosePay(int shift, int hotThreshold, bool searches)
    {
        using TestMachine oracle = Create(m => new InterpreterHypervisor(m)), translated = Create(m => new TranslatorHypervisor(m, threshold: 0, hotThreshold: hotThreshold));
        Compare(oracle, translated, oracle.Run(0, WalkInTurn(oracle, shift)), translated.Run(0, WalkInTurn(translated, shift)));
        IReadOnlyDictionary<string, long> counters = translated.Processor.Counters.Named;
        Assert.Equal(searches, counters["checks-that-search"] > 0);
        Assert.Equal(hotThreshold != 0, counters["blocks-on-trial"] >= 2);
        // The end of a trial is the last that is heard of a block.
        Assert.InRange(counters["exit-countdown"], 0, 3 * counters["blocks-on-trial"]);
    }

    /// <summary>Blocks that run as many times but seldom among others get none, and stop counting.</summary>
    [Fact]
    public void BlocksThatRunSeldomAmongOthersGetNone()
    {
        static ulong Slowly(TestMachine m) => WalkInTurn(m, 9, times: 1000, wait: 2 * TranslationState.HotWithin);
        using TestMachine oracle = Create(m => new InterpreterHypervisor(m)), translated = Create(m => new TranslatorHypervisor(m, threshold: 0, hotThreshold: 50));
        Compare(oracle, translated, oracle.Run(0, Slowly(oracle)), translated.Run(0, Slowly(translated)));
        IReadOnlyDictionary<string, long> counters = translated.Processor.Counters.Named;
        Assert.Equal(0, counters["blocks-on-trial"]);
        // Each time once when a block begins to be timed, once when that is over.
        Assert.InRange(counters["exit-countdown"], 4 * TranslationState.Timings, 8 * TranslationState.Timings);
    }

    /// <summary>A slot that was emptied matches nothing.</summary>
    [Fact]
    public void ASlotThatWasEmptiedServesNobody()
    {
        using TestMachine m = Create(m => new TranslatorHypervisor(m, threshold: 0));
        // Each page is read first through the slot of another, which has just been flushed.
        ulong code = m.Assemble(a =>
        {
            a.mov(ecx, 64);
            a.xor(eax, eax);
            Label loop = a.CreateLabel();
            a.Label(ref loop);
            a.mov(ebx, ecx);
            a.and(ebx, PageCount - 1);
            a.shl(ebx, 12);
            a.add(rbx, (int)Pages);
            a.mov(rdx, cr3);
            a.mov(cr3, rdx);
            a.add(rax, __qword_ptr[rbx + 0x10]);
            a.dec(ecx);
            a.jne(loop);
            a.int3();
        });
        TestResult r = m.Run(0, code);
        Assert.Equal(Vector.Breakpoint, r.Vector);
        Assert.Equal(0x0010_0010_0010_0010UL, r.State.Gpr[0]);
    }

    /// <summary>A page is mapped to one frame and another in turn: each way of telling the processor reaches a slot that has found it.</summary>
    [Theory]
    [InlineData("invlpg")]
    [InlineData("cr3")]
    [InlineData("other cr3")]
    [InlineData("invpcid")]
    [InlineData("cr4.pge")]
    public void WhatTheTlbForgetsTheSlotsForget(string way)
    {
        using TestMachine m = Create(m => new TranslatorHypervisor(m, threshold: 0));
        const ulong tables = 0x5000_0000;
        ulong entry = m.Tables.EntryAddress(Pages, 1), first = m.Tables.Read(entry);
        m.Tables.Map(tables, entry & ~4095UL, 0x1000, first & 4095);
        m.State.Cr4 |= Cr4.Pcide | Cr4.Pge;
        m.State.Gpr[3] = Pages;
        m.State.Gpr[6] = tables + (entry & 4095);
        m.State.Gpr[7] = first ^ (first + 0x1000);
        m.State.Gpr[8] = m.State.Cr3;
        m.Memory.Write(new GuestAddress(TestMachine.Data), 0UL);
        m.Memory.Write(new GuestAddress(TestMachine.Data + 8), Pages);
        ulong code = m.Assemble(a =>
        {
            a.mov(ecx, 64);
            a.xor(eax, eax);
            a.xor(r14d, r14d);
            Label loop = a.CreateLabel();
            a.Label(ref loop);
            a.add(rax, __qword_ptr[rbx + 0x10]);
            a.xor(__qword_ptr[rsi], rdi);
            switch (way)
            {
                case "invlpg":
                    a.invlpg(__[rbx]);
                    break;
                case "cr3":
                    a.mov(cr3, r8);
                    break;
                case "other cr3":
                    // The other address space has the page's new place from the start.
                    a.lea(r9, __[r8 + 1]);
                    a.mov(cr3, r9);
                    a.add(rax, __qword_ptr[rbx + 0x10]);
                    a.mov(cr3, r8);
                    break;
                case "invpcid":
                    a.invpcid(r14, __xmmword_ptr[(long)TestMachine.Data]);
                    break;
                default:
                    a.mov(r10, cr4);
                    a.mov(r11, r10);
                    a.xor(r11d, (int)Cr4.Pge);
                    a.mov(cr4, r11);
                    a.mov(cr4, r10);
                    break;
            }
            a.dec(ecx);
            a.jne(loop);
            a.int3();
        });
        TestResult r = m.Run(0, code);
        Assert.Equal(Vector.Breakpoint, r.Vector);
        Assert.Equal(way == "other cr3" ? 64 + (64UL << 16) : 32 + (32UL << 16), r.State.Gpr[0]);
    }

    /// <summary>Who copies memory is told of writes by a check that found the page before anybody asked.</summary>
    [Fact]
    public void WritesAreLoggedFromNowOn()
    {
        using TestMachine m = Create(m => new TranslatorHypervisor(m, threshold: 0));
        m.State.Gpr[3] = Pages;
        ulong code = m.Assemble(a =>
        {
            Label loop = a.CreateLabel();
            a.mov(ecx, 128);
            a.Label(ref loop);
            a.inc(__qword_ptr[rbx + 0x10]);
            a.@out(0x80, al);
            a.dec(ecx);
            a.jne(loop);
            a.hlt();
        });
        int left = 64;
        m.Handler.PortWritten = (_, _) => m.Handler.LeaveRequested = --left == 0;
        Assert.NotEqual(ExitReason.Halted, m.Run(0, code).Exit.Reason);
        m.Handler.LeaveRequested = false;
        using DirtyLog log = m.Memory.StartDirtyLog(m.Memory.Regions[0]);
        Assert.Equal(ExitReason.Halted, m.Continue().Exit.Reason);
        ulong[] words = new ulong[log.WordCount];
        log.GetAndClear(words);
        Assert.Equal(1UL, words[TestMachine.FreeGpa >> 18] >> (int)((TestMachine.FreeGpa >> 12) & 63) & 1);
        Assert.Equal(1UL + 128, m.Memory.Read<ulong>(new GuestAddress(TestMachine.FreeGpa + 0x10)));
    }
}
