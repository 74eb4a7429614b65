using System.Text;
using Aerostat.Hosting;
using Aerostat.Machine;
using Iced.Intel;
using Xunit;
using static Iced.Intel.AssemblerRegisters;

namespace Aerostat.Kvm.Tests;

/// <summary>Small guests on a whole board, on every processor.</summary>
public sealed class MachineTests
{
    private const int Com1 = 0x3F8, PowerControl = 0x604, ResetControl = 0xCF9, PmTimer = 0x608;
    private const byte DebugExit = 0xF4;

    private static readonly TimeSpan s_patience = TimeSpan.FromSeconds(60);

    private readonly StringBuilder text = new();

    public static TheoryData<string> Kinds => ProcessorKinds.All;

    private VirtualMachine Create(string kind, Action<Assembler> write, Func<MachineOptions, MachineOptions>? change = null)
    {
        ProcessorKinds.SkipIfUnusable(kind);
        Assembler assembler = new(16);
        write(assembler);
        using MemoryStream code = new();
        assembler.Assemble(new StreamCodeWriter(code), 0x7C00);
        MachineOptions options = new()
        {
            MemoryBytes = 2 << 20,
            Accelerator = kind,
            Boot = new RealModeBootOptions(code.ToArray()),
            Devices = [new DebugExitOptions()],
            Serial = bytes => text.Append(Encoding.ASCII.GetString(bytes)),
        };
        return Machines.Create(change?.Invoke(options) ?? options);
    }

    private static async Task<MachineExit> RunAsync(VirtualMachine machine)
    {
        await machine.StartAsync();
        return await machine.WaitForExitAsync(s_patience);
    }

    private static void Say(Assembler a, char c)
    {
        a.mov(dx, Com1);
        a.mov(al, (byte)c);
        a.@out(dx, al);
    }

    [Theory, MemberData(nameof(Kinds))]
    public async Task SpeaksAndEnds(string kind)
    {
        await using VirtualMachine machine = Create(kind, a =>
        {
            foreach (char c in "Hi!")
                Say(a, c);
            a.mov(al, 21);
            a.@out(DebugExit, al);
        });
        Assert.Equal(new MachineExit(MachineExitKind.DebugExit, 43), await RunAsync(machine));
        Assert.Equal("Hi!", text.ToString());
        MachineStatistics s = machine.GetStatistics();
        Assert.Equal((kind, 1L), (s.Accelerator, s.Exits["handler-request"]));
        Assert.True(s.Handled["port-writes"] >= 4);
        Assert.True(s.HandledTimes["port-writes"] > TimeSpan.Zero);
        if (kind == "kvm")
            Assert.True(s.Counters["kvm-io"] >= 4);
    }

    [Theory, MemberData(nameof(Kinds))]
    public async Task PowersOff(string kind)
    {
        await using VirtualMachine machine = Create(kind, a =>
        {
            a.mov(dx, PowerControl);
            a.mov(ax, 0x3400);
            a.@out(dx, ax);
        });
        Assert.Equal(MachineExitKind.PoweredOff, (await RunAsync(machine)).Kind);
    }

    [Theory, MemberData(nameof(Kinds))]
    public async Task StartsAnewAfterAReset(string kind)
    {
        await using VirtualMachine machine = Create(kind, a =>
        {
            Label second = a.CreateLabel();
            Say(a, 'r');
            // CMOS memory is what survives a reset.
            a.mov(al, 0x50);
            a.@out(0x70, al);
            a.@in(al, 0x71);
            a.cmp(al, 0x77);
            a.je(second);
            a.mov(al, 0x77);
            a.@out(0x71, al);
            a.mov(dx, ResetControl);
            a.mov(al, 0x0E);
            a.@out(dx, al);
            a.Label(ref second);
            a.@out(DebugExit, al);
        });
        Assert.Equal(MachineExitKind.DebugExit, (await RunAsync(machine)).Kind);
        Assert.Equal("rr", text.ToString());
        Assert.Equal(1, machine.GetStatistics().Resets);
    }

