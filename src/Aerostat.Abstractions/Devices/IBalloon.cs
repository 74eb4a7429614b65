namespace Aerostat.Devices;

/// <summary>
/// A way to take memory from a running guest and to give it back, whatever the guest's driver speaks. Any device of the board that implements
/// this is found by the machine, and then driven by <c>aerostat balloon</c> and by the memory policy. Any thread may call any member, while the
/// machine is there.
/// </summary>
public interface IBalloon
{
    /// <summary>What the guest's driver speaks: "virtio", "vmware", "hyperv".</summary>
    string Dialect { get; }

    /// <summary>Asks the guest for memory, or gives it back. The guest takes its time: <see cref="GetReport"/> says how far it is.</summary>
    /// <param name="bytes">What the host wants to have in all; rounded down to what the dialect counts in.</param>
    /// <exception cref="ArgumentOutOfRangeException">The guest does not have that much; nothing was changed.</exception>
    void SetTarget(ulong bytes);

    /// <summary>Asks the guest for statistics, where the dialect has them to be asked for; they come when it gets round to it.</summary>
    void RequestStatistics();

    /// <summary>How things stand. Costs next to nothing.</summary>
    BalloonReport GetReport();
}

/// <summary>Why a balloon is not of the size that is wanted.</summary>
public enum BalloonReason
{
    /// <summary>It is.</summary>
    Reached,
    /// <summary>The guest has no driver for it, or not yet.</summary>
    NoDriver,
    /// <summary>The driver is at work.</summary>
    Working,
    /// <summary>The driver has made no progress for some seconds: the guest has no memory to give.</summary>
    Stalled,
    /// <summary>The guest took memory back because it ran out (deflate on OOM), and has not given it again.</summary>
    DeflatedOnOom,
    /// <summary>The driver broke the rules, and the device waits for its reset.</summary>
    DriverFailed,
    /// <summary>The driver said that it will not.</summary>
    Refused,
    /// <summary>The guest has given the memory, but the host cannot take it: it is pinned, or what is behind it cannot be discarded.</summary>
    NotDiscarded,
}

/// <summary>Words for <see cref="BalloonReason"/>.</summary>
public static class BalloonReasons
{
    /// <summary>The stable name that programs see.</summary>
    public static string Code(this BalloonReason reason) => reason switch
    {
        BalloonReason.Reached => "reached",
        BalloonReason.NoDriver => "no-driver",
        BalloonReason.Working => "working",
        BalloonReason.Stalled => "stalled",
        BalloonReason.DeflatedOnOom => "deflated-on-oom",
        BalloonReason.Refused => "refused",
        BalloonReason.NotDiscarded => "not-discarded",
        _ => "driver-failed",
    };

    /// <summary>The reason for people.</summary>
    /// <param name="reason">The reason.</param>
    /// <param name="driver">Name of the guest's driver, for the case that there is none.</param>
    public static string Explain(this BalloonReason reason, string driver) => reason switch
    {
        BalloonReason.Reached => "the target is reached",
        BalloonReason.NoDriver => $"no driver in the guest (Linux: {driver})",
        BalloonReason.Working => "the guest is at work",
        BalloonReason.Stalled => "the guest makes no progress: it has no memory to give, so ask for less",
        BalloonReason.DeflatedOnOom => "the guest ran out of memory and took some back",
        BalloonReason.Refused => "the guest refuses to give more",
        BalloonReason.NotDiscarded => "the guest has given it, but the host cannot discard all of it (pinned for a transfer, or refused by the host)",
        _ => "the driver in the guest broke the rules; the device waits for its reset",
    };
}

/// <summary>A balloon at one moment.</summary>
/// <param name="TargetBytes">What the host wants back.</param>
/// <param name="ActualBytes">What the guest has given, by our own count.</param>
/// <param name="GuestActualBytes">What the driver says it has given; the same as <paramref name="ActualBytes"/> in dialects that do not say.</param>
/// <param name="Reason">Why these differ.</param>
/// <param name="Explanation">The reason for people.</param>
/// <param name="RefusedPages">Pages of 4 KiB given by the guest that the host could not take back since the start (pinned, or refused by the host).</param>
/// <param name="ReportedBytes">Bytes of free pages that were reported and given back since the start.</param>
/// <param name="Statistics">What the guest says of its memory.</param>
public sealed record BalloonReport(
    ulong TargetBytes, ulong ActualBytes, ulong GuestActualBytes, BalloonReason Reason, string Explanation, long RefusedPages, ulong ReportedBytes,
    BalloonStatistics Statistics);

/// <summary>The guest's last statistics.</summary>
/// <param name="Values">By name (<see cref="GuestFigure"/>); what has no name as "tag-N". Sizes are bytes.</param>
/// <param name="Age">VM time since they came; null: the guest has never sent any.</param>
/// <param name="Pending">How long the guest has owed an answer; null: nothing is owed.</param>
public sealed record BalloonStatistics(IReadOnlyDictionary<string, ulong> Values, TimeSpan? Age, TimeSpan? Pending)
{
    /// <summary>Of a guest that has never said anything.</summary>
    public static BalloonStatistics None { get; } = new(new Dictionary<string, ulong>(), null, null);

    /// <summary>One value, or null.</summary>
    public ulong? this[string name] => Values.TryGetValue(name, out ulong value) ? value : null;
}

/// <summary>Names of what guests say of their memory.</summary>
public static class GuestFigure
{
    /// <summary>Bytes nobody uses.</summary>
    public const string Free = "free";
    /// <summary>Bytes in all; whether the balloon is part of them depends on the dialect.</summary>
    public const string Total = "total";
    /// <summary>Bytes that could be had without swapping.</summary>
    public const string Available = "available";
    /// <summary>Bytes that programs were promised.</summary>
    public const string Committed = "committed";
    /// <summary>Bytes swapped in, since boot.</summary>
    public const string SwapIn = "swap-in";
    /// <summary>Bytes swapped out, since boot.</summary>
    public const string SwapOut = "swap-out";
    /// <summary>Page faults that had to wait for a disk, since boot.</summary>
    public const string MajorFaults = "major-faults";
    /// <summary>Other page faults, since boot.</summary>
    public const string MinorFaults = "minor-faults";
    /// <summary>Bytes of file contents.</summary>
    public const string DiskCaches = "disk-caches";
    /// <summary>Programs killed for want of memory, since boot.</summary>
    public const string OomKills = "oom-kills";
    /// <summary>Allocations that had to wait for memory, since boot.</summary>
    public const string AllocationStalls = "allocation-stalls";
}
