using System.Diagnostics;
using System.Reflection;
using Aerostat.Machine;
using Aerostat.Memory;
using Aerostat.Platform;
using Aerostat.State;

namespace Aerostat.Snapshots;

/// <summary>
/// Takes the snapshots of one machine, and remembers for differential ones what they change. One at a time. To be disposed of before the
/// machine: that ends a snapshot under way.
/// </summary>
public sealed class MachineSnapshots : IDisposable
{
    // So little is copied in the pause in a few milliseconds; and a guest that writes faster than we copy is not chased for ever.
    private const ulong FewPages = 1024;
    private const int MostLiveRounds = 8;

    private readonly VirtualMachine machine;
    private readonly SemaphoreSlim turn = new(1, 1);
    private readonly CancellationTokenSource over = new();
    private ChangeLog? changes;
    private (string Directory, Guid Id)? last;

    /// <summary>Snapshots of a machine.</summary>
    public MachineSnapshots(VirtualMachine machine)
        : this(machine, null)
    {
    }

    /// <summary>
    /// Snapshots of a machine that was restored and has not been started yet: the first can be differential already.
    /// </summary>
    /// <param name="machine">The machine.</param>
    /// <param name="from">What it goes on from; null: nothing.</param>
    public MachineSnapshots(VirtualMachine machine, Snapshot? from)
    {
        ArgumentNullException.ThrowIfNull(machine);
        this.machine = machine;
        if (from is null)
            return;
        if (machine.State != MachineState.Created)
            throw new InvalidOperationException("the machine has been started: what it has written since is not known");
        changes = from.TakeChangeLog(machine.Memory) ?? throw new InvalidOperationException("the machine was not made from this snapshot with its writes logged");
        last = (from.Path, from.Manifest.Id);
    }

    /// <summary>
    /// Takes a snapshot. A machine that runs goes on while most of its memory is copied, is paused for the rest, and goes on before the files are
    /// complete.
    /// </summary>
    /// <param name="directory">The snapshot's directory. A snapshot that is there already is replaced once the new one is whole.</param>
    /// <param name="options">How.</param>
    /// <param name="cancellation">Gives up, if the snapshot is not complete yet.</param>
    /// <exception cref="SnapshotException">It cannot be taken; the machine goes on, and what was in the directory is still there.</exception>
    /// <exception cref="OperationCanceledException">Given up, or this was disposed of; the machine goes on, and what was in the directory is still there.</exception>
    public async Task<SnapshotResult> SaveAsync(string directory, SnapshotOptions options, CancellationToken cancellation = default)
    {
        ArgumentNullException.ThrowIfNull(directory);
        ArgumentNullException.ThrowIfNull(options);
        using CancellationTokenSource either = CancellationTokenSource.CreateLinkedTokenSource(cancellation, over.Token);
        await turn.WaitAsync(either.Token).ConfigureAwait(false);
        try
        {
            either.Token.ThrowIfCancellationRequested();
            return await Save(Path.TrimEndingDirectorySeparator(Path.GetFullPath(directory)), options, either.Token).ConfigureAwait(false);
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException or SavedStateException or InvalidOperationException)
        {
            throw new SnapshotException($"no snapshot could be taken to {directory}: {e.Message}", e);
        }
        finally
        {
            turn.Release();
        }
    }

    /// <summary>Ends a snapshot that is being taken, and the logging of writes.</summary>
    public void Dispose()
    {
        if (over.IsCancellationRequested)
            return;
        over.Cancel();
        // Whoever takes a snapshot reads the machine's memory until it sees that.
        turn.Wait();
        StopLog();
        turn.Release();
    }

    private void StopLog()
    {
        changes?.Dispose();
        changes = null;
        last = null;
    }

    private async Task<SnapshotResult> Save(string directory, SnapshotOptions options, CancellationToken cancellation)
    {
        Stopwatch elapsed = Stopwatch.StartNew();
        SnapshotParent? parent = options.Differential ? FindParent(directory) : null;
        SnapshotMachine description = Describe(machine.Options);
        using SnapshotDirectory target = SnapshotDirectory.Create(directory);
        bool logged = changes is not null;
        try
        {
            return await Save(target, directory, parent, description, options, elapsed, cancellation).ConfigureAwait(false);
        }
        catch when (!logged)
        {
            // Nothing builds on it.
            StopLog();
            throw;
        }
    }

