using System.Text;
using Aerostat.Guest.Drivers;
using Xunit;

namespace Aerostat.Guest.Tests;

/// <summary>The guest's file system in this process: what it does, and what is left of it when the machine stops at any moment.</summary>
public sealed class FileSystemTests : IDisposable
{
    private const ulong Blocks = 512;

    private readonly HostPlatform platform = new();

    public void Dispose() => platform.Dispose();

    private static byte[] Name(string name) => Encoding.ASCII.GetBytes(name);

    private static void Done(FileSystemError error) => Assert.Equal(FileSystemError.None, error);

    private FileSystem Mounted(MemoryDisk disk, bool format = true, uint journal = FileSystemLayout.MostJournal)
    {
        FileSystem fileSystem = new(platform);
        if (format)
            Done(fileSystem.Format(disk, journal));
        Done(fileSystem.Mount(disk));
        return fileSystem;
    }

    private void CheckClean(FileSystem fileSystem)
    {
        int lines = platform.Lines.Count;
        Done(fileSystem.Check(out ulong faults));
        Assert.True(faults == 0, string.Join("; ", platform.Lines.Skip(lines)));
    }

    private static Dictionary<string, byte[]> Read(FileSystem fileSystem)
    {
        Dictionary<string, byte[]> files = [];
        byte[] name = new byte[FileSystem.MostNameLength];
        for (int file = 0; file < FileSystem.MostFiles; file++)
        {
            int length = fileSystem.GetName(file, name);
            if (length == 0)
                continue;
            byte[] data = new byte[fileSystem.GetLength(file)];
            Assert.Equal(data.Length, fileSystem.Read(file, 0, data, 0, data.Length));
            files.Add(Encoding.ASCII.GetString(name, 0, length), data);
        }
        return files;
    }

    private static bool AreSame(Dictionary<string, byte[]> a, Dictionary<string, byte[]> b) => a.Count == b.Count && a.All(f => b.TryGetValue(f.Key, out byte[]? other) && f.Value.AsSpan().SequenceEqual(other));

    [Fact]
    public void FilesKeepWhatIsWritten()
    {
        MemoryDisk disk = new(platform, 8192);
        FileSystem fileSystem = Mounted(disk);
        byte[] large = new byte[(16 + 1024 + 700) * 4096 + 123];
        new Random(1).NextBytes(large);
        Done(fileSystem.Create(Name("large"), 0, 5, out int file));
        Assert.Equal(FileSystemError.Exists, fileSystem.Create(Name("large"), 0, 5, out _));
        Assert.Equal(FileSystemError.BadName, fileSystem.Create(new byte[40], 0, 32, out _));
        Assert.Equal(FileSystemError.NoSuchFile, fileSystem.Find(Name("larg"), 0, 4, out _));
        for (int at = 0; at < large.Length; at += 100_000)
            Done(fileSystem.Append(file, large, at, Math.Min(100_000, large.Length - at)));
        large.AsSpan(5000, 10_000).Clear();
        Done(fileSystem.Write(file, 5000, large, 5000, 10_000));
        Assert.Equal(FileSystemError.OutOfRange, fileSystem.Write(file, (ulong)large.Length + 1, large, 0, 1));
        Done(fileSystem.Unmount());
        fileSystem = Mounted(disk, format: false);
        Assert.Equal(0ul, fileSystem.Replayed);
        Assert.Equal(large, Assert.Single(Read(fileSystem)).Value);
        CheckClean(fileSystem);
        fileSystem.Release();
        Assert.Equal(0x41, platform.TakenPages);
    }

    [Fact]
    public void AFullDiskAndAFullTableAreErrors()
    {
        FileSystem fileSystem = Mounted(new MemoryDisk(platform, 100), journal: 24);
        for (int i = 0; i < FileSystem.MostFiles; i++)
            Done(fileSystem.Create(Name($"file{i}"), 0, Name($"file{i}").Length, out _));
        Assert.Equal(FileSystemError.TooManyFiles, fileSystem.Create(Name("more"), 0, 4, out _));
        byte[] data = new byte[4096];
        FileSystemError error;
        int written = 0;
        while ((error = fileSystem.Append(3, data, 0, data.Length)) == FileSystemError.None)
            written++;
        Assert.Equal(FileSystemError.NoSpace, error);
        Assert.InRange(written, 50, 70);
        Done(fileSystem.Sync());
        CheckClean(fileSystem);
    }

