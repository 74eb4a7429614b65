using Aerostat.Memory;
using Aerostat.Platform;
using Microsoft.Win32.SafeHandles;

namespace Aerostat.Snapshots;

/// <summary>
/// Writes guest memory: each page at its place in the memory file, counted over all regions, so that the file can be mapped. What has no
/// contents of its own is a hole. In rounds while the machine goes on, each of which writes what was on the list; the last while it stands still.
/// </summary>
internal sealed class MemoryWriter
{
    private readonly GuestMemory memory;
    private readonly SafeFileHandle file;
    private readonly PassPages[] regions;
    private readonly PageKind[] kinds;
    // Blocks that a later round has changed, and checksums of pieces that the first round wrote: others are made when the machine goes on again.
    private readonly bool[] stale;
    private readonly Dictionary<ulong, (int Pages, Checksum Checksum)> known = [];
    private readonly List<PageRun> emptied = [];
    // Copies of pages that wait to be written: they follow each other, and are within one block. What is written and what the checksum is of
    // is the same that way, whoever changes the page meanwhile.
    private readonly byte[] copies = new byte[(int)PageMap.BlockPages * PageMap.PageSize];
    private ulong waitingFrom;
    private int waiting;
    private int rounds;

    /// <summary>Begins a file.</summary>
    /// <param name="memory">What is written.</param>
    /// <param name="file">Where.</param>
    /// <param name="changed">By region the pages that are to be in it; null: all.</param>
    public MemoryWriter(GuestMemory memory, SafeFileHandle file, IReadOnlyList<ulong[]>? changed)
    {
        this.memory = memory;
        this.file = file;
        ulong pages = memory.TotalBytes / PageMap.PageSize;
        kinds = new PageKind[pages];
        Array.Fill(kinds, PageKind.Unchanged);
        stale = new bool[(pages + PageMap.BlockPages - 1) / PageMap.BlockPages];
        regions = [.. memory.Regions.Select(r => new PassPages(r.Size >> 12))];
        foreach ((int i, PassPages region) in regions.Index())
            region.Begin(changed?[i], all: changed is null);
        RandomAccess.SetLength(file, (long)memory.TotalBytes);
    }

    /// <summary>The pages by region.</summary>
    public IReadOnlyList<PassPages> Regions => regions;

    /// <summary>How many pages are to be written still.</summary>
    public ulong CountToDo() => regions.Aggregate(0UL, (sum, r) => sum + r.CountToDo());

    /// <summary>Notes what the log of writes says; the pages are on the list again.</summary>
    public void Wrote(IReadOnlyList<ulong[]> fresh)
    {
        for (int i = 0; i < regions.Length; i++)
            regions[i].Wrote(fresh[i]);
    }

    /// <summary>Takes a hint, on any thread.</summary>
    public void Hint(GuestAddress address, ulong length)
    {
        for (int i = 0; i < regions.Length; i++)
        {
            MemoryRegion region = memory.Regions[i];
            ulong from = Math.Max(address.Value, region.Base.Value), to = Math.Min(address.Value + length, region.End);
            if (from < to)
                regions[i].Hint((from - region.Base.Value) >> 12, (to - from) >> 12);
        }
    }

    /// <summary>Forgets all hints.</summary>
    public void DropHints()
    {
        foreach (PassPages region in regions)
            region.DropHints();
    }

    /// <summary>Writes what is on the list. The log of writes was looked at before.</summary>
    public void WriteRound(CancellationToken cancellation)
    {
        ulong before = 0;
        for (int i = 0; i < regions.Length; i++)
        {
            PassPages region = regions[i];
            ulong start = memory.Regions[i].Base.Value;
            for (ulong page = 0; region.TryTake(ref page, out ulong count); page += count)
            {
                for (ulong at = page, stop = page + count; at < stop;)
                {
                    bool disowned = region.IsDisowned(at);
                    ulong end = region.FindDisowned(at, stop, wanted: !disowned);
                    if (disowned)
                        Set(before + at, end - at, PageKind.Hinted);
                    else
                        Classify(before + at, start + (at << 12), end - at, cancellation);
                    at = end;
                }
            }
            Flush();
            before += region.Count;
        }
        rounds++;
    }

    private void Classify(ulong number, ulong address, ulong pages, CancellationToken cancellation)
    {
        foreach (PageRange range in memory.GetPageRangesAsKnown(new GuestAddress(address), pages << 12))
        {
            ulong count = range.Length >> 12;
            switch (range.State)
            {
                case PageState.Zero:
                    Set(number, count, PageKind.Zero);
                    break;
                case PageState.Discarded:
                    Set(number, count, PageKind.Discarded);
                    break;
                case PageState.Hinted:
                    Set(number, count, PageKind.Hinted);
                    break;
                default:
                    for (ulong i = 0; i < count; i++)
                    {
                        if ((i & 255) == 0)
                            cancellation.ThrowIfCancellationRequested();
                        AddPage(number + i, range.Start.Value + (i << 12));
                    }
                    break;
            }
            number += count;
        }
    }

