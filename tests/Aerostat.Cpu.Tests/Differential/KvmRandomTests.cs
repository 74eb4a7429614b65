using System.Globalization;
using System.Text;
using Aerostat.Kvm;
using Aerostat.X86;
using Iced.Intel;
using Xunit;

namespace Aerostat.Cpu.Tests;

/// <summary>
/// Random programs without privileges through translator and the host's KVM, whose results must agree, as <see cref="TranslationRandomTests"/> compares
/// translator and interpreter. AEROSTAT_SEED chooses other programs, AEROSTAT_KVM_PROGRAMS how many: without it few where KVM emulates its guests.
/// </summary>
public sealed class KvmRandomTests
{
    private const int OnHardware = 20_000, Emulated = 200;

    [Fact]
    public void RandomProgramsAgreeWithTheHostsKvm()
    {
        KvmStatus kvm = KvmHost.Probe();
        Assert.SkipUnless(kvm.Usable, $"no KVM: {kvm.Explanation}");
        Assert.SkipUnless(TranslatorHypervisor.IsSupported, "the translator needs an x86-64 host");
        int count = int.TryParse(Environment.GetEnvironmentVariable("AEROSTAT_KVM_PROGRAMS"), CultureInfo.InvariantCulture, out int c) ? c
            : kvm.Verdict == KvmVerdict.Fast ? OnHardware : Emulated;
        ulong first = ulong.TryParse(Environment.GetEnvironmentVariable("AEROSTAT_SEED"), CultureInfo.InvariantCulture, out ulong s) ? s : 1;
        var cpuid = KvmCpuid.Mask(CpuModels.CreateCpuid(CpuModels.Default, 0, 1, "none"), kvm.Capabilities!.SupportedCpuid);
        FeatureGate features = new(cpuid);
        using GuestRunner host = new(m => new KvmHypervisor(m), cpuid), translated = new(m => new TranslatorHypervisor(m, threshold: 0), cpuid);
        byte[] window = new byte[Layout.WindowSize], far = new byte[Layout.WindowSize];
        StringBuilder failures = new();
        int compared = 0, failed = 0, endless = 0;
        for (ulong seed = first << 32; compared < count && failed < 10; seed++)
        {
            ProgramGenerator program = ProgramComparison.Generate(seed, window, far, out byte[][] code, out TestState start);
            // The runner sets no system registers here; and what CPUID denies hardware executes all the same.
            if (program.System.Privileged || program.Listing.Any(i => i.Mnemonic is Mnemonic.Syscall or Mnemonic.Cpuid || !features.IsSupported(i)))
                continue;
            for (int k = 0; k < 16 && (cpuid.Get(0xD, 0).Eax & 4) == 0; k++)
                start.YmmHigh(k).Clear();
            TestState a = start, b = start;
            ProgramComparison.Load(host, code, window, far);
            ProgramComparison.Load(translated, code, window, far);
            translated.ForgetSelfModifying();
            if (!TryRun(translated, ref b, code[0].Length) || !TryRun(host, ref a, code[0].Length))
            {
                endless++;
                continue;
            }
            // A kernel that emulates does not know misaligned vector operands, and says #UD.
            if (kvm.Verdict == KvmVerdict.Emulating && (a.Vector, b.Vector) == (Vector.InvalidOpcode, Vector.GeneralProtection) && a.Rip == b.Rip)
                continue;
            compared++;
            string difference = ProgramComparison.Compare(a, b, "translated") + ProgramComparison.CompareMemory(host, translated, "translated");
            if (difference.Length == 0)
                continue;
            failed++;
            failures.AppendLine(CultureInfo.InvariantCulture, $"program {seed:x}:{difference}");
            foreach (Instruction i in program.Listing)
                failures.AppendLine(CultureInfo.InvariantCulture, $"    {i.IP:x} {i}");
        }
        Assert.True(failed == 0, failures.ToString());
        Assert.True(endless * 20 <= compared, $"{endless} programs did not end, {compared} were compared");
    }

    // False: it does not end, or not soon.
    private static bool TryRun(GuestRunner guest, ref TestState state, int length)
    {
        using Timer watchdog = new(_ => guest.Processor.Kick(), null, 5000, 5000);
        try
        {
            guest.Run(ref state, 64, length);
            return true;
        }
        catch (InvalidOperationException)
        {
            return false;
        }
    }
}
