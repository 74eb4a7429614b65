using System.Buffers.Binary;
using System.Runtime.InteropServices;
using Aerostat.Devices;
using Aerostat.Memory;
using Aerostat.State;

namespace Aerostat.Virtio;

/// <summary>
/// A memory balloon: virtio 1.2, 5.5, with free page hints and reporting, and the statistics that Linux has added. Pages the guest gives, or
/// reports as free, go back to the host at once.
/// <para>Not emulated: page sizes other than 4 KiB (the protocol has no others).</para>
/// </summary>
/// <remarks>
/// Nothing the guest says is trusted: the size is counted here, page by page; pages that are given twice, taken back without having been
/// given, or are not memory are ignored; every buffer is given back, because drivers wait for it. One thread serves all queues.
/// </remarks>
public sealed partial class VirtioBalloon : VirtioDevice, IBalloon, ISavable<VirtioBalloonSavedState>
{
    private const ulong FeatureMustTellHost = 1 << 0, FeatureStatistics = 1 << 1, FeatureDeflateOnOom = 1 << 2, FeatureHints = 1 << 3,
        FeaturePagePoison = 1 << 4, FeatureReporting = 1 << 5;

    private const int PageShift = 12;
    // More than a driver sends in one buffer (Linux: 256), but bounded.
    private const int MostFrames = 1 << 16, FramesAtOnce = 1024;
    private const int TagSize = 10, MostTags = 256;
    private const double StalledAfterSeconds = 5;

    private readonly BalloonDeviceOptions _options;
    private readonly TimeProvider _clock;
    private readonly DescriptorChain _chain = new();
    private readonly PageSet _given;
    // Of those, what the host still holds.
    private readonly PageSet _held;
    private readonly ITimer? _timer;
    private readonly Dictionary<ushort, ulong> _statistics = [];
    private readonly uint[] _frames = new uint[FramesAtOnce];
    private Role[] _roles = [];
    private uint _target, _guestActual, _poison;
    private ChainTicket? _parked;
    private bool _statisticsWanted, _tellConfig;
    private long? _statisticsAt, _askedAt;
    private long _progressAt;
    private bool _deflatedUnasked;
    private long _refused;
    private ulong _reported;

    private enum Role
    {
        None,
        Inflate,
        Deflate,
        Statistics,
        Hints,
        Reporting,
    }

    /// <summary>Makes the device.</summary>
    /// <param name="name">Its name.</param>
    /// <param name="options">What it offers.</param>
    /// <param name="context">The machine; its clock is needed.</param>
    public VirtioBalloon(string name, BalloonDeviceOptions options, VirtioContext context)
        : base(name, VirtioDeviceId.Balloon, FeaturesOf(options), [256, 256, 256, 1024, 256], context)
    {
        _options = options;
        _clock = context.Clock ?? TimeProvider.System;
        _given = new PageSet(Memory.End >> PageShift);
        _held = new PageSet(Memory.End >> PageShift);
        _target = PagesOf(options.TargetBytes);
        if (options.StatisticsInterval > TimeSpan.Zero)
            _timer = _clock.CreateTimer(_ => RequestStatistics(), null, options.StatisticsInterval, options.StatisticsInterval);
    }

    /// <inheritdoc/>
    public override int ConfigLength => 16;

    /// <inheritdoc/>
    public override IEnumerable<(string Name, long Value)> Counters =>
        [.. base.Counters, ("pages", (long)_given.Count), ("target-pages", _target), ("refused-pages", Volatile.Read(ref _refused)), ("reported-bytes", (long)Volatile.Read(ref _reported))];

    private static ulong FeaturesOf(BalloonDeviceOptions options)
    {
        ArgumentNullException.ThrowIfNull(options);
        return FeatureMustTellHost | FeatureStatistics | FeaturePagePoison
            | (options.DeflateOnOom ? FeatureDeflateOnOom : 0) | (options.Hinting ? FeatureHints : 0) | (options.Reporting ? FeatureReporting : 0)
            | (options.Packed ? VirtioFeatures.RingPacked : 0);
    }

    private static uint PagesOf(ulong bytes) => (uint)Math.Min(bytes >> PageShift, uint.MaxValue);

    /// <inheritdoc/>
    public string Dialect => "virtio";

    /// <inheritdoc/>
    public void SetTarget(ulong bytes)
    {
        if (bytes > Memory.TotalBytes)
            throw new ArgumentOutOfRangeException(nameof(bytes), bytes, $"the guest has {Memory.TotalBytes} bytes of memory and cannot give {bytes}");
        lock (Gate)
        {
            uint pages = PagesOf(bytes);
            if (pages == _target)
                return;
            _target = pages;
            _deflatedUnasked = false;
            _progressAt = _clock.GetTimestamp();
            ConfigChanged();
        }
    }

