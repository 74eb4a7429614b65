using Aerostat.Platform;

namespace Aerostat.Storage.Tests;

/// <summary>Images that QEMU made, in all its kinds, and QEMU's reading of ours.</summary>
public sealed class Qcow2InteropTests
{
    private const int Size = 4 << 20;

    [Theory]
    [InlineData("compat=0.10"), InlineData("compat=1.1"), InlineData("compat=0.10,cluster_size=512"), InlineData("lazy_refcounts=on"), InlineData("preallocation=metadata"),
     InlineData("preallocation=falloc,cluster_size=4096"), InlineData("refcount_bits=1"), InlineData("cluster_size=2M,refcount_bits=64"), InlineData("compression_type=zstd")]
    public void PatternsOfQemuIo(string options)
    {
        QemuImage.Require();
        using Tools.Scratch scratch = new();
        string image = Path.Combine(scratch.Path, "disk.qcow2");
        QemuImage.Run(scratch, "qemu-img", "create", "-q", "-f", "qcow2", "-o", options, image, $"{Size}");
        QemuImage.Run(scratch, "qemu-io", "-f", "qcow2", "-c", "write -P 0x11 0 200k", "-c", "write -P 0x22 1M 64k", "-c", "write -z 1100k 100k", "-c", "discard 64k 64k", image);
        byte[] model = new byte[Size];
        model.AsSpan(0, 200 << 10).Fill(0x11);
        model.AsSpan(1 << 20, 64 << 10).Fill(0x22);
        using (Qcow2Disk disk = Qcow2Disk.Open(image, readOnly: false))
        {
            // What QEMU does with a discard depends on the version: its word is taken.
            byte[] seen = disk.Read(0, Size);
            seen.AsSpan(64 << 10, 64 << 10).CopyTo(model.AsSpan(64 << 10));
            Assert.True(model.AsSpan().SequenceEqual(seen));
            model.AsSpan(100 << 10, 3 << 10).Fill(0x33);
            Assert.Equal(DiskResult.Done, disk.Write(100 << 10, model.AsSpan(100 << 10, 3 << 10)));
            model.AsSpan(3 << 20, 512).Fill(0x44);
            Assert.Equal(DiskResult.Done, disk.Write(3 << 20, model.AsSpan(3 << 20, 512)));
            model.AsSpan(0, 130 << 10).Clear();
            Assert.Equal(DiskResult.Done, disk.Discard(0, 130 << 10));
            model.AsSpan(1 << 20, 1 << 10).Clear();
            Assert.Equal(DiskResult.Done, disk.WriteZeroes(1 << 20, 1 << 10, mayUnmap: false));
        }
        QemuImage.Check(scratch, image);
        QemuImage.AssertContents(scratch, image, model);
        string said = QemuImage.Run(scratch, "qemu-io", "-f", "qcow2", "-c", "read -P 0x44 3M 512", "-c", "read -P 0x11 140k 60k", image);
        Assert.DoesNotContain("verification failed", said, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData("zlib", 65536), InlineData("zlib", 512), InlineData("zlib", 2 << 20), InlineData("zstd", 65536), InlineData("zstd", 4096), InlineData("zstd", 2 << 20)]
    public void CompressedClusters(string type, int clusterSize)
    {
        QemuImage.Require();
        using Tools.Scratch scratch = new();
        string image = Path.Combine(scratch.Path, "disk.qcow2");
        byte[] model = Compressible(Size);
        QemuImage.Run(scratch, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-c", "-o", $"compression_type={type},cluster_size={clusterSize}", scratch.File("raw", model), image);
        Random random = new(2);
        using (Qcow2Disk disk = Qcow2Disk.Open(image, readOnly: false))
        {
            Assert.True(model.AsSpan().SequenceEqual(disk.Read(0, Size)));
            for (int i = 0; i < 200; i++)
            {
                int length = random.Next(1, 100) * 512, offset = random.Next((Size - length) / 512) * 512;
                if (random.Next(3) == 0)
                {
                    model.AsSpan(offset, length).Clear();
                    Assert.Equal(DiskResult.Done, disk.Discard((ulong)offset, (ulong)length));
                    continue;
                }
                random.NextBytes(model.AsSpan(offset, length));
                Assert.Equal(DiskResult.Done, disk.Write((ulong)offset, model.AsSpan(offset, length)));
            }
        }
        QemuImage.Check(scratch, image);
        QemuImage.AssertContents(scratch, image, model);
    }

    [Theory]
    [InlineData(512), InlineData(65536)]
    public void SnapshotsStayAsTheyAre(int clusterSize)
    {
        QemuImage.Require();
        using Tools.Scratch scratch = new();
        string image = Path.Combine(scratch.Path, "disk.qcow2"), old = Path.Combine(scratch.Path, "old.qcow2");
        Qcow2Disk.Create(image, Size, new Qcow2Options { ClusterSize = clusterSize }).Dispose();
        byte[] model = new byte[Size];
        List<byte[]> kept = [];
        Random random = new(6);
        for (int snapshot = 0; snapshot < 3; snapshot++)
        {
            using (Qcow2Disk disk = Qcow2Disk.Open(image, readOnly: false))
            {
                Assert.Equal(snapshot, disk.Snapshots);
                for (int i = 0; i < 60; i++)
                {
                    int length = random.Next(1, 60) * 512, offset = random.Next((Size / 4 - length) / 512) * 512;
                    if (i % 4 == 0)
                        model.AsSpan(offset, length).Clear();
                    else
                        random.NextBytes(model.AsSpan(offset, length));
                    Assert.Equal(DiskResult.Done, i % 4 == 0 ? disk.Discard((ulong)offset, (ulong)length) : disk.Write((ulong)offset, model.AsSpan(offset, length)));
                }
            }
            QemuImage.Check(scratch, image);
            QemuImage.AssertContents(scratch, image, model);
            QemuImage.Run(scratch, "qemu-img", "snapshot", "-c", $"s{snapshot}", image);
            kept.Add([.. model]);
        }
        for (int snapshot = 0; snapshot < 3; snapshot++)
        {
            QemuImage.Run(scratch, "qemu-img", "convert", "-f", "qcow2", "-l", $"snapshot.name=s{snapshot}", "-O", "qcow2", image, old);
            QemuImage.AssertContents(scratch, old, kept[snapshot]);
        }
    }

    [Fact]
    public void AllocationIsTold()
    {
        using Tools.Scratch scratch = new();
        byte[] under = new byte[Size];
        under.AsSpan(0, 1 << 20).Fill(1);
        using (FileStream raw = new(Path.Combine(scratch.Path, "under.raw"), FileMode.CreateNew))
        {
            raw.Write(under.AsSpan(0, 1 << 20));
            raw.SetLength(Size);
        }
        using Qcow2Disk disk = Qcow2Disk.Create(Path.Combine(scratch.Path, "d"), Size, new Qcow2Options { BackingFile = "under.raw", BackingFormat = DiskFormat.Raw });
        Assert.Empty(disk.MapAllocated());
        Assert.Equal(DiskResult.Done, disk.Write(2 << 20, new byte[100 << 10]));
        Assert.Equal(DiskResult.Done, disk.Discard(0, 128 << 10));
        Assert.Equal([new(0, 128 << 10, DiskExtentKind.Zero), new(2 << 20, 128 << 10, DiskExtentKind.Data)], disk.MapAllocated());
        Assert.Equal(DiskExtentKind.Zero, disk.BlockStatus(0, Size).Kind);
        Assert.Equal(new DiskExtent(128 << 10, (1 << 20) - (128 << 10), DiskExtentKind.Data), disk.BlockStatus(128 << 10, (2 << 20) - (128 << 10)));
        Assert.Equal(DiskExtentKind.Zero, disk.BlockStatus(3 << 20, 1 << 20).Kind);
        Assert.Equal("under.raw", disk.BackingFile);
    }

    /// <summary>Readers and writers in their own ranges at once, with flushes and discards between.</summary>
    [Fact]
    public void ManyThreads()
    {
        QemuImage.Require();
        using Tools.Scratch scratch = new();
        string image = Path.Combine(scratch.Path, "disk.qcow2");
        byte[] model = new byte[Size];
        using (Qcow2Disk disk = Qcow2Disk.Create(image, Size, new Qcow2Options { ClusterSize = 4096 }))
        {
            Parallel.For(0, 4, new ParallelOptions { MaxDegreeOfParallelism = 4 }, thread =>
            {
                Random random = new(thread);
                for (int i = 0; i < 400; i++)
                {
                    // Every fourth sector group is a thread's own: clusters are shared, sectors are not.
                    int offset = (random.Next(Size / 4096) * 8 + thread * 2) * 512;
                    Span<byte> part = model.AsSpan(offset, 1024);
                    if (i % 3 == 0)
                        part.Clear();
                    else
                        random.NextBytes(part);
                    Assert.Equal(DiskResult.Done, i % 3 == 0 ? disk.WriteZeroes((ulong)offset, 1024, i % 2 == 0) : disk.Write((ulong)offset, part));
                    if (i % 50 == 0)
                        Assert.Equal(DiskResult.Done, disk.Flush());
                    Assert.True(part.SequenceEqual(disk.Read((ulong)offset, 1024)));
                }
            });
        }
        QemuImage.Check(scratch, image);
        QemuImage.AssertContents(scratch, image, model);
    }

    private static byte[] Compressible(int size)
    {
        Random random = new(9);
        byte[] bytes = new byte[size];
        for (int at = 0; at < size; at += 1000)
            bytes.AsSpan(at, Math.Min(random.Next(1000), size - at)).Fill((byte)random.Next(20));
        // And what cannot be.
        random.NextBytes(bytes.AsSpan(1 << 20, 200 << 10));
        return bytes;
    }
}
