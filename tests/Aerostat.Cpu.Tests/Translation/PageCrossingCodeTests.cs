using Aerostat.X86;
using Iced.Intel;
using Xunit;
using static Iced.Intel.AssemblerRegisters;

namespace Aerostat.Cpu.Tests;

/// <summary>
/// Instructions that lie in two pages run translated, and stay true to both: to what is written there and to where the pages are mapped.
/// </summary>
public sealed class PageCrossingCodeTests
{
    private const ulong Loop = 0x50_0000, SecondPage = Loop + 0x1000, Patch = 0x60_0000, Entries = 0x70_0000;
    private const ulong Flags = PageTableEntry.P | PageTableEntry.W | PageTableEntry.U | PageTableEntry.A | PageTableEntry.D;

    // First page of the loop, second page, and another that may take its place.
    private const ulong FirstGpa = TestMachine.FreeGpa, SecondGpa = FirstGpa + 0x1000, OtherGpa = FirstGpa + 0x2000;

    // add eax, imm32 lies across the page: two bytes here, three there.
    private static readonly int s_addAt = 0x1000 - 2;

    private static TestMachine Create()
    {
        Assert.SkipUnless(TranslatorHypervisor.IsSupported, "the host is not x86-64");
        TestMachine m = new(TestMode.Long, hypervisor: memory => new TranslatorHypervisor(memory, threshold: 0));
        m.Tables.Map(Loop, FirstGpa, 0x2000, Flags);
        m.Tables.Map(Patch, FirstGpa, 0x3000, Flags);
        // ECX times: EAX += imm32, then return.
        m.Assemble(FirstGpa + (ulong)s_addAt, Loop + (ulong)s_addAt, a =>
        {
            Label again = a.CreateLabel();
            a.Label(ref again);
            a.add(eax, 0x0102_0304);
            a.dec(ecx);
            a.jne(again);
            a.ret();
        });
        byte[] page = new byte[0x1000];
        m.Memory.TryRead(new Memory.GuestAddress(SecondGpa), page);
        // The same code, but that the constant's upper bytes differ.
        page[2] = 0x20;
        m.Memory.Write(new Memory.GuestAddress(OtherGpa), page);
        return m;
    }

    private static long Count(TestMachine m, string name) => m.Processor.Counters.Named.GetValueOrDefault(name);

    private static void CallLoop(Assembler a, uint times)
    {
        a.xor(eax, eax);
        a.mov(ecx, times);
        a.mov(edx, (uint)Loop + (uint)s_addAt);
        a.call(rdx);
    }

    // Writes the entry that maps the second page, whose table is mapped at Entries.
    private static void SetSecondPage(Assembler a, ulong table, ulong entry)
    {
        a.mov(edi, (uint)Entries + (uint)(table & 0xFFF));
        a.mov(rsi, entry);
        a.mov(__qword_ptr[rdi], rsi);
        a.mov(edi, (uint)SecondPage);
        a.invlpg(__byte_ptr[rdi]);
    }

    [Fact]
    public void TheyRunTranslated()
    {
        using TestMachine m = Create();
        TestResult r = m.Run(0, m.Assemble(a =>
        {
            CallLoop(a, 1000);
            a.int3();
        }));
        Assert.Equal(Vector.Breakpoint, r.Vector);
        Assert.Equal(unchecked(1000 * 0x0102_0304u), (uint)r.State.Gpr[0]);
        Assert.Equal(0, Count(m, "interpreted/add"));
        Assert.True(Count(m, "entries") < 50, $"{Count(m, "entries")} entries for a loop");
    }

    /// <summary>A write to either of the two pages, by an alias, changes what runs next.</summary>
    [Theory]
    [InlineData(0xFFF, 3)]
    [InlineData(0x1000, 0x42)]
    [InlineData(0x1002, 0x42)]
    public void AWriteToEitherPageIsSeen(int offset, byte value)
    {
        using TestMachine m = Create();
        byte[] code = new byte[5];
        m.Memory.TryRead(new Memory.GuestAddress(FirstGpa + (ulong)s_addAt), code);
        uint before = Result(code, 100);
        code[offset - s_addAt] = value;
        uint after = Result(code, 100);
        TestResult r = m.Run(0, m.Assemble(a =>
        {
            CallLoop(a, 100);
            a.mov(r8d, eax);
            a.mov(edi, (uint)Patch + (uint)offset);
            a.mov(__byte_ptr[rdi], value);
            CallLoop(a, 100);
            a.int3();
        }));
        Assert.Equal(Vector.Breakpoint, r.Vector);
        Assert.Equal((before, after), ((uint)r.State.Gpr[8], (uint)r.State.Gpr[0]));
    }

