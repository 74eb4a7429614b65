using Xunit;

namespace Aerostat.Memory.Tests;

public sealed unsafe class CodeTrackingTests : IDisposable
{
    private readonly GuestMemory memory = new(new MemoryRegion(new(0), 64 << 12, "ram"));

    public void Dispose() => memory.Dispose();

    // Marked range, written range (both within page 1 unless longer), whether the write hits a marked 64-byte chunk.
    [Theory]
    [InlineData(0, 1, 0, 1, true)]
    [InlineData(0, 1, 63, 1, true)]
    [InlineData(0, 64, 64, 1, false)]
    [InlineData(0, 65, 64, 1, true)]
    [InlineData(63, 1, 64, 8, false)]
    [InlineData(63, 2, 127, 1, true)]
    [InlineData(63, 2, 128, 1, false)]
    [InlineData(64, 1, 63, 1, false)]
    [InlineData(64, 1, 63, 2, true)]
    [InlineData(64, 1, 60, 8, true)]
    [InlineData(4095, 1, 4095, 1, true)]
    [InlineData(4095, 1, 4031, 1, false)]
    [InlineData(4095, 1, 4032, 1, true)]
    [InlineData(4095, 15, 4032, 1, true)]
    [InlineData(0, 4096, 2000, 1, true)]
    [InlineData(0, 4096, 4095, 1, true)]
    [InlineData(100, 10, 0, 4096, true)]
    [InlineData(4095, 1, -4096, 4096, false)]
    [InlineData(0, 1, -4096, 4097, true)]
    [InlineData(0, 1, -8, 8, false)]
    [InlineData(0, 1, -7, 8, true)]
    [InlineData(4095, 1, 4096, 8, false)]
    [InlineData(4095, 1, 4095, 8192, true)]
    [InlineData(100, 10, 100, 0, false)]
    public void A_write_hits_when_it_touches_a_marked_chunk(int mark, uint length, int write, ulong count, bool hits)
    {
        Assert.False(memory.TryMarkCode((ulong)(4096 + mark), length));
        Assert.True(memory.MarkCode((ulong)(4096 + mark), length));
        Assert.False(memory.MarkCode((ulong)(4096 + mark), length));
        Assert.True(memory.TryMarkCode((ulong)(4096 + mark), length));
        Assert.Equal((byte)PageWatch.Code, memory.Watch[1]);
        Assert.Equal(hits, memory.NotifyWrite((ulong)(4096 + write), count));
        Assert.Equal(hits ? 1u : 0u, memory.CodeGeneration[1]);
        Assert.Equal(hits ? 0 : (byte)PageWatch.Code, memory.Watch[1]);
        Assert.Equal(0u, memory.CodeGeneration[0] + memory.CodeGeneration[2]);
    }

    [Fact]
    public void Marking_more_of_a_watched_page_needs_no_ceremony()
    {
        Assert.True(memory.MarkCode(0x1000, 16));
        Assert.True(memory.TryMarkCode(0x1100, 16));
        Assert.True(memory.NotifyWrite(0x110F, 1));
        Assert.False(memory.TryMarkCode(0x1000, 16));
    }

    [Fact]
    public void Unwatched_writes_do_nothing()
    {
        Assert.False(memory.NotifyWrite(0, 64 << 12));
        Assert.False(memory.NotifyWrite(0, 0));
        Assert.False(memory.NotifyHostWrite(0x1FFF, 2));
    }

    [Fact]
    public void A_long_write_finds_every_watched_page()
    {
        foreach (ulong page in (ulong[])[0, 7, 8, 63])
            memory.MarkCode(page << 12, 1);
        Assert.True(memory.TryFill(new(0), 64 << 12, 1));
        for (int page = 0; page < 64; page++)
        {
            Assert.Equal(page is 0 or 7 or 8 or 63 ? 1u : 0u, memory.CodeGeneration[page]);
            Assert.Equal(0, memory.Watch[page]);
        }
    }

