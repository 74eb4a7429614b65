using System.Runtime.InteropServices;
using Aerostat.Devices;
using Aerostat.Memory;
using Aerostat.State;

namespace Aerostat.VMware;

/// <summary>
/// The host's side of VMware's memory balloon, for drivers from the first one in Linux (2010, protocol version 2) to today's with batches and 2 MiB
/// pages: port 0x5670, one IN for each command, with the arguments in registers. The facts are those of the drivers' own sources (Linux:
/// drivers/misc/vmw_balloon.c) and of VMware's balloon_def.h.
/// <para>
/// With a <see cref="VmciDevice"/> there is a doorbell, and a new target is seen at once; without one, at the driver's next poll, within a second.
/// </para>
/// </summary>
/// <remarks>
/// Nothing the guest says is trusted: the set of locked frames is kept here, frame by frame, and every command is checked against it and against the
/// memory map. Commands may come from several vCPUs at once and are served one after the other; <see cref="GetReport"/> waits for none of them.
/// </remarks>
public sealed class VmwareBalloon : IDevice, IBalloon, ISavable<VmwareBalloonSavedState>
{
    /// <summary>The channel's port.</summary>
    public const ushort Port = 0x5670;

    private const uint Magic = 0x456C_6D6F;
    private const int Rax = 0, Rcx = 1, Rbx = 3, Rsi = 6;
    private const int PageShift = 12, MostEntries = 512;
    private const ulong LargeFrames = 512, EntryStatus = 0x1F;
    private const BalloonCapabilities Supported =
        BalloonCapabilities.Basic | BalloonCapabilities.Batched | BalloonCapabilities.BatchedLarge | BalloonCapabilities.Doorbell | BalloonCapabilities.WideTarget;
    private const ulong NoDoorbell = ulong.MaxValue;
    private const double StalledAfterSeconds = 5;

    private readonly GuestMemory _memory;
    private readonly TimeProvider _clock;
    private readonly VmciDevice? _vmci;
    private readonly FrameSet _locked;
    // Held through a command, which may take a while: giving a gigabyte back does.
    private readonly Lock _commands = new();
    private readonly long[] _commandCounts = new long[(int)BalloonCommand.SetDoorbell + 1], _statusCounts = new long[(int)BalloonStatus.Busy + 1];
    // What a batch names, in the order of the frames, and at which place of the batch each was.
    private readonly ulong[] _entries = new ulong[MostEntries], _frames = new ulong[MostEntries];
    private readonly int[] _places = new int[MostEntries];
    private BalloonCapabilities _granted;
    private bool _started;
    private volatile bool _resetWanted;
    // As of the last command that is over: what counts here is the host's.
    private ulong _given;
    private ulong _target, _limit, _toldTarget;
    // Context in the upper half, resource in the lower.
    private ulong _doorbell = NoDoorbell;
    private uint _guest;
    private long _progressAt, _polledAt, _passFrom, _refused, _largeLocked, _failures;

    /// <summary>Makes the balloon.</summary>
    /// <param name="memory">Guest memory.</param>
    /// <param name="clock">VM time.</param>
    /// <param name="targetBytes">What the host wants back at first.</param>
    /// <param name="vmci">What rings the driver's doorbell; null: nothing does.</param>
    public VmwareBalloon(GuestMemory memory, TimeProvider clock, ulong targetBytes = 0, VmciDevice? vmci = null)
    {
        ArgumentNullException.ThrowIfNull(memory);
        ArgumentNullException.ThrowIfNull(clock);
        _memory = memory;
        _clock = clock;
        _vmci = vmci;
        _locked = new FrameSet(memory.End >> PageShift);
        _target = Math.Min(targetBytes, memory.TotalBytes) >> PageShift;
    }

    /// <inheritdoc/>
    public string Name => "vmballoon";

    /// <inheritdoc/>
    public string Dialect => "vmware";

