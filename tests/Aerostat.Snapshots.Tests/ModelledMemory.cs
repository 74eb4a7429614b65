using Aerostat.Memory;
using Xunit;

namespace Aerostat.Snapshots.Tests;

/// <summary>
/// Some pages of a machine's memory beside a model of what is in them, and everything that writes, gives back or disowns pages, at random. Pages are numbered over
/// all regions, so that a series of them can lie across a hole of the memory map.
/// </summary>
internal sealed class ModelledMemory(GuestMemory memory, Random random, int first, int count)
{
    private const int Page = 4096;

    private readonly byte[] contents = new byte[count * Page];
    // What is in these is nobody's business, until somebody writes; and those that a balloon has, which nobody does before it is told.
    private readonly bool[] disowned = new bool[count], away = new bool[count];

    /// <summary>The same contents in another memory, after a snapshot was restored there.</summary>
    public ModelledMemory In(GuestMemory other)
    {
        ModelledMemory copy = new(other, random, first, count);
        contents.CopyTo(copy.contents, 0);
        disowned.CopyTo(copy.disowned, 0);
        return copy;
    }

    /// <summary>Changes short runs of pages with short gaps between them.</summary>
    public void Change()
    {
        int at = random.Next(count);
        for (int n = random.Next(1, 12); n >= 0 && at < count; n--)
        {
            int length = Math.Min(random.Next(1, random.Next(4) == 0 ? 60 : 8), count - at);
            Change(random.Next(12), at, length);
            at += length + random.Next(1, 41);
        }
    }

    /// <summary>Whether the memory has what the model says.</summary>
    public void Check(string what)
    {
        byte[] page = new byte[Page];
        for (int i = 0; i < count; i++)
        {
            Assert.True(memory.TryRead(AddressOf(i), page));
            if (!disowned[i] && !page.AsSpan().SequenceEqual(ContentsOf(i)))
                Assert.Fail($"{what}: page {first + i} has {Describe(page)}, and not {Describe(ContentsOf(i))}");
        }
    }

    private static string Describe(ReadOnlySpan<byte> page) => page.ContainsAnyExcept((byte)0) ? $"{BitConverter.ToUInt64(page[^8..]):x}" : "zeros";

    private Span<byte> ContentsOf(int page) => contents.AsSpan(page * Page, Page);

    private GuestAddress AddressOf(int page)
    {
        ulong offset = (ulong)(first + page) * Page;
        foreach (MemoryRegion region in memory.Regions)
        {
            if (offset < region.Size)
                return new GuestAddress(region.Base.Value + offset);
            offset -= region.Size;
        }
        throw new ArgumentOutOfRangeException(nameof(page));
    }

    private void Change(int action, int at, int length)
    {
        switch (action)
        {
            case 0:
                ForRuns(at, length, wantAway: false, (address, bytes, from, n) =>
                {
                    Assert.Equal(DiscardResult.Done, memory.Discard(address, bytes));
                    Empty(from, n);
                });
                break;
            case 1:
                ForRuns(at, length, wantAway: false, (address, bytes, from, n) =>
                {
                    memory.TryZero(address, bytes);
                    Empty(from, n);
                });
                break;
            case 2:
                // Zeros, but the host holds the pages.
                ForRuns(at, length, wantAway: false, (address, bytes, from, n) =>
                {
                    memory.Write(address, new byte[bytes]);
                    Empty(from, n);
                });
                break;
            case 3:
                ForRuns(at, length, wantAway: false, (address, bytes, from, n) =>
                {
                    Assert.True(memory.MarkHinted(address, bytes));
                    disowned.AsSpan(from, n).Fill(true);
                });
                break;
            case 4:
                ForRuns(at, length, wantAway: false, (address, bytes, from, n) =>
                {
                    Assert.Equal(DiscardResult.Done, memory.TakeAway(address, bytes));
                    disowned.AsSpan(from, n).Fill(true);
                    away.AsSpan(from, n).Fill(true);
                });
                break;
            case 5:
                ForRuns(at, length, wantAway: true, (address, bytes, from, n) =>
                {
                    memory.BringBack(address, bytes);
                    away.AsSpan(from, n).Clear();
                });
                break;
            case 6:
                if (random.Next(2) == 0)
                    memory.ClearHints();
                else
                    memory.Settle();
                break;
            case 7:
                ForRuns(at, length, wantAway: false, (_, _, from, n) =>
                {
                    for (int page = from; page < from + n; page++)
                        WriteSome(page);
                });
                break;
            default:
                ForRuns(at, length, wantAway: false, (address, _, from, n) =>
                {
                    Span<byte> noise = contents.AsSpan(from * Page, n * Page);
                    random.NextBytes(noise);
                    memory.Write(address, noise);
                    disowned.AsSpan(from, n).Clear();
                });
                break;
        }
    }

    private void Empty(int from, int n)
    {
        contents.AsSpan(from * Page, n * Page).Clear();
        disowned.AsSpan(from, n).Clear();
    }

    // One write makes what is in the rest of the page the guest's again.
    private void WriteSome(int page)
    {
        if (disowned[page])
            memory.TryRead(AddressOf(page), ContentsOf(page));
        disowned[page] = false;
        ulong offset = (ulong)random.Next(Page / 8) * 8, value = random.Next(4) == 0 ? 0 : (ulong)random.NextInt64();
        memory.Write(new GuestAddress(AddressOf(page).Value + offset), value);
        BitConverter.TryWriteBytes(ContentsOf(page)[(int)offset..], value);
    }

    // The longest runs of pages that are away, or are not, and do not lie across a hole.
    private void ForRuns(int at, int length, bool wantAway, Action<GuestAddress, ulong, int, int> use)
    {
        for (int from = at, last = at + length; from < last;)
        {
            int stop = from + 1;
            while (stop < last && away[stop] == away[from] && AddressOf(stop).Value == AddressOf(stop - 1).Value + Page)
                stop++;
            if (away[from] == wantAway)
                use(AddressOf(from), (ulong)(stop - from) * Page, from, stop - from);
            from = stop;
        }
    }
}