    // What the five bytes do to 0: ADD EAX, imm32 (05), or after a change of the immediate's first byte the same with another constant.
    private static uint Result(byte[] code, uint times) => code[0] == 0x05 ? times * BitConverter.ToUInt32(code, 1) : throw new InvalidOperationException("not ADD EAX");

    /// <summary>The second page is mapped elsewhere (INVLPG): the same first bytes go on differently.</summary>
    [Fact]
    public void AnotherSecondPageIsSeen()
    {
        using TestMachine m = Create();
        ulong table = TableEntryOf(m, SecondPage);
        m.Tables.Map(Entries, table & ~0xFFFUL, 0x1000, Flags);
        TestResult r = m.Run(0, m.Assemble(a =>
        {
            CallLoop(a, 100);
            a.mov(r8d, eax);
            SetSecondPage(a, table, OtherGpa | Flags);
            CallLoop(a, 100);
            a.mov(r9d, eax);
            // And back: the code of before is still right.
            SetSecondPage(a, table, SecondGpa | Flags);
            CallLoop(a, 100);
            a.int3();
        }));
        Assert.Equal(Vector.Breakpoint, r.Vector);
        Assert.Equal(unchecked((100 * 0x0102_0304u, 100 * 0x2002_0304u, 100 * 0x0102_0304u)), ((uint)r.State.Gpr[8], (uint)r.State.Gpr[9], (uint)r.State.Gpr[0]));
    }

    /// <summary>The second page goes away: the instruction faults there, with nothing done.</summary>
    [Fact]
    public void AMissingSecondPageFaults()
    {
        using TestMachine m = Create();
        ulong table = TableEntryOf(m, SecondPage);
        m.Tables.Map(Entries, table & ~0xFFFUL, 0x1000, Flags);
        TestResult r = m.Run(0, m.Assemble(a =>
        {
            CallLoop(a, 100);
            SetSecondPage(a, table, 0);
            CallLoop(a, 100);
            a.int3();
        }));
        Assert.Equal(Vector.PageFault, r.Vector);
        Assert.Equal(Loop + (ulong)s_addAt, r.Rip);
        Assert.Equal(SecondPage, r.State.Cr2);
        Assert.Equal(0u, (uint)r.State.Gpr[0]);
    }

    /// <summary>Accesses that are checked together but lie across a page do not leave the translated code each time.</summary>
    [Fact]
    public void AGroupAcrossAPageStaysInTranslatedCode()
    {
        using TestMachine m = Create();
        TestResult r = m.Run(0, m.Assemble(a =>
        {
            Label again = a.CreateLabel();
            a.mov(edi, (uint)TestMachine.Data + 0xFF0);
            a.mov(ecx, 1000);
            a.Label(ref again);
            a.add(__dword_ptr[rdi], ecx);
            a.add(__dword_ptr[rdi + 0x20], ecx);
            a.dec(ecx);
            a.jne(again);
            a.mov(eax, __[rdi]);
            a.mov(edx, __[rdi + 0x20]);
            a.int3();
        }));
        Assert.Equal((500500u, 500500u), ((uint)r.State.Gpr[0], (uint)r.State.Gpr[2]));
        Assert.InRange(Count(m, "exit-memory-group"), 1, 8);
        Assert.True(Count(m, "entries") < 50, $"{Count(m, "entries")} entries for a loop");
    }

    // Guest physical address of the entry that maps a page.
    private static ulong TableEntryOf(TestMachine m, ulong linear)
    {
        ulong table = m.State.Cr3 & ~0xFFFUL;
        for (int shift = 39; ; shift -= 9)
        {
            ulong at = table + ((linear >> shift & 511) * 8);
            if (shift == 12)
                return at;

            table = m.Memory.Read<ulong>(new Memory.GuestAddress(at)) & 0x000F_FFFF_FFFF_F000UL;
        }
    }
}
