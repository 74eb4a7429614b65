using System.Diagnostics;
using Aerostat.Devices;
using Aerostat.Machine;
using Aerostat.Storage;

namespace Aerostat.Backup;

/// <summary>
/// Makes backups of a machine's disks while it runs. The guest is frozen only for the moment at which views of all disks are made; they are copied while it
/// goes on. One backup at a time; whatever goes wrong, the guest goes on and earlier backups are as they were.
/// </summary>
/// <param name="machine">The machine; whoever made it disposes of it.</param>
/// <param name="program">What goes into manifests as the maker.</param>
public sealed class MachineBackups(VirtualMachine machine, string program)
{
    private readonly SemaphoreSlim busy = new(1);
    private BackupProgress? current;

    /// <summary>How far the backup is that is being made; null: none is.</summary>
    public BackupProgress? Progress => Volatile.Read(ref current);

    /// <summary>Makes a backup.</summary>
    /// <param name="directory">The store; it is made when it is not there.</param>
    /// <param name="options">How.</param>
    /// <param name="cancellation">Gives up: the guest is thawed, and nothing remains.</param>
    /// <exception cref="BackupException">It could not be made.</exception>
    public async Task<BackupResult> SaveAsync(string directory, BackupOptions options, CancellationToken cancellation = default)
    {
        ArgumentNullException.ThrowIfNull(options);
        if (machine.Disks.Count == 0)
            throw new BackupException("the machine has no disk to back up");
        if (!await busy.WaitAsync(0, CancellationToken.None).ConfigureAwait(false))
            throw new BackupException("another backup of this machine is being made; wait for it");
        BackupProgress progress = new();
        Volatile.Write(ref current, progress);
        try
        {
            BackupStore store = BackupStore.OpenOrCreate(directory);
            using FileStream held = store.Lock();
            try
            {
                return await RunAsync(store, options, progress, cancellation).ConfigureAwait(false);
            }
            catch (Exception e) when (e is IOException or UnauthorizedAccessException or ObjectDisposedException)
            {
                throw machine.State == MachineState.Ended ? new BackupException("the machine has ended before its disks were copied; nothing was kept") : BackupException.Of($"the backup to {directory} was given up", e);
            }
        }
        finally
        {
            progress.Phase = BackupPhase.Over;
            Volatile.Write(ref current, null);
            busy.Release();
        }
    }

    // What the parent has of a disk, and what is known of the changes since.
    private sealed record Source(MachineDisk Disk, ChunkMap<ChunkHash> Hashes, uint? Since, string? FullScan);

