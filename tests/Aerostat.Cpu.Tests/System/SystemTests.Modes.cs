using Aerostat.Memory;
using Aerostat.Processors;
using Aerostat.X86;
using Iced.Intel;
using Xunit;
using static Iced.Intel.AssemblerRegisters;

namespace Aerostat.Cpu.Tests;

/// <summary>Control registers, modes, SYSCALL and its kin, flags, ports.</summary>
public class SystemTestsModes : ProcessorTests
{
    [Theory]
    [InlineData(Cr0.Pg)] // PE is needed
    [InlineData(Cr0.Pe | Cr0.Nw)] // CD is needed
    [InlineData(1UL << 32)]
    [InlineData(Cr0.Pe)] // paging cannot go in 64-bit code
    public void InvalidCr0ValuesFault(ulong value)
    {
        using SystemGuest g = Guest(GuestMode.Long);
        g.Run(a =>
        {
            a.mov(rax, value);
            a.mov(cr0, rax);
        }).Raised(Vector.GeneralProtection);
    }

    [Theory]
    [InlineData(Cr4.Vmxe | Cr4.Pae, "max")]
    [InlineData(Cr4.La57 | Cr4.Pae, "aerostat-v2-1")]
    [InlineData(Cr4.Pke | Cr4.Pae, "aerostat-v2-1")]
    [InlineData(1UL << 40 | Cr4.Pae, "max")]
    [InlineData(0UL, "max")] // PAE must stay
    [InlineData(Cr4.La57 | Cr4.Pae, "max")] // cannot change in long mode
    public void InvalidCr4ValuesFault(ulong value, string model)
    {
        using SystemGuest g = Guest(GuestMode.Long, model);
        g.Run(a =>
        {
            a.mov(rax, value);
            a.mov(cr4, rax);
        }).Raised(Vector.GeneralProtection);
    }

    [Fact]
    public void PcideNeedsLongModeAndAnEmptyPcid()
    {
        using SystemGuest g = Guest(GuestMode.Long);
        g.Run(a =>
        {
            a.mov(rax, Cr4.Pae | Cr4.Pcide);
            a.mov(cr4, rax);
            a.mov(rax, (ulong)SystemGuest.PageTables | 5 | 1UL << 63);
            a.mov(cr3, rax);
            a.mov(rbx, cr3);
        }).Ended();
        Assert.Equal(SystemGuest.PageTables | 5UL, g.Result.Gpr[3]);
        g.State.Cr3 |= 1;
        g.Run(a =>
        {
            a.mov(rax, Cr4.Pae | Cr4.Pcide);
            a.mov(cr4, rax);
        }).Raised(Vector.GeneralProtection);
        g.Run(a =>
        {
            a.mov(rax, 1UL << 50);
            a.mov(cr3, rax);
        }).Raised(Vector.GeneralProtection);
    }

    [Fact]
    public void Cr8IsTheTaskPriority()
    {
        using SystemGuest g = Guest(GuestMode.Long);
        g.Run(a =>
        {
            a.mov(eax, 9);
            a.mov(cr8, rax);
            a.mov(rbx, cr8);
        }).Ended();
        Assert.Equal(9UL, g.Handler.TaskPriority);
        Assert.Equal(9UL, g.Result.Gpr[3]);
        g.Run(a =>
        {
            a.mov(eax, 16);
            a.mov(cr8, rax);
        }).Raised(Vector.GeneralProtection);
    }

    [Fact]
    public void UserCodeMayNotTouchTheSystem()
    {
        using SystemGuest g = Guest(GuestMode.Long).AsUser();
        foreach (Action<Assembler> code in (Action<Assembler>[])
            [
                a => a.mov(rax, cr0), a => a.mov(cr3, rax), a => a.mov(rax, dr7), a => a.hlt(), a => a.cli(), a => a.sti(), a => a.rdmsr(),
                a => a.wrmsr(), a => a.lidt(__[0]), a => a.ltr(ax), a => a.lldt(ax), a => a.clts(), a => a.invlpg(__[0]), a => a.wbinvd(),
                a => a.invd(), a => a.lmsw(ax), a => a.swapgs(), a => a.sysretq(), a => a.sysexitq(), a => a.@in(al, dx), a => a.@out(dx, al),
                a => a.rdpmc(), a => a.insb(), a => a.outsb(), a => a.invpcid(rax, __[0]),
            ])
            g.Run(code).Raised(Vector.GeneralProtection);
    }

