using System.CommandLine;
using System.Globalization;
using System.Text.Json;
using Aerostat.Hosting;
using Aerostat.Kvm;
using Aerostat.Machine;
using Aerostat.Platform;

namespace Aerostat.Cli;

/// <summary><c>aerostat conformance</c>: a build of kvm-unit-tests against one of our processors.</summary>
internal static class ConformanceCommand
{
    public static Command Create()
    {
        Argument<string> directory = new("DIR") { Description = "A built kvm-unit-tests tree; it holds x86/unittests.cfg and x86/*.flat" };
        Argument<string[]> names = new("NAME") { Description = "Only these entries; a name may end in *", Arity = ArgumentArity.ZeroOrMore };
        Option<string> legacy = new("--i386") { HelpName = "DIR", Description = "A 32-bit build, for the entries that are for i386 only" };
        Option<string> accelerator = MachineArguments.Accelerator();
        Option<string> cpu = new("--cpu") { HelpName = "NAME", Description = "CPU model of entries that do not ask for the widest one" };
        Option<string> personality = new("--personality") { HelpName = "NAME", Description = "Which hypervisor the guests see: none, kvm, vmware, hyperv; entries that are about one see that", DefaultValueFactory = _ => "kvm" };
        Option<string> timeout = new("--timeout") { HelpName = "SECONDS", Description = "Limit for each entry, in place of its own (10 times what the list says on the translator, 40 times on the interpreter)" };
        Option<bool> all = new("--all") { Description = "Also what the suite leaves out of its default run" };
        Option<string> logs = new("--logs") { HelpName = "DIR", Description = "Write the output of each entry there" };
        Option<bool> json = new("--json") { Description = "Machine-readable output" };
        Command command = new("conformance", "Run the x86 tests of a kvm-unit-tests build, each in a machine of its own. Status 0 when none fails or times out.")
        {
            directory, names, legacy, accelerator, cpu, personality, timeout, all, logs, json,
        };
        command.SetAction(async (result, _) =>
        {
            using HostSignals signals = new();
            string accel = result.GetRequiredValue(accelerator), seen = result.GetRequiredValue(personality);
            new MachineOptions { Personality = seen }.Validate();
            string tree = result.GetRequiredValue(directory);
            string widest = Accelerators.CpuModelsOf(accel).Any(m => m.Name == "max") ? "max" : Accelerators.Create(accel).CpuModel;
            UnitTestRunner runner = new()
            {
                Directory = tree,
                Directory32 = result.GetValue(legacy),
                Accelerator = Accelerators.Create(accel, result.GetValue(cpu), seen),
                Widest = Accelerators.Create(accel, widest, seen),
                WithOwnApics = Accelerators.Create(accel, widest, seen, kvm: new KvmOptions { LocalApics = KvmLocalApicMode.Machine }),
                Personality = seen,
                Timeout = result.GetValue(timeout) is { } seconds ? MachineArguments.ParseTimeout(seconds) : null,
                All = result.GetValue(all),
            };
            IReadOnlyList<UnitTest> tests = Select(UnitTest.ReadAll(Path.Combine(tree, "x86", "unittests.cfg")), result.GetValue(names) ?? []);
            try
            {
                return await RunAsync(runner, tests, result.GetValue(logs), result.GetValue(json), result.InvocationConfiguration.Output, signals.Stopping)
                    .ConfigureAwait(false);
            }
            catch (OperationCanceledException) when (signals.Received != 0)
            {
                return signals.ExitStatus;
            }
        });
        return command;
    }

    private static List<UnitTest> Select(IReadOnlyList<UnitTest> tests, string[] names)
    {
        static bool Matches(UnitTest test, string name) =>
            name.EndsWith('*') ? test.Name.StartsWith(name[..^1], StringComparison.Ordinal) : test.Name == name;
        foreach (string name in names)
            if (!tests.Any(t => Matches(t, name)))
                throw new ConfigurationException($"there is no entry '{name}' in unittests.cfg");
        return [.. tests.Where(t => names.Length == 0 || names.Any(n => Matches(t, n)))];
    }

    private static async Task<int> RunAsync(
        UnitTestRunner runner, IReadOnlyList<UnitTest> tests, string? logs, bool json, TextWriter output, CancellationToken stopping)
    {
        List<UnitTestResult> results = [];
        int width = tests.Max(t => t.Name.Length);
        if (!json)
            output.WriteLine($"{"entry".PadRight(width)}  result   pass  fail  skip  seconds");
        foreach (UnitTest test in tests)
        {
            UnitTestResult r = await runner.RunAsync(test, stopping).ConfigureAwait(false);
            results.Add(r);
            if (logs is not null)
                WriteLog(logs, r);
            if (!json)
                output.WriteLine(Line(r, width));
        }
        int Count(UnitTestStatus status) => results.Count(r => r.Status == status);
        if (json)
            WriteJson(results, runner, output);
        else
            output.WriteLine($"{Count(UnitTestStatus.Pass)} of {results.Count} entries pass, {Count(UnitTestStatus.Fail)} fail, {Count(UnitTestStatus.Skip)} skipped, {Count(UnitTestStatus.TimedOut)} timed out, on {runner.Accelerator.Name}");
        return Count(UnitTestStatus.Fail) + Count(UnitTestStatus.TimedOut) == 0 ? ExitStatus.Success : 1;
    }

    private static string Word(UnitTestStatus status) => status switch
    {
        UnitTestStatus.Pass => "pass",
        UnitTestStatus.Fail => "fail",
        UnitTestStatus.Skip => "skip",
        _ => "time-out",
    };

    private static string Line(UnitTestResult r, int width) => string.Create(
        CultureInfo.InvariantCulture,
        $"{r.Name.PadRight(width)}  {Word(r.Status),-8} {r.Passed,4}  {r.Failed,4}  {r.Skipped,4}  {r.Seconds,7:F1}  {r.Remark}").TrimEnd();

    private static void WriteLog(string folder, UnitTestResult r)
    {
        try
        {
            Directory.CreateDirectory(folder);
            File.WriteAllText(Path.Combine(folder, $"{r.Name}.txt"), r.Report is null ? r.Output : $"{r.Output}\n{r.Report}\n");
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException or ArgumentException)
        {
            throw new ConfigurationException($"--logs: {folder} cannot be written ({e.Message.Split('\n')[0].TrimEnd('.')})", e);
        }
    }

    private static void WriteJson(List<UnitTestResult> results, UnitTestRunner runner, TextWriter output)
    {
        using MemoryStream buffer = new();
        using (Utf8JsonWriter w = new(buffer, new JsonWriterOptions { Indented = true }))
        {
            w.WriteStartObject();
            w.WriteString("accelerator", runner.Accelerator.Name);
            w.WriteString("cpu", runner.Accelerator.CpuModel);
            w.WriteString("personality", runner.Personality);
            w.WriteStartArray("entries");
            foreach (UnitTestResult r in results)
            {
                w.WriteStartObject();
                w.WriteString("name", r.Name);
                w.WriteString("result", Word(r.Status));
                w.WriteNumber("pass", r.Passed);
                w.WriteNumber("fail", r.Failed);
                w.WriteNumber("skip", r.Skipped);
                w.WriteNumber("seconds", Math.Round(r.Seconds, 3));
                if (r.Remark.Length != 0)
                    w.WriteString("remark", r.Remark);
                w.WriteEndObject();
            }
            w.WriteEndArray();
            w.WriteEndObject();
        }
        output.WriteLine(System.Text.Encoding.UTF8.GetString(buffer.ToArray()));
    }
}