    private async Task<BackupResult> RunAsync(BackupStore store, BackupOptions options, BackupProgress progress, CancellationToken cancellation)
    {
        long began = Stopwatch.GetTimestamp();
        store.Sweep();
        List<string> notes = [];
        Base? found = options.Incremental ? FindParent(store, options, notes) : null;
        BackupParent? parent = found is null ? null : new BackupParent(found.Backup.Manifest.Id, found.Backup.Name);
        Source[] sources = [.. machine.Disks.Select((d, i) => Prepare(d, found?.Backup, found?.Hashes[i], notes))];
        using PartialBackup partial = PartialBackup.Begin(store, new BackupStart(
            machine.Options.Name, parent?.Id, [.. sources.Select(s => new BackupStartDisk(s.Disk.Name, s.Disk.Contents.Length))],
            found?.Backup.Manifest.Hash ?? options.Hash, found?.Backup.Manifest.HashSeed ?? NewSeed(options.Hash)));
        ChunkHasher hasher = new(partial.Start.Hash, partial.Start.HashSeed);
        if (partial.IsResumed)
            notes.Add("went on with what an interrupted backup had stored");
        using PointInTime point = new([.. sources.Select(s => (s.Disk.Contents, s.Since))], partial.DirectoryPath, options.MemoryBytes);
        progress.Phase = BackupPhase.Freezing;
        Moment moment = await TakeAsync(point, options, cancellation).ConfigureAwait(false);
        progress.Phase = BackupPhase.Copying;
        if (options.AfterThaw is { } after)
            await after().ConfigureAwait(false);
        long copying = Stopwatch.GetTimestamp();
        foreach (Source source in sources)
            progress.AddTotal((long)source.Disk.Contents.Length);
        List<BackupDisk> disks = [];
        for (int i = 0; i < sources.Length; i++)
            disks.Add(await CopyAsync(sources[i], point.Views[i], partial, hasher, parent is not null, options, progress, cancellation).ConfigureAwait(false));
        progress.Phase = BackupPhase.Finishing;
        cancellation.ThrowIfCancellationRequested();
        Guid id = Guid.NewGuid();
        BackupManifest manifest = new()
        {
            Id = id,
            Created = moment.At,
            Program = program,
            Machine = machine.Options.Name,
            Consistency = moment.Frozen is null ? BackupConsistency.Crash : BackupConsistency.Guest,
            ConsistencyReason = moment.Reason,
            FreezeMilliseconds = moment.Frozen is null ? null : Math.Round(moment.Frozen.FreezeTime.TotalMilliseconds, 3),
            FrozenMilliseconds = moment.Frozen is null ? null : Math.Round(moment.Frozen.FrozenTime.TotalMilliseconds, 3),
            HeldMicroseconds = Math.Round(moment.Held.TotalMicroseconds, 1),
            Guest = machine.IntegrationComponents?.KeyValues.Facts ?? machine.GuestTools?.Information ?? new Dictionary<string, string>(),
            Parent = parent,
            Notes = notes,
            ChunkSize = ChunkCodec.ChunkSize,
            Hash = hasher.Kind,
            HashSeed = hasher.Seed,
            Disks = disks,
        };
        string name = BackupStore.NameOf(moment.At, id);
        partial.Commit(manifest, name);
        for (int i = 0; i < sources.Length; i++)
            sources[i].Disk.Contents.Changes?.Record(id, point.Views[i].EndedEpoch);
        IReadOnlyList<string> removed = options.Keep is { } keep ? Retain(store, keep) : [];
        return new BackupResult(
            new StoredBackup(name, Path.Combine(store.Directory, name), manifest), Stopwatch.GetElapsedTime(began), Stopwatch.GetElapsedTime(copying),
            progress.ReadBytes, progress.StoredBytes, point.Views.Sum(v => v.SavedBlocks), point.SpilledBytes, removed);
    }

    private static long NewSeed(BackupHash kind) => kind == BackupHash.Sha256 ? 0 : BitConverter.ToInt64(System.Security.Cryptography.RandomNumberGenerator.GetBytes(sizeof(long)));

    // The backup is there; that old ones cannot be removed does not undo it.
    private IReadOnlyList<string> Retain(BackupStore store, int keep)
    {
        try
        {
            return store.Retain(machine.Options.Name, keep);
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            machine.Journal.Write("backup", $"could not remove old backups: {e.Message.ReplaceLineEndings(" ")}");
            return [];
        }
    }

    // The backup that an incremental one changes, with the hashes of each disk.
    private sealed record Base(StoredBackup Backup, ChunkMap<ChunkHash>[] Hashes);

    private Base? FindParent(BackupStore store, BackupOptions options, List<string> notes)
    {
        string why = "there is no earlier backup of this machine here";
        foreach (string name in store.Names.Reverse())
        {
            try
            {
                StoredBackup latest = store.Read(name);
                if (latest.Manifest.Machine != machine.Options.Name)
                    continue;
                if (!latest.Manifest.Disks.Select(d => (d.Name, d.Length)).SequenceEqual(machine.Disks.Select(d => (d.Name, d.Contents.Length))))
                {
                    why = $"backup {name} is of other disks";
                    break;
                }
                IReadOnlyList<StoredBackup> chain = store.Chain(latest);
                int longest = Math.Min(options.Keep ?? BackupOptions.LongestChain, BackupOptions.LongestChain);
                if (chain.Count < longest)
                    return new Base(latest, [.. latest.Manifest.Disks.Select(d => DiskContents.Read(chain, d.Name).Hashes)]);
                why = $"{chain.Count} backups build on each other already";
                break;
            }
            catch (BackupException e)
            {
                why = e.Message;
                break;
            }
        }
        notes.Add($"a full backup although an incremental one was asked for: {why}");
        return null;
    }

