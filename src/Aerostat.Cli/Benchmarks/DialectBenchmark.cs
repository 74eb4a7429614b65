using System.Diagnostics;
using System.Globalization;
using System.Text.Json;
using Aerostat.Devices;
using Aerostat.Hosting;
using Aerostat.Machine;

namespace Aerostat.Cli;

/// <summary>
/// The VMware balloon, with its batches of 2 MiB pages, against the virtio balloon: the same kernel and initramfs in machines of this process, in turn. Rates are
/// those of the driver's work; how long it takes until the driver looks is told apart, for the one polls once a second and the other gets an interrupt.
/// Memory is taken that the guest has never touched ("fresh"), then all that it has used and let go, which the host holds, and then what it has got back and not used.
/// Debian's kernels zero every page that a driver takes, which costs the same in both; with <c>init_on_alloc=0</c> only what the dialects cost is left.
/// </summary>
internal sealed class DialectBenchmark
{
    private const string Fresh = "GUEST-FRESH", Touched = "GUEST-TOUCHED";
    private static readonly TimeSpan s_limit = TimeSpan.FromMinutes(10);
    private static readonly string[] s_dialects = ["vmware", "virtio"];
    private static readonly string[] s_ways =
    [
        "inflateFresh", "deflateFresh", "inflate", "deflate", "inflateGivenBack",
        "inflateFreshUnzeroed", "deflateFreshUnzeroed", "inflateUnzeroed", "deflateUnzeroed", "inflateGivenBackUnzeroed",
    ];

    /// <summary>What the guest does.</summary>
    public static string Script { get; } = BalloonBenchmark.ScriptWith($"echo {Fresh}; read -r line");

    /// <summary>Modules of the guest; the driver whose device is not there does not stay.</summary>
    public static IReadOnlyList<string> ModulesOf(string dialect) => dialect == "vmware" ? ["vmw_balloon"] : StockGuest.BalloonModules;

    private readonly record struct Way(double Seconds, double Latency, double Cpu);

    public required string Kernel { get; init; }

    /// <summary>The initramfs of each dialect.</summary>
    public required IReadOnlyDictionary<string, byte[]> Initrds { get; init; }

    public required ulong MemoryBytes { get; init; }

    public required string Accelerator { get; init; }

    public required int Runs { get; init; }

    public required bool Json { get; init; }

    private ulong BalloonBytes => MemoryBytes / 4 * 3;

    public async Task<int> RunAsync(TextWriter output, TextWriter error, CancellationToken cancellation)
    {
        Dictionary<(string, string), List<Way>> samples = [];
        for (int i = 1; i <= Runs; i++)
            foreach (string dialect in s_dialects)
            {
                if (await MeasureAsync(dialect, "", error, cancellation).ConfigureAwait(false) is not { } stock
                    || await MeasureAsync(dialect, " init_on_alloc=0", error, cancellation).ConfigureAwait(false) is not { } unzeroed)
                    return ExitStatus.Incomplete;
                Way[] ways = [.. stock, .. unzeroed];
                foreach ((string name, Way way) in s_ways.Zip(ways))
                {
                    if (!samples.TryGetValue((dialect, name), out List<Way>? list))
                        samples[(dialect, name)] = list = [];
                    list.Add(way);
                }
                error.WriteLine($"{i} of {Runs}: {dialect,-7} {string.Join(", ", s_ways.Zip(ways).Select(w => string.Create(CultureInfo.InvariantCulture, $"{w.First} {Rate(w.Second.Seconds):0.00} GiB/s (CPU {w.Second.Cpu:0.00} s)")))}");
            }
        Write(output, samples);
        return ExitStatus.Success;
    }

    private async Task<Way[]?> MeasureAsync(string dialect, string append, TextWriter error, CancellationToken cancellation)
    {
        SerialTranscript console = new();
        VirtualMachine machine = Machines.Create(new MachineOptions
        {
            MemoryBytes = MemoryBytes,
            Accelerator = Accelerator,
            Personality = dialect == "vmware" ? "vmware" : "kvm",
            Devices = dialect == "vmware" ? [] : [new BalloonOptions { Reporting = false, Hinting = false }],
            NoReboot = true,
            Serial = console.Append,
            Boot = new KernelBootOptions(Kernel) { InitrdBytes = Initrds[dialect], CommandLine = "console=ttyS0 panic=-1 quiet" + append },
        });
        await using (machine.ConfigureAwait(false))
        {
            IBalloon balloon = machine.Balloon!;
            await machine.StartAsync().ConfigureAwait(false);
            List<Way> ways = [];
            foreach (ulong target in (ulong[])[BalloonBytes, 0, BalloonBytes, 0, BalloonBytes])
            {
                if (ways.Count == 2)
                    await machine.SendSerialAsync("\n"u8.ToArray()).ConfigureAwait(false);
                if (ways.Count is 0 or 2 && !await StockGuest.ReachAsync(machine, console, ways.Count == 0 ? Fresh : Touched, cancellation).ConfigureAwait(false))
                {
                    error.WriteLine($"aerostat bench: the guest with the {dialect} balloon did not come up; its console ends with: {console.Text[^Math.Min(console.Text.Length, 500)..]}");
                    return null;
                }
                if (await GoAsync(machine, balloon, target, cancellation).ConfigureAwait(false) is not { } way)
                {
                    BalloonReport report = balloon.GetReport();
                    error.WriteLine($"aerostat bench: the {dialect} balloon has {report.ActualBytes >> 20} of {target >> 20} MiB and goes no further: {report.Explanation}");
                    return null;
                }
                ways.Add(way);
            }
            return [.. ways];
        }
    }

