using Aerostat.Platform;

namespace Aerostat.Storage;

/// <summary>How a request to a disk went.</summary>
public enum DiskResult
{
    /// <summary>Done; for a write: the host has the data, a flush makes them durable.</summary>
    Done,
    /// <summary>The host could not do it.</summary>
    Failed,
    /// <summary>This disk cannot do that.</summary>
    Unsupported,
}

/// <summary>What a part of a disk holds.</summary>
public enum DiskExtentKind
{
    /// <summary>Bytes that must be read to be known.</summary>
    Data,
    /// <summary>Zeros.</summary>
    Zero,
    /// <summary>Nothing in this image: its backing file's contents show through. Only where one image of a chain is looked at.</summary>
    Absent,
}

/// <summary>A part of a disk whose bytes are of one kind.</summary>
/// <param name="Offset">First byte.</param>
/// <param name="Length">Bytes.</param>
/// <param name="Kind">What they are.</param>
public readonly record struct DiskExtent(ulong Offset, ulong Length, DiskExtentKind Kind);

/// <summary>
/// Contents of a virtual disk. Members may be called from several threads at once; each blocks until it is done and never throws.
/// Offsets and lengths are within <see cref="Length"/>, and multiples of <see cref="SectorSize"/>: callers check.
/// </summary>
public interface IDisk : IDisposable
{
    /// <summary>Bytes in a sector, the unit of everything.</summary>
    public const int SectorSize = 512;

    /// <summary>Bytes; a multiple of <see cref="SectorSize"/>.</summary>
    ulong Length { get; }

    /// <summary>Nothing can be written.</summary>
    bool ReadOnly { get; }

    /// <summary>Reads into the buffers, one after the other.</summary>
    DiskResult Read(ulong offset, ReadOnlySpan<HostBuffer> buffers);

    /// <summary>Writes from the buffers.</summary>
    DiskResult Write(ulong offset, ReadOnlySpan<HostBuffer> buffers);

    /// <summary>Makes all that was written before durable.</summary>
    DiskResult Flush();

    /// <summary>What was written to a range is going to be flushed: the host may begin with it. Promises nothing, and waits for nothing.</summary>
    void BeginFlush(ulong offset, ulong length)
    {
    }

    /// <summary>The contents do not matter any more; they read as zeros if this answers Done.</summary>
    DiskResult Discard(ulong offset, ulong length);

    /// <summary>Makes a range read as zeros.</summary>
    /// <param name="offset">Where.</param>
    /// <param name="length">Bytes.</param>
    /// <param name="mayUnmap">The space need not stay reserved.</param>
    DiskResult WriteZeroes(ulong offset, ulong length, bool mayUnmap);

    /// <summary>
    /// What is in the bytes from <paramref name="offset"/> on, as far as they are alike and known cheaply; the answer is at least a sector long
    /// and begins at <paramref name="offset"/>. Who cannot tell answers Data.
    /// </summary>
    /// <param name="offset">Where.</param>
    /// <param name="length">Bytes of interest, at least a sector.</param>
    DiskExtent BlockStatus(ulong offset, ulong length) => new(offset, length, DiskExtentKind.Data);
}
