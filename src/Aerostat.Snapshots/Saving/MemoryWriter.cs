using Aerostat.Memory;
using Microsoft.Win32.SafeHandles;

namespace Aerostat.Snapshots;

/// <summary>
/// Writes guest memory: each page at its place in the memory file, counted over all regions, so that the file can be mapped. What has no
/// contents of its own is a hole. The machine stands still.
/// </summary>
internal sealed class MemoryWriter(GuestMemory memory, SafeFileHandle file)
{
    private readonly PageMap.Builder map = new();
    // Pages that wait to be written: they follow each other, and are within one block.
    private ulong waitingFrom, waitingAddress;
    private int waiting;

    /// <summary>Writes everything, or of each region the pages whose bits are set.</summary>
    public PageMap Write(IReadOnlyList<ulong[]>? changed)
    {
        RandomAccess.SetLength(file, (long)memory.TotalBytes);
        for (int i = 0; i < memory.Regions.Count; i++)
        {
            MemoryRegion region = memory.Regions[i];
            foreach (PageRange range in memory.GetPageRanges(region.Base, region.Size))
            {
                if (changed is null)
                {
                    Add(range.Start.Value, range.Length >> 12, range.State);
                    continue;
                }
                ulong page = (range.Start.Value - region.Base.Value) >> 12, last = page + (range.Length >> 12);
                while (page < last)
                {
                    ulong stop = EndOfRun(changed[i], page, last, out bool written);
                    if (written)
                        Add(region.Base.Value + (page << 12), stop - page, range.State);
                    else
                        AddEmpty(PageKind.Unchanged, stop - page);
                    page = stop;
                }
            }
            Flush();
        }
        return map.Build();
    }

    private void Add(ulong address, ulong pages, PageState state)
    {
        switch (state)
        {
            case PageState.Zero:
                AddEmpty(PageKind.Zero, pages);
                break;
            case PageState.Discarded:
                AddEmpty(PageKind.Discarded, pages);
                break;
            case PageState.Hinted:
                AddEmpty(PageKind.Hinted, pages);
                break;
            default:
                for (; pages > 0; pages--, address += PageMap.PageSize)
                    AddPage(address);
                break;
        }
    }

    private void AddPage(ulong address)
    {
        if (!memory.TryGetSpan(new GuestAddress(address), PageMap.PageSize, out Span<byte> page))
            throw new InvalidOperationException($"there is no guest memory at 0x{address:x}");
        if (!page.ContainsAnyExcept((byte)0))
        {
            AddEmpty(PageKind.Zero, 1);
            return;
        }
        if (waiting == 0)
            (waitingFrom, waitingAddress) = (map.PageCount, address);
        waiting++;
        if ((waitingFrom + (ulong)waiting) % PageMap.BlockPages == 0)
            Flush();
    }

    private void AddEmpty(PageKind kind, ulong pages)
    {
        Flush();
        map.Add(kind, pages);
    }

    private void Flush()
    {
        if (waiting == 0)
            return;
        memory.TryGetSpan(new GuestAddress(waitingAddress), waiting * PageMap.PageSize, out Span<byte> bytes);
        RandomAccess.Write(file, bytes, (long)(waitingFrom * PageMap.PageSize));
        map.AddData((ulong)waiting, Checksum.Of(bytes));
        waiting = 0;
    }

    // First page at or after `page` that is not like it.
    private static ulong EndOfRun(ulong[] bits, ulong page, ulong limit, out bool value)
    {
        value = (bits[page >> 6] >> (int)(page & 63) & 1) != 0;
        while (page < limit)
        {
            ulong word = bits[page >> 6];
            ulong other = (value ? ~word : word) >> (int)(page & 63);
            if (other != 0)
                return Math.Min(limit, page + ulong.TrailingZeroCount(other));
            page = (page | 63) + 1;
        }
        return limit;
    }
}
