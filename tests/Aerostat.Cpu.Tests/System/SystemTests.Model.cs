using Aerostat.Processors;
using Aerostat.X86;
using Iced.Intel;
using Xunit;
using static Iced.Intel.AssemblerRegisters;

namespace Aerostat.Cpu.Tests;

/// <summary>Model-specific registers, CPUID, CPU models and the state as data.</summary>
public class SystemTestsModel : ProcessorTests
{
    private static SystemGuest WriteMsr(SystemGuest g, uint index, ulong value) => g.Run(a =>
    {
        a.mov(ecx, (int)index);
        a.mov(eax, (int)(uint)value);
        a.mov(edx, (int)(value >> 32));
        a.wrmsr();
        a.rdmsr();
    });

    [Theory]
    [InlineData(Msr.Star, 0x1234_5678_9ABC_DEF0UL)]
    [InlineData(Msr.Lstar, 0xFFFF_8000_0000_0000UL)]
    [InlineData(Msr.Fmask, 0x4700UL)]
    [InlineData(Msr.KernelGsBase, 0x7FFF_FFFF_FFFFUL)]
    [InlineData(Msr.FsBase, 0x1000UL)]
    [InlineData(Msr.SysenterEip, 0x2000UL)]
    [InlineData(Msr.Pat, 0x0000_0105_0607_0406UL)]
    [InlineData(Msr.TscAux, 7UL)]
    [InlineData(Msr.MtrrDefType, 0xC06UL)]
    [InlineData(Msr.MtrrPhysBase0, 0x8000_0006UL)]
    [InlineData(Msr.MtrrFix64K, 0x0606_0606_0606_0606UL)]
    [InlineData(Msr.SpecCtrl, 1UL)]
    [InlineData(Msr.Efer, 0xD01UL)]
    [InlineData(Msr.Xss, 0UL)]
    public void MsrsKeepWhatIsWritten(uint index, ulong value)
    {
        using SystemGuest g = Guest(GuestMode.Long);
        WriteMsr(g, index, value).Ended();
        Assert.Equal(value, g.Rax | (g.Result.Gpr[2] << 32));
    }

    [Theory]
    [InlineData(Msr.Lstar, 1UL << 56)]
    [InlineData(Msr.GsBase, 1UL << 63)]
    [InlineData(Msr.KernelGsBase, 1UL << 60)]
    [InlineData(Msr.SysenterEsp, 1UL << 56)]
    [InlineData(Msr.Efer, 0x502UL)] // reserved bit
    [InlineData(Msr.Efer, 0x401UL)] // LME cannot change while paging
    [InlineData(Msr.Pat, 0x02UL)]
    [InlineData(Msr.TscAux, 1UL << 32)]
    [InlineData(Msr.SpecCtrl, 2UL)]
    [InlineData(Msr.PredCmd, 2UL)]
    [InlineData(Msr.MtrrDefType, 0x3UL)]
    [InlineData(Msr.MtrrPhysBase0 + 1, 0x1UL)]
    [InlineData(Msr.MtrrCap, 0UL)]
    [InlineData(Msr.ArchCapabilities, 0UL)]
    [InlineData(0x1234_5678u, 0UL)]
    [InlineData(Msr.McgCap, 0UL)]
    public void MsrsRefuse(uint index, ulong value)
    {
        using SystemGuest g = Guest(GuestMode.Long);
        WriteMsr(g, index, value).Raised(Vector.GeneralProtection);
    }

    [Theory]
    [InlineData("max", true)]
    [InlineData("aerostat-v2-1", false)]
    public void AddressesInMsrsHaveTheWidthOfTheProcessor(string model, bool fits)
    {
        using SystemGuest g = Guest(GuestMode.Long, model);
        WriteMsr(g, Msr.GsBase, 1UL << 50);
        Assert.Equal(fits ? -1 : Vector.GeneralProtection, g.Stopped);
    }

    [Fact]
    public void OtherMsrsGoToTheMachine()
    {
        using SystemGuest g = Guest(GuestMode.Long);
        g.Handler.Msrs[Msr.ApicBase] = 0;
        WriteMsr(g, Msr.ApicBase, 0xFEE0_0900).Ended();
        Assert.Equal(0xFEE0_0900UL, g.Handler.Msrs[Msr.ApicBase]);
        Assert.Equal(0xFEE0_0900UL, g.Rax);
    }

