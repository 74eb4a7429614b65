namespace Aerostat.Guest.Drivers;

/// <summary>A queue that is none: what is added to it is done at once, and taken back at the next look.</summary>
internal sealed class VmwareQueue(DriverPlatform platform, VmwareTransport transport, uint direction) : DriverQueue
{
    private bool done;
    private uint doneToken;

    public override int Room => done ? 0 : 1;

    public override bool IsBroken => false;

    // Frames to lock or unlock, and a byte for each to say whether the host did.
    public override bool Add(uint token, ulong readable, uint readableLength, ulong writable, uint writableLength)
    {
        if (done || writableLength < readableLength / 4)
            return false;
        transport.Hand(direction, readable, readableLength / 4, writable);
        platform.Fence();
        done = true;
        doneToken = token;
        return true;
    }

    public override bool AddParts(uint token, ulong[] addresses, uint[] lengths, int readable, int count) => false;

    /// <summary>Nothing comes back any more.</summary>
    public void Clear() => done = false;

    public override void Kick()
    {
    }

    public override bool TryTake(out uint token)
    {
        token = doneToken;
        bool was = done;
        done = false;
        return was;
    }
}
