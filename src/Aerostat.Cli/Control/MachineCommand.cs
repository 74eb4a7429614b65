using System.CommandLine;
using System.Text;
using System.Text.Json;
using System.Text.Json.Serialization.Metadata;
using Aerostat.Control;
using Aerostat.Machine;

namespace Aerostat.Cli;

/// <summary>
/// A command on a running machine: NAME or --control PATH, --json, and what the verb has besides. A new verb is one such command in a file of
/// its own, a line in <see cref="CommandTree"/>, and its handler in Aerostat.Control.
/// </summary>
internal static class MachineCommand
{
    /// <summary>Makes the command.</summary>
    /// <param name="name">The verb.</param>
    /// <param name="description">One sentence for help.</param>
    /// <param name="run">Carries it out; answers the exit status.</param>
    /// <param name="extra">At most one argument behind NAME.</param>
    /// <param name="options">Further options.</param>
    public static Command Create(string name, string description, Func<MachineCall, Task<int>> run, Argument<string?>? extra = null, params IReadOnlyList<Option> options)
    {
        Argument<string?> machine = new("NAME") { Description = "The machine's name", Arity = ArgumentArity.ZeroOrOne };
        Option<string?> control = MachineTarget.ControlOption("The machine whose control socket this is, instead of NAME");
        Option<bool> json = new("--json") { Description = "Machine-readable output" };
        Command command = new(name, description) { machine };
        if (extra is not null)
            command.Add(extra);
        foreach (Option option in options)
            command.Add(option);
        command.Add(control);
        command.Add(json);
        command.SetAction(async (result, cancellation) =>
        {
            string? target = result.GetValue(machine), second = extra is null ? null : result.GetValue(extra), path = result.GetValue(control);
            if (path is not null && target is not null)
            {
                // With --control there is no NAME: what stands in its place is the next argument.
                if (extra is null || second is not null)
                    throw new ConfigurationException($"'{target}' and --control name two machines; give one of them");
                (target, second) = (null, target);
            }
            using ControlClient client = await ControlClient.ConnectAsync(MachineTarget.Of(target, path), cancellation).ConfigureAwait(false);
            return await run(new MachineCall(name, client, result, second, result.GetValue(json), cancellation)).ConfigureAwait(false);
        });
        return command;
    }
}

/// <summary>One use of a <see cref="MachineCommand"/>.</summary>
/// <param name="Verb">The verb.</param>
/// <param name="Client">The machine.</param>
/// <param name="Result">The command line.</param>
/// <param name="Extra">The argument behind NAME.</param>
/// <param name="Json">Whether output is for machines.</param>
/// <param name="Cancellation">Given up.</param>
internal sealed record MachineCall(string Verb, ControlClient Client, ParseResult Result, string? Extra, bool Json, CancellationToken Cancellation)
{
    private static readonly TimeSpan s_patience = TimeSpan.FromSeconds(60);

    /// <summary>Standard output.</summary>
    public TextWriter Output => Result.InvocationConfiguration.Output;

    /// <summary>Asks the machine, and prints the answer as JSON or as <paramref name="text"/> says it.</summary>
    public async Task<int> AskAsync<TArguments, TAnswer>(
        TArguments arguments, JsonTypeInfo<TArguments> type, JsonTypeInfo<TAnswer> answer, Action<TextWriter, TAnswer> text, TimeSpan? patience = null)
        where TAnswer : class
    {
        JsonElement element = await Client.AskAsync(Verb, arguments, type, patience ?? s_patience, Cancellation).ConfigureAwait(false);
        if (Json)
            Print(element);
        else
            text(Output, ControlClient.Decode(element, answer));
        return ExitStatus.Success;
    }

    /// <summary>Prints JSON over several lines.</summary>
    public void Print(JsonElement element) => Output.WriteLine(Format(element, indented: true));

    /// <summary>JSON as text. Escapes keep a guest's bytes from reaching the terminal.</summary>
    public static string Format(JsonElement element, bool indented)
    {
        using MemoryStream stream = new();
        using (Utf8JsonWriter json = new(stream, new JsonWriterOptions { Indented = indented }))
            element.WriteTo(json);
        return Encoding.UTF8.GetString(stream.ToArray());
    }
}
