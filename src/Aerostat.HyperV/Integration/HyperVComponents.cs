namespace Aerostat.HyperV;

/// <summary>The integration components of a machine: what the guest's own drivers and daemons do for the host.</summary>
public sealed class HyperVComponents
{
    /// <summary>Makes the components and offers them on a bus.</summary>
    /// <param name="bus">The bus.</param>
    /// <param name="host">The time of day.</param>
    /// <param name="note">Takes what happens with freezes, in lines.</param>
    /// <param name="memory">Dynamic memory, which rests while the guest is frozen; null: there is none.</param>
    public HyperVComponents(VmBusServer bus, TimeProvider host, Action<string>? note, DynamicMemory? memory = null)
    {
        ArgumentNullException.ThrowIfNull(bus);
        TimeSynchronization = new TimeSynchronization(host);
        Volumes.Journal = note;
        Volumes.Hold = on =>
        {
            KeyValues.Hold(on);
            Files.Hold(on);
            memory?.Hold(on);
        };
        foreach (IntegrationComponent component in All)
            bus.Add(component);
        if (memory is not null)
            bus.Add(memory);
    }

    /// <summary>Heartbeat.</summary>
    public Heartbeat Heartbeat { get; } = new();

    /// <summary>Key/value exchange.</summary>
    public KeyValueExchange KeyValues { get; } = new();

    /// <summary>Shutdown and restart.</summary>
    public GuestShutdown Shutdown { get; } = new();

    /// <summary>Time synchronization.</summary>
    public TimeSynchronization TimeSynchronization { get; }

    /// <summary>Freezing of file systems.</summary>
    public VolumeSnapshots Volumes { get; } = new();

    /// <summary>Copying of files into the guest.</summary>
    public FileCopy Files { get; } = new();

    /// <summary>All of them.</summary>
    public IReadOnlyList<IntegrationComponent> All => [Heartbeat, KeyValues, Shutdown, TimeSynchronization, Volumes, Files];
}
