using System.Buffers;
using System.Runtime.ExceptionServices;
using Aerostat.Machine;
using Aerostat.Memory;
using Microsoft.Win32.SafeHandles;

namespace Aerostat.Snapshots;

/// <summary>
/// A snapshot on disk, with those it builds on: manifests and page maps are read and checked, the memory is not until it is wanted
/// (<see cref="Verify"/>).
/// </summary>
public sealed class Snapshot
{
    /// <summary>Most snapshots that may build on each other.</summary>
    public const int LongestChain = 64;

    // Mapping a run of pages costs a system call now and a mapping of the host's for good; so many zeros are rather read from the file's hole.
    private const ulong BridgedPages = 32;

    private readonly PageMap map;
    private readonly Checksum seal;
    // Of the machines that were made of this and are logged, until somebody takes their logs.
    private readonly List<ChangeLog> logs = [];

    private Snapshot(string path, SnapshotManifest manifest, Checksum seal, PageMap map, Snapshot? parent)
    {
        Path = path;
        Manifest = manifest;
        this.seal = seal;
        this.map = map;
        Parent = parent;
        Chain = [this, .. parent?.Chain ?? []];
    }

    /// <summary>Its directory, a full path.</summary>
    public string Path { get; }

    /// <summary>What is in it.</summary>
    public SnapshotManifest Manifest { get; }

    /// <summary>What it builds on; null: nothing.</summary>
    public Snapshot? Parent { get; }

    /// <summary>This one, and all it builds on.</summary>
    public IReadOnlyList<Snapshot> Chain { get; }

    private string MemoryPath => System.IO.Path.Combine(Path, SnapshotDirectory.Memory);

    /// <summary>Opens a snapshot and those it builds on.</summary>
    /// <exception cref="SnapshotException">One of them is not there, is damaged, or is of a later version.</exception>
    public static Snapshot Open(string directory)
    {
        ArgumentNullException.ThrowIfNull(directory);
        return Open(System.IO.Path.TrimEndingDirectorySeparator(System.IO.Path.GetFullPath(directory)), 1);
    }

    private static Snapshot Open(string directory, int depth)
    {
        if (depth > LongestChain)
            throw new SnapshotException($"more than {LongestChain} snapshots build on each other");
        try
        {
            string name = System.IO.Path.Combine(directory, SnapshotDirectory.Manifest);
            if (!File.Exists(name))
                throw new SnapshotException(Directory.Exists(directory) ? $"{directory} is not a snapshot: it has no {SnapshotDirectory.Manifest}" : $"there is no snapshot {directory}");
            byte[] manifestFile = ReadAll(name, ManifestFile.LargestSize);
            SnapshotManifest manifest = ManifestFile.Read(manifestFile, name);
            ulong pages = ManifestCheck.Pages(manifest, name);
            string mapName = System.IO.Path.Combine(directory, SnapshotDirectory.PageMap);
            byte[] mapFile = ReadAll(mapName, manifest.Memory.MapBytes);
            if (mapFile.Length != manifest.Memory.MapBytes || Checksum.Of(mapFile).ToString() != manifest.Memory.MapChecksum)
                throw new SnapshotException($"{mapName} is damaged, or is not the one that {name} speaks of");
            PageMap map = PageMap.Parse(mapFile, pages, mapName);
            ManifestCheck.Counts(manifest, map, name);
            CheckMemoryFile(System.IO.Path.Combine(directory, SnapshotDirectory.Memory), pages);
            return new Snapshot(directory, manifest, Checksum.Of(manifestFile), map, OpenParent(directory, manifest, depth));
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException or ArgumentException)
        {
            throw new SnapshotException($"{directory} cannot be read: {e.Message}", e);
        }
    }

