using System;

namespace Aerostat.Guest.Drivers;

/// <summary>
/// A small file system with a journal: files with names, no folders, up to 4 GiB. Everything that changes is written to the journal first, data too, so an operation
/// is there as a whole or not at all when the machine stops at any moment; what <see cref="Sync"/> follows is there. <see cref="FileSystemLayout"/> says what is where.
/// </summary>
/// <remarks>
/// Frozen, it writes nothing, its journal is empty, and what was written is in its place: a copy of the device needs no repair. Who writes then is told to wait.
/// An object and its pages are used for each mount; one file is written at a time by whoever calls.
/// </remarks>
public sealed partial class FileSystem(DriverPlatform platform)
{
    /// <summary>Files that there is room for.</summary>
    public const int MostFiles = (int)(FileSystemLayout.TableBlocks * FileSystemLayout.FilesPerBlock);

    /// <summary>Bytes that are written as a whole or not at all.</summary>
    public const int MostAtOnce = (int)(PieceBlocks - 1) * BlockDevice.BlockSize;

    public const int MostNameLength = (int)FileSystemLayout.NameSize - 1;

    // Blocks of data in a piece of a write, and what else may change with them: the file's entry, three lists of blocks, and a part of the bitmap for each new block.
    private const uint PieceBlocks = 4, OtherChanges = 11;

    private BlockDevice? device;
    private FileSystemLayout layout;
    private FileSystemError failed;
    private bool readOnly;
    private uint nextFree;

    public bool IsMounted { get; private set; }

    public bool IsFrozen { get; private set; }

    public bool IsReadOnly => readOnly;

    /// <summary>None while all is well.</summary>
    public FileSystemError Failure => failed;

    public FileSystemLayout Layout => layout;

    public ulong FreeBlocks { get; private set; }

    /// <summary>Transactions that were carried out from the journal when it was mounted.</summary>
    public ulong Replayed { get; private set; }

    public ulong Commits { get; private set; }

    public ulong Checkpoints { get; private set; }

    /// <summary>Makes an empty file system on a device. What was there is lost.</summary>
    /// <param name="target">The device.</param>
    /// <param name="journalBlocks">Blocks of the journal.</param>
    public FileSystemError Format(BlockDevice target, uint journalBlocks = FileSystemLayout.MostJournal)
    {
        if (IsMounted)
            return FileSystemError.Exists;
        if (target.IsReadOnly)
            return FileSystemError.ReadOnly;
        FileSystemLayout wanted = new((uint)Math.Min(target.Blocks, (ulong)FileSystemLayout.MostBlocks), journalBlocks);
        if (!wanted.MakesSense)
            return FileSystemError.OutOfRange;
        if (!TakePages())
            return FileSystemError.NoMemory;
        device = target;
        layout = wanted;
        FileSystemError error = WriteEmpty() ? FileSystemError.None : FileSystemError.Device;
        device = null;
        return error;
    }

    private bool WriteEmpty()
    {
        // What was there before is none any more before anything else is done to it, nor is the first transaction of its journal.
        ulong zeros = Page(0);
        Zero(zeros);
        bool done = device!.Write(0, zeros) && device.Write(FileSystemLayout.JournalStart + 1, zeros);
        for (uint i = 0; i < FileSystemLayout.TableBlocks && done; i++)
            done = device.Write(layout.TableStart + i, zeros);
        if (!done || !device.Flush())
            return false;
        // In use: what is before the data, and what the last part has bits for and the device has no blocks.
        for (uint i = 0; i < layout.BitmapBlocks; i++)
        {
            ulong page = Page(1);
            Zero(page);
            for (uint bit = 0; bit < FileSystemLayout.BitsPerBlock; bit++)
            {
                uint block = (i * FileSystemLayout.BitsPerBlock) + bit;
                if (block < layout.DataStart || block >= layout.Blocks)
                    platform.Write(page + (bit / 32 * 4), 4, platform.Read(page + (bit / 32 * 4), 4) | (1u << (int)(bit % 32)));
            }
            if (!device.Write(layout.BitmapStart + i, page) || !device.Flush())
                return false;
        }
        nonce = (platform.Nanoseconds * 0x2545_F491_4F6C_DD1D) ^ layout.Blocks;
        sequence = 1;
        if (!WriteJournalHeader())
            return false;
        Zero(scratch);
        platform.Write64(scratch, FileSystemLayout.Magic);
        platform.Write(scratch + FileSystemLayout.VersionAt, 4, FileSystemLayout.Version);
        platform.Write(scratch + FileSystemLayout.BlocksAt, 4, layout.Blocks);
        platform.Write(scratch + FileSystemLayout.JournalBlocksAt, 4, layout.JournalBlocks);
        platform.Write64(scratch + FileSystemLayout.NonceAt, nonce);
        platform.Write64(scratch + FileSystemLayout.ChecksumAt, Checksum(scratch, FileSystemLayout.ChecksumAt, FileSystemLayout.Magic));
        return device.Write(0, scratch) && device.Flush();
    }

