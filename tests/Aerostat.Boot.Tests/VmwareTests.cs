using System.Globalization;
using Aerostat.Devices;
using Aerostat.Hosting;
using Aerostat.Machine;
using Aerostat.Snapshots;
using Aerostat.VMware;
using Xunit;
using static Aerostat.Boot.Tests.DrivenGuest;

namespace Aerostat.Boot.Tests;

/// <summary>What stock Debian kernels and their balloon driver make of the VMware personality.</summary>
public sealed class VmwareTests
{
    private const ulong MiB = 1 << 20;

    // The driver shows "name : value" for each figure, and for commands how often they were sent and failed.
    private const string Prepare = """
        while read -r m; do insmod $m || echo FAILED=$m; done < /etc/modules
        mount -t debugfs debugfs /sys/kernel/debug
        # The driver counts from the first look on.
        figures() { sed "s/^/FIGURE$1 /" /sys/kernel/debug/vmmemctl; }

        """ + DrivenGuest.Keep;

    /// <summary>The driver's figures that were printed under a number: by name, sent and failed.</summary>
    private static Dictionary<string, (long Sent, long Failed)> Figures(string console, int number)
    {
        Dictionary<string, (long, long)> figures = [];
        string head = string.Create(CultureInfo.InvariantCulture, $"FIGURE{number} ");
        foreach (string line in console.Split('\n').Select(l => l.Trim()).Where(l => l.StartsWith(head, StringComparison.Ordinal)))
        {
            string[] halves = line[head.Length..].Split(':', 2);
            if (halves.Length < 2)
                continue;
            long[] numbers = [.. halves[1].Split([' ', '(', ')', ','], StringSplitOptions.RemoveEmptyEntries)
                .Select(w => long.TryParse(w, CultureInfo.InvariantCulture, out long n) ? (long?)n : null).Where(n => n is not null).Select(n => n!.Value)];
            // What was sent has a name that a state may have too ("target").
            if (numbers.Length > 0)
                figures[(halves[1].Contains("failed", StringComparison.Ordinal) ? "command " : "") + string.Join(' ', halves[0].Split(' ', StringSplitOptions.RemoveEmptyEntries))] = (numbers[0], numbers.Length > 1 ? numbers[1] : 0);
        }
        return figures;
    }

