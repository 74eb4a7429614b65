using Aerostat.Memory;
using Aerostat.X86;
using Iced.Intel;
using Xunit;
using static Iced.Intel.AssemblerRegisters;

namespace Aerostat.Cpu.Tests;

/// <summary>
/// What may and must be remembered for each PCID (Intel SDM vol. 3 sections 5.10.1 and 5.10.4), as data and as code, on both processors.
/// </summary>
public sealed class AddressSpaceTests
{
    private const ulong Page = 0x0000_7000_0000_0000, Tables = 0x50000;
    private const ulong FrameA = TestMachine.FreeGpa, FrameB = FrameA + 0x1000, FrameC = FrameA + 0x2000;
    private const ulong Open = PageTableEntry.P | PageTableEntry.W | PageTableEntry.U | PageTableEntry.A | PageTableEntry.D;
    private const ulong A = 0xAAAAAAAAAAAAAAAA, B = 0xBBBBBBBBBBBBBBBB, C = 0xCCCCCCCCCCCCCCCC, Keep = 1UL << 63;

    public static TheoryData<bool> Processors => TranslatorHypervisor.IsSupported ? [false, true] : [false];

    /// <summary>Two trees: in the first the page is frame A (R8 is its CR3 with PCID 1), in the second frame B (R9, PCID 2). RSI points at the page's entry in the first.</summary>
    private static TestMachine CreateMachine(bool translated, ulong flags = 0)
    {
        var m = new TestMachine(TestMode.Long, hypervisor: translated ? memory => new TranslatorHypervisor(memory, threshold: 0) : null);
        m.Tables.Map(Page, FrameA, 0x1000, Open | flags);
        ulong entry = m.Tables.EntryAddress(Page, 1);
        PageTables other = AddTree(m, 0x180000, FrameB, flags);
        foreach (PageTables t in (PageTables[])[m.Tables, other])
            t.Map(Tables, entry & ~4095UL, 0x1000, Open);
        m.Memory.Write(new GuestAddress(FrameA), A);
        m.Memory.Write(new GuestAddress(FrameB), B);
        m.Memory.Write(new GuestAddress(FrameC), C);
        m.State.Cr4 |= Cr4.Pge | Cr4.Pcide;
        m.State.Gpr[3] = Page;
        m.State.Gpr[6] = Tables + (entry & 4095);
        m.State.Gpr[7] = FrameC | Open | flags;
        m.State.Gpr[8] = m.Tables.Root | 1 | Keep;
        m.State.Gpr[9] = other.Root | 2 | Keep;
        return m;
    }

    private static PageTables AddTree(TestMachine m, ulong at, ulong frame, ulong flags)
    {
        var tree = new PageTables(m.Memory, at);
        tree.Map(Page, frame, 0x1000, Open | flags);
        tree.Map(TestMachine.UserCode, TestMachine.UserCode, 0x2000, Open);
        tree.Map(TestMachine.KernelCode, TestMachine.UserCode, 0x2000, Open & ~PageTableEntry.U);
        tree.Map(TestMachine.Gdt, TestMachine.Gdt, 0x6000, Open & ~PageTableEntry.U);
        tree.Map(TestMachine.Data, TestMachine.Data, 0x4000, Open);
        return tree;
    }

    // What makes PCID 1's translation of the page go while PCID 2 is in force; the last three do not.
    private static readonly string[] Ways =
    [
        "invpcid address", "invpcid one", "invpcid all", "invpcid all but global", "cr3", "cr4.pge", "cr4.pcide", "none", "own cr3", "invpcid other",
    ];

    public static TheoryData<string, bool, bool> Invalidations
    {
        get
        {
            var data = new TheoryData<string, bool, bool>();
            foreach (string way in Ways)
                foreach (bool global in (bool[])[false, true])
                    foreach (bool translated in TranslatorHypervisor.IsSupported ? (bool[])[false, true] : [false])
                        data.Add(way, global, translated);
            data.Add("invlpg", true, false);
            data.Add("invlpg", true, TranslatorHypervisor.IsSupported);
            return data;
        }
    }

