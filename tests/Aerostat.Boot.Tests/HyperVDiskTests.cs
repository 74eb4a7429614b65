using System.Security.Cryptography;
using Aerostat.Machine;
using Aerostat.Snapshots;
using Xunit;

namespace Aerostat.Boot.Tests;

/// <summary>What stock kernels' hv_storvsc makes of the storage controller: a guest that needs no virtio.</summary>
public sealed class HyperVDiskTests
{
    private const long MiB = 1 << 20;

    // Two LUNs: a file system that is written to under load, and a disk that cannot be written.
    private const string Script = """
        while read -r m; do insmod $m || echo FAILED=$m; done < /etc/modules
        stty -echo
        $FIND
        a=$(lun 0); b=$(lun 1)
        echo DISKS=$(ls /sys/block | grep -c '^sd')
        echo MODEL=$(cat /sys/block/$a/device/vendor /sys/block/$a/device/model)
        cd /sys/block/$a/queue; echo QUEUE=$(cat rotational write_cache logical_block_size physical_block_size max_hw_sectors_kb); echo DISCARD=$(cat discard_max_bytes write_zeroes_max_bytes); cd /
        echo READONLY=$(cat /sys/block/$a/ro /sys/block/$b/ro)
        echo OTHER=$(sha256sum < /dev/$b | cut -c1-64)
        mount -t ext4 -o discard /dev/$a /mnt || echo FAILED=mount
        seq 1 100000 > /mnt/kept
        dd if=/dev/urandom of=/mnt/noise bs=64k count=$LARGE 2>/dev/null
        (cd /mnt; sha256sum kept noise > sums); sync
        work() { for i in 1 2 3 4; do dd if=/dev/urandom of=/mnt/w$1.$i bs=64k count=$SMALL conv=fsync 2>/dev/null; cp /mnt/w$1.$i /mnt/c$1; rm /mnt/w$1.$i; done; }
        echo READY
        rounds=0
        while ! read -r -t 0 line; do for n in 1 2 3; do work $n & done; wait; rounds=$((rounds + 1)); done
        echo ROUNDS=$rounds
        umount /mnt
        # Whatever was in the page cache is read again.
        echo 3 > /proc/sys/vm/drop_caches
        mount -t ext4 /dev/$a /mnt && (cd /mnt; sha256sum -c sums > /dev/null || echo FAILED=sums; rm noise)
        umount /mnt || echo FAILED=umount
        dmesg | grep -i -e 'i/o error' -e 'hv_storvsc.*cmd' -e 'ext4-fs error' | sed 's/^/FAILED=/'
        """;

    [Theory]
    [InlineData("translator", "cloud", 2, false)]
    [InlineData("translator", "generic", 1, true)]
    [InlineData("interpreter", "cloud", 1, false)]
    public async Task AFileSystemStaysWhole(string accelerator, string kernel, int cpus, bool qcow2)
    {
        CancellationToken token = TestContext.Current.CancellationToken;
        string? check = FrozenGuest.Find("e2fsck");
        Assert.SkipWhen(check is null, "no e2fsck: install e2fsprogs");
        DirectoryInfo folder = Directory.CreateTempSubdirectory("aerostat-scsi-");
        try
        {
            string image = Path.Combine(folder.FullName, "a.img"), other = Path.Combine(folder.FullName, "b.img"), used = image;
            await FrozenGuest.MakeExt4Async(image, 96 * MiB);
            byte[] contents = RandomNumberGenerator.GetBytes((int)MiB);
            await File.WriteAllBytesAsync(other, contents, token);
            if (qcow2)
            {
                string? convert = FrozenGuest.Find("qemu-img");
                Assert.SkipWhen(convert is null, "no qemu-img: install qemu-utils");
                used = Path.Combine(folder.FullName, "a.qcow2");
                Assert.Equal(0, (await FrozenGuest.RunAsync(convert!, "convert", "-O", "qcow2", image, used)).Status);
            }
            BootOutcome outcome = await Guest.BootAsync(
                kernel: kernel, accelerator: accelerator, cpus: cpus, personality: "hyperv", modules: kernel == "cloud" ? ["hv_storvsc", "sd_mod"] : ["hv_storvsc", "sd_mod", "crc32c_generic", "ext4"],
                script: Script.Replace("$FIND", FrozenGuest.FindLun, StringComparison.Ordinal)
                    .Replace("$LARGE", accelerator == "interpreter" ? "4" : "256", StringComparison.Ordinal).Replace("$SMALL", accelerator == "interpreter" ? "1" : "12", StringComparison.Ordinal), devices: [new DiskOptions(used) { Bus = DiskBus.Scsi, Serial = "AERO1" }, new DiskOptions(other) { Bus = DiskBus.Scsi, ReadOnly = true }],
                companion: async (machine, console) =>
                {
                    if (!await console.WaitForAsync("READY", token))
                        return;
                    // Saved with requests under way, and on it goes.
                    using (MachineSnapshots snapshots = new(machine))
                    {
                        for (int i = 0; i < (accelerator == "interpreter" ? 1 : 3); i++)
                            await snapshots.SaveAsync(Path.Combine(folder.FullName, $"s{i}"), new SnapshotOptions { Durable = false }, cancellation: token);
                    }
                    await machine.SendSerialAsync("\n"u8.ToArray(), token);
                });
            Guest.AssertPoweredOff(outcome);
            Assert.False(outcome.Console.Contains("FAILED=", StringComparison.Ordinal), outcome.Console);
            Assert.Equal(("2", "Msft Virtual Disk", "0 write back 512 4096 1024", "0 1"), (outcome.Value("DISKS"), outcome.Value("MODEL"), outcome.Value("QUEUE"), outcome.Value("READONLY")));
            // The driver in 6.1 sends no WRITE SAME.
            Assert.Equal("1073741824 0", outcome.Value("DISCARD"));
            Assert.Equal(Convert.ToHexStringLower(SHA256.HashData(contents)), outcome.Value("OTHER"));
            Assert.Equal((0L, 0L), (outcome.Statistics.Counters["scsi-malformed"], outcome.Statistics.Counters["disk0-errors"]));
            if (qcow2)
            {
                string convert = FrozenGuest.Find("qemu-img")!;
                Assert.Equal(0, (await FrozenGuest.RunAsync(convert, "check", used)).Status);
                Assert.Equal(0, (await FrozenGuest.RunAsync(convert, "convert", "-O", "raw", used, image)).Status);
            }
            (int status, string said) = await FrozenGuest.RunAsync(check!, "-f", "-n", image);
            Assert.True(status == 0, said);
        }
        finally
        {
            folder.Delete(recursive: true);
        }
    }
}
