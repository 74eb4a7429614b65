using Aerostat.Processors;
using Iced.Intel;

namespace Aerostat.Cpu;

/// <summary>The CPU models that the software processor offers (<c>--cpu NAME</c>).</summary>
public static class CpuModels
{
    private const string NameV2 = "aerostat-v2-1", NameV3 = "aerostat-v3-1";

    /// <summary>Whether this host can run all of aerostat-v3-1: AVX, AVX2, FMA and F16C run as themselves on it.</summary>
    public static bool HostHasV3 { get; } = HostStubs.CanRun(CpuidFeature.AVX) && HostStubs.CanRun(CpuidFeature.AVX2)
        && HostStubs.CanRun(CpuidFeature.FMA) && HostStubs.CanRun(CpuidFeature.F16C);

    /// <summary>The model taken when none is named: aerostat-v3-1 where the host has AVX2, FMA and F16C, else aerostat-v2-1.</summary>
    public static string Default => HostHasV3 ? NameV3 : NameV2;

    // CPUID.1:ECX
    private const uint Sse3 = 1 << 0, Pclmul = 1 << 1, Ssse3 = 1 << 9, Fma = 1 << 12, Avx = 1 << 28, F16C = 1 << 29, Cx16 = 1 << 13, Pcid = 1 << 17, Sse41 = 1 << 19, Sse42 = 1 << 20;
    private const uint X2Apic = 1 << 21, Movbe = 1 << 22, Popcnt = 1 << 23, TscDeadline = 1 << 24, Aes = 1 << 25, Xsave = 1 << 26, Rdrand = 1 << 30;

    // CPUID.1:EDX. Self-snoop lets a guest mix memory types without flushing caches, which this processor does not have.
    private const uint Fpu = 1 << 0, De = 1 << 2, Pse = 1 << 3, Tsc = 1 << 4, Msr = 1 << 5, Pae = 1 << 6, Mce = 1 << 7, Cx8 = 1 << 8, Apic = 1 << 9;
    private const uint Sep = 1 << 11, Mtrr = 1 << 12, Pge = 1 << 13, Mca = 1 << 14, Cmov = 1 << 15, Pat = 1 << 16, Pse36 = 1 << 17, Clflush = 1 << 19;
    private const uint Mmx = 1 << 23, Fxsr = 1 << 24, Sse = 1 << 25, Sse2 = 1 << 26, SelfSnoop = 1 << 27;

    // CPUID.7.0:EBX
    private const uint FsGsBase = 1 << 0, TscAdjust = 1 << 1, Bmi1 = 1 << 3, Avx2 = 1 << 5, Smep = 1 << 7, Bmi2 = 1 << 8, Erms = 1 << 9, Invpcid = 1 << 10;
    private const uint Rdseed = 1 << 18, Adx = 1 << 19, Smap = 1 << 20, ClflushOpt = 1 << 23, Clwb = 1 << 24, Sha = 1 << 29;

    // CPUID.7.0:ECX
    private const uint Umip = 1 << 2, Pku = 1 << 3, La57 = 1 << 16, Rdpid = 1 << 22, Pks = 1u << 31;

    // CPUID.7.0:EDX. SPEC_CTRL and PRED_CMD exist because "enhanced IBRS", which spares a guest its retpolines, is announced through them.
    private const uint Fsrm = 1 << 4, SpecCtrl = 1 << 26, ArchCapabilities = 1 << 29;

    // CPUID.7.1:EAX
    private const uint Lam = 1 << 26;

    // CPUID.7.2:EDX. No MXCSR-dependent timing; and BHI_DIS_S exists in SPEC_CTRL, because kernels that do not take BHI_NO's word for it
    // otherwise run through a loop of branches at each system call.
    private const uint BhiCtrl = 1 << 4, McdtNo = 1 << 5;

    // CPUID.D.1:EAX
    private const uint Xsaveopt = 1 << 0, Xsavec = 1 << 1, Xgetbv1 = 1 << 2, Xsaves = 1 << 3;

    // CPUID.80000001H
    private const uint Lahf = 1 << 0, Lzcnt = 1 << 5, Prefetchw = 1 << 8;
    private const uint Syscall = 1 << 11, Nx = 1 << 20, Gbpages = 1 << 26, Rdtscp = 1 << 27, LongMode = 1 << 29;

    /// <summary>
    /// The x86-64-v2 level and everything newer that is not AVX. Family 6, model 0xAD is on none of Linux's lists of models with a
    /// speculation flaw, and what remains is denied truthfully in IA32_ARCH_CAPABILITIES (see <see cref="ArchCapabilities"/>): an interpreter
    /// does not speculate, so guests need not pay for mitigations.
    /// </summary>
    private static readonly CpuModel V2 = new()
    {
        Name = NameV2,
        Description = "x86-64-v2 with AES, PCLMULQDQ, SHA, BMI1/2, ADX, MOVBE, RDRAND/RDSEED, FSGSBASE, PCID",
        Signature = 0x000A_06D1,
        Leaf1Ecx = Sse3 | Pclmul | Ssse3 | Cx16 | Pcid | Sse41 | Sse42 | X2Apic | Movbe | Popcnt | TscDeadline | Aes | Xsave | Rdrand,
        Leaf1Edx = Fpu | De | Pse | Tsc | Msr | Pae | Mce | Cx8 | Apic | Sep | Mtrr | Pge | Mca | Cmov | Pat | Pse36 | Clflush
            | Mmx | Fxsr | Sse | Sse2 | SelfSnoop,
        Leaf7Ebx = FsGsBase | TscAdjust | Bmi1 | Smep | Bmi2 | Erms | Invpcid | Rdseed | Adx | Smap | ClflushOpt | Clwb | Sha,
        Leaf7Ecx = Umip | Rdpid,
        Leaf7Edx = Fsrm | SpecCtrl | ArchCapabilities,
        Leaf7Sub2Edx = BhiCtrl | McdtNo,
        Extended1Ecx = Lahf | Lzcnt | Prefetchw,
        Extended1Edx = Syscall | Nx | Gbpages | Rdtscp | LongMode,
        Xcr0 = ExtendedState.X87 | ExtendedState.Sse,
        XsaveVariants = Xsaveopt | Xsavec | Xgetbv1 | Xsaves,
    };

