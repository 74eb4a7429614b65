using System.Globalization;
using Xunit;

namespace Aerostat.Guest.Tests;

/// <summary>The guest's drivers against the host's devices in many orders of events: see <see cref="BalloonWorld"/> for what has to hold in each of them.</summary>
public sealed class InterleavingTests
{
    private static int Tail => Environment.GetEnvironmentVariable("AEROSTAT_INTERLEAVINGS") is { } many ? int.Parse(many, CultureInfo.InvariantCulture) : 100;

    private static int Seed => Environment.GetEnvironmentVariable("AEROSTAT_SEED") is { } seed ? int.Parse(seed, CultureInfo.InvariantCulture) : 1;

    /// <summary>Dialect, what the host wants, reporting.</summary>
    public static TheoryData<string, string, bool> Walks => new()
    {
        { "virtio", "5 2 6 0", false },
        { "virtio", "4 reset 3 0", false },
        { "virtio", "3 statistics 0", true },
        { "virtio", "hints done hints done 0", false },
        { "virtio", "hints 3 enough hints done 0", true },
        { "virtio", "hints reset hints done 0", true },
        { "2018", "hints done hints done 0", false },
        { "2018", "hints enough hints enough 0", false },
        { "2018", "hints 3 enough hints enough 0", true },
        { "2018", "hints reset hints enough 0", false },
        { "vmware", "5 2 6 0", false },
        { "vmware", "4 reset 3 reset 0", false },
        { "vmware batched", "5 2 6 0", false },
        { "vmware batched", "4 reset 3 reset 0", false },
    };

    /// <summary>Something that is taken for done too early: pages that come back, a report, a reset.</summary>
    public static TheoryData<string, string, bool, int> Faults => new()
    {
        { "virtio", "5 2 6 0", false, 1 },
        { "virtio", "3 statistics 0", true, 4 },
        { "virtio", "4 reset 3 0", false, EarlyTransport.Resets },
    };

    [Theory]
    [MemberData(nameof(Walks))]
    public void NoPageIsLostInAnyOrder(string dialect, string wishes, bool reporting)
    {
        int hints = 0;
        ulong resets = 0;
        Exploration all = Exploration.Of(scheduler =>
        {
            BalloonWorld world = new(scheduler, dialect, wishes.Split(' '), reporting);
            return new Closing(() =>
            {
                hints += world.Hints;
                resets += world.Resets;
                world.Dispose();
            });
        }, Tail, Seed);
        TestContext.Current.TestOutputHelper?.WriteLine($"{all.Runs} orders, {all.Places} places, {hints} hints, {resets} resets");
        Assert.True(all.Violation is null, all.Violation);
        Assert.InRange(all.Runs, Tail + all.Places / 2, int.MaxValue);
        Assert.Equal(wishes.Contains("hints", StringComparison.Ordinal), hints > 0);
        Assert.Equal(wishes.Contains("reset", StringComparison.Ordinal), resets > 0);
    }

    [Theory]
    [MemberData(nameof(Faults))]
    public void EveryFaultIsFound(string dialect, string wishes, bool reporting, int early)
    {
        Exploration all = Exploration.Of(scheduler => new BalloonWorld(scheduler, dialect, wishes.Split(' '), reporting, early), Tail, Seed);
        TestContext.Current.TestOutputHelper?.WriteLine($"after {all.Runs} orders: {all.Violation}");
        Assert.NotNull(all.Violation);
    }

    private sealed class Closing(Action close) : IDisposable
    {
        public void Dispose() => close();
    }
}
