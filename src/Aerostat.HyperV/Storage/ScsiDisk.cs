using System.Buffers.Binary;
using Aerostat.Platform;
using Aerostat.Storage;

namespace Aerostat.HyperV;

/// <summary>
/// A direct-access SCSI device over any <see cref="IDisk"/>: the commands of SPC-4 and SBC-3 that Linux and Windows use. Several threads may carry out commands
/// at once; each blocks until it is done.
/// <para>Not emulated: reservations, verification, protection information, changing mode pages, more than one power state.</para>
/// </summary>
internal sealed class ScsiDisk(string name, IDisk disk, string serial, int mostBytes)
{
    private const int BlockSize = IDisk.SectorSize, BufferBatch = 64, PatternSize = 64 << 10;
    private long reads, writes, bytesRead, bytesWritten, flushes, errors;

    public string Name => name;

    public IDisk Contents => disk;

    public IEnumerable<(string Name, long Value)> Counters =>
    [
        ("reads", Volatile.Read(ref reads)), ("writes", Volatile.Read(ref writes)), ("bytes-read", Volatile.Read(ref bytesRead)),
        ("bytes-written", Volatile.Read(ref bytesWritten)), ("flushes", Volatile.Read(ref flushes)), ("errors", Volatile.Read(ref errors)),
    ];

    private ulong Blocks => disk.Length / BlockSize;

    /// <summary>Carries a command out.</summary>
    /// <param name="command">16 bytes; short commands are followed by anything.</param>
    /// <param name="data">Where data goes to or comes from.</param>
    /// <param name="moved">Bytes that were moved.</param>
    public ScsiSense Execute(ReadOnlySpan<byte> command, GuestPages data, out int moved)
    {
        moved = 0;
        switch (command[0])
        {
            // TEST UNIT READY, START STOP UNIT.
            case 0x00 or 0x1B:
                return ScsiSense.None;
            // REQUEST SENSE: each command has told its own.
            case 0x03:
                Span<byte> sense = stackalloc byte[ScsiSense.Length];
                ScsiSense.None.Write(sense);
                return Answer(sense, command[4], data, out moved);
            case 0x12:
                return Inquire(command, data, out moved);
            case 0x1A or 0x5A:
                return SenseMode(command, data, out moved);
            case 0x25:
                Span<byte> capacity = stackalloc byte[8];
                BinaryPrimitives.WriteUInt32BigEndian(capacity, (uint)Math.Min(Blocks - 1, uint.MaxValue));
                BinaryPrimitives.WriteUInt32BigEndian(capacity[4..], BlockSize);
                return Answer(capacity, capacity.Length, data, out moved);
            // SERVICE ACTION IN: READ CAPACITY(16).
            case 0x9E when (command[1] & 0x1F) == 0x10:
                return AnswerCapacity(command, data, out moved);
            case 0x08:
                return Move(Address6(command), command[4] == 0 ? 256u : command[4], data, false, false, out moved);
            case 0x0A:
                return Move(Address6(command), command[4] == 0 ? 256u : command[4], data, true, false, out moved);
            case 0x28 or 0x2A:
                return Move(Word(command, 2), Short(command, 7), data, command[0] == 0x2A, Forces(command), out moved);
            case 0xA8 or 0xAA:
                return Move(Word(command, 2), Word(command, 6), data, command[0] == 0xAA, Forces(command), out moved);
            case 0x88 or 0x8A:
                return Move(Long(command, 2), Word(command, 10), data, command[0] == 0x8A, Forces(command), out moved);
            // SYNCHRONIZE CACHE(10) and (16): whatever the range, everything.
            case 0x35 or 0x91:
                return Flush();
            case 0x42:
                return Unmap(command, data, out moved);
            // WRITE SAME(10) and (16).
            case 0x41:
                return WriteSame(Word(command, 2), Short(command, 7), command[1], noData: false, data, out moved);
            case 0x93:
                return WriteSame(Long(command, 2), Word(command, 10), command[1], (command[1] & 1) != 0, data, out moved);
            default:
                return ScsiSense.InvalidOperation;
        }
    }

    private static uint Address6(ReadOnlySpan<byte> c) => (uint)((c[1] & 0x1F) << 16 | c[2] << 8 | c[3]);