    private static Snapshot? OpenParent(string directory, SnapshotManifest manifest, int depth)
    {
        if (manifest.Parent is not { } link)
            return null;
        string place = System.IO.Path.TrimEndingDirectorySeparator(System.IO.Path.GetFullPath(System.IO.Path.Combine(directory, link.Path)));
        Snapshot parent;
        try
        {
            parent = Open(place, depth + 1);
        }
        catch (SnapshotException e)
        {
            throw new SnapshotException($"{directory} builds on a snapshot that cannot be used: {e.Message}", e);
        }
        if (parent.Manifest.Id != link.Id)
            throw new SnapshotException($"{directory} builds on snapshot {link.Id}, and {place} is {parent.Manifest.Id}: it has been replaced");
        if (!parent.Manifest.Memory.Regions.SequenceEqual(manifest.Memory.Regions))
            throw new SnapshotException($"{directory} and {place} are not of the same machine: their memory differs");
        return parent;
    }

    private static void CheckMemoryFile(string name, ulong pages)
    {
        FileInfo file = new(name);
        if (!file.Exists)
            throw new SnapshotException($"{name} is not there");
        if ((ulong)file.Length != pages * PageMap.PageSize)
            throw new SnapshotException($"{name} has {file.Length} bytes, and {pages * PageMap.PageSize} are to be there: it is cut off or damaged");
    }

    private static byte[] ReadAll(string name, long most)
    {
        using FileStream stream = new(name, FileMode.Open, FileAccess.Read, FileShare.Read, 1);
        if (stream.Length > most)
            throw new SnapshotException($"{name} has {stream.Length} bytes, and at most {most} are to be there: it is damaged");
        byte[] bytes = new byte[stream.Length];
        stream.ReadExactly(bytes);
        return bytes;
    }

    /// <summary>Reads all memory of this snapshot and those it builds on, with all the host's processors, and compares it with the checksums.</summary>
    /// <exception cref="SnapshotException">Some of it is damaged; says where.</exception>
    public void Verify()
    {
        foreach (Snapshot snapshot in Chain)
        {
            try
            {
                using SafeFileHandle file = snapshot.OpenMemory();
                snapshot.CheckGaps(file);
                snapshot.CheckBlocks(file);
            }
            catch (Exception e) when (e is IOException or UnauthorizedAccessException)
            {
                throw new SnapshotException($"{snapshot.MemoryPath} cannot be read: {e.Message}", e);
            }
        }
    }

    private void CheckBlocks(SafeFileHandle file)
    {
        try
        {
            foreach ((ulong first, int pages, _) in map.Blocks().AsParallel().AsOrdered().Where(b => !IsWhole(file, b.FirstPage, b.Pages, b.Expected)))
                throw new SnapshotException($"{MemoryPath} is damaged: the checksum of the {pages} pages from 0x{first * PageMap.PageSize:x} on does not fit");
        }
        catch (AggregateException e)
        {
            ExceptionDispatchInfo.Throw(e.InnerExceptions[0]);
        }
    }

    private bool IsWhole(SafeFileHandle file, ulong first, int pages, Checksum expected)
    {
        byte[] buffer = ArrayPool<byte>.Shared.Rent(pages * PageMap.PageSize);
        Span<byte> block = buffer.AsSpan(0, pages * PageMap.PageSize);
        ReadExactly(file, block, (long)(first * PageMap.PageSize), MemoryPath);
        bool whole = Checksum.Of(block) == expected;
        ArrayPool<byte>.Shared.Return(buffer);
        return whole;
    }

    // What lies between contents is a hole, and where it is short it is mapped with them.
    private void CheckGaps(SafeFileHandle file)
    {
        byte[] buffer = new byte[(int)BridgedPages * PageMap.PageSize];
        ulong end = ulong.MaxValue;
        foreach (PageRun run in map.Runs.Where(r => r.Kind == PageKind.Data))
        {
            if (end < run.First && run.First - end <= BridgedPages)
            {
                Span<byte> gap = buffer.AsSpan(0, (int)(run.First - end) * PageMap.PageSize);
                ReadExactly(file, gap, (long)(end * PageMap.PageSize), MemoryPath);
                if (gap.ContainsAnyExcept((byte)0))
                    throw new SnapshotException($"{MemoryPath} is damaged: there is something at 0x{end * PageMap.PageSize:x}, where there are to be zeros");
            }
            end = run.End;
        }
    }

    /// <summary>The machine that the snapshot is of.</summary>
    /// <param name="accelerator">What is to run it; null: what ran it.</param>
    /// <exception cref="SnapshotException">It cannot be made here.</exception>
    public MachineOptions ToMachineOptions(string? accelerator = null) => ManifestCheck.Options(Manifest, Path, accelerator);

