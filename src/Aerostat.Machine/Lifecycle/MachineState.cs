namespace Aerostat.Machine;

/// <summary>Where a machine is in its life.</summary>
public enum MachineState
{
    /// <summary>Built and loaded; no instruction has run.</summary>
    Created,
    /// <summary>VM time runs.</summary>
    Running,
    /// <summary>VM time stands still.</summary>
    Paused,
    /// <summary>Suspended to RAM by the guest (ACPI S3): VM time runs, vCPUs do not, until an event wakes the machine.</summary>
    Suspended,
    /// <summary>Over: <see cref="VirtualMachine.Exit"/> says how.</summary>
    Ended,
}
