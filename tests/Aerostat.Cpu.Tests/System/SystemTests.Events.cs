using Aerostat.Processors;
using Aerostat.X86;
using Iced.Intel;
using Xunit;
using static Iced.Intel.AssemblerRegisters;

namespace Aerostat.Cpu.Tests;

/// <summary>External interrupts, NMIs, shadows and single steps at instruction boundaries.</summary>
public class SystemTestsEvents : ProcessorTests
{
    [Fact]
    public void AnInterruptWaitsForTheInstructionAfterSti()
    {
        using SystemGuest g = Guest(GuestMode.Long);
        g.Handler.Interrupts.Enqueue(0x55);
        g.Processor.SetInterruptRequest(true);
        g.Run(a =>
        {
            a.sti();
            a.inc(eax);
            a.cli();
        }).Raised(0x55);
        Assert.Equal(1UL, g.Rax & 0xFF);
        Assert.Equal(SystemGuest.Code + 3, g.Frame[0]);
    }

    [Fact]
    public void StiRightBeforeCliLetsNothingIn()
    {
        using SystemGuest g = Guest(GuestMode.Long);
        g.Handler.Interrupts.Enqueue(0x55);
        g.Processor.SetInterruptRequest(true);
        g.Run(a =>
        {
            a.sti();
            a.cli();
            a.nop();
        }).Ended();
        Assert.Single(g.Handler.Interrupts);
    }

    [Fact]
    public void MovSsHoldsInterruptsOff()
    {
        using SystemGuest g = Guest(GuestMode.Long);
        g.State.Rflags |= RFlags.If;
        g.State.Gpr[0] = SystemGuest.Data0;
        g.State.InterruptShadow = true; // so that the first instruction runs
        g.Handler.Interrupts.Enqueue(0x55);
        g.Processor.SetInterruptRequest(true);
        g.Run(a =>
        {
            a.mov(ss, eax);
            a.mov(esp, (int)SystemGuest.InnerStack);
            a.nop();
        }).Raised(0x55);
        Assert.Equal(SystemGuest.Code + 2 + 5, g.Frame[0]);
        Assert.Equal((ulong)SystemGuest.InnerStack, g.Frame[3]);
    }

    [Fact]
    public void PopfLetsAnInterruptInAtOnce()
    {
        using SystemGuest g = Guest(GuestMode.Long);
        g.Handler.Interrupts.Enqueue(0x55);
        g.Processor.SetInterruptRequest(true);
        g.Run(a =>
        {
            a.push((int)RFlags.If);
            a.popfq();
            a.inc(eax);
        }).Raised(0x55);
        Assert.Equal(0UL, g.Rax & 0xFF);
    }

    [Fact]
    public void HltAfterStiIsLeftByTheInterrupt()
    {
        using SystemGuest g = Guest(GuestMode.Long);
        g.Run(a => a.sti()).Ended();
        Assert.Equal(ActivityState.Halted, g.Result.Activity);
        Assert.False(g.Processor.HasWork);
        g.Handler.Interrupts.Enqueue(0x55);
        g.Processor.SetInterruptRequest(true);
        Assert.True(g.Processor.HasWork);
        g.State = g.Result;
        g.Run().Raised(0x55);
        Assert.Equal(SystemGuest.Code + 2, g.Frame[0]);
    }

    [Fact]
    public void NmisAreBlockedUntilIret()
    {
        using SystemGuest g = Guest(GuestMode.Long);
        g.Memory.Write(new Aerostat.Memory.GuestAddress(SystemGuest.Handlers + (Vector.Nmi * 16)), new byte[] { 0xFF, 0xC0, 0x90, 0x48, 0xCF }); // inc eax; nop; iretq
        g.State.Gpr[0] = 0;
        g.State.NmiPending = true;
        g.Run(a => a.nop()).Ended();
        Assert.Equal(1UL, g.Rax);
        Assert.False(g.Result.NmiBlocked);
        g.State.NmiBlocked = true;
        g.Run().Ended();
        Assert.Equal(0UL, g.Rax);
        Assert.True(g.Result.NmiPending);
    }

    private SystemGuest SyscallGuest()
    {
        SystemGuest g = Guest(GuestMode.Long).AsUser();
        g.State.Msrs[Msr.Star] = (0x20UL | 3) << 48 | (ulong)SystemGuest.Code64 << 32;
        g.State.Msrs[Msr.Lstar] = SystemGuest.UserCode;
        g.State.Msrs[Msr.Fmask] = RFlags.Tf;
        g.State.Rflags |= RFlags.Tf;
        return g;
    }

    [Fact]
    public void SteppingOverASystemCallTrapsBehindIt()
    {
        using SystemGuest g = SyscallGuest();
        g.Place(SystemGuest.UserCode, 64, a =>
        {
            a.inc(r15);
            a.sysretq();
        });
        g.Run(a =>
        {
            a.syscall();
            a.inc(r15);
        }).Raised(Vector.Debug);
        Assert.Equal([SystemGuest.Code + 2, SystemGuest.UserCode64], g.Frame[..2]);
        Assert.Equal(1UL, g.Result.Gpr[15]);
        Assert.Equal(1UL << 14, g.Result.Dr[6] & 0x4000);
    }

    [Fact]
    public void SteppingIntoAKernelThatKeepsTfTrapsThere()
    {
        using SystemGuest g = SyscallGuest();
        g.State.Msrs[Msr.Fmask] = 0;
        g.Run(a => a.syscall()).Raised(Vector.Debug);
        Assert.Equal([SystemGuest.UserCode, SystemGuest.Code64], g.Frame[..2]);
    }

    [Fact]
    public void SteppingStopsAtSoftwareInterrupts()
    {
        using SystemGuest g = Guest(GuestMode.Long).AsUser();
        g.State.Rflags |= RFlags.Tf;
        g.Run(a => a.@int(0x80)).Raised(0x80);
        Assert.NotEqual(0UL, g.Frame[2] & RFlags.Tf);
        Assert.Equal(0UL, g.Result.Rflags & RFlags.Tf);
    }
}

/// <summary>The same through the translator.</summary>
public sealed class TranslatedSystemTestsEvents : SystemTestsEvents
{
    private protected override bool Translated => true;
}
