using System.Runtime.CompilerServices;
using Aerostat.X86;

namespace Aerostat.Cpu;

/// <content>Descriptor tables: fetching descriptors and loading segment registers (Intel SDM vol. 3 chapters 3 and 6).</content>
internal sealed unsafe partial class Interpreter
{
    private enum Lookup
    {
        Found,
        /// <summary>Null LDT or beyond the table's limit.</summary>
        Outside,
        /// <summary>Reading the table faulted; the fault is recorded.</summary>
        Faulted,
    }

    internal static bool IsProtected(CpuState* s) => (s->Cr0 & Cr0.Pe) != 0 && (s->SystemFlags & RFlags.Vm) == 0;

    internal static bool IsLongMode(CpuState* s) => (s->Efer & Efer.Lma) != 0;

    /// <summary>Offset of the instruction after <paramref name="op"/> in its code segment.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal static ulong NextRip(CpuState* s, MicroOp* op)
    {
        ulong next = s->Gpr[17] + op->Offset + op->Length;
        return s->Bitness == 64 ? next : (uint)next;
    }

    /// <summary>Records an exception whose error code is a selector.</summary>
    internal Outcome RaiseSelector(int vector, ulong selector, uint ext = 0) => Raise(vector, ((uint)selector & 0xFFFC) | ext);

    private Lookup FetchDescriptor(CpuState* s, ulong selector, out Descriptor d, out ulong address)
    {
        ulong index = selector & 0xFFF8, table = s->GdtBase, limit = s->GdtLimit;
        if ((selector & 4) != 0)
        {
            (table, limit) = (s->Ldtr.Base, s->Ldtr.Limit);
            if ((s->Ldtr.Attributes & SegmentRegister.Unusable) != 0 || (s->Ldtr.Selector & 0xFFFC) == 0)
                limit = 0;
        }
        address = table + index;
        d = default;
        if (index + 7 > limit)
            return Lookup.Outside;
        if (!LoadSystem<ulong>(s, address, out ulong raw))
            return Lookup.Faulted;
        d = new Descriptor(raw);
        return Lookup.Found;
    }

    /// <summary>As <see cref="FetchDescriptor"/>; a selector outside its table raises <paramref name="vector"/> with the selector.</summary>
    private bool RequireDescriptor(CpuState* s, ulong selector, int vector, uint ext, out Descriptor d, out ulong address)
    {
        Lookup l = FetchDescriptor(s, selector, out d, out address);
        if (l == Lookup.Outside)
            RaiseSelector(vector, selector, ext);
        return l == Lookup.Found;
    }

    /// <summary>
    /// Looks at a descriptor for LAR, LSL, VERR and VERW, which fault only if the table itself does: false. A null selector and one
    /// outside its table are not <paramref name="found"/>.
    /// </summary>
    internal bool TryInspect(CpuState* s, ulong selector, out Descriptor d, out bool found)
    {
        d = default;
        found = false;
        if ((selector & 0xFFFC) == 0)
            return true;
        Lookup l = FetchDescriptor(s, selector, out d, out _);
        found = l == Lookup.Found;
        return l != Lookup.Faulted;
    }

    /// <summary>Sets the accessed bit of a code or data descriptor unless it is set; false: fault recorded.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private bool MarkAccessed(CpuState* s, in Descriptor d, ulong address) => d.IsAccessed || SetDescriptorBits(s, address + 5, 1);

    /// <summary>Sets bits of one descriptor byte with a locked operation, as the processor does.</summary>
    private bool SetDescriptorBits(CpuState* s, ulong linear, int bits)
    {
        if (!IsLongMode(s))
            linear = (uint)linear;
        if (!Translate(s, linear, Access.Implicit | Access.Write, out Translation t))
            return false;
        byte* page = Memory.TryGetPage(t.Gpa);
        if (page == null)
            return true; // a table outside RAM cannot keep the bit
        Memory.NoteWriting(t.Gpa);
        // SAFETY: page is the host address of a whole guest page, so the aligned 4 bytes around the target are in it.
        Interlocked.Or(ref *(int*)(page + (t.Gpa & 4092)), bits << ((int)(t.Gpa & 3) * 8));
        Memory.NotifyWrite(t.Gpa, 1);
        return true;
    }

    private static void SetNull(CpuState* s, SegmentRegister* r, ushort selector, bool keepBase)
    {
        r->Selector = selector;
        r->Attributes = SegmentRegister.Unusable | ((uint)s->Cpl << 5);
        r->Limit = 0;
        if (!keepBase)
            r->Base = 0;
    }

