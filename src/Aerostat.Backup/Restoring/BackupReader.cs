using Aerostat.Platform;
using Aerostat.Storage;
using Microsoft.Win32.SafeHandles;

namespace Aerostat.Backup;

/// <summary>Reads backups back: a disk, or all of it to see whether it is whole.</summary>
public static class BackupReader
{
    // Work is handed out in pieces of so many chunks.
    private const int PieceChunks = 64;

    /// <summary>Writes a disk as it was into a new image. It appears under its name when it is whole, and not before.</summary>
    /// <param name="store">The store.</param>
    /// <param name="backup">Which backup.</param>
    /// <param name="disk">The disk's name.</param>
    /// <param name="path">The image.</param>
    /// <param name="replace">Whether something may be there already.</param>
    /// <param name="create">Makes an empty image of so many bytes at a path, and opens it.</param>
    /// <param name="progress">Told how far it is; null: nobody.</param>
    /// <param name="cancellation">Gives up; nothing remains.</param>
    /// <exception cref="BackupException">A link of the chain is damaged, which the message names; or the image cannot be written.</exception>
    public static void Restore(BackupStore store, StoredBackup backup, string disk, string path, bool replace, Func<string, ulong, IDisk> create, BackupProgress? progress = null, CancellationToken cancellation = default)
    {
        ArgumentNullException.ThrowIfNull(store);
        ArgumentNullException.ThrowIfNull(backup);
        ArgumentNullException.ThrowIfNull(create);
        string whole = Path.GetFullPath(path);
        if (HostFile.KindOf(whole) is HostFileKind.Directory or HostFileKind.Special)
            throw new BackupException($"{path} is not a file that can be replaced; give another name");
        if (!replace && HostFile.KindOf(whole) != HostFileKind.None)
            throw new BackupException($"{path} exists; give --force to replace it, or another name");
        // All of the chain before anything is written.
        DiskContents contents = DiskContents.Read(store.Chain(backup), disk);
        string partial = Path.Combine(Path.GetDirectoryName(whole)!, $".{Path.GetFileName(whole)}.partial-{Guid.NewGuid():n}");
        try
        {
            using (IDisk image = create(partial, contents.Disk.Length))
            {
                progress?.AddTotal((long)contents.Disk.Length);
                Walk(contents, (chunk, bytes) =>
                {
                    if (image.Write((ulong)chunk * ChunkCodec.ChunkSize, [bytes]) != DiskResult.Done)
                        throw new IOException("the host cannot write to it; its file system may be full");
                }, damage: null, progress, _ => true, cancellation);
                if (image.Flush() != DiskResult.Done)
                    throw new IOException("the host cannot write to it; its file system may be full");
            }
            File.Move(partial, whole, overwrite: replace);
            HostDirectory.Synchronize(Path.GetDirectoryName(whole)!);
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            throw BackupException.Of($"{path} cannot be written", e);
        }
        finally
        {
            File.Delete(partial);
        }
    }

    /// <summary>Makes empty images of a format.</summary>
    public static Func<string, ulong, IDisk> Creator(DiskFormat format) => format == DiskFormat.Qcow2 ? static (path, length) => Qcow2Disk.Create(path, length) : CreateRaw;

    /// <summary>An empty raw image, all holes.</summary>
    public static IDisk CreateRaw(string path, ulong length)
    {
        using (FileStream file = new(path, FileMode.CreateNew, FileAccess.Write))
            file.SetLength((long)length);
        return RawDisk.Open(path, readOnly: false);
    }

    /// <summary>
    /// Reads everything that a backup has stored itself, and checks it, and that its chain gives the disks that were backed up. Answers what is wrong.
    /// </summary>
    /// <exception cref="BackupException">The store cannot be read.</exception>
    public static IReadOnlyList<string> Verify(BackupStore store, string name, BackupProgress? progress = null, CancellationToken cancellation = default)
    {
        ArgumentNullException.ThrowIfNull(store);
        List<string> wrong = [];
        try
        {
            StoredBackup backup = store.Read(name);
            IReadOnlyList<StoredBackup> chain = store.Chain(backup);
            foreach (BackupDisk disk in backup.Manifest.Disks)
            {
                try
                {
                    DiskContents contents = DiskContents.Read(chain, disk.Name);
                    progress?.AddTotal((long)disk.Length);
                    int own = chain.Count - 1;
                    Walk(contents, static (_, _) => { }, wrong, progress, chunk => contents.Links[chunk] == own, cancellation);
                }
                catch (BackupException e) when (e.IsDamage)
                {
                    wrong.Add(e.Message);
                }
            }
        }
        catch (BackupException e) when (e.IsDamage)
        {
            wrong.Add(e.Message);
        }
        return wrong;
    }

    private sealed class Worker : IDisposable
    {
        public ChunkCodec Codec { get; } = new();
        public PinnedBuffer Contents { get; } = new(ChunkCodec.ChunkSize);
        public byte[] Stored { get; } = new byte[ChunkCodec.MostStored];

        public void Dispose() => Codec.Dispose();
    }

    // Damage: where it is written down; null: the first ends the walk.
    private static void Walk(DiskContents contents, Action<long, HostBuffer> use, List<string>? damage, BackupProgress? progress, Func<long, bool> wanted, CancellationToken cancellation)
    {
        List<SafeFileHandle> packs = [];
        try
        {
            foreach (StoredBackup link in contents.Chain)
                packs.Add(File.OpenHandle(Path.Combine(link.Path, contents.Disk.PackFile), FileMode.Open, FileAccess.Read, FileShare.Read | FileShare.Delete));
            long chunks = contents.Disk.ChunkCount, pieces = (chunks + PieceChunks - 1) / PieceChunks;
            Parallel.For(0, pieces, new ParallelOptions { CancellationToken = cancellation, MaxDegreeOfParallelism = Environment.ProcessorCount }, static () => new Worker(), (piece, state, worker) =>
            {
                long last = Math.Min((piece + 1) * PieceChunks, chunks), from = piece * PieceChunks;
                for (long chunk = from; chunk < last && !state.IsStopped; chunk++)
                {
                    if (contents.Hashes[chunk].IsZeros || !wanted(chunk))
                        continue;
                    ChunkEntry entry = contents.Entries[chunk];
                    int length = contents.Disk.LengthOf(chunk);
                    Span<byte> stored = worker.Stored.AsSpan(0, entry.Stored);
                    bool good = RandomAccess.Read(packs[contents.Links[chunk]], stored, entry.Offset) == entry.Stored && worker.Codec.Decode(entry, stored, worker.Contents.Span[..length]);
                    if (!good)
                    {
                        string what = $"{contents.Disk.Name} in backup {contents.Chain[contents.Links[chunk]].Name} is damaged at {chunk * ChunkCodec.ChunkSize} of the disk (byte {entry.Offset} of {contents.Disk.PackFile})";
                        if (damage is null)
                            throw BackupException.Damaged(what);
                        lock (damage)
                            damage.Add(what);
                        continue;
                    }
                    use(chunk, worker.Contents.Part(0, length));
                    progress?.AddRead(length);
                }
                progress?.AddDone(Math.Min(last * ChunkCodec.ChunkSize, (long)contents.Disk.Length) - (from * ChunkCodec.ChunkSize));
                return worker;
            }, static worker => worker.Dispose());
        }
        catch (AggregateException e)
        {
            System.Runtime.ExceptionServices.ExceptionDispatchInfo.Throw(e.InnerExceptions[0]);
        }
        finally
        {
            packs.ForEach(p => p.Dispose());
        }
    }
}
