using System.Text;

namespace Aerostat.Loader.Tests;

/// <summary>SMBIOS structures and their two entry points.</summary>
public sealed class SmbiosTablesTests
{
    [Fact]
    public void BothEntryPointsLeadToTheSameStructures()
    {
        using Guest guest = new(4096 + 1024);
        SmbiosTables.Write(guest.Memory, Options(guest));
        ulong anchor64 = Find(guest, "_SM3_"), anchor32 = Find(guest, "_SM_");
        Assert.Equal(0, Sum(guest.Bytes(anchor64, 24)));
        Assert.Equal(0, Sum(guest.Bytes(anchor32, 31)));
        Assert.Equal(0, Sum(guest.Bytes(anchor32 + 16, 15)));
        Assert.Equal("_DMI_", Encoding.ASCII.GetString(guest.Bytes(anchor32 + 16, 5)));
        ulong table = guest.U64(anchor64 + 16);
        Assert.Equal(table, guest.U32(anchor32 + 24));
        Assert.Equal(guest.U32(anchor64 + 12), guest.U16(anchor32 + 22));

        List<(byte[] Formatted, List<string> Texts, int Size)> all = Walk(guest, table, guest.U32(anchor64 + 12));
        Assert.Equal(guest.U16(anchor32 + 28), all.Count);
        Assert.Equal(guest.U16(anchor32 + 8), all.Max(s => s.Size));
        Assert.Equal([0, 1, 2, 3, 4, 4, 11, 16, 17, 19, 19, 32, 127], all.Select(s => (int)s.Formatted[0]));
        Assert.Equal(all.Count, all.Select(s => BitConverter.ToUInt16(s.Formatted, 2)).Distinct().Count());
    }

    [Fact]
    public void SystemSaysWhatTheOptionsSay()
    {
        using Guest guest = new(64);
        SmbiosOptions options = Options(guest);
        SmbiosTables.Write(guest.Memory, options);
        List<(byte[] Formatted, List<string> Texts, int Size)> all = Structures(guest);
        (byte[] system, List<string> texts, _) = all.Single(s => s.Formatted[0] == 1);
        Assert.Equal(["Maker", "Product ?", "1", "SN-1"], texts);
        Assert.Equal((1, 2, 3, 4), (system[4], system[5], system[6], system[7]));
        Assert.Equal(options.Uuid, new Guid(system.AsSpan(8, 16)));
        Assert.Equal("33221100554477668899AABBCCDDEEFF", Convert.ToHexString(system.AsSpan(8, 16)));
        Assert.Equal(["[MS_VM_CERT/x]", "two"], all.Single(s => s.Formatted[0] == 11).Texts);
        // Each structure is as long as its version of the specification says.
        Dictionary<int, int> lengths = new() { [0] = 26, [1] = 27, [2] = 15, [3] = 22, [4] = 48, [11] = 5, [16] = 23, [17] = 40, [19] = 31, [32] = 11, [127] = 4 };
        Assert.All(all, s => Assert.Equal(lengths[s.Formatted[0]], s.Formatted.Length));
    }

    [Fact]
    public void MemoryAndProcessorsAreCounted()
    {
        using Guest guest = new(5120);
        SmbiosTables.Write(guest.Memory, Options(guest));
        List<(byte[] Formatted, List<string> Texts, int Size)> all = Structures(guest);
        Assert.All(all.Where(s => s.Formatted[0] == 4), s => Assert.Equal((4, 4), (s.Formatted[0x23], BitConverter.ToUInt16(s.Formatted, 0x2A))));
        Assert.Equal(5UL << 30, BitConverter.ToUInt64(all.Single(s => s.Formatted[0] == 16).Formatted, 15));
        Assert.Equal(5120, BitConverter.ToUInt16(all.Single(s => s.Formatted[0] == 17).Formatted, 12));
        Assert.Equal([(0u, (3u << 20) - 1), (4u << 20, (6u << 20) - 1)], all.Where(s => s.Formatted[0] == 19).Select(s => (BitConverter.ToUInt32(s.Formatted, 4), BitConverter.ToUInt32(s.Formatted, 8))));

        SmbiosTables.Write(guest.Memory, new SmbiosOptions { Processors = 1, MemoryBytes = 100UL << 30 });
        byte[] large = Structures(guest).Single(s => s.Formatted[0] == 17).Formatted;
        Assert.Equal((0x7FFF, 102400u), (BitConverter.ToUInt16(large, 12), BitConverter.ToUInt32(large, 28)));
    }

    [Fact]
    public void LargestMachineFitsAndMoreIsABootException()
    {
        using Guest guest = new(64);
        SmbiosTables.Write(guest.Memory, new SmbiosOptions { Processors = 64, Sockets = 64, MemoryBytes = 1UL << 40 });
        Assert.Equal(64, Structures(guest).Count(s => s.Formatted[0] == 4));
        Assert.Throws<BootException>(() => SmbiosTables.Write(guest.Memory, new SmbiosOptions { Processors = 1, MemoryBytes = 1, OemStrings = [.. Enumerable.Repeat(new string('x', 255), 255)] }));
    }

    private static SmbiosOptions Options(Guest guest) => new()
    {
        Processors = 8,
        Sockets = 2,
        MemoryBytes = guest.Memory.TotalBytes,
        Manufacturer = "Maker",
        Product = "Product é",
        Serial = "SN-1",
        Uuid = new Guid("00112233-4455-6677-8899-aabbccddeeff"),
        OemStrings = ["[MS_VM_CERT/x]", "two"],
    };

    private static List<(byte[] Formatted, List<string> Texts, int Size)> Structures(Guest guest)
    {
        ulong anchor = Find(guest, "_SM3_");
        return Walk(guest, guest.U64(anchor + 16), guest.U32(anchor + 12));
    }

    private static ulong Find(Guest guest, string anchor)
    {
        for (ulong at = 0xF0000; at < 0x100000; at += 16)
            if (Encoding.ASCII.GetString(guest.Bytes(at, anchor.Length)) == anchor)
                return at;
        throw new InvalidOperationException(anchor);
    }

    private static List<(byte[] Formatted, List<string> Texts, int Size)> Walk(Guest guest, ulong at, uint length)
    {
        List<(byte[], List<string>, int)> result = [];
        ulong end = at + length;
        while (at < end)
        {
            ulong start = at;
            byte[] formatted = guest.Bytes(at, guest.U8(at + 1));
            at += (ulong)formatted.Length;
            List<string> texts = [];
            for (string text; (text = guest.Text(at)).Length > 0; at += (ulong)text.Length + 1)
                texts.Add(text);
            at += texts.Count == 0 ? 2UL : 1UL;
            result.Add((formatted, texts, (int)(at - start)));
        }
        Assert.Equal(end, at);
        return result;
    }

    private static byte Sum(byte[] bytes) => (byte)bytes.Sum(b => b);
}
