using Aerostat.Guest.Drivers;
using Xunit;

namespace Aerostat.Guest.Tests;

/// <summary>What reached a disk, in its order: a write of a block, or a flush (no bytes).</summary>
internal readonly record struct DiskEvent(ulong Block, byte[]? Data);

/// <summary>A disk in memory that keeps what came to it, so that a machine which stops at any moment can be made from it.</summary>
internal sealed class MemoryDisk(HostPlatform platform, ulong blocks) : BlockDevice
{
    private const int SectorSize = 512;

    public Dictionary<ulong, byte[]> Contents { get; } = [];

    /// <summary>Everything since the disk was made or this was cleared.</summary>
    public List<DiskEvent> Events { get; } = [];

    public override ulong Blocks => blocks;

    public override bool IsReadOnly => ReadOnly;

    public bool ReadOnly { get; init; }

    /// <summary>So many more writes and flushes are carried out; after that all fail.</summary>
    public int FailsAfter { get; set; } = int.MaxValue;

    public override bool Read(ulong block, ulong page)
    {
        Assert.InRange(block, 0ul, blocks - 1);
        platform.CopyIn(page, Contents.TryGetValue(block, out byte[]? data) ? data : new byte[BlockSize], 0, BlockSize);
        return true;
    }

    public override bool Write(ulong block, ulong page)
    {
        Assert.InRange(block, 0ul, blocks - 1);
        Assert.False(ReadOnly);
        byte[] data = new byte[BlockSize];
        platform.CopyOut(page, data, 0, BlockSize);
        return Do(new DiskEvent(block, data));
    }

    public override bool Flush() => Do(default);

    private bool Do(DiskEvent what)
    {
        if (FailsAfter-- <= 0)
            return false;
        Events.Add(what);
        if (what.Data is not null)
            Contents[what.Block] = what.Data;
        return true;
    }

    public MemoryDisk Copy()
    {
        MemoryDisk copy = new(platform, blocks);
        foreach ((ulong block, byte[] data) in Contents)
            copy.Contents.Add(block, data);
        return copy;
    }

    /// <summary>
    /// A disk after a machine stopped when so many events had come: what a flush followed is there; of the rest some, in any order, and of a block perhaps only some
    /// sectors.
    /// </summary>
    /// <param name="before">What was there before the events.</param>
    /// <param name="events">What came.</param>
    /// <param name="count">How many of them.</param>
    /// <param name="random">Chooses; null: everything that came is there.</param>
    public static MemoryDisk Crashed(MemoryDisk before, IReadOnlyList<DiskEvent> events, int count, Random? random)
    {
        MemoryDisk disk = before.Copy();
        int flushed = count;
        while (flushed > 0 && events[flushed - 1].Data is not null)
            flushed--;
        for (int i = 0; i < flushed; i++)
            if (events[i].Data is { } data)
                disk.Contents[events[i].Block] = data;
        DiskEvent[] loose = [.. events.Take(count).Skip(flushed)];
        random?.Shuffle(loose);
        foreach (DiskEvent write in loose)
        {
            int kind = random?.Next(4) ?? 0;
            if (kind == 1)
                continue;
            byte[] was = disk.Contents.TryGetValue(write.Block, out byte[]? old) ? old : new byte[BlockSize];
            byte[] now = [.. write.Data!];
            for (int sector = 0; kind == 2 && sector < BlockSize; sector += SectorSize)
                if (random!.Next(2) == 0)
                    was.AsSpan(sector, SectorSize).CopyTo(now.AsSpan(sector));
            disk.Contents[write.Block] = now;
        }
        return disk;
    }
}