    [Fact]
    public void WritingTheTscMovesTheAdjustment()
    {
        using SystemGuest g = Guest(GuestMode.Long);
        g.Run(a =>
        {
            a.mov(ecx, (int)Msr.TscAdjust);
            a.xor(edx, edx);
            a.mov(eax, 1000);
            a.wrmsr();
            a.rdmsr();
        }).Ended();
        Assert.Equal(1000UL, g.Rax);
        Assert.Equal(1000UL, g.Result.Msrs[Msr.TscAdjust]);
    }

    [Fact]
    public void TimeCanBeHiddenFromUserCode()
    {
        using SystemGuest g = Guest(GuestMode.Long).AsUser();
        g.State.Cr4 |= Cr4.Tsd;
        g.Run(a => a.rdtsc()).Raised(Vector.GeneralProtection);
        g.Run(a => a.rdtscp()).Raised(Vector.GeneralProtection);
    }

    private static CpuidResult Cpuid(SystemGuest g, uint leaf, uint subleaf = 0)
    {
        g.Run(a =>
        {
            a.mov(eax, (int)leaf);
            a.mov(ecx, (int)subleaf);
            a.cpuid();
        }).Ended();
        return new((uint)g.Result.Gpr[0], (uint)g.Result.Gpr[3], (uint)g.Result.Gpr[1], (uint)g.Result.Gpr[2]);
    }

    [Fact]
    public void CpuidFollowsTheState()
    {
        using SystemGuest g = Guest(GuestMode.Long);
        g.Handler.LocalApicEnabled = false;
        CpuidResult on = Cpuid(g, 1);
        Assert.Equal(1u << 27, on.Ecx & (1u << 27));
        Assert.Equal(0u, on.Edx & (1u << 9));
        Assert.Equal(576u, Cpuid(g, 0xD).Ebx);
        g.Handler.LocalApicEnabled = true;
        g.State.Cr4 &= ~Cr4.OsXsave;
        CpuidResult off = Cpuid(g, 1);
        Assert.Equal(0u, off.Ecx & (1u << 27));
        Assert.Equal(1u << 9, off.Edx & (1u << 9));
        Assert.Equal(1u << 11, Cpuid(g, 0x8000_0001).Edx & (1u << 11));
        using SystemGuest legacy = Guest(GuestMode.Protected32);
        Assert.Equal(0u, Cpuid(legacy, 0x8000_0001).Edx & (1u << 11));
    }

    [Fact]
    public void InstructionsOutsideTheModelAreUndefined()
    {
        using SystemGuest g = Guest(GuestMode.Long);
        g.Run(a => a.vaddps(xmm0, xmm1, xmm2)).Raised(Vector.InvalidOpcode);
        g.Run(a => a.vmread(rax, rbx)).Raised(Vector.InvalidOpcode);
        g.Run(a => a.monitor()).Raised(Vector.InvalidOpcode);
        g.Run(a => a.rdpkru()).Raised(Vector.InvalidOpcode);
        g.Run(a => a.vmrun()).Raised(Vector.InvalidOpcode);
        g.Run(a => a.rsm()).Raised(Vector.InvalidOpcode);
        g.Run(a => a.endbr64()).Ended();
    }

    [Fact]
    public void Xcr0IsChecked()
    {
        using SystemGuest g = Guest(GuestMode.Long);
        bool avx = (CpuModels.CreateCpuid(CpuModels.Default, 0, 1, "none").Get(0xD, 0).Eax & 4) != 0;
        foreach ((int value, bool good) in ((int, bool)[])[(1, true), (3, true), (0, false), (2, false), (5, false), (4, false), (6, false), (7, avx), (15, false)])
        {
            g.Run(a =>
            {
                a.xor(ecx, ecx);
                a.xor(edx, edx);
                a.mov(eax, value);
                a.xsetbv();
                a.xgetbv();
            });
            Assert.Equal(good ? -1 : Vector.GeneralProtection, g.Stopped);
        }
        g.State.Cr4 &= ~Cr4.OsXsave;
        g.Run(a => a.xgetbv()).Raised(Vector.InvalidOpcode);
    }

    [Fact]
    public void ModelsAreNamed()
    {
        var e = Assert.Throws<ArgumentException>(() => CpuModels.CreateCpuid("cray-1", 0, 1, "none"));
        Assert.Contains("aerostat-v2-1", e.Message, StringComparison.Ordinal);
        Assert.Contains("max", e.Message, StringComparison.Ordinal);
        Assert.Contains(CpuModels.All, m => m.Name == CpuModels.Default);
    }

