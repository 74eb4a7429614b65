namespace Aerostat.Devices;

/// <summary>
/// Registers that are only written to say that there is work, as far as the hypervisor can pass such writes on without the vCPU leaving the guest.
/// Reads, and writes that do not fit, still come to the device as always.
/// </summary>
public interface IDoorbells
{
    /// <summary>From now on calls <paramref name="ring"/>, on a thread of its own, for writes there, several perhaps at once.</summary>
    /// <param name="address">Guest physical address.</param>
    /// <param name="size">Bytes of a write that counts; 0: however many.</param>
    /// <param name="match">The value that counts; null: whatever it is.</param>
    /// <param name="ring">What to do. Disposing waits until it does not run, but for disposing within it.</param>
    /// <returns>Ends it; null: the hypervisor cannot, and writes come to the device.</returns>
    IDisposable? Attach(ulong address, int size, uint? match, Action ring);

    /// <summary>Waits until everything written so far has been told. No vCPU is in the guest.</summary>
    void Drain();
}

/// <summary>A device, or part of one, with such registers.</summary>
public interface IDoorbellTarget
{
    /// <summary>Their offsets. A write of any size and value there is told by a write of 2 bytes, zero.</summary>
    IReadOnlyList<ulong> DoorbellOffsets { get; }
}