    /// <summary>
    /// Whether the images of the machine's disks are as they were when the snapshot was taken: by size and time of the last write. An image at another
    /// place than then is whoever's who gives it, and so is one of a snapshot of format version 1, which does not say.
    /// </summary>
    /// <exception cref="SnapshotException">One has changed; says which, and how.</exception>
    public void CheckDisks(MachineOptions options)
    {
        ArgumentNullException.ThrowIfNull(options);
        foreach ((SnapshotDisk was, DiskOptions now) in (Manifest.Disks ?? []).Zip(options.Devices.OfType<DiskOptions>()))
            if (was.FindChange(now.Path) is { } change)
                throw new SnapshotException($"{change}: the guest, which has parts of it in its memory, would damage it; give the image as it was then");
    }

    /// <summary>
    /// What a machine goes on from. Its memory shows the snapshot's files, which must stay as they are while it runs; removing or replacing the
    /// snapshot as a whole is no change to them.
    /// </summary>
    /// <param name="trackChanges">Whether writes are logged from the start, so that the first snapshot can be a differential one.</param>
    /// <param name="newIdentity">Whether the guest is told that it is a copy.</param>
    public MachineOrigin ToOrigin(bool trackChanges = false, bool newIdentity = true) => new(
        Manifest.State,
        memory =>
        {
            Fill(memory);
            if (!trackChanges)
                return;
            ChangeLog log = new(memory);
            lock (logs)
                logs.Add(log);
        },
        newIdentity);

    /// <summary>
    /// Writes a full snapshot of the same machine, which builds on nothing. All memory is verified first.
    /// </summary>
    /// <exception cref="SnapshotException">The memory is damaged, or the new snapshot cannot be written.</exception>
    public void Flatten(string directory, bool durable = true)
    {
        ArgumentNullException.ThrowIfNull(directory);
        Verify();
        Flattening.Write(this, directory, durable);
    }

    internal ulong PageCount => map.PageCount;

    /// <summary>The log of a machine that was made of this; null: there is none, or somebody has it.</summary>
    internal ChangeLog? TakeChangeLog(GuestMemory memory)
    {
        lock (logs)
        {
            ChangeLog? log = logs.Find(l => l.Memory == memory);
            if (log is not null)
                logs.Remove(log);
            return log;
        }
    }

    /// <summary>Where each page's contents are, as the longest runs; null: zeros.</summary>
    internal IEnumerable<(ulong First, ulong Count, Snapshot? Source)> Resolve()
    {
        (ulong First, ulong Count, Snapshot? Source)? pending = null;
        foreach ((ulong first, ulong count, PageKind kind, Snapshot saidBy) in ResolveKinds())
        {
            Snapshot? source = kind == PageKind.Data ? saidBy : null;
            if (pending is { } p && p.Source == source)
            {
                pending = p with { Count = p.Count + count };
                continue;
            }
            if (pending is { } whole)
                yield return whole;
            pending = (first, count, source);
        }
        if (pending is { } last)
            yield return last;
    }

    /// <summary>What each page is and which snapshot says so; never unchanged.</summary>
    internal IEnumerable<(ulong First, ulong Count, PageKind Kind, Snapshot Source)> ResolveKinds() => Resolve(0, map.PageCount);

    private IEnumerable<(ulong First, ulong Count, PageKind Kind, Snapshot Source)> Resolve(ulong first, ulong end)
    {
        for (int i = map.FindRun(first); i < map.Runs.Count && map.Runs[i].First < end; i++)
        {
            PageRun run = map.Runs[i];
            ulong from = Math.Max(run.First, first), to = Math.Min(run.End, end);
            if (run.Kind != PageKind.Unchanged)
                yield return (from, to - from, run.Kind, this);
            else
                foreach ((ulong First, ulong Count, PageKind Kind, Snapshot Source) part in Parent!.Resolve(from, to))
                    yield return part;
        }
    }