    /// <summary>Its figures, by name: commands by kind, statuses of commands and of entries by kind, pages.</summary>
    public IEnumerable<(string Name, long Value)> Counters
    {
        get
        {
            foreach (BalloonCommand command in Enum.GetValues<BalloonCommand>())
                yield return (CounterName(command), Volatile.Read(ref _commandCounts[(int)command]));
            for (BalloonStatus status = BalloonStatus.CommandInvalid; status <= BalloonStatus.Busy; status++)
                yield return (CounterName(status), Volatile.Read(ref _statusCounts[(int)status]));
            yield return ("status-failure", Volatile.Read(ref _failures));
            yield return ("pages", (long)Volatile.Read(ref _given));
            yield return ("target-pages", (long)Volatile.Read(ref _target));
            yield return ("large-pages-locked", Volatile.Read(ref _largeLocked));
            // From the poll that told the driver of another target to the last page that moved: without the wait for the poll.
            yield return ("pass-microseconds", (long)_clock.GetElapsedTime(Volatile.Read(ref _passFrom), Math.Max(Volatile.Read(ref _progressAt), Volatile.Read(ref _passFrom))).TotalMicroseconds);
        }
    }

    private static string CounterName(BalloonCommand command) => command switch
    {
        BalloonCommand.Start => "start",
        BalloonCommand.GetTarget => "get-target",
        BalloonCommand.Lock => "lock",
        BalloonCommand.Unlock => "unlock",
        BalloonCommand.GuestId => "guest-id",
        BalloonCommand.BatchedLock => "batched-lock",
        BalloonCommand.BatchedUnlock => "batched-unlock",
        BalloonCommand.BatchedLargeLock => "batched-2m-lock",
        BalloonCommand.BatchedLargeUnlock => "batched-2m-unlock",
        _ => "doorbell-set",
    };

    private static string CounterName(BalloonStatus status) => status switch
    {
        BalloonStatus.CommandInvalid => "status-command-invalid",
        BalloonStatus.FrameInvalid => "status-frame-invalid",
        BalloonStatus.FrameLocked => "status-frame-locked",
        BalloonStatus.FrameUnlocked => "status-frame-unlocked",
        BalloonStatus.FramePinned => "status-frame-pinned",
        BalloonStatus.FrameNotNeeded => "status-frame-not-needed",
        BalloonStatus.Reset => "status-reset",
        _ => "status-busy",
    };

    /// <inheritdoc/>
    public void SetTarget(ulong bytes)
    {
        if (bytes > _memory.TotalBytes)
            throw new ArgumentOutOfRangeException(nameof(bytes), bytes, $"the guest has {_memory.TotalBytes} bytes of memory and cannot give {bytes}");
        Volatile.Write(ref _progressAt, _clock.GetTimestamp());
        Volatile.Write(ref _target, bytes >> PageShift);
        Ring();
    }

    // A driver that has left its doorbell behind, or is not told, still polls.
    private void Ring()
    {
        if (Volatile.Read(ref _doorbell) is var doorbell and not NoDoorbell)
            _vmci?.Ring((uint)(doorbell >> 32), (uint)doorbell);
    }

    /// <summary>Does nothing: this dialect has none but the limit that comes with every poll.</summary>
    public void RequestStatistics()
    {
    }

    /// <summary>Tells the driver, with its next command, to let go of every page and to begin anew.</summary>
    public void RequestReset()
    {
        _resetWanted = true;
        Ring();
    }

    /// <inheritdoc/>
    public BalloonReport GetReport()
    {
        ulong count = Volatile.Read(ref _given), target = Volatile.Read(ref _target), limit = Volatile.Read(ref _limit);
        BalloonReason reason = Reason(count, target);
        return new BalloonReport(
            target << PageShift, count << PageShift, count << PageShift, reason, reason.Explain("vmw_balloon"), Volatile.Read(ref _refused), 0,
            limit == 0 ? BalloonStatistics.None : new BalloonStatistics(new Dictionary<string, ulong> { [GuestFigure.Total] = limit << PageShift }, _clock.GetElapsedTime(Volatile.Read(ref _polledAt)), null));
    }

    private BalloonReason Reason(ulong count, ulong target)
    {
        if (IsReached(count, target))
            return BalloonReason.Reached;
        if (!Volatile.Read(ref _started))
            return BalloonReason.NoDriver;
        if (_clock.GetElapsedTime(Volatile.Read(ref _progressAt)).TotalSeconds <= StalledAfterSeconds)
            return BalloonReason.Working;
        return Volatile.Read(ref _refused) > 0 && count < target ? BalloonReason.NotDiscarded : BalloonReason.Stalled;
    }

