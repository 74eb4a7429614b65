using Aerostat.Memory;
using Aerostat.Processors;
using Aerostat.X86;
using Iced.Intel;
using Xunit;
using static Iced.Intel.AssemblerRegisters;

namespace Aerostat.Cpu.Tests;

/// <summary>REP STOS of zeros to memory that nobody has written to, which does nothing: whatever anybody writes there before, by any way, has to be gone afterwards.</summary>
public sealed partial class BlankMemoryTests
{
    private const ulong Base = 0x0000_7000_0000_0000, Block = 2 << 20, Free = TestMachine.FreeGpa;
    private const ulong Open = PageTableEntry.P | PageTableEntry.W | PageTableEntry.A | PageTableEntry.D | PageTableEntry.Ps;

    // Blocks from Free on, each by a large page, from Base on.
    private static TestMachine Create(bool translated, int blocks, int processors = 1, ulong flags = Open)
    {
        var m = new TestMachine(TestMode.Long, processors: processors, hypervisor: memory => TestMachine.Open(memory, translated), memoryBytes: Free + ((ulong)blocks * Block));
        for (int i = 0; i < blocks; i++)
            m.Tables.Write(m.Tables.EntryAddress(Base + ((ulong)i * Block), 2), (Free + ((ulong)i * Block)) | flags);
        m.State.Gpr[3] = Base;
        return m;
    }

    // Zeros at RBX + offset.
    private static void Clear(Assembler a, ulong offset, int bytes, int element = 1)
    {
        a.mov(rdi, offset);
        a.add(rdi, rbx);
        a.xor(eax, eax);
        a.mov(ecx, bytes / element);
        switch (element)
        {
            case 1: a.rep.stosb(); break;
            case 2: a.rep.stosw(); break;
            case 4: a.rep.stosd(); break;
            default: a.rep.stosq(); break;
        }
    }

    private static bool IsZero(TestMachine m, ulong offset, int bytes)
    {
        byte[] contents = new byte[bytes];
        Assert.True(m.Memory.TryRead(new GuestAddress(Free + offset), contents));
        return !contents.AsSpan().ContainsAnyExcept((byte)0);
    }

    public static TheoryData<string, bool> Writes
    {
        get
        {
            var data = new TheoryData<string, bool>();
            foreach (string how in (string[])["mov", "push", "xchg", "lock add", "lock add across pages", "cmpxchg16b", "movups", "movups across pages", "movnti", "fxsave", "fstp", "rep movsb",
                "rep stosb", "stosq", "backward", "sgdt", "pushfq", "setnz", "mov by 4 KiB", "host"])
            {
                data.Add(how, false);
                data.Add(how, true);
            }
            return data;
        }
    }

    [Theory]
    [MemberData(nameof(Writes))]
    public void WhatWasWrittenIsCleared(string how, bool translated)
    {
        foreach (bool clear in (bool[])[false, true])
        {
            using TestMachine m = Create(translated, 1);
            // The same memory by small pages, without a large one.
            m.Tables.Map(0x60000, Free + 0x5000, 0x2000, PageTableEntry.W | PageTableEntry.A | PageTableEntry.D);
            TestResult first = m.Run(0, m.Assemble(a =>
            {
                Clear(a, 0x1000, 0x9000);
                a.hlt();
            }));
            Assert.Equal((ExitReason.Halted, -1), (first.Exit.Reason, first.Vector));
            Assert.True(m.Memory.IsBlank(Free));
            Assert.Equal((0UL, Base + 0xA000), (first.State.Gpr[1], first.State.Gpr[7]));
            if (how == "host")
                m.Memory.Write(new GuestAddress(Free + 0x5FF0), 1UL);
            ulong code = m.Assemble(a =>
            {
                if (how != "host")
                    Clear(a, 0x1000, 0x9000);
                a.lea(rsi, __[rbx + 0x5FF0]);
                a.mov(rax, 0x0102030405060708L);
                switch (how)
                {
                    case "mov": a.mov(__qword_ptr[rsi], rax); break;
                    case "push":
                        a.mov(rsp, rsi);
                        a.push(rax);
                        break;
                    case "xchg": a.xchg(__dword_ptr[rsi], eax); break;
                    case "lock add": a.@lock.add(__dword_ptr[rsi], eax); break;
                    case "lock add across pages": a.@lock.add(__qword_ptr[rsi + 12], rax); break;
                    case "cmpxchg16b":
                        a.xor(eax, eax);
                        a.xor(edx, edx);
                        a.mov(rcx, rsi);
                        a.@lock.cmpxchg16b(__xmmword_ptr[rsi]);
                        break;
                    case "movups":
                        a.movq(xmm0, rax);
                        a.movups(__xmmword_ptr[rsi], xmm0);
                        break;
                    case "movups across pages":
                        a.movq(xmm0, rax);
                        a.movups(__xmmword_ptr[rsi + 12], xmm0);
                        break;
                    case "movnti": a.movnti(__qword_ptr[rsi], rax); break;
                    case "fxsave": a.fxsave(__[rsi]); break;
                    case "fstp":
                        a.fld1();
                        a.fstp(__tbyte_ptr[rsi]);
                        break;
                    case "rep movsb":
                        a.mov(rdi, rsi);
                        a.mov(rsi, TestMachine.KernelCode);
                        a.mov(ecx, 32);
                        a.rep.movsb();
                        break;
                    case "rep stosb":
                        a.mov(rdi, rsi);
                        a.mov(ecx, 32);
                        a.rep.stosb();
                        break;
                    case "stosq":
                        a.mov(rdi, rsi);
                        a.stosq();
                        break;
                    case "backward":
                        a.mov(rdi, rsi);
                        a.mov(ecx, 3000);
                        a.std();
                        a.rep.stosb();
                        a.cld();
                        break;
                    case "sgdt": a.sgdt(__[rsi]); break;
                    case "pushfq":
                        a.mov(rsp, rsi);
                        a.pushfq();
                        break;
                    case "setnz":
                        a.test(eax, eax);
                        a.setne(__byte_ptr[rsi]);
                        break;
                    case "mov by 4 KiB": a.mov(__qword_ptr[0x60FF0], rax); break;
                }
                if (clear)
                    Clear(a, 0x4000, 0x4000);
                a.hlt();
            });
            TestResult r = m.Run(0, code);
            Assert.Equal((ExitReason.Halted, -1), (r.Exit.Reason, r.Vector));
            Assert.Equal(clear, IsZero(m, 0x4000, 0x4000));
        }
    }

