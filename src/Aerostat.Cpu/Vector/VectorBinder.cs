using Iced.Intel;

namespace Aerostat.Cpu;

/// <summary>
/// Binds x87, MMX, SSE to SSE4.2, AES, PCLMULQDQ, SHA, FXSAVE and XSAVE. Every instruction that runs on the host is named here or in
/// <see cref="VectorForms"/>; nothing is run because it happens to decode. For VEX forms see <see cref="VexBinder"/>; EVEX forms are not
/// bound (#UD).
/// </summary>
internal static unsafe class VectorBinder
{
    // SAFETY: writes the one MicroOp that the block decoder hands over.

    /// <summary>Binds one instruction; false when it is none of these, or this host cannot run it.</summary>
    public static bool Bind(in Instruction i, MicroOp* op, DecodeContext c)
    {
        // The string instruction CMPSD shares its mnemonic with the comparison of doubles.
        if (i.Encoding == EncodingKind.VEX)
            return VexBinder.Bind(i, op, c);
        if (i.Encoding != EncodingKind.Legacy || i.IsStringInstruction)
            return false;
        op->OperandSize = (byte)i.MemorySize.GetSize();
        if (BindState(i, op) || X87Binder.Bind(i, op, c) || BindMove(i, op) || MmxBinder.Bind(i, op, c) || BindPacked(i, op) || BindStub(i, op, c))
            return true;
        op->OperandSize = 0;
        return false;
    }

    private static bool BindState(in Instruction i, MicroOp* op)
    {
        op->Handler = i.Mnemonic switch
        {
            Mnemonic.Fxsave or Mnemonic.Fxsave64 => &StateHandlers.FxSave,
            Mnemonic.Fxrstor or Mnemonic.Fxrstor64 => &StateHandlers.FxRestore,
            Mnemonic.Xsave or Mnemonic.Xsave64 => &XsaveHandlers.Save,
            Mnemonic.Xsaveopt or Mnemonic.Xsaveopt64 => &XsaveHandlers.SaveOptimized,
            Mnemonic.Xsavec or Mnemonic.Xsavec64 => &XsaveHandlers.SaveCompacted,
            Mnemonic.Xsaves or Mnemonic.Xsaves64 => &XsaveHandlers.SaveSupervisor,
            Mnemonic.Xrstor or Mnemonic.Xrstor64 => &XsaveHandlers.Restore,
            Mnemonic.Xrstors or Mnemonic.Xrstors64 => &XsaveHandlers.RestoreSupervisor,
            Mnemonic.Ldmxcsr => &SseHandlers.LoadMxcsr,
            Mnemonic.Stmxcsr => &SseHandlers.StoreMxcsr,
            _ => null,
        };
        if (op->Handler == null)
            return false;
        op->OperandSize = i.Mnemonic is Mnemonic.Fxsave64 or Mnemonic.Fxrstor64 or Mnemonic.Xsave64 or Mnemonic.Xsaveopt64
            or Mnemonic.Xsavec64 or Mnemonic.Xsaves64 or Mnemonic.Xrstor64 or Mnemonic.Xrstors64 ? (byte)8 : (byte)4;
        return true;
    }

