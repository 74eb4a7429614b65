using Aerostat.Guest.Drivers;
using Xunit;

namespace Aerostat.Guest.Tests;

/// <summary>Free page hints against a host whose every step is taken by the test: what comes between the steps of a run.</summary>
public sealed class HintDriverTests
{
    private const ulong MiB = 1 << 20, BlockSize = 4 * MiB;

    // Inflate, deflate, hints, reporting: queues are numbered as their features come.
    private const int Hints = 2, Reports = 3;

    private static (ManualHost Host, BalloonDriver Driver) Start(HostPlatform platform, bool hintsOf2018, bool reporting = false)
    {
        ManualHost host = new(platform, BalloonDriver.Hints | (reporting ? BalloonDriver.Reporting : 0));
        BalloonDriver driver = new(platform, host, hintsOf2018);
        Assert.Null(driver.Start());
        return (host, driver);
    }

    private static void Service(BalloonDriver driver, int times = 20)
    {
        for (int i = 0; i < times; i++)
            driver.Service();
    }

    private static uint[] Command(HostPlatform platform, OfferedBuffer buffer, int words)
    {
        (ulong address, uint length, bool writable) = Assert.Single(buffer.Parts);
        Assert.False(writable);
        Assert.Equal(words * 4, (int)length);
        return [.. Enumerable.Range(0, words).Select(i => platform.Read(address + (4u * (uint)i), 4))];
    }

    // Blocks of which both halves are in a report, without the one that becomes the driver's array.
    private static IEnumerable<ulong> WholeBlocks(OfferedBuffer report) =>
        report.Parts.GroupBy(part => part.Address & ~(BlockSize - 1)).Where(g => g.Count() == 2).Select(g => g.Key).Order().Skip(1);

    // What a run names from its start command to its stop command.
    private static HashSet<ulong> TakeRun(HostPlatform platform, ManualHost host, BalloonDriver driver, bool hintsOf2018)
    {
        HashSet<ulong> named = [];
        for (int i = 0; i < 1000; i++)
        {
            Service(driver);
            OfferedBuffer buffer = host.Take(Hints);
            if (buffer.Parts[0].Writable)
            {
                (ulong address, uint length, _) = Assert.Single(buffer.Parts);
                if (!hintsOf2018)
                    Assert.True(named.Add(address));
                for (uint at = 0; hintsOf2018 && at < length; at += 8)
                    Assert.True(named.Add(platform.Read64(address + at)));
            }
            uint id = buffer.Parts[0].Writable ? uint.MaxValue : Command(platform, buffer, hintsOf2018 ? 2 : 1)[0];
            host.Give(Hints, buffer);
            if (id == 0)
                return named;
        }
        throw new InvalidOperationException("the run does not end");
    }

    /// <summary>Blocks that are with the host for a report are part of what a run names: the run waits for them, and no other report begins.</summary>
    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void ARunWaitsForTheReportThatIsUnderWay(bool hintsOf2018)
    {
        using HostPlatform platform = new();
        (ManualHost host, BalloonDriver driver) = Start(platform, hintsOf2018, reporting: true);
        Service(driver);
        OfferedBuffer report = host.Take(Reports);
        Assert.True(report.Parts.Count >= 8);
        host.CommandId = 2;
        Service(driver);
        Assert.Equal(0, host.Waiting(Hints));
        host.Give(Reports, report);
        HashSet<ulong> named = TakeRun(platform, host, driver, hintsOf2018);
        Assert.All(WholeBlocks(report), block => Assert.Contains(block, named));
        Service(driver);
        // The run is over: what was not reported is.
        if (hintsOf2018)
            Assert.Equal(1, host.Waiting(Reports));
        Assert.Equal(1ul, driver.HintState!.Runs);
    }

