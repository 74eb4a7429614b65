using Xunit;

namespace Aerostat.Memory.Tests;

public sealed unsafe class DirtyLogTests
{
    private const ulong Page = 4096;

    private static List<int> Harvest(DirtyLog log)
    {
        ulong[] bitmap = new ulong[log.WordCount];
        bitmap.AsSpan().Fill(ulong.MaxValue);
        long count = log.GetAndClear(bitmap);
        List<int> pages = [];
        for (int i = 0; i < bitmap.Length * 64; i++)
            if ((bitmap[i >> 6] >> (i & 63) & 1) != 0)
                pages.Add(i);
        Assert.Equal(count, pages.Count);
        return pages;
    }

    [Fact]
    public void Only_the_armed_region_is_logged_and_each_page_once()
    {
        using GuestMemory memory = new(new MemoryRegion(new(0), 10 * Page, "a"), new MemoryRegion(new(13 * Page), 131 * Page, "b"));
        int tightened = 0;
        memory.WatchTightened += () => tightened++;
        memory.Write(new(14 * Page), 1);
        using DirtyLog log = memory.StartDirtyLog(memory.Regions[1]);
        Assert.Equal(1, tightened);
        Assert.Equal(3, log.WordCount);
        Assert.Equal(0, memory.Watch[9]);
        Assert.Equal((byte)PageWatch.Clean, memory.Watch[13]);
        Assert.Equal((byte)PageWatch.Clean, memory.Watch[143]);
        Assert.Equal(0, memory.Watch[12]);
        Assert.Empty(Harvest(log));
        Assert.Equal(1, tightened);
        memory.Write(new(9 * Page), 1);
        memory.Write(new(13 * Page), 1);
        memory.Write(new(13 * Page), 2);
        memory.TryFill(new(76 * Page + 4095), 2, 1);
        memory.Write(new(144 * Page - 1), (byte)1);
        Assert.Equal(0, memory.Watch[13]);
        Assert.Equal(4, log.CountDirty());
        Assert.Equal([0, 63, 64, 130], Harvest(log));
        Assert.Equal(2, tightened);
        Assert.Equal((byte)PageWatch.Clean, memory.Watch[13]);
        Assert.Empty(Harvest(log));
        memory.Write(new(13 * Page), 3);
        Assert.Equal([0], Harvest(log));
        log.Stop();
        log.Stop();
        Assert.Equal(0, memory.Watch[13]);
        Assert.Equal(0, memory.Watch[143]);
        Assert.Throws<ObjectDisposedException>(() => log.GetAndClear(new ulong[3]));
    }

    [Fact]
    public void Two_regions_are_logged_apart_and_a_second_log_of_one_is_refused()
    {
        using GuestMemory memory = new(new MemoryRegion(new(0), 4 * Page, "a"), new MemoryRegion(new(4 * Page), 4 * Page, "b"));
        using DirtyLog a = memory.StartDirtyLog(memory.Regions[0]), b = memory.StartDirtyLog(memory.Regions[1]);
        Assert.Throws<InvalidOperationException>(() => memory.StartDirtyLog(memory.Regions[0]));
        Assert.Throws<ArgumentException>(() => memory.StartDirtyLog(new MemoryRegion(new(0), 8 * Page, "other")));
        Assert.Throws<ArgumentException>(() => a.GetAndClear([]));
        memory.TryFill(new(3 * Page), 2 * Page, 1);
        Assert.Equal([3], Harvest(a));
        a.Stop();
        memory.TryFill(new(0), 8 * Page, 1);
        using DirtyLog again = memory.StartDirtyLog(memory.Regions[0]);
        Assert.Empty(Harvest(again));
        Assert.Equal([0, 1, 2, 3], Harvest(b));
    }

