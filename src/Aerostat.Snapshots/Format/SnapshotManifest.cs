using System.Text.Json;
using System.Text.Json.Serialization;
using Aerostat.Machine;
using Aerostat.State;

namespace Aerostat.Snapshots;

/// <summary>What is in a snapshot: everything but the memory.</summary>
public sealed record SnapshotManifest
{
    /// <summary>Names this snapshot among all others.</summary>
    public required Guid Id { get; init; }
    /// <summary>When it was taken, by the host's clock.</summary>
    public required DateTimeOffset Created { get; init; }
    /// <summary>What took it.</summary>
    public required string Program { get; init; }
    /// <summary>What it changes; null: it is a full one.</summary>
    public SnapshotParent? Parent { get; init; }
    /// <summary>The machine.</summary>
    public required SnapshotMachine Machine { get; init; }
    /// <summary>The state of its parts.</summary>
    public required MachineSavedState State { get; init; }
    /// <summary>Its memory.</summary>
    public required SnapshotMemory Memory { get; init; }
    /// <summary>The images of its disks, in the order of the devices; null: format version 1, which does not say.</summary>
    public IReadOnlyList<SnapshotDisk>? Disks { get; init; }
}

/// <summary>The snapshot before a differential one.</summary>
/// <param name="Path">Where it is, from this snapshot's directory.</param>
/// <param name="Id">Which it is.</param>
public sealed record SnapshotParent(string Path, Guid Id);

/// <summary>The machine, as it was asked for.</summary>
public sealed record SnapshotMachine
{
    /// <summary>Its name.</summary>
    public required string Name { get; init; }
    /// <summary>Bytes of memory.</summary>
    public required ulong MemoryBytes { get; init; }
    /// <summary>vCPUs.</summary>
    public required int Cpus { get; init; }
    /// <summary>What ran it.</summary>
    public required string Accelerator { get; init; }
    /// <summary>The CPU model's full name.</summary>
    public required string CpuModel { get; init; }
    /// <summary>The hypervisor it saw.</summary>
    public required string Personality { get; init; }
    /// <summary>Devices besides those of every PC, as <see cref="DeviceOptions.ParseSaved"/> reads them.</summary>
    public required IReadOnlyList<string> Devices { get; init; }
    /// <summary>What it boots when it resets; null: cannot be said in a file.</summary>
    public SnapshotBoot? Boot { get; init; }
}

/// <summary>A kernel by its files, or some code.</summary>
public sealed record SnapshotBoot
{
    /// <summary>Path of the kernel.</summary>
    public string? Kernel { get; init; }
    /// <summary>Path of the initial RAM disk.</summary>
    public string? Initrd { get; init; }
    /// <summary>Command line.</summary>
    public string CommandLine { get; init; } = "";
    /// <summary>Real-mode code instead of a kernel.</summary>
    public byte[]? Code { get; init; }
    /// <summary>Its address.</summary>
    public ushort Address { get; init; }
}

/// <summary>The memory's files and what is in them.</summary>
public sealed record SnapshotMemory
{
    /// <summary>The guest's regions, in the order of the memory file.</summary>
    public required IReadOnlyList<SnapshotRegion> Regions { get; init; }
    /// <summary>Bytes of the page map.</summary>
    public required long MapBytes { get; init; }
    /// <summary>Checksum of the page map.</summary>
    public required string MapChecksum { get; init; }
    /// <summary>Pages with contents in the memory file.</summary>
    public required ulong DataPages { get; init; }
    /// <summary>Pages that are all zeros.</summary>
    public required ulong ZeroPages { get; init; }
    /// <summary>Pages the guest has given back.</summary>
    public required ulong DiscardedPages { get; init; }
    /// <summary>Pages whose contents do not matter to the guest.</summary>
    public required ulong HintedPages { get; init; }
    /// <summary>Pages that are as in the snapshot before.</summary>
    public required ulong UnchangedPages { get; init; }
}

/// <summary>One region of guest memory.</summary>
/// <param name="Base">First address.</param>
/// <param name="Size">Bytes.</param>
public sealed record SnapshotRegion(ulong Base, ulong Size);

/// <summary>How a manifest is written: one line with format, version and checksum around the body, which people can read.</summary>
internal static class ManifestFile
{
    /// <summary>Version of the format.</summary>
    public const int Version = 2;

