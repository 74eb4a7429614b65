using System.Text.Json;
using Aerostat.Machine;
using Aerostat.Platform;

namespace Aerostat.Cli;

/// <summary>
/// Boots the same kernel, initramfs and command line on Aerostat and on QEMU's software processor, in turn, and compares
/// medians. It says what was measured here and now; it has no opinion about what is fast enough.
/// </summary>
internal sealed class BootBenchmark
{
    private const string Qemu = "qemu-system-x86_64";
    private const int LimitSeconds = 900;

    private readonly record struct Sample(double Wall, double Cpu, long Instructions, double Mips, long PeakVmmBytes);

    public required string Kernel { get; init; }

    public required string Initrd { get; init; }

    public required string Append { get; init; }

    public required ulong MemoryBytes { get; init; }

    public required int Cpus { get; init; }

    public required string Accelerator { get; init; }

    public required int Runs { get; init; }

    public required bool Json { get; init; }

    public async Task<int> RunAsync(TextWriter output, TextWriter error, CancellationToken cancellation)
    {
        string? qemu = ChildRun.Find(Qemu);
        List<Sample> own = [], peer = [];
        for (int i = 1; i <= Runs; i++)
        {
            if (await RunOwn(error, cancellation).ConfigureAwait(false) is not { } sample)
                return ExitStatus.Incomplete;
            own.Add(sample);
            string line = $"run {i} of {Runs}: aerostat {sample.Wall:0.00} s, CPU {sample.Cpu:0.00} s, {sample.Mips:0.0} MIPS";
            if (qemu is not null)
            {
                if (await RunQemu(qemu, error, cancellation).ConfigureAwait(false) is not { } other)
                    return ExitStatus.Incomplete;
                peer.Add(other);
                line += $"; qemu tcg {other.Wall:0.00} s, CPU {other.Cpu:0.00} s";
            }
            error.WriteLine(line);
        }
        if (Json)
            WriteJson(output, own, peer);
        else
            WriteText(output, own, peer);
        return ExitStatus.Success;
    }

    private async Task<Sample?> RunOwn(TextWriter error, CancellationToken cancellation)
    {
        string stats = Path.Combine(Path.GetTempPath(), $"aerostat-bench-{Environment.ProcessId}.json");
        (string program, string[] prefix) = ChildRun.Self();
        try
        {
            ChildRun run = await ChildRun.StartAsync(program,
                [.. prefix, "run", "--accel", Accelerator, "--kernel", Kernel, "--initrd", Initrd, "--append", Append,
                "--memory", MemorySize.Format(MemoryBytes), "--cpus", $"{Cpus}", "--no-reboot", "--stats", stats], TimeSpan.FromSeconds(LimitSeconds), cancellation).ConfigureAwait(false);
            if (!Succeeded(run, "aerostat", error))
                return null;
            using JsonDocument document = JsonDocument.Parse(await File.ReadAllBytesAsync(stats, cancellation).ConfigureAwait(false));
            JsonElement root = document.RootElement;
            return new Sample(run.Wall.TotalSeconds, run.Cpu.TotalSeconds, root.GetProperty("instructions").GetInt64(), root.GetProperty("mips").GetDouble(), root.GetProperty("peakVmmBytes").GetInt64());
        }
        finally
        {
            File.Delete(stats);
        }
    }

    private async Task<Sample?> RunQemu(string qemu, TextWriter error, CancellationToken cancellation)
    {
        ChildRun run = await ChildRun.StartAsync(qemu,
            ["-accel", "tcg", "-m", $"{MemoryBytes >> 20}", "-smp", $"{Cpus}", "-nographic", "-no-reboot", "-kernel", Kernel, "-initrd", Initrd, "-append", Append],
            TimeSpan.FromSeconds(LimitSeconds), cancellation).ConfigureAwait(false);
        return Succeeded(run, "qemu", error) ? new Sample(run.Wall.TotalSeconds, run.Cpu.TotalSeconds, 0, 0, 0) : null;
    }

    private static bool Succeeded(ChildRun run, string who, TextWriter error)
    {
        if (run.ExitCode == 0 && run.Output.Contains(GuestScripts.Done, StringComparison.Ordinal))
            return true;
        error.WriteLine($"aerostat bench: {who} ended with status {run.ExitCode} without having booted; the end of its output:");
        foreach (string line in run.Output.Split('\n').TakeLast(20))
            error.WriteLine($"  {line.TrimEnd()}");
        return false;
    }

