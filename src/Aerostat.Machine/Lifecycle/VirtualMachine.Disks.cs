using Aerostat.Storage;

namespace Aerostat.Machine;

/// <summary>A disk of a machine.</summary>
/// <param name="Name">The device's name, such as "disk0".</param>
/// <param name="Options">As it was asked for.</param>
/// <param name="Contents">What is on it; the machine disposes of it.</param>
public sealed record MachineDisk(string Name, DiskOptions Options, TrackedDisk Contents);

/// <content>The disks.</content>
public sealed partial class VirtualMachine
{
    private readonly BoardDisks disks;

    /// <summary>The disks, in the order in which they were asked for.</summary>
    public IReadOnlyList<MachineDisk> Disks => disks.All;
}
