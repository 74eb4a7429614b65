using System.Buffers.Binary;
using System.Collections.Concurrent;
using Aerostat.Devices;
using Aerostat.Memory;

namespace Aerostat.HyperV;

/// <summary>How a bus is made.</summary>
public sealed record VmBusOptions
{
    /// <summary>The highest version that the guest gets.</summary>
    public VmBusVersion Version { get; init; } = VmBusVersion.Highest;

    /// <summary>Where complaints about the guest go; null: nowhere.</summary>
    public IDeviceLog? Log { get; init; }

    /// <summary>Whether the bus has a thread of its own; else <see cref="VmBusServer.Process"/> is to be called.</summary>
    public bool HasThread { get; init; } = true;
}

/// <summary>
/// The host's end of the VMBus (Linux, drivers/hv; there is no public specification): versions, offers, memory that the guest lends, channels.
/// <para>Not there: monitor pages, sub-channels, sockets (a connect is not answered, which the guest's driver expects of a host that has none).</para>
/// </summary>
/// <remarks>
/// Messages and signals come on vCPUs' threads, are put into bounded queues, and are worked through on the bus's own thread, as is whatever the host
/// wants (<see cref="Post"/>). A guest waits without limit for the answers to what it asks, so every request is answered, with an error if need be.
/// A guest that posts faster than it takes answers is told to try again.
/// </remarks>
public sealed partial class VmBusServer : IMessagePort, IBackgroundDevice
{
    // Control messages that wait to be looked at, answers that wait for the guest, packets of one channel before others have their turn.
    private const int InboxLimit = 64, AnswerLimit = 128, PacketsAtOnce = 64;
    private const int MaxGpadls = 1024, MaxGpadlPages = 1 << 16, LargestPacket = 1 << 16;
    private const int GpadlHeaderSize = 28, GpadlBodySize = 16;
    private const int Few = 8;

    private readonly HyperVPartition partition;
    private readonly GuestMemory memory;
    private readonly TimeProvider clock;
    private readonly VmBusOptions options;
    private readonly VmBusWorker worker;
    private readonly ConcurrentQueue<byte[]> inbox = new();
    private readonly ConcurrentQueue<Action> wishes = new();
    private readonly List<VmBusChannel> channels = [];
    private readonly Dictionary<uint, Gpadl> gpadls = [];
    private readonly byte[] packet = new byte[LargestPacket];
    private int inboxCount, gpadlPages, target, sint;
    private uint nextRelId = 1;
    private VmBusVersion? version;
    private bool offersWanted;
    private long malformed;

    /// <summary>Makes a bus without devices, and its connections in the partition. It stands still until <see cref="Resume"/>.</summary>
    public VmBusServer(HyperVPartition partition, GuestMemory memory, TimeProvider clock, VmBusOptions options, Action<Exception> failed)
    {
        ArgumentNullException.ThrowIfNull(partition);
        ArgumentNullException.ThrowIfNull(options);
        this.partition = partition;
        this.memory = memory;
        this.clock = clock;
        this.options = options;
        worker = new VmBusWorker(Process, failed, options.HasThread);
        partition.Connections.Add(VmBusProtocol.ConnectionId, (IMessagePort)this);
        partition.Connections.Add(VmBusProtocol.ContactConnectionId, (IMessagePort)this);
    }

    /// <summary>The version that has been agreed on; null: none.</summary>
    public VmBusVersion? Version => version;

    /// <summary>Messages and packets that made no sense, since creation.</summary>
    public long Malformed => Volatile.Read(ref malformed);

    /// <summary>VM time.</summary>
    internal TimeProvider Clock => clock;

    /// <summary>Reference time now.</summary>
    internal ulong ReferenceTime => partition.ReferenceTime;

    /// <summary>Adds a device. Before the machine runs, or on the bus's thread.</summary>
    public void Add(VmBusDevice device)
    {
        ArgumentNullException.ThrowIfNull(device);
        device.Attach(this);
        VmBusChannel channel = new(this, device, TakeRelId());
        channels.Add(channel);
        OfferIfWanted(channel);
    }

