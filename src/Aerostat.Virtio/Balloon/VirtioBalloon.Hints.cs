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
    private const int AddressesAtOnce = 512;
    // Of one array; the driver's arrays of 4 MiB have as many.
    private const ulong MostAddresses = 1 << 19;

    private readonly HintProtocol _protocol = new();
    private readonly Lock _handing = new();
    private IFreePageHints? _hints;
    private bool _hintsFinished;
    private ulong _hintedBytes;

    /// <summary>Whether drivers are told that they may name their free pages.</summary>
    public bool OffersHints => (OfferedFeatures & FeatureHints) != 0;

    /// <summary>Whether the guest has a driver that can name its free pages.</summary>
    public bool CanHint
    {
        get
        {
            lock (Gate)
                return IsRunning && HasFeature(FeatureHints);
        }
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
            _protocol.Start();
            _hints = hints;
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
            if (HasFeature(FeatureHints) ? _protocol.End(release ? HintProtocol.Done : HintProtocol.Stop) : _protocol.End(_protocol.CommandId))
                ConfigChanged();
        }
        // A hint that was taken before is handed on under this lock.
        lock (_handing)
        {
            taker?.Finished(complete: false);
        }
    }

    // Lock held.
    private void ForgetHints()
    {
        _protocol.Reset();
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
        Step();
        lock (_handing)
        {
            IFreePageHints? taker;
            uint blockSize;
            lock (Gate)
            {
                taker = _protocol.TakesHints ? _hints : null;
                blockSize = _protocol.BlockSize;
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
        uint? blockSize = length == 8 ? BinaryPrimitives.ReadUInt32LittleEndian(command[4..]) : null;
        lock (Gate)
        {
            HintCommand what = _protocol.Take(id, blockSize);
            if (what == HintCommand.Malformed)
                Warn($"hints are to name blocks of {blockSize} bytes");
            return what == HintCommand.Finished;
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
