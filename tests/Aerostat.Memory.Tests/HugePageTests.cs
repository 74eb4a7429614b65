using System.Globalization;
using Aerostat.Platform;
using Xunit;

namespace Aerostat.Memory.Tests;

/// <summary>What the host holds goes by pages of 4 KiB, although it gives 2 MiB at a time.</summary>
public sealed unsafe class HugePageTests : IDisposable
{
    private const ulong Page = 4096, Block = 2 << 20;
    private const int Blocks = 16;

    private readonly GuestMemory memory = new(hugePages: true, new MemoryRegion(new(0), Blocks * Block, "ram"));

    public void Dispose() => memory.Dispose();

    private static GuestAddress At(ulong block, ulong page = 0) => new((block * Block) + (page * Page));

    // Touches a block; where the host gives small pages after all (it has no huge ones, or none are free) there is nothing to test.
    private void Take(ulong block)
    {
        memory.Write(At(block, 7), (byte)1);
        Assert.SkipUnless(memory.GetPageRanges(At(block), Block).First() is { State: PageState.Data, Length: Block }, "the host gave no huge page");
        // When Linux takes one apart it keeps no pages of zeros.
        for (ulong page = 0; page < 512; page++)
            memory.Write(At(block, page), (byte)1);
    }

    private ulong Held(ulong block) => memory.GetPageRanges(At(block), Block).Where(r => r.State == PageState.Data).Aggregate(0UL, (sum, r) => sum + r.Length);

    [Fact]
    public void ATouchTakesABlockAndALookTakesNothing()
    {
        Assert.Equal(0, memory.Read<byte>(At(1, 3)));
        Assert.Equal((0UL, PageState.Zero), (memory.AllocatedBytes, memory.GetPageRanges().Single().State));
        Take(2);
        Assert.Equal(Block, memory.AllocatedBytes);
        Assert.Equal(DiscardResult.Done, memory.Discard(At(2), Block));
        Assert.Equal(0UL, memory.AllocatedBytes);
    }

    [Fact]
    public void ScatteredPagesAreGivenBackToThePage()
    {
        for (ulong block = 0; block < Blocks; block++)
        {
            Take(block);
            for (ulong page = 0; page < 512; page++)
                memory.Write(At(block, page), (block << 16) + page);
        }
        for (ulong page = 0; page < 512; page += 2)
            for (ulong block = 0; block < Blocks; block++)
                Assert.Equal(DiscardResult.Done, memory.TakeAway(At(block, page), Page));
        memory.Settle();
        Assert.Equal(Blocks * Block / 2, memory.AllocatedBytes);
        for (ulong block = 0; block < Blocks; block++)
        {
            for (ulong page = 0; page < 512; page++)
                Assert.Equal(page % 2 == 0 ? 0 : (block << 16) + page, memory.Read<ulong>(At(block, page)));
            // What the process has let go of is only free when the host has taken the huge page apart.
            Assert.False(IsHuge(At(block, 1)), $"block {block} is a huge page still, half of which nobody can use");
        }
    }

    [Fact]
    public void WhatIsTornIsTakenApartUnasked()
    {
        Take(1);
        Assert.True(IsHuge(At(1, 9)));
        memory.Discard(At(1, 4), Page);
        // However long the timer's thread takes on this host.
        while (IsHuge(At(1, 9)))
            Thread.Sleep(5);
        Assert.Equal(Block - Page, Held(1));
    }

    [Fact]
    public void ABlockFromWhichPagesAreAwayIsNotFilledUpAgain()
    {
        Take(3);
        Assert.Equal(DiscardResult.Done, memory.TakeAway(At(3), Block));
        memory.BringBack(At(3, 100), 2 * Page);
        memory.Write(At(3, 100), 1);
        Assert.Equal(Page, Held(3));
        // When all are back it is a huge page again.
        memory.BringBack(At(3), Block);
        Assert.Equal(DiscardResult.Done, memory.Discard(At(3), Block));
        memory.TakeAway(At(0), 4 * Block);
        memory.BringBack(At(1), Page);
        memory.BringAllBack();
        Take(0);
        Take(1);
    }

    [Fact]
    public void ABlockThatIsCompleteGoesAtOnce()
    {
        Take(5);
        Assert.Equal(DiscardResult.Done, memory.TakeAway(At(5, 256), Block / 2));
        Assert.Equal(1, memory.Read<byte>(At(5, 7)));
        using DirtyLog log = memory.StartDirtyLog(memory.Regions[0]);
        Assert.Equal(DiscardResult.Done, memory.TakeAway(At(5), Block / 2));
        Assert.Equal((0UL, PageState.Discarded), (memory.AllocatedBytes, memory.GetPageRanges(At(5), Block).Single().State));
        Assert.Equal(256, log.GetAndClear(new ulong[log.WordCount]));
        Take(5);
    }

