using Aerostat.Processors;
using Iced.Intel;

namespace Aerostat.Cpu;

/// <summary>Decides which instructions exist on a CPU model: one that is not in the model raises #UD.</summary>
internal sealed class FeatureGate
{
    // By Iced's Code: 0 not looked at yet, 1 present, 2 absent.
    private readonly byte[] codes = new byte[InstructionForms.Count];
    private readonly CpuidTable table;

    public FeatureGate(CpuidTable table) => this.table = table;

    /// <summary>Whether the model has this instruction.</summary>
    public bool IsSupported(in Instruction instruction)
    {
        ref byte known = ref codes[(int)instruction.Code];
        if (known == 0)
            known = (byte)(Decide(instruction) ? 1 : 2);
        return known == 1;
    }

    private bool Decide(in Instruction instruction)
    {
        switch (instruction.Mnemonic)
        {
            // Encodings that older processors execute as something else rather than refuse: NOPs, WBINVD with an ignored prefix, and the
            // hypercalls, which exist if the machine answers them.
            case Mnemonic.Endbr32 or Mnemonic.Endbr64 or Mnemonic.Rdsspd or Mnemonic.Rdsspq or Mnemonic.Wbnoinvd:
            case Mnemonic.Vmcall or Mnemonic.Vmmcall:
                return true;
            default:
                break;
        }
        foreach (CpuidFeature f in instruction.CpuidFeatures)
            if (!Has(f))
                return false;
        return true;
    }

    private bool Ecx1(int bit) => (table.Get(1, 0).Ecx >> bit & 1) != 0;
    private bool Edx1(int bit) => (table.Get(1, 0).Edx >> bit & 1) != 0;
    private bool Ebx7(int bit) => (table.Get(7, 0).Ebx >> bit & 1) != 0;
    private bool Ecx7(int bit) => (table.Get(7, 0).Ecx >> bit & 1) != 0;
    private bool Edx7(int bit) => (table.Get(7, 0).Edx >> bit & 1) != 0;
    private bool Eax71(int bit) => (table.Get(7, 1).Eax >> bit & 1) != 0;
    private bool EcxX(int bit) => (table.Get(0x8000_0001, 0).Ecx >> bit & 1) != 0;
    private bool EdxX(int bit) => (table.Get(0x8000_0001, 0).Edx >> bit & 1) != 0;

    private bool Has(CpuidFeature f) => f switch
    {
        CpuidFeature.INTEL8086 or CpuidFeature.INTEL186 or CpuidFeature.INTEL286 or CpuidFeature.INTEL386 or CpuidFeature.INTEL486 => true,
        CpuidFeature.CPUID or CpuidFeature.MULTIBYTENOP or CpuidFeature.PAUSE or CpuidFeature.SMM or CpuidFeature.RDPMC => true,
        // Hints whose encodings are NOPs on every other processor.
        CpuidFeature.CLDEMOTE or CpuidFeature.PREFETCHW or CpuidFeature.PREFETCHWT1 or CpuidFeature.PREFETCHITI or CpuidFeature.CET_IBT => true,
        CpuidFeature.X64 => EdxX(29),
        CpuidFeature.FPU or CpuidFeature.FPU287 or CpuidFeature.FPU387 => Edx1(0),
        CpuidFeature.TSC => Edx1(4),
        CpuidFeature.MSR => Edx1(5),
        CpuidFeature.CX8 => Edx1(8),
        CpuidFeature.SEP => Edx1(11),
        CpuidFeature.CMOV => Edx1(15),
        CpuidFeature.CLFSH => Edx1(19),
        CpuidFeature.MMX => Edx1(23),
        CpuidFeature.FXSR => Edx1(24),
        CpuidFeature.SSE => Edx1(25),
        CpuidFeature.SSE2 => Edx1(26),
        CpuidFeature.SSE3 => Ecx1(0),
        CpuidFeature.PCLMULQDQ => Ecx1(1),
        CpuidFeature.MONITOR => Ecx1(3),
        CpuidFeature.SSSE3 => Ecx1(9),
        CpuidFeature.FMA => Ecx1(12),
        CpuidFeature.CMPXCHG16B => Ecx1(13),
        CpuidFeature.SSE4_1 => Ecx1(19),
        CpuidFeature.SSE4_2 => Ecx1(20),
        CpuidFeature.MOVBE => Ecx1(22),
        CpuidFeature.POPCNT => Ecx1(23),
        CpuidFeature.AES => Ecx1(25),
        CpuidFeature.XSAVE => Ecx1(26),
        CpuidFeature.AVX => Ecx1(28),
        CpuidFeature.F16C => Ecx1(29),
        CpuidFeature.RDRAND => Ecx1(30),
        CpuidFeature.FSGSBASE => Ebx7(0),
        CpuidFeature.BMI1 => Ebx7(3),
        CpuidFeature.AVX2 => Ebx7(5),
        CpuidFeature.BMI2 => Ebx7(8),
        CpuidFeature.INVPCID => Ebx7(10),
        CpuidFeature.RDSEED => Ebx7(18),
        CpuidFeature.ADX => Ebx7(19),
        CpuidFeature.SMAP => Ebx7(20),
        CpuidFeature.CLFLUSHOPT => Ebx7(23),
        CpuidFeature.CLWB => Ebx7(24),
        CpuidFeature.SHA => Ebx7(29),
        CpuidFeature.PKU => Ecx7(3),
        CpuidFeature.WAITPKG => Ecx7(5),
        CpuidFeature.GFNI => Ecx7(8),
        CpuidFeature.VAES => Ecx7(9),
        CpuidFeature.VPCLMULQDQ => Ecx7(10),
        CpuidFeature.RDPID => Ecx7(22),
        CpuidFeature.MOVDIRI => Ecx7(27),
        CpuidFeature.MOVDIR64B => Ecx7(28),
        CpuidFeature.SERIALIZE => Edx7(14),
        CpuidFeature.AVX_VNNI => Eax71(4),
        CpuidFeature.LKGS => Eax71(18),
        CpuidFeature.XSAVEOPT => (table.Get(0xD, 1).Eax & 1) != 0,
        CpuidFeature.XSAVEC => (table.Get(0xD, 1).Eax & 2) != 0,
        CpuidFeature.XSAVES => (table.Get(0xD, 1).Eax & 8) != 0,
        CpuidFeature.LZCNT => EcxX(5),
        CpuidFeature.SSE4A => EcxX(6),
        CpuidFeature.SYSCALL => EdxX(11),
        CpuidFeature.RDTSCP => EdxX(27),
        CpuidFeature.WBNOINVD => (table.Get(0x8000_0008, 0).Ebx >> 9 & 1) != 0,
        CpuidFeature.CLZERO => (table.Get(0x8000_0008, 0).Ebx & 1) != 0,
        _ => false,
    };
}
