namespace Aerostat.HyperV;

/// <summary>
/// One direction of a channel: a control page and data pages after it (Linux, include/linux/hyperv.h, struct hv_ring_buffer). The two sides' indices
/// are bytes into the data; what lies between them is packets, and they are never so full that full looks like empty.
/// </summary>
/// <remarks>
/// Contents are the guest's to change at any time: everything is read once, and looked at before it is used. An index of one's own is kept here;
/// what the page says of it is for the other side only.
/// </remarks>
internal abstract class RingBuffer
{
    protected const int ControlSize = 4096, WriteIndex = 0, ReadIndex = 4, InterruptMask = 8, PendingSize = 12, Features = 64;
    protected const int DescriptorSize = 16, TrailerSize = 8;

    /// <summary>The least a ring takes: control page and one page of data.</summary>
    public const int MinPages = 2;

    private readonly Gpadl pages;
    private readonly int first;

    private protected RingBuffer(Gpadl pages, int firstPage, int pageCount)
    {
        this.pages = pages;
        first = firstPage * ControlSize;
        Size = (pageCount - 1) * ControlSize;
    }

    /// <summary>Bytes of data.</summary>
    public int Size { get; }

    protected uint Control(int field) => pages.ReadWord(first + field);

    protected void SetControl(int field, uint value) => pages.WriteWord(first + field, value);

    protected bool IsIndex(uint value) => value < (uint)Size && (value & 7) == 0;

    protected void Read(int index, Span<byte> into)
    {
        int part = Math.Min(into.Length, Size - index);
        pages.Read(first + ControlSize + index, into[..part]);
        pages.Read(first + ControlSize, into[part..]);
    }

    protected void Write(int index, ReadOnlySpan<byte> from)
    {
        int part = Math.Min(from.Length, Size - index);
        pages.Write(first + ControlSize + index, from[..part]);
        pages.Write(first + ControlSize, from[part..]);
    }

    protected int Wrap(int index) => index >= Size ? index - Size : index;

    protected int Distance(int from, int to) => to >= from ? to - from : to - from + Size;
}

/// <summary>What reading a ring came to.</summary>
internal enum RingRead
{
    /// <summary>Nothing is there.</summary>
    Empty,
    /// <summary>A packet.</summary>
    Packet,
    /// <summary>A packet that is too long for anybody here; it was passed over.</summary>
    TooLong,
    /// <summary>The ring's contents make no sense: nothing more can be read from it.</summary>
    Corrupt,
}

/// <summary>Head of a packet.</summary>
/// <param name="Type">6: data in the ring; 7: in transfer pages; 9: in guest pages; 11: completion.</param>
/// <param name="WantsCompletion">Bit 0 of the flags.</param>
/// <param name="Transaction">The sender's number.</param>
/// <param name="Area">Bytes between the head and the payload: of a packet of type 9, the ranges of guest pages.</param>
internal readonly record struct PacketHead(ushort Type, bool WantsCompletion, ulong Transaction, int Area)
{
    public const ushort Data = 6, GuestPages = 9, Completion = 11;
}