    // A driver with 2 MiB pages gives up to one of them more than it is asked for, and keeps as much when it is to shrink.
    private bool IsReached(ulong count, ulong target) =>
        count == target || (target != 0 && count > target && count - target < LargeFrames && (_granted & BalloonCapabilities.BatchedLarge) != 0);

    /// <summary>IN from <see cref="Port"/> at privilege level 0. Any vCPU's thread.</summary>
    /// <param name="registers">RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, ...</param>
    /// <returns>False: this is no command.</returns>
    public bool Call(Span<ulong> registers)
    {
        if ((uint)registers[Rax] != Magic)
            return false;
        BalloonCommand command = (BalloonCommand)(uint)registers[Rcx];
        lock (_commands)
        {
            BalloonStatus status = Serve(command, registers[Rbx], registers[Rsi]);
            Volatile.Write(ref _given, _locked.Count);
            if ((uint)command < (uint)_commandCounts.Length)
                _commandCounts[(int)command]++;
            Count(status);
            if (status == BalloonStatus.SuccessWithCapabilities)
                registers[Rcx] = (uint)_granted;
            // Newer drivers take what is in RBX for the target after each of these; the first ones look at it only where they have asked.
            if (status == BalloonStatus.Success && command is not (BalloonCommand.Start or BalloonCommand.GuestId or BalloonCommand.SetDoorbell))
                registers[Rbx] = TargetForGuest();
            registers[Rax] = (uint)status;
        }
        return true;
    }

    private void Count(BalloonStatus status)
    {
        if (status <= BalloonStatus.Busy)
            _statusCounts[(int)status]++;
        else if (status == BalloonStatus.Failure)
            _failures++;
    }

    // Never more than the guest says it has, and never more than its driver can read.
    private ulong TargetForGuest()
    {
        ulong target = Volatile.Read(ref _target);
        if (_limit != 0)
            target = Math.Min(target, _limit);
        return (_granted & BalloonCapabilities.WideTarget) != 0 ? target : Math.Min(target, uint.MaxValue);
    }

    private BalloonStatus Serve(BalloonCommand command, ulong first, ulong second)
    {
        // What a driver sends before it starts over is no part of the old conversation.
        if (_resetWanted && command is not (BalloonCommand.Start or BalloonCommand.SetDoorbell))
            return BalloonStatus.Reset;
        switch (command)
        {
            case BalloonCommand.Start:
                return Start((BalloonCapabilities)(uint)first);
            case BalloonCommand.GetTarget:
                Volatile.Write(ref _limit, Math.Min(first, _memory.TotalBytes >> PageShift));
                Volatile.Write(ref _polledAt, _clock.GetTimestamp());
                if (TargetForGuest() is var target && target != _toldTarget)
                    (_toldTarget, _passFrom) = (target, _polledAt);
                return BalloonStatus.Success;
            case BalloonCommand.GuestId:
                _guest = (uint)first;
                return BalloonStatus.Success;
            case BalloonCommand.SetDoorbell when Has(BalloonCapabilities.Doorbell):
                Volatile.Write(ref _doorbell, (ulong)(uint)first << 32 | (uint)second);
                return BalloonStatus.Success;
            case BalloonCommand.Lock or BalloonCommand.Unlock:
                return Has(BalloonCapabilities.Basic) ? ServeOne(first, command == BalloonCommand.Lock) : BalloonStatus.CommandInvalid;
            case BalloonCommand.BatchedLock or BalloonCommand.BatchedUnlock:
                return Has(BalloonCapabilities.Batched) ? ServeBatch(first, second, command == BalloonCommand.BatchedLock, 1) : BalloonStatus.CommandInvalid;
            case BalloonCommand.BatchedLargeLock or BalloonCommand.BatchedLargeUnlock:
                return Has(BalloonCapabilities.BatchedLarge | BalloonCapabilities.Batched)
                    ? ServeBatch(first, second, command == BalloonCommand.BatchedLargeLock, LargeFrames)
                    : BalloonStatus.CommandInvalid;
            default:
                return BalloonStatus.CommandInvalid;
        }
    }

