using System.Text.Json;
using System.Text.Json.Serialization.Metadata;

namespace Aerostat.Control;

/// <summary>
/// Something that can be asked of a running machine. One class and file for each; <see cref="ControlVerbs"/> lists them. Called on threads of
/// the pool, for several clients at once; a vCPU's thread never waits for one.
/// </summary>
public abstract class ControlVerb
{
    /// <summary>The name, lower case with dashes.</summary>
    public abstract string Name { get; }

    /// <summary>Whether a request is given up when its client goes away before it has the answer.</summary>
    public virtual bool EndsWithClient => false;

    /// <summary>Carries a request out.</summary>
    /// <param name="request">Which machine, and the arguments.</param>
    /// <param name="cancellation">
    /// The machine's process is about to end: there is a second or two left for an answer. Or the client has gone (<see cref="EndsWithClient"/>).
    /// </param>
    /// <exception cref="ControlException">It cannot be done; the client gets the message.</exception>
    public abstract Task<ControlAnswer> AnswerAsync(ControlRequest request, CancellationToken cancellation);
}

/// <summary>A verb whose arguments and answer are records.</summary>
/// <param name="arguments">How the arguments are read.</param>
/// <param name="answer">How the answer is written.</param>
public abstract class ControlVerb<TArguments, TAnswer>(JsonTypeInfo<TArguments> arguments, JsonTypeInfo<TAnswer> answer) : ControlVerb
    where TArguments : class
    where TAnswer : class
{
    /// <summary>Carries a request out; see <see cref="ControlVerb.AnswerAsync"/>.</summary>
    protected abstract Task<TAnswer> AnswerAsync(ControlledMachine machine, TArguments arguments, CancellationToken cancellation);

    /// <inheritdoc/>
    public sealed override async Task<ControlAnswer> AnswerAsync(ControlRequest request, CancellationToken cancellation)
    {
        ArgumentNullException.ThrowIfNull(request);
        return ControlAnswer.Of(await AnswerAsync(request.Machine, request.Read(arguments), cancellation).ConfigureAwait(false), answer);
    }
}

/// <summary>A request to a machine.</summary>
/// <param name="machine">The machine.</param>
/// <param name="verb">The verb's name, for errors.</param>
/// <param name="arguments">The arguments, an object; undefined when there are none.</param>
public sealed class ControlRequest(ControlledMachine machine, string verb, JsonElement arguments)
{
    /// <summary>Deepest nesting that is read or written.</summary>
    public const int MaxDepth = 32;

    /// <summary>The machine.</summary>
    public ControlledMachine Machine => machine;

    /// <summary>Reads the arguments; absent ones have their defaults.</summary>
    /// <exception cref="ControlException">They are not what the verb takes.</exception>
    public T Read<T>(JsonTypeInfo<T> type)
        where T : class
    {
        ArgumentNullException.ThrowIfNull(type);
        try
        {
            JsonElement given = arguments.ValueKind == JsonValueKind.Undefined ? s_none.RootElement : arguments;
            foreach (JsonProperty property in given.EnumerateObject())
                if (!type.Properties.Any(p => property.NameEquals(p.Name)))
                    throw new ControlException(ControlErrorKind.Usage, $"{verb}: there is no argument '{Shorten(property.Name)}'; it takes {(type.Properties.Count == 0 ? "none" : string.Join(", ", type.Properties.Select(p => p.Name)))}");
            return given.Deserialize(type) ?? throw new JsonException("null");
        }
        catch (Exception e) when (e is JsonException or InvalidOperationException or FormatException)
        {
            throw new ControlException(ControlErrorKind.Usage, $"{verb}: the arguments cannot be read ({Shorten(e.Message)}); docs/control.md says what it takes", e);
        }
    }

    private static readonly JsonDocument s_none = JsonDocument.Parse("{}");

    /// <summary>Text of a client for use in a message: one line, not long.</summary>
    internal static string Shorten(string text)
    {
        const int Longest = 80;
        string line = new([.. text.Take(Longest).Select(c => char.IsControl(c) || char.IsSurrogate(c) ? '?' : c)]);
        return text.Length > Longest ? line + "..." : line;
    }
}

/// <summary>What a verb answers.</summary>
public abstract class ControlAnswer
{
    /// <summary>
    /// What follows the answer on the same connection: lines until the token is cancelled, because the client has sent something more, or has
    /// closed, or the machine is over. Null: nothing.
    /// </summary>
    public Func<IControlStream, CancellationToken, Task>? Continue { get; init; }

    /// <summary>An answer that is a record.</summary>
    public static ControlAnswer Of<T>(T value, JsonTypeInfo<T> type, Func<IControlStream, CancellationToken, Task>? then = null) => new Typed<T>(value, type) { Continue = then };

    /// <summary>An answer that is written directly, as one JSON value.</summary>
    public static ControlAnswer Of(Action<Utf8JsonWriter> write) => new Written(write);

    internal abstract void Write(Utf8JsonWriter json);

    private sealed class Typed<T>(T value, JsonTypeInfo<T> type) : ControlAnswer
    {
        internal override void Write(Utf8JsonWriter json) => JsonSerializer.Serialize(json, value, type);
    }

    private sealed class Written(Action<Utf8JsonWriter> write) : ControlAnswer
    {
        internal override void Write(Utf8JsonWriter json) => write(json);
    }
}

/// <summary>Lines after an answer.</summary>
public interface IControlStream
{
    /// <summary>Sends a line; completes when the host has taken it, which is as slow as the client is.</summary>
    Task WriteAsync<T>(T value, JsonTypeInfo<T> type);
}
