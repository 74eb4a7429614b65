using Aerostat.Interrupts;
using Aerostat.Processors;
using Aerostat.X86;
using Iced.Intel;
using Xunit;
using static Iced.Intel.AssemblerRegisters;

namespace Aerostat.Kvm.Tests;

/// <summary>Interrupts without an interrupt controller: <see cref="PendingInterrupts"/> on every processor.</summary>
public sealed class InterruptTests
{
    public static TheoryData<string> Kinds => ProcessorKinds.All;

    private static PendingInterrupts Connect(SmallGuest g)
    {
        PendingInterrupts pending = new(g.Processor);
        g.World.Acknowledge = pending.Acknowledge;
        return pending;
    }

    /// <summary>FLAGS, CS and IP on the stack, IF off, and the handler of the real-mode table.</summary>
    [Theory, MemberData(nameof(Kinds))]
    public void RealModeGoesThroughItsTable(string kind)
    {
        using SmallGuest g = new(kind);
        PendingInterrupts pending = Connect(g);
        g.Memory.Write(new(0x41 * 4), 0x0100_0020u);
        g.Assemble(16, 0x1020, a =>
        {
            a.pushf();
            a.pop(dx);
            a.hlt();
        });
        g.Real(a =>
        {
            a.sti();
            a.nop();
            a.inc(bx);
            a.hlt();
        });
        pending.Raise(0x41);
        ProcessorState s = g.RunToHalt();
        // After STI one more instruction runs.
        ulong extra = ProcessorKinds.IsExact(kind) ? 0 : s.Gpr[3] & 0xFFFF;
        Assert.Equal((0x100, 0x23UL, extra), (s.Segments[1].Selector, s.Rip, s.Gpr[3] & 0xFFFF));
        Assert.Equal(SmallGuest.Stack - 6, s.Gpr[4] & 0xFFFF);
        Assert.InRange((ulong)g.Memory.Read<ushort>(new(SmallGuest.Stack - 6)), SmallGuest.Code + 2, SmallGuest.Code + 2 + (extra * 2));
        Assert.Equal(0, g.Memory.Read<ushort>(new(SmallGuest.Stack - 4)));
        Assert.Equal(RFlags.If | RFlags.Fixed1, g.Memory.Read<ushort>(new(SmallGuest.Stack - 2)));
        Assert.Equal(0UL, s.Gpr[2] & RFlags.If);
        Assert.False(pending.Any);
    }

    [Theory, MemberData(nameof(Kinds))]
    public void AllOfThemComeLowestFirst(string kind)
    {
        using SmallGuest g = new(kind);
        PendingInterrupts pending = Connect(g);
        int[] vectors = [0x20, 0x3F, 0x40, 0x41, 0x80, 0xC1, 0xFF];
        g.Long(a =>
        {
            Label loop = a.CreateLabel();
            a.sti();
            a.Label(ref loop);
            a.inc(rbx);
            a.cmp(r15, vectors.Length);
            a.jne(loop);
            a.hlt();
        });
        foreach (int v in vectors)
            g.Assemble(64, SmallGuest.Handlers + ((ulong)v * 16), a =>
            {
                a.mov(al, (byte)v);
                a.@out(0x10, al);
                a.inc(r15);
                a.iretq();
            });
        foreach (int v in vectors.Reverse())
            pending.Raise(v);
        pending.Raise(0x80);
        g.RunToHalt();
        Assert.Equal(vectors.Select(v => (ulong)v), g.World.Log.Select(l => l.Value));
    }