    /// <summary>Identity, clocks, and the balloon there and back with the driver's own figures beside ours.</summary>
    [Theory]
    [InlineData("translator", "cloud", 2)]
    [InlineData("translator", "generic", 1)]
    [InlineData("interpreter", "cloud", 1)]
    public async Task Balloon(string accelerator, string kernel, int cpus)
    {
        const ulong Target = 96 * MiB;
        ulong discarded = 0;
        BalloonReport? full = null, empty = null;
        BootOutcome outcome = await Guest.BootAsync(
            kernel: kernel, accelerator: accelerator, cpus: cpus, memory: 256 * MiB, modules: ["vmw_balloon"], personality: "vmware",
            script: Prepare + """
                case $(cat /sys/class/dmi/id/modalias) in dmi:*:svnVMware*:*) echo AUTOLOAD=yes;; esac
                figures 1
                pause READY
                figures 2
                pause NEXT
                figures 3
                """ + Finish,
            companion: async (machine, console) =>
            {
                VmwareBalloon balloon = Assert.IsType<VmwareBalloon>(machine.Balloon);
                if (!await console.WaitForAsync("READY"))
                    return;
                balloon.SetTarget(Target);
                await Until(machine, () => balloon.GetReport().ActualBytes >= Target);
                full = balloon.GetReport();
                discarded = machine.GetMemory().Pages.DiscardedBytes;
                await ContinueAsync(machine);
                if (!await console.WaitForAsync("NEXT"))
                    return;
                balloon.SetTarget(0);
                await Until(machine, () => balloon.GetReport().ActualBytes == 0);
                empty = balloon.GetReport();
                await ContinueAsync(machine);
            });
        Guest.AssertPoweredOff(outcome);
        Assert.DoesNotContain("FAILED=", outcome.Console, StringComparison.Ordinal);
        Assert.Contains("Hypervisor detected: VMware", outcome.Console, StringComparison.Ordinal);
        Assert.Contains("TSC freq read from hypervisor : 1000.000 MHz", outcome.Console, StringComparison.Ordinal);
        Assert.Equal(("yes", "yes", $"{cpus}"), (outcome.Value("AUTOLOAD"), outcome.Value("KEPT"), outcome.Value("CPUS")));
        Assert.Equal(BalloonReason.Reached, full!.Reason);
        Assert.Equal((BalloonReason.Reached, 0UL), (empty!.Reason, empty.ActualBytes));
        Assert.InRange(full.ActualBytes, Target, Target + (2 * MiB) - 1);
        Assert.InRange(discarded, full.ActualBytes - (full.ActualBytes / 100), 256 * MiB);

        // The driver's view of the same moments. It counts commands of its own: none was lost, and none came twice.
        Dictionary<string, (long Sent, long Failed)> inflated = Figures(outcome.Console, 2), deflated = Figures(outcome.Console, 3);
        Assert.Equal(((long)(full.ActualBytes >> 12), (long)(Target >> 12)), (inflated["current"].Sent, inflated["target"].Sent));
        Assert.Equal((0L, 0L), (deflated["current"].Sent, deflated["target"].Sent));
        foreach ((string theirs, string ours) in (ReadOnlySpan<(string, string)>)[("lock", "lock"), ("unlock", "unlock"), ("batchLock", "batched-lock"), ("batchUnlock", "batched-unlock"), ("2m-lock", "batched-2m-lock"), ("2m-unlock", "batched-2m-unlock")])
            Assert.Equal((theirs, (outcome.Statistics.Counters[$"vmballoon-{ours}"], 0L)), (theirs, deflated[$"command {theirs}"]));
        Assert.InRange(deflated["command 2m-lock"].Sent, 1, 100);
        Assert.Equal(outcome.Statistics.Counters["vmballoon-large-pages-locked"], deflated["free (2M)"].Sent);
        Assert.InRange(deflated["free (2M)"].Sent, 1, 48);
        // The doorbell rang for either target.
        Assert.Equal((0L, 2L), (Figures(outcome.Console, 1).GetValueOrDefault("doorbell").Sent, deflated["doorbell"].Sent));
        Assert.Equal(2L, outcome.Statistics.Counters["vmci-rings"]);
    }

