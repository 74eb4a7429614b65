using Aerostat.X86;
using Iced.Intel;
using Xunit;
using static Iced.Intel.AssemblerRegisters;

namespace Aerostat.Cpu.Tests;

/// <summary>Delivery of interrupts and exceptions, and IRET (Intel SDM vol. 3 chapter 7).</summary>
public class SystemTestsDelivery : ProcessorTests
{
    private const uint IdtBit = 2, Ext = 1;

    [Fact]
    public void LongModeSamePrivilegePushesAnAlignedFrame()
    {
        using SystemGuest g = Guest(GuestMode.Long);
        g.State.Gpr[4] = SystemGuest.Stack - 5;
        g.Run(a => a.@int(0x80)).Raised(0x80);
        Assert.Equal([SystemGuest.Code + 2, SystemGuest.Code64, 2UL, SystemGuest.Stack - 5, SystemGuest.Data0], g.Frame);
        Assert.Equal((SystemGuest.Stack - 16) - 40, g.FrameAddress);
        Assert.Equal(SystemGuest.Data0, g.Result.Segments[2].Selector);
    }

    [Fact]
    public void LongModeFromUserTakesRsp0AndANullStackSegment()
    {
        using SystemGuest g = Guest(GuestMode.Long).AsUser();
        g.State.Rflags |= RFlags.If | RFlags.Cf;
        g.Run(a => a.@int(0x80)).Raised(0x80);
        Assert.Equal([SystemGuest.Code + 2, SystemGuest.UserCode64, 2UL | RFlags.If | RFlags.Cf, SystemGuest.UserStack, SystemGuest.UserData], g.Frame);
        Assert.Equal(SystemGuest.InnerStack - 40, g.FrameAddress);
        Assert.Equal(0, g.Result.Segments[2].Selector);
        Assert.Equal(SystemGuest.Code64, g.Result.Segments[1].Selector);
        Assert.Equal(0UL, g.Result.Rflags & RFlags.If);
    }

    [Fact]
    public void LongModeUsesTheInterruptStackTable()
    {
        using SystemGuest g = Guest(GuestMode.Long);
        g.WriteGate(0x40, SystemGuest.Code64, SystemGuest.Handlers + 0x400, type: 15, ist: 1);
        g.State.Rflags |= RFlags.If;
        g.Run(a => a.@int(0x40)).Raised(0x40);
        Assert.Equal(SystemGuest.IstStack - 40, g.FrameAddress);
        Assert.Equal(SystemGuest.Data0, g.Result.Segments[2].Selector);
        Assert.NotEqual(0UL, g.Result.Rflags & RFlags.If); // a trap gate
    }

    [Fact]
    public void FaultsPushRfAndTheAddressOfTheInstruction()
    {
        using SystemGuest g = Guest(GuestMode.Long);
        g.Run(a => a.ud2()).Raised(Vector.InvalidOpcode);
        Assert.Equal(SystemGuest.Code, g.Frame[0]);
        Assert.Equal(2UL | RFlags.Rf, g.Frame[2]);
    }

    [Fact]
    public void SoftwareInterruptsNeedTheGatesPrivilege()
    {
        using SystemGuest g = Guest(GuestMode.Long).AsUser();
        g.Run(a => a.@int(0x41)).Raised(Vector.GeneralProtection, (0x41 << 3) | IdtBit);
        Assert.Equal(SystemGuest.Code, g.Frame[0]);
    }

    [Fact]
    public void GatesThatAreAbsentOrWrongFaultWithTheirNumber()
    {
        using SystemGuest g = Guest(GuestMode.Long);
        g.WriteGate(0x42, SystemGuest.Code64, SystemGuest.Handlers, present: false);
        g.WriteGate(0x43, SystemGuest.Code64, SystemGuest.Handlers, type: 12);
        g.WriteGate(0x44, SystemGuest.Code32, SystemGuest.Handlers);
        g.WriteGate(0x45, 0, SystemGuest.Handlers);
        g.WriteGate(0x46, SystemGuest.CodeAbsent, SystemGuest.Handlers);
        g.WriteGate(0x47, SystemGuest.GdtLimit + 1, SystemGuest.Handlers);
        g.WriteGate(0x48, SystemGuest.Code64, 0x8000_0000_0000_0000);
        g.Run(a => a.@int(0x42)).Raised(Vector.SegmentNotPresent, (0x42 << 3) | IdtBit);
        g.Run(a => a.@int(0x43)).Raised(Vector.GeneralProtection, (0x43 << 3) | IdtBit);
        g.Run(a => a.@int(0x44)).Raised(Vector.GeneralProtection, SystemGuest.Code32);
        g.Run(a => a.@int(0x45)).Raised(Vector.GeneralProtection, 0);
        g.Run(a => a.@int(0x46)).Raised(Vector.SegmentNotPresent, SystemGuest.CodeAbsent);
        g.Run(a => a.@int(0x47)).Raised(Vector.GeneralProtection, SystemGuest.GdtLimit + 1);
        g.Run(a => a.@int(0x48)).Raised(Vector.GeneralProtection, 0);
    }

