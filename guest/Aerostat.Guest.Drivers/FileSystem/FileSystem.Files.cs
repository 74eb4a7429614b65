using System;

namespace Aerostat.Guest.Drivers;

// Files: names, sizes, and which blocks they have.
public sealed partial class FileSystem
{
    private uint EntryBlock(int file) => layout.TableStart + ((uint)file / FileSystemLayout.FilesPerBlock);

    private static uint EntryOffset(int file) => (uint)file % FileSystemLayout.FilesPerBlock * FileSystemLayout.FileSize;

    private bool IsFile(int file) => (uint)file < MostFiles && (byte)ReadWord(EntryBlock(file), EntryOffset(file)) != 0;

    /// <summary>The file with a name; <see cref="FileSystemError.NoSuchFile"/>: there is none.</summary>
    public FileSystemError Find(byte[] name, int start, int length, out int file)
    {
        file = -1;
        if (!IsMounted)
            return FileSystemError.NotMounted;
        for (int i = 0; i < MostFiles; i++)
            if (IsFile(i) && HasName(i, name, start, length))
            {
                file = i;
                return failed;
            }
        return failed != FileSystemError.None ? failed : FileSystemError.NoSuchFile;
    }

    private bool HasName(int file, byte[] name, int start, int length)
    {
        if (length is 0 or > MostNameLength)
            return false;
        for (int i = 0; i <= length; i++)
            if (NameByte(file, (uint)i) != (i < length ? name[start + i] : 0))
                return false;
        return true;
    }

    private byte NameByte(int file, uint index) => (byte)(ReadWord(EntryBlock(file), EntryOffset(file) + (index & ~3u)) >> (int)((index & 3) * 8));

    /// <summary>A file's name: how many bytes; 0: there is no such file. The table's places are numbered from 0 to <see cref="MostFiles"/> - 1.</summary>
    public int GetName(int file, byte[] to)
    {
        if (!IsMounted || !IsFile(file))
            return 0;
        int length = 0;
        while (length < MostNameLength && NameByte(file, (uint)length) is not 0 and var letter)
            to[length++] = letter;
        return length;
    }

    /// <summary>A file's bytes.</summary>
    public ulong GetLength(int file)
    {
        if (!IsMounted || !IsFile(file))
            return 0;
        uint block = EntryBlock(file), offset = EntryOffset(file) + FileSystemLayout.SizeAt;
        return ReadWord(block, offset) | ((ulong)ReadWord(block, offset + 4) << 32);
    }

    private void SetLength(int file, ulong length)
    {
        uint block = EntryBlock(file), offset = EntryOffset(file) + FileSystemLayout.SizeAt;
        WriteWord(block, offset, (uint)length);
        WriteWord(block, offset + 4, (uint)(length >> 32));
    }

    /// <summary>Makes an empty file.</summary>
    public FileSystemError Create(byte[] name, int start, int length, out int file)
    {
        file = -1;
        FileSystemError error = MayWrite();
        if (error != FileSystemError.None)
            return error;
        if (length is 0 or > MostNameLength)
            return FileSystemError.BadName;
        for (int i = 0; i < length; i++)
            if (name[start + i] == 0)
                return FileSystemError.BadName;
        error = Find(name, start, length, out _);
        if (error != FileSystemError.NoSuchFile)
            return error == FileSystemError.None ? FileSystemError.Exists : error;
        for (int i = 0; i < MostFiles; i++)
        {
            if (IsFile(i))
                continue;
            if (!Begin(OtherChanges))
                return failed;
            int slot = Change(EntryBlock(i));
            if (slot < 0)
                return failed;
            ulong entry = Page(slot) + EntryOffset(i);
            for (uint at = 0; at < FileSystemLayout.FileSize; at += 8)
                platform.Write64(entry + at, 0);
            platform.CopyIn(entry, name, start, length);
            file = i;
            return FileSystemError.None;
        }
        return FileSystemError.TooManyFiles;
    }

    /// <summary>Adds bytes to a file's end.</summary>
    public FileSystemError Append(int file, byte[] data, int start, int length) => Write(file, GetLength(file), data, start, length);

