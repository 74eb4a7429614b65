using System.Security.Cryptography;
using System.Text;
using Aerostat.Hosting;
using Aerostat.Machine;
using Aerostat.Snapshots;
using Xunit;

namespace Aerostat.Boot.Tests;

/// <summary>
/// A stock kernel is saved in the middle of user space's work and goes on in another machine: what it works on is whole, timers run, and it
/// powers off by itself.
/// </summary>
public sealed class SnapshotTests
{
    private static readonly TimeSpan s_limit = TimeSpan.FromMinutes(5);

    // Two files in a tmpfs, hashed again and again, by a process for each vCPU; the sums are compared inside and outside.
    private const string Work = """
        while read -r module; do insmod $module; done < /etc/modules
        mkdir /data
        mount -t tmpfs data /data
        seq 1 60000 > /data/a
        cp /data/a /data/b
        work() {
            i=0
            while [ $i -lt ROUNDS ]; do
                i=$((i+1))
                got=$(sha256sum /data/$1 | cut -d' ' -f1)
                [ "$got" = "$SUM" ] || echo "WRONG $1 $i $got"
                echo "ROUND $1 $i"
                # It is saved while it runs: slowly enough not to be done by then.
                sleep 0.3
            done
        }
        export SUM=$(sha256sum /data/a | cut -d' ' -f1)
        work a &
        work b
        wait
        dd if=/dev/hwrng of=/data/random bs=4096 count=4 2>/dev/null
        echo RANDOM=$(stat -c %s /data/random)
        before=$(cut -d' ' -f1 /proc/uptime)
        sleep 0.3
        sleep 0.3
        after=$(cut -d' ' -f1 /proc/uptime)
        echo "TIME=$before $after"
        echo SUM=$(sha256sum /data/b | cut -c1-16)

        """;

    /// <summary>Kernel, vCPUs, what runs the original and what its copies, and how long they work: the interpreter needs its time.</summary>
    public static TheoryData<string, int, string, string, int> Machines => new()
    {
        { "cloud", 1, "translator", "translator", 25 },
        { "cloud", 2, "translator", "translator", 25 },
        { "cloud", 1, "translator", "interpreter", 18 },
        { "generic", 2, "translator", "translator", 25 },
    };

    [Theory]
    [MemberData(nameof(Machines))]
    public async Task AStockKernelGoesOn(string kernel, int cpus, string first, string second, int rounds)
    {
        string image = Guest.Image(kernel), busybox = Guest.Busybox();
        DirectoryInfo folder = Directory.CreateTempSubdirectory("aerostat-snapshot-boot-");
        try
        {
            SerialTranscript console = new();
            MachineOptions options = new()
            {
                MemoryBytes = 256UL << 20,
                Cpus = cpus,
                Accelerator = first,
                NoReboot = true,
                Serial = console.Append,
                Devices = [new RngOptions()],
                Boot = new KernelBootOptions(image) { InitrdBytes = Guest.Initramfs(kernel, busybox, Work.Replace("ROUNDS", $"{rounds}", StringComparison.Ordinal), ["virtio_pci", "virtio-rng"]), CommandLine = "console=ttyS0 panic=-1" },
            };
            string full = Path.Combine(folder.FullName, "full"), changes = Path.Combine(folder.FullName, "changes");
            VirtualMachine original = Hosting.Machines.Create(options);
            await using (original)
            {
                using MachineSnapshots snapshots = new(original);
                await original.StartAsync();
                await ReachAsync(original, console, "ROUND b 3");
                await snapshots.SaveAsync(full, new SnapshotOptions { Durable = false }, TestContext.Current.CancellationToken);
                await ReachAsync(original, console, "ROUND b 6");
                SnapshotResult result = await snapshots.SaveAsync(changes, new SnapshotOptions { Differential = true, Durable = false }, TestContext.Current.CancellationToken);
                Assert.True(result.UnchangedBytes > result.DataBytes, $"{result.DataBytes} bytes changed in three rounds");
                // The original is none the worse for it.
                await ReachAsync(original, console, "ROUND b 8");
                await original.StopAsync();
            }
            Assert.DoesNotContain($"ROUND b {rounds}\r", console.Text, StringComparison.Ordinal);

            // Twice from the second, once from the first: every one is a machine of its own.
            foreach (string place in second == "interpreter" ? (string[])[changes] : [changes, full, changes])
            {
                SerialTranscript again = new();
                Snapshot snapshot = Snapshot.Open(place);
                snapshot.Verify();
                VirtualMachine copy = Hosting.Machines.Restore(snapshot, second, adjust: o => o with { NoReboot = true, Serial = again.Append });
                await using (copy)
                {
                    await copy.StartAsync();
                    MachineExit exit = await copy.WaitForExitAsync(s_limit);
                    Assert.True(exit.Kind == MachineExitKind.PoweredOff, $"{exit.Kind}: {exit.Report}\n{again.Text}");
                }
                string text = again.Text;
                Assert.DoesNotContain("WRONG", text, StringComparison.Ordinal);
                foreach (string trouble in (string[])["Kernel panic", "BUG:", "WARNING:", "Oops", "soft lockup", "rcu_sched detected", "Call Trace", "clocksource: timekeeping watchdog"])
                    Assert.DoesNotContain(trouble, text, StringComparison.Ordinal);
                Assert.Contains($"ROUND a {rounds}\r", text, StringComparison.Ordinal);
                Assert.Contains($"ROUND b {rounds}\r", text, StringComparison.Ordinal);
                Assert.Contains(Guest.Done, text, StringComparison.Ordinal);
                // The driver's queue and its MSI-X vectors have come along.
                Assert.Contains("RANDOM=16384", text, StringComparison.Ordinal);
                Assert.Contains($"SUM={ExpectedSum[..16]}", text, StringComparison.Ordinal);
                double[] time = [.. Line(text, "TIME=").Split(' ').Select(t => double.Parse(t, System.Globalization.CultureInfo.InvariantCulture))];
                Assert.True(time[1] - time[0] >= 0.5, $"0.6 s of sleep took from {time[0]} to {time[1]}");
                // Debian's cloud kernel is built without the driver.
                if (kernel == "generic")
                    Assert.Contains("crng reseeded due to virtual machine fork", text, StringComparison.Ordinal);
            }
        }
        finally
        {
            folder.Delete(recursive: true);
        }
    }

    private static string ExpectedSum { get; } = Convert.ToHexStringLower(SHA256.HashData(Encoding.ASCII.GetBytes(string.Concat(Enumerable.Range(1, 60000).Select(i => $"{i}\n")))));

    private static Task ReachAsync(VirtualMachine machine, SerialTranscript console, string text) => Guest.ReachAsync(machine, console, text, s_limit);

    private static string Line(string text, string head) =>
        text.Split('\n').Select(l => l.Trim()).Last(l => l.StartsWith(head, StringComparison.Ordinal))[head.Length..];
}
