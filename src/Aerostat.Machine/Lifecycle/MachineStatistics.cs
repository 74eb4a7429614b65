namespace Aerostat.Machine;

/// <summary>What a machine has done so far. Read while it runs, values may be slightly old.</summary>
/// <param name="Accelerator">What runs the guest's code.</param>
/// <param name="CpuModel">The CPU model's full name.</param>
/// <param name="Instructions">Guest instructions completed, all vCPUs together; 0 where the accelerator cannot count.</param>
/// <param name="Exits">Exits by reason, all vCPUs together.</param>
/// <param name="Handled">What was served without leaving the guest, by kind.</param>
/// <param name="ExitTimes">How long vCPUs were out of the guest after an exit, by reason; a halted guest's sleep is that of its reason.</param>
/// <param name="HandledTimes">How long serving took, by kind; estimated from one in 64.</param>
/// <param name="Counters">The accelerator's own counters, all vCPUs together.</param>
/// <param name="UnclaimedPortAccesses">Port accesses that no device claimed.</param>
/// <param name="UnclaimedMmioAccesses">Memory-mapped accesses that no device claimed.</param>
/// <param name="Resets">How often the machine has been reset.</param>
/// <param name="VmTime">VM time since the start.</param>
public sealed record MachineStatistics(
    string Accelerator,
    string CpuModel,
    long Instructions,
    IReadOnlyDictionary<string, long> Exits,
    IReadOnlyDictionary<string, long> Handled,
    IReadOnlyDictionary<string, TimeSpan> ExitTimes,
    IReadOnlyDictionary<string, TimeSpan> HandledTimes,
    IReadOnlyDictionary<string, long> Counters,
    long UnclaimedPortAccesses,
    long UnclaimedMmioAccesses,
    int Resets,
    TimeSpan VmTime);
