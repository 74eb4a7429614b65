using Aerostat.Memory;
using Aerostat.Processors;
using Aerostat.X86;
using Iced.Intel;
using Xunit;
using static Iced.Intel.AssemblerRegisters;

namespace Aerostat.Cpu.Tests;

/// <summary>Checks that predict their TLB entry: wrong predictions are set right, and given up where they are the rule.</summary>
public sealed class PredictionTests
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

    // Adds up what lies at 0x10 of the pages and counts all over them, another page every 2^shift times; then reads where no page is.
    private static ulong Walk(TestMachine m, int shift) => m.Assemble(a =>
    {
        a.mov(ecx, 4000);
        a.xor(eax, eax);
        Label loop = a.CreateLabel();
        a.Label(ref loop);
        a.mov(ebx, ecx);
        a.shr(ebx, (byte)shift);
        a.and(ebx, PageCount - 1);
        a.shl(ebx, 12);
        a.add(rbx, (int)Pages);
        a.add(rax, __qword_ptr[rbx + 0x10]);
        a.lea(rdi, __[rbx + rcx]);
        a.and(rdi, -8);
        a.inc(__qword_ptr[rdi]);
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
        TestResult a = oracle.Run(0, Walk(oracle, shift)), b = translated.Run(0, Walk(translated, shift));
        Assert.Equal(Vector.PageFault, a.Vector);
        Assert.Equal((a.Vector, a.Rip, a.Error, a.State.Gpr[0], a.State.Cr2), (b.Vector, b.Rip, b.Error, b.State.Gpr[0], b.State.Cr2));
        byte[] x = new byte[PageCount << 12], y = new byte[PageCount << 12];
        Assert.True(oracle.Memory.TryRead(new GuestAddress(TestMachine.FreeGpa), x));
        Assert.True(translated.Memory.TryRead(new GuestAddress(TestMachine.FreeGpa), y));
        Assert.Equal(x, y);
        Assert.Equal(searches, translated.Processor.Counters.Named["checks-without-prediction"] > 0);
    }

    /// <summary>An entry that was emptied matches nothing, whichever check looks into it.</summary>
    [Fact]
    public void APredictedEntryThatWasEmptiedServesNoNeighbour()
    {
        using TestMachine m = Create(m => new TranslatorHypervisor(m, threshold: 0));
        // Each page is read first through the prediction of another, which has just been flushed.
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
}
