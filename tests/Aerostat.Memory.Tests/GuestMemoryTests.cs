using System.ComponentModel;
using System.Text;
using Aerostat.Platform;
using Xunit;

namespace Aerostat.Memory.Tests;

public sealed unsafe class GuestMemoryTests
{
    private const ulong Page = 4096;

    private static GuestMemory WithHole() => new(
        new MemoryRegion(new(0), 16 * Page, "a"),
        new MemoryRegion(new(16 * Page), 4 * Page, "b"),
        new MemoryRegion(new(64 * Page), 8 * Page, "c"));

    [Fact]
    public void A_pc_with_five_gib_has_a_hole_below_four()
    {
        using GuestMemory memory = GuestMemory.CreatePc(5UL << 30);
        Assert.Equal(5UL << 30, memory.TotalBytes);
        Assert.Equal(6UL << 30, memory.End);
        Assert.True(memory.Contains(GuestMemory.PciHoleStart - 1, 1));
        Assert.False(memory.Contains(GuestMemory.PciHoleStart - 1, 2));
        Assert.False(memory.Contains(GuestMemory.PciHoleStart, 1));
        Assert.False(memory.Contains(GuestMemory.HighMemoryStart - 1, 1));
        Assert.True(memory.Contains(GuestMemory.HighMemoryStart, 2UL << 30));
        Assert.False(memory.Contains(GuestMemory.HighMemoryStart, (2UL << 30) + 1));
        Assert.True(memory.TryGetPage(GuestMemory.PciHoleStart) == null);
        Assert.True(memory.TryGetPage(GuestMemory.HighMemoryStart + 5) == memory.HostBase + GuestMemory.HighMemoryStart);
        Assert.Equal(["low", "high"], memory.Regions.Select(r => r.Name));
    }

    [Theory]
    [InlineData(1UL << 30)]
    [InlineData(3UL << 30)]
    public void A_small_pc_has_one_region(ulong bytes)
    {
        using GuestMemory memory = GuestMemory.CreatePc(bytes);
        Assert.Equal(bytes, memory.End);
        Assert.Single(memory.Regions);
    }

    [Fact]
    public void Half_a_tebibyte_costs_nothing_until_it_is_touched()
    {
        ulong before = ProcessUsage.Read().ResidentBytes;
        using GuestMemory memory = GuestMemory.CreatePc(512UL << 30);
        Assert.Equal(0UL, memory.AllocatedBytes);
        GuestAddress far = new((512UL << 30) - 8);
        memory.Write(far, 0x1122334455667788UL);
        Assert.Equal(0x1122334455667788UL, memory.Read<ulong>(far));
        Assert.Equal(Page, memory.AllocatedBytes);
        Assert.InRange(ProcessUsage.Read().ResidentBytes, 0UL, before + (32UL << 20));
        Assert.Equal(new PageTotals(Page, (512UL << 30) - Page, 0, 0), memory.GetPageTotals());
    }

    [Fact]
    public void Bad_maps_are_refused()
    {
        Assert.Throws<ArgumentException>(() => new GuestMemory());
        Assert.Throws<ArgumentException>(() => new GuestMemory(new MemoryRegion(new(0), 0, "empty")));
        Assert.Throws<ArgumentException>(() => new GuestMemory(new MemoryRegion(new(1), Page, "unaligned")));
        Assert.Throws<ArgumentException>(() => new GuestMemory(new MemoryRegion(new(0), Page + 1, "unaligned")));
        Assert.Throws<ArgumentException>(() => new GuestMemory(new MemoryRegion(new(0), 2 * Page, "x"), new MemoryRegion(new(Page), Page, "overlap")));
        Assert.Throws<ArgumentException>(() => new GuestMemory(new MemoryRegion(new(Page), Page, "x"), new MemoryRegion(new(0), Page, "descending")));
        Assert.Throws<ArgumentException>(() => new GuestMemory(new MemoryRegion(new(GuestMemory.AddressLimit), Page, "beyond")));
        Assert.Throws<ArgumentException>(() => new GuestMemory(new MemoryRegion(new(ulong.MaxValue - 4095), Page, "wraps")));
        Assert.Throws<ArgumentException>(() => new GuestMemory(new MemoryRegion(new(Page), ulong.MaxValue - 4095, "wraps")));
    }

