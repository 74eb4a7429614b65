using System.Globalization;
using System.Text;
using System.Text.Json;
using System.Text.RegularExpressions;
using Aerostat.Hosting;
using Aerostat.Machine;
using Aerostat.Platform;

namespace Aerostat.Cli;

/// <summary>
/// <c>aerostat bench exits</c>: what each operation that leaves the guest costs, on every processor here and on QEMU's. Measured by vmexit of kvm-unit-tests when a
/// build of that is given, and by a kernel of our own otherwise. Cycles are the host's, at the frequency that its kernel tells.
/// </summary>
internal static partial class ExitBenchmark
{
    private const string Qemu = "qemu-system-x86_64";
    private static readonly TimeSpan s_limit = TimeSpan.FromSeconds(300);

    /// <summary>What of vmexit is run: what every processor here can do, with one vCPU.</summary>
    internal static IReadOnlyList<string> SuiteOperations { get; } =
    [
        "cpuid", "mov_from_cr8", "mov_to_cr8", "inl_from_pmtimer", "inl_from_qemu", "inl_from_kernel", "outl_to_kernel", "mov_dr", "self_ipi_sti_nop", "self_ipi_sti_hlt",
        "self_ipi_tpr", "wr_kernel_gs_base", "wr_tsc_adjust_msr", "rd_tsc_adjust_msr", "toggle_cr0_wp", "toggle_cr4_pge",
    ];

    public static async Task<int> RunAsync(IReadOnlyList<string> accelerators, string? suite, bool json, TextWriter output, TextWriter error, CancellationToken stopping)
    {
        string path = suite is null ? Path.Combine(Path.GetTempPath(), $"aerostat-exits-{Environment.ProcessId}.elf") : Path.Combine(suite, "x86", "vmexit.flat");
        if (suite is not null && !File.Exists(path))
        {
            error.WriteLine($"aerostat bench: {path} is not there: build kvm-unit-tests first");
            return ExitStatus.Usage;
        }
        IReadOnlyList<string> operations = suite is null ? ExitKernel.Operations : SuiteOperations;
        double megahertz = HostFacts.Read().ProcessorMegahertz;
        List<(string Name, IReadOnlyDictionary<string, double> Nanoseconds)> columns = [];
        try
        {
            if (suite is null)
                await File.WriteAllBytesAsync(path, ExitKernel.Build(), stopping).ConfigureAwait(false);
            foreach (string accelerator in accelerators)
            {
                error.WriteLine($"aerostat bench: {accelerator}");
                (string text, long tscHz) = await RunOneAsync(accelerator, path, suite is not null, stopping).ConfigureAwait(false);
                columns.Add((accelerator, suite is null ? ByName(Parse(text)) : ParseSuite(text, 1e9 / tscHz)));
            }
            if (ChildRun.Find(Qemu) is { } qemu)
            {
                error.WriteLine("aerostat bench: QEMU's software processor");
                ChildRun run = await ChildRun.StartAsync(
                    qemu,
                    [
                        "-accel", "tcg", "-cpu", "max", "-m", "128", "-display", "none", "-serial", "stdio", "-monitor", "none", "-no-reboot",
                        "-device", "isa-debug-exit,iobase=0xf4,iosize=4", "-kernel", path, .. suite is null ? Array.Empty<string>() : ["-append", string.Join(' ', operations)],
                    ],
                    s_limit, stopping).ConfigureAwait(false);
                // Its time-stamp counter is the host's.
                if (suite is null || megahertz > 0)
                    columns.Add(("QEMU TCG", suite is null ? ByName(Parse(run.Output)) : ParseSuite(run.Output, 1e3 / megahertz)));
            }
        }
        finally
        {
            if (suite is null)
                File.Delete(path);
        }
        if (json)
        {
            WriteJson(columns, megahertz, output);
        }
        else
        {
            if (megahertz > 0)
                WriteTable($"cycles each, of {megahertz:0} MHz", megahertz / 1000, operations, columns, output);
            WriteTable($"nanoseconds each{(suite is null ? ", by the PM timer" : "")}", 1, operations, columns, output);
        }
        return columns.All(c => operations.All(c.Nanoseconds.ContainsKey)) ? ExitStatus.Success : ExitStatus.Incomplete;
    }

