using System.Diagnostics;
using System.Globalization;
using System.Text;
using Iced.Intel;
using Xunit;

namespace Aerostat.Cpu.Tests;

/// <summary>
/// The interpreter against the host processor, instruction by instruction. AEROSTAT_SEED chooses other cases, AEROSTAT_FUZZ_SECONDS makes
/// <see cref="RandomCases"/> go on for that long. A case that fails is printed in the form of <see cref="Corpus"/> and saved by
/// <see cref="CaseStore"/>, from where every later run replays it.
/// </summary>
public sealed class InstructionDifferentialTests
{
    private const int MaxReports = 60;

    private static ulong Seed => ulong.TryParse(Environment.GetEnvironmentVariable("AEROSTAT_SEED"), CultureInfo.InvariantCulture, out ulong s) ? s : 1;

    private static DifferentialRunner CreateRunner(bool watched = false) =>
        new(m => new InterpreterHypervisor(m), CpuModels.CreateCpuid(CpuModels.Default, 0, 1, "none"), watched);

    private static DifferentialRunner CreateTranslated() =>
        new(m => new TranslatorHypervisor(m, threshold: 0), CpuModels.CreateCpuid(CpuModels.Default, 0, 1, "none")) { IgnoreFlagsOfFaults = true };

    /// <summary>The same through the translator, 64-bit code.</summary>
    [Fact]
    public void EveryFormAgreesWithTheHostTranslated()
    {
        HostRequirements.Check();
        using DifferentialRunner runner = CreateTranslated();
        var report = new Report(runner);
        string? only = Environment.GetEnvironmentVariable("AEROSTAT_FORMS");
        foreach (Code code in FormCatalog.Forms(64).Where(c => only == null || c.ToString().Contains(only, StringComparison.OrdinalIgnoreCase)))
            RunForm(runner, report, new Rng(Seed * 7_000_003 + (ulong)code), code, 64, encodings: 14, states: 6);
        report.Finish();
    }

    /// <summary>
    /// Three operands out of the four registers that the translator keeps in memory, which takes all of its scratch registers at once.
    /// </summary>
    [Fact]
    public void RegistersInMemoryAgreeWithTheHostTranslated()
    {
        HostRequirements.Check();
        using DifferentialRunner runner = CreateTranslated();
        var report = new Report(runner);
        var rng = new Rng(Seed);
        var generator = new StateGenerator(rng);
        Register[] registers = [Register.R10, Register.R11, Register.R14, Register.R15];
        foreach (Code code in (Code[])[
            Code.VEX_Andn_r64_r64_rm64, Code.VEX_Mulx_r64_r64_rm64, Code.VEX_Mulx_r32_r32_rm32, Code.VEX_Pdep_r64_r64_rm64, Code.VEX_Pext_r32_r32_rm32,
            Code.VEX_Bextr_r64_rm64_r64, Code.VEX_Bzhi_r64_rm64_r64, Code.VEX_Sarx_r64_rm64_r64, Code.VEX_Shlx_r32_rm32_r32, Code.VEX_Shrx_r64_rm64_r64,
            Code.Shld_rm64_r64_CL, Code.VEX_Vpinsrq_xmm_xmm_rm64_imm8, Code.VEX_Vmovq_rm64_xmm])
        {
            for (int choice = 0; choice < 64; choice++)
            {
                // The same instruction with its general registers renamed.
                Encoding? e = null;
                var encoder = new EncodingGenerator(64, rng) { Among = [registers[choice & 3], registers[choice >> 2 & 3], registers[choice >> 4]] };
                for (int k = 0; k < 10 && e == null; k++)
                    e = encoder.TryMake(code, memory: false);
                Assert.NotNull(e);
                for (int n = 0; n < 3; n++)
                {
                    if (generator.TryMake(e) is { } c && runner.Run(c) is { } difference && report.Add(code, e, c, difference, generator))
                        break;
                }
            }
        }

        report.Finish();
    }