    [Fact]
    public void What_the_host_cannot_give_is_explained_and_leaves_nothing_behind()
    {
        int files = Directory.GetFiles("/proc/self/fd").Length;
        // Above what any x86-64 host gives a process with 4-level paging, and aarch64 alike.
        for (int i = 0; i < 8; i++)
        {
            Win32Exception e = Assert.Throws<Win32Exception>(() => new GuestMemory(new MemoryRegion(new(0), 1UL << 51, "vast")));
            Assert.StartsWith("the host cannot give 2 PiB of guest memory: ", e.Message);
            Assert.Contains("ask for less", e.Message);
            Assert.NotEqual(0, e.NativeErrorCode);
        }
        Assert.InRange(Directory.GetFiles("/proc/self/fd").Length, 0, files + 2);
        Assert.DoesNotContain(File.ReadLines("/proc/self/maps"), l => Convert.ToUInt64(l[(l.IndexOf('-') + 1)..l.IndexOf(' ')], 16) - Convert.ToUInt64(l[..l.IndexOf('-')], 16) >= 1UL << 50);
    }

    [Theory]
    [InlineData(0, "0 bytes")]
    [InlineData(1023, "1023 bytes")]
    [InlineData(1536, "1.5 KiB")]
    [InlineData(9UL << 40, "9 TiB")]
    [InlineData(5UL << 60, "5120 PiB")]
    public void Sizes_read_well(ulong bytes, string text) => Assert.Equal(text, GuestMemory.FormatSize(bytes));

    [Fact]
    public void Ranges_run_on_into_a_neighbouring_region_but_not_into_a_hole()
    {
        using GuestMemory memory = WithHole();
        byte[] data = new byte[8192];
        Random.Shared.NextBytes(data);
        Assert.True(memory.TryWrite(new(16 * Page - 4096), data));
        byte[] back = new byte[8192];
        Assert.True(memory.TryRead(new(16 * Page - 4096), back));
        Assert.Equal(data, back);
        Assert.True(memory.Contains(0, 20 * Page));
        Assert.False(memory.Contains(0, 20 * Page + 1));
        Assert.False(memory.TryWrite(new(20 * Page - 1), data.AsSpan(0, 2)));
        Assert.False(memory.TryWrite(new(64 * Page - 1), data.AsSpan(0, 2)));
        Assert.False(memory.TryWrite(new(72 * Page - 1), data.AsSpan(0, 2)));
        Assert.False(memory.TryRead(new(ulong.MaxValue), back.AsSpan(0, 2)));
        Assert.Equal(0, memory.Read<byte>(new(20 * Page - 1)));
        ArgumentOutOfRangeException e = Assert.Throws<ArgumentOutOfRangeException>(() => memory.Write(new(20 * Page - 1), (ushort)1));
        Assert.Contains("2 bytes at 0x13fff", e.Message);
    }

