using Aerostat.Memory;
using Aerostat.Platform;
using Aerostat.Processors;
using Aerostat.X86;
using Iced.Intel;
using Xunit;
using static Iced.Intel.AssemblerRegisters;

namespace Aerostat.Cpu.Tests;

/// <summary>Entering and leaving the guest: kicks, interrupts, halts, shutdown, and string instructions on the way.</summary>
public sealed class RunLoopTests
{
    private static TestMachine CreateMachine(TestMode mode = TestMode.Long) => new(mode);

    [Fact]
    public void AKickBeforeRunReturnsAtOnceAndOnlyOnce()
    {
        using TestMachine m = CreateMachine();
        ulong code = m.Assemble(a => a.int3());
        m.Processor.Kick();
        Assert.True(m.Processor.HasWork);
        TestResult r = m.Run(0, code);
        Assert.Equal(ExitReason.Interrupted, r.Exit.Reason);
        Assert.Equal(code, r.State.Rip);
        Assert.Equal(Vector.Breakpoint, m.Continue().Vector);
    }

    /// <summary>A kick from another thread ends an endless loop, whatever it is made of.</summary>
    [Theory]
    [InlineData("jump")]
    [InlineData("loop")]
    [InlineData("call")]
    [InlineData("string")]
    [InlineData("fault")]
    [InlineData("shadow")]
    [InlineData("step")]
    public void AKickEndsAnEndlessLoop(string kind)
    {
        using TestMachine m = CreateMachine();
        ulong code = m.Assemble(a =>
        {
            Label loop = a.CreateLabel(), function = a.CreateLabel();
            a.Label(ref loop);
            switch (kind)
            {
                case "loop":
                    a.mov(ecx, -1);
                    Label inner = a.CreateLabel();
                    a.Label(ref inner);
                    a.loop(inner);
                    break;
                case "call":
                    a.call(function);
                    break;
                case "string":
                    a.mov(rcx, -1);
                    a.mov(edi, (uint)TestMachine.Data);
                    a.mov(rsi, rdi);
                    // Reads the same elements again and again: LODS backwards and forwards would leave the page, so scan equal bytes.
                    a.mov(ecx, 0x1000);
                    a.xor(eax, eax);
                    a.repe.scasb();
                    break;
                case "shadow":
                    a.mov(ss, eax);
                    a.sti();
                    break;
                default:
                    a.nop();
                    break;
            }

            if (kind == "fault")
                a.ud2();
            a.jmp(loop);
            a.Label(ref function);
            a.ret();
        });
        if (kind == "fault")
            m.SetGate(Vector.InvalidOpcode, code, TestMachine.KernelCs64, 0x8E, ist: 1);
        if (kind == "shadow")
            m.State.Gpr[0] = TestMachine.KernelSs;
        if (kind == "step")
        {
            m.State.Rflags |= RFlags.Tf;
            m.Assemble(a => a.iretq(), 0x1800);
            m.SetGate(Vector.Debug, TestMachine.KernelCode + 0x1800, TestMachine.KernelCs64, 0x8E, ist: 1);
        }

        m.Enter(0, code);
        m.Processor.SetState(m.State);
        for (int k = 0; k < 3; k++)
        {
            using var started = new ManualResetEventSlim();
            var thread = new Thread(() =>
            {
                started.Wait();
                Thread.Sleep(5);
                m.Processor.Kick();
            });
            thread.Start();
            started.Set();
            Assert.Equal(ExitReason.Interrupted, m.Processor.Run(m.Handler).Reason);
            thread.Join();
        }
    }

    /// <summary>An interrupt is taken between instructions, with the acknowledged vector, as soon as IF allows.</summary>
    [Fact]
    public void InterruptAfterThePortThatRaisesIt()
    {
        using TestMachine m = CreateMachine();
        m.Handler.PortWritten = (_, _) => m.Processor.SetInterruptRequest(true);
        m.Handler.Interrupts.Enqueue(0x41);
        m.Handler.Acknowledged = () => m.Processor.SetInterruptRequest(false);
        ulong code = m.Assemble(a =>
        {
            a.@out(0x80, al);
            a.nop();
            a.int3();
        });
        m.State.Rflags |= RFlags.If;
        TestResult r = m.Run(0, code);
        Assert.Equal((0x41, code + 2), (r.Vector, r.Rip));
        Assert.Equal(0UL, r.State.Rflags & RFlags.If);
        Assert.NotEqual(0UL, r.Rflags & RFlags.If);
    }