    private static bool BindMove(in Instruction i, MicroOp* op)
    {
        bool load = i.Op1Kind == OpKind.Memory, store = i.Op0Kind == OpKind.Memory;
        delegate*<Interpreter, CpuState*, MicroOp*, Outcome> h = null;
        switch (i.Code)
        {
            case Code.Movups_xmm_xmmm128 or Code.Movupd_xmm_xmmm128 or Code.Movdqu_xmm_xmmm128 or Code.Lddqu_xmm_m128:
                h = load ? &SseMoves.Load : &SseMoves.Copy;
                break;
            case Code.Movaps_xmm_xmmm128 or Code.Movapd_xmm_xmmm128 or Code.Movdqa_xmm_xmmm128 or Code.Movntdqa_xmm_m128:
                h = load ? &SseMoves.LoadAligned : &SseMoves.Copy;
                break;
            case Code.Movups_xmmm128_xmm or Code.Movupd_xmmm128_xmm or Code.Movdqu_xmmm128_xmm:
                h = store ? &SseMoves.Store : &SseMoves.Copy;
                break;
            case Code.Movaps_xmmm128_xmm or Code.Movapd_xmmm128_xmm or Code.Movdqa_xmmm128_xmm
                or Code.Movntps_m128_xmm or Code.Movntpd_m128_xmm or Code.Movntdq_m128_xmm:
                h = store ? &SseMoves.StoreAligned : &SseMoves.Copy;
                break;
            case Code.Movss_xmm_xmmm32:
                h = load ? &SseMoves.LoadScalar<uint> : &SseMoves.MergeScalar<uint>;
                break;
            case Code.Movsd_xmm_xmmm64:
                h = load ? &SseMoves.LoadScalar<ulong> : &SseMoves.MergeScalar<ulong>;
                break;
            case Code.Movss_xmmm32_xmm:
                h = store ? &SseMoves.StoreScalar<uint> : &SseMoves.MergeScalar<uint>;
                break;
            case Code.Movsd_xmmm64_xmm:
                h = store ? &SseMoves.StoreScalar<ulong> : &SseMoves.MergeScalar<ulong>;
                break;
            case Code.Movq_xmm_xmmm64:
                h = load ? &SseMoves.LoadScalar<ulong> : &SseMoves.CopyLow;
                break;
            case Code.Movq_xmmm64_xmm:
                h = store ? &SseMoves.StoreScalar<ulong> : &SseMoves.CopyLow;
                break;
            case Code.Movd_xmm_rm32:
                h = load ? &SseMoves.LoadScalar<uint> : &SseMoves.FromGeneral<uint>;
                break;
            case Code.Movq_xmm_rm64:
                h = load ? &SseMoves.LoadScalar<ulong> : &SseMoves.FromGeneral<ulong>;
                break;
            case Code.Movd_rm32_xmm:
                h = store ? &SseMoves.StoreScalar<uint> : &SseMoves.ToGeneral<uint>;
                break;
            case Code.Movq_rm64_xmm:
                h = store ? &SseMoves.StoreScalar<ulong> : &SseMoves.ToGeneral<ulong>;
                break;
            case Code.Movlps_xmm_m64 or Code.Movlpd_xmm_m64:
                op->Aux = 0;
                h = &SseMoves.LoadHalf;
                break;
            case Code.Movhps_xmm_m64 or Code.Movhpd_xmm_m64:
                op->Aux = 1;
                h = &SseMoves.LoadHalf;
                break;
            case Code.Movlps_m64_xmm or Code.Movlpd_m64_xmm:
                h = &SseMoves.StoreScalar<ulong>;
                break;
            case Code.Movhps_m64_xmm or Code.Movhpd_m64_xmm:
                h = &SseMoves.StoreHigh;
                break;
            case Code.Movhlps_xmm_xmm:
                h = &SseMoves.HighToLow;
                break;
            case Code.Movlhps_xmm_xmm:
                h = &SseMoves.LowToHigh;
                break;
            case Code.Pmovmskb_r32_xmm or Code.Pmovmskb_r64_xmm:
                h = &SseMoves.ByteMask;
                break;
            case Code.Maskmovdqu_rDI_xmm_xmm:
                h = &SseMoves.MaskedStore;
                break;
            default:
                return false;
        }
        op->Handler = h;
        return true;
    }

    private static bool BindPacked(in Instruction i, MicroOp* op)
    {
        if (i.Op0Kind != OpKind.Register || !i.Op0Register.IsXMM() || i.OpCount != 2)
            return false;
        bool memory = i.Op1Kind == OpKind.Memory;
        if (!memory && i.Op1Kind != OpKind.Register)
            return false;
        if (!HostStubs.CanRun(i.Mnemonic == Mnemonic.Pshufb ? CpuidFeature.SSSE3 : CpuidFeature.SSE2))
            return false;
        op->Handler = i.Mnemonic switch
        {
            Mnemonic.Pxor or Mnemonic.Xorps or Mnemonic.Xorpd => Pick<SseIntegers.Xor>(memory),
            Mnemonic.Pand or Mnemonic.Andps or Mnemonic.Andpd => Pick<SseIntegers.And>(memory),
            Mnemonic.Pandn or Mnemonic.Andnps or Mnemonic.Andnpd => Pick<SseIntegers.AndNot>(memory),
            Mnemonic.Por or Mnemonic.Orps or Mnemonic.Orpd => Pick<SseIntegers.Or>(memory),
            Mnemonic.Paddb => Pick<SseIntegers.AddByte>(memory),
            Mnemonic.Paddw => Pick<SseIntegers.AddWord>(memory),
            Mnemonic.Paddd => Pick<SseIntegers.AddDword>(memory),
            Mnemonic.Paddq => Pick<SseIntegers.AddQword>(memory),
            Mnemonic.Psubb => Pick<SseIntegers.SubByte>(memory),
            Mnemonic.Psubw => Pick<SseIntegers.SubWord>(memory),
            Mnemonic.Psubd => Pick<SseIntegers.SubDword>(memory),
            Mnemonic.Psubq => Pick<SseIntegers.SubQword>(memory),
            Mnemonic.Pcmpeqb => Pick<SseIntegers.EqualByte>(memory),
            Mnemonic.Pcmpeqw => Pick<SseIntegers.EqualWord>(memory),
            Mnemonic.Pcmpeqd => Pick<SseIntegers.EqualDword>(memory),
            Mnemonic.Pcmpgtb => Pick<SseIntegers.GreaterByte>(memory),
            Mnemonic.Pcmpgtw => Pick<SseIntegers.GreaterWord>(memory),
            Mnemonic.Pcmpgtd => Pick<SseIntegers.GreaterDword>(memory),
            Mnemonic.Pminub => Pick<SseIntegers.MinUnsignedByte>(memory),
            Mnemonic.Pmaxub => Pick<SseIntegers.MaxUnsignedByte>(memory),
            Mnemonic.Punpcklbw => Pick<SseIntegers.UnpackLowByte>(memory),
            Mnemonic.Punpcklwd => Pick<SseIntegers.UnpackLowWord>(memory),
            Mnemonic.Punpckldq => Pick<SseIntegers.UnpackLowDword>(memory),
            Mnemonic.Punpcklqdq => Pick<SseIntegers.UnpackLowQword>(memory),
            Mnemonic.Punpckhbw => Pick<SseIntegers.UnpackHighByte>(memory),
            Mnemonic.Punpckhwd => Pick<SseIntegers.UnpackHighWord>(memory),
            Mnemonic.Punpckhdq => Pick<SseIntegers.UnpackHighDword>(memory),
            Mnemonic.Punpckhqdq => Pick<SseIntegers.UnpackHighQword>(memory),
            Mnemonic.Pshufb => Pick<SseIntegers.ShuffleByte>(memory),
            _ => null,
        };
        return op->Handler != null;
    }

