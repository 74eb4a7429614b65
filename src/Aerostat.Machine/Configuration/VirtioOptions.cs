namespace Aerostat.Machine;

/// <summary>How a virtio device is reached.</summary>
public enum VirtioTransport
{
    /// <summary>A PCI function.</summary>
    Pci,
    /// <summary>Memory-mapped registers, described in the DSDT.</summary>
    Mmio,
}

/// <summary>A virtio device.</summary>
public abstract record VirtioOptions : DeviceOptions
{
    /// <summary>How it is reached.</summary>
    public VirtioTransport Transport { get; init; }

    /// <summary>Offers the packed form of the ring, which a driver then takes.</summary>
    public bool Packed { get; init; }

    /// <summary>First part of the device's name; a number follows.</summary>
    internal abstract string Kind { get; }

    /// <summary>The keys that every virtio device has, as <see cref="ParseCommon"/> reads them.</summary>
    private protected string FormatCommon() => (Transport == VirtioTransport.Mmio ? ",transport=mmio" : "") + (Packed ? ",packed=on" : "");

    /// <summary>Reads the keys that every virtio device has, and hands the others on.</summary>
    /// <param name="what">For errors.</param>
    /// <param name="options">What to start from.</param>
    /// <param name="parts">KEY=VALUE or KEY.</param>
    /// <param name="own">Takes a key of the device's own; null: it has no such key.</param>
    internal static T ParseCommon<T>(string what, T options, IEnumerable<string> parts, Func<T, string, string?, T?>? own = null)
        where T : VirtioOptions
    {
        foreach (string part in parts)
        {
            string[] pair = part.Split('=', 2);
            string? value = pair.Length == 2 ? pair[1] : null;
            options = pair[0] switch
            {
                "transport" => options with
                {
                    Transport = value switch
                    {
                        "pci" => VirtioTransport.Pci,
                        "mmio" => VirtioTransport.Mmio,
                        _ => throw new ConfigurationException($"{what}: transport is pci or mmio, not '{value}'"),
                    },
                },
                "packed" => options with { Packed = ParseSwitch(what, "packed", value) },
                _ => own?.Invoke(options, pair[0], value) ?? throw new ConfigurationException($"{what}: unknown key '{part}'; '--device help' lists what there is"),
            };
        }
        return options;
    }

    /// <summary>on, off, or nothing for on.</summary>
    internal static bool ParseSwitch(string what, string key, string? value) => value switch
    {
        null or "on" => true,
        "off" => false,
        _ => throw new ConfigurationException($"{what}: {key} is on or off, not '{value}'"),
    };
}

/// <summary>A virtio entropy source.</summary>
public sealed record RngOptions : VirtioOptions
{
    internal override string Kind => "rng";

    /// <inheritdoc/>
    public override string Format() => $"rng{FormatCommon()}";
}
