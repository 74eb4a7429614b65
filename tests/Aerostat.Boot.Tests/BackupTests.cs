using System.Globalization;
using Aerostat.Backup;
using Aerostat.Cli;
using Aerostat.Machine;
using Xunit;

namespace Aerostat.Boot.Tests;

/// <summary>
/// A stock kernel whose writers are backed up, and what is restored: a file system that needs no recovery, with everything that the guest was told was on the
/// disk before it froze.
/// </summary>
public sealed class BackupTests
{
    // Two disks under one point in time. Each line is on its disk when it is said on the console.
    private const string Script = """
        while read -r m; do insmod $m || echo FAILED=$m; done < /etc/modules
        mkdir -p /a /b /var/lib
        mount -t ext4 /dev/vda /a && mount -t ext4 /dev/vdb /b || echo FAILED=mount
        while [ ! -e /dev/vmbus/hv_vss ]; do sleep 0.1; done
        echo WITHOUT-DAEMON
        read -r line < /dev/ttyS0
        hv_vss_daemon -n &
        until dmesg | grep -q 'VSS: userspace daemon'; do sleep 0.1; done
        noise() { while :; do dd if=/dev/urandom of=/a/noise.$1 bs=64k count=$((n % 9 + 1)) 2>/dev/null; cp /a/noise.$1 /b/; rm -f /a/noise.$1; done; }
        n=0
        noise 1 &
        while :; do
            n=$((n + 1))
            echo $n >> /a/log; sync /a/log
            echo $n >> /b/log; sync /b/log
            echo WROTE=$n
        done
        """;

    [Theory]
    [InlineData(DiskBus.Virtio)]
    [InlineData(DiskBus.Scsi)]
    public async Task WhatTheGuestHasWrittenIsInTheBackup(DiskBus bus)
    {
        CancellationToken token = TestContext.Current.CancellationToken;
        IReadOnlyList<Loader.InitramfsFile> daemons = FrozenGuest.Daemons();
        string? debug = FrozenGuest.Find("debugfs"), check = FrozenGuest.Find("e2fsck");
        Assert.SkipWhen(debug is null || check is null, "no e2fsck or debugfs: install e2fsprogs");
        DirectoryInfo folder = Directory.CreateTempSubdirectory("aerostat-backup-");
        try
        {
            string[] images = [Path.Combine(folder.FullName, "a.img"), Path.Combine(folder.FullName, "b.img")];
            foreach (string image in images)
                await FrozenGuest.MakeExt4Async(image, 64 << 20);
            string store = Path.Combine(folder.FullName, "store");
            List<(BackupResult Result, long Before, long After)> backups = [];
            BootOutcome outcome = await Guest.BootAsync(
                accelerator: "translator", personality: "hyperv", modules: bus == DiskBus.Virtio ? FrozenGuest.Modules : FrozenGuest.ScsiModules,
                script: bus == DiskBus.Virtio ? Script : FrozenGuest.FindLun + "\n" + Script.Replace("/dev/vda", "/dev/$(lun 0)", StringComparison.Ordinal).Replace("/dev/vdb", "/dev/$(lun 1)", StringComparison.Ordinal), files: daemons, devices: [.. images.Select(i => new DiskOptions(i) { Bus = bus })],
                companion: async (machine, console) =>
                {
                    try
                    {
                        MachineBackups save = new(machine, "test");
                        Assert.True(await console.WaitForAsync("WITHOUT-DAEMON", token), console.Text);
                        BackupException refused = await Assert.ThrowsAsync<BackupException>(() => save.SaveAsync(store, new BackupOptions(), token));
                        Assert.Contains("hyperv-daemons", refused.Message, StringComparison.Ordinal);
                        BackupResult crash = await save.SaveAsync(store, new BackupOptions { AllowCrashConsistent = true }, token);
                        Assert.Equal(BackupConsistency.Crash, crash.Backup.Manifest.Consistency);
                        await machine.SendSerialAsync("\n"u8.ToArray(), token);
                        for (int i = 0; i < 4; i++)
                        {
                            Assert.True(await console.WaitForAsync($"WROTE={LastWritten(console) + 4}\r", token), console.Text);
                            long before = LastWritten(console);
                            BackupResult result = await save.SaveAsync(store, new BackupOptions { Incremental = i > 0 }, token);
                            backups.Add((result, before, LastWritten(console)));
                        }
                    }
                    finally
                    {
                        await machine.StopAsync();
                    }
                });
            Assert.DoesNotContain("FAILED=", outcome.Console, StringComparison.Ordinal);
            BackupStore made = BackupStore.Open(store);
            foreach ((BackupResult result, long before, long after) in backups)
            {
                BackupManifest manifest = result.Backup.Manifest;
                Assert.Equal(BackupConsistency.Guest, manifest.Consistency);
                Assert.Empty(manifest.Notes);
                Assert.Equal(result == backups[0].Result, manifest.Parent is null);
                Assert.Empty(BackupReader.Verify(made, result.Backup.Name, null, token));
                long[] counts = new long[2];
                for (int i = 0; i < 2; i++)
                {
                    string copy = Path.Combine(folder.FullName, "copy.img");
                    BackupReader.Restore(made, result.Backup, $"disk{i}", copy, replace: true, BackupReader.CreateRaw, null, token);
                    (int status, string said) = await FrozenGuest.RunAsync(check!, "-f", "-n", copy);
                    Assert.True(status == 0 && !said.Contains("recover", StringComparison.OrdinalIgnoreCase), said);
                    (_, string log) = await FrozenGuest.RunAsync(debug!, "-R", "cat /log", copy);
                    long[] lines = [.. log.Split('\n').Where(l => l.Length > 0 && char.IsAsciiDigit(l[0])).Select(l => long.Parse(l, CultureInfo.InvariantCulture))];
                    Assert.Equal(Enumerable.Range(1, lines.Length).Select(n => (long)n), lines);
                    counts[i] = lines.Length;
                }
                // Nothing that was acknowledged is missing, and the disks are of one moment.
                Assert.InRange(counts[0], before, after + 1);
                Assert.InRange(counts[1], Math.Max(before, counts[0] - 1), counts[0]);
            }
        }
        finally
        {
            folder.Delete(recursive: true);
        }
    }

    /// <summary>Two rounds of what <c>./dev soak backup</c> does fifty times.</summary>
    [Fact]
    public async Task Ext4XfsAndBtrfsAreOfOneMoment()
    {
        GuestFileSystem[] types = [GuestFileSystem.Ext4, GuestFileSystem.Xfs, GuestFileSystem.Btrfs];
        Assert.SkipUnless(types.All(t => t.IsAvailable), "no programs for ext4, xfs and btrfs: install e2fsprogs, xfsprogs and btrfs-progs");
        _ = FrozenGuest.Daemons();
        using StringWriter output = new(), error = new();
        int status = await new BackupSoak
        {
            Kernel = Guest.Image("cloud"),
            Busybox = Guest.Busybox(),
            Options = new MachineOptions { Name = "soak", Accelerator = "translator" },
            DiskBytes = 64 << 20,
            FileSystems = types,
            Rounds = 2,
        }.RunAsync(output, error, TestContext.Current.CancellationToken);
        Assert.True(status == 0, $"{error}{output}");
    }

    internal static long LastWritten(SerialTranscript console) => console.Text.Split('\n').Where(l => l.EndsWith('\r')).Select(l => l.Trim())
        .LastOrDefault(l => l.StartsWith("WROTE=", StringComparison.Ordinal)) is { } line ? long.Parse(line[6..], CultureInfo.InvariantCulture) : 0;
}
