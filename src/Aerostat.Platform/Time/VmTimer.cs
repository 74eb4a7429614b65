namespace Aerostat.Platform;

/// <summary>A timer of a <see cref="VmClock"/>. Any thread may call any member, also from inside its own call-back.</summary>
/// <remarks>
/// What is guaranteed: call-backs of one clock run one at a time, on one thread, in the order of their deadlines, never before
/// their deadline and never while the clock is stopped. <see cref="Change"/>, <see cref="ArmAt"/>, <see cref="Cancel"/> and
/// <see cref="Dispose"/> do not wait for a call-back (the caller may hold the very lock the call-back wants): one that had
/// already been taken from the queue may therefore still be running, or start, once, after they return. A call-back must so be
/// written as "look, under my own lock, what is due by now", and not as "it is due".
/// </remarks>
public sealed class VmTimer : ITimer
{
    private readonly VmClock clock;

    internal VmTimer(VmClock clock, TimerCallback callback, object? state)
    {
        this.clock = clock;
        Callback = callback;
        State = state;
    }

    internal TimerCallback Callback { get; }

    internal object? State { get; }

    // Below: owned by the clock's lock.
    internal long Due { get; set; }

    internal long Period { get; set; }

    internal long Sequence { get; set; }

    internal int HeapIndex { get; set; } = -1;

    internal bool Disposed { get; set; }

    /// <summary>
    /// Re-arms relative to now. <paramref name="dueTime"/>: zero or less is "at once", <see cref="Timeout.InfiniteTimeSpan"/> is
    /// "never". <paramref name="period"/>: zero, less or infinite is "once"; shorter than <see cref="VmClock.MinimumPeriod"/> is
    /// lengthened to it. Periods that have already gone by when the call-back returns are skipped, not made up for.
    /// </summary>
    /// <returns>False after Dispose.</returns>
    public bool Change(TimeSpan dueTime, TimeSpan period)
    {
        long periodNs = period > TimeSpan.Zero ? VmClock.ToNanoseconds(period) : 0;
        return dueTime == Timeout.InfiniteTimeSpan
            ? clock.Arm(this, long.MaxValue, relative: false, 0)
            : clock.Arm(this, VmClock.ToNanoseconds(dueTime), relative: true, periodNs);
    }

    /// <summary>Re-arms to a point of VM time in nanoseconds, exactly; one in the past is "at once", <see cref="long.MaxValue"/> "never".</summary>
    /// <returns>False after Dispose.</returns>
    public bool ArmAt(long timestamp) => clock.Arm(this, timestamp, relative: false, 0);

    /// <summary>Disarms.</summary>
    public void Cancel() => clock.Arm(this, long.MaxValue, relative: false, 0);

    /// <summary>Disarms for good; does not wait for a running call-back.</summary>
    public void Dispose() => clock.Remove(this);

    /// <summary>Disarms for good, then waits for a running call-back (unless called from inside one).</summary>
    public ValueTask DisposeAsync()
    {
        Dispose();
        return clock.WhenNotRunning(this);
    }
}