    // Every accessor against a byte array with a validity mask.
    [Theory]
    [InlineData(1)]
    [InlineData(2)]
    [InlineData(3)]
    public void Random_accesses_agree_with_a_simple_model(int seed)
    {
        using GuestMemory memory = WithHole();
        int size = (int)memory.End + 8192;
        byte[] model = new byte[size];
        bool Valid(ulong address, ulong length)
        {
            for (ulong a = address, n = 0; n < Math.Max(length, 1); a++, n++)
                if (!memory.Regions.Any(r => a >= r.Base.Value && a < r.End))
                    return false;
            return true;
        }
        Random random = new(seed);
        ulong[] edges = [0, 16 * Page, 20 * Page, 64 * Page, 72 * Page];
        ulong Address() => random.Next(4) == 0
            ? (ulong)random.NextInt64(size - 4096)
            : (ulong)Math.Max(0, (long)edges[random.Next(edges.Length)] + random.Next(-40, 40));
        ulong Length() => random.Next(8) == 0 ? (ulong)random.Next(1, 3 * 4096) : (ulong)random.Next(1, 64);
        byte[] buffer = new byte[3 * 4096];
        for (int i = 0; i < 5000; i++)
        {
            ulong a = Address(), b = Address(), n = Length();
            bool ok = Valid(a, n);
            switch (random.Next(8))
            {
                case 0:
                    random.NextBytes(buffer);
                    Assert.Equal(ok, memory.TryWrite(new(a), buffer.AsSpan(0, (int)n)));
                    if (ok)
                        buffer.AsSpan(0, (int)n).CopyTo(model.AsSpan((int)a));
                    break;
                case 1:
                    Assert.Equal(ok, memory.TryRead(new(a), buffer.AsSpan(0, (int)n)));
                    if (ok)
                        Assert.True(buffer.AsSpan(0, (int)n).SequenceEqual(model.AsSpan((int)a, (int)n)));
                    break;
                case 2:
                    Assert.Equal(ok, memory.TryFill(new(a), n, (byte)i));
                    if (ok)
                        model.AsSpan((int)a, (int)n).Fill((byte)i);
                    break;
                case 3:
                    Assert.Equal(ok, memory.TryZero(new(a), n));
                    if (ok)
                        model.AsSpan((int)a, (int)n).Clear();
                    break;
                case 4:
                    ok &= Valid(b, n);
                    Assert.Equal(ok, memory.TryCopy(new(a), new(b), n));
                    if (ok)
                        model.AsSpan((int)a, (int)n).ToArray().CopyTo(model.AsSpan((int)b));
                    break;
                case 5:
                    ok = Valid(a, 8);
                    Assert.Equal(ok, memory.TryWrite(new(a), (ulong)i * 0x0101010101010101UL));
                    if (ok)
                        BitConverter.TryWriteBytes(model.AsSpan((int)a), (ulong)i * 0x0101010101010101UL);
                    break;
                case 6:
                    ok = Valid(a, 4);
                    Assert.Equal(ok, memory.TryRead(new(a), out uint value));
                    Assert.Equal(ok ? BitConverter.ToUInt32(model, (int)a) : 0, value);
                    break;
                default:
                    Assert.Equal(ok, memory.Contains(a, n));
                    Assert.Equal(Valid(a, 1), memory.TryGetPage(a) != null);
                    Assert.Equal(ok, memory.TryGetSpan(new(a), (int)n, out Span<byte> span));
                    Assert.True(!ok || span.SequenceEqual(model.AsSpan((int)a, (int)n)));
                    break;
            }
        }
        foreach (MemoryRegion r in memory.Regions)
        {
            byte[] all = new byte[r.Size];
            Assert.True(memory.TryRead(r.Base, all));
            Assert.True(all.AsSpan().SequenceEqual(model.AsSpan((int)r.Base.Value, (int)r.Size)));
        }
    }

    [Fact]
    public void Negative_and_enormous_lengths_are_not_memory()
    {
        using GuestMemory memory = WithHole();
        Assert.False(memory.TryGetSpan(new(0), -1, out _));
        Assert.False(memory.Contains(0, ulong.MaxValue));
        Assert.False(memory.Contains(8, ulong.MaxValue - 4));
        Assert.False(memory.TryFill(new(0), ulong.MaxValue, 1));
        Assert.False(memory.TryZero(new(Page), ulong.MaxValue));
        Assert.False(memory.TryCopy(new(0), new(0), ulong.MaxValue));
    }