    [Fact]
    public void DebugRegistersFourAndFiveAreAliases()
    {
        using SystemGuest g = Guest(GuestMode.Protected32);
        g.Run(a =>
        {
            a.mov(eax, 0x0000_0401);
            a.db(0x0F, 0x23, 0xE8); // mov dr5,eax
            a.db(0x0F, 0x21, 0xFB); // mov ebx,dr7
            a.xor(eax, eax);
            a.db(0x0F, 0x23, 0xF0); // mov dr6,eax
            a.db(0x0F, 0x21, 0xE1); // mov ecx,dr4
        }).Ended();
        Assert.Equal(0x401UL, g.Result.Gpr[3]);
        Assert.Equal(0xFFFF_0FF0UL, g.Result.Gpr[1]);
        g.State.Cr4 |= Cr4.De;
        g.Run(a => a.db(0x0F, 0x21, 0xE1)).Raised(Vector.InvalidOpcode);
    }

    [Fact]
    public void GeneralDetectProtectsDebugRegistersOnce()
    {
        using SystemGuest g = Guest(GuestMode.Long);
        g.State.Dr[7] = 0x2400;
        g.Run(a => a.mov(rax, dr0)).Raised(Vector.Debug);
        Assert.Equal(SystemGuest.Code, g.Frame[0]);
        Assert.Equal(2UL | RFlags.Rf, g.Frame[2]);
        Assert.Equal(0x2000UL, g.Result.Dr[6] & 0x2000);
        Assert.Equal(0x400UL, g.Result.Dr[7]);
        g.State.Dr[7] = 0x400;
        g.Run(a =>
        {
            a.mov(rax, 1UL << 32);
            a.mov(dr7, rax);
        }).Raised(Vector.GeneralProtection);
    }

    [Fact]
    public void FromRealModeToLongModeAndBack()
    {
        using SystemGuest g = Guest(GuestMode.Real);
        g.State.Gdtr = new DescriptorTableState(SystemGuest.Gdt, SystemGuest.GdtLimit);
        g.Place(SystemGuest.UserCode, 64, a =>
        {
            a.mov(rax, 0x1122_3344_5566_7788);
            a.mov(r8, rax);
            a.push(SystemGuest.Code32);
            a.push((int)SystemGuest.UserCode + 0x100);
            a.db(0x48, 0xCB); // retf, 64-bit
        });
        g.Place(SystemGuest.UserCode + 0x100, 32, a =>
        {
            a.mov(eax, cr0);
            a.and(eax, 0x7FFF_FFFF);
            a.mov(cr0, eax);
            a.mov(ecx, unchecked((int)Msr.Efer));
            a.rdmsr();
            a.hlt();
        });
        // The 16-bit part, written for offset 0 of segment 1000h; the jump goes to flat addresses.
        g.Run(a =>
        {
            a.mov(eax, (int)Cr4.Pae);
            a.mov(cr4, eax);
            a.mov(eax, (int)SystemGuest.PageTables);
            a.mov(cr3, eax);
            a.mov(ecx, unchecked((int)Msr.Efer));
            a.mov(eax, (int)Efer.Lme);
            a.xor(edx, edx);
            a.wrmsr();
            a.mov(eax, unchecked((int)(Cr0.Pe | Cr0.Pg)));
            a.mov(cr0, eax);
            a.db(0x66, 0xEA, 0x00, 0x20, 0x01, 0x00, (byte)SystemGuest.Code64, 0x00); // jmp far 10h:12000h
        }).Ended();
        Assert.Equal(0x1122_3344_5566_7788UL, g.Result.Gpr[8]);
        Assert.Equal(Efer.Lme, g.Rax); // LMA has gone with paging
        Assert.Equal(SystemGuest.Code32, g.Result.Segments[1].Selector);
    }

