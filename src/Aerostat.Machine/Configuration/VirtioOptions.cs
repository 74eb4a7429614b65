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

    /// <summary>Whether it is a virtio device after all, and not the same thing on the personality's own bus.</summary>
    internal virtual bool IsVirtio => true;

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
                _ => own?.Invoke(options, pair[0], value) ?? throw new ConfigurationException($"{what}: unknown key '{part}'; docs/virtio.md lists what there is"),
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

/// <summary>Where a guest finds a disk.</summary>
public enum DiskBus
{
    /// <summary>A virtio block device of its own.</summary>
    Virtio,
    /// <summary>A LUN of Hyper-V's synthetic SCSI controller, with that personality.</summary>
    Scsi,
}

/// <summary>A disk over an image: a virtio block device, or a LUN of the personality's own controller.</summary>
/// <param name="Path">The image.</param>
public sealed record DiskOptions(string Path) : VirtioOptions
{
    private const string What = "--disk";

    /// <summary>What the image is; null: its name says it (<see cref="Storage.DiskImage.FormatOf"/>), never its contents.</summary>
    public Storage.DiskFormat? ImageFormat { get; init; }

    /// <summary>The guest cannot write, and other machines may read the image too.</summary>
    public bool ReadOnly { get; init; }

    /// <summary>By what the guest can tell the disk; up to 20 characters.</summary>
    public string Serial { get; init; } = "";

    /// <summary>Queues, 1..16.</summary>
    public int Queues { get; init; } = 1;

    /// <summary>Where the guest finds it.</summary>
    public DiskBus Bus { get; init; }

    internal override string Kind => "disk";

    internal override bool IsVirtio => Bus == DiskBus.Virtio;

    /// <inheritdoc/>
    public override string? Format() => Path.Contains(',') || Serial.Contains(',')
        ? null
        : $"--disk {System.IO.Path.GetFullPath(Path)},queues={Queues}{(ImageFormat is { } format ? $",format={(format == Storage.DiskFormat.Raw ? "raw" : "qcow2")}" : "")}{(ReadOnly ? ",ro" : "")}{(Serial.Length > 0 ? $",serial={Serial}" : "")}{(IsVirtio ? "" : ",bus=scsi")}{FormatCommon()}";

    /// <summary>Reads FILE[,key=value...].</summary>
    /// <exception cref="ConfigurationException">Unknown key or a bad value.</exception>
    public static DiskOptions ParseDisk(string text) => ParseDisk(text, DiskBus.Virtio);

    /// <summary>As <see cref="ParseDisk(string)"/>, for a disk that says no bus on the given one.</summary>
    public static DiskOptions ParseDisk(string text, DiskBus bus)
    {
        ArgumentNullException.ThrowIfNull(text);
        string[] parts = text.Split(',');
        if (parts[0].Length == 0)
            throw new ConfigurationException($"{What}: the path is empty; write FILE[,format=raw or qcow2][,ro][,serial=TEXT][,queues=N][,bus=virtio or scsi]");
        return ParseCommon(What, new DiskOptions(parts[0]) { Bus = bus }, parts.Skip(1), static (disk, key, value) => key switch
        {
            "ro" => disk with { ReadOnly = ParseSwitch(What, "ro", value) },
            "format" => disk with
            {
                ImageFormat = value switch
                {
                    "raw" => Storage.DiskFormat.Raw,
                    "qcow2" => Storage.DiskFormat.Qcow2,
                    _ => throw new ConfigurationException($"{What}: there is no format '{value}'; write raw or qcow2"),
                },
            },
            "bus" => disk with
            {
                Bus = value switch
                {
                    "virtio" => DiskBus.Virtio,
                    "scsi" => DiskBus.Scsi,
                    _ => throw new ConfigurationException($"{What}: there is no bus '{value}'; write virtio or scsi"),
                },
            },
            "serial" => disk with { Serial = value ?? "" },
            "queues" => int.TryParse(value, System.Globalization.NumberStyles.None, System.Globalization.CultureInfo.InvariantCulture, out int queues)
                ? disk with { Queues = queues }
                : throw new ConfigurationException($"{What}: '{value}' is not a number of queues; write 1 to {Virtio.VirtioBlock.MaxQueues}"),
            _ => null,
        });
    }

    /// <inheritdoc/>
    public override void Validate()
    {
        if (Queues is < 1 or > Virtio.VirtioBlock.MaxQueues)
            throw new ConfigurationException($"{What}: {Queues} queues are not possible; a disk has 1 to {Virtio.VirtioBlock.MaxQueues}");
        if (Serial.Length > Virtio.VirtioBlock.SerialLength || Serial.Any(c => c is < ' ' or > '~'))
            throw new ConfigurationException($"{What}: '{Serial}' is not a serial number; it has up to {Virtio.VirtioBlock.SerialLength} printable ASCII characters");
    }
}