    private static Source Prepare(MachineDisk disk, StoredBackup? parent, ChunkMap<ChunkHash>? hashes, List<string> notes)
    {
        disk.Contents.Track();
        long chunks = (long)((disk.Contents.Length + ChunkCodec.ChunkSize - 1) / ChunkCodec.ChunkSize);
        if (parent is null || hashes is null)
            return new Source(disk, new ChunkMap<ChunkHash>(chunks), null, null);
        BlockChanges? changes = disk.Contents.Changes;
        uint? since = changes?.EpochOf(parent.Manifest.Id);
        string? why = since is not null ? null : changes is null ? "changes of a disk that is not written here are not tracked" : changes.Reason;
        if (why is not null)
            notes.Add($"{disk.Name}: all of it was read, since what has changed is not known: {why}");
        return new Source(disk, hashes, since, why);
    }

    // The moment that a backup is of. Frozen: null, it is crash-consistent, for the reason.
    private sealed record Moment(DateTimeOffset At, TimeSpan Held, FreezeResult? Frozen, string? Reason);

    private async Task<Moment> TakeAsync(PointInTime point, BackupOptions options, CancellationToken cancellation)
    {
        TimeSpan? held = null;
        DateTimeOffset at = default;
        bool still = false;
        string reason;
        try
        {
            IVolumeFreezer? volumes = machine.Freezer;
            Task<FreezeResult> freeze = machine.FreezeAsync(new FreezeOptions { Deadline = options.FreezeDeadline }, () =>
            {
                // Given up meanwhile: whoever waited has gone, and the guest is thawed at once.
                cancellation.ThrowIfCancellationRequested();
                at = TimeProvider.System.GetUtcNow();
                held = point.Take();
                still = volumes!.Phase == FreezePhase.Frozen;
                return Task.CompletedTask;
            });
            FreezeResult result = await freeze.WaitAsync(cancellation).ConfigureAwait(false);
            if (still && !result.ByWatchdog)
                return new Moment(at, held!.Value, result, null);
            reason = "the watchdog had thawed the guest before its disks were seen";
        }
        catch (Exception e) when (e is FreezeException or InvalidOperationException)
        {
            reason = e.Message;
        }
        if (machine.State == MachineState.Ended)
            throw new BackupException("the machine has ended before its disks were copied; nothing was kept");
        if (!options.AllowCrashConsistent)
            throw new BackupException($"{reason}; --crash-consistent backs up what is on the disks all the same");
        if (held is null)
        {
            at = TimeProvider.System.GetUtcNow();
            held = point.Take();
        }
        return new Moment(at, held.Value, null, reason);
    }

    private static async Task<BackupDisk> CopyAsync(Source source, DiskView view, PartialBackup partial, ChunkHasher hasher, bool isIncremental, BackupOptions options, BackupProgress progress, CancellationToken cancellation)
    {
        using DiskPack pack = DiskPack.Open(partial.DirectoryPath, source.Disk.Name, source.Hashes.Count);
        await new DiskCopier(view, pack, source.Hashes, hasher, isIncremental, options.Level, options.Threads ?? Environment.ProcessorCount, progress).RunAsync(cancellation).ConfigureAwait(false);
        (string sha256, long entries) = await pack.FinishAsync().ConfigureAwait(false);
        return new BackupDisk
        {
            Name = source.Disk.Name,
            Path = Path.GetFullPath(source.Disk.Options.Path),
            Serial = source.Disk.Options.Serial,
            Length = source.Disk.Contents.Length,
            Chunks = pack.Chunks,
            PackBytes = pack.Length,
            Entries = entries,
            IndexSha256 = sha256,
            Contents = ChunkHash.OfDisk(source.Hashes),
            FullScan = source.FullScan,
        };
    }
}
