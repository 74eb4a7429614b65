using Aerostat.Control;
using Aerostat.Machine;
using Xunit;

namespace Aerostat.Boot.Tests;

/// <summary>A stock kernel, controlled from outside through the socket.</summary>
public sealed class ControlTests
{
    private static CancellationToken Token => TestContext.Current.CancellationToken;

    // The first line from outside loads the driver of the power button; then whoever reads its events powers off on the first.
    private const string Script = """
        echo BOOTED
        read -r line
        while read -r m; do insmod $m || echo FAILED=$m; done < /etc/modules
        sleep 1
        event=$(grep -l 'Power Button' /sys/class/input/event*/device/name | head -n 1 | cut -d/ -f5)
        exec 3< /dev/input/$event
        echo LISTENING
        dd bs=24 count=1 <&3 > /dev/null 2>&1
        echo PRESSED=1
        """;

    [Fact]
    public async Task AGuestThatIgnoresTheButtonAndThenObeysIt()
    {
        string folder = Directory.CreateTempSubdirectory("ctl-").FullName;
        try
        {
            BootOutcome outcome = await Guest.BootAsync(
                accelerator: "translator", modules: ["button", "evdev"], script: Script,
                companion: (machine, console) => DriveAsync(machine, console, new ControlEndpoint(Path.Combine(folder, "web.sock"), "web")));
            Guest.AssertPoweredOff(outcome);
            Assert.Equal("1", outcome.Value("PRESSED"));
            Assert.DoesNotContain("FAILED=", outcome.Console, StringComparison.Ordinal);
        }
        finally
        {
            Directory.Delete(folder, recursive: true);
        }
    }

    private static async Task DriveAsync(VirtualMachine machine, SerialTranscript console, ControlEndpoint endpoint)
    {
        await using ControlledMachine controlled = new(machine, "0.0");
        await using ControlServer server = new(ControlListener.Open(endpoint), controlled, ControlVerbs.All());
        if (!await console.WaitForAsync("BOOTED", Token))
            return;
        using ControlClient client = await ControlClient.ConnectAsync(endpoint, Token);
        Assert.Equal(new StateAnswer("paused", true), await ChangeAsync(client, "pause"));
        ShowAnswer paused = await ShowAsync(client);
        await Task.Delay(200, Token);
        ShowAnswer later = await ShowAsync(client);
        Assert.Equal((paused.VmSeconds, paused.Instructions), (later.VmSeconds, later.Instructions));
        Assert.Equal(new StateAnswer("running", true), await ChangeAsync(client, "resume"));
        ShowAnswer shown = await ShowAsync(client);
        Assert.Equal(("running", "translator"), (shown.State, shown.Accelerator));
        Assert.True(shown.Instructions > 100_000_000);
        Assert.True(shown.Exits["halted"].Count > 0);
        Assert.True(shown.Memory.GuestAllocatedBytes > 16 << 20);
        Assert.Equal(System.Text.Json.JsonValueKind.Array, (await client.AskAsync("inspect", new InspectArguments("/ioapic/entries"), ControlJson.Default.InspectArguments, cancellation: Token)).ValueKind);

        ControlException ignored = await Assert.ThrowsAsync<ControlException>(() => StopAsync(client, 2));
        Assert.Equal(ControlErrorKind.Timeout, ignored.Kind);
        Assert.Contains("it ignores the power button", ignored.Message, StringComparison.Ordinal);

        await machine.SendSerialAsync("go\n"u8.ToArray(), Token);
        if (!await console.WaitForAsync("LISTENING", Token))
            return;
        StopAnswer stopped = await StopAsync(client, 300);
        Assert.Equal(("powered-off", 0), (stopped.Exit, stopped.Status));
    }

    private static Task<StateAnswer> ChangeAsync(ControlClient client, string verb) =>
        client.AskAsync(verb, new NoArguments(), ControlJson.Default.NoArguments, ControlJson.Default.StateAnswer, cancellation: Token);

    private static Task<ShowAnswer> ShowAsync(ControlClient client) =>
        client.AskAsync("show", new NoArguments(), ControlJson.Default.NoArguments, ControlJson.Default.ShowAnswer, cancellation: Token);

    private static Task<StopAnswer> StopAsync(ControlClient client, double seconds) =>
        client.AskAsync("stop", new StopArguments(false, seconds), ControlJson.Default.StopArguments, ControlJson.Default.StopAnswer, cancellation: Token);
}
