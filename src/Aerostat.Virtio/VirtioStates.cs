using System.Text.Json;
using System.Text.Json.Serialization;

namespace Aerostat.Virtio;

/// <summary>How the saved states of virtio devices and transports are written. What is not known here is refused.</summary>
[JsonSourceGenerationOptions(JsonSerializerDefaults.General,
    PropertyNamingPolicy = JsonKnownNamingPolicy.CamelCase, RespectNullableAnnotations = true, UnmappedMemberHandling = JsonUnmappedMemberHandling.Disallow)]
[JsonSerializable(typeof(VirtioBalloonSavedState))]
[JsonSerializable(typeof(VirtioBlockSavedState))]
[JsonSerializable(typeof(VirtioConsoleSavedState))]
[JsonSerializable(typeof(VirtioMmioSavedState))]
[JsonSerializable(typeof(VirtioPciSavedState))]
[JsonSerializable(typeof(VirtioRngSavedState))]
public sealed partial class VirtioStates : JsonSerializerContext;
