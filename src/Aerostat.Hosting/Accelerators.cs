using Aerostat.Cpu;
using Aerostat.Machine;
using Aerostat.Platform;

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
    private const string Interpreter = "interpreter", Translator = "translator";

    /// <summary>Every accelerator, fastest first, and whether it can be used on a host.</summary>
    public static IReadOnlyList<AcceleratorStatus> All(KvmDevice kvm) =>
    [
        new("kvm", false, kvm switch
        {
            KvmDevice.Missing => "comes with a later version (and this host has no /dev/kvm)",
            KvmDevice.NoPermission => "comes with a later version (and this user may not open /dev/kvm: join its group, usually kvm)",
            _ => "comes with a later version (this host's /dev/kvm could be used)",
        }),
        TranslatorHypervisor.IsSupported
            ? new(Translator, true, "64-bit guest code as host code, the rest by interpreter; needs no rights and no /dev/kvm")
            : new(Translator, false, "needs an x86-64 host"),
        new(Interpreter, true, "runs everywhere; needs no rights and no /dev/kvm"),
    ];

    /// <summary>What <c>auto</c> means on a host, and why.</summary>
    public static (string Name, string Reason) Automatic(KvmDevice kvm) =>
        (Interpreter, $"the one that has been tried most{(kvm == KvmDevice.Present ? "; /dev/kvm is there but not used yet" : "")}");

    /// <summary>Names and descriptions of the CPU models of an accelerator.</summary>
    public static IEnumerable<(string Name, string Description)> CpuModelsOf(string accelerator)
    {
        _ = Find(accelerator);
        return CpuModels.All;
    }

    /// <summary>Finds what <c>--accel</c> and <c>--cpu</c> ask for.</summary>
    /// <exception cref="ConfigurationException">There is no such thing, or it cannot be used here.</exception>
    public static Accelerator Create(string accelerator, string? cpuModel = null, string personality = "none")
    {
        string name = Find(accelerator);
        string model = cpuModel ?? CpuModels.Default;
        if (!CpuModels.All.Any(m => m.Name == model))
            throw new ConfigurationException($"--cpu: there is no model '{model}'; '--cpu help' lists what there is");
        if (!CpuModels.RunsOnHost(model))
            throw new ConfigurationException($"--cpu: '{model}' needs a host with AVX2, FMA and F16C, which this one lacks; leave --cpu out or use {CpuModels.Default}");
        return new Accelerator(
            name,
            model,
            memory => name == Translator ? new TranslatorHypervisor(memory) : new InterpreterHypervisor(memory),
            (index, count) => CpuModels.CreateCpuid(model, index, count, personality));
    }

    private static string Find(string accelerator) => accelerator switch
    {
        "auto" => Automatic(KvmDevice.Missing).Name,
        Interpreter => accelerator,
        Translator when !TranslatorHypervisor.IsSupported => throw new ConfigurationException($"--accel: '{accelerator}' needs an x86-64 host; use interpreter or auto"),
        Translator => accelerator,
        "kvm" => throw new ConfigurationException($"--accel: '{accelerator}' is not yet in this version; use translator, interpreter or auto"),
        _ => throw new ConfigurationException($"--accel: there is no accelerator '{accelerator}'; use auto, translator or interpreter"),
    };
}
