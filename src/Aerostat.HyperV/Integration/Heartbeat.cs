using System.Buffers.Binary;

namespace Aerostat.HyperV;

/// <summary>The heartbeat: every two seconds of VM time a number that the guest answers with the next.</summary>
public sealed class Heartbeat : IntegrationComponent
{
    private const int BodySize = 40;
    private static readonly TimeSpan s_interval = TimeSpan.FromSeconds(2);
    private IDisposable? timer;
    private ulong sequence;
    private byte? waiting;
    private long missed, answered;

    /// <inheritdoc/>
    public override string Name => "heartbeat";

    /// <inheritdoc/>
    public override ChannelOffer Offer { get; } = new(new("57164f39-9115-4e78-ab55-382f3bd5422d"), new("fd149e91-82e0-4a7d-afa6-2a4166cbd7c0"));

    /// <summary>Beats in a row that have not been answered.</summary>
    public long Missed => Volatile.Read(ref missed);

    /// <summary>Beats answered since creation.</summary>
    public long Answers => Volatile.Read(ref answered);

    private protected override ushort MessageType => 1;

    private protected override IReadOnlyList<ComponentVersion> MessageVersions { get; } = [new(1, 0), new(3, 0)];

    private protected override void Ready()
    {
        missed = 0;
        waiting = null;
        Beat();
    }

    private protected override void Lost()
    {
        timer?.Dispose();
        timer = null;
        waiting = null;
    }

    private protected override void Answered(byte number, uint status, ReadOnlySpan<byte> body)
    {
        if (number != waiting || body.Length < 8 || BinaryPrimitives.ReadUInt64LittleEndian(body) != sequence + 1)
        {
            NoteSpurious();
            return;
        }
        waiting = null;
        missed = 0;
        answered++;
    }

    private void Beat()
    {
        timer?.Dispose();
        timer = null;
        if (State != ComponentState.Ready)
            return;
        // One at a time: a guest that is slow finds one waiting, not a queue.
        if (waiting is null)
        {
            byte[] body = new byte[BodySize];
            BinaryPrimitives.WriteUInt64LittleEndian(body, ++sequence);
            waiting = Request(body);
        }
        else
        {
            missed++;
        }
        timer = Bus.After(s_interval, Beat);
    }

    /// <inheritdoc/>
    protected internal override void Resumed()
    {
        // After a restore nothing is armed; a beat that was under way has been answered to somebody else.
        if (timer is not null || State != ComponentState.Ready)
            return;
        waiting = null;
        Beat();
    }
}
