namespace Aerostat.Guest.Drivers;

/// <summary>
/// A task that writes records to a file, one after the other, and counts one when it is durable. Each has a number, a pattern and a sum, so that whoever reads the
/// file, of a copy of the disk for instance, knows how many there are and whether they are whole.
/// </summary>
public sealed class RecordWriter(FileSystem fileSystem)
{
    public const int RecordSize = 200;

    private const ulong Multiplier = 0x5851_F42D_4C95_7F2D;

    private const string Name = "records";

    private readonly byte[] name = new byte[Name.Length];
    private readonly byte[] record = new byte[RecordSize];
    private readonly byte[] expected = new byte[RecordSize];
    private int file;

    public bool IsRunning { get; private set; }

    /// <summary>Records that are durable.</summary>
    public ulong Acknowledged { get; private set; }

    /// <summary>Times that a record had to wait because the file system was frozen.</summary>
    public ulong HeldUp { get; private set; }

    /// <summary>What stopped it.</summary>
    public FileSystemError Error { get; private set; }

    /// <summary>Goes on behind the records that are there; or says what is wrong.</summary>
    public FileSystemError Start()
    {
        Error = Find(out file);
        if (Error == FileSystemError.NoSuchFile)
            Error = fileSystem.Create(name, 0, name.Length, out file);
        if (Error != FileSystemError.None)
            return Error;
        Acknowledged = fileSystem.GetLength(file) / RecordSize;
        IsRunning = true;
        return FileSystemError.None;
    }

    public void Stop() => IsRunning = false;

    /// <summary>Writes a record; true: at once again.</summary>
    public bool Service()
    {
        if (!IsRunning)
            return false;
        Fill(record, Acknowledged);
        FileSystemError error = fileSystem.Append(file, record, 0, RecordSize);
        if (error == FileSystemError.None)
            error = fileSystem.Sync();
        if (error == FileSystemError.Frozen)
        {
            HeldUp++;
            return false;
        }
        if (error != FileSystemError.None)
        {
            Error = error;
            IsRunning = false;
            return false;
        }
        Acknowledged++;
        return true;
    }

    /// <summary>Reads all records. False: there is no file of them, or one is not whole.</summary>
    /// <param name="count">How many there are, up to one that is not whole.</param>
    public bool Verify(out ulong count)
    {
        count = 0;
        if (Find(out int found) != FileSystemError.None)
            return false;
        for (ulong length = fileSystem.GetLength(found); (count + 1) * RecordSize <= length; count++)
        {
            Fill(expected, count);
            if (fileSystem.Read(found, count * RecordSize, record, 0, RecordSize) != RecordSize)
                return false;
            for (int i = 0; i < RecordSize; i++)
                if (record[i] != expected[i])
                    return false;
        }
        return count * RecordSize == fileSystem.GetLength(found);
    }

    private FileSystemError Find(out int found)
    {
        for (int i = 0; i < name.Length; i++)
            name[i] = (byte)Name[i];
        return fileSystem.Find(name, 0, name.Length, out found);
    }

    /// <summary>Makes a record: its number, a pattern that depends on it, and a sum of both.</summary>
    public static void Fill(byte[] to, ulong number)
    {
        ulong state = (number + 1) * Multiplier, sum = number;
        LittleEndian.Write64(to, 0, number);
        for (int i = 8; i < RecordSize - 8; i += 8)
        {
            state = (state ^ (state >> 29)) * Multiplier;
            LittleEndian.Write64(to, i, state);
            sum += state;
        }
        LittleEndian.Write64(to, RecordSize - 8, sum);
    }
}
