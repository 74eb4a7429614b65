using Aerostat.Chipset;
using Aerostat.Processors;

namespace Aerostat.Machine;

/// <summary>
/// What one vCPU calls while it stays in the guest: its local APIC first, then the buses. Runs on the vCPU's thread and
/// allocates nothing; the counters are the thread's own, and others read them for statistics.
/// </summary>
internal sealed class VcpuExitHandler(LocalApic apic, PortBus ports, MmioBus mmio, RunGate gate, IPersonality? personality = null) : IExitHandler
{
    private readonly ExitTally tally = new();
    private long unknownMsrs, interrupts;

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
        long begun = tally.Begin(HandledExit.PortRead);
        uint value = ports.Read(port, size);
        tally.End(HandledExit.PortRead, begun);
        return value;
    }

    /// <inheritdoc/>
    public void WritePort(ushort port, int size, uint value)
    {
        long begun = tally.Begin(HandledExit.PortWrite);
        ports.Write(port, size, value);
        tally.End(HandledExit.PortWrite, begun);
    }

    /// <inheritdoc/>
    public ulong ReadMmio(ulong address, int size)
    {
        // Each processor sees its own local APIC at the same address (Intel SDM vol. 3 section 11.4.1).
        bool own = (address & ~0xFFFUL) == apic.MmioBase;
        HandledExit kind = own ? HandledExit.LocalApicAccess : HandledExit.MmioRead;
        long begun = tally.Begin(kind);
        ulong value = own ? apic.ReadMmio(address & 0xFFF, size) : mmio.Read(address, size);
        tally.End(kind, begun);
        return value;
    }

    /// <inheritdoc/>
    public void WriteMmio(ulong address, int size, ulong value)
    {
        bool own = (address & ~0xFFFUL) == apic.MmioBase;
        HandledExit kind = own ? HandledExit.LocalApicAccess : HandledExit.MmioWrite;
        long begun = tally.Begin(kind);
        if (own)
            apic.WriteMmio(address & 0xFFF, size, value);
        else
            mmio.Write(address, size, value);
        tally.End(kind, begun);
    }

    /// <inheritdoc/>
    public bool ReadMsr(uint index, out ulong value)
    {
        long begun = tally.Begin(HandledExit.MsrRead);
        value = 0;
        bool own = LocalApic.OwnsMsr(index);
        bool known = own ? apic.ReadMsr(index, out value) : personality is not null && personality.ReadMsr(index, out value);
        if (!own && !known)
            unknownMsrs++;
        tally.End(HandledExit.MsrRead, begun);
        return known;
    }

    /// <inheritdoc/>
    public bool WriteMsr(uint index, ulong value)
    {
        long begun = tally.Begin(HandledExit.MsrWrite);
        bool own = LocalApic.OwnsMsr(index);
        bool known = own ? apic.WriteMsr(index, value) : personality is not null && personality.WriteMsr(index, value);
        if (!own && !known)
            unknownMsrs++;
        tally.End(HandledExit.MsrWrite, begun);
        return known;
    }

    /// <inheritdoc/>
    public int AcknowledgeInterrupt()
    {
        long begun = tally.Begin(HandledExit.Acknowledge);
        int vector = apic.AcknowledgeInterrupt();
        if (vector >= 0)
            interrupts++;
        tally.End(HandledExit.Acknowledge, begun);
        return vector;
    }

    /// <inheritdoc/>
    public bool Hypercall(IVirtualProcessor processor, Span<ulong> registers)
    {
        long begun = tally.Begin(HandledExit.Hypercall);
        bool known = personality is not null && personality.Hypercall(registers);
        tally.End(HandledExit.Hypercall, begun);
        return known;
    }

    /// <inheritdoc/>
    public bool IsBackdoor(ushort port) => personality is not null && personality.IsBackdoor(port);

    /// <inheritdoc/>
    public bool CallBackdoor(ushort port, int privilege, Span<ulong> registers)
    {
        long begun = tally.Begin(HandledExit.PortRead);
        bool served = personality is not null && personality.CallBackdoor(port, privilege, registers);
        if (served)
            tally.End(HandledExit.PortRead, begun);
        return served;
    }

    /// <inheritdoc/>
    public bool TransferBackdoor(ushort port, bool output, Span<byte> bytes, Span<ulong> registers) =>
        personality is not null && personality.TransferBackdoor(port, output, bytes, registers);

    /// <inheritdoc/>
    public bool ReadPseudoCounter(uint index, out ulong value)
    {
        value = 0;
        return personality is not null && personality.ReadPseudoCounter(index, out value);
    }

    /// <summary>What was served in place, by name.</summary>
    public IEnumerable<(string Name, long Count)> Counters =>
        tally.Read().Select(t => (t.Name, t.Count)).Append(("msr-unknown", unknownMsrs)).Append(("interrupts", interrupts));

    /// <summary>How long that took.</summary>
    public IEnumerable<(string Name, TimeSpan Time)> Times => tally.Read().Select(t => (t.Name, t.Time));
}
