using Aerostat.Devices;
using Aerostat.Interrupts;

namespace Aerostat.Processors;

/// <summary>
/// One way of running guest code (interpreter, translator, /dev/kvm), bound to one machine's guest memory.
/// </summary>
public interface IHypervisor : IDisposable
{
    /// <summary>The name users type after <c>--accel</c>.</summary>
    string Name { get; }

    /// <summary>Makes virtual processor <see cref="VirtualProcessorOptions.Index"/>. Each index may be made once.</summary>
    /// <param name="options">What the processor is and what it is wired to.</param>
    IVirtualProcessor CreateProcessor(VirtualProcessorOptions options);

    /// <summary>
    /// Drops all cached translations of the processors whose bits are set; when it returns, none of them uses one that it had before. Called from
    /// exit handlers. Null: this kind cannot do it.
    /// </summary>
    Action<ulong>? FlushTranslations => null;

    /// <summary>The local APICs, where the hypervisor keeps them itself; null: they are the machine's.</summary>
    IHostedLocalApics? LocalApics => null;

    /// <summary>
    /// Where VMCALL and VMMCALL do not come to <see cref="IExitHandler.Hypercall"/>, because a host's kernel answers them itself: a port, 0 to 255,
    /// to which a 32-bit OUT at privilege level 0 does. Null: the instructions do.
    /// </summary>
    byte? HypercallPort => null;

    /// <summary>Passes writes to doorbells on; null: they come to the exit handler.</summary>
    IDoorbells? Doorbells => null;
}

/// <summary>What a virtual processor is made from.</summary>
public sealed record VirtualProcessorOptions
{
    /// <summary>vCPU number, 0..63. The APIC ID equals it.</summary>
    public required int Index { get; init; }

    /// <summary>How many vCPUs the machine has, 1..64.</summary>
    public required int Count { get; init; }

    /// <summary>What CPUID answers, and so which instructions exist.</summary>
    public required CpuidTable Cpuid { get; init; }

    /// <summary>VM time: the source of the time-stamp counter. Runs only while the VM runs.</summary>
    public required TimeProvider Clock { get; init; }

    /// <summary>TSC increments a second of VM time.</summary>
    public long TscFrequencyHz { get; init; } = 1_000_000_000;
}