    [Fact]
    public void Code_tracking_and_dirty_log_do_not_disturb_each_other()
    {
        using GuestMemory memory = new(new MemoryRegion(new(0), 4 * Page, "a"));
        memory.MarkCode(Page, 64);
        using DirtyLog log = memory.StartDirtyLog(memory.Regions[0]);
        Assert.Equal((byte)(PageWatch.Code | PageWatch.Clean), memory.Watch[1]);
        Assert.False(memory.NotifyWrite(Page + 128, 1));
        Assert.Equal((byte)PageWatch.Code, memory.Watch[1]);
        Assert.Equal([1], Harvest(log));
        Assert.True(memory.NotifyWrite(Page, 1));
        Assert.Equal(0, memory.Watch[1]);
        Assert.Equal([1], Harvest(log));
        memory.MarkCode(Page, 64);
        log.Stop();
        Assert.Equal((byte)PageWatch.Code, memory.Watch[1]);
    }

    [Fact]
    public void Discarding_dirties()
    {
        using GuestMemory memory = new(new MemoryRegion(new(0), 4 * Page, "a"));
        memory.TryFill(new(0), 4 * Page, 1);
        using DirtyLog log = memory.StartDirtyLog(memory.Regions[0]);
        memory.Discard(new(Page), 2 * Page);
        Assert.Equal([1, 2], Harvest(log));
    }

    [Fact]
    public void A_log_may_outlive_its_memory()
    {
        GuestMemory memory = new(new MemoryRegion(new(0), 4 * Page, "a"));
        DirtyLog log = memory.StartDirtyLog(memory.Regions[0]);
        memory.Dispose();
        log.Dispose();
    }

    // Simulated processors with a fast write path of their own, and a device that writes through the checked accessors, against a copier that takes
    // the dirty pages and copies them. At rest, the last round must make the copy equal.
    [Theory]
    [InlineData(1)]
    [InlineData(2)]
    public void Concurrent_writers_lose_no_page(int seed)
    {
        const int Pages = 96, Processors = 2, Rounds = 300;
        using GuestMemory memory = new(new MemoryRegion(new(0), Pages * Page, "ram"));
        var fast = Enumerable.Range(0, Processors).Select(_ => new bool[Pages]).ToArray();
        bool running = true;
        long fastWrites = 0;
        memory.WatchTightened += () =>
        {
            foreach (bool[] paths in fast)
                // A processor holds its own lock while in the guest.
                lock (paths)
                    Array.Clear(paths);
        };
        List<Thread> threads = Enumerable.Range(0, Processors).Select(id => new Thread(() =>
        {
            Random random = new(seed * 10 + id);
            bool[] mine = fast[id];
            while (Volatile.Read(ref running))
            {
                lock (mine)
                {
                    for (int i = 0; i < 50; i++)
                    {
                        int page = random.Next(Pages);
                        ulong address = ((ulong)page * Page) + ((ulong)random.Next(512) * 8);
                        *(ulong*)(memory.HostBase + address) = (ulong)random.NextInt64();
                        if (mine[page])
                            fastWrites++;
                        else
                        {
                            memory.NotifyWrite(address, 8);
                            mine[page] = memory.Watch[page] == 0;
                        }
                    }
                }
            }
        })).ToList();
        threads.Add(new Thread(() =>
        {
            Random random = new(seed * 10 + 9);
            while (Volatile.Read(ref running))
                memory.TryWrite(new(((ulong)random.Next(Pages) * Page) + ((ulong)random.Next(512) * 8)), random.NextInt64());
        }));
        foreach (Thread t in threads)
            t.Start();
        byte[] copy = new byte[Pages * Page];
        ulong[] bitmap = new ulong[2];
        using DirtyLog log = memory.StartDirtyLog(memory.Regions[0]);
        memory.TryRead(new(0), copy);
        void CopyDirty()
        {
            log.GetAndClear(bitmap);
            for (int page = 0; page < Pages; page++)
                if ((bitmap[page >> 6] >> (page & 63) & 1) != 0)
                    memory.TryRead(new((ulong)page * Page), copy.AsSpan(page * 4096, 4096));
        }
        for (int round = 0; round < Rounds; round++)
            CopyDirty();
        Volatile.Write(ref running, false);
        foreach (Thread t in threads)
            t.Join();
        CopyDirty();
        Assert.True(memory.TryGetSpan(new(0), copy.Length, out Span<byte> now));
        Assert.True(now.SequenceEqual(copy));
        Assert.True(fastWrites > 0);
    }
}
