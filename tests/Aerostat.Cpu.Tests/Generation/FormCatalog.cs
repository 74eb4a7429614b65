using Iced.Intel;

namespace Aerostat.Cpu.Tests;

/// <summary>
/// Which instruction forms (Iced's codes) the comparison with the host covers: every one that exists in the CPU model and is not on
/// <see cref="Exclusions"/>.
/// </summary>
internal static class FormCatalog
{
    /// <summary>Instruction sets of the model aerostat-v3-1, said independently of the model's data.</summary>
    private static readonly HashSet<CpuidFeature> Model =
    [
        CpuidFeature.INTEL8086, CpuidFeature.INTEL186, CpuidFeature.INTEL286, CpuidFeature.INTEL386, CpuidFeature.INTEL486, CpuidFeature.X64,
        CpuidFeature.FPU, CpuidFeature.FPU287, CpuidFeature.FPU387, CpuidFeature.CMOV, CpuidFeature.CX8, CpuidFeature.CMPXCHG16B,
        CpuidFeature.MULTIBYTENOP, CpuidFeature.PAUSE, CpuidFeature.CPUID, CpuidFeature.TSC, CpuidFeature.MSR, CpuidFeature.SEP,
        CpuidFeature.SYSCALL, CpuidFeature.FXSR, CpuidFeature.MMX, CpuidFeature.SSE, CpuidFeature.SSE2, CpuidFeature.SSE3, CpuidFeature.SSSE3,
        CpuidFeature.SSE4_1, CpuidFeature.SSE4_2, CpuidFeature.AES, CpuidFeature.PCLMULQDQ, CpuidFeature.SHA, CpuidFeature.POPCNT,
        CpuidFeature.LZCNT, CpuidFeature.BMI1, CpuidFeature.BMI2, CpuidFeature.ADX, CpuidFeature.MOVBE, CpuidFeature.RDRAND,
        CpuidFeature.RDSEED, CpuidFeature.XSAVE, CpuidFeature.XSAVEOPT, CpuidFeature.XSAVEC, CpuidFeature.XSAVES, CpuidFeature.FSGSBASE, CpuidFeature.CLFSH, CpuidFeature.CLFLUSHOPT, CpuidFeature.CLWB,
        CpuidFeature.PREFETCHW, CpuidFeature.PREFETCHWT1, CpuidFeature.PREFETCHITI, CpuidFeature.CLDEMOTE, CpuidFeature.CET_IBT, CpuidFeature.SMM,
        CpuidFeature.RDTSCP, CpuidFeature.RDPID, CpuidFeature.INVPCID, CpuidFeature.SMAP, CpuidFeature.RDPMC, CpuidFeature.AVX, CpuidFeature.AVX2, CpuidFeature.FMA, CpuidFeature.F16C,
    ];

    /// <summary>Why a form of the model is not compared with the host; null: it is.</summary>
    private static string? Excluded(Code code, OpCodeInfo info, int bitness)
    {
        if (bitness switch
        {
            64 => info.IntelDecoder64 != info.AmdDecoder64,
            32 => info.IntelDecoder32 != info.AmdDecoder32,
            _ => info.IntelDecoder16 != info.AmdDecoder16,
        })
            return "processors of different makers decode it differently";
        if (code is Code.Reservednop_rm16_r16_0F0D or Code.Reservednop_rm32_r32_0F0D or Code.Reservednop_rm64_r64_0F0D)
            return "processors of different makers decode it differently";
        if (code.IsJmpFar() || code.IsJmpFarIndirect() || code.IsCallFar() || code.IsCallFarIndirect())
            return "far transfer: depends on descriptor tables";
        switch (info.Mnemonic)
        {
            case Mnemonic.Iret or Mnemonic.Iretd or Mnemonic.Iretq or Mnemonic.Retf:
                return "far transfer: depends on descriptor tables";
            case Mnemonic.Cpuid or Mnemonic.Rdtsc or Mnemonic.Rdtscp or Mnemonic.Rdpmc or Mnemonic.Rdrand or Mnemonic.Rdseed or Mnemonic.Rdpid or Mnemonic.Xgetbv:
                return "its result is the machine's own";
            case Mnemonic.Syscall or Mnemonic.Sysenter or Mnemonic.Sysret or Mnemonic.Sysretq or Mnemonic.Sysexit or Mnemonic.Sysexitq or Mnemonic.Int or Mnemonic.Int1:
                return "enters the host's kernel";
            case Mnemonic.Sgdt or Mnemonic.Sidt or Mnemonic.Sldt or Mnemonic.Str or Mnemonic.Smsw:
                return "shows the host's system state, or is refused by UMIP";
            case Mnemonic.Lar or Mnemonic.Lsl or Mnemonic.Verr or Mnemonic.Verw or Mnemonic.Lds or Mnemonic.Les or Mnemonic.Lfs or Mnemonic.Lgs or Mnemonic.Lss:
                return "depends on descriptor tables";
            case Mnemonic.Cli or Mnemonic.Sti:
                return "depends on the host's I/O privilege level";
            case Mnemonic.Xsave or Mnemonic.Xsave64 or Mnemonic.Xsaveopt or Mnemonic.Xsaveopt64 or Mnemonic.Xsavec or Mnemonic.Xsavec64 or Mnemonic.Xrstor or Mnemonic.Xrstor64:
                return "parts of an XSAVE area are the host's own";
            case Mnemonic.Clac or Mnemonic.Stac:
                return "user code that uses it is told apart by host kernels";
        }

        for (int i = 0; i < info.OpCount; i++)
        {
            switch (info.GetOpKind(i))
            {
                case OpCodeOperandKind.seg_reg or OpCodeOperandKind.fs or OpCodeOperandKind.gs or OpCodeOperandKind.ds or OpCodeOperandKind.es or OpCodeOperandKind.ss or OpCodeOperandKind.cs:
                    return "reads or loads a segment register";
            }
        }

        return null;
    }

    /// <summary>Whether the model has the instruction sets of a form.</summary>
    public static bool InModel(Code code)
    {
        foreach (CpuidFeature f in code.CpuidFeatures())
        {
            if (!Model.Contains(f))
                return false;
        }

        return true;
    }

    private static IEnumerable<(Code Code, OpCodeInfo Info)> All(int bitness)
    {
        foreach (Code code in Enum.GetValues<Code>())
        {
            OpCodeInfo info = code.ToOpCode();
            if (info.IsInstruction && (bitness == 64 ? info.Mode64 : bitness == 32 ? info.Mode32 : info.Mode16) && InModel(code)
                && info.Encoding is EncodingKind.Legacy or EncodingKind.VEX && info.DecoderOption == DecoderOptions.None && !info.Fwait)
                yield return (code, info);
        }
    }

    /// <summary>All forms of the model.</summary>
    public static IEnumerable<Code> AllCodes(int bitness) => All(bitness).Select(f => f.Code);

    /// <summary>Forms to compare.</summary>
    public static List<Code> Forms(int bitness) => [.. All(bitness).Where(f => Excluded(f.Code, f.Info, bitness) == null).Select(f => f.Code)];

    /// <summary>Forms of the model that are not compared, each with the reason.</summary>
    public static IEnumerable<(Code Code, string Reason)> Exclusions(int bitness)
    {
        foreach ((Code code, OpCodeInfo info) in All(bitness))
        {
            if (Excluded(code, info, bitness) is { } reason)
                yield return (code, reason);
        }
    }
}