    /// <summary>Pages move while they are in the balloon, the host wants a new beginning, pages are refused, and the guest starts again.</summary>
    [Fact]
    public async Task WhatHappensToABalloon()
    {
        const ulong Target = 64 * MiB;
        bool refused = false, back = false, again = false;
        long moved = 0;
        BootOutcome outcome = await Guest.BootAsync(
            accelerator: "translator", cpus: 2, memory: 256 * MiB, modules: ["vmw_balloon"], personality: "vmware",
            script: Prepare + """
                figures 1
                pause READY
                # Fragments, so that small pages are taken among others and compaction has something to do.
                mkdir /f; mount -t tmpfs -o size=200m t /f
                i=0; while [ $i -lt 1500 ]; do i=$((i+1)); dd if=/dev/zero of=/f/$i bs=60k count=1 2>/dev/null; done
                i=0; while [ $i -lt 1500 ]; do i=$((i+2)); rm -f /f/$i; done
                pause FRAGMENTED
                rm -rf /f/*
                for i in 1 2 3; do echo 1 > /proc/sys/vm/compact_memory; done
                echo MIGRATED=$(awk '/^compact_migrate_scanned/ { print $2 }' /proc/vmstat)
                pause COMPACTED
                figures 4
                pause OVER
                """ + Finish,
            companion: async (machine, console) =>
            {
                VmwareBalloon balloon = Assert.IsType<VmwareBalloon>(machine.Balloon);
                if (!await console.WaitForAsync("READY"))
                    return;
                balloon.SetTarget(Target);
                await Until(machine, () => balloon.GetReport().Reason == BalloonReason.Reached);
                // A new beginning: the driver frees everything and takes it again.
                balloon.RequestReset();
                await Until(machine, () => machine.GetStatistics().Counters["vmballoon-start"] >= 2 && balloon.GetReport().Reason == BalloonReason.Reached);
                back = balloon.GetReport().ActualBytes >= Target;
                await ContinueAsync(machine);
                if (!await console.WaitForAsync("FRAGMENTED"))
                    return;
                // Pages that the host cannot take: the driver keeps them, and goes on with others.
                List<Aerostat.Memory.MemoryPin> pins = [.. Enumerable.Range(1, 255).Select(i => machine.Memory.TryPin(new Aerostat.Memory.GuestAddress(((ulong)i * MiB) - 4096), 4096)!)];
                balloon.SetTarget(Target + (48 * MiB));
                await Until(machine, () => balloon.GetReport().ActualBytes >= Target + (24 * MiB));
                refused = balloon.GetReport().RefusedPages > 0;
                pins.ForEach(p => p.Dispose());
                // Small pages are the first to go, and large ones do not move: what is there stays.
                balloon.SetTarget(balloon.GetReport().ActualBytes);
                await Until(machine, () => balloon.GetReport().Reason == BalloonReason.Reached);
                long before = machine.GetStatistics().Counters["vmballoon-batched-unlock"] + machine.GetStatistics().Counters["vmballoon-unlock"];
                await ContinueAsync(machine);
                if (!await console.WaitForAsync("COMPACTED"))
                    return;
                moved = machine.GetStatistics().Counters["vmballoon-batched-unlock"] + machine.GetStatistics().Counters["vmballoon-unlock"] - before;
                again = balloon.GetReport().ActualBytes >= Target + (24 * MiB);
                await ContinueAsync(machine);
                if (!await console.WaitForAsync("OVER"))
                    return;
                await ContinueAsync(machine);
            });
        Guest.AssertPoweredOff(outcome);
        Assert.DoesNotContain("FAILED=", outcome.Console, StringComparison.Ordinal);
        Assert.Equal(("yes", true, true, true), (outcome.Value("KEPT"), back, refused, again));
        Dictionary<string, (long Sent, long Failed)> figures = Figures(outcome.Console, 4);
        Assert.Equal(1, figures["reset"].Sent);
        // The last START and what the driver has since are one conversation: nothing that it holds is unknown here.
        Assert.Equal(outcome.Statistics.Counters["vmballoon-pages"], figures["current"].Sent);
        foreach ((string theirs, string ours) in (ReadOnlySpan<(string, string)>)[("lock", "lock"), ("unlock", "unlock"), ("batchLock", "batched-lock"), ("batchUnlock", "batched-unlock"), ("2m-lock", "batched-2m-lock"), ("2m-unlock", "batched-2m-unlock")])
            Assert.Equal((theirs, outcome.Statistics.Counters[$"vmballoon-{ours}"]), (theirs, figures[$"command {theirs}"].Sent));
        TestContext.Current.TestOutputHelper?.WriteLine($"{moved} commands moved pages; {outcome.Statistics.Counters["vmballoon-status-frame-pinned"]} refusals");
    }

