using Aerostat.Platform;
using Aerostat.Storage;
using Xunit;

namespace Aerostat.Backup.Tests;

/// <summary>A view is what the disk was, with several writers at work before, during and after.</summary>
public sealed class PointInTimeTests
{
    private const int Blocks = 64, Sectors = Blocks * TrackedDisk.BlockSize / 512;

    // Each writer counts up in its own sectors of both disks, the first disk first: a point in time has at most one count more on the first.
    [Fact]
    public async Task WritesAreBeforeOrAfterOnAllDisks()
    {
        CancellationToken token = TestContext.Current.CancellationToken;
        string folder = Directory.CreateTempSubdirectory("aerostat-view-").FullName;
        try
        {
            TrackedDisk[] disks = [.. Enumerable.Range(0, 2).Select(i => Open(Path.Combine(folder, $"{i}.img")))];
            using CancellationTokenSource over = new();
            const int Writers = 3;
            int[] rounds = new int[Writers];
            Task[] writers = [.. Enumerable.Range(0, Writers).Select(w => Task.Run(() =>
            {
                PinnedBuffer buffer = new(512);
                for (int round = 1; !over.IsCancellationRequested; round++)
                {
                    buffer.Span.Fill(0);
                    BitConverter.TryWriteBytes(buffer.Span, round);
                    // All over the disk, so that blocks are shared.
                    ulong sector = (ulong)((w + (round * 37 * Writers)) % (Sectors / Writers * Writers));
                    foreach (TrackedDisk disk in disks)
                    {
                        disk.Write(sector * 512, [buffer.Part(0, 512)]);
                        buffer.KeepAlive();
                    }
                    Volatile.Write(ref rounds[w], round);
                }
            }, token))];
            for (int i = 0; i < 20; i++)
            {
                using PointInTime point = new([.. disks.Select(d => (d, (uint?)null))], folder, i % 2 == 0 ? 0 : 1 << 20);
                int[] before = [.. rounds.Select((_, w) => Volatile.Read(ref rounds[w]))];
                point.Take();
                int[] after = [.. rounds.Select((_, w) => Volatile.Read(ref rounds[w]))];
                byte[][] seen = [.. point.Views.Select(ReadAll)];
                for (int w = 0; w < Writers; w++)
                {
                    int[] last = [.. seen.Select(s => Last(s, w, Writers, after[w] + 2))];
                    Assert.InRange(last[0], before[w], after[w] + 1);
                    Assert.InRange(last[1], last[0] - 1, last[0]);
                }
            }
            await over.CancelAsync();
            await Task.WhenAll(writers);
            foreach (TrackedDisk disk in disks)
                disk.Dispose();
            Assert.Equal(["0.img", "1.img"], Directory.EnumerateFiles(folder).Select(f => Path.GetFileName(f)!).Order(StringComparer.Ordinal));
        }
        finally
        {
            Directory.Delete(folder, recursive: true);
        }
    }

