using Aerostat.Memory;

namespace Aerostat.HyperV;

/// <summary>
/// A list of guest pages that the guest has lent for a channel ("guest physical address descriptor list"). Complete when as many page numbers have come
/// as were announced. Only pages that are memory are taken.
/// </summary>
internal sealed class Gpadl(GuestMemory memory, uint handle, uint relId, int pages)
{
    /// <summary>Most pages of one list.</summary>
    public const int MaxPages = 8192;

    private const int PageSize = GuestAddress.PageSize;
    private readonly ulong[] addresses = new ulong[pages];

    public uint Handle => handle;
    public uint RelId => relId;
    public int Pages => pages;
    public int Known { get; private set; }
    public bool IsComplete => Known == pages;

    /// <summary>Whether an open channel uses it: it cannot be torn down then.</summary>
    public bool InUse { get; set; }

    /// <summary>The numbers, for a saved state.</summary>
    public ulong[] PageNumbers => [.. addresses.Take(Known).Select(a => a / PageSize)];

    /// <summary>Adds a page; false: it is not memory, or one too many.</summary>
    public bool Add(ulong pageNumber)
    {
        if (IsComplete || pageNumber > ulong.MaxValue / PageSize || !memory.Contains(pageNumber * PageSize, PageSize))
            return false;
        addresses[Known++] = pageNumber * PageSize;
        return true;
    }

    /// <summary>Where a byte of the list is.</summary>
    public GuestAddress At(int offset) => new(addresses[offset / PageSize] + (ulong)(offset % PageSize));

    public void Read(int offset, Span<byte> into)
    {
        while (!into.IsEmpty)
        {
            int some = Math.Min(into.Length, PageSize - (offset % PageSize));
            if (!memory.TryRead(At(offset), into[..some]))
                into[..some].Clear();
            into = into[some..];
            offset += some;
        }
    }

    public void Write(int offset, ReadOnlySpan<byte> from)
    {
        while (!from.IsEmpty)
        {
            int some = Math.Min(from.Length, PageSize - (offset % PageSize));
            memory.TryWrite(At(offset), from[..some]);
            from = from[some..];
            offset += some;
        }
    }

    public uint ReadWord(int offset) => memory.TryRead(At(offset), out uint value) ? value : 0;

    public void WriteWord(int offset, uint value) => memory.TryWrite(At(offset), value);
}
