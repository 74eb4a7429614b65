using System.Runtime.InteropServices;
using Aerostat.Devices;
using Aerostat.Hosting;
using Aerostat.Interrupts;
using Aerostat.Machine;
using Aerostat.Memory;
using Aerostat.Processors;
using Iced.Intel;
using Xunit;
using static Iced.Intel.AssemblerRegisters;

namespace Aerostat.Kvm.Tests;

/// <summary>What the kernel does for a machine on KVM where it offers to: local APICs, messages, doorbells, gathered writes.</summary>
public sealed class KernelTests
{
    private const byte DebugExit = 0xF4, Vector = 0x40;
    private const int ApicBase = 0x1B, Spurious = 0x80F, EndOfInterrupt = 0x80B, Command = 0x830, TimerEntry = 0x832, InitialCount = 0x838, Divide = 0x83E, SelfIpi = 0x83F;

    private static readonly TimeSpan s_patience = TimeSpan.FromSeconds(60);
    private static readonly KvmOptions s_kernel = new() { LocalApics = KvmLocalApicMode.Kernel };

    /// <summary>Every processor, and KVM with its local APICs in either place.</summary>
    public static TheoryData<string, KvmLocalApicMode> Places =>
        new() { { "interpreter", default }, { "translator", default }, { "kvm", KvmLocalApicMode.Machine }, { "kvm", KvmLocalApicMode.Kernel } };

    private static KvmCapabilities Capabilities()
    {
        ProcessorKinds.SkipIfUnusable("kvm");
        return KvmHost.Probe().Capabilities!;
    }

    private static Accelerator Open(string kind, KvmLocalApicMode place)
    {
        ProcessorKinds.SkipIfUnusable(kind);
        if (place == KvmLocalApicMode.Kernel)
            Assert.SkipUnless(Capabilities().SplitIrqchip, "this host's KVM keeps no local APICs");
        return Accelerators.Create(kind, "max", kvm: new KvmOptions { LocalApics = place });
    }

    private static MachineOptions Describe(string kind, Action<Assembler> write, Action<char>? said = null, int cpus = 1)
    {
        Assembler assembler = new(16);
        write(assembler);
        using MemoryStream code = new();
        assembler.Assemble(new StreamCodeWriter(code), 0x7C00);
        return new MachineOptions
        {
            MemoryBytes = 2 << 20,
            Cpus = cpus,
            Accelerator = kind,
            CpuModel = "max",
            Boot = new RealModeBootOptions(code.ToArray()),
            Devices = [new DebugExitOptions()],
            Serial = bytes =>
            {
                foreach (byte b in bytes)
                    said?.Invoke((char)b);
            },
        };
    }

    private static void WriteMsr(Assembler a, int index, uint low, uint high = 0)
    {
        a.mov(ecx, index);
        a.mov(eax, low);
        a.mov(edx, high);
        a.wrmsr();
    }

    // A handler at 7C02H that counts in BX and ends its interrupt; the x2APIC on.
    private static void Prepare(Assembler a)
    {
        using MemoryStream handler = new();
        Assembler h = new(16);
        h.inc(bx);
        WriteMsr(h, EndOfInterrupt, 0);
        h.iret();
        h.Assemble(new StreamCodeWriter(handler), 0x7C02);
        a.db(0xEB, (byte)handler.Length);
        a.db(handler.ToArray());
        a.mov(__word_ptr[Vector * 4], 0x7C02);
        a.mov(__word_ptr[(Vector * 4) + 2], 0);
        a.mov(ecx, ApicBase);
        a.rdmsr();
        a.or(eax, 0xC00);
        a.wrmsr();
        WriteMsr(a, Spurious, 0x1FF);
        a.xor(bx, bx);
    }

    private static void WaitFor(Assembler a, short count)
    {
        Label loop = a.CreateLabel(), done = a.CreateLabel();
        a.Label(ref loop);
        a.cli();
        a.cmp(bx, count);
        a.jae(done);
        a.sti();
        a.hlt();
        a.jmp(loop);
        a.Label(ref done);
        a.nop();
    }

