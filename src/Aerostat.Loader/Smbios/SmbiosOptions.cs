namespace Aerostat.Loader;

/// <summary>What the SMBIOS tables say the machine is. Texts are printable ASCII of up to 64 characters.</summary>
public sealed class SmbiosOptions
{
    /// <summary>Number of vCPUs; all are cores of <see cref="Sockets"/> sockets.</summary>
    public required int Processors { get; init; }
    /// <summary>Number of sockets; divides <see cref="Processors"/>.</summary>
    public int Sockets { get; init; } = 1;
    /// <summary>Guest RAM in bytes.</summary>
    public required ulong MemoryBytes { get; init; }

    /// <summary>Firmware vendor.</summary>
    public string BiosVendor { get; init; } = "Aerostat";
    /// <summary>Firmware version.</summary>
    public string BiosVersion { get; init; } = "1.0";
    /// <summary>Firmware date, month/day/year.</summary>
    public string BiosDate { get; init; } = "01/01/2025";

    /// <summary>System manufacturer.</summary>
    public string Manufacturer { get; init; } = "Aerostat";
    /// <summary>System product name.</summary>
    public string Product { get; init; } = "Aerostat Virtual Machine";
    /// <summary>System version.</summary>
    public string Version { get; init; } = "1";
    /// <summary>Serial number; empty: none.</summary>
    public string Serial { get; init; } = "";
    /// <summary>System UUID.</summary>
    public Guid Uuid { get; init; }
    /// <summary>Product family; empty: none.</summary>
    public string Family { get; init; } = "";
    /// <summary>Chassis manufacturer; empty: as the system's.</summary>
    public string ChassisManufacturer { get; init; } = "";
    /// <summary>Processor manufacturer, as CPUID says it.</summary>
    public string ProcessorManufacturer { get; init; } = "Aerostat";
    /// <summary>Processor version, as the brand string says it.</summary>
    public string ProcessorVersion { get; init; } = "Virtual processor";
    /// <summary>OEM strings (type 11); none: no such structure.</summary>
    public IReadOnlyList<string> OemStrings { get; init; } = [];
}
