using System.Runtime.CompilerServices;

namespace Aerostat.Memory;

/// <content>
/// Blank blocks. Of each 2 MiB of guest memory a byte says whether all of it is zeros that the host holds nothing for: who clears a page there has nothing to do, and
/// need not ask the host about every page (<see cref="IsHole"/>). The byte's states, and all that changes them:
/// <code>
///              a processor is about to write
///     Blank ---------------------------------> Written &lt;----------------+
///       ^                                         | the host has got      | NoteBlank, where the
///       |                                         v all of the block      | host holds something
///       +-------------------------------------- Emptied ------------------+
///         NoteBlank, where the host holds nothing
///
///     any --- the host's own code is about to write, or may do so from now on ---> Claimed, for ever
/// </code>
/// <para>
/// The rule: <b>where a write can happen, the byte is not Blank, and was not before it could.</b> A processor sees to it with every write path that it keeps (its TLB's),
/// and before every write that takes none, without leaving the guest in between; the accessors here do before they write, and whenever they hand memory out to be written in place.
/// </para>
/// <para>
/// So whoever finds Blank knows that no write to the block was visible to anybody at that moment: on x86 stores become visible in their order, so a
/// writer's byte comes before its data. A clear that does nothing then stands at that moment, and a write that comes later comes after it. What is left is that the
/// clear must not be earlier than the same processor's stores before it, which may still be on their way: hence the fence before the look. (Without it, of two processors
/// that each write to a place of their own and then to the other's, both could come first.) Writers need none: their byte and their data go the same way.
/// </para>
/// <para>
/// Back to Blank, by <see cref="NoteBlank"/>, it goes while no processor is in the guest and none of them has a write path left. That is right because:
/// </para>
/// <list type="bullet">
/// <item>All is zeros: the host is asked there and then, and holds nothing for the block. What it holds nothing for nobody has written to since it was given back, for a
/// store makes the host hold the page before it is done. (Emptied says only where to ask. A guest may well have written to what it gave away: then the host holds that.)
/// Nothing is being given back meanwhile: a page that the host is about to take is not held any more and may still be read for a moment.</item>
/// <item>No processor writes without saying so: each has to go the slow way first, which comes by <see cref="NoteWriting(ulong)"/>, and none is between that and its write.
/// Paths of address spaces that are not in force are dropped where those come into force again, if the byte is Blank then.</item>
/// <item>The host's own code may be anywhere between its note and its write, now or at any later time: a disk's data come when they come. Therefore Claimed is never
/// left: the change to Blank is an exchange that fails if the block has been claimed. Parts of files (<see cref="MapFile"/>), too, are never blank.</item>
/// </list>
/// </content>
public sealed unsafe partial class GuestMemory
{
    private const int BlockShift = 21;
    private const byte Blank = 0, Written = 1, Emptied = 2, Claimed = 3;

    // Processors wait while blocks are noted: so many at a time at most, and not for fewer than make up for it.
    private const ulong NotedAtOnce = 1024;
    private const int WorthNoting = 8;

    // SAFETY: an element for each block under End, until Dispose; addresses used as an index are RAM.
    private byte* blockStates;

    /// <summary>A byte for each 2 MiB below <see cref="End"/>: not 0 when somebody may have written there. To be looked at behind a fence, as <see cref="IsBlank"/> does.</summary>
    public byte* WrittenBlocks => blockStates;

    /// <summary>
    /// To be called by a processor, in the guest, before a write to RAM becomes possible: before the write itself, or before it keeps a fast path for writes to the page.
    /// It does not leave the guest before the write is done or the path is kept.
    /// </summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void NoteWriting(ulong address)
    {
        ref byte block = ref blockStates[address >> BlockShift];
        if (Volatile.Read(ref block) == Blank)
            Interlocked.CompareExchange(ref block, Written, Blank);
    }

    /// <summary>
    /// Whether the 2 MiB around an address that is RAM are blank: the page is zeros, and clearing it is nothing. Exact at the moment of asking, as a
    /// write would be, and ordered behind the caller's stores. Any thread.
    /// </summary>
    public bool IsBlank(ulong address)
    {
        Interlocked.MemoryBarrier();
        return Volatile.Read(ref blockStates[address >> BlockShift]) == Blank;
    }

    /// <summary>Whether <see cref="NoteBlank"/> may find the block of an address blank, and enough others beside it to be worth the interruption.</summary>
    public bool IsWorthNoting(ulong address)
    {
        // Who stops processors stops those that it knows of, so there must be no others.
        if (Volatile.Read(ref blockStates[address >> BlockShift]) != Emptied || WatchTightened is { HasSingleTarget: false })
            return false;
        // While the host takes memory nothing is noted, and each page that is cleared meanwhile would interrupt the processors for nothing.
        if (Volatile.Read(ref punchedCount) != 0)
            return false;
        (ulong first, ulong last) = NotedWith(address);
        return new ReadOnlySpan<byte>(blockStates + first, (int)(last - first)).Count(Emptied) >= WorthNoting;
    }

    /// <summary>
    /// Takes blocks that were given back, around an address that is RAM, for blank again where the host holds nothing for them. To be called while no processor is in
    /// the guest and none has a write path to any page, and none gets back in with one that it has kept for another address space and that leads to a blank block.
    /// </summary>
    /// <remarks>Does nothing while memory is being given back.</remarks>
    public void NoteBlank(ulong address)
    {
        if (!discardLock.TryEnter())
            return;
        (ulong block, ulong last) = NotedWith(address);
        for (; block < last; block++)
        {
            if (Volatile.Read(ref blockStates[block]) != Emptied)
                continue;
            byte* start = HostBase + (block << BlockShift);
            bool held = hostPages.TryNextHeld(start, start + BlockBytes, out _, out _);
            Interlocked.CompareExchange(ref blockStates[block], held ? Written : Blank, Emptied);
        }
        discardLock.Exit();
    }

    private (ulong First, ulong Last) NotedWith(ulong address)
    {
        ulong first = (address >> BlockShift) & ~(NotedAtOnce - 1);
        return (first, Math.Min(first + NotedAtOnce, BlockCount));
    }

    private ulong BlockCount => (pageCount + BlockPages - 1) / BlockPages;

    // Discard lock held. The host has got these pages, as the map of what it was given says.
    private void NoteEmptied(ulong firstPage, ulong count)
    {
        for (ulong block = firstPage / BlockPages, last = (firstPage + count - 1) / BlockPages; block <= last; block++)
            if (Volatile.Read(ref blockStates[block]) == Written && IsAllSet(discardedPages, block))
                Interlocked.CompareExchange(ref blockStates[block], Emptied, Written);
    }

    // Before the host's own code writes to a range that is RAM, or gets it to write there.
    private void Claim(ulong address, ulong length)
    {
        if (length == 0)
            return;
        for (ulong block = address >> BlockShift, last = (address + length - 1) >> BlockShift; block <= last; block++)
        {
            ref byte state = ref blockStates[block];
            if (Volatile.Read(ref state) != Claimed)
                Interlocked.Exchange(ref state, Claimed);
        }
    }
}
