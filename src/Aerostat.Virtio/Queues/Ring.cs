using Aerostat.Memory;

namespace Aerostat.Virtio;

/// <summary>How a look at a ring went.</summary>
internal enum TakeResult
{
    /// <summary>Nothing is available.</summary>
    Empty,
    /// <summary>A chain was taken.</summary>
    Taken,
    /// <summary>The driver has broken the rules; the ring is not to be touched any more.</summary>
    Malformed,
}

/// <summary>
/// One of the two formats of a virtqueue in guest memory. Everything is checked; nothing is trusted twice. Callers hold the device's lock.
/// </summary>
internal abstract class Ring(GuestMemory memory, VirtqueueLayout layout)
{
    /// <summary>Most descriptors of an indirect table that are followed.</summary>
    protected const int MaxIndirect = 1024;

    protected const ushort FlagNext = 1, FlagWrite = 2, FlagIndirect = 4;

    protected GuestMemory Memory => memory;

    protected VirtqueueLayout Layout => layout;

    /// <summary>Takes the next chain.</summary>
    public abstract TakeResult TryTake(DescriptorChain chain, out string? problem);

    /// <summary>Gives a chain back.</summary>
    public abstract void Complete(ushort id, ushort descriptors, uint written);

    /// <summary>Whether the driver wants to know of what was completed since the last call.</summary>
    public abstract bool NeedsInterrupt();

    /// <summary>Asks the driver not to notify while the device looks by itself.</summary>
    public abstract void DisableNotification();

    /// <summary>Asks the driver to notify again; true: something has come meanwhile, look once more.</summary>
    public abstract bool EnableNotification();

    /// <summary>Positions, for saving.</summary>
    public abstract RingPositions Save();

    /// <summary>The fences' other half is in the driver: see virtio 1.2, 2.7.13 and 2.8.21.</summary>
    protected static bool EventReached(ushort wanted, ushort now, ushort before) => (ushort)(now - wanted - 1) < (ushort)(now - before);

    /// <summary>Follows an indirect table (2.7.5.3, 2.8.7).</summary>
    protected string? AddIndirect(DescriptorChain chain, ulong table, uint bytes, bool packed)
    {
        if (!layout.Indirect)
            return "an indirect descriptor without the feature";
        if (bytes == 0 || bytes % 16 != 0)
            return "the length of an indirect table is not a multiple of 16";
        if (!memory.Contains(table, bytes))
            return "an indirect table is not in memory";
        uint entries = bytes / 16;
        if (packed)
        {
            // The table is a list: all of it, in order.
            if (entries > MaxIndirect)
                return "an indirect table is too long";
            for (uint i = 0; i < entries; i++)
            {
                if (!Descriptor.TryRead(memory, table + (16 * i), out Descriptor d))
                    return "an indirect table is not in memory";
                if (chain.Add(memory, d.Address, d.Length, (d.PackedFlags & FlagWrite) != 0) is { } wrong)
                    return wrong;
            }
            return null;
        }
        for (uint index = 0, hops = 0; ; hops++)
        {
            if (index >= entries)
                return "an indirect descriptor is beyond its table";
            if (hops >= MaxIndirect)
                return "an indirect chain is too long, or a loop";
            if (!Descriptor.TryRead(memory, table + (16 * index), out Descriptor d))
                return "an indirect table is not in memory";
            if ((d.Flags & FlagIndirect) != 0)
                return "an indirect descriptor in an indirect table";
            if (chain.Add(memory, d.Address, d.Length, (d.Flags & FlagWrite) != 0) is { } wrong)
                return wrong;
            if ((d.Flags & FlagNext) == 0)
                return null;
            index = d.Next;
        }
    }
}

/// <summary>A descriptor as it was in memory at one moment: two aligned quadwords, each read once.</summary>
internal readonly record struct Descriptor(ulong Address, ulong Rest)
{
    public uint Length => (uint)Rest;

    /// <summary>Flags of a split ring's descriptor.</summary>
    public ushort Flags => (ushort)(Rest >> 32);

    /// <summary>Index of the next one of a split ring.</summary>
    public ushort Next => (ushort)(Rest >> 48);

    /// <summary>Buffer id of a packed ring's descriptor.</summary>
    public ushort BufferId => (ushort)(Rest >> 32);

    /// <summary>Flags of a packed ring's descriptor.</summary>
    public ushort PackedFlags => (ushort)(Rest >> 48);

    public static bool TryRead(GuestMemory memory, ulong at, out Descriptor descriptor)
    {
        if (memory.TryRead(new GuestAddress(at), out ulong address) && memory.TryRead(new GuestAddress(at + 8), out ulong rest))
        {
            descriptor = new Descriptor(address, rest);
            return true;
        }
        descriptor = default;
        return false;
    }
}

/// <summary>Where a queue's parts are and how they are to be read.</summary>
/// <param name="Size">Entries.</param>
/// <param name="Descriptors">Descriptor area.</param>
/// <param name="Driver">Driver area: available ring, or driver event suppression.</param>
/// <param name="Device">Device area: used ring, or device event suppression.</param>
/// <param name="Indirect">Indirect descriptors were negotiated.</param>
/// <param name="EventIndex">Event index was negotiated.</param>
internal readonly record struct VirtqueueLayout(ushort Size, ulong Descriptors, ulong Driver, ulong Device, bool Indirect, bool EventIndex);

/// <summary>What a device knows of a ring besides what is in memory.</summary>
public sealed record RingPositions
{
    /// <summary>Split: next index of the available ring. Packed: next available slot, wrap counter in bit 15.</summary>
    public ushort Available { get; init; }
    /// <summary>Split: next index of the used ring. Packed: next used slot, wrap counter in bit 15.</summary>
    public ushort Used { get; init; }
    /// <summary>The used position when the driver was last told.</summary>
    public ushort Signalled { get; init; }
    /// <summary>Whether that is known.</summary>
    public bool SignalledIsKnown { get; init; }
}
