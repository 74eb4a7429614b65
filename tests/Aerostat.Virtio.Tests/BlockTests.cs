using System.Buffers.Binary;
using Aerostat.Memory;
using Aerostat.Storage;

namespace Aerostat.Virtio.Tests;

/// <summary>The block device by a driver of our own, and the raw disk under it.</summary>
public sealed class BlockTests : IDisposable
{
    private const uint In = 0, Out = 1, Flush = 4, GetId = 8, Discard = 11, WriteZeroes = 13;
    private const byte Ok = 0, Error = 1, Unsupported = 2;
    private const ulong Header = 0x40_0000, Status = 0x41_0000, Data = 0x42_0000;

    private readonly GuestMemory _memory = new(new MemoryRegion(new(0), 16 << 20, "low"));
    private readonly MemoryDisk _disk = new(1 << 20);
    private readonly ListLog _log = new();
    private readonly VirtioBlock _device;
    private readonly Driver _driver;

    public BlockTests()
    {
        new Random(3).NextBytes(_disk.Bytes);
        _device = new VirtioBlock("disk0", _disk, "number-1", 2, packed: false, new VirtioContext(_memory, _log));
        _driver = new Driver(_memory, _device).Start(_device.OfferedFeatures, size: 64);
    }

    public void Dispose()
    {
        _device.Stop();
        _memory.Dispose();
    }

    [Fact]
    public void ConfigurationTellsTheDisk()
    {
        Assert.Equal(2048UL, _driver.Registers.ReadMmio(0x100, 8));
        Assert.Equal(254UL, _driver.Registers.ReadMmio(0x100 + 12, 4));
        Assert.Equal(512UL, _driver.Registers.ReadMmio(0x100 + 20, 4));
        Assert.Equal(2UL, _driver.Registers.ReadMmio(0x100 + 34, 2));
        VirtioBlock other = new("ro", new MemoryDisk(512, readOnly: true), "", 1, false, new VirtioContext(_memory));
        Assert.Equal(1UL << 5, other.OfferedFeatures & (1 << 5 | 1 << 13 | 1 << 14));
    }

    [Fact]
    public void WhoIsSavedHasWrittenEverything()
    {
        _device.Save();
        Assert.Equal(1, _disk.Flushes);
        _disk.Fails = true;
        Assert.Contains("cannot write", Assert.Throws<State.SavedStateException>(() => _device.Save()).Message, StringComparison.Ordinal);
    }

    [Fact]
    public void ReadsAndWritesScatterAndGather()
    {
        Assert.Equal(Ok, Request(In, 7, new Buffer(Data, 512, true), new Buffer(Data + 0x1000, 1536, true)));
        Assert.Equal(_disk.Bytes[(7 * 512)..(8 * 512)], _driver.Bytes(Data, 512));
        Assert.Equal(_disk.Bytes[(8 * 512)..(11 * 512)], _driver.Bytes(Data + 0x1000, 1536));
        byte[] text = new byte[1024];
        new Random(4).NextBytes(text);
        _driver.Fill(Data, text);
        Assert.Equal(Ok, Request(Out, 2046, new Buffer(Data, 100, false), new Buffer(Data + 100, 924, false)));
        Assert.Equal(text, _disk.Bytes[(2046 * 512)..]);
        Assert.Equal(Ok, Request(Flush, 0));
        Assert.Equal(1, _disk.Flushes);
        Assert.Equal(Ok, Request(GetId, 0, new Buffer(Data, 20, true)));
        Assert.Equal("number-1\0\0\0\0\0\0\0\0\0\0\0\0"u8.ToArray(), _driver.Bytes(Data, 20));
        Assert.Equal(Unsupported, Request(99, 0));
    }

    [Fact]
    public void WhatIsBeyondTheEndFails()
    {
        Assert.Equal(Error, Request(In, 2048, new Buffer(Data, 512, true)));
        Assert.Equal(Error, Request(In, 2047, new Buffer(Data, 1024, true)));
        Assert.Equal(Error, Request(Out, ulong.MaxValue, new Buffer(Data, 512, false)));
        Assert.Equal(Error, Request(Out, (1UL << 55) + 1, new Buffer(Data, 512, false)));
        Assert.Equal(Error, Request(In, 0, new Buffer(Data, 500, true)));
        Assert.Equal(5, _device.Errors);
        _disk.Fails = true;
        Assert.Equal(Error, Request(In, 0, new Buffer(Data, 512, true)));
        Assert.Equal(Error, Request(Flush, 0));
        Assert.Equal(7, _device.Errors);
        Assert.Empty(_log.Lines);
    }