    private static void SetupSyscall(SystemGuest g)
    {
        g.State.Msrs[Msr.Star] = (0x20UL | 3) << 48 | (ulong)SystemGuest.Code64 << 32;
        g.State.Msrs[Msr.Lstar] = SystemGuest.UserCode;
        g.State.Msrs[Msr.Fmask] = RFlags.If | RFlags.Df | RFlags.Cf;
    }

    [Fact]
    public void SyscallEntersTheKernel()
    {
        using SystemGuest g = Guest(GuestMode.Long).AsUser();
        SetupSyscall(g);
        g.State.Rflags |= RFlags.If | RFlags.Cf | RFlags.Zf;
        g.Place(SystemGuest.UserCode, 64, a => a.hlt());
        g.Run(a => a.syscall()).Ended();
        Assert.Equal(SystemGuest.Code + 2, g.Result.Gpr[1]);
        Assert.Equal(2UL | RFlags.If | RFlags.Cf | RFlags.Zf, g.Result.Gpr[11]);
        Assert.Equal(2UL | RFlags.Zf, g.Result.Rflags);
        Assert.Equal(SystemGuest.Code64, g.Result.Segments[1].Selector);
        Assert.Equal(SystemGuest.Data0, g.Result.Segments[2].Selector);
        Assert.Equal((ulong)SystemGuest.UserStack, g.Result.Gpr[4]);
        g.State.Efer &= ~Efer.Sce;
        g.Run().Raised(Vector.InvalidOpcode);
    }

    [Theory]
    [InlineData(true, (int)SystemGuest.UserCode64)]
    [InlineData(false, (int)SystemGuest.UserCode32)]
    public void SysretLeavesIt(bool wide, int selector)
    {
        using SystemGuest g = Guest(GuestMode.Long);
        SetupSyscall(g);
        g.Place(SystemGuest.UserCode, 64, a => a.ud2());
        g.State.Gpr[1] = SystemGuest.UserCode | (wide ? 0 : 0xFFUL << 32);
        g.State.Gpr[11] = RFlags.If | RFlags.Rf | RFlags.Vm | RFlags.Sf;
        g.Run(a =>
        {
            if (wide)
                a.sysretq();
            else
                a.sysret();
        }).Raised(Vector.InvalidOpcode);
        Assert.Equal([SystemGuest.UserCode, (ulong)selector, 2UL | RFlags.If | RFlags.Sf | RFlags.Rf, SystemGuest.Stack, SystemGuest.UserData], g.Frame);
    }

    [Fact]
    public void SysretToANonCanonicalAddressFaultsInTheKernel()
    {
        using SystemGuest g = Guest(GuestMode.Long);
        SetupSyscall(g);
        g.State.Gpr[1] = 1UL << 47;
        g.Run(a => a.sysretq()).Raised(Vector.GeneralProtection);
        Assert.Equal((ulong)SystemGuest.Code64, g.Frame[1]);
    }

    [Fact]
    public void SyscallDoesNotExistInCompatibilityCode()
    {
        using SystemGuest g = Guest(GuestMode.Compatibility).AsUser();
        SetupSyscall(g);
        g.Run(a => a.syscall()).Raised(Vector.InvalidOpcode);
    }

    [Fact]
    public void SysenterAndSysexit()
    {
        using SystemGuest g = Guest(GuestMode.Compatibility).AsUser();
        g.State.Msrs[Msr.SysenterCs] = SystemGuest.Code64;
        g.State.Msrs[Msr.SysenterEip] = SystemGuest.UserCode;
        g.State.Msrs[Msr.SysenterEsp] = SystemGuest.InnerStack;
        // SYSEXIT goes to SYSENTER_CS + 16 for 32-bit code: 20h, with the stack at 28h.
        g.Place(SystemGuest.UserCode, 64, a =>
        {
            a.mov(rbx, rsp);
            a.mov(edx, (int)SystemGuest.UserCode + 0x100);
            a.mov(ecx, (int)SystemGuest.UserStack);
            a.sysexit();
        });
        g.Place(SystemGuest.UserCode + 0x100, 32, a => a.ud2());
        g.Run(a => a.sysenter()).Raised(Vector.InvalidOpcode);
        Assert.Equal((ulong)SystemGuest.InnerStack, g.Result.Gpr[3]);
        Assert.Equal([SystemGuest.UserCode + 0x100, SystemGuest.UserCode32, 2UL | RFlags.Rf, SystemGuest.UserStack, SystemGuest.UserData], g.Frame);
        g.State.Msrs[Msr.SysenterCs] = 0;
        g.Run(a => a.sysenter()).Raised(Vector.GeneralProtection);
    }

