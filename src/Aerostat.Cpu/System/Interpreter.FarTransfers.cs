using Aerostat.X86;

namespace Aerostat.Cpu;

/// <content>Far JMP, CALL and RET (Intel SDM vol. 2 and vol. 3 sections 6.8 to 6.10).</content>
internal sealed unsafe partial class Interpreter
{
    /// <summary>Reads a far pointer operand: offset of OperandSize bytes, then a selector.</summary>
    internal bool LoadFarPointer(CpuState* s, MicroOp* op, out ushort selector, out ulong offset)
    {
        selector = 0;
        offset = 0;
        int size = op->OperandSize;
        byte* bytes = stackalloc byte[16];
        // SAFETY: at most 10 bytes are read into the 16.
        if (!LoadBytes(s, Linear(s, op, size + 2), op->Segment, bytes, size + 2))
            return false;
        offset = size == 2 ? *(ushort*)bytes : size == 4 ? *(uint*)bytes : *(ulong*)bytes;
        selector = *(ushort*)(bytes + size);
        return true;
    }

    /// <summary>JMP to another code segment at the same privilege level, through a gate or to a task.</summary>
    internal Outcome JumpFar(CpuState* s, ushort selector, ulong offset, ulong nextRip)
    {
        if (!IsProtected(s))
            return EnterReal(s, selector, offset);
        if (!FetchFarTarget(s, selector, out Descriptor d, out ulong address))
            return Outcome.Fault;
        if (d.IsSystem)
            return ThroughGate(s, selector, d, call: false, nextRip);
        if (!CheckFarTarget(s, d, selector, offset) || !MarkAccessed(s, d, address))
            return Outcome.Fault;
        EnterCode(s, d, selector, offset);
        return Outcome.Jump;
    }

    /// <summary>CALL to another code segment at the same privilege level, through a gate or to a task.</summary>
    internal Outcome CallFar(CpuState* s, ushort selector, ulong offset, int size, ulong returnRip)
    {
        bool real = !IsProtected(s);
        Descriptor d = default;
        ulong address = 0;
        if (!real)
        {
            if (!FetchFarTarget(s, selector, out d, out address))
                return Outcome.Fault;
            if (d.IsSystem)
                return ThroughGate(s, selector, d, call: true, returnRip);
        }
        if (real ? offset > s->Cs.Limit : !CheckFarTarget(s, d, selector, offset))
            return real ? RaiseGp() : Outcome.Fault;
        ulong rsp = s->Gpr[4];
        if (!PushSized(s, size, s->Cs.Selector) || !PushSized(s, size, returnRip) || (!real && !MarkAccessed(s, d, address)))
        {
            s->Gpr[4] = rsp;
            return Outcome.Fault;
        }
        if (real)
            return EnterReal(s, selector, offset);
        EnterCode(s, d, selector, offset);
        return Outcome.Jump;
    }

    private Outcome EnterReal(CpuState* s, ushort selector, ulong offset)
    {
        if (offset > s->Cs.Limit)
            return RaiseGp();
        s->Cs.Selector = selector;
        s->Cs.Base = (ulong)selector << 4;
        s->Rip = offset;
        UpdateMode();
        return Outcome.Jump;
    }

    private void EnterCode(CpuState* s, in Descriptor d, ushort selector, ulong offset)
    {
        d.CopyTo(&s->Cs, (ushort)((selector & 0xFFFC) | s->Cpl));
        s->Rip = offset;
        UpdateMode();
    }

    private bool FetchFarTarget(CpuState* s, ushort selector, out Descriptor d, out ulong address)
    {
        d = default;
        address = 0;
        return (selector & 0xFFFC) == 0
            ? Fail(Vector.GeneralProtection, 0, 0)
            : RequireDescriptor(s, selector, Vector.GeneralProtection, 0, out d, out address);
    }

    private bool CheckFarTarget(CpuState* s, in Descriptor d, ushort selector, ulong offset)
    {
        if (!d.IsCode)
            return Fail(Vector.GeneralProtection, selector, 0);
        if (d.IsConforming ? d.Dpl > s->Cpl : (selector & 3) > s->Cpl || d.Dpl != s->Cpl)
            return Fail(Vector.GeneralProtection, selector, 0);
        if (!d.IsPresent)
            return Fail(Vector.SegmentNotPresent, selector, 0);
        return CheckCodeOffset(s, d, selector, offset);
    }

    /// <summary>Whether a code segment is usable and <paramref name="offset"/> lies in it.</summary>
    private bool CheckCodeOffset(CpuState* s, in Descriptor d, ulong selector, ulong offset)
    {
        bool is64 = IsLongMode(s) && d.IsLong;
        if (is64 && d.IsBig)
            return Fail(Vector.GeneralProtection, selector, 0);
        return (is64 ? IsCanonical(s, offset) : offset <= d.Limit) || Fail(Vector.GeneralProtection, 0, 0);
    }