    private void AddPage(ulong number, ulong address)
    {
        if (!memory.TryGetBuffer(new GuestAddress(address), PageMap.PageSize, out HostBuffer buffer, forWriting: false))
            throw new InvalidOperationException($"there is no guest memory at 0x{address:x}");
        ReadOnlySpan<byte> page = buffer.AsSpan();
        if (!page.ContainsAnyExcept((byte)0))
        {
            Set(number, 1, PageKind.Zero);
            return;
        }
        if (waiting > 0 && waitingFrom + (ulong)waiting != number)
            Flush();
        if (waiting == 0)
            waitingFrom = number;
        page.CopyTo(copies.AsSpan(waiting * PageMap.PageSize));
        waiting++;
        if ((number + 1) % PageMap.BlockPages == 0)
            Flush();
    }

    private void Set(ulong first, ulong count, PageKind kind)
    {
        Flush();
        Span<PageKind> pages = kinds.AsSpan((int)first, (int)count);
        if (rounds > 0)
        {
            Touch(first, count);
            // What an earlier round has written there is to be a hole.
            for (int at = 0; at < pages.Length;)
            {
                int data = pages[at..].IndexOf(PageKind.Data);
                if (data < 0)
                    break;
                at += data;
                int length = pages[at..].IndexOfAnyExcept(PageKind.Data);
                length = length < 0 ? pages.Length - at : length;
                emptied.Add(new PageRun(first + (ulong)at, (ulong)length, kind));
                at += length;
            }
        }
        pages.Fill(kind);
    }

    private void Flush()
    {
        if (waiting == 0)
            return;
        ReadOnlySpan<byte> bytes = copies.AsSpan(0, waiting * PageMap.PageSize);
        RandomAccess.Write(file, bytes, (long)(waitingFrom * PageMap.PageSize));
        kinds.AsSpan((int)waitingFrom, waiting).Fill(PageKind.Data);
        if (rounds == 0)
            known[waitingFrom] = (waiting, Checksum.Of(bytes));
        else
            Touch(waitingFrom, (ulong)waiting);
        waiting = 0;
    }

    private void Touch(ulong first, ulong count) =>
        stale.AsSpan((int)(first / PageMap.BlockPages), (int)(((first + count - 1) / PageMap.BlockPages) - (first / PageMap.BlockPages)) + 1).Fill(true);

    /// <summary>Completes the file, after the last round; the machine may go on already.</summary>
    public PageMap Finish()
    {
        foreach (PageRun run in emptied)
            for (ulong page = run.First; page < run.End;)
            {
                // It may have contents again.
                Span<PageKind> rest = kinds.AsSpan((int)page, (int)(run.End - page));
                int filled = rest.IndexOf(PageKind.Data);
                ulong stop = filled < 0 ? run.End : page + (ulong)filled;
                if (stop > page)
                    HostFile.Clear(file, (long)(page * PageMap.PageSize), (long)((stop - page) * PageMap.PageSize));
                int again = filled < 0 ? -1 : rest[filled..].IndexOfAnyExcept(PageKind.Data);
                page = again < 0 ? run.End : page + (ulong)(filled + again);
            }
        PageMap.Builder map = new();
        byte[] buffer = new byte[(int)PageMap.BlockPages * PageMap.PageSize];
        for (int at = 0; at < kinds.Length;)
        {
            PageKind kind = kinds[at];
            int length = kinds.AsSpan(at).IndexOfAnyExcept(kind);
            int end = length < 0 ? kinds.Length : at + length;
            if (kind != PageKind.Data)
                map.Add(kind, (ulong)(end - at));
            else
                for (int page = at; page < end;)
                {
                    int pages = Math.Min(end, (page / (int)PageMap.BlockPages + 1) * (int)PageMap.BlockPages) - page;
                    map.AddData((ulong)pages, ChecksumOf((ulong)page, pages, buffer));
                    page += pages;
                }
            at = end;
        }
        return map.Build();
    }

    private Checksum ChecksumOf(ulong page, int pages, byte[] buffer)
    {
        if (!stale[page / PageMap.BlockPages] && known.TryGetValue(page, out (int Pages, Checksum Checksum) first) && first.Pages == pages)
            return first.Checksum;
        Span<byte> bytes = buffer.AsSpan(0, pages * PageMap.PageSize);
        Snapshot.ReadExactly(file, bytes, (long)(page * PageMap.PageSize), "the new snapshot's memory");
        return Checksum.Of(bytes);
    }
}
