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
    /// VMCALL or VMMCALL at privilege level 0 (elsewhere it raises #UD), or what <see cref="IHypervisor.HypercallPort"/> names in their place, with the state in
    /// <paramref name="processor"/>; false: the instruction does not exist (#UD; the port is one like any other).
    /// The handler reads and writes registers through <paramref name="registers"/> (RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8..R15).
    /// </summary>
    bool Hypercall(IVirtualProcessor processor, Span<ulong> registers);

    /// <summary>
    /// Whether a hypervisor may answer at this port in the guest's registers, as VMware's does: such an access goes to <see cref="CallBackdoor"/> or
    /// <see cref="TransferBackdoor"/> first, before the guest's right to use the port is looked at. Costs next to nothing; asked before every access.
    /// </summary>
    bool IsBackdoor(ushort port) => false;

    /// <summary>
    /// A 32-bit IN from a port that <see cref="IsBackdoor"/> named. False: not a call to the hypervisor, and an ordinary access to the port after all.
    /// </summary>
    /// <param name="port">The port.</param>
    /// <param name="privilege">The caller's privilege level.</param>
    /// <param name="registers">RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8..R15; results go there too, that in RAX included.</param>
    bool CallBackdoor(ushort port, int privilege, Span<ulong> registers) => false;

    /// <summary>
    /// A part of what a byte-wise INS or OUTS with a REP prefix moves through a port that <see cref="IsBackdoor"/> named, in order. False: as for
    /// <see cref="CallBackdoor"/>; nothing has been moved.
    /// </summary>
    /// <param name="port">The port.</param>
    /// <param name="output">OUTS; else INS.</param>
    /// <param name="bytes">What is put out, or to be filled.</param>
    /// <param name="registers">As for <see cref="CallBackdoor"/>, as they are before this part is moved.</param>
    bool TransferBackdoor(ushort port, bool output, Span<byte> bytes, Span<ulong> registers) => false;

    /// <summary>RDPMC of an index that the processor has no counter for, at any privilege level. False: #GP.</summary>
    bool ReadPseudoCounter(uint index, out ulong value)
    {
        value = 0;
        return false;
    }

    /// <summary>Polled after each call above: true makes Run return <see cref="ExitReason.HandlerRequest"/> once the instruction is complete.</summary>
    bool LeaveRequested { get; }
}