    /// <inheritdoc/>
    public void RequestStatistics()
    {
        lock (Gate)
            _statisticsWanted = true;
        SignalWork();
    }

    /// <inheritdoc/>
    public BalloonReport GetReport()
    {
        lock (Gate)
        {
            BalloonReason reason = Reason();
            return new BalloonReport(
                (ulong)_target << PageShift, _given.Count << PageShift, (ulong)_guestActual << PageShift, reason, reason.Explain("virtio_balloon"), _refused, _reported,
                new BalloonStatistics(_statistics.ToDictionary(s => BalloonTags.NameOf(s.Key), s => s.Value), Since(_statisticsAt), Since(_askedAt)));
        }
    }

    private TimeSpan? Since(long? stamp) => stamp is { } at ? _clock.GetElapsedTime(at) : null;

    private BalloonReason Reason()
    {
        if (!IsRunning)
            return _target == 0 && _given.Count == 0 ? BalloonReason.Reached : Complained ? BalloonReason.DriverFailed : BalloonReason.NoDriver;
        if (_given.Count == _target || _guestActual == _target)
            return _held.Count > 0 ? BalloonReason.NotDiscarded : BalloonReason.Reached;
        if (_deflatedUnasked)
            return BalloonReason.DeflatedOnOom;
        return _clock.GetElapsedTime(_progressAt).TotalSeconds > StalledAfterSeconds ? BalloonReason.Stalled : BalloonReason.Working;
    }

    /// <inheritdoc/>
    protected override void FillConfig(Span<byte> space)
    {
        BinaryPrimitives.WriteUInt32LittleEndian(space, _target);
        BinaryPrimitives.WriteUInt32LittleEndian(space[4..], _guestActual);
        BinaryPrimitives.WriteUInt32LittleEndian(space[8..], _protocol.CommandId);
        BinaryPrimitives.WriteUInt32LittleEndian(space[12..], _poison);
    }

    /// <inheritdoc/>
    protected override void OnConfigWritten(int offset, ReadOnlySpan<byte> bytes)
    {
        // Old drivers write the field byte by byte; nothing here depends on it being whole.
        Span<byte> space = stackalloc byte[16];
        FillConfig(space);
        bytes.CopyTo(space[offset..]);
        _guestActual = BinaryPrimitives.ReadUInt32LittleEndian(space[4..]);
        _poison = BinaryPrimitives.ReadUInt32LittleEndian(space[12..]);
    }

    /// <inheritdoc/>
    protected override void OnStarted()
    {
        AssignRoles();
        _progressAt = _clock.GetTimestamp();
    }

    /// <inheritdoc/>
    protected override void OnReset()
    {
        // The target stays: the next driver starts from it. Memory that was given comes back as the guest touches it.
        _given.Clear();
        _held.Clear();
        Memory.BringAllBack();
        _guestActual = _poison = 0;
        _parked = null;
        _askedAt = null;
        _deflatedUnasked = false;
        ForgetHints();
    }

    /// <inheritdoc/>
    protected override void OnQueueReset(Virtqueue queue)
    {
        if (RoleOf(queue) == Role.Statistics)
            (_parked, _askedAt) = (null, null);
        if (RoleOf(queue) == Role.Hints)
            ForgetHints();
    }

    // The specification numbers the queues 0 to 4 whatever was negotiated; Linux numbers only those whose feature was. Where that makes a
    // difference, the highest queue that is enabled tells.
    private void AssignRoles()
    {
        List<Role> compact = [Role.Inflate, Role.Deflate];
        if (HasFeature(FeatureStatistics))
            compact.Add(Role.Statistics);
        if (HasFeature(FeatureHints))
            compact.Add(Role.Hints);
        if (HasFeature(FeatureReporting))
            compact.Add(Role.Reporting);
        bool fixedNumbers = Queues.Skip(compact.Count).Any(q => q.Enabled);
        _roles = fixedNumbers ? [Role.Inflate, Role.Deflate, Role.Statistics, Role.Hints, Role.Reporting] : [.. compact];
    }

    private Role RoleOf(Virtqueue queue) => queue.Index < _roles.Length ? _roles[queue.Index] : Role.None;

