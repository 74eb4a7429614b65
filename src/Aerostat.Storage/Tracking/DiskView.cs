using Aerostat.Platform;

namespace Aerostat.Storage;

/// <summary>What a run of blocks of a view is.</summary>
public enum ViewRun
{
    /// <summary>Contents were read.</summary>
    Data,
    /// <summary>All zeros; nothing was read.</summary>
    Zeros,
}

/// <summary>
/// A disk as it was at one moment, of which each block is to be read once while the disk goes on being written. Whoever writes to a block that was
/// not read yet first saves it; neither the reader nor the writer waits for the other.
/// </summary>
/// <remarks>
/// A block is untouched until the first of two things happens under the lock: the reader, who has read it from the disk, takes it as read; or a
/// writer, who has read it from the disk too, leaves it in the sidecar. A writer writes only afterwards. So what was read before a block's state changed is the
/// old contents, and who comes second throws what he has read away.
/// </remarks>
public sealed class DiskView
{
    private const byte Untouched = 0, Saved = 1, Passed = 2, NotNeeded = 3;

    private readonly TrackedDisk disk;
    private readonly Sidecar sidecar;
    private readonly byte[] states;
    private readonly Dictionary<long, Sidecar.Slot> saved = [];
    private readonly Lock gate = new();
    private readonly BlockChanges? changes;
    private readonly uint since;
    private uint ended;
    private volatile string? failure;
    private long savedBlocks;

    internal DiskView(TrackedDisk disk, Sidecar sidecar, uint? since)
    {
        this.disk = disk;
        this.sidecar = sidecar;
        changes = since is null ? null : disk.Changes;
        this.since = since ?? 0;
        Blocks = (long)((disk.Length + TrackedDisk.BlockSize - 1) / TrackedDisk.BlockSize);
        states = new byte[Blocks];
        Length = disk.Length;
    }

    /// <summary>Blocks of the disk; the last may be shorter.</summary>
    public long Blocks { get; }

    /// <summary>Bytes of the disk.</summary>
    public ulong Length { get; }

    /// <summary>Why the view is of no use any more; null: it is.</summary>
    public string? Failure => failure;

    /// <summary>The epoch of the disk's changes that this view has ended.</summary>
    public uint EndedEpoch => ended;

    /// <summary>Blocks that had to be saved before they were written.</summary>
    public long SavedBlocks => Volatile.Read(ref savedBlocks);

    /// <summary>Bytes of a block.</summary>
    public int LengthOf(long block) => (int)Math.Min(TrackedDisk.BlockSize, Length - ((ulong)block * TrackedDisk.BlockSize));

    internal void Begin()
    {
        ended = disk.Changes?.Epoch ?? 0;
        disk.Begin(this);
    }

    internal void Fail(string why) => failure ??= why;

    internal void End() => disk.End(this);

    // A writer's turn, on its thread. What cannot be saved ends the view, never the write.
    internal void Save(long first, long last)
    {
        if (failure is not null)
            return;
        PinnedBuffer? buffer = null;
        for (long block = first; block <= last && failure is null; block++)
        {
            if (Volatile.Read(ref states[block]) != Untouched)
                continue;
            if (changes is not null && changes.LastChange(block) <= since)
            {
                lock (gate)
                    if (states[block] == Untouched)
                        states[block] = NotNeeded;
                continue;
            }
            try
            {
                SaveOne(block, buffer ??= sidecar.Rent());
            }
            catch (Exception e) when (e is IOException or UnauthorizedAccessException or ObjectDisposedException or OutOfMemoryException)
            {
                Fail($"old blocks cannot be kept for the copy: {e.Message.ReplaceLineEndings(" ")}");
            }
        }
        if (buffer is not null)
            sidecar.Return(buffer);
    }

