using System.Buffers.Binary;
using System.Runtime.InteropServices;
using System.Security.Cryptography;
using Aerostat.Platform;

namespace Aerostat.Storage;

/// <summary>
/// Which blocks of a disk have changed since which of the last points in time: for each block the number of the epoch in which it was last written. A point
/// in time ends an epoch. A point that nobody records costs nothing, so a copy that fails leaves no trace here.
/// </summary>
/// <remarks>
/// Kept in a file beside the image while no machine runs. While one runs the file is marked: after a crash nobody knows what has changed. It is bound to the
/// image by number, length and times, so that whatever else writes to the image makes it worthless too.
/// </remarks>
public sealed class BlockChanges
{
    private const int MostPoints = 64;
    private const int HeaderSize = 96, PointSize = 24, HashSize = 32;
    private const uint Version = 1, Clean = 1, InUse = 2;
    private static ReadOnlySpan<byte> Magic => "AEROCHNG"u8;

    private readonly uint[] blocks;
    private readonly ulong length;
    private readonly Lock pointsGate = new();
    private readonly List<(Guid Id, uint Epoch)> points = [];
    private uint epoch = 1;

    /// <summary>Knows nothing of what was before.</summary>
    /// <param name="length">Bytes of the disk.</param>
    /// <param name="reason">Why not, for people.</param>
    public BlockChanges(ulong length, string reason)
    {
        this.length = length;
        blocks = new uint[(length + TrackedDisk.BlockSize - 1) / TrackedDisk.BlockSize];
        Reason = reason;
    }

    /// <summary>Why points that are not known are not, in words.</summary>
    public string Reason { get; }

    /// <summary>The epoch that goes on: blocks that are written now get this number.</summary>
    public uint Epoch => Volatile.Read(ref epoch);

    /// <summary>Where the changes of an image are written down.</summary>
    public static string PathBeside(string diskPath) => diskPath + ".changes";

    /// <summary>The epoch that a point in time has ended; what has a greater number has changed since. Null: the point is not known.</summary>
    public uint? EpochOf(Guid point)
    {
        lock (pointsGate)
        {
            int at = points.FindIndex(p => p.Id == point);
            return at < 0 ? null : points[at].Epoch;
        }
    }

    /// <summary>Gives the end of an epoch a name, which later copies can refer to.</summary>
    public void Record(Guid point, uint ended)
    {
        lock (pointsGate)
        {
            points.Add((point, ended));
            if (points.Count > MostPoints)
                points.RemoveAt(0);
        }
    }

    /// <summary>The epoch in which a block was last written; 0: never since this is known.</summary>
    public uint LastChange(long block) => Volatile.Read(ref blocks[block]);

    internal void Mark(long first, long last)
    {
        uint now = Volatile.Read(ref epoch);
        for (long block = first; block <= last; block++)
            Volatile.Write(ref blocks[block], now);
    }

    // No write is under way.
    internal void Advance() => Volatile.Write(ref epoch, epoch + 1);

    /// <summary>Reads what <see cref="Store"/> has written; where that cannot be trusted, starts anew and says why in <see cref="Reason"/>.</summary>
    public static BlockChanges Load(string path, string diskPath, ulong length)
    {
        try
        {
            byte[] bytes = File.ReadAllBytes(path);
            if (bytes.Length < HeaderSize || !bytes.AsSpan().StartsWith(Magic) || Read(8) != Version)
                return new(length, "the record of changes is damaged");
            if (Read(12) != Clean)
                return new(length, "the monitor or the host ended without writing down what had changed");
            if (bytes.Length < HeaderSize + HashSize || !SHA256.HashData(bytes.AsSpan(0, bytes.Length - HashSize)).AsSpan().SequenceEqual(bytes.AsSpan(bytes.Length - HashSize)))
                return new(length, "the record of changes is damaged");
            FileIdentity stored = new(Long(40), Long(32), (long)Long(48), (long)Long(56));
            if (Long(24) != length || HostFile.IdentityOf(diskPath) != stored)
                return new(length, "something else has changed the image, or it was copied or moved");
            int count = (int)Read(20);
            BlockChanges changes = new(length, "the backup is older than the record of changes, or was made from another copy of the disk");
            if (Read(16) == 0 || count is < 0 or > MostPoints || bytes.Length != HeaderSize + (count * PointSize) + (changes.blocks.Length * sizeof(uint)) + HashSize)
                return new(length, "the record of changes is damaged");
            changes.epoch = Read(16);
            for (int i = 0; i < count; i++)
            {
                ReadOnlySpan<byte> point = bytes.AsSpan(HeaderSize + (i * PointSize), PointSize);
                changes.points.Add((new Guid(point[..16]), BinaryPrimitives.ReadUInt32LittleEndian(point[16..])));
            }
            bytes.AsSpan(HeaderSize + (count * PointSize), changes.blocks.Length * sizeof(uint)).CopyTo(MemoryMarshal.AsBytes(changes.blocks.AsSpan()));
            return changes;

            uint Read(int at) => BinaryPrimitives.ReadUInt32LittleEndian(bytes.AsSpan(at));
            ulong Long(int at) => BinaryPrimitives.ReadUInt64LittleEndian(bytes.AsSpan(at));
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            return new(length, $"the record of changes cannot be read ({e.Message.ReplaceLineEndings(" ")})");
        }
    }

