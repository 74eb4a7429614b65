using System.Diagnostics;

namespace Aerostat.Storage;

/// <summary>
/// Several disks as they were at one moment. Everything that takes time is done before; the moment itself waits for the writes that are under way and then
/// costs microseconds, whatever the size of the disks.
/// </summary>
public sealed class PointInTime : IDisposable
{
    private readonly IReadOnlyList<TrackedDisk> disks;
    private readonly Sidecar sidecar;
    private int ended;

    /// <summary>Prepares the views.</summary>
    /// <param name="disks">The disks, each with the epoch whose later changes are wanted; null: all of it.</param>
    /// <param name="folder">Where old blocks go when there are too many for memory.</param>
    /// <param name="memoryBytes">How many bytes of old blocks may stay in memory.</param>
    public PointInTime(IReadOnlyList<(TrackedDisk Disk, uint? Since)> disks, string folder, long memoryBytes)
    {
        ArgumentNullException.ThrowIfNull(disks);
        this.disks = [.. disks.Select(d => d.Disk)];
        sidecar = new Sidecar(folder, memoryBytes);
        Views = [.. disks.Select(d => new DiskView(d.Disk, sidecar, d.Since))];
    }

    /// <summary>The disks as they were, in the same order.</summary>
    public IReadOnlyList<DiskView> Views { get; }

    /// <summary>Bytes of old blocks that did not fit into memory at one time.</summary>
    public long SpilledBytes => sidecar.FileBytes;

    /// <summary>This is the moment. Once.</summary>
    /// <returns>How long writers were held up, the wait for those under way included.</returns>
    public TimeSpan Take()
    {
        long start = Stopwatch.GetTimestamp();
        int held = 0;
        try
        {
            foreach (TrackedDisk disk in disks)
            {
                disk.Hold();
                held++;
            }
            foreach (DiskView view in Views)
                view.Begin();
        }
        finally
        {
            for (int i = 0; i < held; i++)
                disks[i].Release();
        }
        return Stopwatch.GetElapsedTime(start);
    }

    /// <summary>Gives a point up that was taken: nothing remains of it on the disks.</summary>
    public void Dispose()
    {
        if (Interlocked.Exchange(ref ended, 1) != 0)
            return;
        foreach (DiskView view in Views)
        {
            view.Fail("the copy was given up");
            view.End();
        }
        sidecar.Dispose();
    }
}
