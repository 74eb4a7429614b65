using Aerostat.Memory;
using Aerostat.Processors;
using Aerostat.X86;
using Xunit;
using static Iced.Intel.AssemblerRegisters;

namespace Aerostat.Cpu.Tests;

/// <summary>Far JMP and CALL through call gates (Intel SDM vol. 3 sections 6.8.3 to 6.8.6 and 6.14.2).</summary>
public class CallGateTests : ProcessorTests
{
    private const ushort Gate = 0xC8;
    private const uint Target = 0x6000;

    private SystemGuest WithGate(GuestMode mode, ulong gate, ulong high = 0, int rpl = 0)
    {
        SystemGuest g = Guest(mode);
        g.State.Gdtr = new DescriptorTableState(SystemGuest.Gdt, 0xFF);
        g.WriteDescriptor(Gate, gate);
        g.WriteDescriptor(Gate + 8, high);
        // The offset of the pointer does not count.
        g.Memory.Write(new GuestAddress(SystemGuest.Data), 0xDEAD_BEEFu);
        g.Memory.Write(new GuestAddress(SystemGuest.Data + 4), (ushort)(Gate | rpl));
        g.State.Gpr[3] = SystemGuest.Data;
        return g;
    }

    private static ulong Describe(int selector, ulong target, int type = 12, int dpl = 0, int count = 0, bool present = true) =>
        (target & 0xFFFF) | (ulong)(ushort)selector << 16 | (ulong)count << 32 | (ulong)(type | dpl << 5 | (present ? 0x80 : 0)) << 40 | (target & 0xFFFF_0000) << 32;

    private static uint[] Words(SystemGuest g, ulong at, int count) => [.. Enumerable.Range(0, count).Select(i => g.Memory.Read<uint>(new GuestAddress(at + (ulong)(i * 4))))];

    [Fact]
    public void ACallAtTheSameLevelReturns()
    {
        using SystemGuest g = WithGate(GuestMode.Protected32, Describe(SystemGuest.Code32, Target));
        g.Place(Target, 32, a =>
        {
            a.mov(ecx, __dword_ptr[esp]);
            a.mov(edx, __dword_ptr[esp + 4]);
            a.retf();
        });
        g.Run(a =>
        {
            a.call(__fword_ptr[ebx]);
            a.mov(eax, 1);
        }).Ended();
        Assert.Equal((SystemGuest.Code + 2UL, (ulong)SystemGuest.Code32, 1UL, (ulong)SystemGuest.Stack), (g.Result.Gpr[1], g.Result.Gpr[2], g.Rax, g.Result.Gpr[4]));
    }

    [Fact]
    public void ACallToAnInnerLevelTakesItsParametersAlong()
    {
        using SystemGuest g = WithGate(GuestMode.Protected32, Describe(SystemGuest.Code32, Target, dpl: 3, count: 2), rpl: 3).AsUser();
        g.Place(Target, 32, a =>
        {
            a.mov(esi, esp);
            a.mov(edi, ss);
            a.mov(ebp, cs);
            a.retf(8);
        });
        g.Run(a =>
        {
            a.push(0x11);
            a.push(0x22);
            a.call(__fword_ptr[ebx]);
            a.ud2();
        }).Raised(Vector.InvalidOpcode);
        Assert.Equal((ulong)SystemGuest.InnerStack - 24, g.Result.Gpr[6]);
        Assert.Equal((SystemGuest.Data0, (ulong)SystemGuest.Code32), ((ushort)g.Result.Gpr[7], g.Result.Gpr[5]));
        // Pushed there since: nothing but the frame of #UD, five words from the same top, which takes the place of the five highest.
        Assert.Equal([SystemGuest.Code + 6UL, SystemGuest.UserCode32], g.Frame[..2]);
        Assert.Equal([SystemGuest.UserStack, SystemGuest.UserData], g.Frame[3..]);
        Assert.Equal(SystemGuest.Code + 6, g.Memory.Read<uint>(new GuestAddress(SystemGuest.InnerStack - 24)));
    }

    [Fact]
    public void TheInnerStackHoldsWhereTheCallCameFrom()
    {
        using SystemGuest g = WithGate(GuestMode.Protected32, Describe(SystemGuest.Code32, Target, dpl: 3, count: 2)).AsUser();
        g.Place(Target, 32, a => a.hlt());
        g.Run(a =>
        {
            a.push(0x11);
            a.push(0x22);
            a.call(__fword_ptr[ebx]);
        }).Ended();
        Assert.Equal((ulong)SystemGuest.InnerStack - 24, g.Result.Gpr[4]);
        Assert.Equal([SystemGuest.Code + 6, SystemGuest.UserCode32, 0x22, 0x11, SystemGuest.UserStack - 8, SystemGuest.UserData], Words(g, g.Result.Gpr[4], 6));
    }

