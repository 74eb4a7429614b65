using System.Buffers.Binary;
using System.Globalization;

namespace Aerostat.HyperV;

/// <summary>Version of a component's framework or messages.</summary>
/// <param name="Major">Major number.</param>
/// <param name="Minor">Minor number.</param>
public readonly record struct ComponentVersion(int Major, int Minor)
{
    /// <inheritdoc/>
    public override string ToString() => $"{Major}.{Minor}";
}

/// <summary>Where a component stands with its driver.</summary>
public enum ComponentState
{
    /// <summary>The guest has not opened the channel: it has no driver, or has not loaded it.</summary>
    Absent,
    /// <summary>Versions are being agreed on. A component whose driver waits for a program in the guest may stay here.</summary>
    Negotiating,
    /// <summary>Ready.</summary>
    Ready,
    /// <summary>No version in common.</summary>
    Incompatible,
}

/// <summary>
/// What the integration components have in common (Linux, include/linux/hyperv.h, icmsg): a pipe header, a header with versions, a number and a status,
/// and the negotiation that comes first each time a channel opens. Guests answer in place, so a request has room for its answer.
/// </summary>
public abstract class IntegrationComponent : VmBusDevice
{
    /// <summary>HRESULTs that guests answer with.</summary>
    internal const uint Succeeded = 0, Failed = 0x8000_4005, NoMoreItems = 0x8007_0103;

    private protected const int PipeHeader = 8, Header = 20, Overhead = PipeHeader + Header;
    private const uint PipeData = 1;
    private const ushort NegotiateType = 0;
    private const byte RequestFlags = 1 | 2, AnswerFlag = 4;

    private byte transaction;
    private volatile ComponentState state;

    /// <summary>Where it stands. Any thread.</summary>
    public ComponentState State
    {
        get => state;
        private set => state = value;
    }

    /// <summary>Version of the framework agreed on.</summary>
    public ComponentVersion Framework { get; private set; }

    /// <summary>Version of the messages agreed on.</summary>
    public ComponentVersion Messages { get; private set; }

    /// <summary>Answers that belong to no request, and packets that are none.</summary>
    public long Spurious { get; private set; }

    private protected abstract ushort MessageType { get; }

    /// <summary>Versions of messages spoken, lowest first.</summary>
    private protected abstract IReadOnlyList<ComponentVersion> MessageVersions { get; }

    private protected virtual IReadOnlyList<ComponentVersion> FrameworkVersions => s_frameworks;

    private static readonly IReadOnlyList<ComponentVersion> s_frameworks = [new(1, 0), new(3, 0)];

    /// <summary>Versions are agreed on.</summary>
    private protected virtual void Ready()
    {
    }

    /// <summary>The channel is gone, whatever was under way with it.</summary>
    private protected virtual void Lost()
    {
    }

    /// <summary>An answer; the body is as long as the guest says, and valid during the call.</summary>
    private protected abstract void Answered(byte number, uint status, ReadOnlySpan<byte> body);

    /// <summary>Notes an answer that makes no sense.</summary>
    private protected void NoteSpurious() => Spurious++;

    /// <summary>Sends a request; answers its number, or null when the channel has no room for it.</summary>
    private protected byte? Request(ReadOnlySpan<byte> body) => Transmit(MessageType, Framework, Messages, body);

    /// <inheritdoc/>
    protected internal sealed override void Opened()
    {
        State = ComponentState.Negotiating;
        IReadOnlyList<ComponentVersion> frameworks = FrameworkVersions, messages = MessageVersions;
        byte[] body = new byte[8 + ((frameworks.Count + messages.Count) * 4)];
        BinaryPrimitives.WriteUInt16LittleEndian(body, (ushort)frameworks.Count);
        BinaryPrimitives.WriteUInt16LittleEndian(body.AsSpan(2), (ushort)messages.Count);
        int at = 8;
        foreach (ComponentVersion version in frameworks.Concat(messages))
        {
            BinaryPrimitives.WriteUInt16LittleEndian(body.AsSpan(at), (ushort)version.Major);
            BinaryPrimitives.WriteUInt16LittleEndian(body.AsSpan(at + 2), (ushort)version.Minor);
            at += 4;
        }
        Transmit(NegotiateType, default, default, body);
    }

