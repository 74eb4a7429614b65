using Aerostat.Memory;
using Aerostat.Processors;
using Aerostat.X86;
using Iced.Intel;
using Xunit;
using static Iced.Intel.AssemblerRegisters;

namespace Aerostat.Cpu.Tests;

/// <summary>The host's debugger (<see cref="GuestDebug"/>) on the interpreter and on translated code.</summary>
public sealed class GuestDebugTests
{
    private const ulong Cell = TestMachine.Data + 0x800;

    private static TestMachine Create(bool translated, TestMode mode = TestMode.Long)
    {
        Assert.SkipWhen(translated && !TranslatorHypervisor.IsSupported, "the translator needs an x86-64 host");
        return new TestMachine(mode, hypervisor: translated ? memory => new TranslatorHypervisor(memory, threshold: 0) : null);
    }

    private static GuestDebug At(params ulong[] addresses) => new() { Code = addresses.ToHashSet() };

    private static GuestDebug Watch(BreakpointKind kind, ulong address, int length) => new() { Hardware = [new(kind, address, length)] };

    // Rounds of four instructions; returns where the second begins.
    private static ulong Loop(TestMachine m, int rounds, out ulong start)
    {
        start = m.Assemble(a =>
        {
            Label again = a.CreateLabel();
            a.mov(ecx, rounds);
            a.Label(ref again);
            a.add(edx, 1);
            a.add(ebx, 2);
            a.dec(ecx);
            a.jnz(again);
            a.int3();
        });
        return start + 5 + 3;
    }

    /// <summary>A code or hardware breakpoint in the middle of code that already runs fast is met each time, before its instruction.</summary>
    [Theory]
    [InlineData(false, false)]
    [InlineData(false, true)]
    [InlineData(true, false)]
    [InlineData(true, true)]
    public void ABreakpointIsMetEachTime(bool translated, bool hardware)
    {
        using TestMachine m = Create(translated);
        ulong at = Loop(m, 1000, out ulong start);
        Assert.Equal(Vector.Breakpoint, m.Run(0, start).Vector);
        Loop(m, 5, out _);
        m.State.Gpr[2] = m.State.Gpr[3] = 0;
        m.Processor.SetGuestDebug(hardware ? Watch(BreakpointKind.Execute, at, 1) : At(at));
        TestResult r = m.Run(0, start);
        for (uint round = 1; round <= 5; round++)
        {
            Assert.Equal(new ProcessorExit(ExitReason.Debug, hardware ? 1 : GuestDebugBits.Code, at), r.Exit);
            Assert.Equal((at, round, 2UL * (round - 1)), (r.State.Rip, r.State.Gpr[2], r.State.Gpr[3]));
            r = m.Continue();
        }
        Assert.Equal(Vector.Breakpoint, r.Vector);
        m.Processor.SetGuestDebug(GuestDebug.None);
        r = m.Run(0, start);
        Assert.Equal((Vector.Breakpoint, 5UL, 10UL), (r.Vector, r.State.Gpr[2], r.State.Gpr[3]));
    }

    /// <summary>A breakpoint that is taken out, while another stays, and set again when there is code that goes on to it.</summary>
    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void ABreakpointThatIsSetAgainIsMet(bool translated)
    {
        using TestMachine m = Create(translated);
        ulong start = m.Assemble(a =>
        {
            Label over = a.CreateLabel();
            a.add(ebx, 1);
            a.cmp(ebx, ebx);
            a.je(over);
            a.nop();
            a.Label(ref over);
            a.add(edx, 1);
            a.int3();
        });
        ulong at = start + 8, elsewhere = start + 0x800;
        m.Processor.SetGuestDebug(At(at, elsewhere));
        m.Processor.SetGuestDebug(At(elsewhere));
        Assert.Equal(Vector.Breakpoint, m.Run(0, at).Vector);
        Assert.Equal(Vector.Breakpoint, m.Run(0, start).Vector);
        m.State.Gpr[3] = 0;
        m.Processor.SetGuestDebug(At(at, elsewhere));
        TestResult r = m.Run(0, start);
        Assert.Equal(new ProcessorExit(ExitReason.Debug, GuestDebugBits.Code, at), r.Exit);
        Assert.Equal((at, 1UL), (r.State.Rip, r.State.Gpr[3]));
    }

