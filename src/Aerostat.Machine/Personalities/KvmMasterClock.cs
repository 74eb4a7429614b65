using Aerostat.Processors;
using Aerostat.State;

namespace Aerostat.Machine;

/// <summary>A moment on a vCPU's time-stamp counter and in VM time.</summary>
/// <param name="Tsc">The counter.</param>
/// <param name="Nanoseconds">VM time.</param>
/// <param name="IsStable">Whether every vCPU with this flag computes the same time at the same moment.</param>
internal readonly record struct KvmTimePair(ulong Tsc, ulong Nanoseconds, bool IsStable);

/// <summary>
/// The moment that the kvmclocks of all vCPUs count from. Counters that agree share one moment to the nanosecond, so that time never
/// goes back for a thread that moves between them; a counter that the guest has moved gets a moment of its own.
/// </summary>
internal sealed class KvmMasterClock(TimeProvider clock) : ISavable<KvmClockSavedState>
{
    // Reading both clocks is not one step. What is further apart than this has been moved on purpose.
    private const long Tolerance = 2_000_000;

    private const int Attempts = 8;

    private readonly Lock gate = new();
    private KvmTimePair? master;

    /// <summary>The time of day when VM time was zero.</summary>
    public DateTimeOffset BootTime => clock.GetUtcNow() - clock.GetElapsedTime(0);

    /// <summary>The moment to publish for a vCPU.</summary>
    public KvmTimePair Read(ITimestampCounter counter)
    {
        lock (gate)
        {
            KvmTimePair now = Measure(counter);
            if (master is not { } first)
            {
                first = now with { IsStable = true };
                master = first;
            }
            ulong expected = first.Tsc + (ulong)((UInt128)(now.Nanoseconds - first.Nanoseconds) * (UInt128)counter.FrequencyHz / 1_000_000_000);
            long distance = (long)(now.Tsc - expected);
            return Int128.Abs(distance) * 1_000_000_000 / counter.FrequencyHz <= Tolerance ? first : now;
        }
    }

    /// <summary>Forgets the moment; the guest starts anew.</summary>
    public void Reset()
    {
        lock (gate)
            master = null;
    }

    /// <inheritdoc/>
    public KvmClockSavedState Save()
    {
        lock (gate)
            return new KvmClockSavedState { IsSet = master is not null, Tsc = master?.Tsc ?? 0, Nanoseconds = master?.Nanoseconds ?? 0 };
    }

    /// <inheritdoc/>
    public void Restore(KvmClockSavedState state)
    {
        lock (gate)
            master = state.IsSet ? new KvmTimePair(state.Tsc, state.Nanoseconds, true) : null;
    }

    /// <summary>Both clocks now; the pair whose reading took least.</summary>
    public KvmTimePair Measure(ITimestampCounter counter)
    {
        KvmTimePair best = default;
        ulong shortest = ulong.MaxValue;
        for (int i = 0; i < Attempts; i++)
        {
            ulong before = counter.Read();
            var nanoseconds = (ulong)((UInt128)clock.GetTimestamp() * 1_000_000_000 / (UInt128)clock.TimestampFrequency);
            ulong after = counter.Read();
            if (after - before < shortest)
            {
                shortest = after - before;
                best = new KvmTimePair(before + (shortest / 2), nanoseconds, false);
            }
        }
        return best;
    }
}

/// <summary>The moment that kvmclocks count from, at rest.</summary>
[SavedState("kvm-clock", 1)]
internal sealed record KvmClockSavedState
{
    /// <summary>Some vCPU has asked for it.</summary>
    public bool IsSet { get; init; }
    /// <summary>Time-stamp counter.</summary>
    public ulong Tsc { get; init; }
    /// <summary>VM time.</summary>
    public ulong Nanoseconds { get; init; }
}
