using Aerostat.Storage;
using Xunit;

namespace Aerostat.Backup.Tests;

/// <summary>What comes out is what was there at the moment, whatever was written since.</summary>
public sealed class RoundTripTests
{
    [Fact]
    public async Task AChainKeepsItsHash()
    {
        await using BackedUpMachine guest = new(2);
        guest.WriteNoise(0, new Random(1), 0, 1 << 20);
        BackupManifest full = (await guest.SaveAsync(hash: BackupHash.Sha256)).Backup.Manifest;
        guest.WriteNoise(0, new Random(2), 4096, 4096);
        BackupResult next = await guest.SaveAsync(incremental: true);
        Assert.Equal((BackupHash.Sha256, 0L), (full.Hash, full.HashSeed));
        Assert.Equal((BackupHash.Sha256, 0L, full.Id), (next.Backup.Manifest.Hash, next.Backup.Manifest.HashSeed, next.Backup.Manifest.Parent!.Id));
        Assert.Equal(guest.Read(0), guest.Restore());
        // Seeds are each chain's own.
        BackupManifest one = (await guest.SaveAsync()).Backup.Manifest, another = (await guest.SaveAsync()).Backup.Manifest;
        Assert.Equal((BackupHash.XxHash128, BackupHash.XxHash128), (one.Hash, another.Hash));
        Assert.NotEqual(one.HashSeed, another.HashSeed);
        Assert.Equal(guest.Read(0), guest.Restore());
    }

    [Fact]
    public async Task DisksAreRestoredAsTheyWereAtTheMoment()
    {
        await using BackedUpMachine guest = new(8, 3);
        Random random = new(1);
        guest.WriteNoise(0, random, 1 << 20, 700_416);
        guest.WriteNoise(0, random, 7 << 20, 1 << 20);
        guest.WriteNoise(1, random, 512, 4096);
        byte[][] before = [guest.Read(0), guest.Read(1)];
        BackupResult result = await guest.SaveAsync(memory: 0, afterThaw: () =>
        {
            guest.WriteNoise(0, random, (1 << 20) + 1024, 512);
            guest.WriteNoise(0, random, 3 << 20, 200_192);
            guest.WriteNoise(0, random, (7 << 20) + 65024, 70_144);
            guest.WriteNoise(1, random, 0, 3 << 20);
            Assert.Equal(DiskResult.Done, guest.Machine.Disks[0].Contents.WriteZeroes(1 << 20, 131072, mayUnmap: true));
            Assert.Equal(DiskResult.Unsupported, guest.Machine.Disks[0].Contents.Discard(1 << 20, 1 << 20));
            return Task.CompletedTask;
        });
        Assert.Equal(before[0], guest.Restore(disk: "disk0"));
        Assert.Equal(before[1], guest.Restore(disk: "disk1"));
        Assert.NotEqual(before[1], guest.Read(1));
        Assert.InRange(result.SavedBlocks, 50, 60);
        Assert.InRange(result.SpilledBytes, 65536, 10 << 20);
        Assert.Equal(BackupConsistency.Crash, result.Backup.Manifest.Consistency);
        Assert.Contains("hyperv", result.Backup.Manifest.ConsistencyReason, StringComparison.Ordinal);
        Assert.Empty(BackupReader.Verify(BackupStore.Open(guest.Store), result.Backup.Name, null, TestContext.Current.CancellationToken));
        // Nothing is left beside the backup; the disk is an ordinary one again.
        Assert.Equal([".lock", result.Backup.Name, "store.json"], Directory.EnumerateFileSystemEntries(guest.Store).Select(e => Path.GetFileName(e)!).Order(StringComparer.Ordinal));
        Assert.NotEqual(DiskResult.Unsupported, guest.Machine.Disks[0].Contents.Discard(1 << 20, 65536));
    }