    /// <summary>Taking a breakpoint out while stopped at it and putting it in again later, as debuggers do at every stop.</summary>
    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void BreakpointsComeAndGo(bool translated)
    {
        using TestMachine m = Create(translated);
        ulong at = Loop(m, 50, out ulong start);
        TestResult r = m.Run(0, start);
        m.State.Gpr[2] = 0;
        m.Enter(0, start);
        m.Processor.SetState(m.State);
        for (uint round = 1; round <= 50; round++)
        {
            m.Processor.SetGuestDebug(At(at));
            r = m.Continue();
            Assert.Equal((at, round), (r.State.Rip, r.State.Gpr[2]));
            m.Processor.SetGuestDebug(new GuestDebug { SingleStep = true });
            r = m.Continue();
            Assert.Equal(new ProcessorExit(ExitReason.Debug, GuestDebugBits.SingleStep, at + 3), r.Exit);
        }
        m.Processor.SetGuestDebug(At(at));
        Assert.Equal(Vector.Breakpoint, m.Continue().Vector);
    }

    /// <summary>Status flags are right at a breakpoint even where the code behind it no longer needs them.</summary>
    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void FlagsAreTrueAtABreakpoint(bool translated)
    {
        using TestMachine m = Create(translated);
        ulong start = m.Assemble(a =>
        {
            a.mov(ebx, 1);
            a.sub(ebx, 2);
            a.mov(edx, 7);
            a.xor(ecx, ecx);
            a.int3();
        });
        m.Run(0, start);
        m.Processor.SetGuestDebug(At(start + 13));
        TestResult r = m.Run(0, start);
        Assert.Equal(start + 13, r.State.Rip);
        Assert.Equal((ulong)(RFlags.Cf | RFlags.Sf | RFlags.Pf | RFlags.Af), r.State.Rflags & RFlags.Status);
    }

    /// <summary>A step is one instruction, wherever it leads; the guest's PUSHF does not show it.</summary>
    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void StepsAreInvisible(bool translated)
    {
        using TestMachine m = Create(translated);
        ulong start = m.Assemble(a =>
        {
            Label over = a.CreateLabel();
            a.pushfq();
            a.jmp(over);
            a.nop();
            a.Label(ref over);
            a.pop(rax);
            a.rep.stosb();
            a.ud2();
        });
        m.State.Gpr[1] = 3;
        m.State.Gpr[7] = TestMachine.Data;
        m.Processor.SetGuestDebug(new GuestDebug { SingleStep = true });
        TestResult r = m.Run(0, start);
        foreach (ulong next in (ulong[])[1, 4, 5, 5, 5, 7])
        {
            Assert.Equal(new ProcessorExit(ExitReason.Debug, GuestDebugBits.SingleStep, start + next), r.Exit);
            r = m.Continue();
        }
        // The exception is part of the step.
        Assert.Equal(new ProcessorExit(ExitReason.Debug, GuestDebugBits.SingleStep, TestMachine.Handlers + (16 * Vector.InvalidOpcode)), r.Exit);
        Assert.Equal(0UL, (r.State.Gpr[0] | r.State.Rflags) & RFlags.Tf);
        Assert.Equal(0xFFFF0FF0, r.State.Dr[6]);
        Assert.Equal(0UL, m.Memory.Read<ulong>(new GuestAddress(r.State.Gpr[4] + 16)) & RFlags.Tf);
    }

