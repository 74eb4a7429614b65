using Aerostat.Debugger;
using Aerostat.Machine;
using Xunit;

namespace Aerostat.Control.Tests;

/// <summary>A machine's life, as a client leads it.</summary>
public sealed class LifecycleTests : IDisposable
{
    private readonly Folder folder = new();

    private static CancellationToken Token => TestContext.Current.CancellationToken;

    public void Dispose() => folder.Dispose();

    private static Task<StateAnswer> Ask(ControlClient client, string verb) =>
        client.AskAsync(verb, new NoArguments(), ControlJson.Default.NoArguments, ControlJson.Default.StateAnswer, cancellation: Token);

    private static Task<StopAnswer> Stop(ControlClient client, double timeout, bool force = false) =>
        client.AskAsync("stop", new StopArguments(force, timeout), ControlJson.Default.StopArguments, ControlJson.Default.StopAnswer, cancellation: Token);

    [Fact]
    public async Task PauseResumeAndReset()
    {
        await using ControlledGuest guest = await ControlledGuest.StartAsync(folder);
        using ControlClient client = await guest.ConnectAsync();
        await guest.MakesProgressAsync();
        Assert.Equal(new StateAnswer("paused", true), await Ask(client, "pause"));
        long before = guest.Machine.GetStatistics().Instructions;
        Assert.Equal(new StateAnswer("paused", false), await Ask(client, "pause"));
        Assert.Equal(before, guest.Machine.GetStatistics().Instructions);
        Assert.Equal(new StateAnswer("paused", true), await Ask(client, "reset"));
        Assert.Equal(new StateAnswer("running", true), await Ask(client, "resume"));
        await guest.MakesProgressAsync();
        Assert.Equal(new StateAnswer("running", true), await Ask(client, "reset"));
        await guest.MakesProgressAsync();
        Assert.Equal(["started", "paused", "reset", "resumed", "reset"], guest.Machine.Journal.Read(0).Select(e => e.Kind));
        Assert.Equal(2, guest.Machine.GetStatistics().Resets);
    }

    [Fact]
    public async Task AGuestThatListensPowersOff()
    {
        await using ControlledGuest guest = await ControlledGuest.StartAsync(folder, ControlledGuest.PowersOffOnButton);
        using ControlClient client = await guest.ConnectAsync();
        StopAnswer answer = await Stop(client, 600);
        Assert.Equal(("powered-off", 0), (answer.Exit, answer.Status));
        Assert.Equal(MachineExitKind.PoweredOff, (await guest.Machine.Exit).Kind);
        ControlException late = await Assert.ThrowsAsync<ControlException>(() => Ask(client, "pause"));
        Assert.Equal(ControlErrorKind.Refused, late.Kind);
    }

    [Theory]
    [InlineData(false, "it ignores the power button")]
    [InlineData(true, "does not act on it")]
    public async Task AGuestThatIgnoresTheButtonIsToldApart(bool acknowledges, string expected)
    {
        await using ControlledGuest guest = await ControlledGuest.StartAsync(folder, acknowledges ? ControlledGuest.AcknowledgesButton : ControlledGuest.Forever);
        using ControlClient client = await guest.ConnectAsync();
        ControlException e = await Assert.ThrowsAsync<ControlException>(() => Stop(client, 0));
        // The guest acknowledges it in its own time.
        for (int i = 0; acknowledges && guest.Machine.PowerButton.Pending && i < 1000; i++)
            await Task.Delay(10, Token);
        e = acknowledges ? await Assert.ThrowsAsync<ControlException>(() => Stop(client, 1)) : e;
        Assert.Equal(ControlErrorKind.Timeout, e.Kind);
        Assert.Contains(expected, e.Message, StringComparison.Ordinal);
        Assert.Contains("--force", e.Message, StringComparison.Ordinal);
        Assert.Equal(MachineState.Running, guest.Machine.State);
        Assert.Equal("stopped", (await Stop(client, 0, force: true)).Exit);
        Assert.Equal(MachineState.Ended, guest.Machine.State);
    }

    [Fact]
    public async Task APausedGuestCannotPowerOff()
    {
        await using ControlledGuest guest = await ControlledGuest.StartAsync(folder, ControlledGuest.PowersOffOnButton);
        using ControlClient client = await guest.ConnectAsync();
        await Ask(client, "pause");
        ControlException e = await Assert.ThrowsAsync<ControlException>(() => Stop(client, 600));
        Assert.Equal(ControlErrorKind.Refused, e.Kind);
        Assert.Equal("stopped", (await Stop(client, 600, force: true)).Exit);
    }

    /// <summary>Each machine answers for itself, and only the one that is meant stops.</summary>
    [Fact]
    public async Task TwoMachinesInOneProcess()
    {
        await using ControlledGuest first = await ControlledGuest.StartAsync(folder, name: "first"), second = await ControlledGuest.StartAsync(folder, name: "second");
        using ControlClient one = await first.ConnectAsync(), two = await second.ConnectAsync();
        Assert.Equal(("first", "second"), (one.Hello.Name, two.Hello.Name));
        await Ask(one, "pause");
        Assert.Equal((MachineState.Paused, MachineState.Running), (first.Machine.State, second.Machine.State));
        await second.MakesProgressAsync();
        await Stop(two, 0, force: true);
        Assert.Equal((MachineState.Paused, MachineState.Ended), (first.Machine.State, second.Machine.State));
        Assert.Equal(new StateAnswer("running", true), await Ask(one, "resume"));
        Assert.Equal(["started", "ended"], second.Machine.Journal.Read(0).Select(e => e.Kind));
        Assert.Equal(["started", "paused", "resumed"], first.Machine.Journal.Read(0).Select(e => e.Kind));
    }

    [Fact]
    public async Task ADebuggerCanAttachLater()
    {
        await using ControlledGuest guest = await ControlledGuest.StartAsync(folder);
        using ControlClient client = await guest.ConnectAsync();
        Task<DebugAnswer> Open(string? where) =>
            client.AskAsync("debug", new DebugArguments(where), ControlJson.Default.DebugArguments, ControlJson.Default.DebugAnswer, cancellation: Token);
        string path = Path.Combine(folder.Path, "gdb.sock");
        Assert.Equal(path, (await Open(path)).Target);
        Assert.Equal(path, (await Open(null)).Target);
        Assert.Equal(path, (await Open(path)).Target);
        Assert.Equal(ControlErrorKind.Refused, (await Assert.ThrowsAsync<ControlException>(() => Open("0"))).Kind);
        using System.Net.Sockets.Socket debugger = new(System.Net.Sockets.AddressFamily.Unix, System.Net.Sockets.SocketType.Stream, System.Net.Sockets.ProtocolType.Unspecified);
        await debugger.ConnectAsync(new System.Net.Sockets.UnixDomainSocketEndPoint(path), Token);
        await debugger.SendAsync("$?#3f"u8.ToArray(), Token);
        byte[] answer = new byte[1];
        Assert.Equal(1, await debugger.ReceiveAsync(answer, Token));
        Assert.Equal((byte)'+', answer[0]);
        Assert.True(guest.Machine.HasDebugger);
    }

    [Fact]
    public async Task LoopbackUnlessToldOtherwise()
    {
        await using ControlledGuest guest = await ControlledGuest.StartAsync(folder);
        DebugEndpoint there = await guest.Controlled.OpenDebugAsync(null);
        Assert.Equal(System.Net.IPAddress.Loopback, Assert.IsType<System.Net.IPEndPoint>(there.Address).Address);
    }
}
