using System.Buffers.Binary;

namespace Aerostat.HyperV;

/// <content>The timers: all under the gate.</content>
internal sealed partial class SyntheticInterruptController
{
    private const ulong LongestWait = 36_000_000_000;

    private ulong ReadTimer(uint register)
    {
        SyntheticTimer timer = timers[register >> 1];
        return (register & 1) == 0 ? timer.Config : timer.Count;
    }

    private void WriteTimer(uint register, ulong value)
    {
        SyntheticTimer timer = timers[register >> 1];
        ulong now = time.FromClock();
        if ((register & 1) == 0)
            timer.WriteConfig(value, now);
        else
            timer.WriteCount(value, now);
        ExpireTimers();
    }

    private SyntheticTimer? NextTimerMessage(int sint)
    {
        foreach (SyntheticTimer timer in timers)
        {
            if (timer.MessagePending && timer.Sint == sint)
                return timer;
        }
        return null;
    }

    private SynicMessage TimerMessage(SyntheticTimer timer)
    {
        byte[] payload = new byte[TimerPayload];
        BinaryPrimitives.WriteInt32LittleEndian(payload, Array.IndexOf(timers, timer));
        BinaryPrimitives.WriteUInt64LittleEndian(payload.AsSpan(8), timer.ExpiredAt);
        BinaryPrimitives.WriteUInt64LittleEndian(payload.AsSpan(16), time.FromClock());
        return new SynicMessage(TimerExpired, 0, payload);
    }

    private void OnAlarm()
    {
        lock (gate)
        {
            alarmDue = ulong.MaxValue;
            ExpireTimers();
        }
    }

    private void ExpireTimers()
    {
        ulong now = time.FromClock();
        foreach (SyntheticTimer timer in timers)
        {
            if (!timer.Expire(now))
                continue;
            if (timer.IsDirect)
            {
                apic.Deliver(timer.Vector);
                continue;
            }
            timer.MessagePending = true;
            DeliverMessages(timer.Sint);
        }
        Arm(now);
    }

    // Sets the alarm for what is due next. An alarm that comes too early looks at the clock and is set again.
    private void Arm(ulong now)
    {
        ulong due = ulong.MaxValue;
        foreach (SyntheticTimer timer in timers)
            due = Math.Min(due, timer.Due);
        if (due == alarmDue)
            return;
        alarmDue = due;
        if (due == ulong.MaxValue)
        {
            alarm?.Change(Timeout.InfiniteTimeSpan, Timeout.InfiniteTimeSpan);
            return;
        }
        // TimeSpan counts in the same unit. One more, since the clock has cut off a part of it.
        TimeSpan wait = new((long)Math.Min(due > now ? due - now + 1 : 0, LongestWait));
        alarm ??= clock.CreateTimer(static state => ((SyntheticInterruptController)state!).OnAlarm(), this, Timeout.InfiniteTimeSpan, Timeout.InfiniteTimeSpan);
        alarm.Change(wait, Timeout.InfiniteTimeSpan);
    }

    /// <summary>Back to the power-on state; what lay under the pages is there again.</summary>
    public void Reset()
    {
        lock (gate)
        {
            control = simp = siefp = 0;
            messagePage.Remove();
            eventPage.Remove();
            for (int i = 0; i < Sources; i++)
            {
                sints[i] = MaskedBit;
                queues[i].Clear();
                heldEvents[i] = null;
            }
            foreach (SyntheticTimer timer in timers)
                timer.Reset();
            PublishAutomaticEnds();
            Arm(0);
        }
    }

    /// <summary>Its state.</summary>
    public SynicSavedState Save()
    {
        lock (gate)
        {
            return new SynicSavedState
            {
                Control = control,
                MessagePage = simp,
                EventPage = siefp,
                UnderMessagePage = messagePage.Save(),
                UnderEventPage = eventPage.Save(),
                Sources = [.. sints],
                Timers = [.. timers.Select(t => t.Save())],
                Messages = [.. queues.Index().SelectMany(q => q.Item.Select(m => new QueuedMessageSavedState { Source = q.Index, Type = m.Type, Sender = m.Sender, Payload = m.Payload }))],
                Events = [.. heldEvents.Index().Where(e => e.Item is not null).Select(e => new HeldEventsSavedState { Source = e.Index, Flags = [.. e.Item!] })],
            };
        }
    }

    /// <summary>Puts a state back.</summary>
    public void Restore(SynicSavedState state)
    {
        if (state.Sources.Length != Sources || state.Timers.Length != Timers)
            throw new ArgumentException("a SynIC has 16 sources and 4 timers");
        if (state.Messages.Any(m => (uint)m.Source >= Sources || m.Payload.Length > SynicMessage.MaxPayload) || state.Messages.Length > Sources * QueueLimit)
            throw new ArgumentException("queued messages make no sense");
        if (state.Events.Any(e => (uint)e.Source >= Sources || e.Flags.Length != EventFlags / 64))
            throw new ArgumentException("held events make no sense");
        lock (gate)
        {
            control = state.Control;
            simp = state.MessagePage;
            siefp = state.EventPage;
            messagePage.Restore(simp, state.UnderMessagePage);
            eventPage.Restore(siefp, state.UnderEventPage);
            state.Sources.CopyTo(sints, 0);
            for (int i = 0; i < Timers; i++)
                timers[i].Restore(state.Timers[i]);
            for (int i = 0; i < Sources; i++)
            {
                queues[i].Clear();
                heldEvents[i] = null;
            }
            foreach (QueuedMessageSavedState m in state.Messages)
                queues[m.Source].Enqueue(new SynicMessage(m.Type, m.Sender, m.Payload));
            foreach (HeldEventsSavedState e in state.Events)
                heldEvents[e.Source] = [.. e.Flags];
            PublishAutomaticEnds();
            Arm(time.FromClock());
        }
    }
}

/// <summary>A SynIC at rest.</summary>
public sealed record SynicSavedState
{
    /// <summary>SCONTROL.</summary>
    public ulong Control { get; init; }
    /// <summary>SIMP.</summary>
    public ulong MessagePage { get; init; }
    /// <summary>SIEFP.</summary>
    public ulong EventPage { get; init; }
    /// <summary>What the message page covers.</summary>
    public byte[]? UnderMessagePage { get; init; }
    /// <summary>What the event flags page covers.</summary>
    public byte[]? UnderEventPage { get; init; }
    /// <summary>SINT0 to SINT15.</summary>
    public ulong[] Sources { get; init; } = [];
    /// <summary>The timers.</summary>
    public SyntheticTimerSavedState[] Timers { get; init; } = [];
    /// <summary>Messages that wait for their slots, in order.</summary>
    public QueuedMessageSavedState[] Messages { get; init; } = [];
    /// <summary>Events that wait.</summary>
    public HeldEventsSavedState[] Events { get; init; } = [];
}

/// <summary>A message that waits for its slot.</summary>
public sealed record QueuedMessageSavedState
{
    /// <summary>Which source.</summary>
    public int Source { get; init; }
    /// <summary>Its type.</summary>
    public uint Type { get; init; }
    /// <summary>Its sender.</summary>
    public ulong Sender { get; init; }
    /// <summary>Its payload.</summary>
    public byte[] Payload { get; init; } = [];
}

/// <summary>Events of a source that could not be shown yet.</summary>
public sealed record HeldEventsSavedState
{
    /// <summary>Which source.</summary>
    public int Source { get; init; }
    /// <summary>2048 flags.</summary>
    public ulong[] Flags { get; init; } = [];
}