    private static uint Short(ReadOnlySpan<byte> c, int at) => BinaryPrimitives.ReadUInt16BigEndian(c[at..]);

    private static uint Word(ReadOnlySpan<byte> c, int at) => BinaryPrimitives.ReadUInt32BigEndian(c[at..]);

    private static ulong Long(ReadOnlySpan<byte> c, int at) => BinaryPrimitives.ReadUInt64BigEndian(c[at..]);

    // Force unit access.
    private static bool Forces(ReadOnlySpan<byte> c) => (c[1] & 8) != 0;

    private static ScsiSense Answer(ReadOnlySpan<byte> bytes, long allocated, GuestPages data, out int moved)
    {
        moved = data.Write(bytes[..(int)Math.Min(bytes.Length, allocated)]);
        return ScsiSense.None;
    }

    private ScsiSense Inquire(ReadOnlySpan<byte> command, GuestPages data, out int moved)
    {
        moved = 0;
        bool wantsPage = (command[1] & 1) != 0;
        byte[]? bytes = wantsPage ? ScsiPages.VitalProductData(command[2], name, serial, mostBytes / BlockSize, disk.ReadOnly)
            : command[2] == 0 ? ScsiPages.Standard(present: true) : null;
        return bytes is null ? ScsiSense.InvalidField : Answer(bytes, Short(command, 3), data, out moved);
    }

    private ScsiSense SenseMode(ReadOnlySpan<byte> command, GuestPages data, out int moved)
    {
        moved = 0;
        bool isLong = command[0] == 0x5A;
        int control = command[2] >> 6;
        // Saved values are not kept; of sub-pages there is only the first, or all.
        if (control == 3 || command[3] is not (0 or 0xFF) || ScsiPages.Mode((byte)(command[2] & 0x3F), control == 1) is not { } pages)
            return ScsiSense.InvalidField;
        // Write-protected; force unit access is heeded.
        byte parameter = (byte)((disk.ReadOnly ? 0x80 : 0) | 0x10);
        byte[] bytes = isLong ? [0, 0, 0, parameter, 0, 0, 0, 0, .. pages] : [0, 0, parameter, 0, .. pages];
        if (isLong)
            BinaryPrimitives.WriteUInt16BigEndian(bytes, (ushort)(bytes.Length - 2));
        else
            bytes[0] = (byte)(bytes.Length - 1);
        return Answer(bytes, isLong ? Short(command, 7) : command[4], data, out moved);
    }

    private ScsiSense AnswerCapacity(ReadOnlySpan<byte> command, GuestPages data, out int moved)
    {
        Span<byte> bytes = stackalloc byte[32];
        bytes.Clear();
        BinaryPrimitives.WriteUInt64BigEndian(bytes, Blocks - 1);
        BinaryPrimitives.WriteUInt32BigEndian(bytes[8..], BlockSize);
        // 8 blocks in a physical one; blocks can be unmapped, and read as zeros then.
        bytes[13] = 3;
        if (!disk.ReadOnly)
            bytes[14] = 0xC0;
        return Answer(bytes, Word(command, 10), data, out moved);
    }

    private bool InDisk(ulong first, ulong count) => first <= Blocks && count <= Blocks - first;

    private ScsiSense Move(ulong first, uint count, GuestPages data, bool write, bool force, out int moved)
    {
        moved = 0;
        if (!InDisk(first, count))
            return ScsiSense.OutOfRange;
        if (write && disk.ReadOnly)
            return ScsiSense.WriteProtected;
        if ((ulong)count * BlockSize > (ulong)data.Length)
            return ScsiSense.InvalidField;
        int length = (int)count * BlockSize;
        Interlocked.Increment(ref write ? ref writes : ref reads);
        Span<HostBuffer> buffers = stackalloc HostBuffer[BufferBatch];
        ScsiSense result = ScsiSense.None;
        while (moved < length && result == ScsiSense.None)
        {
            int used = data.GetBuffers(moved, length - moved, buffers, out int covered);
            // A batch that ends within a sector: the disk takes whole ones only.
            int whole = covered - (covered % BlockSize);
            if (whole != covered && whole > 0)
                used = data.GetBuffers(moved, whole, buffers, out covered);
            if (used == 0 || covered % BlockSize != 0)
            {
                result = ScsiSense.InvalidField;
                break;
            }
            ulong offset = (first * BlockSize) + (ulong)moved;
            DiskResult done = write ? disk.Write(offset, buffers[..used]) : disk.Read(offset, buffers[..used]);
            if (done != DiskResult.Done)
                result = write ? ScsiSense.WriteFailed : ScsiSense.ReadFailed;
            else
                moved += covered;
        }
        // Also after a failure: part of it may be there.
        if (!write)
            data.NotifyWritten(length);
        Interlocked.Add(ref write ? ref bytesWritten : ref bytesRead, moved);
        if (result != ScsiSense.None)
            Interlocked.Increment(ref errors);
        return result == ScsiSense.None && write && force ? Flush() : result;
    }

