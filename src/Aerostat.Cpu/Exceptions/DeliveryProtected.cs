using Aerostat.X86;

namespace Aerostat.Cpu;

/// <content>Delivery in protected mode outside IA-32e mode (Intel SDM vol. 3 section 7.12).</content>
internal sealed unsafe partial class Interpreter
{
    private bool DeliverProtected(CpuState* s, EventKind kind, int vector, bool hasError, uint error, ulong rip)
    {
        uint ext = ExternalBit(kind);
        if ((uint)(vector * 8) + 7 > s->IdtLimit)
            return FailIdt(Vector.GeneralProtection, vector, ext);
        if (!LoadSystem<ulong>(s, s->IdtBase + ((ulong)vector * 8), out ulong raw))
            return false;
        var gate = new Descriptor(raw);
        if (gate.Type is not (Descriptor.TaskGate or Descriptor.InterruptGate16 or Descriptor.TrapGate16 or Descriptor.InterruptGate32 or Descriptor.TrapGate32))
            return FailIdt(Vector.GeneralProtection, vector, ext);
        if (ext == 0 && gate.Dpl < s->Cpl)
            return FailIdt(Vector.GeneralProtection, vector, 0);
        if (!gate.IsPresent)
            return FailIdt(Vector.SegmentNotPresent, vector, ext);
        ulong selector = raw >> 16 & 0xFFFF;
        if (gate.Type == Descriptor.TaskGate)
            return SwitchTask(s, selector, TaskSwitchCause.Interrupt, rip, FlagsToPush(s, kind, vector), hasError, error, ext);

        if ((selector & 0xFFFC) == 0)
            return Fail(Vector.GeneralProtection, 0, ext);
        if (!RequireDescriptor(s, selector, Vector.GeneralProtection, ext, out Descriptor code, out ulong codeAddress))
            return false;
        if (!code.IsCode || code.Dpl > s->Cpl)
            return Fail(Vector.GeneralProtection, selector, ext);
        if (!code.IsPresent)
            return Fail(Vector.SegmentNotPresent, selector, ext);
        int size = gate.Type >= Descriptor.InterruptGate32 ? 4 : 2;
        ulong target = size == 4 ? (raw & 0xFFFF) | (raw >> 32 & 0xFFFF_0000) : raw & 0xFFFF;
        int cpl = code.IsConforming ? s->Cpl : code.Dpl;
        bool inner = cpl < s->Cpl;
        bool vm86 = (s->SystemFlags & RFlags.Vm) != 0;
        if (vm86 && cpl != 0)
            return Fail(Vector.GeneralProtection, selector, ext);

        ulong oldSs = s->Ss.Selector, oldSp = s->Gpr[4], oldCs = s->Cs.Selector;
        uint flags = FlagsToPush(s, kind, vector);
        SavedMode saved = SaveMode(s);
        ulong stackSelector = 0, stackPointer = 0, stackAddress = 0;
        Descriptor stack = default;
        if (inner)
        {
            if (!ReadInnerStack(s, cpl, ext, out stackSelector, out stackPointer))
                return false;
            if ((stackSelector & 0xFFFC) == 0)
                return Fail(Vector.InvalidTss, 0, ext);
            if (!CheckStackSegment(s, stackSelector, cpl, Vector.InvalidTss, ext, out stack, out stackAddress))
                return false;
        }
        if (target > code.Limit)
            return Fail(Vector.GeneralProtection, 0, ext);
        if (!MarkAccessed(s, code, codeAddress) || (inner && !MarkAccessed(s, stack, stackAddress)))
            return false;

        code.CopyTo(&s->Cs, (ushort)((selector & 0xFFFC) | (uint)cpl));
        s->Cpl = cpl;
        if (inner)
        {
            stack.CopyTo(&s->Ss, (ushort)stackSelector);
            s->Gpr[4] = stackPointer;
        }
        s->SystemFlags &= ~RFlags.Vm;
        UpdateMode();
        bool pushed = (!vm86 || (PushSized(s, size, s->Gs.Selector) && PushSized(s, size, s->Fs.Selector)
            && PushSized(s, size, s->Ds.Selector) && PushSized(s, size, s->Es.Selector))) && (!inner || (PushSized(s, size, oldSs) && PushSized(s, size, oldSp)))
            && PushSized(s, size, flags) && PushSized(s, size, oldCs) && PushSized(s, size, rip) && (!hasError || PushSized(s, size, error));
        if (!pushed)
        {
            s->SystemFlags |= flags & RFlags.Vm;
            RestoreMode(s, saved);
            if (raisedVector == Vector.StackFault)
                raisedError = (inner ? (uint)stackSelector & 0xFFFC : 0) | ext;
            return false;
        }
        if (vm86)
        {
            SetNull(s, &s->Es, 0, keepBase: false);
            SetNull(s, &s->Ds, 0, keepBase: false);
            SetNull(s, &s->Fs, 0, keepBase: false);
            SetNull(s, &s->Gs, 0, keepBase: false);
        }
        s->Rip = target;
        uint clear = RFlags.Tf | RFlags.Nt | RFlags.Rf | RFlags.Vm;
        if ((gate.Type & 1) == 0)
            clear |= RFlags.If;
        s->SystemFlags &= ~clear;
        return true;
    }

    /// <summary>The stack for an inner privilege level, out of the 16- or 32-bit TSS (Intel SDM vol. 3 section 9.2).</summary>
    private bool ReadInnerStack(CpuState* s, int cpl, uint ext, out ulong selector, out ulong pointer)
    {
        selector = pointer = 0;
        bool wide = (s->Tr.Attributes & 8) != 0;
        uint offset = wide ? 4 + ((uint)cpl * 8) : 2 + ((uint)cpl * 4);
        uint last = offset + (wide ? 5u : 3);
        if ((s->Tr.Attributes & SegmentRegister.Unusable) != 0 || last > s->Tr.Limit)
            return Fail(Vector.InvalidTss, s->Tr.Selector, ext);
        return wide
            ? LoadSystem<uint>(s, s->Tr.Base + offset, out pointer) && LoadSystem<ushort>(s, s->Tr.Base + offset + 4, out selector)
            : LoadSystem<ushort>(s, s->Tr.Base + offset, out pointer) && LoadSystem<ushort>(s, s->Tr.Base + offset + 2, out selector);
    }
}
