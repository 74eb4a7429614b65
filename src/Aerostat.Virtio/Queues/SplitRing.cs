using Aerostat.Memory;

namespace Aerostat.Virtio;

/// <summary>A split virtqueue: virtio 1.2, 2.7.</summary>
internal sealed class SplitRing : Ring
{
    private const ushort NoInterrupt = 1, NoNotify = 1;

    private ushort _available, _used, _signalled;
    private bool _signalledIsKnown;

    public SplitRing(GuestMemory memory, VirtqueueLayout layout, RingPositions? positions)
        : base(memory, layout)
    {
        if (positions is null)
            return;
        (_available, _used, _signalled, _signalledIsKnown) = (positions.Available, positions.Used, positions.Signalled, positions.SignalledIsKnown);
    }

    // Available ring: flags, index, entries of 2 bytes, used_event. Used ring: flags, index, entries of 8 bytes, avail_event.
    private ulong AvailableIndexAt => Layout.Driver + 2;

    private ulong UsedEventAt => Layout.Driver + 4 + (2UL * Layout.Size);

    private ulong UsedIndexAt => Layout.Device + 2;

    private ulong AvailableEventAt => Layout.Device + 4 + (8UL * Layout.Size);

    /// <summary>What is wrong with a queue's place, or null.</summary>
    public static string? Check(GuestMemory memory, VirtqueueLayout layout)
    {
        ulong size = layout.Size;
        if (!ulong.IsPow2(size) || size > 32768)
            return "a queue's size is not a power of two";
        if ((layout.Descriptors & 15) != 0 || (layout.Driver & 1) != 0 || (layout.Device & 3) != 0)
            return "a queue is not aligned";
        return memory.Contains(layout.Descriptors, 16 * size) && memory.Contains(layout.Driver, 6 + (2 * size)) && memory.Contains(layout.Device, 6 + (8 * size))
            ? null
            : "a queue is not in memory";
    }

    public override TakeResult TryTake(DescriptorChain chain, out string? problem)
    {
        problem = null;
        ushort index = AvailableIndex;
        ushort waiting = (ushort)(index - _available);
        if (waiting == 0)
            return TakeResult.Empty;
        if (waiting > Layout.Size)
        {
            problem = "the available index is further ahead than the queue is long";
            return TakeResult.Malformed;
        }
        // The index first, then what it announces.
        Volatile.ReadBarrier();
        Memory.TryRead(new GuestAddress(Layout.Driver + 4 + (2UL * (uint)(_available & (Layout.Size - 1)))), out ushort head);
        chain.Clear();
        chain.Id = head;
        chain.RingDescriptors = 1;
        problem = Walk(chain, head);
        if (problem is not null)
            return TakeResult.Malformed;
        _available++;
        return TakeResult.Taken;
    }

    public override void Complete(ushort id, ushort descriptors, uint written)
    {
        ulong at = Layout.Device + 4 + (8UL * (uint)(_used & (Layout.Size - 1)));
        Memory.TryWrite(new GuestAddress(at), id | ((ulong)written << 32));
        // The entry first, then the index that announces it.
        Volatile.WriteBarrier();
        _used++;
        Memory.TryWrite(new GuestAddress(UsedIndexAt), _used);
    }

    public override bool NeedsInterrupt()
    {
        // Our index must be visible before we look at what the driver wants.
        Interlocked.MemoryBarrier();
        if (!Layout.EventIndex)
        {
            Memory.TryRead(new GuestAddress(Layout.Driver), out ushort flags);
            return (flags & NoInterrupt) == 0;
        }
        Memory.TryRead(new GuestAddress(UsedEventAt), out ushort wanted);
        bool needed = !_signalledIsKnown || EventReached(wanted, _used, _signalled);
        _signalled = _used;
        _signalledIsKnown = true;
        return needed;
    }

    public override void DisableNotification()
    {
        // With the event index an old index is left standing, which keeps the driver quiet by itself.
        if (!Layout.EventIndex)
            Memory.TryWrite(new GuestAddress(Layout.Device), NoNotify);
    }

    public override bool EnableNotification()
    {
        if (Layout.EventIndex)
            Memory.TryWrite(new GuestAddress(AvailableEventAt), _available);
        else
            Memory.TryWrite(new GuestAddress(Layout.Device), (ushort)0);
        Interlocked.MemoryBarrier();
        return AvailableIndex != _available;
    }

    public override RingPositions Save() => new() { Available = _available, Used = _used, Signalled = _signalled, SignalledIsKnown = _signalledIsKnown };

    private ushort AvailableIndex => Memory.TryRead(new GuestAddress(AvailableIndexAt), out ushort index) ? index : _available;

    private string? Walk(DescriptorChain chain, ushort head)
    {
        ushort index = head;
        for (int hops = 0; ; hops++)
        {
            if (index >= Layout.Size)
                return "a descriptor is beyond the table";
            if (hops >= Layout.Size)
                return "a chain is a loop";
            if (!Descriptor.TryRead(Memory, Layout.Descriptors + (16UL * index), out Descriptor d))
                return "a queue is not in memory";
            if ((d.Flags & FlagIndirect) != 0)
                return (d.Flags & FlagNext) != 0 ? "an indirect descriptor has a next one" : AddIndirect(chain, d.Address, d.Length, packed: false);
            if (chain.Add(Memory, d.Address, d.Length, (d.Flags & FlagWrite) != 0) is { } wrong)
                return wrong;
            if ((d.Flags & FlagNext) == 0)
                return null;
            index = d.Next;
        }
    }
}
