using System.CommandLine;
using System.Globalization;
using System.Text.Json;
using Aerostat.Control;
using Aerostat.Machine;

namespace Aerostat.Cli;

/// <summary><c>aerostat logs</c> and <c>events</c>: what happened to a machine, as text or as lines of JSON.</summary>
internal static class EventsCommands
{
    public static Command Logs() => Create("logs", "Print what happened to a machine.", asJson: false);

    public static Command Events() => Create("events", "Print what happened to a machine, one JSON object a line.", asJson: true);

    private static Command Create(string name, string description, bool asJson)
    {
        Option<bool> follow = new("--follow") { Description = "Go on with what happens, until the machine ends" };
        return MachineCommand.Create(name, description, call => RunAsync(call, call.Result.GetValue(follow), asJson || call.Json), null, follow);
    }

    private static async Task<int> RunAsync(MachineCall call, bool follow, bool json)
    {
        EventsAnswer answer = await call.Client.AskAsync(
            "events", new EventsArguments(0, follow), ControlJson.Default.EventsArguments, ControlJson.Default.EventsAnswer, TimeSpan.FromSeconds(60), call.Cancellation).ConfigureAwait(false);
        if (answer.Dropped > 0)
            Write(call, new EventLine(null, answer.Dropped), json);
        foreach (MachineEvent one in answer.Events)
            Write(call, new EventLine(one), json);
        call.Output.Flush();
        if (!follow)
            return ExitStatus.Success;
        await foreach (JsonElement line in call.Client.FollowAsync(call.Cancellation).ConfigureAwait(false))
        {
            Write(call, ControlClient.Decode(line, ControlJson.Default.EventLine), json);
            call.Output.Flush();
        }
        return ExitStatus.Success;
    }

    private static void Write(MachineCall call, EventLine line, bool json)
    {
        if (json)
            call.Output.WriteLine(JsonSerializer.Serialize(line, ControlJson.Default.EventLine));
        else if (line.Event is { } one)
            call.Output.WriteLine($"{one.Time.ToLocalTime().ToString("yyyy-MM-dd HH:mm:ss.fff", CultureInfo.InvariantCulture)} {call.Client.Hello.Name} {one.Message}");
        else
            call.Output.WriteLine($"({line.Dropped} events are missing: they were not read in time)");
    }
}
