using Xunit;

namespace Aerostat.Memory.Tests;

public sealed class GuestMemoryTests
{
    [Fact]
    public void A_pc_with_five_gib_has_a_hole_below_four()
    {
        using GuestMemory memory = GuestMemory.CreatePc(5UL << 30);
        Assert.True(memory.Contains(GuestMemory.PciHoleStart - 1, 1));
        Assert.False(memory.Contains(GuestMemory.PciHoleStart, 1));
        Assert.True(memory.Contains(GuestMemory.HighMemoryStart, 2UL << 30));
    }
}