    /// <summary>The checks of a code segment that RET and IRET go back to.</summary>
    private bool CheckReturnCode(CpuState* s, ulong selector, out Descriptor d, out ulong address)
    {
        d = default;
        address = 0;
        if ((selector & 0xFFFC) == 0)
            return Fail(Vector.GeneralProtection, 0, 0);
        if (!RequireDescriptor(s, selector, Vector.GeneralProtection, 0, out d, out address))
            return false;
        int rpl = (int)selector & 3;
        if (!d.IsCode || rpl < s->Cpl || (d.IsConforming ? d.Dpl > rpl : d.Dpl != rpl))
            return Fail(Vector.GeneralProtection, selector, 0);
        return d.IsPresent || Fail(Vector.SegmentNotPresent, selector, 0);
    }

    /// <summary>The checks of a stack segment that an outer return or IRETQ loads. Null is good for 64-bit code below privilege level 3.</summary>
    private bool CheckReturnStack(CpuState* s, ulong selector, int cpl, bool to64, out Descriptor d, out ulong address)
    {
        if ((selector & 0xFFFC) != 0)
            return CheckStackSegment(s, selector, cpl, Vector.GeneralProtection, 0, out d, out address);
        d = default;
        address = 0;
        if (!to64 || cpl == 3)
            return Fail(Vector.GeneralProtection, 0, 0);
        return ((int)selector & 3) == cpl || Fail(Vector.GeneralProtection, selector, 0);
    }

    private void EnterStack(CpuState* s, in Descriptor d, ulong selector)
    {
        if ((selector & 0xFFFC) == 0)
            SetNull(s, &s->Ss, (ushort)selector, keepBase: false);
        else
            d.CopyTo(&s->Ss, (ushort)selector);
    }

    /// <summary>Nulls data segments that the outer privilege level must not keep (Intel SDM vol. 3 section 6.8.6).</summary>
    private static void DropInnerSegments(CpuState* s)
    {
        DropInner(s, &s->Es);
        DropInner(s, &s->Ds);
        DropInner(s, &s->Fs);
        DropInner(s, &s->Gs);
    }

    private static void DropInner(CpuState* s, SegmentRegister* r)
    {
        bool conforming = (r->Attributes & 0xC) == 0xC;
        // Only the selector and the attributes go: 64-bit code that set FS or GS base by MSR still finds it.
        if (r->Dpl < s->Cpl && !conforming && (r->Attributes & SegmentRegister.Unusable) == 0)
            SetNull(s, r, 0, keepBase: true);
        else if ((r->Selector & 0xFFFC) == 0 && (r->Attributes & SegmentRegister.Unusable) != 0)
            r->Selector = 0;
    }

    private static void SetStackPointer(CpuState* s, ulong value) => s->Gpr[4] = s->StackMask switch
    {
        0xFFFF => (s->Gpr[4] & ~0xFFFFUL) | (value & 0xFFFF),
        uint.MaxValue => (uint)value,
        _ => value,
    };

    /// <summary>RET far, with <paramref name="release"/> bytes of parameters.</summary>
    internal Outcome ReturnFar(CpuState* s, int size, ushort release)
    {
        if (!PeekSized(s, size, 0, out ulong rip) || !PeekSized(s, size, size, out ulong selector))
            return Outcome.Fault;
        selector &= 0xFFFF;
        if (!IsProtected(s))
        {
            if (rip > s->Cs.Limit)
                return RaiseGp();
            MoveStackPointer(s, (2 * size) + release);
            return EnterReal(s, (ushort)selector, rip);
        }
        if (!CheckReturnCode(s, selector, out Descriptor code, out ulong codeAddress))
            return Outcome.Fault;
        int rpl = (int)selector & 3;
        if (rpl == s->Cpl)
        {
            if (!CheckCodeOffset(s, code, selector, rip) || !MarkAccessed(s, code, codeAddress))
                return Outcome.Fault;
            MoveStackPointer(s, (2 * size) + release);
            EnterCode(s, code, (ushort)selector, rip);
            return Outcome.Jump;
        }
        if (!PeekSized(s, size, (2 * size) + release, out ulong rsp) || !PeekSized(s, size, (3 * size) + release, out ulong ss))
            return Outcome.Fault;
        ss &= 0xFFFF;
        bool to64 = IsLongMode(s) && code.IsLong;
        if (!CheckReturnStack(s, ss, rpl, to64, out Descriptor stack, out ulong stackAddress) || !CheckCodeOffset(s, code, selector, rip)
            || !MarkAccessed(s, code, codeAddress) || ((ss & 0xFFFC) != 0 && !MarkAccessed(s, stack, stackAddress)))
            return Outcome.Fault;
        s->Cpl = rpl;
        EnterStack(s, stack, ss);
        EnterCode(s, code, (ushort)selector, rip);
        SetStackPointer(s, rsp);
        MoveStackPointer(s, release);
        DropInnerSegments(s);
        return Outcome.Jump;
    }
}
