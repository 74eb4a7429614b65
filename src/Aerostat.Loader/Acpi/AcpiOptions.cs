namespace Aerostat.Loader;

/// <summary>A range of addresses.</summary>
/// <param name="First">First address.</param>
/// <param name="Last">Last address.</param>
public readonly record struct AddressRange(ulong First, ulong Last);

/// <summary>A 16550 serial port in the description of the machine.</summary>
/// <param name="Number">1 for COM1.</param>
/// <param name="Port">First of its eight I/O ports.</param>
/// <param name="Irq">ISA interrupt.</param>
public readonly record struct AcpiSerialPort(int Number, ushort Port, int Irq);

/// <summary>What the ACPI tables describe. The defaults are the PC that Aerostat builds.</summary>
public sealed class AcpiOptions
{
    /// <summary>APIC id of each vCPU; its place in the list is its ACPI id.</summary>
    public required IReadOnlyList<uint> ApicIds { get; init; }

    /// <summary>Local APIC.</summary>
    public uint LocalApicAddress { get; init; } = 0xFEE00000;
    /// <summary>I/O APIC; its inputs are GSI 0 to 23.</summary>
    public uint IoApicAddress { get; init; } = 0xFEC00000;
    /// <summary>Id of the I/O APIC.</summary>
    public byte IoApicId { get; init; }

    /// <summary>HPET registers; 0: no HPET.</summary>
    public uint HpetAddress { get; init; } = 0xFED00000;
    /// <summary>Low half of the HPET's capability register: vendor, legacy replacement, 64-bit, comparators, revision.</summary>
    public uint HpetBlockId { get; init; } = 0x8086A201;
    /// <summary>Shortest period the HPET takes in periodic mode, in its ticks.</summary>
    public ushort HpetMinimumTick { get; init; } = 0x80;

    /// <summary>PCI Express configuration window; 0: none.</summary>
    public ulong EcamAddress { get; init; } = 0xE0000000;
    /// <summary>Last bus of the window; each bus takes 1 MiB.</summary>
    public byte EcamLastBus { get; init; } = 255;
    /// <summary>32-bit addresses that PCI devices may use.</summary>
    public IReadOnlyList<AddressRange> PciWindows32 { get; init; } = [new(0xC0000000, 0xDFFFFFFF), new(0xF0000000, 0xFEBFFFFF)];
    /// <summary>64-bit addresses that PCI devices may use, above RAM; none: no such window.</summary>
    public AddressRange? PciWindow64 { get; init; }
    /// <summary>GSI of pin 0 (INTA) to 3 of a slot on bus 0.</summary>
    public Func<int, int, uint> PciInterruptRoute { get; init; } = static (slot, pin) => 16 + (uint)((slot + pin) & 7);

    /// <summary>System control interrupt: ISA number and GSI; level.</summary>
    public byte SciInterrupt { get; init; } = 9;
    /// <summary>Whether the SCI is active low; else active high.</summary>
    public bool SciActiveLow { get; init; }
    /// <summary>PM1a event block, 4 bytes.</summary>
    public ushort Pm1EventPort { get; init; } = 0x600;
    /// <summary>PM1a control block, 2 bytes.</summary>
    public ushort Pm1ControlPort { get; init; } = 0x604;
    /// <summary>Power management timer, 4 bytes.</summary>
    public ushort PmTimerPort { get; init; } = 0x608;
    /// <summary>Whether the timer counts 32 bits; else 24.</summary>
    public bool PmTimerIs32Bit { get; init; } = true;
    /// <summary>Whether an RTC alarm sets RTC_STS in the PM1 status.</summary>
    public bool HasFixedRtcWake { get; init; } = true;
    /// <summary>General-purpose event block 0.</summary>
    public ushort Gpe0Port { get; init; } = 0x620;
    /// <summary>Bytes of it, status and enable together.</summary>
    public byte Gpe0Length { get; init; } = 4;
    /// <summary>Reset register.</summary>
    public ushort ResetPort { get; init; } = 0xCF9;
    /// <summary>Value that resets.</summary>
    public byte ResetValue { get; init; } = 0x0E;
    /// <summary>SLP_TYP of S5 in PM1 control.</summary>
    public byte SleepTypeS5 { get; init; } = 5;
    /// <summary>SLP_TYP of S3; null: the machine cannot suspend to RAM.</summary>
    public byte? SleepTypeS3 { get; init; } = 1;

    /// <summary>Serial ports.</summary>
    public IReadOnlyList<AcpiSerialPort> SerialPorts { get; init; } = [new(1, 0x3F8, 4)];
    /// <summary>Whether there is a keyboard controller with a keyboard, not only its reset line.</summary>
    public bool HasKeyboardController { get; init; }

    /// <summary>Where the guest finds the machine's generation ID; 0: there is none.</summary>
    public ulong GenerationIdAddress { get; init; }
    /// <summary>General purpose event that tells of its changes, 0 to 15.</summary>
    public int GenerationIdEvent { get; init; }

    /// <summary>
    /// More of the machine, written into \_SB after what is there: each adds its devices (virtio-mmio, VMBus, VMGENID...).
    /// </summary>
    public IList<Action<AmlBuilder>> Devices { get; init; } = [];
}
