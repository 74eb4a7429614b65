using System.Buffers.Binary;
using Aerostat.Memory;
using Aerostat.Platform;

namespace Aerostat.HyperV;

/// <summary>
/// Guest memory that a request names for its data ("multi-page buffer"): pieces, one after the other, all of them memory. What the guest named was copied and looked at
/// once; the bytes themselves may change at any time.
/// </summary>
internal sealed class GuestPages
{
    private const int PageSize = GuestAddress.PageSize, MostRanges = 64;
    private readonly GuestMemory memory;
    private readonly List<(ulong Address, int Length)> pieces;

    private GuestPages(GuestMemory memory, List<(ulong, int)> pieces)
    {
        this.memory = memory;
        this.pieces = pieces;
        foreach ((_, int length) in pieces)
            Length += length;
    }

    /// <summary>Bytes.</summary>
    public int Length { get; }

    /// <summary>No data.</summary>
    public static GuestPages None(GuestMemory memory) => new(memory, []);

    /// <summary>
    /// Reads what stands between the head and the payload of a packet: four bytes of nothing, the number of ranges, and for each its bytes, its offset in the first page,
    /// and page numbers. Null: it makes no sense, is not all memory, or is more than <paramref name="most"/> bytes.
    /// </summary>
    public static GuestPages? Parse(GuestMemory memory, ReadOnlySpan<byte> area, int most)
    {
        if (area.Length < 8)
            return null;
        uint ranges = BinaryPrimitives.ReadUInt32LittleEndian(area[4..]);
        area = area[8..];
        if (ranges > MostRanges)
            return null;
        List<(ulong, int)> pieces = [];
        int total = 0;
        for (uint i = 0; i < ranges; i++)
        {
            if (area.Length < 8)
                return null;
            uint length = BinaryPrimitives.ReadUInt32LittleEndian(area), offset = BinaryPrimitives.ReadUInt32LittleEndian(area[4..]);
            area = area[8..];
            if (offset >= PageSize || length > (uint)(most - total))
                return null;
            int pages = (int)((offset + length + PageSize - 1) / PageSize);
            if (area.Length < pages * 8)
                return null;
            total += (int)length;
            for (int at = (int)offset, left = (int)length, page = 0; left > 0; page++, at = 0)
            {
                ulong number = BinaryPrimitives.ReadUInt64LittleEndian(area[(page * 8)..]);
                int here = Math.Min(left, PageSize - at);
                if (number >= GuestMemory.AddressLimit / PageSize || !Add(memory, pieces, (number * PageSize) + (uint)at, here))
                    return null;
                left -= here;
            }
            area = area[(pages * 8)..];
        }
        return new GuestPages(memory, pieces);
    }

    /// <summary>From what <see cref="ToPieces"/> gave; null: it is not memory here.</summary>
    public static GuestPages? FromPieces(GuestMemory memory, ReadOnlySpan<ulong> saved, int most)
    {
        List<(ulong, int)> pieces = [];
        ulong total = 0;
        for (int i = 0; i + 1 < saved.Length; i += 2)
        {
            total += Math.Min(saved[i + 1], (ulong)most + 1);
            if (total > (ulong)most || saved[i] > GuestMemory.AddressLimit || !Add(memory, pieces, saved[i], (int)saved[i + 1]))
                return null;
        }
        return new GuestPages(memory, pieces);
    }

    /// <summary>Address and length of each piece.</summary>
    public ulong[] ToPieces() => [.. pieces.SelectMany(p => (ulong[])[p.Address, (ulong)p.Length])];

    private static bool Add(GuestMemory memory, List<(ulong Address, int Length)> pieces, ulong address, int length)
    {
        // Neighbours are one piece, if there is memory from one to the other.
        if (pieces.Count > 0 && pieces[^1] is var last && last.Address + (ulong)last.Length == address && memory.Contains(last.Address, (ulong)(last.Length + length)))
        {
            pieces[^1] = (last.Address, last.Length + length);
            return true;
        }
        if (length <= 0 || !memory.Contains(address, (ulong)length))
            return false;
        pieces.Add((address, length));
        return true;
    }

    /// <summary>Copies bytes in; what does not fit is left out.</summary>
    /// <returns>How many were copied.</returns>
    public int Write(ReadOnlySpan<byte> bytes)
    {
        int done = 0;
        foreach ((ulong address, int length) in pieces)
        {
            int some = Math.Min(length, bytes.Length - done);
            if (some == 0)
                break;
            memory.TryWrite(new GuestAddress(address), bytes.Slice(done, some));
            done += some;
        }
        return done;
    }

    /// <summary>Copies the first bytes out; answers how many there were.</summary>
    public int Read(Span<byte> into)
    {
        int done = 0;
        foreach ((ulong address, int length) in pieces)
        {
            int some = Math.Min(length, into.Length - done);
            if (some == 0)
                break;
            memory.TryRead(new GuestAddress(address), into.Slice(done, some));
            done += some;
        }
        return done;
    }

    /// <summary>The host's view of a part, as many pieces as there is room for; answers how many.</summary>
    public int GetBuffers(int offset, int count, Span<HostBuffer> into, out int covered)
    {
        int used = 0;
        covered = 0;
        foreach ((ulong address, int length) in pieces)
        {
            if (offset >= length)
            {
                offset -= length;
                continue;
            }
            if (covered == count || used == into.Length)
                break;
            int some = Math.Min(length - offset, count - covered);
            if (!memory.TryGetBuffer(new GuestAddress(address + (ulong)offset), (ulong)some, out into[used]))
                break;
            used++;
            covered += some;
            offset = 0;
        }
        return used;
    }

    /// <summary>Says that the host has written into the first bytes.</summary>
    public void NotifyWritten(int count)
    {
        foreach ((ulong address, int length) in pieces)
        {
            int some = Math.Min(length, count);
            if (some == 0)
                break;
            memory.NotifyHostWrite(address, (ulong)some);
            count -= some;
        }
    }
}
