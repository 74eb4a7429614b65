using Aerostat.Guest.Drivers;
using Aerostat.Memory;
using Xunit;

namespace Aerostat.Guest.Tests;

/// <summary>The driver of block devices on hosts that do not answer as they should: what is wrong is told, and nothing waits for ever.</summary>
public sealed class BlockDriverTests
{
    private const byte Good = 0, NotDone = 1;

    // Started, with a host that does something each time the driver waits: five milliseconds later.
    private static (ManualHost Host, VirtioBlockDriver Driver, ulong Page) Start(HostPlatform platform, Action<ManualHost>? answer = null, int queues = 1)
    {
        ManualHost host = new(platform, offered: 1 << 9) { Target = 64, Queues = queues };
        VirtioBlockDriver driver = new(platform, host);
        Assert.Null(driver.Start());
        platform.Waiting = () =>
        {
            platform.Pass(TimeSpan.FromMilliseconds(5));
            answer?.Invoke(host);
        };
        return (host, driver, platform.AllocatePages(0));
    }

    // Carries out all that waits, or says that it was not done.
    private static void Answer(HostPlatform platform, ManualHost host, byte answer)
    {
        while (host.Waiting(0) > 0)
        {
            OfferedBuffer buffer = host.Take(0);
            (ulong address, uint length, bool writable) = buffer.Parts[^1];
            Assert.Equal((1u, true), (length, writable));
            platform.Write(address, 1, answer);
            host.Give(0, buffer);
        }
    }

    private static void AssertGivenUp(HostPlatform platform, ManualHost host, VirtioBlockDriver driver, ulong page, params string[] lines)
    {
        Assert.False(driver.IsRunning);
        Assert.Equal(0ul, driver.Blocks);
        Assert.NotEqual(0u, host.Status & VirtioTransport.Failed);
        Assert.Equal(lines, platform.Lines);
        // What comes after is refused at once, and said no more.
        platform.Waiting = () => Assert.Fail("the driver waits for a device that it has given up");
        Assert.False(driver.Read(0, page));
        Assert.False(driver.Write(0, page));
        Assert.False(driver.Flush());
        Assert.Equal(lines, platform.Lines);
    }

    /// <summary>What a device lacks is said, and the driver leaves it alone.</summary>
    [Fact]
    public void ADeviceThatCannotBeUsedIsToldOf()
    {
        using HostPlatform platform = new();
        Assert.Equal("the device does not come out of reset", new VirtioBlockDriver(platform, new ManualHost(platform, 0) { IsStuck = true }).Start());
        Assert.Equal("the device does not accept our features", new VirtioBlockDriver(platform, new ManualHost(platform, 0) { Declines = true }).Start());
        VirtioBlockDriver none = new(platform, new ManualHost(platform, 0) { Queues = 0 });
        Assert.Equal("the device lacks a queue", none.Start());
        Assert.False(none.Read(0, platform.AllocatePages(0)));
        Assert.False(none.Flush());
    }

    /// <summary>A buffer that the driver has not given: the device is given up, which is said.</summary>
    [Theory]
    [InlineData(60000)]
    [InlineData(5)]
    public void GarbageIsToldOf(int head)
    {
        using HostPlatform platform = new();
        (ManualHost host, VirtioBlockDriver driver, ulong page) = Start(platform, host => host.Give(0, new OfferedBuffer((ushort)head, [])));
        Assert.False(driver.Read(3, page));
        AssertGivenUp(platform, host, driver, page, "virtio: the device answered garbage on queue 0", "disk: given up, for the device answers garbage");
    }

    /// <summary>A device that answers nothing: the driver waits ten seconds of its own time, and no longer.</summary>
    [Fact]
    public void SilenceIsToldOf()
    {
        using HostPlatform platform = new();
        (ManualHost host, VirtioBlockDriver driver, ulong page) = Start(platform);
        ulong begun = platform.Nanoseconds;
        Assert.False(driver.Read(3, page));
        Assert.InRange(platform.Nanoseconds - begun, 10_000_000_000ul, 10_100_000_000ul);
        AssertGivenUp(platform, host, driver, page, "disk: given up, for the device does not answer");
    }

