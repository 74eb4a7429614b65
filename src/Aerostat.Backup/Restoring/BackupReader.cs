using Aerostat.Platform;
using Aerostat.Storage;
using Microsoft.Win32.SafeHandles;

namespace Aerostat.Backup;

/// <summary>Reads backups back: a disk, or all of it to see whether it is whole.</summary>
public static class BackupReader
{
    // Work is handed out in pieces of so many chunks, and chunks that follow each other in a pack are read and written as runs.
    private const int PieceChunks = 256, RunChunks = 8;

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
                    ulong at = (ulong)chunk * ChunkCodec.ChunkSize;
                    if (image.Write(at, [bytes]) != DiskResult.Done)
                        throw new IOException("the host cannot write to it; its file system may be full");
                }, image.BeginFlush, damage: null, progress, _ => true, cancellation);
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
                    Walk(contents, static (_, _) => { }, static (_, _) => { }, wrong, progress, chunk => contents.Links[chunk] == own, cancellation);
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
        public PinnedBuffer Contents { get; } = new(RunChunks * ChunkCodec.ChunkSize);
        public byte[] Stored { get; set; } = [];

        public void Dispose() => Codec.Dispose();
    }

    // Damage: where it is written down; null: the first ends the walk.
    private static void Walk(DiskContents contents, Action<long, HostBuffer> use, Action<ulong, ulong> pieceDone, List<string>? damage, BackupProgress? progress, Func<long, bool> wanted, CancellationToken cancellation)
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
                for (long chunk = from; chunk < last && !state.IsStopped;)
                {
                    if (contents.Hashes[chunk].IsZeros || !wanted(chunk))
                    {
                        chunk++;
                        continue;
                    }
                    int count = RunFrom(contents, chunk, last, wanted);
                    ReadRun(contents, packs, worker, chunk, count, use, damage, progress);
                    chunk += count;
                }
                long length = Math.Min(last * ChunkCodec.ChunkSize, (long)contents.Disk.Length) - (from * ChunkCodec.ChunkSize);
                pieceDone((ulong)from * ChunkCodec.ChunkSize, (ulong)length);
                progress?.AddDone(length);
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

    // How many chunks of the disk follow each other in one pack too.
    private static int RunFrom(DiskContents contents, long first, long last, Func<long, bool> wanted)
    {
        long chunk = first + 1;
        for (; chunk < last && chunk < first + RunChunks; chunk++)
        {
            ChunkEntry before = contents.Entries[chunk - 1];
            if (contents.Hashes[chunk].IsZeros || contents.Links[chunk] != contents.Links[first] || contents.Entries[chunk].Offset != before.Offset + before.Stored || !wanted(chunk))
                break;
        }
        return (int)(chunk - first);
    }

    private static void ReadRun(DiskContents contents, List<SafeFileHandle> packs, Worker worker, long first, int count, Action<long, HostBuffer> use, List<string>? damage, BackupProgress? progress)
    {
        ReadOnlySpan<ChunkEntry> entries = contents.Entries.Part(first, count);
        int stored = 0, length = 0;
        bool isPlain = true;
        for (int i = 0; i < count; i++)
        {
            stored += entries[i].Stored;
            length += contents.Disk.LengthOf(first + i);
            isPlain &= entries[i].Encoding == ChunkEncoding.Plain && entries[i].Stored == contents.Disk.LengthOf(first + i);
        }
        if (!isPlain && worker.Stored.Length == 0)
            worker.Stored = GC.AllocateUninitializedArray<byte>(RunChunks * ChunkCodec.MostStored);
        // What is stored as it is needs no copy.
        Span<byte> bytes = isPlain ? worker.Contents.Span[..stored] : worker.Stored.AsSpan(0, stored);
        int got = 0;
        while (got < stored && RandomAccess.Read(packs[contents.Links[first]], bytes[got..], entries[0].Offset + got) is > 0 and var more)
            got += more;
        bool whole = true;
        for (int i = 0, at = 0; i < count; at += entries[i++].Stored)
        {
            ChunkEntry entry = entries[i];
            Span<byte> into = worker.Contents.Span.Slice(i * ChunkCodec.ChunkSize, contents.Disk.LengthOf(first + i));
            if (got >= at + entry.Stored && (isPlain ? contents.Hasher.Of(into) == entry.Hash : worker.Codec.Decode(entry, contents.Hasher, bytes.Slice(at, entry.Stored), into)))
                continue;
            string what = $"{contents.Disk.Name} in backup {contents.Chain[contents.Links[first]].Name} is damaged at {(first + i) * ChunkCodec.ChunkSize} of the disk (byte {entry.Offset} of {contents.Disk.PackFile})";
            if (damage is null)
                throw BackupException.Damaged(what);
            whole = false;
            lock (damage)
                damage.Add(what);
        }
        if (!whole)
            return;
        use(first, worker.Contents.Part(0, length));
        progress?.AddRead(length);
    }
}
