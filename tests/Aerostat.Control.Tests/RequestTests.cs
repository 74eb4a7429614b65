using System.Text.Json;
using Aerostat.Machine;
using Xunit;

namespace Aerostat.Control.Tests;

/// <summary>Requests and their answers, line by line.</summary>
public sealed class RequestTests : IDisposable
{
    private readonly Folder folder = new();

    public void Dispose() => folder.Dispose();

    private static string? ErrorKind(JsonElement answer)
    {
        Assert.False(answer.GetProperty("ok").GetBoolean());
        string message = answer.GetProperty("error").GetProperty("message").GetString()!;
        Assert.DoesNotContain('\n', message);
        return answer.GetProperty("error").GetProperty("kind").GetString();
    }

    [Fact]
    public async Task TheHelloSaysWhoItIsAndWhatItTakes()
    {
        await using ControlledGuest guest = await ControlledGuest.StartAsync(folder);
        using RawClient client = await guest.RawAsync();
        JsonElement hello = (await client.ReadAsync())!.Value.GetProperty("hello");
        Assert.Equal(1, hello.GetProperty("version").GetInt32());
        Assert.Equal("small", hello.GetProperty("name").GetString());
        Assert.Equal(Environment.ProcessId, hello.GetProperty("pid").GetInt32());
        Assert.Equal(ControlVerbs.All().Select(v => v.Name).Order(StringComparer.Ordinal), hello.GetProperty("verbs").EnumerateArray().Select(v => v.GetString()!));
    }

    [Fact]
    public async Task ShowDescribesTheMachine()
    {
        await using ControlledGuest guest = await ControlledGuest.StartAsync(folder);
        await guest.MakesProgressAsync();
        using ControlClient client = await guest.ConnectAsync();
        ShowAnswer shown = await client.AskAsync("show", new NoArguments(), ControlJson.Default.NoArguments, ControlJson.Default.ShowAnswer, cancellation: TestContext.Current.CancellationToken);
        Assert.Equal(("small", "running", "interpreter", "it was asked for"), (shown.Name, shown.State, shown.Accelerator, shown.AcceleratorReason));
        Assert.Equal(4UL << 20, shown.Memory.GuestBytes);
        Assert.True(shown.Memory.MonitorBytes > 0);
        Assert.True(shown.Instructions > 0);
        Assert.Equal("running", Assert.Single(shown.Vcpus).State);
        Assert.Contains("ioapic", shown.Devices);
        Assert.Contains("tlb-flushes", shown.Counters.Keys);
        Assert.Null(shown.Debugger);
    }

    [Fact]
    public async Task AnswersCarryTheNumberOfTheirRequest()
    {
        await using ControlledGuest guest = await ControlledGuest.StartAsync(folder);
        using RawClient client = await RawClient.OpenAsync(guest.Endpoint);
        // Two lines at once, and one in pieces, with spaces and an end as on other systems.
        await client.SendAsync("{\"id\":7,\"verb\":\"pause\"}\n{\"verb\":\"pause\",\"id\":-9223372036854775808}\n\n  \r\n{\"verb\":\"res");
        JsonElement first = (await client.ReadAsync())!.Value, second = (await client.ReadAsync())!.Value;
        Assert.Equal((7, "paused", true), (first.GetProperty("id").GetInt64(), first.GetProperty("result").GetProperty("state").GetString(), first.GetProperty("result").GetProperty("changed").GetBoolean()));
        Assert.Equal((long.MinValue, false), (second.GetProperty("id").GetInt64(), second.GetProperty("result").GetProperty("changed").GetBoolean()));
        JsonElement third = await client.AskAsync("ume\" , \"arguments\" : {} }\r");
        Assert.False(third.TryGetProperty("id", out _));
        Assert.Equal("running", third.GetProperty("result").GetProperty("state").GetString());
        Assert.Equal(MachineState.Running, guest.Machine.State);
    }

    /// <summary>What a script's echo does: it closes its side when it has asked.</summary>
    [Fact]
    public async Task WhoClosesAfterAskingGetsTheAnswer()
    {
        await using ControlledGuest guest = await ControlledGuest.StartAsync(folder);
        using RawClient client = await RawClient.OpenAsync(guest.Endpoint);
        await client.SendAsync("{\"verb\":\"show\"}\n{\"verb\":\"events\",\"arguments\":{\"follow\":true}}");
        client.CloseSending();
        Assert.True((await client.ReadAsync())!.Value.GetProperty("ok").GetBoolean());
        Assert.True((await client.ReadAsync())!.Value.GetProperty("ok").GetBoolean());
        Assert.Null(await client.ReadAsync());
    }

    [Theory]
    [InlineData("")]
    [InlineData("\n")]
    [InlineData("{\"verb\":\"pause\"}\n")]
    [InlineData("{\"verb\":\"pause\"}")]
    public async Task WhoClosesIsLetGo(string said)
    {
        await using ControlledGuest guest = await ControlledGuest.StartAsync(folder);
        using RawClient client = await RawClient.OpenAsync(guest.Endpoint);
        await client.SendAsync(said);
        client.CloseSending();
        if (said.Length > 1)
            Assert.True((await client.ReadAsync())!.Value.GetProperty("ok").GetBoolean());
        Assert.Null(await client.ReadAsync());
    }

