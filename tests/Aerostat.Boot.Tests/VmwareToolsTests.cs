using System.Globalization;
using Aerostat.Backup;
using Aerostat.Devices;
using Aerostat.Loader;
using Aerostat.Machine;
using Aerostat.VMware;
using Xunit;

namespace Aerostat.Boot.Tests;

/// <summary>
/// Debian's open-vm-tools in a guest with the VMware personality. Takes its time: <c>./dev test --vmtools</c> fetches the packages and runs it.
/// </summary>
public sealed class VmwareToolsTests
{
    private const string Script = $$"""
        #!/bin/sh
        export PATH=/usr/bin:/usr/sbin LC_ALL=C
        for fs in proc:/proc sysfs:/sys devtmpfs:/dev tmpfs:/tmp tmpfs:/run; do busybox mount -t ${fs%%:*} ${fs%%:*} ${fs##*:}; done
        {{ProgramGuest.LoadModules}}
        busybox stty -echo
        printf '#!/bin/sh\necho SHUTDOWN="$*" > /dev/console\n[ "$1" = -r ] && busybox reboot -f\nbusybox poweroff -f\n' > /tmp/shutdown; chmod +x /tmp/shutdown
        rm -f /usr/sbin/shutdown; ln -s /tmp/shutdown /usr/sbin/shutdown
        busybox mkdir -p /mnt /var/log /var/run
        busybox mount -t ext4 /dev/vda /mnt || echo FAILED=mount
        vmware-checkvm && echo CHECKVM=yes
        vmware-rpctool 'info-set guestinfo.from-guest hello from the guest'
        echo FROMHOST=$(vmware-rpctool 'info-get guestinfo.from-host')
        echo LONG=$(vmware-rpctool 'info-get guestinfo.long' | wc -c)
        echo HOSTTIME=$(vmware-toolbox-cmd stat hosttime)
        echo VERSION=$(vmware-toolbox-cmd -v)
        echo 'root:x:0:0:root:/tmp:/bin/sh' > /etc/passwd
        # The tools look there for what can be frozen.
        ln -sf /proc/self/mounts /etc/mtab
        vmtoolsd > /tmp/vmtoolsd.log 2>&1 &
        echo READY; read -r line
        # Stops while the file system is frozen.
        i=0; (while true; do i=$((i+1)); echo $i >> /mnt/count; sync /mnt/count; echo TICK $i; sleep 0.2; done) &
        read -r line
        cat /tmp/vmtoolsd.log
        echo LOG-END
        while true; do sleep 100; done
        """;