    [Fact]
    public void WhatIsNoFileSystemIsRefused()
    {
        MemoryDisk disk = new(platform, Blocks);
        FileSystem fileSystem = new(platform);
        Assert.Equal(FileSystemError.Corrupt, fileSystem.Mount(disk));
        Assert.Equal(FileSystemError.OutOfRange, fileSystem.Format(new MemoryDisk(platform, 20)));
        Assert.Equal(FileSystemError.ReadOnly, fileSystem.Format(new MemoryDisk(platform, Blocks) { ReadOnly = true }));
        Assert.Equal(FileSystemError.NotMounted, fileSystem.Sync());
        Done(fileSystem.Format(disk));
        disk.Contents[0][12] ^= 1;
        Assert.Equal(FileSystemError.Corrupt, fileSystem.Mount(disk));
    }

    /// <summary>Frozen, nothing is written, the journal is empty, and a copy needs no repair.</summary>
    [Fact]
    public void ACopyOfAFrozenDiskIsWhole()
    {
        MemoryDisk disk = new(platform, Blocks);
        FileSystem fileSystem = Mounted(disk);
        RecordWriter writer = new(fileSystem);
        Done(writer.Start());
        for (int i = 0; i < 333; i++)
            Assert.True(writer.Service());
        Done(fileSystem.Freeze());
        int events = disk.Events.Count;
        Assert.False(writer.Service());
        Assert.Equal((1ul, true), (writer.HeldUp, writer.IsRunning));
        Assert.Equal(FileSystemError.Frozen, fileSystem.Create(Name("new"), 0, 3, out _));
        Assert.Equal(FileSystemError.Frozen, fileSystem.Freeze());
        Assert.Equal(FileSystemError.Frozen, fileSystem.Unmount());
        CheckClean(fileSystem);
        Assert.Equal(events, disk.Events.Count);
        // For reading only: a mount that would have to repair something is refused.
        FileSystem copy = new(platform);
        Done(copy.Mount(disk.Copy(), forReading: true));
        CheckClean(copy);
        Assert.True(new RecordWriter(copy).Verify(out ulong count));
        Assert.Equal(333ul, count);
        Done(fileSystem.Thaw());
        Assert.True(writer.Service());
        Assert.Equal(FileSystemError.NeedsReplay, new FileSystem(platform).Mount(disk.Copy(), forReading: true));
    }

    /// <summary>A device that fails at any moment: nothing more is said to be durable, nothing is written any more, and what was said before is there.</summary>
    [Fact]
    public void WhatADeviceThatFailsHasConfirmedIsThere()
    {
        for (int after = 0; after < 160; after++)
        {
            MemoryDisk disk = new(platform, Blocks);
            FileSystem fileSystem = Mounted(disk, journal: 24);
            RecordWriter writer = new(fileSystem);
            disk.FailsAfter = after;
            if (writer.Start() != FileSystemError.None)
                continue;
            for (int i = 0; i < 200 && writer.IsRunning; i++)
                writer.Service();
            Assert.Equal(FileSystemError.Device, writer.Error);
            Assert.Equal(FileSystemError.Device, fileSystem.Freeze());
            int events = disk.Events.Count;
            disk.FailsAfter = int.MaxValue;
            Assert.Equal(FileSystemError.Device, fileSystem.Sync());
            Done(fileSystem.Unmount());
            Assert.Equal(events, disk.Events.Count);
            fileSystem.Release();
            fileSystem = Mounted(disk, format: false);
            CheckClean(fileSystem);
            RecordWriter reader = new(fileSystem);
            bool whole = reader.Verify(out ulong count);
            Assert.True(whole ? count >= writer.Acknowledged : writer.Acknowledged == 0);
            fileSystem.Release();
        }
    }

    // What was done, so many events of the disk after the beginning, and what files there were then.
    private sealed record Step(int Events, bool IsDurable, Dictionary<string, byte[]> Files);

