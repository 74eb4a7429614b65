using System.Buffers.Binary;

namespace Aerostat.Storage.Tests;

/// <summary>What is not opened, and why: one line that says it.</summary>
public sealed class DiskImageTests
{
    /// <summary>A guest that writes a qcow2 header to its raw disk gets nothing of the host's by it.</summary>
    [Fact]
    public void AGuestDoesNotChooseTheFormat()
    {
        using Tools.Scratch scratch = new();
        scratch.File("secret", new byte[1 << 20]);
        Qcow2Disk.Create(Path.Combine(scratch.Path, "bait.qcow2"), 1 << 20, new Qcow2Options { BackingFile = "secret", BackingFormat = DiskFormat.Raw }).Dispose();
        byte[] header = File.ReadAllBytes(Path.Combine(scratch.Path, "bait.qcow2"));
        string raw = scratch.File("guest.img", new byte[1 << 20]);
        using (IDisk disk = DiskImage.Open(raw, null, readOnly: false))
            Assert.Equal(DiskResult.Done, disk.Write(0, header.AsSpan(0, 65536)));
        Assert.Contains("format=", Refusal(() => DiskImage.Open(raw, null, readOnly: true)), StringComparison.Ordinal);
        using (IDisk disk = DiskImage.Open(raw, DiskFormat.Raw, readOnly: true))
            Assert.Equal(header[..512], disk.Read(0, 512));
        // Under another image it is what that one says.
        string above = Path.Combine(scratch.Path, "above.qcow2");
        Qcow2Disk.Create(above, 1 << 20, new Qcow2Options { BackingFile = "guest.img", BackingFormat = DiskFormat.Raw }).Dispose();
        using (IDisk disk = DiskImage.Open(above, null, readOnly: true))
            Assert.Equal(header[..512], disk.Read(0, 512));
    }

    [Fact]
    public void ABackingFileWithoutAFormatIsRefused()
    {
        QemuImage.Require();
        using Tools.Scratch scratch = new();
        scratch.File("under.raw", new byte[1 << 20]);
        string image = Path.Combine(scratch.Path, "d.qcow2");
        QemuImage.Run(scratch, "qemu-img", "create", "-q", "-f", "qcow2", "-b", "under.raw", "-F", "raw", image);
        byte[] bytes = File.ReadAllBytes(image);
        // Its type is one that nobody knows.
        int at = bytes.AsSpan().IndexOf((ReadOnlySpan<byte>)[0xE2, 0x79, 0x2A, 0xCA]);
        bytes[at] = 1;
        File.WriteAllBytes(image, bytes);
        Assert.Contains("does not say what format", Refusal(() => Qcow2Disk.Open(image, readOnly: true)), StringComparison.Ordinal);
    }

    [Theory]
    [InlineData("json:{}", "is not a file"), InlineData("nbd://host/x", "is not a file"), InlineData("missing.raw", "there is no such file"), InlineData("/dev/null", "not a regular file")]
    public void BackingFilesThatAreNone(string name, string why)
    {
        using Tools.Scratch scratch = new();
        Assert.Contains(why, Refusal(() => Qcow2Disk.Create(Path.Combine(scratch.Path, "d"), 1 << 20, new Qcow2Options { BackingFile = name })), StringComparison.Ordinal);
    }

    [Fact]
    public void CirclesAndLongChains()
    {
        using Tools.Scratch scratch = new();
        string Name(int i) => Path.Combine(scratch.Path, $"{i}.qcow2");
        Qcow2Disk.Create(Name(0), 1 << 20).Dispose();
        for (int i = 1; i < DiskImage.MostImages; i++)
            Qcow2Disk.Create(Name(i), 1 << 20, new Qcow2Options { ClusterSize = 512, BackingFile = $"{i - 1}.qcow2" }).Dispose();
        Assert.Contains($"more than {DiskImage.MostImages}",
            Refusal(() => Qcow2Disk.Create(Name(DiskImage.MostImages), 1 << 20, new Qcow2Options { BackingFile = $"{DiskImage.MostImages - 1}.qcow2" })), StringComparison.Ordinal);
        // The header of 2 names 1: in the place of 0 it makes a circle.
        File.Copy(Name(2), Name(0), overwrite: true);
        Assert.Contains("circle", Refusal(() => Qcow2Disk.Open(Name(1), readOnly: true)), StringComparison.Ordinal);
        Assert.NotEmpty(Refusal(() => Qcow2Disk.Open(Name(1), readOnly: false)));
    }