    private static void End(Assembler a)
    {
        a.mov(al, bl);
        a.@out(DebugExit, al);
    }

    /// <summary>An interrupt to oneself, then one from the timer, which wakes a halted guest.</summary>
    [Theory, MemberData(nameof(Places))]
    public async Task TheLocalApicInterrupts(string kind, KvmLocalApicMode place)
    {
        MachineOptions options = Describe(kind, a =>
        {
            Prepare(a);
            WriteMsr(a, SelfIpi, Vector);
            WaitFor(a, 1);
            WriteMsr(a, Divide, 0xB);
            WriteMsr(a, TimerEntry, Vector);
            WriteMsr(a, InitialCount, 25_000);
            WaitFor(a, 2);
            End(a);
        });
        await using VirtualMachine machine = new(options, Open(kind, place));
        await machine.StartAsync();
        Assert.Equal(new MachineExit(MachineExitKind.DebugExit, 5), await machine.WaitForExitAsync(s_patience));
    }

    /// <summary>INIT and a start-up IPI; the second processor answers with an interrupt.</summary>
    [Theory, MemberData(nameof(Places))]
    public async Task ASecondProcessorStarts(string kind, KvmLocalApicMode place)
    {
        MachineOptions options = Describe(
            kind,
            a =>
            {
                Prepare(a);
                StartOther(a, o =>
                {
                    o.mov(ecx, ApicBase);
                    o.rdmsr();
                    o.or(eax, 0xC00);
                    o.wrmsr();
                    WriteMsr(o, Spurious, 0x1FF);
                    WriteMsr(o, Command, Vector, 0);
                    o.cli();
                    o.hlt();
                });
                WaitFor(a, 1);
                End(a);
            },
            cpus: 2);
        await using VirtualMachine machine = new(options, Open(kind, place));
        await machine.StartAsync();
        Assert.Equal(new MachineExit(MachineExitKind.DebugExit, 3), await machine.WaitForExitAsync(s_patience));
    }

    /// <summary>One vCPU spins with interrupts off for ever: pause, resume and the other vCPU do not wait for it.</summary>
    [Theory, MemberData(nameof(Places))]
    public async Task ASpinningProcessorStarvesNobody(string kind, KvmLocalApicMode place)
    {
        TaskCompletionSource started = new(TaskCreationOptions.RunContinuationsAsynchronously);
        MachineOptions options = Describe(
            kind,
            a =>
            {
                Label loop = a.CreateLabel();
                Prepare(a);
                StartOther(a, o =>
                {
                    Label wait = o.CreateLabel();
                    o.mov(dx, 0x3F8);
                    o.mov(al, (byte)'r');
                    o.@out(dx, al);
                    o.mov(dx, 0x3FD);
                    o.Label(ref wait);
                    o.@in(al, dx);
                    o.test(al, 1);
                    o.je(wait);
                    o.mov(dx, 0x3F8);
                    o.@in(al, dx);
                    o.@out(DebugExit, al);
                });
                a.cli();
                a.Label(ref loop);
                a.jmp(loop);
            },
            _ => started.TrySetResult(),
            cpus: 2);
        await using VirtualMachine machine = new(options, Open(kind, place));
        await machine.StartAsync();
        await started.Task.WaitAsync(s_patience, TestContext.Current.CancellationToken);
        for (int i = 0; i < 5; i++)
        {
            await machine.PauseAsync().WaitAsync(s_patience, TestContext.Current.CancellationToken);
            await machine.ResumeAsync();
        }
        await machine.SendSerialAsync(new byte[] { 21 }, TestContext.Current.CancellationToken);
        Assert.Equal(new MachineExit(MachineExitKind.DebugExit, 43), await machine.WaitForExitAsync(s_patience));
    }

