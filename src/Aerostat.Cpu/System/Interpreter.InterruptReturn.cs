using Aerostat.X86;

namespace Aerostat.Cpu;

/// <content>IRET in all its forms (Intel SDM vol. 2A, IRET).</content>
internal sealed unsafe partial class Interpreter
{
    private const uint IretFlags16 = RFlags.Status | RFlags.Tf | RFlags.Df | RFlags.Nt;
    private const uint IretFlags32 = IretFlags16 | RFlags.Rf | RFlags.Ac | RFlags.Id;

    /// <summary>IRET with 16- or 32-bit operands in any mode, 64-bit code included.</summary>
    internal Outcome InterruptReturn(CpuState* s, int size, ulong nextRip)
    {
        if (s->Bitness == 64)
            return InterruptReturn64(s, size);
        if (!IsProtected(s) && (s->SystemFlags & RFlags.Vm) == 0)
            return InterruptReturnReal(s, size);
        if ((s->SystemFlags & RFlags.Vm) != 0)
            return IsVm86Restricted(s) ? RaiseGp() : InterruptReturnReal(s, size);
        s->NmiBlocked = 0;
        if ((s->SystemFlags & RFlags.Nt) != 0)
            return IsLongMode(s) ? RaiseGp() : ReturnFromTask(s, nextRip);
        if (!PeekSized(s, size, 0, out ulong rip) || !PeekSized(s, size, size, out ulong selector) || !PeekSized(s, size, 2 * size, out ulong flags))
            return Outcome.Fault;
        selector &= 0xFFFF;
        if (size == 4 && (flags & RFlags.Vm) != 0 && s->Cpl == 0 && !IsLongMode(s))
            return ReturnToVm86(s, rip, (uint)selector, (uint)flags);
        if (!CheckReturnCode(s, selector, out Descriptor code, out ulong codeAddress))
            return Outcome.Fault;
        int rpl = (int)selector & 3;
        uint mask = IretMask(s, size);
        if (rpl == s->Cpl)
        {
            if (!CheckCodeOffset(s, code, selector, rip) || !MarkAccessed(s, code, codeAddress))
                return Outcome.Fault;
            MoveStackPointer(s, 3 * size);
        }
        else
        {
            if (!PeekSized(s, size, 3 * size, out ulong rsp) || !PeekSized(s, size, 4 * size, out ulong ss))
                return Outcome.Fault;
            ss &= 0xFFFF;
            if (!CheckReturnStack(s, ss, rpl, IsLongMode(s) && code.IsLong, out Descriptor stack, out ulong stackAddress)
                || !CheckCodeOffset(s, code, selector, rip) || !MarkAccessed(s, code, codeAddress)
                || ((ss & 0xFFFC) != 0 && !MarkAccessed(s, stack, stackAddress)))
                return Outcome.Fault;
            s->Cpl = rpl;
            EnterStack(s, stack, ss);
            code.CopyTo(&s->Cs, (ushort)selector);
            UpdateMode();
            SetStackPointer(s, rsp);
            DropInnerSegments(s);
        }
        ReplaceFlags(s, (uint)flags, mask);
        EnterCode(s, code, (ushort)selector, rip);
        return Outcome.Jump;
    }

    /// <summary>Virtual-8086 mode with IOPL below 3, where POPF, PUSHF, CLI, STI, INT n and IRET fault (Intel SDM vol. 3 section 21.2.7).</summary>
    internal static bool IsVm86Restricted(CpuState* s) =>
        (s->SystemFlags & RFlags.Vm) != 0 && (s->SystemFlags & RFlags.Iopl) != RFlags.Iopl;

    // Back to the task that the link field of this one's TSS names.
    private Outcome ReturnFromTask(CpuState* s, ulong nextRip)
    {
        if (!LoadSystem<ushort>(s, s->Tr.Base, out ulong link))
            return Outcome.Fault;
        return SwitchTask(s, link, TaskSwitchCause.Return, nextRip, CpuStateExtensions.GetRflags(s), hasError: false, 0, 0)
            ? Outcome.Jump : Outcome.Fault;
    }

