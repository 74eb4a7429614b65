using Aerostat.Guest.Drivers;
using Xunit;

namespace Aerostat.Guest.Tests;

/// <summary>The balloon's driver against a host whose every step is taken by the test: what it may refuse, and what goes wrong.</summary>
public sealed class BalloonDriverTests
{
    private const int Inflate = 0, Deflate = 1;

    private static void Service(BalloonDriver driver, int times = 10)
    {
        for (int i = 0; i < times; i++)
            driver.Service();
    }

    private static (ManualHost Host, BalloonDriver Driver) Start(HostPlatform platform, ulong features = BalloonDriver.MustTellHost)
    {
        ManualHost host = new(platform, features);
        BalloonDriver driver = new(platform, host);
        Assert.Null(driver.Start());
        return (host, driver);
    }

    // The frames that a buffer names.
    private static ulong[] Frames(HostPlatform platform, OfferedBuffer buffer) =>
        [.. Enumerable.Range(0, (int)buffer.Parts[0].Length / 4).Select(i => (ulong)platform.Read(buffer.Parts[0].Address + (4u * (uint)i), 4))];

    /// <summary>MUST_TELL_HOST (virtio 1.2, 5.5.6.1): a page comes back to the guest when the host has answered, and not before.</summary>
    [Fact]
    public void PagesAreUsedWhenTheHostHasBeenTold()
    {
        using HostPlatform platform = new();
        (ManualHost host, BalloonDriver driver) = Start(platform);
        host.Target = 8;
        Service(driver);
        host.Give(Inflate, host.Take(Inflate));
        Service(driver);
        Assert.Equal(8u, host.Actual);
        host.Target = 0;
        Service(driver);
        OfferedBuffer back = host.Take(Deflate);
        ulong[] frames = Frames(platform, back);
        Assert.Equal(8, frames.Length);
        Service(driver);
        Assert.All(frames, frame => Assert.True(platform.IsTaken(frame)));
        host.Give(Deflate, back);
        Service(driver);
        Assert.All(frames, frame => Assert.False(platform.IsTaken(frame)));
        Assert.True(driver.IsSettled);
        Assert.Equal(0u, host.Actual);
    }

    /// <summary>HOST_MAY_REFUSE: a byte for each page says OK or not. What the host did not take is the guest's own; what it does not give back stays with it.</summary>
    [Fact]
    public void TheHostMayRefusePageByPage()
    {
        using HostPlatform platform = new();
        (ManualHost host, BalloonDriver driver) = Start(platform, BalloonDriver.MustTellHost | BalloonDriver.HostMayRefuse);
        int own = platform.TakenPages;
        host.Target = 8;
        Service(driver);
        OfferedBuffer buffer = host.Take(Inflate);
        ulong[] frames = Frames(platform, buffer);
        Assert.Equal((8u, true), (buffer.Parts[1].Length, buffer.Parts[1].Writable));
        for (uint i = 0; i < 8; i++)
            platform.Write(buffer.Parts[1].Address + i, 1, i % 2 == 0 ? BalloonDriver.PageOk : 0u);
        host.Target = 4;
        host.Give(Inflate, buffer);
        Service(driver);
        Assert.Equal(4u, driver.Pages);
        Assert.Equal(4ul, driver.Refused);
        Assert.Equal(4u, host.Actual);
        Assert.Equal(own + 4, platform.TakenPages);
        Assert.All(frames.Index(), frame => Assert.Equal(frame.Index % 2 == 0, platform.IsTaken(frame.Item)));

        host.Target = 0;
        Service(driver);
        buffer = host.Take(Deflate);
        ulong kept = Frames(platform, buffer)[2];
        for (uint i = 0; i < 4; i++)
            platform.Write(buffer.Parts[1].Address + i, 1, i != 2 ? BalloonDriver.PageOk : 0u);
        host.Give(Deflate, buffer);
        driver.Service();
        Assert.Equal(5ul, driver.Refused);
        Assert.True(platform.IsTaken(kept));
        Assert.Equal(own + 1, platform.TakenPages);
        // It is asked for again.
        Service(driver);
        Assert.Equal([kept], Frames(platform, host.Take(Deflate)));
    }

    /// <summary>A host that wants a reset: its pages are the guest's again, what was under way too, and that is said.</summary>
    [Fact]
    public void AResetIsToldOf()
    {
        using HostPlatform platform = new();
        (ManualHost host, BalloonDriver driver) = Start(platform);
        int own = platform.TakenPages;
        host.Target = 300;
        Service(driver);
        host.Give(Inflate, host.Take(Inflate));
        Service(driver);
        Assert.Equal(own + 300, platform.TakenPages);
        host.Target = 0;
        host.Status |= VirtioTransport.NeedsReset;
        driver.Service();
        Assert.Equal(own, platform.TakenPages);
        Assert.Equal((0u, 1ul, true), (driver.Pages, driver.Resets, driver.IsRunning));
        Assert.Contains("balloon: the host wants a reset; pages taken back: 256", platform.Lines);
    }

    /// <summary>A buffer that the driver has not given: the device is given up, which is said, and its pages are not used.</summary>
    [Fact]
    public void GarbageIsToldOf()
    {
        using HostPlatform platform = new();
        (ManualHost host, BalloonDriver driver) = Start(platform);
        host.Target = 8;
        Service(driver);
        int taken = platform.TakenPages;
        host.Give(Inflate, new OfferedBuffer(60000, []));
        Service(driver);
        Assert.False(driver.IsRunning);
        Assert.NotEqual(0u, host.Status & VirtioTransport.Failed);
        Assert.Equal(["virtio: the device answered garbage on queue 0", "balloon: given up, for the host does not keep to the protocol"], platform.Lines);
        Assert.Equal(taken, platform.TakenPages);
    }

    /// <summary>What a device lacks is said, and the driver leaves it alone.</summary>
    [Fact]
    public void ADeviceThatCannotBeUsedIsToldOf()
    {
        using HostPlatform platform = new();
        Assert.Equal("the device does not come out of reset", new BalloonDriver(platform, new ManualHost(platform, 0) { IsStuck = true }).Start());
        Assert.Equal("the device does not accept our features", new BalloonDriver(platform, new ManualHost(platform, 0) { Declines = true }).Start());
        Assert.Equal("the device lacks a queue", new BalloonDriver(platform, new ManualHost(platform, 0) { Queues = 1 }).Start());
        BalloonDriver none = new(platform, new ManualHost(platform, 0) { Queues = 1 });
        none.Start();
        Assert.False(none.Service());
        Assert.False(none.ReleaseForOom());
    }
}
