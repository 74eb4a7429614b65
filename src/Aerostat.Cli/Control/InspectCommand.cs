using System.CommandLine;
using System.Text.Json;
using Aerostat.Control;

namespace Aerostat.Cli;

/// <summary><c>aerostat inspect</c>: the tree of every device's state, a line for each value.</summary>
internal static class InspectCommand
{
    public static Command Create()
    {
        Argument<string?> path = new("PATH") { Description = "A part of the tree, such as /ioapic (default: all of it)", Arity = ArgumentArity.ZeroOrOne };
        return MachineCommand.Create("inspect", "Print the state of a machine's devices and processors; it stands still for a moment.", async call =>
        {
            string start = call.Extra ?? "";
            start = start == "/" ? "" : start.Length > 0 && start[0] != '/' ? "/" + start : start.TrimEnd('/');
            JsonElement tree = await call.Client.AskAsync("inspect", new InspectArguments(start), ControlJson.Default.InspectArguments, TimeSpan.FromSeconds(60), call.Cancellation).ConfigureAwait(false);
            if (call.Json)
                call.Print(tree);
            else
                Print(call.Output, start, tree);
            return ExitStatus.Success;
        }, path);
    }

    private static void Print(TextWriter output, string path, JsonElement value)
    {
        switch (value.ValueKind)
        {
            case JsonValueKind.Object when value.EnumerateObject().Any():
                foreach (JsonProperty member in value.EnumerateObject())
                    Print(output, $"{path}/{member.Name.Replace("~", "~0", StringComparison.Ordinal).Replace("/", "~1", StringComparison.Ordinal)}", member.Value);
                break;
            case JsonValueKind.Array when value.GetArrayLength() > 0:
                int index = 0;
                foreach (JsonElement element in value.EnumerateArray())
                    Print(output, $"{path}/{index++}", element);
                break;
            default:
                output.WriteLine($"{path} {MachineCall.Format(value, indented: false)}");
                break;
        }
    }
}
