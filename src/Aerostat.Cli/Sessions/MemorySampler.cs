using Aerostat.Memory;
using Aerostat.Platform;

namespace Aerostat.Cli;

/// <summary>
/// Watches the monitor's own resident memory, guest memory not counted. The host keeps no peak of that, so it is sampled.
/// </summary>
internal sealed class MemorySampler : IDisposable
{
    private static readonly TimeSpan s_period = TimeSpan.FromMilliseconds(100);

    private readonly Timer timer;
    private GuestMemory? guest;
    private long peak;

    public MemorySampler() => timer = new Timer(_ => Sample(), null, TimeSpan.Zero, s_period);

    /// <summary>From now on there is a guest whose memory does not count.</summary>
    public void Leave(GuestMemory memory) => Volatile.Write(ref guest, memory);

    /// <summary>Highest figure seen, in bytes.</summary>
    public long Peak
    {
        get
        {
            Sample();
            return Volatile.Read(ref peak);
        }
    }

    private void Sample()
    {
        // The guest goes on, and what it takes or gives back between two looks is not the monitor's.
        ulong before = Volatile.Read(ref guest)?.AllocatedBytes ?? 0;
        ProcessUsage usage = ProcessUsage.Read();
        long now = (long)usage.OwnAbove(Math.Max(before, Volatile.Read(ref guest)?.AllocatedBytes ?? 0));
        long seen;
        while (now > (seen = Volatile.Read(ref peak)) && Interlocked.CompareExchange(ref peak, now, seen) != seen)
        {
        }
    }

    public void Dispose() => timer.Dispose();
}
