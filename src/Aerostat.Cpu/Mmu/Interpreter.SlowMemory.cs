using System.Runtime.CompilerServices;
using Aerostat.X86;

namespace Aerostat.Cpu;

/// <content>Memory accesses that the TLB cannot serve: misses, page crossings, watched pages, MMIO, and whatever must be checked each time.</content>
internal sealed unsafe partial class Interpreter
{
    // A read-modify-write in flight: what FinishRmw has to do.
    private const ulong RmwWatched = 1, RmwBounce = 2;
    private readonly byte* bounce;
    private ulong rmwAddress;
    private int rmwSize, rmwSegment;
    private bool rmwExclusive;

    private Access DataAccess(CpuState* s) => s->Cpl == 3 ? Access.User : Access.Read;

    private static ulong LinearMask(CpuState* s) => s->Bitness == 64 ? ulong.MaxValue : uint.MaxValue;

    /// <summary>Canonical, segment and alignment checks; false: recorded.</summary>
    private bool CheckLinear(CpuState* s, ulong linear, int segment, int size)
    {
        if (linear == SegmentViolation || (s->Bitness == 64 && (!IsCanonical(s, Unmask(s, linear)) || !IsCanonical(s, Unmask(s, linear + (ulong)size - 1)))))
        {
            Raise(segment == Seg.Ss ? Vector.StackFault : Vector.GeneralProtection, 0);
            return false;
        }
        if (s->TlbSet == EmptySet && s->Cpl == 3 && (s->Cr0 & Cr0.Am) != 0 && (s->SystemFlags & RFlags.Ac) != 0
            && (linear & Alignment(size)) != 0)
        {
            Raise(Vector.AlignmentCheck, 0);
            return false;
        }
        return true;
    }

    // What #AC demands of an operand, as a mask (Intel SDM vol. 3 table 7-7): x87 values of ten bytes count as eight, environments and states
    // as two or four. Wider operands have rules of their own or none.
    private static ulong Alignment(int size) => size switch
    {
        2 or 14 or 94 => 1,
        4 or 28 or 108 => 3,
        8 or 10 => 7,
        _ => 0,
    };

    /// <summary>Whether a store would succeed, for instructions that store nothing in the end; false: the fault is recorded.</summary>
    internal bool ProbeWrite(CpuState* s, ulong linear, int segment, int size)
    {
        if (!CheckLinear(s, linear, segment, size))
            return false;
        Access access = DataAccess(s) | Access.Write;
        ulong first = 4096 - (linear & 4095);
        if (watchpoints.Length != 0 && (hostDebug & HostWatch) == 0 && !PassesWatchpoints(linear, size, write: true))
            return false;
        return Translate(s, linear, access, out _) && (first >= (ulong)size || Translate(s, (linear + first) & LinearMask(s), access, out _));
    }

    internal bool LoadSlow(CpuState* s, ulong linear, int segment, int size, out ulong value)
    {
        ulong v;
        Unsafe.SkipInit(out v);
        value = 0;
        if ((linear & 4095) + (ulong)size > 4096 || s->TlbSet == EmptySet)
        {
            v = 0;
            if (!LoadBytesSlow(s, linear, segment, (byte*)&v, size))
                return false;
            value = v;
            return true;
        }
        if (IsDevice(s, linear, write: false, out ulong device))
        {
            value = Handler.ReadMmio(device, size) & (ulong.MaxValue >> (64 - (size * 8)));
            mmioReads++;
            return true;
        }
        if (!CheckLinear(s, linear, segment, size) || !Translate(s, linear, DataAccess(s), out Translation t))
            return false;
        if (watchpoints.Length != 0 && !PassesWatchpoints(linear, size, write: false))
            return false;
        byte* page = Memory.TryGetPage(t.Gpa);
        if (page == null)
        {
            NoteDevice(s, linear, t.Gpa, write: false);
            // A device may leave anything above the bytes that were asked for.
            value = Handler.ReadMmio(t.Gpa, size) & (ulong.MaxValue >> (64 - (size * 8)));
            mmioReads++;
            return true;
        }
        FillTlb(s, s->TlbSet, linear, t, WriteAllowed(s, t));
        value = ReadSized(page + (t.Gpa & 4095), size);
        return true;
    }