    private static async Task<(string Text, long TscHz)> RunOneAsync(string accelerator, string path, bool suite, CancellationToken stopping)
    {
        StringBuilder text = new();
        await using VirtualMachine machine = Machines.Create(new MachineOptions
        {
            MemoryBytes = 128 << 20,
            Accelerator = accelerator,
            Boot = new KernelBootOptions(path)
            {
                CommandLine = suite ? string.Join(' ', SuiteOperations) : "",
                InitrdBytes = suite ? "NR_CPUS=1\nMEMSIZE=128\nMEMLIMIT=0\nTEST_DEVICE=1\n"u8.ToArray() : null,
            },
            Devices = suite ? [new DebugExitOptions(), new TestDeviceOptions()] : [new DebugExitOptions()],
            Serial = bytes => text.Append(Encoding.ASCII.GetString(bytes)),
        });
        await machine.StartAsync().ConfigureAwait(false);
        await machine.WaitForExitAsync(s_limit).WaitAsync(stopping).ConfigureAwait(false);
        return (text.ToString(), machine.TscFrequencyHz);
    }

    private static Dictionary<string, double> ByName(IReadOnlyDictionary<int, double> values) => values.ToDictionary(v => ExitKernel.Operations[v.Key], v => v.Value);

    /// <summary>Reads vmexit's lines: an operation and the guest's time-stamp ticks that it took.</summary>
    internal static IReadOnlyDictionary<string, double> ParseSuite(string text, double nanosecondsPerTick) => text.Split('\n')
        .Select(l => SuiteLine().Match(l.TrimEnd('\r')))
        .Where(m => m.Success && SuiteOperations.Contains(m.Groups[1].Value))
        .GroupBy(m => m.Groups[1].Value)
        .ToDictionary(g => g.Key, g => long.Parse(g.Last().Groups[2].Value, CultureInfo.InvariantCulture) * nanosecondsPerTick);

    [GeneratedRegex(@"^(\w+) (\d{1,15})$")]
    private static partial Regex SuiteLine();

    /// <summary>Reads "operation count ticks" triples; whatever else a firmware has printed is left out.</summary>
    internal static IReadOnlyDictionary<int, double> Parse(string text)
    {
        string[] words = [.. text.Split([' ', '\n', '\r'], StringSplitOptions.RemoveEmptyEntries).Where(w => w.Length == 8 && w.All(char.IsAsciiHexDigitLower))];
        Dictionary<int, double> result = [];
        for (int i = 0; i + 2 < words.Length; i += 3)
        {
            int operation = int.Parse(words[i], NumberStyles.HexNumber, CultureInfo.InvariantCulture);
            double count = int.Parse(words[i + 1], NumberStyles.HexNumber, CultureInfo.InvariantCulture);
            double ticks = int.Parse(words[i + 2], NumberStyles.HexNumber, CultureInfo.InvariantCulture);
            if (operation != i / 3 || operation >= ExitKernel.Operations.Count || count <= 0)
                break;
            result[operation] = ticks / ExitKernel.TimerHz * 1e9 / count;
        }
        return result;
    }

    private static void WriteTable(string title, double factor, IReadOnlyList<string> operations, List<(string Name, IReadOnlyDictionary<string, double> Nanoseconds)> columns, TextWriter output)
    {
        output.WriteLine($"{title,-34}{string.Concat(columns.Select(c => $"{c.Name,14}"))}");
        foreach (string operation in operations)
            output.WriteLine($"{operation,-34}{string.Concat(columns.Select(c => $"{(c.Nanoseconds.TryGetValue(operation, out double ns) ? Round(ns * factor) : "-"),14}"))}");
    }

    private static string Round(double value) => value.ToString(value < 100 ? "0.0" : "0", CultureInfo.InvariantCulture);

    private static void WriteJson(List<(string Name, IReadOnlyDictionary<string, double> Nanoseconds)> columns, double megahertz, TextWriter output)
    {
        using MemoryStream buffer = new();
        using (Utf8JsonWriter json = new(buffer, new JsonWriterOptions { Indented = true }))
        {
            json.WriteStartObject();
            json.WriteString("unit", "ns");
            json.WriteNumber("cyclesPerNanosecond", Math.Round(megahertz / 1000, 4));
            foreach ((string name, IReadOnlyDictionary<string, double> values) in columns)
            {
                json.WriteStartObject(name);
                foreach ((string operation, double ns) in values)
                    json.WriteNumber(operation, Math.Round(ns, 2));
                json.WriteEndObject();
            }
            json.WriteEndObject();
        }
        output.WriteLine(Encoding.UTF8.GetString(buffer.ToArray()));
    }
}
