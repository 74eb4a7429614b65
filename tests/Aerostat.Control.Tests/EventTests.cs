using System.Text.Json;
using Aerostat.Machine;
using Xunit;

namespace Aerostat.Control.Tests;

/// <summary>What happened and what happens, as clients hear it.</summary>
public sealed class EventTests : IDisposable
{
    private readonly Folder folder = new();

    private static CancellationToken Token => TestContext.Current.CancellationToken;

    public void Dispose() => folder.Dispose();

    private static Task<EventsAnswer> Ask(ControlClient client, long since, bool follow) =>
        client.AskAsync("events", new EventsArguments(since, follow), ControlJson.Default.EventsArguments, ControlJson.Default.EventsAnswer, cancellation: Token);

    [Fact]
    public async Task AFollowerHearsEverythingUntilTheEnd()
    {
        ControlledGuest guest = await ControlledGuest.StartAsync(folder);
        using ControlClient follower = await guest.ConnectAsync();
        EventsAnswer past = await Ask(follower, 0, follow: true);
        Assert.Equal(["started"], past.Events.Select(e => e.Kind));
        await guest.Machine.PauseAsync();
        await guest.Machine.ResumeAsync();
        await guest.Machine.StopAsync();
        await guest.Server.DisposeAsync();
        List<string> kinds = [];
        await foreach (JsonElement line in follower.FollowAsync(Token))
            kinds.Add(ControlClient.Decode(line, ControlJson.Default.EventLine).Event!.Kind);
        Assert.Equal(["paused", "resumed", "ended"], kinds);
        await guest.DisposeAsync();
    }

    [Fact]
    public async Task TheNextRequestEndsTheStream()
    {
        await using ControlledGuest guest = await ControlledGuest.StartAsync(folder);
        using RawClient client = await RawClient.OpenAsync(guest.Endpoint);
        Assert.True((await client.AskAsync("{\"verb\":\"events\",\"arguments\":{\"follow\":true}}")).GetProperty("ok").GetBoolean());
        Assert.Equal("paused", (await client.AskAsync("{\"verb\":\"pause\",\"id\":1}")).GetProperty("result").GetProperty("state").GetString());
        JsonElement since = await client.AskAsync("{\"verb\":\"events\",\"arguments\":{\"since\":1}}");
        Assert.Equal("paused", Assert.Single(since.GetProperty("result").GetProperty("events").EnumerateArray()).GetProperty("kind").GetString());
        await guest.Machine.ResumeAsync();
        // No event comes any more: the next line is the next answer.
        Assert.Equal(2, (await client.AskAsync("{\"verb\":\"show\",\"id\":2}")).GetProperty("id").GetInt64());
    }

    /// <summary>A follower that does not read costs nothing, and finds out what it has missed.</summary>
    [Fact]
    public async Task ASlowFollowerIsToldHowMuchItMissed()
    {
        const int Count = 20_000;
        await using ControlledGuest guest = await ControlledGuest.StartAsync(folder);
        using RawClient client = await RawClient.OpenAsync(guest.Endpoint);
        Assert.True((await client.AskAsync("{\"verb\":\"events\",\"arguments\":{\"follow\":true}}")).GetProperty("ok").GetBoolean());
        for (int i = 0; i < Count; i++)
            guest.Machine.Journal.Write("test", "an event of some length, so that the host's buffer for the socket is soon full and the stream has to wait");
        await guest.MakesProgressAsync();
        long last = 1, dropped = 0;
        while (last < Count + 1)
        {
            JsonElement line = (await client.ReadAsync())!.Value;
            if (line.TryGetProperty("dropped", out JsonElement number))
            {
                dropped += number.GetInt64();
                last += number.GetInt64();
            }
            else
            {
                Assert.Equal(last + 1, line.GetProperty("event").GetProperty("sequence").GetInt64());
                last++;
            }
        }
        Assert.True(dropped > 0);
    }

    [Fact]
    public async Task WhatTheJournalHasForgottenIsCounted()
    {
        await using ControlledGuest guest = await ControlledGuest.StartAsync(folder);
        for (int i = 0; i < 2000; i++)
            guest.Machine.Journal.Write("test", "x");
        using ControlClient client = await guest.ConnectAsync();
        EventsAnswer answer = await Ask(client, 0, follow: false);
        Assert.Equal((1024, 2001L, 977L), (answer.Events.Count, answer.Last, answer.Dropped));
        answer = await Ask(client, 2001, follow: false);
        Assert.Equal((0, 2001L, 0L), (answer.Events.Count, answer.Last, answer.Dropped));
        foreach (long future in (long[])[1_000_000, long.MaxValue])
        {
            answer = await Ask(client, future, follow: false);
            Assert.Equal((0, 2001L, 0L), (answer.Events.Count, answer.Last, answer.Dropped));
        }
    }
}
