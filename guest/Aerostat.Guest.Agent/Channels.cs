using System.Buffers.Binary;

namespace Aerostat.Guest.Agent;

/// <summary>The way to the kernel's half of volume snapshots (hv_utils): messages of 12 bytes each way.</summary>
internal interface IChannel : IDisposable
{
    /// <summary>Waits for a request. Answers its operation, 0 if there was none in time, or an error below 0: the channel is gone.</summary>
    int Receive(int milliseconds);

    /// <summary>Answers the request with 0 or an error. Answers an error below 0 if nobody wants to know.</summary>
    int Reply(uint status);
}

/// <summary>The operations that reach a daemon.</summary>
internal static class Operation
{
    public const int HotBackup = 2, Freeze = 5, Thaw = 6;
    /// <summary>Registrations: the old one is not answered.</summary>
    public const byte Register = 128, RegisterWithAnswer = 129;
    public const int MessageLength = 12;
}

/// <summary>/dev/vmbus/hv_vss, since Linux 4.2.</summary>
internal sealed class DeviceChannel : IChannel
{
    public const string Path = "/dev/vmbus/hv_vss";

    private readonly int _descriptor;

    private DeviceChannel(int descriptor) => _descriptor = descriptor;

    /// <summary>Opens the device and registers; or an error.</summary>
    public static IChannel? Open(out int error)
    {
        int descriptor = Host.Open(Path, write: true);
        error = descriptor;
        if (descriptor < 0)
            return null;
        byte[] message = new byte[Operation.MessageLength];
        message[0] = Operation.RegisterWithAnswer;
        error = Host.Write(descriptor, message);
        // The kernel's version is the answer; only after that it sends requests.
        if (error >= 0)
            error = Host.Read(descriptor, message.AsSpan(0, 4));
        if (error > 0)
            return new DeviceChannel(descriptor);
        Host.Close(descriptor);
        return null;
    }

    public int Receive(int milliseconds)
    {
        int events = Host.Poll(_descriptor, milliseconds);
        if (events == 0)
            return 0;
        if (!Host.IsReadable(events))
            return events < 0 ? events : -Host.InputOutput;
        Span<byte> message = stackalloc byte[Operation.MessageLength];
        int length = Host.Read(_descriptor, message);
        return length < 0 ? length : length == Operation.MessageLength ? message[0] : -Host.InputOutput;
    }

    public int Reply(uint status)
    {
        Span<byte> message = stackalloc byte[Operation.MessageLength];
        message.Clear();
        BinaryPrimitives.WriteUInt32LittleEndian(message, status);
        return Host.Write(_descriptor, message);
    }

    public void Dispose() => Host.Close(_descriptor);
}

/// <summary>The netlink connector, of older kernels and still of new ones: netlink and connector headers before the 12 bytes.</summary>
internal sealed class NetlinkChannel : IChannel
{
    private const int NetlinkFamily = 16, Datagram = 2, ConnectorProtocol = 11, NetlinkLevel = 270, AddMembership = 1;
    private const int HeaderLength = 16, ConnectorLength = 20, LengthField = 32, DataOffset = HeaderLength + ConnectorLength;
    private const uint SnapshotIndex = 10, SnapshotValue = 1;
    private const ushort Done = 3;
    private const int AnswerTime = 2000;

    private readonly int _descriptor;

    private NetlinkChannel(int descriptor) => _descriptor = descriptor;

    public static IChannel? Open(out int error)
    {
        int descriptor = Host.Socket(NetlinkFamily, Datagram, ConnectorProtocol);
        error = descriptor;
        if (descriptor < 0)
            return null;
        // struct sockaddr_nl: family, padding, port (the kernel's choice), groups.
        byte[] address = new byte[12];
        address[0] = NetlinkFamily;
        NetlinkChannel channel = new(descriptor);
        error = Host.Bind(descriptor, address);
        if (error >= 0)
            error = Host.SetOption(descriptor, NetlinkLevel, AddMembership, (int)SnapshotIndex);
        if (error >= 0)
            error = channel.Register();
        if (error >= 0)
            return channel;
        channel.Dispose();
        return null;
    }

    public int Receive(int milliseconds)
    {
        int length = Read(milliseconds, out byte operation);
        return length >= Operation.MessageLength ? operation : Math.Min(length, 0);
    }

    public int Reply(uint status) => Send(status);

    public void Dispose() => Host.Close(_descriptor);

    // Kernels since 4.2 are ready only after they have answered; those before know the old registration only, and do not answer.
    private int Register()
    {
        int error = Send(Operation.RegisterWithAnswer);
        if (error < 0)
            return error;
        int answer = Read(AnswerTime, out _);
        return answer != 0 ? answer : Send(Operation.Register);
    }

    // Answers the length of the message, 0 if there was none for us in time, or an error.
    private int Read(int milliseconds, out byte first)
    {
        first = 0;
        int events = Host.Poll(_descriptor, milliseconds);
        if (events == 0)
            return 0;
        if (!Host.IsReadable(events))
            return events < 0 ? events : -Host.InputOutput;
        Span<byte> message = stackalloc byte[4096];
        int length = Host.Read(_descriptor, message);
        if (length < 0)
            return length;
        // What others say on the same bus is not for us.
        if (length <= DataOffset || BinaryPrimitives.ReadUInt32LittleEndian(message[HeaderLength..]) != SnapshotIndex
            || BinaryPrimitives.ReadUInt32LittleEndian(message[(HeaderLength + 4)..]) != SnapshotValue)
            return 0;
        first = message[DataOffset];
        return length - DataOffset;
    }

    private int Send(uint first)
    {
        Span<byte> message = stackalloc byte[DataOffset + Operation.MessageLength];
        message.Clear();
        BinaryPrimitives.WriteInt32LittleEndian(message, message.Length);
        BinaryPrimitives.WriteUInt16LittleEndian(message[4..], Done);
        BinaryPrimitives.WriteUInt32LittleEndian(message[HeaderLength..], SnapshotIndex);
        BinaryPrimitives.WriteUInt32LittleEndian(message[(HeaderLength + 4)..], SnapshotValue);
        BinaryPrimitives.WriteUInt16LittleEndian(message[LengthField..], Operation.MessageLength);
        BinaryPrimitives.WriteUInt32LittleEndian(message[DataOffset..], first);
        return Host.Write(_descriptor, message);
    }
}
