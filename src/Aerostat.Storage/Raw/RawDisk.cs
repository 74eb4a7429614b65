using Aerostat.Platform;

namespace Aerostat.Storage;

/// <summary>
/// A disk whose contents are a file's, byte for byte. The file is locked while the disk is open: one writer, or any number of readers.
/// <para>Not done: direct I/O; the host's page cache is used, and a flush is fdatasync(2).</para>
/// </summary>
public sealed class RawDisk : IDisk
{
    private readonly DiskFile _file;

    private RawDisk(DiskFile file, bool readOnly)
    {
        _file = file;
        ReadOnly = readOnly;
    }

    /// <inheritdoc/>
    public ulong Length => _file.Length;

    /// <inheritdoc/>
    public bool ReadOnly { get; }

    /// <summary>Opens an image.</summary>
    /// <exception cref="IOException">It cannot be opened, is in use, or is no image; the message says which, and is one line.</exception>
    public static RawDisk Open(string path, bool readOnly)
    {
        ArgumentNullException.ThrowIfNull(path);
        switch (HostFile.KindOf(path))
        {
            case HostFileKind.None:
                throw new IOException("there is no such file");
            case HostFileKind.Directory or HostFileKind.Special:
                throw new IOException("it is not a regular file");
        }
        DiskFile file = DiskFile.Open(path, readOnly);
        if (file.Length == 0 || file.Length % IDisk.SectorSize != 0)
        {
            file.Dispose();
            throw new IOException($"its {file.Length} bytes are not a number of sectors of {IDisk.SectorSize}; 'truncate -s' makes it one");
        }
        return new RawDisk(file, readOnly);
    }

    /// <inheritdoc/>
    public DiskResult Read(ulong offset, ReadOnlySpan<HostBuffer> buffers) => Answer(_file.Read(offset, buffers));

    /// <inheritdoc/>
    public DiskResult Write(ulong offset, ReadOnlySpan<HostBuffer> buffers) => ReadOnly ? DiskResult.Failed : Answer(_file.Write(offset, buffers));

    /// <inheritdoc/>
    public DiskResult Flush() => ReadOnly ? DiskResult.Done : Answer(_file.Flush());

    /// <inheritdoc/>
    public void BeginFlush(ulong offset, ulong length) => _file.BeginWriteback(offset, length);

    /// <inheritdoc/>
    public DiskResult Discard(ulong offset, ulong length) => ReadOnly ? DiskResult.Failed : _file.PunchHole(offset, length) switch
    {
        0 => DiskResult.Done,
        DiskFile.NotSupported => DiskResult.Unsupported,
        _ => DiskResult.Failed,
    };

    /// <inheritdoc/>
    public DiskResult WriteZeroes(ulong offset, ulong length, bool mayUnmap)
    {
        if (ReadOnly)
            return DiskResult.Failed;
        if (mayUnmap && _file.PunchHole(offset, length) == 0)
            return DiskResult.Done;
        int error = _file.ZeroRange(offset, length);
        // Some file systems have neither.
        return error == DiskFile.NotSupported ? Answer(_file.WriteZeroes(offset, length)) : Answer(error);
    }

    /// <inheritdoc/>
    public DiskExtent BlockStatus(ulong offset, ulong length)
    {
        ulong end = _file.EndOfExtent(offset, out bool hole);
        // The host's blocks may be smaller than nothing we know; a part of a sector counts as data.
        ulong known = (hole ? end - offset : end - offset + IDisk.SectorSize - 1) / IDisk.SectorSize * IDisk.SectorSize;
        return known == 0 ? new(offset, IDisk.SectorSize, DiskExtentKind.Data) : new(offset, Math.Min(known, length), hole ? DiskExtentKind.Zero : DiskExtentKind.Data);
    }

    /// <inheritdoc/>
    public void Dispose() => _file.Dispose();

    private static DiskResult Answer(int error) => error == 0 ? DiskResult.Done : DiskResult.Failed;
}
