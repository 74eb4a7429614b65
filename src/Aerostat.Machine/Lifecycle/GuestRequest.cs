namespace Aerostat.Machine;

/// <summary>What a guest asked of its machine through a device.</summary>
/// <param name="Kind">PoweredOff, Reset or DebugExit; null: to be suspended to RAM.</param>
/// <param name="Code">With debug-exit: the exit status, (value written &lt;&lt; 1) | 1.</param>
internal readonly record struct GuestRequest(MachineExitKind? Kind, int Code = 0)
{
    /// <summary>Suspend to RAM (ACPI S3).</summary>
    public static GuestRequest Suspend => new(null);
}
