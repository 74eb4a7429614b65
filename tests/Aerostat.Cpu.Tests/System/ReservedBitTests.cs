using Aerostat.Memory;
using Aerostat.Processors;
using Aerostat.X86;
using Iced.Intel;
using Xunit;
using static Iced.Intel.AssemblerRegisters;

namespace Aerostat.Cpu.Tests;

/// <summary>Every bit of the registers that have reserved ones (Intel SDM vol. 3 section 2.5, vol. 4 chapter 2); page-table entries are in <see cref="PagingTests"/>.</summary>
public class ReservedBitTests : ProcessorTests
{
    // SMEP and SMAP are among the bits that are set here.
    private SystemGuest SupervisorPages(string model = "max")
    {
        SystemGuest g = Guest(GuestMode.Long, model);
        ulong entry = g.Memory.Read<ulong>(new GuestAddress(SystemGuest.PageTables));
        g.Memory.Write(new GuestAddress(SystemGuest.PageTables), entry & ~PageTableEntry.U);
        return g;
    }

    private static int Writes(SystemGuest g, AssemblerRegisterCR register, ulong value) => g.Run(a =>
    {
        a.mov(rax, value);
        a.mov(register, rax);
        a.mov(rcx, register);
    }).Stopped;

    [Fact]
    public void Cr0()
    {
        using SystemGuest g = SupervisorPages();
        const ulong Base = X86.Cr0.Pe | X86.Cr0.Pg | X86.Cr0.Et | X86.Cr0.Ne | X86.Cr0.Wp;
        const ulong Kept = Base | X86.Cr0.Mp | X86.Cr0.Em | X86.Cr0.Ts | X86.Cr0.Am | X86.Cr0.Cd;
        for (int bit = 0; bit < 64; bit++)
        {
            ulong value = Base | 1UL << bit;
            // NW without CD, and the upper half; the other reserved bits stay clear whatever is written.
            bool good = bit < 32 && 1UL << bit != X86.Cr0.Nw;
            Assert.Equal((bit, good ? -1 : Vector.GeneralProtection), (bit, Writes(g, cr0, value)));
            if (good)
                Assert.Equal((bit, value & Kept), (bit, g.Result.Gpr[1]));
        }
    }

    [Theory]
    [InlineData("max", Cr4.La57 | Cr4.Pke | Cr4.Pks | Cr4.LamSup)]
    [InlineData("aerostat-v2-1", 0UL)]
    public void Cr4Bits(string model, ulong more)
    {
        // Not offered, and so reserved: VME, PVI, VMXE, SMXE, CET and all that have no name.
        ulong known = more | Cr4.Tsd | Cr4.De | Cr4.Pse | Cr4.Pae | Cr4.Mce | Cr4.Pge | Cr4.Pce | Cr4.OsFxsr | Cr4.OsXmmExcpt | Cr4.Umip | Cr4.FsGsBase
            | Cr4.Pcide | Cr4.OsXsave | Cr4.Smep | Cr4.Smap;
        const ulong Base = Cr4.Pae | Cr4.OsFxsr;
        using SystemGuest g = SupervisorPages(model);
        for (int bit = 0; bit < 64; bit++)
        {
            ulong value = Base | 1UL << bit;
            bool good = (known >> bit & 1) != 0 && 1UL << bit != Cr4.La57;
            Assert.Equal((bit, good ? -1 : Vector.GeneralProtection), (bit, Writes(g, cr4, value)));
            if (good)
                Assert.Equal((bit, value), (bit, g.Result.Gpr[1]));
        }
    }

    [Theory]
    [InlineData("max", 3UL << 61)]
    [InlineData("aerostat-v2-1", 0UL)]
    public void Cr3Bits(string model, ulong more)
    {
        foreach (bool pcids in (bool[])[false, true])
        {
            using SystemGuest g = SupervisorPages(model);
            if (pcids)
                g.State.Cr4 |= Cr4.Pcide;
            for (int bit = 46; bit < 64; bit++)
            {
                bool good = (more >> bit & 1) != 0 || (bit == 63 && pcids);
                Assert.Equal((bit, good ? -1 : Vector.GeneralProtection), (bit, Writes(g, cr3, SystemGuest.PageTables | 1UL << bit)));
                // Bit 63 is a wish and not kept.
                if (good)
                    Assert.Equal((bit, SystemGuest.PageTables | (bit == 63 ? 0 : 1UL << bit)), (bit, g.Result.Gpr[1]));
            }
        }
    }