    /// <summary>Two bytes for each word, 16 bits of the offset, and the stack out of a 16-bit TSS.</summary>
    [Fact]
    public void SixteenBitGates()
    {
        using SystemGuest g = WithGate(GuestMode.Protected32, Describe(SystemGuest.Code32, 0xFFFF_0000 | Target, type: 4, dpl: 3, count: 1)).AsUser();
        g.Place(Target, 32, a => a.hlt());
        g.State.Tr = new SegmentState(SystemGuest.TssSelector, SystemGuest.Tss, 0x1FF, 0x83);
        g.Memory.Write(new GuestAddress(SystemGuest.Tss + 2), (ushort)SystemGuest.InnerStack);
        g.Memory.Write(new GuestAddress(SystemGuest.Tss + 4), SystemGuest.Data0);
        g.Run(a =>
        {
            a.db(0x66, 0x6A, 0x55); // push word 55h
            a.call(__fword_ptr[ebx]);
        }).Ended();
        Assert.Equal((ulong)SystemGuest.InnerStack - 10, g.Result.Gpr[4]);
        ushort[] words = [.. Enumerable.Range(0, 5).Select(i => g.Memory.Read<ushort>(new GuestAddress(g.Result.Gpr[4] + (ulong)(i * 2))))];
        Assert.Equal([unchecked((ushort)(SystemGuest.Code + 5)), SystemGuest.UserCode32, 0x55, (ushort)(SystemGuest.UserStack - 2), SystemGuest.UserData], words);
    }

    /// <summary>JMP keeps the privilege level: a conforming segment is good, one of an inner level is not.</summary>
    [Theory]
    [InlineData((int)SystemGuest.Conforming32, -1)]
    [InlineData((int)SystemGuest.Code32, Vector.GeneralProtection)]
    public void JumpsStayAtTheirLevel(int selector, int vector)
    {
        using SystemGuest g = WithGate(GuestMode.Protected32, Describe(selector, Target, dpl: 3)).AsUser();
        g.Place(Target, 32, a => a.ud2());
        g.Run(a => a.jmp(__fword_ptr[ebx]));
        if (vector >= 0)
        {
            g.Raised(vector, (uint)selector);
            return;
        }
        g.Raised(Vector.InvalidOpcode);
        Assert.Equal([Target, (ulong)selector | 3], g.Frame[..2]);
    }

    /// <summary>What is wrong with the gate, then with the code segment, then with the stack; the caller's state stays as it was.</summary>
    [Theory]
    [InlineData("level", Vector.GeneralProtection, (uint)Gate)]
    [InlineData("rpl", Vector.GeneralProtection, (uint)Gate)]
    [InlineData("absent", Vector.SegmentNotPresent, (uint)Gate)]
    [InlineData("null code", Vector.GeneralProtection, 0u)]
    [InlineData("data", Vector.GeneralProtection, (uint)SystemGuest.Data0)]
    [InlineData("beyond the table", Vector.GeneralProtection, 0x100u)]
    [InlineData("absent code", Vector.SegmentNotPresent, (uint)SystemGuest.CodeAbsent)]
    [InlineData("offset", Vector.GeneralProtection, 0u)]
    [InlineData("short tss", Vector.InvalidTss, (uint)SystemGuest.TssSelector)]
    [InlineData("null stack", Vector.InvalidTss, 0u)]
    [InlineData("stack of another level", Vector.InvalidTss, (uint)SystemGuest.UserData & ~3u)]
    [InlineData("read-only stack", Vector.InvalidTss, (uint)SystemGuest.DataReadOnly)]
    [InlineData("absent stack", Vector.StackFault, (uint)SystemGuest.DataAbsent)]
    public void WhatIsWrongIsSaid(string wrong, int vector, uint error)
    {
        int code = wrong switch { "null code" => 0, "data" => SystemGuest.Data0, "beyond the table" => 0x100, "absent code" => SystemGuest.CodeAbsent, "offset" => SystemGuest.Code16, _ => SystemGuest.Code32 };
        ulong gate = Describe(code, wrong == "offset" ? 0x1_2000 : Target, dpl: wrong is "level" or "rpl" ? 2 : 3, present: wrong != "absent");
        using SystemGuest g = WithGate(GuestMode.Protected32, gate, rpl: wrong == "rpl" ? 3 : 0);
        bool stack = wrong is "short tss" or "null stack" or "stack of another level" or "read-only stack" or "absent stack";
        if (wrong != "rpl")
            g.AsUser();
        // The exception needs an inner stack as well: the test of the stack segment is that of a call from level 3 to level 1.
        if (stack)
        {
            const ushort Inner = 0xD8;
            g.WriteDescriptor(Gate, Describe(Inner, Target, dpl: 3));
            g.WriteDescriptor(Inner, SystemGuest.Segment(0, 0xFFFFF, 0xBB, 0xC));
            int selector = wrong switch { "stack of another level" => SystemGuest.UserData, "read-only stack" => SystemGuest.DataReadOnly | 1, "absent stack" => SystemGuest.DataAbsent | 1, _ => 0 };
            if (wrong == "read-only stack")
                g.WriteDescriptor(SystemGuest.DataReadOnly, SystemGuest.Segment(0, 0xFFFFF, 0xB1, 0xC));
            if (wrong == "absent stack")
                g.WriteDescriptor(SystemGuest.DataAbsent, SystemGuest.Segment(0, 0xFFFFF, 0x33, 0xC));
            g.Memory.Write(new GuestAddress(SystemGuest.Tss + 12), SystemGuest.Stack);
            g.Memory.Write(new GuestAddress(SystemGuest.Tss + 16), (ushort)selector);
            if (wrong == "short tss")
                g.State.Tr = g.State.Tr with { Limit = 13 };
        }
        g.Run(a => a.call(__fword_ptr[ebx])).Raised(vector, error);
        Assert.Equal(SystemGuest.Code, g.Frame[0]);
        if (wrong != "rpl")
            Assert.Equal([SystemGuest.UserStack, SystemGuest.UserData], g.Frame[3..]);
    }

