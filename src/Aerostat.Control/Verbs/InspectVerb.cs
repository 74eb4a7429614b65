using System.Globalization;
using System.Text.Json;
using Aerostat.Machine;
using Aerostat.State;

namespace Aerostat.Control;

/// <summary>Arguments of <c>inspect</c>.</summary>
/// <param name="Path">Which part of the tree: names and indices behind slashes, such as <c>/ioapic/entries/4</c> (RFC 6901); empty: all of it.</param>
public sealed record InspectArguments(string Path = "");

/// <summary>
/// <c>inspect</c>: the tree of every device's and processor's state, as it would be saved. The machine stands still while it is taken.
/// </summary>
internal sealed class InspectVerb : ControlVerb
{
    private const int MostListed = 40;
    private static readonly TimeSpan s_patience = TimeSpan.FromSeconds(30);

    public override string Name => "inspect";

    public override async Task<ControlAnswer> AnswerAsync(ControlRequest request, CancellationToken cancellation)
    {
        string path = request.Read(ControlJson.Default.InspectArguments).Path;
        if (path.Length > 0 && path[0] != '/')
            throw new ControlException(ControlErrorKind.Usage, "inspect: a path begins with a slash, such as /ioapic");
        VirtualMachine machine = request.Machine.Machine;
        IReadOnlyList<SavedElement> parts;
        try
        {
            parts = await machine.InspectAsync().WaitAsync(s_patience, cancellation).ConfigureAwait(false);
        }
        catch (TimeoutException e)
        {
            throw new ControlException(ControlErrorKind.Timeout, $"inspect: a vCPU has not left the guest in {s_patience.TotalSeconds} s; the host may be overloaded, try again", e);
        }
        catch (InvalidOperationException e)
        {
            throw new ControlException(ControlErrorKind.Refused, $"inspect: {e.Message}", e);
        }
        if (path.Length > 0)
        {
            JsonElement found = Find(machine, parts, path);
            return ControlAnswer.Of(found.WriteTo);
        }
        return ControlAnswer.Of(json =>
        {
            json.WriteStartObject();
            foreach (SavedElement part in parts)
            {
                json.WritePropertyName(part.Name);
                part.Data.WriteTo(json);
            }
            foreach (string opaque in machine.OpaqueDevices)
                json.WriteNull(opaque);
            json.WriteEndObject();
        });
    }

    private static JsonElement Find(VirtualMachine machine, IReadOnlyList<SavedElement> parts, string path)
    {
        string[] steps = [.. path.Split('/').Skip(1).Select(s => s.Replace("~1", "/", StringComparison.Ordinal).Replace("~0", "~", StringComparison.Ordinal))];
        if (machine.OpaqueDevices.Contains(steps[0]))
            throw new ControlException(ControlErrorKind.Refused, $"inspect: '{steps[0]}' does not tell its state");
        JsonElement at = parts.FirstOrDefault(p => p.Name == steps[0])?.Data ?? throw NotThere("", steps[0], parts.Select(p => p.Name));
        for (int i = 1; i < steps.Length; i++)
        {
            string here = string.Join('/', steps[..i]);
            at = at.ValueKind switch
            {
                JsonValueKind.Object => at.TryGetProperty(steps[i], out JsonElement member) ? member : throw NotThere("/" + here, steps[i], at.EnumerateObject().Select(p => p.Name)),
                JsonValueKind.Array => int.TryParse(steps[i], NumberStyles.None, CultureInfo.InvariantCulture, out int index) && index < at.GetArrayLength()
                    ? at[index]
                    : throw new ControlException(ControlErrorKind.Usage, $"inspect: /{here} has elements 0 to {at.GetArrayLength() - 1}, not '{ControlRequest.Shorten(steps[i])}'"),
                _ => throw new ControlException(ControlErrorKind.Usage, $"inspect: /{here} is a value; there is nothing below it"),
            };
        }
        return at;
    }

    private static ControlException NotThere(string where, string what, IEnumerable<string> names)
    {
        string[] all = [.. names];
        string list = string.Join(", ", all.Take(MostListed)) + (all.Length > MostListed ? ", ..." : "");
        return new ControlException(ControlErrorKind.Usage, $"inspect: there is no '{ControlRequest.Shorten(what)}'{(where.Length > 0 ? " in " + where : "")}; there are {list}");
    }
}
