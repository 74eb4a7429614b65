using System.Text.Json;
using System.Text.Json.Serialization;
using Aerostat.Processors;
using Aerostat.State;

namespace Aerostat.Machine;

/// <summary>The state of a vCPU as part of a machine's. Its members belong to the vCPU's thread, or to whoever builds the machine.</summary>
internal sealed class VcpuElement(IVirtualProcessor processor) : ISavable<VcpuSavedState>
{
    /// <summary>Its name among the machine's parts.</summary>
    public static string NameOf(int index) => $"vcpu{index}";

    /// <inheritdoc/>
    public VcpuSavedState Save() => new() { Processor = processor.GetState() };

    /// <inheritdoc/>
    public void Restore(VcpuSavedState state)
    {
        ProcessorState p = state.Processor;
        if (p.Gpr.Length != 16 || p.Segments.Length != 6 || p.Dr.Length != 8)
            throw new SavedStateException("a processor has 16 general registers, 6 segment registers and 8 debug registers");
        if (!Enum.IsDefined(p.Activity))
            throw new SavedStateException($"a processor has no activity state {(int)p.Activity}");
        processor.SetState(p);
    }
}

/// <summary>A vCPU at rest.</summary>
[SavedState("vcpu", 1)]
public sealed record VcpuSavedState
{
    /// <summary>Its architectural state.</summary>
    public ProcessorState Processor { get; init; } = new();
}

/// <summary>How the saved states of this project are written.</summary>
[JsonSourceGenerationOptions(JsonSerializerDefaults.General,
    PropertyNamingPolicy = JsonKnownNamingPolicy.CamelCase, RespectNullableAnnotations = true, UnmappedMemberHandling = JsonUnmappedMemberHandling.Disallow,
    UseStringEnumConverter = true)]
[JsonSerializable(typeof(VcpuSavedState))]
[JsonSerializable(typeof(KvmClockSavedState))]
[JsonSerializable(typeof(KvmPersonalitySavedState))]
internal sealed partial class MachineStates : JsonSerializerContext;
