using System.Diagnostics;
using Xunit;

namespace Aerostat.Platform.Tests;

public sealed class VmClockTests : IDisposable
{
    private readonly VmClock clock = new(new DateTimeOffset(2024, 2, 29, 12, 0, 0, TimeSpan.Zero));

    public void Dispose() => clock.Dispose();

    private static void Await(Func<bool> condition) =>
        Assert.True(SpinWait.SpinUntil(condition, TimeSpan.FromSeconds(30)), "did not happen");

    // Waits until the clock's thread has provably had the chance to run everything that is due by now.
    private void Settle()
    {
        using ManualResetEventSlim done = new();
        using VmTimer marker = clock.CreateTimer(_ => done.Set(), null);
        marker.ArmAt(clock.GetTimestamp());
        Assert.True(done.Wait(TimeSpan.FromSeconds(30)));
    }

    [Fact]
    public void Starts_at_zero_and_stands_still_until_started()
    {
        Assert.Equal(0, clock.GetTimestamp());
        Thread.Sleep(5);
        Assert.Equal(0, clock.GetTimestamp());
        Assert.False(clock.IsRunning);
        Assert.Equal(1_000_000_000, clock.TimestampFrequency);
        Assert.Equal(new DateTimeOffset(2024, 2, 29, 12, 0, 0, TimeSpan.Zero), clock.GetUtcNow());
    }

    [Fact]
    public void Time_spent_stopped_does_not_count()
    {
        clock.Start();
        Await(() => clock.GetTimestamp() > 1_000_000);
        clock.Stop();
        long frozen = clock.GetTimestamp();
        Thread.Sleep(20);
        Assert.Equal(frozen, clock.GetTimestamp());
        long host = Stopwatch.GetTimestamp();
        clock.Start();
        long after = clock.GetTimestamp();
        long elapsed = Stopwatch.GetTimestamp() - host;
        Assert.InRange(after, frozen, frozen + elapsed);
        clock.Start();
        Assert.True(clock.GetTimestamp() >= after);
    }

    [Fact]
    public void A_restored_clock_goes_on_from_the_saved_time()
    {
        clock.SetTimestamp(5_000_000_000);
        Assert.Equal(5_000_000_000, clock.GetTimestamp());
        clock.Start();
        Assert.True(clock.GetTimestamp() >= 5_000_000_000);
        Assert.Throws<InvalidOperationException>(() => clock.SetTimestamp(0));
    }

    [Fact]
    public void A_clock_ahead_of_the_host_still_fires()
    {
        using VmClock ahead = new(DateTimeOffset.UnixEpoch, long.MaxValue / 2);
        using ManualResetEventSlim fired = new();
        using VmTimer timer = ahead.CreateTimer(_ => fired.Set(), null);
        timer.ArmAt(ahead.GetTimestamp() + 1000);
        ahead.Start();
        Assert.True(fired.Wait(TimeSpan.FromSeconds(30)));
    }

    [Fact]
    public void Timers_fire_in_the_order_of_their_deadlines_and_of_arming()
    {
        List<int> order = [];
        VmTimer[] timers = Enumerable.Range(0, 100).Select(i => clock.CreateTimer(_ => { lock (order) order.Add(i); }, null)).ToArray();
        Random random = new(1);
        (int Timer, long Due)[] arms = Enumerable.Range(0, 100).Select(i => (i, (long)random.Next(20) * 10_000)).ToArray();
        random.Shuffle(arms);
        foreach ((int timer, long due) in arms)
            timers[timer].ArmAt(due);
        clock.Start();
        Await(() => { lock (order) return order.Count == 100; });
        Assert.Equal(arms.OrderBy(a => a.Due).Select(a => a.Timer), order);
    }

