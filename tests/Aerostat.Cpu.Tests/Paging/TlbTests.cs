using Aerostat.Memory;
using Aerostat.X86;
using Iced.Intel;
using Xunit;
using static Iced.Intel.AssemblerRegisters;

namespace Aerostat.Cpu.Tests;

/// <summary>Page crossings, canonical checks, and what the TLB may and must remember (Intel SDM vol. 3 sections 5.10.2 to 5.10.4).</summary>
public class TlbTests : ProcessorTests
{
    private const ulong Page = 0x0000_7000_0000_0000, FreeA = TestMachine.FreeGpa, FreeB = TestMachine.FreeGpa + 0x1000;
    private const ulong Open = PageTableEntry.P | PageTableEntry.W | PageTableEntry.U;

    private TestMachine CreateMachine(ulong flags = Open)
    {
        TestMachine m = Machine(TestMode.Long);
        m.Tables.Map(Page, FreeA, 0x1000, flags);
        m.Memory.Write(new GuestAddress(FreeA), 0xAAAAAAAAAAAAAAAAUL);
        m.Memory.Write(new GuestAddress(FreeB), 0xBBBBBBBBBBBBBBBBUL);
        m.State.Cr4 |= Cr4.Pge;
        m.State.Gpr[3] = Page;
        m.State.Gpr[6] = MapEntry(m, 1);
        m.State.Gpr[2] = FreeB | flags | PageTableEntry.A | PageTableEntry.D;
        return m;
    }

    // Reads the page, points its entry (at RSI) at the other frame (RDX), does something, reads again: RAX and RCX.
    private static TestResult ChangeEntry(TestMachine m, Action<Assembler> between)
    {
        ulong code = m.Assemble(a =>
        {
            a.mov(rax, __qword_ptr[rbx]);
            a.mov(__qword_ptr[rsi], rdx);
            between(a);
            a.mov(rcx, __qword_ptr[rbx]);
            a.hlt();
        });
        return m.Run(0, code);
    }

    [Fact]
    public void InvlpgForgetsThePage()
    {
        using TestMachine m = CreateMachine();
        TestResult r = ChangeEntry(m, a => a.invlpg(__[rbx]));
        Assert.Equal(0xAAAAAAAAAAAAAAAAUL, r.State.Gpr[0]);
        Assert.Equal(0xBBBBBBBBBBBBBBBBUL, r.State.Gpr[1]);
    }

    [Fact]
    public void InvlpgForgetsGlobalPages()
    {
        using TestMachine m = CreateMachine(Open | PageTableEntry.G);
        Assert.Equal(0xBBBBBBBBBBBBBBBBUL, ChangeEntry(m, a => a.invlpg(__[rbx])).State.Gpr[1]);
    }

    private const ulong LargePage = Open | PageTableEntry.Ps | PageTableEntry.A | PageTableEntry.D;

    // Maps a large page to FreeA and answers where code finds its entry.
    private static ulong MapLargePage(TestMachine m)
    {
        m.Tables.Write(m.Tables.EntryAddress(Page, 2), FreeA | LargePage);
        return MapEntry(m, 2);
    }

    // Maps the table that holds the entry under test, for code that changes it, and answers where it finds the entry.
    private static ulong MapEntry(TestMachine m, int level)
    {
        ulong entry = m.Tables.EntryAddress(Page, level);
        m.Tables.Map(0x50000, entry & ~4095UL, 0x1000, PageTableEntry.W);
        return 0x50000 + (entry & 4095);
    }

    [Fact]
    public void InvlpgForgetsTheWholeLargePage()
    {
        using TestMachine m = Machine(TestMode.Long);
        ulong entry = MapLargePage(m);
        m.State.Gpr[6] = entry;
        m.State.Gpr[2] = LargePage;
        m.State.Gpr[3] = Page + 0x3000;
        m.Memory.Write(new GuestAddress(FreeA + 0x3000), 1UL);
        m.Memory.Write(new GuestAddress(0x3000), 2UL);
        // Another address of the same large page.
        TestResult r = ChangeEntry(m, a => a.invlpg(__[rbx + 0x10000]));
        Assert.Equal(1UL, r.State.Gpr[0]);
        Assert.Equal(2UL, r.State.Gpr[1]);
    }

