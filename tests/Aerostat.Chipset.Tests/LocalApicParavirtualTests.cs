namespace Aerostat.Chipset.Tests;

/// <summary>The end of interrupts through a flag in guest memory.</summary>
public sealed class LocalApicParavirtualTests
{
    private sealed class Flag : IEndOfInterruptFlag
    {
        public bool IsSet { get; set; }

        public bool Exists { get; init; } = true;

        public bool Set() => Exists && (IsSet = true);

        public bool Clear()
        {
            bool was = IsSet;
            IsSet = false;
            return was;
        }
    }

    private readonly Board board = new(2);
    private readonly Flag flag = new();

    private FakeProcessor Cpu()
    {
        FakeProcessor cpu = board[0];
        cpu.Apic.EndOfInterruptFlag = flag;
        return cpu;
    }

    private static void SelfIpi(FakeProcessor cpu, uint vector) => cpu.Write(0x300, 0x40000 | vector);

    [Fact]
    public void TheGuestEndsAnInterruptThroughTheFlag()
    {
        FakeProcessor cpu = Cpu();
        SelfIpi(cpu, 0x52);
        Assert.False(flag.IsSet);
        Assert.Equal(0x52, cpu.Take());
        Assert.True(flag.IsSet);
        flag.IsSet = false;
        // Nobody has looked since: the sender of a lower one raises the wire, and the acknowledge cycle finds the end.
        board[1].Write(0x310, 0);
        board[1].Write(0x300, 0x31);
        Assert.True(cpu.Pins.Requested);
        Assert.Equal(0x31, cpu.Take());
        Assert.True(flag.IsSet);
        flag.IsSet = false;
        Assert.Equal(0u, cpu.Read(0xA0));
        Assert.Equal(0u, cpu.Read(0x120));
    }

    [Fact]
    public void AnInterruptThatIsNotEndedIsTakenBack()
    {
        FakeProcessor cpu = Cpu();
        SelfIpi(cpu, 0x52);
        Assert.Equal(0x52, cpu.Take());
        board[1].Write(0x310, 0);
        board[1].Write(0x300, 0x31);
        Assert.Equal(-1, cpu.Take());
        Assert.False(flag.IsSet);
        Assert.False(cpu.Pins.Requested);
        // Now the guest must write EOI, and gets the other one then.
        cpu.Eoi();
        Assert.True(cpu.Pins.Requested);
        Assert.Equal(0x31, cpu.Take());
    }

    [Fact]
    public void ANestedInterruptTakesTheFlagFromTheOuterOne()
    {
        FakeProcessor cpu = Cpu();
        SelfIpi(cpu, 0x41);
        Assert.Equal(0x41, cpu.Take());
        SelfIpi(cpu, 0x81);
        Assert.Equal(0x81, cpu.Take());
        Assert.False(flag.IsSet);
        cpu.Eoi();
        cpu.Eoi();
        Assert.Equal(0u, cpu.Read(0xA0));
    }

    [Fact]
    public void WhatSomebodyWaitsForIsNotLent()
    {
        FakeProcessor cpu = Cpu();
        // Another one is waiting for this one's end.
        SelfIpi(cpu, 0x41);
        SelfIpi(cpu, 0x42);
        Assert.Equal(0x42, cpu.Take());
        Assert.False(flag.IsSet);
        cpu.Eoi();
        Assert.Equal(0x41, cpu.Take());
        Assert.True(flag.IsSet);
        flag.IsSet = false;
        // The I/O APICs wait for the end of a level-triggered one.
        board.Fabric.Send(0xFEE0_0000, 0xC061);
        Assert.Equal(0x61, cpu.Take());
        Assert.False(flag.IsSet);
    }

    [Fact]
    public void RegistersShowTheEndAsSoonAsSomebodyLooks()
    {
        FakeProcessor cpu = Cpu();
        SelfIpi(cpu, 0x52);
        Assert.Equal(0x52, cpu.Take());
        flag.IsSet = false;
        Assert.Equal(0u, cpu.Read(0x120));
        SelfIpi(cpu, 0x52);
        Assert.Equal(0x52, cpu.Take());
        flag.IsSet = false;
        Assert.Equal(0u, cpu.Read(0xA0));
        cpu.Apic.EndOfInterruptFlag = null;
        SelfIpi(cpu, 0x52);
        Assert.Equal(0x52, cpu.Take());
        Assert.False(flag.IsSet);
    }

    [Fact]
    public void ALoanOutlivesASave()
    {
        FakeProcessor cpu = Cpu();
        SelfIpi(cpu, 0x52);
        Assert.Equal(0x52, cpu.Take());
        LocalApicSavedState state = cpu.Apic.Save();
        Assert.True(flag.IsSet);
        flag.IsSet = false;
        cpu.Apic.Restore(state);
        Assert.Null(cpu.Apic.EndOfInterruptFlag);
        cpu.Apic.EndOfInterruptFlag = flag;
        Assert.Equal(0u, cpu.Read(0x120));
        // And one that the guest has not used.
        flag.IsSet = true;
        cpu.Apic.Restore(state);
        cpu.Apic.EndOfInterruptFlag = flag;
        Assert.Equal(1u << 0x12, cpu.Read(0x120));
        Assert.False(flag.IsSet);
    }

    [Fact]
    public void ResetAndInitEndTheLoan()
    {
        FakeProcessor cpu = Cpu();
        SelfIpi(cpu, 0x52);
        Assert.Equal(0x52, cpu.Take());
        cpu.Apic.Reset();
        Assert.False(flag.IsSet);
        Assert.Null(cpu.Apic.EndOfInterruptFlag);
        Assert.Equal(-1, cpu.Take());
    }

    [Fact]
    public void AFlagWithoutMemoryIsNone()
    {
        FakeProcessor cpu = board[0];
        cpu.Apic.EndOfInterruptFlag = new Flag { Exists = false };
        SelfIpi(cpu, 0x52);
        Assert.Equal(0x52, cpu.Take());
        Assert.Equal(0x50u, cpu.Read(0xA0));
        cpu.Eoi();
        Assert.Equal(0u, cpu.Read(0xA0));
    }
}
