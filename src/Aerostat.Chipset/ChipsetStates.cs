using System.Text.Json;
using System.Text.Json.Serialization;

namespace Aerostat.Chipset;

/// <summary>How the devices' saved states are written. What is not known here is refused, so that nothing is lost in silence.</summary>
[JsonSourceGenerationOptions(JsonSerializerDefaults.General,
    PropertyNamingPolicy = JsonKnownNamingPolicy.CamelCase, RespectNullableAnnotations = true, UnmappedMemberHandling = JsonUnmappedMemberHandling.Disallow)]
[JsonSerializable(typeof(AcpiPmSavedState))]
[JsonSerializable(typeof(HpetSavedState))]
[JsonSerializable(typeof(I8042SavedState))]
[JsonSerializable(typeof(IoApicSavedState))]
[JsonSerializable(typeof(LocalApicSavedState))]
[JsonSerializable(typeof(PciConfigurationPortsSavedState))]
[JsonSerializable(typeof(PciHostBridgeSavedState))]
[JsonSerializable(typeof(PicSavedState))]
[JsonSerializable(typeof(PitSavedState))]
[JsonSerializable(typeof(ResetControlSavedState))]
[JsonSerializable(typeof(RtcSavedState))]
[JsonSerializable(typeof(Serial16550SavedState))]
[JsonSerializable(typeof(SystemControlPortASavedState))]
[JsonSerializable(typeof(SystemControlPortBSavedState))]
[JsonSerializable(typeof(TestDeviceSavedState))]
[JsonSerializable(typeof(VmGenerationIdSavedState))]
public sealed partial class ChipsetStates : JsonSerializerContext;