    /// <summary>
    /// Files are written at random, and the machine stops after each single write to the disk, with what was not flushed lost, torn and in any order. The file system then
    /// checks clean, and has what there was after one of the operations: none is there in part, and none that a sync followed is missing.
    /// </summary>
    [Theory]
    [InlineData(1)]
    [InlineData(2)]
    public void EveryMomentIsAGoodOneToStop(int seed)
    {
        Random random = new(seed);
        MemoryDisk disk = new(platform, Blocks);
        FileSystem fileSystem = Mounted(disk, journal: seed == 1 ? 24u : FileSystemLayout.MostJournal);
        MemoryDisk before = disk.Copy();
        disk.Events.Clear();
        Dictionary<string, byte[]> files = [];
        List<Step> steps = [new(0, true, [])];
        for (int step = 0; step < 50; step++)
        {
            bool durable = Do(fileSystem, files, random);
            steps.Add(new Step(disk.Events.Count, durable, new Dictionary<string, byte[]>(files)));
        }
        fileSystem.Unmount();
        fileSystem.Release();
        int replays = 0, latest = 0;
        for (int count = 0; count <= disk.Events.Count; count++)
            for (int kind = 0; kind < 3; kind++)
            {
                MemoryDisk crashed = MemoryDisk.Crashed(before, disk.Events, count, kind == 0 ? null : new Random((seed * 10_000) + (count * 10) + kind));
                MemoryDisk unmounted = crashed.Copy();
                FileSystem after = Mounted(crashed, format: false);
                replays += after.Replayed > 0 ? 1 : 0;
                CheckClean(after);
                Dictionary<string, byte[]> found = Read(after);
                int least = steps.FindLastIndex(s => s.IsDurable && s.Events <= count);
                int at = steps.FindIndex(least, s => AreSame(s.Files, found));
                Assert.True(at >= 0, $"seed {seed}, stopped after {count} of {disk.Events.Count} ({kind}): what is there is none of the states from {least} on");
                latest += at > least ? 1 : 0;
                // Whoever stops again while it is repaired is no worse off.
                if (kind == 1 && after.Replayed > 0)
                    CheckRepeatedStops(unmounted, crashed, found, random);
                Done(after.Unmount());
                after.Release();
            }
        // Both kinds of what may happen did.
        Assert.InRange(replays, 40, int.MaxValue);
        Assert.InRange(latest, 3, int.MaxValue);
    }

    private static bool Do(FileSystem fileSystem, Dictionary<string, byte[]> files, Random random)
    {
        int kind = random.Next(10);
        if (kind < 2 || files.Count == 0)
        {
            string name = $"f{files.Count}";
            Done(fileSystem.Create(Name(name), 0, name.Length, out _));
            files.Add(name, []);
            return false;
        }
        if (kind == 9)
        {
            Done(fileSystem.Freeze());
            Done(fileSystem.Thaw());
            return true;
        }
        if (kind >= 7)
        {
            Done(fileSystem.Sync());
            return true;
        }
        string chosen = files.Keys.ElementAt(random.Next(files.Count));
        byte[] old = files[chosen];
        int offset = kind < 5 ? old.Length : random.Next(old.Length + 1), length = random.Next(1, random.Next(2) == 0 ? 300 : FileSystem.MostAtOnce);
        byte[] data = new byte[length];
        random.NextBytes(data);
        byte[] now = [.. old];
        Array.Resize(ref now, Math.Max(old.Length, offset + length));
        data.CopyTo(now, offset);
        Done(fileSystem.Find(Name(chosen), 0, chosen.Length, out int file));
        Done(fileSystem.Write(file, (ulong)offset, data, 0, length));
        files[chosen] = now;
        return false;
    }

    private void CheckRepeatedStops(MemoryDisk before, MemoryDisk mounted, Dictionary<string, byte[]> expected, Random random)
    {
        MemoryDisk again = MemoryDisk.Crashed(before, mounted.Events, random.Next(mounted.Events.Count + 1), random);
        FileSystem fileSystem = Mounted(again, format: false);
        CheckClean(fileSystem);
        Assert.True(AreSame(expected, Read(fileSystem)));
        Done(fileSystem.Unmount());
        fileSystem.Release();
    }
}
