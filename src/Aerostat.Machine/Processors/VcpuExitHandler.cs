using Aerostat.Chipset;
using Aerostat.Processors;

namespace Aerostat.Machine;

/// <summary>
/// What one vCPU calls while it stays in the guest: its local APIC first, then the buses. Runs on the vCPU's thread and
/// allocates nothing; the counters are the thread's own, and others read them for statistics.
/// </summary>
internal sealed class VcpuExitHandler(LocalApic apic, PortBus ports, MmioBus mmio, RunGate gate, IPersonality? personality = null) : IExitHandler
{
    private long portReads, portWrites, mmioReads, mmioWrites, apicAccesses, msrReads, msrWrites, unknownMsrs, interrupts, hypercalls;

    /// <inheritdoc/>
    public bool LeaveRequested => gate.Closed;

    /// <inheritdoc/>
    public bool LocalApicEnabled => apic.IsEnabled;

    /// <inheritdoc/>
    public ulong TaskPriority
    {
        get => apic.TaskPriority;
        set => apic.TaskPriority = value;
    }

    /// <inheritdoc/>
    public uint ReadPort(ushort port, int size)
    {
        portReads++;
        return ports.Read(port, size);
    }

    /// <inheritdoc/>
    public void WritePort(ushort port, int size, uint value)
    {
        portWrites++;
        ports.Write(port, size, value);
    }

    /// <inheritdoc/>
    public ulong ReadMmio(ulong address, int size)
    {
        // Each processor sees its own local APIC at the same address (Intel SDM vol. 3 section 11.4.1).
        if ((address & ~0xFFFUL) == apic.MmioBase)
        {
            apicAccesses++;
            return apic.ReadMmio(address & 0xFFF, size);
        }
        mmioReads++;
        return mmio.Read(address, size);
    }

    /// <inheritdoc/>
    public void WriteMmio(ulong address, int size, ulong value)
    {
        if ((address & ~0xFFFUL) == apic.MmioBase)
        {
            apicAccesses++;
            apic.WriteMmio(address & 0xFFF, size, value);
            return;
        }
        mmioWrites++;
        mmio.Write(address, size, value);
    }

    /// <inheritdoc/>
    public bool ReadMsr(uint index, out ulong value)
    {
        msrReads++;
        if (LocalApic.OwnsMsr(index))
            return apic.ReadMsr(index, out value);
        if (personality is not null && personality.ReadMsr(index, out value))
            return true;
        unknownMsrs++;
        value = 0;
        return false;
    }

    /// <inheritdoc/>
    public bool WriteMsr(uint index, ulong value)
    {
        msrWrites++;
        if (LocalApic.OwnsMsr(index))
            return apic.WriteMsr(index, value);
        if (personality is not null && personality.WriteMsr(index, value))
            return true;
        unknownMsrs++;
        return false;
    }

    /// <inheritdoc/>
    public int AcknowledgeInterrupt()
    {
        int vector = apic.AcknowledgeInterrupt();
        if (vector >= 0)
            interrupts++;
        return vector;
    }

    /// <inheritdoc/>
    public bool Hypercall(IVirtualProcessor processor, Span<ulong> registers)
    {
        hypercalls++;
        return personality is not null && personality.Hypercall(registers);
    }

    /// <summary>What was served in place, by name.</summary>
    public IEnumerable<(string Name, long Count)> Counters =>
    [
        ("port-reads", portReads),
        ("port-writes", portWrites),
        ("mmio-reads", mmioReads),
        ("mmio-writes", mmioWrites),
        ("local-apic-accesses", apicAccesses),
        ("msr-reads", msrReads),
        ("msr-writes", msrWrites),
        ("msr-unknown", unknownMsrs),
        ("interrupts", interrupts),
        ("hypercalls", hypercalls),
    ];
}
