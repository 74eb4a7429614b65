using Aerostat.Devices;
using Aerostat.Memory;

namespace Aerostat.Virtio;

/// <summary>What every virtio device gets from its machine.</summary>
/// <param name="Memory">Guest memory.</param>
/// <param name="Log">Where complaints about the guest go; null: nowhere.</param>
/// <param name="Clock">VM time.</param>
public sealed record VirtioContext(GuestMemory Memory, IDeviceLog? Log = null, TimeProvider? Clock = null)
{
    /// <summary>
    /// For tests that try orders of events: called between the steps of a device's work, with no lock held. A device that has it has no threads of its own;
    /// its work is done by <see cref="VirtioDevice.TryRunWork"/>.
    /// </summary>
    internal Action? Step { get; init; }
}

/// <summary>
/// Complaints about one device, limited by number: the first eight, then the 16th, the 32nd and so on, each saying how many there were.
/// </summary>
internal sealed class LimitedLog(IDeviceLog? log, string device)
{
    private const long Few = 8;
    private long _count;

    /// <summary>Messages so far, written or not.</summary>
    public long Count => Volatile.Read(ref _count);

    public void Warn(string message)
    {
        long number = Interlocked.Increment(ref _count);
        if (log is null || (number > Few && !long.IsPow2(number)))
            return;
        log.Warn(device, number > Few ? $"{message} (message {number}; most are left out)" : message);
    }
}
