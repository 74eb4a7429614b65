using Aerostat.Memory;

namespace Aerostat.Virtio.Tests;

/// <summary>Rings, by a driver of our own.</summary>
public sealed class QueueTests : IDisposable
{
    private const ulong Packed = VirtioFeatures.RingPacked, Indirect = VirtioFeatures.IndirectDescriptors, Events = VirtioFeatures.EventIndex;
    private const ulong Data = 0x40_0000, Hole = 0x100_0000;

    private readonly GuestMemory _memory = new(new MemoryRegion(new(0), Hole, "low"), new MemoryRegion(new(Hole + 0x10_0000), 0x10_0000, "high"));
    private readonly ListLog _log = new();
    private readonly EchoDevice _device;
    private readonly Driver _driver;

    public QueueTests()
    {
        _device = new EchoDevice(new VirtioContext(_memory, _log));
        _driver = new Driver(_memory, _device);
    }

    public static TheoryData<ulong> Rings => [0, Indirect, Events, Indirect | Events, Packed, Packed | Indirect, Packed | Events, Packed | Indirect | Events];

    public void Dispose()
    {
        _device.Stop();
        _memory.Dispose();
    }

    [Theory, MemberData(nameof(Rings))]
    public void ChainsComeBackInOrderAndWhole(ulong features)
    {
        DriverQueue queue = _driver.Start(features, size: 8).Queues[0];
        bool indirect = (features & Indirect) != 0;
        var random = new Random(7);
        byte[] text = new byte[300];
        for (int round = 0; round < 500; round++)
        {
            random.NextBytes(text);
            _driver.Fill(Data, text);
            int cut = random.Next(1, 299), cut2 = random.Next(1, 299);
            ushort id = queue.Add(
                indirect && round % 3 != 0,
                new Buffer(Data, (uint)cut, false), new Buffer(Data + (ulong)cut, (uint)(300 - cut), false),
                new Buffer(Data + 0x1000, (uint)cut2, true), new Buffer(Data + 0x2000, (uint)(300 - cut2), true));
            queue.Kick();
            _driver.Settle();
            Assert.Equal((id, 300u), queue.MustTakeUsed());
            Assert.Null(queue.TakeUsed());
            Assert.Equal(text, (byte[])[.. _driver.Bytes(Data + 0x1000, cut2), .. _driver.Bytes(Data + 0x2000, 300 - cut2)]);
        }
        Assert.Empty(_log.Lines);
    }

    [Theory, MemberData(nameof(Rings))]
    public void ManyChainsAtOnce(ulong features)
    {
        DriverQueue queue = _driver.Start(features, size: 16).Queues[1];
        for (int round = 0; round < 100; round++)
        {
            HashSet<ushort> expected = [];
            for (int i = 0; i <= round % 8; i++)
                expected.Add(queue.Add(new Buffer(Data, 8, false), new Buffer(Data + 0x1000 + (8 * (ulong)i), 8, true)));
            queue.Kick();
            _driver.Settle();
            while (queue.TakeUsed() is { } used)
                Assert.True(expected.Remove(used.Id));
            Assert.Empty(expected);
        }
    }

    [Theory]
    [InlineData(0UL)]
    [InlineData(Packed)]
    public void InterruptsAreSuppressed(ulong ring)
    {
        DriverQueue queue = _driver.Start(ring).Queues[0];
        queue.Suppress(null);
        Echo(queue);
        Assert.Equal(0, _driver.Line.Edges);
        queue.Suppress(1);
        Echo(queue);
        Assert.Equal(1, _driver.Line.Edges);
        Assert.Equal(1u, _driver.Read(0x60));
        _driver.Write(0x64, 1);
        Assert.False(_driver.Line.Level);
    }

