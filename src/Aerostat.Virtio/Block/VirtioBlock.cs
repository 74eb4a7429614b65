using System.Buffers.Binary;
using System.Text;
using Aerostat.Platform;
using Aerostat.State;
using Aerostat.Storage;

namespace Aerostat.Virtio;

/// <summary>
/// A block device: virtio 1.2, 5.2, over any <see cref="IDisk"/>. A few threads take requests from all queues and carry them out by blocking
/// calls, on guest memory in place; no more requests are in flight than there are threads.
/// <para>Not emulated: the write-through switch (CONFIG_WCE), geometry, lifetime, secure erase, zones.</para>
/// </summary>
public sealed class VirtioBlock : VirtioDevice, ISavable<VirtioBlockSavedState>
{
    /// <summary>Most queues.</summary>
    public const int MaxQueues = 16;

    /// <summary>Bytes of the identification that a guest can ask for.</summary>
    public const int SerialLength = 20;

    private const ulong FeatureSegmentMax = 1UL << 2, FeatureReadOnly = 1UL << 5, FeatureBlockSize = 1UL << 6, FeatureFlush = 1UL << 9,
        FeatureTopology = 1UL << 10, FeatureMultiQueue = 1UL << 12, FeatureDiscard = 1UL << 13, FeatureWriteZeroes = 1UL << 14;

    private const ushort QueueSize = 256;
    private const uint MostSegments = QueueSize - 2;
    private const uint TypeIn = 0, TypeOut = 1, TypeFlush = 4, TypeGetId = 8, TypeDiscard = 11, TypeWriteZeroes = 13;
    private const byte StatusOk = 0, StatusError = 1, StatusUnsupported = 2;
    private const int HeaderSize = 16, RangeSize = 16, MostRanges = 32, BufferBatch = 64;
    // 1 GiB at a time: the driver cuts longer ones.
    private const uint MostRangeSectors = 1 << 21;
    private const uint Unmap = 1;
    private const int Threads = 4;

    private readonly IDisk _disk;
    private readonly byte[] _serial = new byte[SerialLength];
    private int _nextQueue;
    private long _reads, _writes, _bytesRead, _bytesWritten, _flushes, _errors;

    /// <summary>Makes the device.</summary>
    /// <param name="name">Its name.</param>
    /// <param name="disk">The contents; disposed of by the caller after <see cref="VirtioDevice.Stop"/>.</param>
    /// <param name="serial">Up to 20 ASCII characters by which a guest can tell the disk.</param>
    /// <param name="queues">1 to <see cref="MaxQueues"/>.</param>
    /// <param name="packed">Offers the packed ring.</param>
    /// <param name="context">The machine.</param>
    public VirtioBlock(string name, IDisk disk, string serial, int queues, bool packed, VirtioContext context)
        : base(name, VirtioDeviceId.Block, Features(disk, queues, packed), [.. Enumerable.Repeat(QueueSize, queues)], context, Threads)
    {
        _disk = disk;
        Encoding.ASCII.GetBytes(serial.AsSpan(0, Math.Min(serial.Length, SerialLength)), _serial);
    }

    /// <inheritdoc/>
    public override int ConfigLength => 60;

    /// <summary>Requests that the host could not carry out.</summary>
    public long Errors => Volatile.Read(ref _errors);

    /// <inheritdoc/>
    public override IEnumerable<(string Name, long Value)> Counters =>
    [
        .. base.Counters, ("reads", Volatile.Read(ref _reads)), ("writes", Volatile.Read(ref _writes)), ("bytes-read", Volatile.Read(ref _bytesRead)),
        ("bytes-written", Volatile.Read(ref _bytesWritten)), ("flushes", Volatile.Read(ref _flushes)), ("errors", Errors),
    ];

    private static new ulong Features(IDisk disk, int queues, bool packed) =>
        FeatureSegmentMax | FeatureBlockSize | FeatureTopology | FeatureFlush
        | (disk.ReadOnly ? FeatureReadOnly : FeatureDiscard | FeatureWriteZeroes)
        | (queues > 1 ? FeatureMultiQueue : 0) | (packed ? VirtioFeatures.RingPacked : 0);