    [Fact]
    public void ASpuriousRequestIsForgotten()
    {
        using TestMachine m = CreateMachine();
        m.Handler.Acknowledged = () => m.Processor.SetInterruptRequest(false);
        m.Processor.SetInterruptRequest(true);
        ulong code = m.Assemble(a =>
        {
            a.nop();
            a.int3();
        });
        m.State.Rflags |= RFlags.If;
        Assert.Equal(Vector.Breakpoint, m.Run(0, code).Vector);
    }

    /// <summary>
    /// A timer that is overdue interrupts before the guest can see how late it is, though its call-back ends only after the guest has come to
    /// the instruction that shows the time.
    /// </summary>
    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void AnOverdueTimerInterruptsBeforeTheTimeIsShown(bool rdtscp)
    {
        using VmClock clock = new();
        using ManualResetEventSlim reached = new();
        using TestMachine m = new(TestMode.Long, clock: clock);
        m.Handler.PortWritten = (_, _) => reached.Set();
        m.Handler.Interrupts.Enqueue(0x41);
        m.Handler.Acknowledged = () => m.Processor.SetInterruptRequest(false);
        ulong code = m.Assemble(a =>
        {
            a.@out(0x80, al);
            if (rdtscp)
                a.rdtscp();
            else
                a.rdtsc();
            a.int3();
        });
        using VmTimer timer = clock.CreateTimer(
            _ =>
            {
                reached.Wait();
                m.Processor.SetInterruptRequest(true);
            },
            null);
        timer.ArmAt(0);
        clock.SetTimestamp(1_000_000_000);
        clock.Start();
        m.State.Rflags |= RFlags.If;
        TestResult r = m.Run(0, code);
        Assert.Equal((0x41, code + 2), (r.Vector, r.Rip));
    }

    [Fact]
    public void AWithdrawnRequestIsNotTaken()
    {
        using TestMachine m = CreateMachine();
        m.Processor.SetInterruptRequest(true);
        m.Processor.SetInterruptRequest(false);
        m.Handler.Interrupts.Enqueue(0x41);
        ulong code = m.Assemble(a => a.int3());
        m.State.Rflags |= RFlags.If;
        Assert.Equal(Vector.Breakpoint, m.Run(0, code).Vector);
        Assert.Single(m.Handler.Interrupts);
    }

    [Fact]
    public void NmiComesBeforeInterrupts()
    {
        using TestMachine m = CreateMachine();
        m.Handler.Interrupts.Enqueue(0x41);
        ulong code = m.Assemble(a => a.int3());
        m.State.Rflags |= RFlags.If;
        m.Enter(0, code);
        m.Processor.SetState(m.State);
        m.Processor.SetInterruptRequest(true);
        m.Processor.RaiseNmi();
        TestResult r = m.Continue();
        Assert.Equal((Vector.Nmi, code), (r.Vector, r.Rip));
    }

    /// <summary>Two NMIs while one is served are one.</summary>
    [Fact]
    public void NmisAreLatchedOnce()
    {
        using TestMachine m = CreateMachine();
        m.Assemble(
            a =>
            {
                a.inc(ebx);
                a.@out(0x80, al);
                a.iretq();
            },
            0x1000);
        m.SetGate(Vector.Nmi, TestMachine.KernelCode + 0x1000, TestMachine.KernelCs64);
        int raised = 0;
        m.Handler.PortWritten = (_, _) =>
        {
            // Twice within the first service.
            if (raised++ == 0)
            {
                m.Processor.RaiseNmi();
                m.Processor.RaiseNmi();
            }
        };
        ulong code = m.Assemble(a =>
        {
            a.nop();
            a.int3();
        });
        m.Enter(0, code);
        m.Processor.SetState(m.State);
        m.Processor.RaiseNmi();
        TestResult r = m.Continue();
        Assert.Equal(2UL, r.State.Gpr[3]);
    }

    [Fact]
    public void HltSleepsUntilAnInterruptAndReportsIt()
    {
        using TestMachine m = CreateMachine();
        ulong code = m.Assemble(a =>
        {
            a.hlt();
            a.int3();
        });
        m.State.Rflags |= RFlags.If;
        TestResult r = m.Run(0, code);
        Assert.Equal((ExitReason.Halted, code + 1), (r.Exit.Reason, r.State.Rip));
        Assert.Equal(ActivityState.Halted, r.State.Activity);
        Assert.False(m.Processor.HasWork);
        Assert.Equal(ExitReason.Halted, m.Processor.Run(m.Handler).Reason);
        int woken = 0;
        m.Processor.WakeUp = () => woken++;
        m.Handler.Interrupts.Enqueue(0x55);
        m.Handler.Acknowledged = () => m.Processor.SetInterruptRequest(false);
        m.Processor.SetInterruptRequest(true);
        Assert.True(m.Processor.HasWork);
        Assert.Equal(1, woken);
        r = m.Continue();
        Assert.Equal((0x55, code + 1), (r.Vector, r.Rip));
    }

