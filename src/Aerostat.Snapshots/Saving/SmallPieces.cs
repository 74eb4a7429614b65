using System.Diagnostics;
using Aerostat.Devices;
using Aerostat.Machine;
using Aerostat.Virtio;

namespace Aerostat.Snapshots;

/// <summary>
/// Has a guest give the host, for a moment, what it has free in small pieces. Linux names only free blocks of 4 MiB; what is free around single pages in use, some tens
/// of MiB when much memory was used and let go, would be saved with whatever was in it last. A balloon is filled page by page, and the kernel takes pages
/// out of the smallest pieces that it has: what went through the balloon reads as zeros afterwards.
/// </summary>
internal static class SmallPieces
{
    // At most that part of all memory, which is more than was ever seen in small pieces, and of what nobody uses.
    private const ulong Share = 16, ShareOfFree = 4;
    // Less is not worth the trouble.
    private const ulong Least = 1 << 20;

    private static readonly TimeSpan s_look = TimeSpan.FromMilliseconds(2);

    /// <summary>Asks, and waits until the guest has its pages again, or does not get on with it.</summary>
    /// <param name="machine">Whose guest.</param>
    /// <param name="balloon">Its balloon.</param>
    /// <param name="limit">How long each of three steps may take.</param>
    /// <param name="cancellation">Ends it; the guest gets its pages all the same.</param>
    /// <returns>Bytes that went through the balloon.</returns>
    public static async Task<ulong> EmptyAsync(VirtualMachine machine, VirtioBalloon balloon, TimeSpan limit, CancellationToken cancellation)
    {
        // One that is on its way somewhere is left alone.
        BalloonReport before = balloon.GetReport();
        if (before.Reason != BalloonReason.Reached)
            return 0;
        balloon.RequestStatistics();
        if (!await WaitAsync(machine, () => balloon.GetReport().Statistics.Age < limit, limit, cancellation).ConfigureAwait(false)
            || balloon.GetReport().Statistics[GuestFigure.Free] is not { } free)
            return 0;
        ulong bytes = Math.Min(free / ShareOfFree, machine.Memory.TotalBytes / Share), target = before.TargetBytes + bytes;
        if (bytes < Least || target > machine.Memory.TotalBytes)
            return 0;
        balloon.SetTarget(target);
        target = balloon.GetReport().TargetBytes;
        ulong most = 0;
        try
        {
            await WaitAsync(
                machine,
                () =>
                {
                    BalloonReport now = balloon.GetReport();
                    most = Math.Max(most, now.ActualBytes);
                    return now.ActualBytes >= target || now.TargetBytes != target;
                },
                limit,
                cancellation).ConfigureAwait(false);
            // Before the guest has them again.
            machine.Memory.Settle();
        }
        finally
        {
            // Unless somebody else wants something by now.
            if (balloon.GetReport().TargetBytes == target)
                balloon.SetTarget(before.TargetBytes);
        }
        await WaitAsync(machine, () => balloon.GetReport().ActualBytes <= before.ActualBytes, limit, cancellation).ConfigureAwait(false);
        return most - Math.Min(most, before.ActualBytes);
    }

    private static async Task<bool> WaitAsync(VirtualMachine machine, Func<bool> reached, TimeSpan limit, CancellationToken cancellation)
    {
        for (Stopwatch elapsed = Stopwatch.StartNew(); ;)
        {
            if (reached())
                return true;
            if (machine.State != MachineState.Running || elapsed.Elapsed > limit)
                return false;
            await Task.Delay(s_look, cancellation).ConfigureAwait(false);
        }
    }
}
