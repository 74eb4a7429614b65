using Aerostat.X86;

namespace Aerostat.Cpu;

/// <content>
/// Hardware task switches (Intel SDM vol. 3 section 9.3). Faults before the switch is committed belong to the old task, with nothing
/// but its TSS written; those found later are delivered in the new task.
/// </content>
internal sealed unsafe partial class Interpreter
{
    private enum TaskSwitchCause
    {
        Jump,
        Call,
        Return,
        Interrupt,
    }

    // A segment fault in the new task may lead through another task gate, and so on; real processors allow it without end.
    private const int DeepestTaskSwitch = 8;

    private const int Tss32Bytes = 104, Tss16Bytes = 44;
    private const uint Vm86Attributes = 0xF3;
    private const ulong Dr7LocalEnables = 0x155, Dr6TaskSwitch = 1 << 15;

    private int taskSwitchDepth;

    /// <summary>
    /// Switches to the task of a TSS in the GDT. <paramref name="rip"/> and <paramref name="flags"/> are saved for the old task. False: a
    /// fault of the old task is recorded.
    /// </summary>
    private bool SwitchTask(CpuState* s, ulong selector, TaskSwitchCause cause, ulong rip, uint flags, bool hasError, uint error, uint ext)
    {
        int bad = cause == TaskSwitchCause.Return ? Vector.InvalidTss : Vector.GeneralProtection;
        if ((selector & 4) != 0)
            return Fail(bad, selector, ext);
        if (!RequireDescriptor(s, selector, bad, ext, out Descriptor d, out ulong address))
            return false;
        if ((d.Type & ~8) != (cause == TaskSwitchCause.Return ? Descriptor.Tss16Busy : Descriptor.Tss16))
            return Fail(bad, selector, ext);
        if (!d.IsPresent)
            return Fail(Vector.SegmentNotPresent, selector, ext);
        bool wide = (d.Type & 8) != 0;
        int bytes = wide ? Tss32Bytes : Tss16Bytes;
        if (d.Limit < bytes - 1)
            return Fail(Vector.InvalidTss, selector, ext);
        uint* tss = stackalloc uint[Tss32Bytes / 4];
        for (int i = 0; i < bytes; i += 4)
        {
            if (!LoadSystem<uint>(s, d.Base + (uint)i, out ulong word))
                return false;
            tss[i / 4] = (uint)word;
        }

        if (!SaveTask(s, (uint)rip, cause == TaskSwitchCause.Return ? flags & ~RFlags.Nt : flags))
            return false;
        bool nested = cause is TaskSwitchCause.Call or TaskSwitchCause.Interrupt;
        if (nested && StoreSystem<ushort>(s, d.Base, s->Tr.Selector) == Outcome.Fault)
            return false;
        if (!nested && !ChangeDescriptorBits(s, s->GdtBase + (s->Tr.Selector & 0xFFF8u) + 5, set: 0, clear: 2))
            return false;
        if (cause != TaskSwitchCause.Return && !ChangeDescriptorBits(s, address + 5, set: 2, clear: 0))
            return false;

        d.CopyTo(&s->Tr, (ushort)selector);
        s->Tr.Attributes |= 2;
        s->Cr0 |= Cr0.Ts;
        s->Dr[7] &= ~Dr7LocalEnables;
        s->Shadow = 0;
        if (wide && (s->Cr0 & Cr0.Pg) != 0)
        {
            s->Cr3 = tss[0x1C / 4];
            FlushSpace();
        }
        if (!LoadTask(s, tss, wide, nested, ext) || (hasError && !PushSized(s, wide ? 4 : 2, error)))
            FaultInNewTask(s);
        else if (s->Rip > s->Cs.Limit)
            FaultInNewTask(s, Vector.GeneralProtection, ext);
        else if (wide && (tss[0x64 / 4] & 1) != 0)
        {
            s->Dr[6] |= Dr6TaskSwitch;
            Raise(Vector.Debug);
            FaultInNewTask(s);
        }
        return true;
    }

