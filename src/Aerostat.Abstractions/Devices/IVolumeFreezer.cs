namespace Aerostat.Devices;

/// <summary>
/// A way to have a guest freeze its file systems, so that what is on its disks is whole, and to thaw them, whatever the guest's daemon speaks. One
/// transaction at a time; a deadline on every wait, in VM time; a thaw on every path. Any thread may call any member, while the machine is there.
/// </summary>
public interface IVolumeFreezer
{
    /// <summary>What the guest's daemon speaks: "hyperv", "vmware".</summary>
    string Dialect { get; }

    /// <summary>Where the host stands.</summary>
    FreezePhase Phase { get; }

    /// <summary>
    /// Told of each change of <see cref="Phase"/>, of <see cref="FreezePhase.Freezing"/> before the guest is asked. On a thread that the guest's answer
    /// waits for: briefly.
    /// </summary>
    event Action<FreezePhase>? PhaseChanged;

    /// <summary>
    /// Somebody who is no more may have left the guest's file systems frozen: it is asked to thaw them as soon as it can be asked, unless its daemon does so by itself.
    /// </summary>
    void ThawLeftovers();

    /// <summary>Freezes the guest's file systems; the task completes when they are frozen. They stay so until <see cref="ThawAsync"/> or the watchdog.</summary>
    /// <exception cref="FreezeException">They could not be frozen; they are not, or are being thawed again.</exception>
    Task FreezeAsync(FreezeOptions options);

    /// <summary>Thaws the guest's file systems; the task completes when the guest has confirmed it.</summary>
    /// <exception cref="FreezeException">Nothing is frozen, or the guest does not confirm.</exception>
    Task<FreezeResult> ThawAsync();
}

/// <summary>Where the host stands with the guest's file systems.</summary>
public enum FreezePhase
{
    /// <summary>Nothing is under way.</summary>
    Idle,
    /// <summary>The guest is asked whether it can.</summary>
    Probing,
    /// <summary>The guest is writing out what is dirty, and holds writers up.</summary>
    Freezing,
    /// <summary>Nothing changes on the guest's disks.</summary>
    Frozen,
    /// <summary>The guest has been told to go on.</summary>
    Thawing,
    /// <summary>The guest does not confirm that it goes on; what made it freeze has been taken away from it, so that it lets go.</summary>
    Failed,
}

/// <summary>The guest's file systems could not be frozen or thawed; the message says why, for people.</summary>
public sealed class FreezeException : Exception
{
    /// <summary>Says why.</summary>
    public FreezeException(string message)
        : base(message)
    {
    }
}

/// <summary>How long the host waits.</summary>
public sealed record FreezeOptions
{
    /// <summary>For the answer to the freeze: the guest may have much to write.</summary>
    public TimeSpan Deadline { get; init; } = TimeSpan.FromSeconds(60);

    /// <summary>How long the guest may stay frozen before the watchdog thaws it.</summary>
    public TimeSpan Watchdog { get; init; } = TimeSpan.FromSeconds(30);
}

/// <summary>How a freeze went.</summary>
/// <param name="FreezeTime">From the host's request to the guest's answer.</param>
/// <param name="FrozenTime">From the answer to the freeze to the answer to the thaw.</param>
/// <param name="ByWatchdog">Whether the watchdog ended it, or something else that was not the one who asked for it: what was copied may have changed meanwhile.</param>
public sealed record FreezeResult(TimeSpan FreezeTime, TimeSpan FrozenTime, bool ByWatchdog);
