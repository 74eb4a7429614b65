using System.Buffers.Binary;
using Aerostat.Devices;
using Aerostat.Memory;

namespace Aerostat.HyperV;

/// <summary>How dynamic memory is made.</summary>
public sealed record DynamicMemoryOptions
{
    /// <summary>Bytes that the host wants back from the start, besides the spare memory.</summary>
    public ulong TargetBytes { get; init; }

    /// <summary>Memory that is there but that the guest is not told of at its start: it can be added while it runs. Null: none.</summary>
    public MemoryRegion? Spare { get; init; }

    /// <summary>Free pages that the guest reports are taken.</summary>
    public bool Reporting { get; init; } = true;
}

/// <summary>
/// Dynamic memory: Hyper-V's balloon, for Linux's hv_balloon (drivers/hv/hv_balloon.c; there is no public specification), protocol versions 0.3 to 2.0. The
/// guest reports its memory pressure every second; the host asks for pages and gives them back, and adds memory that the guest did not have at its start.
/// Pages that the guest reports as free come by hypercall (<see cref="Report"/>).
/// <para>Not there: removal of added memory but by the balloon, and NUMA nodes.</para>
/// </summary>
/// <remarks>
/// What counts as given is kept here, page by page. Pages that nobody asked for, that are no memory, or that were given before are refused and counted, a
/// range as a whole; what cannot be discarded (pinned) is given all the same, because the protocol has no way to refuse it, and is told.
/// Spare memory that was not added counts as given. One request is in the guest at a time, of bounded size, so that a new target is soon heard of.
/// </remarks>
public sealed partial class DynamicMemory : VmBusDevice, IBalloon
{
    private const int PageShift = 12;
    // 256 MiB up; down a little at a time, because the driver frees pages where it should not stay long.
    private const ulong MostUp = 1 << 16, MostDown = 1 << 14;
    private const double StalledAfterSeconds = 5;
    private static readonly TimeSpan s_rest = TimeSpan.FromSeconds(5);

    private readonly GuestMemory memory;
    private readonly TimeProvider clock;
    private readonly bool reporting;
    private readonly ulong spareFirst, spareEnd;
    private readonly Lock gate = new();
    private readonly FrameSet given;
    // Of those, what the host still holds.
    private readonly FrameSet held;
    private Request request;
    private uint version, number;
    private bool ready, canBalloon, canAdd, addRefused, isHeld;
    private int addShift;
    private ulong target, asked, got, spareNext, added;
    private ulong available, committed, reported;
    private long? statusAt;
    private long progressAt, refused, spurious, statuses;
    private IDisposable? rest;

    /// <summary>What the guest is at.</summary>
    private enum Request
    {
        None,
        Up,
        Down,
        Add,
    }

    /// <summary>Makes the device.</summary>
    public DynamicMemory(GuestMemory memory, TimeProvider clock, DynamicMemoryOptions options)
    {
        ArgumentNullException.ThrowIfNull(memory);
        ArgumentNullException.ThrowIfNull(clock);
        ArgumentNullException.ThrowIfNull(options);
        this.memory = memory;
        this.clock = clock;
        reporting = options.Reporting;
        given = new FrameSet(memory.End >> PageShift);
        held = new FrameSet(memory.End >> PageShift);
        if (options.Spare is { } spare)
            (spareFirst, spareEnd) = (spare.Base.Value >> PageShift, spare.End >> PageShift);
        spareNext = spareFirst;
        target = SparePages + Math.Min(options.TargetBytes >> PageShift, (memory.TotalBytes >> PageShift) - SparePages);
    }

    /// <inheritdoc/>
    public override string Name => "dynamic-memory";

    /// <inheritdoc/>
    public override ChannelOffer Offer { get; } = new(new("525074dc-8985-46e2-8057-a307dc18a502"), new("1eccfd72-4b41-45ef-b73a-4a6e44c12924")) { IsPipe = false };

    /// <inheritdoc/>
    public string Dialect => "hyperv";

    /// <summary>Whether reports of free pages are taken.</summary>
    public bool TakesReports => reporting;

    /// <summary>Messages and ranges that made no sense, since creation.</summary>
    public long Spurious => Volatile.Read(ref spurious);

    /// <summary>Its figures, by name.</summary>
    public IEnumerable<(string Name, long Value)> Counters
    {
        get
        {
            lock (gate)
            {
                return
                [
                    ("pages", (long)given.Count), ("added-pages", (long)added), ("target-pages", (long)target), ("refused-pages", refused), ("reported-bytes", (long)reported),
                    ("status-reports", statuses), ("committed-bytes", (long)committed), ("spurious", spurious),
                ];
            }
        }
    }

