using System.Buffers;
using System.Net.Sockets;
using System.Text.Json;
using System.Text.Json.Serialization.Metadata;

namespace Aerostat.Control;

/// <summary>One client. It gets its answers one after the other: until it has taken one, nothing more is read from it.</summary>
internal sealed class ControlConnection(Socket socket, ControlServer server) : IControlStream
{
    // A client that takes nothing for so long is cut off; one that follows a stream may take its time, for events are dropped, not kept.
    private static readonly TimeSpan s_patience = TimeSpan.FromSeconds(10);

    // How soon it is noticed that a client has gone.
    private static readonly TimeSpan s_watchInterval = TimeSpan.FromMilliseconds(200);

    private static readonly JsonWriterOptions s_compact = new() { MaxDepth = ControlRequest.MaxDepth };
    private static readonly JsonDocumentOptions s_strict = new() { MaxDepth = ControlRequest.MaxDepth, AllowDuplicateProperties = false };

    private readonly LineReader reader = new(socket, ControlProtocol.LongestRequest);
    private long lastUse = Environment.TickCount64;

    /// <summary>Whether a request is being carried out; a stream does not count.</summary>
    public bool IsBusy { get; private set; }

    /// <summary>When the client was last heard or answered, in milliseconds of the host's up-time.</summary>
    public long LastUse => Volatile.Read(ref lastUse);

    /// <summary>Serves the client until it closes, does not take what it is sent, or the server ends.</summary>
    public async Task RunAsync()
    {
        try
        {
            await SendAsync(Line(new HelloLine(server.Hello), LineJson.Default.HelloLine)).ConfigureAwait(false);
            while (await reader.ReadAsync(server.Stopping).ConfigureAwait(false) is { } line)
            {
                if (IsBlank(line.Span))
                    continue;
                Volatile.Write(ref lastUse, Environment.TickCount64);
                IsBusy = true;
                (ReadOnlyMemory<byte> answer, Func<IControlStream, CancellationToken, Task>? then) = await HandleAsync(line).ConfigureAwait(false);
                await SendAsync(answer).ConfigureAwait(false);
                IsBusy = false;
                Volatile.Write(ref lastUse, Environment.TickCount64);
                if (then is not null && !await FollowAsync(then).ConfigureAwait(false))
                    break;
            }
        }
        catch (ControlException e)
        {
            // What comes after a line that is too long cannot be understood any more.
            await SendLastAsync(Error(null, e.Kind, e.Message)).ConfigureAwait(false);
        }
        catch (Exception e) when (e is SocketException or OperationCanceledException or ObjectDisposedException or TimeoutException)
        {
            // The client has gone, or is as good as gone.
        }
        finally
        {
            Close();
        }
    }

    /// <summary>Cuts the client off.</summary>
    public void Close()
    {
        try
        {
            if (socket.Connected)
                socket.Shutdown(SocketShutdown.Both);
        }
        catch (Exception e) when (e is SocketException or ObjectDisposedException)
        {
            // It was gone already.
        }
        socket.Dispose();
    }

    /// <summary>Tells a client that there is no place for it.</summary>
    public async Task RefuseAsync(string why)
    {
        await SendLastAsync(Error(null, ControlErrorKind.Refused, why)).ConfigureAwait(false);
        Close();
    }

    Task IControlStream.WriteAsync<T>(T value, JsonTypeInfo<T> type) => SendAllAsync(Line(value, type), CancellationToken.None);

    // False: the client has closed.
    private async Task<bool> FollowAsync(Func<IControlStream, CancellationToken, Task> then)
    {
        using CancellationTokenSource over = CancellationTokenSource.CreateLinkedTokenSource(server.Stopping);
        Task<bool> more = reader.WaitAsync(CancellationToken.None);
        Task stream = then(this, over.Token);
        await Task.WhenAny(more, stream).ConfigureAwait(false);
        await over.CancelAsync().ConfigureAwait(false);
        await stream.ConfigureAwait(false);
        return !server.Stopping.IsCancellationRequested && await more.ConfigureAwait(false);
    }

    private static bool IsBlank(ReadOnlySpan<byte> line) => line.Trim(" \t\r"u8).IsEmpty;

    private async Task<(ReadOnlyMemory<byte> Answer, Func<IControlStream, CancellationToken, Task>? Then)> HandleAsync(ReadOnlyMemory<byte> line)
    {
        long? id = null;
        try
        {
            using JsonDocument document = JsonDocument.Parse(line, s_strict);
            (id, string name, JsonElement arguments) = Envelope(document.RootElement, ref id);
            if (!server.Verbs.TryGetValue(name, out ControlVerb? verb))
                throw new ControlException(ControlErrorKind.Usage, $"there is no verb '{ControlRequest.Shorten(name)}'; there are {string.Join(", ", server.Hello.Verbs)}");
            ControlAnswer answer = await AskAsync(verb, new ControlRequest(server.Machine, name, arguments)).ConfigureAwait(false);
            return (Answer(id, answer), answer.Continue);
        }
        catch (ControlException e)
        {
            return (Error(id, e.Kind, e.Message), null);
        }
        catch (JsonException e)
        {
            return (Error(id, ControlErrorKind.Usage, $"a request is one line with one JSON object, such as {{\"verb\":\"show\"}}; this line is none ({ControlRequest.Shorten(e.Message)})"), null);
        }
        catch (OperationCanceledException)
        {
            return (Error(id, ControlErrorKind.Failed, server.Aborting.IsCancellationRequested ? "the machine is over" : "it was given up"), null);
        }
        catch (Exception e) when (e is not (SocketException or ObjectDisposedException))
        {
            // Nothing a client sends may end the machine.
            return (Error(id, ControlErrorKind.Failed, $"the monitor failed, please report it: {ControlRequest.Shorten(e.GetType().Name + ": " + e.Message)}"), null);
        }
    }