    /// <summary>Takes a device's channel away and offers it anew, under another number, when the guest has let go of it. The bus's thread.</summary>
    public void Rescind(VmBusDevice device)
    {
        VmBusChannel? channel = Find(device);
        if (channel is null || channel.State is ChannelState.NotOffered or ChannelState.Rescinded)
            return;
        Answer(VmBusProtocol.Message(VmBusMessageType.RescindOffer, channel.RelId));
        Close(channel);
        channel.State = ChannelState.Rescinded;
    }

    /// <summary>Has something done on the bus's thread. Any thread.</summary>
    public void Post(Action wish)
    {
        wishes.Enqueue(wish);
        worker.Signal();
    }

    /// <summary>Has something done on the bus's thread after a while of VM time; disposing of the answer prevents it.</summary>
    internal IDisposable After(TimeSpan wait, Action what)
    {
        Alarm alarm = new();
        alarm.Timer = clock.CreateTimer(_ => Post(() =>
        {
            if (!alarm.IsOff)
                what();
        }), null, wait, Timeout.InfiniteTimeSpan);
        return alarm;
    }

    HypercallStatus IMessagePort.Post(uint type, ReadOnlySpan<byte> payload)
    {
        if (type != VmBusProtocol.MessageType || payload.Length < VmBusProtocol.HeaderSize)
        {
            Interlocked.Increment(ref malformed);
            return HypercallStatus.InvalidParameter;
        }
        if (Volatile.Read(ref inboxCount) >= InboxLimit || partition.Processors[Volatile.Read(ref target)].Waiting(Volatile.Read(ref sint)) >= AnswerLimit)
            return HypercallStatus.InsufficientBuffers;
        Interlocked.Increment(ref inboxCount);
        inbox.Enqueue(payload.ToArray());
        worker.Signal();
        return HypercallStatus.Success;
    }

    internal void Wake() => worker.Signal();

    /// <inheritdoc/>
    public void Quiesce() => worker.Pause();

    /// <inheritdoc/>
    public void Resume()
    {
        Post(() =>
        {
            foreach (VmBusChannel channel in channels.ToArray())
                channel.Device.Resumed();
        });
        worker.Resume();
    }

    /// <inheritdoc/>
    public void Stop() => worker.Stop();

    /// <summary>Does what there is to do. The bus's thread, or a test's.</summary>
    internal void Process()
    {
        // As many as there are now: whoever makes new ones wakes the thread again.
        for (int i = wishes.Count; i > 0 && wishes.TryDequeue(out Action? wish); i--)
            wish();
        for (int i = inbox.Count; i > 0 && inbox.TryDequeue(out byte[]? message); i--)
        {
            Interlocked.Decrement(ref inboxCount);
            Handle(message);
        }
        foreach (VmBusChannel channel in channels.ToArray())
        {
            if (!channel.TakeSignal())
                continue;
            if (channel is { State: ChannelState.Open, IsBroken: false })
                channel.Device.Signalled();
            Drain(channel);
        }
    }

    /// <summary>Back to the power-on state: the guest starts anew. The bus stands still.</summary>
    public void Reset()
    {
        inbox.Clear();
        Volatile.Write(ref inboxCount, 0);
        Disconnect();
        foreach (VmBusChannel channel in channels)
            channel.Device.GuestReset();
    }

    internal bool IsOpen(VmBusDevice device) => Find(device) is { State: ChannelState.Open, IsBroken: false };

    /// <summary>Looks for a device's packets again, as if the guest had signalled. Any thread.</summary>
    internal void Poll(VmBusDevice device) => Post(() => Find(device)?.Signal(0));

    internal bool Send(VmBusDevice device, ushort type, ReadOnlySpan<byte> payload, ulong transaction)
    {
        VmBusChannel? channel = Find(device);
        if (channel?.Outgoing is not { } ring || channel.IsBroken)
            return false;
        RingWrite result = ring.TryWrite(type, transaction, payload);
        if (result == RingWrite.Corrupt)
            Break(channel, "its incoming ring");
        if (result == RingWrite.DoneAndSignal)
            SignalGuest(channel);
        return result is RingWrite.Done or RingWrite.DoneAndSignal;
    }

    private VmBusChannel? Find(VmBusDevice device) => channels.Find(c => c.Device == device);

    private VmBusChannel? Find(uint relId) => channels.Find(c => c.RelId == relId);

