using System.Globalization;
using System.Text.Json;
using Aerostat.Machine;
using Aerostat.Platform;

namespace Aerostat.Cli;

/// <summary>
/// Runs real programs from Debian packages in a guest, on Aerostat and on QEMU's software processor in turn: the same kernel, the
/// same files, the same work. What a program cost is what the monitor's process spent between two lines of the guest's console; what
/// it computed must be the same on both.
/// </summary>
internal sealed class ProgramsBenchmark
{
    private const string Qemu = "qemu-system-x86_64";
    private const int LimitSeconds = 3600;
    // For programs that say how fast they were instead of having a fixed end: seconds for this many bytes.
    private const double RateBytes = 1e9;

    private readonly record struct Sample(double Wall, double Cpu, string Check);

    public required string Kernel { get; init; }

    public required string Initrd { get; init; }

    public required IReadOnlyList<GuestProgram> Programs { get; init; }

    public required ulong MemoryBytes { get; init; }

    public required int Cpus { get; init; }

    public required string Accelerator { get; init; }

    public required string QemuCpu { get; init; }

    public required int Runs { get; init; }

    public required bool Json { get; init; }

    public async Task<int> RunAsync(TextWriter output, TextWriter error, CancellationToken cancellation)
    {
        string? qemu = ChildRun.Find(Qemu);
        Dictionary<string, List<Sample>> own = NewSamples(), peer = NewSamples();
        (string program, string[] prefix) = ChildRun.Self();
        string append = "console=ttyS0 panic=-1 quiet";
        for (int i = 1; i <= Runs; i++)
        {
            if (!await RunOne("aerostat", program, [.. prefix, "run", "--accel", Accelerator, "--kernel", Kernel, "--initrd", Initrd, "--append", append,
                "--memory", MemorySize.Format(MemoryBytes), "--cpus", $"{Cpus}", "--no-reboot"], own, error, cancellation).ConfigureAwait(false))
                return ExitStatus.Incomplete;
            if (qemu is not null && !await RunOne("qemu", qemu, ["-accel", "tcg", "-cpu", QemuCpu, "-m", $"{MemoryBytes >> 20}", "-smp", $"{Cpus}", "-nographic", "-no-reboot",
                "-kernel", Kernel, "-initrd", Initrd, "-append", append], peer, error, cancellation).ConfigureAwait(false))
                return ExitStatus.Incomplete;
            error.WriteLine($"run {i} of {Runs} done");
        }
        if (Json)
            WriteJson(output, own, qemu is null ? null : peer);
        else
            WriteText(output, own, qemu is null ? null : peer);
        return Disagreements(own, peer, error) == 0 ? ExitStatus.Success : ExitStatus.Incomplete;
    }

    private Dictionary<string, List<Sample>> NewSamples() => Programs.ToDictionary(p => p.Name, _ => new List<Sample>());

    private async Task<bool> RunOne(
        string who, string program, IEnumerable<string> arguments, Dictionary<string, List<Sample>> samples, TextWriter error, CancellationToken cancellation)
    {
        ChildCost begin = default, end = default;
        List<string> failed = [];
        ChildRun run = await ChildRun.StartAsync(program, arguments, TimeSpan.FromSeconds(LimitSeconds), cancellation, (line, cost) =>
        {
            // The console may hold other text, and the firmware's escape sequences, in front.
            int at = line.IndexOf('@', StringComparison.Ordinal);
            string[] words = at < 0 ? [] : line[at..].TrimEnd().Split(' ', 3);
            if (words.Length < 2 || !samples.TryGetValue(words[1], out List<Sample>? list))
                return;
            string rest = words.Length > 2 ? words[2] : "";
            switch (words[0])
            {
                case "@begin":
                    begin = cost;
                    break;
                case "@end":
                    end = cost;
                    if (rest != "0")
                        failed.Add($"{words[1]} ended with status {rest}");
                    break;
                case "@check":
                    Sample sample = new((end.Wall - begin.Wall).TotalSeconds, (end.Cpu - begin.Cpu).TotalSeconds, rest);
                    list.Add(rest.StartsWith("rate=", StringComparison.Ordinal) ? FromRate(sample, rest[5..]) : sample);
                    error.WriteLine($"  {who,-9}{words[1],-10} {list[^1].Wall,8:0.00} s, CPU {list[^1].Cpu,8:0.00} s");
                    break;
            }
        }).ConfigureAwait(false);
        if (run.ExitCode == 0 && failed.Count == 0 && run.Output.Contains(GuestScripts.Done, StringComparison.Ordinal))
            return true;
        error.WriteLine($"aerostat bench: {who} ended with status {run.ExitCode}{string.Concat(failed.Select(f => $"; {f}"))}; the end of its output:");
        foreach (string line in run.Output.Split('\n').TakeLast(30))
            error.WriteLine($"  {line.TrimEnd()}");
        return false;
    }

