using Xunit;

namespace Aerostat.Platform.Tests;

public sealed unsafe class HostPagesTests
{
    private const int Count = 3000;

    // Asked in one way or the other, the host says which pages were written; only the newer one tells a page that was just looked at from those.
    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public void PagesThatWereWrittenAreHeld(bool scan)
    {
        using HostPages pages = new(scan);
        Assert.True(pages.CanTell);
        byte* memory = HostMapping.AllocateLazy(Count * 4096UL);
        try
        {
            HostMapping.AdviseHugePages(memory, Count * 4096UL, wanted: false);
            byte* end = memory + (Count * 4096);
            Assert.False(pages.TryNextHeld(memory, end, out byte* start, out byte* stop));
            Assert.Equal(((nint)end, (nint)end, 0UL), ((nint)start, (nint)stop, pages.CountHeld(memory, end)));
            Random random = new(5);
            bool[] held = new bool[Count];
            for (int i = 0; i < Count; i += 1 + random.Next(7))
                for (int last = Math.Min(Count, i + 1 + random.Next(random.Next(30) == 0 ? 900 : 3)); i < last; i++)
                {
                    held[i] = true;
                    memory[i * 4096] = 1;
                }
            Assert.Equal((ulong)held.Count(h => h) * 4096, pages.CountHeld(memory, end));
            byte* at = memory;
            for (int i = 0; i < Count;)
            {
                int first = Array.IndexOf(held, true, i), last = first < 0 ? -1 : Array.IndexOf(held, false, first);
                Assert.Equal(first >= 0, pages.TryNextHeld(at, end, out start, out stop));
                if (first < 0)
                    break;
                last = last < 0 ? Count : last;
                Assert.Equal((first, last), ((int)((start - memory) / 4096), (int)((stop - memory) / 4096)));
                at = stop;
                i = last;
            }
            // A part of a run.
            memory[0] = memory[4096] = memory[8192] = 1;
            Assert.True(pages.TryNextHeld(memory + 4096, memory + 8192, out start, out stop));
            Assert.Equal((1L, 2L), ((start - memory) / 4096, (stop - memory) / 4096));
            Assert.True(HostMapping.Discard(memory, 4096));
            Assert.False(pages.TryNextHeld(memory, memory + 4096, out _, out _));
            Assert.False(pages.TryNextHeld(memory, memory, out _, out _));
        }
        finally
        {
            HostMapping.Unmap(memory, Count * 4096UL);
        }
    }

    [Fact]
    public void WhatWasOnlyLookedAtIsNotHeld()
    {
        using HostPages pages = new();
        byte* memory = HostMapping.AllocateLazy(16 * 4096UL);
        int sum = 0;
        for (int i = 0; i < 16; i++)
            sum += memory[i * 4096];
        bool told = !pages.TryNextHeld(memory, memory + (16 * 4096), out _, out _);
        memory[0] = 1;
        ulong held = pages.CountHeld(memory, memory + (16 * 4096));
        HostMapping.Unmap(memory, 16 * 4096UL);
        Assert.Equal(0, sum);
        Assert.SkipUnless(told, "this host does not tell the page of zeros from others (Linux 6.7 does)");
        Assert.Equal(4096UL, held);
    }

    [Fact]
    public void OfAFileOnlyWhatWasWrittenIsHeld()
    {
        using MemoryFile file = new("test", 8 * 4096);
        byte* memory = HostMapping.Reserve(8 * 4096);
        HostMapping.MapSharedAt(memory, 8 * 4096, file.Descriptor, 0);
        new Span<byte>(memory, 8 * 4096).Fill(3);
        HostMapping.MapPrivateAt(memory, 8 * 4096, file.Descriptor, 0);
        int sum = 0;
        for (int i = 0; i < 8; i++)
            sum += memory[i * 4096];
        memory[2 * 4096] = 1;
        foreach (bool scan in (bool[])[true, false])
        {
            using HostPages pages = new(scan);
            Assert.True(pages.TryNextHeld(memory, memory + (8 * 4096), out byte* start, out byte* stop));
            Assert.Equal((2L, 3L, 4096UL), ((start - memory) / 4096, (stop - memory) / 4096, pages.CountHeld(memory, memory + (8 * 4096))));
        }
        HostMapping.Unmap(memory, 8 * 4096);
        Assert.Equal(24, sum);
    }
}
