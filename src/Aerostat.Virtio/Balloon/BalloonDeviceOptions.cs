using Aerostat.Devices;

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

/// <summary>Names of statistics, as everything outside of this device knows them.</summary>
internal static class BalloonTags
{
    public static string NameOf(ushort tag) => (BalloonTag)tag switch
    {
        BalloonTag.SwapIn => GuestFigure.SwapIn,
        BalloonTag.SwapOut => GuestFigure.SwapOut,
        BalloonTag.MajorFaults => GuestFigure.MajorFaults,
        BalloonTag.MinorFaults => GuestFigure.MinorFaults,
        BalloonTag.FreeMemory => GuestFigure.Free,
        BalloonTag.TotalMemory => GuestFigure.Total,
        BalloonTag.AvailableMemory => GuestFigure.Available,
        BalloonTag.DiskCaches => GuestFigure.DiskCaches,
        BalloonTag.HugePageAllocations => "huge-page-allocations",
        BalloonTag.HugePageFailures => "huge-page-failures",
        BalloonTag.OomKills => GuestFigure.OomKills,
        BalloonTag.AllocationStalls => GuestFigure.AllocationStalls,
        BalloonTag.AsyncScans => "async-scans",
        BalloonTag.DirectScans => "direct-scans",
        BalloonTag.AsyncReclaims => "async-reclaims",
        BalloonTag.DirectReclaims => "direct-reclaims",
        _ => string.Create(System.Globalization.CultureInfo.InvariantCulture, $"tag-{tag}"),
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
