using System.Text;
using Aerostat.Memory;
using Aerostat.Processors;
using Xunit;

namespace Aerostat.Machine.Tests;

public sealed class VirtualMachineTests
{
    private const ushort PowerControl = 0x604, ResetPort = 0xCF9, Com1 = 0x3F8;
    private const uint PowerOff = 0x3400, HardReset = 0x0E;
    private static readonly byte[] s_code = [0x90, 0xF4];

    private readonly FakeHypervisor hypervisor = new();

    private VirtualMachine Create(Func<MachineOptions, MachineOptions>? change = null)
    {
        MachineOptions options = new() { MemoryBytes = 4 << 20, Boot = new RealModeBootOptions(s_code) };
        return new VirtualMachine(change?.Invoke(options) ?? options, hypervisor.Accelerator);
    }

    private FakeProcessor Cpu(int index = 0) => hypervisor.Processors[index];

    private static ProcessorExit Write(IExitHandler handler, ushort port, int size, uint value)
    {
        handler.WritePort(port, size, value);
        return new(handler.LeaveRequested ? ExitReason.HandlerRequest : ExitReason.Interrupted);
    }

    [Fact]
    public async Task PowerOffByTheGuestEndsTheRun()
    {
        await using VirtualMachine machine = Create(o => o with { Cpus = 3 });
        Assert.Equal(MachineState.Created, machine.State);
        Cpu(1).Steps.Enqueue(h => Write(h, PowerControl, 2, PowerOff));
        await machine.StartAsync();
        Assert.Equal(new MachineExit(MachineExitKind.PoweredOff), await machine.Exit);
        Assert.Equal(MachineState.Ended, machine.State);
        Assert.All(hypervisor.Processors, p => Assert.Equal(0, p.InGuest));
    }

    [Fact]
    public async Task NoInstructionRunsAfterTheWish()
    {
        await using VirtualMachine machine = Create(o => o with { NoReboot = true });
        int after = 0;
        Cpu().Steps.Enqueue(h => Write(h, ResetPort, 1, HardReset));
        Cpu().Steps.Enqueue(_ =>
        {
            after++;
            return new(ExitReason.Interrupted);
        });
        await machine.StartAsync();
        Assert.Equal(MachineExitKind.Reset, (await machine.Exit).Kind);
        Assert.Equal(0, after);
    }

    [Fact]
    public async Task TheFirstWishWins()
    {
        await using VirtualMachine machine = Create(o => o with { NoReboot = true, Devices = [new DebugExitOptions()] });
        Cpu().Steps.Enqueue(h =>
        {
            h.WritePort(0xF4, 1, 5);
            h.WritePort(ResetPort, 1, HardReset);
            return Write(h, PowerControl, 2, PowerOff);
        });
        await machine.StartAsync();
        MachineExit exit = await machine.Exit;
        Assert.Equal(new MachineExit(MachineExitKind.DebugExit, 11), exit);
        Assert.Equal(11, exit.ExitStatus);
    }

    [Fact]
    public async Task AResetStartsEverythingAnew()
    {
        await using VirtualMachine machine = Create(o => o with { Cpus = 2 });
        TaskCompletionSource<byte[]> second = new(TaskCreationOptions.RunContinuationsAsynchronously);
        Cpu().Steps.Enqueue(h =>
        {
            machine.Memory.Write(new GuestAddress(0x7C00), [1, 2]);
            machine.Memory.Write(new GuestAddress(0x9000), [3]);
            return Write(h, ResetPort, 1, HardReset);
        });
        Cpu().Steps.Enqueue(h =>
        {
            byte[] seen = new byte[3];
            machine.Memory.TryRead(new GuestAddress(0x7C00), seen.AsSpan(0, 2));
            machine.Memory.TryRead(new GuestAddress(0x9000), seen.AsSpan(2));
            second.SetResult(seen);
            return Write(h, PowerControl, 2, PowerOff);
        });
        await machine.StartAsync();
        Assert.Equal([.. s_code, 0], await second.Task);
        Assert.Equal(MachineExitKind.PoweredOff, (await machine.Exit).Kind);
        Assert.Equal(1, machine.GetStatistics().Resets);
        // Once when built, once by the reset.
        Assert.All(hypervisor.Processors, p => Assert.Equal(2, p.Resets));
    }

    [Fact]
    public async Task TheResetButtonWorksUnderNoReboot()
    {
        await using VirtualMachine machine = Create(o => o with { NoReboot = true });
        await machine.StartAsync();
        await machine.ResetAsync();
        Assert.Equal(MachineState.Running, machine.State);
        Assert.Equal(2, Cpu().Resets);
    }

