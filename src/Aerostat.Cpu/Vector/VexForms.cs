using Iced.Intel;

namespace Aerostat.Cpu;

/// <summary>How a VEX-encoded vector instruction that runs in a stub is handled around it.</summary>
internal enum VexForm
{
    /// <summary>Not one of these.</summary>
    None,
    /// <summary>No exceptions besides those of its memory operand.</summary>
    Integer,
    /// <summary>Uses MXCSR.</summary>
    Float,
    /// <summary>Uses MXCSR, result in RFLAGS.</summary>
    Compare,
    /// <summary>Result in RFLAGS: VPTEST, VTESTPS, VTESTPD.</summary>
    Test,
}

/// <summary>The list of AVX, AVX2, FMA and F16C instructions that may run in a stub.</summary>
internal static class VexForms
{
    /// <summary>What a stub does around an instruction of a form.</summary>
    public static StubTraits Traits(VexForm form) => form switch
    {
        VexForm.Float => StubTraits.WritesOperand | StubTraits.Mxcsr,
        VexForm.Compare => StubTraits.Mxcsr | StubTraits.FlagsOut,
        VexForm.Test => StubTraits.FlagsOut,
        _ => StubTraits.WritesOperand,
    };

    /// <summary>FMA instructions, whose first operand is a source too.</summary>
    public static bool IsFused(Code code)
    {
        foreach (CpuidFeature f in code.CpuidFeatures())
            if (f == CpuidFeature.FMA)
                return true;
        return false;
    }

