using Aerostat.HyperV;
using Aerostat.Processors;
using Aerostat.State;

namespace Aerostat.Machine;

/// <summary>
/// The hypervisor that one vCPU's guest believes to run on: CPUID leaves from 0x40000000, MSRs and hypercalls. All members but
/// <see cref="AddCpuid"/> are called on the vCPU's thread, or while it is not running.
/// </summary>
internal interface IPersonality
{
    /// <summary>RDMSR; false: not a register of this personality.</summary>
    bool ReadMsr(uint index, out ulong value);

    /// <summary>WRMSR; false: not a register of this personality, or a value it does not take.</summary>
    bool WriteMsr(uint index, ulong value);

    /// <summary>A hypercall at privilege level 0; false: the instruction does not exist.</summary>
    bool Hypercall(Span<ulong> registers);

    /// <summary>As <see cref="IExitHandler.IsBackdoor"/>.</summary>
    bool IsBackdoor(ushort port) => false;

    /// <summary>As <see cref="IExitHandler.CallBackdoor"/>.</summary>
    bool CallBackdoor(ushort port, int privilege, Span<ulong> registers) => false;

    /// <summary>As <see cref="IExitHandler.TransferBackdoor"/>.</summary>
    bool TransferBackdoor(ushort port, bool output, Span<byte> bytes, Span<ulong> registers) => false;

    /// <summary>As <see cref="IExitHandler.ReadPseudoCounter"/>.</summary>
    bool ReadPseudoCounter(uint index, out ulong value)
    {
        value = 0;
        return false;
    }

    /// <summary>Back to the power-on state.</summary>
    void Reset();

    /// <summary>What is to be saved of it, under the machine-wide unique name of each part.</summary>
    IEnumerable<StateElement> Elements { get; }

    /// <summary>Adds what a personality announces to a vCPU's CPUID.</summary>
    /// <param name="personality">Its name.</param>
    /// <param name="table">The CPU model's CPUID.</param>
    /// <param name="processors">How many vCPUs the machine has.</param>
    /// <param name="hypervisor">What of theirs reaches the personality, and what the hypervisor does itself.</param>
    static CpuidTable AddCpuid(string personality, CpuidTable table, int processors, IHypervisor hypervisor) => personality switch
    {
        KvmPersonality.Name => KvmPersonality.AddCpuid(table, hypercalls: hypervisor.HypercallPort is null),
        VmwarePersonality.Name => VmwarePersonality.AddCpuid(table),
        HyperVPersonality.Name => HyperVCpuid.Add(table, processors, hypervisor.FlushTranslations is not null, hypervisor.LocalApics is not null),
        _ => table,
    };
}
