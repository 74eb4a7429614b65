using Aerostat.Memory;
using Aerostat.Processors;
using Aerostat.X86;
using Iced.Intel;
using Xunit;
using static Iced.Intel.AssemblerRegisters;

namespace Aerostat.Cpu.Tests;

/// <summary>Linear-address masking (Intel SDM vol. 3 section 4.4): which tags data pointers may carry, and what the TLB makes of them; on both processors.</summary>
public sealed class MaskingTests
{
    private const ulong User = 0x0000_7000_0000_0000, Kernel = 0xFFFF_9000_0000_0000, FrameA = TestMachine.FreeGpa, FrameB = FrameA + 0x1000;
    private const ulong Open = PageTableEntry.P | PageTableEntry.W | PageTableEntry.U | PageTableEntry.A | PageTableEntry.D;
    private const ulong A = 0xAAAAAAAAAAAAAAAA, B = 0xBBBBBBBBBBBBBBBB;
    private const int GeneralProtection = 13, StackFault = 12, PageFault = 14;

    private static TestMachine Create(bool translated, TestMode mode = TestMode.Long, ulong cr3 = 0, ulong cr4 = 0)
    {
        var m = new TestMachine(mode, "max", hypervisor: translated ? memory => new TranslatorHypervisor(memory, threshold: 0) : null);
        foreach (ulong page in (ulong[])[User, Kernel])
            m.Tables.Map(page, FrameA, 0x1000, Open);
        m.Memory.Write(new GuestAddress(FrameA), A);
        m.Memory.Write(new GuestAddress(FrameB), B);
        m.State.Cr3 |= cr3;
        m.State.Cr4 |= cr4;
        return m;
    }

    private static bool[] Both => TranslatorHypervisor.IsSupported ? [false, true] : [false];

    public static TheoryData<bool> Processors => [.. Both];

    public static TheoryData<ulong, ulong, bool, ulong, bool, bool> Pointers
    {
        get
        {
            var data = new TheoryData<ulong, ulong, bool, ulong, bool, bool>();
            void Add(ulong cr3, ulong cr4, bool wide, ulong pointer, bool allowed)
            {
                foreach (bool translated in Both)
                    data.Add(cr3, cr4, wide, pointer, allowed, translated);
            }
            const ulong tag48 = 0x7F5A_0000_0000_0000, tag57 = 0x5A00_0000_0000_0000;
            foreach (bool wide in (bool[])[false, true])
            {
                Add(0, 0, wide, User, true);
                Add(0, 0, wide, User | tag57, false);
                Add(Cr3.LamU48, 0, wide, User | tag48, true);
                Add(Cr3.LamU57, 0, wide, User | tag57, true);
                // The tag reaches below what is masked.
                Add(Cr3.LamU57, 0, wide, User | tag57 | 1UL << 50, false);
                // Both bits: the narrow tag counts.
                Add(Cr3.LamU57 | Cr3.LamU48, 0, wide, User | tag57 | 1UL << 50, false);
                Add(Cr3.LamU57 | Cr3.LamU48, 0, wide, User | tag57, true);
                // Bit 63 says whose pointer it is.
                Add(Cr3.LamU48, 0, wide, Kernel & ~tag57, false);
                Add(Cr3.LamU48, 0, wide, User | 1UL << 63, false);
                Add(0, Cr4.LamSup, wide, Kernel & ~tag57, true);
                Add(0, Cr4.LamSup, wide, Kernel, true);
                Add(0, Cr4.LamSup, wide, User | tag57, false);
                Add(0, Cr4.LamSup, wide, Kernel & ~tag48, !wide);
            }
            return data;
        }
    }

    [Theory]
    [MemberData(nameof(Pointers))]
    public void WhichTagsAreAllowed(ulong cr3, ulong cr4, bool wide, ulong pointer, bool allowed, bool translated)
    {
        using TestMachine m = Create(translated, wide ? TestMode.Long5 : TestMode.Long, cr3, cr4);
        m.State.Gpr[3] = pointer;
        m.State.Gpr[5] = pointer;
        TestResult r = m.Run(0, m.Assemble(a =>
        {
            a.mov(rax, __qword_ptr[rbx]);
            a.mov(__qword_ptr[rbx + 8], rax);
            a.mov(rcx, __qword_ptr[rbx + 8]);
            a.hlt();
        }));
        // With five levels bit 50 is part of the address: there is no page.
        bool unmapped = wide && (cr3 & Cr3.LamU57) != 0 && (pointer & (1UL << 50)) != 0;
        Assert.Equal(allowed ? -1 : unmapped ? PageFault : GeneralProtection, r.Vector);
        if (allowed)
        {
            Assert.Equal((A, A), (r.State.Gpr[0], r.State.Gpr[1]));
            return;
        }
        // By way of the stack segment it is another vector.
        using TestMachine n = Create(translated, wide ? TestMode.Long5 : TestMode.Long, cr3, cr4);
        n.State.Gpr[5] = pointer;
        r = n.Run(0, n.Assemble(a =>
        {
            a.mov(rax, __qword_ptr[rbp]);
            a.hlt();
        }));
        Assert.Equal(unmapped ? PageFault : StackFault, r.Vector);
    }

