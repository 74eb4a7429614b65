using Aerostat.Memory;
using Aerostat.Platform;

namespace Aerostat.Virtio;

/// <summary>
/// One chain of descriptors that a driver has made available: buffers the device may read, then buffers it may write. All of them were
/// checked to be guest memory. The contents may change at any time: read each byte once.
/// </summary>
/// <remarks>An object is filled again and again; it belongs to whoever takes chains with it.</remarks>
public sealed class DescriptorChain
{
    private (ulong Address, uint Length)[] _segments = new (ulong, uint)[8];
    private int _count;
    private bool _anyWritable;

    /// <summary>What the used entry must name: index of the first descriptor, or the packed ring's buffer id.</summary>
    internal ushort Id { get; set; }

    /// <summary>Descriptors of a packed ring that the chain takes; 1 in a split ring.</summary>
    internal ushort RingDescriptors { get; set; }

    /// <summary>The life of the queue that it came from.</summary>
    internal uint Epoch { get; set; }

    /// <summary>How many buffers there are, empty ones left out.</summary>
    public int Count => _count;

    /// <summary>How many of them, at the front, are for reading.</summary>
    public int ReadableCount { get; private set; }

    /// <summary>Bytes the device may read.</summary>
    public ulong ReadableLength { get; private set; }

    /// <summary>Bytes the device may write.</summary>
    public ulong WritableLength { get; private set; }

    /// <summary>A buffer.</summary>
    public (GuestAddress Address, uint Length, bool Writable) this[int index] =>
        (new GuestAddress(_segments[index].Address), _segments[index].Length, index >= ReadableCount);

    internal void Clear()
    {
        _count = ReadableCount = 0;
        ReadableLength = WritableLength = 0;
        _anyWritable = false;
    }

    /// <summary>Adds a buffer; what is wrong with it, or null.</summary>
    internal string? Add(GuestMemory memory, ulong address, uint length, bool writable)
    {
        if (!writable && _anyWritable)
            return "a readable descriptor follows a writable one";
        _anyWritable |= writable;
        if (length == 0)
            return null;
        if (!memory.Contains(address, length))
            return "a descriptor names what is not memory";
        if (ReadableLength + WritableLength + length > uint.MaxValue)
            return "a chain is longer than 4 GiB";
        if (_count == _segments.Length)
            Array.Resize(ref _segments, _count * 2);
        _segments[_count++] = (address, length);
        if (writable)
            WritableLength += length;
        else
        {
            ReadableLength += length;
            ReadableCount++;
        }
        return null;
    }

    /// <summary>Copies what the driver wrote, from <paramref name="offset"/> of the readable part; answers how many bytes there were.</summary>
    public int Read(GuestMemory memory, ulong offset, Span<byte> destination)
    {
        int done = 0;
        for (int i = 0; i < ReadableCount && done < destination.Length; i++)
        {
            (ulong address, uint length) = _segments[i];
            if (offset >= length)
            {
                offset -= length;
                continue;
            }
            int part = (int)Math.Min(length - offset, (ulong)(destination.Length - done));
            if (!memory.TryRead(new GuestAddress(address + offset), destination.Slice(done, part)))
                return done;
            done += part;
            offset = 0;
        }
        return done;
    }

    /// <summary>Copies to the driver, from <paramref name="offset"/> of the writable part; answers how many bytes there was room for.</summary>
    public int Write(GuestMemory memory, ulong offset, ReadOnlySpan<byte> source)
    {
        int done = 0;
        for (int i = ReadableCount; i < _count && done < source.Length; i++)
        {
            (ulong address, uint length) = _segments[i];
            if (offset >= length)
            {
                offset -= length;
                continue;
            }
            int part = (int)Math.Min(length - offset, (ulong)(source.Length - done));
            if (!memory.TryWrite(new GuestAddress(address + offset), source.Slice(done, part)))
                return done;
            done += part;
            offset = 0;
        }
        return done;
    }

    /// <summary>
    /// The host's view of a part of the chain, for transfers without a copy; answers how many <paramref name="buffers"/> were filled, with
    /// <paramref name="covered"/> bytes in all. Fewer than asked for: the span was too short, or the chain.
    /// </summary>
    public int GetBuffers(GuestMemory memory, bool writable, ulong offset, ulong length, Span<HostBuffer> buffers, out ulong covered)
    {
        covered = 0;
        int filled = 0;
        int stop = writable ? _count : ReadableCount;
        for (int i = writable ? ReadableCount : 0; i < stop && covered < length && filled < buffers.Length; i++)
        {
            (ulong address, uint bytes) = _segments[i];
            if (offset >= bytes)
            {
                offset -= bytes;
                continue;
            }
            ulong part = Math.Min(bytes - offset, length - covered);
            if (!memory.TryGetBuffer(new GuestAddress(address + offset), part, out buffers[filled], forWriting: writable))
                return filled;
            filled++;
            covered += part;
            offset = 0;
        }
        return filled;
    }

    /// <summary>After a transfer into buffers of <see cref="GetBuffers"/>: tells memory that the writable part has been written.</summary>
    public void NotifyWritten(GuestMemory memory, ulong offset, ulong length)
    {
        for (int i = ReadableCount; i < _count && length > 0; i++)
        {
            (ulong address, uint bytes) = _segments[i];
            if (offset >= bytes)
            {
                offset -= bytes;
                continue;
            }
            ulong part = Math.Min(bytes - offset, length);
            memory.NotifyHostWrite(address + offset, part);
            length -= part;
            offset = 0;
        }
    }
}