    /// <inheritdoc/>
    protected override void Serve()
    {
        foreach (Virtqueue queue in Queues)
        {
            while (!IsPausing)
            {
                Step();
                Role role;
                lock (Gate)
                {
                    role = RoleOf(queue);
                    if (role == Role.None || !queue.TryTake(_chain))
                    {
                        if (role != Role.None && queue.EnableNotification())
                            continue;
                        break;
                    }
                    BeginWork(queue);
                }
                bool keep = false;
                try
                {
                    switch (role)
                    {
                        case Role.Inflate:
                            keep = TakeFrames(queue, given: true);
                            break;
                        case Role.Deflate:
                            keep = TakeFrames(queue, given: false);
                            break;
                        case Role.Statistics:
                            keep = TakeStatistics(queue);
                            break;
                        case Role.Hints:
                            TakeHints();
                            break;
                        default:
                            TakeReport();
                            break;
                    }
                    Step();
                }
                finally
                {
                    lock (Gate)
                    {
                        if (!keep)
                        {
                            queue.Complete(_chain, 0);
                            queue.Signal();
                        }
                        EndWork(queue);
                    }
                }
            }
        }
        ServeHost();
    }

    // What the host wants of the driver.
    private void ServeHost()
    {
        bool finished;
        lock (Gate)
        {
            if (_statisticsWanted && IsRunning && _parked is { } ticket && !IsPausing)
            {
                Virtqueue? queue = Queues.FirstOrDefault(q => RoleOf(q) == Role.Statistics);
                queue?.Complete(ticket, 0);
                queue?.Signal();
                _parked = null;
                _askedAt = _clock.GetTimestamp();
                _statisticsWanted = false;
            }
            if (_tellConfig && IsRunning && !IsPausing)
            {
                _tellConfig = false;
                ConfigChanged();
            }
            finished = _hintsFinished;
            _hintsFinished = false;
        }
        if (finished)
            TellHintsFinished(complete: false);
    }

    // An array of page frame numbers, usually from the highest down. True: the driver has its buffer back already.
    //
    // A driver that has promised to ask before it uses a page again (MUST_TELL_HOST, 5.5.6.1) gets its buffer back before the pages are gone, so
    // that it looks for further ones meanwhile: it will ask on the other queue, and this thread takes that up when it is done here. A reset waits too.
    private bool TakeFrames(Virtqueue queue, bool given)
    {
        ulong length = Math.Min(_chain.ReadableLength / sizeof(uint), MostFrames) * sizeof(uint);
        bool early = given && length <= FramesAtOnce * sizeof(uint) && HasFeature(FeatureMustTellHost);
        for (ulong at = 0; at < length;)
        {
            Span<uint> frames = _frames.AsSpan(0, (int)Math.Min(FramesAtOnce, (length - at) / sizeof(uint)));
            if (_chain.Read(Memory, at, MemoryMarshal.AsBytes(frames)) < frames.Length * sizeof(uint))
                return false;
            if (early)
            {
                lock (Gate)
                {
                    queue.Complete(_chain, 0);
                    queue.Signal();
                }
            }
            at += (ulong)frames.Length * sizeof(uint);
            frames.Sort();
            for (int i = 0; i < frames.Length;)
            {
                ulong first = frames[i], last = first;
                for (i++; i < frames.Length && frames[i] <= last + 1; i++)
                    last = frames[i];
                Move(first, last - first + 1, given);
            }
        }
        return early && length > 0;
    }

    // A driver that need not tell may use a page before it says that it has it back (virtio 1.2, 5.5.6), so then the memory goes at once.
    private DiscardResult TakeAway(ulong first, ulong count)
    {
        GuestAddress address = new(first << PageShift);
        return HasFeature(FeatureMustTellHost) ? Memory.TakeAway(address, count << PageShift) : Memory.Discard(address, count << PageShift);
    }

    // Pages that the guest gives (or takes back), as one run.
    private void Move(ulong first, ulong count, bool given)
    {
        bool whole = Memory.Contains(first << PageShift, count << PageShift);
        if (!whole && count > 1)
        {
            for (ulong page = first; page < first + count; page++)
                Move(page, 1, given);
            return;
        }
        if (!whole)
            return;
        Step();
        DiscardResult result = DiscardResult.Done;
        if (given)
            result = TakeAway(first, count);
        else
            Memory.BringBack(new GuestAddress(first << PageShift), count << PageShift);
        lock (Gate)
        {
            if (result != DiscardResult.Done)
                _refused += (long)count;
            for (ulong page = first; page < first + count; page++)
            {
                _given.Set(page, given);
                _held.Set(page, result != DiscardResult.Done);
            }
            _progressAt = _clock.GetTimestamp();
            if (!given && _given.Count < _target && HasFeature(FeatureDeflateOnOom))
                _deflatedUnasked = true;
            else if (given)
                _deflatedUnasked = false;
        }
    }

