using System.Diagnostics;

namespace Aerostat.Platform;

/// <summary>
/// VM time: nanoseconds that start at 0, run only between <see cref="Start"/> and <see cref="Stop"/>, and drive timers with
/// microsecond accuracy.
/// </summary>
/// <remarks>
/// .NET's own timers are exact to a millisecond; guests ask for tens of microseconds. Here one thread sleeps in read(2) of a
/// timerfd, and whoever arms an earlier deadline moves the timerfd without waking that thread. A deadline that moves later
/// leaves the timerfd alone, at the price of one idle wake-up, so that re-arming costs a lock and a few stores. With no timer
/// armed, nothing runs.
/// <para>Time does not pass while the host is suspended (CLOCK_MONOTONIC), as it does not while the machine is paused.</para>
/// </remarks>
public sealed class VmClock : TimeProvider, IDisposable
{
    /// <summary>Shortest period of a periodic timer: what a guest may cost the host.</summary>
    public static readonly TimeSpan MinimumPeriod = TimeSpan.FromMicroseconds(10);

    private readonly DateTimeOffset bootTime;
    private readonly Lock gate = new();
    private readonly TimerHeap heap = new();
    private readonly TimerDescriptor descriptor = new();

    // Null only for the instant of a change, when readers wait: a reader must never see a time later than the one at which
    // the clock is then frozen.
    private Phase? phase;

    // All below under the gate.
    private Thread? thread;
    private VmTimer? current;
    private long sequence;
    private long programmed = long.MaxValue;
    private int timers;
    private long currentDue;
    private Thread? dispatcher;
    private bool disposed;

    // When the first call-back is due that has not returned yet. Written under the gate, read by anybody.
    private long nextDue = long.MaxValue;

    /// <summary>Makes a stopped clock.</summary>
    /// <param name="bootTime">Wall-clock time at VM time 0.</param>
    /// <param name="timestamp">VM time to start from, in nanoseconds: not 0 for a restored machine.</param>
    public VmClock(DateTimeOffset bootTime, long timestamp = 0)
    {
        if (Stopwatch.Frequency != 1_000_000_000)
            throw new PlatformNotSupportedException("the host's monotonic clock does not count nanoseconds");
        this.bootTime = bootTime;
        phase = new Phase(Running: false, timestamp);
    }

    /// <summary>Makes a stopped clock whose time 0 is the present wall-clock time.</summary>
    public VmClock()
        : this(DateTimeOffset.UtcNow)
    {
    }

    /// <summary>Called on the timer thread with what a call-back threw; without it such an exception ends the process.</summary>
    public Action<Exception>? CallbackFailed { get; set; }

    /// <summary>
    /// VM time for which the first call-back is armed that has not yet been made and returned; <see cref="long.MaxValue"/>: none.
    /// </summary>
    public long NextDue => Volatile.Read(ref nextDue);

    /// <summary>Whether time runs.</summary>
    public bool IsRunning => CurrentPhase().Running;

    /// <summary>10^9: timestamps are nanoseconds.</summary>
    public override long TimestampFrequency => 1_000_000_000;

    /// <summary>VM time has no time zone.</summary>
    public override TimeZoneInfo LocalTimeZone => TimeZoneInfo.Utc;

    /// <summary>VM time in nanoseconds. Never goes back, except by <see cref="SetTimestamp"/>.</summary>
    public override long GetTimestamp()
    {
        Phase? p = Volatile.Read(ref phase);
        if (p is { Running: true })
        {
            long time = Stopwatch.GetTimestamp() - p.Origin;
            if (ReferenceEquals(Volatile.Read(ref phase), p))
                return time;
        }
        return GetTimestampSlowly();
    }

    /// <summary>Boot wall-clock time + VM time.</summary>
    public override DateTimeOffset GetUtcNow() => bootTime.AddTicks(GetTimestamp() / 100);

    /// <summary>Lets time run. Does nothing when it runs already.</summary>
    public void Start()
    {
        lock (gate)
        {
            ObjectDisposedException.ThrowIf(disposed, this);
            Phase p = phase!;
            if (p.Running)
                return;
            Volatile.Write(ref phase, new Phase(Running: true, Stopwatch.GetTimestamp() - p.Origin));
            Program();
        }
    }

