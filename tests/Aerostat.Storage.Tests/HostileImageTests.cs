using System.Buffers.Binary;
using System.Diagnostics;
using System.Globalization;

namespace Aerostat.Storage.Tests;

/// <summary>
/// Images that somebody made to do harm: headers, tables and entries with values that nobody wrote. An image is refused with a line, or can be read
/// and written to with errors at most: nothing is thrown, nothing hangs, and nothing but the image changes. AEROSTAT_FUZZ_SECONDS makes it run
/// longer with other seeds; those that failed are kept.
/// </summary>
public sealed class HostileImageTests
{
    private const int Seeds = 1500, Size = 256 << 10;

    [Fact]
    public void NothingIsThrown()
    {
        QemuImage.Require();
        using Tools.Scratch scratch = new();
        byte[][] images = [.. Images(scratch)];
        int opened = 0, refused = 0;
        foreach (string line in CaseStore.Lines("images"))
            Run(images, int.Parse(line, CultureInfo.InvariantCulture), scratch);
        for (int seed = 0; seed < Seeds; seed++)
            _ = Try(images, seed, scratch) ? opened++ : refused++;
        Assert.True(opened > Seeds / 10 && refused > Seeds / 10, $"{opened} opened, {refused} refused");
        if (double.TryParse(Environment.GetEnvironmentVariable("AEROSTAT_FUZZ_SECONDS"), CultureInfo.InvariantCulture, out double seconds))
        {
            long start = Stopwatch.GetTimestamp(), count = 0;
            for (; Stopwatch.GetElapsedTime(start).TotalSeconds < seconds; count++)
                Try(images, Random.Shared.Next(), scratch);
            TestContext.Current.TestOutputHelper?.WriteLine($"{count} images");
        }
    }

    private static bool Try(byte[][] images, int seed, Tools.Scratch scratch)
    {
        try
        {
            return Run(images, seed, scratch);
        }
        catch (Exception e)
        {
            throw new InvalidOperationException($"seed {seed}: {CaseStore.Save("images", $"{seed}", e.Message)}", e);
        }
    }

    private static IEnumerable<byte[]> Images(Tools.Scratch scratch)
    {
        Random random = new(1);
        foreach ((int clusterSize, int refcountBits) in ((int, int)[])[(512, 16), (512, 1), (4096, 64), (1024, 8)])
        {
            string image = Path.Combine(scratch.Path, $"{clusterSize}-{refcountBits}.qcow2");
            byte[] contents = new byte[Size];
            for (int at = 0; at < Size; at += 5000)
                contents.AsSpan(at, 2000).Fill((byte)random.Next(9));
            QemuImage.Run(scratch, "qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", "-o", $"cluster_size={clusterSize},refcount_bits={refcountBits},compression_type={(refcountBits == 64 ? "zstd" : "zlib")}",
                scratch.File("contents", contents), image);
            using (Qcow2Disk disk = Qcow2Disk.Open(image, readOnly: false))
                for (int i = 0; i < 20; i++)
                    disk.Write((ulong)random.Next(Size / 512 - 8) * 512, contents.AsSpan(0, 4096));
            if (refcountBits > 1)
                QemuImage.Run(scratch, "qemu-img", "snapshot", "-c", "s", image);
            yield return File.ReadAllBytes(image);
        }
    }

    private static bool Run(byte[][] images, int seed, Tools.Scratch scratch)
    {
        Random random = new(seed);
        byte[] image = [.. images[random.Next(images.Length)]];
        int clusterSize = 1 << BinaryPrimitives.ReadInt32BigEndian(image.AsSpan(20));
        for (int n = random.Next(1, 5); n > 0; n--)
            Damage(image, clusterSize, random);
        if (random.Next(8) == 0)
            image = image[..random.Next(image.Length)];
        string path = scratch.File("hostile.qcow2", image);
        bool readOnly = random.Next(4) == 0;
        Qcow2Disk disk;
        try
        {
            disk = Qcow2Disk.Open(path, readOnly);
        }
        catch (IOException e)
        {
            Assert.DoesNotContain('\n', e.Message);
            return false;
        }
        using (disk)
        {
            byte[] bytes = GC.AllocateArray<byte>(16 << 10, pinned: true);
            for (int i = 0; i < 40; i++)
            {
                ulong length = (ulong)random.Next(1, 32) * 512, offset = (ulong)random.NextInt64((long)(Math.Min(disk.Length, random.Next(4) == 0 ? ulong.MaxValue : Size) / 512)) * 512;
                length = Math.Min(length, disk.Length - offset);
                switch (random.Next(8))
                {
                    case < 3:
                        disk.Write(offset, [Bytes.Buffer(bytes, 0, (int)length)]);
                        break;
                    case 3:
                        disk.Discard(offset, length);
                        break;
                    case 4:
                        disk.WriteZeroes(offset, length, mayUnmap: false);
                        break;
                    case 5:
                        disk.Flush();
                        break;
                    case 6:
                        Assert.InRange(disk.BlockStatus(offset, length).Length, 1UL, length);
                        break;
                    default:
                        disk.Read(offset, [Bytes.Buffer(bytes, 0, (int)length)]);
                        break;
                }
            }
            GC.KeepAlive(bytes);
        }
        return true;
    }

    // A field of the header, or an entry of whatever is in a cluster of tables; random, near what was there, or one that is good somewhere else.
    private static void Damage(byte[] image, int clusterSize, Random random)
    {
        int at;
        if (random.Next(3) == 0)
        {
            at = random.Next(28) * 4;
        }
        else
        {
            int table = random.Next(4) switch
            {
                0 => (int)BinaryPrimitives.ReadInt64BigEndian(image.AsSpan(40)),
                1 => (int)BinaryPrimitives.ReadInt64BigEndian(image.AsSpan(48)),
                2 => (int)BinaryPrimitives.ReadInt64BigEndian(image.AsSpan(64)),
                _ => random.Next(image.Length / clusterSize) * clusterSize,
            };
            at = Math.Clamp(table, 0, image.Length - clusterSize) + random.Next(random.Next(2) == 0 ? 8 : clusterSize / 8) * 8;
        }
        Span<byte> field = image.AsSpan(Math.Clamp(at, 0, image.Length - 8), random.Next(3) == 0 ? 4 : 8);
        switch (random.Next(5))
        {
            case 0:
                random.NextBytes(field);
                break;
            case 1:
                field[random.Next(field.Length)] ^= (byte)(1 << random.Next(8));
                break;
            case 2:
                image.AsSpan(random.Next(image.Length / 8) * 8, field.Length).CopyTo(field);
                break;
            case 3:
                field.Fill((byte)random.Next(2) == 0 ? (byte)0 : (byte)255);
                break;
            default:
                // A cluster of this file, with flags.
                ulong entry = (ulong)random.Next(image.Length / clusterSize) * (ulong)clusterSize | (ulong)random.Next(4) << 62;
                Span<byte> value = stackalloc byte[8];
                BinaryPrimitives.WriteUInt64BigEndian(value, entry);
                value[..field.Length].CopyTo(field);
                break;
        }
    }
}