    [Fact]
    public async Task PauseStopsVmTime()
    {
        await using VirtualMachine machine = Create();
        await machine.StartAsync();
        await machine.PauseAsync();
        Assert.Equal(MachineState.Paused, machine.State);
        Assert.Equal(0, Cpu().InGuest);
        TimeSpan time = machine.GetStatistics().VmTime;
        Thread.Sleep(20);
        Assert.Equal(time, machine.GetStatistics().VmTime);
        await machine.ResumeAsync();
        Assert.Equal(MachineState.Running, machine.State);
    }

    [Fact]
    public async Task AResetWhilePausedStaysPaused()
    {
        await using VirtualMachine machine = Create();
        await machine.StartAsync();
        await machine.PauseAsync();
        await machine.ResetAsync();
        Assert.Equal(MachineState.Paused, machine.State);
    }

    [Theory]
    [InlineData(ExitReason.Shutdown, "triple fault")]
    [InlineData(ExitReason.FailedEntry, "refused to enter")]
    [InlineData(ExitReason.Unknown, "nothing asked for")]
    public async Task ACrashComesWithARegisterDump(ExitReason reason, string expected)
    {
        await using VirtualMachine machine = Create();
        Cpu().Steps.Enqueue(_ => new(reason, 0x80));
        await machine.StartAsync();
        MachineExit exit = await machine.Exit;
        Assert.Equal(MachineExitKind.Crashed, exit.Kind);
        Assert.Equal(3, exit.ExitStatus);
        Assert.Contains(expected, exit.Report, StringComparison.Ordinal);
        Assert.Contains("RIP=0000000000001234", exit.Report, StringComparison.Ordinal);
        Assert.Contains("0000000000001000 -> 0000000000002000", exit.Report, StringComparison.Ordinal);
    }

    [Fact]
    public async Task ATripleFaultIsToldFromItsBeginning()
    {
        await using VirtualMachine machine = Create();
        Cpu().FaultsBeforeShutdown =
        [
            new(EventOrigin.Exception, 14, 2, 0xdead000, 0x10, 0xffffffff81000010),
            new(EventOrigin.Exception, 11, 0x73, null, 0x10, 0xffffffff81000010),
            new(EventOrigin.Exception, 8, 0, null, 0x10, 0xffffffff81000010),
            new(EventOrigin.Exception, 13, 0x43, null, 0x10, 0xffffffff81000010),
        ];
        Cpu().Steps.Enqueue(_ => new(ExitReason.Shutdown));
        await machine.StartAsync();
        string[] lines = (await machine.Exit).Report!.Split('\n');
        Assert.Equal("vCPU 0: triple fault that began with #PF (error 0x2, CR2=000000000dead000) at CS:RIP=0010:ffffffff81000010", lines[0]);
        Assert.Equal("  its delivery raised #NP (error 0x73)", lines[1]);
        Assert.Equal("  so the processor raised #DF (error 0x0)", lines[2]);
        Assert.Equal("  whose delivery raised #GP (error 0x43): shutdown", lines[3]);
        Assert.StartsWith("RAX=", lines[4], StringComparison.Ordinal);
    }

    [Fact]
    public async Task AnExceptionInTheMonitorEndsTheMachineNotTheProcess()
    {
        await using VirtualMachine machine = Create(o => o with { Cpus = 2 });
        Cpu(1).Steps.Enqueue(_ => throw new InvalidDataException("decoder"));
        await machine.StartAsync();
        MachineExit exit = await machine.Exit;
        Assert.Equal(MachineExitKind.VmmFailed, exit.Kind);
        Assert.Equal(4, exit.ExitStatus);
        Assert.Contains("vCPU 1", exit.Report, StringComparison.Ordinal);
        Assert.Contains("decoder", exit.Report, StringComparison.Ordinal);
    }

    [Fact]
    public async Task ATimeLimitStopsTheMachineAndSaysWhereItWas()
    {
        await using VirtualMachine machine = Create();
        await machine.StartAsync();
        MachineExit exit = await machine.WaitForExitAsync(TimeSpan.FromMilliseconds(10));
        Assert.Equal(MachineExitKind.TimedOut, exit.Kind);
        Assert.Equal(124, exit.ExitStatus);
        Assert.Contains("vCPU 0", exit.Report, StringComparison.Ordinal);
    }

    [Fact]
    public async Task WhatComesAfterTheEndIsHarmless()
    {
        VirtualMachine machine = Create();
        await machine.StartAsync();
        await machine.StopAsync();
        await machine.StopAsync(MachineExitKind.TimedOut);
        await machine.PauseAsync();
        await machine.ResumeAsync();
        await machine.ResetAsync();
        await machine.PressPowerButtonAsync();
        Assert.Equal(MachineExitKind.Stopped, (await machine.Exit).Kind);
        await machine.DisposeAsync();
        await machine.DisposeAsync();
        await machine.StopAsync();
        Assert.True(hypervisor.Disposed);
    }

