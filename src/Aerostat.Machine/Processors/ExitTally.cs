using System.Diagnostics;

namespace Aerostat.Machine;

/// <summary>What a vCPU's exit handler serves without leaving the guest.</summary>
internal enum HandledExit
{
    PortRead,
    PortWrite,
    MmioRead,
    MmioWrite,
    LocalApicAccess,
    MsrRead,
    MsrWrite,
    Acknowledge,
    Hypercall,
}

/// <summary>
/// How often each kind of exit was served, and how long that took. The time is that of one exit in 64, scaled: looking at the clock twice costs
/// as much as serving a cheap exit does. Written by the vCPU's thread; others read values that may be slightly old.
/// </summary>
internal sealed class ExitTally
{
    private const long Sample = 64;

    private static readonly string[] s_names =
        ["port-reads", "port-writes", "mmio-reads", "mmio-writes", "local-apic-accesses", "msr-reads", "msr-writes", "acknowledges", "hypercalls"];

    private readonly long[] counts = new long[s_names.Length], samples = new long[s_names.Length], ticks = new long[s_names.Length];

    /// <summary>Counts one; the result goes to <see cref="End"/>.</summary>
    public long Begin(HandledExit kind) => (counts[(int)kind]++ & (Sample - 1)) == 0 ? Stopwatch.GetTimestamp() : 0;

    /// <summary>It has been served.</summary>
    public void End(HandledExit kind, long begun)
    {
        if (begun == 0)
            return;
        samples[(int)kind]++;
        ticks[(int)kind] += Stopwatch.GetTimestamp() - begun;
    }

    /// <summary>Number and estimated time by name.</summary>
    public IEnumerable<(string Name, long Count, TimeSpan Time)> Read()
    {
        for (int i = 0; i < s_names.Length; i++)
        {
            long count = Volatile.Read(ref counts[i]), sampled = Volatile.Read(ref samples[i]);
            double scale = sampled == 0 ? 0 : (double)count / sampled;
            yield return (s_names[i], count, Stopwatch.GetElapsedTime(0, (long)(Volatile.Read(ref ticks[i]) * scale)));
        }
    }
}