    /// <summary>The same for a large page from which nothing was read, but code was fetched.</summary>
    [Fact]
    public void InvlpgForgetsTheCodeOfTheWholeLargePage()
    {
        using TestMachine m = Machine(TestMode.Long);
        ulong entry = MapLargePage(m);
        foreach ((ulong gpa, int number) in ((ulong, int)[])[(FreeA, 1), (0, 2)])
        {
            m.Assemble(gpa + 0x3000, Page + 0x3000, a =>
            {
                a.mov(eax, number);
                a.ret();
            });
        }

        TestResult r = m.Run(0, m.Assemble(a =>
        {
            a.mov(rbx, Page + 0x3000);
            a.mov(esi, (uint)entry);
            a.mov(edx, (uint)LargePage);
            a.call(rbx);
            a.mov(r8d, eax);
            a.mov(__qword_ptr[rsi], rdx);
            // Another address of the same large page.
            a.invlpg(__[rbx + 0x10000]);
            a.call(rbx);
            a.hlt();
        }));
        Assert.Equal((1UL, 2UL), (r.State.Gpr[8], r.State.Gpr[0]));
    }

    [Fact]
    public void MovToCr3ForgetsAllButGlobalPages()
    {
        using (TestMachine m = CreateMachine())
        {
            Assert.Equal(0xBBBBBBBBBBBBBBBBUL, ChangeEntry(m, ReloadCr3).State.Gpr[1]);
        }

        using (TestMachine m = CreateMachine(Open | PageTableEntry.G))
        {
            // A processor may forget global pages too: either value is right, but without PGE they must go.
            m.State.Cr4 &= ~Cr4.Pge;
            Assert.Equal(0xBBBBBBBBBBBBBBBBUL, ChangeEntry(m, ReloadCr3).State.Gpr[1]);
        }

        static void ReloadCr3(Assembler a)
        {
            a.mov(r8, cr3);
            a.mov(cr3, r8);
        }
    }

    [Theory]
    [InlineData(Cr4.Pge)]
    [InlineData(Cr4.Smep)]
    public void ChangingCr4ForgetsEverything(ulong bit)
    {
        using TestMachine m = CreateMachine(Open | PageTableEntry.G);
        TestResult r = ChangeEntry(m, a =>
        {
            a.mov(r8, cr4);
            a.xor(r8, (int)bit);
            a.mov(cr4, r8);
        });
        Assert.Equal(0xBBBBBBBBBBBBBBBBUL, r.State.Gpr[1]);
    }

    [Fact]
    public void ChangingPagingForgetsEverything()
    {
        using TestMachine m = CreateMachine();
        TestResult r = ChangeEntry(m, a =>
        {
            a.mov(r8, cr0);
            a.xor(r8d, (int)Cr0.Wp);
            a.mov(cr0, r8);
            a.invlpg(__[rbx]);
        });
        Assert.Equal(0xBBBBBBBBBBBBBBBBUL, r.State.Gpr[1]);
    }

    /// <summary>INVPCID: types 0 to 3, and #GP for what is none of them.</summary>
    [Theory]
    [InlineData(0, 0UL, true)]
    [InlineData(1, 0UL, true)]
    [InlineData(2, 0UL, true)]
    [InlineData(3, 0UL, true)]
    [InlineData(4, 0UL, false)]
    [InlineData(0, 0x1000UL, false)]
    public void Invpcid(int type, ulong descriptor, bool valid)
    {
        using TestMachine m = CreateMachine();
        m.State.Cr4 |= Cr4.Pcide;
        m.State.Gpr[7] = (ulong)type;
        m.Memory.Write(new GuestAddress(TestMachine.Data), descriptor);
        m.Memory.Write(new GuestAddress(TestMachine.Data + 8), Page);
        m.State.Gpr[5] = TestMachine.Data;
        TestResult r = ChangeEntry(m, a => a.invpcid(rdi, __xmmword_ptr[rbp]));
        if (valid)
            Assert.Equal(0xBBBBBBBBBBBBBBBBUL, r.State.Gpr[1]);
        else
            Assert.Equal((Vector.GeneralProtection, 0UL), (r.Vector, r.Error));
    }

