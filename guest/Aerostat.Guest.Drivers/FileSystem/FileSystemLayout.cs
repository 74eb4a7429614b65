namespace Aerostat.Guest.Drivers;

/// <summary>What an operation on a file system came to.</summary>
public enum FileSystemError
{
    None,
    NotMounted,

    /// <summary>It is frozen: whoever writes has to wait.</summary>
    Frozen,

    /// <summary>The device, or the mount, is for reading only.</summary>
    ReadOnly,
    NoSpace,
    NoSuchFile,
    Exists,

    /// <summary>Names have 1 to 31 bytes.</summary>
    BadName,
    TooManyFiles,

    /// <summary>Behind the end of the file, or beyond what a file can have.</summary>
    OutOfRange,

    /// <summary>The device failed; nothing is written any more until it is mounted again.</summary>
    Device,

    /// <summary>What is on the device is no file system of this kind, or makes no sense.</summary>
    Corrupt,
    NoMemory,

    /// <summary>It has to be mounted for writing first, for its journal is not empty.</summary>
    NeedsReplay,
}

/// <summary>
/// Where things are on a device, in blocks of 4096 bytes: block 0 says what follows; the journal (a header, then transactions from its second block on, each a block
/// that lists what is in the blocks after it); a bit for each block; the table of files; data. Numbers have their least significant byte first.
/// </summary>
/// <param name="blocks">Blocks in all.</param>
/// <param name="journalBlocks">Blocks of the journal, its header among them.</param>
public readonly struct FileSystemLayout(uint blocks, uint journalBlocks)
{
    public const ulong Magic = 0x3153_4654_534F_5241, JournalMagic = 0x314C_4E4A_534F_5241, TransactionMagic = 0x314E_5854_534F_5241;
    public const uint Version = 1;

    /// <summary>Fields of block 0 behind magic number and version, and of a journal's header.</summary>
    public const uint VersionAt = 8, BlocksAt = 12, JournalBlocksAt = 16, NonceAt = 24, ChecksumAt = 32;
    public const uint SequenceAt = 8, HeaderChecksumAt = 16;

    /// <summary>Of a transaction's first block; then for each block where it belongs and its checksum.</summary>
    public const uint CountAt = 16, TransactionChecksumAt = 24, EntriesAt = 64, EntrySize = 16;

    public const uint JournalStart = 1, LeastJournal = 24, MostJournal = 56, MostBlocks = 1 << 20, TableBlocks = 4;

    /// <summary>Of the table: a name, filled up with zeros, a size, numbers of blocks.</summary>
    public const uint FileSize = 128, FilesPerBlock = BlockDevice.BlockSize / FileSize, NameSize = 32, SizeAt = 32, DirectAt = 40, Direct = 16, IndirectAt = 104, DoubleAt = 108;

    /// <summary>Numbers of blocks in a block.</summary>
    public const uint Pointers = BlockDevice.BlockSize / 4;

    public const uint BitsPerBlock = BlockDevice.BlockSize * 8;

    public uint Blocks => blocks;

    public uint JournalBlocks => journalBlocks;

    public uint BitmapStart => JournalStart + journalBlocks;

    public uint BitmapBlocks => (blocks + BitsPerBlock - 1) / BitsPerBlock;

    public uint TableStart => BitmapStart + BitmapBlocks;

    /// <summary>The first block that files may have.</summary>
    public uint DataStart => TableStart + TableBlocks;

    public bool MakesSense => blocks <= MostBlocks && journalBlocks is >= LeastJournal and <= MostJournal && blocks > DataStart;
}
