using System.Buffers.Binary;
using System.Collections.Concurrent;
using Aerostat.Memory;
using Aerostat.Platform;
using Aerostat.Storage;

namespace Aerostat.HyperV;

/// <summary>A disk on a storage controller.</summary>
/// <param name="Name">Its name, such as "disk0".</param>
/// <param name="Contents">What is on it; disposed of by the caller after <see cref="StorageController.Stop"/>.</param>
/// <param name="Serial">ASCII characters by which a guest can tell it; may be empty.</param>
public sealed record StorageDisk(string Name, IDisk Contents, string Serial);

/// <summary>
/// The synthetic SCSI controller, for Linux's hv_storvsc (drivers/scsi/storvsc_drv.c; there is no public specification), versions 2.0 to 6.2: one bus with one target,
/// whose LUNs are the disks. Requests come in the channel's ring and name guest pages for their data; a few threads of the controller's own carry them out on guest
/// memory in place, so that neither a vCPU nor the bus waits for a disk.
/// <para>Not there: sub-channels (a guest that asks for them is told no, and goes on with one), fibre channel, coming and going of disks.</para>
/// </summary>
/// <remarks>
/// Every request is completed, whatever it says. So many may be under way; more stay in the ring, which the guest feels when it is full. Completions that find no
/// room wait for the guest to make some. When the channel closes, requests that have begun are carried out first: then the guest's memory is its own again.
/// </remarks>
public sealed partial class StorageController : VmBusDevice
{
    /// <summary>Most disks.</summary>
    public const int MostDisks = 64;

    /// <summary>Most bytes of one request.</summary>
    public const int MostBytes = 1 << 20;

    private const int Threads = 4, MostOutstanding = 256;

    private readonly GuestMemory memory;
    private readonly ScsiDisk[] disks;
    private readonly WorkerPool workers;
    private readonly ConcurrentQueue<Request> waiting = new(), done = new();
    // Taken from the ring and not completed. The bus's thread only.
    private int outstanding;
    private ushort version;
    private bool initialized;
    private long malformed, refused;

    /// <summary>Makes a controller; its threads stand still until <see cref="Resume"/>.</summary>
    /// <param name="disks">The disks, by LUN.</param>
    /// <param name="memory">Guest memory.</param>
    /// <param name="failed">Takes what a thread throws.</param>
    public StorageController(IReadOnlyList<StorageDisk> disks, GuestMemory memory, Action<Exception> failed)
    {
        ArgumentNullException.ThrowIfNull(disks);
        ArgumentNullException.ThrowIfNull(memory);
        ArgumentOutOfRangeException.ThrowIfGreaterThan(disks.Count, MostDisks, nameof(disks));
        this.memory = memory;
        this.disks = [.. disks.Select(d => new ScsiDisk(d.Name, d.Contents, d.Serial, MostBytes))];
        workers = new WorkerPool("scsi", Threads, Serve, failed, paused: true);
    }

    // A packet of the guest's, which becomes its completion, and its pages; null: they made no sense.
    private sealed record Request(ulong Transaction, byte[] Packet, GuestPages? Pages);

    /// <inheritdoc/>
    public override string Name => "scsi";

    /// <inheritdoc/>
    public override ChannelOffer Offer { get; } = new(new("ba6163d9-04a1-4d29-b605-72e2ffb1dc7f"), new("5c1f3a9e-7d42-4b68-9e05-2a6b8f0c4d17")) { IsPipe = false };

    /// <summary>Packets that made no sense, since creation.</summary>
    public long Malformed => Volatile.Read(ref malformed);

    /// <summary>The figures, by name: of the controller, and of each disk under its name.</summary>
    public IEnumerable<(string Name, long Value)> Counters =>
    [
        ("scsi-malformed", Malformed), ("scsi-refused", Volatile.Read(ref refused)),
        .. disks.SelectMany(d => d.Counters.Select(c => ($"{d.Name}-{c.Name}", c.Value))),
    ];

    /// <inheritdoc/>
    protected internal override bool IsBusy => outstanding >= MostOutstanding;

