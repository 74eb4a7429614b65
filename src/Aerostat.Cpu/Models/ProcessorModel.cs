using Aerostat.Processors;
using Aerostat.X86;

namespace Aerostat.Cpu;

/// <summary>Who the processor says it is (CPUID leaf 0): a few instructions differ.</summary>
internal enum Vendor
{
    Intel,
    Amd,
}

/// <summary>What follows from a CPUID table: bits that control registers may hold, and yes-or-no questions that handlers ask.</summary>
internal sealed class ProcessorModel
{
    private const int CachedLeaves = 0x20;
    private readonly CpuidResult[] basic = new CpuidResult[CachedLeaves];
    private readonly CpuidResult[] extended = new CpuidResult[CachedLeaves];
    private readonly CpuidTable table;

    public ProcessorModel(CpuidTable table)
    {
        this.table = table;
        for (uint i = 0; i < CachedLeaves; i++)
        {
            basic[i] = table.Get(i, 0);
            extended[i] = table.Get(0x8000_0000 + i, 0);
        }
        Vendor = basic[0].Ebx == 0x6874_7541 ? Vendor.Amd : Vendor.Intel;
        CpuidResult one = basic[1], seven = basic[7], ext1 = extended[1];
        Signature = one.Eax;
        InitialApicId = one.Ebx >> 24;

        bool Ecx1(int bit) => (one.Ecx >> bit & 1) != 0;
        bool Edx1(int bit) => (one.Edx >> bit & 1) != 0;
        bool Ebx7(int bit) => (seven.Ebx >> bit & 1) != 0;
        bool Ecx7(int bit) => (seven.Ecx >> bit & 1) != 0;
        ulong If(bool present, ulong bits) => present ? bits : 0;

        bool lam = (table.Get(7, 1).Eax >> 26 & 1) != 0;
        Cr3Mask = If(lam, Cr3.LamU48 | Cr3.LamU57);
        Cr4Mask = If(Edx1(1), Cr4.Vme | Cr4.Pvi) | If(Edx1(4), Cr4.Tsd) | If(Edx1(2), Cr4.De) | If(Edx1(3), Cr4.Pse) | If(Edx1(6), Cr4.Pae)
            | If(Edx1(7), Cr4.Mce) | If(Edx1(13), Cr4.Pge) | Cr4.Pce | If(Edx1(24), Cr4.OsFxsr) | If(Edx1(25), Cr4.OsXmmExcpt)
            | If(Ecx7(2), Cr4.Umip) | If(Ecx7(16), Cr4.La57) | If(Ebx7(0), Cr4.FsGsBase) | If(Ecx1(17), Cr4.Pcide) | If(Ecx1(26), Cr4.OsXsave)
            | If(Ebx7(7), Cr4.Smep) | If(Ebx7(20), Cr4.Smap) | If(Ecx7(3), Cr4.Pke) | If(Ecx7(31), Cr4.Pks) | If(lam, Cr4.LamSup);
        HasLongMode = (ext1.Edx >> 29 & 1) != 0;
        EferMask = If((ext1.Edx >> 11 & 1) != 0, Efer.Sce) | If(HasLongMode, Efer.Lme | Efer.Lma) | If((ext1.Edx >> 20 & 1) != 0, Efer.Nxe);
        CpuidResult state = table.Get(0xD, 0);
        Xcr0Mask = state.Eax | ((ulong)state.Edx << 32);
        HasXgetbv1 = (table.Get(0xD, 1).Eax & 4) != 0;
        HasXsaves = (table.Get(0xD, 1).Eax & 8) != 0;
        int bits = (int)(extended[8].Eax & 0xFF);
        PhysicalBits = bits == 0 ? 36 : bits;
        LinearBits = Ecx7(16) ? 57 : 48;
        HasTscAdjust = Ebx7(1);
        HasRdtscp = (ext1.Edx >> 27 & 1) != 0 || Ecx7(22);
        HasSpecCtrl = (seven.Edx >> 26 & 1) != 0;
        HasL1dFlush = (seven.Edx >> 28 & 1) != 0;
        HasArchCapabilities = (seven.Edx >> 29 & 1) != 0;
        // IBRS, STIBP, SSBD, BHI_DIS_S.
        SpecCtrlMask = 1 | If((seven.Edx >> 27 & 1) != 0, 2) | If((seven.Edx >> 31 & 1) != 0, 4) | If((table.Get(7, 2).Edx >> 4 & 1) != 0, 1 << 10);
        HasMtrr = Edx1(12);
        HasPat = Edx1(16);
        HasMce = Edx1(7) || Edx1(14);
        HasSyscall = (ext1.Edx >> 11 & 1) != 0;
        HasMonitor = Ecx1(3);
        HasPks = Ecx7(31);
    }