    /// <summary>The guest's TF and the host's step work at the same time: each gets its own trap.</summary>
    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void TheGuestStepsToo(bool translated)
    {
        using TestMachine m = Create(translated);
        ulong start = m.Assemble(a =>
        {
            a.nop();
            a.nop();
        });
        m.State.Rflags |= RFlags.Tf;
        m.Processor.SetGuestDebug(new GuestDebug { SingleStep = true });
        TestResult r = m.Run(0, start);
        Assert.Equal(new ProcessorExit(ExitReason.Debug, GuestDebugBits.SingleStep, TestMachine.Handlers + (16 * Vector.Debug)), r.Exit);
        Assert.Equal(0xFFFF4FF0, r.State.Dr[6]);
        Assert.Equal(start + 1, m.Memory.Read<ulong>(new GuestAddress(r.State.Gpr[4])));
        Assert.NotEqual(0UL, m.Memory.Read<ulong>(new GuestAddress(r.State.Gpr[4] + 16)) & RFlags.Tf);
    }

    /// <summary>The guest's own breakpoints go on working beside the host's, and neither sees the other's bits.</summary>
    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void BothHaveBreakpoints(bool translated)
    {
        using TestMachine m = Create(translated);
        ulong start = m.Assemble(a =>
        {
            a.nop();
            a.mov(__dword_ptr[Cell], 1);
            a.nop();
            a.int3();
        });
        m.State.Dr[2] = Cell;
        m.State.Dr[7] |= (1 << 4) | (0xDu << 24);
        m.Processor.SetGuestDebug(new GuestDebug { Hardware = [new(BreakpointKind.Execute, start), new(BreakpointKind.Write, Cell, 4)] });
        TestResult r = m.Run(0, start);
        Assert.Equal(new ProcessorExit(ExitReason.Debug, 1, start), r.Exit);
        Assert.Equal(0xFFFF0FF0, r.State.Dr[6]);
        r = m.Continue();
        // The guest's trap has been delivered by then.
        Assert.Equal((ExitReason.Debug, 2UL, TestMachine.Handlers + (16 * Vector.Debug)), (r.Exit.Reason, r.Exit.Detail, r.Exit.Address));
        Assert.Equal((0xFFFF0FF4, 0xD000410UL), (r.State.Dr[6], r.State.Dr[7]));
        Assert.Equal(Vector.Debug, m.Continue().Vector);
    }

    /// <summary>Data breakpoints: what hits, what does not, and that the stop is right behind the instruction.</summary>
    [Theory]
    [InlineData(BreakpointKind.Write, 1, false)]
    [InlineData(BreakpointKind.Write, 2, true)]
    [InlineData(BreakpointKind.Write, 4, false)]
    [InlineData(BreakpointKind.Write, 8, true)]
    [InlineData(BreakpointKind.ReadWrite, 4, false)]
    [InlineData(BreakpointKind.ReadWrite, 8, true)]
    [InlineData(BreakpointKind.Write, 4, true)]
    public void DataBreakpoints(BreakpointKind kind, int length, bool translated)
    {
        using TestMachine m = Create(translated);
        ulong reads = kind == BreakpointKind.ReadWrite ? 1UL : 0, end = Cell + (ulong)length;
        // Each with what follows it, and whether it hits.
        (Action<Assembler> Body, bool Hits)[] all =
        [
            (a => a.mov(al, __byte_ptr[Cell - 1]), false),
            (a => a.mov(__byte_ptr[Cell - 1], al), false),
            (a => a.mov(__byte_ptr[end], al), false),
            (a => a.mov(__qword_ptr[Cell - 8], rax), false),
            (a => a.mov(__byte_ptr[Cell], al), true),
            (a => a.mov(__byte_ptr[end - 1], al), true),
            (a => a.mov(__qword_ptr[Cell - 7], rax), true),
            (a => a.mov(edx, __dword_ptr[Cell]), reads != 0),
            (a => a.@lock.inc(__dword_ptr[Cell]), true),
            (a => a.add(__byte_ptr[end], 1), false),
            (a => a.cmp(__byte_ptr[Cell], 1), reads != 0),
            (a => a.movups(__xmmword_ptr[Cell - 15], xmm0), true),
            (a => a.movups(__xmmword_ptr[Cell - 16], xmm0), false),
            (a => a.movups(xmm1, __xmmword_ptr[Cell - 4]), reads != 0),
            (a => a.fst(__dword_ptr[Cell]), true),
            (a => a.stosb(), true),
            (a => a.lodsb(), reads != 0),
            (a => a.xchg(__byte_ptr[Cell], dl), true),
            (a => a.fxsave(__[Cell & ~0xFFUL]), true),
        ];
        var ends = new List<(ulong, bool)>();
        ulong start = m.Assemble(a =>
        {
            foreach ((Action<Assembler> body, bool _) in all)
            {
                a.mov(edi, (int)Cell);
                a.mov(esi, (int)Cell);
                body(a);
                a.nop();
            }
            a.int3();
        });
        var code = new byte[2048];
        m.Memory.TryRead(new GuestAddress(TestMachine.UserCode), code);
        Decoder decoder = Decoder.Create(64, code, start);
        for (int k = 0; k < all.Length * 4; k++)
        {
            Instruction i = decoder.Decode();
            if (k % 4 == 2)
                ends.Add((i.NextIP, all[k / 4].Hits));
        }
        // Once without, so that the TLB and translated code are there.
        TestResult r = m.Run(0, start);
        Assert.Equal(Vector.Breakpoint, r.Vector);
        m.Processor.SetGuestDebug(Watch(kind, Cell, length));
        r = m.Run(0, start);
        foreach ((ulong after, bool hits) in ends)
        {
            if (!hits)
                continue;
            Assert.Equal(new ProcessorExit(ExitReason.Debug, 1, after), r.Exit);
            r = m.Continue();
        }
        Assert.Equal(Vector.Breakpoint, r.Vector);
        m.Processor.SetGuestDebug(GuestDebug.None);
        Assert.Equal(Vector.Breakpoint, m.Run(0, start).Vector);
    }

