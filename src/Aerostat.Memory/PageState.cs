namespace Aerostat.Memory;

/// <summary>What the host holds for a page of guest RAM.</summary>
/// <remarks>
/// Transitions: every page starts as Zero. A write by the guest or the VMM makes the host allocate the page: Data. With huge pages it allocates those around
/// it as well, and they are Data too, with zeros in them. (A look at a page that the host does not hold takes no memory; on hosts before Linux 6.7
/// it is called Data all the same.) Discarding makes it Discarded, zeroing a long range makes it Zero. A hint makes Data Hinted; the first write makes it Data again.
/// <para>
/// Which pages have memory is not tracked but asked of the host when wanted (<see cref="Aerostat.Platform.HostPages"/>), because the host alone
/// knows: no write is slowed down, and the answer is exact at the moment of asking, for any processor, KVM included. Only the two
/// marks that the host cannot know (given back on purpose; hinted) are kept, one bit each, and a Discarded mark counts only while
/// the page has no memory. A hint is dropped through <see cref="PageWatch.Hinted"/>, that is by writes that are notified.
/// </para>
/// </remarks>
public enum PageState
{
    /// <summary>The host holds memory for the page.</summary>
    Data,
    /// <summary>Never touched or zeroed: reads as zeros, no memory.</summary>
    Zero,
    /// <summary>Given back by the guest and not touched since: reads as zeros, no memory.</summary>
    Discarded,
    /// <summary>The host holds memory, but the guest said that the contents do not matter, and has not written since.</summary>
    Hinted,
}

/// <summary>Neighbouring pages in the same state.</summary>
/// <param name="Start">First address.</param>
/// <param name="Length">Bytes.</param>
/// <param name="State">Their state.</param>
public readonly record struct PageRange(GuestAddress Start, ulong Length, PageState State)
{
    /// <summary>First address after the range.</summary>
    public ulong End => Start.Value + Length;
}

/// <summary>How much of guest RAM is in which state, in bytes.</summary>
/// <param name="DataBytes">Held by the host, contents matter.</param>
/// <param name="ZeroBytes">Never touched or zeroed.</param>
/// <param name="DiscardedBytes">Given back.</param>
/// <param name="HintedBytes">Held by the host, contents do not matter.</param>
public readonly record struct PageTotals(ulong DataBytes, ulong ZeroBytes, ulong DiscardedBytes, ulong HintedBytes);

/// <summary>How an attempt to give memory back went.</summary>
public enum DiscardResult
{
    /// <summary>The range reads as zeros and the host has its memory.</summary>
    Done,
    /// <summary>Address or length is not a multiple of 4096, or the length is 0.</summary>
    Unaligned,
    /// <summary>Not all of it is RAM.</summary>
    NotMemory,
    /// <summary>Part of it is pinned for a transfer.</summary>
    Pinned,
    /// <summary>The host refused.</summary>
    Refused,
}

/// <summary>Keeps a range of guest memory from being discarded while a transfer into or out of it is under way.</summary>
public sealed class MemoryPin : IDisposable
{
    private readonly GuestMemory memory;

    internal MemoryPin(GuestMemory memory, GuestAddress start, ulong length)
    {
        this.memory = memory;
        Start = start;
        Length = length;
    }

    /// <summary>First address.</summary>
    public GuestAddress Start { get; }

    /// <summary>Bytes.</summary>
    public ulong Length { get; }

    /// <summary>Lets go.</summary>
    public void Dispose() => memory.Unpin(this);
}
