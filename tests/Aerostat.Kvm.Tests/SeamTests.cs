using Aerostat.Processors;
using Aerostat.X86;
using Iced.Intel;
using Xunit;
using static Iced.Intel.AssemblerRegisters;

namespace Aerostat.Kvm.Tests;

/// <summary>What every processor owes its owner, whatever runs the guest's code.</summary>
public sealed class SeamTests
{
    public static TheoryData<string> Kinds => ProcessorKinds.All;

    [Theory, MemberData(nameof(Kinds))]
    public void PortsOfEverySize(string kind)
    {
        using SmallGuest g = new(kind);
        g.World.Input = (_, port, size) => size switch { 1 => 0x5A, 2 => 0x1234, _ => 0xDEADBEEF };
        g.Long(a =>
        {
            a.mov(eax, 0x11223344);
            a.@out(0x10, al);
            a.@out(0x12, ax);
            a.@out(0x14, eax);
            a.@in(al, 0x20);
            a.mov(r8, rax);
            a.@in(ax, 0x22);
            a.mov(r9, rax);
            a.mov(dx, 0x424);
            a.@in(eax, dx);
            a.hlt();
        });
        ProcessorState s = g.RunToHalt();
        Assert.Equal(
            [("out", 0x10, 1, 0x44), ("out", 0x12, 2, 0x3344), ("out", 0x14, 4, 0x11223344), ("in", 0x20, 1, 0x5A), ("in", 0x22, 2, 0x1234), ("in", 0x424, 4, 0xDEADBEEF)],
            g.World.Log);
        Assert.Equal((0x1122335AUL, 0x11221234UL, 0xDEADBEEFUL), (s.Gpr[8], s.Gpr[9], s.Gpr[0]));
    }

    /// <summary>By the instruction, or by the port that stands for it where a host's kernel answers the instruction.</summary>
    [Theory, MemberData(nameof(Kinds))]
    public void Hypercalls(string kind)
    {
        using SmallGuest g = new(kind);
        byte? port = g.Hypervisor.HypercallPort;
        Assert.Equal(kind == "kvm", port is not null);
        List<(bool Wide, ulong Control, ulong Input, ulong Output)> calls = [];
        g.World.Called = (processor, registers) =>
        {
            calls.Add((processor.IsIn64BitMode, registers[1], registers[2], registers[8]));
            registers[0] = 0x0000_0123_0000_4567;
        };
        void Call(Assembler a)
        {
            if (port is { } number)
                a.@out(number, eax);
            else
                a.vmmcall();
        }
        g.Long(a =>
        {
            a.mov(rax, -1);
            a.mov(rcx, 0x1_0000_0000_005C);
            a.mov(rdx, 0x1_2345_6000);
            a.mov(r8, 0x7_8888_0000);
            Call(a);
            a.mov(r9, rax);
            Call(a);
            a.hlt();
        });
        ProcessorState s = g.RunToHalt();
        Assert.Equal(Enumerable.Repeat((true, 0x1_0000_0000_005CUL, 0x1_2345_6000UL, 0x7_8888_0000UL), 2), calls);
        Assert.Equal((0x123_0000_4567UL, 0x123_0000_4567UL, 0x1_0000_0000_005CUL, 0x1_2345_6000UL), (s.Gpr[9], s.Gpr[0], s.Gpr[1], s.Gpr[2]));
        Assert.Empty(g.World.Log);
        if (port is null)
            return;
        // Without hypercalls, or in another size, it is a port like any other.
        g.World.Called = null;
        g.Long(a =>
        {
            a.mov(eax, 7);
            a.@out(port.Value, eax);
            a.hlt();
        });
        g.RunToHalt();
        g.World.Called = (_, _) => calls.Clear();
        g.Long(a =>
        {
            a.mov(eax, 7);
            a.@out(port.Value, ax);
            a.@out(port.Value, al);
            a.hlt();
        });
        g.RunToHalt();
        Assert.Equal([("out", port.Value, 4, 7), ("out", port.Value, 2, 7), ("out", port.Value, 1, 7)], g.World.Log);
        Assert.Equal(2, calls.Count);
    }

