using System.Text.Json;
using Aerostat.Machine;
using Xunit;

namespace Aerostat.Control.Tests;

/// <summary>The figures that <c>show</c> gives over the socket.</summary>
public sealed class ShowTests : IDisposable
{
    private readonly Folder folder = new();

    public void Dispose() => folder.Dispose();

    /// <summary>300 reads of a port, 200 writes, then HLT with interrupts off.</summary>
    private static byte[] Countable =>
    [
        0xB9, 0x2C, 0x01,       // mov cx, 300
        0xE4, 0x64,             // again: in al, 0x64
        0xE2, 0xFC,             // loop again
        0xB9, 0xC8, 0x00,       // mov cx, 200
        0xE6, 0xE0,             // more: out 0xE0, al
        0xE2, 0xFC,             // loop more
        0xFA, 0xF4,             // cli; hlt
        0xEB, 0xFD,
    ];

    private static (long Count, double Seconds) Figures(JsonElement figures, string name) =>
        (figures.GetProperty(name).GetProperty("count").GetInt64(), figures.GetProperty(name).GetProperty("seconds").GetDouble());

    // What show says as soon as its exits are as they are waited for.
    private static async Task<JsonElement> ShowWhenAsync(RawClient client, Func<JsonElement, bool> ready)
    {
        for (int i = 0; i < 6000; i++)
        {
            JsonElement shown = (await client.AskAsync("{\"verb\":\"show\"}")).GetProperty("result");
            if (ready(shown.GetProperty("exits")))
                return shown;
            await Task.Delay(10, TestContext.Current.CancellationToken);
        }
        throw new TimeoutException("the guest did not get there");
    }

    [Fact]
    public async Task ExitsAreCountedByReasonAndTimed()
    {
        await using ControlledGuest guest = await ControlledGuest.StartAsync(folder, Countable);
        using RawClient client = await RawClient.OpenAsync(guest.Endpoint);
        JsonElement shown = await ShowWhenAsync(client, e => Figures(e, "halted").Count > 0);
        JsonElement handled = shown.GetProperty("handled");
        Assert.Equal((300, 200), (Figures(handled, "port-reads").Count, Figures(handled, "port-writes").Count));
        Assert.True(Figures(handled, "port-reads").Seconds > 0 && Figures(handled, "port-writes").Seconds > 0);
        foreach (string other in (string[])["mmio-reads", "mmio-writes", "local-apic-accesses", "msr-reads", "msr-writes", "hypercalls"])
            Assert.Equal((other, (0L, 0.0)), (other, Figures(handled, other)));
        // The sleep counts as time outside once it has ended.
        await guest.Machine.PauseAsync();
        await guest.Machine.ResumeAsync();
        JsonElement later = (await ShowWhenAsync(client, e => Figures(e, "halted").Seconds > 0 && Figures(e, "interrupted").Count > 0)).GetProperty("exits");
        await guest.Machine.PauseAsync();
        foreach (string never in (string[])["shutdown", "failed-entry", "unknown", "internal-error", "debug"])
            Assert.Equal((never, (0L, 0.0)), (never, Figures(later, never)));
        Assert.Equal(MachineState.Paused, guest.Machine.State);
    }
}
