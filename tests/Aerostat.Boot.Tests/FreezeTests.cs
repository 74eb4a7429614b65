using System.Globalization;
using Aerostat.Devices;
using Aerostat.HyperV;
using Aerostat.Loader;
using Aerostat.Machine;
using Xunit;

namespace Aerostat.Boot.Tests;

/// <summary>A stock kernel with Debian's own hv_vss_daemon and hv_kvp_daemon, frozen and thawed by the host.</summary>
public sealed class FreezeTests
{
    private const string Script = """
        while read -r m; do insmod $m || echo FAILED=$m; done < /etc/modules
        mkdir -p /mnt /var/lib
        mount -t ext4 /dev/vda /mnt || echo FAILED=mount
        while [ ! -e /dev/vmbus/hv_vss ]; do sleep 0.1; done
        echo WITHOUT-DAEMON
        read -r line < /dev/ttyS0
        $FREEZER &
        [ "$FREEZER" = aerostat-agent ] || hv_kvp_daemon -n &
        until dmesg | grep -q 'VSS: userspace daemon'; do sleep 0.1; done
        echo WITH-DAEMON
        trap 'poweroff -f' USR2
        n=0
        while :; do n=$((n + 1)); echo $n > /mnt/count; sync; echo WROTE=$n; sleep 0.05; done
        """;

    private const int Superblock = 1024, IncompatibleFeatures = 0x60;
    private const uint NeedsRecovery = 4;

    [Theory]
    [InlineData("hv_vss_daemon -n")]
    [InlineData("aerostat-agent")]
    [InlineData("aerostat-agent --netlink --no-kvp")]
    public async Task WritersAreHeldUpAndTheCopyNeedsNoRecovery(string freezer)
    {
        CancellationToken token = TestContext.Current.CancellationToken;
        bool agent = freezer.StartsWith("aerostat-agent", StringComparison.Ordinal);
        IReadOnlyList<InitramfsFile> daemons = agent ? FrozenGuest.Agent() : FrozenGuest.Daemons();
        DirectoryInfo folder = Directory.CreateTempSubdirectory("aerostat-freeze-");
        try
        {
            string disk = Path.Combine(folder.FullName, "disk.img"), copy = Path.Combine(folder.FullName, "copy.img");
            await FrozenGuest.MakeExt4Async(disk, 32 << 20);
            FreezeResult? result = null;
            long before = 0, during = 0;
            BootOutcome outcome = await Guest.BootAsync(
                accelerator: "translator", personality: "hyperv", modules: FrozenGuest.Modules, script: $"FREEZER='{freezer}'\n{Hook}{Script}", devices: [new DiskOptions(disk)],
                files: daemons,
                companion: async (machine, console) =>
                {
                    HyperVComponents components = machine.IntegrationComponents!;
                    Assert.True(await console.WaitForAsync("WITHOUT-DAEMON", token), console.Text);
                    FreezeException none = await Assert.ThrowsAsync<FreezeException>(() => machine.FreezeAsync(new FreezeOptions(), () => Task.CompletedTask));
                    Assert.Contains("hyperv-daemons", none.Message, StringComparison.Ordinal);
                    await machine.SendSerialAsync("\n"u8.ToArray(), token);
                    Assert.True(await console.WaitForAsync("WROTE=5\r", token), console.Text);
                    result = await machine.FreezeAsync(new FreezeOptions { Watchdog = TimeSpan.FromMinutes(5) }, async () =>
                    {
                        before = Written(console);
                        await Task.Delay(1000, token);
                        during = Written(console);
                        File.Copy(disk, copy);
                    });
                    Assert.True(await console.WaitForAsync($"WROTE={during + 5}\r", token), console.Text);
                    // It runs when the host has its answer.
                    await DrivenGuest.Until(machine, () => !agent || console.Text.Contains("HOOK=thaw", StringComparison.Ordinal));
                    while (components.KeyValues.Facts.Count == 0 && !machine.Exit.IsCompleted)
                        await Task.Delay(100, token);
                    Assert.Equal(("Linux", "x86_64"), (components.KeyValues.Facts["OSName"], components.KeyValues.Facts["ProcessorArchitecture"]));
                    Assert.InRange(components.Heartbeat.Answers, 1, long.MaxValue);
                    Assert.True(await components.Shutdown.RequestAsync(ShutdownKind.PowerOff));
                });
            Assert.True(outcome.Exit.Kind == MachineExitKind.PoweredOff, $"{outcome.Exit.Kind}: {outcome.Exit.Report}\n{outcome.Tail}");
            Assert.DoesNotContain("FAILED=", outcome.Console, StringComparison.Ordinal);
            foreach (string said in (string[])["Vmbus version:5.3", "Heartbeat IC version 3.0", "Shutdown IC version 3.2", "TimeSync IC version 4.0", "VSS IC version 5.0", "KVP IC version 4.0"])
                Assert.Contains(said, outcome.Console, StringComparison.Ordinal);
            if (agent)
            {
                Assert.Contains("aerostat-agent", outcome.Console, StringComparison.Ordinal);
                // Before the writers were held up, and after they went on.
                Assert.Matches(@"HOOK=freeze(?s:.*)HOOK=thaw", outcome.Console);
            }
            // A line may have been on its way to the console.
            Assert.InRange(during, before, before + 1);
            Assert.False(result!.ByWatchdog);
            Assert.InRange(result.FrozenTime, TimeSpan.FromSeconds(1), TimeSpan.FromMinutes(5));
            byte[] bytes = await File.ReadAllBytesAsync(copy, token);
            Assert.Equal(0u, BitConverter.ToUInt32(bytes, Superblock + IncompatibleFeatures) & NeedsRecovery);
            if (FrozenGuest.Find("e2fsck") is { } check)
                Assert.Equal(0, (await FrozenGuest.RunAsync(check, "-f", "-n", copy)).Status);
        }
        finally
        {
            folder.Delete(recursive: true);
        }
    }

