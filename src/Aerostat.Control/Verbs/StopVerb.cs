using Aerostat.Chipset;
using Aerostat.Machine;

namespace Aerostat.Control;

/// <summary>Arguments of <c>stop</c>.</summary>
/// <param name="Force">Do not ask the guest.</param>
/// <param name="Timeout">Seconds that the guest has to power off, 0 to 86400.</param>
public sealed record StopArguments(bool Force = false, double Timeout = StopArguments.DefaultTimeout)
{
    /// <summary>Seconds that the guest has unless it is said.</summary>
    public const double DefaultTimeout = 30;
}

/// <summary>The answer to <c>stop</c>.</summary>
/// <param name="Exit">How the run ended: "powered-off", "stopped", ...</param>
/// <param name="Status">Exit status of the machine's process.</param>
/// <param name="Seconds">How long it took.</param>
public sealed record StopAnswer(string Exit, int Status, double Seconds);

/// <summary><c>stop</c>: presses the power button and waits for the guest to power off; by force, ends the run.</summary>
internal sealed class StopVerb() : ControlVerb<StopArguments, StopAnswer>(ControlJson.Default.StopArguments, ControlJson.Default.StopAnswer)
{
    private const double LongestTimeout = 86_400;

    public override string Name => "stop";

    protected override async Task<StopAnswer> AnswerAsync(ControlledMachine machine, StopArguments arguments, CancellationToken cancellation)
    {
        VirtualMachine vm = machine.Machine;
        if (arguments.Timeout is not (>= 0 and <= LongestTimeout))
            throw new ControlException(ControlErrorKind.Usage, $"stop: a timeout is 0 to {LongestTimeout} seconds");
        long begun = TimeProvider.System.GetTimestamp();
        if (arguments.Force)
        {
            await vm.StopAsync().WaitAsync(cancellation).ConfigureAwait(false);
        }
        else
        {
            if (vm.State == MachineState.Paused)
                throw new ControlException(ControlErrorKind.Refused, "stop: the machine is paused, and its guest cannot power off; resume it first, or end it with --force");
            await vm.PressPowerButtonAsync().ConfigureAwait(false);
            await Task.WhenAny(vm.Exit, Task.Delay(TimeSpan.FromSeconds(arguments.Timeout), cancellation)).ConfigureAwait(false);
            if (!vm.Exit.IsCompleted)
                throw new ControlException(ControlErrorKind.Timeout, $"stop: the guest has not powered off in {arguments.Timeout:0.###} s: {Explain(vm)}; end it with --force, or wait longer with --timeout SECONDS");
        }
        MachineExit exit = await vm.Exit.ConfigureAwait(false);
        return new StopAnswer(exit.KindName, exit.ExitStatus, Math.Round(TimeProvider.System.GetElapsedTime(begun).TotalSeconds, 3));
    }

    // The registers of the button say how far its press got (ACPI 6.5, section 4.8.3.1).
    private static string Explain(VirtualMachine vm) => vm switch
    {
        { HasDebugger: true } => "a debugger is attached and may be holding it",
        { State: MachineState.Paused } => "the machine was paused meanwhile",
        { State: MachineState.Suspended } => "it is suspended to RAM, and the power button has not woken it",
        { PowerButton: { Enabled: false, Pending: true } } => "it ignores the power button (nothing in it has enabled PWRBTN_EN: no ACPI, or no driver for the button)",
        { PowerButton.Pending: true } => "it has not taken the power button's interrupt",
        _ => "it has seen the power button and does not act on it (no program in it, such as acpid or systemd-logind, does), or is still shutting down",
    };
}