    [Fact]
    public void HltWithInterruptsOffWakesForNmiOnly()
    {
        using TestMachine m = CreateMachine();
        ulong code = m.Assemble(a => a.hlt());
        m.Run(0, code);
        m.Processor.SetInterruptRequest(true);
        Assert.False(m.Processor.HasWork);
        Assert.Equal(ExitReason.Halted, m.Processor.Run(m.Handler).Reason);
        m.Processor.RaiseNmi();
        Assert.True(m.Processor.HasWork);
        Assert.Equal(Vector.Nmi, m.Continue().Vector);
    }

    [Fact]
    public void AKickDoesNotWakeTheGuestFromHlt()
    {
        using TestMachine m = CreateMachine();
        ulong code = m.Assemble(a =>
        {
            a.hlt();
            a.int3();
        });
        m.Run(0, code);
        m.Processor.Kick();
        Assert.Equal(ExitReason.Interrupted, m.Processor.Run(m.Handler).Reason);
        Assert.Equal(ExitReason.Halted, m.Processor.Run(m.Handler).Reason);
        Assert.Equal(code + 1, m.Processor.GetState().Rip);
    }

    /// <summary>A string instruction is interrupted between elements: registers exact, RIP at the instruction, RF set in the frame.</summary>
    [Fact]
    public void StringInstructionsAreInterruptible()
    {
        using TestMachine m = CreateMachine();
        m.Tables.Map(0x60000, 0xFED00000, 0x1000, PageTableEntry.W);
        int reads = 0;
        m.Handler.Input = (_, _, _) =>
        {
            if (++reads == 3)
                m.Processor.SetInterruptRequest(true);
            return 0x5A;
        };
        m.Handler.Interrupts.Enqueue(0x41);
        m.Handler.Acknowledged = () => m.Processor.SetInterruptRequest(false);
        m.Assemble(
            a =>
            {
                a.mov(r8, rcx);
                a.mov(r9, rsi);
                a.mov(r10, rdi);
                a.mov(r11, __qword_ptr[rsp]);
                a.mov(r12, __qword_ptr[rsp + 16]);
                a.iretq();
            },
            0x1000);
        m.SetGate(0x41, TestMachine.KernelCode + 0x1000, TestMachine.KernelCs64, 0x8E, ist: 1);
        ulong code = m.Assemble(a =>
        {
            a.rep.movsb();
            a.int3();
        });
        m.State.Rflags |= RFlags.If;
        m.State.Gpr[1] = 10;
        m.State.Gpr[6] = 0x60000;
        m.State.Gpr[7] = TestMachine.Data;
        TestResult r = m.Run(0, code);
        Assert.Equal(Vector.Breakpoint, r.Vector);
        Assert.Equal(10, reads);
        Assert.Equal((0UL, 0x6000AUL, TestMachine.Data + 10), (r.State.Gpr[1], r.State.Gpr[6], r.State.Gpr[7]));
        Assert.Equal((7UL, 0x60003UL, TestMachine.Data + 3, code), (r.State.Gpr[8], r.State.Gpr[9], r.State.Gpr[10], r.State.Gpr[11]));
        Assert.NotEqual(0UL, r.State.Gpr[12] & RFlags.Rf);
    }

    /// <summary>A page fault in the middle of a string instruction leaves the registers at the element that faulted; it can go on afterwards.</summary>
    [Fact]
    public void StringInstructionsAreRestartable()
    {
        using TestMachine m = CreateMachine();
        ulong code = m.Assemble(a =>
        {
            a.rep.stosd();
            a.int3();
        });
        const ulong end = TestMachine.Data + 0x4000;
        m.State.Gpr[0] = 0x12345678;
        m.State.Gpr[1] = 16;
        m.State.Gpr[7] = end - 22;
        TestResult r = m.Run(3, TestMachine.UserCode);
        Assert.Equal((Vector.PageFault, 6UL, end), (r.Vector, r.Error, r.State.Cr2));
        // Five whole elements; the sixth crosses into the missing page and has written nothing.
        Assert.Equal((11UL, end - 2, TestMachine.UserCode), (r.State.Gpr[1], r.State.Gpr[7], r.Rip));
        Assert.Equal(0, m.Memory.Read<ushort>(new GuestAddress(end - 2)));
    }