    [Fact]
    public void A_timer_never_fires_before_its_deadline()
    {
        long early = 0;
        int fired = 0;
        long due = 0;
        VmTimer timer = null!;
        timer = clock.CreateTimer(_ =>
        {
            long now = clock.GetTimestamp();
            if (now < due)
                early = due - now;
            if (++fired < 200)
                timer.ArmAt(due = now + 50_000);
        }, null);
        timer.ArmAt(due = 10_000);
        clock.Start();
        Await(() => Volatile.Read(ref fired) == 200);
        Assert.Equal(0, early);
    }

    [Fact]
    public void Nothing_fires_while_stopped_and_what_was_due_later_fires_after_start()
    {
        int fired = 0;
        using ITimer timer = clock.CreateTimer(_ => Interlocked.Increment(ref fired), null, TimeSpan.FromMilliseconds(1), Timeout.InfiniteTimeSpan);
        Thread.Sleep(20);
        Assert.Equal(0, fired);
        clock.Start();
        clock.Stop();
        int atStop = fired;
        Thread.Sleep(20);
        Assert.Equal(atStop, fired);
        clock.Start();
        Await(() => Volatile.Read(ref fired) == 1);
    }

    [Fact]
    public void Stop_waits_for_the_callback_that_runs()
    {
        using ManualResetEventSlim inside = new();
        bool finished = false;
        using VmTimer timer = clock.CreateTimer(_ =>
        {
            inside.Set();
            Thread.Sleep(30);
            Volatile.Write(ref finished, true);
        }, null);
        timer.ArmAt(0);
        clock.Start();
        inside.Wait(TestContext.Current.CancellationToken);
        clock.Stop();
        Assert.True(finished);
    }

    [Fact]
    public void Stop_inside_a_callback_does_not_deadlock()
    {
        using ManualResetEventSlim done = new();
        using VmTimer timer = clock.CreateTimer(_ => { clock.Stop(); done.Set(); }, null);
        timer.ArmAt(0);
        clock.Start();
        Assert.True(done.Wait(TimeSpan.FromSeconds(30)));
        Assert.False(clock.IsRunning);
    }

    [Fact]
    public void Cancel_and_never_do_not_fire_and_an_earlier_arm_replaces_a_later_one()
    {
        int cancelled = 0;
        using VmTimer a = clock.CreateTimer(_ => cancelled++, null), b = clock.CreateTimer(_ => cancelled++, null);
        using ManualResetEventSlim fired = new();
        using VmTimer c = clock.CreateTimer(_ => fired.Set(), null);
        a.ArmAt(100);
        a.Cancel();
        b.ArmAt(100);
        b.ArmAt(long.MaxValue);
        c.Change(TimeSpan.FromDays(10000), Timeout.InfiniteTimeSpan);
        c.Change(TimeSpan.FromTicks(1), Timeout.InfiniteTimeSpan);
        clock.Start();
        Assert.True(fired.Wait(TimeSpan.FromSeconds(30)));
        Settle();
        Assert.Equal(0, cancelled);
    }

    [Fact]
    public void The_longest_times_do_not_overflow()
    {
        int fired = 0;
        clock.Start();
        using VmTimer timer = clock.CreateTimer(_ => fired++, null);
        Assert.True(timer.Change(TimeSpan.MaxValue, TimeSpan.MaxValue));
        Assert.True(timer.ArmAt(long.MaxValue - 1));
        Settle();
        Assert.Equal(0, fired);
        Assert.True(timer.ArmAt(long.MinValue));
        Await(() => Volatile.Read(ref fired) == 1);
    }

    [Fact]
    public void A_periodic_timer_keeps_its_phase_and_skips_what_it_missed()
    {
        List<long> times = [];
        using ManualResetEventSlim done = new();
        using VmTimer timer = clock.CreateTimer(_ =>
        {
            times.Add(clock.GetTimestamp());
            if (times.Count == 1)
                Thread.Sleep(10);
            if (times.Count == 5)
            {
                clock.Stop();
                done.Set();
            }
        }, null);
        timer.Change(TimeSpan.FromMilliseconds(1), TimeSpan.FromMilliseconds(1));
        clock.Start();
        Assert.True(done.Wait(TimeSpan.FromSeconds(30)));
        Assert.Equal(5, times.Count);
        // Each call lies in a period of its own: none was repeated to catch up.
        Assert.Equal(5, times.Select(t => t / 1_000_000).Distinct().Count());
    }

