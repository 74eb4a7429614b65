using System.Text;
using System.Text.Json;
using Aerostat.Machine;
using Xunit;

namespace Aerostat.Control.Tests;

/// <summary>Clients that do not read, do not write, are too many, or talk nonsense: the machine and the others do not notice.</summary>
public sealed class HostileClientTests : IDisposable
{
    private readonly Folder folder = new();

    private static CancellationToken Token => TestContext.Current.CancellationToken;

    public void Dispose() => folder.Dispose();

    private static async Task<JsonElement> ShowAsync(ControlledGuest guest)
    {
        using RawClient client = await RawClient.OpenAsync(guest.Endpoint);
        return (await client.AskAsync("{\"verb\":\"show\"}")).GetProperty("result");
    }

    /// <summary>Asks and asks and takes no answer, until the host takes no more requests either.</summary>
    private static async Task StuffAsync(RawClient client)
    {
        byte[] requests = Encoding.UTF8.GetBytes(string.Concat(Enumerable.Repeat("{\"verb\":\"show\"}\n", 1000)));
        int full = 0;
        while (full < 20)
        {
            full = client.TrySend(requests) == 0 ? full + 1 : 0;
            await Task.Delay(5, Token);
        }
    }

    [Fact]
    public async Task AClientThatTakesNoAnswerStallsNobody()
    {
        await using ControlledGuest guest = await ControlledGuest.StartAsync(folder);
        using RawClient first = await guest.RawAsync(), second = await guest.RawAsync();
        await StuffAsync(first);
        await StuffAsync(second);
        await guest.MakesProgressAsync();
        Assert.Equal("running", (await ShowAsync(guest)).GetProperty("state").GetString());
        using ControlClient other = await guest.ConnectAsync();
        await other.AskAsync("pause", new NoArguments(), ControlJson.Default.NoArguments, cancellation: Token);
        await other.AskAsync("resume", new NoArguments(), ControlJson.Default.NoArguments, cancellation: Token);
        await guest.MakesProgressAsync();
    }

    /// <summary>The end of the machine does not wait for a client either.</summary>
    [Fact]
    public async Task AClientThatTakesNoAnswerDoesNotHoldUpTheEnd()
    {
        ControlledGuest guest = await ControlledGuest.StartAsync(folder);
        using RawClient stuck = await guest.RawAsync();
        await StuffAsync(stuck);
        await guest.DisposeAsync().AsTask().WaitAsync(ControlledGuest.Limit, Token);
        Assert.Equal(MachineState.Ended, guest.Machine.State);
        Assert.False(File.Exists(guest.Endpoint.Path));
    }

    [Fact]
    public async Task OneClientTooManyTakesThePlaceOfTheOneThatWasSilentLongest()
    {
        await using ControlledGuest guest = await ControlledGuest.StartAsync(folder);
        List<RawClient> clients = [];
        try
        {
            for (int i = 0; i < ControlProtocol.MostClients; i++)
                clients.Add(await RawClient.OpenAsync(guest.Endpoint));
            // The second is now the one that has been silent longest: the clock has milliseconds, so let one pass.
            await Task.Delay(50, Token);
            Assert.True((await clients[0].AskAsync("{\"verb\":\"show\"}")).GetProperty("ok").GetBoolean());
            foreach (RawClient client in clients.Skip(2))
                await client.AskAsync("{\"verb\":\"show\"}");
            clients.Add(await RawClient.OpenAsync(guest.Endpoint));
            Assert.Null(await clients[1].ReadAsync());
            Assert.True((await clients[^1].AskAsync("{\"verb\":\"show\"}")).GetProperty("ok").GetBoolean());
            Assert.True((await clients[0].AskAsync("{\"verb\":\"show\"}")).GetProperty("ok").GetBoolean());
        }
        finally
        {
            clients.ForEach(c => c.Dispose());
        }
    }

    [Fact]
    public async Task WhoIsBeingServedIsNotThrownOut()
    {
        Waits waits = new();
        await using ControlledGuest guest = await ControlledGuest.StartAsync(folder, verbs: [waits]);
        List<RawClient> clients = [];
        try
        {
            for (int i = 0; i < ControlProtocol.MostClients; i++)
            {
                clients.Add(await RawClient.OpenAsync(guest.Endpoint));
                await clients[i].SendAsync("{\"verb\":\"waits\"}\n");
            }
            for (int i = 0; waits.Waiting < clients.Count && i < 6000; i++)
                await Task.Delay(10, Token);
            Assert.Equal(clients.Count, waits.Waiting);
            using RawClient late = await guest.RawAsync();
            JsonElement no = (await late.ReadAsync())!.Value;
            Assert.Equal("refused", no.GetProperty("error").GetProperty("kind").GetString());
            Assert.Null(await late.ReadAsync());
            waits.Go.SetResult();
            foreach (RawClient client in clients)
                Assert.True((await client.ReadAsync())!.Value.GetProperty("ok").GetBoolean());
        }
        finally
        {
            clients.ForEach(c => c.Dispose());
        }
    }

    private sealed class Waits : ControlVerb
    {
        private int waiting;

        public TaskCompletionSource Go { get; } = new(TaskCreationOptions.RunContinuationsAsynchronously);

        public int Waiting => Volatile.Read(ref waiting);

        public override string Name => "waits";

        public override async Task<ControlAnswer> AnswerAsync(ControlRequest request, CancellationToken cancellation)
        {
            Interlocked.Increment(ref waiting);
            await Go.Task.WaitAsync(cancellation);
            return ControlAnswer.Of(json => json.WriteNullValue());
        }
    }

    /// <summary>Whatever is sent, however it is cut: each line gets one line of JSON, and the machine runs on.</summary>
    [Theory]
    [InlineData(1)]
    [InlineData(2)]
    [InlineData(3)]
    [InlineData(4)]
    public async Task NonsenseIsAnsweredAndForgotten(int seed)
    {
        await using ControlledGuest guest = await ControlledGuest.StartAsync(folder);
        RequestGenerator generator = new(seed);
        for (int connection = 0; connection < 40; connection++)
        {
            using RawClient client = await RawClient.OpenAsync(guest.Endpoint);
            byte[] bytes = generator.Next();
            Task sending = SendInPiecesAsync(client, bytes, generator);
            int answers = 0;
            while (await client.ReadAsync() is { } line)
            {
                Assert.True(line.TryGetProperty("ok", out _), $"seed {seed}, connection {connection}: {line}");
                answers++;
            }
            try
            {
                await sending;
            }
            catch (System.Net.Sockets.SocketException)
            {
                // Cut off in the middle of a line that was too long.
                Assert.Contains(bytes, b => b != '\n');
            }
            Assert.True(answers <= RequestGenerator.LinesIn(bytes), $"seed {seed}, connection {connection}: {answers} answers");
        }
        Assert.Equal("running", (await ShowAsync(guest)).GetProperty("state").GetString());
        await guest.MakesProgressAsync();
    }

    private static async Task SendInPiecesAsync(RawClient client, byte[] bytes, RequestGenerator generator)
    {
        foreach (ReadOnlyMemory<byte> piece in generator.Cut(bytes))
            await client.SendAsync(piece);
        client.CloseSending();
    }
}