    [Fact]
    public async Task Qcow2ImagesAreBackedUpAndRestored()
    {
        CancellationToken token = TestContext.Current.CancellationToken;
        string folder = Directory.CreateTempSubdirectory("aerostat-backup-").FullName;
        try
        {
            string image = Path.Combine(folder, "disk.qcow2"), copy = Path.Combine(folder, "copy.qcow2"), store = Path.Combine(folder, "store");
            Qcow2Disk.Create(image, 8 << 20).Dispose();
            await using (BackedUpMachine guest = new([image]))
            {
                guest.WriteNoise(0, new Random(1), 1 << 20, 1 << 20);
                await guest.SaveAsync(store: store, afterThaw: () =>
                {
                    guest.WriteNoise(0, new Random(2), (1 << 20) + 65536, 65536);
                    guest.WriteNoise(0, new Random(3), 5 << 20, 65536);
                    return Task.CompletedTask;
                });
                guest.WriteNoise(0, new Random(1), 1 << 20, 1 << 20);
                guest.Machine.Disks[0].Contents.WriteZeroes(5 << 20, 65536, mayUnmap: true);
                BackupResult same = await guest.SaveAsync(store: store, incremental: true);
                Assert.Equal(0, same.StoredBytes);
            }
            BackupStore made = BackupStore.Open(store);
            BackupReader.Restore(made, made.Find(made.Names[0]), "disk0", copy, replace: false, BackupReader.Creator(DiskFormat.Qcow2), null, token);
            Assert.InRange(new FileInfo(copy).Length, 1 << 20, 2 << 20);
            if (File.Exists("/usr/bin/qemu-img"))
            {
                Assert.Equal(0, FailureTests.Run("qemu-img", "check", "-q", copy));
                Assert.Equal(0, FailureTests.Run("qemu-img", "compare", "-q", image, copy));
            }
        }
        finally
        {
            Directory.Delete(folder, recursive: true);
        }
    }

    [Fact]
    public async Task IncrementalBackupsReadOnlyWhatHasChanged()
    {
        await using BackedUpMachine guest = new(16);
        Random random = new(2);
        guest.WriteNoise(0, random, 0, 4 << 20);
        List<(string Name, byte[] Contents)> all = [];
        BackupResult full = await guest.SaveAsync();
        all.Add((full.Backup.Name, guest.Read(0)));
        for (int i = 0; i < 4; i++)
        {
            guest.WriteNoise(0, random, 65536 * random.Next(200), 65536);
            byte[] moment = [];
            if (i == 1)
                guest.Machine.Disks[0].Contents.WriteZeroes(0, 65536 * 3, mayUnmap: true);
            moment = guest.Read(0);
            BackupResult result = await guest.SaveAsync(incremental: true, afterThaw: () =>
            {
                // To what was changed before, to what was not, and to a hole.
                for (int n = 0; n < 8; n++)
                    guest.WriteNoise(0, random, 4096 * random.Next(4000), 8192);
                return Task.CompletedTask;
            });
            Assert.Empty(result.Backup.Manifest.Notes);
            Assert.Equal(all[^1].Name, result.Backup.Manifest.Parent!.Name);
            Assert.InRange(result.ReadBytes, 1, 65536 * 22);
            all.Add((result.Backup.Name, moment));
        }
        foreach ((string name, byte[] contents) in all)
        {
            Assert.Equal(contents, guest.Restore(name));
            Assert.Empty(BackupReader.Verify(BackupStore.Open(guest.Store), name, null, TestContext.Current.CancellationToken));
        }
    }

