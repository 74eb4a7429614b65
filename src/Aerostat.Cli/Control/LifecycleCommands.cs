using System.CommandLine;
using Aerostat.Control;

namespace Aerostat.Cli;

/// <summary><c>aerostat pause</c>, <c>resume</c> and <c>reset</c>.</summary>
internal static class LifecycleCommands
{
    public static Command Pause() => Create("pause", "Take a machine's processors out of the guest and stop its time.");

    public static Command Resume() => Create("resume", "Let a paused machine go on.");

    public static Command Reset() => Create("reset", "Press a machine's reset button.");

    private static Command Create(string verb, string description) => MachineCommand.Create(
        verb, description,
        call => call.AskAsync(new NoArguments(), ControlJson.Default.NoArguments, ControlJson.Default.StateAnswer,
            (output, answer) => output.WriteLine($"{call.Client.Hello.Name} {(verb == "reset" ? "was reset and " : "")}{(answer.Changed ? "is" : "was")} {answer.State}{(answer.Changed ? "" : " already")}")));
}