    /// <summary>A device that wants to be reset in the midst of a request.</summary>
    [Fact]
    public void AResetIsToldOf()
    {
        using HostPlatform platform = new();
        (ManualHost host, VirtioBlockDriver driver, ulong page) = Start(platform, host => host.Status |= VirtioTransport.NeedsReset);
        Assert.False(driver.Read(3, page));
        AssertGivenUp(platform, host, driver, page, "disk: given up, for the device wants a reset");
    }

    /// <summary>What the device does not carry out is counted and told once, of a write when it is flushed; the device is used further.</summary>
    [Fact]
    public void ARefusedRequestIsTold()
    {
        using HostPlatform platform = new();
        byte answer = NotDone;
        (ManualHost host, VirtioBlockDriver driver, ulong page) = Start(platform, host => Answer(platform, host, answer));
        Assert.Equal(64ul / 8, driver.Blocks);
        Assert.False(driver.Read(3, page));
        Assert.Equal((1ul, 1ul), (driver.Reads, driver.Errors));
        Assert.True(driver.Write(3, page));
        Assert.False(driver.Flush());
        Assert.Equal(2ul, driver.Errors);
        answer = Good;
        Assert.True(driver.Write(4, page));
        Assert.True(driver.Flush());
        Assert.True(driver.Read(4, page));
        Assert.Equal((true, 2ul), (driver.IsRunning, driver.Errors));
        Assert.Empty(platform.Lines);
        Assert.Equal(0u, host.Status & VirtioTransport.Failed);
    }

    /// <summary>A device that writes nonsense into its ring and registers, below a file system: every call comes back, and the driver touches no memory but its own.</summary>
    [Fact]
    public void NonsenseFromTheHostIsSurvived()
    {
        int gaveUp = 0, worked = 0;
        for (int seed = 0; seed < 200; seed++)
        {
            Random random = new(seed);
            using HostPlatform platform = new();
            HostileTransport host = new(platform, random) { Carry = (queue, head) => AnswerLast(platform, queue, head, random) };
            platform.Waiting = () =>
            {
                platform.Pass(TimeSpan.FromMilliseconds(random.Next(100)));
                host.Step();
            };
            VirtioBlockDriver driver = new(platform, host);
            if (driver.Start() is not null)
                continue;
            ulong page = platform.AllocatePages(0);
            for (int step = 0; step < 40; step++)
            {
                ulong errors = driver.Errors;
                bool done = random.Next(3) switch
                {
                    0 => driver.Read((ulong)random.NextInt64(), page),
                    1 => driver.Write((ulong)random.NextInt64(), page),
                    _ => driver.Flush(),
                };
                worked += done ? 1 : 0;
                // A read or flush that was done leaves nothing unsaid.
                Assert.True(driver.IsRunning || !done);
            }
            gaveUp += driver.IsRunning ? 0 : 1;
            Assert.NotEqual(FileSystemError.None, new FileSystem(platform).Mount(driver, forReading: true));
        }
        // Both kinds of run are among them.
        Assert.InRange(gaveUp, 20, 199);
        Assert.InRange(worked, 20, 200 * 40);
    }

    // The last part of a chain is the answer; where the host has spoilt the chain, it may lie anywhere.
    private static void AnswerLast(HostPlatform platform, SplitQueue queue, uint head, Random random)
    {
        uint at = head % (uint)queue.Size;
        for (int i = 0; i < queue.Size && (platform.Read(queue.Descriptors + (16 * at) + 12, 2) & 1) != 0; i++)
            at = platform.Read(queue.Descriptors + (16 * at) + 14, 2) % (uint)queue.Size;
        platform.Memory.TryWrite(new GuestAddress(platform.Read64(queue.Descriptors + (16 * at))), [random.Next(8) == 0 ? (byte)random.Next(256) : Good]);
    }
}
