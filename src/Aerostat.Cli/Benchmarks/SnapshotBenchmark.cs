using System.Diagnostics;
using System.Globalization;
using System.Text.Json;
using Aerostat.Hosting;
using Aerostat.Machine;
using Aerostat.Snapshots;

namespace Aerostat.Cli;

/// <summary>
/// What snapshots of an idle guest with a stock kernel cost: size and rate of a full and a differential one, how long the guest stands still, and
/// how long it takes until a restored machine runs and until its user space answers on the console.
/// </summary>
internal sealed class SnapshotBenchmark
{
    private const string Ready = "GUEST-READY";

    /// <summary>What a guest says to a line.</summary>
    internal const string Answer = "GUEST-ANSWERS";

    /// <summary>What the guest does: it answers lines.</summary>
    public static string Script { get; } = $"""
        #!/bin/sh
        export PATH=/bin
        mount -t proc proc /proc
        stty -echo
        echo {Ready}
        while read -r line; do echo {Answer}; done
        poweroff -f

        """;

    public required StockGuest Guest { get; init; }

    public required int Runs { get; init; }

    public required bool Json { get; init; }

    public async Task<int> RunAsync(TextWriter output, TextWriter error, CancellationToken cancellation)
    {
        string folder = Directory.CreateTempSubdirectory("aerostat-bench-").FullName;
        try
        {
            (SnapshotResult Full, SnapshotResult Changes)? saved = await SaveAsync(folder, error, cancellation).ConfigureAwait(false);
            if (saved is not { } snapshots)
                return ExitStatus.Incomplete;
            List<double> opened = [], running = [], answered = [];
            for (int i = 1; i <= Runs; i++)
            {
                (double open, double run, double? answer) = await RestoreAsync(snapshots.Full.Directory, cancellation).ConfigureAwait(false);
                if (answer is not { } seconds)
                {
                    error.WriteLine("a restored guest did not answer");
                    return ExitStatus.Incomplete;
                }
                opened.Add(open);
                running.Add(run);
                answered.Add(seconds);
                error.WriteLine(string.Create(CultureInfo.InvariantCulture, $"restore {i} of {Runs}: checked after {open * 1000:0.0} ms, running after {run * 1000:0.0} ms, answers after {seconds * 1000:0.0} ms"));
            }
            Write(output, snapshots.Full, snapshots.Changes, BootBenchmark.Median(opened), BootBenchmark.Median(running), BootBenchmark.Median(answered));
            return ExitStatus.Success;
        }
        finally
        {
            Directory.Delete(folder, recursive: true);
        }
    }

    private async Task<(SnapshotResult, SnapshotResult)?> SaveAsync(string folder, TextWriter error, CancellationToken cancellation)
    {
        SerialTranscript console = new();
        VirtualMachine machine = Guest.Create(console);
        await using (machine.ConfigureAwait(false))
        {
            using MachineSnapshots snapshots = new(machine);
            if (!await StockGuest.StartAsync(machine, console, Ready, error, cancellation).ConfigureAwait(false))
                return null;
            SnapshotResult full = await snapshots.SaveAsync(Path.Combine(folder, "full"), new SnapshotOptions()).ConfigureAwait(false);
            await machine.SendSerialAsync("x\n"u8.ToArray(), cancellation).ConfigureAwait(false);
            await StockGuest.ReachAsync(machine, console, Answer, cancellation).ConfigureAwait(false);
            SnapshotResult changes = await snapshots.SaveAsync(Path.Combine(folder, "changes"), new SnapshotOptions { Differential = true }).ConfigureAwait(false);
            return (full, changes);
        }
    }

    /// <summary>Restores a guest that answers lines: seconds until it is checked, runs, and answers; null: it does not.</summary>
    internal static async Task<(double Open, double Run, double? Answer)> RestoreAsync(string directory, CancellationToken cancellation)
    {
        SerialTranscript console = new();
        Stopwatch time = Stopwatch.StartNew();
        Snapshot snapshot = Snapshot.Open(directory);
        snapshot.Verify();
        double open = time.Elapsed.TotalSeconds;
        VirtualMachine machine = Machines.Restore(snapshot, adjust: o => o with { NoReboot = true, Serial = console.Append }, verify: false);
        await using (machine.ConfigureAwait(false))
        {
            await machine.StartAsync().ConfigureAwait(false);
            double run = time.Elapsed.TotalSeconds;
            await machine.SendSerialAsync("x\n"u8.ToArray(), cancellation).ConfigureAwait(false);
            bool answers = await StockGuest.ReachAsync(machine, console, Answer, cancellation).ConfigureAwait(false);
            return (open, run, answers ? time.Elapsed.TotalSeconds : null);
        }
    }

    private void Write(TextWriter output, SnapshotResult full, SnapshotResult changes, double opened, double running, double answered)
    {
        if (Json)
        {
            using MemoryStream stream = new();
            using (Utf8JsonWriter json = new(stream, new JsonWriterOptions { Indented = true }))
            {
                json.WriteStartObject();
                json.WriteNumber("memoryBytes", Guest.MemoryBytes);
                foreach ((string name, SnapshotResult result) in ((string, SnapshotResult)[])[("full", full), ("differential", changes)])
                {
                    json.WriteStartObject(name);
                    json.WriteNumber("dataBytes", result.DataBytes);
                    json.WriteNumber("seconds", result.Elapsed.TotalSeconds);
                    json.WriteNumber("pausedSeconds", result.Paused.TotalSeconds);
                    json.WriteEndObject();
                }
                json.WriteNumber("checkedSeconds", opened);
                json.WriteNumber("runningSeconds", running);
                json.WriteNumber("answersSeconds", answered);
                json.WriteEndObject();
            }
            output.WriteLine(System.Text.Encoding.UTF8.GetString(stream.ToArray()));
            return;
        }
        foreach ((string name, SnapshotResult result) in ((string, SnapshotResult)[])[("full", full), ("differential", changes)])
            output.WriteLine(string.Create(CultureInfo.InvariantCulture,
                $"{name,-13} {result.DataBytes / 1048576.0,8:0.0} MiB of {Guest.MemoryBytes >> 20} MiB in {result.Elapsed.TotalSeconds:0.000} s ({result.DataBytes / 1048576.0 / result.Elapsed.TotalSeconds:0} MiB/s, on the disk); the guest stood still for {result.Paused.TotalMilliseconds:0} ms"));
        output.WriteLine(string.Create(CultureInfo.InvariantCulture,
            $"restore       median of {Runs}: checked after {opened * 1000:0.0} ms, running after {running * 1000:0.0} ms, user space answers after {answered * 1000:0.0} ms"));
    }
}
