using Aerostat.Control;

namespace Aerostat.Cli;

/// <summary>Exit statuses that do not come from a machine's end (<see cref="Machine.MachineExit.ExitStatus"/>).</summary>
internal static class ExitStatus
{
    /// <summary>Done.</summary>
    public const int Success = 0;

    /// <summary>The command line cannot be understood or asks for the impossible.</summary>
    public const int Usage = 2;

    /// <summary>A demo, benchmark or soak did not get to its end, though the machine did nothing wrong.</summary>
    public const int Incomplete = 1;

    /// <summary>The monitor failed.</summary>
    public const int Failure = 4;

    /// <summary>The time for it ran out.</summary>
    public const int TimedOut = 124;

    /// <summary>A running machine, in its present state, does not do what it was asked.</summary>
    public const int Refused = 1;

    /// <summary>What a request that was not carried out comes to.</summary>
    public static int Of(ControlErrorKind kind) => kind switch
    {
        ControlErrorKind.Usage or ControlErrorKind.NotFound => Usage,
        ControlErrorKind.Refused => Refused,
        ControlErrorKind.Timeout => TimedOut,
        _ => Failure,
    };
}
