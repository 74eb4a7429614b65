using System.Globalization;
using System.Text.Json;
using System.Text.RegularExpressions;
using Aerostat.Platform;

namespace Aerostat.Cli;

/// <summary>
/// Runs the same compute kernels in a guest of Aerostat, in a guest of QEMU's software processor and as a process of the host, in turn, and compares
/// medians of CPU time. Guests' start-up (a run with n = 0) is taken off; translating is part of the price. Checksums must agree.
/// With <see cref="ProcessKernel"/> the guests run Linux and the kernels are processes there, timed by the guest.
/// </summary>
internal sealed partial class CpuBenchmark
{
    private const string Qemu = "qemu-system-x86_64", Native = "native", Interpreter = "interpreter";
    private const int LimitSeconds = 900;

    /// <summary>Names of the kernels in our own folder; another folder's are of the same kinds.</summary>
    private static readonly string[] s_names = ["integer", "memory", "calls", "indirect", "double", "vectors", "scalar"];

    private readonly record struct Sample(double Seconds, string Sum);

    // With processes: two copies on two processors, in terms of one copy's speed.
    private readonly List<double> speedups = [];

    /// <summary>A way to run a kernel: what it is called, and how.</summary>
    private sealed record Peer(string Name, Func<int, long, CancellationToken, Task<Sample?>> Run)
    {
        public List<double> Startup { get; } = [];

        public List<double>[] Seconds { get; } = [.. Enumerable.Range(0, s_names.Length).Select(_ => new List<double>())];

        public double MedianOf(int kernel) => Math.Max(0.001, Median(Seconds[kernel]) - (Startup.Count > 0 ? Median(Startup) : 0));
    }

    /// <summary>Folder with boot.elf, kern.bin and native, as <c>./dev bench cpu</c> builds them.</summary>
    public required string Folder { get; init; }

    /// <summary>The second argument of each kernel.</summary>
    public required long[] Sizes { get; init; }

    public required string Accelerator { get; init; }

    /// <summary>Whether the interpreter runs too, with a tenth of the sizes.</summary>
    public required bool WithInterpreter { get; init; }

    public required int Runs { get; init; }

    public required bool Json { get; init; }

    /// <summary>The Linux kernel under which the compute kernels run as processes; null: they run on the bare machine.</summary>
    public string? ProcessKernel { get; init; }

    /// <summary>A static busybox for that.</summary>
    public string? Busybox { get; init; }

    private string Boot => Path.Combine(Folder, "boot.elf");

    public async Task<int> RunAsync(TextWriter output, TextWriter error, CancellationToken cancellation)
    {
        if (!File.Exists(Boot))
        {
            error.WriteLine($"aerostat bench: {Boot} does not exist: ./dev bench cpu builds the kernels with gcc and names their folder");
            return ExitStatus.Usage;
        }
        using ProcessGuest? processes = ProcessKernel is null ? null : new ProcessGuest(ProcessKernel, Busybox!, Folder);
        Peer own = new(Accelerator, (k, n, c) => RunOwn(Accelerator, k, n, processes, error, c));
        Peer? qemu = ChildRun.Find(Qemu) is { } program ? new Peer("qemu tcg", (k, n, c) => RunQemu(program, k, n, processes, error, c)) : null;
        Peer? native = File.Exists(Path.Combine(Folder, Native)) ? new Peer(Native, (k, n, c) => RunNative(k, n, error, c)) : null;
        Peer? interpreter = WithInterpreter ? new Peer(Interpreter, (k, n, c) => RunOwn(Interpreter, k, n, processes, error, c)) : null;
        Peer[] peers = [.. new[] { native, own, qemu, interpreter }.OfType<Peer>()];
        for (int run = 1; run <= Runs; run++)
        {
            foreach (Peer peer in peers.Where(p => p != native))
            {
                if (await peer.Run(1, 0, cancellation).ConfigureAwait(false) is not { } startup)
                    return ExitStatus.Incomplete;
                peer.Startup.Add(startup.Seconds);
            }
            for (int k = 0; k < Sizes.Length; k++)
            {
                string? sum = null;
                foreach (Peer peer in peers)
                {
                    long n = peer == interpreter ? SmallSize(k) : Sizes[k];
                    if (await peer.Run(k + 1, n, cancellation).ConfigureAwait(false) is not { } sample)
                        return ExitStatus.Incomplete;
                    peer.Seconds[k].Add(sample.Seconds);
                    if (peer == interpreter)
                        continue;
                    if (sum is not null && sum != sample.Sum)
                    {
                        error.WriteLine($"aerostat bench: kernel {k + 1} answers {sample.Sum} on {peer.Name} and {sum} before");
                        return ExitStatus.Incomplete;
                    }
                    sum = sample.Sum;
                }
            }
            if (processes is not null && await processes.MeasureScaling(Accelerator, Sizes[0], cancellation).ConfigureAwait(false) is { } speedup)
                speedups.Add(speedup);
            error.WriteLine($"run {run} of {Runs} done");
        }
        if (Json)
            WriteJson(output, peers, own, qemu, native);
        else
            WriteText(output, own, qemu, native, interpreter);
        return ExitStatus.Success;
    }