    /// <inheritdoc/>
    protected override void FillConfig(Span<byte> space)
    {
        BinaryPrimitives.WriteUInt64LittleEndian(space, _disk.Length / IDisk.SectorSize);
        BinaryPrimitives.WriteUInt32LittleEndian(space[12..], MostSegments);
        BinaryPrimitives.WriteUInt32LittleEndian(space[20..], IDisk.SectorSize);
        // Physical blocks of 8 sectors, because the host's pages are that large.
        space[24] = 3;
        BinaryPrimitives.WriteUInt16LittleEndian(space[34..], (ushort)Queues.Count);
        if (_disk.ReadOnly)
            return;
        BinaryPrimitives.WriteUInt32LittleEndian(space[36..], MostRangeSectors);
        BinaryPrimitives.WriteUInt32LittleEndian(space[40..], MostRanges);
        BinaryPrimitives.WriteUInt32LittleEndian(space[44..], 8);
        BinaryPrimitives.WriteUInt32LittleEndian(space[48..], MostRangeSectors);
        BinaryPrimitives.WriteUInt32LittleEndian(space[52..], MostRanges);
        space[56] = 1;
    }

    /// <inheritdoc/>
    protected override void Serve()
    {
        DescriptorChain chain = new();
        while (!IsPausing)
        {
            Virtqueue? queue;
            lock (Gate)
            {
                queue = TakeAny(chain, out bool more);
                if (queue is null)
                    return;
                BeginWork(queue);
                // Another thread may look for the next one meanwhile.
                if (more)
                    SignalWork();
            }
            uint written = 0;
            try
            {
                written = CarryOut(chain);
            }
            finally
            {
                lock (Gate)
                {
                    if (written == 0)
                        Break($"queue {queue.Index}: a request has no header, or no place for its status");
                    queue.Complete(chain, written);
                    queue.Signal();
                    EndWork(queue);
                }
            }
        }
    }

    // Lock held. One after the other, so that no queue waits for ever.
    private Virtqueue? TakeAny(DescriptorChain chain, out bool more)
    {
        for (int i = 0; i < Queues.Count; i++)
        {
            _nextQueue = _nextQueue + 1 < Queues.Count ? _nextQueue + 1 : 0;
            Virtqueue queue = Queues[_nextQueue];
            if (queue.TryTake(chain))
            {
                // Asked for now, and not when the request is done, so that others can start beside it.
                more = queue.EnableNotification();
                return queue;
            }
            if (queue.EnableNotification() && queue.TryTake(chain))
            {
                more = queue.EnableNotification();
                return queue;
            }
        }
        more = false;
        return null;
    }

    // Answers how many bytes were written, at least the status; 0: there is no place for it.
    private uint CarryOut(DescriptorChain chain)
    {
        Span<byte> header = stackalloc byte[HeaderSize];
        if (chain.WritableLength == 0 || chain.Read(Memory, 0, header) < HeaderSize)
            return 0;
        uint type = BinaryPrimitives.ReadUInt32LittleEndian(header);
        ulong sector = BinaryPrimitives.ReadUInt64LittleEndian(header[8..]);
        ulong room = chain.WritableLength - 1, data = chain.ReadableLength - HeaderSize;
        ulong written = 0;
        byte status;
        switch (type)
        {
            case TypeIn:
                status = Move(chain, sector, room, write: false);
                if (status == StatusOk)
                    written = room;
                Interlocked.Increment(ref _reads);
                Interlocked.Add(ref _bytesRead, (long)written);
                break;
            case TypeOut:
                status = Move(chain, sector, data, write: true);
                Interlocked.Increment(ref _writes);
                Interlocked.Add(ref _bytesWritten, status == StatusOk ? (long)data : 0);
                break;
            case TypeFlush:
                status = Answer(_disk.Flush());
                Interlocked.Increment(ref _flushes);
                break;
            case TypeGetId:
                written = (ulong)chain.Write(Memory, 0, _serial.AsSpan(0, (int)Math.Min(room, SerialLength)));
                status = StatusOk;
                break;
            case TypeDiscard or TypeWriteZeroes when !_disk.ReadOnly:
                status = ClearRanges(chain, data, type == TypeWriteZeroes);
                break;
            default:
                status = type is TypeDiscard or TypeWriteZeroes ? StatusError : StatusUnsupported;
                break;
        }
        if (status == StatusError)
            Interlocked.Increment(ref _errors);
        chain.Write(Memory, room, [status]);
        return status == StatusOk ? (uint)(room + 1) : 1;
    }