    // Bytes a second, as the program measured them by the guest's clock. They have nothing to check.
    private static Sample FromRate(Sample sample, string text) =>
        double.TryParse(text, NumberStyles.Float, CultureInfo.InvariantCulture, out double rate) && rate > 0
            ? new Sample(RateBytes / rate, RateBytes / rate * sample.Cpu / Math.Max(sample.Wall, 1e-3), "")
            : sample;

    private int Disagreements(Dictionary<string, List<Sample>> own, Dictionary<string, List<Sample>> peer, TextWriter error)
    {
        int wrong = 0;
        foreach (GuestProgram program in Programs)
        {
            string[] results = [.. own[program.Name].Concat(peer[program.Name]).Select(s => s.Check).Distinct()];
            if (results.Length <= 1)
                continue;
            wrong++;
            error.WriteLine($"aerostat bench: {program.Name} computed different things: {string.Join(" and ", results)}");
        }
        return wrong;
    }

    private static double Median(IEnumerable<double> values) => BootBenchmark.Median(values);

    private static double Ratio(List<Sample> own, List<Sample> peer) => Median(peer.Select(s => s.Wall)) / Median(own.Select(s => s.Wall));

    private double Mean(Dictionary<string, List<Sample>> own, Dictionary<string, List<Sample>> peer) =>
        Math.Exp(Programs.Average(p => Math.Log(Ratio(own[p.Name], peer[p.Name]))));

    private void WriteText(TextWriter output, Dictionary<string, List<Sample>> own, Dictionary<string, List<Sample>>? peer)
    {
        output.WriteLine($"{Path.GetFileName(Kernel)}, {MemorySize.Format(MemoryBytes)}, {Cpus} processor(s), medians of {Runs}, wall seconds");
        output.WriteLine($"  {"program",-10}{Accelerator,12}{(peer is null ? "" : $"{"qemu tcg",12}{"qemu / ours",13}")}  what");
        foreach (GuestProgram program in Programs)
        {
            List<Sample> samples = own[program.Name];
            string line = $"  {program.Name,-10}{Median(samples.Select(s => s.Wall)),12:0.00}";
            if (peer is not null)
                line += $"{Median(peer[program.Name].Select(s => s.Wall)),12:0.00}{Ratio(samples, peer[program.Name]),13:0.00}";
            output.WriteLine($"{line}  {program.Description}");
        }
        output.WriteLine(peer is null
            ? "  qemu is not installed (apt-get install qemu-system-x86), so there is nothing to compare with"
            : $"  geometric mean of qemu / ours: {Mean(own, peer):0.00} (qemu -cpu {QemuCpu})");
    }

    private void WriteJson(TextWriter output, Dictionary<string, List<Sample>> own, Dictionary<string, List<Sample>>? peer)
    {
        using MemoryStream buffer = new();
        using (Utf8JsonWriter json = new(buffer, new JsonWriterOptions { Indented = true }))
        {
            json.WriteStartObject();
            json.WriteString("kernel", Path.GetFileName(Kernel));
            json.WriteString("accelerator", Accelerator);
            json.WriteNumber("cpus", Cpus);
            json.WriteNumber("runs", Runs);
            json.WriteString("host", HostFacts.Read().ProcessorModel);
            json.WriteStartArray("programs");
            foreach (GuestProgram program in Programs)
            {
                json.WriteStartObject();
                json.WriteString("name", program.Name);
                WriteSamples(json, "aerostat", own[program.Name]);
                if (peer is not null)
                {
                    WriteSamples(json, "qemuTcg", peer[program.Name]);
                    json.WriteNumber("ratio", Math.Round(Ratio(own[program.Name], peer[program.Name]), 3));
                }
                json.WriteEndObject();
            }
            json.WriteEndArray();
            if (peer is not null)
                json.WriteNumber("geometricMean", Math.Round(Mean(own, peer), 3));
            json.WriteEndObject();
        }
        output.WriteLine(System.Text.Encoding.UTF8.GetString(buffer.ToArray()));
    }

    private static void WriteSamples(Utf8JsonWriter json, string name, List<Sample> samples)
    {
        json.WriteStartObject(name);
        json.WriteNumber("wallSeconds", Math.Round(Median(samples.Select(s => s.Wall)), 3));
        json.WriteNumber("cpuSeconds", Math.Round(Median(samples.Select(s => s.Cpu)), 3));
        json.WriteEndObject();
    }
}
