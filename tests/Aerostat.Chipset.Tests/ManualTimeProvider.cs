namespace Aerostat.Chipset.Tests;

/// <summary>VM time that moves only when a test moves it, a nanosecond at a time, and calls timers in order.</summary>
internal sealed class ManualTimeProvider(long start = 0) : TimeProvider
{
    private readonly List<ManualTimer> _timers = [];

    public long Now { get; private set; } = start;

    public override long TimestampFrequency => 1_000_000_000;

    public override long GetTimestamp() => Now;

    /// <summary>How many timers wait for something.</summary>
    public int Armed => _timers.Count(t => t.Due != long.MaxValue);

    /// <summary>How often a timer has called.</summary>
    public int Calls { get; private set; }

    public override ITimer CreateTimer(TimerCallback callback, object? state, TimeSpan dueTime, TimeSpan period)
    {
        var timer = new ManualTimer(this, callback, state);
        timer.Change(dueTime, period);
        _timers.Add(timer);
        return timer;
    }

    public void Advance(long nanoseconds)
    {
        long end = Now + nanoseconds;
        while (true)
        {
            ManualTimer? next = null;
            foreach (ManualTimer timer in _timers)
            {
                if (timer.Due <= end && (next is null || timer.Due < next.Due))
                    next = timer;
            }
            if (next is null)
                break;
            Now = Math.Max(Now, next.Due);
            next.Due = long.MaxValue;
            Calls++;
            next.Fire();
        }
        Now = end;
    }

    public void AdvanceMicroseconds(long microseconds) => Advance(microseconds * 1_000);

    public void AdvanceMilliseconds(long milliseconds) => Advance(milliseconds * 1_000_000);

    /// <summary>Moves time without calling anybody: the timer thread is late.</summary>
    public void Lag(long nanoseconds) => Now += nanoseconds;

    private sealed class ManualTimer(ManualTimeProvider owner, TimerCallback callback, object? state) : ITimer
    {
        public long Due { get; set; } = long.MaxValue;

        public void Fire() => callback(state);

        public bool Change(TimeSpan dueTime, TimeSpan period)
        {
            Assert.Equal(Timeout.InfiniteTimeSpan, period);
            Due = dueTime == Timeout.InfiniteTimeSpan ? long.MaxValue : owner.Now + dueTime.Ticks * 100;
            return true;
        }

        public void Dispose() => Due = long.MaxValue;

        public ValueTask DisposeAsync()
        {
            Dispose();
            return default;
        }
    }
}
