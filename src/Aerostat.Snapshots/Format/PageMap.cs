using System.Buffers.Binary;

namespace Aerostat.Snapshots;

/// <summary>What a snapshot says of a page of guest memory.</summary>
public enum PageKind : byte
{
    /// <summary>All zeros.</summary>
    Zero,
    /// <summary>Its contents are in the memory file.</summary>
    Data,
    /// <summary>Given back by the guest; reads as zeros.</summary>
    Discarded,
    /// <summary>The guest said that its contents do not matter; reads as zeros.</summary>
    Hinted,
    /// <summary>As in the snapshot before.</summary>
    Unchanged,
}

/// <summary>Neighbouring pages of one kind.</summary>
/// <param name="First">Number of the first page, counted over all regions.</param>
/// <param name="Count">How many.</param>
/// <param name="Kind">What they are.</param>
internal readonly record struct PageRun(ulong First, ulong Count, PageKind Kind)
{
    public ulong End => First + Count;
}

/// <summary>
/// The page map of a snapshot: what each page is, as runs, and the checksums of what is in the memory file. A checksum covers the data pages
/// of one run that are within one block of 256 pages.
/// </summary>
/// <remarks>
/// The file, all little-endian: "AEROMAP1"; the number of pages, of runs and of checksums, 8 bytes each; 8 bytes for each run, kind in bits
/// 56 to 63 and pages in bits 0 to 55; the checksums; a checksum of everything before it.
/// </remarks>
internal sealed class PageMap
{
    /// <summary>Pages of a block.</summary>
    public const ulong BlockPages = 256;

    /// <summary>Bytes of a page.</summary>
    public const int PageSize = 4096;

    private const int HeaderSize = 32;
    private const int KindShift = 56;

    private static ReadOnlySpan<byte> Magic => "AEROMAP1"u8;

    private readonly List<PageRun> runs;
    private readonly List<Checksum> checksums;

    private PageMap(List<PageRun> runs, List<Checksum> checksums)
    {
        this.runs = runs;
        this.checksums = checksums;
    }

    /// <summary>The runs; they cover all pages, and neighbours differ in kind.</summary>
    public IReadOnlyList<PageRun> Runs => runs;

    /// <summary>Pages there are.</summary>
    public ulong PageCount => runs.Count == 0 ? 0 : runs[^1].End;

    /// <summary>How many pages are of a kind.</summary>
    public ulong CountOf(PageKind kind) => runs.Where(r => r.Kind == kind).Aggregate(0UL, (sum, r) => sum + r.Count);

    /// <summary>The pieces of the memory file that have a checksum each.</summary>
    public IEnumerable<(ulong FirstPage, int Pages, Checksum Expected)> Blocks()
    {
        int next = 0;
        foreach ((ulong first, int pages) in Pieces(runs))
            yield return (first, pages, checksums[next++]);
    }

    /// <summary>The number of the run that a page belongs to.</summary>
    public int FindRun(ulong page)
    {
        int low = 0, high = runs.Count - 1;
        while (low < high)
        {
            int middle = (low + high + 1) >>> 1;
            if (runs[middle].First <= page)
                low = middle;
            else
                high = middle - 1;
        }
        return low;
    }

    /// <summary>Whether the memory file has nothing for any of these pages.</summary>
    public bool IsEmpty(ulong first, ulong count)
    {
        for (int i = FindRun(first); i < runs.Count && runs[i].First < first + count; i++)
            if (runs[i].Kind == PageKind.Data && runs[i].End > first)
                return false;
        return true;
    }

    /// <summary>As a file.</summary>
    public byte[] ToArray()
    {
        byte[] bytes = new byte[checked(HeaderSize + (runs.Count * sizeof(ulong)) + (checksums.Count * Checksum.Size) + Checksum.Size)];
        Magic.CopyTo(bytes);
        BinaryPrimitives.WriteUInt64LittleEndian(bytes.AsSpan(8), PageCount);
        BinaryPrimitives.WriteUInt64LittleEndian(bytes.AsSpan(16), (ulong)runs.Count);
        BinaryPrimitives.WriteUInt64LittleEndian(bytes.AsSpan(24), (ulong)checksums.Count);
        Span<byte> next = bytes.AsSpan(HeaderSize);
        foreach (PageRun run in runs)
        {
            BinaryPrimitives.WriteUInt64LittleEndian(next, (ulong)run.Kind << KindShift | run.Count);
            next = next[sizeof(ulong)..];
        }
        foreach (Checksum checksum in checksums)
            next = Put(next, checksum);
        Put(next, Checksum.Of(bytes.AsSpan(0, bytes.Length - Checksum.Size)));
        return bytes;
    }

