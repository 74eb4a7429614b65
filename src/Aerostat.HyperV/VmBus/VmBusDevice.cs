namespace Aerostat.HyperV;

/// <summary>
/// Something behind a channel of the VMBus. A device is one small class: it says what it offers, is told when its channel opens and closes, and takes
/// packets. All of it happens on the bus's own thread, one call after the other, never on a vCPU's; nothing here needs a lock.
/// </summary>
public abstract class VmBusDevice
{
    /// <summary>A short stable name: "vss".</summary>
    public abstract string Name { get; }

    /// <summary>What the guest is told.</summary>
    public abstract ChannelOffer Offer { get; }

    /// <summary>The bus; there from the moment the device is added to it.</summary>
    protected internal VmBusServer Bus { get; private set; } = null!;

    /// <summary>Whether the guest has the channel open.</summary>
    protected bool IsOpen => Bus.IsOpen(this);

    /// <summary>The guest has opened the channel.</summary>
    protected internal virtual void Opened()
    {
    }

    /// <summary>The channel is closed: by the guest, by a reset, or because the device was taken away.</summary>
    protected internal virtual void Closed()
    {
    }

    /// <summary>The machine was reset: nothing is left of what the guest had. After <see cref="Closed"/>.</summary>
    protected internal virtual void GuestReset()
    {
    }

    /// <summary>A packet has come.</summary>
    /// <param name="transaction">The guest's number for it.</param>
    /// <param name="payload">The data, with up to seven bytes that it is padded with; valid during the call.</param>
    protected internal abstract void Received(ulong transaction, ReadOnlySpan<byte> payload);

    /// <summary>A packet has come that names guest pages for its data ("GPA direct"); false: this device takes none.</summary>
    /// <param name="transaction">The guest's number for it.</param>
    /// <param name="pages">Four bytes of nothing, the number of ranges, and the ranges: bytes, offset in the first page, page numbers. Valid during the call.</param>
    /// <param name="payload">As of <see cref="Received"/>.</param>
    protected internal virtual bool ReceivedDirect(ulong transaction, ReadOnlySpan<byte> pages, ReadOnlySpan<byte> payload) => false;

    /// <summary>The guest has signalled: packets may have come, or there may be room that there was not before. Comes before the packets.</summary>
    protected internal virtual void Signalled()
    {
    }

    /// <summary>Whether packets shall stay in the ring for now, so that the guest feels that there are too many. Who changes it to false calls <see cref="VmBusServer.Poll"/>.</summary>
    protected internal virtual bool IsBusy => false;

    /// <summary>Sends a packet; false: the channel is closed, or has no room at the moment.</summary>
    protected bool Send(ReadOnlySpan<byte> payload, ulong transaction = 0) => Bus.Send(this, PacketHead.Data, payload, transaction);

    /// <summary>Sends the completion of a packet; false: as above.</summary>
    protected bool SendCompletion(ReadOnlySpan<byte> payload, ulong transaction) => Bus.Send(this, PacketHead.Completion, payload, transaction);

    /// <summary>What the device has to keep, as text of its own; null: nothing.</summary>
    protected internal virtual string? Save() => null;

    /// <summary>Goes on from what <see cref="Save"/> gave; its channel is already as it was.</summary>
    protected internal virtual void Restore(string? saved)
    {
    }

    /// <summary>Time goes on after the machine stood still, or was restored.</summary>
    protected internal virtual void Resumed()
    {
    }

    internal void Attach(VmBusServer bus) => Bus = bus;
}
