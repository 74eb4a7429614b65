using System.Diagnostics;
using System.Text.Json;
using Aerostat.Storage;
using Xunit;

namespace Aerostat.Backup.Tests;

/// <summary>Damage of each kind is found and named; attempts that fail leave what was there before.</summary>
public sealed class FailureTests
{
    public static TheoryData<string, string, string> Damages => new()
    {
        { "manifest.json", "flip", "manifest" },
        { "manifest.json", "cut", "manifest" },
        { "manifest.json", "delete", "no manifest" },
        { "disk0.index", "flip", "index of disk0" },
        { "disk0.index", "cut", "index of disk0" },
        { "disk0.index", "delete", "index of disk0" },
        { "disk0.pack", "flip", "disk0.pack" },
        { "disk0.pack", "cut", "bytes long instead of" },
        { "disk0.pack", "delete", "missing" },
        { "", "delete", "is missing" },
        { "", "other", "is another than" },
    };

    [Theory]
    [MemberData(nameof(Damages))]
    public async Task ADamagedLinkIsNamedAndNothingIsRestored(string file, string how, string says)
    {
        await using BackedUpMachine guest = new(4);
        guest.WriteNoise(0, new Random(1), 0, 3 << 20);
        string first = (await guest.SaveAsync()).Backup.Name;
        guest.WriteNoise(0, new Random(2), 1 << 20, 8192);
        string second = (await guest.SaveAsync(incremental: true)).Backup.Name;
        guest.WriteNoise(0, new Random(3), 2 << 20, 8192);
        string last = (await guest.SaveAsync(incremental: true)).Backup.Name;
        string path = Path.Combine(guest.Store, second, file);
        switch (how)
        {
            case "flip":
                byte[] bytes = File.ReadAllBytes(path);
                bytes[bytes.Length / 2] ^= 0x10;
                File.WriteAllBytes(path, bytes);
                break;
            case "cut":
                using (FileStream cut = File.OpenWrite(path))
                    cut.SetLength(cut.Length - 3);
                break;
            case "delete" when file.Length == 0:
                Directory.Delete(path, recursive: true);
                break;
            case "delete":
                File.Delete(path);
                break;
            default:
                Directory.Delete(path, recursive: true);
                Directory.CreateDirectory(path);
                foreach (string one in Directory.EnumerateFiles(Path.Combine(guest.Store, first)))
                    File.Copy(one, Path.Combine(path, Path.GetFileName(one)));
                break;
        }
        BackupStore store = BackupStore.Open(guest.Store);
        string image = Path.Combine(guest.Folder, "new.img");
        BackupException refused = Assert.Throws<BackupException>(() => BackupReader.Restore(store, store.Find(last), "disk0", image, replace: false, BackupReader.CreateRaw, null, TestContext.Current.CancellationToken));
        Assert.True(refused.IsDamage);
        Assert.Contains(second, refused.Message, StringComparison.Ordinal);
        Assert.Contains(says, refused.Message, StringComparison.Ordinal);
        Assert.Empty(Directory.EnumerateFiles(guest.Folder, "*new.img*", new EnumerationOptions { AttributesToSkip = FileAttributes.None }));
        // What is before the damaged link is as good as ever, and the damage is found without restoring.
        Assert.Empty(BackupReader.Verify(store, first, null, TestContext.Current.CancellationToken));
        string found = Assert.Single(store.Names.Where(n => n != first).SelectMany(n => BackupReader.Verify(store, n, null, TestContext.Current.CancellationToken)).Where(w => w.Contains(says, StringComparison.Ordinal)).Take(1));
        Assert.Contains(second, found, StringComparison.Ordinal);
        // The next incremental backup does not build on it, unless only contents are damaged, which it does not read.
        BackupResult next = await guest.SaveAsync(incremental: true);
        if (!(file == "disk0.pack" && how == "flip"))
            Assert.True(next.Backup.Manifest.Parent is null && next.Backup.Manifest.Notes.Count == 1, string.Join("; ", next.Backup.Manifest.Notes));
    }

    [Fact]
    public async Task GivingUpLeavesNothing()
    {
        await using BackedUpMachine guest = new(4);
        guest.WriteNoise(0, new Random(1), 0, 3 << 20);
        string first = (await guest.SaveAsync()).Backup.Name;
        using CancellationTokenSource over = new();
        await Assert.ThrowsAnyAsync<OperationCanceledException>(() => guest.SaveAsync(cancellation: over.Token, afterThaw: () =>
        {
            guest.WriteNoise(0, new Random(2), 0, 1 << 20);
            over.Cancel();
            return Task.CompletedTask;
        }));
        Assert.Equal([".lock", first, "store.json"], Directory.EnumerateFileSystemEntries(guest.Store).Select(e => Path.GetFileName(e)!).Order(StringComparer.Ordinal));
        Assert.Null(guest.Backups.Progress);
        // Its point in time is not one to build on.
        guest.WriteNoise(0, new Random(3), 2 << 20, 4096);
        BackupResult next = await guest.SaveAsync(incremental: true);
        Assert.Equal(17 * 65536, next.ReadBytes);
        Assert.Equal(guest.Read(0), guest.Restore());
    }

