using Aerostat.Memory;
using Xunit;
using static Iced.Intel.AssemblerRegisters;

namespace Aerostat.Cpu.Tests;

/// <summary>Pages that the host does not hold, and a guest that clears them.</summary>
public sealed class HoleTests
{
    [Theory]
    [InlineData(false, false, false)]
    [InlineData(false, true, false)]
    [InlineData(true, false, false)]
    [InlineData(false, false, true)]
    [InlineData(false, true, true)]
    [InlineData(true, false, true)]
    public void ClearingAPageThatIsNotThereTakesNoMemory(bool backward, bool logged, bool translated)
    {
        using TestMachine m = new(TestMode.Long, hypervisor: memory => TestMachine.Open(memory, translated));
        using DirtyLog? log = logged ? m.Memory.StartDirtyLog(m.Memory.Regions[0]) : null;
        GuestAddress first = new(TestMachine.Data), second = new(TestMachine.Data + 0x1000), third = new(TestMachine.Data + 0x2000);
        Assert.SkipUnless(m.Memory.IsHole(first.Value), "this host does not tell (cachestat(2) is of Linux 6.5)");
        m.Memory.Write(second, Enumerable.Repeat((byte)0x5A, 4096).ToArray());
        ulong code = m.Assemble(a =>
        {
            if (backward)
                a.std();
            a.rep.stosq();
            a.int3();
        });
        // A page that is a hole, one with contents, and most of one that is a hole.
        const ulong Count = (0x1000 + 0x1000 + 0xC00) / 8;
        ulong start = backward ? TestMachine.Data + 0x3000 - (Count * 8) : TestMachine.Data;
        m.State.Gpr[0] = 0;
        m.State.Gpr[1] = Count;
        m.State.Gpr[7] = backward ? start + ((Count - 1) * 8) : start;
        TestResult r = m.Run(0, code);
        Assert.Equal((Aerostat.X86.Vector.Breakpoint, 0UL), (r.Vector, r.State.Gpr[1]));
        Assert.Equal(backward ? start - 8 : start + (Count * 8), r.State.Gpr[7]);
        if (log is not null)
        {
            // Whoever copies the memory is told all the same: the guest may believe in these zeros.
            ulong[] words = new ulong[log.WordCount];
            log.GetAndClear(words);
            Assert.Equal(7UL, words[TestMachine.Data >> 18] >> (int)((TestMachine.Data >> 12) & 63) & 0xF);
        }
        // Kernels do not clear backward; and a look at a hole would make it a page.
        if (!backward)
            Assert.Equal((true, false, true), (m.Memory.IsHole(first.Value), m.Memory.IsHole(second.Value), m.Memory.IsHole(third.Value)));
        byte[] all = new byte[0x3000];
        Assert.True(m.Memory.TryRead(first, all));
        Assert.Equal(-1, all.AsSpan().IndexOfAnyExcept((byte)0));
    }

    [Fact]
    public void OtherContentsAreWritten()
    {
        using TestMachine m = new(TestMode.Long);
        ulong code = m.Assemble(a =>
        {
            a.rep.stosd();
            a.int3();
        });
        m.State.Gpr[0] = 0x0100_0000_0000;
        m.State.Gpr[1] = 1024;
        m.State.Gpr[7] = TestMachine.Data;
        // Of the register only the half that is stored counts.
        m.Run(0, code);
        Assert.Equal(0UL, m.Memory.Read<ulong>(new GuestAddress(TestMachine.Data)));
        m.State.Gpr[0] = 1;
        m.State.Gpr[1] = 1024;
        m.State.Gpr[7] = TestMachine.Data + 0x1000;
        m.Run(0, code);
        Assert.Equal(0x1_0000_0001UL, m.Memory.Read<ulong>(new GuestAddress(TestMachine.Data + 0x1FF8)));
    }
}
