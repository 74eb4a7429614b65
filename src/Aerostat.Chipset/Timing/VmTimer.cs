namespace Aerostat.Chipset;

/// <summary>
/// A one-shot alarm at an absolute VM time. The device that owns it calls every member under its own lock, and treats the
/// call-back as a hint: it looks at the clock, does what is due and arms again. Late, early and stale calls are harmless.
/// </summary>
internal sealed class VmTimer
{
    // Far deadlines wait in steps, so that no TimeProvider sees a due time beyond its range.
    private const long LongestWait = 3600 * VmClock.Second;

    private readonly VmClock _clock;
    private readonly ITimer _timer;
    private long _armedFor = long.MaxValue;

    /// <summary>Makes an alarm that is not set.</summary>
    /// <param name="clock">VM time.</param>
    /// <param name="callback">Called on the timer thread, without any lock.</param>
    public VmTimer(VmClock clock, Action callback)
    {
        _clock = clock;
        _timer = clock.Provider.CreateTimer(
            static state => ((Action)state!)(), callback, Timeout.InfiniteTimeSpan, Timeout.InfiniteTimeSpan);
    }

    /// <summary>Sets the alarm, replacing an earlier setting. <see cref="long.MaxValue"/>: never.</summary>
    public void Arm(long deadline)
    {
        if (deadline == _armedFor)
            return;
        if (deadline == long.MaxValue)
        {
            Disarm();
            return;
        }
        _armedFor = deadline;
        long wait = Math.Clamp(deadline - _clock.Now, 0, LongestWait);
        // TimeSpan counts 100 ns: round up, or the call would come early.
        _timer.Change(new TimeSpan((wait + 99) / 100), Timeout.InfiniteTimeSpan);
    }

    /// <summary>Clears the alarm. A call that is already on its way may still arrive.</summary>
    public void Disarm()
    {
        if (_armedFor == long.MaxValue)
            return;
        _armedFor = long.MaxValue;
        _timer.Change(Timeout.InfiniteTimeSpan, Timeout.InfiniteTimeSpan);
    }

    /// <summary>To be called first by the owner's call-back: the alarm is spent.</summary>
    public void Expired() => _armedFor = long.MaxValue;
}
