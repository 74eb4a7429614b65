using Aerostat.X86;
using Xunit;
using static Iced.Intel.AssemblerRegisters;

namespace Aerostat.Cpu.Tests;

/// <summary>Every way out of translated code has a counter that moves when it is taken, and none of them is a trap.</summary>
public sealed class TranslationCounterTests
{
    private const ulong Device = 0x4000_0000, Conflicting = TestMachine.Data + (4096UL << 12);
    private const ulong Flags = PageTableEntry.P | PageTableEntry.W | PageTableEntry.U | PageTableEntry.A | PageTableEntry.D;

    private static TestMachine Create()
    {
        TestMachine m = new(TestMode.Long, hypervisor: memory => new TranslatorHypervisor(memory, threshold: 0));
        m.Tables.Map(Device, 0x8000_0000, 0x1000, Flags);
        m.Tables.Map(Conflicting, TestMachine.FreeGpa, 0x4000, Flags);
        return m;
    }

    private static long Count(TestMachine m, string name) => m.Processor.Counters.Named.GetValueOrDefault(name);

    /// <summary>How many there are of each is written down by the last of them, since asking an enumeration costs more than a start may.</summary>
    [Fact]
    public void ThereIsACounterForEach()
    {
        using TranslationCounters counters = new();
        Assert.Equal(Enum.GetValues<ExitKind>().Length, counters.Exits.Length);
        Assert.Equal(Enum.GetValues<SlowAccess>().Length, counters.SlowAccesses.Length);
        Assert.Equal(Enum.GetValues<BlockLeave>().Length, counters.Leaves.Length);
        Assert.Equal(Enum.GetValues<InterpretedBlock>().Length, counters.Blocks.Length);
    }

    [Fact]
    public void InstructionsThatAreNotTranslatedAreCountedByName()
    {
        using TestMachine m = Create();
        ulong code = m.Assemble(a =>
        {
            a.mov(ebx, 5);
            Iced.Intel.Label loop = a.CreateLabel();
            a.Label(ref loop);
            a.cpuid();
            a.mov(ebx, 5);
            a.rdtsc();
            a.rdtsc();
            a.int3();
        });
        Assert.Equal(Vector.Breakpoint, m.Run(0, code).Vector);
        Assert.Equal(1, Count(m, "interpreted/cpuid"));
        Assert.Equal(2, Count(m, "interpreted/rdtsc"));
        Assert.Equal(1, Count(m, "interpreted/int3"));
        Assert.Equal(Vector.Breakpoint, m.Run(0, code).Vector);
        Assert.Equal(4, Count(m, "interpreted/rdtsc"));
    }

    [Fact]
    public void MemoryExitsAreCountedByReason()
    {
        using TestMachine m = Create();
        ulong code = m.Assemble(a =>
        {
            a.mov(edi, (uint)TestMachine.Data);
            a.mov(rax, __[rdi]);
            a.mov(rax, __[rdi + 0xFFC]);
            a.mov(edi, (uint)Device);
            a.mov(eax, __[rdi]);
            a.mov(edi, (uint)TestMachine.KernelCode);
            a.mov(__[rdi + 0x1800], eax);
            a.mov(rdi, 0x0123_4567_89AB_CDEFUL);
            a.mov(rax, __[rdi]);
        });
        Assert.Equal(Vector.GeneralProtection, m.Run(0, code).Vector);
        Assert.Equal(1, Count(m, "exit-memory-page-crossing"));
        Assert.Equal(1, Count(m, "exit-memory-device"));
        Assert.Equal(1, Count(m, "exit-memory-not-canonical"));
        Assert.True(Count(m, "exit-memory-tlb-refill") > 0);
        Assert.Equal(Count(m, "exit-memory"), Count(m, "exit-memory-tlb-refill") + Count(m, "exit-memory-page-crossing") + Count(m, "exit-memory-device")
            + Count(m, "exit-memory-not-canonical") + Count(m, "exit-memory-watched-page") + Count(m, "exit-memory-fault") + Count(m, "exit-memory-misaligned"));
    }

    [Fact]
    public void ABlockThatWasNotEnteredHasAReason()
    {
        using TestMachine m = new(TestMode.Pae, hypervisor: memory => new TranslatorHypervisor(memory, threshold: 0));
        Assert.Equal(Vector.Breakpoint, m.Run(0, m.Assemble(a => a.int3())).Vector);
        Assert.True(Count(m, "interpreted-blocks-other-mode") > 0);
        Assert.Equal(0, Count(m, "entries"));
    }

    /// <summary>
    /// An instruction with two operands in memory whose pages share a place in the TLB, so that each throws the other out.
    /// </summary>
    [Theory(Timeout = 60_000)]
    [InlineData("call")]
    [InlineData("push")]
    public async Task TwoPagesOfOneInstructionMayShareATlbEntry(string kind)
    {
        using TestMachine m = Create();
        ulong target = m.Assemble(a => a.int3(), offset: 0x400);
        m.Memory.Write(new Memory.GuestAddress(TestMachine.FreeGpa + 0x100), BitConverter.GetBytes(target));
        ulong code = m.Assemble(a =>
        {
            a.mov(esp, (uint)TestMachine.Data + 0x800);
            a.mov(ebx, (uint)Conflicting + 0x100);
            a.xor(eax, eax);
            if (kind == "call")
            {
                a.call(__qword_ptr[rbx]);
            }
            else
            {
                a.push(__qword_ptr[rbx]);
                a.pop(rcx);
                a.int3();
            }
        });
        TestResult r = await Task.Run(() => m.Run(0, code), TestContext.Current.CancellationToken);
        Assert.Equal(Vector.Breakpoint, r.Vector);
        if (kind == "call")
            Assert.Equal(target + 1, r.Rip);
        else
            Assert.Equal(target, r.State.Gpr[1]);
        Assert.True(Count(m, "exit-memory-tlb-refill") >= 2);
    }
}