    [Theory, MemberData(nameof(Kinds))]
    public void NothingComesWhileInterruptsAreOff(string kind)
    {
        using SmallGuest g = new(kind);
        PendingInterrupts pending = Connect(g);
        g.Long(a =>
        {
            a.mov(ecx, 1000);
            Label loop = a.CreateLabel();
            a.Label(ref loop);
            a.dec(ecx);
            a.jnz(loop);
            a.@out(0x10, al);
            a.sti();
            a.inc(rbx);
            a.inc(rbx);
            a.hlt();
        });
        pending.Raise(0x30);
        ProcessorState s = g.RunToHalt();
        Assert.Equal(SmallGuest.Handlers + 0x301, s.Rip);
        Assert.InRange(s.Gpr[3], 1UL, ProcessorKinds.IsExact(kind) ? 1UL : 2);
        Assert.Single(g.World.Log);
    }

    [Theory, MemberData(nameof(Kinds))]
    public void AShadowThatWasSetHoldsForOneInstruction(string kind)
    {
        ProcessorKinds.SkipIfNested(kind, "does not load the interrupt shadow at VMRUN");
        using SmallGuest g = new(kind);
        PendingInterrupts pending = Connect(g);
        g.Long(
            a =>
            {
                a.inc(rbx);
                a.inc(rbx);
                a.hlt();
            },
            s =>
            {
                s.Rflags |= RFlags.If;
                s.InterruptShadow = true;
            });
        pending.Raise(0x30);
        Assert.InRange(g.RunToHalt().Gpr[3], 1UL, ProcessorKinds.IsExact(kind) ? 1UL : 2);
    }

    [Theory, MemberData(nameof(Kinds))]
    public void AHaltedGuestWakes(string kind)
    {
        using SmallGuest g = new(kind);
        PendingInterrupts pending = Connect(g);
        g.Long(a => a.hlt(), s => s.Rflags |= RFlags.If);
        g.RunToHalt();
        int woken = 0;
        g.Processor.WakeUp = () => woken++;
        pending.Raise(0x77);
        Assert.True(g.Processor.HasWork);
        Assert.NotEqual(0, woken);
        ProcessorState s = g.RunToHalt();
        Assert.Equal(SmallGuest.Handlers + 0x771, s.Rip);
        Assert.Equal(SmallGuest.Code + 1, g.Memory.Read<ulong>(new(s.Gpr[4])));
        // Interrupts are off in the handler.
        pending.Raise(0x78);
        Assert.False(g.Processor.HasWork);
        Assert.Equal(ExitReason.Halted, g.Run().Reason);
        Assert.True(pending.IsPending(0x78));
    }

    /// <summary>A stack that has no room is told, not forgotten: #SS, whose frame has no room either, and so shutdown; whether it runs or has halted.</summary>
    [Theory, MemberData(nameof(Kinds))]
    public void ARealModeStackBeyondItsLimitIsShutdown(string kind)
    {
        foreach (bool halted in (bool[])[false, true])
        {
            using SmallGuest g = new(kind);
            PendingInterrupts pending = Connect(g);
            g.Real(
                a =>
                {
                    if (halted)
                        a.hlt();
                    a.nop();
                    a.nop();
                    a.hlt();
                },
                s =>
                {
                    s.Rflags |= RFlags.If;
                    s.Segments[2] = s.Segments[2] with { Limit = 0xFFF };
                });
            if (halted)
                g.RunToHalt();
            pending.Raise(0x41);
            Assert.Equal(ExitReason.Shutdown, g.Run().Reason);
            // From the interrupt on.
            IReadOnlyList<DeliveredEvent> told = g.Processor.FaultsBeforeShutdown;
            Assert.Equal(
                [(EventOrigin.ExternalInterrupt, 0x41), (EventOrigin.Exception, 12), (EventOrigin.Exception, 12), (EventOrigin.Exception, 8), (EventOrigin.Exception, 12)],
                told.Select(e => (e.Origin, e.Vector)));
            Assert.InRange(told[0].Rip, SmallGuest.Code, SmallGuest.Code + 3);
            // Nothing was written there, and the processor stays down until it is reset.
            Assert.Equal(0UL, g.Memory.Read<ulong>(new(SmallGuest.Stack - 8)));
            Assert.Equal(SmallGuest.Stack, g.Processor.GetState().Gpr[4] & 0xFFFF);
            Assert.Equal(ExitReason.Shutdown, g.Run().Reason);
            g.Processor.Reset();
            Assert.Empty(g.Processor.FaultsBeforeShutdown);
        }
    }