    private async Task<SnapshotResult> Save(
        SnapshotDirectory target, string directory, SnapshotParent? parent, SnapshotMachine description, SnapshotOptions options, Stopwatch elapsed, CancellationToken cancellation)
    {
        bool running = machine.State is MachineState.Running or MachineState.Suspended;
        if (running && (options.Live || options.Hints))
            changes ??= new ChangeLog(machine.Memory);
        changes?.Collect();
        MemoryWriter writer = new(machine.Memory, target.MemoryFile, options.Differential ? changes!.Pending : null);
        // From here on the log's answers go to the writer as well, and hints count that are asked for.
        using HintPass hints = await AskAsync(writer, options, cancellation).ConfigureAwait(false);
        int rounds = running && options.Live ? await Task.Run(() => CopyLive(writer, cancellation), CancellationToken.None).ConfigureAwait(false) : 0;
        if (options.BeforePause is { } before)
            await before().ConfigureAwait(false);
        cancellation.ThrowIfCancellationRequested();
        SnapshotManifest? manifest = null;
        TimeSpan paused = default;
        ulong rest = 0;
        Stopwatch pause = Stopwatch.StartNew();
        await machine.SaveAsync(state =>
        {
            // Nothing of what balloons have taken goes on its own while we look.
            machine.Memory.Settle();
            // What was written so far is in the snapshot, or in the next one should this one fail.
            if (changes?.Collect() is { } fresh)
                writer.Wrote(fresh);
            rest = writer.CountToDo();
            writer.WriteRound(cancellation);
            if (options.Track)
                changes ??= new ChangeLog(machine.Memory);
            manifest = Compose(description, state, parent);
            paused = pause.Elapsed;
            return Task.CompletedTask;
        }).ConfigureAwait(false);
        hints.Dispose();
        manifest = await Task.Run(() => Finish(target, manifest!, writer.Finish(), options.Durable, cancellation), CancellationToken.None).ConfigureAwait(false);
        if (options.Track)
        {
            // Writes since the pause are in the log's own bits, not among these.
            changes!.Forget();
            last = (directory, manifest.Id);
        }
        else
            StopLog();
        SnapshotMemory memory = manifest.Memory;
        return new SnapshotResult(
            directory, manifest.Id, memory.DataPages * PageMap.PageSize, memory.ZeroPages * PageMap.PageSize,
            (memory.HintedPages + memory.DiscardedPages) * PageMap.PageSize, memory.UnchangedPages * PageMap.PageSize, paused, elapsed.Elapsed,
            hints.Report, rounds + 1, rest * PageMap.PageSize);
    }

    private async Task<HintPass> AskAsync(MemoryWriter writer, SnapshotOptions options, CancellationToken cancellation) =>
        !options.Hints ? HintPass.None(writer, HintOutcome.NotWanted)
        : machine.State != MachineState.Running ? HintPass.None(writer, HintOutcome.NotRunning)
        : await HintPass.RunAsync(machine, writer, options.HintLimit, cancellation).ConfigureAwait(false);

    // Copies while the guest runs, as long as that leaves less for the pause. What the log has is left to the caller.
    private int CopyLive(MemoryWriter writer, CancellationToken cancellation)
    {
        ulong before = ulong.MaxValue;
        int rounds = 0;
        while (true)
        {
            writer.Wrote(changes!.Collect());
            ulong left = writer.CountToDo();
            if (rounds >= MostLiveRounds || left <= FewPages || (rounds > 1 && left > before - (before / 4)))
                return rounds;
            before = left;
            writer.WriteRound(cancellation);
            rounds++;
        }
    }