    /// <summary>A repeated string instruction stops after the iteration that hit, and goes on to its end.</summary>
    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void RepeatedStores(bool translated)
    {
        using TestMachine m = Create(translated);
        ulong start = m.Assemble(a =>
        {
            a.rep.stosd();
            a.int3();
        });
        m.State.Gpr[0] = 0x55555555;
        m.State.Gpr[1] = 1000;
        m.State.Gpr[7] = Cell - 400;
        m.Processor.SetGuestDebug(Watch(BreakpointKind.Write, Cell, 8));
        TestResult r = m.Run(0, start);
        Assert.Equal((new ProcessorExit(ExitReason.Debug, 1, start), 899UL), (r.Exit, r.State.Gpr[1]));
        r = m.Continue();
        Assert.Equal((new ProcessorExit(ExitReason.Debug, 1, start), 898UL), (r.Exit, r.State.Gpr[1]));
        r = m.Continue();
        Assert.Equal((Vector.Breakpoint, 0UL), (r.Vector, r.State.Gpr[1]));
        Assert.Equal(0x5555555555555555UL, m.Memory.Read<ulong>(new GuestAddress(Cell)));
        Assert.Equal(0x55555555U, m.Memory.Read<uint>(new GuestAddress(Cell - 400 + 3996)));
    }

    /// <summary>Accesses that cross into a watched page, both ways, and locked ones that do so.</summary>
    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void AcrossPages(bool translated)
    {
        using TestMachine m = Create(translated);
        const ulong Edge = TestMachine.Data + 0x1000;
        ulong start = m.Assemble(a =>
        {
            a.mov(__qword_ptr[Edge - 4], rbx);
            a.@lock.add(__qword_ptr[Edge - 4], rbx);
            a.mov(__dword_ptr[Edge - 4], ebx);
            a.int3();
        });
        m.Run(0, start);
        m.State.Gpr[3] = 3;
        m.Processor.SetGuestDebug(Watch(BreakpointKind.Write, Edge, 1));
        Assert.Equal(start + 8, m.Run(0, start).Exit.Address);
        TestResult r = m.Continue();
        Assert.Equal(new ProcessorExit(ExitReason.Debug, 1, start + 17), r.Exit);
        Assert.Equal(6UL, m.Memory.Read<ulong>(new GuestAddress(Edge - 4)));
        Assert.Equal(Vector.Breakpoint, m.Continue().Vector);
    }