    [Theory]
    [InlineData("translator")]
    public async Task DebiansTools(string accelerator)
    {
        using ToolsFolder folder = await ToolsFolder.CreateAsync();
        bool running = false, frozen = false, thawed = false, halting = false;
        int before = 0, during = 0;
        Version? version = null;
        IReadOnlyDictionary<string, string> information = new Dictionary<string, string>();
        BootOutcome outcome = await RunAsync(
            accelerator, folder,
            async (machine, console) =>
            {
                GuestTools tools = machine.GuestTools!;
                Assert.True(tools.SetInformation("from-host", "hello from the host"));
                Assert.True(tools.SetInformation("long", new string('x', 40_000)));
                if (!await console.WaitForAsync("READY"))
                    return;
                await Until(machine, () => tools.IsRunning && tools.ToolsVersion is not null && tools.Capabilities.Count > 0);
                (running, version, information) = (tools.IsRunning, tools.ToolsVersion, tools.Information);
                await machine.SendSerialAsync("\n"u8.ToArray());
                if (!await console.WaitForAsync("TICK 3"))
                    return;
                await Until(machine, () => tools.PowerState is not null);
                FreezeResult result = await machine.FreezeAsync(new FreezeOptions(), async () =>
                {
                    frozen = machine.Freezer!.Phase == FreezePhase.Frozen;
                    await Task.Delay(1500);
                    before = Ticks(console.Text);
                    await Task.Delay(1500);
                    during = Ticks(console.Text);
                });
                thawed = !result.ByWatchdog && result.FrozenTime > TimeSpan.FromSeconds(2);
                await Until(machine, () => Ticks(console.Text) > during + 2);
                await machine.SendSerialAsync("\n"u8.ToArray());
                if (!await console.WaitForAsync("LOG-END"))
                    return;
                halting = await tools.RequestPowerAsync(GuestPowerOperation.Halt);
            });
        Assert.True(outcome.Exit.Kind == MachineExitKind.PoweredOff, $"{outcome.Exit.Kind}: {outcome.Exit.Report}\n{outcome.Tail}");
        Assert.True(running && halting, outcome.Tail);
        Assert.True(frozen && thawed, $"frozen {frozen}, thawed {thawed}\n{outcome.Console[^Math.Min(outcome.Console.Length, 6000)..]}");
        Assert.True(before > 0 && before == during, $"{before} and then {during} writes while the file system was frozen");
        Assert.Equal(12, version!.Major);
        Assert.Equal("hello from the guest", information["guestinfo.from-guest"]);
        Assert.Equal(("yes", "hello from the host", "40001", "-h now"), (outcome.Value("CHECKVM"), outcome.Value("FROMHOST"), outcome.Value("LONG"), outcome.Value("SHUTDOWN")));
        Assert.Contains($"{DateTime.UtcNow:yyyy}", outcome.Value("HOSTTIME"), StringComparison.Ordinal);
        Assert.StartsWith("12.", outcome.Value("VERSION"), StringComparison.Ordinal);
    }

    /// <summary>Two backups of an ext4 that a program writes to, by the tools' handshake: each image is clean, and has what the guest had on the disk before.</summary>
    [Fact]
    public async Task Backups()
    {
        string? debug = FrozenGuest.Find("debugfs"), check = FrozenGuest.Find("e2fsck");
        Assert.SkipWhen(debug is null || check is null, "no e2fsck or debugfs: install e2fsprogs");
        CancellationToken token = TestContext.Current.CancellationToken;
        using ToolsFolder folder = await ToolsFolder.CreateAsync();
        string store = Path.Combine(folder.Path, "store"), copy = Path.Combine(folder.Path, "copy.img");
        List<(BackupResult Result, int Before, int After)> backups = [];
        await RunAsync("translator", folder, async (machine, console) =>
        {
            try
            {
                GuestTools tools = machine.GuestTools!;
                Assert.True(await console.WaitForAsync("READY", token), console.Text);
                MachineBackups save = new(machine, "tools");
                await Until(machine, () => tools.IsRunning && tools.Capabilities.Count > 0);
                await machine.SendSerialAsync("\n"u8.ToArray(), token);
                await Until(machine, () => Ticks(console.Text) > 3 && tools.PowerState is not null);
                for (int i = 0; i < 2; i++)
                {
                    int before = LastTick(console.Text);
                    BackupResult result = await save.SaveAsync(store, new BackupOptions { Incremental = i > 0 }, token);
                    backups.Add((result, before, LastTick(console.Text)));
                    await Until(machine, () => LastTick(console.Text) > before + 5);
                }
            }
            finally
            {
                await machine.StopAsync();
            }
        });
        BackupStore made = BackupStore.Open(store);
        Assert.Equal(2, backups.Count);
        foreach ((BackupResult result, int before, int after) in backups)
        {
            Assert.Equal((BackupConsistency.Guest, result == backups[0].Result), (result.Backup.Manifest.Consistency, result.Backup.Manifest.Parent is null));
            Assert.Empty(BackupReader.Verify(made, result.Backup.Name, null, token));
            BackupReader.Restore(made, result.Backup, "disk0", copy, replace: true, BackupReader.CreateRaw, null, token);
            (int status, string said) = await FrozenGuest.RunAsync(check!, "-f", "-n", copy);
            Assert.True(status == 0 && !said.Contains("recover", StringComparison.OrdinalIgnoreCase), said);
            (_, string count) = await FrozenGuest.RunAsync(debug!, "-R", "cat /count", copy);
            // A number is on the disk before it is said, and one may be between the two.
            int kept = int.Parse(count.Split('\n').Last(l => l.Length > 0 && char.IsAsciiDigit(l[0])), CultureInfo.InvariantCulture);
            Assert.InRange(kept, before, after + 1);
        }
    }