    private ulong SparePages => spareEnd - spareFirst;

    // What the guest does not have.
    private ulong Actual => given.Count + SparePages - added;

    private ulong AddChunk => 1UL << addShift;

    // What is left of a chunk cannot be added.
    private bool IsReached => Actual == target || (Actual > target && given.Count == 0 && Actual - target < AddChunk && canAdd);

    /// <inheritdoc/>
    public void SetTarget(ulong bytes)
    {
        if (bytes > memory.TotalBytes)
            throw new ArgumentOutOfRangeException(nameof(bytes), bytes, $"the guest has {memory.TotalBytes} bytes of memory and cannot give {bytes}");
        lock (gate)
        {
            if (target == bytes >> PageShift)
                return;
            target = bytes >> PageShift;
            progressAt = clock.GetTimestamp();
        }
        Bus.Post(() =>
        {
            Wake();
            Drive();
        });
    }

    /// <summary>Does nothing: the guest says how it is every second.</summary>
    public void RequestStatistics()
    {
    }

    /// <inheritdoc/>
    public BalloonReport GetReport()
    {
        lock (gate)
        {
            BalloonReason reason = Reason();
            BalloonStatistics statistics = statusAt is { } at
                ? new BalloonStatistics(
                    new Dictionary<string, ulong> { [GuestFigure.Available] = available, [GuestFigure.Committed] = committed }, clock.GetElapsedTime(at), null)
                : BalloonStatistics.None;
            return new BalloonReport(target << PageShift, Actual << PageShift, Actual << PageShift, reason, reason.Explain("hv_balloon"), refused, reported, statistics);
        }
    }

    private BalloonReason Reason()
    {
        if (IsReached)
            return held.Count > 0 ? BalloonReason.NotDiscarded : BalloonReason.Reached;
        if (!ready)
            return BalloonReason.NoDriver;
        if (Actual < target ? !canBalloon : given.Count == 0 && (!canAdd || addRefused))
            return BalloonReason.Refused;
        return rest is not null || clock.GetElapsedTime(progressAt).TotalSeconds > StalledAfterSeconds ? BalloonReason.Stalled : BalloonReason.Working;
    }

    /// <summary>The guest says by hypercall that it does not use a range until it writes there. A vCPU's thread. False: it is not memory.</summary>
    public bool Report(GuestAddress address, ulong length)
    {
        DiscardResult result = memory.Discard(address, length);
        if (result == DiscardResult.Done)
            Interlocked.Add(ref reported, length);
        // What is pinned is kept: it was only a hint.
        return result is DiscardResult.Done or DiscardResult.Pinned or DiscardResult.Refused;
    }

    /// <summary>While it is held no request is sent: the guest's file systems are frozen.</summary>
    internal void Hold(bool on)
    {
        isHeld = on;
        if (!on)
            Drive();
    }

    /// <summary>Back to the power-on state. The target stays: the next driver starts from it.</summary>
    public void Reset()
    {
        Forget();
        lock (gate)
        {
            added = 0;
            spareNext = spareFirst;
            addRefused = false;
        }
    }

    /// <inheritdoc/>
    protected internal override void Opened() => Forget();

    /// <inheritdoc/>
    protected internal override void Closed() => Forget();

    /// <inheritdoc/>
    protected internal override void Signalled() => Drive();

    /// <inheritdoc/>
    protected internal override void Resumed() => Drive();

    // A driver that starts has forgotten what it ever gave. What was added stays in the guest.
    private void Forget()
    {
        Wake();
        lock (gate)
        {
            given.Clear();
            held.Clear();
            memory.BringAllBack();
            request = Request.None;
            ready = canBalloon = canAdd = isHeld = false;
            version = 0;
            asked = got = 0;
            statusAt = null;
            progressAt = clock.GetTimestamp();
        }
    }

    private void Wake()
    {
        rest?.Dispose();
        rest = null;
    }

    // The guest has nothing to give, or nothing can be added: it is asked again after a while.
    private void Rest()
    {
        Wake();
        rest = Bus.After(s_rest, () =>
        {
            Wake();
            Drive();
        });
    }