/// <summary>A memory balloon.</summary>
public sealed record BalloonOptions : VirtioOptions
{
    private const string What = "--balloon";
    private const ulong LeastFloor = 64 << 20;

    /// <summary>Bytes that the host wants back from the start.</summary>
    public ulong TargetBytes { get; init; }

    /// <summary>Of the machine's memory, what the guest does not have at its start and gets while it runs, by Hyper-V's dynamic memory. It counts as taken until then.</summary>
    public ulong SpareBytes { get; init; }

    /// <summary>A policy decides the target, and leaves the guest with so much at least and at most; null: whoever asks decides.</summary>
    public BalloonRange? Auto { get; init; }

    /// <summary>VM time between two requests for statistics; zero: only when asked.</summary>
    public TimeSpan StatisticsInterval { get; init; }

    /// <summary>The guest may take memory back when it runs out.</summary>
    public bool DeflateOnOom { get; init; }

    /// <summary>Offers free page hints.</summary>
    public bool Hinting { get; init; } = true;

    /// <summary>Offers free page reporting.</summary>
    public bool Reporting { get; init; } = true;

    /// <summary>For which driver it is.</summary>
    public BalloonDriver Driver { get; init; }

    internal override bool IsVirtio => Driver == BalloonDriver.Virtio;

    /// <summary>What the host wants back at first, of a machine with so much memory, besides what is spare.</summary>
    internal ulong FirstTarget(ulong memoryBytes) => Auto is { } range ? memoryBytes - Math.Min(range.Ceiling + SpareBytes, memoryBytes) : TargetBytes;

    internal override string Kind => "balloon";

    /// <inheritdoc/>
    public override string Format() =>
        $"--balloon deflate-on-oom={(DeflateOnOom ? "on" : "off")},hinting={(Hinting ? "on" : "off")},reporting={(Reporting ? "on" : "off")}"
        + (Auto is { } range ? $",auto={range.Floor}..{range.Ceiling}" : "") + (TargetBytes > 0 ? $",target={TargetBytes}" : "") + (SpareBytes > 0 ? $",spare={SpareBytes}" : "") + (StatisticsInterval > TimeSpan.Zero ? $",stats={(long)StatisticsInterval.TotalSeconds}" : "")
        + (IsVirtio ? "" : ",driver=hyperv") + FormatCommon();

    /// <summary>Reads [key=value[,key=value...]].</summary>
    /// <exception cref="ConfigurationException">Unknown key or a bad value.</exception>
    public static BalloonOptions ParseBalloon(string? text) => ParseBalloon(text, new BalloonOptions());

    /// <summary>As <see cref="ParseBalloon(string?)"/>, for what is not said starting from other values.</summary>
    public static BalloonOptions ParseBalloon(string? text, BalloonOptions start) =>
        ParseCommon(What, start, string.IsNullOrEmpty(text) ? [] : text.Split(','), static (balloon, key, value) => key switch
        {
            "target" => balloon with { TargetBytes = MemorySize.Parse(value ?? "", $"{What}: target") },
            "spare" => balloon with { SpareBytes = MemorySize.Parse(value ?? "", $"{What}: spare") },
            "auto" => balloon with
            {
                Auto = (value ?? "").Split("..") is [var floor, var ceiling]
                    ? new BalloonRange(MemorySize.Parse(floor, $"{What}: auto"), MemorySize.Parse(ceiling, $"{What}: auto"))
                    : throw new ConfigurationException($"{What}: auto is MIN..MAX, what the guest is left with, such as 256M..1G, not '{value}'"),
            },
            "stats" => balloon with
            {
                StatisticsInterval = int.TryParse(value, System.Globalization.NumberStyles.None, System.Globalization.CultureInfo.InvariantCulture, out int seconds) && seconds is > 0 and <= 86400
                    ? TimeSpan.FromSeconds(seconds)
                    : throw new ConfigurationException($"{What}: stats is a number of seconds, 1 to 86400, not '{value}'"),
            },
            "deflate-on-oom" => balloon with { DeflateOnOom = ParseSwitch(What, key, value) },
            "hinting" => balloon with { Hinting = ParseSwitch(What, key, value) },
            "reporting" => balloon with { Reporting = ParseSwitch(What, key, value) },
            "driver" => balloon with
            {
                Driver = value switch
                {
                    "virtio" => BalloonDriver.Virtio,
                    "hyperv" => BalloonDriver.HyperV,
                    _ => throw new ConfigurationException($"{What}: driver is virtio or hyperv, not '{value}'"),
                },
            },
            _ => null,
        });

