namespace Aerostat.Guest.Drivers;

// Control messages: type, four bytes of nothing, then what is below (Linux, include/linux/hyperv.h).
public sealed partial class VmbusConnection
{
    private const uint OfferChannel = 1, RescindOffer = 2, RequestOffers = 3, AllOffersDelivered = 4, OpenChannel = 5, OpenResult = 6, CloseChannel = 7, ListHeader = 8,
        ListBody = 9, ListCreated = 10, TearDownList = 11, ListTornDown = 12, RelIdReleased = 13, InitiateContact = 14, VersionResponse = 15, Unload = 16, UnloadResponse = 17;

    private const int InHeader = 26, InBody = 28, Versions = 7;

    // What follows the last is asked of nobody.
    private static uint VersionAt(int index) => index switch { 0 => 0x5_0003, 1 => 0x5_0002, 2 => 0x5_0001, 3 => 0x5_0000, 4 => 0x4_0001, 5 => 0x4_0000, 6 => 0x3_0000, _ => 0 };

    private static int LeastLength(uint type) => type switch
    {
        OfferChannel => 196,
        RescindOffer or ListTornDown => 12,
        OpenResult or ListCreated => 20,
        VersionResponse => 16,
        _ => 8,
    };

    private uint Word(int at) => LittleEndian.Read32(message, at);

    // Version, processor, source; then the pages for interrupts and signals that older versions use.
    private void Contact()
    {
        State = VmbusState.Contacting;
        askedAt = platform.Nanoseconds;
        uint version = VersionAt(contact);
        Begin(InitiateContact);
        Add(8, version);
        Add(12, interrupts.Processor);
        if (version >> 16 >= FirstMajorWithSource)
            Add(16, SyntheticInterrupts.Source);
        else
            AddAddress(16, pages);
        AddAddress(24, pages + DriverPlatform.PageSize);
        AddAddress(32, pages + (2 * DriverPlatform.PageSize));
        Enqueue(40);
    }

    private void AddAddress(uint offset, ulong address)
    {
        Add(offset, (uint)address);
        Add(offset + 4, (uint)(address >> 32));
    }

    private void ContactLower()
    {
        if (++contact < Versions)
        {
            Contact();
            return;
        }
        platform.Log("vmbus: the host takes none of our versions");
        End(VmbusState.GivenUp);
    }

    private void Handle(int length)
    {
        uint type = length < 8 ? 0 : Word(0);
        if (type == 0 || length < LeastLength(type))
        {
            Complain("vmbus: a message of the host is too short: ", (ulong)length);
            return;
        }
        bool connected = State == VmbusState.Connected;
        switch (type)
        {
            case VersionResponse when State == VmbusState.Contacting:
                Answered(message[8] != 0 && message[9] == 0);
                break;
            case UnloadResponse when State == VmbusState.Leaving:
                End(VmbusState.Off);
                break;
            case OfferChannel when connected:
                Offered();
                break;
            case RescindOffer when connected:
                TakenBack(Word(8));
                break;
            case ListCreated when connected:
                Lent(Word(8), Word(12), Word(16));
                break;
            case OpenResult when connected:
                OpenAnswered(Word(8), Word(12), Word(16));
                break;
            // Nobody waits for these: offers are taken as they come, and memory that was given back is lent again under another name.
            case AllOffersDelivered or ListTornDown:
                break;
            default:
                if (State != VmbusState.Leaving)
                    Complain("vmbus: a message that does not belong here, type ", type);
                break;
        }
    }

    private void Answered(bool supported)
    {
        if (!supported)
        {
            ContactLower();
            return;
        }
        Version = VersionAt(contact);
        connection = Version >> 16 >= FirstMajorWithSource ? Word(12) : OldConnection;
        State = VmbusState.Connected;
        Begin(RequestOffers);
        Enqueue(8);
    }

    private int FindOffer(uint relId)
    {
        for (int i = 0; i < MostOffers; i++)
            if (offers[i].RelId == relId)
                return i;
        return -1;
    }