    /// <summary>
    /// Stops time. When this returns no call-back is running, and none will run until <see cref="Start"/>; called from a
    /// call-back, that one excepted. Must not be called with a lock held that a call-back wants.
    /// </summary>
    public void Stop()
    {
        lock (gate)
        {
            if (phase is { Running: true } p)
            {
                // The exchange is a full fence: the time below is later than any that a reader has taken under the old phase.
                Interlocked.Exchange(ref phase, null);
                Volatile.Write(ref phase, new Phase(Running: false, Stopwatch.GetTimestamp() - p.Origin));
            }
        }
        WaitForCallback(null);
    }

    /// <summary>Sets the VM time of a stopped clock, for restoring a machine. Armed timers keep their points in VM time.</summary>
    /// <exception cref="InvalidOperationException">The clock runs.</exception>
    public void SetTimestamp(long timestamp)
    {
        lock (gate)
        {
            if (phase is { Running: true })
                throw new InvalidOperationException("VM time can be set only while it is stopped");
            Volatile.Write(ref phase, new Phase(Running: false, timestamp));
        }
    }

    /// <summary>
    /// Makes every call-back that is due, on the caller's thread, or waits until the timer thread has made them: for a caller that
    /// is about to show somebody the time and must not be ahead of the timers. Must not be called with a lock held that a
    /// call-back wants. Does nothing when called from a call-back, or while time stands still.
    /// </summary>
    public void DispatchDue()
    {
        SpinWait spin = default;
        while (true)
        {
            lock (gate)
            {
                if (disposed || dispatcher == Thread.CurrentThread || phase is not { Running: true } p || nextDue > Stopwatch.GetTimestamp() - p.Origin)
                    return;
                if (dispatcher is null)
                {
                    dispatcher = Thread.CurrentThread;
                    break;
                }
            }
            spin.SpinOnce();
        }
        while (TakeDue() is { } timer)
            Call(timer);
    }

    /// <summary>Makes a timer; see <see cref="VmTimer"/> for what it guarantees. The execution context is not captured.</summary>
    public override ITimer CreateTimer(TimerCallback callback, object? state, TimeSpan dueTime, TimeSpan period)
    {
        VmTimer timer = CreateTimer(callback, state);
        timer.Change(dueTime, period);
        return timer;
    }

    /// <summary>Makes a timer that is not armed.</summary>
    public VmTimer CreateTimer(TimerCallback callback, object? state)
    {
        ArgumentNullException.ThrowIfNull(callback);
        VmTimer timer = new(this, callback, state);
        lock (gate)
        {
            ObjectDisposedException.ThrowIf(disposed, this);
            heap.EnsureCapacity(++timers);
            if (thread is null)
            {
                thread = new Thread(RunThread, 256 << 10) { IsBackground = true, Name = "vm-timer" };
                thread.UnsafeStart();
            }
        }
        return timer;
    }

    /// <summary>Ends the timer thread. Timers never fire again.</summary>
    public void Dispose()
    {
        Thread? ending;
        lock (gate)
        {
            if (disposed)
                return;
            disposed = true;
            ending = thread;
            if (ending is not null)
                descriptor.Set(1);
        }
        if (ending == Thread.CurrentThread)
            return;
        ending?.Join();
        if (ending is null)
            descriptor.Dispose();
    }

    internal static long ToNanoseconds(TimeSpan time) => time.Ticks switch
    {
        <= 0 => 0,
        > long.MaxValue / 100 => long.MaxValue,
        long ticks => ticks * 100,
    };

    internal bool Arm(VmTimer timer, long due, bool relative, long period)
    {
        // Taken before the lock, so that waiting for the lock does not lengthen the time.
        long now = relative ? GetTimestamp() : 0;
        if (relative)
            due = due > long.MaxValue - now ? long.MaxValue : now + due;
        if (period > 0)
            period = Math.Max(period, ToNanoseconds(MinimumPeriod));
        lock (gate)
        {
            if (timer.Disposed || disposed)
                return false;
            if (timer.HeapIndex >= 0)
                heap.Remove(timer);
            if (due == long.MaxValue)
            {
                Publish();
                return true;
            }
            timer.Due = Math.Max(due, 0);
            timer.Period = period;
            timer.Sequence = ++sequence;
            heap.Add(timer);
            Publish();
            Program();
            return true;
        }
    }

