using System.Buffers.Binary;

namespace Aerostat.HyperV;

/// <summary>What the guest is asked to do.</summary>
public enum ShutdownKind
{
    /// <summary>Power off.</summary>
    PowerOff = 0,
    /// <summary>Start anew.</summary>
    Restart = 2,
}

/// <summary>Shutdown and restart at the host's wish. The answer says that the guest has begun with it, not that it is off.</summary>
public sealed class GuestShutdown : IntegrationComponent
{
    private const int BodySize = 2060;
    private const uint Planned = 0x8000_0000;
    private TaskCompletionSource<bool>? pending;
    private byte? waiting;

    /// <inheritdoc/>
    public override string Name => "shutdown";

    /// <inheritdoc/>
    public override ChannelOffer Offer { get; } = new(new("0e0b6031-5213-4934-818b-38d90ced39db"), new("b6650ff7-33bc-4840-8048-e0676786f393"));

    private protected override ushort MessageType => 3;

    private protected override IReadOnlyList<ComponentVersion> MessageVersions { get; } = [new(1, 0), new(3, 0), new(3, 1), new(3, 2)];

    /// <summary>Asks the guest. False: it has no driver for it, or refuses. Any thread.</summary>
    public Task<bool> RequestAsync(ShutdownKind kind)
    {
        TaskCompletionSource<bool> done = new(TaskCreationOptions.RunContinuationsAsynchronously);
        Bus.Post(() =>
        {
            if (State != ComponentState.Ready || pending is not null)
            {
                done.TrySetResult(false);
                return;
            }
            byte[] body = new byte[BodySize];
            BinaryPrimitives.WriteUInt32LittleEndian(body, Planned);
            BinaryPrimitives.WriteUInt32LittleEndian(body.AsSpan(8), (uint)kind);
            waiting = Request(body);
            if (waiting is null)
                done.TrySetResult(false);
            else
                pending = done;
        });
        return done.Task;
    }

    private protected override void Lost() => Finish(false);

    private protected override void Answered(byte number, uint status, ReadOnlySpan<byte> body)
    {
        if (number != waiting)
            NoteSpurious();
        else
            Finish(status == Succeeded);
    }

    private void Finish(bool result)
    {
        waiting = null;
        pending?.TrySetResult(result);
        pending = null;
    }
}
