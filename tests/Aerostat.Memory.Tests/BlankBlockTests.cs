using System.Runtime.InteropServices;
using Xunit;

namespace Aerostat.Memory.Tests;

/// <summary>Which blocks of 2 MiB nobody can have written to: see <see cref="GuestMemory.IsBlank"/>.</summary>
public sealed class BlankBlockTests : IDisposable
{
    private const ulong Page = 4096, Block = 512 * Page;

    private readonly GuestMemory memory = new(new MemoryRegion(new(0), 4 * Block, "low"), new MemoryRegion(new(5 * Block), (2 * Block) + (3 * Page), "high"));

    public void Dispose() => memory.Dispose();

    private int[] Written() => [.. Enumerable.Range(0, 8).Where(b => memory.Contains((ulong)b * Block, 1) && !memory.IsBlank((ulong)b * Block))];

    public static TheoryData<string> Writes => ["write", "value", "fill", "zero", "copy", "stream", "span", "buffer", "processor"];

    [Theory]
    [MemberData(nameof(Writes))]
    public void Whoever_can_write_to_a_block_ends_its_being_blank(string how)
    {
        Assert.Empty(Written());
        GuestAddress at = new((2 * Block) - 2);
        switch (how)
        {
            case "write": Assert.True(memory.TryWrite(at, (ReadOnlySpan<byte>)[1, 2, 3])); break;
            case "value": Assert.True(memory.TryWrite(at, 1UL)); break;
            case "fill": Assert.True(memory.TryFill(at, 4, 7)); break;
            case "zero": Assert.True(memory.TryZero(at, 4)); break;
            case "copy": Assert.True(memory.TryCopy(new(3 * Block), at, 4)); break;
            case "stream": Assert.Equal(4UL, memory.ReadFrom(new MemoryStream([1, 2, 3, 4]), at, 4)); break;
            case "span": Assert.True(memory.TryGetSpan(at, 4, out Span<byte> _)); break;
            case "buffer": Assert.True(memory.TryGetBuffer(at, 4, out _)); break;
            default:
                memory.NoteWriting(at.Value);
                memory.NoteWriting(2 * Block);
                break;
        }
        Assert.Equal([1, 2], Written());
    }

    [Fact]
    public void What_shows_a_file_is_not_blank()
    {
        string path = Path.GetTempFileName();
        File.WriteAllBytes(path, new byte[2 * Page]);
        using (var file = File.OpenHandle(path))
            memory.MapFile(file, 0, new((6 * Block) - Page), 2 * Page);
        File.Delete(path);
        Assert.Equal([5, 6], Written());
    }

    [Fact]
    public void Reading_giving_back_and_what_is_not_memory_change_nothing()
    {
        Assert.True(memory.TryRead(new(Block), MemoryMarshal.AsBytes(new ulong[100].AsSpan())));
        Assert.True(memory.TryGetBuffer(new(Block), Page, out _, forWriting: false));
        Assert.False(memory.TryWrite(new(4 * Block), 1UL));
        Assert.False(memory.TryWrite(new((4 * Block) - 1), 1UL));
        Assert.False(memory.TryFill(new(3 * Block), 2 * Block, 1));
        Assert.True(memory.TryWrite(new(Block), []));
        Assert.Equal(DiscardResult.Done, memory.Discard(new(Block), Block));
        Assert.Empty(Written());
        // The last block has three pages.
        Assert.True(memory.TryWrite(new((7 * Block) + (3 * Page) - 1), (ReadOnlySpan<byte>)[1]));
        Assert.Equal([7], Written());
    }

    /// <summary>Memory that a processor has written to, as far as its notes go: all blocks, and some bytes.</summary>
    private static GuestMemory CreateWritten(bool hugePages, int blocks = 16)
    {
        GuestMemory m = new(hugePages, new MemoryRegion(new(0), (ulong)blocks * Block, "ram"));
        for (ulong block = 0; block < (ulong)blocks; block++)
            WriteAsProcessor(m, (block * Block) + (block * Page));
        return m;
    }

