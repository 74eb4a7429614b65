using Aerostat.X86;

namespace Aerostat.Cpu;

/// <content>Clearing memory that nobody has written to: <see cref="Memory.GuestMemory.IsBlank"/>.</content>
internal sealed unsafe partial class Interpreter
{
    /// <summary>No address with the number of a set.</summary>
    internal const ulong NoBlank = ulong.MaxValue;

    /// <summary>Bytes of guest memory that are blank together.</summary>
    internal const ulong BlankBytes = 2UL << 20;

    /// <summary>
    /// For a store of zeros to many elements whose page has no write path in the TLB: <paramref name="blank"/> tells that zeros are all that was ever there, so that nothing
    /// is to be done in this page; otherwise the page is in the TLB afterwards, if it can be.
    /// </summary>
    /// <returns>False: a fault is recorded.</returns>
    internal bool FindPageToClear(CpuState* s, ulong linear, int size, out bool blank)
    {
        blank = false;
        if ((linear & 4095) + (ulong)size > 4096 || s->TlbSet == EmptySet || watchpoints.Length != 0 || IsDevice(s, linear, write: true, out _))
            return true;
        if (!CheckLinear(s, linear, Seg.Es, size) || !Translate(s, linear, DataAccess(s) | Access.Write, out Translation t))
            return false;
        if (Memory.TryGetPage(t.Gpa) == null)
            return true;
        blank = Memory.Watch[t.Gpa >> 12] == 0 && Memory.IsBlank(t.Gpa);
        if (blank)
            KeepBlank(s, linear, t);
        else
            FillTlb(s, s->TlbSet, linear, t, writeAllowed: true);
        return true;
    }

    // A large page of blank memory that nobody watches: generated code goes on by itself, as if the TLB had write paths for all of it, until one of them would be dropped.
    private void KeepBlank(CpuState* s, ulong linear, in Translation t)
    {
        ulong block = t.Gpa & ~(BlankBytes - 1);
        if (t.PageSize < BlankBytes || !Memory.Contains(block, BlankBytes) || new ReadOnlySpan<byte>(Memory.Watch + (block >> 12), (int)(BlankBytes >> 12)).ContainsAnyExcept((byte)0))
            return;
        s->BlankTag = (linear & ~(BlankBytes - 1)) | (uint)s->TlbSet;
        s->BlankByte = (ulong)(Memory.WrittenBlocks + (block >> 21));
    }
}
