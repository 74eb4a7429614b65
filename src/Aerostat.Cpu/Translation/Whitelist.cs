using Iced.Intel;

namespace Aerostat.Cpu;

/// <summary>How an instruction is translated.</summary>
internal enum Treatment : byte
{
    /// <summary>Steps in the interpreter. The default: nothing is re-encoded that is not listed here.</summary>
    Interpret = 0,
    /// <summary>Re-encoded as itself with its operands in host registers and, at most, one explicit memory operand.</summary>
    Integer,
    /// <summary>As <see cref="Integer"/>, with XMM operands: only where the guest's XMM registers are loaded.</summary>
    Vector,
    /// <summary>Nothing to do (NOP, ENDBR, PREFETCH).</summary>
    Nothing,
    Lea,
    Push,
    Pop,
    Leave,
    Divide,
    Branch,
    ConditionalBranch,
    IndirectBranch,
    Call,
    IndirectCall,
    Return,
    /// <summary>CLI and STI of supervisor code, CLD.</summary>
    InterruptFlag,
    PushFlags,
    /// <summary>BT and its relatives on memory with the bit number in a register.</summary>
    BitString,
    /// <summary>MOV from a segment register to a general one.</summary>
    ReadSegment,
    SwapGs,
    /// <summary>STAC and CLAC without CR4.SMAP, where they are about a flag only.</summary>
    AccessFlag,
    /// <summary>STAC and CLAC where they bring another TLB set into force; ends the block.</summary>
    AccessSwitch,
    /// <summary>SYSCALL of user code.</summary>
    SystemCall,
    /// <summary>SYSRET with 64-bit operands.</summary>
    SystemReturn,
    /// <summary>MOV from a control register.</summary>
    ReadControl,
    /// <summary>CPUID: from what it has answered before.</summary>
    Cpuid,
    /// <summary>REP MOVS and REP STOS with 64-bit addresses and no segment base.</summary>
    String,
}

/// <summary>The instructions that are translated, by Iced's code.</summary>
internal static class Whitelist
{
    // Flags, registers and at most one explicit memory operand; implicit operands only in RAX, RCX, RDX, RBX, which keep their places.
    private static readonly Mnemonic[] Integers =
    [
        Mnemonic.Mov, Mnemonic.Movzx, Mnemonic.Movsx, Mnemonic.Movsxd, Mnemonic.Movbe, Mnemonic.Bswap, Mnemonic.Xchg, Mnemonic.Xadd,
        Mnemonic.Cmpxchg, Mnemonic.Cmpxchg8b, Mnemonic.Cmpxchg16b,
        Mnemonic.Add, Mnemonic.Or, Mnemonic.Adc, Mnemonic.Sbb, Mnemonic.And, Mnemonic.Sub, Mnemonic.Xor, Mnemonic.Cmp, Mnemonic.Test,
        Mnemonic.Inc, Mnemonic.Dec, Mnemonic.Neg, Mnemonic.Not, Mnemonic.Mul, Mnemonic.Imul,
        Mnemonic.Rol, Mnemonic.Ror, Mnemonic.Rcl, Mnemonic.Rcr, Mnemonic.Shl, Mnemonic.Sal, Mnemonic.Shr, Mnemonic.Sar, Mnemonic.Shld, Mnemonic.Shrd,
        Mnemonic.Cbw, Mnemonic.Cwde, Mnemonic.Cdqe, Mnemonic.Cwd, Mnemonic.Cdq, Mnemonic.Cqo,
        Mnemonic.Seto, Mnemonic.Setno, Mnemonic.Setb, Mnemonic.Setae, Mnemonic.Sete, Mnemonic.Setne, Mnemonic.Setbe, Mnemonic.Seta,
        Mnemonic.Sets, Mnemonic.Setns, Mnemonic.Setp, Mnemonic.Setnp, Mnemonic.Setl, Mnemonic.Setge, Mnemonic.Setle, Mnemonic.Setg,
        Mnemonic.Cmovo, Mnemonic.Cmovno, Mnemonic.Cmovb, Mnemonic.Cmovae, Mnemonic.Cmove, Mnemonic.Cmovne, Mnemonic.Cmovbe, Mnemonic.Cmova,
        Mnemonic.Cmovs, Mnemonic.Cmovns, Mnemonic.Cmovp, Mnemonic.Cmovnp, Mnemonic.Cmovl, Mnemonic.Cmovge, Mnemonic.Cmovle, Mnemonic.Cmovg,
        Mnemonic.Bsf, Mnemonic.Bsr, Mnemonic.Tzcnt, Mnemonic.Lzcnt, Mnemonic.Popcnt, Mnemonic.Bt, Mnemonic.Bts, Mnemonic.Btr, Mnemonic.Btc,
        Mnemonic.Andn, Mnemonic.Bextr, Mnemonic.Blsi, Mnemonic.Blsmsk, Mnemonic.Blsr, Mnemonic.Bzhi, Mnemonic.Mulx, Mnemonic.Pdep, Mnemonic.Pext,
        Mnemonic.Rorx, Mnemonic.Sarx, Mnemonic.Shlx, Mnemonic.Shrx, Mnemonic.Adcx, Mnemonic.Adox, Mnemonic.Crc32,
        Mnemonic.Lahf, Mnemonic.Sahf, Mnemonic.Clc, Mnemonic.Stc, Mnemonic.Cmc, Mnemonic.Lfence, Mnemonic.Sfence, Mnemonic.Mfence,
    ];

