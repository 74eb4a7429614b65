using System.Buffers;
using System.Net.Sockets;
using System.Runtime.CompilerServices;
using System.Text.Json;
using System.Text.Json.Serialization.Metadata;

namespace Aerostat.Control;

/// <summary>A connection to a running machine. One call at a time.</summary>
public sealed class ControlClient : IDisposable
{
    private static readonly TimeSpan s_patience = TimeSpan.FromSeconds(10);

    private readonly ControlEndpoint endpoint;
    private readonly Socket socket;
    private readonly LineReader reader;
    private long lastId;

    private ControlClient(ControlEndpoint endpoint, Socket socket)
    {
        this.endpoint = endpoint;
        this.socket = socket;
        reader = new LineReader(socket, ControlProtocol.LongestAnswer);
        Hello = null!;
    }

    /// <summary>What the machine said first.</summary>
    public ControlHello Hello { get; private set; }

    /// <summary>Where it is.</summary>
    public ControlEndpoint Endpoint => endpoint;

    private string Who => endpoint.Name is { } name ? $"the machine '{name}'" : $"the machine at {endpoint.Path}";

    /// <summary>Connects.</summary>
    /// <exception cref="ControlException">There is no such machine, or it does not answer.</exception>
    public static async Task<ControlClient> ConnectAsync(ControlEndpoint endpoint, CancellationToken cancellation = default)
    {
        ArgumentNullException.ThrowIfNull(endpoint);
        Socket socket = new(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified);
        ControlClient client = new(endpoint, socket);
        try
        {
            await client.OpenAsync(cancellation).WaitAsync(s_patience, cancellation).ConfigureAwait(false);
            return client;
        }
        catch (Exception e)
        {
            client.Dispose();
            throw e switch
            {
                TimeoutException => new ControlException(ControlErrorKind.Timeout, $"{client.Who} does not answer; its process may be stopped or overloaded", e),
                SocketException s => new ControlException(client.KindOf(s), client.Explain(s), e),
                _ => e,
            };
        }
    }

    private async Task OpenAsync(CancellationToken cancellation)
    {
        await socket.ConnectAsync(endpoint.Address, cancellation).ConfigureAwait(false);
        JsonElement first = await ReadAsync(cancellation).ConfigureAwait(false) ?? throw Gone();
        if (first.TryGetProperty("error", out _))
            throw ErrorOf(first);
        Hello = Decode(first, LineJson.Default.HelloLine).Hello;
        if (Hello is not { Protocol: ControlProtocol.Name })
            throw new ControlException(ControlErrorKind.Failed, $"what listens at {endpoint.Path} is no machine of aerostat; give another path");
        if (Hello.Version != ControlProtocol.Version)
            throw new ControlException(ControlErrorKind.Failed, $"{Who} is run by aerostat {Hello.Product}, whose control protocol is version {Hello.Version}, and this program's is {ControlProtocol.Version}; use the aerostat that runs it");
    }

    /// <summary>Asks, and answers what the machine says.</summary>
    /// <param name="verb">What.</param>
    /// <param name="arguments">The verb's arguments.</param>
    /// <param name="type">How they are written.</param>
    /// <param name="patience">How long to wait for the answer; null: for ever.</param>
    /// <param name="cancellation">Gives up; the connection is then of no further use.</param>
    /// <exception cref="ControlException">The machine says no, or is gone.</exception>
    public async Task<JsonElement> AskAsync<TArguments>(
        string verb, TArguments arguments, JsonTypeInfo<TArguments> type, TimeSpan? patience = null, CancellationToken cancellation = default)
    {
        long id = ++lastId;
        ArrayBufferWriter<byte> line = new();
        using (Utf8JsonWriter json = new(line))
        {
            json.WriteStartObject();
            json.WriteNumber("id", id);
            json.WriteString("verb", verb);
            json.WritePropertyName("arguments");
            JsonSerializer.Serialize(json, arguments, type);
            json.WriteEndObject();
        }
        line.Write("\n"u8);
        if (line.WrittenCount > ControlProtocol.LongestRequest)
            throw new ControlException(ControlErrorKind.Usage, $"{verb}: the request has {line.WrittenCount} bytes, more than {ControlProtocol.LongestRequest}; ask for less at a time");
        try
        {
            return await ExchangeAsync(line.WrittenMemory, id, cancellation).WaitAsync(patience ?? Timeout.InfiniteTimeSpan, cancellation).ConfigureAwait(false);
        }
        catch (TimeoutException e)
        {
            throw new ControlException(ControlErrorKind.Timeout, $"{verb}: {Who} has not answered in {patience!.Value.TotalSeconds:0.#} s; its process may be stopped or overloaded", e);
        }
        catch (SocketException e)
        {
            throw new ControlException(ControlErrorKind.Failed, Gone().Message, e);
        }
    }