    /// <summary>Makes what is written down worthless until <see cref="Store"/>; false: the host refuses, and the file was removed if possible.</summary>
    internal bool MarkInUse(string path)
    {
        try
        {
            byte[] header = new byte[HeaderSize];
            Magic.CopyTo(header);
            BinaryPrimitives.WriteUInt32LittleEndian(header.AsSpan(8), Version);
            BinaryPrimitives.WriteUInt32LittleEndian(header.AsSpan(12), InUse);
            WriteWhole(path, header);
            return true;
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            Remove(path);
            return false;
        }
    }

    /// <summary>Writes down what has changed. The image is closed and durable.</summary>
    internal void Store(string path, string diskPath)
    {
        if (HostFile.IdentityOf(diskPath) is not { } identity)
            return;
        byte[] bytes;
        lock (pointsGate)
        {
            bytes = new byte[HeaderSize + (points.Count * PointSize) + (blocks.Length * sizeof(uint)) + HashSize];
            Magic.CopyTo(bytes);
            BinaryPrimitives.WriteUInt32LittleEndian(bytes.AsSpan(8), Version);
            BinaryPrimitives.WriteUInt32LittleEndian(bytes.AsSpan(12), Clean);
            BinaryPrimitives.WriteUInt32LittleEndian(bytes.AsSpan(16), epoch);
            BinaryPrimitives.WriteInt32LittleEndian(bytes.AsSpan(20), points.Count);
            BinaryPrimitives.WriteUInt64LittleEndian(bytes.AsSpan(24), length);
            BinaryPrimitives.WriteUInt64LittleEndian(bytes.AsSpan(32), identity.Length);
            BinaryPrimitives.WriteUInt64LittleEndian(bytes.AsSpan(40), identity.Inode);
            BinaryPrimitives.WriteInt64LittleEndian(bytes.AsSpan(48), identity.Modified);
            BinaryPrimitives.WriteInt64LittleEndian(bytes.AsSpan(56), identity.Changed);
            for (int i = 0; i < points.Count; i++)
            {
                Span<byte> point = bytes.AsSpan(HeaderSize + (i * PointSize), PointSize);
                points[i].Id.TryWriteBytes(point);
                BinaryPrimitives.WriteUInt32LittleEndian(point[16..], points[i].Epoch);
            }
            MemoryMarshal.AsBytes(blocks.AsSpan()).CopyTo(bytes.AsSpan(HeaderSize + (points.Count * PointSize)));
        }
        SHA256.HashData(bytes.AsSpan(0, bytes.Length - HashSize), bytes.AsSpan(bytes.Length - HashSize));
        try
        {
            WriteWhole(path, bytes);
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            Remove(path);
        }
    }

    private static void WriteWhole(string path, byte[] bytes)
    {
        string fresh = path + ".new";
        using (FileStream file = new(fresh, FileMode.Create, FileAccess.Write, FileShare.None, 1 << 16))
        {
            file.Write(bytes);
            file.Flush(flushToDisk: true);
        }
        File.Move(fresh, path, overwrite: true);
        HostDirectory.Synchronize(Path.GetDirectoryName(path)!);
    }

    private static void Remove(string path)
    {
        try
        {
            File.Delete(path);
            File.Delete(path + ".new");
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            // The mark of use, or the times of the image, keep it from being trusted.
        }
    }
}
