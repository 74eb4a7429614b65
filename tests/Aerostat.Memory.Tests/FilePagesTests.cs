using Microsoft.Win32.SafeHandles;
using Xunit;

namespace Aerostat.Memory.Tests;

/// <summary>Memory that starts as the contents of a file.</summary>
public sealed class FilePagesTests : IDisposable
{
    private const int Pages = 64;

    private readonly string path = Path.GetTempFileName();
    private readonly byte[] contents = new byte[Pages * 4096];
    private readonly SafeFileHandle file;
    private readonly GuestMemory memory = new(new MemoryRegion(new(0), 256 << 12, "ram"));

    public FilePagesTests()
    {
        new Random(1).NextBytes(contents);
        File.WriteAllBytes(path, contents);
        file = File.OpenHandle(path);
    }

    public void Dispose()
    {
        memory.Dispose();
        file.Dispose();
        File.Delete(path);
    }

    private static GuestAddress Page(int number) => new((ulong)number << 12);

    private byte[] Read(int page, int count)
    {
        byte[] bytes = new byte[count * 4096];
        Assert.True(memory.TryRead(Page(page), bytes));
        return bytes;
    }

    [Fact]
    public void TheFileIsReadAndNeverWritten()
    {
        memory.MapFile(file, 0, Page(100), Pages << 12);
        Assert.Equal(contents, Read(100, Pages));
        Assert.Equal(0UL, memory.AllocatedBytes);
        memory.Write(Page(110), new byte[4096]);
        Assert.Equal(new byte[4096], Read(110, 1));
        Assert.Equal(contents, File.ReadAllBytes(path));
        // The guest's own writes are as private.
        Assert.Equal(contents[(11 * 4096)..], Read(111, Pages - 11));
    }

    [Fact]
    public void PagesGivenBackReadAsZerosAndAreLikeAllOthers()
    {
        memory.MapFile(file, 0, Page(100), Pages << 12);
        Assert.Equal(DiscardResult.Done, memory.Discard(Page(110), 5 << 12));
        Assert.Equal(new byte[5 * 4096], Read(110, 5));
        Assert.Equal(contents[..(10 * 4096)], Read(100, 10));
        Assert.Equal(contents[(15 * 4096)..], Read(115, Pages - 15));
        memory.Write(Page(112), new byte[] { 7 });
        Assert.Equal(7, Read(112, 1)[0]);
        Assert.Equal(DiscardResult.Done, memory.Discard(Page(90), 100 << 12));
        Assert.Equal(new byte[100 * 4096], Read(90, 100));
        Assert.Equal(0UL, memory.AllocatedBytes - memory.GetPageTotals().DataBytes);
    }

    [Fact]
    public void TheyAreDataUntilGivenBackOrHinted()
    {
        memory.MapFile(file, 4096, Page(100), 20 << 12);
        memory.MarkHinted(Page(102), 3 << 12);
        memory.Discard(Page(108), 2 << 12);
        memory.Write(Page(103), new byte[] { 1 });
        Assert.Equal(
            [
                (0, PageState.Zero), (100, PageState.Data), (102, PageState.Hinted), (103, PageState.Data), (104, PageState.Hinted), (105, PageState.Data),
                (108, PageState.Discarded), (110, PageState.Data), (120, PageState.Zero),
            ],
            memory.GetPageRanges().Select(r => ((int)(r.Start.Value >> 12), r.State)));
    }

    [Fact]
    public void WritesAreLogged()
    {
        memory.MapFile(file, 0, Page(100), Pages << 12);
        using DirtyLog log = memory.StartDirtyLog(memory.Regions[0]);
        memory.Write(Page(105), new byte[] { 1 });
        memory.Discard(Page(120), 1 << 12);
        ulong[] bits = new ulong[log.WordCount];
        Assert.Equal(2, log.GetAndClear(bits));
        Assert.Equal(1UL << (105 - 64) | 1UL << (120 - 64), bits[1]);
    }

    [Fact]
    public void WhatCannotBeMappedIsRefused()
    {
        memory.MapFile(file, 0, Page(100), 4 << 12);
        Assert.Throws<ArgumentException>(() => memory.MapFile(file, 0, Page(103), 4 << 12));
        Assert.Throws<ArgumentException>(() => memory.MapFile(file, 100, Page(10), 4 << 12));
        Assert.Throws<ArgumentException>(() => memory.MapFile(file, 0, new GuestAddress(5), 4 << 12));
        Assert.Throws<ArgumentOutOfRangeException>(() => memory.MapFile(file, 0, Page(250), 10 << 12));
        Assert.Equal(contents[..(4 * 4096)], Read(100, 4));
    }

    [Fact]
    public void ScatteredPagesAreRefusedBeforeTheHostRunsOutOfMappings()
    {
        const int Many = 40_000;
        using GuestMemory large = new(new MemoryRegion(new(0), (ulong)Many << 12, "ram"));
        RandomAccess.SetLength(File.OpenHandle(path, FileMode.Open, FileAccess.ReadWrite), (long)Many << 12);
        large.MapFile(file, 0, Page(0), (ulong)Many << 12);
        int done = 0, refused = 0;
        for (int page = 1; page < Many; page += 2)
        {
            DiscardResult result = large.Discard(Page(page), 4096);
            Assert.True(result is DiscardResult.Done or DiscardResult.Refused);
            _ = result == DiscardResult.Done ? done++ : refused++;
        }
        Assert.True(done > 16_000 && refused > 0, $"{done} done, {refused} refused");
        // Neighbours that go too give mappings back.
        Assert.Equal(DiscardResult.Done, large.Discard(Page(0), (ulong)Many << 12));
        Assert.Equal(1 << 14, large.FileRunsLeft);
    }
}
