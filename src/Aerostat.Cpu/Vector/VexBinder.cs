using Iced.Intel;

namespace Aerostat.Cpu;

/// <summary>
/// Binds AVX, AVX2, FMA and F16C instructions and the VEX forms of AES and PCLMULQDQ. As in <see cref="VectorBinder"/>, what runs on the host
/// is named here or in <see cref="VexForms"/>.
/// </summary>
internal static unsafe class VexBinder
{
    // SAFETY: writes the one MicroOp that the block decoder hands over.

    /// <summary>Binds one instruction; false when it is none of these, or this host cannot run it.</summary>
    public static bool Bind(in Instruction i, MicroOp* op, DecodeContext c)
    {
        // Integer instructions with a VEX prefix have been bound before; the others are vector instructions, which an AVX host can help with.
        if (!HostStubs.CanRun(CpuidFeature.AVX))
            return false;
        op->OperandSize = (byte)i.MemorySize.GetSize();
        if (BindMove(i, op) || BindSpecial(i, op, c) || BindGather(i, op) || BindStub(i, op, c))
            return true;
        op->OperandSize = 0;
        return false;
    }

    /// <summary>VMOVAPS and the like: the only ones with a 16- or 32-byte operand that must be aligned.</summary>
    public static bool IsAligned(Mnemonic m) => m is Mnemonic.Vmovaps or Mnemonic.Vmovapd or Mnemonic.Vmovdqa
        or Mnemonic.Vmovntps or Mnemonic.Vmovntpd or Mnemonic.Vmovntdq or Mnemonic.Vmovntdqa;

    private static bool BindMove(in Instruction i, MicroOp* op)
    {
        bool aligned = IsAligned(i.Mnemonic);
        if (!aligned && i.Mnemonic is not (Mnemonic.Vmovups or Mnemonic.Vmovupd or Mnemonic.Vmovdqu or Mnemonic.Vlddqu))
            return false;
        bool wide = i.Op0Kind == OpKind.Register ? i.Op0Register.IsYMM() : i.Op1Register.IsYMM();
        op->OperandSize = wide ? (byte)32 : (byte)16;
        if (i.Op1Kind == OpKind.Memory)
            op->Handler = aligned ? &VexMoves.LoadAligned : wide ? &VexMoves.Load256 : &VexMoves.Load128;
        else if (i.Op0Kind == OpKind.Memory)
            op->Handler = aligned ? &VexMoves.StoreAligned : wide ? &VexMoves.Store256 : &VexMoves.Store128;
        else
            op->Handler = wide ? &VexMoves.Copy256 : &VexMoves.Copy128;
        return true;
    }

    private static bool BindSpecial(in Instruction i, MicroOp* op, DecodeContext c)
    {
        bool load = i.Op0Kind == OpKind.Register;
        switch (i.Mnemonic)
        {
            case Mnemonic.Vzeroupper:
                op->Handler = &VexMoves.ZeroUpper;
                return true;
            case Mnemonic.Vzeroall:
                op->Handler = &VexMoves.ZeroAll;
                return true;
            case Mnemonic.Vldmxcsr:
                op->Handler = &VexHandlers.LoadMxcsr;
                return true;
            case Mnemonic.Vstmxcsr:
                op->Handler = &VexHandlers.StoreMxcsr;
                return true;
            case Mnemonic.Vmaskmovdqu:
                op->Handler = &VexMasked.StoreBytes;
                return true;
            case Mnemonic.Vmaskmovps or Mnemonic.Vpmaskmovd:
                op->Handler = load ? &VexMasked.Load<uint> : &VexMasked.Store<uint>;
                return true;
            case Mnemonic.Vmaskmovpd or Mnemonic.Vpmaskmovq:
                op->Handler = load ? &VexMasked.Load<ulong> : &VexMasked.Store<ulong>;
                return true;
            default:
                return BindStrings(i, op, c);
        }
    }