    private static readonly Mnemonic[] Vectors =
    [
        Mnemonic.Movups, Mnemonic.Movupd, Mnemonic.Movss, Mnemonic.Movsd, Mnemonic.Movaps, Mnemonic.Movapd, Mnemonic.Movdqa, Mnemonic.Movdqu,
        Mnemonic.Movlps, Mnemonic.Movlpd, Mnemonic.Movhps, Mnemonic.Movhpd, Mnemonic.Movhlps, Mnemonic.Movlhps, Mnemonic.Movd, Mnemonic.Movq,
        Mnemonic.Movntps, Mnemonic.Movntpd, Mnemonic.Movntdq, Mnemonic.Movntdqa, Mnemonic.Movnti, Mnemonic.Lddqu, Mnemonic.Movmskps, Mnemonic.Movmskpd,
        Mnemonic.Pmovmskb, Mnemonic.Movddup, Mnemonic.Movsldup, Mnemonic.Movshdup,
        Mnemonic.Addps, Mnemonic.Addpd, Mnemonic.Addss, Mnemonic.Addsd, Mnemonic.Subps, Mnemonic.Subpd, Mnemonic.Subss, Mnemonic.Subsd,
        Mnemonic.Mulps, Mnemonic.Mulpd, Mnemonic.Mulss, Mnemonic.Mulsd, Mnemonic.Divps, Mnemonic.Divpd, Mnemonic.Divss, Mnemonic.Divsd,
        Mnemonic.Sqrtps, Mnemonic.Sqrtpd, Mnemonic.Sqrtss, Mnemonic.Sqrtsd, Mnemonic.Rcpps, Mnemonic.Rcpss, Mnemonic.Rsqrtps, Mnemonic.Rsqrtss,
        Mnemonic.Minps, Mnemonic.Minpd, Mnemonic.Minss, Mnemonic.Minsd, Mnemonic.Maxps, Mnemonic.Maxpd, Mnemonic.Maxss, Mnemonic.Maxsd,
        Mnemonic.Addsubps, Mnemonic.Addsubpd, Mnemonic.Haddps, Mnemonic.Haddpd, Mnemonic.Hsubps, Mnemonic.Hsubpd,
        Mnemonic.Cmpps, Mnemonic.Cmppd, Mnemonic.Cmpss, Mnemonic.Cmpsd, Mnemonic.Ucomiss, Mnemonic.Ucomisd, Mnemonic.Comiss, Mnemonic.Comisd,
        Mnemonic.Andps, Mnemonic.Andpd, Mnemonic.Andnps, Mnemonic.Andnpd, Mnemonic.Orps, Mnemonic.Orpd, Mnemonic.Xorps, Mnemonic.Xorpd,
        Mnemonic.Shufps, Mnemonic.Shufpd, Mnemonic.Unpcklps, Mnemonic.Unpcklpd, Mnemonic.Unpckhps, Mnemonic.Unpckhpd,
        Mnemonic.Cvtsi2ss, Mnemonic.Cvtsi2sd, Mnemonic.Cvtss2si, Mnemonic.Cvtsd2si, Mnemonic.Cvttss2si, Mnemonic.Cvttsd2si,
        Mnemonic.Cvtps2pd, Mnemonic.Cvtpd2ps, Mnemonic.Cvtss2sd, Mnemonic.Cvtsd2ss, Mnemonic.Cvtdq2ps, Mnemonic.Cvtps2dq, Mnemonic.Cvttps2dq,
        Mnemonic.Cvtdq2pd, Mnemonic.Cvtpd2dq, Mnemonic.Cvttpd2dq,
        Mnemonic.Punpcklbw, Mnemonic.Punpcklwd, Mnemonic.Punpckldq, Mnemonic.Punpcklqdq, Mnemonic.Punpckhbw, Mnemonic.Punpckhwd, Mnemonic.Punpckhdq,
        Mnemonic.Punpckhqdq, Mnemonic.Packsswb, Mnemonic.Packssdw, Mnemonic.Packuswb, Mnemonic.Packusdw,
        Mnemonic.Pcmpeqb, Mnemonic.Pcmpeqw, Mnemonic.Pcmpeqd, Mnemonic.Pcmpeqq, Mnemonic.Pcmpgtb, Mnemonic.Pcmpgtw, Mnemonic.Pcmpgtd, Mnemonic.Pcmpgtq,
        Mnemonic.Pshufd, Mnemonic.Pshufhw, Mnemonic.Pshuflw, Mnemonic.Pshufb, Mnemonic.Pinsrw, Mnemonic.Pextrw, Mnemonic.Pinsrb, Mnemonic.Pinsrd,
        Mnemonic.Pinsrq, Mnemonic.Pextrb, Mnemonic.Pextrd, Mnemonic.Pextrq, Mnemonic.Insertps, Mnemonic.Extractps,
        Mnemonic.Psllw, Mnemonic.Pslld, Mnemonic.Psllq, Mnemonic.Pslldq, Mnemonic.Psrlw, Mnemonic.Psrld, Mnemonic.Psrlq, Mnemonic.Psrldq,
        Mnemonic.Psraw, Mnemonic.Psrad, Mnemonic.Pand, Mnemonic.Pandn, Mnemonic.Por, Mnemonic.Pxor,
        Mnemonic.Paddb, Mnemonic.Paddw, Mnemonic.Paddd, Mnemonic.Paddq, Mnemonic.Paddsb, Mnemonic.Paddsw, Mnemonic.Paddusb, Mnemonic.Paddusw,
        Mnemonic.Psubb, Mnemonic.Psubw, Mnemonic.Psubd, Mnemonic.Psubq, Mnemonic.Psubsb, Mnemonic.Psubsw, Mnemonic.Psubusb, Mnemonic.Psubusw,
        Mnemonic.Pmullw, Mnemonic.Pmulhw, Mnemonic.Pmulhuw, Mnemonic.Pmuludq, Mnemonic.Pmuldq, Mnemonic.Pmulld, Mnemonic.Pmulhrsw,
        Mnemonic.Pmaddwd, Mnemonic.Pmaddubsw, Mnemonic.Psadbw, Mnemonic.Mpsadbw, Mnemonic.Pavgb, Mnemonic.Pavgw,
        Mnemonic.Pminub, Mnemonic.Pminsw, Mnemonic.Pminsb, Mnemonic.Pminuw, Mnemonic.Pminsd, Mnemonic.Pminud,
        Mnemonic.Pmaxub, Mnemonic.Pmaxsw, Mnemonic.Pmaxsb, Mnemonic.Pmaxuw, Mnemonic.Pmaxsd, Mnemonic.Pmaxud,
        Mnemonic.Pabsb, Mnemonic.Pabsw, Mnemonic.Pabsd, Mnemonic.Psignb, Mnemonic.Psignw, Mnemonic.Psignd, Mnemonic.Palignr,
        Mnemonic.Phaddw, Mnemonic.Phaddd, Mnemonic.Phaddsw, Mnemonic.Phsubw, Mnemonic.Phsubd, Mnemonic.Phsubsw, Mnemonic.Phminposuw,
        Mnemonic.Pmovsxbw, Mnemonic.Pmovsxbd, Mnemonic.Pmovsxbq, Mnemonic.Pmovsxwd, Mnemonic.Pmovsxwq, Mnemonic.Pmovsxdq,
        Mnemonic.Pmovzxbw, Mnemonic.Pmovzxbd, Mnemonic.Pmovzxbq, Mnemonic.Pmovzxwd, Mnemonic.Pmovzxwq, Mnemonic.Pmovzxdq,
        Mnemonic.Blendps, Mnemonic.Blendpd, Mnemonic.Pblendw, Mnemonic.Blendvps, Mnemonic.Blendvpd, Mnemonic.Pblendvb,
        Mnemonic.Roundps, Mnemonic.Roundpd, Mnemonic.Roundss, Mnemonic.Roundsd, Mnemonic.Dpps, Mnemonic.Dppd, Mnemonic.Ptest,
        Mnemonic.Pcmpestri, Mnemonic.Pcmpestri64, Mnemonic.Pcmpestrm, Mnemonic.Pcmpestrm64, Mnemonic.Pcmpistri, Mnemonic.Pcmpistrm, Mnemonic.Pclmulqdq,
        Mnemonic.Aesenc, Mnemonic.Aesenclast, Mnemonic.Aesdec, Mnemonic.Aesdeclast, Mnemonic.Aesimc, Mnemonic.Aeskeygenassist,
        Mnemonic.Sha1rnds4, Mnemonic.Sha1nexte, Mnemonic.Sha1msg1, Mnemonic.Sha1msg2, Mnemonic.Sha256rnds2, Mnemonic.Sha256msg1, Mnemonic.Sha256msg2,
    ];

