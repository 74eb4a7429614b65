namespace Aerostat.Guest.Drivers;

/// <summary>What a driver of Hyper-V's VMBus needs beside <see cref="DriverPlatform"/>: the hypervisor's registers and calls. The kernel has them as instructions, a test as the host's model.</summary>
public abstract class HyperVPlatform
{
    /// <summary>Whether CPUID names Hyper-V, with all that a VMBus needs: hypercalls, SynIC, messages and events (Hypervisor Top-Level Functional Specification, chapter 2).</summary>
    public abstract bool IsPresent { get; }

    /// <summary>Whether an interrupt of the SynIC is to be ended by us; otherwise it ends itself.</summary>
    public abstract bool EndsInterrupts { get; }

    /// <summary>The vector that says that a message or an event has come.</summary>
    public abstract byte Vector { get; }

    public abstract ulong ReadMsr(uint register);

    public abstract void WriteMsr(uint register, ulong value);

    /// <summary>The hypervisor has put its code into a page: it is to be called from now on. 0: no more.</summary>
    public abstract void UseHypercallPage(ulong page);

    /// <summary>A hypercall: control, input and output values go in, the result comes back (TLFS, 3.7).</summary>
    public abstract ulong Hypercall(ulong control, ulong input, ulong output);

    /// <summary>Replaces a word in memory that the hypervisor also changes, and says what it was.</summary>
    public abstract uint Exchange(ulong address, uint value);
}
