namespace Aerostat.Loader.Tests;

/// <summary>AML encodings, byte by byte.</summary>
public sealed class AmlBuilderTests
{
    [Theory]
    [InlineData(0UL, "00")]
    [InlineData(1UL, "01")]
    [InlineData(2UL, "0A02")]
    [InlineData(0xFFUL, "0AFF")]
    [InlineData(0x100UL, "0B0001")]
    [InlineData(0xFFFFUL, "0BFFFF")]
    [InlineData(0x10000UL, "0C00000100")]
    [InlineData(0xFFFFFFFFUL, "0CFFFFFFFF")]
    [InlineData(0x100000000UL, "0E0000000001000000")]
    [InlineData(ulong.MaxValue, "FF")]
    public void IntegersAreShort(ulong value, string hex) => Is(hex, b => b.Integer(value));

    [Theory]
    [InlineData("_SB", "5F53425F")]
    [InlineData("\\", "5C00")]
    [InlineData("\\_SB", "5C5F53425F")]
    [InlineData("^^A", "5E5E415F5F5F")]
    [InlineData("_SB.PCI0", "2E5F53425F50434930")]
    [InlineData("\\_SB.PCI0.S1", "5C2F035F53425F5043493053315F5F")]
    public void NamesArePaddedAndPrefixed(string name, string hex) => Is(hex, b => b.Reference(name));

    [Theory]
    [InlineData("toolong")]
    [InlineData("abc")]
    [InlineData("1ABC")]
    [InlineData("A..B")]
    [InlineData("A-B")]
    public void WrongNamesAreRefused(string name) => Assert.Throws<ArgumentException>(() => new AmlBuilder().Reference(name));

    [Fact]
    public void EisaIdIsPackedAsTheSpecificationShows()
    {
        Is("0C41D00501", b => b.EisaId("PNP0501"));
        Is("0C41D00A08", b => b.EisaId("PNP0A08"));
        foreach (string wrong in (string[])["PNP050", "pnp0501", "PNP05G1", "PN00501"])
            Assert.Throws<ArgumentException>(() => new AmlBuilder().EisaId(wrong));
    }

    [Fact]
    public void UuidIsInMixedOrder() =>
        Is("11130A105B4DDB33F71F1C40965774 41C03DD766".Replace(" ", "", StringComparison.Ordinal), b => b.Uuid(new Guid("33DB4D5B-1FF7-401C-9657-7441C03DD766")));

    [Fact]
    public void StringsAreAscii()
    {
        Is("0D486900", b => b.String("Hi"));
        Assert.Throws<ArgumentException>(() => new AmlBuilder().String("é"));
        Assert.Throws<ArgumentException>(() => new AmlBuilder().String("a\0b"));
    }

    // The length of a block counts the length's own bytes; the boundaries are where it grows by one.
    [Theory]
    [InlineData(58)]
    [InlineData(59)]
    [InlineData(4089)]
    [InlineData(4090)]
    [InlineData(1048568)]
    [InlineData(1048569)]
    public void BlockLengthsCountThemselves(int strings)
    {
        byte[] code = new AmlBuilder().Scope("\\", b =>
        {
            // Name string "\" takes 2 bytes; then as many one-byte integers as asked.
            for (int i = 0; i < strings; i++)
                b.Integer(1);
        }).ToArray();
        Assert.Equal(0x10, code[0]);
        int more = code[1] >> 6, length = more == 0 ? code[1] & 0x3F : code[1] & 0xF;
        for (int i = 0; i < more; i++)
            length |= code[2 + i] << (4 + (8 * i));
        Assert.Equal(code.Length - 1, length);
        Assert.Equal(strings + 2, length - 1 - more);
    }

    [Fact]
    public void ResourcesAreAsTheSpecificationLaysThemOut()
    {
        Is("4701F803F8030108", r => r.IO(0x3F8, 8));
        Is("221000", r => r.Irq(4));
        Is("86090001000000E000000010", r => r.Memory32Fixed(0xE0000000, 0x10000000));
        Is("880D00020C00 0000 0000 FF00 0000 0001", r => r.WordBusNumber(0, 255));
        Is("880D00010C03 0000 0000 F70C 0000 F80C", r => r.WordIO(0, 0xCF7));
        Is("87170000 0C01 00000000 000000C0 FFFFFFDF 00000000 00000020", r => r.DWordMemory(0xC0000000, 0xDFFFFFFF));
        Is("8A2B0000 0C01 0000000000000000 0000000010000000 FFFFFFFF1F000000 0000000000000000 0000000010000000", r => r.QWordMemory(0x1000000000, 0x1FFFFFFFFF));
        Is("8906000D01 10000000", r => r.Interrupt(16, level: true, activeLow: true, shared: true));

        static void Is(string hex, Action<ResourceTemplateBuilder> write)
        {
            ResourceTemplateBuilder r = new();
            write(r);
            Assert.Equal(hex.Replace(" ", "", StringComparison.Ordinal) + "7900", Convert.ToHexString(r.ToArray()));
        }
    }

    private static void Is(string hex, Action<AmlBuilder> write)
    {
        AmlBuilder b = new();
        write(b);
        Assert.Equal(hex, Convert.ToHexString(b.ToArray()));
    }
}