    private Outcome ReturnToVm86(CpuState* s, ulong rip, uint cs, uint flags)
    {
        ulong* rest = stackalloc ulong[6];
        for (int i = 0; i < 6; i++)
            if (!PeekSized(s, 4, (3 + i) * 4, out rest[i]))
                return Outcome.Fault;
        // ESP, SS, ES, DS, FS, GS lie above EFLAGS.
        ushort* selectors = stackalloc ushort[6];
        selectors[Seg.Es] = (ushort)rest[2];
        selectors[Seg.Cs] = (ushort)cs;
        selectors[Seg.Ss] = (ushort)rest[1];
        selectors[Seg.Ds] = (ushort)rest[3];
        selectors[Seg.Fs] = (ushort)rest[4];
        selectors[Seg.Gs] = (ushort)rest[5];
        CpuStateExtensions.SetRflags(s, flags);
        EnterVm86(s, selectors);
        s->Gpr[4] = (uint)rest[0];
        s->Rip = rip;
        UpdateMode();
        return Outcome.Jump;
    }

    private Outcome InterruptReturnReal(CpuState* s, int size)
    {
        s->NmiBlocked = 0;
        if (!PeekSized(s, size, 0, out ulong rip) || !PeekSized(s, size, size, out ulong selector) || !PeekSized(s, size, 2 * size, out ulong flags))
            return Outcome.Fault;
        if (rip > s->Cs.Limit)
            return RaiseGp();
        MoveStackPointer(s, 3 * size);
        uint mask = (size == 2 ? IretFlags16 : IretFlags32) | RFlags.If;
        if ((s->SystemFlags & RFlags.Vm) == 0)
            mask |= RFlags.Iopl;
        ReplaceFlags(s, (uint)flags, mask);
        return EnterReal(s, (ushort)selector, rip);
    }

    /// <summary>IRET in 64-bit code: SS:RSP is always popped. This is the way back from every interrupt of a 64-bit kernel.</summary>
    internal Outcome InterruptReturn64(CpuState* s, int size)
    {
        s->NmiBlocked = 0;
        if ((s->SystemFlags & RFlags.Nt) != 0)
            return RaiseGp();
        ulong* frame = stackalloc ulong[5];
        if (size == 8)
        {
            // SAFETY: frame holds the 40 bytes.
            if (!LoadBytes(s, s->Gpr[4], Seg.Ss, (byte*)frame, 40))
                return Outcome.Fault;
        }
        else
        {
            for (int i = 0; i < 5; i++)
                if (!PeekSized(s, size, i * size, out frame[i]))
                    return Outcome.Fault;
        }
        ulong rip = frame[0], selector = frame[1] & 0xFFFF, rsp = frame[3], ss = frame[4] & 0xFFFF;
        if (!CheckReturnCode(s, selector, out Descriptor code, out ulong codeAddress))
            return Outcome.Fault;
        int rpl = (int)selector & 3;
        if (!CheckReturnStack(s, ss, rpl, code.IsLong, out Descriptor stack, out ulong stackAddress) || !CheckCodeOffset(s, code, selector, rip)
            || !MarkAccessed(s, code, codeAddress) || ((ss & 0xFFFC) != 0 && !MarkAccessed(s, stack, stackAddress)))
            return Outcome.Fault;
        uint mask = IretMask(s, size);
        bool outer = rpl != s->Cpl;
        s->Cpl = rpl;
        EnterStack(s, stack, ss);
        ReplaceFlags(s, (uint)frame[2], mask);
        EnterCode(s, code, (ushort)selector, rip);
        SetStackPointer(s, rsp);
        if (outer)
            DropInnerSegments(s);
        return Outcome.Jump;
    }

    /// <summary>The flags that IRET may change at the present privilege.</summary>
    private static uint IretMask(CpuState* s, int size)
    {
        uint mask = size == 2 ? IretFlags16 : IretFlags32;
        if (s->Cpl <= (int)((s->SystemFlags & RFlags.Iopl) >> 12))
            mask |= RFlags.If;
        if (s->Cpl == 0)
            mask |= RFlags.Iopl | (size == 2 ? 0 : RFlags.Vif | RFlags.Vip);
        return mask;
    }

    /// <summary>Takes the flags in <paramref name="mask"/>, which includes the status flags, from <paramref name="value"/>.</summary>
    private static void ReplaceFlags(CpuState* s, uint value, uint mask)
    {
        CpuStateExtensions.SetStatusFlags(s, value);
        mask &= ~RFlags.Status;
        s->SystemFlags = (s->SystemFlags & ~mask) | (value & mask);
    }
}
