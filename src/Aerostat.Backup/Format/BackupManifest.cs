using System.Buffers;
using System.Security.Cryptography;
using System.Text;
using System.Text.Json;
using System.Text.Json.Serialization;

namespace Aerostat.Backup;

/// <summary>How far a backup can be trusted to be what the guest meant to have on its disks.</summary>
public enum BackupConsistency
{
    /// <summary>As after a power failure: journals have to be replayed, and what programs had in memory is missing.</summary>
    Crash,
    /// <summary>The guest had written everything out and stood still.</summary>
    Guest,
}

/// <summary>What is in a backup.</summary>
public sealed record BackupManifest
{
    /// <summary>Names this backup among all others.</summary>
    public required Guid Id { get; init; }
    /// <summary>The moment that it is of, by the host's clock.</summary>
    public required DateTimeOffset Created { get; init; }
    /// <summary>What made it.</summary>
    public required string Program { get; init; }
    /// <summary>The machine's name.</summary>
    public required string Machine { get; init; }
    /// <summary>How far it can be trusted.</summary>
    public required BackupConsistency Consistency { get; init; }
    /// <summary>Why it is only crash-consistent; null: it is not.</summary>
    public string? ConsistencyReason { get; init; }
    /// <summary>Milliseconds that the guest took to freeze.</summary>
    public double? FreezeMilliseconds { get; init; }
    /// <summary>Milliseconds that the guest's file systems were frozen.</summary>
    public double? FrozenMilliseconds { get; init; }
    /// <summary>Microseconds for which writes to the disks were held up.</summary>
    public required double HeldMicroseconds { get; init; }
    /// <summary>What the guest's daemon says of its system.</summary>
    public required IReadOnlyDictionary<string, string> Guest { get; init; }
    /// <summary>The backup that this one changes; null: it is a full one.</summary>
    public BackupParent? Parent { get; init; }
    /// <summary>What whoever reads this should know.</summary>
    public required IReadOnlyList<string> Notes { get; init; }
    /// <summary>Bytes of a chunk.</summary>
    public required int ChunkSize { get; init; }
    /// <summary>How chunks are hashed; the same in a whole chain.</summary>
    public BackupHash Hash { get; init; }
    /// <summary>The seed of that hash, if it has one.</summary>
    public long HashSeed { get; init; }
    /// <summary>The disks, all of one moment.</summary>
    public required IReadOnlyList<BackupDisk> Disks { get; init; }

    internal const string FileName = "manifest.json", Format = "aerostat-backup";
    // 1 had SHA-256 only, and no word for it.
    internal const int Version = 2, OldestVersion = 1;

    internal ChunkHasher Hasher => new(Hash, HashSeed);

    /// <summary>The file: what it is, a hash of the rest, and the rest.</summary>
    internal byte[] ToFile()
    {
        byte[] body = JsonSerializer.SerializeToUtf8Bytes(this, BackupJson.Default.BackupManifest);
        string head = $"{{\"format\": \"{Format}\", \"version\": {Version}, \"sha256\": \"{Convert.ToHexStringLower(SHA256.HashData(body))}\", \"backup\": ";
        ArrayBufferWriter<byte> file = new();
        file.Write(Encoding.UTF8.GetBytes(head));
        file.Write(body);
        file.Write("}\n"u8);
        return file.WrittenSpan.ToArray();
    }

