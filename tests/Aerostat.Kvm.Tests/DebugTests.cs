using Aerostat.Processors;
using Aerostat.X86;
using Iced.Intel;
using Xunit;
using static Iced.Intel.AssemblerRegisters;

namespace Aerostat.Kvm.Tests;

/// <summary>The part of the debugging seam that every processor has: hardware breakpoints and single steps.</summary>
public sealed class DebugTests
{
    public static TheoryData<string> Kinds => ProcessorKinds.All;

    private static void Count(Assembler a)
    {
        a.inc(rbx);
        a.inc(rbx);
        a.mov(__dword_ptr[0x100000], 7);
        a.mov(eax, __dword_ptr[0x100004]);
        a.inc(rbx);
        a.pushfq();
        a.pop(r8);
        a.mov(r9, dr7);
        a.hlt();
    }

    [Theory, MemberData(nameof(Kinds))]
    public void BreakpointsStopAndGoOn(string kind)
    {
        ProcessorKinds.SkipIfNested(kind, "loads DR7 without arming breakpoints");
        using SmallGuest g = new(kind);
        g.Long(Count);
        g.Processor.SetGuestDebug(new GuestDebug
        {
            Hardware = [new(BreakpointKind.Execute, SmallGuest.Code + 3), new(BreakpointKind.Write, 0x100000, 4), new(BreakpointKind.ReadWrite, 0x100004, 4)],
        });
        Assert.Equal((ExitReason.Debug, 1UL), (g.Run() is var first ? first.Reason : default, first.Detail & GuestDebugBits.Hardware));
        Assert.Equal((SmallGuest.Code + 3, 1UL), (g.Processor.GetState().Rip, g.Processor.GetState().Gpr[3]));
        // A KVM that emulates its guests knows no data breakpoints.
        if (ProcessorKinds.IsExact(kind))
        {
            Assert.Equal(2UL, g.Run().Detail & GuestDebugBits.Hardware);
            Assert.Equal(7u, g.Memory.Read<uint>(new(0x100000)));
            Assert.Equal(4UL, g.Run().Detail & GuestDebugBits.Hardware);
        }
        ProcessorState s = g.RunToHalt();
        // The guest has seen nothing of it.
        Assert.Equal((3UL, 0x400UL), (s.Gpr[3], s.Gpr[9]));
        Assert.Equal(0UL, s.Gpr[8] & (RFlags.Tf | RFlags.Rf));
    }

    [Theory, MemberData(nameof(Kinds))]
    public void OneInstructionAtATime(string kind)
    {
        using SmallGuest g = new(kind);
        g.Long(Count);
        g.Processor.SetGuestDebug(new GuestDebug { SingleStep = true });
        for (ulong i = 1; i <= 2; i++)
        {
            ProcessorExit exit = g.Run();
            Assert.Equal((ExitReason.Debug, GuestDebugBits.SingleStep), (exit.Reason, exit.Detail & GuestDebugBits.SingleStep));
            Assert.Equal((SmallGuest.Code + (3 * i), i), (g.Processor.GetState().Rip, g.Processor.GetState().Gpr[3]));
        }
        g.Processor.SetGuestDebug(GuestDebug.None);
        ProcessorState s = g.RunToHalt();
        Assert.Equal((3UL, 0UL), (s.Gpr[3], s.Gpr[8] & RFlags.Tf));
        Assert.Equal(0UL, s.Rflags & RFlags.Tf);
    }

    [Theory, MemberData(nameof(Kinds))]
    public void WhatCannotBeIsRefusedAndChangesNothing(string kind)
    {
        using SmallGuest g = new(kind);
        g.Long(Count);
        GuestDebugException e = Assert.Throws<GuestDebugException>(() => g.Processor.SetGuestDebug(new GuestDebug { Hardware = [.. Enumerable.Repeat(new HardwareBreakpoint(BreakpointKind.Execute, SmallGuest.Code), 5)] }));
        Assert.Equal(GuestDebugError.TooMany, e.Error);
        Assert.Equal(3UL, g.RunToHalt().Gpr[3]);
    }
}
