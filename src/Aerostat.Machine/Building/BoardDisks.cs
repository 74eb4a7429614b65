using Aerostat.Storage;

namespace Aerostat.Machine;

/// <summary>The contents of a board's disks, on whatever bus the guest finds them.</summary>
internal sealed class BoardDisks : IDisposable
{
    private readonly List<MachineDisk> disks = [];

    /// <summary>Opens what the options name.</summary>
    /// <exception cref="ConfigurationException">An image cannot be used.</exception>
    public BoardDisks(IEnumerable<DeviceOptions> devices)
    {
        try
        {
            foreach (DiskOptions options in devices.OfType<DiskOptions>())
                disks.Add(Open($"{options.Kind}{disks.Count}", options));
        }
        catch
        {
            Dispose();
            throw;
        }
    }

    /// <summary>The disks, in the order of the options.</summary>
    public IReadOnlyList<MachineDisk> All => disks;

    /// <summary>Those on the synthetic SCSI controller.</summary>
    public IEnumerable<MachineDisk> OnScsi => disks.Where(d => d.Options.Bus == DiskBus.Scsi);

    /// <summary>A disk's contents.</summary>
    public TrackedDisk this[string name] => disks.First(d => d.Name == name).Contents;

    /// <summary>Closes them. Nobody uses them any more.</summary>
    public void Dispose() => disks.ForEach(d => d.Contents.Dispose());

    private static MachineDisk Open(string name, DiskOptions options)
    {
        try
        {
            return new MachineDisk(name, options, new TrackedDisk(DiskImage.Open(options.Path, options.ImageFormat, options.ReadOnly), options.Path));
        }
        catch (IOException e)
        {
            throw new ConfigurationException($"--disk: cannot use {options.Path}: {e.Message.ReplaceLineEndings(" ")}", e);
        }
    }
}
