using Aerostat.Processors;
using Aerostat.State;
using Aerostat.VMware;

namespace Aerostat.Machine;

/// <summary>
/// What a guest of VMware's ESXi finds, on one vCPU: the signature, the backdoor and the balloon's channel behind it. The kernel then takes the frequencies
/// of its clocks from the backdoor, and trusts the time-stamp counter.
/// </summary>
internal sealed class VmwarePersonality(IVirtualProcessor processor, VmwareVcpu vcpu) : IPersonality
{
    /// <summary>The name after <c>--personality</c>.</summary>
    public const string Name = "vmware";

    private const uint Signature = 0x4000_0000, Frequencies = 0x4000_0010;

    /// <summary>The signature, and the frequencies in kilohertz where the CPU model tells them.</summary>
    public static CpuidTable AddCpuid(CpuidTable table)
    {
        // Crystal clock and its ratio to the time-stamp counter.
        CpuidResult clock = table.Get(0x15, 0);
        (ulong tsc, ulong bus) = clock.Eax == 0 ? (0, 0) : ((ulong)clock.Ecx * clock.Ebx / clock.Eax / 1000, clock.Ecx / 1000UL);
        return table
            // "VMwareVMware".
            .Set(Signature, 0, new CpuidResult(Frequencies, 0x6177_4D56, 0x4D56_6572, 0x6572_6177), anySubleaf: true)
            // ECX is 0: neither VMCALL nor VMMCALL takes the place of the port.
            .Set(Frequencies, 0, new CpuidResult((uint)tsc, (uint)bus, 0, 0), anySubleaf: true);
    }

    /// <inheritdoc/>
    public IEnumerable<StateElement> Elements => [StateElement.Of($"vmware{processor.Index}", vcpu, static () => VmwareStates.Default.VmwareVcpuSavedState)];

    /// <inheritdoc/>
    public bool ReadMsr(uint index, out ulong value)
    {
        value = 0;
        return false;
    }

    /// <inheritdoc/>
    public bool WriteMsr(uint index, ulong value) => false;

    /// <inheritdoc/>
    public bool Hypercall(Span<ulong> registers) => false;

    /// <inheritdoc/>
    public bool IsBackdoor(ushort port) => VmwareVcpu.IsBackdoor(port);

    /// <inheritdoc/>
    public bool CallBackdoor(ushort port, int privilege, Span<ulong> registers) => vcpu.Call(port, privilege, registers);

    /// <inheritdoc/>
    public bool TransferBackdoor(ushort port, bool output, Span<byte> bytes, Span<ulong> registers) => vcpu.Transfer(port, output, bytes, registers);

    /// <inheritdoc/>
    public bool ReadPseudoCounter(uint index, out ulong value) => vcpu.ReadPseudoCounter(index, out value);

    /// <inheritdoc/>
    public void Reset() => vcpu.Reset();
}
