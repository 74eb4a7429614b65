using System;

namespace Aerostat.Guest.Drivers;

/// <summary>Where a guest is with its bus.</summary>
public enum VmbusState
{
    Off,

    /// <summary>A version is being agreed on.</summary>
    Contacting,

    Connected,

    /// <summary>The host is asked to let go.</summary>
    Leaving,

    /// <summary>The host does not answer, or takes no version of ours.</summary>
    GivenUp,
}

/// <summary>
/// The guest's end of Hyper-V's VMBus (Linux, drivers/hv; there is no public specification): versions, offers, memory lent to the host, channels. It never waits:
/// <see cref="Service"/> does what can be done and returns, and a host that does not answer leaves a state that says so.
/// <para>Not there: monitor pages, sub-channels, offers without an interrupt of their own.</para>
/// </summary>
/// <remarks>All objects and pages are made when the bus and its drivers start, and used again: a host that offers and takes back for ever costs no memory.</remarks>
public sealed partial class VmbusConnection
{
    public const int MostOffers = 32, MostDrivers = 8;

    private const int MostComplaints = 8;
    private const uint HighestRelId = 2047, ContactConnection = 4, OldConnection = 1, FirstList = 0xE1E10;
    private const int FirstMajorWithSource = 5;
    private const ulong AnswerWithin = 5_000_000_000;

    // Three pages of which versions before 5.0 take one for interrupts and all take two for signals without hypercalls, and the messages that wait to be sent.
    private const int PagesOrder = 2, QueueSize = 15, QueueEntry = 256, Reserve = 6;

    private readonly DriverPlatform platform;
    private readonly SyntheticInterrupts interrupts;
    private readonly VmbusChannel?[] channels = new VmbusChannel?[MostDrivers];
    private readonly VmbusOffer[] offers = new VmbusOffer[MostOffers];
    private readonly byte[] message = new byte[SyntheticInterrupts.LongestMessage];
    private readonly int[] lengths = new int[QueueSize];
    private readonly uint highestMajor;
    private int driverCount;
    private ulong pages;
    private int queueFirst;
    private int queueCount;
    private uint connection;
    private int contact;
    private ulong askedAt;
    private uint nextList = FirstList;

    /// <summary>Makes a connection; <see cref="Start"/> does the rest.</summary>
    /// <param name="platform">What it may use.</param>
    /// <param name="hypervisor">The hypervisor's registers and calls.</param>
    /// <param name="highestMajor">The highest version that is asked for, without what is after the point.</param>
    public VmbusConnection(DriverPlatform platform, HyperVPlatform hypervisor, uint highestMajor = 5)
    {
        this.platform = platform;
        this.highestMajor = highestMajor;
        interrupts = new SyntheticInterrupts(platform, hypervisor);
    }

    public VmbusState State { get; private set; }

    /// <summary>The version agreed on: major in the upper half, minor in the lower.</summary>
    public uint Version { get; private set; }

    /// <summary>Messages of the host that made no sense.</summary>
    public ulong Malformed { get; private set; }

    /// <summary>Offers that the host has taken back.</summary>
    public ulong Rescinded { get; private set; }

    public int DriverCount => driverCount;

    public VmbusChannel? Channel(int index) => channels[index];

    public VmbusOffer Offer(int index) => offers[index];

    /// <summary>Registers a driver, before the start; null, or what is wrong.</summary>
    public string? Add(VmbusDriver driver)
    {
        if (driverCount == MostDrivers)
            return "too many drivers";
        int order = 0;
        while (1 << order < 2 * driver.RingPages)
            order++;
        ulong memory = platform.AllocatePages(order);
        if (memory == 0)
            return "no pages for the rings";
        channels[driverCount++] = new VmbusChannel(this, driver, platform, memory);
        return null;
    }

    /// <summary>Contacts the host; null, or what is wrong.</summary>
    public string? Start()
    {
        if (State is not (VmbusState.Off or VmbusState.GivenUp))
            return "the bus is in use already";
        if (pages == 0 && (pages = platform.AllocatePages(PagesOrder)) == 0)
            return "no pages for the bus";
        string? wrong = interrupts.Start();
        if (wrong is not null)
            return wrong;
        for (ulong at = pages; at < pages + (3 * DriverPlatform.PageSize); at += 8)
            platform.Write64(at, 0);
        queueCount = 0;
        contact = 0;
        while (VersionAt(contact) >> 16 > highestMajor)
            contact++;
        Contact();
        return null;
    }

    /// <summary>Leaves the bus: what is open is closed, and the host is asked to forget us.</summary>
    public void Leave()
    {
        if (State is VmbusState.Off or VmbusState.Leaving)
            return;
        bool connected = State == VmbusState.Connected;
        for (int i = 0; i < driverCount; i++)
            if (channels[i] is { } channel)
                Drop(channel, lent: true);
        ClearOffers();
        if (!connected)
        {
            End(VmbusState.Off);
            return;
        }
        State = VmbusState.Leaving;
        askedAt = platform.Nanoseconds;
        Begin(Unload);
        Enqueue(8);
    }

