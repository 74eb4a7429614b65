using System.Text.Json;
using Aerostat.Machine;
using Xunit;

namespace Aerostat.Control.Tests;

/// <summary>The tree of every device's state.</summary>
public sealed class InspectTests : IDisposable
{
    private readonly Folder folder = new();

    public void Dispose() => folder.Dispose();

    private static string Line(string path) => $"{{\"verb\":\"inspect\",\"arguments\":{{\"path\":\"{path}\"}}}}";

    [Fact]
    public async Task EveryDeviceIsInTheTree()
    {
        await using ControlledGuest guest = await ControlledGuest.StartAsync(folder);
        using RawClient client = await RawClient.OpenAsync(guest.Endpoint);
        JsonElement tree = (await client.AskAsync("{\"verb\":\"inspect\"}")).GetProperty("result");
        foreach (string device in (string[])["vcpu0", "pic", "ioapic", "pit", "hpet", "rtc", "serial0", "acpi-pm", "i8042", "pci-host-bridge"])
            Assert.Equal(JsonValueKind.Object, tree.GetProperty(device).ValueKind);
        Assert.Equal(MachineState.Running, guest.Machine.State);
        await guest.MakesProgressAsync();
        // Nobody asked for a pause.
        Assert.Equal(["started"], guest.Machine.Journal.Read(0).Select(e => e.Kind));
    }

    [Fact]
    public async Task APathLeadsIntoIt()
    {
        await using ControlledGuest guest = await ControlledGuest.StartAsync(folder);
        using RawClient client = await RawClient.OpenAsync(guest.Endpoint);
        await guest.Machine.PauseAsync();
        JsonElement tree = (await client.AskAsync("{\"verb\":\"inspect\"}")).GetProperty("result");
        JsonElement rip = (await client.AskAsync(Line("/vcpu0/processor/rip"))).GetProperty("result");
        Assert.Equal(0x7C00UL, rip.GetUInt64());
        JsonElement cs = (await client.AskAsync(Line("/vcpu0/processor/segments/1"))).GetProperty("result");
        Assert.Equal(tree.GetProperty("vcpu0").GetProperty("processor").GetProperty("segments")[1].GetRawText(), cs.GetRawText());
        Assert.Equal(MachineState.Paused, guest.Machine.State);
    }

    [Theory]
    [InlineData("pit", "begins with a slash")]
    [InlineData("/nothing", "there is no 'nothing'; there are vcpu0, ")]
    [InlineData("/pit/nothing", "there is no 'nothing' in /pit; there are ")]
    [InlineData("/vcpu0/processor/rip/x", "/vcpu0/processor/rip is a value")]
    [InlineData("/vcpu0/processor/segments/99", "has elements 0 to 5")]
    [InlineData("/vcpu0/processor/segments/-1", "has elements 0 to 5")]
    [InlineData("/", "there is no ''")]
    public async Task APathThatLeadsNowhereIsSaid(string path, string expected)
    {
        await using ControlledGuest guest = await ControlledGuest.StartAsync(folder);
        using RawClient client = await RawClient.OpenAsync(guest.Endpoint);
        JsonElement error = (await client.AskAsync(Line(path))).GetProperty("error");
        Assert.Equal("usage", error.GetProperty("kind").GetString());
        Assert.Contains(expected, error.GetProperty("message").GetString(), StringComparison.Ordinal);
    }

    [Fact]
    public async Task AMachineThatIsOverSaysSo()
    {
        await using ControlledGuest guest = await ControlledGuest.StartAsync(folder);
        using RawClient client = await RawClient.OpenAsync(guest.Endpoint);
        await guest.Machine.StopAsync();
        JsonElement error = (await client.AskAsync("{\"verb\":\"inspect\"}")).GetProperty("error");
        Assert.Equal("refused", error.GetProperty("kind").GetString());
    }
}