    /// <inheritdoc/>
    protected internal override void Received(ulong transaction, ReadOnlySpan<byte> payload)
    {
        int size = payload.Length < DynamicMemoryProtocol.HeaderSize ? 0 : BinaryPrimitives.ReadUInt16LittleEndian(payload[2..]);
        var type = size < DynamicMemoryProtocol.HeaderSize ? default : (DynamicMemoryMessage)BinaryPrimitives.ReadUInt16LittleEndian(payload);
        if (size > payload.Length || size < DynamicMemoryProtocol.LeastSize(type))
        {
            Interlocked.Increment(ref spurious);
            return;
        }
        ReadOnlySpan<byte> message = payload[..size];
        uint theirs = BinaryPrimitives.ReadUInt32LittleEndian(message[4..]);
        switch (type)
        {
            case DynamicMemoryMessage.VersionRequest:
                Negotiate(theirs, BinaryPrimitives.ReadUInt32LittleEndian(message[8..]));
                break;
            case DynamicMemoryMessage.Capabilities:
                TakeCapabilities(theirs, BinaryPrimitives.ReadUInt64LittleEndian(message[8..]));
                break;
            default:
                lock (gate)
                {
                    if (!ready || !Take(type, message))
                        spurious++;
                }
                break;
        }
        Drive();
    }

    // A driver that is told no asks for the next lower one.
    private void Negotiate(uint theirs, uint wanted)
    {
        bool accepted = DynamicMemoryProtocol.IsKnown(wanted);
        lock (gate)
            version = accepted ? wanted : 0;
        Answer(DynamicMemoryMessage.VersionResponse, theirs, accepted);
    }

    private void TakeCapabilities(uint theirs, ulong bits)
    {
        bool accepted;
        lock (gate)
        {
            accepted = version != 0 && !ready;
            if (accepted)
            {
                ready = true;
                canBalloon = (bits & 1) != 0;
                canAdd = (bits & 2) != 0;
                // Base-two logarithm of megabytes.
                addShift = (int)(bits >> 2 & 0xF) + 8;
                progressAt = clock.GetTimestamp();
            }
            else
            {
                spurious++;
            }
        }
        Answer(DynamicMemoryMessage.CapabilitiesResponse, theirs, accepted);
    }

    private void Answer(DynamicMemoryMessage type, uint theirs, bool accepted)
    {
        Span<byte> message = stackalloc byte[16];
        DynamicMemoryProtocol.WriteHeader(message, type, theirs);
        BinaryPrimitives.WriteUInt64LittleEndian(message[8..], accepted ? 1UL : 0);
        Send(message);
    }

    // Gate held. False: it makes no sense now.
    private bool Take(DynamicMemoryMessage type, ReadOnlySpan<byte> message)
    {
        switch (type)
        {
            case DynamicMemoryMessage.Status:
                statuses++;
                statusAt = clock.GetTimestamp();
                ulong most = memory.TotalBytes >> PageShift;
                available = Math.Min(BinaryPrimitives.ReadUInt64LittleEndian(message[8..]), most) << PageShift;
                committed = Math.Min(BinaryPrimitives.ReadUInt64LittleEndian(message[16..]), ulong.MaxValue >> PageShift) << PageShift;
                return true;
            case DynamicMemoryMessage.BalloonResponse when request == Request.Up:
                return TakePages(message);
            case DynamicMemoryMessage.UnballoonResponse when request == Request.Down:
                request = Request.None;
                progressAt = clock.GetTimestamp();
                return true;
            case DynamicMemoryMessage.HotAddResponse when request == Request.Add:
                TakeAdded(BinaryPrimitives.ReadUInt32LittleEndian(message[8..]), BinaryPrimitives.ReadUInt32LittleEndian(message[12..]));
                return true;
            default:
                return false;
        }
    }

    // Gate held. A request is answered in as many messages as the guest likes, the last without the bit for more.
    private bool TakePages(ReadOnlySpan<byte> message)
    {
        uint word = BinaryPrimitives.ReadUInt32LittleEndian(message[12..]);
        int there = (message.Length - DynamicMemoryProtocol.RangesAt) / 8, count = (int)Math.Min(word >> 1, (uint)there);
        bool sound = word >> 1 == (uint)count;
        for (int i = 0; i < count; i++)
        {
            (ulong first, ulong pages) = DynamicMemoryProtocol.Range(BinaryPrimitives.ReadUInt64LittleEndian(message[(DynamicMemoryProtocol.RangesAt + (i * 8))..]));
            sound &= TakeRange(first, pages);
        }
        if ((word & 1) == 0)
        {
            request = Request.None;
            if (got < asked)
                Rest();
        }
        return sound;
    }

    private bool TakeRange(ulong first, ulong pages)
    {
        ulong stop = first + pages;
        if (pages == 0 || pages > asked - got || !memory.Contains(first << PageShift, pages << PageShift)
            || (stop > spareNext && first < spareEnd) || given.CountIn(first, pages) != 0)
            return false;
        given.Set(first, pages, member: true);
        got += pages;
        progressAt = clock.GetTimestamp();
        if (TakeAway(first, pages) == DiscardResult.Done)
            return true;
        for (ulong page = first; page < stop; page++)
        {
            if (TakeAway(page, 1) == DiscardResult.Done)
                continue;
            held.Set(page, 1, member: true);
            refused++;
        }
        return true;
    }

