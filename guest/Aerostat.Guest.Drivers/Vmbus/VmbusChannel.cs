namespace Aerostat.Guest.Drivers;

/// <summary>Where a driver's channel is in its life.</summary>
public enum VmbusChannelState
{
    /// <summary>The host has offered none.</summary>
    Absent,

    /// <summary>The host is being told where the rings are.</summary>
    Lending,

    /// <summary>The host is asked to open it.</summary>
    Opening,

    Open,

    /// <summary>The host refused it, or broke it; it is left alone until it is offered again.</summary>
    GivenUp,
}

/// <summary>A driver's channel: a number of the host's, and two rings in memory that is lent to it while the channel is open. Memory and object are kept for the next one.</summary>
public sealed class VmbusChannel
{
    private readonly VmbusConnection bus;
    private readonly VmbusDriver driver;
    private readonly VmbusWriter outgoing;
    private readonly VmbusReader incoming;
    private uint connection;
    private bool hasNews;

    internal VmbusChannel(VmbusConnection bus, VmbusDriver driver, DriverPlatform platform, ulong memory)
    {
        this.bus = bus;
        this.driver = driver;
        Memory = memory;
        Packet = new byte[driver.LongestPacket];
        outgoing = new VmbusWriter(platform, memory, driver.RingPages);
        incoming = new VmbusReader(platform, memory + ((ulong)driver.RingPages * DriverPlatform.PageSize), driver.RingPages);
    }

    public VmbusDriver Driver => driver;

    public VmbusChannelState State { get; internal set; }

    /// <summary>The host's number for it.</summary>
    public uint RelId { get; private set; }

    /// <summary>What was received last, and what is sent.</summary>
    public byte[] Packet { get; }

    /// <summary>Packets that were passed over, for they were no data or too long.</summary>
    public ulong PassedOver { get; private set; }

    public ulong Received { get; private set; }

    public ulong Sent { get; private set; }

    internal ulong Memory { get; }

    internal int Pages => 2 * driver.RingPages;

    /// <summary>Our name for the memory that is lent.</summary>
    internal uint List { get; set; }

    /// <summary>Takes the next packet into <see cref="Packet"/>. It looks into the ring only after a signal, until the ring is empty: the host signals when it writes to an empty one.</summary>
    public bool TryReceive(out int length, out ulong transaction)
    {
        while (State == VmbusChannelState.Open && hasNews)
        {
            hasNews = incoming.TryTake(Packet, out length, out transaction, out bool wakesWriter);
            if (incoming.IsBroken)
                bus.GiveUp(this, "vmbus: given up, for the host does not keep to the protocol: ");
            if (!hasNews)
                break;
            if (wakesWriter)
                bus.Signal(connection);
            Received++;
            if (length != 0)
                return true;
            PassedOver++;
        }
        length = 0;
        transaction = 0;
        return false;
    }

    /// <summary>Sends so many bytes of <see cref="Packet"/>; false: there is no room now, and a signal comes when there is.</summary>
    public bool Send(int length, ulong transaction)
    {
        if (State != VmbusChannelState.Open)
            return false;
        bool sent = outgoing.TryPut(Packet, length, transaction, out bool wakesReader);
        if (outgoing.IsBroken)
            bus.GiveUp(this, "vmbus: given up, for the host does not keep to the protocol: ");
        if (wakesReader)
            bus.Signal(connection);
        if (sent)
            Sent++;
        return sent;
    }

    internal void Begin(uint relId, uint signalConnection)
    {
        RelId = relId;
        connection = signalConnection;
        State = VmbusChannelState.Lending;
    }

    /// <summary>The host has the memory and does not look at it yet.</summary>
    internal void ClearRings()
    {
        outgoing.Clear();
        incoming.Clear();
        hasNews = false;
    }

    internal void Opened()
    {
        State = VmbusChannelState.Open;
        hasNews = true;
        driver.Opened(this);
    }

    internal void Signalled() => hasNews = true;
}
