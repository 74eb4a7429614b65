using Aerostat.X86;

namespace Aerostat.Cpu;

/// <content>Clearing memory that is zeros: <see cref="Memory.GuestMemory.IsBlank"/>.</content>
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
        Translation t;
        bool tried = false;
        while (true)
        {
            if (!CheckLinear(s, linear, Seg.Es, size) || !Translate(s, linear, DataAccess(s) | Access.Write, out t))
                return false;
            if (Memory.TryGetPage(t.Gpa) == null)
                return true;
            if (tried || !Memory.IsWorthNoting(t.Gpa))
                break;
            // Others may flush this processor's TLB meanwhile: what was found does not hold any more.
            NoteBlank(t.Gpa);
            tried = true;
        }
        blank = Memory.Watch[t.Gpa >> 12] == 0 && Memory.IsBlank(t.Gpa);
        if (blank)
            KeepBlank(s, linear, t);
        else
            FillTlb(s, s->TlbSet, linear, t, writeAllowed: true);
        return true;
    }

    // Memory that balloons have given back may be blank again, once no processor can write to it by itself: all of what waits for that, at the price of one interruption.
    private void NoteBlank(ulong gpa)
    {
        gate.BeginExclusive(this);
        foreach (Interpreter member in gate.Members)
            member.DropAllWritePaths();
        Memory.NoteBlank(gpa);
        gate.EndExclusive(this);
        blankShootdowns++;
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
