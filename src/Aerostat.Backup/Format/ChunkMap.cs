namespace Aerostat.Backup;

/// <summary>
/// Something of each chunk of a disk, with memory only where something is: most of a large disk is usually empty, and a backup of it must not cost, just before the guest
/// is frozen, memory by the disk's size, which the collector would be at work on while it is. Several threads may set different chunks.
/// </summary>
/// <param name="count">Chunks of the disk.</param>
internal sealed class ChunkMap<T>(long count)
    where T : struct
{
    /// <summary>Chunks for which memory is had at once; a multiple of what is worked on in one piece.</summary>
    public const int PageChunks = 1024;

    private readonly T[]?[] pages = new T[]?[(count + PageChunks - 1) / PageChunks];

    /// <summary>Chunks of the disk.</summary>
    public long Count => count;

    /// <summary>Pages of so many chunks, the last one perhaps in part behind the end.</summary>
    public int Pages => pages.Length;

    /// <summary>What is of a chunk; the default of its type where nothing was set.</summary>
    public T this[long chunk]
    {
        get => Volatile.Read(ref pages[chunk / PageChunks]) is { } page ? page[chunk % PageChunks] : default;
        set
        {
            ref T[]? place = ref pages[chunk / PageChunks];
            T[]? page = Volatile.Read(ref place);
            if (page is null)
            {
                T[] made = new T[PageChunks];
                page = Interlocked.CompareExchange(ref place, made, null) ?? made;
            }
            page[chunk % PageChunks] = value;
        }
    }

    /// <summary>What was set of chunks that are in one page, in which something was.</summary>
    public ReadOnlySpan<T> Part(long first, int length) => pages[first / PageChunks].AsSpan((int)(first % PageChunks), length);

    /// <summary>A page, without what is behind the disk's end; empty: nothing was set in it.</summary>
    public ReadOnlySpan<T> Page(int number) => pages[number].AsSpan() is { Length: > 0 } page ? page[..LengthOf(number)] : default;

    /// <summary>How many chunks of the disk are in a page.</summary>
    public int LengthOf(int number) => (int)Math.Min(PageChunks, count - ((long)number * PageChunks));
}
