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
    /// <summary>Over: <see cref="VirtualMachine.Exit"/> says how.</summary>
    Ended,
}
