using System.Runtime.CompilerServices;

namespace Aerostat.Memory;

/// <content>
/// Blank blocks. Of each 2 MiB of guest memory a byte says whether anybody may have written there since the machine began. As long as nobody has, all of it is zeros
/// and the host holds nothing for it: who clears a page in it has nothing to do, and need not ask the host about every page (<see cref="IsHole"/>).
/// <para>
/// The rule: <b>the byte is set before the write can happen</b>, and it is never taken back. A processor sets it with every write path that it keeps (its TLB's), and
/// before every write that takes none; the accessors here set it before they write, and whenever they hand memory out to be written in place.
/// </para>
/// <para>
/// So whoever finds the byte clear knows that no write to the block was visible to anybody at that moment: on x86 stores become visible in their order, so a
/// writer's byte comes before its data. A clear that does nothing then stands at that moment, and a write that comes later comes after it. What is left is that the
/// clear must not be earlier than the same processor's stores before it, which may still be on their way: hence the fence before the look. (Without it, of two processors
/// that each write to a place of their own and then to the other's, both could come first.) Writers need none: their byte and their data go the same way.
/// </para>
/// </content>
public sealed unsafe partial class GuestMemory
{
    private const int BlockShift = 21;

    // SAFETY: an element for each block under End, until Dispose; addresses used as an index are RAM.
    private byte* writtenBlocks;

    /// <summary>A byte for each 2 MiB below <see cref="End"/>: not 0 when somebody may have written there. To be looked at behind a fence, as <see cref="IsBlank"/> does.</summary>
    public byte* WrittenBlocks => writtenBlocks;

    /// <summary>To be called by a processor before a write to RAM becomes possible: before the write itself, or before it keeps a fast path for writes to the page.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void NoteWriting(ulong address)
    {
        ref byte block = ref writtenBlocks[address >> BlockShift];
        if (Volatile.Read(ref block) == 0)
            Interlocked.Exchange(ref block, 1);
    }

    /// <summary>
    /// Whether nobody has ever written to the 2 MiB around an address that is RAM: the page is zeros, and clearing it is nothing. Exact at the moment of asking, as a
    /// write would be, and ordered behind the caller's stores. Any thread.
    /// </summary>
    public bool IsBlank(ulong address)
    {
        Interlocked.MemoryBarrier();
        return Volatile.Read(ref writtenBlocks[address >> BlockShift]) == 0;
    }

    // Before a write to a range that is RAM.
    private void NoteWriting(ulong address, ulong length)
    {
        if (length == 0)
            return;
        for (ulong block = address >> BlockShift, last = (address + length - 1) >> BlockShift; block <= last; block++)
            NoteWriting(block << BlockShift);
    }
}
