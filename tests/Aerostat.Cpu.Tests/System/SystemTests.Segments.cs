using Aerostat.Memory;
using Aerostat.X86;
using Iced.Intel;
using Xunit;
using static Iced.Intel.AssemblerRegisters;

namespace Aerostat.Cpu.Tests;

/// <summary>Segment loads, far transfers, descriptor-table registers and the instructions that test selectors.</summary>
public class SystemTestsSegments : ProcessorTests
{
    [Theory]
    [InlineData((int)SystemGuest.UserData, -1, 0)]
    [InlineData((int)SystemGuest.DataReadOnly, -1, 0)]
    [InlineData((int)SystemGuest.Conforming32, -1, 0)]
    [InlineData(0, -1, 0)]
    [InlineData(3, -1, 0)]
    [InlineData((int)SystemGuest.CodeExecuteOnly, Vector.GeneralProtection, (int)SystemGuest.CodeExecuteOnly)]
    [InlineData((int)SystemGuest.DataAbsent, Vector.SegmentNotPresent, (int)SystemGuest.DataAbsent)]
    [InlineData((int)SystemGuest.GdtLimit + 1, Vector.GeneralProtection, (int)SystemGuest.GdtLimit + 1)]
    [InlineData((int)SystemGuest.TssSelector, Vector.GeneralProtection, (int)SystemGuest.TssSelector)]
    [InlineData((int)SystemGuest.Data0 | 1, Vector.GeneralProtection, (int)SystemGuest.Data0)] // RPL above DPL
    [InlineData(4, Vector.GeneralProtection, 4)] // no LDT
    public void DataSegmentLoads(int selector, int vector, int error)
    {
        using SystemGuest g = Guest(GuestMode.Protected32);
        g.Run(a =>
        {
            a.mov(eax, selector);
            a.mov(es, ax);
            a.mov(ebx, es);
        });
        Assert.Equal(vector, g.Stopped);
        Assert.Equal((uint)error, g.Error);
        if (vector < 0)
            Assert.Equal((ulong)selector, g.Result.Gpr[3]);
    }

    [Theory]
    [InlineData(0, Vector.GeneralProtection, 0)]
    [InlineData((int)SystemGuest.UserData, Vector.GeneralProtection, (int)SystemGuest.UserData & ~3)]
    [InlineData((int)SystemGuest.DataReadOnly, Vector.GeneralProtection, (int)SystemGuest.DataReadOnly)]
    [InlineData((int)SystemGuest.Data0 | 3, Vector.GeneralProtection, (int)SystemGuest.Data0)]
    [InlineData((int)SystemGuest.DataAbsent, Vector.StackFault, (int)SystemGuest.DataAbsent)]
    [InlineData((int)SystemGuest.Data0, -1, 0)]
    public void StackSegmentLoads(int selector, int vector, int error)
    {
        using SystemGuest g = Guest(GuestMode.Protected32);
        g.Run(a =>
        {
            a.mov(eax, selector);
            a.mov(ss, ax);
        });
        Assert.Equal(vector, g.Stopped);
        Assert.Equal((uint)error, g.Error);
    }

    [Fact]
    public void AccessedBitIsSetOnce()
    {
        using SystemGuest g = Guest(GuestMode.Protected32);
        g.Run(a =>
        {
            a.mov(eax, SystemGuest.UserDataFresh);
            a.mov(ds, ax);
        }).Ended();
        Assert.Equal(0xF3UL, g.ReadDescriptor(SystemGuest.UserDataFresh) >> 40 & 0xFF);
        Assert.Equal(0xC0F3u, g.Result.Segments[3].Attributes);
    }

    [Fact]
    public void NullStackSegmentIsGoodForTheKernelIn64BitCode()
    {
        using SystemGuest g = Guest(GuestMode.Long);
        g.Run(a =>
        {
            a.xor(eax, eax);
            a.mov(ss, eax);
            a.push(rax);
        }).Ended();
        g.Run(a =>
        {
            a.mov(eax, 3);
            a.mov(ss, eax);
        }).Raised(Vector.GeneralProtection);
    }

    [Fact]
    public void SegmentUseThroughANullSelectorFaults()
    {
        using SystemGuest g = Guest(GuestMode.Protected32);
        g.Run(a =>
        {
            a.xor(eax, eax);
            a.mov(ds, ax);
            a.mov(ebx, __dword_ptr[SystemGuest.Data]);
        }).Raised(Vector.GeneralProtection);
    }

