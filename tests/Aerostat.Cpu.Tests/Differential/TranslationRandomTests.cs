using System.Diagnostics;
using System.Globalization;
using System.Text;
using Aerostat.X86;
using Iced.Intel;
using Xunit;

namespace Aerostat.Cpu.Tests;

/// <summary>
/// Random programs through translator and interpreter, whose results must agree: forward branches, loops, calls, memory operands around page
/// boundaries, faults, flags live and dead, stores into the program itself, code whose addresses meet in the jump table and data whose addresses meet in
/// the TLB, and what kernels do. AEROSTAT_SEED chooses other programs, AEROSTAT_PROGRAMS how many;
/// <see cref="CaseStore"/> keeps the seeds of those that failed.
/// </summary>
public sealed unsafe class TranslationRandomTests : IDisposable
{
    private const int DefaultPrograms = 100_000;
    private const long LongestProgram = 20_000_000;

    private readonly GuestRunner oracle, translated;
    private readonly byte[] window = new byte[Layout.WindowSize], far = new byte[Layout.WindowSize];
    private int faults, flagsDiffer;

    public TranslationRandomTests()
    {
        Assert.SkipUnless(TranslatorHypervisor.IsSupported, "the host is not x86-64");
        var cpuid = CpuModels.CreateCpuid(CpuModels.Default, 0, 1, "none");
        oracle = new GuestRunner(m => new InterpreterHypervisor(m), cpuid);
        translated = new GuestRunner(m => new TranslatorHypervisor(m, threshold: 0, hotThreshold: 2), cpuid);
    }

    public void Dispose()
    {
        oracle.Dispose();
        translated.Dispose();
    }

    private static ulong Seed => ulong.TryParse(Environment.GetEnvironmentVariable("AEROSTAT_SEED"), CultureInfo.InvariantCulture, out ulong s) ? s : 1;

    [Fact]
    public void RandomProgramsAgreeWithTheInterpreter()
    {
        int count = int.TryParse(Environment.GetEnvironmentVariable("AEROSTAT_PROGRAMS"), CultureInfo.InvariantCulture, out int c) ? c : DefaultPrograms;
        var failures = new StringBuilder();
        int failed = 0, skipped = 0, firstChanges = 0;
        var time = Stopwatch.StartNew();
        // A program that has changed its own return address may run for ever: such a one is skipped when the interpreter does not end either.
        ulong current = 0, seen = ulong.MaxValue;
        TimeSpan since = default;
        using var watchdog = new Timer(
            _ =>
            {
                // By processor time: a host that is busy with other things keeps nobody from ending.
                ulong now = Volatile.Read(ref current);
                TimeSpan used = Environment.CpuUsage.TotalTime;
                if (now != seen)
                    since = used;
                if ((used - since).TotalMilliseconds >= 900)
                    oracle.Processor.Kick();
                // Compiling this process's own code for the first program alone takes a second where others share the host's caches.
                if ((used - since).TotalSeconds >= 10)
                    translated.Processor.Kick();
                seen = now;
            },
            null,
            1000,
            1000);
        ulong[] kept = [.. CaseStore.Default.Lines("programs").Select(x => ulong.Parse(x.Line, NumberStyles.HexNumber, CultureInfo.InvariantCulture))];
        for (ulong n = 0; n < (ulong)(kept.Length + count) && failed < 10; n++)
        {
            ulong seed = n < (ulong)kept.Length ? kept[n] : (Seed << 32) + n - (ulong)kept.Length;
            Volatile.Write(ref current, n);
            ProgramGenerator program = ProgramComparison.Generate(seed, window, far, out byte[][] code, out TestState start);
            if (Environment.GetEnvironmentVariable("AEROSTAT_TRACE") != null)
            {
                Console.Error.WriteLine($"program {seed:x}");
                foreach (Instruction i in program.Listing)
                    Console.Error.WriteLine($"    {i.IP:x} {i}");
            }
            translated.ForgetSelfModifying();
            if (!Run(program, code, start, out string difference))
            {
                skipped++;
                continue;
            }
            // Flags from before a block are lost the first time that code changes itself so as to read them (docs/translator.md), not the second.
            if (difference.Length != 0 && translated.HasModifiedItself && Run(program, code, start, out string again) && again.Length == 0)
            {
                firstChanges++;
                difference = "";
            }
            if (n % 100_000 == 99_999)
                Console.Error.WriteLine(FormattableString.Invariant($"{n + 1} programs, up to seed {seed:x}, {failed} failures, {(n + 1) / time.Elapsed.TotalSeconds:0} a second"));
            if (difference.Length == 0)
                continue;
            failed++;
            failures.AppendLine(CultureInfo.InvariantCulture, $"program {seed:x}:{difference}");
            failures.AppendLine(CultureInfo.InvariantCulture, $"    {program.System}");
            failures.AppendLine(CaseStore.Default.Save("programs", $"{seed:x}", difference));
            foreach (Instruction i in program.Listing)
                failures.AppendLine(CultureInfo.InvariantCulture, $"    {i.IP:x} {i}");
        }
        Console.WriteLine($"{count} programs, {faults} of them ended in an exception ({flagsDiffer} with other flags than the interpreter's), {skipped} did not end, {firstChanges} read flags lost at their first change of themselves; {string.Join(", ", translated.Processor.Counters.Named.Select(x => $"{x.Key}={x.Value}"))}");
        Assert.True(failed == 0, failures.ToString());
        Assert.True(firstChanges <= kept.Length + 1 + (count / 100_000), $"{firstChanges} programs agree only the second time: more than code that changes itself explains");
        Assert.True(skipped * 100 <= count, $"{skipped} of {count} programs did not end: nothing was compared");
    }

    /// <summary>A program on both; false: it does not end, or not soon.</summary>
    private bool Run(ProgramGenerator program, byte[][] code, in TestState start, out string difference)
    {
        TestState a = start, b = start;
        ProgramComparison.Load(oracle, code, window, far);
        ProgramComparison.Load(translated, code, window, far);
        long begin = oracle.Instructions, counted = begin - translated.Instructions;
        difference = "";
        SystemResult left, leftTranslated = default;
        try
        {
            left = oracle.Run(ref a, code[0].Length, program.System);
        }
        catch (InvalidOperationException)
        {
            return false;
        }
        // So near to the watchdog's patience that it might wake the other instead.
        if (oracle.Instructions - begin > LongestProgram)
            return false;
        try
        {
            leftTranslated = translated.Run(ref b, code[0].Length, program.System);
        }
        catch (InvalidOperationException e)
        {
            b.Vector = -2;
            difference = " " + e.Message;
        }
        if (a.Vector >= 0)
            faults++;
        difference += ProgramComparison.Compare(a, b, "translated");
        counted -= oracle.Instructions - translated.Instructions;
        if (counted != 0)
            difference += string.Create(CultureInfo.InvariantCulture, $" {counted} instructions too many");
        if (left != leftTranslated)
            difference += $" system {left}, translated {leftTranslated}";
        if (a.Vector >= 0 && ((a.Rflags ^ b.Rflags) & RFlags.Status & ~RFlags.Af) != 0)
            flagsDiffer++;
        // A call to an address that is not canonical has pushed its return address when that is found out (docs/translator.md).
        ulong below = a.Gpr[4] - 8 - Layout.Window;
        if (a.Vector == Vector.GeneralProtection && below <= Layout.WindowSize - 8)
            oracle.Window(false).Slice((int)below, 8).CopyTo(translated.Window(false)[(int)below..]);
        difference += ProgramComparison.CompareMemory(oracle, translated, "translated");
        return true;
    }
}