    private long SmallSize(int kernel) => Math.Max(1, Sizes[kernel] / 10);

    private async Task<Sample?> RunOwn(string accelerator, int kernel, long n, ProcessGuest? processes, TextWriter error, CancellationToken cancellation)
    {
        (string program, string[] prefix) = ChildRun.Self();
        ChildRun run = await ChildRun.StartAsync(program,
            processes?.Arguments(prefix, accelerator, kernel, n, cpus: 1, copies: 1)
            ?? [.. prefix, "run", "--accel", accelerator, "--kernel", Boot, "--append", $"{kernel} {n}", "--memory", "256M", "--no-reboot", "--device", "debug-exit"],
            TimeSpan.FromSeconds(LimitSeconds), cancellation).ConfigureAwait(false);
        return Read(run, accelerator, kernel, n, error);
    }

    private async Task<Sample?> RunQemu(string qemu, int kernel, long n, ProcessGuest? processes, TextWriter error, CancellationToken cancellation)
    {
        ChildRun run = await ChildRun.StartAsync(qemu,
            processes?.QemuArguments(kernel, n)
            ?? ["-accel", "tcg", "-m", "256", "-nographic", "-no-reboot", "-device", "isa-debug-exit,iobase=0xf4,iosize=1", "-kernel", Boot, "-append", $"{kernel} {n}"],
            TimeSpan.FromSeconds(LimitSeconds), cancellation).ConfigureAwait(false);
        return Read(run, "qemu", kernel, n, error);
    }

    private async Task<Sample?> RunNative(int kernel, long n, TextWriter error, CancellationToken cancellation)
    {
        ChildRun run = await ChildRun.StartAsync(Path.Combine(Folder, Native), [Path.Combine(Folder, "kern.bin"), $"{kernel}", $"{n}"],
            TimeSpan.FromSeconds(LimitSeconds), cancellation).ConfigureAwait(false);
        return Read(run, "the native process", kernel, n, error);
    }

    // A run prints "k1 n=20 sum=2cc2738beb3e9003"; the native process also the seconds that the call took.
    private static Sample? Read(ChildRun run, string who, int kernel, long n, TextWriter error)
    {
        Match match = ResultLine().Match(run.Output);
        if (match.Success && match.Groups["kernel"].Value == $"{kernel}" && match.Groups["n"].Value == $"{n}")
            return new Sample(match.Groups["seconds"].Success ? double.Parse(match.Groups["seconds"].Value, CultureInfo.InvariantCulture) : run.Cpu.TotalSeconds, match.Groups["sum"].Value.TrimStart('0'));
        error.WriteLine($"aerostat bench: {who} ended with status {run.ExitCode} without an answer for kernel {kernel}; the end of its output:");
        foreach (string line in run.Output.Split('\n').TakeLast(20))
            error.WriteLine($"  {line.TrimEnd()}");
        return null;
    }

    [GeneratedRegex(@"k(?<kernel>\d) n=(?<n>\d+) sum=(?<sum>[0-9a-f]+)( seconds=(?<seconds>[0-9.]+))?")]
    private static partial Regex ResultLine();

    private static double Median(IEnumerable<double> values)
    {
        double[] sorted = [.. values.Order()];
        return sorted.Length % 2 == 1 ? sorted[sorted.Length / 2] : (sorted[(sorted.Length / 2) - 1] + sorted[sorted.Length / 2]) / 2;
    }