    [Fact]
    public void MovSsHoldsTrapsOffForOneInstruction()
    {
        using SystemGuest g = Guest(GuestMode.Long);
        g.State.Rflags |= RFlags.Tf;
        g.Run(a =>
        {
            a.mov(eax, SystemGuest.Data0);
            a.mov(ss, eax);
            a.nop();
        }).Raised(Vector.Debug);
        Assert.Equal(SystemGuest.Code + 5, g.Frame[0]); // after the first MOV
        g.State.Rip = SystemGuest.Code + 5;
        g.State.Gpr[0] = SystemGuest.Data0;
        g.Run().Raised(Vector.Debug);
        Assert.Equal(SystemGuest.Code + 8, g.Frame[0]); // not between MOV SS and NOP
    }

    [Fact]
    public void PopOfSegmentsMovesTheStackOnlyOnSuccess()
    {
        using SystemGuest g = Guest(GuestMode.Protected32);
        g.Run(a =>
        {
            a.push((int)SystemGuest.UserData);
            a.pop(es);
        }).Ended();
        Assert.Equal((ulong)SystemGuest.Stack, g.Result.Gpr[4]);
        g.Run(a =>
        {
            a.push((int)SystemGuest.DataAbsent);
            a.pop(es);
        }).Raised(Vector.SegmentNotPresent, SystemGuest.DataAbsent);
        Assert.Equal((ulong)SystemGuest.Stack - 4 - 12, g.FrameAddress);
    }

    [Fact]
    public void FarPointersLoadSegmentAndRegister()
    {
        using SystemGuest g = Guest(GuestMode.Protected32);
        g.Memory.Write(new GuestAddress(SystemGuest.Data), 0x1234_5678u);
        g.Memory.Write(new GuestAddress(SystemGuest.Data + 4), SystemGuest.UserData);
        g.Run(a => a.les(eax, __[SystemGuest.Data])).Ended();
        Assert.Equal(0x1234_5678UL, g.Rax);
        Assert.Equal(SystemGuest.UserData, g.Result.Segments[0].Selector);
    }

    [Fact]
    public void LocalDescriptorTable()
    {
        using SystemGuest g = Guest(GuestMode.Long);
        g.Run(a =>
        {
            a.mov(eax, SystemGuest.LdtSelector);
            a.lldt(ax);
            a.mov(ecx, 4);
            a.mov(fs, ecx);
            a.sldt(edx);
        }).Ended();
        Assert.Equal(0x1234UL, g.Result.Segments[4].Base);
        Assert.Equal((ulong)SystemGuest.LdtSelector, g.Result.Gpr[2]);
        g.Run(a =>
        {
            a.mov(eax, SystemGuest.Data0);
            a.lldt(ax);
        }).Raised(Vector.GeneralProtection, SystemGuest.Data0);
    }

    [Fact]
    public void TaskRegisterBecomesBusy()
    {
        using SystemGuest g = Guest(GuestMode.Long);
        g.Run(a =>
        {
            a.mov(eax, SystemGuest.TssAvailable);
            a.ltr(ax);
            a.str(edx);
        }).Ended();
        Assert.Equal(0x8BUL, g.ReadDescriptor(SystemGuest.TssAvailable) >> 40 & 0xFF);
        Assert.Equal((ulong)SystemGuest.TssAvailable, g.Result.Gpr[2]);
        Assert.Equal((ulong)SystemGuest.Tss, g.Result.Tr.Base);
        g.Run(a =>
        {
            a.mov(eax, SystemGuest.TssSelector);
            a.ltr(ax);
        }).Raised(Vector.GeneralProtection, SystemGuest.TssSelector);
    }

    [Theory]
    [InlineData((int)SystemGuest.Data0, true, true, true)]
    [InlineData((int)SystemGuest.DataReadOnly, true, true, false)]
    [InlineData((int)SystemGuest.CodeExecuteOnly, true, false, false)]
    [InlineData((int)SystemGuest.DataAbsent, true, true, true)]
    [InlineData((int)SystemGuest.TssSelector, true, false, false)]
    [InlineData(0, false, false, false)]
    [InlineData((int)SystemGuest.GdtLimit + 1, false, false, false)]
    public void SelectorsAreInspectedWithoutFaults(int selector, bool found, bool readable, bool writable)
    {
        using SystemGuest g = Guest(GuestMode.Protected32);
        g.Run(a =>
        {
            a.mov(ecx, selector);
            a.lar(edx, ecx);
            a.sete(al);
            a.lsl(ebx, ecx);
            a.sete(ah);
            a.shl(eax, 16);
            a.verr(cx);
            a.sete(al);
            a.verw(cx);
            a.sete(ah);
        }).Ended();
        Assert.Equal((found ? 0x0101_0000UL : 0) | (readable ? 1UL : 0) | (writable ? 0x100UL : 0), g.Rax);
        if (found && selector != SystemGuest.TssSelector)
        {
            Assert.Equal(g.ReadDescriptor(selector) >> 32 & 0x00FF_FF00, g.Result.Gpr[2]);
            Assert.Equal(uint.MaxValue, g.Result.Gpr[3]);
        }
    }