    private static bool BindStrings(in Instruction i, MicroOp* op, DecodeContext c)
    {
        Code legacy = i.Code switch
        {
            Code.VEX_Vpcmpestri_xmm_xmmm128_imm8 => Code.Pcmpestri_xmm_xmmm128_imm8,
            Code.VEX_Vpcmpestri64_xmm_xmmm128_imm8 => Code.Pcmpestri64_xmm_xmmm128_imm8,
            Code.VEX_Vpcmpestrm_xmm_xmmm128_imm8 => Code.Pcmpestrm_xmm_xmmm128_imm8,
            Code.VEX_Vpcmpestrm64_xmm_xmmm128_imm8 => Code.Pcmpestrm64_xmm_xmmm128_imm8,
            Code.VEX_Vpcmpistri_xmm_xmmm128_imm8 => Code.Pcmpistri_xmm_xmmm128_imm8,
            Code.VEX_Vpcmpistrm_xmm_xmmm128_imm8 => Code.Pcmpistrm_xmm_xmmm128_imm8,
            _ => Code.INVALID,
        };
        if (legacy == Code.INVALID)
            return false;
        // The same operation: the legacy form's stub does it.
        Instruction copy = i;
        copy.Code = legacy;
        op->Aux = c.Stubs.Get(copy, VectorForms.Traits(VectorForm.Strings, copy.Mnemonic));
        if (op->Aux == 0)
            return false;
        op->Src2 = copy.Mnemonic is Mnemonic.Pcmpestrm or Mnemonic.Pcmpestrm64 or Mnemonic.Pcmpistrm ? (byte)1 : (byte)0;
        op->Handler = i.Op1Kind == OpKind.Memory ? &VexHandlers.CompareStrings<SseHandlers.Memory> : &VexHandlers.CompareStrings<SseHandlers.Xmm>;
        return true;
    }

    private static bool BindGather(in Instruction i, MicroOp* op)
    {
        (bool wideIndex, bool wideElement) = i.Mnemonic switch
        {
            Mnemonic.Vgatherdps or Mnemonic.Vpgatherdd => (false, false),
            Mnemonic.Vgatherdpd or Mnemonic.Vpgatherdq => (false, true),
            Mnemonic.Vgatherqps or Mnemonic.Vpgatherqd => (true, false),
            Mnemonic.Vgatherqpd or Mnemonic.Vpgatherqq => (true, true),
            _ => (false, false),
        };
        if (!i.IsVsib)
            return false;
        int size = i.Op0Register.IsYMM() || i.MemoryIndex.IsYMM() ? 32 : 16;
        // Elements: as many as there are of the wider kind.
        op->OperandSize = (byte)(size / (wideIndex || wideElement ? 8 : 4));
        op->Handler = wideIndex
            ? wideElement ? &VexMasked.Gather<ulong, ulong> : &VexMasked.Gather<ulong, uint>
            : wideElement ? &VexMasked.Gather<uint, ulong> : &VexMasked.Gather<uint, uint>;
        return true;
    }

    private static bool BindStub(in Instruction i, MicroOp* op, DecodeContext c)
    {
        VexForm form = VexForms.Classify(i.Mnemonic);
        if (form == VexForm.None)
            return false;
        StubTraits traits = VexForms.Traits(form);
        if (VexForms.IsFused(i.Code))
            traits |= StubTraits.ReadsOperand;
        op->Aux = c.Stubs.Get(i, traits);
        if (op->Aux == 0)
            return false;
        op->Places = 0;
        for (int k = 0; k < i.OpCount; k++)
        {
            OpKind kind = i.GetOpKind(k);
            if (kind == OpKind.Memory)
                op->Places |= VexPlace.Of(k, VexPlace.Memory);
            else if (kind == OpKind.Register && i.GetOpRegister(k).IsGPR())
                op->Places |= VexPlace.Of(k, VexPlace.General);
        }
        op->Narrows = i.Mnemonic == Mnemonic.Vcvtps2ph;
        if (op->Narrows)
            op->OperandSize = i.Op1Register.IsYMM() ? (byte)16 : (byte)8;
        op->Handler = form switch
        {
            VexForm.Float => &VexHandlers.Float,
            VexForm.Compare => &VexHandlers.Compare,
            VexForm.Test => &VexHandlers.Test,
            _ => &VexHandlers.Integer,
        };
        return true;
    }
}