    internal static double Median(IEnumerable<double> values)
    {
        double[] sorted = [.. values.Order()];
        return sorted.Length % 2 == 1 ? sorted[sorted.Length / 2] : (sorted[(sorted.Length / 2) - 1] + sorted[sorted.Length / 2]) / 2;
    }

    private void WriteText(TextWriter output, List<Sample> own, List<Sample> peer)
    {
        output.WriteLine($"{Path.GetFileName(Kernel)}, {MemorySize.Format(MemoryBytes)}, {Cpus} processor(s), medians of {Runs} (least to most)");
        output.WriteLine($"  aerostat {Accelerator,-12} wall {Spread(own, s => s.Wall)} s, CPU {Spread(own, s => s.Cpu)} s, {Median(own.Select(s => s.Instructions / 1e6)):0} million instructions, {Median(own.Select(s => s.Mips)):0.0} MIPS, monitor {Median(own.Select(s => s.PeakVmmBytes / 1048576.0)):0} MiB");
        if (peer.Count == 0)
        {
            output.WriteLine($"  qemu is not installed (apt-get install qemu-system-x86), so there is nothing to compare with");
            return;
        }
        output.WriteLine($"  qemu -accel tcg       wall {Spread(peer, s => s.Wall)} s, CPU {Spread(peer, s => s.Cpu)} s");
        output.WriteLine($"  aerostat / qemu       wall {Median(own.Select(s => s.Wall)) / Median(peer.Select(s => s.Wall)):0.00}, CPU {Median(own.Select(s => s.Cpu)) / Median(peer.Select(s => s.Cpu)):0.00}");
    }

    private static string Spread(List<Sample> samples, Func<Sample, double> what) =>
        $"{Median(samples.Select(what)):0.00} ({samples.Min(what):0.00} to {samples.Max(what):0.00})";

    private void WriteJson(TextWriter output, List<Sample> own, List<Sample> peer)
    {
        using MemoryStream buffer = new();
        using (Utf8JsonWriter json = new(buffer, new JsonWriterOptions { Indented = true }))
        {
            json.WriteStartObject();
            json.WriteString("kernel", Path.GetFileName(Kernel));
            json.WriteNumber("memoryBytes", MemoryBytes);
            json.WriteNumber("cpus", Cpus);
            json.WriteNumber("runs", Runs);
            json.WriteString("host", HostFacts.Read().ProcessorModel);
            WriteSamples(json, "aerostat", own);
            if (peer.Count > 0)
            {
                WriteSamples(json, "qemuTcg", peer);
                json.WriteNumber("wallRatio", Math.Round(Median(own.Select(s => s.Wall)) / Median(peer.Select(s => s.Wall)), 3));
                json.WriteNumber("cpuRatio", Math.Round(Median(own.Select(s => s.Cpu)) / Median(peer.Select(s => s.Cpu)), 3));
            }
            json.WriteEndObject();
        }
        output.WriteLine(System.Text.Encoding.UTF8.GetString(buffer.ToArray()));
    }

    private static void WriteSamples(Utf8JsonWriter json, string name, List<Sample> samples)
    {
        json.WriteStartObject(name);
        json.WriteNumber("wallSeconds", Math.Round(Median(samples.Select(s => s.Wall)), 3));
        json.WriteNumber("cpuSeconds", Math.Round(Median(samples.Select(s => s.Cpu)), 3));
        if (samples[0].Instructions > 0)
        {
            json.WriteNumber("instructions", (long)Median(samples.Select(s => (double)s.Instructions)));
            json.WriteNumber("mips", Math.Round(Median(samples.Select(s => s.Mips)), 3));
            json.WriteNumber("peakVmmBytes", (long)Median(samples.Select(s => (double)s.PeakVmmBytes)));
        }
        json.WriteStartArray("wallSamples");
        foreach (Sample s in samples)
            json.WriteNumberValue(Math.Round(s.Wall, 3));
        json.WriteEndArray();
        json.WriteStartArray("cpuSamples");
        foreach (Sample s in samples)
            json.WriteNumberValue(Math.Round(s.Cpu, 3));
        json.WriteEndArray();
        json.WriteEndObject();
    }
}