    // SAFETY: the address is RAM.
    private static unsafe void WriteAsProcessor(GuestMemory m, ulong address)
    {
        m.NoteWriting(address);
        m.HostBase[address] = 0x5A;
    }

    private static int[] BlankOf(GuestMemory m) => [.. Enumerable.Range(0, (int)(m.End / Block)).Where(b => m.IsBlank((ulong)b * Block))];

    [Theory]
    [InlineData("discard")]
    [InlineData("discard by pages")]
    [InlineData("take away")]
    [InlineData("take away by pages")]
    public void What_was_given_back_as_a_whole_may_be_blank_again(string how)
    {
        using GuestMemory m = CreateWritten(how.StartsWith("take", StringComparison.Ordinal));
        ulong step = how.EndsWith("pages", StringComparison.Ordinal) ? Page : 12 * Block;
        for (ulong at = 0; at < 12 * Block; at += step)
            Assert.Equal(DiscardResult.Done, how.StartsWith("take", StringComparison.Ordinal) ? m.TakeAway(new(at), step) : m.Discard(new(at), step));
        // Half of one is not enough.
        m.Discard(new(12 * Block), Block / 2);
        Assert.Empty(BlankOf(m));
        Assert.False(m.IsWorthNoting(12 * Block));
        // What is taken apart a moment later may be in the way.
        Assert.True(SpinWait.SpinUntil(() => m.IsWorthNoting(5 * Block), TimeSpan.FromMinutes(1)));
        Assert.True(SpinWait.SpinUntil(() =>
        {
            m.NoteBlank(5 * Block);
            return m.IsBlank(5 * Block);
        }, TimeSpan.FromMinutes(1)));
        Assert.Equal(Enumerable.Range(0, 12), BlankOf(m));
        // And so on.
        m.NoteWriting(3 * Block);
        Assert.DoesNotContain(3, BlankOf(m));
        Assert.False(m.IsWorthNoting(3 * Block));
    }

    [Fact]
    public void A_few_are_not_worth_it()
    {
        using GuestMemory m = CreateWritten(false);
        m.Discard(new(0), 7 * Block);
        Assert.False(m.IsWorthNoting(0));
        m.Discard(new(7 * Block), Block);
        Assert.True(m.IsWorthNoting(0));
    }

    [Fact]
    public void What_was_written_to_after_it_was_given_back_is_not_blank()
    {
        using GuestMemory m = CreateWritten(false);
        m.Discard(new(0), 16 * Block);
        WriteAsProcessor(m, (4 * Block) - 1);
        m.NoteBlank(0);
        Assert.Equal(Enumerable.Range(0, 16).Where(b => b != 3), BlankOf(m));
        // It may be given back again.
        m.Discard(new(3 * Block), Block);
        m.NoteBlank(0);
        Assert.Equal(Enumerable.Range(0, 16), BlankOf(m));
    }

    [Theory]
    [MemberData(nameof(Writes))]
    public void What_the_host_may_write_to_is_never_blank_again(string how)
    {
        if (how == "processor")
            return;
        foreach (bool before in (bool[])[false, true])
        {
            using GuestMemory m = CreateWritten(false);
            if (!before)
                m.Discard(new(0), 16 * Block);
            GuestAddress at = new((2 * Block) - 2);
            bool done = how switch
            {
                "write" => m.TryWrite(at, (ReadOnlySpan<byte>)[1, 2, 3]),
                "value" => m.TryWrite(at, 1UL),
                "fill" => m.TryFill(at, 4, 7),
                "zero" => m.TryZero(at, 4),
                "copy" => m.TryCopy(new(3 * Block), at, 4),
                "stream" => m.ReadFrom(new MemoryStream([1, 2, 3, 4]), at, 4) == 4,
                "span" => m.TryGetSpan(at, 4, out Span<byte> _),
                _ => m.TryGetBuffer(at, 4, out _),
            };
            Assert.True(done);
            for (int i = 0; i < 2; i++)
            {
                m.Discard(new(0), 16 * Block);
                m.NoteBlank(0);
                Assert.Equal(Enumerable.Range(0, 16).Where(b => b is not (1 or 2)), BlankOf(m));
            }
        }
    }

