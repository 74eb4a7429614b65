using Aerostat.Processors;

namespace Aerostat.HyperV;

/// <summary>
/// The partition's reference time: 100 ns units since it began, the same on all processors (TLFS, 12.3 and 12.4). It is computed from the
/// time-stamp counter just as a guest computes it from the reference TSC page, so that the two never disagree. A guest that moves a counter of
/// its own makes the page useless for that processor: the page then says so, and time comes from VM time.
/// </summary>
internal sealed class ReferenceClock(TimeProvider clock)
{
    private const ulong UnitsPerSecond = 10_000_000;

    // Reading both clocks is not one step. What is further apart than this has been moved on purpose: 1 ms.
    private const long Tolerance = 10_000;
    private const int Attempts = 8;

    private readonly Lock gate = new();
    private volatile bool known;
    private long offset;
    private volatile bool broken;

    /// <summary>Whether the time-stamp counters still tell the reference time.</summary>
    public bool IsStable => !broken;

    /// <summary>Reference time = (counter * scale) >> 64, + offset.</summary>
    public static ulong Scale(long frequencyHz) => (ulong)(((UInt128)UnitsPerSecond << 64) / (UInt128)frequencyHz);

    /// <summary>What to add to the scaled counter.</summary>
    public long Offset(ITimestampCounter counter)
    {
        Establish(counter);
        return offset;
    }

    /// <summary>Now.</summary>
    public ulong Read(ITimestampCounter counter)
    {
        if (broken)
            return FromClock();
        Establish(counter);
        return Math.BigMul(counter.Read(), Scale(counter.FrequencyHz), out _) + (ulong)offset;
    }

    /// <summary>Now, for those who have no counter at hand; within a microsecond of <see cref="Read"/>.</summary>
    public ulong FromClock() => (ulong)((UInt128)clock.GetTimestamp() * UnitsPerSecond / (UInt128)clock.TimestampFrequency);

    /// <summary>A guest has moved a counter; true: the page has just become useless.</summary>
    public bool Adjusted(ITimestampCounter counter)
    {
        lock (gate)
        {
            if (!known || broken || Math.Abs(Measure(counter) - offset) <= Tolerance)
                return false;
            broken = true;
            return true;
        }
    }

    /// <summary>The guest starts anew.</summary>
    public void Reset()
    {
        lock (gate)
        {
            known = false;
            broken = false;
        }
    }

    /// <summary>For a saved state: offset, known, broken.</summary>
    public (long Offset, bool Known, bool Broken) Save()
    {
        lock (gate)
            return (offset, known, broken);
    }

    /// <summary>Goes on from a saved state; VM time and counters do too.</summary>
    public void Restore(long savedOffset, bool wasKnown, bool wasBroken)
    {
        lock (gate)
        {
            offset = savedOffset;
            known = wasKnown;
            broken = wasBroken;
        }
    }

    private void Establish(ITimestampCounter counter)
    {
        if (known)
            return;
        lock (gate)
        {
            if (known)
                return;
            offset = Measure(counter);
            known = true;
        }
    }

    // VM time less the scaled counter; of a few readings the one that took least.
    private long Measure(ITimestampCounter counter)
    {
        ulong scale = Scale(counter.FrequencyHz), shortest = ulong.MaxValue;
        long best = 0;
        for (int i = 0; i < Attempts; i++)
        {
            ulong before = counter.Read(), time = FromClock(), after = counter.Read();
            if (after - before >= shortest)
                continue;
            shortest = after - before;
            best = (long)(time - Math.BigMul(before + (shortest / 2), scale, out _));
        }
        return best;
    }
}
