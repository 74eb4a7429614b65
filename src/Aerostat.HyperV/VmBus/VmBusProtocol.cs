using System.Buffers.Binary;

namespace Aerostat.HyperV;

/// <summary>Kinds of control messages on the VMBus. The numbers are the protocol's.</summary>
internal enum VmBusMessageType : uint
{
    OfferChannel = 1,
    RescindOffer = 2,
    RequestOffers = 3,
    AllOffersDelivered = 4,
    OpenChannel = 5,
    OpenResult = 6,
    CloseChannel = 7,
    GpadlHeader = 8,
    GpadlBody = 9,
    GpadlCreated = 10,
    GpadlTeardown = 11,
    GpadlTornDown = 12,
    RelIdReleased = 13,
    InitiateContact = 14,
    VersionResponse = 15,
    Unload = 16,
    UnloadResponse = 17,
    ModifyChannel = 22,
    ModifyResponse = 24,
}

/// <summary>A version of the VMBus protocol.</summary>
/// <param name="Major">Major number.</param>
/// <param name="Minor">Minor number.</param>
public readonly record struct VmBusVersion(int Major, int Minor) : IComparable<VmBusVersion>
{
    /// <summary>The highest spoken here.</summary>
    public static VmBusVersion Highest => new(5, 3);

    /// <summary>The lowest spoken here.</summary>
    public static VmBusVersion Lowest => new(3, 0);

    private static ReadOnlySpan<int> Known => [0x3_0000, 0x4_0000, 0x4_0001, 0x5_0000, 0x5_0001, 0x5_0002, 0x5_0003];

    /// <summary>Whether there has been such a version.</summary>
    public bool IsKnown => Known.Contains((Major << 16) | Minor);

    internal static VmBusVersion Of(uint number) => new((int)(number >> 16), (int)(number & 0xFFFF));

    internal uint Number => (uint)((Major << 16) | Minor);

    /// <inheritdoc/>
    public int CompareTo(VmBusVersion other) => Number.CompareTo(other.Number);

    /// <inheritdoc/>
    public override string ToString() => $"{Major}.{Minor}";
}

/// <summary>What a channel is, as the guest is told.</summary>
/// <param name="InterfaceType">Which driver is for it.</param>
/// <param name="Instance">Which of its kind; never two the same on a bus.</param>
public sealed record ChannelOffer(Guid InterfaceType, Guid Instance)
{
    /// <summary>Whether packets carry the header of a pipe in message mode.</summary>
    public bool IsPipe { get; init; } = true;
}

/// <summary>Control messages: eight bytes of header, then what is below (Linux, include/linux/hyperv.h). Short ones are dropped by guests.</summary>
internal static class VmBusProtocol
{
    public const int HeaderSize = 8, OfferSize = 196, MaxRelId = 2047;
    public const uint MessageType = 1, ConnectionId = 1, ContactConnectionId = 4;
    public const int StatusSuccess = 0, StatusInvalid = unchecked((int)0xC000_000D), StatusNoResources = unchecked((int)0xC000_009A);

    // Channels' own connections for signals, out of the way of the two above.
    private const uint FirstSignalConnection = 0x2000;

    private const ushort PipeFlag = 0x10;
    private const int PipeMessageMode = 4;

    public static uint SignalConnection(uint relId) => FirstSignalConnection | relId;

    public static byte[] Message(VmBusMessageType type, int size)
    {
        byte[] message = new byte[size];
        BinaryPrimitives.WriteUInt32LittleEndian(message, (uint)type);
        return message;
    }

    public static byte[] Message(VmBusMessageType type, params ReadOnlySpan<uint> words)
    {
        byte[] message = Message(type, HeaderSize + (words.Length * 4));
        for (int i = 0; i < words.Length; i++)
            BinaryPrimitives.WriteUInt32LittleEndian(message.AsSpan(HeaderSize + (i * 4)), words[i]);
        return message;
    }

    public static byte[] Offer(ChannelOffer offer, uint relId)
    {
        byte[] m = Message(VmBusMessageType.OfferChannel, OfferSize);
        offer.InterfaceType.TryWriteBytes(m.AsSpan(8));
        offer.Instance.TryWriteBytes(m.AsSpan(24));
        if (offer.IsPipe)
        {
            BinaryPrimitives.WriteUInt16LittleEndian(m.AsSpan(56), PipeFlag);
            BinaryPrimitives.WriteUInt32LittleEndian(m.AsSpan(60), PipeMessageMode);
        }
        BinaryPrimitives.WriteUInt32LittleEndian(m.AsSpan(184), relId);
        // No monitor page; an interrupt of its own.
        m[188] = 0xFF;
        BinaryPrimitives.WriteUInt16LittleEndian(m.AsSpan(190), 1);
        BinaryPrimitives.WriteUInt32LittleEndian(m.AsSpan(192), SignalConnection(relId));
        return m;
    }

    public static byte[] VersionResponse(bool supported)
    {
        byte[] m = Message(VmBusMessageType.VersionResponse, 16);
        m[8] = supported ? (byte)1 : (byte)0;
        BinaryPrimitives.WriteUInt32LittleEndian(m.AsSpan(12), ConnectionId);
        return m;
    }
}