    // A random order of writes, zeroing and reading of the view, against a plain copy.
    [Theory]
    [InlineData(1, false)]
    [InlineData(2, false)]
    [InlineData(3, true)]
    [InlineData(4, true)]
    public void AViewIsThePlainCopy(int seed, bool changesOnly)
    {
        string folder = Directory.CreateTempSubdirectory("aerostat-view-").FullName;
        try
        {
            Random random = new(seed);
            string image = Path.Combine(folder, "disk.img");
            using TrackedDisk disk = Open(image);
            disk.Track();
            byte[] model = new byte[Blocks * TrackedDisk.BlockSize];
            for (int round = 0; round < 12; round++)
            {
                uint since = disk.Changes!.Epoch - 1;
                byte[] old = (byte[])model.Clone();
                for (int i = 0; i < 6; i++)
                    Change(disk, model, random);
                using PointInTime point = new([(disk, changesOnly ? since : null)], folder, 2 * TrackedDisk.BlockSize);
                byte[] moment = (byte[])model.Clone();
                point.Take();
                DiskView view = point.Views[0];
                PinnedBuffer buffer = new(4 * TrackedDisk.BlockSize);
                // Where nothing is said to have changed it must be as before.
                byte[] seen = changesOnly ? old : new byte[model.Length];
                for (long block = view.Next(0); block < view.Blocks;)
                {
                    if (random.Next(2) == 0)
                        Change(disk, model, random);
                    int count = 1;
                    while (count < 4 && view.Next(block + count) == block + count && block + count < view.Blocks)
                        count++;
                    if (random.Next(2) == 0)
                        Change(disk, model, random);
                    count = view.Read(block, count, buffer, 0, out ViewRun kind);
                    Span<byte> to = seen.AsSpan((int)block * TrackedDisk.BlockSize, count * TrackedDisk.BlockSize);
                    if (kind == ViewRun.Data)
                        buffer.Span[..to.Length].CopyTo(to);
                    else
                        to.Clear();
                    block = view.Next(block + count);
                }
                Assert.Null(view.Failure);
                Assert.True(moment.AsSpan().SequenceEqual(seen), $"round {round}");
            }
            Assert.Equal(model, File.ReadAllBytes(image));
        }
        finally
        {
            Directory.Delete(folder, recursive: true);
        }
    }

    [Fact]
    public void AClosedDiskEndsTheView()
    {
        string folder = Directory.CreateTempSubdirectory("aerostat-view-").FullName;
        try
        {
            TrackedDisk disk = Open(Path.Combine(folder, "disk.img"));
            using PointInTime point = new([(disk, null)], folder, 0);
            point.Take();
            disk.Dispose();
            Assert.Contains("closed", Assert.Throws<IOException>(() => point.Views[0].Check()).Message, StringComparison.Ordinal);
        }
        finally
        {
            Directory.Delete(folder, recursive: true);
        }
    }

    private static TrackedDisk Open(string path)
    {
        using (FileStream file = File.Create(path))
            file.SetLength(Blocks * TrackedDisk.BlockSize);
        return new TrackedDisk(RawDisk.Open(path, readOnly: false));
    }

    private static void Change(TrackedDisk disk, byte[] model, Random random)
    {
        int length = 512 * random.Next(1, 300), offset = 512 * random.Next(Sectors - (length / 512));
        if (random.Next(4) == 0)
        {
            disk.WriteZeroes((ulong)offset, (ulong)length, random.Next(2) == 0);
            model.AsSpan(offset, length).Clear();
            return;
        }
        PinnedBuffer buffer = new(length);
        random.NextBytes(buffer.Span);
        buffer.Span.CopyTo(model.AsSpan(offset));
        disk.Write((ulong)offset, [buffer.Part(0, length)]);
        buffer.KeepAlive();
    }

    private static byte[] ReadAll(DiskView view)
    {
        byte[] all = new byte[view.Length];
        PinnedBuffer buffer = new(4 * TrackedDisk.BlockSize);
        for (long block = 0; block < view.Blocks;)
        {
            int count = view.Read(block, (int)Math.Min(4, view.Blocks - block), buffer, 0, out ViewRun kind);
            if (kind == ViewRun.Data)
                buffer.Span[..(count * TrackedDisk.BlockSize)].CopyTo(all.AsSpan((int)block * TrackedDisk.BlockSize));
            block += count;
        }
        return all;
    }

    // The latest round of a writer that is on a disk, all before it being there too.
    private static int Last(byte[] disk, int writer, int writers, int most)
    {
        int usable = Sectors / writers * writers, last = 0;
        for (int round = 1; round <= most; round++)
        {
            int sector = (writer + (round * 37 * writers)) % usable, value = BitConverter.ToInt32(disk, sector * 512);
            if (value >= round)
                last = Math.Max(last, value);
        }
        for (int round = Math.Max(1, last - (usable / writers) + 1); round <= last; round++)
            Assert.Equal(round, BitConverter.ToInt32(disk, (writer + (round * 37 * writers)) % usable * 512));
        return last;
    }
}
