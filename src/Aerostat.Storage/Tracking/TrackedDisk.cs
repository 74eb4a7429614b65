using Aerostat.Platform;

namespace Aerostat.Storage;

/// <summary>
/// A disk that can be seen as it was at one moment while it goes on being written, and that knows which of its blocks have changed since. Costs a write one
/// shared lock as long as nobody asks for either.
/// </summary>
/// <remarks>
/// A guest's write holds the gate shared; a point in time (<see cref="PointInTime"/>) takes the gates of all disks for itself for a moment. So every
/// write is before it or after it, and what was written after an answered write is never in it without that write. The order within a write is: what the
/// view needs is saved, the blocks are marked as changed, the data goes to the disk.
/// </remarks>
public sealed class TrackedDisk : IDisk
{
    /// <summary>Bytes of a block, the unit of views and of change tracking.</summary>
    public const int BlockSize = 64 << 10;

    private readonly IDisk inner;
    private readonly ReaderWriterLockSlim gate = new();
    private readonly string? changesPath, diskPath;
    private volatile DiskView? view;
    private volatile BlockChanges? changes;
    private int disposed;

    /// <summary>Puts a disk under watch.</summary>
    /// <param name="inner">The disk; disposed of with this.</param>
    /// <param name="path">The image, beside which the record of changes is kept; null: it is not kept. A record that is there goes on.</param>
    public TrackedDisk(IDisk inner, string? path = null)
    {
        ArgumentNullException.ThrowIfNull(inner);
        this.inner = inner;
        if (path is null || inner.ReadOnly)
            return;
        diskPath = Path.GetFullPath(path);
        changesPath = BlockChanges.PathBeside(diskPath);
        if (!File.Exists(changesPath))
            return;
        changes = BlockChanges.Load(changesPath, diskPath, inner.Length);
        changes.MarkInUse(changesPath);
    }

    /// <inheritdoc/>
    public ulong Length => inner.Length;

    /// <inheritdoc/>
    public bool ReadOnly => inner.ReadOnly;

    /// <summary>What has changed; null: nobody has asked for it to be tracked. A disk that cannot be written does not change.</summary>
    public BlockChanges? Changes => changes;

    /// <summary>Has changes tracked from now on, across restarts too where the image has a path.</summary>
    public void Track()
    {
        if (changes is not null || ReadOnly)
            return;
        BlockChanges made = new(inner.Length, "nothing was backed up from this disk before");
        gate.EnterWriteLock();
        try
        {
            changes ??= made;
        }
        finally
        {
            gate.ExitWriteLock();
        }
        if (changesPath is not null)
            made.MarkInUse(changesPath);
    }

    /// <inheritdoc/>
    public DiskResult Read(ulong offset, ReadOnlySpan<HostBuffer> buffers) => inner.Read(offset, buffers);

    /// <inheritdoc/>
    public DiskExtent BlockStatus(ulong offset, ulong length) => inner.BlockStatus(offset, length);

    /// <inheritdoc/>
    public DiskResult Write(ulong offset, ReadOnlySpan<HostBuffer> buffers)
    {
        ulong length = 0;
        foreach (HostBuffer buffer in buffers)
            length += buffer.Length;
        gate.EnterReadLock();
        try
        {
            BeforeChange(offset, length);
            return inner.Write(offset, buffers);
        }
        finally
        {
            gate.ExitReadLock();
        }
    }

    /// <inheritdoc/>
    public DiskResult Flush() => inner.Flush();

    /// <inheritdoc/>
    public DiskResult Discard(ulong offset, ulong length)
    {
        gate.EnterReadLock();
        try
        {
            // A discard is a wish. It would have as much saved as it covers, up to a gigabyte at once: not while there is a view.
            if (view is { Failure: null })
                return DiskResult.Unsupported;
            BeforeChange(offset, length);
            return inner.Discard(offset, length);
        }
        finally
        {
            gate.ExitReadLock();
        }
    }

    /// <inheritdoc/>
    public DiskResult WriteZeroes(ulong offset, ulong length, bool mayUnmap)
    {
        gate.EnterReadLock();
        try
        {
            BeforeChange(offset, length);
            return inner.WriteZeroes(offset, length, mayUnmap);
        }
        finally
        {
            gate.ExitReadLock();
        }
    }

    // Gate held shared.
    private void BeforeChange(ulong offset, ulong length)
    {
        if (length == 0)
            return;
        long first = (long)(offset / BlockSize), last = (long)((offset + length - 1) / BlockSize);
        view?.Save(first, last);
        changes?.Mark(first, last);
    }

    /// <summary>Waits until no write is under way, and holds new ones up.</summary>
    internal void Hold() => gate.EnterWriteLock();

    /// <summary>Lets writes go on. On the thread of <see cref="Hold"/>.</summary>
    internal void Release() => gate.ExitWriteLock();

    /// <summary>Gate held for itself: what is written from now on is not for the view to see.</summary>
    internal void Begin(DiskView one)
    {
        if (view is not null)
            throw new InvalidOperationException("there is a view of this disk already");
        changes?.Advance();
        view = one;
    }

    /// <summary>Takes the view away again; writes cost what they did before.</summary>
    internal void End(DiskView one)
    {
        if (Volatile.Read(ref disposed) != 0)
            return;
        gate.EnterWriteLock();
        try
        {
            if (view == one)
                view = null;
        }
        finally
        {
            gate.ExitWriteLock();
        }
    }

    /// <summary>Reads as <see cref="Read"/> does, for views.</summary>
    internal IDisk Inner => inner;

    /// <summary>Ends a view, closes the disk, and writes down what has changed.</summary>
    public void Dispose()
    {
        if (Interlocked.Exchange(ref disposed, 1) != 0)
            return;
        view?.Fail("the disk was closed");
        view = null;
        bool durable = inner.Flush() == DiskResult.Done;
        inner.Dispose();
        // Without it the next run finds the mark of use, and trusts nothing.
        if (durable && changesPath is not null)
            changes?.Store(changesPath, diskPath!);
    }
}