    private static SnapshotManifest Finish(SnapshotDirectory target, SnapshotManifest manifest, PageMap map, bool durable, CancellationToken cancellation)
    {
        byte[] mapFile = map.ToArray();
        SnapshotManifest whole = manifest with
        {
            Memory = Describe(map, mapFile, manifest.Memory.Regions),
        };
        target.Write(SnapshotDirectory.PageMap, mapFile, durable);
        target.Write(SnapshotDirectory.Manifest, ManifestFile.Write(whole), durable);
        cancellation.ThrowIfCancellationRequested();
        target.Commit(durable);
        return whole;
    }

    /// <summary>What a manifest says of the memory.</summary>
    internal static SnapshotMemory Describe(PageMap map, byte[] mapFile, IReadOnlyList<SnapshotRegion> regions) => new()
    {
        Regions = regions,
        MapBytes = mapFile.Length,
        MapChecksum = Checksum.Of(mapFile).ToString(),
        DataPages = map.CountOf(PageKind.Data),
        ZeroPages = map.CountOf(PageKind.Zero),
        DiscardedPages = map.CountOf(PageKind.Discarded),
        HintedPages = map.CountOf(PageKind.Hinted),
        UnchangedPages = map.CountOf(PageKind.Unchanged),
    };

    private SnapshotParent FindParent(string directory)
    {
        if (changes is null || last is not { } parent)
            throw new SnapshotException("there is no earlier snapshot of this machine that a differential one could build on: take a full one first");
        Snapshot before;
        try
        {
            before = Snapshot.Open(parent.Directory);
        }
        catch (SnapshotException e)
        {
            throw new SnapshotException($"the snapshot that a differential one would build on cannot be used any more; take a full one: {e.Message}", e);
        }
        if (before.Manifest.Id != parent.Id)
            throw new SnapshotException($"{parent.Directory} has been replaced by another snapshot since; take a full one");
        if (before.Chain.Count >= Snapshot.LongestChain)
            throw new SnapshotException($"{before.Chain.Count} snapshots build on each other already, and no more may: take a full one");
        // Under whatever name.
        if (HostFile.IdentityOf(directory) is { } there && before.Chain.Any(s => HostFile.IdentityOf(s.Path) == there))
            throw new SnapshotException($"{directory} is what a differential snapshot would build on; give another name, or take a full one");
        return new SnapshotParent(Path.GetRelativePath(directory, parent.Directory), parent.Id);
    }

    private SnapshotManifest Compose(SnapshotMachine description, MachineSavedState state, SnapshotParent? parent)
    {
        MachineStatistics statistics = machine.GetStatistics();
        return new SnapshotManifest
        {
            Id = Guid.NewGuid(),
            Created = DateTimeOffset.UtcNow,
            Program = $"aerostat {typeof(MachineSnapshots).Assembly.GetName().Version?.ToString(3)}",
            Parent = parent,
            Machine = description with { Accelerator = statistics.Accelerator, CpuModel = statistics.CpuModel },
            State = state,
            Disks = SnapshotDisk.Of(machine.Options),
            Memory = new SnapshotMemory
            {
                Regions = [.. machine.Memory.Regions.Select(r => new SnapshotRegion(r.Base.Value, r.Size))],
                MapBytes = 0,
                MapChecksum = "",
                DataPages = 0,
                ZeroPages = 0,
                DiscardedPages = 0,
                HintedPages = 0,
                UnchangedPages = 0,
            },
        };
    }

    private static SnapshotMachine Describe(MachineOptions options) => new()
    {
        Name = options.Name,
        MemoryBytes = options.MemoryBytes,
        Cpus = options.Cpus,
        Accelerator = "",
        CpuModel = "",
        Personality = options.Personality,
        Devices = [.. options.Devices.Select(d => d.Format() ?? throw new SnapshotException($"a machine with {d.GetType().Name} cannot be saved: the device cannot be written down"))],
        Boot = options.Boot switch
        {
            KernelBootOptions { InitrdBytes: null } kernel => new SnapshotBoot
            {
                Kernel = Path.GetFullPath(kernel.Kernel),
                Initrd = kernel.Initrd is { } initrd ? Path.GetFullPath(initrd) : null,
                CommandLine = kernel.CommandLine,
            },
            RealModeBootOptions code => new SnapshotBoot { Code = code.Code.ToArray(), Address = code.Address },
            _ => null,
        },
    };
}