    internal Outcome StoreSlow(CpuState* s, ulong linear, int segment, int size, ulong value)
    {
        if ((linear & 4095) + (ulong)size > 4096 || s->TlbSet == EmptySet)
            return StoreBytesSlow(s, linear, segment, (byte*)&value, size);
        if (IsDevice(s, linear, write: true, out ulong device))
        {
            Handler.WriteMmio(device, size, value);
            mmioWrites++;
            return Outcome.Next;
        }
        if (!CheckLinear(s, linear, segment, size) || !Translate(s, linear, DataAccess(s) | Access.Write, out Translation t))
            return Outcome.Fault;
        if (watchpoints.Length != 0 && !PassesWatchpoints(linear, size, write: true))
            return Outcome.Fault;
        return StorePhysical(s, linear, t, size, value);
    }

    // The page that was found not to be held last, for RepeatStore.
    internal byte* holeFound;

    private Outcome StorePhysical(CpuState* s, ulong linear, in Translation t, int size, ulong value)
    {
        byte* page = Memory.TryGetPage(t.Gpa);
        if (page == null)
        {
            NoteDevice(s, linear, t.Gpa, write: true);
            Handler.WriteMmio(t.Gpa, size, value);
            mmioWrites++;
            return Outcome.Next;
        }
        FillTlb(s, s->TlbSet, linear, t, writeAllowed: true);
        // The first zeros of a page that is to be cleared (see RepeatStore): one, or two where writes are logged.
        if (value != 0 || !Memory.IsHole(t.Gpa))
            WriteSized(page + (t.Gpa & 4095), size, value);
        else
            holeFound = page;
        return NotifyStore(s, t.Gpa, size);
    }

    private Outcome NotifyStore(CpuState* s, ulong gpa, int size)
    {
        if (Memory.Watch[gpa >> 12] == 0 || !Memory.NotifyWrite(gpa, (ulong)size))
            return Outcome.Next;
        codeWrites++;
        translation?.NoteStoreToCode(gpa, FetchedFrom(s, s->Rip));
        return Outcome.Stop;
    }

    internal byte* MapRmwSlow(CpuState* s, ulong linear, int segment, int size)
    {
        if (!CheckLinear(s, linear, segment, size) || (watchpoints.Length != 0 && !PassesWatchpoints(linear, size, write: true)))
            return null;
        ulong first = linear & 4095;
        Access access = DataAccess(s) | Access.Write;
        if (first + (ulong)size <= 4096)
        {
            if (!Translate(s, linear, access, out Translation t))
                return null;
            byte* page = Memory.TryGetPage(t.Gpa);
            if (page != null)
            {
                FillTlb(s, s->TlbSet, linear, t, writeAllowed: true);
                if (Memory.Watch[t.Gpa >> 12] != 0 || s->TlbSet == EmptySet)
                {
                    s->RmwPending = RmwWatched;
                    rmwAddress = t.Gpa;
                    rmwSize = size;
                    CheckDataBreakpoints(s, linear, size, write: true);
                }
                return page + (t.Gpa & 4095);
            }
        }
        // Across pages, or MMIO: through a buffer. With several processors a page-crossing operation runs while the others are parked,
        // which makes it atomic as a split lock is.
        if (first + (ulong)size > 4096)
        {
            rmwExclusive = true;
            gate.BeginExclusive(this);
        }
        bool ok = Translate(s, linear, access, out Translation unused)
            && (first + (ulong)size <= 4096 || Translate(s, (linear + 4096 - first) & LinearMask(s), access, out unused))
            && LoadBytesSlow(s, linear, segment, bounce, size);
        if (!ok)
        {
            EndRmwExclusive();
            return null;
        }
        s->RmwPending = RmwBounce;
        rmwAddress = linear;
        rmwSize = size;
        rmwSegment = segment;
        return bounce;
    }

    internal Outcome FinishRmwSlow(CpuState* s)
    {
        ulong kind = s->RmwPending;
        s->RmwPending = 0;
        if (kind == RmwWatched)
            return NotifyStore(s, rmwAddress, rmwSize);
        Outcome o = StoreBytesSlow(s, rmwAddress, rmwSegment, bounce, rmwSize);
        EndRmwExclusive();
        return o;
    }

    private void EndRmwExclusive()
    {
        if (!rmwExclusive)
            return;
        rmwExclusive = false;
        gate.EndExclusive(this);
    }