    [Fact]
    public void Dispose_inside_the_callback_is_safe()
    {
        int fired = 0;
        VmTimer timer = null!;
        timer = clock.CreateTimer(_ => { fired++; timer.Dispose(); timer.DisposeAsync().AsTask().Wait(); }, null);
        timer.Change(TimeSpan.Zero, TimeSpan.FromMicroseconds(50));
        clock.Start();
        Await(() => Volatile.Read(ref fired) == 1);
        Settle();
        Settle();
        Assert.Equal(1, fired);
        Assert.False(timer.ArmAt(0));
    }

    [Fact]
    public async Task DisposeAsync_waits_for_the_callback()
    {
        using ManualResetEventSlim inside = new();
        bool finished = false;
        VmTimer timer = clock.CreateTimer(_ => { inside.Set(); Thread.Sleep(30); Volatile.Write(ref finished, true); }, null);
        timer.ArmAt(0);
        clock.Start();
        inside.Wait(TestContext.Current.CancellationToken);
        await timer.DisposeAsync();
        Assert.True(finished);
    }

    [Fact]
    public void A_failing_callback_is_reported_and_the_others_go_on()
    {
        Exception? seen = null;
        clock.CallbackFailed = e => seen = e;
        using VmTimer bad = clock.CreateTimer(_ => throw new InvalidOperationException("bad"), null);
        bad.ArmAt(0);
        clock.Start();
        Settle();
        Assert.Equal("bad", seen?.Message);
    }

    [Fact]
    public void Rearming_does_not_allocate()
    {
        clock.Start();
        using VmTimer timer = clock.CreateTimer(_ => { }, null);
        TimeSpan hour = TimeSpan.FromHours(1);
        timer.Change(hour, Timeout.InfiniteTimeSpan);
        long before = GC.GetAllocatedBytesForCurrentThread();
        for (int i = 0; i < 1000; i++)
            timer.Change(hour - TimeSpan.FromTicks(i), Timeout.InfiniteTimeSpan);
        Assert.Equal(before, GC.GetAllocatedBytesForCurrentThread());
    }

    // Many threads re-arm their own timers. Under the caller's lock, a call-back that finds the arm it was for must find it due;
    // the last arm of each must fire.
    [Fact]
    public void Rearm_races_lose_no_deadline()
    {
        const int Threads = 4, Rounds = 20_000;
        clock.Start();
        int wrong = 0;
        var timers = new (VmTimer Timer, object Lock, long[] Due)[Threads];
        for (int i = 0; i < Threads; i++)
        {
            object mine = new();
            long[] due = [long.MaxValue];
            timers[i] = (clock.CreateTimer(_ =>
            {
                lock (mine)
                {
                    // A stale call finds the deadline in the future and must ignore it.
                    if (due[0] <= clock.GetTimestamp())
                        due[0] = long.MaxValue;
                }
            }, null), mine, due);
        }
        Thread[] threads = timers.Select((t, n) => new Thread(() =>
        {
            Random random = new(n);
            for (int i = 0; i < Rounds; i++)
                lock (t.Lock)
                {
                    t.Due[0] = clock.GetTimestamp() + random.Next(100_000);
                    if (!t.Timer.ArmAt(t.Due[0]))
                        Interlocked.Increment(ref wrong);
                }
        })).ToArray();
        foreach (Thread t in threads)
            t.Start();
        bool running = true;
        Thread pauser = new(() =>
        {
            while (Volatile.Read(ref running))
            {
                clock.Stop();
                clock.Start();
                Thread.Sleep(1);
            }
        });
        pauser.Start();
        foreach (Thread t in threads)
            t.Join();
        Volatile.Write(ref running, false);
        pauser.Join();
        Await(() => timers.All(t => { lock (t.Lock) return t.Due[0] == long.MaxValue; }));
        Assert.Equal(0, wrong);
    }

