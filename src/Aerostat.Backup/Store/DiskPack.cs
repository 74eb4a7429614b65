using Aerostat.Platform;
using Microsoft.Win32.SafeHandles;

namespace Aerostat.Backup;

/// <summary>
/// The chunks of one disk while they are written: one after the other into the pack, and an entry for each into a journal, from which a later attempt learns
/// what is there.
/// </summary>
internal sealed class DiskPack : IDisposable
{
    private const long WritebackBytes = 8 << 20;

    private readonly Lock gate = new();
    private readonly string folder, name;
    private readonly SafeFileHandle pack, journal;
    private readonly List<ChunkEntry> entries = [];
    private readonly Dictionary<long, ChunkEntry> earlier = [];
    private long length, begun, journalLength;

    private DiskPack(string folder, string name, long chunks)
    {
        this.folder = folder;
        this.name = name;
        pack = File.OpenHandle(Path.Combine(folder, name + ".pack"), FileMode.OpenOrCreate, FileAccess.ReadWrite, FileShare.Read);
        try
        {
            journal = File.OpenHandle(Path.Combine(folder, JournalOf(name)), FileMode.OpenOrCreate, FileAccess.ReadWrite, FileShare.Read);
        }
        catch
        {
            pack.Dispose();
            throw;
        }
        begun = length = RandomAccess.GetLength(pack);
        ReadJournal(chunks);
    }

    /// <summary>Bytes of the pack.</summary>
    public long Length => length;

    /// <summary>Chunks with contents.</summary>
    public long Chunks { get; private set; }

    /// <summary>Name of the journal's file.</summary>
    public static string JournalOf(string name) => name + ".journal";

    /// <summary>Opens the files, with what an earlier attempt has left in them.</summary>
    public static DiskPack Open(string folder, string name, long chunks) => new(folder, name, chunks);

    private void ReadJournal(long chunks)
    {
        byte[] bytes = new byte[RandomAccess.GetLength(journal)];
        int got = RandomAccess.Read(journal, bytes, 0);
        // What does not fit was not written to its end; nothing behind it counts.
        for (; journalLength + ChunkEntry.Size <= got; journalLength += ChunkEntry.Size)
        {
            if (ChunkEntry.Read(bytes.AsSpan((int)journalLength, ChunkEntry.Size), chunks, length) is not { } entry)
                break;
            if (entry.Encoding != ChunkEncoding.Zeros)
                earlier[entry.Chunk] = entry;
        }
    }

    /// <summary>Whether an earlier attempt has stored anything.</summary>
    public bool HasEarlier => earlier.Count > 0;

    /// <summary>What an earlier attempt has stored of a chunk with these contents. Any thread, before the chunk is added.</summary>
    public ChunkEntry? FindEarlier(long chunk, ChunkHash hash, ChunkHasher hasher, ChunkCodec codec, Span<byte> stored, Span<byte> contents)
    {
        if (!earlier.TryGetValue(chunk, out ChunkEntry entry) || entry.Hash != hash)
            return null;
        // Nobody has forced it to the disk: it counts when it is there.
        return RandomAccess.Read(pack, stored[..entry.Stored], entry.Offset) == entry.Stored && codec.Decode(entry, hasher, stored[..entry.Stored], contents) ? entry : null;
    }

    /// <summary>Appends chunks. Any thread: the places are given out one after the other, what goes there is written at the same time.</summary>
    /// <param name="stored">Their bytes, one after the other.</param>
    /// <param name="storedLength">How many that are.</param>
    /// <param name="chunks">Each with its place in those bytes; with a place of -1, it is in the pack already.</param>
    public void Add(IReadOnlyList<ReadOnlyMemory<byte>> stored, int storedLength, ReadOnlySpan<PackedChunk> chunks)
    {
        if (chunks.IsEmpty)
            return;
        long place = Interlocked.Add(ref length, storedLength) - storedLength;
        if (stored.Count == 1)
            RandomAccess.Write(pack, stored[0].Span, place);
        else if (stored.Count > 1)
            RandomAccess.Write(pack, stored, place);
        long from = -1, to = 0;
        lock (gate)
        {
            byte[] lines = new byte[chunks.Length * ChunkEntry.Size];
            for (int i = 0; i < chunks.Length; i++)
            {
                ChunkEntry entry = chunks[i].At < 0 ? chunks[i].Entry : chunks[i].Entry with { Offset = place + chunks[i].At };
                entries.Add(entry);
                entry.Write(lines.AsSpan(i * ChunkEntry.Size));
                if (entry.Encoding != ChunkEncoding.Zeros)
                    Chunks++;
            }
            RandomAccess.Write(journal, lines, journalLength);
            journalLength += lines.Length;
            if (length - begun >= WritebackBytes)
                (from, to, begun) = (begun, length, length);
        }
        // The disk has something to do while the next chunks are read and hashed, and the end little to wait for.
        if (from >= 0)
            HostFile.BeginWriteback(pack, from, to - from);
    }

    /// <summary>Writes the index, and forces it and the pack to the disk.</summary>
    /// <returns>The index's hash and its number of entries.</returns>
    public async Task<(string Sha256, long Entries)> FinishAsync()
    {
        // Both at once: two that come together cost a file system's journal little more than one.
        Task flushed = Task.Run(() => RandomAccess.FlushToDisk(pack));
        try
        {
            entries.Sort(static (a, b) => a.Chunk.CompareTo(b.Chunk));
            return (ChunkIndex.Write(Path.Combine(folder, name + ".index"), entries), entries.Count);
        }
        finally
        {
            await flushed.ConfigureAwait(false);
        }
    }

    public void Dispose()
    {
        pack.Dispose();
        journal.Dispose();
    }
}

/// <summary>A chunk on its way into a pack.</summary>
/// <param name="Entry">It, without its place in the pack.</param>
/// <param name="At">Its place in what is appended; -1: it is in the pack already, or takes no place.</param>
internal readonly record struct PackedChunk(ChunkEntry Entry, int At);
