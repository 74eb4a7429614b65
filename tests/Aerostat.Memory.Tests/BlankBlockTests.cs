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
}
