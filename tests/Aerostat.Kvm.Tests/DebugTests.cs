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

    private const string Lacks = "loads DR7 at VMRUN without arming the breakpoints in it";

    [Theory, MemberData(nameof(Kinds))]
    public void ExecuteBreakpointsStopAndGoOn(string kind)
    {
        ProcessorKinds.SkipIfNested(kind, Lacks);
        using SmallGuest g = new(kind);
        g.Long(Count);
        ulong[] at = [SmallGuest.Code + 3, SmallGuest.Code + 6];
        g.Processor.SetGuestDebug(new GuestDebug { Hardware = [.. at.Select(address => new HardwareBreakpoint(BreakpointKind.Execute, address))] });
        for (int i = 0; i < at.Length; i++)
        {
            ProcessorExit exit = g.Run();
            Assert.Equal((ExitReason.Debug, 1UL << i), (exit.Reason, exit.Detail & GuestDebugBits.Hardware));
            Assert.Equal((at[i], (ulong)i + 1), (g.Processor.GetState().Rip, g.Processor.GetState().Gpr[3]));
        }
        NothingWasSeen(g);
    }

    /// <summary>Writes, and reads and writes, of 1, 2, 4 and 8 bytes: behind the instruction that made them, and only where they touch.</summary>
    [Theory, MemberData(nameof(Kinds))]
    public void DataBreakpointsStopAndGoOn(string kind)
    {
        ProcessorKinds.SkipIfNested(kind, Lacks);
        ProcessorKinds.SkipWithoutDataBreakpoints(kind);
        foreach (int length in (int[])[1, 2, 4, 8])
        {
            using SmallGuest g = new(kind);
            g.Long(Count);
            g.Processor.SetGuestDebug(new GuestDebug
            {
                Hardware = [new(BreakpointKind.Execute, SmallGuest.Code + 3), new(BreakpointKind.Write, 0x100000, length == 8 ? 4 : length), new(BreakpointKind.ReadWrite, 0x100004 & ~((ulong)length - 1), length), new(BreakpointKind.Write, 0x100010, length)],
            });
            Assert.Equal(1UL, g.Run().Detail & GuestDebugBits.Hardware);
            ulong write = g.Run().Detail & GuestDebugBits.Hardware;
            Assert.Equal(length == 8 ? 6UL : 2UL, write);
            Assert.Equal(7u, g.Memory.Read<uint>(new(0x100000)));
            Assert.Equal(4UL, g.Run().Detail & GuestDebugBits.Hardware);
            NothingWasSeen(g);
        }
    }

    private static void NothingWasSeen(SmallGuest g)
    {
        ProcessorState s = g.RunToHalt();
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