    private async Task<ControlAnswer> AskAsync(ControlVerb verb, ControlRequest request)
    {
        if (!verb.EndsWithClient)
            return await verb.AnswerAsync(request, server.Aborting).ConfigureAwait(false);
        using CancellationTokenSource over = CancellationTokenSource.CreateLinkedTokenSource(server.Aborting);
        Task watch = WatchAsync(over);
        try
        {
            return await verb.AnswerAsync(request, over.Token).ConfigureAwait(false);
        }
        finally
        {
            await over.CancelAsync().ConfigureAwait(false);
            await watch.ConfigureAwait(false);
        }
    }

    // Cancels when the client has gone. One that has only closed its sending side still waits for the answer, so reading does not tell.
    private async Task WatchAsync(CancellationTokenSource over)
    {
        using PeriodicTimer timer = new(s_watchInterval);
        try
        {
            while (await timer.WaitForNextTickAsync(over.Token).ConfigureAwait(false))
            {
                // Nothing is sent, but there must be somebody to send it to (EPIPE).
                socket.Send(ReadOnlySpan<byte>.Empty);
            }
        }
        catch (OperationCanceledException)
        {
            // There is an answer.
        }
        catch (Exception e) when (e is SocketException or ObjectDisposedException)
        {
            await over.CancelAsync().ConfigureAwait(false);
        }
    }

    private static (long? Id, string Verb, JsonElement Arguments) Envelope(JsonElement root, ref long? id)
    {
        if (root.ValueKind != JsonValueKind.Object)
            throw new ControlException(ControlErrorKind.Usage, "a request is one line with one JSON object, such as {\"verb\":\"show\"}");
        string? verb = null;
        JsonElement arguments = default;
        // The number first, so that complaints about the rest carry it.
        if (root.TryGetProperty("id", out JsonElement number))
        {
            id = number.ValueKind == JsonValueKind.Number && number.TryGetInt64(out long value)
                ? value
                : throw new ControlException(ControlErrorKind.Usage, "'id' is a whole number of at most 64 bits, or absent");
        }
        foreach (JsonProperty property in root.EnumerateObject())
        {
            if (property.NameEquals("verb"u8) && property.Value.ValueKind == JsonValueKind.String)
                verb = Text(property.Value);
            else if (property.NameEquals("arguments"u8) && property.Value.ValueKind == JsonValueKind.Object)
                arguments = property.Value;
            else if (!property.NameEquals("id"u8))
                throw new ControlException(ControlErrorKind.Usage, "a request has 'verb' (text), and may have 'id' (a whole number) and 'arguments' (an object); there is something else in it");
        }
        return (id, verb ?? throw new ControlException(ControlErrorKind.Usage, "a request says what it wants in 'verb', such as {\"verb\":\"show\"}"), arguments);
    }

    private static string Text(JsonElement value)
    {
        try
        {
            return value.GetString()!;
        }
        catch (InvalidOperationException e)
        {
            throw new ControlException(ControlErrorKind.Usage, "the text in 'verb' is not UTF-8", e);
        }
    }

    private static ReadOnlyMemory<byte> Answer(long? id, ControlAnswer answer)
    {
        ArrayBufferWriter<byte> buffer = new();
        using (Utf8JsonWriter json = new(buffer, s_compact))
        {
            json.WriteStartObject();
            if (id is { } number)
                json.WriteNumber("id", number);
            json.WriteBoolean("ok", true);
            json.WritePropertyName("result");
            answer.Write(json);
            json.WriteEndObject();
        }
        return buffer.WrittenCount > ControlProtocol.LongestAnswer
            ? Error(id, ControlErrorKind.Refused, $"the answer has {buffer.WrittenCount} bytes, more than {ControlProtocol.LongestAnswer}; ask for less")
            : End(buffer);
    }

    private static ReadOnlyMemory<byte> Error(long? id, ControlErrorKind kind, string message) =>
        Line(new ErrorLine(id, false, new ErrorBody(ControlException.NameOf(kind), message.ReplaceLineEndings(" "))), LineJson.Default.ErrorLine);

    private static ReadOnlyMemory<byte> Line<T>(T value, JsonTypeInfo<T> type)
    {
        ArrayBufferWriter<byte> buffer = new();
        using (Utf8JsonWriter json = new(buffer, s_compact))
            JsonSerializer.Serialize(json, value, type);
        return End(buffer);
    }

    private static ReadOnlyMemory<byte> End(ArrayBufferWriter<byte> buffer)
    {
        buffer.Write("\n"u8);
        return buffer.WrittenMemory;
    }

    private async Task SendAsync(ReadOnlyMemory<byte> bytes)
    {
        using CancellationTokenSource limit = CancellationTokenSource.CreateLinkedTokenSource(server.Aborting);
        limit.CancelAfter(s_patience);
        await SendAllAsync(bytes, limit.Token).ConfigureAwait(false);
    }

    private async Task SendAllAsync(ReadOnlyMemory<byte> bytes, CancellationToken cancellation)
    {
        while (!bytes.IsEmpty)
            bytes = bytes[await socket.SendAsync(bytes, SocketFlags.None, cancellation).ConfigureAwait(false)..];
    }

    private async Task SendLastAsync(ReadOnlyMemory<byte> bytes)
    {
        try
        {
            await SendAsync(bytes).ConfigureAwait(false);
        }
        catch (Exception e) when (e is SocketException or OperationCanceledException or ObjectDisposedException)
        {
            // Nobody is there to be told.
        }
    }
}
