using Aerostat.Guest.Drivers;

namespace Aerostat.Guest.Tests;

/// <summary>A virtio device that keeps to nothing.</summary>
internal sealed class HostileTransport(HostPlatform platform, Random random) : VirtioTransport
{
    private readonly List<SplitQueue> queues = [];
    private uint status;
    private uint target;

    /// <summary>Carries out what a buffer asks for, given its first descriptor; null: buffers only come back.</summary>
    public Action<SplitQueue, uint>? Carry { get; init; }

    public override string Name => "hostile";

    public override uint Status
    {
        get => random.Next(400) == 0 ? NeedsReset : status;
        set => status = value;
    }

    public override ulong Offered => (ulong)random.NextInt64() | BalloonDriver.HostMayRefuse;

    public override void Accept(ulong features)
    {
    }

    public override DriverQueue? OpenQueue(int index, int most)
    {
        if (random.Next(100) == 0)
            return null;
        while (queues.Count <= index)
            queues.Add(new SplitQueue(platform, this, queues.Count, 16, platform.AllocatePages(0), 0xE000_0000));
        queues[index].Clear();
        return queues[index];
    }

    public override uint ReadConfig(int offset) => random.Next(4) == 0 ? (uint)random.Next() : offset == 0 ? target : (uint)random.Next(5);

    public override void WriteConfig(int offset, uint value)
    {
    }

    /// <summary>Takes buffers properly now and then, and otherwise names any.</summary>
    public void Step()
    {
        target = (uint)random.Next(3) * 300;
        foreach (SplitQueue queue in queues)
        {
            if (random.Next(3) == 0)
                continue;
            uint at = platform.Read(queue.DeviceArea + 2, 2), offered = platform.Read(queue.DriverArea + 2, 2);
            if (at == offered && random.Next(60) != 0)
                continue;
            uint head = platform.Read(queue.DriverArea + 4 + (2 * (at % 16)), 2);
            if (random.Next(60) == 0)
                head = (uint)random.Next(random.Next(2) == 0 ? 16 : int.MaxValue);
            else
                Carry?.Invoke(queue, head);
            platform.Write(queue.DeviceArea + 4 + (8 * (at % 16)), 4, head);
            platform.Write(queue.DeviceArea + 8 + (8 * (at % 16)), 4, (uint)random.Next());
            platform.Write(queue.DeviceArea + 2, 2, at + (random.Next(80) == 0 ? (uint)random.Next(65536) : 1));
            // Descriptors are the driver's to write, which does not stop the host.
            for (int i = random.Next(3); i > 0; i--)
                platform.Write(queue.Descriptors + (ulong)random.Next(256), 1, (uint)random.Next(256));
        }
    }
}