    [Fact]
    public void InvpcidOfOneAddressWantsItCanonical()
    {
        using TestMachine m = CreateMachine();
        m.Memory.Write(new GuestAddress(TestMachine.Data), 0UL);
        m.Memory.Write(new GuestAddress(TestMachine.Data + 8), 0x8000_0000_0000_0000);
        m.State.Gpr[5] = TestMachine.Data;
        Assert.Equal(Vector.GeneralProtection, ChangeEntry(m, a => a.invpcid(rdi, __xmmword_ptr[rbp])).Vector);
    }

    /// <summary>With PCIDs, a translation belongs to its PCID, and CR3 bit 63 keeps what the new PCID has.</summary>
    [Fact]
    public void PcidsDoNotMix()
    {
        using TestMachine m = CreateMachine();
        // A second tree whose page is frame B.
        ulong root = m.Tables.Root;
        var other = new PageTables(m.Memory, 0x180000);
        other.Map(Page, FreeB, 0x1000, Open);
        other.Map(TestMachine.KernelCode, TestMachine.UserCode, 0x2000, PageTableEntry.W);
        other.Map(TestMachine.Gdt, TestMachine.Gdt, 0x6000, PageTableEntry.W);
        m.State.Cr4 |= Cr4.Pcide;
        m.State.Gpr[8] = root | 1;
        m.State.Gpr[9] = other.Root | 2;
        m.State.Gpr[10] = root | 1 | 1UL << 63;
        ulong code = m.Assemble(a =>
        {
            a.mov(cr3, r8);
            a.mov(rax, __qword_ptr[rbx]);
            a.mov(cr3, r9);
            a.mov(rcx, __qword_ptr[rbx]);
            a.mov(cr3, r10);
            a.mov(rdx, __qword_ptr[rbx]);
            a.mov(r11, cr3);
            a.hlt();
        });
        TestResult r = m.Run(0, code);
        Assert.Equal(0xAAAAAAAAAAAAAAAAUL, r.State.Gpr[0]);
        Assert.Equal(0xBBBBBBBBBBBBBBBBUL, r.State.Gpr[1]);
        Assert.Equal(0xAAAAAAAAAAAAAAAAUL, r.State.Gpr[2]);
        Assert.Equal(root | 1, r.State.Gpr[11]);
    }

    [Fact]
    public void PcideAndItsCr3()
    {
        using TestMachine m = Machine(TestMode.Long);
        // PCIDE cannot be set while CR3[11:0] is not zero, nor outside long mode (Intel SDM vol. 3 section 5.10.1).
        m.State.Cr3 |= 0x18;
        m.State.Gpr[0] = m.State.Cr4 | Cr4.Pcide;
        ulong code = m.Assemble(a => a.mov(cr4, rax));
        Assert.Equal(Vector.GeneralProtection, m.Run(0, code).Vector);
    }

    /// <summary>A writable translation that is not yet dirty sets D at the first write, also when reads came before.</summary>
    [Fact]
    public void DirtyIsSetByTheFirstWriteAfterReads()
    {
        using TestMachine m = CreateMachine();
        ulong entry = m.Tables.EntryAddress(Page, 1);
        ulong code = m.Assemble(a =>
        {
            a.mov(rax, __qword_ptr[rbx]);
            a.mov(rcx, __qword_ptr[rsi]);
            a.mov(__qword_ptr[rbx], rax);
            a.mov(rdi, __qword_ptr[rsi]);
            a.hlt();
        });
        TestResult r = m.Run(0, code);
        Assert.Equal(PageTableEntry.A, r.State.Gpr[1] & (PageTableEntry.A | PageTableEntry.D));
        Assert.Equal(PageTableEntry.A | PageTableEntry.D, r.State.Gpr[7] & (PageTableEntry.A | PageTableEntry.D));
        Assert.Equal(PageTableEntry.A | PageTableEntry.D, m.Tables.Read(entry) & (PageTableEntry.A | PageTableEntry.D));
    }