    [Theory]
    [InlineData("extended_l2=on", "subclusters"), InlineData("data_file=data.raw", "external data file")]
    public void FeaturesThatAreNotKnown(string option, string why)
    {
        QemuImage.Require();
        using Tools.Scratch scratch = new();
        string image = Path.Combine(scratch.Path, "d.qcow2");
        QemuImage.Run(scratch, "qemu-img", "create", "-q", "-f", "qcow2", "-o", option, image, "1M");
        Assert.Contains(why, Refusal(() => Qcow2Disk.Open(image, readOnly: true)), StringComparison.Ordinal);
    }

    [Fact]
    public void EncryptedImages()
    {
        using Tools.Scratch scratch = new();
        string image = Path.Combine(scratch.Path, "d.qcow2");
        Qcow2Disk.Create(image, 1 << 20).Dispose();
        byte[] bytes = File.ReadAllBytes(image);
        bytes[35] = 2;
        File.WriteAllBytes(image, bytes);
        Assert.Contains("encrypted (LUKS)", Refusal(() => Qcow2Disk.Open(image, readOnly: true)), StringComparison.Ordinal);
    }

    [Theory]
    [InlineData(1UL << 40, false, "number 40"), InlineData(1UL, false, "not up to date"), InlineData(2UL, false, "marked as corrupt"), InlineData(1UL, true, null), InlineData(2UL, true, null)]
    public void IncompatibleFeatures(ulong bits, bool readOnly, string? why)
    {
        using Tools.Scratch scratch = new();
        string image = Path.Combine(scratch.Path, "d.qcow2");
        Qcow2Disk.Create(image, 1 << 20).Dispose();
        byte[] bytes = File.ReadAllBytes(image);
        BinaryPrimitives.WriteUInt64BigEndian(bytes.AsSpan(72), bits);
        File.WriteAllBytes(image, bytes);
        if (why is not null)
            Assert.Contains(why, Refusal(() => Qcow2Disk.Open(image, readOnly)), StringComparison.Ordinal);
        else
            Qcow2Disk.Open(image, readOnly).Dispose();
        Assert.Equal(bytes, File.ReadAllBytes(image));
    }

    [Fact]
    public void OneWriterOrManyReaders()
    {
        QemuImage.Require();
        using Tools.Scratch scratch = new();
        string image = Path.Combine(scratch.Path, "d.qcow2"), above = Path.Combine(scratch.Path, "above.qcow2");
        using (Qcow2Disk.Create(image, 1 << 20))
        {
            Assert.Contains("using it", Refusal(() => Qcow2Disk.Open(image, readOnly: false)), StringComparison.Ordinal);
            Assert.Contains("using it", Refusal(() => Qcow2Disk.Open(image, readOnly: true)), StringComparison.Ordinal);
            Assert.NotEqual(0, Tools.Run(scratch.Path, "qemu-io", ["-f", "qcow2", "-c", "write 0 512", image]).Status);
        }
        Qcow2Disk.Create(above, 1 << 20, new Qcow2Options { BackingFile = "d.qcow2" }).Dispose();
        using (Qcow2Disk.Open(above, readOnly: false))
        {
            Assert.Contains("using it", Refusal(() => Qcow2Disk.Open(image, readOnly: false)), StringComparison.Ordinal);
            Qcow2Disk.Open(image, readOnly: true).Dispose();
        }
    }

    /// <summary>Dirty bitmaps that are not kept up are marked, as the format demands.</summary>
    [Fact]
    public void BitmapsOfOthersAreNotTrustedAfterwards()
    {
        QemuImage.Require();
        using Tools.Scratch scratch = new();
        string image = Path.Combine(scratch.Path, "d.qcow2");
        QemuImage.Run(scratch, "qemu-img", "create", "-q", "-f", "qcow2", image, "1M");
        QemuImage.Run(scratch, "qemu-img", "bitmap", "--add", image, "b");
        Assert.Equal(1UL, BinaryPrimitives.ReadUInt64BigEndian(File.ReadAllBytes(image).AsSpan(88)));
        using (Qcow2Disk disk = Qcow2Disk.Open(image, readOnly: false))
            Assert.Equal(DiskResult.Done, disk.Write(0, new byte[512]));
        Assert.Equal(0UL, BinaryPrimitives.ReadUInt64BigEndian(File.ReadAllBytes(image).AsSpan(88)));
        QemuImage.Check(scratch, image, mayLeak: true);
    }

    private static string Refusal(Func<IDisposable> open)
    {
        IOException e = Assert.Throws<IOException>(() => open().Dispose());
        Assert.DoesNotContain('\n', e.Message);
        return e.Message;
    }
}
