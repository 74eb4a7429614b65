namespace Aerostat.Guest.Drivers;

/// <summary>
/// All that a driver may use. The kernel implements it with its allocator and single instructions, a test with the host's memory and device models, so
/// that the same driver runs in both. Addresses are physical, which is what devices use for DMA. Single-threaded: a driver is called, and returns.
/// </summary>
public abstract class DriverPlatform
{
    public const int PageSize = 4096;

    /// <summary>A block of 2^order pages, aligned to its size, or 0.</summary>
    public abstract ulong AllocatePages(int order);

    public abstract void FreePages(ulong address, int order);

    /// <summary>Pages of memory in all.</summary>
    public abstract ulong TotalPages { get; }

    public abstract ulong FreePageCount { get; }

    /// <summary>Writes the addresses of free blocks of an order, without taking them, to memory at <paramref name="to"/>; how many there were.</summary>
    public abstract uint ListFreeBlocks(int order, ulong to, uint most);

    /// <summary>Takes a free block that the host has not been told of, of this order or a higher one, or 0.</summary>
    public abstract ulong TakeUnreported(int leastOrder, out int order);

    /// <summary>Gives such a block back, of which the host knows now that it is free.</summary>
    public abstract void ReturnReported(ulong address, int order);

    /// <summary>The word that fills free pages, or 0 when their content is nothing particular.</summary>
    public abstract uint PoisonPattern { get; }

    public abstract uint Read(ulong address, int size);

    public abstract void Write(ulong address, int size, uint value);

    public abstract ulong Read64(ulong address);

    public abstract void Write64(ulong address, ulong value);

    /// <summary>Orders accesses to memory that a device also uses.</summary>
    public abstract void Fence();

    public abstract uint ReadRegister(ulong address, int size);

    public abstract void WriteRegister(ulong address, int size, uint value);

    public abstract uint ReadPciConfig(uint function, int offset, int size);

    public abstract void WritePciConfig(uint function, int offset, int size, uint value);

    /// <summary>An interrupt message for this device's function: where it is written and what; false: it has to be polled.</summary>
    public abstract bool GetInterruptMessage(out ulong address, out uint data);

    /// <summary>
    /// A call to the host by IN from a port, as VMware's channels are: EAX, EBX, ECX and ESI go in, with the port in DX; EAX is returned, EBX and ECX come back.
    /// </summary>
    public abstract uint Call(ushort port, uint magic, uint command, ulong argument, ulong second, out ulong result, out ulong extra);

    /// <summary>Whether CPUID names VMware as the hypervisor.</summary>
    public abstract bool IsVmware { get; }

    /// <summary>Time since some moment.</summary>
    public abstract ulong Nanoseconds { get; }

    /// <summary>Lets time pass for a driver that has to wait for its device: until an interrupt, or for some milliseconds. There may be none.</summary>
    public virtual void Relax()
    {
    }

    /// <summary>Copies bytes into memory.</summary>
    public virtual void CopyIn(ulong address, byte[] from, int start, int length)
    {
        for (int i = 0; i < length; i++)
            Write(address + (uint)i, 1, from[start + i]);
    }

    /// <summary>Copies bytes out of memory.</summary>
    public virtual void CopyOut(ulong address, byte[] to, int start, int length)
    {
        for (int i = 0; i < length; i++)
            to[start + i] = (byte)Read(address + (uint)i, 1);
    }

    /// <summary>A line for people: a text, and a number unless it is all ones.</summary>
    public abstract void Log(string text, ulong number = 0xFFFF_FFFF_FFFF_FFFF);
}
