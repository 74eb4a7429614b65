using Aerostat.X86;

namespace Aerostat.Cpu;

/// <content>Far JMP and CALL through call gates, task gates and to TSSs (Intel SDM vol. 3 sections 6.8.3 to 6.8.5 and 9.3).</content>
internal sealed unsafe partial class Interpreter
{
    /// <summary>A far transfer whose selector names a system descriptor.</summary>
    private Outcome ThroughGate(CpuState* s, ushort selector, in Descriptor gate, bool call, ulong returnRip)
    {
        bool longMode = IsLongMode(s);
        if (gate.Type is not (Descriptor.CallGate32 or Descriptor.CallGate16 or Descriptor.TaskGate or Descriptor.Tss16 or Descriptor.Tss32)
            || (longMode && gate.Type != Descriptor.CallGate32)
            || gate.Dpl < s->Cpl || gate.Dpl < (selector & 3))
            return RaiseSelector(Vector.GeneralProtection, selector);
        if (gate.Type is Descriptor.CallGate16 or Descriptor.CallGate32)
            return ThroughCallGate(s, selector, gate, call, returnRip);
        ulong task = selector;
        if (gate.Type == Descriptor.TaskGate)
        {
            if (!gate.IsPresent)
                return RaiseSelector(Vector.SegmentNotPresent, selector);
            task = gate.Raw >> 16 & 0xFFFF;
        }
        uint flags = CpuStateExtensions.GetRflags(s);
        return SwitchTask(s, task, call ? TaskSwitchCause.Call : TaskSwitchCause.Jump, returnRip, flags, hasError: false, 0, 0)
            ? Outcome.Jump : Outcome.Fault;
    }

    private Outcome ThroughCallGate(CpuState* s, ushort gateSelector, in Descriptor gate, bool call, ulong returnRip)
    {
        bool longMode = IsLongMode(s);
        ulong offset = (gate.Raw & 0xFFFF) | (gate.Raw >> 32 & 0xFFFF_0000);
        if (longMode)
        {
            // 16 bytes; where the second half has a type, there must be none.
            Lookup second = FetchDescriptor(s, (uint)(gateSelector & 0xFFFC) + 8, out Descriptor high, out _);
            if (second == Lookup.Faulted)
                return Outcome.Fault;
            if (second == Lookup.Outside || high.Type != 0)
                return RaiseSelector(Vector.GeneralProtection, gateSelector);
            offset |= high.Raw << 32;
        }
        if (!gate.IsPresent)
            return RaiseSelector(Vector.SegmentNotPresent, gateSelector);
        ulong selector = gate.Raw >> 16 & 0xFFFF;
        if ((selector & 0xFFFC) == 0)
            return RaiseGp();
        if (!RequireDescriptor(s, selector, Vector.GeneralProtection, 0, out Descriptor code, out ulong codeAddress))
            return Outcome.Fault;
        if (!code.IsCode || code.Dpl > s->Cpl || (longMode && (!code.IsLong || code.IsBig))
            || (!call && !code.IsConforming && code.Dpl != s->Cpl))
            return RaiseSelector(Vector.GeneralProtection, selector);
        if (!code.IsPresent)
            return RaiseSelector(Vector.SegmentNotPresent, selector);
        int size = longMode ? 8 : gate.Type == Descriptor.CallGate32 ? 4 : 2;
        if (size == 2)
            offset &= 0xFFFF;
        if (!CheckCodeOffset(s, code, selector, offset))
            return Outcome.Fault;
        bool inner = call && !code.IsConforming && code.Dpl < s->Cpl;
        if (call && !(inner ? CallInner(s, gate, code, codeAddress, selector, size, returnRip) : CallSame(s, code, codeAddress, selector, size, returnRip)))
            return Outcome.Fault;
        if (!call && !MarkAccessed(s, code, codeAddress))
            return Outcome.Fault;
        EnterCode(s, code, (ushort)selector, offset);
        return Outcome.Jump;
    }

    private bool CallSame(CpuState* s, in Descriptor code, ulong codeAddress, ulong selector, int size, ulong returnRip)
    {
        SavedMode saved = SaveMode(s);
        ulong cs = s->Cs.Selector;
        // The pushes are made with the code size of the target: a 64-bit one has no stack limit.
        code.CopyTo(&s->Cs, (ushort)((selector & 0xFFFC) | (uint)s->Cpl));
        UpdateMode();
        if (MarkAccessed(s, code, codeAddress) && PushSized(s, size, cs) && PushSized(s, size, returnRip))
            return true;
        RestoreMode(s, saved);
        return false;
    }

    /// <summary>The stack switch of a call to a more privileged level; CS is loaded by the caller.</summary>
    private bool CallInner(CpuState* s, in Descriptor gate, in Descriptor code, ulong codeAddress, ulong selector, int size, ulong returnRip)
    {
        int cpl = code.Dpl;
        ulong stackSelector = 0, stackPointer, stackAddress = 0;
        Descriptor stack = default;
        int count = size == 8 ? 0 : (int)(gate.Raw >> 32) & 0x1F;
        ulong* parameters = stackalloc ulong[32];
        if (size == 8)
        {
            uint offset = 4 + ((uint)cpl * 8);
            if (offset + 7 > s->Tr.Limit)
                return Fail(Vector.InvalidTss, s->Tr.Selector, 0);
            if (!LoadSystem<ulong>(s, s->Tr.Base + offset, out stackPointer))
                return false;
        }
        else
        {
            if (!ReadInnerStack(s, cpl, 0, out stackSelector, out stackPointer))
                return false;
            if ((stackSelector & 0xFFFC) == 0)
                return Fail(Vector.InvalidTss, 0, 0);
            if (!CheckStackSegment(s, stackSelector, cpl, Vector.InvalidTss, 0, out stack, out stackAddress))
                return false;
            for (int i = 0; i < count; i++)
                if (!PeekSized(s, size, i * size, out parameters[i]))
                    return false;
        }
        if (!MarkAccessed(s, code, codeAddress) || (size != 8 && !MarkAccessed(s, stack, stackAddress)))
            return false;

        SavedMode saved = SaveMode(s);
        code.CopyTo(&s->Cs, (ushort)((selector & 0xFFFC) | (uint)cpl));
        s->Cpl = cpl;
        if (size == 8)
            SetNull(s, &s->Ss, (ushort)cpl, keepBase: false);
        else
            stack.CopyTo(&s->Ss, (ushort)stackSelector);
        s->Gpr[4] = stackPointer;
        UpdateMode();
        bool pushed = PushSized(s, size, saved.Ss.Selector) && PushSized(s, size, saved.Rsp);
        for (int i = count - 1; pushed && i >= 0; i--)
            pushed = PushSized(s, size, parameters[i]);
        if (pushed && PushSized(s, size, saved.Cs.Selector) && PushSized(s, size, returnRip))
            return true;
        RestoreMode(s, saved);
        if (raisedVector == Vector.StackFault)
            raisedError = (uint)stackSelector & 0xFFFC;
        return false;
    }
}
