using Microsoft.Win32.SafeHandles;

namespace Aerostat.Backup;

/// <summary>
/// The chunks of one disk while they are written: one after the other into the pack, and an entry for each into a journal, from which a later attempt learns
/// what is there. One writer.
/// </summary>
internal sealed class DiskPack : IDisposable
{
    private readonly string folder, name;
    private readonly SafeFileHandle pack, journal;
    private readonly List<ChunkEntry> entries = [];
    private readonly Dictionary<long, ChunkEntry> earlier = [];
    private long length, journalLength;

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
        length = RandomAccess.GetLength(pack);
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

    /// <summary>What an earlier attempt has stored of a chunk with these contents. Any thread, before the chunk is added.</summary>
    public ChunkEntry? FindEarlier(long chunk, ChunkHash hash, ChunkCodec codec, Span<byte> stored, Span<byte> contents)
    {
        if (earlier.Count == 0 || !earlier.TryGetValue(chunk, out ChunkEntry entry) || entry.Hash != hash)
            return null;
        // Nobody has forced it to the disk: it counts when it is there.
        return RandomAccess.Read(pack, stored[..entry.Stored], entry.Offset) == entry.Stored && codec.Decode(entry, stored[..entry.Stored], contents) ? entry : null;
    }

    /// <summary>Appends chunks.</summary>
    /// <param name="stored">Their bytes, one after the other.</param>
    /// <param name="chunks">Each with its place in those bytes; with a place of -1, it is in the pack already.</param>
    public void Add(ReadOnlySpan<byte> stored, ReadOnlySpan<PackedChunk> chunks)
    {
        if (chunks.IsEmpty)
            return;
        if (!stored.IsEmpty)
            RandomAccess.Write(pack, stored, length);
        byte[] lines = new byte[chunks.Length * ChunkEntry.Size];
        for (int i = 0; i < chunks.Length; i++)
        {
            ChunkEntry entry = chunks[i].At < 0 ? chunks[i].Entry : chunks[i].Entry with { Offset = length + chunks[i].At };
            entries.Add(entry);
            entry.Write(lines.AsSpan(i * ChunkEntry.Size));
            if (entry.Encoding != ChunkEncoding.Zeros)
                Chunks++;
        }
        length += stored.Length;
        RandomAccess.Write(journal, lines, journalLength);
        journalLength += lines.Length;
    }

    /// <summary>Forces the pack to the disk and writes the index.</summary>
    /// <returns>The index's hash and its number of entries.</returns>
    public (string Sha256, long Entries) Finish()
    {
        RandomAccess.FlushToDisk(pack);
        entries.Sort(static (a, b) => a.Chunk.CompareTo(b.Chunk));
        return (ChunkIndex.Write(Path.Combine(folder, name + ".index"), entries), entries.Count);
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