    [Theory, MemberData(nameof(Kinds))]
    public void StringsOfPorts(string kind)
    {
        using SmallGuest g = new(kind);
        byte next = 0x61;
        g.World.Input = (_, _, _) => next++;
        g.Memory.Write(new(0xA000), "hello"u8);
        g.Long(a =>
        {
            a.mov(rsi, 0xA000);
            a.mov(ecx, 5);
            a.mov(edx, 0x3F8);
            a.rep.outsb();
            a.mov(rdi, 0xA100);
            a.mov(ecx, 4);
            a.rep.insb();
            a.hlt();
        });
        ProcessorState s = g.RunToHalt();
        Assert.Equal("hello", string.Concat(g.World.Log.Where(l => l.Kind == "out").Select(l => (char)l.Value)));
        byte[] read = new byte[4];
        Assert.True(g.Memory.TryRead(new(0xA100), read));
        Assert.Equal("abcd"u8.ToArray(), read);
        Assert.Equal((0xA005UL, 0xA104UL, 0UL), (s.Gpr[6], s.Gpr[7], s.Gpr[1]));
    }

    [Theory, MemberData(nameof(Kinds))]
    public void MemoryMappedReadsCompleteOnTheNextEntry(string kind)
    {
        using SmallGuest g = new(kind);
        g.World.Input = (_, address, _) => 0x1122334455667788UL ^ (address & 0xFFFF);
        g.Long(a =>
        {
            a.mov(rbx, 0x1000_0000);
            a.mov(rax, __[rbx]);
            a.mov(r8d, __[rbx + 0x10]);
            a.movzx(r9d, __word_ptr[rbx + 0x20]);
            a.movzx(r10d, __byte_ptr[rbx + 0x31]);
            a.add(__dword_ptr[rbx + 0x40], 1);
            a.mov(__qword_ptr[rbx + 0x50], rax);
            a.mov(__byte_ptr[rbx + 0x61], 0x7F);
            a.hlt();
        });
        ProcessorState s = g.RunToHalt();
        Assert.Equal((0x1122334455667788UL, 0x55667798UL, 0x77A8UL, 0xB9UL), (s.Gpr[0], s.Gpr[8], s.Gpr[9], s.Gpr[10]));
        Assert.Equal(
            [("write", 0x1000_0040, 4, 0x556677C9), ("write", 0x1000_0050, 8, 0x1122334455667788), ("write", 0x1000_0061, 1, 0x7F)],
            g.World.Log.Where(l => l.Kind == "write"));
    }

    /// <summary>INVLPG of any part of a large page forgets that the page was a device's, or memory.</summary>
    [Theory, MemberData(nameof(Kinds))]
    public void APageOfADeviceBecomesMemoryAndBack(string kind)
    {
        const ulong Device = 0x1000_0000, Entry = 0x3000 + ((Device >> 21) * 8), Ram = 0x20_0000;
        using SmallGuest g = new(kind);
        g.World.Input = (_, address, _) => address & 0xFFFF;
        g.Memory.Write(new(Ram + 0x10), 0x1234_5678u);
        g.Memory.Write(new(Ram + 0x3010), 0x9ABC_DEF0u);
        g.Long(a =>
        {
            Label again = a.CreateLabel();
            a.mov(ebx, (uint)Device);
            a.mov(ebp, 50);
            a.Label(ref again);
            a.mov(r8d, __dword_ptr[rbx + 0x10]);
            a.mov(r9d, __dword_ptr[rbx + 0x20]);
            a.mov(__qword_ptr[Entry], (int)Ram | 0x83);
            a.invlpg(__byte_ptr[rbx + 0x1000]);
            a.mov(r10d, __dword_ptr[rbx + 0x10]);
            a.mov(r11d, __dword_ptr[rbx + 0x3010]);
            a.mov(__qword_ptr[Entry], (int)Device | 0x83);
            a.invlpg(__byte_ptr[rbx + 0x2000]);
            a.mov(r12d, __dword_ptr[rbx + 0x10]);
            a.mov(r13d, __dword_ptr[rbx + 0x3010]);
            a.dec(ebp);
            a.jne(again);
            a.hlt();
        });
        ProcessorState s = g.RunToHalt();
        Assert.Equal([0x10UL, 0x20, 0x1234_5678, 0x9ABC_DEF0, 0x10, 0x3010], s.Gpr[8..14]);
    }

