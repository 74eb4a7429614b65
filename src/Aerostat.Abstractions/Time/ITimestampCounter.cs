namespace Aerostat.Processors;

/// <summary>A guest's time-stamp counter as devices see it (TSC-deadline timers compare against it). Any thread.</summary>
public interface ITimestampCounter
{
    /// <summary>The value RDTSC would return now.</summary>
    ulong Read();

    /// <summary>Increments a second of VM time.</summary>
    long FrequencyHz { get; }

    /// <summary>Raised, on the vCPU's thread, when the guest has changed the counter (WRMSR to TSC or TSC_ADJUST).</summary>
    event Action? Adjusted;
}
