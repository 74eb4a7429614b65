namespace Aerostat.Guest.Drivers;

/// <summary>
/// What the drivers of integration components have in common (Linux, include/linux/hyperv.h, icmsg): a pipe header and a header before each message, the agreement on
/// versions that comes first, and answers in place: what came goes back, with a status and marked as an answer. One request is worked on at a time; what comes
/// meanwhile waits in the ring.
/// </summary>
public abstract class IntegrationDriver(ulong typeLow, ulong typeHigh) : VmbusDriver(typeLow, typeHigh, IntegrationRingPages, LargestPacket)
{
    public const uint Succeeded = 0, Failed = 0x8000_4005, NotSupported = 0x8007_0032;

    private const int IntegrationRingPages = 4, LargestPacket = 8192;
    private const int PipeHeader = 8, HeaderSize = 20;
    private const int TypeAt = PipeHeader + 4, SizeAt = PipeHeader + 10, StatusAt = PipeHeader + 12, FlagsAt = PipeHeader + 17;
    private const ushort Negotiation = 0;
    private const byte AnswerFlags = 1 | 4;
    private const uint MostVersions = 100;

    private ulong transaction;
    private int length;
    private bool answerWaits;

    /// <summary>Where a message's own part begins.</summary>
    protected const int BodyAt = PipeHeader + HeaderSize;

    /// <summary>The channel, while it is open.</summary>
    protected VmbusChannel? Channel { get; private set; }

    /// <summary>A request is being worked on.</summary>
    public bool IsBusy { get; private set; }

    /// <summary>The framework's version agreed on, major in the lower half; 0: none.</summary>
    public uint Framework { get; private set; }

    /// <summary>The messages' version agreed on.</summary>
    public uint Messages { get; private set; }

    /// <summary>Packets that were no messages.</summary>
    public ulong Malformed { get; private set; }

    /// <summary>Requests that were answered.</summary>
    public ulong Answered { get; private set; }

    protected abstract ushort MessageType { get; }

    /// <summary>The least bytes of a message's own part.</summary>
    protected abstract int LeastBody { get; }

    /// <summary>Whether requests are taken now; until then they wait.</summary>
    protected virtual bool IsReady => true;

    /// <summary>Whether a version of messages is spoken here; the framework's is 3.0 or 1.0.</summary>
    protected abstract bool Speaks(uint version);

    /// <summary>A request: its part is in the channel's packet, from <see cref="BodyAt"/>. <see cref="Answer"/> ends it, now or later.</summary>
    protected abstract void Requested(byte[] packet, int size);

    /// <summary>What else there is to do.</summary>
    protected virtual void Work()
    {
    }

    public override void Opened(VmbusChannel channel)
    {
        Channel = channel;
        IsBusy = answerWaits = false;
        Framework = Messages = 0;
    }

    public override void Closed()
    {
        Channel = null;
        IsBusy = answerWaits = false;
        Framework = Messages = 0;
    }

    public sealed override void Service()
    {
        if (answerWaits)
            Send();
        Work();
        while (!IsBusy && IsReady && Channel is { } channel && channel.TryReceive(out length, out transaction))
            Handle(channel.Packet);
    }

    /// <summary>Answers the request that is being worked on.</summary>
    protected void Answer(uint status)
    {
        if (!IsBusy || Channel is not { } channel)
            return;
        LittleEndian.Write32(channel.Packet, StatusAt, status);
        channel.Packet[FlagsAt] = AnswerFlags;
        Send();
    }

    private void Send()
    {
        if (Channel is not { } channel)
            return;
        answerWaits = !channel.Send(length, transaction);
        if (answerWaits)
            return;
        IsBusy = false;
        Answered++;
    }

    private void Handle(byte[] packet)
    {
        if (length < BodyAt)
        {
            Malformed++;
            return;
        }
        IsBusy = true;
        int size = System.Math.Min(LittleEndian.Read16(packet, SizeAt), length - BodyAt);
        ushort type = LittleEndian.Read16(packet, TypeAt);
        if (type == Negotiation)
        {
            Negotiate(packet, size);
        }
        else if (type != MessageType || size < LeastBody)
        {
            Malformed++;
            Answer(NotSupported);
        }
        else
        {
            Requested(packet, size);
        }
    }

    // Numbers of versions, four bytes of nothing, the framework's versions, the messages'. Of each the highest that is spoken here is taken; counts of 0 say that there is none.
    private void Negotiate(byte[] packet, int size)
    {
        const int First = BodyAt + 8;
        Framework = Messages = 0;
        uint frameworks = 0, messages = 0;
        if (size >= 8)
        {
            frameworks = LittleEndian.Read16(packet, BodyAt);
            messages = LittleEndian.Read16(packet, BodyAt + 2);
        }
        if (size < 16 || frameworks + messages > MostVersions || 8 + (4 * (frameworks + messages)) > (uint)size)
        {
            Malformed++;
            Answer(Failed);
            return;
        }
        for (int i = 0; i < frameworks + messages; i++)
        {
            uint version = LittleEndian.Read32(packet, First + (4 * i));
            if (i < frameworks)
                Framework = version is 3 or 1 && version > Framework ? version : Framework;
            else if (Speaks(version) && IsHigher(version, Messages))
                Messages = version;
        }
        ushort found = (ushort)(Framework != 0 && Messages != 0 ? 1 : 0);
        LittleEndian.Write16(packet, SizeAt, 16);
        LittleEndian.Write16(packet, BodyAt, found);
        LittleEndian.Write16(packet, BodyAt + 2, found);
        LittleEndian.Write32(packet, First, Framework);
        LittleEndian.Write32(packet, First + 4, Messages);
        Answer(Succeeded);
    }

    // Major in the lower half, minor in the upper.
    private static bool IsHigher(uint a, uint b) => (ushort)a > (ushort)b || ((ushort)a == (ushort)b && a > b);
}