    private bool Has(BalloonCapabilities wanted) => (_granted & wanted) == wanted;

    // A driver that starts has forgotten what it ever locked. One that wants nothing is leaving.
    private BalloonStatus Start(BalloonCapabilities wanted)
    {
        Forget();
        _granted = wanted & Supported;
        if (_vmci is null)
            _granted &= ~BalloonCapabilities.Doorbell;
        Volatile.Write(ref _started, _granted != 0);
        Volatile.Write(ref _progressAt, _clock.GetTimestamp());
        // The first drivers take nothing but plain success.
        return (_granted & ~BalloonCapabilities.Basic) == 0 ? BalloonStatus.Success : BalloonStatus.SuccessWithCapabilities;
    }

    private BalloonStatus ServeOne(ulong frame, bool give)
    {
        _frames[0] = frame;
        _places[0] = 0;
        _entries[0] = 0;
        BalloonStatus status = Check(frame, 1, give);
        if (status != BalloonStatus.Success)
            return status;
        _locked.Set(frame, 1, give);
        if (give)
            TakeRuns(1, 1);
        else
            _memory.BringBack(new GuestAddress(frame << PageShift), 1 << PageShift);
        status = (BalloonStatus)(_entries[0] & EntryStatus);
        if (status == BalloonStatus.Success)
            Volatile.Write(ref _progressAt, _clock.GetTimestamp());
        return status;
    }

    // A page of the guest's with a word for each entry: the frame's address, and in the low bits the status, which is written here.
    private BalloonStatus ServeBatch(ulong page, ulong count, bool give, ulong size)
    {
        if (count is 0 or > MostEntries)
            return BalloonStatus.Failure;
        GuestAddress at = new(page << PageShift);
        Span<ulong> entries = _entries.AsSpan(0, (int)count);
        if (page > GuestMemory.AddressLimit >> PageShift || !_memory.TryRead(at, MemoryMarshal.AsBytes(entries)))
            return BalloonStatus.FrameInvalid;
        int good = 0;
        for (int i = 0; i < entries.Length; i++)
        {
            ulong frame = entries[i] >> PageShift;
            BalloonStatus status = Check(frame, size, give);
            entries[i] = (entries[i] & ~EntryStatus) | (ulong)status;
            if (status != BalloonStatus.Success)
                continue;
            // At once: an entry that is there twice is locked the second time.
            _locked.Set(frame, size, give);
            _frames[good] = frame;
            _places[good++] = i;
        }
        if (give)
            TakeRuns(good, size);
        else
            foreach (ulong frame in _frames.AsSpan(0, good))
                _memory.BringBack(new GuestAddress(frame << PageShift), size << PageShift);
        if (good > 0)
            Volatile.Write(ref _progressAt, _clock.GetTimestamp());
        foreach (ulong entry in entries)
            Count((BalloonStatus)(entry & EntryStatus));
        _memory.TryWrite(at, MemoryMarshal.AsBytes(entries));
        return BalloonStatus.Success;
    }

    private BalloonStatus Check(ulong frame, ulong size, bool give)
    {
        if (frame > GuestMemory.AddressLimit >> PageShift || frame % size != 0 || !_memory.Contains(frame << PageShift, size << PageShift))
            return BalloonStatus.FrameInvalid;
        ulong there = _locked.CountIn(frame, size);
        if (!give)
            return there == size ? BalloonStatus.Success : BalloonStatus.FrameUnlocked;
        if (there != 0)
            return BalloonStatus.FrameLocked;
        // A driver with large pages rounds its target up to whole ones. The first drivers, told that a page is not needed, try the next one for ever.
        return Has(BalloonCapabilities.Batched) && _locked.Count >= Volatile.Read(ref _target) + (size > 1 ? 0 : LargeFrames) ? BalloonStatus.FrameNotNeeded : BalloonStatus.Success;
    }

