using System.Text.Json;
using Aerostat.Platform;
using Aerostat.Storage;
using Xunit;

namespace Aerostat.Backup.Tests;

/// <summary>
/// Seeded histories of a machine with disks of every kind, beside arrays of bytes: what is written, zeroed and discarded before, between and during backups, full ones
/// and increments on increments, with restarts, crashes, attempts that fail, and retention. Whatever the store still has is restored, raw and as qcow2,
/// and is what the disks were at its moment.
/// </summary>
public sealed class RandomHistoryTests
{
    private const int Steps = 28, Chunk = TrackedDisk.BlockSize, MostChunks = 20;

    /// <summary>More of them: AEROSTAT_HISTORIES.</summary>
    public static TheoryData<int> Seeds => [.. Enumerable.Range(1, int.TryParse(Environment.GetEnvironmentVariable("AEROSTAT_HISTORIES"), out int count) ? count : 12)];

    [Theory, MemberData(nameof(Seeds))]
    public async Task WhatIsRestoredIsWhatWasThere(int seed)
    {
        DirectoryInfo folder = Directory.CreateTempSubdirectory("aerostat-history-");
        try
        {
            Random random = new(seed);
            (string Path, byte[] Contents)[] disks = [.. Enumerable.Range(0, random.Next(1, 3)).Select(i => Make(folder.FullName, i, random))];
            await using BackedUpMachine machine = new([.. disks.Select(d => d.Path)]);
            History history = new(machine, disks, folder.FullName, random);
            for (int i = 0; i < Steps; i++)
                await history.StepAsync();
            history.CheckAll();
        }
        finally
        {
            folder.Delete(recursive: true);
        }
    }

    // A raw image, or a qcow2 image, alone or over another one that is shorter.
    private static (string Path, byte[] Contents) Make(string folder, int number, Random random)
    {
        // The last chunk is not whole.
        byte[] contents = new byte[(random.Next(4, MostChunks) * Chunk) + (512 * random.Next(1, 128))];
        string path = Path.Combine(folder, $"disk{number}.img");
        int kind = random.Next(4);
        if (kind == 0)
        {
            using FileStream file = File.Create(path);
            file.SetLength(contents.Length);
            return (path, contents);
        }
        path = Path.ChangeExtension(path, "qcow2");
        Qcow2Options options = new() { ClusterSize = 1 << random.Next(9, 18) };
        if (kind > 1)
        {
            string under = Path.Combine(folder, $"under{number}" + (kind == 2 ? ".raw" : ".qcow2"));
            int length = contents.Length / random.Next(1, 4) / 512 * 512;
            if (kind == 2)
            {
                using FileStream file = File.Create(under);
                file.SetLength(length);
            }
            using (IDisk disk = kind == 2 ? RawDisk.Open(under, readOnly: false) : Qcow2Disk.Create(under, (ulong)length, new Qcow2Options { ClusterSize = 1 << random.Next(9, 18) }))
                for (int i = 0; i < 6; i++)
                    Change(disk, contents.AsSpan(0, length), random);
            options = options with { BackingFile = under, BackingFormat = kind == 2 ? DiskFormat.Raw : DiskFormat.Qcow2 };
        }
        Qcow2Disk.Create(path, (ulong)contents.Length, options).Dispose();
        return (path, contents);
    }