    /// <summary>Each form in many encodings, each encoding from many states.</summary>
    [Theory]
    [InlineData(64)]
    [InlineData(32)]
    [InlineData(16)]
    public void EveryFormAgreesWithTheHost(int bitness)
    {
        HostRequirements.Check();
        using DifferentialRunner runner = CreateRunner();
        Assert.SkipUnless(runner.Native.CanRun(bitness), $"the host does not run {bitness}-bit code");
        var report = new Report(runner);
        string? only = Environment.GetEnvironmentVariable("AEROSTAT_FORMS");
        foreach (Code code in FormCatalog.Forms(bitness))
        {
            if (only != null && !code.ToString().Contains(only, StringComparison.OrdinalIgnoreCase))
                continue;
            var rng = new Rng(Seed * 1_000_003 + (ulong)code * 4 + (ulong)bitness);
            RunForm(runner, report, rng, code, bitness, encodings: 14, states: 10);
        }

        report.Finish();
    }

    /// <summary>The same, more quickly, while a data breakpoint is set: all memory accesses then take their slow paths.</summary>
    [Theory]
    [InlineData(64)]
    [InlineData(32)]
    [InlineData(16)]
    public void EveryFormAgreesWithTheHostUnderABreakpoint(int bitness)
    {
        HostRequirements.Check();
        using DifferentialRunner runner = CreateRunner(watched: true);
        Assert.SkipUnless(runner.Native.CanRun(bitness), $"the host does not run {bitness}-bit code");
        var report = new Report(runner);
        foreach (Code code in FormCatalog.Forms(bitness))
            RunForm(runner, report, new Rng(Seed * 999_983 + (ulong)code * 4 + (ulong)bitness), code, bitness, encodings: 4, states: 4);
        report.Finish();
    }

    private static int RunForm(DifferentialRunner runner, Report report, Rng rng, Code code, int bitness, int encodings, int states)
    {
        var encoder = new EncodingGenerator(bitness, rng);
        var generator = new StateGenerator(rng);
        int made = 0, ran = 0;
        for (int k = 0; k < encodings * 4 && made < encodings; k++)
        {
            Encoding? e = encoder.TryMake(code, (k & 1) != 0);
            if (e == null || (e.Low && !runner.Native.HasLowWindow))
                continue;
            made++;
            for (int n = 0; n < states; n++)
            {
                TestCase? c = generator.TryMake(e);
                if (c == null)
                    continue;
                ran++;
                if (runner.Run(c) is { } difference && report.Add(code, e, c, difference, generator))
                    return ran;
            }
        }

        return ran;
    }

    /// <summary>Random forms from a seed, for as long as AEROSTAT_FUZZ_SECONDS says; a few thousand cases otherwise.</summary>
    [Fact]
    public void RandomCases()
    {
        HostRequirements.Check();
        using DifferentialRunner runner = CreateRunner();
        var report = new Report(runner);
        _ = double.TryParse(Environment.GetEnvironmentVariable("AEROSTAT_FUZZ_SECONDS"), CultureInfo.InvariantCulture, out double seconds);
        List<Code> forms64 = FormCatalog.Forms(64), forms32 = FormCatalog.Forms(32), forms16 = FormCatalog.Forms(16);
        var rng = new Rng(Seed);
        var clock = Stopwatch.StartNew();
        for (int k = 0; k < 500 || clock.Elapsed.TotalSeconds < seconds; k++)
        {
            int bitness = rng.Pick<int>([64, 64, 32, 16]);
            if (!runner.Native.CanRun(bitness))
                continue;
            List<Code> forms = bitness == 64 ? forms64 : bitness == 32 ? forms32 : forms16;
            RunForm(runner, report, new Rng(rng.Next()), forms[rng.Below(forms.Count)], bitness, encodings: 2, states: 8);
            if (report.IsFull)
                break;
        }

        report.Finish();
    }

