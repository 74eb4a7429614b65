namespace Aerostat.Chipset;

/// <summary>
/// A flag in guest memory by which a guest ends an interrupt without an access to its local APIC. Called on the vCPU's thread only.
/// </summary>
public interface IEndOfInterruptFlag
{
    /// <summary>Sets the flag: the guest may clear it in place of writing EOI. False: there is no memory there.</summary>
    bool Set();

    /// <summary>Clears the flag; true when it was still set, that is, when the guest has not ended the interrupt.</summary>
    bool Clear();
}

// End of interrupt through memory, as KVM's guests know it (Linux, Documentation/virt/kvm/x86/msr.rst, MSR_KVM_PV_EOI_EN) and Hyper-V's (TLFS,
// 10.3.5); and what else of Hyper-V's reaches into a local APIC: vectors that end by themselves, and shortcuts to registers.
public sealed partial class LocalApic
{
    private ulong[]? _automaticEnds;

    /// <summary>Vectors, a bit for each, that are ended as they are handed over (TLFS, 11.4); null: none. Owner only.</summary>
    public IReadOnlyList<ulong>? AutomaticEnds
    {
        get => _automaticEnds;
        set => _automaticEnds = value?.ToArray();
    }

    /// <summary>An edge-triggered interrupt of the platform's own to this processor; false: it is not taken. Any thread.</summary>
    public bool Deliver(byte vector) => IsHosted ? _fabric.SendCommand((uint)_options.Id, vector) : AcceptFixed(vector, level: false) != Reception.Lost;

    /// <summary>Writes EOI, whatever mode the registers are in. Owner only.</summary>
    public void WriteEndOfInterrupt()
    {
        Settle();
        if (_hardwareEnabled)
            EndOfInterrupt();
    }

    /// <summary>The interrupt command register, as the present mode lays it out. Owner only.</summary>
    public ulong ReadInterruptCommand() => _icr;

    /// <summary>Writes the interrupt command register; false: the mode has bits reserved that are set. Owner only.</summary>
    public bool WriteInterruptCommand(ulong value)
    {
        if (_x2Mode)
            return WriteMsr(FirstX2Msr + RegIcr, value);
        Settle();
        return !_hardwareEnabled || (TryWrite(RegIcrHigh, (uint)(value >> 32)) && TryWrite(RegIcr, (uint)value));
    }

    private bool EndsByItself(int vector)
    {
        if ((_automaticEnds![vector >> 6] >> vector & 1) == 0)
            return false;
        UpdatePriority();
        _fabric.NoteTaken((byte)vector);
        if (_tmr[vector])
            _fabric.BroadcastEndOfInterrupt((byte)vector);
        return true;
    }

    private IEndOfInterruptFlag? _endFlag;
    // An interrupt is in service that the guest may have ended already; ISR and PPR do not know.
    private volatile bool _endLent;

    /// <summary>The guest's flag, or null for none. Owner only.</summary>
    public IEndOfInterruptFlag? EndOfInterruptFlag
    {
        get => _endFlag;
        set
        {
            // After a restore the loan is there before its flag.
            if (_endFlag is not null)
                Settle();
            _endFlag = value;
        }
    }

    /// <summary>
    /// Offers the guest to end <paramref name="vector"/> through its flag. Only where nobody waits for the end: nothing else is
    /// in service or requested, and no I/O APIC must hear of it.
    /// </summary>
    private void LendEnd(int vector)
    {
        if (_tmr[vector] || _irr.Highest >= 0 || !_isr.HoldsOnly(vector) || !_endFlag!.Set())
            return;
        _endLent = true;
        // A sender sets IRR and then looks at the loan; here it is the other way round.
        Interlocked.MemoryBarrier();
        if (_irr.Highest >= 0)
            TakeBackEnd();
    }

    /// <summary>Finds out whether the guest has used its flag; it must write EOI if it has not.</summary>
    private void TakeBackEnd()
    {
        _endLent = false;
        if (_endFlag is not null && !_endFlag.Clear())
            EndOfInterrupt();
    }
}
