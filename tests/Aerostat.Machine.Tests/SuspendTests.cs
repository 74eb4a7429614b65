using System.Text;
using Aerostat.Memory;
using Aerostat.Processors;
using Xunit;

namespace Aerostat.Machine.Tests;

/// <summary>Suspend to RAM, as the guest sees it and as the machine's owner does.</summary>
public sealed class SuspendTests
{
    private const ushort PowerEvents = 0x600, PowerEnable = 0x602, PowerControl = 0x604;
    private const uint PowerButton = 0x100, PowerOff = 0x3400, Suspend = 0x2400;

    // Where the FACS of a machine with 4 MiB is: in the last page.
    private const ulong Facs = (4 << 20) - 4096;

    private readonly FakeHypervisor hypervisor = new();

    private VirtualMachine Create(int cpus = 1) =>
        new(new MachineOptions { MemoryBytes = 4 << 20, Cpus = cpus, Boot = new RealModeBootOptions(new byte[] { 0x90, 0xF4 }) }, hypervisor.Accelerator);

    private FakeProcessor Cpu(int index = 0) => hypervisor.Processors[index];

    private static ProcessorExit Write(IExitHandler handler, ushort port, int size, uint value)
    {
        handler.WritePort(port, size, value);
        return new(handler.LeaveRequested ? ExitReason.HandlerRequest : ExitReason.Interrupted);
    }

    private static void WriteFacs(VirtualMachine machine, uint vector, ulong wide = 0)
    {
        machine.Memory.Write(new GuestAddress(Facs), Encoding.ASCII.GetBytes("FACS"));
        machine.Memory.TryWrite(new GuestAddress(Facs + 12), vector);
        machine.Memory.TryWrite(new GuestAddress(Facs + 24), wide);
    }

    private static async Task Until(VirtualMachine machine, MachineState state)
    {
        while (machine.State != state)
            await Task.Delay(1, TestContext.Current.CancellationToken);
    }

    private static ProcessorExit GoToSleep(VirtualMachine machine, IExitHandler h, uint vector, ulong wide = 0)
    {
        WriteFacs(machine, vector, wide);
        machine.Memory.Write(new GuestAddress(0x9000), [7]);
        h.WritePort(PowerEnable, 2, PowerButton);
        return Write(h, PowerControl, 2, Suspend);
    }

    [Fact]
    public async Task TheGuestGoesOnAtItsVectorWithItsMemory()
    {
        await using VirtualMachine machine = Create(cpus: 2);
        uint status = 0;
        byte[] kept = new byte[1];
        Cpu().Steps.Enqueue(h => GoToSleep(machine, h, 0x12345));
        await machine.StartAsync();
        await Until(machine, MachineState.Suspended);
        Assert.All(hypervisor.Processors, p => Assert.Equal((0, 1), (p.InGuest, p.Resets)));
        Cpu().Steps.Enqueue(h =>
        {
            status = h.ReadPort(PowerEvents, 2);
            machine.Memory.TryRead(new GuestAddress(0x9000), kept);
            return Write(h, PowerControl, 2, PowerOff);
        });
        await machine.PressPowerButtonAsync();
        Assert.Equal(MachineExitKind.PoweredOff, (await machine.Exit).Kind);
        ProcessorState woken = Cpu().LastSet!;
        Assert.Equal((0x5UL, new SegmentState(0x1234, 0x12340, 0xFFFF, 0x9B)), (woken.Rip, woken.Segments[1]));
        Assert.Equal(0UL, woken.Cr0 & 1);
        // WAK_STS and the button; memory as it was; and it was no reset.
        Assert.Equal((0x8100u, 7), (status, kept[0]));
        Assert.Equal(0, machine.GetStatistics().Resets);
        Assert.All(hypervisor.Processors, p => Assert.Equal(2, p.Resets));
    }

    [Fact]
    public async Task TheWideVectorStartsInProtectedMode()
    {
        await using VirtualMachine machine = Create();
        Cpu().Steps.Enqueue(h => GoToSleep(machine, h, 0x1000, wide: 0x20_0010));
        await machine.StartAsync();
        await Until(machine, MachineState.Suspended);
        await machine.PressPowerButtonAsync();
        await Until(machine, MachineState.Running);
        Assert.Equal((0x20_0010UL, 1UL), (Cpu().LastSet!.Rip, Cpu().LastSet!.Cr0 & 0x8000_0001));
    }

    [Theory]
    [InlineData(0u)]
    [InlineData(0x10_0000u)]
    [InlineData(0xFFFF_FFFFu)]
    public async Task WithoutAVectorTheMachineBootsAnew(uint vector)
    {
        await using VirtualMachine machine = Create();
        Cpu().Steps.Enqueue(h => GoToSleep(machine, h, vector));
        await machine.StartAsync();
        await Until(machine, MachineState.Suspended);
        await machine.PressPowerButtonAsync();
        await Until(machine, MachineState.Running);
        Assert.Equal(1, machine.GetStatistics().Resets);
    }

    [Fact]
    public async Task APausedSleepGoesOn()
    {
        await using VirtualMachine machine = Create();
        Cpu().Steps.Enqueue(h => GoToSleep(machine, h, 0x1000));
        await machine.StartAsync();
        await Until(machine, MachineState.Suspended);
        await machine.PauseAsync();
        Assert.Equal(MachineState.Paused, machine.State);
        await machine.ResumeAsync();
        Assert.Equal(MachineState.Suspended, machine.State);
        await machine.PauseAsync();
        // What wakes it while it is paused counts when it goes on.
        await machine.PressPowerButtonAsync();
        Assert.Equal(MachineState.Paused, machine.State);
        await machine.ResumeAsync();
        Assert.Equal(MachineState.Running, machine.State);
    }

    [Fact]
    public async Task AResetEndsTheSleep()
    {
        await using VirtualMachine machine = Create();
        Cpu().Steps.Enqueue(h => GoToSleep(machine, h, 0x1000));
        await machine.StartAsync();
        await Until(machine, MachineState.Suspended);
        await machine.ResetAsync();
        Assert.Equal(MachineState.Running, machine.State);
        Cpu().Steps.Enqueue(h => Write(h, PowerControl, 2, PowerOff));
        Cpu().Kick();
        Assert.Equal(MachineExitKind.PoweredOff, (await machine.Exit).Kind);
    }

    [Fact]
    public async Task ASleepingMachineCanBeStopped()
    {
        await using VirtualMachine machine = Create();
        Cpu().Steps.Enqueue(h => GoToSleep(machine, h, 0x1000));
        await machine.StartAsync();
        await Until(machine, MachineState.Suspended);
        await machine.StopAsync();
        Assert.Equal(MachineExitKind.Stopped, (await machine.Exit).Kind);
    }
}
