using System.Globalization;
using Aerostat.Machine;

namespace Aerostat.Cli;

/// <summary>One entry of a kvm-unit-tests <c>unittests.cfg</c>.</summary>
internal sealed record UnitTest(string Name)
{
    /// <summary>Limit for entries that give none, as the suite's own runner has it.</summary>
    public static readonly TimeSpan DefaultTimeout = TimeSpan.FromSeconds(90);

    // QEMU's default, which the entries are written for.
    private const ulong DefaultMemory = 128UL << 20;

    public string File { get; private init; } = "";
    public string Arguments { get; private init; } = "";
    public int Cpus { get; private init; } = 1;
    public ulong MemoryBytes { get; private init; } = DefaultMemory;
    public string? Architecture { get; private init; }
    public string? Accelerator { get; private init; }
    public TimeSpan? Timeout { get; private init; }
    public IReadOnlyList<string> Groups { get; private init; } = [];

    /// <summary>The first word after <c>-cpu</c>, or null.</summary>
    public string? CpuModel { get; private init; }

    /// <summary>What follows it: <c>+flag</c>, <c>-flag</c>, <c>key=value</c>.</summary>
    public IReadOnlyList<string> CpuFlags { get; private init; } = [];

    /// <summary>Values of <c>-device</c>.</summary>
    public IReadOnlyList<string> Devices { get; private init; } = [];

    /// <summary>Values of <c>-machine</c> and <c>-M</c>.</summary>
    public IReadOnlyList<string> Machine { get; private init; } = [];

    /// <summary>Reads a whole file. Keys that say nothing to this monitor are passed over.</summary>
    /// <exception cref="ConfigurationException">A line is neither section, comment nor assignment, or a value does not fit.</exception>
    public static IReadOnlyList<UnitTest> ReadAll(string path)
    {
        List<UnitTest> tests = [];
        int number = 0;
        foreach (string raw in ReadLines(path))
        {
            number++;
            string line = raw.Trim();
            if (line.Length == 0 || line[0] == '#')
                continue;
            if (line[0] == '[' && line[^1] == ']')
            {
                tests.Add(new UnitTest(line[1..^1]));
                continue;
            }
            if (tests.Count == 0 || line.Split('=', 2) is not [string key, string value])
                throw new ConfigurationException($"{path}:{number}: '{line}' is neither [name] nor key = value");
            tests[^1] = tests[^1].With(key.Trim(), Unquote(value.Trim()), $"{path}:{number}");
        }
        return tests;
    }

    private static string[] ReadLines(string path)
    {
        try
        {
            return System.IO.File.ReadAllLines(path);
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            throw new ConfigurationException($"cannot read {path} ({e.Message}); DIR is a built kvm-unit-tests tree", e);
        }
    }

    private UnitTest With(string key, string value, string where) => key switch
    {
        "file" => this with { File = value },
        "smp" => this with { Cpus = Number(value, where) },
        "arch" => this with { Architecture = value },
        "accel" => this with { Accelerator = value },
        "timeout" => this with { Timeout = TimeSpan.FromSeconds(Number(value.TrimEnd('s'), where)) },
        "groups" => this with { Groups = Words(value) },
        "test_args" => this with { Arguments = value },
        "qemu_params" or "extra_params" => WithParameters(value, where),
        _ => this,
    };

    private UnitTest WithParameters(string value, string where)
    {
        UnitTest result = this;
        string[] words = Words(value);
        for (int i = 0; i < words.Length; i++)
        {
            string next = i + 1 < words.Length ? words[i + 1] : "";
            switch (words[i])
            {
                case "-m":
                    result = result with { MemoryBytes = Memory(next, where) };
                    break;
                case "-append":
                    result = result with { Arguments = Unquote(string.Join(' ', words[(i + 1)..])) };
                    return result;
                case "-cpu":
                    string[] parts = next.Split(',');
                    result = result with { CpuModel = parts[0], CpuFlags = parts[1..] };
                    break;
                case "-device":
                    result = result with { Devices = [.. result.Devices, next.Split(',')[0]] };
                    break;
                case "-machine" or "-M":
                    result = result with { Machine = [.. result.Machine, .. next.Split(',')] };
                    break;
                default:
                    continue;
            }
            i++;
        }
        return result;
    }

    private static string[] Words(string text) => text.Split(' ', StringSplitOptions.RemoveEmptyEntries);

    private static string Unquote(string text) =>
        text.Length >= 2 && text[0] is '"' or '\'' && text[^1] == text[0] ? text[1..^1] : text;

    /// <summary><see cref="Arguments"/> for a run at <paramref name="now"/>: with the one command substitution that the suite uses.</summary>
    public string ArgumentsAt(DateTimeOffset now) =>
        Arguments.Replace("`date +%s`", now.ToUnixTimeSeconds().ToString(CultureInfo.InvariantCulture), StringComparison.Ordinal);

    // A plain number is mebibytes, as for QEMU.
    private static ulong Memory(string text, string where) =>
        ulong.TryParse(text, NumberStyles.None, CultureInfo.InvariantCulture, out ulong mebibytes) && mebibytes <= MachineOptions.MaxMemory >> 20
            ? mebibytes << 20
            : MemorySize.Parse(text.ToUpperInvariant(), where);

    private static int Number(string text, string where) =>
        int.TryParse(text, NumberStyles.None, CultureInfo.InvariantCulture, out int n) && n > 0
            ? n
            : throw new ConfigurationException($"{where}: '{text}' is not a number above 0");
}
