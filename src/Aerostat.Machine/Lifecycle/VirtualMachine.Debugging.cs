using System.Collections.Concurrent;
using Aerostat.Processors;

namespace Aerostat.Machine;

/// <content>The host's debugger.</content>
public sealed partial class VirtualMachine
{
    // CPUID.1:ECX.
    private const uint CpuidAvx = 1 << 28;

    private readonly ConcurrentDictionary<int, ProcessorExit> crashes = [];
    private MachineDebugger? debugger;

    /// <summary>Takes hold of the machine for a debugger. It goes on as it was until the debugger halts it.</summary>
    /// <exception cref="InvalidOperationException">Another debugger has it.</exception>
    public MachineDebugger AttachDebugger()
    {
        MachineDebugger made = new(this, startsOnDetach: state is MachineState.Created or MachineState.Running);
        if (Interlocked.CompareExchange(ref debugger, made, null) is not null)
            throw new InvalidOperationException("another debugger is attached to the machine; detach it first");
        return made;
    }

    internal IReadOnlyList<VcpuThread> Vcpus => vcpus;

    internal bool HasAvx => (accelerator.Cpuid(0, Options.Cpus).Get(1, 0).Ecx & CpuidAvx) != 0;

    internal Task PostAsync(Func<Task> body) => Enqueue(body);

    internal void Released(MachineDebugger which) => Interlocked.CompareExchange(ref debugger, null, which);

    internal void CrashedWith(int vcpu, ProcessorExit how) => crashes[vcpu] = how;

    internal void EndCrashed(int vcpu) => EndCrashed(vcpus[vcpu], crashes.GetValueOrDefault(vcpu));

    // Also where the machine was never started: a vCPU thread is paused then.
    internal Task PauseForDebugger() => Pause();

    /// <summary>Lets vCPUs go on, all when none are named; on the queue.</summary>
    internal async Task RunForDebugger(bool[]? which)
    {
        if (state is not (MachineState.Created or MachineState.Paused))
            return;
        if (asleep)
        {
            // There is nothing to run until the machine wakes.
            await Run().ConfigureAwait(false);
            return;
        }
        clock.Start();
        state = MachineState.Running;
        await Task.WhenAll(vcpus.Where((_, i) => which?[i] ?? true).Select(v => v.ResumeAsync())).ConfigureAwait(false);
    }

    void IVcpuObserver.Debugged(VcpuThread vcpu, ProcessorExit how)
    {
        if (Volatile.Read(ref debugger) is { } attached)
        {
            attached.Stop(vcpu, how);
            return;
        }
        // The debugger has just gone.
        queue.Writer.TryWrite(() => state == MachineState.Running ? vcpu.ResumeAsync() : Task.CompletedTask);
    }
}