    /// <summary>The host has the tools restart the guest, and then shut it down.</summary>
    [Fact]
    public async Task ARebootByTheTools()
    {
        using ToolsFolder folder = await ToolsFolder.CreateAsync();
        List<bool> asked = [];
        BootOutcome outcome = await RunAsync("translator", folder, async (machine, console) =>
        {
            GuestTools tools = machine.GuestTools!;
            foreach (GuestPowerOperation operation in (GuestPowerOperation[])[GuestPowerOperation.Reboot, GuestPowerOperation.Halt])
            {
                if (!await console.WaitForAsync("READY"))
                    return;
                await Until(machine, () => tools.IsRunning && tools.Capabilities.Count > 0 && tools.PowerState is not null);
                asked.Add(await tools.RequestPowerAsync(operation));
            }
        }, reboots: true);
        Assert.True(outcome.Exit.Kind == MachineExitKind.PoweredOff, $"{outcome.Exit.Kind}: {outcome.Exit.Report}\n{outcome.Tail}");
        Assert.Equal([true, true], asked);
        Assert.Equal(["SHUTDOWN=-r now", "SHUTDOWN=-h now"], outcome.Console.Split('\n').Select(l => l.Trim()).Where(l => l.StartsWith("SHUTDOWN=", StringComparison.Ordinal)));
    }

    private static Task<BootOutcome> RunAsync(string accelerator, ToolsFolder folder, Func<VirtualMachine, SerialTranscript, Task> companion, bool reboots = false) => Guest.RunAsync(
        "cloud", "quiet", 1, 1UL << 30, accelerator, new KernelBootOptions("") { Initrd = folder.Initramfs }, companion, devices: [new DiskOptions(folder.Disk)], personality: "vmware", reboots: reboots);

    // The last number that was said whole.
    private static int LastTick(string console) => console.Split("TICK ").Skip(1).Where(l => l.Contains('\n', StringComparison.Ordinal))
        .Select(l => int.Parse(l[..l.IndexOf('\n', StringComparison.Ordinal)].Trim(), CultureInfo.InvariantCulture)).LastOrDefault();

    private static int Ticks(string console) => console.Split("TICK ").Length;

    private static async Task Until(VirtualMachine machine, Func<bool> condition)
    {
        while (!condition() && !machine.Exit.IsCompleted)
            await Task.Delay(20);
    }

    /// <summary>An initramfs with Debian's tools, and an empty ext4. Skips the test when it cannot be made, or was not asked for.</summary>
    private sealed class ToolsFolder : IDisposable
    {
        private readonly DirectoryInfo _folder = Directory.CreateTempSubdirectory("aerostat-vmtools-");

        public string Path => _folder.FullName;

        public string Initramfs => System.IO.Path.Combine(Path, "initramfs.cpio");

        public string Disk => System.IO.Path.Combine(Path, "disk.img");

        public static async Task<ToolsFolder> CreateAsync()
        {
            Assert.SkipUnless(Environment.GetEnvironmentVariable("AEROSTAT_VMTOOLS") == "1", "takes its time: './dev test --vmtools' runs it");
            string root = System.IO.Path.Combine(Guest.Cache, "vmtools");
            Assert.SkipUnless(Directory.Exists(System.IO.Path.Combine(root, "usr", "bin")), $"no open-vm-tools in {root}");
            ToolsFolder folder = new();
            await FrozenGuest.MakeExt4Async(folder.Disk, 32 << 20);
            await ProgramGuest.WriteInitramfsAsync(folder.Initramfs, Script, [root], ["virtio_pci", "virtio_blk", "vmw_balloon"]);
            return folder;
        }

        public void Dispose() => _folder.Delete(recursive: true);
    }
}
