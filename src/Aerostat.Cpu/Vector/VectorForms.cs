using Iced.Intel;

namespace Aerostat.Cpu;

/// <summary>How an instruction that runs in a stub is handled around it.</summary>
internal enum VectorForm
{
    /// <summary>Not one of these.</summary>
    None,
    /// <summary>No exceptions besides those of its memory operand.</summary>
    Integer,
    /// <summary>As Integer, with XMM0 as an implicit source.</summary>
    ImplicitXmm0,
    /// <summary>Uses MXCSR.</summary>
    Float,
    /// <summary>Uses MXCSR, result in RFLAGS.</summary>
    Compare,
    /// <summary>PTEST.</summary>
    Test,
    /// <summary>PCMPESTRI, PCMPESTRM, PCMPISTRI, PCMPISTRM.</summary>
    Strings,
}

/// <summary>The list of vector instructions that may run in a stub.</summary>
internal static class VectorForms
{
    /// <summary>What a stub does around an instruction of a form.</summary>
    public static StubTraits Traits(VectorForm form, Mnemonic mnemonic) => form switch
    {
        VectorForm.ImplicitXmm0 => StubTraits.WritesOperand | StubTraits.ImplicitXmm0,
        VectorForm.Float => StubTraits.WritesOperand | StubTraits.Mxcsr,
        VectorForm.Compare => StubTraits.Mxcsr | StubTraits.FlagsOut,
        VectorForm.Test => StubTraits.FlagsOut,
        VectorForm.Strings => StubTraits.FlagsOut | mnemonic switch
        {
            Mnemonic.Pcmpestri or Mnemonic.Pcmpestri64 => StubTraits.ExplicitLengths | StubTraits.IndexResult,
            Mnemonic.Pcmpestrm or Mnemonic.Pcmpestrm64 => StubTraits.ExplicitLengths | StubTraits.MaskResult,
            Mnemonic.Pcmpistri => StubTraits.IndexResult,
            _ => StubTraits.MaskResult,
        },
        _ => StubTraits.WritesOperand,
    };

