using System.Text;
using Aerostat.Hosting;
using Aerostat.Machine;
using Xunit;

namespace Aerostat.Snapshots.Tests;

/// <summary>What is damaged, cut off, later or missing is refused, and nothing is built of it.</summary>
public sealed class FormatTests
{
    private const string Manifest = "manifest.json", Map = "pages.map", Memory = "memory.bin";

    [Fact]
    public async Task AWholeSnapshotIsTaken()
    {
        using TestFolder folder = new();
        byte[] before = await SmallMachine.SaveAsync(folder["s"]);
        Snapshot snapshot = Snapshot.Open(folder["s"]);
        snapshot.Verify();
        await using VirtualMachine machine = Machines.Restore(snapshot);
        byte[] after = SmallMachine.Contents(machine);
        Assert.True(before.AsSpan().SequenceEqual(after));
        // The file takes what the data takes: 324 of 1024 pages, and the block of real-mode code.
        Assert.Equal(325UL, snapshot.Manifest.Memory.DataPages);
        Assert.Equal("small", snapshot.ToMachineOptions().Name);
    }

    [Fact]
    public async Task EveryByteOfTheManifestCounts()
    {
        using TestFolder folder = new();
        await SmallMachine.SaveAsync(folder["s"]);
        byte[] good = File.ReadAllBytes(folder["s/" + Manifest]);
        ManifestFile.Read(good, "m");
        Random random = new(1);
        for (int i = 0; i < good.Length; i++)
        {
            byte[] bad = [.. good];
            bad[i] ^= (byte)(1 << random.Next(8));
            Assert.Throws<SnapshotException>(() => ManifestFile.Read(bad, "m"));
        }
        for (int length = 0; length < good.Length; length += length < 200 ? 1 : 97)
            Assert.Throws<SnapshotException>(() => ManifestFile.Read(good.AsSpan(0, length), "m"));
        Assert.Throws<SnapshotException>(() => ManifestFile.Read((byte[])[.. good, (byte)'\n'], "m"));
    }

    [Fact]
    public async Task EveryByteOfThePageMapCounts()
    {
        using TestFolder folder = new();
        await SmallMachine.SaveAsync(folder["s"]);
        byte[] good = File.ReadAllBytes(folder["s/" + Map]);
        PageMap.Parse(good, SmallMachine.Bytes >> 12, "p");
        Random random = new(2);
        for (int i = 0; i < good.Length; i++)
        {
            byte[] bad = [.. good];
            bad[i] ^= (byte)(1 << random.Next(8));
            Assert.Throws<SnapshotException>(() => PageMap.Parse(bad, SmallMachine.Bytes >> 12, "p"));
            File.WriteAllBytes(folder["s/" + Map], bad);
            if (i % 16 == 0)
                Assert.Contains("pages.map", Assert.Throws<SnapshotException>(() => Snapshot.Open(folder["s"])).Message, StringComparison.Ordinal);
        }
        for (int length = 0; length < good.Length; length++)
            Assert.Throws<SnapshotException>(() => PageMap.Parse(good.AsSpan(0, length), SmallMachine.Bytes >> 12, "p"));
    }

    [Fact]
    public async Task EveryPageOfTheMemoryIsVerified()
    {
        using TestFolder folder = new();
        await SmallMachine.SaveAsync(folder["s"]);
        Snapshot snapshot = Snapshot.Open(folder["s"]);
        Random random = new(3);
        // Data, and the gap of two zero pages between data at 16 and 21 that is mapped with it.
        foreach (int page in (int[])[16, 18, 19, 20, 21, 250, 255, 256, 269, 600, 767, 768, 899])
        {
            int offset = (page << 12) + random.Next(4096);
            Flip(folder["s/" + Memory], offset, 1 << random.Next(8));
            string message = Assert.Throws<SnapshotException>(snapshot.Verify).Message;
            Assert.Contains("memory.bin is damaged", message, StringComparison.Ordinal);
            Assert.Equal(message, Assert.Throws<SnapshotException>(() => Machines.Restore(snapshot)).Message);
            Flip(folder["s/" + Memory], offset, 0);
        }
        snapshot.Verify();
    }