    /// <summary>Leaving after a read must not lose what was read, nor run one instruction more.</summary>
    [Theory, MemberData(nameof(Kinds))]
    public void LeavingAfterAReadCompletesItFirst(string kind)
    {
        using SmallGuest g = new(kind);
        g.World.Input = (_, _, _) =>
        {
            g.World.LeaveRequested = true;
            return 0x77;
        };
        g.Long(a =>
        {
            a.@in(al, 0x20);
            a.inc(rbx);
            a.hlt();
        });
        Assert.Equal(ExitReason.HandlerRequest, g.Run().Reason);
        ProcessorState s = g.Processor.GetState();
        Assert.Equal((SmallGuest.Code + 2, 0x77UL, 0UL), (s.Rip, s.Gpr[0] & 0xFF, s.Gpr[3]));
        g.World.LeaveRequested = false;
        Assert.Equal(1UL, g.RunToHalt().Gpr[3]);
    }

    [Theory, MemberData(nameof(Kinds))]
    public void HaltIsTold(string kind)
    {
        using SmallGuest g = new(kind);
        g.Long(a => a.hlt());
        ProcessorState s = g.RunToHalt();
        Assert.Equal((SmallGuest.Code + 1, ActivityState.Halted), (s.Rip, s.Activity));
        Assert.False(g.Processor.HasWork);
        Assert.Equal(ExitReason.Halted, g.Run().Reason);
    }

    /// <summary>A guest that never exits and has interrupts off cannot stay against the owner's will.</summary>
    [Theory, MemberData(nameof(Kinds))]
    public async Task AKickEndsASpinningGuest(string kind)
    {
        using SmallGuest g = new(kind);
        g.Real(a =>
        {
            Label loop = a.CreateLabel();
            a.cli();
            a.@out(0x80, al);
            a.Label(ref loop);
            a.jmp(loop);
        });
        TaskCompletionSource inside = new(TaskCreationOptions.RunContinuationsAsynchronously);
        g.World.PortWritten = (_, _) => inside.SetResult();
        for (int i = 0; i < 20; i++)
        {
            Task<ProcessorExit> running = Task.Run(g.Run, TestContext.Current.CancellationToken);
            await inside.Task;
            g.Processor.Kick();
            Assert.Equal(ExitReason.Interrupted, (await running).Reason);
        }
    }

    [Theory, MemberData(nameof(Kinds))]
    public void AKickBeforehandCounts(string kind)
    {
        using SmallGuest g = new(kind);
        g.Long(a =>
        {
            a.inc(rbx);
            a.hlt();
        });
        g.Processor.Kick();
        g.Processor.Kick();
        Assert.Equal(ExitReason.Interrupted, g.Run().Reason);
        Assert.Equal(1UL, g.RunToHalt().Gpr[3]);
    }

    [Theory, MemberData(nameof(Kinds))]
    public void ATripleFaultShutsDown(string kind)
    {
        using SmallGuest g = new(kind);
        g.Long(a => a.ud2(), s => s.Idtr = new(0, 0));
        Assert.Equal(ExitReason.Shutdown, g.Run().Reason);
        Assert.Equal(ActivityState.Shutdown, g.Processor.GetState().Activity);
        Assert.Equal(ExitReason.Shutdown, g.Run().Reason);
        g.Processor.Reset();
        Assert.Equal(0xFFF0UL, g.Processor.GetState().Rip);
    }