    // INIT and a start-up IPI to the others; their code is put at 8000H.
    private static void StartOther(Assembler a, Action<Assembler> write)
    {
        using MemoryStream other = new();
        Assembler o = new(16);
        write(o);
        o.Assemble(new StreamCodeWriter(other), 0);
        for (int i = 0; i < other.Length; i++)
            a.mov(__byte_ptr[0x8000 + i], other.ToArray()[i]);
        WriteMsr(a, Command, 0xC4500);
        WriteMsr(a, Command, 0xC4608);
    }

    /// <summary>A timer that runs goes on where the state is put back, whoever keeps the local APIC there.</summary>
    [Theory]
    [InlineData(KvmLocalApicMode.Kernel, KvmLocalApicMode.Kernel)]
    [InlineData(KvmLocalApicMode.Kernel, KvmLocalApicMode.Machine)]
    [InlineData(KvmLocalApicMode.Machine, KvmLocalApicMode.Kernel)]
    public async Task ARunningTimerSurvivesAMove(KvmLocalApicMode from, KvmLocalApicMode to)
    {
        Assert.SkipUnless(Capabilities() is { SplitIrqchip: true, ApicTimerFrequency: true }, "this host's KVM keeps no local APICs, or none with our timer");
        TaskCompletionSource armed = new(TaskCreationOptions.RunContinuationsAsynchronously);
        MachineOptions options = Describe(
            "kvm",
            a =>
            {
                Prepare(a);
                WriteMsr(a, Divide, 0xB);
                WriteMsr(a, TimerEntry, Vector);
                WriteMsr(a, InitialCount, 5_000_000);
                a.mov(dx, 0x3F8);
                a.mov(al, (byte)'t');
                a.@out(dx, al);
                WaitFor(a, 1);
                End(a);
            },
            _ => armed.TrySetResult());
        MachineSavedState state;
        byte[] contents = new byte[2 << 20];
        await using (VirtualMachine first = new(options, Open("kvm", from)))
        {
            await first.StartAsync();
            await armed.Task.WaitAsync(s_patience, TestContext.Current.CancellationToken);
            TaskCompletionSource<MachineSavedState> taken = new();
            await first.SaveAsync(s =>
            {
                first.Memory.TryRead(new GuestAddress(0), contents);
                taken.SetResult(s);
                return Task.CompletedTask;
            });
            state = await taken.Task;
        }
        await using VirtualMachine second = new(options, Open("kvm", to), new MachineOrigin(state, m => m.TryWrite(new GuestAddress(0), contents)));
        await second.StartAsync();
        Assert.Equal(new MachineExit(MachineExitKind.DebugExit, 3), await second.WaitForExitAsync(s_patience));
    }

    /// <summary>A message that comes often goes by a descriptor of its own, and none is lost when that begins.</summary>
    [Fact]
    public void MessagesGoByDescriptors()
    {
        Assert.SkipUnless(Capabilities() is { SplitIrqchip: true, EventDescriptors: true }, "this host's KVM keeps no local APICs, or has no event descriptors");
        using SmallGuest g = new("kvm", kvm: s_kernel);
        IHostedLocalApics apics = g.Hypervisor.LocalApics!;
        apics.ReleaseTime();
        g.Real(a =>
        {
            Label loop = a.CreateLabel(), wait = a.CreateLabel();
            Prepare(a);
            a.sti();
            a.Label(ref loop);
            a.mov(si, bx);
            a.@out(0x10, al);
            a.Label(ref wait);
            a.cmp(si, bx);
            a.je(wait);
            a.jmp(loop);
        });
        // The handler is where Prepare thinks the code begins.
        byte[] code = new byte[256];
        g.Memory.TryRead(new(SmallGuest.Code), code);
        g.Memory.Write(new(0x7C00), code);
        g.World.PortWritten = (_, _) => g.World.LeaveRequested = true;
        for (int i = 0; i <= 100; i++)
        {
            if (i > 0)
                Assert.True(apics.Send(0xFEE0_0000, Vector) > 0);
            g.World.LeaveRequested = false;
            Assert.Equal(ExitReason.HandlerRequest, g.Run().Reason);
            Assert.Equal((ulong)i, g.Processor.GetState().Gpr[3] & 0xFFFF);
        }
        Assert.Equal(1, g.Processor.Counters.Named["kvm-message-descriptors"]);
        Assert.True(apics.Send(0xFEE0_0000 | (7 << 12), Vector) <= 0);
    }

