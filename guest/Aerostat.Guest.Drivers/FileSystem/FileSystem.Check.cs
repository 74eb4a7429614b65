namespace Aerostat.Guest.Drivers;

// Whether everything agrees with everything else.
public sealed partial class FileSystem
{
    private const int MostTold = 8;

    private ulong seen;
    private ulong faults;

    /// <summary>Looks at every file and every block, and tells what is wrong; how many faults there are. The file system is mounted, and may be frozen.</summary>
    public FileSystemError Check(out ulong found)
    {
        found = 0;
        if (!IsMounted)
            return FileSystemError.NotMounted;
        if (failed != FileSystemError.None)
            return failed;
        // A bit for each block that a file has.
        int order = 0;
        while (((ulong)BlockDevice.BlockSize << order) * 8 < layout.Blocks)
            order++;
        seen = platform.AllocatePages(order);
        if (seen == 0)
            return FileSystemError.NoMemory;
        for (ulong at = 0; at < (ulong)BlockDevice.BlockSize << order; at += 8)
            platform.Write64(seen + at, 0);
        faults = 0;
        for (int file = 0; file < MostFiles; file++)
            if (IsFile(file))
                CheckFile(file);
        CheckBitmap();
        platform.FreePages(seen, order);
        found = faults;
        return failed;
    }

    private void Fault(string what, ulong number)
    {
        if (++faults <= MostTold)
            platform.Log(what, number);
    }

    private void CheckFile(int file)
    {
        if (NameByte(file, FileSystemLayout.NameSize - 1) != 0)
            Fault("check: a name without an end, file ", (ulong)file);
        for (int other = 0; other < file; other++)
            if (IsFile(other) && SameName(file, other))
                Fault("check: a name that another file has too, file ", (ulong)file);
        ulong length = GetLength(file), blocks = (length + BlockDevice.BlockSize - 1) / BlockDevice.BlockSize;
        if (length > MostBytes)
        {
            Fault("check: too long, file ", (ulong)file);
            return;
        }
        uint entry = EntryBlock(file), offset = EntryOffset(file);
        for (uint i = 0; i < FileSystemLayout.Direct; i++)
            CheckPointer(entry, offset + FileSystemLayout.DirectAt + (4 * i), i < blocks);
        ulong left = blocks > FileSystemLayout.Direct ? blocks - FileSystemLayout.Direct : 0;
        CheckList(CheckPointer(entry, offset + FileSystemLayout.IndirectAt, left > 0), left);
        left = left > FileSystemLayout.Pointers ? left - FileSystemLayout.Pointers : 0;
        uint lists = CheckPointer(entry, offset + FileSystemLayout.DoubleAt, left > 0);
        for (uint i = 0; lists != 0 && i < FileSystemLayout.Pointers; i++)
        {
            CheckList(CheckPointer(lists, 4 * i, left > 0), left);
            left = left > FileSystemLayout.Pointers ? left - FileSystemLayout.Pointers : 0;
        }
    }

    private bool SameName(int a, int b)
    {
        for (uint i = 0; i < FileSystemLayout.NameSize; i += 4)
            if (ReadWord(EntryBlock(a), EntryOffset(a) + i) != ReadWord(EntryBlock(b), EntryOffset(b) + i))
                return false;
        return true;
    }

    private void CheckList(uint list, ulong used)
    {
        for (uint i = 0; list != 0 && i < FileSystemLayout.Pointers; i++)
            CheckPointer(list, 4 * i, i < used);
    }

    // The block that is named, or 0 when there is none or it is wrong.
    private uint CheckPointer(uint block, uint offset, bool wanted)
    {
        uint value = ReadWord(block, offset);
        if (wanted != (value != 0))
        {
            Fault(wanted ? "check: a block is missing, named in block " : "check: a block behind a file's end, named in block ", block);
            return 0;
        }
        if (value == 0)
            return 0;
        if (value < layout.DataStart || value >= layout.Blocks)
        {
            Fault("check: no block that a file may have: ", value);
            return 0;
        }
        ulong at = seen + (value / 32 * 4);
        uint bits = platform.Read(at, 4), bit = 1u << (int)(value % 32);
        if ((bits & bit) != 0)
        {
            Fault("check: used twice, block ", value);
            return 0;
        }
        platform.Write(at, 4, bits | bit);
        return value;
    }

    private void CheckBitmap()
    {
        ulong free = 0;
        for (uint first = 0; first < layout.BitmapBlocks * FileSystemLayout.BitsPerBlock; first += 32)
        {
            uint expected = first < layout.Blocks ? platform.Read(seen + (first / 8), 4) : 0xFFFF_FFFF;
            for (int i = 0; i < 32 && (first < layout.DataStart || first + 32 > layout.Blocks); i++)
                if (first + (uint)i < layout.DataStart || first + (uint)i >= layout.Blocks)
                    expected |= 1u << i;
            uint used = ReadWord(layout.BitmapStart + (first / FileSystemLayout.BitsPerBlock), first % FileSystemLayout.BitsPerBlock / 8);
            for (int i = 0; i < 32; i++)
            {
                uint bit = 1u << i;
                if ((used & bit) == 0)
                    free++;
                if ((used & bit) != (expected & bit))
                    Fault((used & bit) != 0 ? "check: in use, but no file's, block " : "check: a file's, but free, block ", first + (uint)i);
            }
        }
        if (free != FreeBlocks)
            Fault("check: free blocks are counted wrongly: ", FreeBlocks);
    }
}