    /// <summary>Reads a file.</summary>
    /// <exception cref="SnapshotException">It is not a whole page map of so many pages.</exception>
    public static PageMap Parse(ReadOnlySpan<byte> bytes, ulong pages, string name)
    {
        if (bytes.Length < HeaderSize + Checksum.Size || !bytes[..8].SequenceEqual(Magic))
            throw new SnapshotException($"{name} is not a page map, or only the beginning of one");
        ulong pageCount = BinaryPrimitives.ReadUInt64LittleEndian(bytes[8..]);
        ulong runCount = BinaryPrimitives.ReadUInt64LittleEndian(bytes[16..]);
        ulong checksumCount = BinaryPrimitives.ReadUInt64LittleEndian(bytes[24..]);
        if (runCount > (ulong)bytes.Length || checksumCount > (ulong)bytes.Length
            || HeaderSize + (runCount * sizeof(ulong)) + (checksumCount * Checksum.Size) + Checksum.Size != (ulong)bytes.Length)
            throw new SnapshotException($"{name} has {bytes.Length} bytes, which is not what its header says: it is cut off or damaged");
        if (Get(bytes[^Checksum.Size..]) != Checksum.Of(bytes[..^Checksum.Size]))
            throw new SnapshotException($"{name} is damaged: its checksum does not fit");
        if (pageCount != pages)
            throw new SnapshotException($"{name} describes {pageCount} pages, and the machine has {pages}");
        List<PageRun> runs = new((int)runCount);
        ulong first = 0;
        ReadOnlySpan<byte> next = bytes[HeaderSize..];
        for (ulong i = 0; i < runCount; i++, next = next[sizeof(ulong)..])
        {
            ulong word = BinaryPrimitives.ReadUInt64LittleEndian(next);
            PageKind kind = (PageKind)(word >> KindShift);
            ulong count = word & (1UL << KindShift) - 1;
            if (kind > PageKind.Unchanged || count == 0 || count > pages - first || (runs.Count > 0 && runs[^1].Kind == kind))
                throw new SnapshotException($"{name} is damaged: run {i} is {count} pages of kind {(int)kind}");
            runs.Add(new PageRun(first, count, kind));
            first += count;
        }
        if (first != pages)
            throw new SnapshotException($"{name} is damaged: its runs cover {first} of {pages} pages");
        if ((ulong)Pieces(runs).LongCount() != checksumCount)
            throw new SnapshotException($"{name} is damaged: it has {checksumCount} checksums, which is not one for each block");
        List<Checksum> checksums = new((int)checksumCount);
        for (ulong i = 0; i < checksumCount; i++, next = next[Checksum.Size..])
            checksums.Add(Get(next));
        return new PageMap(runs, checksums);
    }

    private static IEnumerable<(ulong First, int Pages)> Pieces(List<PageRun> runs)
    {
        foreach (PageRun run in runs)
        {
            if (run.Kind != PageKind.Data)
                continue;
            for (ulong page = run.First; page < run.End;)
            {
                ulong stop = Math.Min(run.End, (page / BlockPages + 1) * BlockPages);
                yield return (page, (int)(stop - page));
                page = stop;
            }
        }
    }

    private static Span<byte> Put(Span<byte> at, Checksum checksum)
    {
        BinaryPrimitives.WriteUInt64LittleEndian(at, checksum.High);
        BinaryPrimitives.WriteUInt64LittleEndian(at[8..], checksum.Low);
        return at[Checksum.Size..];
    }

    private static Checksum Get(ReadOnlySpan<byte> at) =>
        new(BinaryPrimitives.ReadUInt64LittleEndian(at), BinaryPrimitives.ReadUInt64LittleEndian(at[8..]));

    /// <summary>Makes a map, page after page.</summary>
    public sealed class Builder
    {
        private readonly List<PageRun> runs = [];
        private readonly List<Checksum> checksums = [];

        /// <summary>Pages that have been added.</summary>
        public ulong PageCount => runs.Count == 0 ? 0 : runs[^1].End;

        /// <summary>Adds pages that have no contents of their own.</summary>
        public void Add(PageKind kind, ulong count)
        {
            if (count == 0)
                return;
            if (runs.Count > 0 && runs[^1].Kind == kind)
                runs[^1] = runs[^1] with { Count = runs[^1].Count + count };
            else
                runs.Add(new PageRun(PageCount, count, kind));
        }

        /// <summary>Adds all data pages of a run that are within one block.</summary>
        public void AddData(ulong count, Checksum checksum)
        {
            Add(PageKind.Data, count);
            checksums.Add(checksum);
        }

        /// <summary>The map.</summary>
        public PageMap Build() => new([.. runs], [.. checksums]);
    }
}