    [Fact]
    public void Zeroing_a_long_range_gives_its_memory_back_and_spares_the_edges()
    {
        using GuestMemory memory = new(new MemoryRegion(new(0), 64 * Page, "ram"));
        memory.TryFill(new(0), 64 * Page, 0xAA);
        Assert.Equal(64 * Page, memory.AllocatedBytes);
        Assert.True(memory.TryZero(new(100), 63 * Page));
        Assert.InRange(memory.AllocatedBytes, 0UL, 2 * Page);
        byte[] all = new byte[64 * Page];
        memory.TryRead(new(0), all);
        Assert.Equal(-1, all.AsSpan(100, 63 * 4096).IndexOfAnyExcept((byte)0));
        Assert.Equal(-1, all.AsSpan(0, 100).IndexOfAnyExcept((byte)0xAA));
        Assert.Equal(-1, all.AsSpan(100 + (63 * 4096)).IndexOfAnyExcept((byte)0xAA));
    }

    [Fact]
    public void A_file_is_read_straight_into_memory()
    {
        string path = Path.GetTempFileName();
        try
        {
            byte[] data = new byte[(3 << 20) + 123];
            new Random(7).NextBytes(data);
            File.WriteAllBytes(path, data);
            using GuestMemory memory = new(new MemoryRegion(new(0), 8 << 20, "ram"));
            memory.MarkCode(0x1000, 1);
            uint generation = memory.CodeGeneration[1];
            using (FileStream file = new(path, FileMode.Open, FileAccess.Read, FileShare.Read, bufferSize: 0))
                Assert.Equal((ulong)data.Length, memory.ReadFrom(file, new(0x345), 7 << 20));
            byte[] back = new byte[data.Length];
            memory.TryRead(new(0x345), back);
            Assert.Equal(data, back);
            Assert.Equal(generation + 1, memory.CodeGeneration[1]);
            using MemoryStream output = new();
            memory.WriteTo(output, new(0x345), (ulong)data.Length);
            Assert.Equal(data, output.ToArray());
            using MemoryStream input = new(data);
            Assert.Equal(1000UL, memory.ReadFrom(input, new(0), 1000));
            Assert.Throws<ArgumentOutOfRangeException>(() => memory.ReadFrom(input, new(8 << 20), 1));
            Assert.Throws<ArgumentOutOfRangeException>(() => memory.WriteTo(output, new((8 << 20) - 1), 2));
        }
        finally
        {
            File.Delete(path);
        }
    }

    [Fact]
    public void Strings_are_read_within_bounds()
    {
        using GuestMemory memory = WithHole();
        memory.Write(new(100), "console=ttyS0 ünïcode\0rest"u8);
        Assert.Equal("console=ttyS0 ünïcode", memory.TryReadString(new(100), 4096));
        Assert.Null(memory.TryReadString(new(100), 5));
        Assert.Equal("", memory.TryReadString(new(5000), 1));
        Assert.Null(memory.TryReadString(new(5000), 0));
        Assert.Null(memory.TryReadString(new(30 * Page), 10));
        memory.Write(new(20 * Page - 3), "ab\0"u8);
        Assert.Equal("ab", memory.TryReadString(new(20 * Page - 3), 1000));
        memory.Write(new(20 * Page - 3), "abc"u8);
        Assert.Null(memory.TryReadString(new(20 * Page - 3), 1000));
        string text = new('x', 9000);
        memory.Write(new(500), Encoding.UTF8.GetBytes(text + "\0"));
        Assert.Equal(text, memory.TryReadString(new(500), 10000));
    }

    [Fact]
    public void Two_memories_do_not_meet_and_dispose_twice_is_harmless()
    {
        using GuestMemory a = WithHole();
        GuestMemory b = WithHole();
        a.Write(new(0), 1);
        Assert.Equal(0, b.Read<int>(new(0)));
        b.Dispose();
        b.Dispose();
        Assert.Equal(1, a.Read<int>(new(0)));
    }
}
