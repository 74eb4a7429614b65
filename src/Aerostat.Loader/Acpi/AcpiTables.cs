using System.Buffers.Binary;
using Aerostat.Memory;

namespace Aerostat.Loader;

/// <summary>
/// Writes the ACPI tables of the machine (ACPI 6.5 section 5.2): RSDP, RSDT, XSDT, FADT, FACS, MADT, MCFG, HPET and DSDT. The RSDP is
/// at 0xE0000; the others are in the area that <see cref="E820Map"/> marks as ACPI data, the FACS in its ACPI NVS page.
/// </summary>
public static class AcpiTables
{
    private const int FacsSize = 64;

    /// <summary>Writes all tables.</summary>
    /// <returns>Address of the RSDP.</returns>
    /// <exception cref="BootException">The tables do not fit in their area, or there is no room for the area.</exception>
    public static ulong Write(GuestMemory memory, AcpiOptions options)
    {
        ArgumentNullException.ThrowIfNull(memory);
        ArgumentNullException.ThrowIfNull(options);
        ulong area = E820Map.AcpiAreaBase(memory), facs = FacsAddress(memory), next = area;

        memory.Write(new(facs), Facs());
        ulong dsdt = Place(Dsdt.Build(options));
        List<ulong> listed = [Place(Fadt(options, (uint)facs, (uint)dsdt)), Place(Madt(options))];
        if (options.EcamAddress != 0)
            listed.Add(Place(Mcfg(options)));
        if (options.HpetAddress != 0)
            listed.Add(Place(Hpet(options)));
        AcpiTable rsdt = new("RSDT", 1), xsdt = new("XSDT", 1);
        foreach (ulong table in listed)
        {
            rsdt.Dword((uint)table);
            xsdt.Qword(table);
        }
        memory.Write(new(E820Map.BiosAreaStart), Rsdp((uint)Place(rsdt.Finish()), Place(xsdt.Finish())));
        return E820Map.BiosAreaStart;

        ulong Place(byte[] table)
        {
            ulong at = next;
            if ((ulong)table.Length > facs - at)
                throw new BootException($"ACPI tables do not fit in their {ByteSize.Format(E820Map.AcpiAreaSize)}; use fewer vCPUs or devices");
            memory.Write(new(at), table);
            next = (at + (ulong)table.Length + 63) & ~63UL;
            return at;
        }
    }

    /// <summary>Where the FACS of a machine with this memory is.</summary>
    internal static ulong FacsAddress(GuestMemory memory) => E820Map.AcpiAreaBase(memory) + E820Map.AcpiAreaSize - GuestAddress.PageSize;

    // Section 5.2.5.3. The first checksum covers the 20 bytes of revision 0.
    private static byte[] Rsdp(uint rsdt, ulong xsdt)
    {
        byte[] p = new byte[36];
        "RSD PTR "u8.CopyTo(p);
        "AEROST"u8.CopyTo(p.AsSpan(9));
        p[15] = 2;
        BinaryPrimitives.WriteUInt32LittleEndian(p.AsSpan(16), rsdt);
        BinaryPrimitives.WriteUInt32LittleEndian(p.AsSpan(20), 36);
        BinaryPrimitives.WriteUInt64LittleEndian(p.AsSpan(24), xsdt);
        p[8] = AcpiTable.Checksum(p.AsSpan(0, 20));
        p[32] = AcpiTable.Checksum(p);
        return p;
    }

    // Section 5.2.10: no checksum, 64-byte aligned.
    private static byte[] Facs()
    {
        byte[] p = new byte[FacsSize];
        "FACS"u8.CopyTo(p);
        BinaryPrimitives.WriteUInt32LittleEndian(p.AsSpan(4), FacsSize);
        p[32] = 2; // version
        return p;
    }

