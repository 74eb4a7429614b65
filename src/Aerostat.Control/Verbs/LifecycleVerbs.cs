using Aerostat.Machine;

namespace Aerostat.Control;

/// <summary>The answer of verbs that change a machine's state.</summary>
/// <param name="State">The state now: "created", "running", "paused", "suspended" (to RAM, by the guest) or "ended".</param>
/// <param name="Changed">Whether it was another before.</param>
public sealed record StateAnswer(string State, bool Changed)
{
    internal static string NameOf(MachineState state) => state.ToString().ToLowerInvariant();
}

/// <summary>What pause, resume and reset have in common.</summary>
internal abstract class LifecycleVerb() : ControlVerb<NoArguments, StateAnswer>(ControlJson.Default.NoArguments, ControlJson.Default.StateAnswer)
{
    // A vCPU leaves the guest within a moment, unless the host itself is stuck.
    private static readonly TimeSpan s_patience = TimeSpan.FromSeconds(30);

    protected abstract Task ChangeAsync(VirtualMachine machine);

    /// <summary>Whether the request leaves a machine in this state as it is.</summary>
    protected abstract bool IsThere(MachineState state);

    protected sealed override async Task<StateAnswer> AnswerAsync(ControlledMachine machine, NoArguments arguments, CancellationToken cancellation)
    {
        VirtualMachine vm = machine.Machine;
        MachineState before = vm.State;
        if (before == MachineState.Ended)
            throw new ControlException(ControlErrorKind.Refused, $"{Name}: the machine is over");
        if (vm.HasDebugger)
            throw new ControlException(ControlErrorKind.Refused, $"{Name}: a debugger is attached and decides when the guest runs; do it there, or detach it first");
        if (IsThere(before))
            return new StateAnswer(StateAnswer.NameOf(before), false);
        try
        {
            await ChangeAsync(vm).WaitAsync(s_patience, cancellation).ConfigureAwait(false);
        }
        catch (TimeoutException e)
        {
            throw new ControlException(ControlErrorKind.Timeout, $"{Name}: a vCPU has not left the guest in {s_patience.TotalSeconds} s; the host may be overloaded, try again or stop the machine with --force", e);
        }
        return new StateAnswer(StateAnswer.NameOf(vm.State), true);
    }
}

/// <summary><c>pause</c>: no vCPU runs, and VM time stands still.</summary>
internal sealed class PauseVerb : LifecycleVerb
{
    public override string Name => "pause";

    protected override bool IsThere(MachineState state) => state == MachineState.Paused;

    protected override Task ChangeAsync(VirtualMachine machine) => machine.PauseAsync();
}

/// <summary><c>resume</c>: the guest goes on where it was.</summary>
internal sealed class ResumeVerb : LifecycleVerb
{
    public override string Name => "resume";

    protected override bool IsThere(MachineState state) => state is MachineState.Running or MachineState.Suspended;

    protected override Task ChangeAsync(VirtualMachine machine) => machine.ResumeAsync();
}

/// <summary><c>reset</c>: as the reset button would.</summary>
internal sealed class ResetVerb : LifecycleVerb
{
    public override string Name => "reset";

    protected override bool IsThere(MachineState state) => false;

    protected override Task ChangeAsync(VirtualMachine machine) => machine.ResetAsync();
}