    private void SignalGuest(VmBusChannel channel) => partition.Processors[channel.TargetProcessor].Signal(sint, (int)channel.RelId);

    private void Drain(VmBusChannel channel)
    {
        if (channel.Incoming is not { } ring || channel.IsBroken)
            return;
        ring.Mask();
        int count = 0;
        do
        {
            while (true)
            {
                // Still masked: the device says when it can go on.
                if (channel.Device.IsBusy)
                    return;
                RingRead result = ring.TryRead(packet, out PacketHead head, out int length, out bool wakesWriter);
                if (result == RingRead.Empty)
                    break;
                if (result == RingRead.Corrupt)
                {
                    Break(channel, "its outgoing ring");
                    return;
                }
                if (wakesWriter)
                    SignalGuest(channel);
                bool taken = result != RingRead.TooLong;
                if (taken && head.Type == PacketHead.Data)
                    channel.Device.Received(head.Transaction, packet.AsSpan(0, length));
                else
                    taken = taken && head.Type == PacketHead.GuestPages && channel.Device.ReceivedDirect(head.Transaction, packet.AsSpan(length, head.Area), packet.AsSpan(0, length));
                if (!taken)
                    Complain($"{channel.Device.Name}: a packet of type {head.Type} that nobody here takes");
                // The device may have lost its channel over it.
                if (channel.Incoming != ring)
                    return;
                if (++count >= PacketsAtOnce)
                {
                    channel.Signal(0);
                    return;
                }
            }
        }
        while (ring.Unmask());
    }

    private void Break(VmBusChannel channel, string what)
    {
        channel.IsBroken = true;
        Complain($"{channel.Device.Name}: the guest has broken {what}; nothing goes through it until it is opened again");
        channel.Device.Closed();
    }

    // A guest may make as many mistakes as it likes; a few are told.
    private void Complain(string message)
    {
        long number = Interlocked.Increment(ref malformed);
        if (number <= Few || long.IsPow2(number))
            options.Log?.Warn("vmbus", number > Few ? $"{message} (number {number}; most are left out)" : message);
    }

    private void Answer(byte[] message)
    {
        if (!partition.Processors[target].Post(sint, new SynicMessage(VmBusProtocol.MessageType, 0, message)))
            Complain("the guest takes no answers");
    }

    private uint TakeRelId()
    {
        // Numbers go round, so that one which the guest has just forgotten is not used again at once.
        for (int i = 0; i < VmBusProtocol.MaxRelId; i++)
        {
            uint id = nextRelId;
            nextRelId = id % VmBusProtocol.MaxRelId + 1;
            if (Find(id) is null)
                return id;
        }
        throw new InvalidOperationException("a VMBus has at most 2047 channels");
    }

    private void OfferIfWanted(VmBusChannel channel)
    {
        if (!offersWanted || channel.State != ChannelState.NotOffered)
            return;
        channel.State = ChannelState.Offered;
        Answer(VmBusProtocol.Offer(channel.Device.Offer, channel.RelId));
    }

    private void Close(VmBusChannel channel)
    {
        if (channel.State != ChannelState.Open)
            return;
        partition.Connections.Remove(VmBusProtocol.SignalConnection(channel.RelId));
        bool told = channel.IsBroken;
        channel.Close();
        if (!told)
            channel.Device.Closed();
    }

    // The guest has left, or another has come after it: nothing of what was agreed on holds.
    private void Disconnect()
    {
        foreach (VmBusChannel channel in channels.ToArray())
        {
            Close(channel);
            if (channel.State == ChannelState.Rescinded)
                Replace(channel);
            else
                channel.State = ChannelState.NotOffered;
        }
        gpadls.Clear();
        gpadlPages = 0;
        offersWanted = false;
        version = null;
    }

    // A device that was taken away comes back under another number.
    private void Replace(VmBusChannel channel)
    {
        VmBusChannel next = new(this, channel.Device, TakeRelId());
        channels[channels.IndexOf(channel)] = next;
        OfferIfWanted(next);
    }

    private sealed class Alarm : IDisposable
    {
        public ITimer? Timer { get; set; }

        public bool IsOff { get; private set; }

        public void Dispose()
        {
            IsOff = true;
            Timer?.Dispose();
        }
    }
}
