using System.Buffers.Binary;
using Aerostat.Platform;

namespace Aerostat.Storage;

/// <summary>What the bytes of an image mean.</summary>
public enum DiskFormat
{
    /// <summary>They are the disk's.</summary>
    Raw,
    /// <summary>QEMU's format with clusters, <see cref="Qcow2Disk"/>.</summary>
    Qcow2,
}

/// <summary>
/// Opens images. What an image is, is said by the user or by the name of its file, and for one under another by the header of that one; never by
/// its contents, because a guest writes those: with a disk of raw format it could write the header of another format, which names a file of the
/// host to be shown to it.
/// </summary>
public static class DiskImage
{
    /// <summary>So many images can be one under the other.</summary>
    public const int MostImages = 64;

    /// <summary>Opens an image with those under it.</summary>
    /// <param name="path">The image.</param>
    /// <param name="format">What it is; null: a file whose name ends in ".qcow2" is one, and others are raw.</param>
    /// <param name="readOnly">It is only read, and others may read it too.</param>
    /// <exception cref="IOException">It cannot be opened, is in use, is damaged, or is not what it is said to be; the message is one line.</exception>
    public static IDisk Open(string path, DiskFormat? format, bool readOnly)
    {
        ArgumentNullException.ThrowIfNull(path);
        if ((format ?? FormatOf(path)) == DiskFormat.Qcow2)
            return Qcow2Disk.Open(path, readOnly);
        RawDisk disk = RawDisk.Open(path, readOnly);
        if (format is null && BeginsLikeQcow2(path))
        {
            disk.Dispose();
            throw new IOException("it begins like a qcow2 image; say format=qcow2, or format=raw if that is the guest's own doing");
        }
        return disk;
    }

    /// <summary>The format that a file's name says.</summary>
    public static DiskFormat FormatOf(string path) => Path.GetExtension(path).Equals(".qcow2", StringComparison.OrdinalIgnoreCase) ? DiskFormat.Qcow2 : DiskFormat.Raw;

    /// <summary>The files under an image, the nearest first, as their headers name them. The image may be in use.</summary>
    /// <param name="path">The image.</param>
    /// <param name="format">What it is; null: what its name says.</param>
    /// <exception cref="IOException">One cannot be read, or is not what it is said to be.</exception>
    public static IReadOnlyList<string> BackingFilesOf(string path, DiskFormat? format)
    {
        ArgumentNullException.ThrowIfNull(path);
        List<string> files = [];
        for (string at = path; (format ?? FormatOf(at)) == DiskFormat.Qcow2 && files.Count < MostImages;)
        {
            using var handle = File.OpenHandle(at, FileMode.Open, FileAccess.Read, FileShare.ReadWrite | FileShare.Delete);
            long length = RandomAccess.GetLength(handle);
            byte[] first = new byte[(int)Math.Min(length, Qcow2Disk.LeastHeader)];
            int read = RandomAccess.Read(handle, first, 0);
            if (Qcow2Header.Parse(first.AsSpan(0, read), (ulong)length) is not { BackingFile: { } backing } header)
                break;
            at = Path.Combine(Path.GetDirectoryName(Path.GetFullPath(at)) ?? "/", backing);
            files.Add(at);
            format = header.BackingFormat == "raw" ? DiskFormat.Raw : DiskFormat.Qcow2;
        }
        return files;
    }

    internal static void RequireFile(string path)
    {
        switch (HostFile.KindOf(path))
        {
            case HostFileKind.None:
                throw new IOException("there is no such file");
            case HostFileKind.Directory or HostFileKind.Special:
                throw new IOException("it is not a regular file");
        }
    }

    /// <summary>Opens the image under one, to be read.</summary>
    /// <param name="path">The upper image.</param>
    /// <param name="backing">What its header names, relative to it.</param>
    /// <param name="format">The format that its header says.</param>
    /// <param name="above">The images above the upper one.</param>
    internal static IDisk OpenBacking(string path, string backing, string? format, IReadOnlyList<string> above)
    {
        string shown = Printable(backing);
        // "json:..." and "nbd://..." are QEMU's ways to name what is not a file.
        int colon = backing.IndexOf(':', StringComparison.Ordinal), slash = backing.IndexOf('/', StringComparison.Ordinal);
        if (colon >= 0 && (slash < 0 || colon < slash))
            throw new IOException($"its backing file {shown} is not a file");
        if (format is not ("raw" or "qcow2"))
            throw new IOException(format is null
                ? $"it does not say what format its backing file {shown} has; 'qemu-img rebase -u -F qcow2 -b FILE IMAGE' (or -F raw) does that"
                : $"its backing file {shown} has the format {format}, which is not supported; raw and qcow2 are");
        string full = Path.Combine(Path.GetDirectoryName(Path.GetFullPath(path)) ?? "/", backing);
        List<string> chain = [.. above, Identity(path)];
        if (chain.Contains(Identity(full)))
            throw new IOException($"its backing file {shown} is above it: the images go in a circle");
        if (chain.Count >= MostImages)
            throw new IOException($"more than {MostImages} images are one under the other");
        try
        {
            return format == "raw" ? RawDisk.Open(full, readOnly: true) : Qcow2Disk.Open(full, readOnly: true, chain);
        }
        catch (Exception e) when (e is IOException or ArgumentException or UnauthorizedAccessException)
        {
            throw new IOException($"its backing file {shown} cannot be used: {e.Message.ReplaceLineEndings(" ")}");
        }
    }

    private static bool BeginsLikeQcow2(string path)
    {
        try
        {
            using var handle = File.OpenHandle(path);
            Span<byte> magic = stackalloc byte[8];
            return RandomAccess.Read(handle, magic, 0) == magic.Length && BinaryPrimitives.ReadUInt32BigEndian(magic) == Qcow2Header.Magic
                && BinaryPrimitives.ReadUInt32BigEndian(magic[4..]) is 2 or 3;
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            return false;
        }
    }

    // Links followed as far as they can be.
    private static string Identity(string path)
    {
        try
        {
            return File.ResolveLinkTarget(path, returnFinalTarget: true)?.FullName ?? Path.GetFullPath(path);
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            return Path.GetFullPath(path);
        }
    }

    private static string Printable(string text) => string.Concat(text.Select(c => char.IsControl(c) ? '?' : c));
}