    [Fact]
    public void Cr8()
    {
        using SystemGuest g = SupervisorPages();
        for (int bit = 0; bit < 64; bit++)
            Assert.Equal((bit, bit < 4 ? -1 : Vector.GeneralProtection), (bit, Writes(g, cr8, 1UL << bit)));
    }

    private static int WriteMsr(SystemGuest g, uint index, ulong value) => g.Run(a =>
    {
        a.mov(ecx, (int)index);
        a.mov(eax, (int)(uint)value);
        a.mov(edx, (int)(value >> 32));
        a.wrmsr();
    }).Stopped;

    /// <summary>Bits that a register takes, one at a time on top of what it must hold; every other one is #GP.</summary>
    [Theory]
    [InlineData(Msr.Efer, Efer.Lme | Efer.Lma, Efer.Sce | Efer.Nxe | Efer.Lme | Efer.Lma)]
    [InlineData(Msr.TscAux, 0UL, 0xFFFF_FFFFUL)]
    [InlineData(Msr.Pkrs, 0UL, 0xFFFF_FFFFUL)]
    [InlineData(Msr.Xss, 0UL, 0UL)]
    [InlineData(Msr.SpecCtrl, 0UL, 0x401UL)]
    [InlineData(Msr.PredCmd, 0UL, 1UL)]
    [InlineData(0x1D9u, 0UL, 3UL)] // IA32_DEBUGCTL: LBR and BTF; bit 2 would trap bus locks
    [InlineData(Msr.MtrrDefType, 0UL, 0xC05UL)]
    [InlineData(Msr.MtrrPhysBase0, 0UL, 0x3FFF_FFFF_F005UL)]
    [InlineData(Msr.MtrrPhysBase0 + 1, 0UL, 0x3FFF_FFFF_F800UL)]
    [InlineData(Msr.Pat, 0UL, 0x0505_0505_0505_0505UL)]
    [InlineData(Msr.MtrrFix64K, 0UL, 0x0505_0505_0505_0505UL)]
    public void ModelSpecificRegisters(uint index, ulong always, ulong known)
    {
        using SystemGuest g = SupervisorPages();
        for (int bit = 0; bit < 64; bit++)
            Assert.Equal((bit, (known >> bit & 1) != 0 ? -1 : Vector.GeneralProtection), (bit, WriteMsr(g, index, always | 1UL << bit)));
    }

    [Fact]
    public void ExtendedControlRegister()
    {
        using SystemGuest g = SupervisorPages();
        for (int bit = 0; bit < 64; bit++)
        {
            g.Run(a =>
            {
                a.mov(rax, 1 | 1UL << bit);
                a.mov(rdx, rax);
                a.shr(rdx, 32);
                a.xor(ecx, ecx);
                a.xsetbv();
            });
            // AVX needs SSE as well; protection keys stand alone.
            Assert.Equal((bit, bit is 0 or 1 or 9 ? -1 : Vector.GeneralProtection), (bit, g.Stopped));
        }
        g.Run(a =>
        {
            a.mov(ecx, 1);
            a.mov(eax, 1);
            a.xor(edx, edx);
            a.xsetbv();
        }).Raised(Vector.GeneralProtection);
    }

    [Fact]
    public void DebugRegisters()
    {
        using SystemGuest g = SupervisorPages();
        foreach (AssemblerRegisterDR register in (AssemblerRegisterDR[])[dr6, dr7])
            for (int bit = 0; bit < 64; bit++)
            {
                // Breakpoints that are switched on here are at address 0, and general detect is not tried.
                if (register == dr7 && bit == 13)
                    continue;
                g.Run(a =>
                {
                    a.mov(rax, 1UL << bit);
                    a.mov(register, rax);
                    a.mov(rcx, register);
                });
                Assert.Equal((register, bit, bit < 32 ? -1 : Vector.GeneralProtection), (register, bit, g.Stopped));
                if (bit >= 32)
                    continue;
                ulong expected = register == dr6 ? (1UL << bit & 0xE00F) | 0xFFFF_0FF0 : (1UL << bit & 0xFFFF_23FF) | 0x400;
                Assert.Equal((register, bit, expected), (register, bit, g.Result.Gpr[1]));
            }
    }

