using Aerostat.Processors;

namespace Aerostat.HyperV;

/// <summary>
/// What the CPUID leaves from 0x40000000 say (Hypervisor Top-Level Functional Specification, chapter 2). Every bit has a handler behind it.
/// </summary>
public static class HyperVCpuid
{
    /// <summary>The name after <c>--personality</c>.</summary>
    public const string PersonalityName = "hyperv";

    private const uint FirstLeaf = 0x4000_0000, LastLeaf = 0x4000_0006;

    // Leaf 3, EAX: reference counter, SynIC, synthetic timers, APIC registers, hypercall registers, VP index, reference TSC, frequencies.
    private const uint Privileges = 1u << 1 | 1u << 2 | 1u << 5 | 1u << 6 | 1u << 9 | 1u << 11, TimerPrivilege = 1u << 3, ApicPrivilege = 1u << 4;

    // EBX: post messages, signal events, extended hypercalls. Partition IDs, CPU management and isolation would send a guest down other paths.
    private const uint HighPrivileges = 1u << 4 | 1u << 5 | 1u << 20;

    // EDX: frequency registers, crash registers, synthetic timers in direct mode.
    private const uint Features = 1u << 8 | 1u << 10, DirectTimers = 1u << 19;

    // Leaf 4, EAX: relaxed timing, no automatic end of interrupt; and what hypercalls make cheaper.
    private const uint Hints = 1u << 5 | 1u << 9;
    private const uint ApicHint = 1u << 3, FlushHint = 1u << 2, ClusterIpiHint = 1u << 10, ExtendedMasksHint = 1u << 11;

    /// <summary>Adds the leaves.</summary>
    /// <param name="table">The CPU model's.</param>
    /// <param name="processors">How many virtual processors there are.</param>
    /// <param name="remoteFlush">Whether the processors' translations can be flushed from outside.</param>
    /// <param name="hostedApics">
    /// Whether the hypervisor keeps the local APICs: then their own registers, timers and commands are the shorter way, and nothing that would take
    /// their place is announced.
    /// </param>
    public static CpuidTable Add(CpuidTable table, int processors, bool remoteFlush, bool hostedApics = false)
    {
        ArgumentNullException.ThrowIfNull(table);
        uint privileges = Privileges, features = Features, hints = Hints;
        if (!hostedApics)
        {
            privileges |= TimerPrivilege | ApicPrivilege;
            features |= DirectTimers;
            hints |= ApicHint;
        }
        // One processor has nobody to tell anything.
        if (processors > 1)
            hints |= (hostedApics ? 0 : ClusterIpiHint | ExtendedMasksHint) | (remoteFlush ? FlushHint : 0);
        return table
            // "Microsoft Hv", "Hv#1".
            .Set(FirstLeaf, 0, new CpuidResult(LastLeaf, 0x7263_694D, 0x666F_736F, 0x7648_2074), anySubleaf: true)
            .Set(0x4000_0001, 0, new CpuidResult(0x3123_7648, 0, 0, 0), anySubleaf: true)
            .Set(0x4000_0002, 0, default, anySubleaf: true)
            .Set(0x4000_0003, 0, new CpuidResult(privileges, HighPrivileges, 0, features), anySubleaf: true)
            .Set(0x4000_0004, 0, new CpuidResult(hints, uint.MaxValue, 0, 0), anySubleaf: true)
            .Set(0x4000_0005, 0, new CpuidResult(HyperVPartition.MaxProcessors, HyperVPartition.MaxProcessors, 0, 0), anySubleaf: true)
            .Set(LastLeaf, 0, default, anySubleaf: true);
    }
}