    [Theory]
    [InlineData(Events)]
    [InlineData(Events | Packed)]
    public void TheEventIndexSaysWhenToInterrupt(ulong features)
    {
        DriverQueue queue = _driver.Start(features, size: 8).Queues[0];
        queue.Suppress(1);
        Echo(queue);
        int edges = _driver.Line.Edges;
        Assert.Equal(1, edges);
        // From here on one for every third buffer. At the end of a packed ring the device may be generous.
        for (int round = 0; round < 20; round++)
        {
            queue.Suppress(3 * ((features & Packed) != 0 ? 2 : 1));
            int before = _driver.Line.Edges;
            Echo(queue);
            Echo(queue);
            int early = _driver.Line.Edges - before;
            Echo(queue);
            Assert.InRange(early, 0, (features & Packed) != 0 ? 1 : 0);
            Assert.InRange(_driver.Line.Edges - before, 1, (features & Packed) != 0 ? 2 : 1);
        }
    }

    [Fact]
    public void EveryNewCauseMakesAnEdge()
    {
        DriverQueue queue = _driver.Start().Queues[0];
        Echo(queue);
        Echo(queue);
        Assert.Equal(2, _driver.Line.Edges);
        _device.ChangeConfig(3);
        Assert.Equal(3u, _driver.Read(0x60));
        _driver.Write(0x64, 1);
        Assert.True(_driver.Line.Level);
        _driver.Write(0x64, 2);
        Assert.False(_driver.Line.Level);
    }

    [Fact]
    public void ALongChainMayBeIndirectOnly()
    {
        DriverQueue queue = _driver.Start(Indirect, size: 4).Queues[0];
        Buffer[] many = [.. Enumerable.Range(0, 16).Select(i => new Buffer(Data + (ulong)(i * 16), 16, false)), new Buffer(Data + 0x1000, 256, true)];
        _driver.Fill(Data, Enumerable.Range(0, 256).Select(i => (byte)i).ToArray());
        queue.Add(true, many);
        queue.Kick();
        _driver.Settle();
        Assert.Equal(256u, queue.MustTakeUsed().Written);
        Assert.Equal(_driver.Bytes(Data, 256), _driver.Bytes(Data + 0x1000, 256));
    }

    /// <summary>What is wrong, the features, and how to make it.</summary>
    public static TheoryData<string, ulong> Wrongs
    {
        get
        {
            TheoryData<string, ulong> data = [];
            foreach (string name in s_wrongs.Keys)
                data.Add(name, name.StartsWith("packed", StringComparison.Ordinal) ? Packed | Indirect : name.Contains("without", StringComparison.Ordinal) ? 0 : Indirect);
            return data;
        }
    }

    private static readonly Dictionary<string, Action<DriverQueue>> s_wrongs = new()
    {
        ["not memory"] = q => q.Add(new Buffer(Hole, 1, true)),
        ["half in the hole"] = q => q.Add(new Buffer(Hole - 8, 16, true)),
        ["at the end of the address space"] = q => q.Add(new Buffer(ulong.MaxValue - 3, 8, false)),
        ["4 GiB"] = q => q.Add(new Buffer(0, uint.MaxValue, true)),
        ["readable behind writable"] = q => q.Add(new Buffer(Data, 8, true), new Buffer(Data, 8, false)),
        ["head beyond the table"] = q => q.MakeAvailable(q.Size),
        ["next beyond the table"] = q => Poke(q, flags: 1, next: 4096),
        ["loop of one"] = q => Poke(q, flags: 1, next: 0),
        ["index far ahead"] = q => q.Put<ushort>(q.DriverArea + 2, 200),
        ["indirect without the feature"] = q => q.Add(true, new Buffer(Data, 8, true)),
        ["indirect with next"] = q => Poke(q, flags: 5, next: 1),
        ["indirect table of odd length"] = q => Poke(q, flags: 4, length: 24),
        ["indirect table without entries"] = q => Poke(q, flags: 4, length: 0),
        ["indirect table in the hole"] = q => Poke(q, flags: 4, address: Hole),
        ["indirect in indirect"] = q => PokeTable(q, flags: 4, next: 0),
        ["indirect loop"] = q => PokeTable(q, flags: 1, next: 0),
        ["indirect next beyond the table"] = q => PokeTable(q, flags: 1, next: 7),
        ["packed: chain longer than the ring"] = q =>
        {
            for (uint i = 0; i < q.Size; i++)
            {
                q.Put(q.Descriptors + (16 * i), Data);
                q.Put(q.Descriptors + (16 * i) + 8, 1u);
                q.Put(q.Descriptors + (16 * i) + 14, (ushort)0x81);
            }
        },
        ["packed: indirect behind another"] = q =>
        {
            q.Put(q.Descriptors + 16 + 14, (ushort)4);
            q.Put(q.Descriptors, Data);
            q.Put(q.Descriptors + 8, 16u);
            q.Put(q.Descriptors + 14, (ushort)0x81);
        },
        ["packed: not memory"] = q => q.Add(new Buffer(Hole, 1, true)),
        ["packed: indirect table too long"] = q =>
        {
            q.Put(q.Descriptors, Data);
            q.Put(q.Descriptors + 8, 16u * 2000);
            q.Put(q.Descriptors + 14, (ushort)0x84);
        },
    };