    [Fact]
    public void DoubleFault()
    {
        using TestMachine m = CreateMachine();
        // #GP's gate is not present: #NP while delivering #GP, both contributory.
        m.SetGate(Vector.GeneralProtection, TestMachine.Handlers, TestMachine.KernelCs64, 0x0E, 1);
        ulong code = m.Assemble(a => a.mov(rax, __qword_ptr[rbx]));
        m.State.Gpr[3] = 0x8000_0000_0000_0000;
        TestResult r = m.Run(0, code);
        Assert.Equal((Vector.DoubleFault, 0UL), (r.Vector, r.Error));
    }

    [Fact]
    public void TripleFaultIsAShutdownUntilReset()
    {
        using TestMachine m = CreateMachine();
        m.State.Idtr = new DescriptorTableState(TestMachine.Idt, 0);
        ulong code = m.Assemble(a => a.ud2());
        TestResult r = m.Run(0, code);
        Assert.Equal(ExitReason.Shutdown, r.Exit.Reason);
        Assert.Equal(ActivityState.Shutdown, r.State.Activity);
        Assert.Equal(ExitReason.Shutdown, m.Processor.Run(m.Handler).Reason);
        Assert.False(m.Processor.HasWork);
        m.Processor.Reset();
        Assert.Equal(0xFFF0UL, m.Processor.GetState().Rip);
        Assert.Equal(ActivityState.Running, m.Processor.GetState().Activity);
    }

    [Fact]
    public void TheHandlerMayAskToLeave()
    {
        using TestMachine m = CreateMachine();
        m.Handler.PortWritten = (_, _) => m.Handler.LeaveRequested = true;
        ulong code = m.Assemble(a =>
        {
            a.@out(0x80, al);
            a.inc(eax);
            a.int3();
        });
        TestResult r = m.Run(0, code);
        Assert.Equal((ExitReason.HandlerRequest, code + 2, 0UL), (r.Exit.Reason, r.State.Rip, r.State.Gpr[0]));
        m.Handler.LeaveRequested = false;
        r = m.Continue();
        Assert.Equal((Vector.Breakpoint, 1UL), (r.Vector, r.State.Gpr[0]));
    }

    /// <summary>INIT makes any processor but the first wait; SIPI starts it in real mode at its page.</summary>
    [Fact]
    public void InitAndStartup()
    {
        using var m = new TestMachine(TestMode.Real, processors: 2);
        IVirtualProcessor second = m.Processors[1];
        second.Reset();
        Assert.Equal(ExitReason.WaitForStartup, second.Run(m.Handler).Reason);
        Assert.False(second.HasWork);
        // MOV AX,CS; HLT
        m.Memory.Write(new GuestAddress(0x9000), [0x8C, 0xC8, 0xF4]);
        second.RaiseStartup(9);
        Assert.True(second.HasWork);
        Assert.Equal(ExitReason.Halted, second.Run(m.Handler).Reason);
        ProcessorState s = second.GetState();
        Assert.Equal((0x900UL, 3UL, 0x9000UL), (s.Gpr[0] & 0xFFFF, s.Rip, s.Segments[1].Base));
        // A start-up IPI to a running processor is ignored.
        second.RaiseStartup(10);
        Assert.Equal(ExitReason.Halted, second.Run(m.Handler).Reason);
        Assert.Equal(3UL, second.GetState().Rip);
        second.RaiseInit();
        Assert.Equal(ExitReason.WaitForStartup, second.Run(m.Handler).Reason);
        second.RaiseStartup(9);
        Assert.Equal(ExitReason.Halted, second.Run(m.Handler).Reason);
    }

    [Fact]
    public void CountersAndBranches()
    {
        using TestMachine m = CreateMachine();
        ulong code = m.Assemble(a =>
        {
            Label loop = a.CreateLabel();
            a.mov(ecx, 1000);
            a.Label(ref loop);
            a.dec(ecx);
            a.jnz(loop);
            a.int3();
        });
        long before = m.Processor.Counters.Instructions;
        m.Run(0, code);
        // MOV, 1000 times DEC and JNZ, INT3 and the HLT of its handler.
        Assert.InRange(m.Processor.Counters.Instructions - before, 2001, 2003);

        // Newest first: INT3 to its handler, then the last JNZs that were taken. JNZ is at 7, DEC at 5, INT3 at 9.
        var branches = m.Processor.LastBranches;
        Assert.Equal(16, branches.Count);
        Assert.InRange(branches[0].From, code + 9, code + 10);
        Assert.All(branches.Skip(1), b => Assert.Equal((code + 7, code + 5), b));
    }
}
