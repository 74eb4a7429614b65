using Aerostat.Memory;
using Aerostat.Processors;

namespace Aerostat.Machine;

/// <summary>
/// A way of running guest code, ready to be used for a machine. The machine does not know which kinds there are: the
/// composition root hands it one.
/// </summary>
/// <param name="Name">The name after <c>--accel</c>.</param>
/// <param name="CpuModel">The CPU model's full, versioned name.</param>
/// <param name="Open">Binds it to a machine's memory.</param>
/// <param name="Cpuid">What CPUID answers on vCPU (index) of (count).</param>
public sealed record Accelerator(
    string Name,
    string CpuModel,
    Func<GuestMemory, IHypervisor> Open,
    Func<int, int, CpuidTable> Cpuid);
