using Aerostat.Processors;

namespace Aerostat.Cpu;

/// <summary>
/// The time-stamp counter of one vCPU: VM time scaled to the nominal frequency, plus IA32_TSC_ADJUST-style offset
/// (Intel SDM vol. 3 section 19.17).
/// </summary>
internal sealed class TimestampCounter(TimeProvider clock, long frequencyHz) : ITimestampCounter
{
    // Their quotient with 32 bits behind the point; the clock's frequency is below 2^32.
    private readonly ulong scale = ((ulong)(frequencyHz / clock.TimestampFrequency) << 32) + (((ulong)(frequencyHz % clock.TimestampFrequency) << 32) / (ulong)clock.TimestampFrequency);
    private long offset;

    /// <inheritdoc/>
    public long FrequencyHz => frequencyHz;

    /// <inheritdoc/>
    public event Action? Adjusted;

    /// <summary>IA32_TSC_ADJUST.</summary>
    public long Adjust { get; private set; }

    /// <inheritdoc/>
    public ulong Read() => At(clock.GetTimestamp());

    /// <summary>What it read when the clock said <paramref name="timestamp"/>.</summary>
    public ulong At(long timestamp)
    {
        ulong low = Math.BigMul((ulong)timestamp, scale, out ulong product) << 32 | product >> 32;
        return low + (ulong)Volatile.Read(ref offset);
    }

    /// <summary>WRMSR to IA32_TIME_STAMP_COUNTER: also moves IA32_TSC_ADJUST by the same distance.</summary>
    public void Write(ulong value) => Move((long)(value - Read()));

    /// <summary>WRMSR to IA32_TSC_ADJUST: also moves the counter by the same distance.</summary>
    public void WriteAdjust(long value) => Move(value - Adjust);

    /// <summary>Sets counter and IA32_TSC_ADJUST apart from each other: power-on and restored states.</summary>
    public void Restore(ulong value, long adjust)
    {
        Volatile.Write(ref offset, offset + (long)(value - Read()));
        Adjust = adjust;
        Adjusted?.Invoke();
    }

    private void Move(long distance)
    {
        Adjust += distance;
        Volatile.Write(ref offset, offset + distance);
        Adjusted?.Invoke();
    }
}