    [Fact]
    public void SwapgsExchangesBases()
    {
        using SystemGuest g = Guest(GuestMode.Long);
        g.State.Msrs[Msr.KernelGsBase] = 0x1234;
        g.State.Segments[5] = g.State.Segments[5] with { Base = 0x5678 };
        g.Run(a =>
        {
            a.swapgs();
            a.rdgsbase(rax);
        }).Ended();
        Assert.Equal(0x1234UL, g.Rax);
        Assert.Equal(0x5678UL, g.Result.Msrs[Msr.KernelGsBase]);
        g.Run(a =>
        {
            a.mov(rax, 1UL << 60);
            a.wrfsbase(rax);
        }).Raised(Vector.GeneralProtection);
        g.State.Cr4 &= ~Cr4.FsGsBase;
        g.Run(a => a.rdfsbase(rax)).Raised(Vector.InvalidOpcode);
    }

    [Fact]
    public void PopfRespectsPrivilege()
    {
        using SystemGuest g = Guest(GuestMode.Long).AsUser();
        g.State.Rflags |= RFlags.If;
        g.Run(a =>
        {
            a.push((int)(RFlags.Iopl | RFlags.Df | RFlags.Ac | RFlags.Id | RFlags.Nt));
            a.popfq();
            a.pushfq();
            a.pop(rax);
            a.ud2();
        }).Raised(Vector.InvalidOpcode);
        Assert.Equal(2UL | RFlags.If | RFlags.Df | RFlags.Ac | RFlags.Id | RFlags.Nt, g.Rax);
        g.State.Rflags |= RFlags.Iopl;
        g.Run(a =>
        {
            a.push(0);
            a.popfq();
            a.pushfq();
            a.pop(rax);
            a.ud2();
        }).Raised(Vector.InvalidOpcode);
        Assert.Equal(2UL | RFlags.Iopl, g.Rax);
    }

    [Fact]
    public void SettingTfByPopfTrapsAfterTheNextInstruction()
    {
        using SystemGuest g = Guest(GuestMode.Long);
        g.Run(a =>
        {
            a.push((int)RFlags.Tf);
            a.popfq();
            a.nop();
            a.nop();
        }).Raised(Vector.Debug);
        Assert.Equal(SystemGuest.Code + 5 + 1 + 1, g.Frame[0]);
        Assert.Equal(1UL << 14, g.Result.Dr[6] & 0x4000);
    }

    [Fact]
    public void StacAndClacChangeAc()
    {
        using SystemGuest g = Guest(GuestMode.Long);
        g.State.Cr4 |= Cr4.Smap;
        // Every page of this guest is a user page, so data access needs AC.
        g.State.Rflags |= RFlags.Ac;
        g.Run(a =>
        {
            a.clac();
            a.stac();
            a.mov(eax, __dword_ptr[SystemGuest.Data]);
        }).Ended();
        g.Run(a =>
        {
            a.clac();
            a.mov(eax, __dword_ptr[SystemGuest.Data]);
        });
        Assert.Equal(-2, g.Stopped); // the handlers' stack is a user page too
    }

    [Theory]
    [InlineData(0x80, true)]
    [InlineData(0x87, true)]
    [InlineData(0x88, false)]
    [InlineData(0x7F, false)]
    public void UserPortsFollowTheBitmap(int port, bool allowed)
    {
        using SystemGuest g = Guest(GuestMode.Long).AsUser();
        g.Run(a =>
        {
            a.mov(edx, port);
            a.mov(al, 0x5A);
            a.@out(dx, al);
            a.ud2();
        });
        Assert.Equal(allowed ? Vector.InvalidOpcode : Vector.GeneralProtection, g.Stopped);
        Assert.Equal(allowed ? 1 : 0, g.Handler.Writes.Count);
    }