    /// <summary>Checks what depends on the machine.</summary>
    internal void Validate(ulong memoryBytes)
    {
        if (TargetBytes > memoryBytes)
            throw new ConfigurationException($"{What}: the guest has {MemorySize.Format(memoryBytes)} and cannot give {MemorySize.Format(TargetBytes)}; give a smaller target");
        if (SpareBytes > 0 && IsVirtio)
            throw new ConfigurationException($"{What}: spare needs driver=hyperv, which --personality hyperv has: no other balloon can add memory");
        if (SpareBytes % Memory.GuestMemory.SpareAlignment != 0)
            throw new ConfigurationException($"{What}: spare is a multiple of {MemorySize.Format(Memory.GuestMemory.SpareAlignment)}, which is what a guest takes at a time, not {MemorySize.Format(SpareBytes)}");
        if (SpareBytes > 0 && (SpareBytes > memoryBytes || memoryBytes - SpareBytes < LeastFloor))
            throw new ConfigurationException($"{What}: with {MemorySize.Format(SpareBytes)} spare of {MemorySize.Format(memoryBytes)} the guest could not start; give it more --memory or less spare");
        if (Auto is not { } range)
            return;
        if (TargetBytes > 0)
            throw new ConfigurationException($"{What}: with auto the policy sets the target; leave one of them out");
        if (range.Floor > range.Ceiling)
            throw new ConfigurationException($"{What}: auto={MemorySize.Format(range.Floor)}..{MemorySize.Format(range.Ceiling)} has its least above its most; write MIN..MAX");
        if (range.Ceiling > memoryBytes)
            throw new ConfigurationException($"{What}: auto leaves the guest up to {MemorySize.Format(range.Ceiling)}, but it has {MemorySize.Format(memoryBytes)}; give it more memory or a smaller MAX");
        if (range.Floor < LeastFloor)
            throw new ConfigurationException($"{What}: auto would leave the guest {MemorySize.Format(range.Floor)}; no kernel lives below {MemorySize.Format(LeastFloor)}, so give a larger MIN");
    }
}

/// <summary>Which driver of the guest a balloon is for.</summary>
public enum BalloonDriver
{
    /// <summary>virtio_balloon.</summary>
    Virtio,
    /// <summary>Hyper-V's dynamic memory, hv_balloon. A machine with that personality has it without being asked.</summary>
    HyperV,
}

/// <summary>How much memory a guest is left with.</summary>
/// <param name="Floor">At least, in bytes.</param>
/// <param name="Ceiling">At most.</param>
public sealed record BalloonRange(ulong Floor, ulong Ceiling);

/// <summary>A virtio console (hvc0 in Linux), with further ports beside it or without.</summary>
public sealed record ConsoleOptions : VirtioOptions
{
    private const string What = "--device console";

    /// <summary>Ports; the first is the console.</summary>
    public int Ports { get; init; } = 1;

    /// <summary>Takes what the guest writes: port number and bytes. On the device's thread; holds the guest's writer up while it runs. Null: nowhere.</summary>
    public Action<int, ReadOnlyMemory<byte>>? Output { get; init; }

    internal override string Kind => "console";

    /// <inheritdoc/>
    public override string Format() => string.Create(
        System.Globalization.CultureInfo.InvariantCulture, $"console{(Ports > 1 ? $",ports={Ports}" : "")}{FormatCommon()}");

    /// <summary>Reads key=value after the name.</summary>
    internal static ConsoleOptions ParseConsole(IEnumerable<string> parts) => ParseCommon(What, new ConsoleOptions(), parts, static (console, key, value) => key switch
    {
        "ports" => int.TryParse(value, System.Globalization.NumberStyles.None, System.Globalization.CultureInfo.InvariantCulture, out int ports)
            ? console with { Ports = ports }
            : throw new ConfigurationException($"{What}: '{value}' is not a number of ports; write 1 to {Virtio.VirtioConsole.MaxPorts}"),
        _ => null,
    });

    /// <inheritdoc/>
    public override void Validate()
    {
        if (Ports is < 1 or > Virtio.VirtioConsole.MaxPorts)
            throw new ConfigurationException($"{What}: {Ports} ports are not possible; a console has 1 to {Virtio.VirtioConsole.MaxPorts}");
    }
}
