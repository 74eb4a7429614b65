using System.CommandLine;
using Aerostat.Control;

namespace Aerostat.Cli;

/// <summary><c>aerostat stop</c>: asks the guest to power off, or ends the run.</summary>
internal static class StopCommand
{
    public static Command Create()
    {
        Option<bool> force = new("--force") { Description = "End the run without asking the guest" };
        Option<string> timeout = new("--timeout")
        {
            HelpName = "SECONDS",
            Description = $"How long the guest may take (default: {StopArguments.DefaultTimeout})",
        };
        return MachineCommand.Create("stop", "Press a machine's power button and wait until its guest has powered off.", call =>
        {
            double seconds = call.Result.GetValue(timeout) is { } text ? MachineArguments.ParseTimeout(text).TotalSeconds : StopArguments.DefaultTimeout;
            return call.AskAsync(new StopArguments(call.Result.GetValue(force), seconds), ControlJson.Default.StopArguments, ControlJson.Default.StopAnswer,
                (output, answer) => output.WriteLine($"{call.Client.Hello.Name} has ended ({answer.Exit}) after {answer.Seconds:0.0} s"),
                TimeSpan.FromSeconds(seconds + 30));
        }, null, force, timeout);
    }
}