    internal void Remove(VmTimer timer)
    {
        lock (gate)
        {
            if (timer.Disposed)
                return;
            timer.Disposed = true;
            timers--;
            if (timer.HeapIndex >= 0)
                heap.Remove(timer);
            Publish();
        }
    }

    internal ValueTask WhenNotRunning(VmTimer timer)
    {
        lock (gate)
        {
            if (current != timer || dispatcher == Thread.CurrentThread)
                return ValueTask.CompletedTask;
        }
        return new ValueTask(Task.Run(() => WaitForCallback(timer)));
    }

    private Phase CurrentPhase()
    {
        SpinWait spin = default;
        while (true)
        {
            if (Volatile.Read(ref phase) is { } p)
                return p;
            spin.SpinOnce();
        }
    }

    private long GetTimestampSlowly()
    {
        while (true)
        {
            Phase p = CurrentPhase();
            if (!p.Running)
                return p.Origin;
            long time = Stopwatch.GetTimestamp() - p.Origin;
            if (ReferenceEquals(Volatile.Read(ref phase), p))
                return time;
        }
    }

    // Waits until the given timer (null: any) is not in its call-back. The thread that makes the call does not wait.
    private void WaitForCallback(VmTimer? timer)
    {
        SpinWait spin = default;
        while (true)
        {
            lock (gate)
                if (current is null || (timer is not null && current != timer) || dispatcher == Thread.CurrentThread)
                    return;
            spin.SpinOnce();
        }
    }

    // Gate held. Brings the timerfd forward when the first deadline is earlier; the timer thread, when awake, looks for itself.
    private void Program()
    {
        if (dispatcher is not null || heap.First is not { } first || phase is not { Running: true } p)
            return;
        long host = first.Due > long.MaxValue - Math.Max(p.Origin, 0) ? long.MaxValue : first.Due + p.Origin;
        if (host >= programmed)
            return;
        programmed = host;
        descriptor.Set(host);
    }

    private void RunThread()
    {
        while (true)
        {
            descriptor.Wait();
            bool mine;
            lock (gate)
            {
                programmed = long.MaxValue;
                // A thread that dispatches already goes on until nothing is due, and then programs the timerfd.
                mine = dispatcher is null;
                if (mine)
                    dispatcher = Thread.CurrentThread;
            }
            while (mine && TakeDue() is { } timer)
                Call(timer);
            lock (gate)
                if (disposed)
                    break;
        }
        descriptor.Dispose();
    }

    private VmTimer? TakeDue()
    {
        lock (gate)
        {
            current = null;
            VmTimer? timer = heap.First;
            Phase p = phase!;
            long now = p.Running ? Stopwatch.GetTimestamp() - p.Origin : p.Origin;
            if (disposed || !p.Running || timer is null || timer.Due > now)
            {
                dispatcher = null;
                Publish();
                if (!disposed)
                    Program();
                return null;
            }
            heap.Remove(timer);
            currentDue = timer.Due;
            if (timer.Period > 0)
            {
                long late = now - timer.Due;
                timer.Due += (late / timer.Period + 1) * timer.Period;
                timer.Sequence = ++sequence;
                heap.Add(timer);
            }
            current = timer;
            Publish();
            return timer;
        }
    }

    // Gate held.
    private void Publish()
    {
        long first = heap.First?.Due ?? long.MaxValue;
        Volatile.Write(ref nextDue, current is null ? first : Math.Min(first, currentDue));
    }

    private void Call(VmTimer timer)
    {
        try
        {
            timer.Callback(timer.State);
        }
        catch (Exception e) when (CallbackFailed is not null)
        {
            CallbackFailed(e);
        }
    }

    // Running: Origin is the host time of VM time 0. Stopped: Origin is the VM time.
    private sealed record Phase(bool Running, long Origin);
}