    private void SaveOne(long block, PinnedBuffer buffer)
    {
        int length = LengthOf(block);
        Sidecar.Slot slot = Sidecar.Slot.Zeros;
        ulong offset = (ulong)block * TrackedDisk.BlockSize;
        DiskExtent extent = disk.BlockStatus(offset, (ulong)length);
        if (extent.Kind == DiskExtentKind.Data || extent.Length < (ulong)length)
        {
            DiskResult result = disk.Inner.Read(offset, [buffer.Part(0, length)]);
            buffer.KeepAlive();
            if (result != DiskResult.Done)
            {
                Fail("the disk cannot be read");
                return;
            }
            slot = sidecar.Keep(buffer.Span[..length]);
        }
        lock (gate)
        {
            if (states[block] == Untouched)
            {
                saved.Add(block, slot);
                Volatile.Write(ref states[block], Saved);
                savedBlocks++;
                return;
            }
        }
        sidecar.Free(slot);
    }

    /// <summary>The next block from one on that has to be copied; <see cref="Blocks"/>: none. Any thread.</summary>
    public long Next(long block)
    {
        if (changes is null)
            return block;
        for (; block < Blocks; block++)
        {
            uint changed = changes.LastChange(block);
            if (changed <= since)
                continue;
            if (changed <= ended)
                return block;
            // Written since. Its state was set before its number.
            lock (gate)
                if (states[block] != NotNeeded)
                    return block;
        }
        return Blocks;
    }

    /// <summary>Reads a run of blocks, all of which have to be copied; not again what was read before. Any thread, each its own blocks.</summary>
    /// <param name="block">The first.</param>
    /// <param name="count">How many at most.</param>
    /// <param name="buffer">Room for so many.</param>
    /// <param name="offset">Where in the buffer.</param>
    /// <param name="kind">What they are.</param>
    /// <returns>How many blocks this is about, at least one.</returns>
    /// <exception cref="IOException">The disk cannot be read, or the view has failed.</exception>
    public int Read(long block, int count, PinnedBuffer buffer, int offset, out ViewRun kind)
    {
        ArgumentNullException.ThrowIfNull(buffer);
        Check();
        ulong from = (ulong)block * TrackedDisk.BlockSize;
        DiskExtent extent = disk.BlockStatus(from, Length - from);
        // Blocks wholly within a hole.
        long holes = extent.Kind == DiskExtentKind.Data ? 0 : from + extent.Length >= Length ? Blocks - block : (long)((from + extent.Length) / TrackedDisk.BlockSize) - block;
        if (holes > 0)
        {
            kind = ViewRun.Zeros;
            int passed = Pass(block, (int)Math.Min(holes, count));
            if (passed > 0)
                return passed;
            kind = ViewRun.Data;
            Take(block, buffer.Span.Slice(offset, LengthOf(block)));
            return 1;
        }
        kind = ViewRun.Data;
        // Reading a hole costs the host pages of zeros.
        if (extent.Kind == DiskExtentKind.Data)
            count = (int)Math.Min(count, (long)((from + extent.Length + TrackedDisk.BlockSize - 1) / TrackedDisk.BlockSize) - block);
        ulong length = Math.Min((ulong)count * TrackedDisk.BlockSize, Length - from);
        if (disk.Inner.Read(from, [buffer.Part(offset, (int)length)]) != DiskResult.Done)
        {
            Check();
            throw new IOException($"the disk cannot be read at {from}");
        }
        buffer.KeepAlive();
        for (int done = 0; done < count;)
        {
            int passed = Pass(block + done, count - done);
            done += passed;
            if (done >= count)
                break;
            Take(block + done, buffer.Span.Slice(offset + (done * TrackedDisk.BlockSize), LengthOf(block + done)));
            done++;
        }
        return count;
    }

    /// <summary>Throws when the view has failed.</summary>
    /// <exception cref="IOException">It has.</exception>
    public void Check()
    {
        if (failure is { } why)
            throw new IOException(why);
    }

    // What was read of untouched blocks counts. Answers how many there are before the first that somebody has saved.
    private int Pass(long block, int count)
    {
        lock (gate)
        {
            for (int i = 0; i < count; i++)
            {
                if (states[block + i] == Saved)
                    return i;
                states[block + i] = Passed;
            }
        }
        return count;
    }

    private void Take(long block, Span<byte> into)
    {
        Sidecar.Slot slot;
        lock (gate)
        {
            saved.Remove(block, out slot);
            states[block] = Passed;
        }
        sidecar.Read(slot, into);
        sidecar.Free(slot);
    }
}