    internal bool LoadBytesSlow(CpuState* s, ulong linear, int segment, byte* destination, int count)
    {
        if (!CheckLinear(s, linear, segment, count))
            return false;
        Access access = DataAccess(s);
        int first = Math.Min(count, 4096 - (int)(linear & 4095));
        Translation t2 = default;
        if (!Translate(s, linear, access, out Translation t1)
            || (first < count && !Translate(s, (linear + (ulong)first) & LinearMask(s), access, out t2)))
            return false;
        if (watchpoints.Length != 0 && !PassesWatchpoints(linear, count, write: false))
            return false;
        CheckDataBreakpoints(s, linear, count, write: false);
        ReadPhysical(s, linear, t1, destination, first);
        if (first < count)
            ReadPhysical(s, (linear + (ulong)first) & LinearMask(s), t2, destination + first, count - first);
        return true;
    }

    private void ReadPhysical(CpuState* s, ulong linear, in Translation t, byte* destination, int count)
    {
        byte* page = Memory.TryGetPage(t.Gpa);
        if (page != null)
        {
            FillTlb(s, s->TlbSet, linear, t, WriteAllowed(s, t));
            if (count is 2 or 4 or 8)
                WriteSized(destination, count, ReadSized(page + (t.Gpa & 4095), count));
            else
                Buffer.MemoryCopy(page + (t.Gpa & 4095), destination, count, count);
            return;
        }
        mmioReads++;
        for (int i = 0; i < count;)
        {
            int n = MmioPiece(t.Gpa + (ulong)i, count - i);
            WriteSized(destination + i, n, Handler.ReadMmio(t.Gpa + (ulong)i, n));
            i += n;
        }
    }

    internal Outcome StoreBytesSlow(CpuState* s, ulong linear, int segment, byte* source, int count)
    {
        if (!CheckLinear(s, linear, segment, count))
            return Outcome.Fault;
        Access access = DataAccess(s) | Access.Write;
        int first = Math.Min(count, 4096 - (int)(linear & 4095));
        Translation t2 = default;
        if (!Translate(s, linear, access, out Translation t1)
            || (first < count && !Translate(s, (linear + (ulong)first) & LinearMask(s), access, out t2)))
            return Outcome.Fault;
        if (watchpoints.Length != 0 && !PassesWatchpoints(linear, count, write: true))
            return Outcome.Fault;
        CheckDataBreakpoints(s, linear, count, write: true);
        bool hit = WritePhysical(s, linear, t1, source, first);
        if (first < count)
            hit |= WritePhysical(s, (linear + (ulong)first) & LinearMask(s), t2, source + first, count - first);
        return hit ? Outcome.Stop : Outcome.Next;
    }

    private bool WritePhysical(CpuState* s, ulong linear, in Translation t, byte* source, int count)
    {
        byte* page = Memory.TryGetPage(t.Gpa);
        if (page != null)
        {
            FillTlb(s, s->TlbSet, linear, t, writeAllowed: true);
            if (count is 2 or 4 or 8)
                WriteSized(page + (t.Gpa & 4095), count, ReadSized(source, count));
            else
                Buffer.MemoryCopy(source, page + (t.Gpa & 4095), count, count);
            return NotifyStore(s, t.Gpa, count) == Outcome.Stop;
        }
        mmioWrites++;
        for (int i = 0; i < count;)
        {
            int n = MmioPiece(t.Gpa + (ulong)i, count - i);
            Handler.WriteMmio(t.Gpa + (ulong)i, n, ReadSized(source + i, n));
            i += n;
        }
        return false;
    }

    // The largest power of two up to 8 that fits; operands of 1, 2, 4 and 8 bytes stay whole.
    private static int MmioPiece(ulong address, int left) => left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1;

    /// <summary>Reads a descriptor table, TSS or other implicit supervisor structure; false: fault recorded.</summary>
    internal bool LoadSystem<T>(CpuState* s, ulong linear, out ulong value)
        where T : unmanaged
    {
        TlbEntry* e = tlbSets + (StrictSet * TlbEntries) + (int)((linear >> 12) & (TlbEntries - 1));
        ulong t = linear ^ e->ReadTag;
        if (t <= (ulong)(4096 - sizeof(T)))
        {
            value = ReadAs<T>(e->ReadHost + t);
            return true;
        }
        return SystemAccess(s, linear, sizeof(T), write: false, 0, out value) != Outcome.Fault;
    }

    /// <summary>Writes a descriptor (accessed bit), TSS field or the like. Next, Stop or Fault.</summary>
    internal Outcome StoreSystem<T>(CpuState* s, ulong linear, ulong value)
        where T : unmanaged => SystemAccess(s, linear, sizeof(T), write: true, value, out _);