    public Vendor Vendor { get; }
    public uint Signature { get; }
    public uint InitialApicId { get; }
    /// <summary>Bits above the physical address that CR3 takes in long mode.</summary>
    public ulong Cr3Mask { get; }
    public ulong Cr4Mask { get; }
    public ulong EferMask { get; }
    public ulong Xcr0Mask { get; }
    public int PhysicalBits { get; }
    public int LinearBits { get; }
    public bool HasLongMode { get; }
    public bool HasXgetbv1 { get; }
    public bool HasXsaves { get; }
    public bool HasTscAdjust { get; }
    public bool HasRdtscp { get; }
    public bool HasSpecCtrl { get; }
    public bool HasL1dFlush { get; }
    public bool HasArchCapabilities { get; }

    /// <summary>Bits that IA32_SPEC_CTRL takes.</summary>
    public ulong SpecCtrlMask { get; }

    public bool HasMtrr { get; }
    public bool HasPat { get; }
    public bool HasMce { get; }
    public bool HasSyscall { get; }
    public bool HasMonitor { get; }
    public bool HasPks { get; }

    /// <summary>CPUID without the dynamic bits.</summary>
    public CpuidResult Cpuid(uint leaf, uint subleaf)
    {
        if (subleaf == 0)
        {
            if (leaf < CachedLeaves)
                return basic[leaf];
            if (leaf - 0x8000_0000 < CachedLeaves)
                return extended[leaf - 0x8000_0000];
        }
        return table.Get(leaf, subleaf);
    }

    /// <summary>
    /// IA32_ARCH_CAPABILITIES (Intel SDM vol. 4 table 2-2). Every bit that says "not affected" is set, and each is true: an interpreter
    /// executes one instruction at a time, reads memory only when the architecture says so, and has no predictor that a guest could train.
    /// </summary>
    public ulong ArchCapabilitiesValue =>
        1UL << 0        // RDCL_NO: no rogue data cache load (Meltdown, and with it L1TF)
        | 1UL << 1      // IBRS_ALL: enhanced IBRS; setting IBRS once is enough, so no retpolines
        | 1UL << 3      // SKIP_L1DFL_VMENTRY: nothing to flush before VM entry
        | 1UL << 4      // SSB_NO: no speculative store bypass
        | 1UL << 5      // MDS_NO: no microarchitectural data sampling
        | 1UL << 6      // IF_PSCHANGE_MC_NO: page-size changes during fetch are harmless
        | 1UL << 8      // TAA_NO: no TSX asynchronous abort
        | 1UL << 13     // SBDR_SSDP_NO: no shared-buffer or sideband stale data
        | 1UL << 14     // FBSDP_NO: no fill-buffer stale data
        | 1UL << 15     // PSDP_NO: no primary stale data
        | 1UL << 20     // BHI_NO: no branch history injection
        | 1UL << 24     // PBRSB_NO: no post-barrier return stack buffer predictions
        | 1UL << 26     // GDS_NO: no gather data sampling
        | 1UL << 27     // RFDS_NO: no register file data sampling
        | 1UL << 62;    // ITS_NO: no indirect target selection
}