    [Fact]
    public async Task DisposingARunningMachineStopsIt()
    {
        VirtualMachine machine = Create(o => o with { Cpus = 4 });
        await machine.StartAsync();
        await machine.DisposeAsync();
        Assert.Equal(MachineExitKind.Stopped, (await machine.Exit).Kind);
    }

    [Fact]
    public async Task SerialOutputAndInputCross()
    {
        StringBuilder text = new();
        await using VirtualMachine machine = Create(o => o with { Serial = bytes => text.Append(Encoding.ASCII.GetString(bytes)) });
        Cpu().Steps.Enqueue(h =>
        {
            // Echo what is there, until a full stop.
            for (uint c = 0; c != '.';)
            {
                if ((h.ReadPort(Com1 + 5, 1) & 1) == 0)
                    continue;
                c = h.ReadPort(Com1, 1);
                h.WritePort(Com1, 1, c);
            }
            return Write(h, PowerControl, 2, PowerOff);
        });
        await machine.StartAsync();
        string sent = new string('x', 300) + ".";
        await machine.SendSerialAsync(Encoding.ASCII.GetBytes(sent), TestContext.Current.CancellationToken);
        await machine.Exit;
        Assert.Equal(sent, text.ToString());
    }

    [Fact]
    public async Task WhatIsServedInPlaceAllocatesNothing()
    {
        await using VirtualMachine machine = Create();
        long allocated = -1;
        Cpu().Steps.Enqueue(h =>
        {
            for (int round = 0; round < 2; round++)
            {
                long before = GC.GetAllocatedBytesForCurrentThread();
                for (int i = 0; i < 1000; i++)
                {
                    h.ReadPort(0x61, 1);
                    h.WritePort(0x80, 1, 0);
                    h.ReadPort(0xCFC, 4);
                    h.ReadPort(0x608, 4);
                    h.ReadPort(Com1 + 5, 1);
                    h.ReadMmio(0xFED000F0, 8);
                    h.ReadMmio(0xFEC00010, 4);
                    h.ReadMmio(0xFEE00020, 4);
                    h.ReadMmio(0xE0000000, 4);
                    h.ReadMmio(0xD0000000, 4);
                    h.ReadMsr(0x1B, out _);
                    h.ReadMsr(0x12345, out _);
                    h.AcknowledgeInterrupt();
                }
                allocated = GC.GetAllocatedBytesForCurrentThread() - before;
            }
            return Write(h, PowerControl, 2, PowerOff);
        });
        await machine.StartAsync();
        await machine.Exit;
        Assert.Equal(0, allocated);
    }

    [Fact]
    public async Task StatisticsCountByKind()
    {
        await using VirtualMachine machine = Create();
        Cpu().Steps.Enqueue(h =>
        {
            h.ReadPort(0x61, 1);
            h.ReadPort(0x2222, 2);
            h.ReadMmio(0xFEE00020, 4);
            h.ReadMsr(0x12345, out _);
            return Write(h, PowerControl, 2, PowerOff);
        });
        await machine.StartAsync();
        await machine.Exit;
        MachineStatistics s = machine.GetStatistics();
        Assert.Equal("fake", s.Accelerator);
        Assert.Equal(2, s.Handled["port-reads"]);
        Assert.Equal(1, s.Handled["port-writes"]);
        Assert.Equal(1, s.Handled["local-apic-accesses"]);
        Assert.Equal(1, s.Handled["msr-unknown"]);
        Assert.Equal(1, s.Handled["msr-reads"]);
        // The first of a kind is always measured.
        Assert.True(s.HandledTimes["port-reads"] > TimeSpan.Zero);
        Assert.Equal(TimeSpan.Zero, s.HandledTimes["mmio-writes"]);
        Assert.Equal(1, s.Exits["handler-request"]);
        Assert.Equal(1, s.UnclaimedPortAccesses);
    }

    [Fact]
    public void TwoDevicesOnOnePortAreRefused()
    {
        ConfigurationException e = Assert.Throws<ConfigurationException>(() => Create(o => o with { Devices = [new DebugExitOptions { Port = 0x3F8 }] }));
        Assert.Contains("0x3f8", e.Message, StringComparison.Ordinal);
        Assert.True(hypervisor.Disposed);
    }

    [Fact]
    public async Task TwoMachinesInOneProcessDoNotMeet()
    {
        FakeHypervisor other = new();
        await using VirtualMachine first = Create();
        await using VirtualMachine second = new(new MachineOptions { MemoryBytes = 4 << 20, Boot = new RealModeBootOptions(s_code) }, other.Accelerator);
        Cpu().Steps.Enqueue(h => Write(h, PowerControl, 2, PowerOff));
        await first.StartAsync();
        await second.StartAsync();
        await first.Exit;
        Assert.Equal(MachineState.Running, second.State);
    }
}