    // Section 5.2.9. SMI_CMD is 0: the machine is always in ACPI mode, SCI_EN reads as one.
    private static byte[] Fadt(AcpiOptions o, uint facs, uint dsdt)
    {
        const uint wbinvd = 1 << 0, processorC1 = 1 << 2, noSleepButton = 1 << 5, noFixedRtcWake = 1 << 6, timer32 = 1 << 8, resetRegister = 1 << 10;
        const ushort legacyDevices = 1 << 0, keyboard8042 = 1 << 1, noVga = 1 << 2, noAspm = 1 << 4;
        uint flags = wbinvd | processorC1 | noSleepButton | resetRegister | (o.HasFixedRtcWake ? 0 : noFixedRtcWake) | (o.PmTimerIs32Bit ? timer32 : 0);
        ushort bootArchitecture = (ushort)(legacyDevices | noVga | noAspm | (o.HasKeyboardController ? keyboard8042 : 0));
        return new AcpiTable("FACP", 6)
            .Dword(facs).Dword(dsdt)
            .Byte(0).Byte(1) // reserved; profile: desktop
            .Word(o.SciInterrupt)
            .Dword(0).Byte(0).Byte(0).Byte(0).Byte(0) // SMI_CMD, ACPI_ENABLE, ACPI_DISABLE, S4BIOS_REQ, PSTATE_CNT
            .Dword(o.Pm1EventPort).Dword(0).Dword(o.Pm1ControlPort).Dword(0).Dword(0)
            .Dword(o.PmTimerPort).Dword(o.Gpe0Port).Dword(0)
            .Byte(4).Byte(2).Byte(0).Byte(4).Byte(o.Gpe0Length).Byte(0) // lengths: PM1 event, PM1 control, PM2, timer, GPE0, GPE1
            .Byte(0).Byte(0) // GPE1_BASE, CST_CNT
            .Word(0xFFFF).Word(0xFFFF) // no C2, no C3
            .Word(0).Word(0).Byte(0).Byte(0) // flush, duty cycle
            .Byte(0).Byte(0).Byte(0x32) // RTC alarm day and month: none; century
            .Word(bootArchitecture).Byte(0).Dword(flags)
            .IoAddress(1, o.ResetPort, 1).Byte(o.ResetValue)
            .Word(0).Byte(3) // ARM flags; minor revision: 6.3
            .Qword(0).Qword(dsdt) // the FACS is below 4 GiB: only the short field
            .IoAddress(4, o.Pm1EventPort, 2).Zeros(12)
            .IoAddress(2, o.Pm1ControlPort, 2).Zeros(12).Zeros(12)
            .IoAddress(4, o.PmTimerPort, 4)
            .IoAddress(o.Gpe0Length, o.Gpe0Port, 1).Zeros(12)
            .Zeros(12).Zeros(12) // sleep control and status: only for hardware-reduced machines
            .Ascii("AEROSTAT", 8)
            .Finish();
    }

    // Section 5.2.12.
    private static byte[] Madt(AcpiOptions o)
    {
        AcpiTable t = new AcpiTable("APIC", 5).Dword(o.LocalApicAddress).Dword(1); // flag: dual 8259
        bool large = false;
        for (int i = 0; i < o.ApicIds.Count; i++)
        {
            uint id = o.ApicIds[i];
            if (id < 255 && i < 255)
            {
                t.Byte(0).Byte(8).Byte((byte)i).Byte((byte)id).Dword(1);
            }
            else
            {
                large = true;
                t.Byte(9).Byte(16).Word(0).Dword(id).Dword(1).Dword((uint)i);
            }
        }
        t.Byte(1).Byte(12).Byte(o.IoApicId).Byte(0).Dword(o.IoApicAddress).Dword(0);
        // The 8254's output is wired to input 2; the SCI is level-triggered.
        t.Byte(2).Byte(10).Byte(0).Byte(0).Dword(2).Word(0);
        t.Byte(2).Byte(10).Byte(0).Byte(o.SciInterrupt).Dword(o.SciInterrupt).Word((ushort)(o.SciActiveLow ? 0xF : 0xD));
        t.Byte(4).Byte(6).Byte(0xFF).Word(0).Byte(1); // NMI at LINT1 of every processor
        if (large)
            t.Byte(10).Byte(12).Word(0).Dword(0xFFFFFFFF).Byte(1).Zeros(3);
        return t.Finish();
    }

    // PCI Firmware Specification 3.3 table 4-2.
    private static byte[] Mcfg(AcpiOptions o) =>
        new AcpiTable("MCFG", 1).Zeros(8).Qword(o.EcamAddress).Word(0).Byte(0).Byte(o.EcamLastBus).Zeros(4).Finish();

    // IA-PC HPET Specification 1.0a section 3.2.4.
    private static byte[] Hpet(AcpiOptions o) =>
        new AcpiTable("HPET", 1).Dword(o.HpetBlockId).Byte(0).Byte(64).Byte(0).Byte(0).Qword(o.HpetAddress).Byte(0).Word(o.HpetMinimumTick).Byte(0).Finish();
}
