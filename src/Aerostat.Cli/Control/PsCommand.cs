using System.CommandLine;
using System.Text.Json;
using Aerostat.Control;
using Aerostat.Machine;

namespace Aerostat.Cli;

/// <summary><c>aerostat ps</c>: the machines that run under a name.</summary>
internal static class PsCommand
{
    private static readonly TimeSpan s_patience = TimeSpan.FromSeconds(3);

    private sealed record Row(string Name, string Path, ShowAnswer? Shown, JsonElement? Json, string? Problem);

    public static Command Create()
    {
        Option<bool> json = new("--json") { Description = "Machine-readable output" };
        Command command = new("ps", "List the machines that run under a name.") { json };
        command.SetAction(async (result, cancellation) =>
        {
            Row?[] rows = await Task.WhenAll(ControlEndpoint.List().Select(e => AskAsync(e, cancellation))).ConfigureAwait(false);
            TextWriter output = result.InvocationConfiguration.Output;
            if (result.GetValue(json))
                PrintJson(output, rows.OfType<Row>());
            else
                Print(output, [.. rows.OfType<Row>()]);
            return ExitStatus.Success;
        });
        return command;
    }

    private static async Task<Row?> AskAsync(ControlEndpoint endpoint, CancellationToken cancellation)
    {
        try
        {
            using ControlClient client = await ControlClient.ConnectAsync(endpoint, cancellation).WaitAsync(s_patience, cancellation).ConfigureAwait(false);
            JsonElement element = await client.AskAsync("show", new NoArguments(), ControlJson.Default.NoArguments, s_patience, cancellation).ConfigureAwait(false);
            return new Row(endpoint.Name!, endpoint.Path, ControlClient.Decode(element, ControlJson.Default.ShowAnswer), element, null);
        }
        catch (ControlException e) when (e.Kind == ControlErrorKind.NotFound)
        {
            // Left over from a machine that was killed; the next of that name replaces it.
            return null;
        }
        catch (Exception e) when (e is ControlException or TimeoutException)
        {
            return new Row(endpoint.Name!, endpoint.Path, null, null, e is ControlException { Kind: not ControlErrorKind.Timeout } ? e.Message : "does not answer");
        }
    }

    private static void PrintJson(TextWriter output, IEnumerable<Row> rows)
    {
        using MemoryStream stream = new();
        using (Utf8JsonWriter json = new(stream, new JsonWriterOptions { Indented = true }))
        {
            json.WriteStartArray();
            foreach (Row row in rows)
            {
                json.WriteStartObject();
                json.WriteString("name", row.Name);
                json.WriteString("control", row.Path);
                if (row.Problem is { } problem)
                    json.WriteString("problem", problem);
                foreach (string member in (string[])["pid", "state", "accelerator", "cpuModel", "uptimeSeconds"])
                    if (row.Json is { } shown && shown.TryGetProperty(member, out JsonElement value))
                    {
                        json.WritePropertyName(member);
                        value.WriteTo(json);
                    }
                if (row.Shown is { } answer)
                {
                    json.WriteNumber("cpus", answer.Vcpus.Count);
                    json.WriteNumber("memoryBytes", answer.Memory.GuestBytes);
                }
                json.WriteEndObject();
            }
            json.WriteEndArray();
        }
        output.WriteLine(System.Text.Encoding.UTF8.GetString(stream.ToArray()));
    }

    private static void Print(TextWriter output, IReadOnlyList<Row> rows)
    {
        if (rows.Count == 0)
        {
            output.WriteLine("no machine runs under a name ('aerostat run --name NAME' gives one)");
            return;
        }
        int width = Math.Max(4, rows.Max(r => r.Name.Length));
        output.WriteLine($"{"NAME".PadRight(width)}  {"PID",7}  {"STATE",-8} {"ACCELERATOR",-12} {"CPUS",4}  {"MEMORY",8}  UPTIME");
        foreach (Row row in rows)
        {
            output.WriteLine(row.Shown is { } shown
                ? $"{row.Name.PadRight(width)}  {shown.Pid,7}  {shown.State,-8} {shown.Accelerator,-12} {shown.Vcpus.Count,4}  {MemorySize.Format(shown.Memory.GuestBytes),8}  {ShowCommand.Duration(shown.UptimeSeconds)}"
                : $"{row.Name.PadRight(width)}  {"?",7}  {row.Problem}");
        }
    }
}