    // Gives the first frames of _frames back to the host, neighbours together; what cannot be given is unlocked again, and its status says why.
    private void TakeRuns(int count, ulong size)
    {
        Span<ulong> frames = _frames.AsSpan(0, count);
        frames.Sort(_places.AsSpan(0, count));
        for (int i = 0, stop; i < count; i = stop)
        {
            for (stop = i + 1; stop < count && frames[stop] == frames[stop - 1] + size; stop++)
            {
            }
            GuestAddress start = new(frames[i] << PageShift);
            ulong length = ((ulong)(stop - i) * size) << PageShift;
            if (_memory.TakeAway(start, length) != DiscardResult.Done)
            {
                TakeOneByOne(i, stop, size);
                continue;
            }
            if (size > 1)
                _largeLocked += stop - i;
        }
    }

    private void TakeOneByOne(int first, int stop, ulong size)
    {
        for (int i = first; i < stop; i++)
        {
            DiscardResult result = _memory.TakeAway(new GuestAddress(_frames[i] << PageShift), size << PageShift);
            if (result == DiscardResult.Done)
            {
                _largeLocked += size > 1 ? 1 : 0;
                continue;
            }
            BalloonStatus status = result == DiscardResult.Pinned ? BalloonStatus.FramePinned : BalloonStatus.Busy;
            _entries[_places[i]] |= (ulong)status;
            _locked.Set(_frames[i], size, member: false);
            Interlocked.Add(ref _refused, (long)size);
        }
    }

    private void Forget()
    {
        _locked.Clear();
        _memory.BringAllBack();
        _granted = BalloonCapabilities.None;
        Volatile.Write(ref _started, false);
        _resetWanted = false;
        _guest = 0;
        Volatile.Write(ref _doorbell, NoDoorbell);
    }

    /// <inheritdoc/>
    public void Reset()
    {
        // The target stays: the next driver starts from it.
        lock (_commands)
        {
            Forget();
            Volatile.Write(ref _given, 0);
            Volatile.Write(ref _limit, 0);
        }
    }

    /// <inheritdoc/>
    public VmwareBalloonSavedState Save()
    {
        lock (_commands)
        {
            return new VmwareBalloonSavedState
            {
                Target = _target,
                Limit = _limit,
                Started = _started,
                Capabilities = (uint)_granted,
                Guest = _guest,
                ResetWanted = _resetWanted,
                Doorbell = _doorbell,
                Locked = _locked.ToRuns(),
            };
        }
    }

    /// <inheritdoc/>
    public void Restore(VmwareBalloonSavedState state)
    {
        ArgumentNullException.ThrowIfNull(state);
        lock (_commands)
        {
            _target = Math.Min(state.Target, _memory.TotalBytes >> PageShift);
            _limit = state.Limit;
            _started = state.Started;
            _granted = (BalloonCapabilities)state.Capabilities & Supported;
            _guest = state.Guest;
            _resetWanted = state.ResetWanted;
            _doorbell = state.Doorbell;
            _locked.FromRuns(state.Locked);
            for (int i = 0; i + 1 < state.Locked.Length; i += 2)
                _ = _memory.TakeAway(new GuestAddress(state.Locked[i] << PageShift), state.Locked[i + 1] << PageShift);
            _given = _locked.Count;
            _progressAt = _polledAt = _clock.GetTimestamp();
        }
    }
}

/// <summary>A VMware balloon at rest.</summary>
[SavedState("vmware-balloon", 1)]
public sealed record VmwareBalloonSavedState
{
    /// <summary>Pages that the host wants.</summary>
    public ulong Target { get; init; }
    /// <summary>Pages that the guest says it has.</summary>
    public ulong Limit { get; init; }
    /// <summary>Whether a driver is at work.</summary>
    public bool Started { get; init; }
    /// <summary>What was granted to it.</summary>
    public uint Capabilities { get; init; }
    /// <summary>Which kind of guest it says it is.</summary>
    public uint Guest { get; init; }
    /// <summary>Whether it is to be told to start over.</summary>
    public bool ResetWanted { get; init; }
    /// <summary>The driver's doorbell: context in the upper half, resource in the lower; all ones: none.</summary>
    public ulong Doorbell { get; init; } = ulong.MaxValue;
    /// <summary>Frames that are locked: first and number of each run.</summary>
    public ulong[] Locked { get; init; } = [];
}
