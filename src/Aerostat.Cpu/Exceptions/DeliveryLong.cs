using Aerostat.X86;

namespace Aerostat.Cpu;

/// <content>Delivery in IA-32e mode (Intel SDM vol. 3 section 7.14).</content>
internal sealed unsafe partial class Interpreter
{
    private bool DeliverLong(CpuState* s, EventKind kind, int vector, bool hasError, uint error, ulong rip)
    {
        uint ext = ExternalBit(kind);
        if ((uint)(vector * 16) + 15 > s->IdtLimit)
            return FailIdt(Vector.GeneralProtection, vector, ext);
        ulong entry = s->IdtBase + ((ulong)vector * 16);
        if (!LoadSystem<ulong>(s, entry, out ulong low) || !LoadSystem<ulong>(s, entry + 8, out ulong high))
            return false;
        var gate = new Descriptor(low);
        if (gate.Type is not (Descriptor.InterruptGate32 or Descriptor.TrapGate32))
            return FailIdt(Vector.GeneralProtection, vector, ext);
        if (ext == 0 && gate.Dpl < s->Cpl)
            return FailIdt(Vector.GeneralProtection, vector, 0);
        if (!gate.IsPresent)
            return FailIdt(Vector.SegmentNotPresent, vector, ext);

        ulong selector = low >> 16 & 0xFFFF;
        if ((selector & 0xFFFC) == 0)
            return Fail(Vector.GeneralProtection, 0, ext);
        if (!RequireDescriptor(s, selector, Vector.GeneralProtection, ext, out Descriptor code, out ulong codeAddress))
            return false;
        if (!code.IsCode || code.Dpl > s->Cpl)
            return Fail(Vector.GeneralProtection, selector, ext);
        if (!code.IsPresent)
            return Fail(Vector.SegmentNotPresent, selector, ext);
        if (!code.IsLong || code.IsBig)
            return Fail(Vector.GeneralProtection, selector, ext);

        int cpl = code.IsConforming ? s->Cpl : code.Dpl;
        bool inner = cpl < s->Cpl;
        int ist = (int)(low >> 32) & 7;
        ulong rsp = s->Gpr[4];
        if (ist != 0 || inner)
        {
            uint offset = ist != 0 ? 28 + ((uint)ist * 8) : 4 + ((uint)cpl * 8);
            if (offset + 7 > s->Tr.Limit)
                return Fail(Vector.InvalidTss, s->Tr.Selector, ext);
            if (!LoadSystem<ulong>(s, s->Tr.Base + offset, out rsp))
                return false;
        }
        ulong target = (low & 0xFFFF) | (low >> 32 & 0xFFFF_0000) | (high << 32);
        if (!IsCanonical(s, target))
            return Fail(Vector.GeneralProtection, 0, ext);

        ulong* frame = stackalloc ulong[6];
        int count = 5;
        ulong* f = frame;
        if (hasError)
        {
            *f++ = error;
            count = 6;
        }
        f[0] = rip;
        f[1] = s->Cs.Selector;
        f[2] = FlagsToPush(s, kind, vector);
        f[3] = s->Gpr[4];
        f[4] = s->Ss.Selector;

        SavedMode saved = SaveMode(s);
        code.CopyTo(&s->Cs, (ushort)((selector & 0xFFFC) | (uint)cpl));
        s->Cpl = cpl;
        if (inner)
            SetNull(s, &s->Ss, (ushort)cpl, keepBase: false);
        UpdateMode();
        rsp = (rsp & ~15UL) - ((ulong)count * 8);
        // SAFETY: frame holds count elements.
        if ((!code.IsAccessed && !SetDescriptorBits(s, codeAddress + 5, 1)) || StoreBytes(s, rsp, Seg.Ss, (byte*)frame, count * 8) == Outcome.Fault)
        {
            RestoreMode(s, saved);
            if (raisedVector == Vector.StackFault)
                raisedError = ext;
            return false;
        }
        s->Gpr[4] = rsp;
        s->Rip = target;
        uint clear = RFlags.Tf | RFlags.Nt | RFlags.Rf | RFlags.Vm;
        if (gate.Type == Descriptor.InterruptGate32)
            clear |= RFlags.If;
        s->SystemFlags &= ~clear;
        return true;
    }
}