    [Fact]
    public void PagesThatAreBackBeforeTheyWereTakenStay()
    {
        Take(6);
        Take(7);
        memory.Write(At(6, 1), 0x1234);
        memory.Write(At(6, 2), 0x5678);
        using DirtyLog log = memory.StartDirtyLog(memory.Regions[0]);
        memory.TakeAway(At(6), 3 * Page);
        memory.BringBack(At(6, 2), Page);
        ulong[] bits = new ulong[log.WordCount];
        log.GetAndClear(bits);
        memory.Settle();
        Assert.Equal(0x5678, memory.Read<int>(At(6, 2)));
        Assert.Equal(0, memory.Read<int>(At(6, 1)));
        Assert.Equal((2 * Block) - (2 * Page), memory.AllocatedBytes);
        // Who copies memory is told when a page changes, not only when it was taken.
        Assert.Equal(2, log.GetAndClear(bits));
        Assert.Equal(3UL, bits[6 * 512 / 64]);
        using (MemoryPin pin = memory.TryPin(At(7, 9), 10)!)
        {
            Assert.Equal(DiscardResult.Pinned, memory.TakeAway(At(7, 8), 2 * Page));
            Assert.Equal(DiscardResult.Done, memory.TakeAway(At(7), 8 * Page));
        }
    }

    [Fact]
    public void NonsenseIsIgnored()
    {
        Assert.Equal(DiscardResult.Unaligned, memory.TakeAway(new GuestAddress(5), Page));
        Assert.Equal(DiscardResult.Unaligned, memory.TakeAway(At(0), 0));
        Assert.Equal(DiscardResult.NotMemory, memory.TakeAway(At(Blocks), Page));
        Assert.Equal(DiscardResult.NotMemory, memory.TakeAway(At(0), (Blocks + 1) * Block));
        Assert.Equal(DiscardResult.NotMemory, memory.TakeAway(new GuestAddress(ulong.MaxValue - 4095), Page));
        memory.BringBack(new GuestAddress(5), Page);
        memory.BringBack(At(Blocks), Page);
        memory.BringBack(At(0), Block);
        Take(0);
    }

    [Fact]
    public void MappingsAreBounded()
    {
        const ulong Many = 40_000;
        using GuestMemory large = new(hugePages: true, new MemoryRegion(new(0), Many * Block, "ram"));
        for (ulong block = 0; block < Many; block += 2)
            large.TakeAway(At(block, 5), Page);
        large.Settle();
        Assert.InRange(Mappings(), 16_000, 17_000);
        for (ulong block = 1; block < Many; block += 2)
            large.TakeAway(At(block, 5), Page);
        large.BringAllBack();
        Assert.InRange(Mappings(), 1, 100);

        // Those of this memory: other tests map and unmap meanwhile.
        int Mappings() => File.ReadLines("/proc/self/maps").Count(
            line => ulong.Parse(line.AsSpan(0, line.IndexOf('-', StringComparison.Ordinal)), NumberStyles.HexNumber, CultureInfo.InvariantCulture) - (ulong)large.HostBase < Many * Block);
    }

    // Only an administrator is told where pages are, and what they are part of (proc_pid_pagemap(5), admin-guide/mm/pagemap.rst).
    private bool IsHuge(GuestAddress address)
    {
        const ulong Compound = 1UL << 15 | 1UL << 16;
        try
        {
            ulong frame = ReadEntry("/proc/self/pagemap", (ulong)(memory.HostBase + address.Value) / Page) & ((1UL << 55) - 1);
            Assert.SkipWhen(frame == 0, "the host does not tell where pages are");
            return (ReadEntry("/proc/kpageflags", frame) & Compound) != 0;
        }
        catch (Exception e) when (e is UnauthorizedAccessException or IOException)
        {
            Assert.Skip($"the host does not tell what pages are part of: {e.Message}");
            throw;
        }
    }

    private static ulong ReadEntry(string path, ulong index)
    {
        using FileStream file = new(path, FileMode.Open, FileAccess.Read, FileShare.ReadWrite, 0);
        byte[] entry = new byte[8];
        file.Position = (long)(index * 8);
        file.ReadExactly(entry);
        return BitConverter.ToUInt64(entry);
    }
}
