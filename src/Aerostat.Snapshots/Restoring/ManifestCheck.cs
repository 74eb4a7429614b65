using Aerostat.Machine;

namespace Aerostat.Snapshots;

/// <summary>Whether what a manifest says makes sense. Nobody trusts a file because its checksum fits.</summary>
internal static class ManifestCheck
{
    // VM time is counted in nanoseconds, and added to the time of day.
    private const long LongestTime = 1L << 60;

    private static readonly DateTimeOffset s_firstDay = new(1970, 1, 1, 0, 0, 0, TimeSpan.Zero), s_lastDay = new(9000, 1, 1, 0, 0, 0, TimeSpan.Zero);

    /// <summary>How many pages the memory has.</summary>
    /// <exception cref="SnapshotException">The manifest makes no sense.</exception>
    public static ulong Pages(SnapshotManifest manifest, string name)
    {
        ulong end = 0, bytes = 0;
        foreach (SnapshotRegion? region in manifest.Memory.Regions)
        {
            if (region is null || region.Size == 0 || ((region.Base | region.Size) & 4095) != 0 || region.Base < end || region.Base > 1UL << 52 || region.Size > 1UL << 52)
                throw Senseless(name, "its memory regions are empty, unaligned or overlap");
            end = region.Base + region.Size;
            bytes += region.Size;
        }
        if (bytes != manifest.Machine.MemoryBytes || bytes > MachineOptions.MaxMemory || bytes == 0)
            throw Senseless(name, $"its memory regions have {bytes} bytes, and the machine {manifest.Machine.MemoryBytes}");
        if (manifest.Memory.MapBytes < 0 || manifest.Memory.MapBytes > LargestMap(bytes / PageMap.PageSize))
            throw Senseless(name, $"a page map of {manifest.Memory.MapBytes} bytes is too large for its memory");
        if (manifest.State.Timestamp is < 0 or > LongestTime || manifest.State.BootTime < s_firstDay || manifest.State.BootTime > s_lastDay)
            throw Senseless(name, "its clock is out of range");
        if (manifest.State.Elements.Any(e => e is null))
            throw Senseless(name, "it has a part without a state");
        if (manifest.Disks?.Any(d => d is null || d.Under?.Any(u => u is null) == true) == true)
            throw Senseless(name, "it has a disk that it does not describe");
        return bytes / PageMap.PageSize;
    }

    /// <summary>Whether manifest and page map agree.</summary>
    public static void Counts(SnapshotManifest manifest, PageMap map, string name)
    {
        SnapshotMemory memory = manifest.Memory;
        if (memory.DataPages != map.CountOf(PageKind.Data) || memory.ZeroPages != map.CountOf(PageKind.Zero) || memory.DiscardedPages != map.CountOf(PageKind.Discarded)
            || memory.HintedPages != map.CountOf(PageKind.Hinted) || memory.UnchangedPages != map.CountOf(PageKind.Unchanged))
            throw Senseless(name, "its page map counts other pages than it");
        if (memory.UnchangedPages != 0 && manifest.Parent is null)
            throw Senseless(name, "it has unchanged pages, and builds on no other snapshot");
    }

    /// <summary>The machine as options.</summary>
    public static MachineOptions Options(SnapshotManifest manifest, string name, string? accelerator)
    {
        SnapshotMachine machine = manifest.Machine;
        try
        {
            MachineOptions options = new()
            {
                Name = machine.Name,
                MemoryBytes = machine.MemoryBytes,
                Cpus = machine.Cpus,
                Accelerator = accelerator ?? machine.Accelerator,
                CpuModel = machine.CpuModel,
                Personality = machine.Personality,
                Devices = [.. machine.Devices.Select(d => DeviceOptions.ParseSaved(d ?? ""))],
                Boot = machine.Boot switch
                {
                    { Kernel: { } kernel } boot => new KernelBootOptions(kernel) { Initrd = boot.Initrd, CommandLine = boot.CommandLine },
                    { Code: { } code } boot => new RealModeBootOptions(code, boot.Address),
                    _ => new UnavailableBootOptions("the snapshot does not say what the machine boots, because that was not a file"),
                },
            };
            options.Validate();
            return options;
        }
        catch (ConfigurationException e)
        {
            throw new SnapshotException($"{name} is of a machine that cannot be made here: {e.Message}", e);
        }
    }

    // A run and a checksum for every page, at worst.
    private static long LargestMap(ulong pages) => 256 + ((long)pages * (sizeof(ulong) + Checksum.Size));

    private static SnapshotException Senseless(string name, string why) => new($"{name} is not a snapshot's manifest: {why}");
}
