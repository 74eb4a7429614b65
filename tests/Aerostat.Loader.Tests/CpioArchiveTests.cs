using System.Text;

namespace Aerostat.Loader.Tests;

/// <summary>newc archives, with the real cpio as the judge.</summary>
public sealed class CpioArchiveTests
{
    [Fact]
    public void CpioListsAndExtractsWhatWasPutIn()
    {
        Tools.Require("cpio", "cpio");
        using Tools.Scratch scratch = new();
        byte[][] contents = [.. Enumerable.Range(0, 9).Select(n => Enumerable.Range(0, n * 333).Select(i => (byte)(i * n)).ToArray())];
        byte[] archive = Build(a =>
        {
            for (int i = 0; i < contents.Length; i++)
                a.AddFile($"dir{i % 3}/deep/file-{new string('n', i)}", contents[i], i % 2 == 0 ? 0x1A4 : 0x1ED);
            a.AddSymlink("bin/sh", "busybox");
            a.AddDirectory("/tmp/", 0x3FF);
            using MemoryStream stream = new(contents[8]);
            a.AddFile("streamed", stream);
        });
        Assert.Equal(0, archive.Length % 512);

        (int status, string output) = Tools.Run(scratch.Path, "cpio", ["-t", "--quiet"], archive);
        Assert.Equal(0, status);
        string[] listed = output.Split('\n', StringSplitOptions.RemoveEmptyEntries);
        Assert.Equal(listed.Distinct().Count(), listed.Length);
        Assert.Contains("dir0/deep", listed);
        Assert.Contains("bin/sh", listed);

        (status, output) = Tools.Run(scratch.Path, "cpio", ["-i", "-m", "--quiet", "--no-absolute-filenames"], archive);
        Assert.True(status == 0, output);
        for (int i = 0; i < contents.Length; i++)
        {
            string path = Path.Combine(scratch.Path, $"dir{i % 3}/deep/file-{new string('n', i)}");
            Assert.Equal(contents[i], File.ReadAllBytes(path));
            Assert.Equal(i % 2 == 0 ? (UnixFileMode)0x1A4 : (UnixFileMode)0x1ED, File.GetUnixFileMode(path));
        }
        Assert.Equal("busybox", new FileInfo(Path.Combine(scratch.Path, "bin/sh")).LinkTarget);
        Assert.Equal(contents[8], File.ReadAllBytes(Path.Combine(scratch.Path, "streamed")));
        Assert.Equal((UnixFileMode)0x3FF, File.GetUnixFileMode(Path.Combine(scratch.Path, "tmp")));
    }

    [Fact]
    public void DeviceNodesAreListedWithTheirNumbers()
    {
        Tools.Require("cpio", "cpio");
        using Tools.Scratch scratch = new();
        byte[] archive = Build(a =>
        {
            a.AddCharacterDevice("dev/console", 5, 1);
            a.AddBlockDevice("dev/vda", 254, 16, 0x1B0);
        });
        string output = Tools.Run(scratch.Path, "cpio", ["-tvn", "--quiet"], archive).Output;
        Assert.Matches(@"crw-------\s+1 0\s+0\s+5,\s+1 .* dev/console", output);
        Assert.Matches(@"brw-rw----\s+1 0\s+0\s+254,\s+16 .* dev/vda", output);
    }

    [Fact]
    public void SameInputGivesSameBytesAndKnownOnes()
    {
        static void Fill(CpioArchive a) => a.AddFile("hi", "hello"u8);
        byte[] archive = Build(Fill);
        Assert.Equal(archive, Build(Fill));
        string expected = "070701" + "00000001" + "000081A4" + "00000000" + "00000000" + "00000001" + "00000000" + "00000005"
            + "00000000" + "00000000" + "00000000" + "00000000" + "00000003" + "00000000" + "hi\0\0\0\0" + "hello\0\0\0" + "070701";
        Assert.StartsWith(expected[..110], Encoding.ASCII.GetString(archive), StringComparison.Ordinal);
        Assert.Equal("hi\0", Encoding.ASCII.GetString(archive, 110, 3));
        Assert.Equal("hello", Encoding.ASCII.GetString(archive, 116, 5));
        Assert.Equal("070701", Encoding.ASCII.GetString(archive, 124, 6));
        Assert.Contains("TRAILER!!!\0", Encoding.ASCII.GetString(archive), StringComparison.Ordinal);
    }

    [Fact]
    public void ParentsComeFirstAndOnce()
    {
        byte[] archive = Build(a =>
        {
            a.AddFile("a/b/c", []);
            a.AddDirectory("a/b");
            a.AddFile("a/b/d", []);
        });
        string text = Encoding.ASCII.GetString(archive);
        Assert.Equal(2, text.Split("a/b\0").Length);
        Assert.True(text.IndexOf("a\0", StringComparison.Ordinal) < text.IndexOf("a/b\0", StringComparison.Ordinal));
        Assert.True(text.IndexOf("a/b\0", StringComparison.Ordinal) < text.IndexOf("a/b/c\0", StringComparison.Ordinal));
    }

    [Fact]
    public void WrongNamesAndDuplicatesAreBootExceptions()
    {
        CpioArchive archive = new(Stream.Null);
        archive.AddFile("x", []);
        Assert.Throws<BootException>(() => archive.AddFile("/x", []));
        Assert.Throws<BootException>(() => archive.AddDirectory("x"));
        Assert.Throws<BootException>(() => archive.AddFile("../x", []));
        Assert.Throws<BootException>(() => archive.AddFile("a/./x", []));
        Assert.Throws<BootException>(() => archive.AddFile("", []));
        Assert.Throws<BootException>(() => archive.AddFile(new string('x', 5000), []));
        archive.Finish();
        Assert.Throws<ObjectDisposedException>(() => archive.AddFile("y", []));
    }

    private static byte[] Build(Action<CpioArchive> fill)
    {
        MemoryStream output = new();
        CpioArchive archive = new(output);
        fill(archive);
        archive.Finish();
        return output.ToArray();
    }
}