    private bool SaveTask(CpuState* s, uint rip, uint flags)
    {
        bool wide = (s->Tr.Attributes & 8) != 0;
        if ((s->Tr.Attributes & SegmentRegister.Unusable) != 0 || s->Tr.Limit < (wide ? 0x5Fu : 0x29))
            return Fail(Vector.InvalidTss, s->Tr.Selector, 0);
        ulong at = s->Tr.Base + (wide ? 0x20u : 0x0E);
        bool saved = SaveTaskWord(s, ref at, wide, rip) && SaveTaskWord(s, ref at, wide, flags);
        for (int i = 0; saved && i < 8; i++)
            saved = SaveTaskWord(s, ref at, wide, (uint)s->Gpr[i]);
        for (int i = 0; saved && i < (wide ? 6 : 4); i++)
            saved = SaveTaskWord(s, ref at, wide, CpuStateExtensions.Segment(s, i)->Selector);
        return saved;
    }

    private bool SaveTaskWord(CpuState* s, ref ulong at, bool wide, uint value)
    {
        Outcome o = wide ? StoreSystem<uint>(s, at, value) : StoreSystem<ushort>(s, at, value);
        at += wide ? 4u : 2;
        return o != Outcome.Fault;
    }

    private bool LoadTask(CpuState* s, uint* tss, bool wide, bool nested, uint ext)
    {
        var narrow = (ushort*)tss;
        uint flags = wide ? tss[0x24 / 4] : narrow[0x10 / 2];
        CpuStateExtensions.SetRflags(s, nested ? flags | RFlags.Nt : flags);
        s->Rip = wide ? tss[0x20 / 4] : narrow[0x0E / 2];
        for (int i = 0; i < 8; i++)
            s->Gpr[i] = wide ? tss[(0x28 / 4) + i] : narrow[(0x12 / 2) + i];
        ushort* selectors = stackalloc ushort[6];
        for (int i = 0; i < 6; i++)
        {
            selectors[i] = wide ? (ushort)tss[(0x48 / 4) + i] : i < 4 ? narrow[(0x22 / 2) + i] : (ushort)0;
            SetNull(s, CpuStateExtensions.Segment(s, i), selectors[i], keepBase: false);
        }
        ushort ldt = wide ? (ushort)tss[0x60 / 4] : narrow[0x2A / 2];
        SetNull(s, &s->Ldtr, ldt, keepBase: false);
        s->Cpl = selectors[Seg.Cs] & 3;
        if ((s->SystemFlags & RFlags.Vm) != 0)
            EnterVm86(s, selectors);
        UpdateMode();

        if ((ldt & 0xFFFC) != 0)
        {
            if ((ldt & 4) != 0)
                return Fail(Vector.InvalidTss, ldt, ext);
            if (!RequireDescriptor(s, ldt, Vector.InvalidTss, ext, out Descriptor table, out _))
                return false;
            if (table.Type != Descriptor.Ldt || !table.IsPresent)
                return Fail(Vector.InvalidTss, ldt, ext);
            table.CopyTo(&s->Ldtr, ldt);
        }
        if ((s->SystemFlags & RFlags.Vm) != 0)
            return true;
        return LoadTaskCode(s, selectors[Seg.Cs], ext) && LoadTaskStack(s, selectors[Seg.Ss], ext)
            && LoadTaskData(s, Seg.Ds, selectors[Seg.Ds], ext) && LoadTaskData(s, Seg.Es, selectors[Seg.Es], ext)
            && LoadTaskData(s, Seg.Fs, selectors[Seg.Fs], ext) && LoadTaskData(s, Seg.Gs, selectors[Seg.Gs], ext);
    }