    /// <summary>LDMXCSR, FXRSTOR and XRSTOR take no reserved bit of MXCSR (Intel SDM vol. 1 section 10.2.3).</summary>
    [Fact]
    public void Mxcsr()
    {
        using SystemGuest g = SupervisorPages();
        const uint Area = SystemGuest.Data;
        g.State.Gpr[3] = Area;
        g.State.Xcr0 = 3;
        for (int bit = 0; bit < 32; bit++)
        {
            g.Memory.Write(new GuestAddress(Area), new byte[1024]);
            g.Memory.Write(new GuestAddress(Area + 24), 1u << bit);
            g.Memory.Write(new GuestAddress(Area + 512), 2UL);
            g.Memory.Write(new GuestAddress(Area + 1024), 1u << bit);
            int expected = bit < 16 ? -1 : Vector.GeneralProtection;
            Assert.Equal((bit, expected), (bit, g.Run(a => a.ldmxcsr(__dword_ptr[rbx + 1024])).Stopped));
            Assert.Equal((bit, expected), (bit, g.Run(a => a.fxrstor(__[rbx])).Stopped));
            Assert.Equal((bit, expected), (bit, g.Run(a =>
            {
                a.mov(eax, 2);
                a.xor(edx, edx);
                a.xrstor(__[rbx]);
            }).Stopped));
        }
    }

    /// <summary>POPF leaves what is reserved as it must be (Intel SDM vol. 1 section 3.4.3).</summary>
    [Fact]
    public void Flags()
    {
        using SystemGuest g = SupervisorPages();
        g.Run(a =>
        {
            a.mov(rax, ulong.MaxValue & ~(ulong)(RFlags.Tf | RFlags.If));
            a.push(rax);
            a.popfq();
            a.pushfq();
            a.pop(rbx);
            a.push(0);
            a.popfq();
            a.pushfq();
            a.pop(rcx);
        }).Ended();
        Assert.Equal((RFlags.Status | RFlags.Fixed1 | RFlags.Df | RFlags.Iopl | RFlags.Nt | RFlags.Ac | RFlags.Id, (ulong)RFlags.Fixed1), (g.Result.Gpr[3], g.Result.Gpr[1]));
    }

    /// <summary>Descriptors of sixteen bytes: nothing where a type would be, and a base that the processor has bits for.</summary>
    [Theory]
    [InlineData(0UL, false)]
    [InlineData(0x0000_0100_0000_0000UL, true)]
    [InlineData(0x0000_1000_0000_0000UL, true)]
    [InlineData(0x0000_8000UL, true)]
    [InlineData(0x8000_0000UL, true)]
    [InlineData(0xFFFF_8000UL, false)]
    public void SystemDescriptors(ulong high, bool refused)
    {
        using SystemGuest g = SupervisorPages("aerostat-v2-1");
        foreach ((ushort selector, bool task) in ((ushort, bool)[])[(SystemGuest.LdtSelector, false), (SystemGuest.TssAvailable, true)])
        {
            g.WriteDescriptor(selector + 8, high);
            g.WriteDescriptor(SystemGuest.TssAvailable, SystemGuest.Segment(SystemGuest.Tss, 0x1FF, 0x89, 0));
            g.Run(a =>
            {
                a.mov(eax, selector);
                if (task)
                    a.ltr(ax);
                else
                    a.lldt(ax);
            });
            if (refused)
                g.Raised(Vector.GeneralProtection, selector);
            else
                g.Ended();
        }
    }
}

/// <summary>The same through the translator.</summary>
public sealed class TranslatedReservedBitTests : ReservedBitTests
{
    private protected override bool Translated => true;
}