    private static delegate*<Interpreter, CpuState*, MicroOp*, Outcome> Pick<TOp>(bool memory)
        where TOp : struct, IPacked => memory ? &SseIntegers.Memory<TOp> : &SseIntegers.Registers<TOp>;

    private static bool BindStub(in Instruction i, MicroOp* op, DecodeContext c)
    {
        VectorForm form = VectorForms.Classify(i.Mnemonic);
        if (form == VectorForm.None)
            return false;
        op->Aux = c.Stubs.Get(i, VectorForms.Traits(form, i.Mnemonic));
        if (op->Aux == 0)
            return false;
        Source source = SourceOf(i, op->OperandSize, form);
        switch (form)
        {
            case VectorForm.Compare:
                op->Handler = source switch
                {
                    Source.Xmm => &SseHandlers.Compare<SseHandlers.Xmm>,
                    Source.Scalar4 => &SseHandlers.Compare<SseHandlers.Scalar<uint>>,
                    _ => &SseHandlers.Compare<SseHandlers.Scalar<ulong>>,
                };
                return true;
            case VectorForm.Test:
                op->Handler = source == Source.Xmm ? &SseHandlers.Test<SseHandlers.Xmm> : &SseHandlers.Test<SseHandlers.Aligned>;
                return true;
            case VectorForm.Strings:
                op->Src2 = i.Mnemonic is Mnemonic.Pcmpestrm or Mnemonic.Pcmpestrm64 or Mnemonic.Pcmpistrm ? (byte)1 : (byte)0;
                op->Handler = source == Source.Xmm ? &SseHandlers.CompareStrings<SseHandlers.Xmm> : &SseHandlers.CompareStrings<SseHandlers.Memory>;
                return true;
            default:
                op->Handler = i.Op0Kind == OpKind.Memory ? Pick<SseHandlers.Memory, SseHandlers.Xmm>(isFloat: false)
                    : i.Op0Register.IsXMM() ? PickSource<SseHandlers.Xmm>(source, form == VectorForm.Float)
                    : PickSource<SseHandlers.General>(source, form == VectorForm.Float);
                return true;
        }
    }

    private enum Source
    {
        Xmm,
        General,
        Aligned,
        Scalar4,
        Scalar8,
        Memory,
    }

    private static Source SourceOf(in Instruction i, int size, VectorForm form)
    {
        // Shifts by an immediate have one operand: XMM serves as a source that is not looked at.
        if (i.OpCount < 2 || i.Op1Kind == OpKind.Immediate8 || (i.Op1Kind == OpKind.Register && i.Op1Register.IsXMM()))
            return Source.Xmm;
        if (i.Op1Kind == OpKind.Register)
            return Source.General;
        return size switch
        {
            16 => form == VectorForm.Strings ? Source.Memory : Source.Aligned,
            8 => Source.Scalar8,
            4 => Source.Scalar4,
            _ => Source.Memory,
        };
    }

    private static delegate*<Interpreter, CpuState*, MicroOp*, Outcome> PickSource<TDst>(Source source, bool isFloat)
        where TDst : struct, IStubDestination => source switch
        {
            Source.Xmm => Pick<TDst, SseHandlers.Xmm>(isFloat),
            Source.General => Pick<TDst, SseHandlers.General>(isFloat),
            Source.Aligned => Pick<TDst, SseHandlers.Aligned>(isFloat),
            Source.Scalar4 => Pick<TDst, SseHandlers.Scalar<uint>>(isFloat),
            Source.Scalar8 => Pick<TDst, SseHandlers.Scalar<ulong>>(isFloat),
            _ => Pick<TDst, SseHandlers.Memory>(isFloat),
        };

    private static delegate*<Interpreter, CpuState*, MicroOp*, Outcome> Pick<TDst, TSrc>(bool isFloat)
        where TDst : struct, IStubDestination
        where TSrc : struct, IStubSource => isFloat ? &SseHandlers.Float<TDst, TSrc> : &SseHandlers.Integer<TDst, TSrc>;
}
