namespace Aerostat.X86;

/// <summary>Model-specific register numbers (Intel SDM vol. 4; AMD APM vol. 2 appendix A for 0xC000_xxxx).</summary>
public static class Msr
{
#pragma warning disable CS1591 // the names are the manual's
    public const uint Tsc = 0x10, PlatformId = 0x17, ApicBase = 0x1B, FeatureControl = 0x3A, TscAdjust = 0x3B;
    public const uint SpecCtrl = 0x48, PredCmd = 0x49, BiosSignId = 0x8B, MtrrCap = 0xFE, ArchCapabilities = 0x10A;
    public const uint SysenterCs = 0x174, SysenterEsp = 0x175, SysenterEip = 0x176, McgCap = 0x179, McgStatus = 0x17A;
    public const uint MiscEnable = 0x1A0, MtrrPhysBase0 = 0x200, MtrrFix64K = 0x250, Pat = 0x277, MtrrDefType = 0x2FF;
    public const uint Mc0Ctl = 0x400, TscDeadline = 0x6E0, Pkrs = 0x6E1, X2ApicFirst = 0x800, X2ApicLast = 0x8FF, Xss = 0xDA0;
    public const uint Efer = 0xC0000080, Star = 0xC0000081, Lstar = 0xC0000082, Cstar = 0xC0000083, Fmask = 0xC0000084;
    public const uint FsBase = 0xC0000100, GsBase = 0xC0000101, KernelGsBase = 0xC0000102, TscAux = 0xC0000103;
#pragma warning restore CS1591
}