    /// <summary>A failed compare-and-exchange still needs write permission and sets D.</summary>
    [Fact]
    public void FailedCompareExchangeIsAWrite()
    {
        using TestMachine m = CreateMachine(PageTableEntry.P | PageTableEntry.U);
        ulong code = m.Assemble(a => a.@lock.cmpxchg(__qword_ptr[rbx], rcx));
        TestResult r = m.Run(0, code);
        Assert.Equal((Vector.PageFault, 3UL), (r.Vector, r.Error));
    }

    public static TheoryData<int, bool> Crossings
    {
        get
        {
            var data = new TheoryData<int, bool>();
            foreach (int size in (int[])[2, 4, 8, 16])
            {
                data.Add(size, false);
                data.Add(size, true);
            }

            return data;
        }
    }

    /// <summary>An access across pages is right when both are there, and changes nothing when the second is not.</summary>
    [Theory]
    [MemberData(nameof(Crossings))]
    public void PageCrossing(int size, bool write)
    {
        using TestMachine m = CreateMachine();
        m.Tables.Map(Page + 0x1000, FreeA + 0x8000, 0x1000, Open);
        byte[] before = Enumerable.Range(1, 16).Select(k => (byte)k).ToArray();
        for (int split = 1; split < size; split++)
        {
            for (int missing = 0; missing < 3; missing++)
            {
                m.Memory.Write(new GuestAddress(FreeA + 0x1000 - (ulong)split), before.AsSpan(0, split));
                m.Memory.Write(new GuestAddress(FreeA + 0x8000), before.AsSpan(split, size - split));
                m.Tables.Write(m.Tables.EntryAddress(Page, 1), missing == 1 ? 0 : FreeA | Open);
                m.Tables.Write(m.Tables.EntryAddress(Page + 0x1000, 1), missing == 2 ? 0 : (FreeA + 0x8000) | Open);
                m.State.Gpr[3] = Page + 0x1000 - (ulong)split;
                m.State.Gpr[0] = 0xF1F2F3F4F5F6F7F8;
                m.State.Xsave.AsSpan(160, 16).Fill(0xEE);
                m.State.Xsave[512] |= 3;
                ulong code = m.Assemble(a =>
                {
                    switch (size, write)
                    {
                        case (2, true): a.mov(__word_ptr[rbx], ax); break;
                        case (2, false): a.mov(ax, __word_ptr[rbx]); break;
                        case (4, true): a.mov(__dword_ptr[rbx], eax); break;
                        case (4, false): a.mov(eax, __dword_ptr[rbx]); break;
                        case (8, true): a.mov(__qword_ptr[rbx], rax); break;
                        case (8, false): a.mov(rax, __qword_ptr[rbx]); break;
                        case (16, true): a.movups(__xmmword_ptr[rbx], xmm0); break;
                        default: a.movups(xmm0, __xmmword_ptr[rbx]); break;
                    }

                    a.int3();
                });
                TestResult r = m.Run(3, code - TestMachine.KernelCode + TestMachine.UserCode);
                byte[] after = new byte[size];
                m.Memory.TryRead(new GuestAddress(FreeA + 0x1000 - (ulong)split), after.AsSpan(0, split));
                m.Memory.TryRead(new GuestAddress(FreeA + 0x8000), after.AsSpan(split));
                if (missing != 0)
                {
                    Assert.Equal(Vector.PageFault, r.Vector);
                    Assert.Equal(write ? 6UL : 4, r.Error);
                    Assert.Equal(missing == 1 ? Page + 0x1000 - (ulong)split : Page + 0x1000, r.State.Cr2);
                    Assert.Equal(before.AsSpan(0, size).ToArray(), after);
                    Assert.Equal(0xF1F2F3F4F5F6F7F8, r.State.Gpr[0]);
                    continue;
                }

                Assert.Equal(Vector.Breakpoint, r.Vector);
                byte[] expected = size == 16 ? Enumerable.Repeat((byte)0xEE, 16).ToArray() : BitConverter.GetBytes(0xF1F2F3F4F5F6F7F8)[..size];
                if (write)
                    Assert.Equal(expected, after);
                else if (size == 16)
                    Assert.Equal(before, r.State.Xsave.AsSpan(160, 16).ToArray());
                else
                    Assert.Equal(before.AsSpan(0, size).ToArray(), BitConverter.GetBytes(r.State.Gpr[0])[..size]);
            }
        }
    }