    [Theory, MemberData(nameof(Kinds))]
    public void RegistersThatTheMachineHoldsGoToTheHandler(string kind)
    {
        using SmallGuest g = new(kind);
        g.World.Msrs[0x1B] = 0xFEE00900;
        g.World.Msrs[0x6E0] = 7;
        g.World.Msrs[0x4000_0000] = 0;
        g.Long(a =>
        {
            a.mov(ecx, 0x1B);
            a.rdmsr();
            a.mov(r8d, eax);
            a.mov(ecx, 0x6E0);
            a.rdmsr();
            a.mov(r9d, eax);
            a.mov(ecx, 0x4000_0000);
            a.mov(eax, 0x8100);
            a.mov(edx, 1);
            a.wrmsr();
            a.mov(ecx, 0x4000_0021);
            a.rdmsr();
            a.hlt();
        });
        ProcessorState s = g.RunToHalt();
        Assert.Equal((0xFEE00900UL, 7UL, 0x1_0000_8100UL), (s.Gpr[8], s.Gpr[9], g.World.Msrs[0x4000_0000]));
        // What nobody holds is #GP.
        Assert.Equal(SmallGuest.Handlers + (13 * 16) + 1, s.Rip);
    }

    [Theory, MemberData(nameof(Kinds))]
    public void TaskPriorityFollowsCr8(string kind)
    {
        using SmallGuest g = new(kind);
        g.World.TaskPriority = 5;
        ulong seen = 0;
        g.World.PortWritten = (_, _) => seen = g.World.TaskPriority;
        g.Long(a =>
        {
            a.mov(rbx, cr8);
            a.mov(eax, 9);
            a.mov(cr8, rax);
            a.@out(0x80, al);
            a.mov(eax, 3);
            a.mov(cr8, rax);
            a.hlt();
        });
        ProcessorState s = g.RunToHalt();
        Assert.Equal((5UL, 9UL, 3UL), (s.Gpr[3], seen, g.World.TaskPriority));
    }

    [Theory, MemberData(nameof(Kinds))]
    public void AnApplicationProcessorWaitsForItsStart(string kind)
    {
        using SmallGuest g = new(kind, count: 2);
        g.Assemble(16, 0x12000, a =>
        {
            a.mov(bx, cs);
            a.hlt();
        });
        IVirtualProcessor second = g.Processors[1];
        Assert.Equal(ExitReason.WaitForStartup, second.Run(g.World).Reason);
        Assert.False(second.HasWork);
        second.RaiseInit();
        second.RaiseStartup(0x12);
        Assert.True(second.HasWork);
        Assert.Equal(ExitReason.Halted, second.Run(g.World).Reason);
        Assert.Equal((0x1200UL, 3UL), (second.GetState().Gpr[3], second.GetState().Rip));
        // And back.
        second.RaiseInit();
        Assert.Equal(ExitReason.WaitForStartup, second.Run(g.World).Reason);
    }

    [Theory, MemberData(nameof(Kinds))]
    public void WrongProcessorNumbersAreRefused(string kind)
    {
        using SmallGuest g = new(kind);
        foreach ((int index, int count) in ((int, int)[])[(0, 1), (1, 1), (-1, 2)])
        {
            ArgumentOutOfRangeException e = Assert.Throws<ArgumentOutOfRangeException>(() => g.Hypervisor.CreateProcessor(SmallGuest.Options(0, 1) with { Index = index, Count = count }));
            Assert.Contains($"0..{count - 1}", e.Message, StringComparison.Ordinal);
        }
        g.Long(a => a.hlt());
        g.RunToHalt();
    }

