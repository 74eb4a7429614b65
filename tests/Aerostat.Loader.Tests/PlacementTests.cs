using Aerostat.Memory;

namespace Aerostat.Loader.Tests;

/// <summary>The memory map and finding room in it.</summary>
public sealed class PlacementTests
{
    [Theory]
    [InlineData(64)]
    [InlineData(3072)]
    [InlineData(3073)]
    [InlineData(8192)]
    public void MapCoversAllRamButTheVideoHole(ulong megabytes)
    {
        using Guest guest = new(megabytes);
        ulong previous = 0;
        foreach (E820Entry e in guest.Map.Entries)
        {
            Assert.True(e.Size > 0 && e.Base >= previous);
            previous = e.End;
            if (e.Type != E820Type.Reserved)
                Assert.True(guest.Memory.Contains(e.Base, e.Size));
        }
        ulong ram = guest.Map.Entries.Where(e => e.Base != 0xE0000000).Aggregate(0UL, (sum, e) => sum + e.Size);
        Assert.Equal(guest.Memory.TotalBytes - (0xE0000 - 0xA0000), ram);
    }

    [Fact]
    public void RangesMayNotOverlapOrWrap()
    {
        E820Map map = new E820Map().Add(0x1000, 0x1000, E820Type.Usable);
        Assert.Throws<ArgumentException>(() => map.Add(0x1FFF, 1, E820Type.Usable));
        Assert.Throws<ArgumentException>(() => map.Add(0, 0x1001, E820Type.Usable));
        Assert.Throws<ArgumentException>(() => map.Add(0, 0, E820Type.Usable));
        Assert.Throws<ArgumentException>(() => map.Add(ulong.MaxValue, 2, E820Type.Usable));
        Assert.Equal([0UL, 0x1000UL, 0x2000UL], map.Add(0x2000, 1, E820Type.Usable).Add(0, 0x1000, E820Type.Reserved).Entries.Select(e => e.Base));
        for (int i = 3; i < E820Map.MaxEntries; i++)
            map.Add((ulong)i << 16, 1, E820Type.Reserved);
        Assert.Throws<ArgumentException>(() => map.Add(1UL << 40, 1, E820Type.Reserved));
    }

    // Against a plain model: a set of free pages.
    [Fact]
    public void PlacesAreWhatAModelSays()
    {
        Random random = new(99);
        for (int round = 0; round < 300; round++)
        {
            E820Map map = new();
            HashSet<ulong> model = [];
            for (ulong at = 1; at < 60;)
            {
                ulong size = (ulong)random.Next(1, 20);
                map.Add(at << 12, size << 12, E820Type.Usable);
                for (ulong p = at; p < at + size; p++)
                    model.Add(p);
                at += size + (ulong)random.Next(1, 5);
            }
            PlacementMap room = new(map);
            for (int step = 0; step < 30; step++)
            {
                ulong pages = (ulong)random.Next(1, 8), alignment = 1UL << random.Next(3), min = (ulong)random.Next(0, 60), max = min + (ulong)random.Next(0, 60);
                IEnumerable<ulong> fits = Enumerable.Range(0, 120).Select(p => (ulong)p)
                    .Where(p => p % alignment == 0 && p >= min && p + pages <= max && Enumerable.Range(0, (int)pages).All(i => model.Contains(p + (ulong)i) && Same(map, p, p + (ulong)i)));
                bool highest = random.Next(2) == 0;
                ulong? expected = highest ? fits.Select(p => (ulong?)p).LastOrDefault() : fits.Select(p => (ulong?)p).FirstOrDefault();
                ulong? actual = highest
                    ? room.TakeHighest(pages << 12, alignment << 12, min << 12, max << 12)
                    : room.TakeLowest(pages << 12, alignment << 12, min << 12, max << 12);
                Assert.Equal(expected << 12, actual);
                if (actual is { } taken)
                    for (ulong p = taken >> 12; p < (taken >> 12) + pages; p++)
                        model.Remove(p);
                Assert.Equal(model.Contains(min), room.IsFree(min << 12, GuestAddress.PageSize));
            }
        }

        static bool Same(E820Map map, ulong a, ulong b) => map.Entries.Any(e => a << 12 >= e.Base && b << 12 < e.End);
    }

    [Fact]
    public void WildSizesDoNotWrap()
    {
        PlacementMap room = new(new E820Map().Add(0x1000, 0x10000, E820Type.Usable));
        Assert.False(room.IsFree(0x1000, ulong.MaxValue));
        Assert.False(room.IsFree(ulong.MaxValue, 2));
        Assert.Null(room.TakeHighest(ulong.MaxValue, 0x1000, 0, ulong.MaxValue));
        Assert.Null(room.TakeLowest(1, 1UL << 63, ulong.MaxValue - 5, ulong.MaxValue));
        room.Take(0x2000, ulong.MaxValue);
        Assert.Equal(0x1000UL, room.Largest(0, ulong.MaxValue));
    }
}
