using Aerostat.Chipset;
using Aerostat.State;

namespace Aerostat.Machine;

/// <summary>One vCPU, seen from outside without disturbing it; values may be slightly old.</summary>
/// <param name="Index">Number.</param>
/// <param name="State">"running", "paused" or "stopped".</param>
/// <param name="Idle">Whether its guest has halted and nothing is to be done.</param>
/// <param name="Instructions">Guest instructions completed; 0 where the accelerator cannot count.</param>
/// <param name="Exits">How often it has left the guest.</param>
public sealed record VcpuStatus(int Index, string State, bool Idle, long Instructions, long Exits);

/// <content>What is asked of a running machine from outside.</content>
public sealed partial class VirtualMachine
{
    /// <summary>What happened to the machine.</summary>
    public MachineJournal Journal { get; } = new();

    /// <summary>Whether a debugger is attached, which then decides when the guest runs.</summary>
    public bool HasDebugger => Volatile.Read(ref debugger) is not null;

    /// <summary>What has become of the power button's last press.</summary>
    public PowerButtonState PowerButton => board.PowerButton;

    /// <summary>Names of the devices on the board.</summary>
    public IReadOnlyList<string> DeviceNames => [.. board.Devices.Select(d => d.Name)];

    /// <summary>The vCPUs.</summary>
    public IReadOnlyList<VcpuStatus> GetVcpus() =>
    [
        .. vcpus.Select(v => new VcpuStatus(
            v.Processor.Index, v.State.ToString().ToLowerInvariant(), v.IsAsleep,
            Volatile.Read(ref v.Processor.Counters.Instructions), v.TotalExits)),
    ];

    /// <summary>Names of devices whose state cannot be looked at.</summary>
    public IReadOnlyList<string> OpaqueDevices => board.Unsavable;

    /// <summary>
    /// The state of every part that has one, for people to look at: the machine stands still for a moment. Unlike <see cref="SaveAsync"/>, it does
    /// not wait for a moment at which the machine could go on from the state.
    /// </summary>
    /// <exception cref="InvalidOperationException">The machine has ended.</exception>
    public Task<IReadOnlyList<SavedElement>> InspectAsync()
    {
        TaskCompletionSource<IReadOnlyList<SavedElement>> done = new(TaskCreationOptions.RunContinuationsAsynchronously);
        if (!queue.Writer.TryWrite(() => InspectNow(done)))
            done.SetException(Ended());
        return done.Task;
    }

    // From the queue. What goes wrong is the caller's, not the machine's.
    private async Task InspectNow(TaskCompletionSource<IReadOnlyList<SavedElement>> done)
    {
        bool wasRunning = state is MachineState.Running or MachineState.Suspended;
        try
        {
            if (state == MachineState.Ended)
                throw Ended();
            await Pause().ConfigureAwait(false);
            done.TrySetResult((await CollectState().ConfigureAwait(false)).Elements);
        }
        catch (Exception e)
        {
            done.TrySetException(e);
        }
        if (wasRunning)
            await Run().ConfigureAwait(false);
    }

    // What somebody outside asked for goes into the journal; what a reset or the debugger needs does not.
    private async Task RunAndNote()
    {
        MachineState before = state;
        await Run().ConfigureAwait(false);
        if (before == MachineState.Created)
            Journal.Write("started", "has started");
        else if (before == MachineState.Paused)
            Journal.Write("resumed", "goes on");
    }

    private async Task PauseAndNote()
    {
        MachineState before = state;
        await Pause().ConfigureAwait(false);
        if (before is MachineState.Running or MachineState.Suspended)
            Journal.Write("paused", "is paused");
    }

    private async Task ResetAndNote(string by)
    {
        if (state == MachineState.Ended)
            return;
        await Reset().ConfigureAwait(false);
        Journal.Write("reset", $"was reset by {by}");
    }
}
