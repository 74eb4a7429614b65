using System.Threading.Channels;
using Aerostat.Platform;
using Aerostat.Storage;

namespace Aerostat.Backup;

/// <summary>
/// Copies a view of a disk into a pack: one reader, some threads that hash and compress, one writer, in the order of the disk. A bounded number of batches
/// goes round, so that nobody runs ahead.
/// </summary>
internal sealed class DiskCopier(DiskView view, DiskPack pack, ChunkHash[] hashes, bool isIncremental, int? level, int threads, BackupProgress progress)
{
    private const int BatchChunks = 16;

    // Zeros take no room in the pack; the writer adds them at the end.
    private readonly List<long> lateHoles = [];

    private sealed class Batch
    {
        public PinnedBuffer Contents { get; } = new(BatchChunks * ChunkCodec.ChunkSize);
        public long[] Chunks { get; } = new long[BatchChunks];
        public bool[] IsHole { get; } = new bool[BatchChunks];
        public int Count { get; set; }
        public byte[] Stored { get; } = new byte[BatchChunks * ChunkCodec.MostStored];
        public int StoredLength { get; set; }
        public PackedChunk[] Packed { get; } = new PackedChunk[BatchChunks];
        public int PackedCount { get; set; }
        public long ReadBytes { get; set; }
        public long DoneUpTo { get; set; }
        public byte[] Scratch { get; } = new byte[ChunkCodec.MostStored + ChunkCodec.ChunkSize];
        public ChunkCodec Codec { get; } = new();
        public Task Work { get; set; } = Task.CompletedTask;
    }

    /// <summary>Copies everything; <c>hashes</c>, those of the parent or zeros before, are those of the disk afterwards.</summary>
    public async Task RunAsync(CancellationToken cancellation)
    {
        Batch[] batches = [.. Enumerable.Range(0, (threads * 2) + 2).Select(_ => new Batch())];
        Channel<Batch> free = Channel.CreateUnbounded<Batch>(), full = Channel.CreateUnbounded<Batch>();
        foreach (Batch batch in batches)
            free.Writer.TryWrite(batch);
        using CancellationTokenSource over = CancellationTokenSource.CreateLinkedTokenSource(cancellation);
        Task reading = Task.Run(() => ReadAsync(free.Reader, full.Writer, over.Token), CancellationToken.None);
        try
        {
            await WriteAsync(free.Writer, full.Reader, over.Token).ConfigureAwait(false);
            await reading.ConfigureAwait(false);
        }
        finally
        {
            await over.CancelAsync().ConfigureAwait(false);
            await reading.ContinueWith(static t => t.Exception, CancellationToken.None, TaskContinuationOptions.ExecuteSynchronously, TaskScheduler.Default).ConfigureAwait(false);
            foreach (Batch batch in batches)
            {
                await batch.Work.ContinueWith(static t => t.Exception, CancellationToken.None, TaskContinuationOptions.ExecuteSynchronously, TaskScheduler.Default).ConfigureAwait(false);
                batch.Codec.Dispose();
            }
        }
        view.Check();
    }

    private async Task ReadAsync(ChannelReader<Batch> free, ChannelWriter<Batch> full, CancellationToken cancellation)
    {
        try
        {
            long block = view.Next(0);
            while (block < view.Blocks)
            {
                Batch batch = await free.ReadAsync(cancellation).ConfigureAwait(false);
                block = Fill(batch, block, cancellation);
                batch.Work = Task.Run(() => Process(batch), CancellationToken.None);
                full.TryWrite(batch);
            }
            full.Complete();
        }
        catch (Exception e)
        {
            full.Complete(e);
        }
    }