    [Fact]
    public void SixtyFourBitGatesHaveSixteenBytes()
    {
        using SystemGuest g = WithGate(GuestMode.Long, Describe(SystemGuest.Code64, Target));
        g.Place(Target, 64, a =>
        {
            a.mov(rcx, __qword_ptr[rsp]);
            a.mov(rdx, __qword_ptr[rsp + 8]);
            a.db(0x48, 0xCB); // retf, 64-bit
        });
        g.Run(a => a.call(__fword_ptr[rbx])).Ended();
        Assert.Equal((SystemGuest.Code + 2UL, (ulong)SystemGuest.Code64, (ulong)SystemGuest.Stack), (g.Result.Gpr[1], g.Result.Gpr[2], g.Result.Gpr[4]));
    }

    [Fact]
    public void FromUserCodeTheStackSegmentBecomesNull()
    {
        using SystemGuest g = WithGate(GuestMode.Long, Describe(SystemGuest.Code64, Target, dpl: 3)).AsUser();
        g.Place(Target, 64, a => a.hlt());
        g.Run(a => a.call(__fword_ptr[rbx])).Ended();
        Assert.Equal((SystemGuest.Code64, 0, SystemGuest.InnerStack - 32UL), (g.Result.Segments[1].Selector, g.Result.Segments[2].Selector, g.Result.Gpr[4]));
        ulong[] frame = [.. Enumerable.Range(0, 4).Select(i => g.Memory.Read<ulong>(new GuestAddress(g.Result.Gpr[4] + (ulong)(i * 8))))];
        Assert.Equal([SystemGuest.Code + 2UL, SystemGuest.UserCode64, SystemGuest.UserStack, SystemGuest.UserData], frame);
    }

    [Theory]
    [InlineData(0x8000UL, 12, (int)SystemGuest.Code64, 0u)] // not canonical
    [InlineData(0x0000_0C00_0000_0000UL, 12, (int)SystemGuest.Code64, (uint)Gate)] // a type in the second half
    [InlineData(0UL, 4, (int)SystemGuest.Code64, (uint)Gate)] // a 16-bit gate
    [InlineData(0UL, 5, (int)SystemGuest.TssSelector, (uint)Gate)] // a task gate
    [InlineData(0UL, 12, (int)SystemGuest.Code32, (uint)SystemGuest.Code32)] // not 64-bit code
    [InlineData(0UL, 12, (int)SystemGuest.CodeBad64, (uint)SystemGuest.CodeBad64)] // L and D
    public void LongModeIsStricter(ulong high, int type, int selector, uint error)
    {
        using SystemGuest g = WithGate(GuestMode.Long, Describe(selector, Target, type), high);
        g.Run(a => a.call(__fword_ptr[rbx])).Raised(Vector.GeneralProtection, error);
        Assert.Equal(SystemGuest.Code, g.Frame[0]);
    }
}

/// <summary>The same through the translator.</summary>
public sealed class TranslatedCallGateTests : CallGateTests
{
    private protected override bool Translated => true;
}