    [Theory]
    [InlineData(Manifest)]
    [InlineData(Map)]
    [InlineData(Memory)]
    public async Task FilesThatAreShortLongOrMissingAreRefused(string name)
    {
        using TestFolder folder = new();
        await SmallMachine.SaveAsync(folder["s"]);
        string file = folder["s/" + name];
        long length = new FileInfo(file).Length;
        foreach (long other in (long[])[0, 1, length / 2, length - 1, length + 1, length + 4096])
        {
            File.Copy(file, folder["kept"], overwrite: true);
            using (FileStream stream = new(file, FileMode.Open))
                stream.SetLength(other);
            Assert.Contains(name, Assert.Throws<SnapshotException>(() => Snapshot.Open(folder["s"])).Message, StringComparison.Ordinal);
            File.Copy(folder["kept"], file, overwrite: true);
        }
        Snapshot.Open(folder["s"]);
        File.Delete(file);
        Assert.Throws<SnapshotException>(() => Snapshot.Open(folder["s"]));
    }

    [Fact]
    public async Task LaterVersionsAreRefusedByNumber()
    {
        using TestFolder folder = new();
        await SmallMachine.SaveAsync(folder["s"]);
        string file = folder["s/" + Manifest], good = File.ReadAllText(file);
        File.WriteAllText(file, """{"format":"aerostat-snapshot","version":7,"everything":["is","other"]}""");
        Assert.Contains("version 7, and this program knows versions up to 2", Assert.Throws<SnapshotException>(() => Snapshot.Open(folder["s"])).Message, StringComparison.Ordinal);

        File.WriteAllBytes(file, Sealed(good.Replace("\"kind\": \"hpet\",\n        \"version\": 1", "\"kind\": \"hpet\",\n        \"version\": 2", StringComparison.Ordinal)));
        Snapshot later = Snapshot.Open(folder["s"]);
        Assert.Contains("'hpet' has version 2, and this program knows versions up to 1", Assert.Throws<SnapshotException>(() => Machines.Restore(later)).Message, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData("\"cpuModel\": \"aerostat-v3-1\"", "\"cpuModel\": \"aerostat-v2-1\"", "CPUID")]
    [InlineData("\"tscFrequencyHz\": 1000000000", "\"tscFrequencyHz\": 2000000000", "time-stamp counter")]
    [InlineData("\"name\": \"hpet\"", "\"name\": \"hpet2\"", "of which there is no saved state")]
    [InlineData("\"cpus\": 1", "\"cpus\": 2", "CPUID")]
    public async Task AMachineThatDoesNotFitIsRefusedWithTheReason(string was, string now, string reason)
    {
        using TestFolder folder = new();
        await SmallMachine.SaveAsync(folder["s"]);
        string file = folder["s/" + Manifest], good = File.ReadAllText(file);
        Assert.SkipUnless(good.Contains(was, StringComparison.Ordinal), $"this host's machines have no {was}");
        File.WriteAllBytes(file, Sealed(good.Replace(was, now, StringComparison.Ordinal)));
        Assert.Contains(reason, Assert.Throws<SnapshotException>(() => Machines.Restore(Snapshot.Open(folder["s"]))).Message, StringComparison.Ordinal);
    }

    /// <summary>A manifest with its checksum made anew.</summary>
    internal static byte[] Sealed(string manifest)
    {
        byte[] body = Encoding.UTF8.GetBytes(manifest[(manifest.IndexOf('\n', StringComparison.Ordinal) + 1)..^2]);
        return [.. Encoding.ASCII.GetBytes($"{{\"format\":\"aerostat-snapshot\",\"version\":1,\"checksum\":\"{Checksum.Of(body)}\",\"snapshot\":\n"), .. body, .. "}\n"u8];
    }

    private byte flipped;

    // Changes a byte by a mask; by 0, changes it back.
    private void Flip(string file, int offset, int mask)
    {
        using FileStream stream = new(file, FileMode.Open);
        stream.Position = offset;
        int value = stream.ReadByte();
        stream.Position = offset;
        stream.WriteByte((byte)(mask == 0 ? flipped : value ^ mask));
        flipped = (byte)value;
    }
}
