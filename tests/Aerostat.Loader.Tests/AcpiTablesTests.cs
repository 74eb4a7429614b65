using System.Text;

namespace Aerostat.Loader.Tests;

/// <summary>ACPI tables: where they are, that they add up, that they agree, and what iasl makes of them.</summary>
public sealed class AcpiTablesTests
{
    [Fact]
    public void TablesAddUpAndAreReachable()
    {
        using Guest guest = new(512);
        ulong rsdp = AcpiTables.Write(guest.Memory, Options(4));
        Assert.InRange(rsdp, 0xE0000UL, 0xFFFFFUL);
        Assert.Equal(0UL, rsdp & 15);
        Assert.Equal("RSD PTR ", Encoding.ASCII.GetString(guest.Bytes(rsdp, 8)));
        Assert.Equal(2, guest.U8(rsdp + 15));
        Assert.Equal(0, Sum(guest.Bytes(rsdp, 20)));
        Assert.Equal(0, Sum(guest.Bytes(rsdp, 36)));

        Dictionary<string, ulong> tables = Tables(guest, rsdp);
        Assert.Equal(["APIC", "DSDT", "FACP", "FACS", "HPET", "MCFG", "RSDT", "XSDT"], tables.Keys.Order(StringComparer.Ordinal));
        foreach ((string name, ulong at) in tables)
        {
            uint length = guest.U32(at + 4);
            E820Entry inside = Assert.Single(guest.Map.Entries, e => at >= e.Base && at + length <= e.End);
            Assert.Equal(name == "FACS" ? E820Type.AcpiNvs : E820Type.AcpiData, inside.Type);
            if (name != "FACS")
                Assert.Equal(0, Sum(guest.Bytes(at, (int)length)));
        }
        Assert.Equal(0UL, tables["FACS"] & 63);
    }

    [Fact]
    public void FadtSaysWhereThePowerManagementIs()
    {
        using Guest guest = new(64);
        ulong fadt = Tables(guest, AcpiTables.Write(guest.Memory, Options(1)))["FACP"];
        Assert.Equal(276u, guest.U32(fadt + 4));
        Assert.Equal(6, guest.U8(fadt + 8));
        Assert.Equal(9, guest.U16(fadt + 46));
        Assert.Equal(0u, guest.U32(fadt + 48)); // no SMI command: always in ACPI mode
        Assert.Equal((0x600u, 0x604u, 0x608u, 0x620u), (guest.U32(fadt + 56), guest.U32(fadt + 64), guest.U32(fadt + 76), guest.U32(fadt + 80)));
        Assert.Equal((4, 2, 4, 4), (guest.U8(fadt + 88), guest.U8(fadt + 89), guest.U8(fadt + 91), guest.U8(fadt + 92)));
        Assert.Equal(0x32, guest.U8(fadt + 108));
        Assert.Equal(0, guest.U16(fadt + 109) & 2); // no 8042
        uint flags = guest.U32(fadt + 112);
        // Reset register; power button and RTC wake fixed; not hardware-reduced.
        Assert.Equal(1u << 10, flags & ((1u << 10) | (1u << 4) | (1u << 6) | (1u << 20)));
        Assert.NotEqual(0u, flags & (1u << 8));
        Assert.Equal((1, 8, 0xCF9UL, 0x0E), (guest.U8(fadt + 116), guest.U8(fadt + 117), guest.U64(fadt + 120), guest.U8(fadt + 128)));
        // The extended blocks say the same as the old ones.
        foreach ((ulong old, ulong extended, int bits) in ((ulong, ulong, int)[])[(56, 148, 32), (64, 172, 16), (76, 208, 32), (80, 220, 32)])
        {
            Assert.Equal(1, guest.U8(fadt + extended));
            Assert.Equal(bits, guest.U8(fadt + extended + 1));
            Assert.Equal(guest.U32(fadt + old), guest.U64(fadt + extended + 4));
        }
        Assert.Equal(guest.U32(fadt + 40), guest.U64(fadt + 140));
    }