    /// <summary>Reads a file.</summary>
    /// <exception cref="BackupException">It is damaged or of another version; the message continues "backup NAME".</exception>
    internal static BackupManifest FromFile(byte[] bytes, string name)
    {
        try
        {
            using JsonDocument document = JsonDocument.Parse(bytes);
            JsonElement root = document.RootElement;
            if (root.GetProperty("format").GetString() != Format)
                throw new JsonException("another format");
            if (root.GetProperty("version").GetInt32() is var version && version is < OldestVersion or > Version)
                throw new BackupException($"backup {name} is of format version {version}, and this program knows version {Version}; use a later aerostat");
            JsonElement body = root.GetProperty("backup");
            if (Convert.ToHexStringLower(SHA256.HashData(Encoding.UTF8.GetBytes(body.GetRawText()))) != root.GetProperty("sha256").GetString())
                throw new JsonException("its hash differs");
            BackupManifest manifest = body.Deserialize(BackupJson.Default.BackupManifest) ?? throw new JsonException("null");
            return manifest.ChunkSize == ChunkCodec.ChunkSize && Enum.IsDefined(manifest.Hash) && manifest.Disks.All(d => d.Fits)
                ? manifest
                : throw new JsonException("a value is out of range");
        }
        catch (Exception e) when (e is JsonException or InvalidOperationException or KeyNotFoundException or FormatException)
        {
            throw BackupException.Damaged($"the manifest of backup {name} is damaged ({e.Message.ReplaceLineEndings(" ").TrimEnd('.')})");
        }
    }
}

/// <summary>The backup before an incremental one.</summary>
/// <param name="Id">Which.</param>
/// <param name="Name">Its directory, beside this one's.</param>
public sealed record BackupParent(Guid Id, string Name);

/// <summary>A disk in a backup.</summary>
public sealed record BackupDisk
{
    /// <summary>The device's name.</summary>
    public required string Name { get; init; }
    /// <summary>Where the image was.</summary>
    public required string Path { get; init; }
    /// <summary>By what the guest can tell it.</summary>
    public required string Serial { get; init; }
    /// <summary>Bytes of the disk.</summary>
    public required ulong Length { get; init; }
    /// <summary>Chunks that this backup stores, those of zeros not counted.</summary>
    public required long Chunks { get; init; }
    /// <summary>Bytes of the pack.</summary>
    public required long PackBytes { get; init; }
    /// <summary>Entries of the index.</summary>
    public required long Entries { get; init; }
    /// <summary>SHA-256 of the index.</summary>
    public required string IndexSha256 { get; init; }
    /// <summary>SHA-256 of the hashes of all chunks of the disk, 32 bytes each, in order; of chunks of zeros, 32 zeros.</summary>
    public required string Contents { get; init; }
    /// <summary>Why all of the disk was read for an incremental backup; null: it was not, or the backup is a full one.</summary>
    public string? FullScan { get; init; }

    internal string IndexFile => $"{Name}.index";

    internal string PackFile => $"{Name}.pack";

    internal long ChunkCount => (long)((Length + ChunkCodec.ChunkSize - 1) / ChunkCodec.ChunkSize);

    internal int LengthOf(long chunk) => (int)Math.Min(ChunkCodec.ChunkSize, Length - ((ulong)chunk * ChunkCodec.ChunkSize));

    internal bool Fits => Length is > 0 and < 1UL << 46 && PackBytes >= 0 && Entries >= 0 && Entries <= ChunkCount
        && Name.Length is > 0 and < 64 && Name.All(c => char.IsAsciiLetterOrDigit(c) || c == '-');
}

/// <summary>What a backup that is not done yet is going to be: so that the next attempt can use what it has stored.</summary>
internal sealed record BackupStart(string Machine, Guid? Parent, IReadOnlyList<BackupStartDisk> Disks, BackupHash Hash, long HashSeed);

/// <summary>One of its disks.</summary>
internal sealed record BackupStartDisk(string Name, ulong Length);

/// <summary>How the files of a backup are written and read.</summary>
[JsonSourceGenerationOptions(
    PropertyNamingPolicy = JsonKnownNamingPolicy.CamelCase, DefaultIgnoreCondition = JsonIgnoreCondition.WhenWritingNull, UseStringEnumConverter = true, WriteIndented = true)]
[JsonSerializable(typeof(BackupManifest))]
[JsonSerializable(typeof(BackupStart))]
internal sealed partial class BackupJson : JsonSerializerContext;
