namespace Aerostat.HyperV;

/// <summary>Where a channel is in its life.</summary>
internal enum ChannelState
{
    /// <summary>The guest does not know of it.</summary>
    NotOffered,
    /// <summary>The guest knows of it.</summary>
    Offered,
    /// <summary>The guest has opened it.</summary>
    Open,
    /// <summary>It has been taken back; its number stays taken until the guest has said that it has forgotten it.</summary>
    Rescinded,
}

/// <summary>A channel: a device, a number, and while it is open two rings. The server's thread only, but for the signal.</summary>
internal sealed class VmBusChannel(VmBusServer server, VmBusDevice device, uint relId) : IEventPort
{
    private int signalled;

    public VmBusDevice Device => device;
    public uint RelId => relId;
    public ChannelState State { get; set; }
    public Gpadl? Rings { get; private set; }
    public int DownstreamPage { get; private set; }
    public uint OpenId { get; private set; }
    public int TargetProcessor { get; set; }
    public IncomingRing? Incoming { get; private set; }
    public OutgoingRing? Outgoing { get; private set; }

    /// <summary>The guest has broken its rings: nothing goes through until it opens the channel again.</summary>
    public bool IsBroken { get; set; }

    /// <summary>The guest signals. On a vCPU's thread.</summary>
    public HypercallStatus Signal(int flag)
    {
        Volatile.Write(ref signalled, 1);
        server.Wake();
        return HypercallStatus.Success;
    }

    /// <summary>Takes a signal back; true: there was one.</summary>
    public bool TakeSignal() => Interlocked.Exchange(ref signalled, 0) != 0;

    public bool Open(Gpadl pages, int downstream, uint openId, int processor)
    {
        if (downstream < RingBuffer.MinPages || pages.Pages - downstream < RingBuffer.MinPages)
            return false;
        Rings = pages;
        pages.InUse = true;
        DownstreamPage = downstream;
        OpenId = openId;
        TargetProcessor = processor;
        Incoming = new IncomingRing(pages, 0, downstream);
        Outgoing = new OutgoingRing(pages, downstream, pages.Pages - downstream);
        IsBroken = false;
        State = ChannelState.Open;
        return true;
    }

    /// <summary>Lets go of the rings.</summary>
    public void Close()
    {
        if (Rings is not null)
            Rings.InUse = false;
        Rings = null;
        Incoming = null;
        Outgoing = null;
        Volatile.Write(ref signalled, 0);
        if (State == ChannelState.Open)
            State = ChannelState.Offered;
    }
}
