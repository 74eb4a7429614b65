using System.Diagnostics;
using Aerostat.Hosting;
using Aerostat.Machine;
using Aerostat.Snapshots;

namespace Aerostat.Cli;

/// <summary>
/// A guest under memory stress is saved with free page hints again and again, every second time by what has changed. Each snapshot is restored, and the copy
/// goes on until it has checked all its files once more.
/// </summary>
internal sealed class SnapshotSoak
{
    // Files whose checksums, kept where there is always room, are looked at before they are replaced, and a hog that makes the kernel take back what its driver has named.
    public const string Script = """
        #!/bin/sh
        export PATH=/bin
        mount -t proc proc /proc
        mount -t devtmpfs dev /dev
        while read -r module; do insmod $module; done < /etc/modules
        mkdir /data /sums
        mount -t tmpfs -o size=85% data /data
        churn() {
            i=0
            while true; do
                i=$((i+1)); f=/data/$1.$((i%4)); sum=/sums/$1.$((i%4))
                [ ! -f $sum ] || [ "$(sha256sum < $f)" = "$(cat $sum)" ] || echo "WRONG $f $i"
                rm -f $f
                dd if=/dev/urandom of=$f bs=64k count=$((8 + i % 5 * 16)) 2>/dev/null
                sha256sum < $f > $sum
                echo "ROUND $1 $i"
            done
        }
        hog() {
            while true; do
                dd if=/dev/zero of=/data/hog bs=1M count=$(($(awk '/^MemFree/ { print $2 }' /proc/meminfo) / 1024 - 32)) 2>/dev/null
                rm -f /data/hog
                sleep 0.3
            done
        }
        hog &
        churn a &
        churn b
        """;

    private static readonly TimeSpan s_limit = TimeSpan.FromMinutes(5);

    public required StockGuest Guest { get; init; }

    public required string Append { get; init; }

    public required int Rounds { get; init; }

    public async Task<int> RunAsync(TextWriter output, TextWriter error, CancellationToken cancellation)
    {
        string folder = Directory.CreateTempSubdirectory("aerostat-soak-").FullName;
        try
        {
            List<SnapshotResult> results = [];
            Stopwatch elapsed = Stopwatch.StartNew();
            SerialTranscript console = new();
            VirtualMachine machine = Guest.Create(console, [new BalloonOptions { Reporting = false }], Append);
            await using (machine.ConfigureAwait(false))
            {
                using MachineSnapshots snapshots = new(machine);
                await machine.StartAsync().ConfigureAwait(false);
                int seen = 0;
                for (int i = 1; i <= Rounds; i++)
                {
                    if (await FollowAsync(machine, console, seen, 1, cancellation).ConfigureAwait(false) is { } wrong)
                        return Fail(error, $"the guest, before snapshot {i}: {wrong}", console);
                    SnapshotResult result = await snapshots.SaveAsync(
                        Path.Combine(folder, $"s{i}"), new SnapshotOptions { Durable = false, Differential = i % 2 == 0, HintLimit = TimeSpan.FromSeconds(60) }, cancellation).ConfigureAwait(false);
                    seen = console.Text.Length;
                    results.Add(result);
                    if (await RestoreAsync(result.Directory, cancellation).ConfigureAwait(false) is { } why)
                    {
                        error.WriteLine($"aerostat bench: the copy of snapshot {i}: {why}");
                        return ExitStatus.Incomplete;
                    }
                    output.WriteLine($"{elapsed.Elapsed:mm\\:ss} snapshot {i}: {result.DataBytes >> 20} MiB, {result.Hints.NamedBytes >> 20} MiB named ({result.Hints.Explanation}), {result.Rounds} rounds, stood still for {result.Paused.TotalMilliseconds:0} ms");
                    if (i % 2 == 0)
                    {
                        Directory.Delete(Path.Combine(folder, $"s{i}"), recursive: true);
                        Directory.Delete(Path.Combine(folder, $"s{i - 1}"), recursive: true);
                    }
                }
            }
            double[] pauses = [.. results.Select(r => r.Paused.TotalMilliseconds).Order()];
            output.WriteLine($"{Rounds} snapshots, every copy found its checksums right; {results.Sum(r => (long)(r.Hints.NamedBytes >> 20))} MiB named in {results.Count(r => r.Hints.NamedBytes > 0)} of them, {results.Sum(r => (long)(r.HintedBytes >> 20))} MiB left out; the guest stood still for {pauses[pauses.Length / 2]:0} ms (median), {pauses[^1]:0} ms (longest)");
            return ExitStatus.Success;
        }
        finally
        {
            Directory.Delete(folder, recursive: true);
        }
    }

    private static int Fail(TextWriter error, string what, SerialTranscript console)
    {
        error.WriteLine($"aerostat bench: {what}; the end of its console:");
        foreach (string line in console.Text.Split('\n').TakeLast(30))
            error.WriteLine($"  {line.TrimEnd()}");
        return ExitStatus.Incomplete;
    }

    // Until all four files of one of the two have been looked at again.
    private static async Task<string?> RestoreAsync(string directory, CancellationToken cancellation)
    {
        Snapshot snapshot = Snapshot.Open(directory);
        snapshot.Verify();
        SerialTranscript console = new();
        VirtualMachine copy = Machines.Restore(snapshot, adjust: o => o with { NoReboot = true, Serial = console.Append });
        await using (copy.ConfigureAwait(false))
        {
            await copy.StartAsync().ConfigureAwait(false);
            return await FollowAsync(copy, console, 0, 9, cancellation).ConfigureAwait(false);
        }
    }

    // Null: so many rounds have come since, and nothing is wrong.
    private static async Task<string?> FollowAsync(VirtualMachine machine, SerialTranscript console, int from, int rounds, CancellationToken cancellation)
    {
        Stopwatch waited = Stopwatch.StartNew();
        while (true)
        {
            string text = console.Text[from..];
            if (new[] { "WRONG", "Kernel panic", "BUG:", "WARNING:", "Oops", "Out of memory" }.FirstOrDefault(t => text.Contains(t, StringComparison.Ordinal)) is { } trouble)
                return $"{trouble}: {text}";
            if (text.Split("ROUND ").Length > rounds)
                return null;
            if (machine.Exit.IsCompleted || waited.Elapsed > s_limit)
                return $"it has stopped working: {text}";
            await Task.Delay(20, cancellation).ConfigureAwait(false);
        }
    }
}