    // The guest does not use them until it is told to have them back.
    private DiscardResult TakeAway(ulong first, ulong pages) => memory.TakeAway(new GuestAddress(first << PageShift), pages << PageShift);

    // Gate held. Pages that were added; with none, a result of 1 means never, and one of 0 not now.
    private void TakeAdded(uint pages, uint result)
    {
        request = Request.None;
        if (pages == 0)
        {
            addRefused |= result != 0;
            Rest();
            return;
        }
        added += Math.Min(pages, asked);
        spareNext += asked;
        progressAt = clock.GetTimestamp();
    }

    // Asks for what is to be done next. The bus's thread.
    private void Drive()
    {
        lock (gate)
        {
            if (!ready || request != Request.None || rest is not null || isHeld || IsReached)
                return;
            if (Actual < target)
            {
                if (canBalloon)
                    AskForPages(Math.Min(target - Actual, MostUp));
            }
            else if (given.Count > 0)
            {
                GivePagesBack(Math.Min(Actual - target, MostDown));
            }
            else if (canAdd && !addRefused && Actual - target >= AddChunk)
            {
                AddMemory();
            }
        }
    }

    // Gate held, as for the next two. A request that does not fit into the ring is made again when the guest has made room.
    private void AskForPages(ulong pages)
    {
        Span<byte> message = stackalloc byte[16];
        message.Clear();
        DynamicMemoryProtocol.WriteHeader(message, DynamicMemoryMessage.BalloonRequest, ++number);
        BinaryPrimitives.WriteUInt32LittleEndian(message[8..], (uint)pages);
        if (Send(message))
            Enter(Request.Up, pages);
    }

    private void GivePagesBack(ulong pages)
    {
        Span<byte> message = stackalloc byte[DynamicMemoryProtocol.LargestMessage];
        message.Clear();
        int count = 0;
        for (ulong from = 0, left = pages; left > 0 && count < DynamicMemoryProtocol.MostRanges && given.TryFindRun(from, left, out ulong first, out ulong run); count++)
        {
            BinaryPrimitives.WriteUInt64LittleEndian(message[(DynamicMemoryProtocol.RangesAt + (count * 8))..], DynamicMemoryProtocol.Range(first, run));
            from = first + run;
            left -= run;
        }
        message = message[..(DynamicMemoryProtocol.RangesAt + (count * 8))];
        DynamicMemoryProtocol.WriteHeader(message, DynamicMemoryMessage.UnballoonRequest, ++number);
        BinaryPrimitives.WriteInt32LittleEndian(message[12..], count);
        // The guest may use them before Send returns.
        ForEachRange(message, count, (first, run) => memory.BringBack(new GuestAddress(first << PageShift), run << PageShift));
        if (!Send(message))
        {
            ForEachRange(message, count, (first, run) => TakeAway(first, run));
            return;
        }
        ForEachRange(message, count, (first, run) =>
        {
            given.Set(first, run, member: false);
            held.Set(first, run, member: false);
        });
        Enter(Request.Down, 0);
    }

    private static void ForEachRange(ReadOnlySpan<byte> message, int count, Action<ulong, ulong> use)
    {
        for (int i = 0; i < count; i++)
        {
            (ulong first, ulong run) = DynamicMemoryProtocol.Range(BinaryPrimitives.ReadUInt64LittleEndian(message[(DynamicMemoryProtocol.RangesAt + (i * 8))..]));
            use(first, run);
        }
    }

    // A chunk at a time, of the size and alignment that the guest has asked for.
    private void AddMemory()
    {
        ulong first = (spareNext + AddChunk - 1) & ~(AddChunk - 1);
        if (first > spareEnd || spareEnd - first < AddChunk)
        {
            addRefused = true;
            return;
        }
        Span<byte> message = stackalloc byte[16];
        DynamicMemoryProtocol.WriteHeader(message, DynamicMemoryMessage.HotAddRequest, ++number);
        BinaryPrimitives.WriteUInt64LittleEndian(message[8..], DynamicMemoryProtocol.Range(first, AddChunk));
        if (!Send(message))
            return;
        spareNext = first;
        Enter(Request.Add, AddChunk);
    }

    private void Enter(Request what, ulong pages)
    {
        request = what;
        asked = pages;
        got = 0;
        progressAt = clock.GetTimestamp();
    }
}