    private double GeometricMean(Func<int, double> of) => Math.Exp(Enumerable.Range(0, Sizes.Length).Average(k => Math.Log(of(k))));

    private void WriteText(TextWriter output, Peer own, Peer? qemu, Peer? native, Peer? interpreter)
    {
        output.WriteLine($"Compute kernels{(ProcessKernel is null ? "" : " as processes of a guest")}, CPU seconds without start-up, medians of {Runs}; {HostFacts.Read().ProcessorModel}");
        string Ratio(int k, Peer? above, Peer? below) => above is null || below is null ? "-" : $"{above.MedianOf(k) / below.MedianOf(k):0.00}";
        string Mean(Peer? above, Peer? below) => above is null || below is null ? "-" : $"{GeometricMean(i => above.MedianOf(i) / below.MedianOf(i)):0.00}";
        output.WriteLine($"{"kernel",-12} {"n",8} {"native",8} {own.Name,12} {"qemu tcg",9} {"qemu/ours",10} {"ours/native",12} {(interpreter is null ? "" : "interpreter/ours"),17}".TrimEnd());
        for (int k = 0; k < Sizes.Length; k++)
        {
            string slow = interpreter is null ? "" : $"{interpreter.MedianOf(k) * Sizes[k] / SmallSize(k) / own.MedianOf(k):0.0}";
            output.WriteLine($"{$"k{k + 1} {s_names[k]}",-12} {Sizes[k],8} {Seconds(native, k),8} {Seconds(own, k),12} {Seconds(qemu, k),9} {Ratio(k, qemu, own),10} {Ratio(k, own, native),12} {slow,17}".TrimEnd());
        }
        output.WriteLine($"{"geometric mean",-21} {"",8} {"",12} {"",9} {Mean(qemu, own),10} {Mean(own, native),12}");
        if (speedups.Count > 0)
            output.WriteLine($"two copies of k1 on two processors: {Median(speedups):0.00} times one copy's speed");
        if (qemu is null)
            output.WriteLine("qemu is not installed (apt-get install qemu-system-x86), so there is nothing to compare with");
    }

    private static string Seconds(Peer? peer, int kernel) => peer is null ? "-" : $"{peer.MedianOf(kernel):0.000}";

    private void WriteJson(TextWriter output, Peer[] peers, Peer own, Peer? qemu, Peer? native)
    {
        using MemoryStream buffer = new();
        using (Utf8JsonWriter json = new(buffer, new JsonWriterOptions { Indented = true }))
        {
            json.WriteStartObject();
            json.WriteString("host", HostFacts.Read().ProcessorModel);
            json.WriteNumber("runs", Runs);
            json.WriteStartArray("kernels");
            for (int k = 0; k < Sizes.Length; k++)
            {
                json.WriteStartObject();
                json.WriteString("name", s_names[k]);
                json.WriteNumber("n", Sizes[k]);
                foreach (Peer peer in peers)
                {
                    json.WriteStartObject(peer.Name);
                    json.WriteNumber("n", peer.Name == Interpreter && peer != own ? SmallSize(k) : Sizes[k]);
                    json.WriteNumber("cpuSeconds", Math.Round(peer.MedianOf(k), 4));
                    json.WriteStartArray("samples");
                    foreach (double seconds in peer.Seconds[k])
                        json.WriteNumberValue(Math.Round(seconds, 4));
                    json.WriteEndArray();
                    json.WriteEndObject();
                }
                json.WriteEndObject();
            }
            json.WriteEndArray();
            if (qemu is not null)
                json.WriteNumber("qemuByOurs", Math.Round(GeometricMean(k => qemu.MedianOf(k) / own.MedianOf(k)), 3));
            if (speedups.Count > 0)
                json.WriteNumber("twoProcessors", Math.Round(Median(speedups), 3));
            if (native is not null)
                json.WriteNumber("oursByNative", Math.Round(GeometricMean(k => own.MedianOf(k) / native.MedianOf(k)), 3));
            json.WriteEndObject();
        }
        output.WriteLine(System.Text.Encoding.UTF8.GetString(buffer.ToArray()));
    }
}