    [Fact]
    public void The_checked_accessors_notify()
    {
        Action[] writes =
        [
            () => memory.Write(new(0x1004), (byte)1),
            () => memory.Write(new(0x1000), [1, 2, 3]),
            () => memory.TryWrite(new(0x0FFF), [1, 2]),
            () => memory.TryFill(new(0x1000), 1, 1),
            () => memory.TryZero(new(0x1000), 1),
            () => memory.TryZero(new(0), 64 << 12),
            () => memory.TryCopy(new(0x3000), new(0x1000), 8),
            () => memory.Discard(new(0x1000), 4096),
        ];
        foreach (Action write in writes)
        {
            uint before = memory.CodeGeneration[1];
            memory.MarkCode(0x1000, 64);
            write();
            Assert.Equal(before + 1, memory.CodeGeneration[1]);
        }
    }

    // Simulated processors decode, cache and overwrite code; a device thread writes as well. When all have come to rest, whatever is
    // still valid by its generation must be what memory holds.
    [Fact]
    public void Concurrent_decoding_and_writing_leave_no_stale_code()
    {
        const int Pages = 8, Processors = 3, Steps = 30_000;
        using ReaderWriterLockSlim guest = new();
        var fast = new bool[Processors][];
        var caches = new (bool Used, uint Generation, ulong Bytes)[Processors][];
        Thread[] threads = Enumerable.Range(0, Processors).Select(id => new Thread(() =>
        {
            Random random = new(id);
            bool[] mine = fast[id] = new bool[Pages];
            var cache = caches[id] = new (bool, uint, ulong)[Pages * 64];
            for (int i = 0; i < Steps; i++)
            {
                int page = random.Next(Pages), chunk = random.Next(64);
                ulong address = ((ulong)page << 12) + ((ulong)chunk << 6);
                ref ulong cell = ref *(ulong*)(memory.HostBase + address);
                if (random.Next(2) == 0)
                {
                    uint generation = Volatile.Read(ref memory.CodeGeneration[page]);
                    guest.EnterReadLock();
                    bool marked = memory.TryMarkCode(address, 64);
                    if (marked)
                        cache[(page * 64) + chunk] = (true, generation, Volatile.Read(ref cell));
                    guest.ExitReadLock();
                    if (marked)
                        continue;
                    guest.EnterWriteLock();
                    generation = Volatile.Read(ref memory.CodeGeneration[page]);
                    if (memory.MarkCode(address, 64))
                        foreach (bool[] others in fast)
                            if (others != null)
                                others[page] = false;
                    cache[(page * 64) + chunk] = (true, generation, Volatile.Read(ref cell));
                    guest.ExitWriteLock();
                    continue;
                }
                guest.EnterReadLock();
                Volatile.Write(ref cell, (ulong)random.NextInt64());
                if (!mine[page])
                {
                    memory.NotifyWrite(address, 8);
                    mine[page] = memory.Watch[page] == 0;
                }
                guest.ExitReadLock();
            }
        })).ToArray();
        bool running = true;
        Thread device = new(() =>
        {
            Random random = new(99);
            while (Volatile.Read(ref running))
                memory.TryWrite(new(((ulong)random.Next(Pages) << 12) + ((ulong)random.Next(64) << 6)), (ulong)random.NextInt64());
        });
        foreach (Thread t in threads)
            t.Start();
        device.Start();
        foreach (Thread t in threads)
            t.Join();
        Volatile.Write(ref running, false);
        device.Join();
        int valid = 0;
        foreach (var cache in caches)
            for (int i = 0; i < cache.Length; i++)
                if (cache[i].Used && cache[i].Generation == memory.CodeGeneration[i / 64])
                {
                    valid++;
                    Assert.Equal(memory.Read<ulong>(new((ulong)i << 6)), cache[i].Bytes);
                }
        Assert.True(valid > 0 || memory.CodeGeneration[0] > 0);
    }
}
