namespace Aerostat.Backup;

/// <summary>How a backup is made.</summary>
public sealed record BackupOptions
{
    /// <summary>The usual level of compression.</summary>
    public const int DefaultLevel = 1;

    /// <summary>The most backups that an incremental one builds on.</summary>
    public const int LongestChain = 64;

    /// <summary>Only what has changed since the latest backup of this machine in the store. Where there is none that fits, the backup is a full one and says so.</summary>
    public bool Incremental { get; init; }

    /// <summary>Whether a guest that cannot be frozen is backed up all the same, as it would be found after a power failure.</summary>
    public bool AllowCrashConsistent { get; init; }

    /// <summary>How many backups of this machine are kept; those that they build on are kept too. Null: all.</summary>
    public int? Keep { get; init; }

    /// <summary>How long the guest may take to freeze.</summary>
    public TimeSpan FreezeDeadline { get; init; } = TimeSpan.FromSeconds(60);

    /// <summary>Zstandard's level, -7 to 19; null: nothing is compressed.</summary>
    public int? Level { get; init; } = DefaultLevel;

    /// <summary>How the chunks of a full backup are hashed; an incremental one goes on as its chain began.</summary>
    public BackupHash Hash { get; init; } = BackupHash.XxHash128;

    /// <summary>Bytes of old blocks that wait in memory for the copy; more go to a file in the store.</summary>
    public long MemoryBytes { get; init; } = 64 << 20;

    /// <summary>Threads that copy; null: as many as there are processors.</summary>
    public int? Threads { get; init; }

    /// <summary>Called when the moment is over and the guest goes on, before the copy. For tests.</summary>
    internal Func<Task>? AfterThaw { get; init; }
}

/// <summary>What a backup is at.</summary>
public enum BackupPhase
{
    /// <summary>Finds out what there is to do.</summary>
    Preparing,
    /// <summary>Has the guest freeze and thaw.</summary>
    Freezing,
    /// <summary>Reads, and writes to the store, while the guest goes on.</summary>
    Copying,
    /// <summary>Forces files to the disk, and removes what is not kept.</summary>
    Finishing,
    /// <summary>Over, well or not.</summary>
    Over,
}

/// <summary>How far a backup is. Any thread.</summary>
public sealed class BackupProgress
{
    private readonly long began = System.Diagnostics.Stopwatch.GetTimestamp();
    private long total, done, read, stored;
    private volatile BackupPhase phase;

    /// <summary>What it is at.</summary>
    public BackupPhase Phase
    {
        get => phase;
        internal set => phase = value;
    }

    /// <summary>Bytes of the disks that may have to be looked at.</summary>
    public long TotalBytes => Volatile.Read(ref total);

    /// <summary>Bytes of the disks that are done with.</summary>
    public long DoneBytes => Volatile.Read(ref done);

    /// <summary>Bytes that were read.</summary>
    public long ReadBytes => Volatile.Read(ref read);

    /// <summary>Bytes that were written to the store.</summary>
    public long StoredBytes => Volatile.Read(ref stored);

    /// <summary>Since the beginning.</summary>
    public TimeSpan Elapsed => System.Diagnostics.Stopwatch.GetElapsedTime(began);

    internal void AddTotal(long bytes) => Interlocked.Add(ref total, bytes);

    internal void AddDone(long bytes) => Interlocked.Add(ref done, bytes);

    internal void AddRead(long bytes) => Interlocked.Add(ref read, bytes);

    internal void AddStored(long bytes) => Interlocked.Add(ref stored, bytes);
}

/// <summary>What was written.</summary>
/// <param name="Backup">The backup.</param>
/// <param name="Elapsed">How long all of it took.</param>
/// <param name="CopyTime">How long the copy took after the thaw, to the durable end.</param>
/// <param name="ReadBytes">Bytes that were read from the disks.</param>
/// <param name="StoredBytes">Bytes that were written.</param>
/// <param name="SavedBlocks">Blocks that the guest wrote before they had been copied.</param>
/// <param name="SpilledBytes">Bytes of those that did not fit into memory.</param>
/// <param name="Removed">Backups that were removed because they are not to be kept.</param>
public sealed record BackupResult(
    StoredBackup Backup, TimeSpan Elapsed, TimeSpan CopyTime, long ReadBytes, long StoredBytes, long SavedBlocks, long SpilledBytes, IReadOnlyList<string> Removed);
