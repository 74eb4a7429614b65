using Aerostat.Devices;
using Aerostat.Memory;
using Aerostat.State;

namespace Aerostat.Chipset;

/// <summary>
/// The virtual machine generation ID: 16 bytes in guest memory that change when the machine goes on from a copy of itself ("Virtual Machine
/// Generation ID", Microsoft 2012), so that a guest draws new random numbers and identities. The guest finds them through an ACPI device of
/// the kind VM_Gen_Counter and is told of changes by a general purpose event.
/// <para>Not emulated: nothing; a change of the ID that the guest sleeps through is seen when it looks.</para>
/// </summary>
public sealed class VmGenerationId : IDevice, ISavable<VmGenerationIdSavedState>
{
    private readonly Lock _lock = new();
    private readonly GuestMemory _memory;
    private readonly Action _notify;
    private ulong? _address;

    /// <summary>Makes the device.</summary>
    /// <param name="memory">Guest memory.</param>
    /// <param name="notify">Raises the general purpose event.</param>
    public VmGenerationId(GuestMemory memory, Action notify)
    {
        _memory = memory;
        _notify = notify;
    }

    /// <inheritdoc/>
    public string Name => "vmgenid";

    /// <summary>The ID at present.</summary>
    public Guid Id { get; private set; } = Guid.NewGuid();

    /// <inheritdoc/>
    public void Reset()
    {
        // A machine that starts anew is still the same machine; the firmware tables say anew where to look.
    }

    /// <summary>Puts the ID where the firmware tables say it is.</summary>
    /// <param name="address">16 bytes of guest memory that the guest does not use otherwise.</param>
    public void Publish(ulong address)
    {
        lock (_lock)
        {
            _address = address;
            Write();
        }
    }

    /// <summary>Changes the ID and tells the guest: the machine may go on elsewhere too.</summary>
    public void Renew()
    {
        lock (_lock)
        {
            Id = Guid.NewGuid();
            if (_address is null)
                return;
            Write();
        }
        _notify();
    }

    /// <inheritdoc/>
    public VmGenerationIdSavedState Save()
    {
        lock (_lock)
            return new VmGenerationIdSavedState { Id = Id, Address = _address };
    }

    /// <inheritdoc/>
    public void Restore(VmGenerationIdSavedState state)
    {
        lock (_lock)
        {
            Id = state.Id;
            _address = state.Address;
        }
    }

    // Where there is no memory there is nobody to read it either.
    private void Write()
    {
        if (_address is { } address)
            _memory.TryWrite(new GuestAddress(address), Id.ToByteArray());
    }
}

/// <summary>A generation ID at rest.</summary>
[SavedState("vmgenid", 1)]
public sealed record VmGenerationIdSavedState
{
    /// <summary>The ID.</summary>
    public Guid Id { get; init; }
    /// <summary>Where it is in guest memory; null: the guest has no firmware tables.</summary>
    public ulong? Address { get; init; }
}
