using System.Runtime.InteropServices;
using System.Runtime.Intrinsics.X86;
using Xunit;

namespace Aerostat.Cpu.Tests;

/// <summary>What the comparison needs of the host.</summary>
internal static class HostRequirements
{
    /// <summary>Skips the test on a host that cannot run every instruction of the model.</summary>
    public static void Check()
    {
        Assert.SkipUnless(RuntimeInformation.ProcessArchitecture == Architecture.X64 && OperatingSystem.IsLinux(), "the comparison runs on x86-64 Linux only");
        Assert.SkipUnless(Sse42.IsSupported && Aes.IsSupported && Pclmulqdq.IsSupported && Bmi1.IsSupported && Bmi2.IsSupported && Lzcnt.IsSupported,
            "the host lacks instructions of the model (SSE4.2, AES, PCLMULQDQ, BMI)");
        Assert.SkipUnless(CpuModels.HostHasV3, "the host lacks AVX2, FMA or F16C");
        (_, int ebx, _, _) = X86Base.CpuId(7, 0);
        Assert.SkipUnless((ebx & (1 << 29 | 1 << 19)) == (1 << 29 | 1 << 19), "the host lacks SHA or ADX");
    }
}