    [Fact]
    public void ArplRaisesTheRequestedPrivilege()
    {
        using SystemGuest g = Guest(GuestMode.Protected32);
        g.Run(a =>
        {
            a.mov(eax, 0x18);
            a.mov(ecx, 3);
            a.arpl(ax, cx);
            a.sete(dl);
        }).Ended();
        Assert.Equal(0x1BUL, g.Rax);
        Assert.Equal(1UL, g.Result.Gpr[2] & 0xFF);
        using SystemGuest real = Guest(GuestMode.Real);
        real.Run(a => a.arpl(ax, cx)).Raised(Vector.InvalidOpcode);
    }

    [Fact]
    public void TableRegistersRoundTrip()
    {
        using SystemGuest g = Guest(GuestMode.Long);
        g.Memory.Write(new GuestAddress(SystemGuest.Data), (ushort)0x1FF);
        g.Memory.Write(new GuestAddress(SystemGuest.Data + 2), (ulong)SystemGuest.Gdt);
        g.Run(a =>
        {
            a.lgdt(__[SystemGuest.Data]);
            a.sgdt(__[SystemGuest.Data + 16]);
            a.sidt(__[SystemGuest.Data + 32]);
        }).Ended();
        Assert.Equal(0x1FF, g.Memory.Read<ushort>(new GuestAddress(SystemGuest.Data + 16)));
        Assert.Equal(SystemGuest.Gdt, g.Memory.Read<ulong>(new GuestAddress(SystemGuest.Data + 18)));
        Assert.Equal(SystemGuest.Idt, g.Memory.Read<ulong>(new GuestAddress(SystemGuest.Data + 34)));
        g.Memory.Write(new GuestAddress(SystemGuest.Data + 2), 1UL << 63);
        g.Run(a => a.lgdt(__[SystemGuest.Data])).Raised(Vector.GeneralProtection);
    }

    [Fact]
    public void SixteenBitLgdtLoadsThreeBytesOfBase()
    {
        using SystemGuest g = Guest(GuestMode.Real);
        g.Memory.Write(new GuestAddress(0x500), (ushort)0xFF);
        g.Memory.Write(new GuestAddress(0x502), 0xAB12_3456u);
        g.Run(a => a.db(0x0F, 0x01, 0x16, 0x00, 0x05)).Ended(); // lgdt [500h]
        Assert.Equal(0x12_3456UL, g.Result.Gdtr.Base);
        g.Run(a => a.db(0x66, 0x0F, 0x01, 0x16, 0x00, 0x05)).Ended();
        Assert.Equal(0xAB12_3456UL, g.Result.Gdtr.Base);
    }

    [Fact]
    public void UmipHidesTablesFromUserCode()
    {
        using SystemGuest g = Guest(GuestMode.Long).AsUser();
        g.Run(a =>
        {
            a.str(eax);
            a.ud2();
        }).Raised(Vector.InvalidOpcode);
        g.State.Cr4 |= Cr4.Umip;
        foreach (Action<Assembler> code in (Action<Assembler>[])[a => a.str(eax), a => a.sldt(eax), a => a.smsw(eax), a => a.sgdt(__[SystemGuest.Data]), a => a.sidt(__[SystemGuest.Data])])
            g.Run(code).Raised(Vector.GeneralProtection);
    }

    private static void FarPointer(SystemGuest g, ulong offset, int selector, int size)
    {
        g.Memory.Write(new GuestAddress(SystemGuest.Data), offset);
        g.Memory.Write(new GuestAddress(SystemGuest.Data + (ulong)size), (ushort)selector);
    }