    [Fact]
    public async Task ChangesAreKnownAcrossACleanRestartAndNotAfterAnythingElse()
    {
        await using BackedUpMachine guest = new(16);
        Random random = new(3);
        guest.WriteNoise(0, random, 0, 4 << 20);
        await guest.SaveAsync();
        guest.WriteNoise(0, random, 1 << 20, 4096);
        await guest.CloseAsync();
        guest.Open();
        guest.WriteNoise(0, random, 9 << 20, 4096);
        BackupResult result = await guest.SaveAsync(incremental: true);
        Assert.Empty(result.Backup.Manifest.Notes);
        Assert.Equal(65536 * 2, result.ReadBytes);
        Assert.Equal(guest.Read(0), guest.Restore());

        // Somebody else writes while no machine runs.
        await guest.CloseAsync();
        using (FileStream file = File.OpenWrite(guest.Images[0]))
        {
            file.Seek(2 << 20, SeekOrigin.Begin);
            file.Write("somebody else was here"u8);
        }
        guest.Open();
        result = await guest.SaveAsync(incremental: true);
        Assert.Contains("something else has changed the image", Assert.Single(result.Backup.Manifest.Notes), StringComparison.Ordinal);
        Assert.NotNull(result.Backup.Manifest.Disks[0].FullScan);
        Assert.Equal(1, result.Backup.Manifest.Disks[0].Entries);
        Assert.Equal(guest.Read(0), guest.Restore());

        // A crash: the record still says that it is in use.
        byte[] inUse = File.ReadAllBytes(guest.Images[0] + ".changes");
        await guest.CloseAsync();
        byte[] clean = File.ReadAllBytes(guest.Images[0] + ".changes");
        File.WriteAllBytes(guest.Images[0] + ".changes", inUse);
        guest.Open();
        result = await guest.SaveAsync(incremental: true);
        Assert.Contains("ended without writing down", Assert.Single(result.Backup.Manifest.Notes), StringComparison.Ordinal);

        // A damaged record.
        await guest.CloseAsync();
        clean = File.ReadAllBytes(guest.Images[0] + ".changes");
        clean[^100] ^= 1;
        File.WriteAllBytes(guest.Images[0] + ".changes", clean);
        guest.Open();
        result = await guest.SaveAsync(incremental: true);
        Assert.Contains("damaged", Assert.Single(result.Backup.Manifest.Notes), StringComparison.Ordinal);
    }

    [Fact]
    public async Task BackupsThatAreNotKeptGoWhenNothingBuildsOnThem()
    {
        await using BackedUpMachine guest = new(1);
        List<string> names = [];
        for (int i = 0; i < 6; i++)
        {
            guest.WriteNoise(0, new Random(i), 0, 4096);
            BackupResult result = await guest.SaveAsync(incremental: true, keep: 3);
            names.Add(result.Backup.Name);
            // Chains of three: the fourth backup is a full one again.
            Assert.Equal(i % 3 == 0, result.Backup.Manifest.Parent is null);
            string[] removed = i == 5 ? [names[2], names[1], names[0]] : [];
            Assert.Equal(removed, result.Removed);
        }
        Assert.Equal(names[3..], BackupStore.Open(guest.Store).Names);
        Assert.Equal(guest.Read(0), guest.Restore());
    }

    // Such as one whose file system has an error for a while: what it builds on must be there when it can be read again.
    [Fact]
    public async Task WhatAnUnreadableBackupMayBuildOnIsKept()
    {
        await using BackedUpMachine guest = new(1);
        List<string> names = [];
        for (int i = 0; i < 3; i++)
        {
            guest.WriteNoise(0, new Random(i), 4096 * i, 4096);
            names.Add((await guest.SaveAsync(incremental: true)).Backup.Name);
        }
        byte[] moment = guest.Read(0);
        string manifest = Path.Combine(guest.Store, names[1], BackupManifest.FileName);
        File.Move(manifest, manifest + ".away");
        BackupResult full = await guest.SaveAsync(keep: 1);
        Assert.Equal([names[2]], full.Removed);
        Assert.Equal([names[0], names[1], full.Backup.Name], BackupStore.Open(guest.Store).Names);
        File.Move(manifest + ".away", manifest);
        Assert.Empty(BackupReader.Verify(BackupStore.Open(guest.Store), names[1], null, TestContext.Current.CancellationToken));
        Assert.Equal([names[1], names[0]], (await guest.SaveAsync(incremental: true, keep: 2)).Removed);
        Assert.Equal(moment, guest.Restore());
    }

    [Fact]
    public async Task AStoreIsForBackupsAlone()
    {
        await using BackedUpMachine guest = new(1);
        Directory.CreateDirectory(guest.Store);
        await File.WriteAllTextAsync(Path.Combine(guest.Store, "thesis.txt"), "mine", TestContext.Current.CancellationToken);
        BackupException refused = await Assert.ThrowsAsync<BackupException>(() => guest.SaveAsync());
        Assert.Contains("other things", refused.Message, StringComparison.Ordinal);
        Assert.Single(Directory.EnumerateFileSystemEntries(guest.Store));
        Assert.Contains("no backups", Assert.Throws<BackupException>(() => BackupStore.Open(guest.Store)).Message, StringComparison.Ordinal);
    }
}
