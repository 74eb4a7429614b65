using System.Runtime.InteropServices;
using Aerostat.Platform;
using Aerostat.Storage;

namespace Aerostat.Backup;

/// <summary>
/// Copies a view of a disk into a pack. Each of some threads takes the next piece of the disk and does all there is to do with it, a batch at a time: read, hash, compress,
/// write. Nothing is handed from one thread to another, and a batch stays in a processor's own cache from the first step to the last.
/// </summary>
internal sealed class DiskCopier(DiskView view, DiskPack pack, ChunkMap<ChunkHash> hashes, ChunkHasher hasher, bool isIncremental, int? level, int threads, BackupProgress progress)
{
    private const int BatchChunks = 4, PieceChunks = 64;

    private readonly Lock gate = new();
    private long next, done;
    private Exception? failure;

    private sealed class Worker : IDisposable
    {
        public PinnedBuffer Contents { get; } = new(BatchChunks * ChunkCodec.ChunkSize);
        public long[] Chunks { get; } = new long[BatchChunks];
        public int Count { get; set; }
        // What the chunks have become where that is not what they are; most are written from where they were read to.
        public byte[] Compressed { get; set; } = [];
        public List<ReadOnlyMemory<byte>> Stored { get; } = [];
        public int StoredLength { get; set; }
        public List<PackedChunk> Packed { get; } = [];
        public byte[]? Scratch { get; set; }
        public ChunkCodec Codec { get; } = new();

        public void Dispose() => Codec.Dispose();
    }

    /// <summary>Copies everything; <c>hashes</c>, those of the parent or zeros before, are those of the disk afterwards.</summary>
    public async Task RunAsync(CancellationToken cancellation)
    {
        using CancellationTokenSource over = CancellationTokenSource.CreateLinkedTokenSource(cancellation);
        Task[] workers = [.. Enumerable.Range(0, threads).Select(_ => Task.Run(() => Work(over), CancellationToken.None))];
        try
        {
            await Task.WhenAll(workers).ConfigureAwait(false);
        }
        catch
        {
            cancellation.ThrowIfCancellationRequested();
            System.Runtime.ExceptionServices.ExceptionDispatchInfo.Throw(failure!);
        }
        view.Check();
        progress.AddDone((long)view.Length - done);
    }

    private void Work(CancellationTokenSource over)
    {
        try
        {
            using Worker worker = new();
            while (Claim(out long first, out long last, out long passed))
            {
                for (long block = first; block < last;)
                {
                    over.Token.ThrowIfCancellationRequested();
                    block = Fill(worker, block, last);
                    Process(worker);
                    pack.Add(worker.Stored, worker.StoredLength, CollectionsMarshal.AsSpan(worker.Packed));
                    foreach (PackedChunk chunk in worker.Packed)
                        hashes[chunk.Entry.Chunk] = chunk.Entry.Hash;
                    progress.AddStored(worker.StoredLength);
                }
                long length = Math.Min(last * ChunkCodec.ChunkSize, (long)view.Length) - (passed * ChunkCodec.ChunkSize);
                Interlocked.Add(ref done, length);
                progress.AddDone(length);
            }
        }
        catch (Exception e)
        {
            // The first that fails makes the others give up, and their giving up is no failure.
            Interlocked.CompareExchange(ref failure, e, null);
            over.Cancel();
            throw;
        }
    }

    // The next blocks that nobody has taken yet; from where on there was nothing to copy before them.
    private bool Claim(out long first, out long last, out long passed)
    {
        lock (gate)
        {
            passed = next;
            first = view.Next(next);
            last = next = Math.Min(first + PieceChunks, view.Blocks);
            return first < last;
        }
    }

