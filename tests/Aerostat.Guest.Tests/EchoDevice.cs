using Aerostat.HyperV;

namespace Aerostat.Guest.Tests;

/// <summary>A device behind a channel whose other end is a test: it keeps what comes, or sends it back.</summary>
internal sealed class EchoDevice(Guid type, bool echoes = false) : VmBusDevice
{
    private readonly Queue<byte[]> waiting = [];
    private readonly List<byte[]> received = [];

    public override string Name => "echo";

    public override ChannelOffer Offer { get; } = new(type, Guid.NewGuid());

    public bool IsReady => IsOpen;

    protected internal override void Received(ulong transaction, ReadOnlySpan<byte> payload)
    {
        if (!echoes)
        {
            received.Add(payload.ToArray());
            return;
        }
        waiting.Enqueue(payload.ToArray());
        SendWaiting();
    }

    /// <summary>Sends what had no room; on the bus's thread.</summary>
    public bool SendWaiting()
    {
        while (waiting.TryPeek(out byte[]? next) && Send(next, 7))
            waiting.Dequeue();
        return waiting.Count == 0;
    }

    /// <summary>Sends a packet; what came back.</summary>
    public IReadOnlyList<byte[]> Exchange(VmbusGuest guest, byte[] packet)
    {
        received.Clear();
        guest.Server.Post(() => Send(packet, 7));
        guest.Run(8);
        return [.. received];
    }
}