    [Theory]
    [InlineData("show", "usage")]
    [InlineData("[]", "usage")]
    [InlineData("null", "usage")]
    [InlineData("{}", "usage")]
    [InlineData("{\"verb\":1}", "usage")]
    [InlineData("{\"verb\":\"fly\"}", "usage")]
    [InlineData("{\"verb\":\"show\",\"id\":\"x\"}", "usage")]
    [InlineData("{\"verb\":\"show\",\"id\":1.5}", "usage")]
    [InlineData("{\"verb\":\"show\",\"verb\":\"pause\"}", "usage")]
    [InlineData("{\"verb\":\"show\",\"more\":1}", "usage")]
    [InlineData("{\"verb\":\"show\",\"arguments\":[]}", "usage")]
    [InlineData("{\"verb\":\"show\",\"arguments\":{\"x\":1}}", "usage")]
    [InlineData("{\"verb\":\"stop\",\"arguments\":{\"timeout\":\"x\"}}", "usage")]
    [InlineData("{\"verb\":\"stop\",\"arguments\":{\"timeout\":-1}}", "usage")]
    [InlineData("{\"verb\":\"stop\",\"arguments\":{\"timeout\":1e400}}", "usage")]
    [InlineData("{\"verb\":\"stop\",\"arguments\":{\"force\":1}}", "usage")]
    [InlineData("{\"verb\":\"events\",\"arguments\":{\"since\":-1}}", "usage")]
    [InlineData("{\"verb\":\"debug\",\"arguments\":{\"endpoint\":\"70000\"}}", "usage")]
    [InlineData("{\"verb\":\"\\ud800\"}", "usage")]
    [InlineData("{\"verb\":\"show\"", "usage")]
    public async Task WhatIsWrongIsSaidAndTheConnectionGoesOn(string line, string kind)
    {
        await using ControlledGuest guest = await ControlledGuest.StartAsync(folder);
        using RawClient client = await RawClient.OpenAsync(guest.Endpoint);
        Assert.Equal(kind, ErrorKind(await client.AskAsync(line)));
        Assert.True((await client.AskAsync("{\"verb\":\"show\"}")).GetProperty("ok").GetBoolean());
        Assert.Equal(MachineState.Running, guest.Machine.State);
    }

    [Fact]
    public async Task AnErrorCarriesTheNumberToo()
    {
        await using ControlledGuest guest = await ControlledGuest.StartAsync(folder);
        using RawClient client = await RawClient.OpenAsync(guest.Endpoint);
        JsonElement answer = await client.AskAsync("{\"verb\":\"fly\",\"id\":12}");
        Assert.Equal(12, answer.GetProperty("id").GetInt64());
        Assert.Contains("there is no verb 'fly'", answer.GetProperty("error").GetProperty("message").GetString(), StringComparison.Ordinal);
    }

    [Fact]
    public async Task ALineThatIsTooLongEndsTheConnectionWithAWord()
    {
        await using ControlledGuest guest = await ControlledGuest.StartAsync(folder);
        using RawClient client = await RawClient.OpenAsync(guest.Endpoint);
        // Exactly as long as may be.
        string longest = "{\"verb\":\"show\"" + new string(' ', ControlProtocol.LongestRequest - 15) + "}";
        Assert.True((await client.AskAsync(longest)).GetProperty("ok").GetBoolean());
        await client.SendAsync(new string(' ', ControlProtocol.LongestRequest + 1));
        Assert.Equal("usage", ErrorKind((await client.ReadAsync())!.Value));
        Assert.Null(await client.ReadAsync());
        await guest.MakesProgressAsync();
    }

    [Fact]
    public async Task ADebuggerDecidesAlone()
    {
        await using ControlledGuest guest = await ControlledGuest.StartAsync(folder);
        using RawClient client = await RawClient.OpenAsync(guest.Endpoint);
        MachineDebugger debugger = guest.Machine.AttachDebugger();
        Assert.Equal("refused", ErrorKind(await client.AskAsync("{\"verb\":\"pause\"}")));
        await debugger.DetachAsync();
        Assert.Equal("paused", (await client.AskAsync("{\"verb\":\"pause\"}")).GetProperty("result").GetProperty("state").GetString());
    }

    /// <summary>A verb of somebody else's is one class and a place in the table; one that fails is an error of its own.</summary>
    [Fact]
    public async Task VerbsCanBeAdded()
    {
        await using ControlledGuest guest = await ControlledGuest.StartAsync(folder, verbs: [.. ControlVerbs.All(), new Writes(), new Throws()]);
        using RawClient client = await RawClient.OpenAsync(guest.Endpoint);
        Assert.Equal("small", (await client.AskAsync("{\"verb\":\"writes\"}")).GetProperty("result").GetString());
        JsonElement failed = await client.AskAsync("{\"verb\":\"throws\"}");
        Assert.Equal("failed", ErrorKind(failed));
        Assert.Contains("DivideByZero", failed.GetProperty("error").GetProperty("message").GetString(), StringComparison.Ordinal);
        await guest.MakesProgressAsync();
    }

    private sealed class Writes : ControlVerb
    {
        public override string Name => "writes";

        public override Task<ControlAnswer> AnswerAsync(ControlRequest request, CancellationToken cancellation)
        {
            string name = request.Machine.Machine.Options.Name;
            return Task.FromResult(ControlAnswer.Of(json => json.WriteStringValue(name)));
        }
    }

    private sealed class Throws : ControlVerb
    {
        public override string Name => "throws";

        public override Task<ControlAnswer> AnswerAsync(ControlRequest request, CancellationToken cancellation) => throw new DivideByZeroException();
    }
}