    /// <summary>The x86-64-v3 level on top: what v2 has besides its level contains the rest of v3 (BMI1, BMI2, LZCNT, MOVBE).</summary>
    private static readonly CpuModel V3 = V2 with
    {
        Name = NameV3,
        Description = "x86-64-v3: aerostat-v2-1 with AVX, AVX2, FMA and F16C; needs a host with these (the default there, else aerostat-v2-1)",
        Leaf1Ecx = V2.Leaf1Ecx | Avx | F16C | Fma,
        Leaf7Ebx = V2.Leaf7Ebx | Avx2,
        Xcr0 = V2.Xcr0 | ExtendedState.Avx,
    };

    /// <summary>All that the software processor can do. Not versioned: it grows with the program and is not for migration.</summary>
    private static readonly CpuModel Max = (HostHasV3 ? V3 : V2) with
    {
        Name = "max",
        Description = "everything the software processor can do, 5-level paging, protection keys and linear-address masking included; changes between versions",
        Leaf7Ecx = V2.Leaf7Ecx | La57 | Pku | Pks,
        Leaf7Sub1Eax = V2.Leaf7Sub1Eax | Lam,
        Xcr0 = (HostHasV3 ? V3 : V2).Xcr0 | ExtendedState.Pkru,
        LinearBits = 57,
    };

    private static readonly CpuModel[] Models = [V3, V2, Max];

    /// <summary>Names and descriptions, for <c>--cpu help</c>.</summary>
    public static IEnumerable<(string Name, string Description)> All => Models.Select(m => (m.Name, m.Description));

    /// <summary>Whether there is a model of this name.</summary>
    public static bool Exists(string model) => Array.Exists(Models, m => m.Name == model);

    /// <summary>Whether this host can run a model; all but aerostat-v3-1 run anywhere.</summary>
    public static bool RunsOnHost(string model) => model != NameV3 || HostHasV3;

    /// <summary>What CPUID answers on one vCPU.</summary>
    /// <param name="model">A name from <see cref="All"/>.</param>
    /// <param name="index">vCPU number, which is also its APIC ID.</param>
    /// <param name="count">vCPUs of the machine, 1..64.</param>
    /// <param name="personality">none, kvm, vmware or hyperv. Anything but none sets the hypervisor bit; the leaves from 0x40000000 are added by the personality itself.</param>
    /// <exception cref="ArgumentException">Unknown model, one that this host cannot run (<see cref="RunsOnHost"/>), or an index outside the machine.</exception>
    public static CpuidTable CreateCpuid(string model, int index, int count, string personality)
    {
        CpuModel? m = Array.Find(Models, x => x.Name == model);
        if (m is null)
            throw new ArgumentException($"unknown CPU model '{model}'; known models: {string.Join(", ", Models.Select(x => x.Name))}", nameof(model));
        if (!RunsOnHost(model))
            throw new ArgumentException($"CPU model '{model}' needs a host with AVX2, FMA and F16C; {NameV2} is the nearest that runs here", nameof(model));
        ArgumentOutOfRangeException.ThrowIfLessThan(count, 1);
        ArgumentOutOfRangeException.ThrowIfGreaterThan(count, 64);
        ArgumentOutOfRangeException.ThrowIfNegative(index);
        ArgumentOutOfRangeException.ThrowIfGreaterThanOrEqual(index, count);
        return m.Without(MissingOnHost).CreateTable(index, count, hypervisor: personality != "none");
    }

    // Instructions that run as themselves on the host cannot be offered where the host lacks them; everything else is emulated.
    private static readonly (CpuidFeature Feature, uint Leaf1Ecx, uint Leaf7Ebx)[] HostBound =
    [
        (CpuidFeature.SSE3, Sse3, 0), (CpuidFeature.SSSE3, Ssse3, 0), (CpuidFeature.SSE4_1, Sse41, 0), (CpuidFeature.SSE4_2, Sse42, 0),
        (CpuidFeature.AES, Aes, 0), (CpuidFeature.PCLMULQDQ, Pclmul, 0), (CpuidFeature.SHA, 0, Sha),
    ];

    private static readonly (uint Leaf1Ecx, uint Leaf7Ebx) MissingOnHost = HostBound.Where(h => !HostStubs.CanRun(h.Feature))
        .Aggregate((0u, 0u), (sum, h) => (sum.Item1 | h.Leaf1Ecx, sum.Item2 | h.Leaf7Ebx));
}
