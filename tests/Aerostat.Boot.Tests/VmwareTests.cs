using System.Globalization;
using Aerostat.Devices;
using Aerostat.Machine;
using Aerostat.VMware;
using Xunit;

namespace Aerostat.Boot.Tests;

/// <summary>What stock Debian kernels and their balloon driver make of the VMware personality.</summary>
public sealed class VmwareTests
{
    private const ulong MiB = 1 << 20;

    // The driver shows "name : value" for each figure, and for commands how often they were sent and failed.
    private const string Prepare = """
        while read -r m; do insmod $m || echo FAILED=$m; done < /etc/modules
        mount -t debugfs debugfs /sys/kernel/debug
        stty -echo
        seq 1 20000 > /tmp/kept
        # The driver counts from the first look on.
        figures() { sed "s/^/FIGURE$1 /" /sys/kernel/debug/vmmemctl; }
        pause() { echo $1; read -r line; }

        """;

    private const string Finish = """

        echo KEPT=$(seq 1 20000 | cmp - /tmp/kept && echo yes)
        """;

    private static async Task Until(VirtualMachine machine, Func<bool> condition)
    {
        // The machine's own time limit ends this.
        while (!condition() && !machine.Exit.IsCompleted)
            await Task.Delay(20);
    }

    private static Task ContinueAsync(VirtualMachine machine) => machine.SendSerialAsync("\n"u8.ToArray());

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
    }
}