    /// <summary>Does what can be done; to be called after each interrupt, and at times.</summary>
    public void Service()
    {
        if (State is VmbusState.Off or VmbusState.GivenUp)
            return;
        PostQueued();
        // What a message may cause to be sent has to have room; until then it stays where it is, and the host waits.
        while (queueCount <= QueueSize - Reserve)
        {
            int length = interrupts.TakeMessage(message);
            if (length < 0)
                break;
            Handle(length);
            PostQueued();
        }
        TakeEvents();
        for (int i = 0; i < driverCount; i++)
            if (channels[i] is { State: VmbusChannelState.Open } channel)
                channel.Driver.Service();
        PostQueued();
        if (State is VmbusState.Contacting or VmbusState.Leaving && platform.Nanoseconds - askedAt > AnswerWithin)
        {
            platform.Log("vmbus: the host does not answer");
            End(State == VmbusState.Leaving ? VmbusState.Off : VmbusState.GivenUp);
        }
    }

    internal void Signal(uint signalConnection) => interrupts.Signal(signalConnection);

    /// <summary>The host breaks the rules on a channel: it is closed, and not opened until it is offered anew.</summary>
    internal void GiveUp(VmbusChannel channel, string why)
    {
        if (channel.State != VmbusChannelState.Open)
            return;
        Complain(why, channel.RelId);
        Drop(channel, lent: true);
        channel.State = VmbusChannelState.GivenUp;
    }

    private void Complain(string what, ulong number)
    {
        // A host may make as many mistakes as it likes; a few are told.
        if (++Malformed <= MostComplaints)
            platform.Log(what, number);
    }

    private void TakeEvents()
    {
        for (int word = 0; word < SyntheticInterrupts.EventWords; word++)
        {
            uint events = interrupts.TakeEvents(word);
            for (int bit = 0; events != 0; bit++, events >>= 1)
                if ((events & 1) != 0)
                    for (int i = 0; i < driverCount; i++)
                        if (channels[i] is { State: VmbusChannelState.Open } channel && channel.RelId == (uint)((word * 32) + bit))
                            channel.Signalled();
        }
    }

    // Ends what a channel is doing. The memory of one that is open, or is being opened, is asked back unless the host has taken its offer away with all that belongs to it.
    private void Drop(VmbusChannel channel, bool lent)
    {
        VmbusChannelState was = channel.State;
        channel.State = VmbusChannelState.Absent;
        if (was is VmbusChannelState.Open or VmbusChannelState.Opening)
        {
            Begin(CloseChannel);
            Add(8, channel.RelId);
            Enqueue(12);
        }
        if (was == VmbusChannelState.Open)
            channel.Driver.Closed();
        if (lent && was is VmbusChannelState.Open or VmbusChannelState.Opening or VmbusChannelState.Lending)
            TearDown(channel);
    }

    private void TearDown(VmbusChannel channel)
    {
        Begin(TearDownList);
        Add(8, channel.RelId);
        Add(12, channel.List);
        Enqueue(16);
    }

    private void ClearOffers()
    {
        for (int i = 0; i < MostOffers; i++)
            offers[i] = default;
    }

    private void End(VmbusState state)
    {
        interrupts.Stop();
        queueCount = 0;
        Version = 0;
        State = state;
    }

    // Posts what waits, in its order, until the host has no room for more.
    private void PostQueued()
    {
        while (queueCount > 0)
        {
            ulong at = Entry(queueFirst);
            uint type = platform.Read(at, 4);
            uint to = type == InitiateContact ? VersionAt(contact) >> 16 >= FirstMajorWithSource ? ContactConnection : OldConnection : connection;
            uint answer = interrupts.Post(to, at, lengths[queueFirst]);
            if (answer is SyntheticInterrupts.InsufficientMemory or SyntheticInterrupts.InsufficientBuffers)
                return;
            queueFirst = (queueFirst + 1) % QueueSize;
            queueCount--;
            if (type == InitiateContact && answer != SyntheticInterrupts.Success)
                ContactLower();
            else if (answer != SyntheticInterrupts.Success)
                Complain("vmbus: the host does not take a message: ", answer);
        }
    }

    private ulong Entry(int index) => pages + (3 * DriverPlatform.PageSize) + ((uint)index * QueueEntry);

    // A message is written where it waits to be sent.
    private void Begin(uint type)
    {
        ulong at = Entry((queueFirst + queueCount) % QueueSize);
        for (uint i = 0; i < QueueEntry; i += 8)
            platform.Write64(at + i, 0);
        Add(0, type);
    }

    private void Add(uint offset, uint value) => platform.Write(Entry((queueFirst + queueCount) % QueueSize) + offset, 4, value);

    private void Enqueue(int length)
    {
        // The last place is where messages are written.
        if (queueCount >= QueueSize - 1)
        {
            Complain("vmbus: the host takes no messages", 0);
            return;
        }
        lengths[(queueFirst + queueCount) % QueueSize] = length;
        queueCount++;
    }
}
