using Aerostat.Machine;
using Xunit;

namespace Aerostat.Control.Tests;

/// <summary>The verbs about memory, on a guest without a driver.</summary>
public sealed class MemoryTests : IDisposable
{
    private readonly Folder folder = new();

    private static CancellationToken Token => TestContext.Current.CancellationToken;

    public void Dispose() => folder.Dispose();

    private static Task<BalloonAnswer> Balloon(ControlClient client, ulong? target) =>
        client.AskAsync("balloon", new BalloonArguments(target), ControlJson.Default.BalloonArguments, ControlJson.Default.BalloonAnswer, cancellation: Token);

    private static Task<MemoryAnswer> Memory(ControlClient client) =>
        client.AskAsync("memory", new NoArguments(), ControlJson.Default.NoArguments, ControlJson.Default.MemoryAnswer, cancellation: Token);

    [Fact]
    public async Task TheBalloonSaysWhyItIsNotFull()
    {
        await using ControlledGuest guest = await ControlledGuest.StartAsync(folder, devices: new BalloonOptions());
        using ControlClient client = await guest.ConnectAsync();
        Assert.Equal(new BalloonAnswer("virtio", 0, 0, 0, "reached", "the target is reached", 0), await Balloon(client, null));
        BalloonAnswer answer = await Balloon(client, 1 << 20);
        Assert.Equal((1UL << 20, 0UL, "no-driver"), (answer.Target, answer.Actual, answer.Reason));
        Assert.Equal(answer, await Balloon(client, null));
        ControlException tooMuch = await Assert.ThrowsAsync<ControlException>(() => Balloon(client, 8 << 20));
        Assert.Equal(ControlErrorKind.Usage, tooMuch.Kind);
        Assert.Contains("cannot give 8M", tooMuch.Message, StringComparison.Ordinal);
        MemoryAnswer memory = await Memory(client);
        Assert.Equal(4UL << 20, memory.Total);
        Assert.Equal(memory.Total, memory.Data + memory.Zero + memory.Discarded + memory.Hinted);
        Assert.Equal(answer, memory.Balloon);
        Assert.Null(memory.Guest);
        Assert.Null(memory.GuestAge);
        Assert.Contains(guest.Machine.Journal.Read(0), e => e.Kind == "balloon-target");
    }

    [Fact]
    public async Task WithoutABalloonThatIsSaid()
    {
        await using ControlledGuest guest = await ControlledGuest.StartAsync(folder);
        using ControlClient client = await guest.ConnectAsync();
        ControlException none = await Assert.ThrowsAsync<ControlException>(() => Balloon(client, null));
        Assert.Equal(ControlErrorKind.Refused, none.Kind);
        Assert.Contains("--balloon", none.Message, StringComparison.Ordinal);
        MemoryAnswer memory = await Memory(client);
        Assert.Null(memory.Balloon);
        Assert.InRange(memory.Host, 1UL, memory.Total);
    }
}