    private static readonly Mnemonic[] Ignored =
    [
        Mnemonic.Nop, Mnemonic.Endbr64, Mnemonic.Prefetcht0, Mnemonic.Prefetcht1, Mnemonic.Prefetcht2, Mnemonic.Prefetchnta, Mnemonic.Prefetchw,
        Mnemonic.Prefetch,
    ];

    // Segment, control and debug registers, and addresses without a base register field: moves that only look like the others.
    private static readonly Code[] OtherMoves =
    [
        Code.Mov_rm16_Sreg, Code.Mov_Sreg_rm16, Code.Mov_Sreg_r32m16, Code.Mov_Sreg_r64m16,
        Code.Mov_AL_moffs8, Code.Mov_AX_moffs16, Code.Mov_EAX_moffs32, Code.Mov_RAX_moffs64,
        Code.Mov_moffs8_AL, Code.Mov_moffs16_AX, Code.Mov_moffs32_EAX, Code.Mov_moffs64_RAX,
        Code.Mov_r32_cr, Code.Mov_cr_r32, Code.Mov_cr_r64, Code.Mov_r32_dr, Code.Mov_r64_dr, Code.Mov_dr_r32, Code.Mov_dr_r64, Code.Mov_r32_tr, Code.Mov_tr_r32,
    ];