    /// <summary>No manifest is larger.</summary>
    public const long LargestSize = 64 << 20;

    private const string Format = "aerostat-snapshot";

    /// <summary>The file of a manifest.</summary>
    public static byte[] Write(SnapshotManifest manifest)
    {
        byte[] body = JsonSerializer.SerializeToUtf8Bytes(manifest, ManifestJson.Default.SnapshotManifest);
        return [.. Head(Version, Checksum.Of(body)), .. body, .. Tail];
    }

    /// <summary>The manifest of a file.</summary>
    /// <exception cref="SnapshotException">It is not one, is damaged, or is of a later version.</exception>
    public static SnapshotManifest Read(ReadOnlySpan<byte> file, string name)
    {
        (int version, Checksum? expected) = ReadHead(file, name);
        if (version > Version)
            throw new SnapshotException($"{name} has format version {version}, and this program knows versions up to {Version}: use a newer one");
        if (version < 1 || expected is not { } checksum)
            throw Damaged(name, "its first line is not that of a snapshot");
        byte[] head = Head(version, checksum);
        // Byte for byte, so that no damage goes unseen.
        if (!file.StartsWith(head) || !file.EndsWith(Tail) || file.Length < head.Length + Tail.Length)
            throw Damaged(name, "it is cut off or damaged");
        ReadOnlySpan<byte> body = file[head.Length..^Tail.Length];
        if (Checksum.Of(body) != checksum)
            throw Damaged(name, "its checksum does not fit");
        try
        {
            return JsonSerializer.Deserialize(body, ManifestJson.Default.SnapshotManifest) ?? throw Damaged(name, "it is empty");
        }
        catch (JsonException e)
        {
            throw new SnapshotException($"{name} is not a snapshot's manifest: {e.Message}", e);
        }
    }

    private static ReadOnlySpan<byte> Tail => "}\n"u8;

    private static byte[] Head(int version, Checksum checksum) =>
        System.Text.Encoding.ASCII.GetBytes($$"""{"format":"{{Format}}","version":{{version}},"checksum":"{{checksum}}","snapshot":{{'\n'}}""");

    // A later version may have changed everything behind its number.
    private static (int Version, Checksum? Checksum) ReadHead(ReadOnlySpan<byte> file, string name)
    {
        Utf8JsonReader reader = new(file[..Math.Min(file.Length, 4096)], isFinalBlock: false, default);
        int version = 0;
        try
        {
            if (!reader.Read() || reader.TokenType != JsonTokenType.StartObject)
                throw Damaged(name, "it does not begin as a snapshot's");
            for (int i = 0; i < 3 && reader.Read() && reader.TokenType == JsonTokenType.PropertyName; i++)
            {
                string property = reader.GetString()!;
                if (!reader.Read())
                    break;
                if (i == 0 && (property != "format" || reader.TokenType != JsonTokenType.String || reader.GetString() != Format))
                    throw Damaged(name, "it does not begin as a snapshot's");
                if (i == 1 && (property != "version" || reader.TokenType != JsonTokenType.Number || !reader.TryGetInt32(out version)))
                    throw Damaged(name, "it has no format version");
                if (i == 2 && property == "checksum" && reader.TokenType == JsonTokenType.String && Checksum.TryParse(reader.GetString()!, out Checksum? checksum))
                    return (version, checksum);
            }
        }
        catch (Exception e) when (e is JsonException or InvalidOperationException)
        {
            throw new SnapshotException($"{name} is not a snapshot's manifest: {e.Message}", e);
        }
        return (version, null);
    }

    private static SnapshotException Damaged(string name, string why) => new($"{name} is not a snapshot's manifest: {why}");
}

[JsonSourceGenerationOptions(JsonSerializerDefaults.General, WriteIndented = true,
    PropertyNamingPolicy = JsonKnownNamingPolicy.CamelCase, RespectNullableAnnotations = true, RespectRequiredConstructorParameters = true,
    UnmappedMemberHandling = JsonUnmappedMemberHandling.Disallow)]
[JsonSerializable(typeof(SnapshotManifest))]
internal sealed partial class ManifestJson : JsonSerializerContext;
