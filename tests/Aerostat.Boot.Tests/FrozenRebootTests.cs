using System.Globalization;
using Aerostat.Devices;
using Aerostat.Machine;
using Xunit;

namespace Aerostat.Boot.Tests;

/// <summary>A stock guest that restarts while its file systems are frozen, by its own doing.</summary>
public sealed class FrozenRebootTests
{
    private const string Script = """
        while read -r m; do insmod $m || echo FAILED=$m; done < /etc/modules
        mkdir -p /mnt
        mount -t ext4 /dev/vda /mnt || echo FAILED=mount
        n=$(cat /mnt/count 2> /dev/null || echo 0)
        while [ ! -e /dev/vmbus/hv_vss ]; do sleep 0.1; done
        hv_vss_daemon -n &
        until dmesg | grep -q 'VSS: userspace daemon'; do sleep 0.1; done
        echo HAS=$n.
        (while :; do n=$((n + 1)); echo $n > /mnt/new; sync /mnt/new; mv /mnt/new /mnt/count; sync; echo WROTE=$n; sleep 0.05; done) &
        while read -r line < /dev/ttyS0; do
            [ "$line" = restart ] || break
            # At once, as a failure would.
            echo b > /proc/sysrq-trigger
        done
        """;

    [Fact]
    public async Task ARestartInMidFreezeLosesNothing()
    {
        CancellationToken token = TestContext.Current.CancellationToken;
        DirectoryInfo folder = Directory.CreateTempSubdirectory("aerostat-reboot-");
        try
        {
            string disk = Path.Combine(folder.FullName, "disk.img");
            await FrozenGuest.MakeExt4Async(disk, 32 << 20);
            BootOutcome outcome = await Guest.BootAsync(
                accelerator: "translator", personality: "hyperv", modules: FrozenGuest.Modules, devices: [new DiskOptions(disk)], files: FrozenGuest.Daemons(), script: Script, reboots: true,
                companion: async (machine, console) =>
                {
                    Assert.True(await console.WaitForAsync("WROTE=5\r", token), console.Text);
                    long written = 0;
                    FreezeException e = await Assert.ThrowsAsync<FreezeException>(() => machine.FreezeAsync(new FreezeOptions { Watchdog = TimeSpan.FromMinutes(5) }, async () =>
                    {
                        // Its console may be behind, never ahead.
                        written = Last(console.Text, "WROTE=");
                        await machine.SendSerialAsync("restart\n"u8.ToArray(), token);
                        while (Count(console, "HAS=") < 2)
                        {
                            Assert.False(machine.Exit.IsCompleted, console.Text);
                            await Task.Delay(20, token);
                        }
                    }));
                    Assert.Contains("was reset", e.Message, StringComparison.Ordinal);
                    Assert.DoesNotContain("\n", e.Message, StringComparison.Ordinal);
                    Assert.InRange(Last(console.Text, "HAS="), written, written + 2);
                    // Nothing of it is left: writers write, and the next freeze is one.
                    Assert.True(await console.WaitForAsync($"WROTE={Last(console.Text, "HAS=") + 5}\r", token), console.Text);
                    Assert.False((await machine.FreezeAsync(new FreezeOptions(), () => Task.CompletedTask)).ByWatchdog);
                    await machine.SendSerialAsync("end\n"u8.ToArray(), token);
                });
            Assert.True(outcome.Exit.Kind == MachineExitKind.PoweredOff, $"{outcome.Exit.Kind}: {outcome.Exit.Report}\n{outcome.Tail}");
            Assert.DoesNotContain("FAILED=", outcome.Console, StringComparison.Ordinal);
        }
        finally
        {
            folder.Delete(recursive: true);
        }
    }

    private static int Count(SerialTranscript console, string text) => Lines(console.Text, text).Count();

    private static long Last(string console, string text) => long.Parse(Lines(console, text).Last()[text.Length..].TrimEnd('.'), CultureInfo.InvariantCulture);

    private static IEnumerable<string> Lines(string console, string text) =>
        console.Split('\n').Where(l => l.EndsWith('\r')).Select(l => l.Trim()).Where(l => l.StartsWith(text, StringComparison.Ordinal));
}
