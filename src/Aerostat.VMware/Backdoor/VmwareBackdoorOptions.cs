using Aerostat.Platform;

namespace Aerostat.VMware;

/// <summary>What the backdoor tells the guest of its machine.</summary>
public sealed record VmwareBackdoorOptions
{
    /// <summary>The machine's UUID, as in SMBIOS.</summary>
    public required Guid Uuid { get; init; }

    /// <summary>Bytes of guest memory.</summary>
    public required ulong MemoryBytes { get; init; }

    /// <summary>What the time-stamp counters really count in a second of VM time.</summary>
    public required long TscFrequencyHz { get; init; }

    /// <summary>What the local APICs' timers really count, before the divider.</summary>
    public required long ApicFrequencyHz { get; init; }

    /// <summary>Whether the processors have an x2APIC.</summary>
    public bool X2Apic { get; init; }

    /// <summary>VM time.</summary>
    public required TimeProvider Clock { get; init; }

    /// <summary>The host's time, which goes on while the machine is paused.</summary>
    public required TimeProvider HostClock { get; init; }

    /// <summary>How long a host thread has waited for a processor so far; null: the host does not say. Any thread.</summary>
    public Func<int, TimeSpan?> WaitOf { get; init; } = HostThread.WaitOf;
}
