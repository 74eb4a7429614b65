namespace Aerostat.Storage.Tests;

/// <summary>Random operations on images of every shape beside an array of bytes, with QEMU as the judge of what is in the file afterwards.</summary>
public sealed class Qcow2ModelTests
{
    private const int Operations = 400;

    /// <summary>Cluster size, bits of a reference count, bytes of the disk, what is under it.</summary>
    public static TheoryData<int, int, int, string> Shapes => new()
    {
        { 512, 16, 1 << 20, "" },
        { 512, 64, 3 << 20, "" },
        { 512, 1, 200 * 512, "raw" },
        { 1024, 2, 1 << 20, "qcow2" },
        { 4096, 4, (4 << 20) + 512, "" },
        { 4096, 8, 4 << 20, "raw" },
        { 65536, 16, 16 << 20, "" },
        { 65536, 16, (16 << 20) - 512, "qcow2" },
        { 65536, 32, 16 << 20, "raw" },
        { 2 << 20, 16, 24 << 20, "qcow2" },
    };

    [Theory, MemberData(nameof(Shapes))]
    public void RandomOperations(int clusterSize, int refcountBits, int length, string under)
    {
        QemuImage.Require();
        for (int seed = 1; seed <= 3; seed++)
        {
            using Tools.Scratch scratch = new();
            string image = Path.Combine(scratch.Path, "disk.qcow2");
            byte[] model = new byte[length];
            Random random = new(seed);
            Qcow2Options options = new() { ClusterSize = clusterSize, RefcountBits = refcountBits };
            if (under.Length > 0)
            {
                // Shorter than what is above it.
                byte[] contents = new byte[length / 3 / 512 * 512];
                for (int i = 0; i < contents.Length / 3000; i++)
                    random.NextBytes(contents.AsSpan(random.Next(contents.Length - 1000), 1000));
                contents.CopyTo(model, 0);
                string raw = scratch.File("under.raw", contents);
                if (under == "qcow2")
                    QemuImage.Run(scratch, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-c", raw, Path.Combine(scratch.Path, "under.qcow2"));
                options = options with { BackingFile = $"under.{under}", BackingFormat = under == "raw" ? DiskFormat.Raw : DiskFormat.Qcow2 };
            }
            IDisk disk = Qcow2Disk.Create(image, (ulong)length, options);
            try
            {
                for (int i = 0; i < Operations; i++)
                    disk = Step(disk, image, model, clusterSize, random);
            }
            finally
            {
                disk.Dispose();
            }
            QemuImage.Check(scratch, image);
            QemuImage.AssertContents(scratch, image, model);
        }
    }

    private static IDisk Step(IDisk disk, string image, byte[] model, int clusterSize, Random random)
    {
        int most = Math.Min(model.Length, random.Next(3) == 0 ? 6 * clusterSize : 8192);
        int length = random.Next(1, Math.Max(2, most / 512 + 1)) * 512, offset = random.Next((model.Length - length) / 512 + 1) * 512;
        if (random.Next(3) == 0)
        {
            offset = offset / clusterSize * clusterSize;
            length = Math.Max(512, Math.Min(model.Length - offset, (length + clusterSize - 1) / clusterSize * clusterSize));
        }
        Span<byte> part = model.AsSpan(offset, length);
        switch (random.Next(10))
        {
            case < 4:
                random.NextBytes(part);
                Assert.Equal(DiskResult.Done, disk.Write((ulong)offset, part));
                break;
            case 4:
                part.Clear();
                Assert.Equal(DiskResult.Done, disk.Discard((ulong)offset, (ulong)length));
                break;
            case 5:
                part.Clear();
                Assert.Equal(DiskResult.Done, disk.WriteZeroes((ulong)offset, (ulong)length, random.Next(2) == 0));
                break;
            case 6 when random.Next(4) == 0:
                disk.Dispose();
                disk = Qcow2Disk.Open(image, readOnly: false);
                break;
            case 6:
                Assert.Equal(DiskResult.Done, disk.Flush());
                break;
            case 7:
                DiskExtent extent = disk.BlockStatus((ulong)offset, (ulong)length);
                Assert.InRange(extent.Length, 512UL, (ulong)length);
                Assert.NotEqual(DiskExtentKind.Absent, extent.Kind);
                Assert.True(extent.Kind == DiskExtentKind.Data || !part[..(int)extent.Length].ContainsAnyExcept((byte)0), "a range that is said to be zeros is not");
                break;
            default:
                Assert.True(part.SequenceEqual(disk.Read((ulong)offset, length)), $"{length} bytes at {offset}");
                break;
        }
        return disk;
    }
}
