using Aerostat.Machine;
using Aerostat.Storage;

namespace Aerostat.Snapshots;

/// <summary>
/// A disk's image as it was at the pause. Its contents are not in the snapshot, so who goes on from it must find the image unchanged: the guest
/// has parts of it in its memory.
/// </summary>
/// <param name="Path">The image, a full path.</param>
/// <param name="Bytes">Size of the file.</param>
/// <param name="Modified">When it was written last, by the host's clock.</param>
public sealed record SnapshotDisk(string Path, long Bytes, DateTimeOffset Modified)
{
    /// <summary>The images under it, the nearest first; null: there are none, or the snapshot does not say.</summary>
    public IReadOnlyList<SnapshotDisk>? Under { get; init; }

    /// <summary>The images of a machine whose devices stand still and have written everything.</summary>
    /// <exception cref="IOException">One is not there any more.</exception>
    internal static IReadOnlyList<SnapshotDisk> Of(MachineOptions options) =>
        [.. options.Devices.OfType<DiskOptions>().Select(d => Require(d.Path) with { Under = ReadUnder(d) })];

    /// <summary>What has happened to this image; null: nothing. Another one, which somebody gives instead, need not be as old.</summary>
    internal string? FindChange(string path)
    {
        return System.IO.Path.GetFullPath(path) != Path ? null : FindChange() ?? Under?.Select(u => u.FindChange()).FirstOrDefault(c => c is not null);
    }

    private string? FindChange()
    {
        if (Read(Path) is not { } now)
            return $"the disk image {Path} is not there";
        if (now.Bytes != Bytes)
            return $"the disk image {Path} has {now.Bytes} bytes, and had {Bytes} when the snapshot was taken";
        return now.Modified == Modified ? null
            : $"the disk image {Path} was written at {now.Modified:yyyy-MM-dd HH:mm:ss.ffffff}Z, after the snapshot was taken (the image was of {Modified:yyyy-MM-dd HH:mm:ss.ffffff}Z)";
    }

    private static IReadOnlyList<SnapshotDisk>? ReadUnder(DiskOptions disk)
    {
        IReadOnlyList<string> files = DiskImage.BackingFilesOf(disk.Path, disk.ImageFormat);
        return files.Count == 0 ? null : [.. files.Select(Require)];
    }

    private static SnapshotDisk Require(string path) => Read(path) ?? throw new IOException($"the disk image {path} is not there any more");

    private static SnapshotDisk? Read(string path)
    {
        FileInfo file = new(System.IO.Path.GetFullPath(path));
        if (file.Exists && file.ResolveLinkTarget(returnFinalTarget: true) is FileInfo target)
            file = target;
        return file.Exists ? new SnapshotDisk(System.IO.Path.GetFullPath(path), file.Length, new DateTimeOffset(file.LastWriteTimeUtc, TimeSpan.Zero)) : null;
    }
}
