using System.Globalization;
using Aerostat.Chipset;
using Aerostat.Loader;

namespace Aerostat.Machine;

/// <summary>Where a virtio device sits.</summary>
/// <param name="Options">The device.</param>
/// <param name="Name">Its name: kind and number.</param>
/// <param name="Index">PCI slot, or number among the memory-mapped ones.</param>
internal sealed record VirtioPlace(VirtioOptions Options, string Name, int Index)
{
    /// <summary>Registers of a memory-mapped device.</summary>
    public ulong Address => PcLayout.VirtioMmioBase + ((ulong)Index * PcLayout.VirtioMmioStride);

    /// <summary>Its interrupt: of a memory-mapped device, or INTA# of a slot.</summary>
    public int Gsi => Options.Transport == VirtioTransport.Mmio ? PcLayout.VirtioMmioIrqs[Index % PcLayout.VirtioMmioIrqs.Count] : PcLayout.PciGsi(Index, 0);
}

/// <summary>Gives virtio devices their places, in the order of the options: the board and the firmware tables must say the same.</summary>
internal static class VirtioPlacement
{
    /// <summary>The last slot, which is a personality's.</summary>
    public const int PersonalitySlot = 31;

    private const int PciSlots = PersonalitySlot - 1, MmioSlots = 32;

    /// <summary>The places.</summary>
    /// <exception cref="ConfigurationException">There are more devices than places.</exception>
    public static IReadOnlyList<VirtioPlace> Of(IEnumerable<DeviceOptions> devices)
    {
        List<VirtioPlace> places = [];
        Dictionary<string, int> numbers = [];
        // Slot 0 is the host bridge's.
        int slot = 1, mmio = 0;
        foreach (VirtioOptions options in devices.OfType<VirtioOptions>())
        {
            int number = numbers.GetValueOrDefault(options.Kind);
            numbers[options.Kind] = number + 1;
            if (!options.IsVirtio)
                continue;
            int index = options.Transport == VirtioTransport.Pci ? slot++ : mmio++;
            if (slot > PciSlots + 1 || mmio > MmioSlots)
                throw new ConfigurationException($"there are too many virtio devices; a machine takes {PciSlots} on PCI and {MmioSlots} memory-mapped ones");
            places.Add(new VirtioPlace(options, $"{options.Kind}{number}", index));
        }
        return places;
    }

    /// <summary>What the DSDT says of the memory-mapped ones.</summary>
    public static IEnumerable<Action<AmlBuilder>> Describe(IEnumerable<DeviceOptions> devices) =>
        Of(devices).Where(p => p.Options.Transport == VirtioTransport.Mmio).Select(p => (Action<AmlBuilder>)(sb => sb.Device($"VR{p.Index:X2}", d => d
            .Name("_HID", "LNRO0005")
            .Name("_UID", (ulong)p.Index)
            .Name("_CCA", 1)
            .Name("_CRS", v => v.ResourceTemplate(r => r
                .Memory32Fixed((uint)p.Address, (uint)PcLayout.VirtioMmioStride)
                .Interrupt((uint)p.Gsi, level: true, activeLow: false, shared: true))))));

    /// <summary>A kernel that does not read ACPI tables finds the memory-mapped devices on its command line.</summary>
    public static string ExtendCommandLine(string commandLine, IEnumerable<DeviceOptions> devices) =>
        !commandLine.Split(' ').Contains("acpi=off") ? commandLine : string.Concat(
            Of(devices).Where(p => p.Options.Transport == VirtioTransport.Mmio)
                .Select(p => string.Create(CultureInfo.InvariantCulture, $" virtio_mmio.device=4K@0x{p.Address:x}:{p.Gsi}"))
                .Prepend(commandLine));
}