    /// <summary>What event delivery pushes is seen too; the stop is at the handler.</summary>
    [Fact]
    public void ExceptionFramesAreWatched()
    {
        using TestMachine m = Create(translated: false);
        ulong start = m.Assemble(a => a.ud2());
        m.SetGate(Vector.InvalidOpcode, TestMachine.Handlers + (16 * Vector.InvalidOpcode), TestMachine.KernelCs64);
        m.Processor.SetGuestDebug(Watch(BreakpointKind.Write, TestMachine.KernelStack - 16, 8));
        TestResult r = m.Run(0, start);
        Assert.Equal(new ProcessorExit(ExitReason.Debug, 1, TestMachine.Handlers + (16 * Vector.InvalidOpcode)), r.Exit);
    }

    /// <summary>A breakpoint stays where it is when the guest changes the code there.</summary>
    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void BreakpointsSurvivePatching(bool translated)
    {
        using TestMachine m = Create(translated);
        ulong at = Loop(m, 3, out ulong start);
        m.Processor.SetGuestDebug(At(at));
        TestResult r = m.Run(0, start);
        Assert.Equal(at, r.Exit.Address);
        // add ebx, 2 becomes add ebx, 4; guest memory shows what the guest put there and nothing else.
        byte[] seen = new byte[3];
        m.Memory.TryRead(new GuestAddress(at - TestMachine.KernelCode + TestMachine.UserCode), seen);
        Assert.Equal([0x83, 0xC3, 2], seen);
        m.Code((int)(at - TestMachine.KernelCode), 0x83, 0xC3, 4);
        r = m.Continue();
        Assert.Equal((at, 4UL), (r.Exit.Address, r.State.Gpr[3]));
        Assert.Equal((at, 8UL), (m.Continue().Exit.Address, m.Processor.GetState().Gpr[3]));
        Assert.Equal(Vector.Breakpoint, m.Continue().Vector);
    }

    /// <summary>A step leaves interrupts pending unless told otherwise; getting over a breakpoint does so always.</summary>
    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void InterruptsWaitForTheEndOfAStep(bool translated)
    {
        using TestMachine m = Create(translated);
        ulong start = m.Assemble(a =>
        {
            a.nop();
            a.nop();
            a.nop();
            a.int3();
        });
        m.State.Rflags |= RFlags.If;
        m.Handler.Interrupts.Enqueue(0x40);
        m.Handler.Acknowledged = () => m.Processor.SetInterruptRequest(false);
        m.Processor.SetInterruptRequest(true);
        m.Processor.SetGuestDebug(new GuestDebug { SingleStep = true });
        Assert.Equal(start + 1, m.Run(0, start).Exit.Address);
        m.Processor.SetGuestDebug(At(start + 1));
        TestResult r = m.Continue();
        Assert.Equal((0x40, start + 2), (r.Vector, r.Rip));
        m.Processor.SetGuestDebug(GuestDebug.None);

        m.Handler.Interrupts.Enqueue(0x41);
        m.Processor.SetInterruptRequest(true);
        m.Processor.SetGuestDebug(new GuestDebug { SingleStep = true, HoldInterrupts = false });
        r = m.Run(0, start);
        Assert.Equal(ExitReason.Debug, r.Exit.Reason);
        Assert.InRange(r.Exit.Address, TestMachine.Handlers + 0x410, TestMachine.Handlers + 0x411);
    }

    /// <summary>A step over HLT ends behind it; the next one ends with whatever wakes the processor.</summary>
    [Fact]
    public void SteppingThroughHlt()
    {
        using TestMachine m = Create(translated: false);
        ulong start = m.Assemble(a =>
        {
            a.hlt();
            a.nop();
        });
        m.State.Rflags |= RFlags.If;
        m.Processor.SetGuestDebug(new GuestDebug { SingleStep = true });
        TestResult r = m.Run(0, start);
        Assert.Equal((new ProcessorExit(ExitReason.Debug, GuestDebugBits.SingleStep, start + 1), ActivityState.Halted), (r.Exit, r.State.Activity));
        Assert.Equal(ExitReason.Halted, m.Continue().Exit.Reason);
        m.Handler.Interrupts.Enqueue(0x40);
        m.Handler.Acknowledged = () => m.Processor.SetInterruptRequest(false);
        m.Processor.SetInterruptRequest(true);
        Assert.Equal(new ProcessorExit(ExitReason.Debug, GuestDebugBits.SingleStep, TestMachine.Handlers + 0x400), m.Continue().Exit);
    }