    [Theory]
    [InlineData(1, 1, 0)]
    [InlineData(64, 64, 0)]
    [InlineData(300, 255, 45)]
    public void MadtListsEveryProcessorOnce(int processors, int small, int large)
    {
        using Guest guest = new(64);
        ulong madt = Tables(guest, AcpiTables.Write(guest.Memory, Options(processors)))["APIC"];
        Assert.Equal((0xFEE00000u, 1u), (guest.U32(madt + 36), guest.U32(madt + 40)));
        Dictionary<int, List<byte[]>> entries = [];
        for (ulong at = madt + 44, end = madt + guest.U32(madt + 4); at < end; at += guest.U8(at + 1))
        {
            byte[] entry = guest.Bytes(at, guest.U8(at + 1));
            if (!entries.TryGetValue(entry[0], out List<byte[]>? list))
                entries[entry[0]] = list = [];
            list.Add(entry);
        }
        Assert.Equal(small, entries[0].Count);
        Assert.Equal(large, entries.GetValueOrDefault(9, []).Count);
        Assert.Equal(Enumerable.Range(0, small), entries[0].Select(e => (int)e[3]));
        Assert.Equal(Enumerable.Range(small, large), entries.GetValueOrDefault(9, []).Select(e => BitConverter.ToInt32(e, 4)));
        Assert.Equal("010C00000000C0FE00000000", Convert.ToHexString(Assert.Single(entries[1])));
        Assert.Equal(["020A0000020000000000", "020A0009090000000D00"], entries[2].Select(Convert.ToHexString));
        Assert.Equal("0406FF000001", Convert.ToHexString(Assert.Single(entries[4])));
        Assert.Equal(large > 0, entries.ContainsKey(10));
    }

    [Fact]
    public void McfgAndHpetSayWhereTheirRegistersAre()
    {
        using Guest guest = new(64);
        Dictionary<string, ulong> tables = Tables(guest, AcpiTables.Write(guest.Memory, Options(1)));
        ulong mcfg = tables["MCFG"], hpet = tables["HPET"];
        Assert.Equal((60u, 0xE0000000UL, 0, 0, 255), (guest.U32(mcfg + 4), guest.U64(mcfg + 44), guest.U16(mcfg + 52), guest.U8(mcfg + 54), guest.U8(mcfg + 55)));
        Assert.Equal((56u, 0x8086A201u, 0, 0xFED00000UL), (guest.U32(hpet + 4), guest.U32(hpet + 36), guest.U8(hpet + 40), guest.U64(hpet + 44)));

        using Guest bare = new(64);
        tables = Tables(bare, AcpiTables.Write(bare.Memory, new AcpiOptions { ApicIds = [0], HpetAddress = 0, EcamAddress = 0 }));
        Assert.False(tables.ContainsKey("HPET") || tables.ContainsKey("MCFG"));
    }

