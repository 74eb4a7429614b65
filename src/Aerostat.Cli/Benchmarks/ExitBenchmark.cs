using System.Globalization;
using System.Text;
using System.Text.Json;
using Aerostat.Hosting;
using Aerostat.Machine;

namespace Aerostat.Cli;

/// <summary><c>aerostat bench exits</c>: nanoseconds for each operation that leaves the guest, on every processor here and on QEMU's.</summary>
internal static class ExitBenchmark
{
    private const string Qemu = "qemu-system-x86_64";
    private static readonly TimeSpan s_limit = TimeSpan.FromSeconds(120);

    public static async Task<int> RunAsync(IReadOnlyList<string> accelerators, bool json, TextWriter output, TextWriter error, CancellationToken stopping)
    {
        string path = Path.Combine(Path.GetTempPath(), $"aerostat-exits-{Environment.ProcessId}.elf");
        List<(string Name, IReadOnlyDictionary<int, double> Nanoseconds)> columns = [];
        try
        {
            await File.WriteAllBytesAsync(path, ExitKernel.Build(), stopping).ConfigureAwait(false);
            foreach (string accelerator in accelerators)
            {
                error.WriteLine($"aerostat bench: {accelerator}");
                columns.Add((accelerator, Parse(await RunOneAsync(accelerator, path, stopping).ConfigureAwait(false))));
            }
            if (ChildRun.Find(Qemu) is { } qemu)
            {
                error.WriteLine("aerostat bench: QEMU's software processor");
                ChildRun run = await ChildRun.StartAsync(
                    qemu,
                    ["-accel", "tcg", "-cpu", "max", "-m", "64", "-display", "none", "-serial", "stdio", "-monitor", "none", "-no-reboot", "-device", "isa-debug-exit,iobase=0xf4,iosize=1", "-kernel", path],
                    s_limit, stopping).ConfigureAwait(false);
                columns.Add(("QEMU TCG", Parse(run.Output)));
            }
        }
        finally
        {
            File.Delete(path);
        }
        if (json)
            WriteJson(columns, output);
        else
            WriteTable(columns, output);
        return columns.All(c => c.Nanoseconds.Count == ExitKernel.Operations.Count) ? ExitStatus.Success : ExitStatus.Incomplete;
    }

    private static async Task<string> RunOneAsync(string accelerator, string path, CancellationToken stopping)
    {
        StringBuilder text = new();
        await using VirtualMachine machine = Machines.Create(new MachineOptions
        {
            MemoryBytes = 64 << 20,
            Accelerator = accelerator,
            Boot = new KernelBootOptions(path),
            Devices = [new DebugExitOptions()],
            Serial = bytes => text.Append(Encoding.ASCII.GetString(bytes)),
        });
        await machine.StartAsync().ConfigureAwait(false);
        await machine.WaitForExitAsync(s_limit).WaitAsync(stopping).ConfigureAwait(false);
        return text.ToString();
    }

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

    private static void WriteTable(List<(string Name, IReadOnlyDictionary<int, double> Nanoseconds)> columns, TextWriter output)
    {
        output.WriteLine($"{"nanoseconds each, by the PM timer",-34}{string.Concat(columns.Select(c => $"{c.Name,14}"))}");
        for (int i = 0; i < ExitKernel.Operations.Count; i++)
            output.WriteLine($"{ExitKernel.Operations[i],-34}{string.Concat(columns.Select(c => $"{(c.Nanoseconds.TryGetValue(i, out double ns) ? Round(ns) : "-"),14}"))}");
    }

    private static string Round(double ns) => ns.ToString(ns < 100 ? "0.0" : "0", CultureInfo.InvariantCulture);

    private static void WriteJson(List<(string Name, IReadOnlyDictionary<int, double> Nanoseconds)> columns, TextWriter output)
    {
        using MemoryStream buffer = new();
        using (Utf8JsonWriter json = new(buffer, new JsonWriterOptions { Indented = true }))
        {
            json.WriteStartObject();
            json.WriteString("unit", "ns");
            foreach ((string name, IReadOnlyDictionary<int, double> values) in columns)
            {
                json.WriteStartObject(name);
                foreach ((int operation, double ns) in values)
                    json.WriteNumber(ExitKernel.Operations[operation], Math.Round(ns, 2));
                json.WriteEndObject();
            }
            json.WriteEndObject();
        }
        output.WriteLine(Encoding.UTF8.GetString(buffer.ToArray()));
    }
}