    [Fact]
    public async Task AnInterruptedBackupIsGoneOnWith()
    {
        await using BackedUpMachine guest = new(4);
        guest.WriteNoise(0, new Random(1), 0, 3 << 20);
        BackupResult whole = await guest.SaveAsync();
        // As a crash leaves it: some entries in the journal, the last of them cut, and a pack that ends within a chunk.
        string partial = Path.Combine(guest.Store, ".partial-crashed");
        Directory.CreateDirectory(partial);
        File.WriteAllBytes(Path.Combine(partial, "start.json"), JsonSerializer.SerializeToUtf8Bytes(new BackupStart("small", null, [new BackupStartDisk("disk0", 4 << 20)], whole.Backup.Manifest.Hash, whole.Backup.Manifest.HashSeed), BackupJson.Default.BackupStart));
        byte[] index = File.ReadAllBytes(Path.Combine(whole.Backup.Path, "disk0.index"));
        File.WriteAllBytes(Path.Combine(partial, "disk0.journal"), index.AsSpan(8, (56 * 40) + 20).ToArray());
        byte[] pack = File.ReadAllBytes(Path.Combine(whole.Backup.Path, "disk0.pack"));
        // One chunk never reached the disk.
        pack.AsSpan(0, 4096).Clear();
        File.WriteAllBytes(Path.Combine(partial, "disk0.pack"), pack.AsSpan(0, pack.Length - 100).ToArray());
        // And another attempt of something else, which nobody can use.
        Directory.CreateDirectory(Path.Combine(guest.Store, ".partial-other"));
        guest.WriteNoise(0, new Random(2), 1 << 20, 4096);
        BackupResult result = await guest.SaveAsync();
        Assert.Contains(result.Backup.Manifest.Notes, n => n.Contains("interrupted", StringComparison.Ordinal));
        // 48 chunks, of which 40 were there; one of those has changed and one was lost.
        Assert.InRange(result.StoredBytes, 1, 11 * 65536);
        Assert.Equal(guest.Read(0), guest.Restore());
        Assert.Empty(BackupReader.Verify(BackupStore.Open(guest.Store), result.Backup.Name, null, TestContext.Current.CancellationToken));
        Assert.Empty(Directory.EnumerateDirectories(guest.Store, ".partial*"));
    }

    [Fact]
    public async Task AFullDestinationCostsOnlyTheAttempt()
    {
        await using BackedUpMachine guest = new(16);
        string mount = Path.Combine(guest.Folder, "small");
        Directory.CreateDirectory(mount);
        Assert.SkipUnless(Run("mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", mount) == 0, "only root may mount a small file system");
        try
        {
            string store = Path.Combine(mount, "store");
            guest.WriteNoise(0, new Random(1), 0, 1 << 20);
            string first = (await guest.SaveAsync(store: store)).Backup.Name;
            guest.WriteNoise(0, new Random(2), 0, 15 << 20);
            BackupException full = await Assert.ThrowsAsync<BackupException>(() => guest.SaveAsync(store: store, memory: 0, afterThaw: () =>
            {
                guest.WriteNoise(0, new Random(3), 0, 4 << 20);
                return Task.CompletedTask;
            }));
            Assert.Contains("full", full.Message, StringComparison.Ordinal);
            Assert.DoesNotContain('\n', full.Message);
            Assert.Equal([first], BackupStore.Open(store).Names);
            Assert.Empty(BackupReader.Verify(BackupStore.Open(store), first, null, TestContext.Current.CancellationToken));
            Assert.Empty(Directory.EnumerateDirectories(store, ".partial*"));
            // The guest's writes all arrived.
            byte[] noise = new byte[4 << 20];
            new Random(3).NextBytes(noise);
            Assert.Equal(noise[^1], guest.Read(0)[(4 << 20) - 1]);
        }
        finally
        {
            Run("umount", mount);
        }
    }

    [Fact]
    public async Task ADiskThatVanishesCostsOnlyTheAttempt()
    {
        await using BackedUpMachine guest = new(4);
        guest.WriteNoise(0, new Random(1), 0, 3 << 20);
        byte[] before = guest.Read(0);
        string first = (await guest.SaveAsync()).Backup.Name;
        // Somebody cuts the image: what was there is not zeros now.
        using (FileStream image = new(guest.Images[0], FileMode.Open, FileAccess.Write, FileShare.ReadWrite))
            image.SetLength(1 << 20);
        BackupException gone = await Assert.ThrowsAsync<BackupException>(() => guest.SaveAsync());
        Assert.Contains("the disk cannot be read at", gone.Message, StringComparison.Ordinal);
        Assert.DoesNotContain('\n', gone.Message);
        Assert.Equal([first], BackupStore.Open(guest.Store).Names);
        Assert.Empty(Directory.EnumerateDirectories(guest.Store, ".partial*"));
        Assert.Equal(before, guest.Restore());
    }

    [Fact]
    public async Task OneBackupAtATime()
    {
        await using BackedUpMachine guest = new(1);
        await guest.SaveAsync(afterThaw: async () =>
        {
            BackupException refused = await Assert.ThrowsAsync<BackupException>(() => guest.SaveAsync());
            Assert.Contains("being made", refused.Message, StringComparison.Ordinal);
            await using BackedUpMachine other = new(1);
            refused = await Assert.ThrowsAsync<BackupException>(() => other.SaveAsync(store: guest.Store));
            Assert.Contains("being written to", refused.Message, StringComparison.Ordinal);
        });
    }

    internal static int Run(string program, params string[] arguments)
    {
        using Process process = Process.Start(new ProcessStartInfo(program, arguments) { RedirectStandardError = true })!;
        process.StandardError.ReadToEnd();
        process.WaitForExit();
        return process.ExitCode;
    }
}