    [Fact]
    public void IaslReadsTheDsdtAndCompilesItAgain()
    {
        Tools.Require("iasl", "acpica-tools");
        using Tools.Scratch scratch = new();
        using Guest guest = new(64);
        AcpiOptions options = new()
        {
            ApicIds = [.. Enumerable.Range(0, 300).Select(i => (uint)i)],
            HasKeyboardController = true,
            SerialPorts = [new(1, 0x3F8, 4), new(2, 0x2F8, 3)],
            PciWindow64 = new AddressRange(1UL << 36, (1UL << 37) - 1),
            Devices =
            [
                b => b.Device("VIO0", d => d
                    .Name("_HID", "LNRO0005")
                    .Name("_CRS", v => v.ResourceTemplate(r => r.Memory32Fixed(0xD0000000, 0x1000).Interrupt(23, level: true, activeLow: false, shared: false)))),
                b => b.Device("REGS", d => d
                    .Name("_HID", v => v.EisaId("PNP0C02"))
                    .OperationRegion("AREA", 1, 0x640, 0x10)
                    .Field("AREA", 1, ("STAT", 8), (null, 70), ("HALF", 4))
                    .Name("DATA", v => v.Buffer([1, 2, 3]))
                    .Method("_E01", 0, m => m.Notify("\\_SB.VIO0", 0x80))
                    .Method("RUN_", 1, m => m
                        .Store(v => v.Arg(0), t => t.Local(0))
                        .If(p => p.Equal(x => x.Local(0), y => y.Integer(3)), t => t.Return(v => v.Package(1, 2, 3)))
                        .Else(e => e.Return(v => v.String("no"))), serialized: true)),
            ],
        };
        Dictionary<string, ulong> tables = Tables(guest, AcpiTables.Write(guest.Memory, options));
        foreach (string name in (string[])["DSDT", "FACP", "APIC", "MCFG", "HPET"])
        {
            byte[] original = guest.Bytes(tables[name], (int)guest.U32(tables[name] + 4));
            scratch.File(name + ".aml", original);
            (int status, string output) = Tools.Run(scratch.Path, "iasl", ["-d", name + ".aml"]);
            Assert.True(status == 0 && !output.Contains("Error", StringComparison.Ordinal), output);
            (status, output) = Tools.Run(scratch.Path, "iasl", ["-oa", "-p", name + "-again", name + ".dsl"]);
            Assert.True(status == 0 && output.Contains("0 Errors, 0 Warnings", StringComparison.Ordinal), output);
            // Without optimizations the same code comes back; the headers differ in who made them.
            byte[] again = File.ReadAllBytes(Path.Combine(scratch.Path, name + "-again.aml"));
            Assert.Equal(original.AsSpan(36).ToArray(), again.AsSpan(36).ToArray());
        }
        string source = File.ReadAllText(Path.Combine(scratch.Path, "DSDT.dsl"));
        foreach (string said in (string[])["EisaId (\"PNP0A08\")", "Name (_S3", "Name (_S5", "Device (C12B)", "Method (_OSC, 4, Serialized)", "LNRO0005", "Device (KBD)"])
            Assert.Contains(said, source, StringComparison.Ordinal);
        // _S3, _S5 and the routes of 32 slots with 4 pins each.
        Assert.Equal(2 + 128, source.Split("Package (0x04)").Length - 1);
    }

    [Fact]
    public void TooManyProcessorsForTheAreaIsABootException()
    {
        using Guest guest = new(64);
        Assert.Contains("fit", Assert.Throws<BootException>(() => AcpiTables.Write(guest.Memory, Options(4000))).Message, StringComparison.Ordinal);
    }

    [Fact]
    public void SmallestMachineHoldsItsTables()
    {
        using Memory.GuestMemory memory = Memory.GuestMemory.CreatePc(E820Map.SmallestMemory);
        AcpiTables.Write(memory, Options(1));
        using Memory.GuestMemory less = Memory.GuestMemory.CreatePc(E820Map.SmallestMemory - 4096);
        Assert.Contains("memory too small", Assert.Throws<BootException>(() => AcpiTables.Write(less, Options(1))).Message, StringComparison.Ordinal);
        Assert.Throws<BootException>(() => E820Map.ForPc(less));
    }

    private static AcpiOptions Options(int processors) => new() { ApicIds = [.. Enumerable.Range(0, processors).Select(i => (uint)i)] };

    private static byte Sum(byte[] bytes) => (byte)bytes.Sum(b => b);

    // Every table, by way of both root tables, which must agree.
    private static Dictionary<string, ulong> Tables(Guest guest, ulong rsdp)
    {
        ulong rsdt = guest.U32(rsdp + 16), xsdt = guest.U64(rsdp + 24);
        List<ulong> listed = [];
        for (ulong at = xsdt + 36; at < xsdt + guest.U32(xsdt + 4); at += 8)
            listed.Add(guest.U64(at));
        List<ulong> old = [];
        for (ulong at = rsdt + 36; at < rsdt + guest.U32(rsdt + 4); at += 4)
            old.Add(guest.U32(at));
        Assert.Equal(listed, old);
        ulong fadt = listed.Single(t => guest.U32(t) == 0x50434146);
        listed.AddRange([rsdt, xsdt, guest.U32(fadt + 36), guest.U32(fadt + 40)]);
        return listed.ToDictionary(t => Encoding.ASCII.GetString(guest.Bytes(t, 4)));
    }
}
