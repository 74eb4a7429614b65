using Aerostat.HyperV;
using Aerostat.Processors;
using Aerostat.State;

namespace Aerostat.Machine;

/// <summary>A virtual processor of a Hyper-V partition, as the exit handler calls it. The board resets the partition.</summary>
internal sealed class HyperVPersonality(IVirtualProcessor processor, HyperVProcessor own) : IPersonality
{
    /// <summary>The name after <c>--personality</c>.</summary>
    public const string Name = HyperVCpuid.PersonalityName;

    /// <inheritdoc/>
    public bool ReadMsr(uint index, out ulong value) => own.ReadMsr(index, out value);

    /// <inheritdoc/>
    public bool WriteMsr(uint index, ulong value) => own.WriteMsr(index, value);

    /// <inheritdoc/>
    public bool Hypercall(Span<ulong> registers) => own.Hypercall(registers, processor.IsIn64BitMode);

    /// <inheritdoc/>
    public IEnumerable<StateElement> Elements => [StateElement.Of($"hyperv{own.Index}", own, static () => HyperVStates.Default.HyperVProcessorSavedState)];

    /// <inheritdoc/>
    public void Reset()
    {
    }
}
