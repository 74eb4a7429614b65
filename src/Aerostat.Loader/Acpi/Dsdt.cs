using System.Globalization;

namespace Aerostat.Loader;

/// <summary>
/// The differentiated system description table: what of the machine cannot be found by probing. The power button is a fixed feature
/// and thus not here.
/// </summary>
internal static class Dsdt
{
    // OSC capability dword 3 bits that this machine leaves to the guest: native hot plug, PME, PCIe capability structure.
    private const ulong GrantedControls = 0x1D;

    // UUID of the PCI host bridge _OSC, PCI Firmware Specification 3.3 section 4.5.1.
    private static readonly Guid PciHostOsc = new("33DB4D5B-1FF7-401C-9657-7441C03DD766");

    public static byte[] Build(AcpiOptions options)
    {
        AmlBuilder aml = new();
        if (options.SleepTypeS3 is { } suspend)
            aml.Name("_S3_", v => v.Package((ulong)suspend, (ulong)suspend, 0, 0));
        aml.Name("_S5_", v => v.Package((ulong)options.SleepTypeS5, (ulong)options.SleepTypeS5, 0, 0));
        aml.Scope("\\_SB", sb =>
        {
            sb.Device("PCI0", d => PciHost(d, options));
            foreach (AcpiSerialPort port in options.SerialPorts)
                sb.Device($"COM{port.Number}", d => Serial(d, port));
            LegacyDevices(sb, options);
            Reserved(sb, options);
            for (int i = 0; i < options.ApicIds.Count; i++)
                Processor(sb, i);
            foreach (Action<AmlBuilder> more in options.Devices)
                more(sb);
            if (options.GenerationIdAddress != 0)
                GenerationId(sb, options.GenerationIdAddress);
        });
        if (options.GenerationIdAddress != 0)
            aml.Scope("\\_GPE", g => g.Method($"_E{options.GenerationIdEvent:X2}", 0, m => m.Notify("\\_SB.VGEN", 0x80)));
        return new AcpiTable("DSDT", 2).Raw(aml.ToArray()).Finish();
    }

    private static void PciHost(AmlBuilder d, AcpiOptions o)
    {
        d.Name("_HID", v => v.EisaId("PNP0A08"));
        d.Name("_CID", v => v.EisaId("PNP0A03"));
        d.Name("_UID", 0);
        d.Name("_SEG", 0);
        d.Name("_BBN", 0);
        d.Name("_CRS", v => v.ResourceTemplate(r =>
        {
            r.WordBusNumber(0, o.EcamLastBus);
            r.IO(0xCF8, 8);
            r.WordIO(0, 0xCF7);
            r.WordIO(0xD00, 0xFFFF);
            foreach (AddressRange window in o.PciWindows32)
                r.DWordMemory(checked((uint)window.First), checked((uint)window.Last));
            if (o.PciWindow64 is { } high)
                r.QWordMemory(high.First, high.Last);
        }));
        List<Action<AmlBuilder>> routes = [];
        for (int slot = 0; slot < 32; slot++)
        {
            for (int pin = 0; pin < 4; pin++)
            {
                ulong address = ((ulong)slot << 16) | 0xFFFF, inta = (ulong)pin, gsi = o.PciInterruptRoute(slot, pin);
                routes.Add(b => b.Package(address, inta, 0, gsi));
            }
        }
        d.Name("_PRT", v => v.Package(routes));
        d.Method("_OSC", 4, OperatingSystemCapabilities, serialized: true);
    }

    // Grants what the bridge has; anything asked by another UUID is "unrecognized" (ACPI 6.5 section 6.2.11).
    private static void OperatingSystemCapabilities(AmlBuilder m)
    {
        m.CreateDWordField(b => b.Arg(3), 0, "CDW1");
        m.If(
            p => p.Equal(a => a.Arg(0), b => b.Uuid(PciHostOsc)),
            body => body
                .CreateDWordField(b => b.Arg(3), 8, "CDW3")
                .And(a => a.Reference("CDW3"), b => b.Integer(GrantedControls), t => t.Reference("CDW3")));
        m.Else(body => body.Or(a => a.Reference("CDW1"), b => b.Integer(4), t => t.Reference("CDW1")));
        m.Return(b => b.Arg(3));
    }

    private static void Serial(AmlBuilder d, AcpiSerialPort port)
    {
        d.Name("_HID", v => v.EisaId("PNP0501"));
        d.Name("_UID", (ulong)port.Number);
        d.Name("_DDN", $"COM{port.Number}");
        d.Name("_STA", 0xF);
        d.Name("_CRS", v => v.ResourceTemplate(r => r.IO(port.Port, 8).Irq(port.Irq)));
    }

    private static void LegacyDevices(AmlBuilder sb, AcpiOptions o)
    {
        sb.Device("RTC_", d => d
            .Name("_HID", v => v.EisaId("PNP0B00"))
            .Name("_CRS", v => v.ResourceTemplate(r => r.IO(0x70, 2).Irq(8))));
        sb.Device("PIT_", d => d
            .Name("_HID", v => v.EisaId("PNP0100"))
            .Name("_CRS", v => v.ResourceTemplate(r => r.IO(0x40, 4).Irq(0))));
        sb.Device("PIC_", d => d
            .Name("_HID", v => v.EisaId("PNP0000"))
            .Name("_CRS", v => v.ResourceTemplate(r => r.IO(0x20, 2).IO(0xA0, 2).IO(0x4D0, 2).Irq(2))));
        if (o.HpetAddress != 0)
        {
            sb.Device("HPET", d => d
                .Name("_HID", v => v.EisaId("PNP0103"))
                .Name("_UID", 0)
                .Name("_CRS", v => v.ResourceTemplate(r => r.Memory32Fixed(o.HpetAddress, 0x400))));
        }
        if (o.HasKeyboardController)
        {
            sb.Device("KBD_", d => d
                .Name("_HID", v => v.EisaId("PNP0303"))
                .Name("_CRS", v => v.ResourceTemplate(r => r.IO(0x60, 1).IO(0x64, 1).Irq(1))));
        }
    }

    // What belongs to the board and to no device: power management ports, the configuration window.
    private static void Reserved(AmlBuilder sb, AcpiOptions o) => sb.Device("MBRD", d => d
        .Name("_HID", v => v.EisaId("PNP0C02"))
        .Name("_UID", 1)
        .Name("_CRS", v => v.ResourceTemplate(r =>
        {
            r.IO(o.Pm1EventPort, 4).IO(o.Pm1ControlPort, 2).IO(o.PmTimerPort, 4).IO(o.Gpe0Port, o.Gpe0Length);
            if (o.EcamAddress != 0)
                r.Memory32Fixed(checked((uint)o.EcamAddress), ((uint)o.EcamLastBus + 1) << 20);
        })));

    // "Virtual Machine Generation ID", Microsoft 2012: the compatible ID is the specification's, the hardware ID the one that fits ACPI's rules
    // and that Linux looks for as well.
    private static void GenerationId(AmlBuilder sb, ulong address) => sb.Device("VGEN", d => d
        .Name("_HID", "VMGENCTR")
        .Name("_CID", "VM_Gen_Counter")
        .Name("_DDN", "VM_Gen_Counter")
        .Name("ADDR", v => v.Package(address & uint.MaxValue, address >> 32)));

    private static void Processor(AmlBuilder sb, int number) =>
        sb.Device("C" + number.ToString("X3", CultureInfo.InvariantCulture), d => d
            .Name("_HID", "ACPI0007")
            .Name("_UID", (ulong)number)
            .Name("_STA", 0xF));
}
