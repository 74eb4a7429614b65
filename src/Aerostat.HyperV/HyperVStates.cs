using System.Text.Json;
using System.Text.Json.Serialization;

namespace Aerostat.HyperV;

/// <summary>How the saved states of this project are written. What is not known here is refused.</summary>
[JsonSourceGenerationOptions(JsonSerializerDefaults.General,
    PropertyNamingPolicy = JsonKnownNamingPolicy.CamelCase, RespectNullableAnnotations = true, UnmappedMemberHandling = JsonUnmappedMemberHandling.Disallow)]
[JsonSerializable(typeof(HyperVPartitionSavedState))]
[JsonSerializable(typeof(HyperVProcessorSavedState))]
[JsonSerializable(typeof(HyperVTestDeviceSavedState))]
[JsonSerializable(typeof(VmBusSavedState))]
[JsonSerializable(typeof(DynamicMemorySavedState))]
[JsonSerializable(typeof(StorageSavedState))]
public sealed partial class HyperVStates : JsonSerializerContext;
