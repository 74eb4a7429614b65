namespace Aerostat.Cpu;

/// <summary>What is delivered through the interrupt table: it decides about privilege checks and error codes.</summary>
internal enum EventKind
{
    /// <summary>An exception the processor found.</summary>
    HardwareException,
    /// <summary>INTR.</summary>
    ExternalInterrupt,
    Nmi,
    /// <summary>INT n.</summary>
    SoftwareInterrupt,
    /// <summary>INT3 and INTO.</summary>
    SoftwareException,
    /// <summary>INT1.</summary>
    PrivilegedSoftwareException,
}