    private ScsiSense Flush()
    {
        Interlocked.Increment(ref flushes);
        return Judge(disk.Flush());
    }

    private ScsiSense Judge(DiskResult result)
    {
        if (result == DiskResult.Done)
            return ScsiSense.None;
        Interlocked.Increment(ref errors);
        return ScsiSense.WriteFailed;
    }

    // A head of eight bytes, then ranges of 16: first block, number of blocks (SBC-3, 5.28).
    private ScsiSense Unmap(ReadOnlySpan<byte> command, GuestPages data, out int moved)
    {
        const int head = 8, size = 16;
        moved = 0;
        uint length = Short(command, 7);
        if (disk.ReadOnly)
            return ScsiSense.WriteProtected;
        if ((command[1] & 1) != 0 || length > (uint)data.Length)
            return ScsiSense.InvalidField;
        if (length == 0)
            return ScsiSense.None;
        if (length < head)
            return ScsiSense.InvalidParameter;
        Span<byte> list = stackalloc byte[head + (size * (int)ScsiPages.MostUnmapRanges)];
        list = list[..data.Read(list[..(int)Math.Min((uint)list.Length, length)])];
        int bytes = (int)Math.Min(Short(list, 2), length - head);
        if (bytes / size > ScsiPages.MostUnmapRanges)
            return ScsiSense.InvalidParameter;
        // All are looked at before anything is done.
        for (int at = head; at + size <= head + bytes; at += size)
        {
            if (Word(list, at + 8) > ScsiPages.MostUnmapBlocks)
                return ScsiSense.InvalidParameter;
            if (!InDisk(Long(list, at), Word(list, at + 8)))
                return ScsiSense.OutOfRange;
        }
        moved = (int)length;
        for (int at = head; at + size <= head + bytes; at += size)
        {
            if (Word(list, at + 8) is not (> 0 and var count))
                continue;
            DiskResult result = disk.Discard(Long(list, at) * BlockSize, (ulong)count * BlockSize);
            // It is a hint: what the disk cannot do need not be done.
            if (result == DiskResult.Failed)
                return Judge(result);
        }
        return ScsiSense.None;
    }

    private ScsiSense WriteSame(ulong first, uint count, byte flags, bool noData, GuestPages data, out int moved)
    {
        const byte unmap = 8, anchor = 0x10, protection = 0xE0;
        moved = 0;
        if (disk.ReadOnly)
            return ScsiSense.WriteProtected;
        if ((flags & (anchor | protection)) != 0 || count is 0 or > ScsiPages.MostSameBlocks || (!noData && data.Length < BlockSize))
            return ScsiSense.InvalidField;
        if (!InDisk(first, count))
            return ScsiSense.OutOfRange;
        Span<byte> block = stackalloc byte[BlockSize];
        block.Clear();
        if (!noData)
            moved = data.Read(block);
        ulong offset = first * BlockSize, length = (ulong)count * BlockSize;
        if (!block.ContainsAnyExcept((byte)0))
            return Judge(disk.WriteZeroes(offset, length, (flags & unmap) != 0));
        PinnedBuffer pattern = new((int)Math.Min(length, PatternSize));
        for (int at = 0; at < pattern.Span.Length; at += BlockSize)
            block.CopyTo(pattern.Span[at..]);
        for (ulong done = 0; done < length;)
        {
            int some = (int)Math.Min((ulong)pattern.Span.Length, length - done);
            if (disk.Write(offset + done, [pattern.Part(0, some)]) != DiskResult.Done)
                return Judge(DiskResult.Failed);
            done += (ulong)some;
        }
        pattern.KeepAlive();
        return ScsiSense.None;
    }
}