    /// <summary>The last frame that has room, and the first that has none: of 64 KiB, around their end, and in a segment that grows down.</summary>
    [Theory, MemberData(nameof(Kinds))]
    public void TheLimitOfARealModeStackIsExact(string kind)
    {
        foreach ((uint pointer, uint limit, uint attributes, bool room) in ((uint, uint, uint, bool)[])
            [
                (0x7F00, 0x7EFF, 0x93, true), (0x7F00, 0x7EFE, 0x93, false), (0x7F00, 0x7EFB, 0x93, false), (6, 0xFFFF, 0x93, true), (0, 0xFFFF, 0x93, true),
                (2, 0xFFFF, 0x93, true), (5, 0xFFFF, 0x93, false), (1, 0xFFFF, 0x93, false), (0x7F00, 0x7EF9, 0x97, true), (0x7F00, 0x7EFA, 0x97, false),
            ])
        {
            using SmallGuest g = new(kind);
            // The segment in real mode of one kind is what this host's KVM may not take.
            PendingInterrupts pending = Connect(g);
            g.Memory.Write(new(0x41 * 4), 0x0100_0020u);
            g.Assemble(16, 0x1020, a => a.hlt());
            g.Real(
                a =>
                {
                    a.nop();
                    a.nop();
                    a.hlt();
                },
                s =>
                {
                    s.Rflags |= RFlags.If;
                    s.Gpr[4] = pointer;
                    // Apart from code and vector table.
                    s.Segments[2] = new SegmentState(0x2000, 0x20000, limit, attributes);
                });
            pending.Raise(0x41);
            Assert.Equal((pointer, limit, attributes, room ? ExitReason.Halted : ExitReason.Shutdown), (pointer, limit, attributes, g.Run().Reason));
            if (room)
                Assert.Equal((ushort)(pointer - 6), (ushort)g.Processor.GetState().Gpr[4]);
        }
    }

    /// <summary>A delivery that the host has to interrupt, because the stack's page is write-protected, is made once and wholly.</summary>
    [Theory, MemberData(nameof(Kinds))]
    public void ADeliveryThatIsInterruptedIsNotLost(string kind)
    {
        using SmallGuest g = new(kind);
        PendingInterrupts pending = Connect(g);
        g.Long(a =>
        {
            Label loop = a.CreateLabel();
            a.Label(ref loop);
            a.sti();
            a.hlt();
            a.jmp(loop);
        });
        g.Assemble(64, SmallGuest.Handlers + 0x300, a =>
        {
            a.inc(rbx);
            a.iretq();
        });
        g.RunToHalt();
        using Memory.DirtyLog log = g.Memory.StartDirtyLog(g.Memory.Regions[0]);
        ulong[] bits = new ulong[log.WordCount];
        for (ulong i = 1; i <= 10; i++)
        {
            log.GetAndClear(bits);
            pending.Raise(0x30);
            ProcessorState s = g.RunToHalt();
            Assert.Equal((i, SmallGuest.Stack), (s.Gpr[3], s.Gpr[4]));
        }
        log.GetAndClear(bits);
        Assert.NotEqual(0UL, bits[0] & (1UL << (int)((SmallGuest.Stack - 1) >> 12)));
    }

    [Theory, MemberData(nameof(Kinds))]
    public void AnNmiComesWithInterruptsOff(string kind)
    {
        using SmallGuest g = new(kind);
        g.Long(a =>
        {
            a.nop();
            a.nop();
            a.hlt();
        });
        g.Assemble(64, SmallGuest.Handlers + 0x20, a =>
        {
            a.inc(rbx);
            a.iretq();
        });
        g.Processor.RaiseNmi();
        ProcessorState s = g.RunToHalt();
        Assert.Equal((1UL, SmallGuest.Stack, false), (s.Gpr[3], s.Gpr[4], s.NmiBlocked));
        // And it ends a halt.
        g.Processor.RaiseNmi();
        Assert.True(g.Processor.HasWork);
        g.Assemble(64, SmallGuest.Code + 3, a => a.hlt());
        Assert.Equal(2UL, g.RunToHalt().Gpr[3]);
    }