    [Fact]
    public void ExceptionsSetTheExternalBitOfNestedFaults()
    {
        using SystemGuest g = Guest(GuestMode.Long);
        g.WriteGate(Vector.InvalidOpcode, SystemGuest.Code64, SystemGuest.Handlers, present: false);
        g.Run(a => a.ud2()).Raised(Vector.SegmentNotPresent, (Vector.InvalidOpcode << 3) | IdtBit | Ext);
    }

    [Fact]
    public void ContributoryOnContributoryIsADoubleFault()
    {
        using SystemGuest g = Guest(GuestMode.Long);
        g.WriteGate(Vector.GeneralProtection, SystemGuest.Code64, SystemGuest.Handlers, present: false);
        g.Run(a => a.mov(ds, eax)).Ended();
        g.Run(a =>
        {
            a.mov(eax, (int)SystemGuest.DataAbsent);
            a.mov(ds, eax);
        }).Raised(Vector.SegmentNotPresent, SystemGuest.DataAbsent);
        g.Run(a =>
        {
            a.mov(eax, 0x1000);
            a.mov(ds, eax);
        }).Raised(Vector.DoubleFault);
    }

    [Fact]
    public void PageFaultWhilePushingAPageFaultIsADoubleFaultAndThenShutdown()
    {
        using SystemGuest g = Guest(GuestMode.Long);
        g.WriteGate(Vector.DoubleFault, SystemGuest.Code64, SystemGuest.Handlers + (Vector.DoubleFault * 16), ist: 1);
        g.State.Gpr[4] = SystemGuest.Unmapped + 0x1000;
        g.Run(a => a.mov(eax, __dword_ptr[SystemGuest.Unmapped + 0x5000])).Raised(Vector.DoubleFault);
        Assert.Equal((ulong)SystemGuest.Unmapped + 0x1000 - 16 - 32, g.Result.Cr2 & ~7UL);
        g.WriteGate(Vector.DoubleFault, SystemGuest.Code64, SystemGuest.Handlers + (Vector.DoubleFault * 16));
        g.Run();
        Assert.Equal(-2, g.Stopped);
    }

    [Fact]
    public void ADeliveryThatFaultsChangesNothing()
    {
        using SystemGuest g = Guest(GuestMode.Long).AsUser();
        g.Memory.Write(new Aerostat.Memory.GuestAddress(SystemGuest.Tss + 4), 0x8000_0000_0000_0000);
        g.WriteGate(Vector.StackFault, SystemGuest.Code64, SystemGuest.Handlers + (Vector.StackFault * 16), ist: 1);
        g.Run(a => a.@int(0x80)).Raised(Vector.StackFault);
        Assert.Equal([SystemGuest.Code, SystemGuest.UserCode64, 2UL | RFlags.Rf, SystemGuest.UserStack, SystemGuest.UserData], g.Frame);
    }

    [Fact]
    public void AShortTssIsInvalid()
    {
        using SystemGuest g = Guest(GuestMode.Long).AsUser();
        g.State.Tr = g.State.Tr with { Limit = 8 };
        g.WriteGate(Vector.InvalidTss, SystemGuest.ConformingUser, 0);
        g.Run(a => a.@int(0x80));
        Assert.Equal(-2, g.Stopped);
    }

    [Theory]
    [InlineData(false, 0UL)]
    [InlineData(true, 0UL)]
    public void ProtectedModeFramesHaveFourBytes(bool user, ulong unused)
    {
        _ = unused;
        using SystemGuest g = Guest(GuestMode.Protected32);
        if (user)
            g.AsUser();
        g.Run(a => a.@int(0x80)).Raised(0x80);
        Assert.Equal([SystemGuest.Code + 2, user ? SystemGuest.UserCode32 : SystemGuest.Code32, 2UL], g.Frame[..3]);
        if (!user)
        {
            Assert.Equal(SystemGuest.Stack - 12, g.FrameAddress);
            return;
        }
        Assert.Equal(SystemGuest.InnerStack - 20, g.FrameAddress);
        Assert.Equal([SystemGuest.UserStack, SystemGuest.UserData], g.Frame[3..]);
        Assert.Equal(SystemGuest.Data0, g.Result.Segments[2].Selector);
    }

