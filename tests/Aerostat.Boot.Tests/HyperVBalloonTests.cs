using System.Diagnostics;
using System.Globalization;
using Aerostat.Devices;
using Aerostat.Hosting;
using Aerostat.HyperV;
using Aerostat.Machine;
using Aerostat.Snapshots;
using Xunit;
using static Aerostat.Boot.Tests.DrivenGuest;

namespace Aerostat.Boot.Tests;

/// <summary>What stock kernels' hv_balloon makes of dynamic memory.</summary>
public sealed class HyperVBalloonTests
{
    private const ulong MiB = 1 << 20;

    // Pressure is told from the first second on, and free pages soon after they are free.
    private const string Prepare = """
        while read -r m; do case $m in *hv_balloon*) insmod $m pressure_report_delay=0;; *) insmod $m;; esac || echo FAILED=$m; done < /etc/modules
        field() { awk "/^$1:/ { print \$2 }" /proc/meminfo; }

        """ + DrivenGuest.Keep;

    private static long Number(BootOutcome outcome, string name) => long.Parse(outcome.Value(name), CultureInfo.InvariantCulture);

    /// <summary>To a target, further, and back, with the guest's own figures beside ours.</summary>
    [Theory]
    [InlineData("translator", "cloud", 2)]
    [InlineData("translator", "generic", 1)]
    [InlineData("interpreter", "cloud", 1)]
    public async Task ThereAndBack(string accelerator, string kernel, int cpus)
    {
        const ulong First = 64 * MiB, Second = 192 * MiB;
        ulong discarded = 0, available = 0;
        BalloonReport? full = null, empty = null, greedy = null;
        BootOutcome outcome = await Guest.BootAsync(
            kernel: kernel, accelerator: accelerator, cpus: cpus, memory: 512 * MiB, modules: ["hv_balloon"], personality: "hyperv",
            script: Prepare + """
                # Memory that was used, and is free again.
                mount -t tmpfs -o size=100% tmpfs /mnt; dd if=/dev/zero of=/mnt/much bs=1M count=128 2>/dev/null; rm /mnt/much
                # The host's count is ahead of the driver, which takes its time to free what it may have.
                settled() { for i in $(seq 100); do now=$(field MemTotal); [ $now = $1 ] && break; sleep 0.1; done; echo $2=$now; }
                total=$(field MemTotal)
                echo TOTAL1=$total
                echo AVAILABLE=$(field MemAvailable)
                pause READY
                settled $((total - 65536)) TOTAL2
                pause NEXT
                settled $((total - 196608)) TOTAL3
                pause BACK
                settled $total TOTAL4
                """ + Finish,
            companion: async (machine, console) =>
            {
                DynamicMemory balloon = Assert.IsType<DynamicMemory>(machine.Balloon);
                if (!await console.WaitForAsync("READY"))
                    return;
                // One that it made after it said so.
                var since = Stopwatch.StartNew();
                await Until(machine, () => balloon.GetReport().Statistics.Age < since.Elapsed);
                available = balloon.GetReport().Statistics[GuestFigure.Available] ?? 0;
                // Linux reports free blocks some seconds after they are free.
                await Until(machine, () => balloon.GetReport().ReportedBytes > 64 * MiB);
                balloon.SetTarget(First);
                await Until(machine, () => balloon.GetReport().Reason == BalloonReason.Reached);
                await ContinueAsync(machine);
                if (!await console.WaitForAsync("NEXT"))
                    return;
                balloon.SetTarget(Second);
                await Until(machine, () => balloon.GetReport().Reason == BalloonReason.Reached);
                full = balloon.GetReport();
                discarded = machine.GetMemory().Pages.DiscardedBytes;
                // More than the driver gives: it stops where its floor is.
                balloon.SetTarget(512 * MiB);
                await Until(machine, () => balloon.GetReport().Reason == BalloonReason.Stalled);
                greedy = balloon.GetReport();
                balloon.SetTarget(Second);
                await Until(machine, () => balloon.GetReport().Reason == BalloonReason.Reached);
                await ContinueAsync(machine);
                if (!await console.WaitForAsync("BACK"))
                    return;
                balloon.SetTarget(0);
                await Until(machine, () => balloon.GetReport().Reason == BalloonReason.Reached);
                empty = balloon.GetReport();
                await ContinueAsync(machine);
            });
        Guest.AssertPoweredOff(outcome);
        Assert.DoesNotContain("FAILED=", outcome.Console, StringComparison.Ordinal);
        foreach (string said in (string[])["Using Dynamic Memory protocol version 2.0", "Cold memory discard hint enabled", "Balloon request will be partially fulfilled"])
            Assert.Contains(said, outcome.Console, StringComparison.Ordinal);
        Assert.Equal("yes", outcome.Value("KEPT"));
        Assert.Equal((Second, 0UL), (full!.ActualBytes, empty!.ActualBytes));
        Assert.InRange(discarded, Second, 512 * MiB);
        Assert.InRange(greedy!.ActualBytes, Second, 400 * MiB);
        long total = Number(outcome, "TOTAL1");
        Assert.Equal((total - (64 << 10), total - (192 << 10), total), (Number(outcome, "TOTAL2"), Number(outcome, "TOTAL3"), Number(outcome, "TOTAL4")));
        Assert.InRange((long)available >> 10, Number(outcome, "AVAILABLE") * 9 / 10, Number(outcome, "AVAILABLE") * 11 / 10);
        Assert.Equal((0L, 0L), (outcome.Statistics.Counters["dynamic-memory-spurious"], outcome.Statistics.Counters["dynamic-memory-refused-pages"]));
    }

