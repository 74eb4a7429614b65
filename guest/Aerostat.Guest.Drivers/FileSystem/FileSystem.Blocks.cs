namespace Aerostat.Guest.Drivers;

// Blocks in memory, and the running transaction.
public sealed partial class FileSystem
{
    private const int CacheOrder = 6, CacheSize = 1 << CacheOrder;

    private enum BlockState : byte
    {
        /// <summary>Nothing, or what the device has.</summary>
        Clean,

        /// <summary>Newer than on the device at its place; the journal has it.</summary>
        Logged,

        /// <summary>Part of the running transaction.</summary>
        Dirty,
    }

    private readonly uint[] cached = new uint[CacheSize];
    private readonly BlockState[] states = new BlockState[CacheSize];
    private readonly ulong[] usedAt = new ulong[CacheSize];
    private ulong cache;
    private ulong uses;
    private uint dirty;

    private ulong Page(int slot) => cache + ((ulong)slot * BlockDevice.BlockSize);

    // Block 0 is never cached: its number says that a slot is empty.
    private void ForgetBlocks()
    {
        for (int i = 0; i < CacheSize; i++)
        {
            cached[i] = 0;
            states[i] = BlockState.Clean;
            usedAt[i] = 0;
        }
        dirty = 0;
    }

    // Where a block is in memory. There is always a slot: what is not clean is never more than the journal takes, which is less than there are slots. -1: the device failed.
    private int Get(uint block, bool read)
    {
        int oldest = -1;
        for (int i = 0; i < CacheSize; i++)
        {
            if (cached[i] == block)
            {
                usedAt[i] = ++uses;
                return i;
            }
            if (states[i] == BlockState.Clean && (oldest < 0 || usedAt[i] < usedAt[oldest]))
                oldest = i;
        }
        cached[oldest] = 0;
        if (read && !device!.Read(block, Page(oldest)))
        {
            failed = FileSystemError.Device;
            return -1;
        }
        cached[oldest] = block;
        usedAt[oldest] = ++uses;
        return oldest;
    }

    private uint ReadWord(uint block, uint offset)
    {
        int slot = Get(block, read: true);
        return slot < 0 ? 0 : platform.Read(Page(slot) + offset, 4);
    }

    private void WriteWord(uint block, uint offset, uint value)
    {
        int slot = Change(block);
        if (slot >= 0)
            platform.Write(Page(slot) + offset, 4, value);
    }

    // A block that becomes part of the running transaction.
    private int Change(uint block, bool read = true)
    {
        int slot = Get(block, read);
        if (slot >= 0 && states[slot] != BlockState.Dirty)
        {
            states[slot] = BlockState.Dirty;
            dirty++;
        }
        return slot;
    }

    private void Zero(uint block)
    {
        int slot = Change(block, read: false);
        if (slot >= 0)
            Zero(Page(slot));
    }

    private void Zero(ulong page)
    {
        for (uint at = 0; at < BlockDevice.BlockSize; at += 8)
            platform.Write64(page + at, 0);
    }

    private bool IsUsed(uint block) => (ReadWord(layout.BitmapStart + (block / FileSystemLayout.BitsPerBlock), block % FileSystemLayout.BitsPerBlock / 32 * 4) >> (int)(block % 32) & 1) != 0;

    private void CountFree()
    {
        // What is no block has its bit set.
        FreeBlocks = 0;
        for (uint i = 0; i < layout.BitmapBlocks; i++)
            for (uint at = 0; at < BlockDevice.BlockSize; at += 4)
                for (uint clear = ~ReadWord(layout.BitmapStart + i, at); clear != 0; clear &= clear - 1)
                    FreeBlocks++;
    }

    // A free block, which is now zeros and part of the running transaction; 0: there is none, or the device failed.
    private uint Allocate()
    {
        for (uint i = layout.DataStart; i < layout.Blocks; i++)
        {
            uint block = nextFree;
            nextFree = nextFree + 1 < layout.Blocks ? nextFree + 1 : layout.DataStart;
            if (IsUsed(block))
                continue;
            uint word = block % FileSystemLayout.BitsPerBlock / 32 * 4, bitmap = layout.BitmapStart + (block / FileSystemLayout.BitsPerBlock);
            WriteWord(bitmap, word, ReadWord(bitmap, word) | (1u << (int)(block % 32)));
            Zero(block);
            FreeBlocks--;
            return failed == FileSystemError.None ? block : 0;
        }
        failed = FileSystemError.Corrupt;
        return 0;
    }
}