    [Fact]
    public void DoorbellsRingOnAThreadOfTheirOwn()
    {
        KvmCapabilities capabilities = Capabilities();
        Assert.SkipUnless(capabilities is { EventDescriptors: true, EventsOfAnyLength: true }, "this host's KVM has no event descriptors");
        using SmallGuest g = new("kvm", kvm: KvmOptions.Bare with { EventDescriptors = true });
        IDoorbells doorbells = g.Hypervisor.Doorbells!;
        int any = 0, two = 0;
        IDisposable first = doorbells.Attach(0x1000_0000, 0, null, () => any++)!;
        using IDisposable? second = doorbells.Attach(0x1000_0010, 4, 2, () => two++);
        Action<Assembler> code = a =>
        {
            a.mov(ebx, 0x1000_0000);
            a.mov(__word_ptr[rbx], 7);
            a.mov(__dword_ptr[rbx + 0x10], 1);
            a.mov(__dword_ptr[rbx + 0x10], 2);
            a.mov(__dword_ptr[rbx + 0x20], 3);
            a.hlt();
        };
        g.Long(code);
        g.RunToHalt();
        doorbells.Drain();
        Assert.Equal((1, 1), (any, two));
        Assert.Equal([("write", 0x1000_0010UL, 4, 1UL), ("write", 0x1000_0020UL, 4, 3UL)], g.World.Log);
        first.Dispose();
        g.World.Log.Clear();
        g.Long(code);
        g.RunToHalt();
        Assert.Equal(("write", 0x1000_0000UL, 2, 7UL), g.World.Log[0]);
        Assert.Equal(1, any);
        // Twice the same place is refused, not half done.
        Assert.Null(doorbells.Attach(0x1000_0010, 4, 2, () => { }));
    }

    /// <summary>Gathered writes reach the devices before whatever comes after them.</summary>
    [Fact]
    public void GatheredWritesKeepTheirPlace()
    {
        Assert.SkipUnless(Capabilities().CoalescedPorts, "this host's KVM gathers no writes to ports");
        using SmallGuest g = new("kvm", kvm: KvmOptions.Bare with { GathersWrites = true });
        g.Long(a =>
        {
            for (byte i = 1; i <= 5; i++)
            {
                a.mov(al, i);
                a.@out(0x80, al);
            }
            a.@out(0x10, al);
            a.mov(al, 9);
            a.@out(0x70, al);
            a.@in(al, 0x71);
            a.hlt();
        });
        g.RunToHalt();
        Assert.Equal([("out", 0x80, 1, 1), ("out", 0x80, 1, 2), ("out", 0x80, 1, 3), ("out", 0x80, 1, 4), ("out", 0x80, 1, 5), ("out", 0x10, 1, 5), ("out", 0x70, 1, 9), ("in", 0x71, 1, uint.MaxValue)], g.World.Log);
        Assert.Equal(6, g.Processor.Counters.Named["kvm-gathered-writes"]);
    }

