using Iced.Intel;

namespace Aerostat.Cpu;

/// <summary>Binds instructions with an MMX register.</summary>
internal static unsafe class MmxBinder
{
    // SAFETY: writes the one MicroOp that the block decoder hands over.

    /// <summary>Binds one instruction; false when it is none of these.</summary>
    public static bool Bind(in Instruction i, MicroOp* op, DecodeContext c)
    {
        bool load = i.Op1Kind == OpKind.Memory, store = i.Op0Kind == OpKind.Memory;
        switch (i.Code)
        {
            case Code.Emms:
                op->Handler = &MmxHandlers.Emms;
                return true;
            case Code.Movd_mm_rm32:
                op->Handler = load ? &MmxHandlers.Load<uint> : &MmxHandlers.FromGeneral<uint>;
                return true;
            case Code.Movq_mm_rm64:
                op->Handler = load ? &MmxHandlers.Load<ulong> : &MmxHandlers.FromGeneral<ulong>;
                return true;
            case Code.Movd_rm32_mm:
                op->Handler = store ? &MmxHandlers.Store<uint> : &MmxHandlers.ToGeneral<uint>;
                return true;
            case Code.Movq_rm64_mm:
                op->Handler = store ? &MmxHandlers.Store<ulong> : &MmxHandlers.ToGeneral<ulong>;
                return true;
            case Code.Movq_mm_mmm64:
                op->Handler = load ? &MmxHandlers.Load<ulong> : &MmxHandlers.Copy;
                return true;
            case Code.Movq_mmm64_mm:
                op->Handler = store ? &MmxHandlers.Store<ulong> : &MmxHandlers.Copy;
                return true;
            case Code.Movntq_m64_mm:
                op->Handler = &MmxHandlers.Store<ulong>;
                return true;
            case Code.Maskmovq_rDI_mm_mm:
                op->Handler = &MmxHandlers.MaskedStore;
                return true;
            default:
                break;
        }
        if (i.Op0Kind != OpKind.Register)
            return false;
        MmxForm form = i.Op0Register.IsMM() ? MmxForm.ToMmx : i.Op0Register.IsXMM() ? MmxForm.ToXmm : MmxForm.ToGeneral;
        if (i.Op1Kind == OpKind.Memory)
            form |= MmxForm.FromMemory;
        else if (i.Op1Kind == OpKind.Register)
            form |= i.Op1Register.IsMM() ? MmxForm.FromMmx : i.Op1Register.IsXMM() ? MmxForm.FromXmm : MmxForm.FromGeneral;
        // CVTPI2PS and CVTPI2PD with a memory operand have no MMX register and leave the x87 state alone (AMD APM vol. 4; Intel SDM vol. 2
        // says so of CVTPI2PD only).
        if ((form & (MmxForm.ToMmx | MmxForm.FromMmx)) == 0)
            return false;
        VectorForm kind = VectorForms.Classify(i.Mnemonic);
        if (kind is not (VectorForm.Integer or VectorForm.Float))
            return false;
        if (kind == VectorForm.Float)
            form |= MmxForm.Float;
        op->Aux = c.Stubs.Get(i, VectorForms.Traits(kind, i.Mnemonic));
        op->Src2 = (byte)form;
        op->Handler = &MmxHandlers.Run;
        return op->Aux != 0;
    }
}
