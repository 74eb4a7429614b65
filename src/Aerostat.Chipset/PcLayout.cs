namespace Aerostat.Chipset;

/// <summary>A run of port addresses.</summary>
/// <param name="First">First port.</param>
/// <param name="Count">How many ports.</param>
public readonly record struct PortRange(ushort First, ushort Count);

/// <summary>
/// The port addresses of the PC as this chipset wires it. A port access belongs to the range that holds its first byte and
/// is handed over whole: the dword port 0xCF8 and the byte port 0xCF9 rely on it.
/// </summary>
public static class PcPorts
{
    /// <summary>8259A pair (<see cref="Chipset.Pic"/>): master, slave, edge/level control.</summary>
    public static IReadOnlyList<PortRange> Pic => [new(0x20, 2), new(0xA0, 2), new(0x4D0, 2)];

    /// <summary>8254 (<see cref="Chipset.Pit"/>).</summary>
    public static PortRange Pit => new(0x40, 4);

    /// <summary>System control port B (<see cref="Chipset.SystemControlPortB"/>).</summary>
    public static PortRange SystemControlB => new(0x61, 1);

    /// <summary>System control port A (<see cref="Chipset.SystemControlPortA"/>).</summary>
    public static PortRange SystemControlA => new(0x92, 1);

    /// <summary>RTC and CMOS (<see cref="Chipset.Rtc"/>).</summary>
    public static PortRange Rtc => new(0x70, 2);

    /// <summary>8042: data, then command and status.</summary>
    public static IReadOnlyList<PortRange> I8042 => [new(0x60, 1), new(0x64, 1)];

    /// <summary>COM1 (<see cref="Serial16550"/>), IRQ 4.</summary>
    public static PortRange Com1 => new(0x3F8, 8);

    /// <summary>COM2 (<see cref="Serial16550"/>), IRQ 3.</summary>
    public static PortRange Com2 => new(0x2F8, 8);

    /// <summary>PCI configuration mechanism 1 (<see cref="PciConfigurationPorts"/>).</summary>
    public static IReadOnlyList<PortRange> PciConfiguration => [new(0xCF8, 1), new(0xCFC, 4)];

    /// <summary>Reset control register (<see cref="Chipset.ResetControl"/>).</summary>
    public static PortRange ResetControl => new(0xCF9, 1);

    /// <summary>PM1a event, PM1a control and PM timer blocks, and GPE0 (<see cref="Chipset.AcpiPm"/>).</summary>
    public static IReadOnlyList<PortRange> AcpiPm => [new(PcLayout.Pm1aEventPort, 12), new(PcLayout.Gpe0Port, PcLayout.Gpe0Length)];

    /// <summary>Where kvm-unit-tests and others expect the debug-exit port by default.</summary>
    public static ushort DebugExit => 0xF4;
}

/// <summary>
/// The addresses and numbers that the firmware tables (ACPI, MP) must repeat. The ACPI writer takes them as options, because
/// it may not reference this project.
/// </summary>
public static class PcLayout
{
    /// <summary>Local APIC page at reset.</summary>
    public const ulong LocalApicBase = 0xFEE0_0000;
    /// <summary>Local APIC page size.</summary>
    public const ulong LocalApicSize = 0x1000;
    /// <summary>I/O APIC registers.</summary>
    public const ulong IoApicBase = 0xFEC0_0000;
    /// <summary>I/O APIC region size.</summary>
    public const ulong IoApicSize = 0x1000;
    /// <summary>I/O APIC pins, GSI 0..23.</summary>
    public const int IoApicPins = 24;
    /// <summary>HPET registers.</summary>
    public const ulong HpetBase = 0xFED0_0000;
    /// <summary>HPET region size.</summary>
    public const ulong HpetSize = 0x1000;
    /// <summary>PCI Express enhanced configuration window (MCFG).</summary>
    public const ulong EcamBase = 0xE000_0000;
    /// <summary>Window size: 256 buses.</summary>
    public const ulong EcamSize = 0x1000_0000;

    /// <summary>32-bit addresses for PCI functions, below the configuration window.</summary>
    public const ulong PciWindowBase = 0xC000_0000;
    /// <summary>Size of that window.</summary>
    public const ulong PciWindowSize = 0x2000_0000;
    /// <summary>32-bit addresses for PCI functions, above the configuration window.</summary>
    public const ulong PciHighWindowBase = 0xF000_0000;
    /// <summary>Size of that window.</summary>
    public const ulong PciHighWindowSize = 0x0EC0_0000;

    /// <summary>First of the virtio devices with memory-mapped registers; each takes <see cref="VirtioMmioStride"/>.</summary>
    public const ulong VirtioMmioBase = 0xFEC8_0000;
    /// <summary>Distance between two of them.</summary>
    public const ulong VirtioMmioStride = 0x1000;
    /// <summary>ISA interrupts that nothing else uses, for these devices in turn.</summary>
    public static IReadOnlyList<int> VirtioMmioIrqs { get; } = [5, 10, 7, 6, 15, 14, 11];

    /// <summary>GSI of a PCI slot's pin, 0 (INTA#) to 3.</summary>
    public static int PciGsi(int slot, int pin) => 16 + ((slot + pin) & 3);

    /// <summary>The GSI that ISA IRQ 0 (the 8254) arrives on: MADT interrupt source override 0 to 2, edge, active high.</summary>
    public const int TimerGsi = 2;
    /// <summary>ACPI interrupt (FADT SCI_INT): level, active high; needs a MADT override and an ELCR bit.</summary>
    public const int SciIrq = 9;
    /// <summary>RTC and HPET comparator 1 in legacy mode.</summary>
    public const int RtcIrq = 8;
    /// <summary>COM1.</summary>
    public const int Com1Irq = 4;
    /// <summary>COM2.</summary>
    public const int Com2Irq = 3;
    /// <summary>Keyboard.</summary>
    public const int KeyboardIrq = 1;

    /// <summary>FADT PM1a_EVT_BLK, 4 bytes.</summary>
    public const ushort Pm1aEventPort = 0x600;
    /// <summary>FADT PM1a_CNT_BLK, 2 bytes.</summary>
    public const ushort Pm1aControlPort = 0x604;
    /// <summary>FADT PM_TMR_BLK, 4 bytes.</summary>
    public const ushort PmTimerPort = 0x608;
    /// <summary>FADT GPE0_BLK.</summary>
    public const ushort Gpe0Port = 0x620;
    /// <summary>FADT GPE0_BLK_LEN: two bytes of status, two of enable.</summary>
    public const ushort Gpe0Length = 4;
    /// <summary>General purpose event of the machine's generation ID (<see cref="VmGenerationId"/>).</summary>
    public const int GenerationIdEvent = 5;
    /// <summary>SLP_TYP of \_S5 in the DSDT.</summary>
    public const byte SleepTypeS5 = 5;
    /// <summary>SLP_TYP of \_S3 in the DSDT.</summary>
    public const byte SleepTypeS3 = 1;
    /// <summary>FADT RESET_REG, system I/O, one byte.</summary>
    public const ushort ResetPort = 0xCF9;
    /// <summary>FADT RESET_VALUE.</summary>
    public const byte ResetValue = 0x0E;
    /// <summary>FADT CENTURY.</summary>
    public const byte CenturyIndex = 0x32;

    /// <summary>The local APIC timer's input clock, which CPUID.15H ECX must repeat.</summary>
    public const long LocalApicTimerHz = 25_000_000;
    /// <summary>The HPET's period in femtoseconds: 100 MHz.</summary>
    public const uint HpetPeriodFemtoseconds = 10_000_000;
}