    private static async Task<Way?> GoAsync(VirtualMachine machine, IBalloon balloon, ulong target, CancellationToken cancellation)
    {
        using Process self = Process.GetCurrentProcess();
        TimeSpan cpu = self.TotalProcessorTime;
        Stopwatch time = Stopwatch.StartNew();
        balloon.SetTarget(target);
        // One that asks in between would answer for the target before.
        for (BalloonReport report = balloon.GetReport(); report.Reason != BalloonReason.Reached; report = balloon.GetReport())
        {
            if (time.Elapsed > s_limit || machine.Exit.IsCompleted)
                return null;
            await Task.Delay(1, cancellation).ConfigureAwait(false);
        }
        double whole = time.Elapsed.TotalSeconds;
        self.Refresh();
        double used = (self.TotalProcessorTime - cpu).TotalSeconds;
        double work = machine.GetStatistics().Counters.TryGetValue("vmballoon-pass-microseconds", out long pass) ? Math.Min(pass / 1e6, whole) : whole;
        return new Way(work, whole - work, used);
    }

    private double Rate(double seconds) => BalloonBytes / 1073741824.0 / seconds;

    private void Write(TextWriter output, Dictionary<(string, string), List<Way>> samples)
    {
        double Median(string dialect, string way, Func<Way, double> of) => BootBenchmark.Median(samples[(dialect, way)].Select(of));
        if (Json)
        {
            using MemoryStream stream = new();
            using (Utf8JsonWriter json = new(stream, new JsonWriterOptions { Indented = true }))
            {
                json.WriteStartObject();
                json.WriteNumber("memoryBytes", MemoryBytes);
                json.WriteNumber("balloonBytes", BalloonBytes);
                json.WriteNumber("runs", Runs);
                foreach (string dialect in s_dialects)
                {
                    json.WriteStartObject(dialect);
                    foreach (string way in s_ways)
                    {
                        json.WriteStartObject(way);
                        json.WriteNumber("gibPerSecond", Math.Round(Rate(Median(dialect, way, w => w.Seconds)), 4));
                        json.WriteNumber("latencySeconds", Math.Round(Median(dialect, way, w => w.Latency), 4));
                        json.WriteNumber("cpuSeconds", Math.Round(Median(dialect, way, w => w.Cpu), 4));
                        json.WriteEndObject();
                    }
                    json.WriteEndObject();
                }
                foreach (string way in s_ways)
                    json.WriteNumber($"{way}Times", Math.Round(Median("virtio", way, w => w.Seconds) / Median("vmware", way, w => w.Seconds), 3));
                json.WriteEndObject();
            }
            output.WriteLine(System.Text.Encoding.UTF8.GetString(stream.ToArray()));
            return;
        }
        output.WriteLine($"balloon of {BalloonBytes >> 20} MiB in a guest of {MemoryBytes >> 20} MiB, {Accelerator}, medians of {Runs}: vmware in batches of 2 MiB pages | virtio");
        foreach (string way in s_ways)
            output.WriteLine(string.Create(CultureInfo.InvariantCulture,
                $"  {way,-25} {Rate(Median("vmware", way, w => w.Seconds)),6:0.00} GiB/s after {Median("vmware", way, w => w.Latency):0.00} s, CPU {Median("vmware", way, w => w.Cpu):0.00} s | {Rate(Median("virtio", way, w => w.Seconds)),6:0.00} GiB/s, CPU {Median("virtio", way, w => w.Cpu):0.00} s: {Median("virtio", way, w => w.Seconds) / Median("vmware", way, w => w.Seconds):0.0} times as fast, {Median("virtio", way, w => w.Cpu) / Median("vmware", way, w => w.Cpu):0.0} times by CPU"));
    }
}
