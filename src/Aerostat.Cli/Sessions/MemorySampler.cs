using Aerostat.Platform;

namespace Aerostat.Cli;

/// <summary>
/// Watches the monitor's own resident memory, guest memory not counted. The host keeps no peak of that, so it is sampled.
/// </summary>
internal sealed class MemorySampler : IDisposable
{
    private static readonly TimeSpan s_period = TimeSpan.FromMilliseconds(100);

    private readonly Timer timer;
    private long peak;

    public MemorySampler() => timer = new Timer(_ => Sample(), null, TimeSpan.Zero, s_period);

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
        long now = (long)ProcessUsage.Read().OwnBytes;
        long seen;
        while (now > (seen = Volatile.Read(ref peak)) && Interlocked.CompareExchange(ref peak, now, seen) != seen)
        {
        }
    }

    public void Dispose() => timer.Dispose();
}
