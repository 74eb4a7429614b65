namespace Aerostat.Guest.Drivers;

/// <summary>Free page reporting (virtio 1.2, 5.5.6.7): free blocks of at least 2 MiB are named to the host once, at most 32 and half of what is free at a time, and are out of use until it has seen them.</summary>
public sealed class BalloonReporting(DriverPlatform platform, DriverQueue queue)
{
    private const int LeastOrder = 9, AtOnce = 32;
    private const ulong Pause = 500_000_000;

    private readonly ulong[] addresses = new ulong[AtOnce];
    private readonly uint[] lengths = new uint[AtOnce];
    private readonly int[] orders = new int[AtOnce];
    private DriverQueue reports = queue;
    private int count;
    private ulong nextAt;

    public ulong ReportedBytes { get; private set; }

    public void Restart(DriverQueue anew)
    {
        reports = anew;
        Abandon();
    }

    /// <summary>The host has forgotten the report that is under way.</summary>
    public void Abandon() => Return();

    /// <summary>Blocks are with the host, and nobody's.</summary>
    public bool IsUnderWay => count > 0;

    /// <summary>Takes a report back that the host has seen, and makes the next one.</summary>
    /// <param name="begin">False: no other one for now, for free page hints are being given, and what is with the host cannot be named by them.</param>
    public void Service(bool begin = true)
    {
        while (reports.TryTake(out _))
        {
            for (int i = 0; i < count; i++)
                ReportedBytes += lengths[i];
            Return();
        }
        if (!begin || count > 0 || reports.IsBroken || platform.Nanoseconds < nextAt)
            return;
        // What is being named is not there for anybody: half of what is free stays.
        ulong kept = platform.FreePageCount / 2;
        while (count < AtOnce && platform.FreePageCount > kept)
        {
            ulong block = platform.TakeUnreported(LeastOrder, out int order);
            if (block == 0)
                break;
            addresses[count] = block;
            orders[count] = order;
            lengths[count++] = (uint)DriverPlatform.PageSize << order;
        }
        if (count == 0)
        {
            nextAt = platform.Nanoseconds + Pause;
            return;
        }
        if (reports.AddParts(0, addresses, lengths, 0, count))
            reports.Kick();
        else
            Return();
    }

    private void Return()
    {
        while (count > 0)
        {
            count--;
            platform.ReturnReported(addresses[count], orders[count]);
        }
    }
}