    /// <summary>The guest restarts with a full balloon: the pages are its own again, and the next driver starts from the same target.</summary>
    [Fact]
    public async Task AGuestThatRestarts()
    {
        const ulong Target = 48 * MiB;
        string busybox = Path.Combine(Guest.Cache, "busybox", "bin", "busybox");
        Assert.SkipUnless(File.Exists(busybox), $"no static busybox at {busybox}: './dev kernels' fetches it, and could not");
        string boot = Path.Combine(Guest.Cache, "cloud", "boot");
        string? image = Directory.Exists(boot) ? Directory.EnumerateFiles(boot, "vmlinuz-*").Order(StringComparer.Ordinal).LastOrDefault() : null;
        Assert.SkipWhen(image is null, $"no stock cloud kernel in {boot}: './dev kernels' fetches it, and could not");
        SerialTranscript console = new();
        VirtualMachine machine = Machines.Create(new MachineOptions
        {
            MemoryBytes = 192 * MiB,
            Accelerator = "translator",
            Personality = "vmware",
            Serial = console.Append,
            Boot = new KernelBootOptions(image!) { InitrdBytes = Guest.Initramfs("cloud", busybox, Prepare + "pause READY\necho SECOND\n", ["vmw_balloon"]), CommandLine = "console=ttyS0 panic=-1" },
        });
        DirectoryInfo folder = Directory.CreateTempSubdirectory("aerostat-vmware-");
        try
        {
            await using (machine)
            {
                VmwareBalloon balloon = Assert.IsType<VmwareBalloon>(machine.Balloon);
                await machine.StartAsync();
                await ReachAsync(machine, console, "READY", 1);
                balloon.SetTarget(Target);
                await Until(machine, () => balloon.GetReport().Reason == BalloonReason.Reached);
                await machine.ResetAsync();
                Assert.Equal(BalloonReason.NoDriver, balloon.GetReport().Reason);
                await ReachAsync(machine, console, "READY", 2);
                await Until(machine, () => balloon.GetReport().Reason == BalloonReason.Reached);
                Assert.InRange(balloon.GetReport().ActualBytes, Target, Target + (2 * MiB) - 1);

                // In mid-inflate: the driver has been told, and is not there yet.
                balloon.SetTarget(2 * Target);
                await Until(machine, () => balloon.GetReport().ActualBytes > Target + (2 * MiB) || balloon.GetReport().Reason == BalloonReason.Reached);
                using MachineSnapshots snapshots = new(machine);
                await snapshots.SaveAsync(Path.Combine(folder.FullName, "middle"), new SnapshotOptions { Durable = false }, cancellation: TestContext.Current.CancellationToken);
                await machine.StopAsync();
            }
            SerialTranscript second = new();
            VirtualMachine copy = Machines.Restore(Snapshot.Open(Path.Combine(folder.FullName, "middle")), "translator", adjust: o => o with { NoReboot = true, Serial = second.Append });
            await using (copy)
            {
                VmwareBalloon balloon = Assert.IsType<VmwareBalloon>(copy.Balloon);
                Assert.InRange(balloon.GetReport().ActualBytes, Target, (2 * Target) + (2 * MiB));
                await copy.StartAsync();
                await Until(copy, () => balloon.GetReport().Reason == BalloonReason.Reached);
                Assert.InRange(balloon.GetReport().ActualBytes, 2 * Target, (2 * Target) + (2 * MiB) - 1);
                balloon.SetTarget(0);
                await Until(copy, () => balloon.GetReport().ActualBytes == 0);
                await ContinueAsync(copy);
                MachineExit exit = await copy.WaitForExitAsync(TimeSpan.FromMinutes(5));
                Assert.True(exit.Kind == MachineExitKind.PoweredOff, $"{exit.Kind}: {exit.Report}\n{second.Text}");
                Assert.Contains("SECOND", second.Text, StringComparison.Ordinal);
                // Nothing was asked for twice, and nothing given back that was not there.
                Assert.Equal((0L, 0L), (copy.GetStatistics().Counters["vmballoon-status-frame-locked"], copy.GetStatistics().Counters["vmballoon-status-frame-unlocked"]));
            }
        }
        finally
        {
            folder.Delete(recursive: true);
        }
    }

    private static async Task ReachAsync(VirtualMachine machine, SerialTranscript console, string text, int times)
    {
        // The machine has no time limit of its own here.
        using CancellationTokenSource limit = CancellationTokenSource.CreateLinkedTokenSource(TestContext.Current.CancellationToken);
        limit.CancelAfter(TimeSpan.FromMinutes(5));
        while (!machine.Exit.IsCompleted && console.Text.Split(text + "\r").Length <= times)
            await Task.Delay(20, limit.Token);
    }
}