    // Fills a batch; answers the block that comes next.
    private long Fill(Batch batch, long block, CancellationToken cancellation)
    {
        batch.Count = 0;
        batch.ReadBytes = 0;
        while (block < view.Blocks && batch.Count < BatchChunks)
        {
            cancellation.ThrowIfCancellationRequested();
            int room = BatchChunks - batch.Count, run = 1;
            while (run < room && block + run < view.Blocks && view.Next(block + run) == block + run)
                run++;
            int count = view.Read(block, run, batch.Contents, batch.Count * ChunkCodec.ChunkSize, out ViewRun kind);
            if (kind == ViewRun.Data)
            {
                for (int i = 0; i < count; i++)
                    Append(batch, block + i, isHole: false);
                batch.ReadBytes += Math.Min((long)count * ChunkCodec.ChunkSize, (long)view.Length - (block * ChunkCodec.ChunkSize));
            }
            else if (isIncremental)
            {
                // A hole over what was there before; there may be more of it than the batch takes.
                for (int i = 0; i < count; i++)
                {
                    if (hashes[block + i].IsZeros)
                        continue;
                    if (batch.Count == BatchChunks)
                    {
                        HoldHoles(block + i, count - i);
                        break;
                    }
                    Append(batch, block + i, isHole: true);
                }
            }
            block = view.Next(block + count);
        }
        batch.DoneUpTo = block;
        return block;
    }

    private void HoldHoles(long first, int count)
    {
        for (long block = first; block < first + count; block++)
            if (!hashes[block].IsZeros)
                lateHoles.Add(block);
    }

    private static void Append(Batch batch, long block, bool isHole)
    {
        batch.Chunks[batch.Count] = block;
        batch.IsHole[batch.Count++] = isHole;
    }

    private void Process(Batch batch)
    {
        batch.StoredLength = batch.PackedCount = 0;
        for (int i = 0; i < batch.Count; i++)
        {
            long chunk = batch.Chunks[i];
            Span<byte> contents = batch.Contents.Span.Slice(i * ChunkCodec.ChunkSize, view.LengthOf(chunk));
            if (batch.IsHole[i] || !contents.ContainsAnyExcept((byte)0))
            {
                if (!hashes[chunk].IsZeros)
                    batch.Packed[batch.PackedCount++] = new PackedChunk(new ChunkEntry(chunk, 0, 0, ChunkEncoding.Zeros, default), -1);
                continue;
            }
            ChunkHash hash = ChunkHash.Of(contents);
            if (hash == hashes[chunk])
                continue;
            if (pack.FindEarlier(chunk, hash, batch.Codec, batch.Scratch.AsSpan(0, ChunkCodec.MostStored), batch.Scratch.AsSpan(ChunkCodec.MostStored, contents.Length)) is { } earlier)
            {
                batch.Packed[batch.PackedCount++] = new PackedChunk(earlier, -1);
                continue;
            }
            int stored = batch.Codec.Encode(contents, batch.Stored.AsSpan(batch.StoredLength), level, out ChunkEncoding encoding);
            batch.Packed[batch.PackedCount++] = new PackedChunk(new ChunkEntry(chunk, 0, stored, encoding, hash), batch.StoredLength);
            batch.StoredLength += stored;
        }
    }

    private async Task WriteAsync(ChannelWriter<Batch> free, ChannelReader<Batch> full, CancellationToken cancellation)
    {
        long done = 0;
        await foreach (Batch batch in full.ReadAllAsync(cancellation).ConfigureAwait(false))
        {
            await batch.Work.ConfigureAwait(false);
            pack.Add(batch.Stored.AsSpan(0, batch.StoredLength), batch.Packed.AsSpan(0, batch.PackedCount));
            foreach (PackedChunk chunk in batch.Packed.AsSpan(0, batch.PackedCount))
                hashes[chunk.Entry.Chunk] = chunk.Entry.Hash;
            progress.AddRead(batch.ReadBytes);
            progress.AddStored(batch.StoredLength);
            long upTo = Math.Min(batch.DoneUpTo * ChunkCodec.ChunkSize, (long)view.Length);
            progress.AddDone(upTo - done);
            done = upTo;
            free.TryWrite(batch);
        }
        PackedChunk[] holes = [.. lateHoles.Select(block => new PackedChunk(new ChunkEntry(block, 0, 0, ChunkEncoding.Zeros, default), -1))];
        pack.Add([], holes);
        foreach (PackedChunk hole in holes)
            hashes[hole.Entry.Chunk] = default;
        progress.AddDone((long)view.Length - done);
    }
}
