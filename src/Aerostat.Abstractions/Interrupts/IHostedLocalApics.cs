namespace Aerostat.Interrupts;

/// <summary>
/// Local APICs that the hypervisor keeps itself, as a host's kernel does. The machine still has its own 8259 pair and I/O APIC; what those send
/// goes through here.
/// </summary>
public interface IHostedLocalApics
{
    /// <summary>Counts a second of their timers before division.</summary>
    long TimerFrequencyHz { get; }

    /// <summary>
    /// Delivers a message-signalled interrupt (Intel SDM vol. 3 section 11.11). Positive: it waits to be taken; 0: the same one did already;
    /// negative: nobody takes it. Any thread.
    /// </summary>
    int Send(ulong address, uint data);

    /// <summary>Names the messages whose end of interrupt shall be told, in place of those named before. Any thread.</summary>
    void Watch(ReadOnlySpan<(ulong Address, uint Data)> messages);

    /// <summary>Told of the end of an interrupt by its vector, on the thread of the vCPU that ended it.</summary>
    Action<byte>? EndOfInterrupt { set; }

    /// <summary>The registers of a vCPU's local APIC. While the vCPU is not in the guest.</summary>
    HostedLocalApicState Read(int index);

    /// <summary>Replaces them. While the vCPU is not in the guest.</summary>
    void Write(int index, HostedLocalApicState state);

    /// <summary>VM time stands still from now on: timers that run are noted. No vCPU is in the guest, and no device sends.</summary>
    void HoldTime();

    /// <summary>VM time goes on: so do the timers, from where they were.</summary>
    void ReleaseTime();
}

/// <summary>A hosted local APIC's registers.</summary>
/// <param name="Base">IA32_APIC_BASE.</param>
/// <param name="Deadline">IA32_TSC_DEADLINE.</param>
/// <param name="Registers">The register page, 1024 bytes: register n at byte 16 n.</param>
public sealed record HostedLocalApicState(ulong Base, ulong Deadline, byte[] Registers);
