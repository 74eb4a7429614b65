using System.Text.Json;
using System.Text.Json.Serialization;

namespace Aerostat.Control;

/// <summary>How what goes over the wire is written and read, made at compile time. A verb's types are listed here, or in a context of its own.</summary>
[JsonSourceGenerationOptions(
    PropertyNamingPolicy = JsonKnownNamingPolicy.CamelCase,
    DefaultIgnoreCondition = JsonIgnoreCondition.WhenWritingNull,
    UnmappedMemberHandling = JsonUnmappedMemberHandling.Skip,
    MaxDepth = ControlRequest.MaxDepth)]
[JsonSerializable(typeof(NoArguments))]
[JsonSerializable(typeof(ShowAnswer))]
[JsonSerializable(typeof(StateAnswer))]
[JsonSerializable(typeof(StopArguments))]
[JsonSerializable(typeof(StopAnswer))]
[JsonSerializable(typeof(DebugArguments))]
[JsonSerializable(typeof(DebugAnswer))]
[JsonSerializable(typeof(InspectArguments))]
[JsonSerializable(typeof(EventsArguments))]
[JsonSerializable(typeof(EventsAnswer))]
[JsonSerializable(typeof(EventLine))]
[JsonSerializable(typeof(BalloonArguments))]
[JsonSerializable(typeof(BalloonAnswer))]
[JsonSerializable(typeof(MemoryAnswer))]
[JsonSerializable(typeof(ToolsArguments))]
[JsonSerializable(typeof(ToolsAnswer))]
public sealed partial class ControlJson : JsonSerializerContext;

/// <summary>The lines around answers.</summary>
[JsonSourceGenerationOptions(PropertyNamingPolicy = JsonKnownNamingPolicy.CamelCase, DefaultIgnoreCondition = JsonIgnoreCondition.WhenWritingNull)]
[JsonSerializable(typeof(HelloLine))]
[JsonSerializable(typeof(ErrorLine))]
internal sealed partial class LineJson : JsonSerializerContext;
