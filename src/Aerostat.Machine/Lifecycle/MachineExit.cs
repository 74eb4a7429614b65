namespace Aerostat.Machine;

/// <summary>How a machine's run ended.</summary>
public enum MachineExitKind
{
    /// <summary>The guest powered off.</summary>
    PoweredOff,
    /// <summary>The guest asked for a reset, and <see cref="MachineOptions.NoReboot"/> is set.</summary>
    Reset,
    /// <summary>The guest wrote to the debug-exit port.</summary>
    DebugExit,
    /// <summary>Stopped from outside.</summary>
    Stopped,
    /// <summary>The guest crashed the machine: triple fault, failed entry.</summary>
    Crashed,
    /// <summary>The monitor itself failed.</summary>
    VmmFailed,
    /// <summary>The time given to it ran out.</summary>
    TimedOut,
}

/// <summary>The end of a run.</summary>
/// <param name="Kind">How.</param>
/// <param name="Code">With <see cref="MachineExitKind.DebugExit"/>: (value written &lt;&lt; 1) | 1.</param>
/// <param name="Report">With a crash or failure: what is known, in lines for people.</param>
public sealed record MachineExit(MachineExitKind Kind, int Code = 0, string? Report = null)
{
    /// <summary>The kind's stable name: "powered-off", "crashed", ...</summary>
    public string KindName => Kind switch
    {
        MachineExitKind.PoweredOff => "powered-off",
        MachineExitKind.Reset => "reset",
        MachineExitKind.DebugExit => "debug-exit",
        MachineExitKind.Stopped => "stopped",
        MachineExitKind.Crashed => "crashed",
        MachineExitKind.TimedOut => "timed-out",
        _ => "vmm-failed",
    };

    /// <summary>One line that goes on from the machine's name.</summary>
    public string Summary => Kind switch
    {
        MachineExitKind.PoweredOff => "was powered off by its guest",
        MachineExitKind.Reset => "ended because its guest asked for a reset",
        MachineExitKind.DebugExit => $"ended by debug-exit with status {ExitStatus}",
        MachineExitKind.Stopped => "was stopped",
        MachineExitKind.Crashed => $"was crashed by its guest: {Report?.Split('\n')[0]}",
        MachineExitKind.TimedOut => "was stopped because its time ran out",
        _ => $"ended because the monitor failed: {Report?.Split('\n')[0]}",
    };

    /// <summary>The exit status of the process that ran the machine.</summary>
    public int ExitStatus => Kind switch
    {
        MachineExitKind.PoweredOff or MachineExitKind.Reset or MachineExitKind.Stopped => 0,
        MachineExitKind.DebugExit => Code & 0xFF,
        MachineExitKind.Crashed => 3,
        MachineExitKind.TimedOut => 124,
        _ => 4,
    };
}