    /// <summary>Memory that it did not have at its start is added, used, and taken by the balloon.</summary>
    [Fact]
    public async Task MemoryIsAdded()
    {
        const ulong Spare = 256 * MiB;
        BalloonReport? first = null, added = null, less = null;
        BootOutcome outcome = await Guest.BootAsync(
            accelerator: "translator", memory: 512 * MiB, modules: ["hv_balloon"], personality: "hyperv", append: "memhp_default_state=online",
            devices: [new BalloonOptions { Driver = Machine.BalloonDriver.HyperV, SpareBytes = Spare }],
            script: Prepare + """
                settled() { for i in $(seq 100); do now=$(field MemTotal); [ $now = $1 ] && break; sleep 0.1; done; echo $2=$now; }
                total=$(field MemTotal)
                echo TOTAL1=$total
                pause READY
                settled $((total + 262144)) TOTAL2
                # More than it had before.
                mount -t tmpfs -o size=100% tmpfs /mnt; dd if=/dev/zero of=/mnt/much bs=1M count=300 2>/dev/null && echo FILLED=$(wc -c < /mnt/much); rm /mnt/much
                pause NEXT
                settled $((total + 131072)) TOTAL3
                """ + Finish,
            companion: async (machine, console) =>
            {
                IBalloon balloon = machine.Balloon!;
                if (!await console.WaitForAsync("READY"))
                    return;
                first = balloon.GetReport();
                balloon.SetTarget(0);
                await Until(machine, () => balloon.GetReport().Reason == BalloonReason.Reached);
                added = balloon.GetReport();
                await ContinueAsync(machine);
                if (!await console.WaitForAsync("NEXT"))
                    return;
                balloon.SetTarget(Spare / 2);
                await Until(machine, () => balloon.GetReport().Reason == BalloonReason.Reached);
                less = balloon.GetReport();
                await ContinueAsync(machine);
            });
        Guest.AssertPoweredOff(outcome);
        Assert.DoesNotContain("FAILED=", outcome.Console, StringComparison.Ordinal);
        Assert.Equal("yes", outcome.Value("KEPT"));
        Assert.Equal((Spare, 0UL, Spare / 2), (first!.ActualBytes, added!.ActualBytes, less!.ActualBytes));
        long total = Number(outcome, "TOTAL1");
        Assert.InRange(total, 0, 256 << 10);
        Assert.Equal((total + (256 << 10), total + (128 << 10)), (Number(outcome, "TOTAL2"), Number(outcome, "TOTAL3")));
        Assert.Equal(300 * (long)MiB, Number(outcome, "FILLED"));
        Assert.Equal(0L, outcome.Statistics.Counters["dynamic-memory-spurious"]);
    }

    /// <summary>The guest restarts with a full balloon; then it is saved in the middle of a request, and goes on from there.</summary>
    [Fact]
    public async Task AGuestThatRestartsAndOneThatGoesOn()
    {
        const ulong Target = 64 * MiB;
        string image = Guest.Image("cloud");
        SerialTranscript console = new();
        VirtualMachine machine = Machines.Create(new MachineOptions
        {
            MemoryBytes = 512 * MiB,
            Accelerator = "translator",
            Personality = "hyperv",
            Serial = console.Append,
            Boot = new KernelBootOptions(image) { InitrdBytes = Guest.Initramfs("cloud", Guest.Busybox(), Prepare + "pause READY\necho SECOND", ["hv_balloon"]), CommandLine = "console=ttyS0 panic=-1" },
        });
        DirectoryInfo folder = Directory.CreateTempSubdirectory("aerostat-hyperv-");
        try
        {
            string path = Path.Combine(folder.FullName, "middle");
            await using (machine)
            {
                IBalloon balloon = machine.Balloon!;
                await machine.StartAsync();
                await Guest.ReachAsync(machine, console, "READY", TimeSpan.FromMinutes(5));
                balloon.SetTarget(Target);
                await Until(machine, () => balloon.GetReport().Reason == BalloonReason.Reached);
                await machine.ResetAsync();
                Assert.NotEqual(BalloonReason.Reached, balloon.GetReport().Reason);
                await Until(machine, () => balloon.GetReport().Reason == BalloonReason.Reached);
                Assert.Equal(Target, balloon.GetReport().ActualBytes);
                balloon.SetTarget(3 * Target);
                await Until(machine, () => balloon.GetReport().ActualBytes > Target);
                using MachineSnapshots snapshots = new(machine);
                await snapshots.SaveAsync(path, new SnapshotOptions { Durable = false }, cancellation: TestContext.Current.CancellationToken);
                await machine.StopAsync();
            }
            SerialTranscript second = new();
            VirtualMachine copy = Machines.Restore(Snapshot.Open(path), "translator", adjust: o => o with { NoReboot = true, Serial = second.Append });
            await using (copy)
            {
                IBalloon balloon = copy.Balloon!;
                Assert.InRange(balloon.GetReport().ActualBytes, Target, 3 * Target);
                await copy.StartAsync();
                await Until(copy, () => balloon.GetReport().Reason == BalloonReason.Reached);
                Assert.Equal(3 * Target, balloon.GetReport().ActualBytes);
                balloon.SetTarget(0);
                await Until(copy, () => balloon.GetReport().ActualBytes == 0);
                await ContinueAsync(copy);
                MachineExit exit = await copy.WaitForExitAsync(TimeSpan.FromMinutes(5));
                Assert.True(exit.Kind == MachineExitKind.PoweredOff, $"{exit.Kind}: {exit.Report}\n{second.Text}");
                Assert.Contains("SECOND", second.Text, StringComparison.Ordinal);
                Assert.Equal(0L, copy.GetStatistics().Counters["dynamic-memory-spurious"]);
            }
        }
        finally
        {
            folder.Delete(recursive: true);
        }
    }
}
