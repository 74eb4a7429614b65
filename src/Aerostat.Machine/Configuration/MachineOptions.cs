using Aerostat.Devices;
using Aerostat.Memory;
using Aerostat.Processors;

namespace Aerostat.Machine;

/// <summary>A machine as asked for.</summary>
public sealed record MachineOptions
{
    /// <summary>Most vCPUs a machine can have.</summary>
    public const int MaxCpus = 64;

    /// <summary>Least memory: conventional memory, the BIOS area, and room for a small kernel and the ACPI tables.</summary>
    public const ulong MinMemory = 2UL << 20;

    /// <summary>Most memory, for the guest's 40 physical address bits with the PCI hole taken out.</summary>
    public const ulong MaxMemory = 512UL << 30;

    /// <summary>The machine's name.</summary>
    public string Name { get; init; } = "guest";

    /// <summary>Bytes of guest memory; a multiple of 4096.</summary>
    public ulong MemoryBytes { get; init; } = 512UL << 20;

    /// <summary>Whether the host is asked for huge pages of guest memory.</summary>
    public HugePageUse HugePages { get; init; }

    /// <summary>Number of vCPUs, 1..64.</summary>
    public int Cpus { get; init; } = 1;

    /// <summary>What runs the guest's code: "auto", "interpreter", ...</summary>
    public string Accelerator { get; init; } = "auto";

    /// <summary>Versioned CPU model, "max", or null for the accelerator's default.</summary>
    public string? CpuModel { get; init; }

    /// <summary>Which hypervisor the guest sees: "none", "kvm", "vmware" or "hyperv".</summary>
    public string Personality { get; init; } = "kvm";

    /// <summary>What to start; null leaves the processor at its reset vector.</summary>
    public BootOptions? Boot { get; init; }

    /// <summary>Devices besides those of every PC.</summary>
    public IReadOnlyList<DeviceOptions> Devices { get; init; } = [];

    /// <summary>Whether a reset asked for by the guest ends the run instead.</summary>
    public bool NoReboot { get; init; }

    /// <summary>What a translator writes down while it works; null: nothing.</summary>
    public TranslationRecordOptions? TranslationRecord { get; init; }

    /// <summary>Where COM1's output goes. Called on a vCPU or timer thread with a few bytes at a time; must not block. Null: nowhere.</summary>
    public SerialOutput? Serial { get; init; }

    /// <summary>Takes what devices have to say about the guest, a line at a time. Any thread; must return at once. Null: nobody listens.</summary>
    public IDeviceLog? DeviceLog { get; init; }

    /// <summary>Throws for what cannot be built, before anything is.</summary>
    /// <exception cref="ConfigurationException">Something does not fit.</exception>
    public void Validate()
    {
        if (Cpus is < 1 or > MaxCpus)
            throw new ConfigurationException($"--cpus: {Cpus} is not possible; a machine has 1 to {MaxCpus} processors");
        if (MemoryBytes < MinMemory)
            throw new ConfigurationException($"--memory: {MemorySize.Format(MemoryBytes)} is too little; the least is {MemorySize.Format(MinMemory)}");
        if (MemoryBytes > MaxMemory)
            throw new ConfigurationException($"--memory: {MemorySize.Format(MemoryBytes)} is too much; the most is {MemorySize.Format(MaxMemory)}");
        if (MemoryBytes % GuestAddress.PageSize != 0)
            throw new ConfigurationException($"--memory: {MemoryBytes} is not a multiple of 4096; write a size such as 512M");
        if (Personality is not ("none" or KvmPersonality.Name or VmwarePersonality.Name or HyperVPersonality.Name))
            throw new ConfigurationException($"--personality: there is no personality '{Personality}'; use none, kvm, vmware or hyperv");
        if (Devices.OfType<HyperVTestDeviceOptions>().Any() && Personality != HyperVPersonality.Name)
            throw new ConfigurationException("--device hyperv-testdev: needs --personality hyperv");
        if (Boot is RealModeBootOptions code && (code.Code.IsEmpty || code.Code.Length > 0x10000 - code.Address))
            throw new ConfigurationException($"{code.Code.Length} bytes of real-mode code do not fit at 0x{code.Address:x}; they must be there and end below 64K");
        foreach (DeviceOptions device in Devices)
            device.Validate();
        foreach (BalloonOptions balloon in Devices.OfType<BalloonOptions>())
            balloon.Validate(MemoryBytes);
        if (Devices.OfType<BalloonOptions>().Count() > 1)
            throw new ConfigurationException("--balloon: a machine has one balloon at most");
        if (Personality != HyperVPersonality.Name && Devices.OfType<BalloonOptions>().Any(b => b.Driver == BalloonDriver.HyperV))
            throw new ConfigurationException("--balloon: driver=hyperv needs --personality hyperv");
        int scsi = Devices.OfType<DiskOptions>().Count(d => d.Bus == DiskBus.Scsi);
        if (scsi > 0 && Personality != HyperVPersonality.Name)
            throw new ConfigurationException("--disk: bus=scsi is Hyper-V's controller; it needs --personality hyperv");
        if (scsi > HyperV.StorageController.MostDisks)
            throw new ConfigurationException($"--disk: {scsi} disks are too many for the SCSI controller, which takes {HyperV.StorageController.MostDisks}");
    }
}

/// <summary>Takes what the guest writes to a serial port. Must return at once; the bytes are valid only during the call.</summary>
/// <param name="bytes">One or more bytes.</param>
public delegate void SerialOutput(ReadOnlySpan<byte> bytes);