    /// <summary>A host that leaves a report lying gets its hints all the same, after a second.</summary>
    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void ARunDoesNotWaitForEver(bool hintsOf2018)
    {
        using HostPlatform platform = new();
        (ManualHost host, BalloonDriver driver) = Start(platform, hintsOf2018, reporting: true);
        Service(driver);
        OfferedBuffer report = host.Take(Reports);
        host.CommandId = 2;
        Service(driver);
        platform.Pass(TimeSpan.FromSeconds(2));
        HashSet<ulong> named = TakeRun(platform, host, driver, hintsOf2018);
        Assert.NotEmpty(named);
        Assert.All(WholeBlocks(report), block => Assert.DoesNotContain(block, named));
    }

    /// <summary>A new id ends a run of June 2018 before its array is given; the next run begins when the host has read the old one's commands, which do not change meanwhile.</summary>
    [Fact]
    public void ANewIdEndsARun()
    {
        using HostPlatform platform = new();
        (ManualHost host, BalloonDriver driver) = Start(platform, hintsOf2018: true);
        Service(driver);
        int before = platform.TakenPages;
        host.CommandId = 2;
        Assert.True(driver.Service());
        Assert.Equal(1, host.Waiting(Hints));
        host.CommandId = 3;
        Service(driver);
        Assert.Equal(1ul, driver.HintState!.Aborted);
        OfferedBuffer start = host.Take(Hints), stop = host.Take(Hints);
        Assert.Equal([2u, (uint)BlockSize], Command(platform, start, 2));
        Assert.Equal(0u, Command(platform, stop, 2)[0]);
        // No array came between them, and none is held.
        Assert.Equal(0, host.Waiting(Hints));
        Assert.Equal(before + 1, platform.TakenPages);
        host.Give(Hints, start);
        Service(driver);
        Assert.Equal(0, host.Waiting(Hints));
        host.Give(Hints, stop);
        HashSet<ulong> named = TakeRun(platform, host, driver, hintsOf2018: true);
        Assert.InRange(named.Count, 12, 16);
        Assert.Equal(2ul, driver.HintState.Runs);
        Assert.Equal(1ul, driver.HintState.Aborted);
    }

    /// <summary>In the merged form a new id ends a run among its blocks, which stay with the driver until the host says DONE.</summary>
    [Fact]
    public void ANewIdEndsARunAmongItsBlocks()
    {
        using HostPlatform platform = new();
        (ManualHost host, BalloonDriver driver) = Start(platform, hintsOf2018: false);
        Service(driver);
        host.CommandId = 2;
        Assert.True(driver.Service());
        host.CommandId = 3;
        Service(driver);
        Assert.Equal(1ul, driver.HintState!.Aborted);
        Assert.Empty(TakeRun(platform, host, driver, hintsOf2018: false));
        Assert.NotEmpty(TakeRun(platform, host, driver, hintsOf2018: false));
        Assert.NotEqual(0u, driver.HintState.Held);
        host.CommandId = 1;
        Service(driver);
        Assert.Equal(0u, driver.HintState.Held);
    }

    /// <summary>The array of June 2018 is the driver's until the host has given it back, whatever the host wants meanwhile; then it is free.</summary>
    [Fact]
    public void AnArrayIsFreedWhenTheHostHasReadIt()
    {
        using HostPlatform platform = new();
        (ManualHost host, BalloonDriver driver) = Start(platform, hintsOf2018: true);
        Service(driver);
        int before = platform.TakenPages;
        host.CommandId = 2;
        Service(driver);
        OfferedBuffer start = host.Take(Hints), array = host.Take(Hints), stop = host.Take(Hints);
        Assert.Equal(before + 1 + 1024, platform.TakenPages);
        host.Give(Hints, start);
        host.Give(Hints, stop);
        host.CommandId = 3;
        Service(driver);
        // The next run has to wait for it.
        Assert.Equal(0, host.Waiting(Hints));
        Assert.Equal(1u, driver.HintState!.Held);
        Assert.Equal(before + 1 + 1024, platform.TakenPages);
        host.CommandId = 0;
        host.Give(Hints, array);
        Service(driver);
        Assert.Equal(0u, driver.HintState.Held);
        Assert.Equal(before + 1, platform.TakenPages);
    }
}