    [Theory]
    [MemberData(nameof(Invalidations))]
    public void WhatOtherPcidsMustForget(string way, bool global, bool translated)
    {
        using TestMachine m = CreateMachine(translated);
        ulong flags = global ? PageTableEntry.G : 0;
        m.Tables.Map(Page, FrameA, 0x1000, Open | flags);
        m.State.Gpr[7] |= flags;
        m.Memory.Write(new GuestAddress(TestMachine.Data), way == "invpcid other" ? 3UL : 1UL);
        m.Memory.Write(new GuestAddress(TestMachine.Data + 8), Page);
        ulong code = m.Assemble(a =>
        {
            a.mov(cr3, r8);
            a.mov(rax, __qword_ptr[rbx]);
            a.mov(cr3, r9);
            a.mov(__qword_ptr[rsi], rdi);
            a.mov(r13d, way switch { "invpcid one" or "invpcid other" => 1, "invpcid all" => 2, "invpcid all but global" => 3, _ => 0 });
            a.mov(r14d, (int)TestMachine.Data);
            switch (way)
            {
                case "invlpg":
                    a.invlpg(__[rbx]);
                    break;
                case "cr4.pge" or "cr4.pcide":
                    // PCIDE may only be set with PCID 0 in CR3.
                    a.mov(r10, cr4);
                    a.mov(r11, r10);
                    a.xor(r11d, (int)(way == "cr4.pge" ? Cr4.Pge : Cr4.Pcide));
                    a.mov(cr4, r11);
                    if (way == "cr4.pcide")
                    {
                        a.mov(r11, r9);
                        a.btr(r11, 63);
                        a.and(r11, -4096);
                        a.mov(cr3, r11);
                    }

                    a.mov(cr4, r10);
                    break;
                case "own cr3":
                    a.mov(r10, r9);
                    a.btr(r10, 63);
                    a.mov(cr3, r10);
                    break;
                case "cr3":
                    a.btr(r8, 63);
                    break;
                default:
                    if (way != "none")
                        a.invpcid(r13, __xmmword_ptr[r14]);
                    break;
            }

            a.mov(cr3, r8);
            a.mov(rcx, __qword_ptr[rbx]);
            a.hlt();
        });
        TestResult r = m.Run(0, code);
        Assert.Equal(-1, r.Vector);
        Assert.Equal(A, r.State.Gpr[0]);
        // Which global translations stay is the processor's choice where they need not go.
        bool gone = Array.IndexOf(Ways, way) is >= 0 and < 7 || way == "invlpg";
        if (!gone)
            Assert.Equal(global ? r.State.Gpr[1] : A, r.State.Gpr[1]);
        else if (!global || way is "invlpg" or "invpcid address" or "invpcid all" or "cr4.pge" or "cr4.pcide")
            Assert.Equal(C, r.State.Gpr[1]);
    }

    /// <summary>More PCIDs than any table has places for: each keeps its own page.</summary>
    [Theory]
    [MemberData(nameof(Processors))]
    public void ManyPcids(bool translated)
    {
        const int count = 20;
        using TestMachine m = CreateMachine(translated);
        for (int i = 0; i < count; i++)
        {
            PageTables tree = AddTree(m, 0x280000 + ((ulong)i * 0x10000), FrameC + 0x1000 + ((ulong)i * 0x1000), 0);
            m.Memory.Write(new GuestAddress(FrameC + 0x1000 + ((ulong)i * 0x1000)), (ulong)(1 << i));
            m.Memory.Write(new GuestAddress(TestMachine.Data + ((ulong)i * 8)), tree.Root + 10 + (ulong)i + Keep);
        }

        ulong code = m.Assemble(a =>
        {
            Label loop = a.CreateLabel(), next = a.CreateLabel();
            a.mov(r12d, 100);
            a.xor(eax, eax);
            a.Label(ref loop);
            a.mov(ecx, 0);
            a.Label(ref next);
            a.mov(r10, __qword_ptr[rcx * 8 + (int)TestMachine.Data]);
            a.mov(cr3, r10);
            a.mov(rdx, __qword_ptr[rbx]);
            a.mov(r11d, 1);
            a.shl(r11d, cl);
            a.xor(r11, rdx);
            a.or(rax, r11);
            a.inc(ecx);
            a.cmp(ecx, count);
            a.jb(next);
            a.dec(r12d);
            a.jnz(loop);
            a.hlt();
        });
        Assert.Equal(0UL, m.Run(0, code).State.Gpr[0]);
    }

    /// <summary>User code at one address in two address spaces, changed over by a system call each time: each runs its own.</summary>
    [Theory]
    [MemberData(nameof(Processors))]
    public void EachSpaceRunsItsOwnCode(bool translated)
    {
        using TestMachine m = CreateMachine(translated);
        // mov eax, 1 (or 1000); ret
        m.Memory.Write(new GuestAddress(FrameA), (byte[])[0xB8, 1, 0, 0, 0, 0xC3]);
        m.Memory.Write(new GuestAddress(FrameB), (byte[])[0xB8, 0xE8, 3, 0, 0, 0xC3]);
        ulong handler = m.Assemble(
            a =>
            {
                a.xchg(r8, r9);
                a.mov(cr3, r8);
                a.iretq();
            },
            offset: 0x800);
        m.SetGate(0x80, handler, TestMachine.KernelCs64, 0xEE, ist: 1);
        m.State.Gpr[12] = 400;
        ulong code = m.Assemble(
            a =>
            {
                Label loop = a.CreateLabel();
                a.Label(ref loop);
                a.@int(0x80);
                a.call(rbx);
                a.add(rcx, rax);
                a.dec(r12d);
                a.jnz(loop);
                a.int3();
            },
            user: true);
        TestResult r = m.Run(3, code);
        Assert.Equal(Vector.Breakpoint, r.Vector);
        Assert.Equal(200UL * 1001, r.State.Gpr[1]);
    }