    /// <summary>Lets the threads go on.</summary>
    public void Resume()
    {
        workers.Resume();
        for (int i = Math.Min(waiting.Count, Threads); i > 0; i--)
            workers.Signal();
        // What was done while the bus stood still.
        if (!done.IsEmpty)
            Bus.Post(Flush);
    }

    /// <summary>Waits until no thread touches guest memory.</summary>
    public void Quiesce() => workers.Pause();

    /// <summary>Ends the threads.</summary>
    public void Stop() => workers.Stop();

    /// <summary>Waits until nothing is left to do. For tests.</summary>
    internal void WaitUntilIdle() => workers.WaitUntilIdle();

    /// <inheritdoc/>
    protected internal override void Opened() => Forget();

    /// <inheritdoc/>
    protected internal override void Closed() => Forget();

    /// <inheritdoc/>
    protected internal override void Signalled() => Flush();

    private void Forget()
    {
        workers.Pause();
        waiting.Clear();
        done.Clear();
        outstanding = 0;
        initialized = false;
        version = 0;
        workers.Resume();
    }

    /// <inheritdoc/>
    protected internal override void Received(ulong transaction, ReadOnlySpan<byte> payload) => Take(transaction, GuestPages.None(memory), payload);

    /// <inheritdoc/>
    protected internal override bool ReceivedDirect(ulong transaction, ReadOnlySpan<byte> pages, ReadOnlySpan<byte> payload)
    {
        Take(transaction, GuestPages.Parse(memory, pages, MostBytes), payload);
        return true;
    }

    private void Take(ulong transaction, GuestPages? pages, ReadOnlySpan<byte> payload)
    {
        // Too short to be answered in kind.
        if (payload.Length < StorageProtocol.LeastPacket)
        {
            malformed++;
            return;
        }
        Request request = new(transaction, payload[..Math.Min(payload.Length, StorageProtocol.PacketSize)].ToArray(), pages);
        outstanding++;
        if (StorageProtocol.Operation(request.Packet) == StorageOperation.ExecuteSrb && initialized)
        {
            waiting.Enqueue(request);
            workers.Signal();
            return;
        }
        StorageProtocol.Complete(request.Packet, Control(request.Packet));
        done.Enqueue(request);
        Flush();
    }

    // Everything that is not SCSI. Answers the status; a property goes into the packet.
    private uint Control(Span<byte> packet)
    {
        switch (StorageProtocol.Operation(packet))
        {
            case StorageOperation.BeginInitialization:
                initialized = false;
                version = 0;
                return StorageProtocol.Success;
            case StorageOperation.QueryVersion:
                ushort wanted = BinaryPrimitives.ReadUInt16LittleEndian(packet[StorageProtocol.BodyAt..]);
                if (!StorageProtocol.IsKnown(wanted))
                    return StorageProtocol.RevisionMismatch;
                version = wanted;
                return StorageProtocol.Success;
            case StorageOperation.QueryProperties:
                // No more channels than this one.
                packet[StorageProtocol.BodyAt..].Clear();
                BinaryPrimitives.WriteInt32LittleEndian(packet[(StorageProtocol.BodyAt + 12)..], MostBytes);
                return StorageProtocol.Success;
            case StorageOperation.EndInitialization:
                initialized = version != 0;
                return initialized ? StorageProtocol.Success : StorageProtocol.NotReady;
            // Whatever is under way is completed all the same.
            case StorageOperation.ResetLun or StorageOperation.ResetAdapter or StorageOperation.ResetBus:
                return StorageProtocol.Success;
            case StorageOperation.ExecuteSrb:
                return StorageProtocol.NotReady;
            case StorageOperation.CreateSubChannels:
                return StorageProtocol.NotSupported;
            default:
                malformed++;
                return StorageProtocol.NotSupported;
        }
    }

    // The bus's thread.
    private void Flush()
    {
        bool wasBusy = IsBusy;
        while (done.TryPeek(out Request? request) && SendCompletion(request.Packet, request.Transaction))
        {
            // Unless the channel was closed over it.
            if (done.TryDequeue(out _))
                outstanding--;
        }
        if (wasBusy && !IsBusy)
            Bus.Poll(this);
    }