    [Fact]
    public void Where_a_file_was_shown_nothing_is_blank_again()
    {
        using GuestMemory m = CreateWritten(false);
        m.Discard(new(0), 16 * Block);
        string path = Path.GetTempFileName();
        File.WriteAllBytes(path, new byte[2 * Page]);
        using (var file = File.OpenHandle(path))
            m.MapFile(file, 0, new((6 * Block) - Page), 2 * Page);
        File.Delete(path);
        m.NoteBlank(0);
        m.Discard(new(0), 16 * Block);
        m.NoteBlank(0);
        Assert.Equal(Enumerable.Range(0, 16).Where(b => b is not (5 or 6)), BlankOf(m));
    }

    [Fact]
    public void Processors_that_do_not_know_of_each_other_note_nothing()
    {
        using GuestMemory m = CreateWritten(false);
        m.Discard(new(0), 16 * Block);
        m.WatchTightened += () => { };
        Assert.True(m.IsWorthNoting(0));
        m.WatchTightened += () => { };
        Assert.False(m.IsWorthNoting(0));
    }

    [Fact]
    public void A_log_of_writes_and_the_states_of_pages_stay_true()
    {
        using GuestMemory m = CreateWritten(false);
        using DirtyLog log = m.StartDirtyLog(m.Regions[0]);
        m.Discard(new(0), 16 * Block);
        m.NoteBlank(0);
        Assert.Equal(16, BlankOf(m).Length);
        ulong[] bits = new ulong[log.WordCount];
        Assert.Equal(16 * 512, log.GetAndClear(bits));
        Assert.All(m.GetPageRanges(), r => Assert.Equal(PageState.Discarded, r.State));
    }

    /// <summary>The host's own code writes at any time, while blocks are given back and noted: none that it has written to is blank.</summary>
    [Fact]
    public void The_host_writes_while_blocks_are_noted()
    {
        const int blocks = 64, rounds = 200;
        using GuestMemory m = new(new MemoryRegion(new(0), blocks * rounds * Block, "ram"));
        int round = -1, done = 0;
        Thread writer = new(() =>
        {
            var random = new Random(3);
            for (int r = 0; r < rounds; r++)
            {
                SpinWait spin = default;
                while (Volatile.Read(ref round) < r)
                    spin.SpinOnce();
                for (int i = 0; i < blocks / 4; i++)
                    m.Write(new(((ulong)((r * blocks) + random.Next(blocks)) * Block) + ((ulong)random.Next(512) * Page)), 1);
                Volatile.Write(ref done, r + 1);
            }
        });
        writer.Start();
        int found = 0;
        for (int r = 0; r < rounds; r++)
        {
            ulong first = (ulong)(r * blocks) * Block;
            for (int block = 0; block < blocks; block++)
                WriteAsProcessor(m, first + ((ulong)block * Block));
            Volatile.Write(ref round, r);
            do
            {
                m.Discard(new(first), blocks * Block);
                m.NoteBlank(first);
                for (int block = 0; block < blocks; block += 3)
                    m.NoteWriting(first + ((ulong)block * Block));
            }
            while (Volatile.Read(ref done) <= r);
            for (int block = 0; block < blocks; block++)
                if (m.IsBlank(first + ((ulong)block * Block)))
                {
                    found++;
                    Assert.Equal(PageState.Discarded, m.GetPageRanges(new(first + ((ulong)block * Block)), Block).Single().State);
                }
        }
        writer.Join();
        Assert.True(found > rounds);
    }
}