    [Theory]
    [InlineData(1, false)]
    [InlineData(2, false)]
    [InlineData(4, false)]
    [InlineData(8, false)]
    [InlineData(1, true)]
    [InlineData(2, true)]
    [InlineData(4, true)]
    [InlineData(8, true)]
    public void ItEndsWhereItShould(int element, bool translated)
    {
        using TestMachine m = Create(translated, 3);
        m.Memory.TryFill(new GuestAddress(Free + Block), Block, 0xEE);
        const ulong start = Block - 0x12345;
        int bytes = (int)Block / 8 * 8;
        // Blank, written, blank again, with elements across both ends of the middle one.
        TestResult r = m.Run(0, m.Assemble(a =>
        {
            Clear(a, start, bytes, element);
            a.mov(r8, rdi);
            a.mov(r9, rcx);
            Clear(a, (2 * Block) - 0x100, 0x8000, element);
            a.hlt();
        }));
        Assert.Equal((ExitReason.Halted, -1), (r.Exit.Reason, r.Vector));
        Assert.Equal((Base + start + (ulong)bytes, 0UL), (r.State.Gpr[8], r.State.Gpr[9]));
        Assert.Equal((Base + (2 * Block) + 0x7F00, 0UL), (r.State.Gpr[7], r.State.Gpr[1]));
        Assert.True(IsZero(m, start, bytes));
        Assert.True(IsZero(m, (2 * Block) - 0x100, 0x8000));
        Assert.False(IsZero(m, start + (ulong)bytes, 1));
        Assert.False(IsZero(m, (2 * Block) - 0x101, 1));
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void WhoMayNotWriteFaults(bool translated)
    {
        using TestMachine m = Create(translated, 2);
        // The kernel may, programs may not; and the second block nobody may.
        m.Tables.Write(m.Tables.EntryAddress(Base + Block, 2), (Free + Block) | (Open & ~PageTableEntry.W));
        TestResult r = m.Run(0, m.Assemble(a =>
        {
            Clear(a, Block - 0x3000, 0x5000);
            a.hlt();
        }));
        Assert.Equal((Vector.PageFault, 3UL, Base + Block), (r.Vector, r.Error, r.State.Cr2));
        Assert.Equal((0x2000UL, Base + Block), (r.State.Gpr[1], r.State.Gpr[7]));
        ulong user = m.Assemble(a => Clear(a, 0x3000, 0x5000), offset: 0x800, user: true);
        r = m.Run(0, m.Assemble(a =>
        {
            Clear(a, 0x1000, 0x1000);
            a.push(TestMachine.UserSs);
            a.push((int)TestMachine.CodeStack);
            a.push(2);
            a.push(TestMachine.UserCs64);
            a.push((int)user);
            a.iretq();
        }));
        Assert.Equal((Vector.PageFault, 7UL, Base + 0x3000), (r.Vector, r.Error, r.State.Cr2));
        Assert.Equal(0x5000UL, r.State.Gpr[1]);
    }

    [Theory]
    [InlineData("invlpg", false)]
    [InlineData("invlpg", true)]
    [InlineData("cr3", false)]
    [InlineData("cr3", true)]
    public void AnotherMappingIsAnotherBlock(string how, bool translated)
    {
        using TestMachine m = Create(translated, 2);
        m.Memory.TryFill(new GuestAddress(Free + Block), Block, 0xEE);
        ulong entry = m.Tables.EntryAddress(Base, 2);
        m.Tables.Map(0x50000, entry & ~4095UL, 0x1000, PageTableEntry.W);
        TestResult r = m.Run(0, m.Assemble(a =>
        {
            Clear(a, 0x1000, 0x1000);
            a.mov(rdx, (Free + Block) | Open);
            a.mov(__qword_ptr[0x50000 + (entry & 4095)], rdx);
            if (how == "invlpg")
                a.invlpg(__[rbx + 0x123000]);
            else
            {
                a.mov(rdx, cr3);
                a.mov(cr3, rdx);
            }
            Clear(a, 0x2000, 0x3000);
            a.hlt();
        }));
        Assert.Equal((ExitReason.Halted, -1), (r.Exit.Reason, r.Vector));
        Assert.True(IsZero(m, Block + 0x2000, 0x3000));
        Assert.False(IsZero(m, Block + 0x1FFF, 1));
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void ALogOfWritesHasItAllTheSame(bool translated)
    {
        using TestMachine m = Create(translated, 1);
        ulong code = m.Assemble(a =>
        {
            Clear(a, 0x1000, 0x2000);
            a.hlt();
        });
        m.Run(0, code);
        AssertLogged(m, code, 0b110);
    }

    // That code writes to these of the first 64 pages, a bit each.
    private static void AssertLogged(TestMachine m, ulong code, ulong pages)
    {
        using DirtyLog log = m.Memory.StartDirtyLog(m.Memory.Regions[0]);
        m.Run(0, code);
        ulong[] bits = new ulong[log.WordCount];
        log.GetAndClear(bits);
        Assert.Equal(pages, bits[Free >> 18]);
    }

    /// <summary>One processor writes to a block and says so; the other, which has cleared memory of it before, clears that, and looks.</summary>
    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void WhatAnotherProcessorHasWrittenIsCleared(bool translated)
    {
        const int rounds = 300;
        const int flag = (int)TestMachine.Data, acknowledged = flag + 0x100;
        using TestMachine m = Create(translated, rounds, processors: 2);
        ProcessorState[] ends = RunBoth(m, a =>
        {
            Label again = a.CreateLabel(), wait = a.CreateLabel(), clearer = a.CreateLabel(), late = a.CreateLabel();
            a.mov(r13d, 1);
            a.test(r14d, r14d);
            a.jne(clearer);
            a.Label(ref again);
            a.mov(__dword_ptr[rbx + 0x3008], r13d);
            a.mov(__dword_ptr[flag], r13d);
            WaitFor(a, ref wait, acknowledged);
            Next(a, again);
            a.Label(ref clearer);
            Clear(a, 0x8000, 0x1000);
            WaitFor(a, ref late, flag);
            Clear(a, 0x3000, 0x1000);
            a.add(r12d, __dword_ptr[rbx + 0x3008]);
            a.mov(__dword_ptr[acknowledged], r13d);
            Next(a, clearer);
        });
        Assert.Equal(0UL, ends[1].Gpr[12]);

        static void Next(Assembler a, Label again)
        {
            a.add(rbx, (int)Block);
            a.inc(r13d);
            a.cmp(r13d, rounds);
            a.jbe(again);
            a.hlt();
        }
    }

    // Until the dword at an address is R13D.
    private static void WaitFor(Assembler a, ref Label wait, int address)
    {
        a.Label(ref wait);
        a.pause();
        a.cmp(__dword_ptr[address], r13d);
        a.jne(wait);
    }

    // The same code on both processors, of which R14 is the number.
    private static ProcessorState[] RunBoth(TestMachine m, Action<Assembler> body, TestExitHandler? handler = null)
    {
        ulong code = m.Assemble(body);
        ExitReason[] reasons = new ExitReason[2];
        Thread[] threads = [.. Enumerable.Range(0, 2).Select(n =>
        {
            m.Enter(0, code);
            m.State.Gpr[14] = (ulong)n;
            m.State.Gpr[12] = 0;
            m.State.Gpr[4] = TestMachine.CodeStack - ((ulong)n * 0x400);
            m.Processors[n].SetState(m.State);
            return new Thread(() => reasons[n] = m.Processors[n].Run(handler ?? new TestExitHandler()).Reason);
        })];
        foreach (Thread thread in threads)
            thread.Start();
        foreach (Thread thread in threads)
            thread.Join();
        Assert.All(reasons, r => Assert.Equal(ExitReason.Halted, r));
        return [.. m.Processors.Select(p => p.GetState())];
    }
}
