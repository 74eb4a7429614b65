using System.CommandLine;
using Aerostat.Control;

namespace Aerostat.Cli;

/// <summary><c>aerostat freeze</c> and <c>thaw</c>: the guest's file systems.</summary>
internal static class FreezeCommands
{
    // Beyond the guest's own: it answers after 15 minutes at most.
    private static readonly TimeSpan s_patience = TimeSpan.FromMinutes(20);

    public static Command Freeze()
    {
        Option<string?> timeout = new("--timeout") { HelpName = "SECONDS", Description = "How long the guest may take; then it is thawed again (60)" };
        Option<string?> watchdog = new("--watchdog") { HelpName = "SECONDS", Description = "Thaw by itself after so long (30)" };
        return MachineCommand.Create("freeze", "Have the guest freeze its file systems (needs --personality hyperv and hv_vss_daemon in the guest, or vmware and open-vm-tools).", call =>
        {
            FreezeArguments arguments = new();
            if (call.Result.GetValue(timeout) is { } limit)
                arguments = arguments with { Timeout = MachineArguments.ParseTimeout(limit).TotalSeconds };
            if (call.Result.GetValue(watchdog) is { } dog)
                arguments = arguments with { Watchdog = MachineArguments.ParseTimeout(dog).TotalSeconds };
            return call.AskAsync(
                arguments, FreezeJson.Default.FreezeArguments, FreezeJson.Default.FreezeAnswer,
                (output, answer) => output.WriteLine($"the guest's file systems are frozen; they are thawed in {answer.Watchdog:0.#} s unless 'aerostat thaw' comes first"), s_patience);
        }, extra: null, timeout, watchdog);
    }

    public static Command Thaw() => MachineCommand.Create("thaw", "Have the guest thaw its file systems.", call => call.AskAsync(
        new NoArguments(), FreezeJson.Default.NoArguments, FreezeJson.Default.ThawAnswer,
        (output, answer) => output.WriteLine($"the guest's file systems were frozen for {answer.FrozenSeconds * 1000:0.0} ms, after {answer.FreezeSeconds * 1000:0.0} ms of freezing{(answer.ByWatchdog ? "; the watchdog thawed them" : "")}"), s_patience));
}
