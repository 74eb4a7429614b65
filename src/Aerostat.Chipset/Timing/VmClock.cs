namespace Aerostat.Chipset;

/// <summary>VM time in nanoseconds, and exact conversion between it and the tick counts of clocks of any frequency.</summary>
internal sealed class VmClock(TimeProvider time)
{
    /// <summary>Nanoseconds in a second.</summary>
    public const long Second = 1_000_000_000;

    private readonly long _frequency = time.TimestampFrequency;

    /// <summary>The clock's source, for timers.</summary>
    public TimeProvider Provider { get; } = time;

    /// <summary>VM time now.</summary>
    public long Now
    {
        get
        {
            long stamp = Provider.GetTimestamp();
            return _frequency == Second ? stamp : TimeOfTick(stamp, _frequency);
        }
    }

    /// <summary>How many whole ticks of a <paramref name="hertz"/> clock fit into <paramref name="nanoseconds"/> (not negative).</summary>
    public static long Ticks(long nanoseconds, long hertz)
    {
        // Whole seconds and the rest separately: exact, and no 128-bit arithmetic up to 9 GHz.
        (long seconds, long rest) = Math.DivRem(nanoseconds, Second);
        return seconds * hertz + rest * hertz / Second;
    }

    /// <summary>The first nanosecond at which a <paramref name="hertz"/> clock shows <paramref name="tick"/>; saturates.</summary>
    public static long TimeOfTick(long tick, long hertz)
    {
        (long seconds, long rest) = Math.DivRem(tick, hertz);
        if (seconds >= long.MaxValue / Second - 1)
            return long.MaxValue;
        if (rest <= long.MaxValue / Second - 1)
            return seconds * Second + (rest * Second + hertz - 1) / hertz;
        UInt128 wide = ((UInt128)(ulong)rest * (ulong)Second + (ulong)hertz - 1) / (ulong)hertz;
        return seconds * Second + (long)wide;
    }

    /// <summary><paramref name="time"/> + <paramref name="delta"/>, which is not negative; saturates.</summary>
    public static long Add(long time, long delta)
    {
        long sum = unchecked(time + delta);
        return sum < time ? long.MaxValue : sum;
    }
}
