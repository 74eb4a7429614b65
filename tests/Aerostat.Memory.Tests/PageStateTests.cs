using Xunit;

namespace Aerostat.Memory.Tests;

public sealed unsafe class PageStateTests : IDisposable
{
    private const ulong Page = 4096;

    private readonly GuestMemory memory = new(
        new MemoryRegion(new(0), 200 * Page, "a"), new MemoryRegion(new(300 * Page), 100 * Page, "b"));

    public void Dispose() => memory.Dispose();

    private string Map() => string.Join(' ', memory.GetPageRanges().Select(r => $"{r.Start.Page}-{(r.End >> 12) - 1}:{r.State}"));

    [Fact]
    public void States_follow_what_happens_to_the_pages()
    {
        Assert.Equal("0-199:Zero 300-399:Zero", Map());
        memory.TryFill(new(10 * Page), 20 * Page, 1);
        memory.Write(new(399 * Page), 1);
        Assert.Equal("0-9:Zero 10-29:Data 30-199:Zero 300-398:Zero 399-399:Data", Map());
        Assert.Equal(DiscardResult.Done, memory.Discard(new(15 * Page), 5 * Page));
        Assert.Equal(DiscardResult.Done, memory.Discard(new(198 * Page), 2 * Page));
        Assert.Equal("0-9:Zero 10-14:Data 15-19:Discarded 20-29:Data 30-197:Zero 198-199:Discarded 300-398:Zero 399-399:Data", Map());
        Assert.True(memory.MarkHinted(new(12 * Page + 1), 16 * Page));
        Assert.Equal("0-9:Zero 10-12:Data 13-14:Hinted 15-19:Discarded 20-27:Hinted 28-29:Data 30-197:Zero 198-199:Discarded 300-398:Zero 399-399:Data", Map());
        Assert.Equal(new PageTotals(6 * Page, (10 + 168 + 99) * Page, 7 * Page, 10 * Page), memory.GetPageTotals());
        // A guest's write, by whatever path, makes a discarded page data; a notified one takes a hint away.
        memory.HostBase[199 * Page] = 1;
        memory.Write(new(13 * Page), 1);
        memory.Write(new(25 * Page + 4095), (byte)1);
        Assert.Equal("0-9:Zero 10-13:Data 14-14:Hinted 15-19:Discarded 20-24:Hinted 25-25:Data 26-27:Hinted 28-29:Data "
            + "30-197:Zero 198-198:Discarded 199-199:Data 300-398:Zero 399-399:Data", Map());
        memory.ClearHints();
        Assert.Equal(0, memory.Watch[26]);
        Assert.True(memory.TryZero(new(0), 190 * Page));
        Assert.Equal("0-197:Zero 198-198:Discarded 199-199:Data 300-398:Zero 399-399:Data", Map());
    }

    [Fact]
    public void A_part_of_the_map_can_be_asked_for()
    {
        memory.TryFill(new(100 * Page), 100 * Page, 1);
        Assert.Equal([new PageRange(new(99 * Page), Page, PageState.Zero), new PageRange(new(100 * Page), 2 * Page, PageState.Data)],
            memory.GetPageRanges(new(99 * Page + 5), 2 * Page));
        Assert.Equal([new PageRange(new(199 * Page), Page, PageState.Data), new PageRange(new(300 * Page), Page, PageState.Zero)],
            memory.GetPageRanges(new(199 * Page), 102 * Page));
        Assert.Empty(memory.GetPageRanges(new(250 * Page), 10 * Page));
        Assert.Empty(memory.GetPageRanges(new(ulong.MaxValue), ulong.MaxValue));
        Assert.Equal(400 * Page, memory.GetPageRanges(new(0), ulong.MaxValue).Last().End);
    }

    [Fact]
    public void Discarding_returns_memory_and_reads_as_zero()
    {
        memory.TryFill(new(0), 200 * Page, 0xFF);
        Assert.Equal(200 * Page, memory.AllocatedBytes);
        Assert.Equal(DiscardResult.Done, memory.Discard(new(10 * Page), 180 * Page));
        Assert.Equal(20 * Page, memory.AllocatedBytes);
        Assert.Equal(0xFF, memory.Read<byte>(new(10 * Page - 1)));
        Assert.Equal(0, memory.Read<byte>(new(10 * Page)));
        Assert.Equal(0, memory.Read<byte>(new(190 * Page - 1)));
        Assert.Equal(0xFF, memory.Read<byte>(new(190 * Page)));
    }

    [Fact]
    public void A_page_that_is_said_to_be_a_hole_holds_nothing()
    {
        Assert.SkipUnless(memory.IsHole(0x5000), "this host does not tell (cachestat(2) is of Linux 6.5)");
        memory.Write(new GuestAddress(0x5008), 1);
        Assert.False(memory.IsHole(0x5000));
        Assert.True(memory.IsHole(0x6000));
        // Zeros are contents too, and a page that has been looked at is asked for again after it was given back.
        Assert.True(memory.TryFill(new GuestAddress(0x5000), 4096, 0));
        Assert.False(memory.IsHole(0x5000));
        Assert.Equal(DiscardResult.Done, memory.Discard(new GuestAddress(0x5000), 0x1000));
        Assert.True(memory.IsHole(0x5abc));
    }

