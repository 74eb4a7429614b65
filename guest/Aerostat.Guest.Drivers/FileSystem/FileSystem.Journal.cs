namespace Aerostat.Guest.Drivers;

// The journal: what a transaction changes is written there first, as whole blocks with checksums, and is valid when all of it is there. Only after that is anything
// written to its place; when the journal is full, or has to be empty, all of it at once, and the journal begins anew.
public sealed partial class FileSystem
{
    private ulong scratch;
    private ulong nonce;
    private ulong sequence;
    private uint journalUsed;

    // Sums of what was on another device, or in another transaction's place, do not fit here.
    private ulong Checksum(ulong address, uint bytes, ulong salt)
    {
        ulong sum = nonce ^ salt ^ 0x9E37_79B9_7F4A_7C15;
        for (uint at = 0; at < bytes; at += 8)
        {
            sum = unchecked((sum ^ platform.Read64(address + at)) * 0xFF51_AFD7_ED55_8CCD);
            sum ^= sum >> 32;
        }
        return sum;
    }

    // Makes room for an operation that changes so many blocks. Before that the running transaction may end; what belongs together is changed after this.
    private bool Begin(uint changes)
    {
        if (journalUsed + 1 + dirty + changes <= layout.JournalBlocks)
            return true;
        return Commit() && Checkpoint();
    }

    // What was changed is durable after this.
    private bool Commit()
    {
        if (failed != FileSystemError.None)
            return false;
        if (dirty == 0)
            return true;
        Zero(scratch);
        platform.Write64(scratch, FileSystemLayout.TransactionMagic);
        platform.Write64(scratch + FileSystemLayout.SequenceAt, sequence);
        platform.Write(scratch + FileSystemLayout.CountAt, 4, dirty);
        uint first = FileSystemLayout.JournalStart + journalUsed, count = 0;
        bool written = true;
        for (int i = 0; i < CacheSize && written; i++)
        {
            if (states[i] != BlockState.Dirty)
                continue;
            ulong entry = scratch + FileSystemLayout.EntriesAt + (count * FileSystemLayout.EntrySize);
            platform.Write64(entry, cached[i]);
            platform.Write64(entry + 8, Checksum(Page(i), BlockDevice.BlockSize, cached[i]));
            written = device!.Write(first + 1 + count++, Page(i));
        }
        platform.Write64(scratch + FileSystemLayout.TransactionChecksumAt, Checksum(scratch, BlockDevice.BlockSize, sequence));
        if (!written || !device!.Write(first, scratch) || !device.Flush())
            return Fail();
        for (int i = 0; i < CacheSize; i++)
            if (states[i] == BlockState.Dirty)
                states[i] = BlockState.Logged;
        journalUsed += count + 1;
        sequence++;
        dirty = 0;
        Commits++;
        return true;
    }

    // Everything goes to its place, and the journal is empty. Nothing is dirty.
    private bool Checkpoint()
    {
        if (failed != FileSystemError.None || journalUsed == 1)
            return failed == FileSystemError.None;
        for (int i = 0; i < CacheSize; i++)
            if (states[i] == BlockState.Logged)
            {
                if (!device!.Write(cached[i], Page(i)))
                    return Fail();
                states[i] = BlockState.Clean;
            }
        if (!device!.Flush() || !WriteJournalHeader())
            return Fail();
        Checkpoints++;
        return true;
    }

    // The journal begins with the transaction that comes next. Its first block may be written only when this is durable: older ones would be taken for valid otherwise.
    private bool WriteJournalHeader()
    {
        Zero(scratch);
        platform.Write64(scratch, FileSystemLayout.JournalMagic);
        platform.Write64(scratch + FileSystemLayout.SequenceAt, sequence);
        platform.Write64(scratch + FileSystemLayout.HeaderChecksumAt, Checksum(scratch, FileSystemLayout.HeaderChecksumAt, FileSystemLayout.JournalMagic));
        journalUsed = 1;
        return device!.Write(FileSystemLayout.JournalStart, scratch) && device.Flush();
    }

    private bool Fail()
    {
        failed = FileSystemError.Device;
        platform.Log("file system: the device failed; nothing is written any more");
        return false;
    }

    // Carries out what is in the journal.
    private FileSystemError Replay(bool writable)
    {
        if (!device!.Read(FileSystemLayout.JournalStart, scratch))
            return FileSystemError.Device;
        if (platform.Read64(scratch) != FileSystemLayout.JournalMagic
            || platform.Read64(scratch + FileSystemLayout.HeaderChecksumAt) != Checksum(scratch, FileSystemLayout.HeaderChecksumAt, FileSystemLayout.JournalMagic))
            return FileSystemError.Corrupt;
        sequence = platform.Read64(scratch + FileSystemLayout.SequenceAt);
        journalUsed = 1;
        Replayed = 0;
        while (true)
        {
            FileSystemError error = ReadTransaction(out uint count);
            if (error != FileSystemError.None)
                return error;
            if (count == 0)
                break;
            if (!writable)
                return FileSystemError.NeedsReplay;
            error = ApplyTransaction(count);
            if (error != FileSystemError.None)
                return error;
            Replayed++;
            sequence++;
            journalUsed += count + 1;
        }
        if (Replayed == 0)
            return FileSystemError.None;
        // Of a transaction that was under way something may be there: its number is not used again.
        sequence++;
        return device.Flush() && WriteJournalHeader() ? FileSystemError.None : FileSystemError.Device;
    }

    // Whether the next transaction is there, whole: its blocks, or 0. Its list is in the first page of the cache after that.
    private FileSystemError ReadTransaction(out uint count)
    {
        count = 0;
        uint left = layout.JournalBlocks - journalUsed;
        if (left < 2)
            return FileSystemError.None;
        uint first = FileSystemLayout.JournalStart + journalUsed;
        ulong list = Page(0);
        if (!device!.Read(first, list))
            return FileSystemError.Device;
        uint said = platform.Read(list + FileSystemLayout.CountAt, 4);
        ulong sum = platform.Read64(list + FileSystemLayout.TransactionChecksumAt);
        platform.Write64(list + FileSystemLayout.TransactionChecksumAt, 0);
        if (platform.Read64(list) != FileSystemLayout.TransactionMagic || platform.Read64(list + FileSystemLayout.SequenceAt) != sequence
            || said == 0 || said >= left || sum != Checksum(list, BlockDevice.BlockSize, sequence))
            return FileSystemError.None;
        for (uint i = 0; i < said; i++)
        {
            ulong entry = list + FileSystemLayout.EntriesAt + (i * FileSystemLayout.EntrySize);
            ulong block = platform.Read64(entry);
            if (block < layout.BitmapStart || block >= layout.Blocks)
                return FileSystemError.Corrupt;
            if (!device.Read(first + 1 + i, scratch))
                return FileSystemError.Device;
            if (Checksum(scratch, BlockDevice.BlockSize, block) != platform.Read64(entry + 8))
                return FileSystemError.None;
        }
        count = said;
        return FileSystemError.None;
    }

    private FileSystemError ApplyTransaction(uint count)
    {
        for (uint i = 0; i < count; i++)
        {
            uint block = (uint)platform.Read64(Page(0) + FileSystemLayout.EntriesAt + (i * FileSystemLayout.EntrySize));
            ulong page = Page(1 + (int)i);
            if (!device!.Read(FileSystemLayout.JournalStart + journalUsed + 1 + i, page) || !device.Write(block, page))
                return FileSystemError.Device;
        }
        // The next may have the same blocks, and pages.
        return device!.Flush() ? FileSystemError.None : FileSystemError.Device;
    }
}
