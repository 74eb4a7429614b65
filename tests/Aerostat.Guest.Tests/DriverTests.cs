using Aerostat.Devices;
using Aerostat.Guest.Drivers;
using Aerostat.Memory;
using Aerostat.Virtio;
using Xunit;

namespace Aerostat.Guest.Tests;

/// <summary>The guest's balloon driver in this process, without any processor: on our device model, and on devices that answer nonsense.</summary>
public sealed class DriverTests
{
    private const ulong MiB = 1 << 20;

    private sealed class CollectedHints : IFreePageHints
    {
        private int ended;

        public List<(ulong Address, ulong Length)> Named { get; } = [];

        public bool Ended => Volatile.Read(ref ended) != 0;

        public void Hint(GuestAddress address, ulong length)
        {
            lock (Named)
                Named.Add((address.Value, length));
        }

        public void Finished(bool complete) => Volatile.Write(ref ended, 1);
    }

    // The device has threads of its own.
    private static void Until(BalloonDriver driver, HostPlatform platform, Func<bool> condition)
    {
        for (int i = 0; i < 30_000; i++)
        {
            while (driver.Service())
            {
            }
            if (condition())
                return;
            platform.Pass(TimeSpan.FromMilliseconds(1));
            Thread.Sleep(i < 2000 ? 0 : 1);
        }
        Assert.Fail($"pages {driver.Pages}, target {driver.Target}, lines: {string.Join("; ", platform.Lines)}");
    }

    private static (VirtioBalloon Device, BalloonDriver Driver) Start(HostPlatform platform, BalloonDeviceOptions? options = null, bool hintsOf2018 = false)
    {
        VirtioBalloon device = new("balloon", options ?? new BalloonDeviceOptions(), new VirtioContext(platform.Memory, platform));
        VirtioPciTransport? transport = VirtioPciTransport.Open(platform, platform.Attach(device));
        Assert.NotNull(transport);
        BalloonDriver driver = new(platform, transport, hintsOf2018);
        Assert.Null(driver.Start());
        Assert.True(transport.Interrupts);
        return (device, driver);
    }

    /// <summary>A walk of targets, hint runs, resets by the driver and memory shortage ends with all pages accounted for.</summary>
    [Theory]
    [InlineData(1, false)]
    [InlineData(2, false)]
    [InlineData(3, true)]
    [InlineData(4, true)]
    public void NothingIsLost(int seed, bool hintsOf2018)
    {
        Random random = new(seed);
        using HostPlatform platform = new();
        (VirtioBalloon device, BalloonDriver driver) = Start(platform, new BalloonDeviceOptions { DeflateOnOom = true }, hintsOf2018);
        int own = 0;
        Until(driver, platform, () => driver.ReportingState!.ReportedBytes > 40 * MiB);
        for (int step = 0; step < 60; step++)
        {
            switch (random.Next(5))
            {
                case 0 or 1:
                    device.SetTarget((ulong)random.Next(48) * MiB);
                    break;
                case 2:
                    CollectedHints hints = new();
                    Assert.True(device.TryStartHints(hints));
                    int rounds = random.Next(40);
                    for (int i = 0; i < rounds; i++)
                        driver.Service();
                    device.StopHints(release: true);
                    break;
                case 3:
                    driver.ReleaseForOom();
                    break;
                default:
                    for (int i = random.Next(50); i > 0; i--)
                        driver.Service();
                    break;
            }
        }
        device.SetTarget(0);
        Until(driver, platform, () => driver.IsSettled && driver.HintState!.Held == 0 && device.GetReport().Reason == BalloonReason.Reached);
        // What is left is the driver's own: its page, the hints' page, five queues.
        Until(driver, platform, () => (own = platform.TakenPages) <= 32);
        Assert.True(platform.Interrupts > 0);
        Assert.Equal(0ul, driver.Resets);
        device.Stop();
    }

    /// <summary>Every block that is named is free, in either form, and there are as many as memory has.</summary>
    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void HintsNameFreeBlocksOnly(bool hintsOf2018)
    {
        using HostPlatform platform = new();
        (VirtioBalloon device, BalloonDriver driver) = Start(platform, new BalloonDeviceOptions { Reporting = false }, hintsOf2018);
        device.SetTarget(8 * MiB);
        Until(driver, platform, () => driver.IsSettled);
        CollectedHints hints = new();
        Assert.True(device.TryStartHints(hints));
        Until(driver, platform, () => hints.Ended);
        lock (hints.Named)
        {
            Assert.InRange(hints.Named.Sum(h => (long)h.Length), 32L << 20, 56L << 20);
            Assert.All(hints.Named, h => Assert.Equal(0ul, h.Address % 4096));
        }
        device.StopHints(release: true);
        Until(driver, platform, () => driver.HintState!.Held == 0);
        Assert.Equal(1ul, driver.HintState!.Runs);
        device.Stop();
    }

    /// <summary>A device that writes nonsense into its rings and registers: the driver frees nothing twice, ends no loop late, and says that it gives up.</summary>
    [Fact]
    public void NonsenseFromTheHostIsSurvived()
    {
        int gaveUp = 0, worked = 0;
        for (int seed = 0; seed < 300; seed++)
        {
            Random random = new(seed);
            using HostPlatform platform = new();
            HostileTransport host = new(platform, random);
            BalloonDriver driver = new(platform, host, hintsOf2018: random.Next(2) == 0);
            if (driver.Start() is not null)
                continue;
            for (int step = 0; step < 200; step++)
            {
                host.Step();
                for (int i = 0; i < 4 && driver.Service(); i++)
                {
                }
                if (random.Next(20) == 0)
                    driver.ReleaseForOom();
                platform.Pass(TimeSpan.FromMilliseconds(random.Next(300)));
            }
            if (!driver.IsRunning)
                gaveUp++;
            worked += driver.Pages > 0 || driver.Resets > 0 ? 1 : 0;
        }
        // Both kinds of run are among them.
        Assert.InRange(gaveUp, 20, 299);
        Assert.InRange(worked, 20, 300);
    }
}
