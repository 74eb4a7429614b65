using System.Globalization;
using System.Text.Json;
using Aerostat.Hosting;
using Aerostat.Machine;
using Aerostat.Snapshots;

namespace Aerostat.Cli;

/// <summary>
/// What free page hints save: a guest that has used most of its memory and let it go again, and is idle, is saved without hints and with them. Free page
/// reporting is off, which would have given that memory back before.
/// </summary>
internal sealed class HintBenchmark
{
    private const string Ready = "GUEST-READY";

    public required StockGuest Guest { get; init; }

    public required int Runs { get; init; }

    public required bool Json { get; init; }

    /// <summary>Fills a tmpfs with two thirds of the memory, removes it, and answers lines.</summary>
    public static string Script(ulong memory) => $"""
        #!/bin/sh
        export PATH=/bin
        mount -t proc proc /proc
        mount -t devtmpfs dev /dev
        while read -r module; do insmod $module; done < /etc/modules
        mkdir /data
        mount -t tmpfs -o size=90% data /data
        dd if=/dev/urandom of=/data/piece bs=1M count=16 2>/dev/null
        for i in $(seq {(memory >> 20) * 2 / 3 / 16}); do cat /data/piece; done > /data/all
        rm /data/piece /data/all
        stty -echo
        echo {Ready}
        while read -r line; do echo {SnapshotBenchmark.Answer}; done
        poweroff -f

        """;

    public async Task<int> RunAsync(TextWriter output, TextWriter error, CancellationToken cancellation)
    {
        string folder = Directory.CreateTempSubdirectory("aerostat-bench-").FullName;
        try
        {
            List<(string Name, SnapshotResult Result)> saved = [];
            SerialTranscript console = new();
            VirtualMachine machine = Guest.Create(console, [new BalloonOptions { Reporting = false }]);
            await using (machine.ConfigureAwait(false))
            {
                using MachineSnapshots snapshots = new(machine);
                if (!await StockGuest.StartAsync(machine, console, Ready, error, cancellation).ConfigureAwait(false))
                    return ExitStatus.Incomplete;
                foreach ((string name, bool hints) in ((string, bool)[])[("without-hints", false), ("with-hints", true), ("with-hints-again", true)])
                    saved.Add((name, await snapshots.SaveAsync(Path.Combine(folder, name), new SnapshotOptions { Hints = hints, HintLimit = TimeSpan.FromSeconds(60) }, cancellation).ConfigureAwait(false)));
            }
            List<double> running = [];
            for (int i = 0; i < Runs; i++)
            {
                (_, double run, double? answer) = await SnapshotBenchmark.RestoreAsync(saved[1].Result.Directory, cancellation).ConfigureAwait(false);
                if (answer is null)
                {
                    error.WriteLine("a restored guest did not answer");
                    return ExitStatus.Incomplete;
                }
                running.Add(run);
            }
            Write(output, saved, BootBenchmark.Median(running));
            return ExitStatus.Success;
        }
        finally
        {
            Directory.Delete(folder, recursive: true);
        }
    }

    private void Write(TextWriter output, List<(string Name, SnapshotResult Result)> saved, double running)
    {
        if (!Json)
        {
            foreach ((string name, SnapshotResult r) in saved)
                output.WriteLine(string.Create(CultureInfo.InvariantCulture,
                    $"{name,-17} {r.DataBytes / 1048576.0,8:0.0} MiB of {Guest.MemoryBytes >> 20} MiB; the guest named {r.Hints.NamedBytes >> 20} MiB in {r.Hints.Elapsed.TotalSeconds:0.000} s ({r.Hints.Explanation}; {r.Hints.EmptiedBytes >> 20} MiB went through the balloon), and stood still for {r.Paused.TotalMilliseconds:0.0} ms of {r.Elapsed.TotalSeconds:0.00} s"));
            output.WriteLine(string.Create(CultureInfo.InvariantCulture, $"restore           median of {Runs}: running after {running * 1000:0.0} ms"));
            return;
        }
        using MemoryStream stream = new();
        using (Utf8JsonWriter json = new(stream, new JsonWriterOptions { Indented = true }))
        {
            json.WriteStartObject();
            foreach ((string name, SnapshotResult r) in saved)
            {
                json.WriteStartObject(name);
                json.WriteNumber("dataBytes", r.DataBytes);
                json.WriteNumber("namedBytes", r.Hints.NamedBytes);
                json.WriteNumber("emptiedBytes", r.Hints.EmptiedBytes);
                json.WriteNumber("hintSeconds", r.Hints.Elapsed.TotalSeconds);
                json.WriteNumber("pausedSeconds", r.Paused.TotalSeconds);
                json.WriteNumber("seconds", r.Elapsed.TotalSeconds);
                json.WriteEndObject();
            }
            json.WriteNumber("runningSeconds", running);
            json.WriteEndObject();
        }
        output.WriteLine(System.Text.Encoding.UTF8.GetString(stream.ToArray()));
    }
}
