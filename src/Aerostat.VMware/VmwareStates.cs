using System.Text.Json;
using System.Text.Json.Serialization;

namespace Aerostat.VMware;

/// <summary>How the saved states of this project are written. What is not known here is refused.</summary>
[JsonSourceGenerationOptions(JsonSerializerDefaults.General,
    PropertyNamingPolicy = JsonKnownNamingPolicy.CamelCase, RespectNullableAnnotations = true, UnmappedMemberHandling = JsonUnmappedMemberHandling.Disallow)]
[JsonSerializable(typeof(GuestToolsSavedState))]
[JsonSerializable(typeof(VmciSavedState))]
[JsonSerializable(typeof(VmwareBalloonSavedState))]
[JsonSerializable(typeof(VmwareVcpuSavedState))]
public sealed partial class VmwareStates : JsonSerializerContext;