    /// <summary>Non-canonical addresses: #GP(0), #SS(0) through the stack; the edge of the canonical range crosses it.</summary>
    [Theory]
    [InlineData(TestMode.Long, 0x0000_8000_0000_0000UL)]
    [InlineData(TestMode.Long, 0xFFFF_7FFF_FFFF_FFFFUL)]
    [InlineData(TestMode.Long, 0x0000_7FFF_FFFF_FFFDUL)]
    [InlineData(TestMode.Long, 0x8000_0000_0000_0000UL)]
    [InlineData(TestMode.Long5, 0x0100_0000_0000_0000UL)]
    [InlineData(TestMode.Long5, 0xFEFF_FFFF_FFFF_FFFFUL)]
    public void NonCanonicalAddresses(object mode, ulong address)
    {
        using TestMachine m = Machine((TestMode)mode);
        m.State.Gpr[3] = address;
        m.State.Gpr[5] = address;
        Assert.Equal((Vector.GeneralProtection, 0UL), Ends(m, a => a.mov(rax, __qword_ptr[rbx])));
        Assert.Equal((Vector.GeneralProtection, 0UL), Ends(m, a => a.mov(__qword_ptr[rbx], rax)));
        Assert.Equal((Vector.GeneralProtection, 0UL), Ends(m, a => a.add(__dword_ptr[rbx], eax)));
        Assert.Equal((Vector.GeneralProtection, 0UL), Ends(m, a => a.@lock.add(__dword_ptr[rbx], eax)));
        Assert.Equal((Vector.StackFault, 0UL), Ends(m, a => a.mov(rax, __qword_ptr[rbp])));
        Assert.Equal((Vector.StackFault, 0UL), Ends(m, a =>
        {
            a.mov(rsp, rbx);
            a.pop(rax);
        }));
        Assert.Equal((Vector.GeneralProtection, 0UL), Ends(m, a => a.movups(xmm0, __xmmword_ptr[rbx])));
        if ((address & 3) == 0)
            Assert.Equal((Vector.GeneralProtection, 0UL), Ends(m, a => a.jmp(rbx)));
    }

    [Fact]
    public void AddressesThatFiveLevelsMakeCanonicalArePageFaults()
    {
        using TestMachine m = Machine(TestMode.Long5);
        m.State.Gpr[3] = 0x0000_8000_0000_0000;
        Assert.Equal(Vector.PageFault, Ends(m, a => a.mov(rax, __qword_ptr[rbx])).Vector);
    }

    private static (int Vector, ulong Error) Ends(TestMachine m, Action<Assembler> body)
    {
        ulong code = m.Assemble(a =>
        {
            body(a);
            a.int3();
        });
        TestResult r = m.Run(0, code);
        return (r.Vector, r.Error);
    }
}

/// <summary>The same through the translator.</summary>
public sealed class TranslatedTlbTests : TlbTests
{
    private protected override bool Translated => true;
}
