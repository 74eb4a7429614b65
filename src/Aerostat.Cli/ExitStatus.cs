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
}