    [Fact]
    public void RangesAreClearedAllOrNone()
    {
        Assert.Equal(Ok, Ranges(WriteZeroes, (8, 8, 0), (32, 1, 1)));
        Assert.Equal(Ok, Ranges(Discard, (64, 16, 0), (0, 0, 0)));
        Assert.Equal([("zero", 4096, 4096), ("zero-unmap", 16384, 512), ("discard", 32768, 8192)], _disk.Cleared);
        _disk.Cleared.Clear();
        Assert.Equal(Unsupported, Ranges(Discard, (0, 8, 0), (0, 8, 1)));
        Assert.Equal(Unsupported, Ranges(WriteZeroes, (0, 8, 2)));
        Assert.Equal(Error, Ranges(WriteZeroes, (0, 8, 0), (2047, 2, 0)));
        Assert.Equal(Error, Ranges(WriteZeroes, (ulong.MaxValue, 2, 0)));
        Assert.Equal(Error, Ranges(Discard, [.. Enumerable.Repeat((0UL, 1u, 0u), 33)]));
        Assert.Equal(Error, Request(Discard, 0, new Buffer(Data, 17, false)));
        Assert.Equal(Error, Request(Discard, 0));
        Assert.Empty(_disk.Cleared);
    }

    [Theory]
    [InlineData(15u, true)]
    [InlineData(16u, false)]
    public void ARequestWithoutHeaderOrStatusNeedsAReset(uint header, bool status)
    {
        Buffer[] buffers = status ? [new(Header, header, false), new(Status, 1, true)] : [new(Header, header, false)];
        _driver.Queues[0].Add(buffers);
        _driver.Queues[0].Kick();
        _driver.Settle();
        Assert.True((_driver.Status & VirtioStatus.NeedsReset) != 0);
    }

    [Fact]
    public void AReadOnlyDiskIsNotWritten()
    {
        using GuestMemory memory = new(new MemoryRegion(new(0), 16 << 20, "low"));
        MemoryDisk disk = new(4096, readOnly: true);
        VirtioBlock device = new("disk0", disk, "", 1, packed: true, new VirtioContext(memory));
        Driver driver = new Driver(memory, device).Start(device.OfferedFeatures);
        foreach (uint type in (uint[])[Out, Discard, WriteZeroes])
            Assert.Equal(Error, Request(driver, 0, type, 0, new Buffer(Data, 512, false)));
        Assert.Equal(Ok, Request(driver, 0, In, 0, new Buffer(Data, 512, true)));
        device.Stop();
    }

    /// <summary>Requests on one queue are carried out side by side, and the end waits for those in hand.</summary>
    [Fact]
    public async Task RequestsOverlapAndAreDrained()
    {
        using SemaphoreSlim arrived = new(0), go = new(0);
        _disk.Midway = () =>
        {
            arrived.Release();
            go.Wait();
        };
        WriteHeader(_driver, In, 0);
        for (ulong i = 0; i < 6; i++)
        {
            _driver.Queues[(int)i % 2].Add(new Buffer(Header, 16, false), new Buffer(Data + (i * 512), 512, true), new Buffer(Status + i, 1, true));
            _driver.Queues[(int)i % 2].Kick();
        }
        // Four at once, no more.
        for (int i = 0; i < 4; i++)
            await arrived.WaitAsync(TestContext.Current.CancellationToken);
        Assert.Equal(0, arrived.CurrentCount);
        Task quiet = Task.Run(_device.Quiesce, TestContext.Current.CancellationToken);
        Assert.False(quiet.IsCompleted);
        go.Release(6);
        await quiet.WaitAsync(TestContext.Current.CancellationToken);
        long done = _device.Queues.Sum(q => q.Completed);
        Assert.InRange(done, 4, 6);
        _device.Resume();
        _driver.Settle();
        Assert.Equal(6, _device.Queues.Sum(q => q.Completed));
        Assert.Equal(new byte[6], _driver.Bytes(Status, 6));
    }