    /// <summary>Straight-line code: what one instruction leaves is what the next one finds.</summary>
    [Theory]
    [InlineData(64)]
    [InlineData(32)]
    [InlineData(16)]
    public void SequencesAgreeWithTheHost(int bitness)
    {
        HostRequirements.Check();
        using DifferentialRunner runner = CreateRunner();
        Assert.SkipUnless(runner.Native.CanRun(bitness), $"the host does not run {bitness}-bit code");
        var rng = new Rng(Seed + (ulong)bitness * 7919);
        var generator = new SequenceGenerator(bitness, rng);
        _ = double.TryParse(Environment.GetEnvironmentVariable("AEROSTAT_FUZZ_SECONDS"), CultureInfo.InvariantCulture, out double seconds);
        var clock = Stopwatch.StartNew();
        var failures = new List<string>();
        for (int k = 0; (k < 12000 || clock.Elapsed.TotalSeconds < seconds) && failures.Count < 10; k++)
        {
            TestCase? c = generator.TryMake(2 + rng.Below(8));
            if (c == null || runner.Run(c) is not { } difference)
                continue;
            TestCase small = Minimizer.Minimize(Shorten(c, runner), x =>
            {
                SequenceGenerator.Place(ref x.State, bitness);
                return runner.Run(x) != null;
            });
            string text = string.Join("; ", small.Instructions().Select(i => i.ToString()));
            string what = $"{text}\n    host{runner.Run(small) ?? difference}", line = Corpus.Format(small);
            failures.Add($"{what}\n    {line}\n    {CaseStore.Default.Save("forms", line, what)}");
        }

        Console.WriteLine($"{runner.Count} sequences, {runner.Faults} of them ended in an exception");
        if (failures.Count != 0)
            Assert.Fail($"seed {Seed}:\n  " + string.Join("\n  ", failures));
    }

    // Drops instructions that the difference does not need.
    private static TestCase Shorten(TestCase c, DifferentialRunner runner)
    {
        for (int k = 0; ;)
        {
            List<Instruction> list = c.Instructions();
            if (k >= list.Count || list.Count == 1)
                return c;
            int at = (int)(list[k].IP - Layout.StartRip(c.Bitness));
            var shorter = new TestCase { Code = [.. c.Code.AsSpan(0, at), .. c.Code.AsSpan(at + list[k].Length)], Bitness = c.Bitness, Window = c.Window };
            shorter.State = c.State;
            if (shorter.Instructions().Count == list.Count - 1 && !shorter.Instructions().Exists(i => i.IsIPRelativeMemoryOperand) && runner.Run(shorter) != null)
                c = shorter;
            else
                k++;
        }
    }

    /// <summary>Cases that failed once.</summary>
    [Fact]
    public void CorpusAgreesWithTheHost()
    {
        HostRequirements.Check();
        using DifferentialRunner runner = CreateRunner();
        var failures = new StringBuilder();
        int replayed = 0;
        foreach ((string file, string line) in CaseStore.Default.Lines("forms"))
        {
            replayed++;
            TestCase c = Corpus.Parse(line);
            if (!runner.Native.CanRun(c.Bitness) || (c.Low && !runner.Native.HasLowWindow))
                continue;
            if (runner.Run(c) is { } difference)
                failures.AppendLine(CultureInfo.InvariantCulture, $"{file}: {difference}\n  {line}");
        }

        Assert.True(replayed > 0, "the corpus is not there");
        Assert.True(failures.Length == 0, failures.ToString());
    }

    /// <summary>What differs, one case a form, small.</summary>
    private sealed class Report(DifferentialRunner runner)
    {
        private readonly Dictionary<Code, (int Count, string Text)> _failures = [];

        public bool IsFull => _failures.Count >= MaxReports;

        /// <summary>True: enough of this form.</summary>
        public bool Add(Code code, Encoding e, TestCase c, string difference, StateGenerator generator)
        {
            if (_failures.TryGetValue(code, out var old))
            {
                _failures[code] = (old.Count + 1, old.Text);
                return old.Count > 20;
            }

            TestCase small = Minimizer.Minimize(c, x => generator.IsContained(x, e.Instruction) && runner.Run(x) != null);
            string line = Corpus.Format(small);
            string text = $"{code}: {e.Instruction}\n    host{runner.Run(small) ?? difference}\n    {line}";
            string saved = CaseStore.Default.Save("forms", line, $"{code}: {e.Instruction}");
            _failures[code] = (1, $"{text}\n    {saved}");
            return false;
        }

        public void Finish()
        {
            Console.WriteLine($"{runner.Count} cases, {runner.Faults} of them ended in an exception");
            if (_failures.Count == 0)
                return;
            Assert.Fail($"{_failures.Count} forms differ from the host (seed {Seed}):\n"
                + string.Join('\n', _failures.Values.Take(MaxReports).Select(f => $"  {f.Text}  [{f.Count} cases]"))
                + "\n" + string.Join(' ', _failures.Keys));
        }
    }
}