    // Contents, contents of zeros, zeros and discards, of sectors here and there, of whole chunks, and across them.
    private static void Change(IDisk disk, Span<byte> model, Random random)
    {
        int length = 512 * random.Next(1, random.Next(2) == 0 ? 8 : 600), offset = 512 * random.Next(model.Length / 512);
        if (random.Next(3) == 0)
            (offset, length) = (offset / Chunk * Chunk, Chunk * random.Next(1, 5));
        length = Math.Min(length, model.Length - offset);
        Span<byte> part = model.Slice(offset, length);
        switch (random.Next(6))
        {
            case 0:
                Assert.Equal(DiskResult.Done, disk.WriteZeroes((ulong)offset, (ulong)length, random.Next(2) == 0));
                part.Clear();
                break;
            case 1:
                // Not while there is a view, and not by every host.
                if (disk.Discard((ulong)offset, (ulong)length) == DiskResult.Done)
                    part.Clear();
                break;
            case 2:
                part.Clear();
                Write(disk, offset, part);
                break;
            default:
                random.NextBytes(part);
                // Half of it can be compressed.
                if (random.Next(2) == 0)
                    part[..(length / 2)].Fill((byte)random.Next(256));
                Write(disk, offset, part);
                break;
        }
    }

    private static void Write(IDisk disk, int offset, ReadOnlySpan<byte> bytes)
    {
        PinnedBuffer buffer = new(bytes.Length);
        bytes.CopyTo(buffer.Span);
        Assert.Equal(DiskResult.Done, disk.Write((ulong)offset, [buffer.Part(0, bytes.Length)]));
        buffer.KeepAlive();
    }

    private static byte[] ReadAll(IDisk disk)
    {
        PinnedBuffer buffer = new((int)disk.Length);
        Assert.Equal(DiskResult.Done, disk.Read(0, [buffer.Part(0, (int)disk.Length)]));
        buffer.KeepAlive();
        return buffer.Span.ToArray();
    }

    private sealed class History(BackedUpMachine machine, (string Path, byte[] Contents)[] disks, string folder, Random random)
    {
        // Two stores in turn: what has changed since which backup is another question for each.
        private readonly string[] stores = [machine.Store, machine.Store + "2"];
        private readonly Dictionary<string, byte[][]> moments = [];

        public async Task StepAsync()
        {
            switch (random.Next(10))
            {
                case < 4:
                    ChangeSome(4);
                    break;
                case < 7:
                    await BackUpAsync();
                    break;
                case 7:
                    await GiveUpAsync();
                    break;
                case 8:
                    await RestartAsync();
                    break;
                default:
                    if (moments.Count > 0)
                        Check(moments.Keys.ElementAt(random.Next(moments.Count)));
                    break;
            }
        }

        public void CheckAll()
        {
            foreach (string backup in moments.Keys)
                Check(backup);
            for (int i = 0; i < disks.Length; i++)
                AssertSame(disks[i].Contents, ReadAll(machine.Machine.Disks[i].Contents), $"disk {i}");
        }

        private void ChangeSome(int most)
        {
            for (int i = random.Next(1, most + 1); i > 0; i--)
            {
                int disk = random.Next(disks.Length);
                Change(machine.Machine.Disks[disk].Contents, disks[disk].Contents, random);
            }
        }

        private Task<BackupResult> SaveAsync(string store, int? keep, Func<Task> afterThaw) => machine.SaveAsync(
            incremental: random.Next(6) != 0, keep, afterThaw, memory: random.Next(3) * 2 * Chunk, store: store);

        private async Task BackUpAsync()
        {
            string store = stores[random.Next(2)];
            if (random.Next(4) == 0)
                Interrupt(store);
            int? keep = random.Next(2) == 0 ? random.Next(1, 5) : null;
            byte[][] moment = [.. disks.Select(d => (byte[])d.Contents.Clone())];
            BackupResult result = await SaveAsync(store, keep, () =>
            {
                if (random.Next(2) == 0)
                    ChangeSome(8);
                return Task.CompletedTask;
            });
            moments.Add(result.Backup.Path, moment);
            foreach (string removed in result.Removed)
                Assert.True(moments.Remove(Path.Combine(store, removed)));
            Assert.True(result.Removed.Count == 0 || keep is not null);
            Assert.Equal(moments.Keys.Count(k => Path.GetDirectoryName(k) == store), BackupStore.Open(store).Names.Count);
        }