    /// <summary>Asks, and answers what the machine says as a record.</summary>
    /// <exception cref="ControlException">The machine says no, or is gone.</exception>
    public async Task<TAnswer> AskAsync<TArguments, TAnswer>(
        string verb, TArguments arguments, JsonTypeInfo<TArguments> type, JsonTypeInfo<TAnswer> answer, TimeSpan? patience = null, CancellationToken cancellation = default)
        where TAnswer : class =>
        Decode(await AskAsync(verb, arguments, type, patience, cancellation).ConfigureAwait(false), answer);

    /// <summary>The lines that follow an answer, until the machine is over.</summary>
    public async IAsyncEnumerable<JsonElement> FollowAsync([EnumeratorCancellation] CancellationToken cancellation = default)
    {
        while (true)
        {
            JsonElement? line;
            try
            {
                line = await ReadAsync(cancellation).ConfigureAwait(false);
            }
            catch (SocketException)
            {
                line = null;
            }
            if (line is not { } one)
                yield break;
            yield return one;
        }
    }

    /// <summary>Reads a record out of what a machine has sent.</summary>
    /// <exception cref="ControlException">It is something else.</exception>
    public static T Decode<T>(JsonElement element, JsonTypeInfo<T> type)
        where T : class
    {
        try
        {
            return element.Deserialize(type) ?? throw new JsonException("null");
        }
        catch (Exception e) when (e is JsonException or InvalidOperationException)
        {
            throw new ControlException(ControlErrorKind.Failed, $"the machine's answer cannot be understood ({ControlRequest.Shorten(e.Message)}); use the aerostat that runs it", e);
        }
    }

    private async Task<JsonElement> ExchangeAsync(ReadOnlyMemory<byte> request, long id, CancellationToken cancellation)
    {
        while (!request.IsEmpty)
            request = request[await socket.SendAsync(request, SocketFlags.None, cancellation).ConfigureAwait(false)..];
        JsonElement answer = await ReadAsync(cancellation).ConfigureAwait(false) ?? throw Gone();
        if (!answer.TryGetProperty("ok", out JsonElement ok) || ok.ValueKind != JsonValueKind.True)
            throw ErrorOf(answer);
        if (!answer.TryGetProperty("id", out JsonElement number) || !number.TryGetInt64(out long value) || value != id || !answer.TryGetProperty("result", out JsonElement result))
            throw new ControlException(ControlErrorKind.Failed, $"{Who} answered something that was not asked; use the aerostat that runs it");
        return result;
    }

    private async Task<JsonElement?> ReadAsync(CancellationToken cancellation)
    {
        if (await reader.ReadAsync(cancellation).ConfigureAwait(false) is not { } line)
            return null;
        try
        {
            using JsonDocument document = JsonDocument.Parse(line);
            return document.RootElement.ValueKind == JsonValueKind.Object
                ? document.RootElement.Clone()
                : throw new JsonException("no object");
        }
        catch (JsonException e)
        {
            throw new ControlException(ControlErrorKind.Failed, $"what listens at {endpoint.Path} is no machine of aerostat; give another path", e);
        }
    }

    private static ControlException ErrorOf(JsonElement line)
    {
        ErrorBody? body = Decode(line, LineJson.Default.ErrorLine).Error;
        return new ControlException(ControlException.KindOf(body?.Kind), body?.Message ?? "the machine says no, and not why");
    }

    private ControlException Gone() => new(ControlErrorKind.Failed, $"{Who} has ended before it answered");

    private ControlErrorKind KindOf(SocketException e) => IsMissing(e) ? ControlErrorKind.NotFound : ControlErrorKind.Failed;

    private static bool IsMissing(SocketException e) =>
        e.SocketErrorCode is SocketError.ConnectionRefused or SocketError.AddressNotAvailable or SocketError.NotSocket || e.ErrorCode == 2;

    private string Explain(SocketException e) => !IsMissing(e)
        ? $"{Who} cannot be reached at {endpoint.Path} ({(e.SocketErrorCode == SocketError.AccessDenied ? "permission denied" : e.Message)}); a machine answers to its own user alone"
        : endpoint.Name is { } name ? $"there is no machine named '{name}' here; 'aerostat ps' lists those that run"
        : $"there is no machine at {endpoint.Path}; 'aerostat run --control PATH' makes one";

    /// <summary>Closes the connection.</summary>
    public void Dispose() => socket.Dispose();
}
