using Aerostat.X86;

namespace Aerostat.Cpu;

/// <content>LDTR and TR (Intel SDM vol. 2, LLDT and LTR).</content>
internal sealed unsafe partial class Interpreter
{
    internal Outcome LoadLdt(CpuState* s, ulong selector)
    {
        if (!IsProtected(s))
            return RaiseUd();
        if (s->Cpl != 0)
            return RaiseGp();
        if ((selector & 0xFFFC) == 0)
        {
            SetNull(s, &s->Ldtr, (ushort)selector, keepBase: false);
            return Outcome.Next;
        }
        if (!FetchSystemDescriptor(s, selector, out Descriptor d, out ulong b, out _))
            return Outcome.Fault;
        if (d.Type != Descriptor.Ldt)
            return RaiseSelector(Vector.GeneralProtection, selector);
        if (!d.IsPresent)
            return RaiseSelector(Vector.SegmentNotPresent, selector);
        d.CopyTo(&s->Ldtr, (ushort)selector);
        s->Ldtr.Base = b;
        return Outcome.Next;
    }

    internal Outcome LoadTaskRegister(CpuState* s, ulong selector)
    {
        if (!IsProtected(s))
            return RaiseUd();
        if (s->Cpl != 0 || (selector & 0xFFFC) == 0)
            return RaiseGp();
        if (!FetchSystemDescriptor(s, selector, out Descriptor d, out ulong b, out ulong address))
            return Outcome.Fault;
        if (d.Type != Descriptor.Tss32 && (d.Type != Descriptor.Tss16 || IsLongMode(s)))
            return RaiseSelector(Vector.GeneralProtection, selector);
        if (!d.IsPresent)
            return RaiseSelector(Vector.SegmentNotPresent, selector);
        if (!SetDescriptorBits(s, address + 5, 2))
            return Outcome.Fault;
        d.CopyTo(&s->Tr, (ushort)selector);
        s->Tr.Base = b;
        s->Tr.Attributes |= 2; // busy
        return Outcome.Next;
    }

    /// <summary>A descriptor of the GDT that is 16 bytes long in IA-32e mode.</summary>
    private bool FetchSystemDescriptor(CpuState* s, ulong selector, out Descriptor d, out ulong b, out ulong address)
    {
        b = 0;
        d = default;
        address = 0;
        if ((selector & 4) != 0)
            return Fail(Vector.GeneralProtection, selector, 0);
        if (!RequireDescriptor(s, selector, Vector.GeneralProtection, 0, out d, out address))
            return false;
        b = d.Base;
        if (!IsLongMode(s))
            return true;
        if ((selector & 0xFFF8) + 15 > s->GdtLimit)
            return Fail(Vector.GeneralProtection, selector, 0);
        if (!LoadSystem<ulong>(s, address + 8, out ulong high))
            return false;
        b |= high << 32;
        // Bits 8..12 of the last word must be zero: a type there would make it a descriptor of its own.
        return ((high >> 40 & 0x1F) == 0 && IsLoadable(b)) || Fail(Vector.GeneralProtection, selector, 0);
    }
}
