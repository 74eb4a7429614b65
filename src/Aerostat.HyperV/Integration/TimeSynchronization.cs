using System.Buffers.Binary;

namespace Aerostat.HyperV;

/// <summary>
/// Time synchronization: the time of day and the reference time at which it was, once as a command to set the clock by it, then every five seconds of VM
/// time as a sample; again as a command after the machine has stood still.
/// </summary>
/// <param name="host">The time of day.</param>
public sealed class TimeSynchronization(TimeProvider host) : IntegrationComponent
{
    private const int BodySize = 24, OldBodySize = 25;
    private const byte Set = 1, Sample = 2;
    private static readonly TimeSpan s_interval = TimeSpan.FromSeconds(5);
    private static readonly ComponentVersion s_new = new(4, 0);
    private IDisposable? timer;

    /// <inheritdoc/>
    public override string Name => "timesync";

    /// <inheritdoc/>
    public override ChannelOffer Offer { get; } = new(new("9527e630-d0ae-497b-adce-e80ab0175caf"), new("2dd1ce17-079e-403c-b352-a1921ee207ee"));

    private protected override ushort MessageType => 4;

    private protected override IReadOnlyList<ComponentVersion> MessageVersions { get; } = [new(1, 0), new(3, 0), s_new];

    private protected override void Ready() => Tell(Set);

    private protected override void Lost()
    {
        timer?.Dispose();
        timer = null;
    }

    private protected override void Answered(byte number, uint status, ReadOnlySpan<byte> body)
    {
    }

    private void Tell(byte flags)
    {
        timer?.Dispose();
        timer = null;
        if (State != ComponentState.Ready)
            return;
        // 100 ns units since 1601.
        ulong now = (ulong)host.GetUtcNow().ToFileTime();
        byte[] body;
        if (Messages == s_new)
        {
            body = new byte[BodySize];
            BinaryPrimitives.WriteUInt64LittleEndian(body, now);
            BinaryPrimitives.WriteUInt64LittleEndian(body.AsSpan(8), Bus.ReferenceTime);
            body[16] = flags;
        }
        else
        {
            body = new byte[OldBodySize];
            BinaryPrimitives.WriteUInt64LittleEndian(body, now);
            body[24] = flags;
        }
        Request(body);
        timer = Bus.After(s_interval, () => Tell(Sample));
    }

    /// <inheritdoc/>
    protected internal override void Resumed()
    {
        if (State == ComponentState.Ready)
            Tell(Set);
    }
}