    private static readonly Treatment[] ByCode = Build();

    /// <summary>What to do with an instruction of 64-bit code, as far as its form is concerned.</summary>
    public static Treatment Of(in Instruction i)
    {
        Treatment t = ByCode[(int)i.Code];
        if (t == Treatment.Integer && IsBitString(i))
            return Treatment.BitString;
        if (t == Treatment.ReadSegment && i.Op0Kind != OpKind.Register)
            return Treatment.Interpret;
        if (t == Treatment.String && !IsPlainString(i))
            return Treatment.Interpret;
        return t is Treatment.Integer or Treatment.Vector && !HasPlainOperands(i) ? Treatment.Interpret : t;
    }

    private static bool IsBitString(in Instruction i) => i.Op0Kind == OpKind.Memory && i.OpCount == 2 && i.Op1Kind == OpKind.Register
        && i.Mnemonic is Mnemonic.Bt or Mnemonic.Bts or Mnemonic.Btr or Mnemonic.Btc && i.MemorySize.GetSize() is 4 or 8;

    private static bool IsPlainString(in Instruction i) => i.HasRepPrefix && i.Op0Kind == OpKind.MemoryESRDI
        && (i.Op1Kind == OpKind.Register || (i.Op1Kind == OpKind.MemorySegRSI && i.MemorySegment is not (Register.FS or Register.GS)));

    /// <summary>Whether a vector instruction's memory operand of this size has to be aligned to it.</summary>
    public static bool MustBeAligned(in Instruction i, int size) =>
        i.Encoding == EncodingKind.VEX ? VexBinder.IsAligned(i.Mnemonic) : size == 16 && !AllowsUnaligned(i.Mnemonic);

    private static bool AllowsUnaligned(Mnemonic m) => m is Mnemonic.Movups or Mnemonic.Movupd or Mnemonic.Movdqu or Mnemonic.Lddqu
        or Mnemonic.Pcmpestri or Mnemonic.Pcmpestri64 or Mnemonic.Pcmpestrm or Mnemonic.Pcmpestrm64 or Mnemonic.Pcmpistri or Mnemonic.Pcmpistrm;

    // What the interpreter runs in a stub, and a few that it does itself. Masked moves and gathers, whose elements have addresses of their own, are not here,
    // nor is VLDMXCSR.
    private static bool IsPlainVex(Mnemonic m) => VexForms.Classify(m) != VexForm.None || m is Mnemonic.Vzeroupper or Mnemonic.Vzeroall
        or Mnemonic.Vpcmpestri or Mnemonic.Vpcmpestri64 or Mnemonic.Vpcmpestrm or Mnemonic.Vpcmpestrm64 or Mnemonic.Vpcmpistri or Mnemonic.Vpcmpistrm;

