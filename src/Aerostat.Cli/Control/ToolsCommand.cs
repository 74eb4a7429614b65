using System.CommandLine;
using System.Globalization;
using Aerostat.Control;

namespace Aerostat.Cli;

/// <summary><c>aerostat tools</c>: VMware's tools in a guest.</summary>
internal static class ToolsCommand
{
    public static Command Create()
    {
        Option<string?> set = new("--set") { HelpName = "NAME=VALUE", Description = "Set a variable for the guest to read; nothing behind the sign takes it away" };
        Option<string?> power = new("--power") { HelpName = "shutdown|reboot", Description = "Have the tools do this" };
        return MachineCommand.Create("tools", "Show VMware's tools in a guest and the variables it shares with the host, or have them do something.", call =>
            call.AskAsync(
                new ToolsArguments(call.Result.GetValue(set), call.Result.GetValue(power)),
                ControlJson.Default.ToolsArguments, ControlJson.Default.ToolsAnswer, Write), extra: null, set, power);
    }

    private static void Write(TextWriter output, ToolsAnswer answer)
    {
        output.WriteLine(answer.Running ? $"the tools are at work{(answer.Version is { } version ? $", version {version}" : "")}" : "no tools are at work in the guest");
        if (answer.Heartbeat is { } seconds)
            output.WriteLine(string.Create(CultureInfo.InvariantCulture, $"heartbeat            {seconds:0.0} s ago"));
        foreach ((string name, string value) in answer.Information)
            output.WriteLine($"{name} = {string.Concat(value.Select(c => char.IsControl(c) ? '?' : c))}");
    }
}
