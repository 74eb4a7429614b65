using Aerostat.Memory;

namespace Aerostat.Virtio;

/// <summary>A packed virtqueue: virtio 1.2, 2.8.</summary>
internal sealed class PackedRing : Ring
{
    private const ushort FlagAvailable = 1 << 7, FlagUsed = 1 << 15, WrapBit = 1 << 15;
    private const ushort EventsEnabled = 0, EventsDisabled = 1, EventsAtDescriptor = 2;

    private ushort _available, _used, _signalled;
    private bool _availableWrap = true, _usedWrap = true, _signalledIsKnown;

    public PackedRing(GuestMemory memory, VirtqueueLayout layout, RingPositions? positions)
        : base(memory, layout)
    {
        if (positions is null)
            return;
        _available = Slot(positions.Available);
        _availableWrap = (positions.Available & WrapBit) != 0;
        _used = Slot(positions.Used);
        _usedWrap = (positions.Used & WrapBit) != 0;
        (_signalled, _signalledIsKnown) = (positions.Signalled, positions.SignalledIsKnown);
    }

    /// <summary>What is wrong with a queue's place, or null.</summary>
    public static string? Check(GuestMemory memory, VirtqueueLayout layout)
    {
        if (layout.Size is 0 or > 32768)
            return "a queue's size is not 1 to 32768";
        if ((layout.Descriptors & 15) != 0 || (layout.Driver & 3) != 0 || (layout.Device & 3) != 0)
            return "a queue is not aligned";
        return memory.Contains(layout.Descriptors, 16UL * layout.Size) && memory.Contains(layout.Driver, 4) && memory.Contains(layout.Device, 4)
            ? null
            : "a queue is not in memory";
    }

    public override TakeResult TryTake(DescriptorChain chain, out string? problem)
    {
        problem = null;
        if (!IsAvailable)
            return TakeResult.Empty;
        // The flags of the first descriptor are written last: they make the whole chain available.
        Volatile.ReadBarrier();
        chain.Clear();
        ushort slot = _available;
        bool wrap = _availableWrap;
        for (int hops = 1; ; hops++)
        {
            if (hops > Layout.Size)
            {
                problem = "a chain is longer than the queue";
                return TakeResult.Malformed;
            }
            Descriptor.TryRead(Memory, At(slot), out Descriptor d);
            if (++slot == Layout.Size)
                (slot, wrap) = (0, !wrap);
            if ((d.PackedFlags & FlagIndirect) != 0)
            {
                problem = hops > 1 || (d.PackedFlags & FlagNext) != 0
                    ? "an indirect descriptor is part of a longer chain"
                    : AddIndirect(chain, d.Address, d.Length, packed: true);
            }
            else
            {
                problem = chain.Add(Memory, d.Address, d.Length, (d.PackedFlags & FlagWrite) != 0);
            }
            if (problem is not null)
                return TakeResult.Malformed;
            if ((d.PackedFlags & FlagNext) == 0)
            {
                chain.Id = d.BufferId;
                chain.RingDescriptors = (ushort)hops;
                (_available, _availableWrap) = (slot, wrap);
                return TakeResult.Taken;
            }
        }
    }

    public override void Complete(ushort id, ushort descriptors, uint written)
    {
        ulong at = At(_used);
        Memory.TryWrite(new GuestAddress(at + 8), written);
        Memory.TryWrite(new GuestAddress(at + 12), id);
        Volatile.WriteBarrier();
        Memory.TryWrite(new GuestAddress(at + 14), (ushort)((_usedWrap ? FlagAvailable | FlagUsed : 0) | (written > 0 ? FlagWrite : 0)));
        _used += descriptors;
        if (_used < Layout.Size)
            return;
        _used -= Layout.Size;
        _usedWrap = !_usedWrap;
        // Positions of different rounds cannot be compared: the driver is told once for nothing.
        _signalledIsKnown = false;
    }

    public override bool NeedsInterrupt()
    {
        Interlocked.MemoryBarrier();
        // Offset and flags are one dword: off_wrap in the low half, flags above it (2.8.14).
        Memory.TryRead(new GuestAddress(Layout.Driver), out uint suppression);
        ushort before = _signalled;
        bool known = _signalledIsKnown;
        _signalled = _used;
        _signalledIsKnown = true;
        switch (suppression >> 16 & 3)
        {
            case EventsDisabled:
                return false;
            case EventsAtDescriptor when Layout.EventIndex && known:
                int wanted = (int)(suppression & 0x7FFF);
                if ((suppression & WrapBit) != 0 != _usedWrap)
                    wanted -= Layout.Size;
                return EventReached((ushort)wanted, _used, before);
            default:
                return true;
        }
    }

    public override void DisableNotification() => Memory.TryWrite(new GuestAddress(Layout.Device), (uint)EventsDisabled << 16);

    public override bool EnableNotification()
    {
        uint position = _available | (_availableWrap ? (uint)WrapBit : 0);
        Memory.TryWrite(new GuestAddress(Layout.Device), Layout.EventIndex ? position | (uint)EventsAtDescriptor << 16 : (uint)EventsEnabled << 16);
        Interlocked.MemoryBarrier();
        return IsAvailable;
    }

    public override RingPositions Save() => new()
    {
        Available = (ushort)(_available | (_availableWrap ? WrapBit : 0)),
        Used = (ushort)(_used | (_usedWrap ? WrapBit : 0)),
        Signalled = _signalled,
        SignalledIsKnown = _signalledIsKnown,
    };

    // A saved state may have been made by anybody.
    private ushort Slot(ushort position) => (ushort)((position & ~WrapBit) % Layout.Size);

    private ulong At(ushort slot) => Layout.Descriptors + (16UL * slot);

    private bool IsAvailable
    {
        get
        {
            Memory.TryRead(new GuestAddress(At(_available) + 14), out ushort flags);
            return (flags & FlagAvailable) != 0 == _availableWrap && (flags & FlagUsed) != 0 != _availableWrap;
        }
    }
}
