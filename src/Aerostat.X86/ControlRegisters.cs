namespace Aerostat.X86;

/// <summary>Bits of CR0 (Intel SDM vol. 3 section 2.5).</summary>
public static class Cr0
{
#pragma warning disable CS1591 // the names are the manual's
    public const ulong Pe = 1 << 0, Mp = 1 << 1, Em = 1 << 2, Ts = 1 << 3, Et = 1 << 4, Ne = 1 << 5;
    public const ulong Wp = 1 << 16, Am = 1 << 18, Nw = 1 << 29, Cd = 1 << 30, Pg = 1UL << 31;
#pragma warning restore CS1591
}

/// <summary>Bits of CR3 besides the address of the top table (Intel SDM vol. 3 sections 2.5 and 4.4.1).</summary>
public static class Cr3
{
    /// <summary>Linear-address masking of user pointers: from bit 57 and from bit 48 on.</summary>
    public const ulong LamU57 = 1UL << 61, LamU48 = 1UL << 62;
}

/// <summary>Bits of CR4 (Intel SDM vol. 3 section 2.5).</summary>
public static class Cr4
{
#pragma warning disable CS1591 // the names are the manual's
    public const ulong Vme = 1 << 0, Pvi = 1 << 1, Tsd = 1 << 2, De = 1 << 3, Pse = 1 << 4, Pae = 1 << 5, Mce = 1 << 6;
    public const ulong Pge = 1 << 7, Pce = 1 << 8, OsFxsr = 1 << 9, OsXmmExcpt = 1 << 10, Umip = 1 << 11, La57 = 1 << 12;
    public const ulong Vmxe = 1 << 13, Smxe = 1 << 14, FsGsBase = 1 << 16, Pcide = 1 << 17, OsXsave = 1 << 18;
    public const ulong Smep = 1 << 20, Smap = 1 << 21, Pke = 1 << 22, Cet = 1 << 23, Pks = 1 << 24, LamSup = 1 << 28;
#pragma warning restore CS1591
}

/// <summary>Bits of IA32_EFER (Intel SDM vol. 3 section 2.2.1).</summary>
public static class Efer
{
#pragma warning disable CS1591 // the names are the manual's
    public const ulong Sce = 1 << 0, Lme = 1 << 8, Lma = 1 << 10, Nxe = 1 << 11;
#pragma warning restore CS1591
}

/// <summary>Bits of a page-fault error code (Intel SDM vol. 3 section 5.7).</summary>
public static class PageFaultError
{
#pragma warning disable CS1591 // the names are the manual's
    public const uint Present = 1, Write = 2, User = 4, Reserved = 8, Fetch = 16, ProtectionKey = 32;
#pragma warning restore CS1591
}

/// <summary>Bits of a page-table entry (Intel SDM vol. 3 section 5.5).</summary>
public static class PageTableEntry
{
#pragma warning disable CS1591 // the names are the manual's
    public const ulong P = 1, W = 2, U = 4, Pwt = 8, Pcd = 16, A = 32, D = 64, Ps = 128, G = 256, Nx = 1UL << 63;
#pragma warning restore CS1591
}