    // The controller's threads.
    private void Serve()
    {
        while (!workers.IsPausing && waiting.TryDequeue(out Request? request))
        {
            CarryOut(request);
            done.Enqueue(request);
            Bus.Post(Flush);
        }
    }

    private void CarryOut(Request request)
    {
        Span<byte> packet = request.Packet;
        byte lun = packet[StorageProtocol.LunAt];
        ScsiDisk? disk = packet[StorageProtocol.PathAt] == 0 && packet[StorageProtocol.TargetAt] == 0 && lun < disks.Length ? disks[lun] : null;
        int moved = 0;
        ScsiSense sense = ScsiSense.None;
        byte status = StorageProtocol.SrbSuccess;
        Span<byte> command = stackalloc byte[StorageProtocol.LongestCommand];
        packet.Slice(StorageProtocol.CommandAt, StorageProtocol.LongestCommand).CopyTo(command);
        if (request.Pages is not { } pages || packet[StorageProtocol.CommandLengthAt] is 0 or > StorageProtocol.LongestCommand)
        {
            Interlocked.Increment(ref malformed);
            status = StorageProtocol.SrbInvalidRequest;
        }
        else if (command[0] == 0xA0)
        {
            moved = ReportLuns(packet, command, pages);
        }
        else if (disk is not null)
        {
            sense = disk.Execute(command, pages, out moved);
        }
        else if (command[0] == 0x12)
        {
            // SPC-4, 6.4.2: that there is nothing is said by INQUIRY itself.
            moved = (command[1] & 1) == 0 ? pages.Write(ScsiPages.Standard(present: false).AsSpan(0, Math.Min(36, (int)BinaryPrimitives.ReadUInt16BigEndian(command[3..])))) : 0;
        }
        else
        {
            status = StorageProtocol.SrbInvalidLun;
        }
        Finish(packet, status, sense, moved);
    }

    // SPC-4, 6.33. Targets that are not there have none: the guest need not try one after the other.
    private int ReportLuns(ReadOnlySpan<byte> packet, ReadOnlySpan<byte> command, GuestPages pages)
    {
        int count = packet[StorageProtocol.PathAt] == 0 && packet[StorageProtocol.TargetAt] == 0 ? disks.Length : 0;
        Span<byte> list = stackalloc byte[8 + (8 * MostDisks)];
        list.Clear();
        BinaryPrimitives.WriteInt32BigEndian(list, count * 8);
        for (int lun = 0; lun < count; lun++)
            list[8 + (lun * 8) + 1] = (byte)lun;
        return pages.Write(list[..(int)Math.Min(8 + (8 * count), BinaryPrimitives.ReadUInt32BigEndian(command[6..]))]);
    }

    private void Finish(Span<byte> packet, byte status, ScsiSense sense, int moved)
    {
        const byte checkCondition = 2;
        int room = Math.Min(Math.Min((int)packet[StorageProtocol.SenseLengthAt], StorageProtocol.LongestSense), packet.Length - StorageProtocol.CommandAt);
        packet[StorageProtocol.ScsiStatusAt] = 0;
        packet[StorageProtocol.SenseLengthAt] = 0;
        if (sense != ScsiSense.None)
        {
            status = StorageProtocol.SrbError;
            packet[StorageProtocol.ScsiStatusAt] = checkCondition;
            if (room >= ScsiSense.Length)
            {
                status |= StorageProtocol.SrbSenseValid;
                packet[StorageProtocol.SenseLengthAt] = ScsiSense.Length;
                sense.Write(packet[StorageProtocol.CommandAt..]);
            }
        }
        if (status != StorageProtocol.SrbSuccess)
            Interlocked.Increment(ref refused);
        packet[StorageProtocol.SrbStatusAt] = status;
        BinaryPrimitives.WriteInt32LittleEndian(packet[StorageProtocol.TransferAt..], moved);
        StorageProtocol.Complete(packet, StorageProtocol.Success);
    }
}