    /// <summary>
    /// Writes bytes at a place up to a file's end, and beyond. Up to <see cref="MostAtOnce"/> bytes are there as a whole or not at all after the machine stopped; they
    /// are there certainly after the next <see cref="Sync"/>.
    /// </summary>
    public FileSystemError Write(int file, ulong offset, byte[] data, int start, int length)
    {
        FileSystemError error = MayWrite();
        if (error != FileSystemError.None)
            return error;
        if (!IsFile(file))
            return failed != FileSystemError.None ? failed : FileSystemError.NoSuchFile;
        ulong size = GetLength(file);
        if (offset > size || (ulong)length > MostBytes - offset)
            return FileSystemError.OutOfRange;
        // At most: one for each block that is touched, and three lists.
        if ((offset + (ulong)length > size ? ((ulong)length / BlockDevice.BlockSize) + 5 : 0) > FreeBlocks)
            return FileSystemError.NoSpace;
        while (length > 0)
        {
            int piece = Math.Min(length, MostAtOnce);
            if (!Begin(PieceBlocks + OtherChanges))
                return failed;
            for (int done = 0; done < piece;)
            {
                uint within = (uint)((offset + (ulong)done) % BlockDevice.BlockSize);
                int part = Math.Min(piece - done, BlockDevice.BlockSize - (int)within);
                uint block = Map(file, (uint)((offset + (ulong)done) / BlockDevice.BlockSize), allocate: true);
                int slot = block == 0 ? -1 : Change(block);
                if (slot < 0)
                    return GiveUp();
                platform.CopyIn(Page(slot) + within, data, start + done, part);
                done += part;
            }
            offset += (ulong)piece;
            start += piece;
            length -= piece;
            if (offset > size)
                SetLength(file, size = offset);
            if (failed != FileSystemError.None)
                return GiveUp();
        }
        return FileSystemError.None;
    }

    /// <summary>Reads bytes; how many there were before the file's end, or the device failed.</summary>
    public int Read(int file, ulong offset, byte[] to, int start, int length)
    {
        ulong size = GetLength(file);
        int done = 0;
        while (done < length && offset < size)
        {
            uint within = (uint)(offset % BlockDevice.BlockSize);
            int part = (int)Math.Min((ulong)Math.Min(length - done, BlockDevice.BlockSize - (int)within), size - offset);
            uint block = Map(file, (uint)(offset / BlockDevice.BlockSize), allocate: false);
            int slot = block == 0 ? -1 : Get(block, read: true);
            if (slot < 0)
                break;
            platform.CopyOut(Page(slot) + within, to, start + done, part);
            done += part;
            offset += (ulong)part;
        }
        return done;
    }

    private static ulong MostBytes => (ulong)(FileSystemLayout.Direct + FileSystemLayout.Pointers + (FileSystemLayout.Pointers * FileSystemLayout.Pointers)) * BlockDevice.BlockSize;

    // An operation that cannot be ended must not be committed half: nothing is, any more.
    private FileSystemError GiveUp()
    {
        if (failed == FileSystemError.None)
            failed = FileSystemError.Corrupt;
        return failed;
    }

    // The block with a part of a file; 0: it has none, or something is wrong.
    private uint Map(int file, uint index, bool allocate)
    {
        uint block = EntryBlock(file), offset = EntryOffset(file);
        if (index < FileSystemLayout.Direct)
            return Pointer(block, offset + FileSystemLayout.DirectAt + (4 * index), allocate);
        index -= FileSystemLayout.Direct;
        if (index < FileSystemLayout.Pointers)
        {
            uint list = Pointer(block, offset + FileSystemLayout.IndirectAt, allocate);
            return list == 0 ? 0 : Pointer(list, 4 * index, allocate);
        }
        index -= FileSystemLayout.Pointers;
        uint lists = Pointer(block, offset + FileSystemLayout.DoubleAt, allocate);
        uint inner = lists == 0 ? 0 : Pointer(lists, index / FileSystemLayout.Pointers * 4, allocate);
        return inner == 0 ? 0 : Pointer(inner, index % FileSystemLayout.Pointers * 4, allocate);
    }

    private uint Pointer(uint block, uint offset, bool allocate)
    {
        uint value = ReadWord(block, offset);
        if (value == 0 && allocate && failed == FileSystemError.None)
        {
            value = Allocate();
            if (value != 0)
                WriteWord(block, offset, value);
        }
        if (value != 0 && (value < layout.DataStart || value >= layout.Blocks))
        {
            failed = FileSystemError.Corrupt;
            return 0;
        }
        return value;
    }
}
