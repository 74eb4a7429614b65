using Aerostat.Machine;
using Aerostat.VMware;

namespace Aerostat.Control;

/// <summary>Arguments of <c>tools</c>; all absent: only look.</summary>
/// <param name="Set">A variable for the guest to read, as "name=value"; nothing behind the sign takes it away.</param>
/// <param name="Power">"shutdown" or "reboot": what the tools are to do with the guest.</param>
public sealed record ToolsArguments(string? Set = null, string? Power = null);

/// <summary>The answer to <c>tools</c>.</summary>
/// <param name="Running">Whether the tools are at work.</param>
/// <param name="Heartbeat">Seconds of VM time since they last asked for commands; absent: never.</param>
/// <param name="Version">Their version; absent: they have not said.</param>
/// <param name="PowerState">What they said last of a change of power, as they put it.</param>
/// <param name="Capabilities">What they say they can do.</param>
/// <param name="Information">The variables that host and guest share.</param>
public sealed record ToolsAnswer(
    bool Running, double? Heartbeat, string? Version, string? PowerState, IReadOnlyList<string> Capabilities, IReadOnlyDictionary<string, string> Information);

/// <summary><c>tools</c>: VMware's tools in the guest.</summary>
internal sealed class ToolsVerb() : ControlVerb<ToolsArguments, ToolsAnswer>(ControlJson.Default.ToolsArguments, ControlJson.Default.ToolsAnswer)
{
    private static readonly TimeSpan s_patience = TimeSpan.FromSeconds(30);

    public override string Name => "tools";

    protected override async Task<ToolsAnswer> AnswerAsync(ControlledMachine machine, ToolsArguments arguments, CancellationToken cancellation)
    {
        VirtualMachine vm = machine.Machine;
        if (vm.GuestTools is not { } tools)
            throw new ControlException(ControlErrorKind.Refused, "tools: the guest has no way to reach the host with them; the machine must be started with --personality vmware");
        if (arguments.Set is { } pair)
        {
            int sign = pair.IndexOf('=', StringComparison.Ordinal);
            if (sign <= 0)
                throw new ControlException(ControlErrorKind.Usage, $"tools: '{pair}' is no variable; write NAME=VALUE");
            if (!tools.SetInformation(pair[..sign], pair[(sign + 1)..]))
                throw new ControlException(ControlErrorKind.Refused, $"tools: there is no room for '{pair[..sign]}', or the name is too long or has blanks in it");
        }
        if (arguments.Power is { } power)
            await RequestAsync(vm, tools, power, cancellation).ConfigureAwait(false);
        return new ToolsAnswer(
            tools.IsRunning, tools.Heartbeat?.TotalSeconds is { } seconds ? Math.Round(seconds, 3) : null, tools.ToolsVersion?.ToString(), tools.PowerState, tools.Capabilities, tools.Information);
    }

    private static async Task RequestAsync(VirtualMachine vm, GuestTools tools, string power, CancellationToken cancellation)
    {
        GuestPowerOperation operation = power switch
        {
            "shutdown" => GuestPowerOperation.Halt,
            "reboot" => GuestPowerOperation.Reboot,
            _ => throw new ControlException(ControlErrorKind.Usage, $"tools: there is no power operation '{power}'; there are shutdown and reboot"),
        };
        if (!tools.IsRunning)
            throw new ControlException(ControlErrorKind.Refused, "tools: none are at work in the guest (Linux: open-vm-tools)");
        vm.Journal.Write("tools-power", $"has its tools asked for a {power}");
        using CancellationTokenSource limit = CancellationTokenSource.CreateLinkedTokenSource(cancellation);
        limit.CancelAfter(s_patience);
        try
        {
            if (!await tools.RequestPowerAsync(operation, limit.Token).ConfigureAwait(false))
                throw new ControlException(ControlErrorKind.Refused, $"tools: they will not do the {power}, or have gone");
        }
        catch (OperationCanceledException) when (!cancellation.IsCancellationRequested)
        {
            throw new ControlException(ControlErrorKind.Timeout, $"tools: they have not taken the request in {s_patience.TotalSeconds:0} s");
        }
    }
}
