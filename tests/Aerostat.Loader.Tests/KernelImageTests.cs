using System.Text;

namespace Aerostat.Loader.Tests;

/// <summary>What is a kernel and what is not, and that broken ones give one-line errors and nothing else.</summary>
public sealed class KernelImageTests
{
    public static TheoryData<string, string> NotKernels => new()
    {
        { "\u001f\u008b\b", "gzip" },
        { "\u00fd7zXZ\0", "xz" },
        { "(\u00b5/\u00fd", "zstd" },
        { "BZh9", "bzip2" },
        { "\u0004\"M\u0018", "lz4" },
        { "MZ", "EFI or DOS" },
        { "070701", "--initrd" },
        { "#!/bin/sh", "a script" },
        { "!<arch>\n", "package" },
        { "hello", "not a kernel" },
    };

    [Theory]
    [MemberData(nameof(NotKernels))]
    public void SomethingElseIsNamed(string start, string says)
    {
        byte[] image = new byte[9000];
        Encoding.Latin1.GetBytes(start).CopyTo(image, 0);
        BootException e = Assert.Throws<BootException>(() => KernelImage.Open(image));
        Assert.Contains(says, e.Message, StringComparison.Ordinal);
        AssertOneLine(e);
    }

    [Fact]
    public void FilesThatCannotBeOpenedSayWhy()
    {
        using Tools.Scratch scratch = new();
        Says(Path.Combine(scratch.Path, "absent"), "no such file");
        Says(Path.Combine(scratch.Path, "absent", "further"), "no such file");
        Says(scratch.Path, "directory");
        Says(scratch.File("empty", []), "empty");
        Says("a\0b", "could not open");

        static void Says(string path, string why)
        {
            BootException e = Assert.Throws<BootException>(() => KernelImage.Open(path));
            Assert.Contains(why, e.Message, StringComparison.Ordinal);
            AssertOneLine(e);
        }
    }

    [Fact]
    public void FileStreamAndMemoryLoadTheSame()
    {
        using Tools.Scratch scratch = new();
        byte[] image = Kernels.BzImage();
        string path = scratch.File("vmlinuz", image);
        using FileStream stream = File.OpenRead(path);
        using KernelImage fromFile = KernelImage.Open(path), fromStream = KernelImage.Open(stream), fromMemory = KernelImage.Open(image);
        List<byte[]> seen = [];
        foreach (KernelImage kernel in (KernelImage[])[fromFile, fromStream, fromMemory, fromFile])
        {
            using Guest guest = new(64);
            BootResult result = kernel.Load(guest.Memory, guest.Parameters());
            seen.Add([.. guest.Bytes(0, 0x30000), .. guest.Bytes(result.KernelStart, (int)Kernels.InitSize)]);
        }
        Assert.All(seen, s => Assert.Equal(seen[0], s));
    }

    [Fact]
    public void FileThatShrinksAfterOpeningIsAnError()
    {
        using Tools.Scratch scratch = new();
        string path = scratch.File("vmlinuz", Kernels.BzImage());
        using KernelImage kernel = KernelImage.Open(path);
        File.WriteAllBytes(path, new byte[100]);
        using Guest guest = new(64);
        BootException e = Assert.Throws<BootException>(() => kernel.Load(guest.Memory, guest.Parameters()));
        Assert.Contains("shorter", e.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void EveryTruncationIsABootException()
    {
        using Guest guest = new(64);
        foreach (byte[] image in Samples())
        {
            int step = Math.Max(1, image.Length / 700);
            for (int length = 1; length < image.Length; length += length < 2048 ? 1 : step)
                LoadsOrSaysWhy(guest, image[..length]);
        }
        // A bzImage or ELF without its last part never loads.
        foreach (byte[] image in (byte[][])[Kernels.BzImage(), Kernels.MultibootElf(true), Kernels.MultibootElf(false)])
            Assert.Throws<BootException>(() => KernelImage.Open(image.AsMemory(0, image.Length - 16)));
    }

    [Fact]
    public void EveryCorruptionIsABootException()
    {
        using Guest guest = new(64);
        Random random = new(20240611);
        int loaded = 0, refused = 0;
        byte[] wild = [0, 1, 0x7F, 0x80, 0xFE, 0xFF];
        foreach (byte[] sample in Samples())
        {
            for (int round = 0; round < 1500; round++)
            {
                byte[] image = (byte[])sample.Clone();
                // Most damage goes where the headers are.
                int spots = random.Next(1, 5);
                for (int i = 0; i < spots; i++)
                {
                    int at = random.Next(random.Next(4) == 0 ? image.Length : HeaderEnd(sample));
                    int run = random.Next(4) == 0 ? random.Next(1, 9) : 1;
                    for (int j = at; j < Math.Min(at + run, image.Length); j++)
                        image[j] = random.Next(2) == 0 ? wild[random.Next(wild.Length)] : (byte)random.Next(256);
                }
                if (LoadsOrSaysWhy(guest, image))
                    loaded++;
                else
                    refused++;
            }
        }
        Assert.True(loaded > 100 && refused > 1000, $"{loaded} loaded, {refused} refused: the damage is not of the right size");
    }

    [Fact]
    public void RandomBytesAreABootException()
    {
        using Guest guest = new(64);
        Random random = new(7);
        byte[][] starts = [[], [0x7F, 0x45, 0x4C, 0x46, 2, 1, 1], [0x7F, 0x45, 0x4C, 0x46, 1, 1, 1]];
        for (int round = 0; round < 500; round++)
        {
            byte[] image = new byte[random.Next(1, 10000)];
            random.NextBytes(image);
            starts[round % 3].AsSpan(0, Math.Min(image.Length, starts[round % 3].Length)).CopyTo(image);
            if (round % 5 == 0 && image.Length > 0x210)
                "HdrS"u8.CopyTo(image.AsSpan(0x202));
            LoadsOrSaysWhy(guest, image);
        }
    }

    private static byte[][] Samples() =>
    [
        Kernels.BzImage(codeParagraphs: 0x100),
        Kernels.MultibootElf(is64: true),
        Kernels.MultibootElf(is64: false),
        Kernels.MultibootFlat(),
        Kernels.Pvh(is64: true),
        Kernels.Pvh(is64: false),
    ];

    private static int HeaderEnd(byte[] image) => image[0] == 0x7F ? 200 : Math.Min(image.Length, 0x270);

    // Loads, or says in one line why not. Anything else fails the test.
    private static bool LoadsOrSaysWhy(Guest guest, byte[] image)
    {
        try
        {
            using KernelImage kernel = KernelImage.Open(image);
            Assert.False(string.IsNullOrEmpty(kernel.Description));
            BootResult result = kernel.Load(guest.Memory, guest.Parameters());
            Assert.True(guest.Memory.Contains(result.KernelStart, result.KernelEnd - result.KernelStart));
            return true;
        }
        catch (BootException e)
        {
            AssertOneLine(e);
            return false;
        }
    }

    private static void AssertOneLine(BootException e)
    {
        Assert.DoesNotContain('\n', e.Message);
        Assert.Contains(";", e.Message, StringComparison.Ordinal);
    }
}