    /// <summary>Takes what is on a device into use, after carrying out what its journal has.</summary>
    public FileSystemError Mount(BlockDevice target, bool forReading = false)
    {
        if (IsMounted)
            return FileSystemError.Exists;
        if (!TakePages())
            return FileSystemError.NoMemory;
        device = target;
        readOnly = forReading || target.IsReadOnly;
        failed = FileSystemError.None;
        FileSystemError error = ReadLayout();
        if (error == FileSystemError.None)
            error = Replay(!readOnly);
        // The pages of the cache were used for that.
        ForgetBlocks();
        if (error == FileSystemError.None)
        {
            nextFree = layout.DataStart;
            CountFree();
            error = failed;
        }
        if (error != FileSystemError.None)
        {
            device = null;
            return error;
        }
        Commits = Checkpoints = 0;
        IsFrozen = false;
        IsMounted = true;
        return FileSystemError.None;
    }

    private FileSystemError ReadLayout()
    {
        if (device!.Blocks == 0 || !device.Read(0, scratch))
            return FileSystemError.Device;
        nonce = platform.Read64(scratch + FileSystemLayout.NonceAt);
        layout = new FileSystemLayout(platform.Read(scratch + FileSystemLayout.BlocksAt, 4), platform.Read(scratch + FileSystemLayout.JournalBlocksAt, 4));
        bool good = platform.Read64(scratch) == FileSystemLayout.Magic && platform.Read(scratch + FileSystemLayout.VersionAt, 4) == FileSystemLayout.Version
            && platform.Read64(scratch + FileSystemLayout.ChecksumAt) == Checksum(scratch, FileSystemLayout.ChecksumAt, FileSystemLayout.Magic)
            && layout.MakesSense && layout.Blocks <= device.Blocks;
        return good ? FileSystemError.None : FileSystemError.Corrupt;
    }

    /// <summary>Writes everything to its place and lets go of the device.</summary>
    public FileSystemError Unmount()
    {
        FileSystemError error = failed != FileSystemError.None || readOnly ? FileSystemError.None : Settle();
        if (error is FileSystemError.NotMounted or FileSystemError.Frozen)
            return error;
        IsMounted = false;
        device = null;
        return error;
    }

    /// <summary>Makes durable what was written.</summary>
    public FileSystemError Sync()
    {
        FileSystemError error = MayWrite();
        return error == FileSystemError.None && !Commit() ? failed : error;
    }

    /// <summary>Writes everything to its place, so that the journal is empty, and nothing more until <see cref="Thaw"/>.</summary>
    public FileSystemError Freeze()
    {
        // What is only read does not change anyhow.
        FileSystemError error = IsMounted && readOnly && !IsFrozen ? FileSystemError.None : Settle();
        if (error == FileSystemError.None)
            IsFrozen = true;
        return error;
    }

    public FileSystemError Thaw()
    {
        if (!IsMounted)
            return FileSystemError.NotMounted;
        IsFrozen = false;
        return FileSystemError.None;
    }

    private FileSystemError Settle()
    {
        FileSystemError error = MayWrite();
        return error == FileSystemError.None && !(Commit() && Checkpoint()) ? failed : error;
    }

    private FileSystemError MayWrite() => !IsMounted ? FileSystemError.NotMounted
        : failed != FileSystemError.None ? failed
        : readOnly ? FileSystemError.ReadOnly
        : IsFrozen ? FileSystemError.Frozen
        : FileSystemError.None;

    private bool TakePages()
    {
        if (cache == 0)
            cache = platform.AllocatePages(CacheOrder);
        if (scratch == 0)
            scratch = platform.AllocatePages(0);
        return cache != 0 && scratch != 0;
    }

    /// <summary>Gives the pages back; the object is not used after that.</summary>
    public void Release()
    {
        if (cache != 0)
            platform.FreePages(cache, CacheOrder);
        if (scratch != 0)
            platform.FreePages(scratch, 0);
        cache = scratch = 0;
    }
}