    private void Offered()
    {
        uint relId = Word(184);
        bool ownInterrupt = (message[190] & 1) != 0;
        int free = FindOffer(0);
        if (relId is 0 or > HighestRelId || FindOffer(relId) >= 0 || !ownInterrupt || free < 0)
        {
            Complain("vmbus: an offer that cannot be taken: ", relId);
            return;
        }
        offers[free] = new VmbusOffer { RelId = relId, TypeLow = LittleEndian.Read64(message, 8), TypeHigh = LittleEndian.Read64(message, 16), Connection = Word(192) };
        Bind(free);
    }

    // Gives an offer to its driver, if that has none.
    private void Bind(int index)
    {
        VmbusOffer offer = offers[index];
        for (int i = 0; i < driverCount; i++)
            if (channels[i] is { State: VmbusChannelState.Absent } channel && channel.Driver.TypeLow == offer.TypeLow && channel.Driver.TypeHigh == offer.TypeHigh)
            {
                offers[index].Channel = channel;
                channel.Begin(offer.RelId, offer.Connection);
                Lend(channel);
                return;
            }
    }

    // The rings' pages: as many as fit into the first message, the rest in others.
    private void Lend(VmbusChannel channel)
    {
        channel.List = nextList++;
        uint count = (uint)channel.Pages, first = (uint)(channel.Memory / DriverPlatform.PageSize), sent = 0;
        Begin(ListHeader);
        Add(8, channel.RelId);
        Add(12, channel.List);
        Add(16, (8 + (8 * count)) | (1 << 16));
        Add(20, count * DriverPlatform.PageSize);
        for (; sent < count && sent < InHeader; sent++)
            AddAddress(28 + (8 * sent), first + sent);
        Enqueue((int)(28 + (8 * sent)));
        while (sent < count)
        {
            Begin(ListBody);
            Add(12, channel.List);
            uint here = 0;
            for (; sent < count && here < InBody; sent++, here++)
                AddAddress(16 + (8 * here), first + sent);
            Enqueue((int)(16 + (8 * here)));
        }
    }

    private void TakenBack(uint relId)
    {
        int index = relId == 0 ? -1 : FindOffer(relId);
        if (index < 0)
        {
            Complain("vmbus: the host takes back what it has not offered: ", relId);
            return;
        }
        Rescinded++;
        VmbusChannel? channel = offers[index].Channel;
        offers[index] = default;
        if (channel is not null)
            Drop(channel, lent: false);
        Begin(RelIdReleased);
        Add(8, relId);
        Enqueue(12);
        // Another device of its kind may have been offered meanwhile.
        for (int i = 0; i < MostOffers && channel is not null; i++)
            if (offers[i].RelId != 0 && offers[i].Channel is null)
                Bind(i);
    }

    private VmbusChannel? Find(uint relId, VmbusChannelState state)
    {
        for (int i = 0; i < driverCount; i++)
            if (channels[i] is { } channel && channel.RelId == relId && channel.State == state)
                return channel;
        return null;
    }

    private void Lent(uint relId, uint list, uint status)
    {
        // An answer to what a channel wanted that was taken back since: nobody waits for it.
        if (Find(relId, VmbusChannelState.Lending) is not { } channel || channel.List != list)
            return;
        if (status != 0)
        {
            Refused(channel, "vmbus: the host does not take a channel's memory: ", status);
            return;
        }
        channel.ClearRings();
        channel.State = VmbusChannelState.Opening;
        Begin(OpenChannel);
        Add(8, relId);
        Add(12, list);
        Add(16, list);
        Add(20, interrupts.Processor);
        Add(24, (uint)channel.Driver.RingPages);
        Enqueue(148);
    }

    private void OpenAnswered(uint relId, uint openId, uint status)
    {
        if (Find(relId, VmbusChannelState.Opening) is not { } channel || channel.List != openId)
            return;
        if (status != 0)
        {
            Refused(channel, "vmbus: the host does not open a channel: ", status);
            TearDown(channel);
            return;
        }
        channel.Opened();
    }

    private void Refused(VmbusChannel channel, string what, uint status)
    {
        Complain(what, status);
        channel.State = VmbusChannelState.GivenUp;
    }
}