    /// <summary>The index of the I/O APIC waits in the kernel for the access to the register that it chooses: half the exits.</summary>
    [Fact]
    public void TheIoApicsIndexIsGathered()
    {
        const ulong Select = 0xFEC0_0000, Window = Select + 0x10, Entry = 0x3000 + (5 * 8), Linear = 5UL << 21;
        Assert.SkipUnless(Capabilities() is { CoalescedMmio: true, CoalescedPorts: true }, "this host's KVM gathers no writes to memory");
        foreach (bool gathers in (bool[])[false, true])
        {
            using SmallGuest g = new("kvm", kvm: KvmOptions.Bare with { GathersWrites = gathers });
            g.Long(a =>
            {
                a.mov(ebx, (uint)Linear);
                for (int i = 0; i < 4; i++)
                {
                    a.mov(__dword_ptr[rbx], 0x10 + i);
                    a.mov(eax, __dword_ptr[rbx + 0x10]);
                    a.mov(__dword_ptr[rbx], 0x20 + i);
                    a.mov(__dword_ptr[rbx + 0x10], 0x30 + i);
                }
                a.hlt();
            });
            g.Memory.Write(new(Entry), Select | 0x83);
            g.RunToHalt();
            Assert.Equal(
                Enumerable.Range(0, 4).SelectMany(i => ((string, ulong, int, ulong)[])
                    [("write", Select, 4, (ulong)(0x10 + i)), ("read", Window, 4, ulong.MaxValue), ("write", Select, 4, (ulong)(0x20 + i)), ("write", Window, 4, (ulong)(0x30 + i))]),
                g.World.Log);
            Assert.Equal((gathers ? 8 : 16, gathers ? 8 : 0), (g.Processor.Counters.Named["kvm-mmio"], g.Processor.Counters.Named.GetValueOrDefault("kvm-gathered-writes")));
        }
    }

    /// <summary>A vCPU does not go past a write of its own that another one has taken out of the ring and not yet brought to the device.</summary>
    [Fact]
    public unsafe void AGatheredWriteIsThereBeforeWhatDependsOnIt()
    {
        KvmGatheredWrites writes = new();
        byte* area = (byte*)NativeMemory.AllocZeroed(3 * 4096);
        try
        {
            KvmGatheredRing* ring = (KvmGatheredRing*)(area + (2 * 4096));
            *(KvmGatheredWrite*)(ring + 1) = new() { Address = 0xCF8, Length = 4, Data = 0x8000_0000, IsPort = 1 };
            ring->Last = 1;
            using ManualResetEventSlim entered = new(), mayWrite = new();
            bool written = false, seen = false;
            World first = new()
            {
                PortWritten = (_, _) =>
                {
                    entered.Set();
                    mayWrite.Wait();
                    Volatile.Write(ref written, true);
                },
            };
            Thread one = new(() => writes.Drain(area, first)), other = new(() =>
            {
                writes.Drain(area, new World());
                seen = Volatile.Read(ref written);
            });
            one.Start();
            entered.Wait(TestContext.Current.CancellationToken);
            other.Start();
            // It has either gone past already or waits for the first.
            Assert.True(SpinWait.SpinUntil(() => (other.ThreadState & (ThreadState.WaitSleepJoin | ThreadState.Stopped)) != 0, s_patience));
            mayWrite.Set();
            one.Join();
            other.Join();
            Assert.True(seen);
            Assert.Equal((1L, 1u), (writes.Count, ring->First));
        }
        finally
        {
            NativeMemory.Free(area);
        }
    }

    /// <summary>A vector that was acknowledged and not delivered is part of the state, and comes before anything else.</summary>
    [Theory, InlineData("interpreter"), InlineData("translator"), InlineData("kvm")]
    public void AnInterruptedDeliveryIsPartOfTheState(string kind)
    {
        using SmallGuest g = new(kind);
        g.Long(
            a =>
            {
                a.inc(rbx);
                a.hlt();
            },
            s =>
            {
                s.Rflags |= X86.RFlags.If;
                s.InjectedVector = 0x30;
            });
        g.Assemble(64, SmallGuest.Handlers + 0x300, a =>
        {
            a.mov(rcx, rbx);
            a.hlt();
        });
        Assert.Equal((byte)0x30, g.Processor.GetState().InjectedVector);
        ProcessorState end = g.RunToHalt();
        Assert.Equal((0UL, 0UL, SmallGuest.Handlers + 0x304, SmallGuest.Stack - 40), (end.Gpr[1], end.Gpr[3], end.Rip, end.Gpr[4]));
        Assert.Null(end.InjectedVector);
    }
}