    private byte Move(DescriptorChain chain, ulong sector, ulong length, bool write)
    {
        if (length % IDisk.SectorSize != 0 || !InDisk(sector, length) || (write && _disk.ReadOnly))
            return StatusError;
        Span<HostBuffer> buffers = stackalloc HostBuffer[BufferBatch];
        ulong offset = sector * IDisk.SectorSize;
        for (ulong done = 0; done < length;)
        {
            int count = chain.GetBuffers(Memory, !write, (write ? HeaderSize : 0UL) + done, length - done, buffers, out ulong covered);
            if (count == 0)
                return StatusError;
            DiskResult result = write ? _disk.Write(offset + done, buffers[..count]) : _disk.Read(offset + done, buffers[..count]);
            // Also after a failure: part of it may be there.
            if (!write)
                chain.NotifyWritten(Memory, done, covered);
            if (result != DiskResult.Done)
                return StatusError;
            done += covered;
        }
        return StatusOk;
    }

    // Discard and write zeroes (5.2.6.2): an array of ranges.
    private byte ClearRanges(DescriptorChain chain, ulong length, bool zeroes)
    {
        if (length == 0 || length % RangeSize != 0 || length / RangeSize > MostRanges)
            return StatusError;
        Span<byte> ranges = stackalloc byte[MostRanges * RangeSize];
        ranges = ranges[..(int)length];
        if (chain.Read(Memory, HeaderSize, ranges) < ranges.Length)
            return StatusError;
        // All are looked at before anything is done.
        for (int at = 0; at < ranges.Length; at += RangeSize)
        {
            uint sectors = BinaryPrimitives.ReadUInt32LittleEndian(ranges[(at + 8)..]), flags = BinaryPrimitives.ReadUInt32LittleEndian(ranges[(at + 12)..]);
            if ((flags & ~Unmap) != 0 || (!zeroes && flags != 0))
                return StatusUnsupported;
            if (sectors > MostRangeSectors || !InDisk(BinaryPrimitives.ReadUInt64LittleEndian(ranges[at..]), (ulong)sectors * IDisk.SectorSize))
                return StatusError;
        }
        for (int at = 0; at < ranges.Length; at += RangeSize)
        {
            ulong offset = BinaryPrimitives.ReadUInt64LittleEndian(ranges[at..]) * IDisk.SectorSize;
            ulong bytes = (ulong)BinaryPrimitives.ReadUInt32LittleEndian(ranges[(at + 8)..]) * IDisk.SectorSize;
            if (bytes == 0)
                continue;
            DiskResult result = zeroes
                ? _disk.WriteZeroes(offset, bytes, (BinaryPrimitives.ReadUInt32LittleEndian(ranges[(at + 12)..]) & Unmap) != 0)
                : _disk.Discard(offset, bytes);
            // A discard is a hint: what the disk cannot do need not be done.
            if (result != DiskResult.Done && (zeroes || result != DiskResult.Unsupported))
                return Answer(result);
        }
        return StatusOk;
    }

    private bool InDisk(ulong sector, ulong length)
    {
        ulong sectors = _disk.Length / IDisk.SectorSize, count = length / IDisk.SectorSize;
        return sector <= sectors && count <= sectors - sector;
    }

    private static byte Answer(DiskResult result) => result switch
    {
        DiskResult.Done => StatusOk,
        DiskResult.Unsupported => StatusUnsupported,
        _ => StatusError,
    };

    /// <inheritdoc/>
    /// <exception cref="SavedStateException">The image cannot be written, and would not be what the guest believes.</exception>
    public VirtioBlockSavedState Save()
    {
        // Whoever goes on from the state has only the file, not what this process still knows of it.
        if (!_disk.ReadOnly && _disk.Flush() == DiskResult.Failed)
            throw new SavedStateException($"{Name} has a disk image that the host cannot write");
        return new() { Device = SaveDevice(), Length = _disk.Length, Serial = Encoding.ASCII.GetString(_serial).TrimEnd('\0') };
    }

    /// <inheritdoc/>
    /// <exception cref="InvalidDataException">The disk is of another size; nothing was changed.</exception>
    public void Restore(VirtioBlockSavedState state)
    {
        ArgumentNullException.ThrowIfNull(state);
        if (state.Length != _disk.Length)
            throw new InvalidDataException($"{Name} has {_disk.Length} bytes, but had {state.Length} when the state was saved; give the same disk");
        RestoreDevice(state.Device);
    }
}

/// <summary>A block device at rest; the contents of the disk are not part of it.</summary>
[SavedState("virtio-block", 1)]
public sealed record VirtioBlockSavedState
{
    /// <summary>The common part.</summary>
    public VirtioDeviceSavedState Device { get; init; } = new();
    /// <summary>Bytes of the disk.</summary>
    public ulong Length { get; init; }
    /// <summary>Its identification.</summary>
    public string Serial { get; init; } = "";
}