    private Outcome SystemAccess(CpuState* s, ulong linear, int size, bool write, ulong value, out ulong result)
    {
        // As the strict supervisor, whatever the present privilege; data breakpoints do not see these accesses.
        (int set, int cpl, uint flags) = (s->TlbSet, s->Cpl, s->SystemFlags);
        result = 0;
        if ((s->Efer & Efer.Lma) == 0)
            linear = (uint)linear;
        else if (!IsCanonical(s, linear))
            return RaiseGp();
        ulong v = value;
        Access access = Access.Implicit | (write ? Access.Write : Access.Read);
        int first = Math.Min(size, 4096 - (int)(linear & 4095));
        Translation t2 = default;
        if (!Translate(s, linear, access, out Translation t1) || (first < size && !Translate(s, linear + (ulong)first, access, out t2)))
            return Outcome.Fault;
        s->TlbSet = StrictSet;
        s->Cpl = 0;
        bool hit = false;
        if (write)
        {
            hit = WritePhysical(s, linear, t1, (byte*)&v, first);
            if (first < size)
                hit |= WritePhysical(s, linear + (ulong)first, t2, (byte*)&v + first, size - first);
        }
        else
        {
            v = 0;
            ReadPhysical(s, linear, t1, (byte*)&v, first);
            if (first < size)
                ReadPhysical(s, linear + (ulong)first, t2, (byte*)&v + first, size - first);
            result = v;
        }
        (s->TlbSet, s->Cpl, s->SystemFlags) = (set, cpl, flags);
        return hit ? Outcome.Stop : Outcome.Next;
    }

    /// <summary>Notes data breakpoints that an access has hit; the run loop raises #DB after the instruction (Intel SDM vol. 3 section 18.2).</summary>
    private void CheckDataBreakpoints(CpuState* s, ulong linear, int size, bool write)
    {
        if (s->TlbSet != EmptySet || (s->Dr[7] & 0xFF) == 0)
            return;
        for (int i = 0; i < 4; i++)
        {
            if (((s->Dr[7] >> (i * 2)) & 3) == 0)
                continue;
            uint control = (uint)(s->Dr[7] >> (16 + (i * 4))) & 15;
            uint kind = control & 3;
            if (kind != 3 && !(kind == 1 && write))
                continue;
            ulong length = (control >> 2) switch { 0 => 1, 1 => 2, 2 => 8, _ => 4u };
            ulong start = s->Dr[i] & ~(length - 1);
            if (linear < start + length && linear + (ulong)size > start)
                s->PendingDebug |= 1UL << i;
        }
    }

    /// <summary>Notes I/O breakpoints that a port access has hit (Intel SDM vol. 3 section 18.2.4: with CR4.DE).</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal void CheckPortBreakpoints(CpuState* s, ushort port, int size)
    {
        if (debug != 0 && (s->Cr4 & Cr4.De) != 0)
            FindPortBreakpoints(s, port, size);
    }

    private static void FindPortBreakpoints(CpuState* s, ushort port, int size)
    {
        for (int i = 0; i < 4; i++)
        {
            uint control = (uint)(s->Dr[7] >> (16 + (i * 4))) & 15;
            if (((s->Dr[7] >> (i * 2)) & 3) == 0 || (control & 3) != 2)
                continue;
            ulong length = (control >> 2) switch { 0 => 1, 1 => 2, _ => 4u };
            ulong start = s->Dr[i] & ~(length - 1);
            if (port < start + length && port + (ulong)size > start)
                s->PendingDebug |= 1UL << i;
        }
    }

    private static ulong ReadSized(byte* p, int size) => size switch
    {
        1 => *p,
        2 => *(ushort*)p,
        4 => *(uint*)p,
        8 => *(ulong*)p,
        _ => ReadOdd(p, size),
    };

    private static ulong ReadOdd(byte* p, int size)
    {
        ulong v = 0;
        for (int i = 0; i < size; i++)
            v |= (ulong)p[i] << (i * 8);
        return v;
    }

    private static void WriteSized(byte* p, int size, ulong value)
    {
        switch (size)
        {
            case 1: *p = (byte)value; break;
            case 2: *(ushort*)p = (ushort)value; break;
            case 4: *(uint*)p = (uint)value; break;
            case 8: *(ulong*)p = value; break;
            default:
                for (int i = 0; i < size; i++)
                    p[i] = (byte)(value >> (i * 8));
                break;
        }
    }
}
