namespace Aerostat.Processors;

/// <summary>
/// What a virtual processor calls while it stays in the guest. One instance serves one vCPU, on that vCPU's thread.
/// No member may throw for anything a guest can do.
/// </summary>
public interface IExitHandler
{
    /// <summary>Port input. <paramref name="size"/> is 1, 2 or 4. Unclaimed ports read as all ones.</summary>
    uint ReadPort(ushort port, int size);

    /// <summary>Port output. <paramref name="size"/> is 1, 2 or 4.</summary>
    void WritePort(ushort port, int size, uint value);

    /// <summary>Read of a guest physical address that is not memory. <paramref name="size"/> is 1, 2, 4 or 8; the access may be unaligned.</summary>
    ulong ReadMmio(ulong address, int size);

    /// <summary>Write to a guest physical address that is not writable memory.</summary>
    void WriteMmio(ulong address, int size, ulong value);

    /// <summary>RDMSR of a register that the processor itself does not hold (APIC base, x2APIC, TSC deadline, hypervisor MSRs). False: #GP.</summary>
    bool ReadMsr(uint index, out ulong value);

    /// <summary>WRMSR of a register that the processor itself does not hold. False: #GP.</summary>
    bool WriteMsr(uint index, ulong value);

    /// <summary>
    /// The interrupt acknowledge cycle: takes the highest-priority vector, or -1 when none is left (spurious wire).
    /// Called only when the processor can deliver at once.
    /// </summary>
    int AcknowledgeInterrupt();

    /// <summary>CR8: bits 7:4 of the task priority, as 0..15.</summary>
    ulong TaskPriority { get; set; }

    /// <summary>Whether the local APIC is enabled in IA32_APIC_BASE: CPUID.1:EDX.APIC follows it.</summary>
    bool LocalApicEnabled { get; }

    /// <summary>
    /// VMCALL or VMMCALL at privilege level 0 (elsewhere it raises #UD) with the state in <paramref name="processor"/>; false: the instruction does not exist (#UD).
    /// The handler reads and writes registers through <paramref name="registers"/> (RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8..R15).
    /// </summary>
    bool Hypercall(IVirtualProcessor processor, Span<ulong> registers);

    /// <summary>Polled after each call above: true makes Run return <see cref="ExitReason.HandlerRequest"/> once the instruction is complete.</summary>
    bool LeaveRequested { get; }
}
