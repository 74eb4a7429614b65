using System.Security.Cryptography;
using System.Text;
using Aerostat.Chipset;
using Aerostat.Loader;
using Aerostat.Memory;
using Aerostat.Processors;
using Aerostat.VMware;

namespace Aerostat.Machine;

/// <summary>What all vCPUs of a machine with the VMware personality share: the backdoor, the guest's tools behind it, and the balloon.</summary>
internal sealed class VmwareParts
{
    private readonly GuestMemory memory;

    public VmwareParts(MachineOptions options, GuestMemory memory, TimeProvider clock, ITimestampCounter timestamp, VmciDevice vmci, bool x2Apic, bool transfers)
    {
        this.memory = memory;
        Tools = new GuestTools(clock, options.DeviceLog, transfers);
        Freezer = new ToolsFreezer(Tools, clock);
        Backdoor = new VmwareBackdoor(new VmwareBackdoorOptions
        {
            Uuid = UuidOf(options.Name),
            MemoryBytes = options.MemoryBytes,
            TscFrequencyHz = timestamp.FrequencyHz,
            ApicFrequencyHz = PcLayout.LocalApicTimerHz,
            X2Apic = x2Apic,
            Clock = clock,
            HostClock = TimeProvider.System,
        }, Tools);
        Vmci = vmci;
        Balloon = new VmwareBalloon(memory, clock, vmci: vmci);
    }

    public VmwareBackdoor Backdoor { get; }

    public VmwareBalloon Balloon { get; }

    public VmciDevice Vmci { get; }

    public GuestTools Tools { get; }

    public ToolsFreezer Freezer { get; }

    /// <summary>Connects a vCPU; <paramref name="thread"/> tells the host's number of its thread.</summary>
    public VmwareVcpu Connect(IVirtualProcessor processor, Func<int> thread) => new(Backdoor, Balloon, memory, processor.Timestamp, thread);

    /// <summary>The parts' figures, by name.</summary>
    public void AddCounters(Dictionary<string, long> counters)
    {
        foreach ((string name, long value) in Balloon.Counters)
            counters[$"{Balloon.Name}-{name}"] = value;
        foreach ((string name, long value) in Vmci.Counters)
            counters[$"{Vmci.Name}-{name}"] = value;
        foreach ((string name, long value) in Backdoor.Counters)
            counters[$"{Backdoor.Name}-{name}"] = value;
        foreach ((string name, long value) in Tools.Counters)
            counters[$"{Tools.Name}-{name}"] = value;
    }

    /// <summary>SMBIOS by which a stock kernel knows the machine, and loads the driver of the balloon.</summary>
    public static SmbiosOptions Describe(MachineOptions options)
    {
        Guid uuid = UuidOf(options.Name);
        byte[] bytes = uuid.ToByteArray(bigEndian: true);
        string Hex(Range range) => string.Join(' ', bytes[range].Select(b => b.ToString("x2", System.Globalization.CultureInfo.InvariantCulture)));
        return new SmbiosOptions
        {
            Processors = options.Cpus,
            MemoryBytes = options.MemoryBytes,
            Manufacturer = "VMware, Inc.",
            Product = "VMware Virtual Platform",
            Version = "None",
            Serial = $"VMware-{Hex(..8)}-{Hex(8..)}",
            Uuid = uuid,
        };
    }

    // The same name gives the same machine, in SMBIOS and through the backdoor (RFC 9562, version 8: 48, 12 and 62 bits of our own).
    internal static Guid UuidOf(string name)
    {
        Span<byte> hash = SHA256.HashData(Encoding.UTF8.GetBytes($"aerostat {name}")).AsSpan(0, 16);
        hash[6] = (byte)((hash[6] & 0x0F) | 0x80);
        hash[8] = (byte)((hash[8] & 0x3F) | 0x80);
        return new Guid(hash, bigEndian: true);
    }
}
