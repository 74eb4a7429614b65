using Iced.Intel;
using Xunit;

[assembly: CollectionBehavior(DisableTestParallelization = true)]

namespace Aerostat.Cpu.Tests;

/// <summary>The native half of the comparison proves itself before anything is compared with it.</summary>
public sealed unsafe class NativeRunnerTests
{
    [Fact]
    public void FaultsAndFallThrough()
    {
        using var n = new NativeRunner();
        TestState s = TestState.Clean();
        s.Gpr[0] = 5;
        s.Gpr[3] = 7;
        n.SetCode([0x48, 0x01, 0xD8], 64);
        n.Run(ref s, 64, 3);
        Assert.Equal(12UL, s.Gpr[0]);
        Assert.Equal(-1, s.Vector);

        s = TestState.Clean();
        n.SetCode([0xF7, 0xF1], 64);
        s.Gpr[4] = 0x1234;
        n.Run(ref s, 64, 2);
        Assert.Equal(0, s.Vector);
        Assert.Equal(Layout.Start, s.Rip);
        Assert.Equal(0x1234UL, s.Gpr[4]);

        s = TestState.Clean();
        n.SetCode([0x0F, 0x0B], 64);
        n.Run(ref s, 64, 2);
        Assert.Equal(6, s.Vector);

        s = TestState.Clean();
        n.SetCode([0x90, 0xF4], 64);
        n.Run(ref s, 64, 2);
        Assert.Equal(13, s.Vector);
        Assert.Equal(Layout.Start + 1, s.Rip);

        s = TestState.Clean();
        s.Gpr[3] = Layout.Hole + 8;
        n.SetCode([0x89, 0x03], 64);
        n.Run(ref s, 64, 2);
        Assert.Equal(14, s.Vector);
        Assert.Equal(Layout.Hole + 8, s.Cr2);
        Assert.Equal(6UL, s.Error);

        s = TestState.Clean();
        s.Mxcsr = 0;
        n.SetCode([0x0F, 0x5E, 0xC0], 64);
        n.Run(ref s, 64, 3);
        Assert.Equal(19, s.Vector);

        s = TestState.Clean();
        n.SetCode([0xEB, 0x20], 64);
        n.Run(ref s, 64, 2);
        Assert.Equal(3, s.Vector);
        Assert.Equal(Layout.Start + 0x23, s.Rip);
    }
}
