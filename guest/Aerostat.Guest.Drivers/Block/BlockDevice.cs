namespace Aerostat.Guest.Drivers;

/// <summary>Blocks of a page each. Writes are begun and carried out in any order; what a flush follows is durable when that is done.</summary>
public abstract class BlockDevice
{
    public const int BlockSize = DriverPlatform.PageSize;

    public abstract ulong Blocks { get; }

    public abstract bool IsReadOnly { get; }

    /// <summary>Reads a block to a page. Like the others it waits, though not for ever; false: it could not be done.</summary>
    public abstract bool Read(ulong block, ulong page);

    /// <summary>Begins to write a page, which must stay as it is until <see cref="Flush"/>. False: something that was begun could not be done.</summary>
    public abstract bool Write(ulong block, ulong page);

    /// <summary>Waits until all writes have been carried out, and are durable. False: one was not.</summary>
    public abstract bool Flush();
}