    [Theory]
    [MemberData(nameof(Processors))]
    public void AFaultShowsTheAddressWithoutItsTag(bool translated)
    {
        using TestMachine m = Create(translated, cr3: Cr3.LamU48);
        m.State.Gpr[3] = 0x7F5A_0000_0000_0000 | (User + 0x5000);
        TestResult r = m.Run(0, m.Assemble(a =>
        {
            a.mov(rax, __qword_ptr[rbx]);
            a.hlt();
        }));
        Assert.Equal((PageFault, User + 0x5000), (r.Vector, r.State.Cr2));
    }

    [Theory]
    [MemberData(nameof(Processors))]
    public void CodeAddressesCarryNoTags(bool translated)
    {
        using TestMachine m = Create(translated, cr3: Cr3.LamU48);
        m.State.Gpr[3] = 0x7F00_0000_0000_0000 | User;
        Assert.Equal(GeneralProtection, m.Run(0, m.Assemble(a => a.jmp(rbx))).Vector);
    }

    [Theory]
    [MemberData(nameof(Processors))]
    public void InvlpgForgetsThePageUnderAllItsTags(bool translated)
    {
        using TestMachine m = Create(translated, cr3: Cr3.LamU48);
        ulong entry = m.Tables.EntryAddress(User, 1);
        m.Tables.Map(0x50000, entry & ~4095UL, 0x1000, Open);
        m.State.Gpr[3] = User;
        m.State.Gpr[5] = User | 0x7F5A_0000_0000_0000;
        m.State.Gpr[6] = 0x50000 + (entry & 4095);
        m.State.Gpr[7] = FrameB | Open;
        TestResult r = m.Run(0, m.Assemble(a =>
        {
            a.mov(rax, __qword_ptr[rbp]);
            a.mov(__qword_ptr[rsi], rdi);
            a.invlpg(__[rbx]);
            a.mov(rcx, __qword_ptr[rbp]);
            a.hlt();
        }));
        Assert.Equal((-1, A, B), (r.Vector, r.State.Gpr[0], r.State.Gpr[1]));
    }

    [Theory]
    [MemberData(nameof(Processors))]
    public void TagsEndWithTheBitThatAllowsThem(bool translated)
    {
        // Global pages outlive a CR3 that only changes the tree.
        using TestMachine m = Create(translated, cr3: Cr3.LamU57, cr4: Cr4.Pge);
        m.Tables.Map(User, FrameA, 0x1000, Open | PageTableEntry.G);
        m.State.Gpr[5] = User | 0x5A00_0000_0000_0000;
        m.State.Gpr[7] = m.Tables.Root;
        TestResult r = m.Run(0, m.Assemble(a =>
        {
            a.mov(rax, __qword_ptr[rbp]);
            a.mov(cr3, rdi);
            a.mov(rcx, __qword_ptr[rbp]);
            a.hlt();
        }));
        Assert.Equal((StackFault, A), (r.Vector, r.State.Gpr[0]));
    }

    [Fact]
    public void WithoutTheFeatureTheBitsAreReserved()
    {
        CpuidTable table = CpuModels.CreateCpuid("max", 0, 1, "none");
        Assert.NotEqual(0u, table.Get(7, 1).Eax & 1 << 26);
        Assert.Equal(0u, CpuModels.CreateCpuid(CpuModels.Default, 0, 1, "none").Get(7, 1).Eax & 1 << 26);
        ProcessorModel with = new(table), without = new(CpuModels.CreateCpuid(CpuModels.Default, 0, 1, "none"));
        Assert.Equal((Cr3.LamU48 | Cr3.LamU57, Cr4.LamSup), (with.Cr3Mask, with.Cr4Mask & Cr4.LamSup));
        Assert.Equal((0UL, 0UL), (without.Cr3Mask, without.Cr4Mask & Cr4.LamSup));
    }
}
