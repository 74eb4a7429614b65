namespace Aerostat.Snapshots;

/// <summary>How a snapshot is taken.</summary>
public sealed record SnapshotOptions
{
    /// <summary>Only what has changed since this machine's last snapshot, or the one it was restored from.</summary>
    public bool Differential { get; init; }

    /// <summary>
    /// Whether writes are logged from now on, so that the next snapshot can be a differential one. Costs the guest a slow write to each page
    /// that it writes, once.
    /// </summary>
    public bool Track { get; init; } = true;

    /// <summary>Whether everything is on the disk when the snapshot appears. Without it a crash of the host, not of this program, may leave it damaged.</summary>
    public bool Durable { get; init; } = true;

    /// <summary>
    /// Whether a machine that runs goes on while most of its memory is copied, and stands still for the rest. Without it, it stands still for all.
    /// </summary>
    public bool Live { get; init; } = true;

    /// <summary>Whether a running guest is asked for its free pages first, which are then not saved.</summary>
    public bool Hints { get; init; } = true;

    /// <summary>How long the guest may take to name them.</summary>
    public TimeSpan HintLimit { get; init; } = TimeSpan.FromSeconds(5);

    /// <summary>
    /// Called before the machine is paused, for a last word with the guest. What it throws ends the attempt.
    /// </summary>
    public Func<Task>? BeforePause { get; init; }
}

/// <summary>What was written.</summary>
/// <param name="Directory">Where it is.</param>
/// <param name="Id">Which it is.</param>
/// <param name="DataBytes">Bytes of guest memory in it.</param>
/// <param name="ZeroBytes">Bytes of guest memory that are zeros, and take nothing.</param>
/// <param name="HintedBytes">Bytes of guest memory that do not matter to the guest, or that it has given back.</param>
/// <param name="UnchangedBytes">Bytes of guest memory that are as in the snapshot before.</param>
/// <param name="Paused">How long the guest stood still.</param>
/// <param name="Elapsed">How long it took altogether.</param>
/// <param name="Hints">What came of asking the guest for its free pages.</param>
/// <param name="Rounds">How often memory was copied, the last time included, when the guest stood still.</param>
/// <param name="PausedBytes">Bytes of memory that were looked at while it stood still.</param>
public sealed record SnapshotResult(
    string Directory, Guid Id, ulong DataBytes, ulong ZeroBytes, ulong HintedBytes, ulong UnchangedBytes, TimeSpan Paused, TimeSpan Elapsed,
    HintReport Hints, int Rounds, ulong PausedBytes);