    /// <summary>Opens the memory that the map is of: another snapshot may have been given this one's name since that was read.</summary>
    internal SafeFileHandle OpenMemory()
    {
        SafeFileHandle memory = File.OpenHandle(MemoryPath, FileMode.Open, FileAccess.Read, FileShare.Read);
        // Snapshots are replaced as a whole, so if the manifest is the same now, then so was the memory just before.
        if (Checksum.Of(ReadAll(System.IO.Path.Combine(Path, SnapshotDirectory.Manifest), ManifestFile.LargestSize)) == seal)
            return memory;
        memory.Dispose();
        throw new SnapshotException($"{Path} has been replaced by another snapshot while this one was being read: try again");
    }

    internal static void ReadExactly(SafeFileHandle file, Span<byte> buffer, long offset, string name)
    {
        while (!buffer.IsEmpty)
        {
            int count = RandomAccess.Read(file, buffer, offset);
            if (count <= 0)
                throw new SnapshotException($"{name} ends at 0x{offset:x}, before its end");
            buffer = buffer[count..];
            offset += count;
        }
    }

    private void Fill(GuestMemory memory)
    {
        if (!memory.Regions.Select(r => new SnapshotRegion(r.Base.Value, r.Size)).SequenceEqual(Manifest.Memory.Regions))
            throw new SnapshotException($"{Path} is of a machine whose memory lies elsewhere than this one's");
        Dictionary<Snapshot, SafeFileHandle> files = Chain.ToDictionary(s => s, s => s.OpenMemory());
        try
        {
            List<(ulong First, ulong Count, Snapshot Source)> runs = Bridge();
            // The longest are mapped; what would be too many mappings is read.
            ulong least = runs.Count <= memory.FileRunsLeft / 2 ? 0 : runs.Select(r => r.Count).OrderDescending().ElementAt(memory.FileRunsLeft / 2);
            foreach ((ulong first, ulong count, Snapshot source) in runs)
                Place(memory, first, count, files[source], source.MemoryPath, map: count > least || least == 0);
        }
        finally
        {
            foreach (SafeFileHandle file in files.Values)
                file.Dispose();
        }
    }

    // Runs with contents, short gaps of zeros taken in where the same file has a hole: it may have contents there that a later snapshot says are gone.
    private List<(ulong First, ulong Count, Snapshot Source)> Bridge()
    {
        List<(ulong First, ulong Count, Snapshot Source)> runs = [];
        ulong gap = 0;
        foreach ((ulong first, ulong count, Snapshot? source) in Resolve())
        {
            if (source is null)
            {
                gap = count;
                continue;
            }
            if (runs.Count > 0 && runs[^1].Source == source && runs[^1].First + runs[^1].Count + gap == first && gap <= BridgedPages && source.map.IsEmpty(first - gap, gap))
                runs[^1] = runs[^1] with { Count = first + count - runs[^1].First };
            else
                runs.Add((first, count, source));
            gap = 0;
        }
        return runs;
    }

    private static void Place(GuestMemory memory, ulong first, ulong count, SafeFileHandle file, string name, bool map)
    {
        ulong before = 0;
        foreach (MemoryRegion region in memory.Regions)
        {
            ulong pages = region.Size >> 12;
            ulong from = Math.Max(first, before), to = Math.Min(first + count, before + pages);
            if (from < to)
            {
                GuestAddress address = new(region.Base.Value + ((from - before) << 12));
                if (map)
                    memory.MapFile(file, (long)(from * PageMap.PageSize), address, (to - from) << 12);
                else
                    Copy(memory, address, (to - from) << 12, file, (long)(from * PageMap.PageSize), name);
            }
            before += pages;
        }
    }

    private static void Copy(GuestMemory memory, GuestAddress address, ulong length, SafeFileHandle file, long offset, string name)
    {
        for (ulong done = 0; done < length;)
        {
            int size = (int)Math.Min(length - done, 1 << 20);
            if (!memory.TryGetSpan(new GuestAddress(address.Value + done), size, out Span<byte> bytes))
                throw new InvalidOperationException($"there is no guest memory at {address}");
            ReadExactly(file, bytes, offset + (long)done, name);
            memory.NotifyHostWrite(address.Value + done, (ulong)size);
            done += (ulong)size;
        }
    }
}