    private static Treatment[] Build()
    {
        var table = new Treatment[InstructionForms.Count];
        for (Code code = 0; code < (Code)InstructionForms.Count; code++)
        {
            Mnemonic m = code.Mnemonic();
            EncodingKind encoding = code.Encoding();
            if (encoding is EncodingKind.Legacy or EncodingKind.VEX && Array.IndexOf(Integers, m) >= 0)
                table[(int)code] = Treatment.Integer;
            else if (encoding == EncodingKind.Legacy && Array.IndexOf(Vectors, m) >= 0)
                table[(int)code] = Treatment.Vector;
            else if (encoding == EncodingKind.VEX && IsPlainVex(m))
                table[(int)code] = Treatment.Vector;
            else if (encoding == EncodingKind.Legacy && Array.IndexOf(Ignored, m) >= 0)
                table[(int)code] = Treatment.Nothing;
            else if (code.IsJccShortOrNear())
                table[(int)code] = Treatment.ConditionalBranch;
        }
        table[(int)Code.Lea_r32_m] = table[(int)Code.Lea_r64_m] = Treatment.Lea;
        table[(int)Code.Push_r64] = table[(int)Code.Push_rm64] = table[(int)Code.Pushq_imm8] = table[(int)Code.Pushq_imm32] = Treatment.Push;
        table[(int)Code.Pop_r64] = Treatment.Pop;
        table[(int)Code.Leaveq] = Treatment.Leave;
        table[(int)Code.Div_rm32] = table[(int)Code.Div_rm64] = table[(int)Code.Idiv_rm32] = table[(int)Code.Idiv_rm64] = Treatment.Divide;
        table[(int)Code.Jmp_rel8_64] = table[(int)Code.Jmp_rel32_64] = Treatment.Branch;
        table[(int)Code.Jmp_rm64] = Treatment.IndirectBranch;
        table[(int)Code.Call_rel32_64] = Treatment.Call;
        table[(int)Code.Call_rm64] = Treatment.IndirectCall;
        table[(int)Code.Retnq] = table[(int)Code.Retnq_imm16] = Treatment.Return;
        table[(int)Code.Cli] = table[(int)Code.Sti] = table[(int)Code.Cld] = Treatment.InterruptFlag;
        table[(int)Code.Swapgs] = Treatment.SwapGs;
        table[(int)Code.Pushfq] = Treatment.PushFlags;
        foreach (Code code in OtherMoves)
            table[(int)code] = Treatment.Interpret;
        table[(int)Code.Mov_r64_cr] = Treatment.ReadControl;
        table[(int)Code.Stac] = table[(int)Code.Clac] = Treatment.AccessFlag;
        table[(int)Code.Cpuid] = Treatment.Cpuid;
        table[(int)Code.Stosb_m8_AL] = table[(int)Code.Stosw_m16_AX] = table[(int)Code.Stosd_m32_EAX] = table[(int)Code.Stosq_m64_RAX] = Treatment.String;
        table[(int)Code.Movsb_m8_m8] = table[(int)Code.Movsw_m16_m16] = table[(int)Code.Movsd_m32_m32] = table[(int)Code.Movsq_m64_m64] = Treatment.String;
        table[(int)Code.Syscall] = Treatment.SystemCall;
        table[(int)Code.Sysretq] = Treatment.SystemReturn;
        table[(int)Code.Mov_r32m16_Sreg] = table[(int)Code.Mov_r64m16_Sreg] = Treatment.ReadSegment;
        return table;
    }

    private static bool HasPlainOperands(in Instruction i)
    {
        bool bitString = i.Mnemonic is Mnemonic.Bt or Mnemonic.Bts or Mnemonic.Btr or Mnemonic.Btc && i.Op1Kind == OpKind.Register;
        for (int k = 0; k < i.OpCount; k++)
        {
            switch (i.GetOpKind(k))
            {
                case OpKind.Register:
                    Register r = i.GetOpRegister(k);
                    if (!r.IsGPR() && !r.IsXMM() && !r.IsYMM())
                        return false;
                    break;
                // A bit number in a register reaches beyond the operand.
                case OpKind.Memory when !bitString && i.MemoryBase != Register.EIP && i.MemorySize.GetSize() is 1 or 2 or 4 or 8 or 16 or 32:
                    break;
                case OpKind.Immediate8 or OpKind.Immediate16 or OpKind.Immediate32 or OpKind.Immediate64:
                case OpKind.Immediate8to16 or OpKind.Immediate8to32 or OpKind.Immediate8to64 or OpKind.Immediate32to64:
                    break;
                default:
                    return false;
            }
        }
        return true;
    }
}