    [Fact]
    public void ProtectedModeInnerStackIsChecked()
    {
        using SystemGuest g = Guest(GuestMode.Protected32).AsUser();
        var ss0 = new Aerostat.Memory.GuestAddress(SystemGuest.Tss + 8);
        g.Memory.Write(ss0, SystemGuest.UserData);
        g.Run(a => a.@int(0x80));
        Assert.Equal(-2, g.Stopped); // #TS cannot be delivered through the same stack either
        g.WriteGate(Vector.DoubleFault, SystemGuest.ConformingUser, SystemGuest.Handlers);
        g.Run();
        Assert.Equal(-2, g.Stopped);
    }

    [Fact]
    public void SixteenBitGatesPushTwoBytes()
    {
        using SystemGuest g = Guest(GuestMode.Protected16);
        g.Run(a => a.@int(0x80));
        Assert.Equal(0x80, g.Stopped);
        Assert.Equal([(SystemGuest.Code + 2) & 0xFFFF, SystemGuest.Code16, 2UL], g.Frame[..3]);
        Assert.Equal(SystemGuest.Stack - 6, g.FrameAddress);
    }

    [Fact]
    public void RealModeGoesThroughTheVectorTable()
    {
        using SystemGuest g = Guest(GuestMode.Real);
        g.State.Rflags |= RFlags.If;
        g.Run(a => a.@int(0x21)).Raised(0x21);
        Assert.Equal([2UL, SystemGuest.Code >> 4, 2UL | RFlags.If], g.Frame[..3]);
        Assert.Equal(0UL, g.Result.Rflags & RFlags.If);
        g.State.Idtr = g.State.Idtr with { Limit = 0x7F };
        g.Run(a => a.@int(0x21)).Raised(Vector.GeneralProtection);
        g.State.Idtr = g.State.Idtr with { Limit = 0x10 };
        g.Run();
        Assert.Equal(-2, g.Stopped);
    }

    [Fact]
    public void RealModeReturnsFromInterrupts()
    {
        using SystemGuest g = Guest(GuestMode.Real);
        g.Memory.Write(new Aerostat.Memory.GuestAddress(SystemGuest.Handlers + 0x300), new byte[] { 0xB8, 0x34, 0x12, 0xCF }); // mov ax,1234h; iret
        g.State.Rflags |= RFlags.If | RFlags.Cf;
        g.Run(a => a.@int(0x30)).Ended();
        Assert.Equal(0x1234UL, g.Rax & 0xFFFF);
        Assert.Equal((ulong)(RFlags.If | RFlags.Cf), g.Result.Rflags & (RFlags.If | RFlags.Cf));
        Assert.Equal((ulong)SystemGuest.Stack, g.Result.Gpr[4]);
    }

    private static void PushFrame(Assembler a, ulong rip, ulong cs, ulong flags, ulong rsp, ulong ss)
    {
        foreach (ulong value in (ulong[])[ss, rsp, flags, cs, rip])
        {
            a.mov(rax, value);
            a.push(rax);
        }
    }

    [Theory]
    [InlineData(SystemGuest.UserCode64, 0x1_0000_0000_8000UL)]
    [InlineData(SystemGuest.UserCode32, 0xC000UL)]
    public void IretqGoesToUserCode(ushort selector, ulong rsp)
    {
        using SystemGuest g = Guest(GuestMode.Long);
        g.Place(SystemGuest.UserCode, selector == SystemGuest.UserCode64 ? 64 : 32, a => a.ud2());
        g.State.NmiBlocked = true;
        g.Run(a =>
        {
            PushFrame(a, SystemGuest.UserCode, selector, RFlags.If | RFlags.Df | RFlags.Iopl | RFlags.Id, rsp, SystemGuest.UserData);
            a.iretq();
        }).Raised(Vector.InvalidOpcode);
        Assert.Equal([SystemGuest.UserCode, selector, 2UL | RFlags.If | RFlags.Df | RFlags.Iopl | RFlags.Id | RFlags.Rf, rsp, SystemGuest.UserData], g.Frame);
        Assert.Equal(0, g.Result.Segments[3].Selector); // DS of privilege 0 does not survive
        Assert.False(g.Result.NmiBlocked);
    }