    // Fills the room that there is with blocks of a piece; answers the block that comes next.
    private long Fill(Worker worker, long block, long last)
    {
        worker.Count = 0;
        worker.Packed.Clear();
        while (block < last && worker.Count < BatchChunks)
        {
            int room = BatchChunks - worker.Count, run = 1;
            while (run < room && block + run < last && view.Next(block + run) == block + run)
                run++;
            int count = view.Read(block, run, worker.Contents, worker.Count * ChunkCodec.ChunkSize, out ViewRun kind);
            if (kind == ViewRun.Data)
            {
                for (int i = 0; i < count; i++)
                    worker.Chunks[worker.Count++] = block + i;
                progress.AddRead(Math.Min((long)count * ChunkCodec.ChunkSize, (long)view.Length - (block * ChunkCodec.ChunkSize)));
            }
            else if (isIncremental)
            {
                for (int i = 0; i < count; i++)
                    AddHole(worker, block + i);
            }
            block = Math.Min(view.Next(block + count), last);
        }
        return block;
    }

    // A hole over what was there before.
    private void AddHole(Worker worker, long chunk)
    {
        if (!hashes[chunk].IsZeros)
            worker.Packed.Add(new PackedChunk(new ChunkEntry(chunk, 0, 0, ChunkEncoding.Zeros, default), -1));
    }

    private void Process(Worker worker)
    {
        worker.StoredLength = 0;
        worker.Stored.Clear();
        int compressed = 0;
        for (int i = 0; i < worker.Count; i++)
        {
            long chunk = worker.Chunks[i];
            Span<byte> contents = worker.Contents.Span.Slice(i * ChunkCodec.ChunkSize, view.LengthOf(chunk));
            if (!contents.ContainsAnyExcept((byte)0))
            {
                AddHole(worker, chunk);
                continue;
            }
            ChunkHash hash = hasher.Of(contents);
            if (hash == hashes[chunk])
                continue;
            if (FindEarlier(worker, chunk, hash, contents.Length) is { } earlier)
            {
                worker.Packed.Add(new PackedChunk(earlier, -1));
                continue;
            }
            int stored = 0;
            if (level is { } wanted)
            {
                if (worker.Compressed.Length == 0)
                    worker.Compressed = GC.AllocateUninitializedArray<byte>(BatchChunks * ChunkCodec.MostStored);
                stored = worker.Codec.Compress(contents, worker.Compressed.AsSpan(compressed), wanted);
            }
            ChunkEncoding encoding = stored == 0 ? ChunkEncoding.Plain : ChunkEncoding.Zstandard;
            if (stored == 0)
            {
                stored = contents.Length;
                Attach(worker.Stored, worker.Contents.Memory.Slice(i * ChunkCodec.ChunkSize, stored));
            }
            else
            {
                Attach(worker.Stored, worker.Compressed.AsMemory(compressed, stored));
                compressed += stored;
            }
            worker.Packed.Add(new PackedChunk(new ChunkEntry(chunk, 0, stored, encoding, hash), worker.StoredLength));
            worker.StoredLength += stored;
        }
    }

    private ChunkEntry? FindEarlier(Worker worker, long chunk, ChunkHash hash, int length)
    {
        if (!pack.HasEarlier)
            return null;
        worker.Scratch ??= new byte[ChunkCodec.MostStored + ChunkCodec.ChunkSize];
        return pack.FindEarlier(chunk, hash, hasher, worker.Codec, worker.Scratch.AsSpan(0, ChunkCodec.MostStored), worker.Scratch.AsSpan(ChunkCodec.MostStored, length));
    }

    // What follows in memory what comes before it is written together with that.
    private static void Attach(List<ReadOnlyMemory<byte>> stored, ReadOnlyMemory<byte> piece)
    {
        if (stored.Count > 0 && MemoryMarshal.TryGetArray(stored[^1], out ArraySegment<byte> last) && MemoryMarshal.TryGetArray(piece, out ArraySegment<byte> added)
            && last.Array == added.Array && last.Offset + last.Count == added.Offset)
            stored[^1] = last.Array.AsMemory(last.Offset, last.Count + added.Count);
        else
            stored.Add(piece);
    }
}
