using Aerostat.Cpu;
using Aerostat.Kvm;
using Aerostat.Machine;
using Aerostat.Memory;
using Aerostat.Processors;

namespace Aerostat.Hosting;

/// <summary>One way of running guest code, as <c>aerostat doctor</c> shows it.</summary>
/// <param name="Name">The name after <c>--accel</c>.</param>
/// <param name="Usable">Whether a machine can be made with it here.</param>
/// <param name="Reason">Why, or why not.</param>
public sealed record AcceleratorStatus(string Name, bool Usable, string Reason);

/// <summary>
/// The composition root: the one place that knows every kind of processor, and so what <c>--accel</c> and <c>--cpu</c> mean.
/// </summary>
public static class Accelerators
{
    private const string Interpreter = "interpreter", Translator = "translator", KvmName = "kvm";

    // A host's KVM does not change while the process runs, and looking takes time where guests are emulated.
    private static readonly Lazy<KvmStatus> s_kvm = new(KvmHost.Probe);

    /// <summary>What this host's KVM is worth. The first call tries it, which takes some milliseconds.</summary>
    public static KvmReport Kvm => KvmReport.From(s_kvm.Value);

    /// <summary>The faster processor of this program's own on this host.</summary>
    public static string Own => TranslatorHypervisor.IsSupported ? Translator : Interpreter;

    /// <summary>What <c>--accel</c> takes, usable here or not.</summary>
    public static IReadOnlyList<string> Names { get; } = ["auto", KvmName, Translator, Interpreter];

    /// <summary>Every accelerator, fastest first, and whether it can be used on a host.</summary>
    public static IReadOnlyList<AcceleratorStatus> All(KvmReport kvm)
    {
        ArgumentNullException.ThrowIfNull(kvm);
        return
        [
            new(KvmName, kvm.Usable, kvm.Explanation),
            TranslatorHypervisor.IsSupported
                ? new(Translator, true, "64-bit guest code as host code, the rest by interpreter; needs no rights and no /dev/kvm")
                : new(Translator, false, "needs an x86-64 host"),
            new(Interpreter, true, "runs everywhere; needs no rights and no /dev/kvm"),
        ];
    }

    /// <summary>What <c>auto</c> means on a host, and why.</summary>
    public static (string Name, string Reason) Automatic(KvmReport kvm)
    {
        ArgumentNullException.ThrowIfNull(kvm);
        if (kvm.Fast)
            return (KvmName, kvm.Explanation);
        string without = kvm.Usable ? "this KVM emulates its guests" : "KVM cannot be used";
        return TranslatorHypervisor.IsSupported
            ? (Translator, $"{without}, and this is the fastest without")
            : (Interpreter, $"{without}, and the translator needs an x86-64 host");
    }

    /// <summary>Names and descriptions of the CPU models of an accelerator.</summary>
    public static IEnumerable<(string Name, string Description)> CpuModelsOf(string accelerator)
    {
        _ = Find(accelerator);
        return CpuModels.All;
    }

    /// <summary>Finds what <c>--accel</c> and <c>--cpu</c> ask for; <paramref name="kvm"/> is for KVM only.</summary>
    /// <exception cref="ConfigurationException">There is no such thing, or it cannot be used here.</exception>
    public static Accelerator Create(string accelerator, string? cpuModel = null, string personality = "kvm", TranslationRecordOptions? record = null, KvmOptions? kvm = null)
    {
        string name = Find(accelerator);
        string model = cpuModel ?? CpuModels.Default;
        if (!CpuModels.Exists(model))
            throw new ConfigurationException($"--cpu: there is no model '{model}'; '--cpu help' lists what there is");
        if (!CpuModels.RunsOnHost(model))
            throw new ConfigurationException($"--cpu: '{model}' needs a host with AVX2, FMA and F16C, which this one lacks; leave --cpu out or use {CpuModels.Default}");
        if (record != null && name != Translator)
            throw new ConfigurationException($"--perf-map, --dump-blocks: --accel {name} translates nothing; add --accel translator");
        return new Accelerator(
            name,
            model,
            memory => Open(name, memory, record, kvm),
            (index, count) => Cpuid(name, CpuModels.CreateCpuid(model, index, count, personality)));
    }

    private static IHypervisor Open(string name, GuestMemory memory, TranslationRecordOptions? record, KvmOptions? kvm)
    {
        switch (name)
        {
            case KvmName:
                try
                {
                    return new KvmHypervisor(memory, kvm ?? new KvmOptions());
                }
                catch (Exception e) when (e is KvmException or NotSupportedException)
                {
                    throw new HostException($"--accel kvm: {e.Message}", e);
                }
            case Translator:
                return OpenTranslator(memory, record);
            default:
                return new InterpreterHypervisor(memory);
        }
    }

    // What the machine is told is what the guest will see.
    private static CpuidTable Cpuid(string name, CpuidTable model) =>
        name == KvmName && s_kvm.Value.Capabilities is { } capabilities ? KvmCpuid.Mask(model, capabilities.SupportedCpuid) : model;

    private static TranslatorHypervisor OpenTranslator(GuestMemory memory, TranslationRecordOptions? record)
    {
        try
        {
            return record == null ? new TranslatorHypervisor(memory) : new TranslatorHypervisor(memory, record);
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            throw new ConfigurationException($"--perf-map, --dump-blocks: {e.Message}; give paths that can be written and read", e);
        }
    }

    private static string Find(string accelerator) => accelerator switch
    {
        "auto" => Automatic(Kvm).Name,
        Interpreter => accelerator,
        Translator when !TranslatorHypervisor.IsSupported => throw new ConfigurationException($"--accel: '{accelerator}' needs an x86-64 host; use interpreter or auto"),
        Translator => accelerator,
        KvmName when !Kvm.Usable => throw new ConfigurationException($"--accel: '{accelerator}' cannot be used here: {Kvm.Explanation}; or use auto"),
        KvmName => accelerator,
        _ => throw new ConfigurationException($"--accel: there is no accelerator '{accelerator}'; use auto, kvm, translator or interpreter"),
    };
}
