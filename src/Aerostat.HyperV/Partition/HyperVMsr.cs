namespace Aerostat.HyperV;

/// <summary>The synthetic model-specific registers (TLFS, appendix B).</summary>
internal static class HyperVMsr
{
    public const uint
        GuestOsId = 0x4000_0000, Hypercall = 0x4000_0001, VpIndex = 0x4000_0002,
        TimeRefCount = 0x4000_0020, ReferenceTsc = 0x4000_0021, TscFrequency = 0x4000_0022, ApicFrequency = 0x4000_0023,
        Eoi = 0x4000_0070, Icr = 0x4000_0071, Tpr = 0x4000_0072, VpAssistPage = 0x4000_0073,
        SControl = 0x4000_0080, SVersion = 0x4000_0081, Siefp = 0x4000_0082, Simp = 0x4000_0083, Eom = 0x4000_0084,
        Sint0 = 0x4000_0090, Sint15 = 0x4000_009F,
        StimerFirst = 0x4000_00B0, StimerLast = 0x4000_00B7,
        CrashP0 = 0x4000_0100, CrashP4 = 0x4000_0104, CrashControl = 0x4000_0105;
}