    [Fact]
    public void Bad_ranges_are_refused_without_effect()
    {
        memory.TryFill(new(0), 200 * Page, 1);
        Assert.Equal(DiscardResult.Unaligned, memory.Discard(new(1), Page));
        Assert.Equal(DiscardResult.Unaligned, memory.Discard(new(0), 100));
        Assert.Equal(DiscardResult.Unaligned, memory.Discard(new(0), 0));
        Assert.Equal(DiscardResult.NotMemory, memory.Discard(new(199 * Page), 2 * Page));
        Assert.Equal(DiscardResult.NotMemory, memory.Discard(new(250 * Page), Page));
        Assert.Equal(DiscardResult.NotMemory, memory.Discard(new(Page), ulong.MaxValue - 4095));
        Assert.False(memory.MarkHinted(new(199 * Page), 2 * Page));
        Assert.Equal(200 * Page, memory.AllocatedBytes);
    }

    [Fact]
    public void Pinned_pages_stay()
    {
        memory.TryFill(new(0), 200 * Page, 1);
        Assert.Null(memory.TryPin(new(199 * Page), 2 * Page));
        MemoryPin pin = memory.TryPin(new(10 * Page + 100), 8)!, same = memory.TryPin(new(10 * Page + 4000), 200)!;
        Assert.Equal(DiscardResult.Pinned, memory.Discard(new(0), 20 * Page));
        Assert.Equal(DiscardResult.Pinned, memory.Discard(new(11 * Page), Page));
        Assert.Equal(DiscardResult.Done, memory.Discard(new(0), 10 * Page));
        Assert.Equal(190 * Page, memory.AllocatedBytes);
        Assert.True(memory.TryZero(new(0), 40 * Page));
        Assert.Equal(-1, new Span<byte>(memory.HostBase, 40 * 4096).IndexOfAnyExcept((byte)0));
        same.Dispose();
        Assert.Equal(DiscardResult.Pinned, memory.Discard(new(10 * Page), Page));
        pin.Dispose();
        pin.Dispose();
        Assert.Equal(DiscardResult.Done, memory.Discard(new(10 * Page), Page));
    }

    [Fact]
    public void Discarding_ends_a_hint()
    {
        int tightened = 0;
        memory.WatchTightened += () => tightened++;
        memory.TryFill(new(0), 2 * Page, 1);
        memory.MarkHinted(new(0), 2 * Page);
        Assert.Equal(1, tightened);
        Assert.True(memory.MarkHinted(new(1), Page));
        Assert.Equal(1, tightened);
        memory.Discard(new(0), Page);
        Assert.Equal(0, memory.Watch[0]);
        memory.HostBase[0] = 1;
        Assert.StartsWith("0-0:Data 1-1:Hinted 2-199:Zero", Map());
    }

    // Random operations against an array of states.
    [Theory]
    [InlineData(1)]
    [InlineData(2)]
    public void Random_operations_agree_with_a_simple_model(int seed)
    {
        Random random = new(seed);
        PageState[] model = Enumerable.Repeat(PageState.Zero, 400).ToArray();
        for (int i = 0; i < 500; i++)
        {
            int first = random.Next(2) == 0 ? random.Next(200) : random.Next(300, 400);
            int count = 1 + random.Next(Math.Min(70, (first < 200 ? 200 : 400) - first));
            GuestAddress address = new((ulong)first * Page);
            ulong length = (ulong)count * Page;
            switch (random.Next(4))
            {
                case 0:
                    memory.TryFill(address, length, 1);
                    Array.Fill(model, PageState.Data, first, count);
                    break;
                case 1:
                    memory.Discard(address, length);
                    Array.Fill(model, PageState.Discarded, first, count);
                    break;
                case 2 when count >= 16:
                    memory.TryZero(address, length);
                    Array.Fill(model, PageState.Zero, first, count);
                    break;
                case 3:
                    // Only held pages, so that the model needs no memory of hints for others.
                    for (int page = first; page < first + count; page++)
                        if (model[page] == PageState.Data && memory.MarkHinted(new((ulong)page * Page), Page))
                            model[page] = PageState.Hinted;
                    break;
            }
            if (i % 10 != 0)
                continue;
            foreach (PageRange range in memory.GetPageRanges())
                for (ulong page = range.Start.Page; page < range.End >> 12; page++)
                    Assert.Equal(model[page], range.State);
            Assert.Equal(300 * Page, memory.GetPageRanges().Aggregate(0UL, (sum, r) => sum + r.Length));
        }
    }
}
