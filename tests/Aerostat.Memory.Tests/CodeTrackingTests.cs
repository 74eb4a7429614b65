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

    // Why a decoder reads the generation before it marks: after this write the page is unwatched, so code tagged with the new generation
    // would never be invalidated.
    [Fact]
    public void A_write_between_marking_and_decoding_shows_in_the_generation_read_before()
    {
        memory.MarkCode(0x1000, 16);
        uint generation = memory.CodeGeneration[1];
        Assert.True(memory.TryMarkCode(0x1000, 16));
        memory.Write(new(0x1020), 1);
        Assert.Equal(0, memory.Watch[1]);
        Assert.NotEqual(generation, memory.CodeGeneration[1]);
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

    // Simulated processors decode, cache and overwrite code; a device thread writes as well. Whenever all are parked, whatever is still
    // valid by its generation must be what memory holds.
    [Fact]
    public void Concurrent_decoding_and_writing_leave_no_stale_code()
    {
        const int Processors = 3, Steps = 20_000, CheckEvery = 50;
        Simulation simulation = new(memory, Processors);
        Thread[] threads = Enumerable.Range(0, Processors).Select(id => new Thread(() =>
        {
            Random random = new(id);
            for (int i = 0; i < Steps; i++)
            {
                if (i % CheckEvery == 0)
                    simulation.Check();
                else if (random.Next(3) == 0)
                    simulation.Decode(id, random);
                else
                    simulation.Store(id, random);
            }
        })).ToArray();
        bool running = true;
        Thread device = new(() =>
        {
            Random random = new(99);
            while (Volatile.Read(ref running))
            {
                simulation.DeviceStore(random);
                Thread.Yield();
            }
        });
        foreach (Thread t in threads)
            t.Start();
        device.Start();
        foreach (Thread t in threads)
            t.Join();
        Volatile.Write(ref running, false);
        device.Join();
        simulation.Check();
        Assert.Equal(0, simulation.Stale);
        Assert.True(simulation.Valid > 1000, "nothing was tried");
    }

    private sealed class Simulation(GuestMemory memory, int processors)
    {
        private const int Pages = 4, CodeChunks = 8;

        // Read lock: inside the guest. Write lock: everybody else is out.
        private readonly ReaderWriterLockSlim guest = new();
        private readonly bool[][] fast = [.. Enumerable.Range(0, processors).Select(_ => new bool[Pages])];
        private readonly (bool Used, uint Generation, ulong Bytes)[][] caches =
            [.. Enumerable.Range(0, processors).Select(_ => new (bool, uint, ulong)[Pages * CodeChunks])];

        public int Stale { get; private set; }

        public int Valid { get; private set; }

        public void Decode(int id, Random random)
        {
            int page = random.Next(Pages), chunk = random.Next(CodeChunks);
            ulong address = Address(page, chunk);
            ref var entry = ref caches[id][(page * CodeChunks) + chunk];
            guest.EnterReadLock();
            uint generation = Volatile.Read(ref memory.CodeGeneration[page]);
            bool marked = memory.TryMarkCode(address, 64);
            if (marked)
                entry = (true, generation, Cell(address));
            guest.ExitReadLock();
            if (marked)
                return;
            guest.EnterWriteLock();
            generation = Volatile.Read(ref memory.CodeGeneration[page]);
            if (memory.MarkCode(address, 64))
                foreach (bool[] paths in fast)
                    paths[page] = false;
            entry = (true, generation, Cell(address));
            guest.ExitWriteLock();
        }

        public void Store(int id, Random random)
        {
            // Mostly data that shares its page with code: the page stays watched, and fast paths come and go.
            int page = random.Next(Pages), chunk = random.Next(8) == 0 ? random.Next(CodeChunks) : random.Next(CodeChunks, 64);
            ulong address = Address(page, chunk);
            guest.EnterReadLock();
            Cell(address) = (ulong)random.NextInt64();
            if (!fast[id][page])
            {
                memory.NotifyWrite(address, 8);
                fast[id][page] = memory.Watch[page] == 0;
            }
            guest.ExitReadLock();
        }

        public void DeviceStore(Random random)
        {
            guest.EnterReadLock();
            memory.TryWrite(new(Address(random.Next(Pages), random.Next(64))), (ulong)random.NextInt64());
            guest.ExitReadLock();
        }

        public void Check()
        {
            guest.EnterWriteLock();
            foreach (var cache in caches)
                for (int i = 0; i < cache.Length; i++)
                    if (cache[i].Used && cache[i].Generation == memory.CodeGeneration[i / CodeChunks])
                    {
                        Valid++;
                        if (Cell(Address(i / CodeChunks, i % CodeChunks)) != cache[i].Bytes)
                            Stale++;
                    }
            guest.ExitWriteLock();
        }

        private static ulong Address(int page, int chunk) => ((ulong)page << 12) + ((ulong)chunk << 6);

        private ref ulong Cell(ulong address) => ref *(ulong*)(memory.HostBase + address);
    }
}
