using Aerostat.Chipset;
using Aerostat.Devices;
using Aerostat.HyperV;
using Aerostat.Memory;
using Aerostat.Processors;
using Aerostat.State;

namespace Aerostat.Machine;

/// <summary>What a machine with the Hyper-V personality has besides every PC's devices: the partition.</summary>
internal sealed class HyperVBoard : IDevice
{
    private readonly List<StateElement> elements = [];

    /// <summary>Builds it around the processors.</summary>
    public HyperVBoard(HyperVHost host, GuestMemory memory, TimeProvider clock, IReadOnlyList<IVirtualProcessor> processors, IReadOnlyList<LocalApic> apics)
    {
        Partition = new HyperVPartition(
            [.. processors.Zip(apics, (p, a) => new PartitionProcessor(p.Timestamp, a))], memory, clock,
            new PartitionOptions { UsesVmmcall = host.IsAmd, FlushTranslations = host.FlushTranslations, Crashed = host.Crashed });
        elements.Add(StateElement.Of("hyperv", Partition, HyperVStates.Default.HyperVPartitionSavedState));
    }

    /// <inheritdoc/>
    public string Name => "hyperv";

    /// <summary>The partition.</summary>
    public HyperVPartition Partition { get; }

    /// <summary>The states, in the order in which they are put back: after the local APICs'.</summary>
    public IReadOnlyList<StateElement> Elements => elements;

    /// <inheritdoc/>
    public void Reset() => Partition.Reset();
}

/// <summary>What the Hyper-V personality needs of its machine.</summary>
/// <param name="IsAmd">Whether the processors say that they are AMD's.</param>
/// <param name="FlushTranslations">See <see cref="IHypervisor.FlushTranslations"/>.</param>
/// <param name="Crashed">Takes what the guest says of its crash.</param>
internal sealed record HyperVHost(bool IsAmd, Action<ulong>? FlushTranslations, Action<GuestCrash> Crashed);