    private static void Poke(DriverQueue q, ushort flags, ushort next = 0, ulong address = Data, uint length = 16)
    {
        q.Put(q.Descriptors, address);
        q.Put(q.Descriptors + 8, length);
        q.Put(q.Descriptors + 12, flags);
        q.Put(q.Descriptors + 14, next);
        q.MakeAvailable(0);
    }

    private static void PokeTable(DriverQueue q, ushort flags, ushort next)
    {
        q.Put(Data, Data);
        q.Put(Data + 8, 4u);
        q.Put(Data + 12, flags);
        q.Put(Data + 14, next);
        Poke(q, flags: 4, length: 32);
    }

    [Theory, MemberData(nameof(Wrongs))]
    public void ABrokenChainNeedsAReset(string what, ulong features)
    {
        DriverQueue queue = _driver.Start(features).Queues[0];
        s_wrongs[what](queue);
        queue.Kick();
        _driver.Settle();
        Assert.True((_driver.Status & VirtioStatus.NeedsReset) != 0, what);
        Assert.Equal(2u, _driver.Read(0x60));
        Assert.Single(_log.Lines);
        Assert.Null(queue.TakeUsed());
        // Nothing is done any more, and nothing more is said.
        queue.Kick();
        _driver.Settle();
        Assert.Single(_log.Lines);
        Assert.True((_driver.Status & VirtioStatus.DriverOk) != 0);
        // A reset makes all well.
        Echo(_driver.Start(features).Queues[0]);
        Assert.Equal((VirtioStatus)15, _driver.Status);
    }

    [Fact]
    public void ComplaintsAreFew()
    {
        for (int i = 0; i < 1000; i++)
        {
            DriverQueue queue = _driver.Start().Queues[0];
            queue.Add(new Buffer(Hole, 1, true));
            queue.Kick();
            _driver.Settle();
        }
        Assert.InRange(_log.Lines.Count, 8, 20);
        Assert.Equal(1000, _device.Complaints);
    }

    [Theory]
    [InlineData(0UL)]
    [InlineData(Packed | Events)]
    public void AQueueGoesOnWhereItWasSaved(ulong features)
    {
        DriverQueue queue = _driver.Start(features, size: 8).Queues[0];
        for (int i = 0; i < 11; i++)
            Echo(queue);
        _device.Quiesce();
        ushort id = queue.Add(new Buffer(Data, 8, false), new Buffer(Data + 0x1000, 8, true));
        queue.Kick();
        VirtioDeviceSavedState state = System.Text.Json.JsonSerializer.Deserialize<VirtioDeviceSavedState>(System.Text.Json.JsonSerializer.Serialize(_device.Save()))!;
        EchoDevice other = new(new VirtioContext(_memory));
        CountingLine line = new();
        VirtioMmio registers = new(other, line);
        other.Restore(state);
        Assert.Null(queue.TakeUsed());
        other.Resume();
        other.WaitUntilIdle();
        Assert.Equal((id, 8u), queue.MustTakeUsed());
        Assert.True(line.Level);
        Assert.Equal((uint)_driver.Status, (uint)registers.ReadMmio(0x70, 4));
        other.Stop();
    }

    private void Echo(DriverQueue queue)
    {
        ushort id = queue.Add(new Buffer(Data, 8, false), new Buffer(Data + 0x1000, 8, true));
        queue.Kick();
        _driver.Settle();
        Assert.Equal((id, 8u), queue.MustTakeUsed());
    }
}
