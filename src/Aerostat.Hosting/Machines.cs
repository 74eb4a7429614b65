using Aerostat.Machine;
using Aerostat.Snapshots;

namespace Aerostat.Hosting;

/// <summary>Makes machines for programs: options in, a machine ready to start out.</summary>
public static class Machines
{
    /// <summary>Builds the machine that the options describe and loads what it boots.</summary>
    /// <exception cref="ConfigurationException">The options cannot be met.</exception>
    /// <exception cref="Loader.BootException">What is to be booted cannot be.</exception>
    /// <exception cref="HostException">The host cannot give what the machine needs.</exception>
    public static VirtualMachine Create(MachineOptions options) => Create(options, origin: null);

    /// <summary>Builds a machine that goes on from a saved state; without one, as <see cref="Create(MachineOptions)"/>.</summary>
    /// <exception cref="State.SavedStateException">The state does not fit the machine.</exception>
    /// <exception cref="ConfigurationException">The options cannot be met.</exception>
    /// <exception cref="Loader.BootException">What is to be booted cannot be.</exception>
    /// <exception cref="HostException">The host cannot give what the machine needs.</exception>
    public static VirtualMachine Create(MachineOptions options, MachineOrigin? origin)
    {
        ArgumentNullException.ThrowIfNull(options);
        options.Validate();
        return new VirtualMachine(options, Accelerators.Create(options.Accelerator, options.CpuModel, options.Personality, options.TranslationRecord), origin);
    }

    /// <summary>Builds a machine that goes on from a snapshot. It starts with <see cref="VirtualMachine.StartAsync"/>.</summary>
    /// <param name="snapshot">The snapshot.</param>
    /// <param name="accelerator">What is to run it; null: what ran it.</param>
    /// <param name="trackChanges">Whether the first snapshot of the machine can be a differential one.</param>
    /// <param name="adjust">Changes what does not concern the guest, such as where its console goes.</param>
    /// <param name="anyDisks">Goes on with disk images that have changed since.</param>
    /// <param name="verify">
    /// Whether all of the snapshot's memory is read and checked first. Without it only manifest and page map are, memory is read as the guest looks at it, and
    /// damage in it is the guest's to find.
    /// </param>
    /// <exception cref="SnapshotException">It cannot be gone on from here.</exception>
    /// <exception cref="HostException">The host cannot give what the machine needs.</exception>
    public static VirtualMachine Restore(Snapshot snapshot, string? accelerator = null, bool trackChanges = false, Func<MachineOptions, MachineOptions>? adjust = null, bool anyDisks = false, bool verify = true)
    {
        ArgumentNullException.ThrowIfNull(snapshot);
        MachineOptions options = snapshot.ToMachineOptions(accelerator);
        return Restore(snapshot, adjust?.Invoke(options) ?? options, trackChanges, anyDisks, verify);
    }

    /// <summary>As above, with the snapshot's own options, changed in what does not concern the guest.</summary>
    /// <exception cref="SnapshotException">It cannot be gone on from here.</exception>
    /// <exception cref="HostException">The host cannot give what the machine needs.</exception>
    public static VirtualMachine Restore(Snapshot snapshot, MachineOptions options, bool trackChanges, bool anyDisks = false, bool verify = true)
    {
        ArgumentNullException.ThrowIfNull(snapshot);
        try
        {
            if (!anyDisks)
                snapshot.CheckDisks(options);
            if (verify)
                snapshot.Verify();
            return Create(options, snapshot.ToOrigin(trackChanges));
        }
        catch (Exception e) when (e is State.SavedStateException or ConfigurationException or IOException or System.ComponentModel.Win32Exception)
        {
            throw new SnapshotException($"{snapshot.Path} cannot be restored: {e.Message}", e);
        }
    }
}
