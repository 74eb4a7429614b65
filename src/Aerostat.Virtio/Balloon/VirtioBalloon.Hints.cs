using System.Buffers.Binary;
using Aerostat.Memory;

namespace Aerostat.Virtio;

/// <content>
/// Free page hints (virtio 1.2, 5.5.6.6; Linux 4.20 and later), and beside them the form that the driver had in June 2018, before it was
/// merged. The driver answers a new command id with a start command, hints, and a stop command. Merged: commands of 4 bytes, hints are the free
/// blocks themselves. 2018: commands of 8 bytes {id, size of a block}, hints are arrays of 64-bit addresses of such blocks. Which it is shows in the
/// length of the start command.
/// </content>
public sealed partial class VirtioBalloon
{
    private const uint CommandStop = 0, CommandDone = 1, FirstCommandId = 2;
    private const int AddressesAtOnce = 512;
    // Of one array; the driver's arrays of 4 MiB have as many.
    private const ulong MostAddresses = 1 << 19;

    private uint _commandId = CommandStop, _lastCommandId = FirstCommandId - 1;
    private HintState _hintState;
    private uint _blockSize;
    private IFreePageHints? _hints;
    private bool _hintsFinished;
    private ulong _hintedBytes;

    private enum HintState
    {
        /// <summary>Nothing was asked, or it is over.</summary>
        Idle,
        /// <summary>An id is published; the driver has not started.</summary>
        Requested,
        /// <summary>The driver has started with that id.</summary>
        Started,
    }

    /// <summary>Bytes named by hints since the start.</summary>
    public ulong HintedBytes => Volatile.Read(ref _hintedBytes);

    /// <summary>
    /// Asks the guest to name its free pages. Whoever wants to skip them must have every write to memory watched before this is called.
    /// </summary>
    /// <param name="hints">Who takes them, until its <see cref="IFreePageHints.Finished"/>.</param>
    /// <returns>False: there is no driver that can, or another run is not over.</returns>
    public bool TryStartHints(IFreePageHints hints)
    {
        ArgumentNullException.ThrowIfNull(hints);
        lock (Gate)
        {
            if (!IsRunning || !HasFeature(FeatureHints) || _hints is not null)
                return false;
            // Ids are not used again while a driver could still mean an older run; they last for four thousand million runs.
            _lastCommandId = _lastCommandId == uint.MaxValue ? FirstCommandId : _lastCommandId + 1;
            _commandId = _lastCommandId;
            _hintState = HintState.Requested;
            _hints = hints;
            _blockSize = 0;
            ConfigChanged();
            return true;
        }
    }

    /// <summary>
    /// Ends a run: when this returns no hint is taken any more, and none is being handed on. Must not be called by the taker of hints itself.
    /// </summary>
    /// <param name="release">The guest gets the pages back that it held for its hints; without it, it keeps them for another run.</param>
    public void StopHints(bool release)
    {
        IFreePageHints? taker;
        lock (Gate)
        {
            taker = _hints;
            _hints = null;
            _hintsFinished = false;
            _hintState = HintState.Idle;
            uint command = release ? CommandDone : CommandStop;
            if (HasFeature(FeatureHints) && _commandId != command)
            {
                _commandId = command;
                ConfigChanged();
            }
        }
        // A hint that was taken before is handed on under this lock.
        lock (_handing)
        {
            taker?.Finished(complete: false);
        }
    }

    private readonly Lock _handing = new();

    // Lock held.
    private void ForgetHints()
    {
        _commandId = CommandStop;
        _hintState = HintState.Idle;
        _hintsFinished = _hints is not null;
        if (_hintsFinished)
            SignalWork();
    }

    private void TellHintsFinished(bool complete)
    {
        lock (_handing)
        {
            IFreePageHints? taker;
            lock (Gate)
            {
                taker = _hints;
                _hints = null;
            }
            taker?.Finished(complete);
        }
    }

    // Commands and hints are told apart by direction.
    private void TakeHints()
    {
        if (_chain.ReadableLength > 0 && TakeCommand())
            TellHintsFinished(complete: true);
        if (_chain.WritableLength == 0)
            return;
        lock (_handing)
        {
            IFreePageHints? taker;
            uint blockSize;
            lock (Gate)
            {
                taker = _hintState == HintState.Started ? _hints : null;
                blockSize = _blockSize;
            }
            if (taker is null)
                return;
            for (int i = _chain.ReadableCount; i < _chain.Count; i++)
            {
                (GuestAddress address, uint length, _) = _chain[i];
                if (blockSize == 0)
                    HandOn(taker, address.Value, length);
            }
            if (blockSize != 0)
                TakeArray(taker, blockSize);
        }
    }

    // True: the run is over.
    private bool TakeCommand()
    {
        Span<byte> command = stackalloc byte[8];
        int length = _chain.Read(Memory, 0, command);
        if (length < 4)
        {
            Warn($"a hint command of {length} bytes");
            return false;
        }
        uint id = BinaryPrimitives.ReadUInt32LittleEndian(command);
        lock (Gate)
        {
            if (id >= FirstCommandId && id == _commandId && _hintState == HintState.Requested)
            {
                _hintState = HintState.Started;
                _blockSize = length == 8 ? BinaryPrimitives.ReadUInt32LittleEndian(command[4..]) : 0;
                if (length == 8 && (_blockSize == 0 || _blockSize % 4096 != 0))
                {
                    Warn($"hints are to name blocks of {_blockSize} bytes");
                    _hintState = HintState.Idle;
                }
                return false;
            }
            if (id != CommandStop || _hintState != HintState.Started)
                return false;
            _hintState = HintState.Idle;
            return true;
        }
    }

    private void TakeArray(IFreePageHints taker, uint blockSize)
    {
        Span<byte> addresses = stackalloc byte[AddressesAtOnce * sizeof(ulong)];
        Span<Platform.HostBuffer> buffers = stackalloc Platform.HostBuffer[1];
        ulong length = Math.Min(_chain.WritableLength / sizeof(ulong), MostAddresses) * sizeof(ulong);
        for (ulong at = 0; at < length;)
        {
            // The device-writable buffer is read: the driver put the addresses there.
            int filled = 0;
            int wanted = (int)Math.Min((ulong)addresses.Length, length - at);
            while (filled < wanted)
            {
                if (_chain.GetBuffers(Memory, writable: true, at + (ulong)filled, (ulong)(wanted - filled), buffers, out ulong covered) == 0)
                    return;
                buffers[0].AsSpan()[..(int)covered].CopyTo(addresses[filled..]);
                filled += (int)covered;
            }
            at += (ulong)filled;
            for (int i = 0; i < filled; i += sizeof(ulong))
                HandOn(taker, BinaryPrimitives.ReadUInt64LittleEndian(addresses[i..]), blockSize);
        }
    }

    // Handing lock held. Only whole pages of memory count.
    private void HandOn(IFreePageHints taker, ulong address, ulong length)
    {
        if (!Memory.Contains(address, length))
            return;
        ulong first = (address + 4095) & ~4095UL, last = (address + length) & ~4095UL;
        if (first >= last)
            return;
        Interlocked.Add(ref _hintedBytes, last - first);
        taker.Hint(new GuestAddress(first), last - first);
    }
}