    /// <summary>The 8254's interrupt by way of the 8259 wakes a halted guest through the real-mode table.</summary>
    [Theory, MemberData(nameof(Kinds))]
    public async Task TheTimerTicks(string kind)
    {
        await using VirtualMachine machine = Create(kind, a =>
        {
            Label loop = a.CreateLabel();
            // Over the handler of six bytes, which is at 7C02H.
            a.db(0xEB, 6);
            a.inc(bx);
            a.mov(al, 0x20);
            a.@out(0x20, al);
            a.iret();
            a.mov(__word_ptr[8 * 4], 0x7C02);
            a.mov(__word_ptr[(8 * 4) + 2], 0);
            a.xor(bx, bx);
            a.mov(al, 0x34);
            a.@out(0x43, al);
            a.mov(al, 0xA9);
            a.@out(0x40, al);
            a.mov(al, 0x04);
            a.@out(0x40, al);
            a.Label(ref loop);
            a.sti();
            a.hlt();
            a.cmp(bx, 5);
            a.jb(loop);
            a.mov(al, bl);
            a.@out(DebugExit, al);
        });
        MachineExit exit = await RunAsync(machine);
        Assert.Equal(MachineExitKind.DebugExit, exit.Kind);
        Assert.True(exit.ExitStatus >= 11);
        Assert.True(machine.GetStatistics().Handled["interrupts"] >= 5);
    }

    [Theory, MemberData(nameof(Kinds))]
    public async Task AnswersWhatIsTyped(string kind)
    {
        await using VirtualMachine machine = Create(kind, a =>
        {
            Label loop = a.CreateLabel();
            a.Label(ref loop);
            a.mov(dx, Com1 + 5);
            a.@in(al, dx);
            a.test(al, 1);
            a.je(loop);
            a.mov(dx, Com1);
            a.@in(al, dx);
            a.@out(dx, al);
            a.cmp(al, (sbyte)'.');
            a.jne(loop);
            a.@out(DebugExit, al);
        });
        await machine.StartAsync();
        await machine.SendSerialAsync("echo this."u8.ToArray(), TestContext.Current.CancellationToken);
        Assert.Equal(MachineExitKind.DebugExit, (await machine.WaitForExitAsync(s_patience)).Kind);
        Assert.Equal("echo this.", text.ToString());
    }

    [Theory, MemberData(nameof(Kinds))]
    public async Task ASpinningGuestPausesAndStops(string kind)
    {
        TaskCompletionSource running = new(TaskCreationOptions.RunContinuationsAsynchronously);
        await using VirtualMachine machine = Create(
            kind,
            a =>
            {
                Label loop = a.CreateLabel();
                a.cli();
                Say(a, '>');
                a.Label(ref loop);
                a.jmp(loop);
            },
            o => o with { Serial = _ => running.TrySetResult() });
        await machine.StartAsync();
        await running.Task.WaitAsync(s_patience, TestContext.Current.CancellationToken);
        for (int i = 0; i < 5; i++)
        {
            await machine.PauseAsync().WaitAsync(s_patience, TestContext.Current.CancellationToken);
            Assert.Equal(MachineState.Paused, machine.State);
            await machine.ResumeAsync();
        }
        await machine.StopAsync().WaitAsync(s_patience, TestContext.Current.CancellationToken);
        Assert.Equal(MachineExitKind.Stopped, (await machine.Exit).Kind);
    }

    [Theory, MemberData(nameof(Kinds))]
    public async Task ATripleFaultIsACrashWithRegisters(string kind)
    {
        await using VirtualMachine machine = Create(kind, a =>
        {
            a.mov(ebx, 0x12345678);
            // Nothing is there: an empty table.
            a.lidt(__[0x1000]);
            a.ud2();
        });
        MachineExit exit = await RunAsync(machine);
        Assert.Equal(MachineExitKind.Crashed, exit.Kind);
        // A KVM that emulates its guests gives up at the exception already, and says so.
        Assert.Contains(ProcessorKinds.IsExact(kind) ? "triple fault" : "could not go on", exit.Report, StringComparison.Ordinal);
        // On AMD hosts the state is undefined after a shutdown, and KVM puts that of INIT in its place (AMD APM vol. 2 section 15.14.3).
        if (kind != "kvm")
            Assert.Contains("0000000012345678", exit.Report, StringComparison.Ordinal);
    }

    [Theory, MemberData(nameof(Kinds))]
    public async Task ThePmTimerCounts(string kind)
    {
        await using VirtualMachine machine = Create(kind, a =>
        {
            Label loop = a.CreateLabel();
            a.mov(dx, PmTimer);
            a.@in(eax, dx);
            a.mov(ecx, eax);
            a.Label(ref loop);
            a.@in(eax, dx);
            a.sub(eax, ecx);
            a.cmp(eax, 3580);
            a.jb(loop);
            a.@out(DebugExit, al);
        });
        Assert.Equal(MachineExitKind.DebugExit, (await RunAsync(machine)).Kind);
    }
}
