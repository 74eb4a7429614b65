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
        printf '#!/bin/sh\necho SHUTDOWN="$*" > /dev/console\nbusybox poweroff -f\n' > /tmp/shutdown; chmod +x /tmp/shutdown
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
        i=0; (while true; do i=$((i+1)); echo $i > /mnt/count; sync /mnt/count; echo TICK $i; sleep 0.2; done) &
        read -r line
        cat /tmp/vmtoolsd.log
        echo LOG-END
        while true; do sleep 100; done
        """;

    [Theory]
    [InlineData("translator")]
    public async Task DebiansTools(string accelerator)
    {
        Assert.SkipUnless(Environment.GetEnvironmentVariable("AEROSTAT_VMTOOLS") == "1", "takes its time: './dev test --vmtools' runs it");
        string root = Path.Combine(Guest.Cache, "vmtools");
        Assert.SkipUnless(Directory.Exists(Path.Combine(root, "usr", "bin")), $"no open-vm-tools in {root}");
        DirectoryInfo folder = Directory.CreateTempSubdirectory("aerostat-vmtools-");
        string initramfs = Path.Combine(folder.FullName, "initramfs.cpio"), disk = Path.Combine(folder.FullName, "disk.img");
        try
        {
            using (FileStream file = File.Create(disk))
                file.SetLength(32 << 20);
            using (System.Diagnostics.Process mkfs = System.Diagnostics.Process.Start("/usr/sbin/mkfs.ext4", ["-q", "-F", disk]))
                mkfs.WaitForExit();
            await ProgramGuest.WriteInitramfsAsync(initramfs, Script, [root], ["virtio_pci", "virtio_blk", "vmw_balloon"]);
            bool running = false, frozen = false, thawed = false, halting = false;
            int before = 0, during = 0;
            Version? version = null;
            IReadOnlyDictionary<string, string> information = new Dictionary<string, string>();
            BootOutcome outcome = await Guest.RunAsync(
                "cloud", "quiet", 1, 1UL << 30, accelerator, new KernelBootOptions("") { Initrd = initramfs },
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
                },
                devices: [new DiskOptions(disk)], personality: "vmware");
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
        finally
        {
            folder.Delete(recursive: true);
        }
    }

    private static int Ticks(string console) => console.Split("TICK ").Length;

    private static async Task Until(VirtualMachine machine, Func<bool> condition)
    {
        while (!condition() && !machine.Exit.IsCompleted)
            await Task.Delay(20);
    }
}
