using System.Globalization;

namespace Aerostat.Machine;

/// <summary>A device that is not on every PC.</summary>
public abstract record DeviceOptions
{
    /// <summary>Devices that <c>--device</c> takes, with what they are, for help.</summary>
    public static IReadOnlyList<(string Syntax, string Meaning)> Known { get; } =
    [
        ("debug-exit[,port=0xf4]", "a write of VALUE to the port ends the run with exit status (VALUE << 1) | 1"),
        ("testdev", "what kvm-unit-tests expects: interrupt lines at port 0x2000, latches at 0xe0, bytes at 0xff000000"),
        ("hyperv-testdev", "what kvm-unit-tests' Hyper-V tests expect: port 0x3000; with --personality hyperv"),
        ("rng[,transport=pci|mmio][,packed=on|off]", "virtio entropy source: the host's random numbers as /dev/hwrng"),
        ("console[,ports=N][,transport=pci|mmio]", "virtio console: hvc0, whose output goes to standard output; more ports are for programs"),
    ];

    /// <summary>Throws for impossible values.</summary>
    /// <exception cref="ConfigurationException">A value does not fit.</exception>
    public virtual void Validate()
    {
    }

    /// <summary>What <see cref="ParseSaved"/> reads as the same; null: it cannot be said in a line.</summary>
    public virtual string? Format() => null;

    /// <summary>Reads what <see cref="Format"/> writes: as <see cref="Parse"/> reads it, or an option of its own.</summary>
    /// <exception cref="ConfigurationException">Unknown device or key, or a bad value.</exception>
    public static DeviceOptions ParseSaved(string text)
    {
        ArgumentNullException.ThrowIfNull(text);
        string[] words = text.Split(' ', 2);
        return words[0] switch
        {
            "--disk" => DiskOptions.ParseDisk(words.Length == 2 ? words[1] : ""),
            "--balloon" => BalloonOptions.ParseBalloon(words.Length == 2 ? words[1] : null),
            _ => Parse(text),
        };
    }

    /// <summary>Reads NAME[,key=value...].</summary>
    /// <exception cref="ConfigurationException">Unknown device or key, or a bad value.</exception>
    public static DeviceOptions Parse(string text)
    {
        string[] parts = text.Split(',');
        switch (parts[0])
        {
            case "debug-exit":
                DebugExitOptions result = new();
                foreach (string part in parts.Skip(1))
                    result = part.Split('=', 2) is ["port", var value]
                        ? result with { Port = ParsePort(value) }
                        : throw new ConfigurationException($"--device debug-exit: unknown key '{part}'; it has port=NUMBER");
                return result;
            case "testdev":
                return parts.Length == 1
                    ? new TestDeviceOptions()
                    : throw new ConfigurationException($"--device testdev: unknown key '{parts[1]}'; it has none");
            case "rng":
                return VirtioOptions.ParseCommon("--device rng", new RngOptions(), parts.Skip(1));
            case "balloon":
                return BalloonOptions.ParseBalloon(string.Join(',', parts.Skip(1)));
            case "console":
                return ConsoleOptions.ParseConsole(parts.Skip(1));
            case "hyperv-testdev":
                return parts.Length == 1
                    ? new HyperVTestDeviceOptions()
                    : throw new ConfigurationException($"--device hyperv-testdev: unknown key '{parts[1]}'; it has none");
            case "vsock":
                throw new ConfigurationException($"--device: '{parts[0]}' comes with a later version; '--device help' lists what there is");
            default:
                throw new ConfigurationException($"--device: there is no device '{parts[0]}'; '--device help' lists what there is");
        }
    }

    private static ushort ParsePort(string text)
    {
        bool hex = text.StartsWith("0x", StringComparison.OrdinalIgnoreCase);
        return ushort.TryParse(hex ? text.AsSpan(2) : text, hex ? NumberStyles.HexNumber : NumberStyles.None, CultureInfo.InvariantCulture, out ushort port)
            ? port
            : throw new ConfigurationException($"--device debug-exit: '{text}' is not a port; write 0 to 0xffff");
    }
}

/// <summary>A port whose writes end the machine with an exit status.</summary>
public sealed record DebugExitOptions : DeviceOptions
{
    /// <summary>The port.</summary>
    public ushort Port { get; init; } = 0xF4;

    /// <inheritdoc/>
    public override string Format() => string.Create(CultureInfo.InvariantCulture, $"debug-exit,port=0x{Port:x}");
}

/// <summary>The device that kvm-unit-tests expects.</summary>
public sealed record TestDeviceOptions : DeviceOptions
{
    /// <inheritdoc/>
    public override string Format() => "testdev";
}

/// <summary>The device that kvm-unit-tests' Hyper-V tests expect.</summary>
public sealed record HyperVTestDeviceOptions : DeviceOptions
{
    /// <inheritdoc/>
    public override string Format() => "hyperv-testdev";
}