    [Fact]
    public void FarJumpAndCallThroughMemory()
    {
        using SystemGuest g = Guest(GuestMode.Protected32);
        g.Place(SystemGuest.UserCode, 32, a => a.retf());
        FarPointer(g, SystemGuest.UserCode, SystemGuest.Conforming32, 4);
        g.Run(a =>
        {
            a.call(__fword_ptr[SystemGuest.Data]);
            a.mov(eax, cs);
        }).Ended();
        Assert.Equal((ulong)SystemGuest.Code32, g.Rax);
        Assert.Equal((ulong)SystemGuest.Stack, g.Result.Gpr[4]);
        g.Place(SystemGuest.UserCode, 32, a => a.hlt());
        g.Run(a => a.jmp(__fword_ptr[SystemGuest.Data])).Ended();
        Assert.Equal(SystemGuest.UserCode + 1, g.Result.Rip);
        Assert.Equal(SystemGuest.Conforming32, g.Result.Segments[1].Selector);
    }

    [Theory]
    [InlineData(0, Vector.GeneralProtection, 0)]
    [InlineData((int)SystemGuest.Data0, Vector.GeneralProtection, (int)SystemGuest.Data0)]
    [InlineData((int)SystemGuest.CodeAbsent, Vector.SegmentNotPresent, (int)SystemGuest.CodeAbsent)]
    [InlineData((int)SystemGuest.UserCode32, Vector.GeneralProtection, (int)SystemGuest.UserCode32 & ~3)]
    [InlineData((int)SystemGuest.Code32 | 1, Vector.GeneralProtection, (int)SystemGuest.Code32)]
    [InlineData((int)SystemGuest.TssSelector, Vector.GeneralProtection, (int)SystemGuest.TssSelector)]
    public void FarJumpChecks(int selector, int vector, int error)
    {
        using SystemGuest g = Guest(GuestMode.Protected32);
        FarPointer(g, SystemGuest.UserCode, selector, 4);
        g.Run(a => a.jmp(__fword_ptr[SystemGuest.Data])).Raised(vector, (uint)error);
        Assert.Equal(SystemGuest.Code, g.Frame[0]);
    }

    [Fact]
    public void FarReturnToUserCodeReleasesParametersOnBothStacks()
    {
        using SystemGuest g = Guest(GuestMode.Protected32);
        g.Place(SystemGuest.UserCode, 32, a => a.ud2());
        g.Run(a =>
        {
            a.push((int)SystemGuest.UserData);
            a.push((int)SystemGuest.UserStack);
            a.push(1);
            a.push(2);
            a.push(SystemGuest.UserCode32);
            a.push((int)SystemGuest.UserCode);
            a.retf(8);
        }).Raised(Vector.InvalidOpcode);
        Assert.Equal([SystemGuest.UserCode, SystemGuest.UserCode32], g.Frame[..2]);
        Assert.Equal([SystemGuest.UserStack + 8, SystemGuest.UserData], g.Frame[3..]);
        Assert.Equal(0, g.Result.Segments[3].Selector);
    }

    [Fact]
    public void LongModeFarReturnEntersCompatibilityCode()
    {
        using SystemGuest g = Guest(GuestMode.Long);
        g.Place(SystemGuest.UserCode, 32, a =>
        {
            a.mov(eax, cs);
            a.hlt();
        });
        g.Run(a =>
        {
            a.push(SystemGuest.Code32);
            a.push((int)SystemGuest.UserCode);
            a.db(0x48, 0xCB); // retf, 64-bit
        }).Ended();
        Assert.Equal((ulong)SystemGuest.Code32, g.Rax);
        FarPointer(g, 1UL << 47, SystemGuest.Code64, 8);
        g.Run(a => a.db(0x48, 0xFF, 0x2C, 0x25, 0x00, 0x00, 0x02, 0x00)).Raised(Vector.GeneralProtection); // jmp far [20000h], not canonical
    }

    [Fact]
    public void RealModeFarCallAndReturn()
    {
        using SystemGuest g = Guest(GuestMode.Real);
        g.Memory.Write(new GuestAddress(0x3000), new byte[] { 0xB8, 0x78, 0x56, 0xCB }); // mov ax,5678h; retf
        g.Run(a => a.db(0x9A, 0x00, 0x10, 0x00, 0x02)).Ended(); // call 0200:1000
        Assert.Equal(0x5678UL, g.Rax);
        Assert.Equal((ulong)SystemGuest.Stack, g.Result.Gpr[4]);
        Assert.Equal((ulong)SystemGuest.Code, g.Result.Segments[1].Base);
    }
}

/// <summary>The same through the translator.</summary>
public sealed class TranslatedSystemTestsSegments : SystemTestsSegments
{
    private protected override bool Translated => true;
}