    /// <summary>In real mode, breakpoints are linear addresses.</summary>
    [Fact]
    public void RealMode()
    {
        using TestMachine m = Create(translated: false, TestMode.Real);
        m.Code(0, 0x90, 0x90, 0xCC);
        m.State.Segments[1] = new SegmentState(0x2000, TestMachine.UserCode, 0xFFFF, 0x9B);
        m.Processor.SetGuestDebug(At(TestMachine.UserCode + 1));
        TestResult r = m.Run(0, 0);
        Assert.Equal((new ProcessorExit(ExitReason.Debug, GuestDebugBits.Code, 1), 1UL), (r.Exit, r.State.Rip));
    }

    /// <summary>A kick between a stop and the instruction does not make the breakpoint stop twice.</summary>
    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void AKickDoesNotRepeatAStop(bool translated)
    {
        using TestMachine m = Create(translated);
        ulong at = Loop(m, 1, out ulong start);
        m.Processor.SetGuestDebug(At(at));
        Assert.Equal(at, m.Run(0, start).Exit.Address);
        m.Processor.Kick();
        Assert.Equal(ExitReason.Interrupted, m.Continue().Exit.Reason);
        Assert.Equal(Vector.Breakpoint, m.Continue().Vector);
        // But setting the instruction pointer to it does.
        Assert.Equal(at, m.Run(0, at).Exit.Address);
    }

    /// <summary>When debugging has ended nothing is stepped and nothing checked any more.</summary>
    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void NothingRemains(bool translated)
    {
        using TestMachine m = Create(translated);
        ulong at = Loop(m, 1000, out ulong start);
        m.Processor.SetGuestDebug(new GuestDebug { Hardware = [new(BreakpointKind.Write, Cell, 8)], Code = new HashSet<ulong> { at }, SingleStep = true });
        m.Run(0, start);
        m.Processor.SetGuestDebug(GuestDebug.None);
        long steps = m.Processor.Counters.Named["single-steps"];
        Assert.Equal(Vector.Breakpoint, m.Run(0, start).Vector);
        Assert.Equal(steps, m.Processor.Counters.Named["single-steps"]);
    }

    /// <summary>What is wrong is refused with the valid range, and what was in force stays.</summary>
    [Fact]
    public void WrongRequestsChangeNothing()
    {
        using TestMachine m = Create(translated: false);
        ulong at = Loop(m, 2, out ulong start);
        m.Processor.SetGuestDebug(At(at));
        Refused(GuestDebugError.TooMany, "0 to 4", Enumerable.Repeat(new HardwareBreakpoint(BreakpointKind.Execute, 1), 5).ToArray());
        Refused(GuestDebugError.Length, "1, 2, 4 or 8", new HardwareBreakpoint(BreakpointKind.Write, 0, 3));
        Refused(GuestDebugError.Length, "1, 2, 4 or 8", new HardwareBreakpoint(BreakpointKind.ReadWrite, 0, 0));
        Refused(GuestDebugError.Length, "length is 1", new HardwareBreakpoint(BreakpointKind.Execute, 0, 2));
        Refused(GuestDebugError.Alignment, "multiple of 4", new HardwareBreakpoint(BreakpointKind.Write, 0x1002, 4));
        Refused(GuestDebugError.Kind, "0 (execute)", new HardwareBreakpoint((BreakpointKind)3, 0, 1));
        Assert.Equal(at, m.Run(0, start).Exit.Address);

        void Refused(GuestDebugError error, string range, params HardwareBreakpoint[] breakpoints)
        {
            var e = Assert.Throws<GuestDebugException>(() => m.Processor.SetGuestDebug(new GuestDebug { Hardware = breakpoints }));
            Assert.Equal(error, e.Error);
            Assert.Contains(range, e.Message, StringComparison.Ordinal);
        }
    }
}