    [Fact]
    public void RawDisksAreLockedAndSparse()
    {
        string path = Path.GetTempFileName();
        try
        {
            byte[] text = new byte[1 << 20];
            new Random(1).NextBytes(text);
            File.WriteAllBytes(path, text);
            using (RawDisk disk = RawDisk.Open(path, readOnly: false))
            {
                Assert.Contains("another machine", Assert.Throws<IOException>(() => RawDisk.Open(path, readOnly: false)).Message, StringComparison.Ordinal);
                Assert.Throws<IOException>(() => RawDisk.Open(path, readOnly: true));
                Assert.True(_memory.TryGetBuffer(new GuestAddress(Data), 1 << 20, out Platform.HostBuffer all));
                Assert.Equal(DiskResult.Done, disk.Read(0, [all]));
                Assert.Equal(text, _driver.Bytes(Data, 1 << 20));
                Assert.Equal(DiskResult.Done, disk.WriteZeroes(512, 1024, mayUnmap: false));
                Assert.NotEqual(DiskResult.Failed, disk.Discard(4096, 8192));
                // Many small buffers, more than one system call takes.
                Platform.HostBuffer[] small = new Platform.HostBuffer[200];
                for (int i = 0; i < small.Length; i++)
                    Assert.True(_memory.TryGetBuffer(new GuestAddress(Data + (ulong)(i * 1000)), 512, out small[i]));
                Assert.Equal(DiskResult.Done, disk.Write(65536, small));
                Assert.Equal(DiskResult.Done, disk.Flush());
            }
            byte[] now = File.ReadAllBytes(path);
            Assert.Equal(new byte[1024], now[512..1536]);
            for (int i = 0; i < 200; i++)
                Assert.Equal(text.AsSpan(i * 1000, 512).ToArray(), now.AsSpan(65536 + (i * 512), 512).ToArray());
            using RawDisk one = RawDisk.Open(path, readOnly: true), two = RawDisk.Open(path, readOnly: true);
            Assert.Equal(DiskResult.Failed, one.Write(0, []));
            Assert.Throws<IOException>(() => RawDisk.Open(path, readOnly: false));
            // A file that shrinks under us is an error, not a loop.
            using (FileStream cut = new(path, FileMode.Open, FileAccess.Write, FileShare.ReadWrite))
                cut.SetLength(100);
            Assert.True(_memory.TryGetBuffer(new GuestAddress(Data), 512, out Platform.HostBuffer buffer));
            Assert.Equal(DiskResult.Failed, two.Read(512, [buffer]));
            Assert.Throws<IOException>(() => RawDisk.Open(path, readOnly: true));
        }
        finally
        {
            File.Delete(path);
        }
        Assert.Throws<IOException>(() => RawDisk.Open("/dev/zero", readOnly: true));
        Assert.Throws<IOException>(() => RawDisk.Open(path, readOnly: true));
    }

    private byte Ranges(uint type, params (ulong Sector, uint Count, uint Flags)[] ranges)
    {
        Span<byte> bytes = new byte[ranges.Length * 16];
        for (int i = 0; i < ranges.Length; i++)
        {
            BinaryPrimitives.WriteUInt64LittleEndian(bytes[(i * 16)..], ranges[i].Sector);
            BinaryPrimitives.WriteUInt32LittleEndian(bytes[((i * 16) + 8)..], ranges[i].Count);
            BinaryPrimitives.WriteUInt32LittleEndian(bytes[((i * 16) + 12)..], ranges[i].Flags);
        }
        _driver.Fill(Data, bytes);
        return Request(type, 0, new Buffer(Data, (uint)bytes.Length, false));
    }

    private byte Request(uint type, ulong sector, params ReadOnlySpan<Buffer> data) => Request(_driver, 1, type, sector, data);

    private static void WriteHeader(Driver driver, uint type, ulong sector)
    {
        Span<byte> header = new byte[16];
        BinaryPrimitives.WriteUInt32LittleEndian(header, type);
        BinaryPrimitives.WriteUInt64LittleEndian(header[8..], sector);
        driver.Fill(Header, header);
    }

    private static byte Request(Driver driver, int queue, uint type, ulong sector, params ReadOnlySpan<Buffer> data)
    {
        WriteHeader(driver, type, sector);
        driver.Fill(Status, [0xEE]);
        Buffer[] buffers = [new(Header, 16, false), .. data, new(Status, 1, true)];
        driver.Queues[queue].Add(buffers);
        driver.Queues[queue].Kick();
        driver.Settle();
        driver.Queues[queue].MustTakeUsed();
        return driver.Bytes(Status, 1)[0];
    }
}
