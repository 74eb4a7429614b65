using Aerostat.Machine;
using Aerostat.Processors;
using Xunit;

namespace Aerostat.Debugger.Tests;

/// <summary>A machine of several running vCPUs under the debugger: all stop together, and no stop is lost or told twice.</summary>
public sealed class MachineDebuggerTests
{
    private static CancellationToken Token => TestContext.Current.CancellationToken;

    private const ulong Main = GuestElf.Code + 12;

    // "inner" is where main's round gets to once; found by the code that begins it, IMUL EAX, EDI, 3 behind PUSH RBP and MOV RBP, RSP.
    private static ulong Inner(MachineDebugger debugger, ProcessorState state)
    {
        byte[] code = new byte[512];
        Assert.Equal(code.Length, debugger.ReadMemory(state, GuestElf.Code, code));
        int at = code.AsSpan().IndexOf((ReadOnlySpan<byte>)[0x6B, 0xC7, 3]);
        return GuestElf.Code + (ulong)at - 4;
    }

    // Two vCPUs at main's first instruction, each with its stack.
    private static async Task<(MachineDebugger Debugger, ulong Inner)> StartBoth(DebuggedMachine m)
    {
        MachineDebugger debugger = m.Machine.AttachDebugger();
        await debugger.HaltAsync();
        debugger.SetBreakpoints([new HardwareBreakpoint(BreakpointKind.Execute, Main)], new HashSet<ulong>());
        await debugger.ResumeAsync([VcpuResume.Run, VcpuResume.Hold]);
        DebugStop stop = await Next(debugger);
        Assert.Equal((0, DebugStopKind.HardwareBreakpoint, Main), (stop.Vcpu, stop.Kind, stop.Address));
        ProcessorState state = await debugger.GetStateAsync(0);
        state.Gpr[15] = 0;
        await debugger.SetStateAsync(0, state);
        state.Gpr[4] -= 0x800;
        await debugger.SetStateAsync(1, state);
        return (debugger, Inner(debugger, state));
    }

    private static async Task<DebugStop> Next(MachineDebugger debugger) =>
        await debugger.Stops.ReadAsync(Token).AsTask().WaitAsync(TimeSpan.FromMinutes(2), Token);

    /// <summary>Both run into the same breakpoint for ever: each vCPU's own count of rounds is the number of its stops.</summary>
    [Theory]
    [InlineData("interpreter", false)]
    [InlineData("translator", false)]
    [InlineData("translator", true)]
    [InlineData("kvm", true)]
    [InlineData("kvm", false)]
    public async Task NoStopIsLost(string accelerator, bool hardware)
    {
        DebuggedMachine.Need(accelerator);
        await using DebuggedMachine m = DebuggedMachine.Small(accelerator, cpus: 2, serve: false);
        (MachineDebugger debugger, ulong inner) = await StartBoth(m);
        Assert.SkipUnless(hardware || (debugger.Support & GuestDebugSupport.Code) != 0, "this host's KVM has no memory that only the guest's writes come out of");
        if (hardware)
            debugger.SetBreakpoints([new HardwareBreakpoint(BreakpointKind.Execute, inner)], new HashSet<ulong>());
        else
            debugger.SetBreakpoints([], new HashSet<ulong> { inner });
        ulong[] told = new ulong[2];
        for (int i = 0; i < 200 || told.Min() == 0; i++)
        {
            Assert.True(i < 20_000, "one of the two never runs");
            await debugger.ResumeAsync([VcpuResume.Run, VcpuResume.Run]);
            DebugStop stop = await Next(debugger);
            Assert.Equal((inner, hardware ? DebugStopKind.HardwareBreakpoint : DebugStopKind.CodeBreakpoint), (stop.Address, stop.Kind));
            Assert.Equal(MachineState.Paused, m.Machine.State);
            Assert.False(debugger.Stops.TryRead(out _));
            told[stop.Vcpu]++;
            ProcessorState state = await debugger.GetStateAsync(stop.Vcpu);
            Assert.Equal((told[stop.Vcpu], inner), (state.Gpr[15], state.Rip));
        }
        await debugger.DetachAsync();
        Assert.Equal(MachineState.Running, m.Machine.State);
    }

    /// <summary>One vCPU steps while the other is held, or runs.</summary>
    [Theory]
    [InlineData("interpreter")]
    [InlineData("translator")]
    [InlineData("kvm")]
    public async Task OneSteps(string accelerator)
    {
        DebuggedMachine.Need(accelerator);
        await using DebuggedMachine m = DebuggedMachine.Small(accelerator, cpus: 2, serve: false);
        (MachineDebugger debugger, _) = await StartBoth(m);
        debugger.SetBreakpoints([], new HashSet<ulong>());
        await debugger.ResumeAsync([VcpuResume.Hold, VcpuResume.Step]);
        DebugStop stop = await Next(debugger);
        Assert.Equal((1, DebugStopKind.Step, Main + 1), (stop.Vcpu, stop.Kind, stop.Address));
        Assert.Equal(Main, (await debugger.GetStateAsync(0)).Rip);
        await debugger.ResumeAsync([VcpuResume.Run, VcpuResume.Step]);
        stop = await Next(debugger);
        Assert.Equal((1, DebugStopKind.Step, Main + 4), (stop.Vcpu, stop.Kind, stop.Address));
        // Detached while both stand in the middle of it: both go on.
        ulong before = (await debugger.GetStateAsync(1)).Gpr[15];
        await debugger.DetachAsync();
        MachineDebugger second = m.Machine.AttachDebugger();
        ulong after = before;
        for (int i = 0; i < 1000 && after == before; i++)
        {
            await Task.Yield();
            after = (await second.GetStateAsync(1)).Gpr[15];
        }
        Assert.NotEqual(before, after);
    }

    /// <summary>There is one debugger at a time, and its breakpoints are checked when they are set.</summary>
    [Fact]
    public async Task OneAtATime()
    {
        await using DebuggedMachine m = DebuggedMachine.Small("interpreter", serve: false);
        MachineDebugger first = m.Machine.AttachDebugger();
        Assert.Throws<InvalidOperationException>(() => m.Machine.AttachDebugger());
        Assert.Throws<GuestDebugException>(() => first.SetBreakpoints([new HardwareBreakpoint(BreakpointKind.Write, 1, 2)], new HashSet<ulong>()));
        await first.DetachAsync();
        Assert.NotNull(m.Machine.AttachDebugger());
    }
}
