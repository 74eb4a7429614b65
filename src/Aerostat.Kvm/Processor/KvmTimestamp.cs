using Aerostat.Processors;
using Aerostat.X86;

namespace Aerostat.Kvm;

/// <summary>
/// A vCPU's time-stamp counter as devices see it. The counter itself is the host's plus an offset that KVM keeps; it is read exactly on the
/// vCPU's thread and reckoned from the last such reading elsewhere. While the machine is paused the host's counter goes on, so the distance is
/// taken back at the next entry.
/// </summary>
internal sealed class KvmTimestamp(KvmProcessor processor, TimeProvider clock, long frequencyHz) : ITimestampCounter
{
    // What a thread may lose between two calls to Run without the machine having been paused.
    private const double SmallestPause = 0.001;

    private readonly Lock gate = new();
    private ulong anchor;
    private long anchorTime;

    /// <inheritdoc/>
    public long FrequencyHz => frequencyHz;

    /// <inheritdoc/>
    /// <remarks>Not raised: KVM does not tell of writes to the counter. A guest that moves it while a deadline is armed meets the deadline late or early.</remarks>
    public event Action? Adjusted
    {
        add { }
        remove { }
    }

    /// <inheritdoc/>
    public ulong Read()
    {
        if (processor.OnOwnThread)
            Anchor();
        lock (gate)
            return anchor + Distance(clock.GetTimestamp());
    }

    /// <summary>Takes the counter's value; on the vCPU's thread, outside KVM_RUN.</summary>
    public void Anchor()
    {
        if (!processor.TryReadMsr(Msr.Tsc, out ulong value))
            return;
        lock (gate)
            (anchor, anchorTime) = (value, clock.GetTimestamp());
    }

    /// <summary>Before the guest is entered after a while outside: VM time that did not pass did not pass for the counter either.</summary>
    public void Resume()
    {
        if (!processor.TryReadMsr(Msr.Tsc, out ulong value))
            return;
        ulong expected;
        lock (gate)
            expected = anchor + Distance(clock.GetTimestamp());
        if (anchorTime != 0 && value > expected && value - expected > SmallestPause * frequencyHz)
            processor.WriteMsr(Msr.Tsc, expected);
        Anchor();
    }

    private ulong Distance(long now)
    {
        long ticks = Math.Max(0, now - anchorTime);
        return (ulong)((UInt128)(ulong)ticks * (ulong)frequencyHz / (ulong)clock.TimestampFrequency);
    }
}
