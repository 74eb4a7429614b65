using Aerostat.Guest.Drivers;

namespace Aerostat.Guest.Tests;

/// <summary>A buffer that a driver has put into a queue.</summary>
/// <param name="Head">Its first descriptor.</param>
/// <param name="Parts">Address, length, and whether the device may write, of each part.</param>
internal sealed record OfferedBuffer(ushort Head, IReadOnlyList<(ulong Address, uint Length, bool Writable)> Parts);

/// <summary>A virtio device whose every step a test takes: what it offers, what configuration space says, when it looks at a buffer and when it gives it back.</summary>
internal sealed class ManualHost(HostPlatform platform, ulong offered) : VirtioTransport
{
    private readonly Dictionary<int, (SplitQueue Queue, ushort Taken, ushort Given)> queues = [];
    private uint status;

    public uint Target { get; set; }

    public uint CommandId { get; set; }

    /// <summary>Pages that the driver says it has given.</summary>
    public uint Actual { get; private set; }

    public override string Name => "manual";

    /// <summary>It does not come out of a reset.</summary>
    public bool IsStuck { get; set; }

    /// <summary>It does not accept what the driver wants.</summary>
    public bool Declines { get; set; }

    /// <summary>Queues that it has.</summary>
    public int Queues { get; set; } = 8;

    public override uint Status
    {
        get => IsStuck ? status | Acknowledge : status;
        set => status = Declines ? value & ~FeaturesOk : value;
    }

    public override ulong Offered => offered | Version1;

    public override void Accept(ulong features)
    {
    }

    public override DriverQueue? OpenQueue(int index, int most)
    {
        if (index >= Queues)
            return null;
        if (!queues.TryGetValue(index, out var entry))
            entry.Queue = new SplitQueue(platform, this, index, 64, platform.AllocatePages(0), 0xE000_0000);
        entry.Queue.Clear();
        queues[index] = (entry.Queue, 0, 0);
        return entry.Queue;
    }

    public override uint ReadConfig(int offset) => offset switch { 0 => Target, 4 => Actual, 8 => CommandId, _ => 0 };

    public override void WriteConfig(int offset, uint value)
    {
        if (offset == 4)
            Actual = value;
    }

    /// <summary>Buffers that the driver has put into a queue and that were not taken.</summary>
    public int Waiting(int queue) => (ushort)(platform.Read(queues[queue].Queue.DriverArea + 2, 2) - queues[queue].Taken);

    /// <summary>Takes the next buffer.</summary>
    public OfferedBuffer Take(int queue)
    {
        (SplitQueue ring, ushort taken, ushort given) = queues[queue];
        if (Waiting(queue) == 0)
            throw new InvalidOperationException($"the driver has put nothing into queue {queue}");
        ushort head = (ushort)platform.Read(ring.DriverArea + 4 + (2u * (uint)(taken % ring.Size)), 2);
        queues[queue] = (ring, (ushort)(taken + 1), given);
        List<(ulong, uint, bool)> parts = [];
        for (uint at = head; ;)
        {
            ulong descriptor = ring.Descriptors + (16 * at);
            uint flags = platform.Read(descriptor + 12, 2);
            parts.Add((platform.Read64(descriptor), platform.Read(descriptor + 8, 4), (flags & 2) != 0));
            if ((flags & 1) == 0)
                return new OfferedBuffer(head, parts);
            at = platform.Read(descriptor + 14, 2);
        }
    }

    /// <summary>Gives a buffer back.</summary>
    public void Give(int queue, OfferedBuffer buffer)
    {
        (SplitQueue ring, ushort taken, ushort given) = queues[queue];
        platform.Write(ring.DeviceArea + 4 + (8u * (uint)(given % ring.Size)), 4, buffer.Head);
        platform.Write(ring.DeviceArea + 8 + (8u * (uint)(given % ring.Size)), 4, 0);
        queues[queue] = (ring, taken, ++given);
        platform.Write(ring.DeviceArea + 2, 2, given);
    }
}