    [Fact]
    public void APortAccessAcrossTheAllowedEndFaults()
    {
        using SystemGuest g = Guest(GuestMode.Long).AsUser();
        g.Run(a =>
        {
            a.mov(edx, 0x87);
            a.@in(ax, dx);
        }).Raised(Vector.GeneralProtection);
        g.State.Rflags |= RFlags.Iopl;
        g.Run(a =>
        {
            a.mov(edx, 0x3F8);
            a.@in(eax, dx);
            a.ud2();
        }).Raised(Vector.InvalidOpcode);
        Assert.Equal(0x4433_2211UL, g.Rax);
    }

    [Fact]
    public void StringPortInstructions()
    {
        using SystemGuest g = Guest(GuestMode.Long);
        g.Memory.Write(new GuestAddress(SystemGuest.Data), new byte[] { 1, 2, 3, 4, 5, 6, 7, 8 });
        g.Run(a =>
        {
            a.mov(edx, 0x1F0);
            a.mov(ecx, 3);
            a.mov(esi, (int)SystemGuest.Data);
            a.rep.outsw();
            a.mov(ecx, 200);
            a.mov(edi, (int)SystemGuest.Data + 0x100);
            a.rep.insd();
        }).Ended();
        Assert.Equal([(0x1F0, 2, 0x0201u), (0x1F0, 2, 0x0403u), (0x1F0, 2, 0x0605u)], g.Handler.Writes.Select(w => ((int)w.Port, w.Size, w.Value)));
        Assert.Equal(SystemGuest.Data + 6, g.Result.Gpr[6]);
        Assert.Equal(SystemGuest.Data + 0x100 + 800, g.Result.Gpr[7]);
        Assert.Equal(0UL, g.Result.Gpr[1]);
        Assert.Equal(0x4433_2211u, g.Memory.Read<uint>(new GuestAddress(SystemGuest.Data + 0x100 + 796)));
        Assert.Equal(0u, g.Memory.Read<uint>(new GuestAddress(SystemGuest.Data + 0x100 + 800)));
    }

    [Fact]
    public void AFaultingInsDoesNotReadTheDevice()
    {
        using SystemGuest g = Guest(GuestMode.Long);
        g.Run(a =>
        {
            a.mov(edi, SystemGuest.Unmapped);
            a.mov(ecx, 2);
            a.rep.outsb();
            a.mov(ecx, 2);
            a.rep.insb();
        }).Raised(Vector.PageFault, PageFaultError.Write);
        Assert.Equal(2UL, g.Result.Gpr[1]);
    }

    [Fact]
    public void Hypercalls()
    {
        using SystemGuest g = Guest(GuestMode.Long);
        g.Run(a => a.vmcall()).Raised(Vector.InvalidOpcode);
        g.Handler.Hypercalls = true;
        g.Run(a =>
        {
            a.mov(ecx, 41);
            a.vmmcall();
        }).Ended();
        Assert.Equal(42UL, g.Rax);
    }

    [Fact]
    public void InvpcidChecksTypeAndDescriptor()
    {
        using SystemGuest g = Guest(GuestMode.Long);
        var descriptor = new GuestAddress(SystemGuest.Data);
        for (int type = 0; type < 4; type++)
            g.Run(a =>
            {
                a.mov(eax, type);
                a.invpcid(rax, __[SystemGuest.Data]);
            }).Ended();
        g.Run(a =>
        {
            a.mov(eax, 4);
            a.invpcid(rax, __[SystemGuest.Data]);
        }).Raised(Vector.GeneralProtection);
        g.Memory.Write(descriptor, 5UL);
        g.Run(a =>
        {
            a.mov(eax, 1);
            a.invpcid(rax, __[SystemGuest.Data]);
        }).Raised(Vector.GeneralProtection); // PCIDs are off
        g.Memory.Write(descriptor, 0UL);
        g.Memory.Write(new GuestAddress(SystemGuest.Data + 8), 1UL << 57);
        g.Run(a =>
        {
            a.xor(eax, eax);
            a.invpcid(rax, __[SystemGuest.Data]);
        }).Raised(Vector.GeneralProtection);
    }
}

/// <summary>The same through the translator.</summary>
public sealed class TranslatedSystemTestsModes : SystemTestsModes
{
    private protected override bool Translated => true;
}