    /// <summary>The form of a VEX-encoded instruction.</summary>
    public static VexForm Classify(Mnemonic mnemonic)
    {
        switch (mnemonic)
        {
            case Mnemonic.Vaddpd or Mnemonic.Vaddps or Mnemonic.Vaddsd or Mnemonic.Vaddss or Mnemonic.Vaddsubpd or Mnemonic.Vaddsubps:
            case Mnemonic.Vcmppd or Mnemonic.Vcmpps or Mnemonic.Vcmpsd or Mnemonic.Vcmpss or Mnemonic.Vcvtdq2pd or Mnemonic.Vcvtdq2ps:
            case Mnemonic.Vcvtpd2dq or Mnemonic.Vcvtpd2ps or Mnemonic.Vcvtph2ps or Mnemonic.Vcvtps2dq or Mnemonic.Vcvtps2pd or Mnemonic.Vcvtps2ph:
            case Mnemonic.Vcvtsd2si or Mnemonic.Vcvtsd2ss or Mnemonic.Vcvtsi2sd or Mnemonic.Vcvtsi2ss or Mnemonic.Vcvtss2sd or Mnemonic.Vcvtss2si:
            case Mnemonic.Vcvttpd2dq or Mnemonic.Vcvttps2dq or Mnemonic.Vcvttsd2si or Mnemonic.Vcvttss2si or Mnemonic.Vdivpd or Mnemonic.Vdivps:
            case Mnemonic.Vdivsd or Mnemonic.Vdivss or Mnemonic.Vdppd or Mnemonic.Vdpps or Mnemonic.Vfmadd132pd or Mnemonic.Vfmadd132ps:
            case Mnemonic.Vfmadd132sd or Mnemonic.Vfmadd132ss or Mnemonic.Vfmadd213pd or Mnemonic.Vfmadd213ps or Mnemonic.Vfmadd213sd:
            case Mnemonic.Vfmadd213ss or Mnemonic.Vfmadd231pd or Mnemonic.Vfmadd231ps or Mnemonic.Vfmadd231sd or Mnemonic.Vfmadd231ss:
            case Mnemonic.Vfmaddsub132pd or Mnemonic.Vfmaddsub132ps or Mnemonic.Vfmaddsub213pd or Mnemonic.Vfmaddsub213ps or Mnemonic.Vfmaddsub231pd:
            case Mnemonic.Vfmaddsub231ps or Mnemonic.Vfmsub132pd or Mnemonic.Vfmsub132ps or Mnemonic.Vfmsub132sd or Mnemonic.Vfmsub132ss:
            case Mnemonic.Vfmsub213pd or Mnemonic.Vfmsub213ps or Mnemonic.Vfmsub213sd or Mnemonic.Vfmsub213ss or Mnemonic.Vfmsub231pd:
            case Mnemonic.Vfmsub231ps or Mnemonic.Vfmsub231sd or Mnemonic.Vfmsub231ss or Mnemonic.Vfmsubadd132pd or Mnemonic.Vfmsubadd132ps:
            case Mnemonic.Vfmsubadd213pd or Mnemonic.Vfmsubadd213ps or Mnemonic.Vfmsubadd231pd or Mnemonic.Vfmsubadd231ps or Mnemonic.Vfnmadd132pd:
            case Mnemonic.Vfnmadd132ps or Mnemonic.Vfnmadd132sd or Mnemonic.Vfnmadd132ss or Mnemonic.Vfnmadd213pd or Mnemonic.Vfnmadd213ps:
            case Mnemonic.Vfnmadd213sd or Mnemonic.Vfnmadd213ss or Mnemonic.Vfnmadd231pd or Mnemonic.Vfnmadd231ps or Mnemonic.Vfnmadd231sd:
            case Mnemonic.Vfnmadd231ss or Mnemonic.Vfnmsub132pd or Mnemonic.Vfnmsub132ps or Mnemonic.Vfnmsub132sd or Mnemonic.Vfnmsub132ss:
            case Mnemonic.Vfnmsub213pd or Mnemonic.Vfnmsub213ps or Mnemonic.Vfnmsub213sd or Mnemonic.Vfnmsub213ss or Mnemonic.Vfnmsub231pd:
            case Mnemonic.Vfnmsub231ps or Mnemonic.Vfnmsub231sd or Mnemonic.Vfnmsub231ss or Mnemonic.Vhaddpd or Mnemonic.Vhaddps or Mnemonic.Vhsubpd:
            case Mnemonic.Vhsubps or Mnemonic.Vmaxpd or Mnemonic.Vmaxps or Mnemonic.Vmaxsd or Mnemonic.Vmaxss or Mnemonic.Vminpd or Mnemonic.Vminps:
            case Mnemonic.Vminsd or Mnemonic.Vminss or Mnemonic.Vmulpd or Mnemonic.Vmulps or Mnemonic.Vmulsd or Mnemonic.Vmulss or Mnemonic.Vrcpps:
            case Mnemonic.Vrcpss or Mnemonic.Vroundpd or Mnemonic.Vroundps or Mnemonic.Vroundsd or Mnemonic.Vroundss or Mnemonic.Vrsqrtps:
            case Mnemonic.Vrsqrtss or Mnemonic.Vsqrtpd or Mnemonic.Vsqrtps or Mnemonic.Vsqrtsd or Mnemonic.Vsqrtss or Mnemonic.Vsubpd:
            case Mnemonic.Vsubps or Mnemonic.Vsubsd or Mnemonic.Vsubss:
                return VexForm.Float;

            case Mnemonic.Vcomiss or Mnemonic.Vcomisd or Mnemonic.Vucomiss or Mnemonic.Vucomisd:
                return VexForm.Compare;
            case Mnemonic.Vptest or Mnemonic.Vtestps or Mnemonic.Vtestpd:
                return VexForm.Test;

            case Mnemonic.Vaesdec or Mnemonic.Vaesdeclast or Mnemonic.Vaesenc or Mnemonic.Vaesenclast or Mnemonic.Vaesimc:
            case Mnemonic.Vaeskeygenassist or Mnemonic.Vandnpd or Mnemonic.Vandnps or Mnemonic.Vandpd or Mnemonic.Vandps or Mnemonic.Vblendpd:
            case Mnemonic.Vblendps or Mnemonic.Vblendvpd or Mnemonic.Vblendvps or Mnemonic.Vbroadcastf128 or Mnemonic.Vbroadcasti128:
            case Mnemonic.Vbroadcastsd or Mnemonic.Vbroadcastss or Mnemonic.Vextractf128 or Mnemonic.Vextracti128 or Mnemonic.Vextractps:
            case Mnemonic.Vinsertf128 or Mnemonic.Vinserti128 or Mnemonic.Vinsertps or Mnemonic.Vlddqu or Mnemonic.Vmovapd or Mnemonic.Vmovaps:
            case Mnemonic.Vmovd or Mnemonic.Vmovddup or Mnemonic.Vmovdqa or Mnemonic.Vmovdqu or Mnemonic.Vmovhlps or Mnemonic.Vmovhpd:
            case Mnemonic.Vmovhps or Mnemonic.Vmovlhps or Mnemonic.Vmovlpd or Mnemonic.Vmovlps or Mnemonic.Vmovmskpd or Mnemonic.Vmovmskps:
            case Mnemonic.Vmovntdq or Mnemonic.Vmovntdqa or Mnemonic.Vmovntpd or Mnemonic.Vmovntps or Mnemonic.Vmovq or Mnemonic.Vmovsd:
            case Mnemonic.Vmovshdup or Mnemonic.Vmovsldup or Mnemonic.Vmovss or Mnemonic.Vmovupd or Mnemonic.Vmovups or Mnemonic.Vmpsadbw:
            case Mnemonic.Vorpd or Mnemonic.Vorps or Mnemonic.Vpabsb or Mnemonic.Vpabsd or Mnemonic.Vpabsw or Mnemonic.Vpackssdw:
            case Mnemonic.Vpacksswb or Mnemonic.Vpackusdw or Mnemonic.Vpackuswb or Mnemonic.Vpaddb or Mnemonic.Vpaddd or Mnemonic.Vpaddq:
            case Mnemonic.Vpaddsb or Mnemonic.Vpaddsw or Mnemonic.Vpaddusb or Mnemonic.Vpaddusw or Mnemonic.Vpaddw or Mnemonic.Vpalignr:
            case Mnemonic.Vpand or Mnemonic.Vpandn or Mnemonic.Vpavgb or Mnemonic.Vpavgw or Mnemonic.Vpblendd or Mnemonic.Vpblendvb:
            case Mnemonic.Vpblendw or Mnemonic.Vpbroadcastb or Mnemonic.Vpbroadcastd or Mnemonic.Vpbroadcastq or Mnemonic.Vpbroadcastw:
            case Mnemonic.Vpclmulqdq or Mnemonic.Vpcmpeqb or Mnemonic.Vpcmpeqd or Mnemonic.Vpcmpeqq or Mnemonic.Vpcmpeqw or Mnemonic.Vpcmpgtb:
            case Mnemonic.Vpcmpgtd or Mnemonic.Vpcmpgtq or Mnemonic.Vpcmpgtw or Mnemonic.Vperm2f128 or Mnemonic.Vperm2i128 or Mnemonic.Vpermd:
            case Mnemonic.Vpermilpd or Mnemonic.Vpermilps or Mnemonic.Vpermpd or Mnemonic.Vpermps or Mnemonic.Vpermq or Mnemonic.Vpextrb:
            case Mnemonic.Vpextrd or Mnemonic.Vpextrq or Mnemonic.Vpextrw or Mnemonic.Vphaddd or Mnemonic.Vphaddsw or Mnemonic.Vphaddw:
            case Mnemonic.Vphminposuw or Mnemonic.Vphsubd or Mnemonic.Vphsubsw or Mnemonic.Vphsubw or Mnemonic.Vpinsrb or Mnemonic.Vpinsrd:
            case Mnemonic.Vpinsrq or Mnemonic.Vpinsrw or Mnemonic.Vpmaddubsw or Mnemonic.Vpmaddwd or Mnemonic.Vpmaxsb or Mnemonic.Vpmaxsd:
            case Mnemonic.Vpmaxsw or Mnemonic.Vpmaxub or Mnemonic.Vpmaxud or Mnemonic.Vpmaxuw or Mnemonic.Vpminsb or Mnemonic.Vpminsd:
            case Mnemonic.Vpminsw or Mnemonic.Vpminub or Mnemonic.Vpminud or Mnemonic.Vpminuw or Mnemonic.Vpmovmskb or Mnemonic.Vpmovsxbd:
            case Mnemonic.Vpmovsxbq or Mnemonic.Vpmovsxbw or Mnemonic.Vpmovsxdq or Mnemonic.Vpmovsxwd or Mnemonic.Vpmovsxwq or Mnemonic.Vpmovzxbd:
            case Mnemonic.Vpmovzxbq or Mnemonic.Vpmovzxbw or Mnemonic.Vpmovzxdq or Mnemonic.Vpmovzxwd or Mnemonic.Vpmovzxwq or Mnemonic.Vpmuldq:
            case Mnemonic.Vpmulhrsw or Mnemonic.Vpmulhuw or Mnemonic.Vpmulhw or Mnemonic.Vpmulld or Mnemonic.Vpmullw or Mnemonic.Vpmuludq:
            case Mnemonic.Vpor or Mnemonic.Vpsadbw or Mnemonic.Vpshufb or Mnemonic.Vpshufd or Mnemonic.Vpshufhw or Mnemonic.Vpshuflw:
            case Mnemonic.Vpsignb or Mnemonic.Vpsignd or Mnemonic.Vpsignw or Mnemonic.Vpslld or Mnemonic.Vpslldq or Mnemonic.Vpsllq:
            case Mnemonic.Vpsllvd or Mnemonic.Vpsllvq or Mnemonic.Vpsllw or Mnemonic.Vpsrad or Mnemonic.Vpsravd or Mnemonic.Vpsraw or Mnemonic.Vpsrld:
            case Mnemonic.Vpsrldq or Mnemonic.Vpsrlq or Mnemonic.Vpsrlvd or Mnemonic.Vpsrlvq or Mnemonic.Vpsrlw or Mnemonic.Vpsubb or Mnemonic.Vpsubd:
            case Mnemonic.Vpsubq or Mnemonic.Vpsubsb or Mnemonic.Vpsubsw or Mnemonic.Vpsubusb or Mnemonic.Vpsubusw or Mnemonic.Vpsubw:
            case Mnemonic.Vpunpckhbw or Mnemonic.Vpunpckhdq or Mnemonic.Vpunpckhqdq or Mnemonic.Vpunpckhwd or Mnemonic.Vpunpcklbw:
            case Mnemonic.Vpunpckldq or Mnemonic.Vpunpcklqdq or Mnemonic.Vpunpcklwd or Mnemonic.Vpxor or Mnemonic.Vshufpd or Mnemonic.Vshufps:
            case Mnemonic.Vunpckhpd or Mnemonic.Vunpckhps or Mnemonic.Vunpcklpd or Mnemonic.Vunpcklps or Mnemonic.Vxorpd or Mnemonic.Vxorps:
                return VexForm.Integer;

            default:
                return VexForm.None;
        }
    }
}