    [Theory, MemberData(nameof(Kinds))]
    public void AnNmiWaitsForTheEndOfTheLast(string kind)
    {
        ProcessorKinds.SkipIfUnusable(kind);
        Assert.SkipUnless(ProcessorKinds.IsExact(kind), "this KVM emulates its guests, and goes astray when an NMI waits for the IRET of another");
        using SmallGuest g = new(kind);
        int raised = 0;
        g.World.PortWritten = (_, _) =>
        {
            // Twice in the first service: one is latched.
            if (raised++ == 0)
            {
                g.Processor.RaiseNmi();
                g.Processor.RaiseNmi();
            }
        };
        g.Long(a =>
        {
            a.nop();
            a.nop();
            a.hlt();
        });
        g.Assemble(64, SmallGuest.Handlers + 0x20, a =>
        {
            a.inc(rbx);
            a.@out(0x80, al);
            a.mov(r8, rbx);
            a.iretq();
        });
        g.Processor.RaiseNmi();
        ProcessorState s = g.RunToHalt();
        Assert.Equal((2UL, 2, SmallGuest.Stack), (s.Gpr[3], raised, s.Gpr[4]));
        Assert.False(s.NmiBlocked);
    }

    [Theory, MemberData(nameof(Kinds))]
    public void TheWindowIsToldOnce(string kind)
    {
        using SmallGuest g = new(kind);
        g.Long(a =>
        {
            a.inc(rbx);
            a.inc(rbx);
            a.sti();
            a.inc(rbx);
            a.inc(rbx);
            a.hlt();
        });
        g.Processor.RequestInterruptWindow();
        Assert.Equal(ExitReason.InterruptWindow, g.Run().Reason);
        Assert.InRange(g.Processor.GetState().Gpr[3], 3UL, ProcessorKinds.IsExact(kind) ? 3UL : 4);
        Assert.Equal(4UL, g.RunToHalt().Gpr[3]);
        // A halted guest with interrupts on can take one, too.
        g.Processor.RequestInterruptWindow();
        Assert.True(g.Processor.HasWork);
        Assert.Equal(ExitReason.InterruptWindow, g.Run().Reason);
        Assert.Equal(ExitReason.Halted, g.Run().Reason);
    }

    [Theory]
    [InlineData(-1), InlineData(256), InlineData(int.MinValue), InlineData(int.MaxValue)]
    public void VectorsOutsideTheirRangeAreRefused(int vector)
    {
        using SmallGuest g = new("interpreter");
        PendingInterrupts pending = Connect(g);
        ArgumentOutOfRangeException e = Assert.Throws<ArgumentOutOfRangeException>(() => pending.Raise(vector));
        Assert.Contains("0..255", e.Message, StringComparison.Ordinal);
        Assert.Throws<ArgumentOutOfRangeException>(() => pending.IsPending(vector));
        Assert.False(pending.Any);
        Assert.Equal(-1, pending.Acknowledge());
    }

    [Fact]
    public void EveryVectorIsTakenOnce()
    {
        using SmallGuest g = new("interpreter");
        PendingInterrupts pending = Connect(g);
        for (int v = 255; v >= 0; v--)
            pending.Raise(v);
        for (int v = 0; v < 256; v++)
        {
            Assert.True(pending.IsPending(v));
            Assert.Equal(v, pending.Acknowledge());
            Assert.False(pending.IsPending(v));
        }
        Assert.Equal(-1, pending.Acknowledge());
        pending.Raise(3);
        pending.Clear();
        Assert.False(pending.Any);
    }
}