    private bool LoadTaskCode(CpuState* s, ushort selector, uint ext)
    {
        if ((selector & 0xFFFC) == 0)
            return Fail(Vector.InvalidTss, selector, ext);
        if (!RequireDescriptor(s, selector, Vector.InvalidTss, ext, out Descriptor d, out ulong address))
            return false;
        int rpl = selector & 3;
        if (!d.IsCode || (d.IsConforming ? d.Dpl > rpl : d.Dpl != rpl))
            return Fail(Vector.InvalidTss, selector, ext);
        if (!d.IsPresent)
            return Fail(Vector.SegmentNotPresent, selector, ext);
        if (!MarkAccessed(s, d, address))
            return false;
        EnterCode(s, d, selector, s->Rip);
        return true;
    }

    private bool LoadTaskStack(CpuState* s, ushort selector, uint ext)
    {
        if ((selector & 0xFFFC) == 0)
            return Fail(Vector.InvalidTss, selector, ext);
        if (!CheckStackSegment(s, selector, s->Cpl, Vector.InvalidTss, ext, out Descriptor d, out ulong address) || !MarkAccessed(s, d, address))
            return false;
        d.CopyTo(&s->Ss, selector);
        UpdateMode();
        return true;
    }

    private bool LoadTaskData(CpuState* s, int segment, ushort selector, uint ext)
    {
        if ((selector & 0xFFFC) == 0)
            return true;
        if (!RequireDescriptor(s, selector, Vector.InvalidTss, ext, out Descriptor d, out ulong address))
            return false;
        if (!d.IsReadable || (!d.IsConforming && ((selector & 3) > d.Dpl || s->Cpl > d.Dpl)))
            return Fail(Vector.InvalidTss, selector, ext);
        if (!d.IsPresent)
            return Fail(Vector.SegmentNotPresent, selector, ext);
        if (!MarkAccessed(s, d, address))
            return false;
        d.CopyTo(CpuStateExtensions.Segment(s, segment), selector);
        return true;
    }

    private void FaultInNewTask(CpuState* s, int vector, uint error)
    {
        Raise(vector, error);
        FaultInNewTask(s);
    }

    private void FaultInNewTask(CpuState* s)
    {
        if (taskSwitchDepth == DeepestTaskSwitch)
        {
            Shutdown(s);
            return;
        }
        taskSwitchDepth++;
        DeliverRaised(s, EventKind.HardwareException);
        taskSwitchDepth--;
    }

    /// <summary>Loads the six segment registers as virtual-8086 mode has them (Intel SDM vol. 3 section 21.2). The caller sets VM.</summary>
    private static void EnterVm86(CpuState* s, ushort* selectors)
    {
        s->Cpl = 3;
        for (int i = 0; i < 6; i++)
        {
            *CpuStateExtensions.Segment(s, i) = new SegmentRegister
            {
                Selector = selectors[i],
                Base = (ulong)selectors[i] << 4,
                Limit = 0xFFFF,
                Attributes = Vm86Attributes,
            };
        }
    }

    /// <summary>Sets and clears bits of one descriptor byte with a locked operation, as the processor does.</summary>
    private bool ChangeDescriptorBits(CpuState* s, ulong linear, int set, int clear)
    {
        if (!IsLongMode(s))
            linear = (uint)linear;
        if (!Translate(s, linear, Access.Implicit | Access.Write, out Translation t))
            return false;
        byte* page = Memory.TryGetPage(t.Gpa);
        if (page == null)
            return true; // a table outside RAM cannot keep the bits
        Memory.NoteWriting(t.Gpa);
        // SAFETY: page is the host address of a whole guest page, so the aligned 4 bytes around the target are in it.
        ref int word = ref *(int*)(page + (t.Gpa & 4092));
        int shift = (int)(t.Gpa & 3) * 8;
        if (set != 0)
            Interlocked.Or(ref word, set << shift);
        if (clear != 0)
            Interlocked.And(ref word, ~(clear << shift));
        Memory.NotifyWrite(t.Gpa, 1);
        return true;
    }
}