    /// <summary>Loads ES, SS, DS, FS or GS as MOV, POP and LDS do; false: fault recorded, nothing changed.</summary>
    internal bool LoadSegment(CpuState* s, int segment, ushort selector)
    {
        SegmentRegister* r = CpuStateExtensions.Segment(s, segment);
        if (!IsProtected(s))
        {
            r->Selector = selector;
            r->Base = (ulong)selector << 4;
            if ((r->Attributes & SegmentRegister.Unusable) != 0)
            {
                r->Attributes = 0x93;
                r->Limit = 0xFFFF;
            }
            return true;
        }
        if (segment == Seg.Ss)
            return LoadStackSegment(s, selector);
        if ((selector & 0xFFFC) == 0)
        {
            // AMD leaves the base alone (AMD APM vol. 2 section 4.5.3).
            SetNull(s, r, selector, keepBase: Model.Vendor == Vendor.Amd);
            return true;
        }
        if (!RequireDescriptor(s, selector, Vector.GeneralProtection, 0, out Descriptor d, out ulong address))
            return false;
        int rpl = selector & 3;
        if (!d.IsReadable || (!d.IsConforming && (rpl > d.Dpl || s->Cpl > d.Dpl)))
        {
            RaiseSelector(Vector.GeneralProtection, selector);
            return false;
        }
        if (!d.IsPresent)
        {
            RaiseSelector(Vector.SegmentNotPresent, selector);
            return false;
        }
        if (!MarkAccessed(s, d, address))
            return false;
        d.CopyTo(r, selector);
        return true;
    }

    private bool LoadStackSegment(CpuState* s, ushort selector)
    {
        if ((selector & 0xFFFC) == 0)
        {
            if (s->Bitness != 64 || s->Cpl == 3 || (selector & 3) != s->Cpl)
            {
                RaiseGp();
                return false;
            }
            SetNull(s, &s->Ss, selector, keepBase: false);
            return true;
        }
        if (!CheckStackSegment(s, selector, s->Cpl, Vector.GeneralProtection, 0, out Descriptor d, out ulong address) || !MarkAccessed(s, d, address))
            return false;
        d.CopyTo(&s->Ss, selector);
        UpdateMode();
        return true;
    }

    /// <summary>The checks of a non-null stack segment for privilege level <paramref name="cpl"/>; violations raise <paramref name="vector"/>.</summary>
    private bool CheckStackSegment(CpuState* s, ulong selector, int cpl, int vector, uint ext, out Descriptor d, out ulong address)
    {
        if (!RequireDescriptor(s, selector, vector, ext, out d, out address))
            return false;
        if (((int)selector & 3) != cpl || d.Dpl != cpl || !d.IsWritableData)
        {
            RaiseSelector(vector, selector, ext);
            return false;
        }
        if (!d.IsPresent)
        {
            RaiseSelector(Vector.StackFault, selector, ext);
            return false;
        }
        return true;
    }

    /// <summary>CS and SS as they were, to go back to when a transfer faults half way.</summary>
    private struct SavedMode
    {
        public SegmentRegister Cs, Ss;
        public ulong Rsp;
        public int Cpl;
    }

    private static SavedMode SaveMode(CpuState* s) => new() { Cs = s->Cs, Ss = s->Ss, Rsp = s->Gpr[4], Cpl = s->Cpl };

    private void RestoreMode(CpuState* s, in SavedMode saved)
    {
        s->Cs = saved.Cs;
        s->Ss = saved.Ss;
        s->Gpr[4] = saved.Rsp;
        s->Cpl = saved.Cpl;
        UpdateMode();
    }

    /// <summary>Pushes 2, 4 or 8 bytes.</summary>
    private bool PushSized(CpuState* s, int size, ulong value) => (size switch
    {
        2 => Push<ushort>(s, value),
        4 => Push<uint>(s, value),
        _ => Push<ulong>(s, value),
    }) != Outcome.Fault;

    /// <summary>Reads 2, 4 or 8 bytes of the stack at a distance from its top.</summary>
    private bool PeekSized(CpuState* s, int size, int distance, out ulong value) => size switch
    {
        2 => PeekStack<ushort>(s, distance, out value),
        4 => PeekStack<uint>(s, distance, out value),
        _ => PeekStack<ulong>(s, distance, out value),
    };

    /// <summary>Flat segments as SYSCALL and SYSENTER make them, without a look at any table.</summary>
    internal static void SetFlatCode(CpuState* s, ulong selector, int cpl, bool is64)
    {
        s->Cs.Selector = (ushort)selector;
        s->Cs.Base = 0;
        s->Cs.Limit = uint.MaxValue;
        s->Cs.Attributes = 0x809B | ((uint)cpl << 5) | (is64 ? SegmentRegister.L : SegmentRegister.Db);
    }

    internal static void SetFlatStack(CpuState* s, ulong selector, int cpl)
    {
        s->Ss.Selector = (ushort)selector;
        s->Ss.Base = 0;
        s->Ss.Limit = uint.MaxValue;
        s->Ss.Attributes = 0xC093 | ((uint)cpl << 5);
    }
}
