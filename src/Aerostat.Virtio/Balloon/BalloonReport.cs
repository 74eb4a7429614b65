namespace Aerostat.Virtio;

/// <summary>Statistics that a balloon driver reports (virtio 1.2, 5.5.6.3, and what Linux added since). Others are kept by their number.</summary>
public enum BalloonTag : ushort
{
    /// <summary>Bytes swapped in.</summary>
    SwapIn = 0,
    /// <summary>Bytes swapped out.</summary>
    SwapOut = 1,
    /// <summary>Major page faults.</summary>
    MajorFaults = 2,
    /// <summary>Minor page faults.</summary>
    MinorFaults = 3,
    /// <summary>Bytes nobody uses.</summary>
    FreeMemory = 4,
    /// <summary>Bytes in all, less the balloon unless it deflates on OOM.</summary>
    TotalMemory = 5,
    /// <summary>Bytes that could be had without swapping.</summary>
    AvailableMemory = 6,
    /// <summary>Bytes of file contents.</summary>
    DiskCaches = 7,
    /// <summary>Huge pages taken.</summary>
    HugePageAllocations = 8,
    /// <summary>Huge pages that could not be taken.</summary>
    HugePageFailures = 9,
    /// <summary>Processes killed for want of memory.</summary>
    OomKills = 10,
    /// <summary>Allocations that had to wait.</summary>
    AllocationStalls = 11,
    /// <summary>Bytes scanned in the background.</summary>
    AsyncScans = 12,
    /// <summary>Bytes scanned by who wanted memory.</summary>
    DirectScans = 13,
    /// <summary>Bytes reclaimed in the background.</summary>
    AsyncReclaims = 14,
    /// <summary>Bytes reclaimed by who wanted memory.</summary>
    DirectReclaims = 15,
}

/// <summary>The guest's last statistics.</summary>
/// <param name="Values">By tag; unknown tags as well.</param>
/// <param name="Age">VM time since they came; null: the guest has never sent any.</param>
/// <param name="Pending">How long the guest has owed an answer; null: nothing is owed.</param>
public sealed record BalloonStatistics(IReadOnlyDictionary<ushort, ulong> Values, TimeSpan? Age, TimeSpan? Pending)
{
    /// <summary>One value, or null.</summary>
    public ulong? this[BalloonTag tag] => Values.TryGetValue((ushort)tag, out ulong value) ? value : null;
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
}

/// <summary>A balloon at one moment.</summary>
/// <param name="TargetBytes">What the host wants back.</param>
/// <param name="ActualBytes">What the guest has given, by our own count.</param>
/// <param name="GuestActualBytes">What the driver says it has given.</param>
/// <param name="Reason">Why these differ.</param>
/// <param name="RefusedPages">Pages given by the guest that the host could not take back since the start (pinned, or refused by the host).</param>
/// <param name="ReportedBytes">Bytes of free pages that were reported and given back since the start.</param>
/// <param name="Statistics">What the guest says of its memory.</param>
public sealed record BalloonReport(
    ulong TargetBytes, ulong ActualBytes, ulong GuestActualBytes, BalloonReason Reason, long RefusedPages, ulong ReportedBytes, BalloonStatistics Statistics)
{
    /// <summary>The reason in words.</summary>
    public string Explanation => Reason switch
    {
        BalloonReason.Reached => "the target is reached",
        BalloonReason.NoDriver => "no driver in the guest (Linux: virtio_balloon)",
        BalloonReason.Working => "the guest is at work",
        BalloonReason.Stalled => "the guest makes no progress: it has no memory to give, so ask for less",
        BalloonReason.DeflatedOnOom => "the guest ran out of memory and took some back",
        _ => "the driver in the guest broke the rules; the device waits for its reset",
    };
}

/// <summary>What a balloon is made from.</summary>
public sealed record BalloonDeviceOptions
{
    /// <summary>Bytes that the host wants back at first; a multiple of 4096 is taken of it.</summary>
    public ulong TargetBytes { get; init; }

    /// <summary>VM time between two requests for statistics; zero: only when asked.</summary>
    public TimeSpan StatisticsInterval { get; init; }

    /// <summary>The guest may take memory back when it runs out.</summary>
    public bool DeflateOnOom { get; init; }

    /// <summary>Free page hints are offered.</summary>
    public bool Hinting { get; init; } = true;

    /// <summary>Free page reporting is offered.</summary>
    public bool Reporting { get; init; } = true;

    /// <summary>The packed ring is offered.</summary>
    public bool Packed { get; init; }
}

/// <summary>Takes free page hints. Called on the balloon's thread, without locks.</summary>
public interface IFreePageHints
{
    /// <summary>
    /// The guest said of a range that its contents do not matter unless it has written there since the hinting was started. It may have: whoever
    /// skips the range must have watched writes since then, and must look.
    /// </summary>
    void Hint(Memory.GuestAddress address, ulong length);

    /// <summary>The guest has named all it wanted to; with <paramref name="complete"/> false it stopped because of a reset or an end from outside.</summary>
    void Finished(bool complete);
}