    [Theory]
    [InlineData(SystemGuest.UserCode64, 0x8000_0000_0000UL, SystemGuest.UserData, Vector.GeneralProtection, 0u)] // not canonical
    [InlineData(SystemGuest.UserCode64, 0x1000UL, 3, Vector.GeneralProtection, 0u)] // null SS for user code
    [InlineData(SystemGuest.UserCode64, 0x1000UL, SystemGuest.Data0, Vector.GeneralProtection, SystemGuest.Data0)]
    [InlineData(0, 0x1000UL, SystemGuest.UserData, Vector.GeneralProtection, 0u)]
    [InlineData(SystemGuest.CodeAbsent, 0x1000UL, SystemGuest.Data0, Vector.SegmentNotPresent, SystemGuest.CodeAbsent)]
    [InlineData(SystemGuest.Data0, 0x1000UL, SystemGuest.Data0, Vector.GeneralProtection, SystemGuest.Data0)]
    [InlineData(SystemGuest.CodeBad64, 0x1000UL, SystemGuest.Data0, Vector.GeneralProtection, SystemGuest.CodeBad64)]
    [InlineData(SystemGuest.UserCode64 & ~3, 0x1000UL, SystemGuest.Data0, Vector.GeneralProtection, SystemGuest.UserCode64 & ~3)] // DPL 3, RPL 0
    public void IretqChecksWhatItLoads(int cs, ulong rip, int ss, int vector, uint error)
    {
        using SystemGuest g = Guest(GuestMode.Long);
        g.Run(a =>
        {
            PushFrame(a, rip, (ulong)cs, 2, SystemGuest.UserStack, (ulong)ss);
            a.iretq();
        }).Raised(vector, error);
    }

    [Fact]
    public void IretqWithNullStackSegmentStaysInTheKernel()
    {
        using SystemGuest g = Guest(GuestMode.Long);
        g.Place(SystemGuest.UserCode, 64, a => a.hlt());
        g.Run(a =>
        {
            PushFrame(a, SystemGuest.UserCode, SystemGuest.Code64, 2, 0x7000, 0);
            a.iretq();
        }).Ended();
        Assert.Equal(SystemGuest.UserCode + 1, g.Result.Rip);
        Assert.Equal(0x7000UL, g.Result.Gpr[4]);
    }

    [Fact]
    public void IretWithNestedTaskFaultsInLongMode()
    {
        using SystemGuest g = Guest(GuestMode.Long);
        g.State.Rflags |= RFlags.Nt;
        g.Run(a => a.iretq()).Raised(Vector.GeneralProtection);
    }

    [Fact]
    public void UserIretKeepsPrivilegedFlags()
    {
        using SystemGuest g = Guest(GuestMode.Long).AsUser();
        g.State.Rflags |= RFlags.If;
        g.Place(SystemGuest.UserCode, 64, a => a.ud2());
        g.Run(a =>
        {
            PushFrame(a, SystemGuest.UserCode, SystemGuest.UserCode64, RFlags.Iopl | RFlags.Zf, SystemGuest.UserStack, SystemGuest.UserData);
            a.iretq();
        }).Raised(Vector.InvalidOpcode);
        Assert.Equal(2UL | RFlags.If | RFlags.Zf | RFlags.Rf, g.Frame[2]);
    }

    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public void ProtectedModeIretd(bool outer)
    {
        using SystemGuest g = Guest(GuestMode.Protected32);
        g.Place(SystemGuest.UserCode, 32, a => a.ud2());
        g.Run(a =>
        {
            if (outer)
            {
                a.push((int)SystemGuest.UserData);
                a.push((int)SystemGuest.UserStack);
            }
            a.push((int)RFlags.Cf);
            a.push(outer ? SystemGuest.UserCode32 : SystemGuest.Code32);
            a.push((int)SystemGuest.UserCode);
            a.iretd();
        }).Raised(Vector.InvalidOpcode);
        Assert.Equal([SystemGuest.UserCode, outer ? SystemGuest.UserCode32 : SystemGuest.Code32, 2UL | RFlags.Cf | RFlags.Rf], g.Frame[..3]);
        if (outer)
            Assert.Equal([SystemGuest.UserStack, SystemGuest.UserData], g.Frame[3..]);
        else
            Assert.Equal((ulong)SystemGuest.Stack - 12, g.FrameAddress);
    }

    [Fact]
    public void CompatibilityCodeIsInterruptedIntoLongMode()
    {
        using SystemGuest g = Guest(GuestMode.Compatibility).AsUser();
        g.Run(a => a.@int(0x80)).Raised(0x80);
        Assert.Equal([SystemGuest.Code + 2, SystemGuest.UserCode32, 2UL, SystemGuest.UserStack, SystemGuest.UserData], g.Frame);
        Assert.Equal(SystemGuest.Code64, g.Result.Segments[1].Selector);
    }

    [Fact]
    public void BreakpointAndOverflowAreTraps()
    {
        using SystemGuest g = Guest(GuestMode.Protected32).AsUser();
        g.Run(a => a.int3()).Raised(Vector.Breakpoint);
        Assert.Equal(SystemGuest.Code + 1, g.Frame[0]);
        g.State.Rflags |= RFlags.Of;
        g.Run(a => a.into()).Raised(Vector.Overflow);
        g.Run(a => a.int1()).Raised(Vector.Debug);
        Assert.Equal(SystemGuest.Code + 1, g.Frame[0]);
    }
}

/// <summary>The same through the translator.</summary>
public sealed class TranslatedSystemTestsDelivery : SystemTestsDelivery
{
    private protected override bool Translated => true;
}
