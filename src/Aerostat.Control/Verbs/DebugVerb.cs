using Aerostat.Debugger;

namespace Aerostat.Control;

/// <summary>Arguments of <c>debug</c>.</summary>
/// <param name="Endpoint">PORT (loopback), ADDRESS:PORT, or the path of a socket; absent: a port of loopback that the host chooses.</param>
public sealed record DebugArguments(string? Endpoint = null);

/// <summary>The answer to <c>debug</c>.</summary>
/// <param name="Target">What to type after GDB's <c>target remote</c>.</param>
public sealed record DebugAnswer(string Target);

/// <summary><c>debug</c>: opens GDB's port.</summary>
internal sealed class DebugVerb() : ControlVerb<DebugArguments, DebugAnswer>(ControlJson.Default.DebugArguments, ControlJson.Default.DebugAnswer)
{
    public override string Name => "debug";

    protected override async Task<DebugAnswer> AnswerAsync(ControlledMachine machine, DebugArguments arguments, CancellationToken cancellation)
    {
        DebugEndpoint? wanted;
        try
        {
            wanted = arguments.Endpoint is { } text ? DebugEndpoint.Parse(text) : null;
        }
        catch (FormatException e)
        {
            throw new ControlException(ControlErrorKind.Usage, $"debug: {ControlRequest.Shorten(e.Message)}", e);
        }
        return new DebugAnswer((await machine.OpenDebugAsync(wanted).ConfigureAwait(false)).ForGdb);
    }
}