    /// <summary>What KVM_RUN may come back with: a failed entry with the processor's error number, what is not known with the hardware's reason, and each counted.</summary>
    [Fact]
    public void EveryReasonOfKvmIsTold()
    {
        using SmallGuest g = new("kvm");
        g.Long(a => a.hlt());
        KvmProcessor p = (KvmProcessor)g.Processor;
        foreach ((uint reason, ulong number, ExitReason expected, ulong detail, string counter) in ((uint, ulong, ExitReason, ulong, string)[])
            [
                ((uint)KvmExit.FailEntry, 0x8000_0021, ExitReason.FailedEntry, 0x8000_0021, "kvm-failed-entry"),
                ((uint)KvmExit.FailEntry, ulong.MaxValue, ExitReason.FailedEntry, ulong.MaxValue, "kvm-failed-entry"),
                ((uint)KvmExit.Unknown, 0x31, ExitReason.Unknown, 0x31, "kvm-unknown"),
                ((uint)KvmExit.InternalError, 4, ExitReason.InternalError, 4, "kvm-internal-error"),
                (27, 0x31, ExitReason.Unknown, 27, "kvm-exit-27"),
                (uint.MaxValue, 0x31, ExitReason.Unknown, uint.MaxValue, "kvm-exit-63"),
                ((uint)KvmExit.Shutdown, 0, ExitReason.Shutdown, 0, "kvm-shutdown"),
            ])
        {
            long before = p.Counters.Named.GetValueOrDefault(counter);
            Assert.True(p.Serve(reason, number, g.World, out ProcessorExit exit));
            Assert.Equal((expected, detail, before + 1), (exit.Reason, exit.Detail, p.Counters.Named[counter]));
        }
        // Those that have been served do not leave.
        foreach (KvmExit reason in (KvmExit[])[KvmExit.InterruptWindowOpen, KvmExit.Interrupted, KvmExit.SetTpr, KvmExit.Halt])
            Assert.False(p.Serve((uint)reason, 0, g.World, out _));
        Assert.Empty(g.World.Log);
    }

    /// <summary>Memory that is not there: an error that names what there is, and nothing written; the guest goes on.</summary>
    [Theory, MemberData(nameof(Kinds))]
    public void MemoryThatIsNotThereIsRefused(string kind)
    {
        using SmallGuest g = new(kind);
        g.Long(a => a.hlt());
        const ulong End = 4 << 20;
        foreach ((ulong address, int bytes) in ((ulong, int)[])[(End, 1), (End - 4, 8), (ulong.MaxValue - 3, 8), (1UL << 40, 16)])
        {
            byte[] data = [.. Enumerable.Repeat((byte)0xA5, bytes)];
            ArgumentOutOfRangeException e = Assert.Throws<ArgumentOutOfRangeException>(() => g.Memory.Write(new(address), data));
            Assert.Contains("0x3fffff", e.Message, StringComparison.Ordinal);
            Assert.False(g.Memory.TryRead(new(address), data));
            Assert.All(data, b => Assert.Equal(0xA5, b));
        }
        Assert.Equal(0u, g.Memory.Read<uint>(new(End - 4)));
        g.RunToHalt();
    }