    // True: the buffer is kept until statistics are wanted again.
    private bool TakeStatistics(Virtqueue queue)
    {
        int length = (int)Math.Min(_chain.ReadableLength, MostTags * TagSize);
        Span<byte> bytes = stackalloc byte[MostTags * TagSize];
        length = _chain.Read(Memory, 0, bytes[..length]);
        lock (Gate)
        {
            for (int at = 0; at + TagSize <= length; at += TagSize)
            {
                // A guest may invent tags for ever, but only so many are kept.
                ushort tag = BinaryPrimitives.ReadUInt16LittleEndian(bytes[at..]);
                if (_statistics.Count < MostTags || _statistics.ContainsKey(tag))
                    _statistics[tag] = BinaryPrimitives.ReadUInt64LittleEndian(bytes[(at + 2)..]);
            }
            _statisticsAt = _clock.GetTimestamp();
            _askedAt = null;
            // One is kept; of two the older goes back.
            ChainTicket ticket = new(_chain);
            if (_parked is { } older && queue.IsCurrent(older))
            {
                queue.Complete(older, 0);
                queue.Signal();
            }
            _parked = queue.IsCurrent(ticket) ? ticket : null;
            return true;
        }
    }

    // Free pages, which the guest does not touch until it has the buffer back.
    private void TakeReport()
    {
        bool poisoned;
        lock (Gate)
            poisoned = HasFeature(FeaturePagePoison) && _poison != 0;
        // A discarded page reads as zeros, which is not what the guest filled it with.
        if (poisoned)
            return;
        for (int i = _chain.ReadableCount; i < _chain.Count; i++)
        {
            Step();
            (GuestAddress address, uint length, _) = _chain[i];
            ulong first = (address.Value + 4095) & ~4095UL, last = (address.Value + length) & ~4095UL;
            if (first < last && Memory.Discard(new GuestAddress(first), last - first) == DiscardResult.Done)
                Interlocked.Add(ref _reported, last - first);
        }
    }

    /// <inheritdoc/>
    public override void Stop()
    {
        _timer?.Dispose();
        base.Stop();
    }

    /// <inheritdoc/>
    public VirtioBalloonSavedState Save()
    {
        lock (Gate)
        {
            return new VirtioBalloonSavedState
            {
                Device = SaveDevice(),
                Target = _target,
                GuestActual = _guestActual,
                Poison = _poison,
                LastCommandId = _protocol.LastCommandId,
                Given = _given.ToRuns(),
                ParkedId = _parked?.Id,
                ParkedDescriptors = _parked?.RingDescriptors ?? 0,
            };
        }
    }

    /// <inheritdoc/>
    public void Restore(VirtioBalloonSavedState state)
    {
        ArgumentNullException.ThrowIfNull(state);
        lock (Gate)
        {
            RestoreDevice(state.Device);
            _target = state.Target;
            _guestActual = state.GuestActual;
            _poison = state.Poison;
            _given.FromRuns(state.Given);
            for (int i = 0; i + 1 < state.Given.Length; i += 2)
                _ = TakeAway(state.Given[i], state.Given[i + 1]);
            AssignRoles();
            if (state.ParkedId is { } id && Queues.FirstOrDefault(q => RoleOf(q) == Role.Statistics) is { } queue)
                _parked = queue.Restored(id, state.ParkedDescriptors);
            _protocol.Restore(state.LastCommandId, HasFeature(FeatureHints));
            _tellConfig = true;
            _progressAt = _clock.GetTimestamp();
        }
    }
}

/// <summary>A balloon at rest. What hints named is not part of it: the guest gets those pages back.</summary>
[SavedState("virtio-balloon", 1)]
public sealed record VirtioBalloonSavedState
{
    /// <summary>The common part.</summary>
    public VirtioDeviceSavedState Device { get; init; } = new();
    /// <summary>Pages that the host wants.</summary>
    public uint Target { get; init; }
    /// <summary>Pages that the driver says it has given.</summary>
    public uint GuestActual { get; init; }
    /// <summary>What the guest fills free pages with.</summary>
    public uint Poison { get; init; }
    /// <summary>The last hint command.</summary>
    public uint LastCommandId { get; init; }
    /// <summary>Pages that were given: first and number of each run.</summary>
    public ulong[] Given { get; init; } = [];
    /// <summary>The statistics buffer that is kept; null: none.</summary>
    public ushort? ParkedId { get; init; }
    /// <summary>Its descriptors, in a packed ring.</summary>
    public ushort ParkedDescriptors { get; init; }
}