    /// <summary>The form of an instruction, MMX or XMM.</summary>
    public static VectorForm Classify(Mnemonic mnemonic)
    {
        switch (mnemonic)
        {
            case Mnemonic.Addps or Mnemonic.Addpd or Mnemonic.Addss or Mnemonic.Addsd:
            case Mnemonic.Subps or Mnemonic.Subpd or Mnemonic.Subss or Mnemonic.Subsd:
            case Mnemonic.Mulps or Mnemonic.Mulpd or Mnemonic.Mulss or Mnemonic.Mulsd:
            case Mnemonic.Divps or Mnemonic.Divpd or Mnemonic.Divss or Mnemonic.Divsd:
            case Mnemonic.Sqrtps or Mnemonic.Sqrtpd or Mnemonic.Sqrtss or Mnemonic.Sqrtsd:
            case Mnemonic.Minps or Mnemonic.Minpd or Mnemonic.Minss or Mnemonic.Minsd:
            case Mnemonic.Maxps or Mnemonic.Maxpd or Mnemonic.Maxss or Mnemonic.Maxsd:
            case Mnemonic.Cmpps or Mnemonic.Cmppd or Mnemonic.Cmpss or Mnemonic.Cmpsd:
            case Mnemonic.Rcpps or Mnemonic.Rcpss or Mnemonic.Rsqrtps or Mnemonic.Rsqrtss:
            case Mnemonic.Addsubps or Mnemonic.Addsubpd:
            case Mnemonic.Haddps or Mnemonic.Haddpd or Mnemonic.Hsubps or Mnemonic.Hsubpd:
            case Mnemonic.Roundps or Mnemonic.Roundpd or Mnemonic.Roundss or Mnemonic.Roundsd:
            case Mnemonic.Dpps or Mnemonic.Dppd:
            case Mnemonic.Cvtsi2ss or Mnemonic.Cvtsi2sd or Mnemonic.Cvtss2si or Mnemonic.Cvtsd2si or Mnemonic.Cvttss2si or Mnemonic.Cvttsd2si:
            case Mnemonic.Cvtps2pd or Mnemonic.Cvtpd2ps or Mnemonic.Cvtss2sd or Mnemonic.Cvtsd2ss:
            case Mnemonic.Cvtdq2ps or Mnemonic.Cvtps2dq or Mnemonic.Cvttps2dq:
            case Mnemonic.Cvtdq2pd or Mnemonic.Cvtpd2dq or Mnemonic.Cvttpd2dq:
            case Mnemonic.Cvtpi2ps or Mnemonic.Cvtpi2pd or Mnemonic.Cvtps2pi or Mnemonic.Cvtpd2pi or Mnemonic.Cvttps2pi or Mnemonic.Cvttpd2pi:
                return VectorForm.Float;

            case Mnemonic.Comiss or Mnemonic.Comisd or Mnemonic.Ucomiss or Mnemonic.Ucomisd:
                return VectorForm.Compare;
            case Mnemonic.Ptest:
                return VectorForm.Test;
            case Mnemonic.Pcmpestri or Mnemonic.Pcmpestrm or Mnemonic.Pcmpestri64 or Mnemonic.Pcmpestrm64 or Mnemonic.Pcmpistri or Mnemonic.Pcmpistrm:
                return VectorForm.Strings;
            case Mnemonic.Blendvps or Mnemonic.Blendvpd or Mnemonic.Pblendvb or Mnemonic.Sha256rnds2:
                return VectorForm.ImplicitXmm0;

            case Mnemonic.Movsldup or Mnemonic.Movshdup or Mnemonic.Movddup or Mnemonic.Movmskps or Mnemonic.Movmskpd:
            case Mnemonic.Unpcklps or Mnemonic.Unpcklpd or Mnemonic.Unpckhps or Mnemonic.Unpckhpd or Mnemonic.Shufps or Mnemonic.Shufpd:
            case Mnemonic.Andps or Mnemonic.Andpd or Mnemonic.Andnps or Mnemonic.Andnpd or Mnemonic.Orps or Mnemonic.Orpd or Mnemonic.Xorps or Mnemonic.Xorpd:
            case Mnemonic.Pand or Mnemonic.Pandn or Mnemonic.Por or Mnemonic.Pxor:
            case Mnemonic.Paddb or Mnemonic.Paddw or Mnemonic.Paddd or Mnemonic.Paddq:
            case Mnemonic.Paddsb or Mnemonic.Paddsw or Mnemonic.Paddusb or Mnemonic.Paddusw:
            case Mnemonic.Psubb or Mnemonic.Psubw or Mnemonic.Psubd or Mnemonic.Psubq:
            case Mnemonic.Psubsb or Mnemonic.Psubsw or Mnemonic.Psubusb or Mnemonic.Psubusw:
            case Mnemonic.Pmullw or Mnemonic.Pmulld or Mnemonic.Pmulhw or Mnemonic.Pmulhuw or Mnemonic.Pmulhrsw or Mnemonic.Pmuludq or Mnemonic.Pmuldq:
            case Mnemonic.Pmaddwd or Mnemonic.Pmaddubsw or Mnemonic.Psadbw or Mnemonic.Mpsadbw or Mnemonic.Phminposuw:
            case Mnemonic.Pavgb or Mnemonic.Pavgw or Mnemonic.Pabsb or Mnemonic.Pabsw or Mnemonic.Pabsd:
            case Mnemonic.Psignb or Mnemonic.Psignw or Mnemonic.Psignd:
            case Mnemonic.Phaddw or Mnemonic.Phaddd or Mnemonic.Phaddsw or Mnemonic.Phsubw or Mnemonic.Phsubd or Mnemonic.Phsubsw:
            case Mnemonic.Pminub or Mnemonic.Pminuw or Mnemonic.Pminud or Mnemonic.Pminsb or Mnemonic.Pminsw or Mnemonic.Pminsd:
            case Mnemonic.Pmaxub or Mnemonic.Pmaxuw or Mnemonic.Pmaxud or Mnemonic.Pmaxsb or Mnemonic.Pmaxsw or Mnemonic.Pmaxsd:
            case Mnemonic.Pcmpeqb or Mnemonic.Pcmpeqw or Mnemonic.Pcmpeqd or Mnemonic.Pcmpeqq:
            case Mnemonic.Pcmpgtb or Mnemonic.Pcmpgtw or Mnemonic.Pcmpgtd or Mnemonic.Pcmpgtq:
            case Mnemonic.Psllw or Mnemonic.Pslld or Mnemonic.Psllq or Mnemonic.Pslldq:
            case Mnemonic.Psrlw or Mnemonic.Psrld or Mnemonic.Psrlq or Mnemonic.Psrldq or Mnemonic.Psraw or Mnemonic.Psrad:
            case Mnemonic.Packsswb or Mnemonic.Packssdw or Mnemonic.Packuswb or Mnemonic.Packusdw:
            case Mnemonic.Punpcklbw or Mnemonic.Punpcklwd or Mnemonic.Punpckldq or Mnemonic.Punpcklqdq:
            case Mnemonic.Punpckhbw or Mnemonic.Punpckhwd or Mnemonic.Punpckhdq or Mnemonic.Punpckhqdq:
            case Mnemonic.Pshufb or Mnemonic.Pshufd or Mnemonic.Pshufhw or Mnemonic.Pshuflw or Mnemonic.Pshufw or Mnemonic.Palignr:
            case Mnemonic.Blendps or Mnemonic.Blendpd or Mnemonic.Pblendw or Mnemonic.Insertps or Mnemonic.Extractps:
            case Mnemonic.Pinsrb or Mnemonic.Pinsrw or Mnemonic.Pinsrd or Mnemonic.Pinsrq:
            case Mnemonic.Pextrb or Mnemonic.Pextrw or Mnemonic.Pextrd or Mnemonic.Pextrq or Mnemonic.Pmovmskb:
            case Mnemonic.Pmovsxbw or Mnemonic.Pmovsxbd or Mnemonic.Pmovsxbq or Mnemonic.Pmovsxwd or Mnemonic.Pmovsxwq or Mnemonic.Pmovsxdq:
            case Mnemonic.Pmovzxbw or Mnemonic.Pmovzxbd or Mnemonic.Pmovzxbq or Mnemonic.Pmovzxwd or Mnemonic.Pmovzxwq or Mnemonic.Pmovzxdq:
            case Mnemonic.Movq2dq or Mnemonic.Movdq2q:
            case Mnemonic.Aesenc or Mnemonic.Aesenclast or Mnemonic.Aesdec or Mnemonic.Aesdeclast or Mnemonic.Aesimc or Mnemonic.Aeskeygenassist:
            case Mnemonic.Pclmulqdq:
            case Mnemonic.Sha1rnds4 or Mnemonic.Sha1nexte or Mnemonic.Sha1msg1 or Mnemonic.Sha1msg2 or Mnemonic.Sha256msg1 or Mnemonic.Sha256msg2:
                return VectorForm.Integer;

            default:
                return VectorForm.None;
        }
    }
}