    [Fact]
    public void Time_never_goes_back_while_started_and_stopped()
    {
        bool running = true;
        int back = 0;
        Thread[] readers = Enumerable.Range(0, 2).Select(_ => new Thread(() =>
        {
            long last = 0;
            while (Volatile.Read(ref running))
            {
                long now = clock.GetTimestamp();
                if (now < last)
                    Interlocked.Increment(ref back);
                last = now;
            }
        })).ToArray();
        foreach (Thread t in readers)
            t.Start();
        for (int i = 0; i < 20_000; i++)
        {
            clock.Start();
            clock.Stop();
        }
        Volatile.Write(ref running, false);
        foreach (Thread t in readers)
            t.Join();
        Assert.Equal(0, back);
    }

    [Fact]
    public void What_is_due_has_been_called_when_dispatch_returns()
    {
        int calls = 0, nested = 0;
        using VmTimer timer = clock.CreateTimer(
            _ =>
            {
                clock.DispatchDue();
                if (Interlocked.Increment(ref nested) == 1)
                    Volatile.Write(ref calls, calls + 1);
                Interlocked.Decrement(ref nested);
            },
            null);
        clock.Start();
        for (int i = 1; i <= 2_000; i++)
        {
            timer.ArmAt(clock.GetTimestamp());
            clock.DispatchDue();
            Assert.Equal(i, Volatile.Read(ref calls));
            Assert.Equal(long.MaxValue, clock.NextDue);
        }
    }

    [Fact]
    public void The_next_due_time_counts_a_call_until_it_has_returned()
    {
        long seen = 0;
        using VmTimer timer = clock.CreateTimer(_ => seen = clock.NextDue, null);
        Assert.Equal(long.MaxValue, clock.NextDue);
        timer.ArmAt(5);
        Assert.Equal(5, clock.NextDue);
        clock.DispatchDue();
        Assert.Equal(5, clock.NextDue);
        clock.SetTimestamp(1_000);
        clock.Start();
        clock.DispatchDue();
        Assert.Equal(5, seen);
        Assert.Equal(long.MaxValue, clock.NextDue);
        timer.ArmAt(long.MaxValue - 1);
        Assert.Equal(long.MaxValue - 1, clock.NextDue);
        timer.Cancel();
        Assert.Equal(long.MaxValue, clock.NextDue);
    }

    [Fact]
    public void An_idle_clock_uses_no_processor()
    {
        clock.Start();
        int id = 0;
        using VmTimer timer = clock.CreateTimer(_ => id = HostThread.CurrentId, null);
        timer.ArmAt(0);
        Await(() => Volatile.Read(ref id) != 0);
        timer.Change(TimeSpan.FromHours(1), Timeout.InfiniteTimeSpan);
        static long Switches(int id) => File.ReadLines($"/proc/self/task/{id}/status")
            .Where(l => l.StartsWith("voluntary_ctxt_switches", StringComparison.Ordinal)).Select(l => long.Parse(l.Split(':')[1])).Single();
        Thread.Sleep(20);
        long before = Switches(id);
        Thread.Sleep(100);
        Assert.Equal(before, Switches(id));
    }

    [Fact]
    public void Dispose_ends_the_thread_and_later_arms_are_refused()
    {
        VmTimer timer = clock.CreateTimer(_ => { }, null);
        clock.Start();
        clock.Dispose();
        clock.Dispose();
        Assert.False(timer.ArmAt(0));
        timer.Dispose();
        Assert.Throws<ObjectDisposedException>(() => clock.CreateTimer(_ => { }, null));
    }
}
