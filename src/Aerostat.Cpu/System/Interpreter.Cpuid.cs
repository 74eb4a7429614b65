using Aerostat.Processors;
using Aerostat.X86;

namespace Aerostat.Cpu;

/// <content>CPUID with the bits that follow the state.</content>
internal sealed unsafe partial class Interpreter
{
    /// <summary>Forgets what generated code knows of CPUID: no entry has a leaf that is looked for in its place.</summary>
    private static void ClearCpuidCache(CpuState* s)
    {
        for (uint i = 0; i < CpuState.CpuidCacheEntries; i++)
            s->CpuidCache[i * CpuState.CpuidCacheWords] = i ^ 1;
    }

    /// <summary>CPUID, remembered for generated code unless the answer depends on registers or on the mode.</summary>
    internal CpuidResult AnswerCpuid(CpuState* s, uint leaf, uint subleaf)
    {
        CpuidResult r = ReadCpuid(s, leaf, subleaf);
        if (leaf is 1 or 7 or 0xD or 0x8000_0001)
            return r;
        uint* e = s->CpuidCache + ((leaf & (CpuState.CpuidCacheEntries - 1)) * CpuState.CpuidCacheWords);
        (e[0], e[1], e[2], e[3], e[4], e[5]) = (leaf, subleaf, r.Eax, r.Ebx, r.Ecx, r.Edx);
        return r;
    }

    internal CpuidResult ReadCpuid(CpuState* s, uint leaf, uint subleaf)
    {
        CpuidResult r = Model.Cpuid(leaf, subleaf);
        switch (leaf)
        {
            case 1:
                uint osxsave = (s->Cr4 & Cr4.OsXsave) != 0 ? 1u << 27 : 0;
                uint edx = Handler.LocalApicEnabled ? r.Edx : r.Edx & ~(1u << 9);
                return r with { Ecx = (r.Ecx & ~(1u << 27)) | osxsave, Edx = edx };
            case 7 when subleaf == 0:
                return r with { Ecx = (r.Ecx & ~(1u << 4)) | ((s->Cr4 & Cr4.Pke) != 0 ? 1u << 4 : 0) };
            case 0xD when subleaf == 0:
                return r with { Ebx = ExtendedState.AreaSize(s->Xcr0) };
            case 0xD when subleaf == 1 && (r.Eax & 0xA) != 0:
                return r with { Ebx = ExtendedState.CompactedSize(s->Xcr0) };
            case 0x8000_0001 when Model.Vendor == Vendor.Intel && s->Bitness != 64:
                // SYSCALL does not exist outside 64-bit code there, and says so.
                return r with { Edx = r.Edx & ~(1u << 11) };
            default:
                return r;
        }
    }
}