    /// <summary>An agent that is killed cannot thaw: the next one does, and the host is not told that all was well.</summary>
    [Fact]
    public async Task AnAgentThatIsKilledWhileFrozenLeavesNothingFrozen()
    {
        CancellationToken token = TestContext.Current.CancellationToken;
        IReadOnlyList<InitramfsFile> files = FrozenGuest.Agent();
        DirectoryInfo folder = Directory.CreateTempSubdirectory("aerostat-freeze-");
        try
        {
            string disk = Path.Combine(folder.FullName, "disk.img");
            await FrozenGuest.MakeExt4Async(disk, 32 << 20);
            BootOutcome outcome = await Guest.BootAsync(
                accelerator: "translator", personality: "hyperv", modules: FrozenGuest.Modules, devices: [new DiskOptions(disk)], files: files,
                script: """
                    while read -r m; do insmod $m || echo FAILED=$m; done < /etc/modules
                    mkdir -p /mnt /run
                    mount -t ext4 /dev/vda /mnt || echo FAILED=mount
                    while [ ! -e /dev/vmbus/hv_vss ]; do sleep 0.1; done
                    while :; do aerostat-agent; echo AGENT=$?; done &
                    until dmesg | grep -q 'VSS: userspace daemon'; do sleep 0.1; done
                    (n=0; while :; do n=$((n + 1)); echo $n > /mnt/count; sync; echo WROTE=$n; sleep 0.05; done) &
                    while read -r line < /dev/ttyS0; do
                        [ "$line" = kill ] || break
                        killall -9 aerostat-agent
                    done
                    """,
                companion: async (machine, console) =>
                {
                    Assert.True(await console.WaitForAsync("WROTE=3\r", token), console.Text);
                    FreezeException e = await Assert.ThrowsAsync<FreezeException>(() => machine.FreezeAsync(new FreezeOptions { Watchdog = TimeSpan.FromMinutes(5) }, async () =>
                    {
                        await machine.SendSerialAsync("kill\n"u8.ToArray(), token);
                        long frozen = Written(console);
                        // It goes on without the host.
                        Assert.True(await console.WaitForAsync($"WROTE={frozen + 5}\r", token), console.Text);
                        // The next agent answers the thaw.
                        while (console.Text.Split("VSS: userspace daemon").Length < 3 && !machine.Exit.IsCompleted)
                            await Task.Delay(100, token);
                    }));
                    Assert.Contains("were frozen until now", e.Message, StringComparison.Ordinal);
                    // And the next one is whole again.
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

    private const string Hook = """
        mkdir -p /etc/aerostat-agent/hooks /run
        printf '#!/bin/sh\necho HOOK=$1 > /dev/ttyS0\n' > /etc/aerostat-agent/hooks/one
        chmod 755 /etc/aerostat-agent/hooks/one

        """;

    private static long Written(SerialTranscript console) => long.Parse(
        console.Text.Split('\n').Select(l => l.Trim()).Last(l => l.StartsWith("WROTE=", StringComparison.Ordinal))[6..], CultureInfo.InvariantCulture);
}