        // The latest backup becomes what a killed process leaves of one: cut somewhere, with contents that never reached the disk.
        private void Interrupt(string directory)
        {
            string? name = Directory.Exists(directory) ? BackupStore.Open(directory).Names.LastOrDefault() : null;
            if (name is null)
                return;
            StoredBackup latest = BackupStore.Open(directory).Read(name);
            string partial = Path.Combine(directory, ".partial-killed");
            Directory.Move(latest.Path, partial);
            Assert.True(moments.Remove(latest.Path));
            BackupManifest manifest = latest.Manifest;
            BackupStart start = new(manifest.Machine, manifest.Parent?.Id, [.. manifest.Disks.Select(d => new BackupStartDisk(d.Name, d.Length))], manifest.Hash, manifest.HashSeed);
            File.WriteAllBytes(Path.Combine(partial, "start.json"), JsonSerializer.SerializeToUtf8Bytes(start, BackupJson.Default.BackupStart));
            foreach (BackupDisk disk in manifest.Disks)
            {
                string pack = Path.Combine(partial, disk.PackFile);
                byte[] index = File.ReadAllBytes(Path.Combine(partial, disk.IndexFile)), contents = File.ReadAllBytes(pack);
                // Without its first eight bytes an index is a journal.
                File.WriteAllBytes(Path.Combine(partial, disk.Name + ".journal"), index.AsSpan(8, random.Next(index.Length - 7)).ToArray());
                int lost = random.Next(contents.Length + 1);
                contents.AsSpan(lost, Math.Min(contents.Length - lost, 4096)).Clear();
                File.WriteAllBytes(pack, contents.AsSpan(0, contents.Length - random.Next(2) * random.Next(contents.Length + 1)).ToArray());
            }
        }

        // With writes after the moment, which are not taken back.
        private async Task GiveUpAsync()
        {
            string store = stores[random.Next(2)];
            await Assert.ThrowsAsync<BackupException>(() => SaveAsync(store, null, () =>
            {
                ChangeSome(4);
                throw new IOException("given up");
            }));
        }

        // In good order, or so that nobody knows what has changed.
        private async Task RestartAsync()
        {
            bool isCrash = random.Next(3) == 0;
            await machine.CloseAsync();
            foreach ((string path, _) in disks)
                if (isCrash)
                    File.Delete(path + ".changes");
            if (random.Next(3) == 0)
            {
                // Somebody else writes meanwhile.
                using IDisk disk = DiskImage.Open(disks[0].Path, null, readOnly: false);
                Change(disk, disks[0].Contents, random);
            }
            machine.Open();
        }

        private void Check(string backup)
        {
            BackupStore store = BackupStore.Open(Path.GetDirectoryName(backup)!);
            StoredBackup stored = store.Read(Path.GetFileName(backup));
            Assert.Empty(BackupReader.Verify(store, stored.Name));
            for (int i = 0; i < disks.Length; i++)
            {
                DiskFormat format = random.Next(2) == 0 ? DiskFormat.Raw : DiskFormat.Qcow2;
                string image = Path.Combine(folder, "restored." + (format == DiskFormat.Raw ? "img" : "qcow2"));
                // What is there already is replaced, whatever it is.
                if (random.Next(2) == 0)
                    File.WriteAllBytes(image, [.. Enumerable.Repeat((byte)0xA5, random.Next(1, 2 * disks[i].Contents.Length))]);
                BackupReader.Restore(store, stored, $"disk{i}", image, replace: true, BackupReader.Creator(format));
                using IDisk disk = DiskImage.Open(image, format, readOnly: true);
                AssertSame(moments[backup][i], ReadAll(disk), $"disk {i} of {backup}, {format}");
            }
        }

        private static void AssertSame(byte[] expected, byte[] actual, string what)
        {
            Assert.Equal(expected.Length, actual.Length);
            int at = expected.AsSpan().CommonPrefixLength(actual);
            Assert.True(at == expected.Length, $"{what}: another byte at {at} (chunk {at / Chunk})");
        }
    }
}