    [Theory, MemberData(nameof(Kinds))]
    public void AStateComesBackAsItWasSet(string kind)
    {
        using SmallGuest g = new(kind);
        ProcessorState s = g.Long(a => a.hlt(), s =>
        {
            for (int i = 0; i < 16; i++)
                s.Gpr[i] = 0x0101_0101_0101_0101UL * (ulong)(i + 1);
            s.Rflags = 0x246;
            s.Cr2 = 0xFFFF_8000_1234_5000;
            s.Dr[0] = 0x1234;
            s.Dr[3] = 0x5678;
            s.Segments[4] = new SegmentState(0, 0x7FFF_1234_5678, 0, SegmentState.Unusable);
            s.Segments[5] = new SegmentState(0x10, 0xFFFF_8880_0000_1000, uint.MaxValue, 0xC093);
            s.Tr = new SegmentState(0x18, 0x12345000, 0x67, 0x8B);
            s.Ldtr = new SegmentState(0x20, 0x54321000, 0xFF, 0x82);
            s.Msrs[Msr.Lstar] = 0xFFFF_8000_0000_0010;
            s.Msrs[Msr.KernelGsBase] = 0xFFFF_9000_0000_0000;
            s.Msrs[Msr.SysenterEip] = 0x1234_5678;
            s.InterruptShadow = true;
            s.NmiBlocked = true;
            s.Xsave.AsSpan(160, 256).Fill(0xA5);
            s.Xsave[512] = 3;
        });
        ProcessorState r = g.Processor.GetState();
        Assert.Equal(s.Gpr, r.Gpr);
        Assert.Equal((s.Rip, s.Rflags, s.Cr0, s.Cr2, s.Cr3, s.Cr4, s.Efer), (r.Rip, r.Rflags, r.Cr0, r.Cr2, r.Cr3, r.Cr4, r.Efer));
        Assert.Equal(s.Segments[1], r.Segments[1]);
        Assert.Equal((0x7FFF_1234_5678UL, 0xFFFF_8880_0000_1000UL), (r.Segments[4].Base, r.Segments[5].Base));
        Assert.Equal((s.Tr, s.Ldtr, s.Gdtr, s.Idtr), (r.Tr, r.Ldtr, r.Gdtr, r.Idtr));
        Assert.Equal((0x1234UL, 0x5678UL, 0x400UL), (r.Dr[0], r.Dr[3], r.Dr[7]));
        foreach (uint msr in (uint[])[Msr.Lstar, Msr.KernelGsBase, Msr.SysenterEip])
            Assert.Equal(s.Msrs[msr], r.Msrs[msr]);
        Assert.True(r.InterruptShadow);
        Assert.True(r.NmiBlocked);
        Assert.Equal(s.Xsave.AsSpan(160, 256), r.Xsave.AsSpan(160, 256));
    }

    /// <summary>Writes show in the dirty log, once, on the page they were made to.</summary>
    [Theory, InlineData("interpreter"), InlineData("translator"), InlineData("kvm", KvmDirtyTracking.Bitmap), InlineData("kvm", KvmDirtyTracking.Ring)]
    public void WritesAreLogged(string kind, KvmDirtyTracking tracking = KvmDirtyTracking.Automatic)
    {
        ProcessorKinds.SkipIfUnusable(kind);
        if (tracking == KvmDirtyTracking.Ring)
            Assert.SkipUnless(KvmHost.Probe().Capabilities!.DirtyRingEntries > 0, "this host's KVM has no dirty rings");
        using SmallGuest g = new(kind, kvm: KvmOptions.Bare with { DirtyTracking = tracking });
        g.Long(a =>
        {
            Label loop = a.CreateLabel();
            a.Label(ref loop);
            a.mov(__byte_ptr[0x100010], 1);
            a.mov(__byte_ptr[0x103FF0], 1);
            a.hlt();
            a.jmp(loop);
        });
        g.RunToHalt();
        using Memory.DirtyLog log = g.Memory.StartDirtyLog(g.Memory.Regions[0]);
        ulong[] bits = new ulong[log.WordCount];
        log.GetAndClear(bits);
        log.GetAndClear(bits);
        Assert.All(bits, b => Assert.Equal(0UL, b));
        ProcessorState s = g.Processor.GetState();
        s.Activity = ActivityState.Running;
        g.Processor.SetState(s);
        g.RunToHalt();
        log.GetAndClear(bits);
        Assert.Equal(9UL, bits[0x100 / 64]);
        log.GetAndClear(bits);
        Assert.Equal(0UL, bits[0x100 / 64]);
        if (tracking == KvmDirtyTracking.Ring)
            Assert.True(g.Processor.Counters.Named["kvm-ring-pages"] >= 2);
    }
}