    /// <inheritdoc/>
    protected internal sealed override void Closed()
    {
        State = ComponentState.Absent;
        Lost();
    }

    /// <inheritdoc/>
    protected internal sealed override void Received(ulong transaction, ReadOnlySpan<byte> payload)
    {
        if (payload.Length < Overhead || (payload[PipeHeader + 17] & AnswerFlag) == 0)
        {
            NoteSpurious();
            return;
        }
        ReadOnlySpan<byte> header = payload[PipeHeader..];
        ushort type = BinaryPrimitives.ReadUInt16LittleEndian(header[4..]);
        int size = Math.Min(BinaryPrimitives.ReadUInt16LittleEndian(header[10..]), payload.Length - Overhead);
        ReadOnlySpan<byte> body = payload.Slice(Overhead, size);
        if (type == NegotiateType)
            Negotiated(body);
        else if (type == MessageType && State == ComponentState.Ready)
            Answered(header[16], BinaryPrimitives.ReadUInt32LittleEndian(header[12..]), body);
        else
            NoteSpurious();
    }

    private void Negotiated(ReadOnlySpan<byte> body)
    {
        if (State != ComponentState.Negotiating || body.Length < 8)
        {
            NoteSpurious();
            return;
        }
        if (BinaryPrimitives.ReadUInt16LittleEndian(body) != 1 || BinaryPrimitives.ReadUInt16LittleEndian(body[2..]) != 1 || body.Length < 16)
        {
            State = ComponentState.Incompatible;
            return;
        }
        Framework = ReadVersion(body[8..]);
        Messages = ReadVersion(body[12..]);
        if (!FrameworkVersions.Contains(Framework) || !MessageVersions.Contains(Messages))
        {
            State = ComponentState.Incompatible;
            return;
        }
        State = ComponentState.Ready;
        Ready();
    }

    private static ComponentVersion ReadVersion(ReadOnlySpan<byte> at) => new(BinaryPrimitives.ReadUInt16LittleEndian(at), BinaryPrimitives.ReadUInt16LittleEndian(at[2..]));

    private byte? Transmit(ushort type, ComponentVersion framework, ComponentVersion messages, ReadOnlySpan<byte> body)
    {
        byte[] packet = new byte[Overhead + body.Length];
        BinaryPrimitives.WriteUInt32LittleEndian(packet, PipeData);
        BinaryPrimitives.WriteInt32LittleEndian(packet.AsSpan(4), Header + body.Length);
        Span<byte> header = packet.AsSpan(PipeHeader);
        BinaryPrimitives.WriteUInt16LittleEndian(header, (ushort)framework.Major);
        BinaryPrimitives.WriteUInt16LittleEndian(header[2..], (ushort)framework.Minor);
        BinaryPrimitives.WriteUInt16LittleEndian(header[4..], type);
        BinaryPrimitives.WriteUInt16LittleEndian(header[6..], (ushort)messages.Major);
        BinaryPrimitives.WriteUInt16LittleEndian(header[8..], (ushort)messages.Minor);
        BinaryPrimitives.WriteUInt16LittleEndian(header[10..], (ushort)body.Length);
        byte number = ++transaction;
        header[16] = number;
        header[17] = RequestFlags;
        body.CopyTo(packet.AsSpan(Overhead));
        return Send(packet) ? number : null;
    }

    /// <inheritdoc/>
    protected internal override string? Save() =>
        string.Create(CultureInfo.InvariantCulture, $"{(int)State} {transaction} {Framework.Major} {Framework.Minor} {Messages.Major} {Messages.Minor}");

    /// <inheritdoc/>
    protected internal override void Restore(string? saved)
    {
        int[] values = [.. (saved ?? "").Split(' ').Take(6).Select(v => int.Parse(v, NumberStyles.None, CultureInfo.InvariantCulture))];
        if (values.Length != 6 || !Enum.IsDefined((ComponentState)values[0]) || values.Any(v => v > ushort.MaxValue))
            throw new FormatException($"the state of {Name} makes no sense");
        State = (ComponentState)values[0];
        transaction = (byte)values[1];
        Framework = new ComponentVersion(values[2], values[3]);
        Messages = new ComponentVersion(values[4], values[5]);
    }
}