    [Fact]
    public void TopologyIsOnePackage()
    {
        for (int i = 0; i < 6; i++)
        {
            CpuidTable t = CpuModels.CreateCpuid("aerostat-v2-1", i, 6, "none");
            Assert.Equal((uint)i, t.Get(1, 0).Ebx >> 24);
            Assert.Equal((uint)i, t.Get(0xB, 1).Edx);
            Assert.Equal(3u, t.Get(0xB, 1).Eax);
            Assert.Equal(6u, t.Get(0xB, 1).Ebx);
        }
        Assert.Equal(0u, CpuModels.CreateCpuid("max", 0, 1, "none").Get(1, 0).Ecx >> 31);
        Assert.Equal(1u, CpuModels.CreateCpuid("max", 0, 1, "kvm").Get(1, 0).Ecx >> 31);
    }

    [Fact]
    public void PowerOnStateIsThatOfTheManual()
    {
        using SystemGuest g = Guest(GuestMode.Long);
        g.Processor.Reset();
        ProcessorState s = g.Processor.GetState();
        Assert.Equal(0xFFF0UL, s.Rip);
        Assert.Equal(2UL, s.Rflags);
        Assert.Equal(0x6000_0010UL, s.Cr0);
        Assert.Equal(new SegmentState(0xF000, 0xFFFF_0000, 0xFFFF, 0x9B), s.Segments[1]);
        Assert.Equal(new SegmentState(0, 0, 0xFFFF, 0x93), s.Segments[3]);
        Assert.Equal(new DescriptorTableState(0, 0xFFFF), s.Idtr);
        Assert.Equal(0xFFFF_0FF0UL, s.Dr[6]);
        Assert.Equal(0x400UL, s.Dr[7]);
        Assert.Equal(0x000A_06D1UL, s.Gpr[2]);
        Assert.Equal(0x0007_0406_0007_0406UL, s.Msrs[Msr.Pat]);
        Assert.Equal(1UL, s.Xcr0);
    }

    [Fact]
    public void StatesRoundTrip()
    {
        using SystemGuest g = Guest(GuestMode.Long);
        ProcessorState s = g.State;
        var random = new Random(7);
        for (int i = 0; i < 16; i++)
            s.Gpr[i] = (ulong)random.NextInt64();
        // x87 and SSE registers; what the format reserves, the padding of each ST among it, stays zero.
        for (int i = 0; i < 8; i++)
            random.NextBytes(s.Xsave.AsSpan(32 + (i * 16), 10));
        random.NextBytes(s.Xsave.AsSpan(160, 256));
        (s.Xsave[0], s.Xsave[1], s.Xsave[4]) = (0x7F, 0x02, 0x55);
        (s.Xsave[24], s.Xsave[25]) = (0xA0, 0x1F);
        s.Xsave[512] = 3;
        s.Rflags = 2 | RFlags.Cf | RFlags.Of | RFlags.Df | RFlags.If | RFlags.Iopl;
        s.Msrs[Msr.Lstar] = 0xFFFF_FFFF_8000_0000;
        s.Msrs[Msr.KernelGsBase] = 0x1234;
        s.Msrs[Msr.MtrrDefType] = 0xC06;
        s.Msrs[Msr.TscAdjust] = 55;
        s.Cr2 = 0xDEAD;
        s.Xcr0 = 3;
        s.NmiBlocked = true;
        s.InterruptShadow = true;
        s.NmiPending = true;
        g.Processor.SetState(s);
        ProcessorState r = g.Processor.GetState();
        Assert.Equal(s.Gpr, r.Gpr);
        Assert.Equal((s.Rip, s.Rflags, s.Cr0, s.Cr2, s.Cr3, s.Cr4, s.Efer, s.Xcr0), (r.Rip, r.Rflags, r.Cr0, r.Cr2, r.Cr3, r.Cr4, r.Efer, r.Xcr0));
        Assert.Equal(s.Segments, r.Segments);
        Assert.Equal((s.Tr, s.Ldtr, s.Gdtr, s.Idtr), (r.Tr, r.Ldtr, r.Gdtr, r.Idtr));
        Assert.Equal(s.Dr, r.Dr);
        Assert.Equal((true, true, true), (r.NmiBlocked, r.InterruptShadow, r.NmiPending));
        foreach ((uint index, ulong value) in s.Msrs)
            if (index != Msr.Tsc)
                Assert.Equal((index, value), (index, r.Msrs[index]));
        Assert.Equal(s.Xsave[32..160], r.Xsave[32..160]);
        Assert.Equal(s.Xsave[160..416], r.Xsave[160..416]);
        Assert.Equal(s.Xsave[..28], r.Xsave[..28]);
    }
}

/// <summary>The same through the translator.</summary>
public sealed class TranslatedSystemTestsModel : SystemTestsModel
{
    private protected override bool Translated => true;
}