    /// <summary>The same for supervisor code on pages that are not global, and on global ones changed under INVLPG.</summary>
    [Theory]
    [MemberData(nameof(Processors))]
    public void SupervisorCodeFollowsItsMapping(bool translated)
    {
        using TestMachine m = CreateMachine(translated);
        m.Memory.Write(new GuestAddress(FrameA), (byte[])[0xB8, 1, 0, 0, 0, 0xC3]);
        m.Memory.Write(new GuestAddress(FrameB), (byte[])[0xB8, 0xE8, 3, 0, 0, 0xC3]);
        m.Memory.Write(new GuestAddress(FrameC), (byte[])[0xB8, 0x40, 0x42, 0x0F, 0, 0xC3]);
        m.State.Gpr[12] = 300;
        m.State.Gpr[4] = TestMachine.KernelStack;
        ulong code = m.Assemble(a =>
        {
            Label loop = a.CreateLabel();
            a.mov(r10, __qword_ptr[rsi]);
            a.bts(r10, 8);
            a.bts(rdi, 8);
            a.Label(ref loop);
            a.mov(cr3, r8);
            a.call(rbx);
            a.add(rcx, rax);
            a.mov(cr3, r9);
            a.call(rbx);
            a.add(rcx, rax);
            // Tree 1 again, its entry changed to a global one of frame C and back.
            a.mov(cr3, r8);
            a.mov(__qword_ptr[rsi], rdi);
            a.invlpg(__[rbx]);
            a.call(rbx);
            a.add(rcx, rax);
            a.btr(r10, 8);
            a.mov(__qword_ptr[rsi], r10);
            a.invlpg(__[rbx]);
            a.dec(r12d);
            a.jnz(loop);
            a.hlt();
        });
        Assert.Equal(300UL * 1_001_001, m.Run(0, code).State.Gpr[1]);
    }

    /// <summary>A page becomes code while another address space, which can still write to it, is not in force.</summary>
    [Theory]
    [MemberData(nameof(Processors))]
    public void WritePathsOfOtherSpacesGo(bool translated)
    {
        using TestMachine m = CreateMachine(translated);
        m.Memory.Write(new GuestAddress(FrameA), (byte[])[0xB8, 1, 0, 0, 0, 0xC3]);
        // The second tree sees the first one's frame.
        PageTables view = AddTree(m, 0x1A0000, FrameA, 0);
        m.State.Gpr[9] = view.Root | 2 | Keep;
        m.State.Gpr[12] = 50;
        ulong code = m.Assemble(a =>
        {
            Label loop = a.CreateLabel();
            a.xor(ecx, ecx);
            a.Label(ref loop);
            // Writable in tree 1, executed in tree 2, written in tree 1, executed in tree 2.
            a.mov(cr3, r8);
            a.mov(__dword_ptr[rbx + 1], ecx);
            a.mov(cr3, r9);
            a.call(rbx);
            a.add(r13, rax);
            a.inc(ecx);
            a.cmp(ecx, r12d);
            a.jb(loop);
            a.hlt();
        });
        Assert.Equal(49UL * 50 / 2, m.Run(0, code).State.Gpr[13]);
    }

    /// <summary>Two accesses of one instruction whose pages share a TLB entry: the instruction ends all the same.</summary>
    [Theory]
    [MemberData(nameof(Processors))]
    public void AccessesThatShareAnEntry(bool translated)
    {
        using TestMachine m = CreateMachine(translated);
        const ulong alias = Page + ((ulong)4096 << 12);
        m.Tables.Map(alias, FrameB, 0x1000, Open);
        ulong code = m.Assemble(a =>
        {
            Label target = a.CreateLabel();
            a.lea(rax, __[target]);
            a.mov(__qword_ptr[rbx + 0x10], rax);
            a.mov(rsp, (long)alias + 0x800);
            a.push(__qword_ptr[rbx + 0x10]);
            a.pop(r10);
            a.call(__qword_ptr[rbx + 0x10]);
            a.hlt();
            a.Label(ref target);
            a.pop(r11);
            a.pop(__qword_ptr[rbx + 0x18]);
            a.mov(r12, __qword_ptr[rbx + 0x10]);
            a.hlt();
        });
        m.State.Cr4 &= ~Cr4.Pcide;
        TestResult r = m.Run(0, code);
        Assert.Equal(r.State.Gpr[12], r.State.Gpr[10]);
        Assert.InRange(r.State.Gpr[11], code, code + 0x60);
    }
}
