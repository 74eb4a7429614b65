namespace Aerostat.Virtio;

/// <summary>
/// One queue of a device: where it is, whether it is enabled, and its ring. Every member is used under the device's lock
/// (<see cref="VirtioDevice.Gate"/>).
/// </summary>
public sealed class Virtqueue
{
    private readonly VirtioDevice _device;
    private Ring? _ring;
    private uint _epoch;

    internal Virtqueue(VirtioDevice device, int index, ushort maxSize)
    {
        _device = device;
        Index = index;
        MaxSize = maxSize;
        Clear();
    }

    /// <summary>Number of the queue.</summary>
    public int Index { get; }

    /// <summary>Most entries it can have.</summary>
    public ushort MaxSize { get; }

    /// <summary>Entries it has.</summary>
    public ushort Size { get; internal set; }

    /// <summary>Whether the driver has enabled it.</summary>
    public bool Enabled => _ring is not null;

    /// <summary>Chains that have been taken and completed.</summary>
    public long Completed { get; private set; }

    internal ulong Descriptors { get; set; }

    internal ulong Driver { get; set; }

    internal ulong DeviceArea { get; set; }

    /// <summary>Chains that another thread is working on; see <see cref="VirtioDevice.BeginWork"/>.</summary>
    internal int Busy { get; set; }

    /// <summary>The driver wants it reset, and <see cref="Busy"/> is not yet zero.</summary>
    internal bool ResetPending { get; set; }

    /// <summary>Takes the next chain. False: there is none, or the device is not running, or the driver broke the rules.</summary>
    public bool TryTake(DescriptorChain chain)
    {
        if (_ring is null || !_device.IsRunning || ResetPending)
            return false;
        TakeResult result = _ring.TryTake(chain, out string? problem);
        if (result == TakeResult.Malformed)
            _device.Break($"queue {Index}: {problem}");
        chain.Epoch = _epoch;
        return result == TakeResult.Taken;
    }

    /// <summary>Gives a chain back with <paramref name="written"/> bytes in its writable part. One of a former life is forgotten.</summary>
    public void Complete(DescriptorChain chain, uint written) => Complete(new ChainTicket(chain), written);

    /// <summary>As the other, for a chain that was remembered by its ticket.</summary>
    internal void Complete(ChainTicket ticket, uint written)
    {
        if (_ring is null || !_device.IsRunning || ticket.Epoch != _epoch || ResetPending)
            return;
        _ring.Complete(ticket.Id, ticket.RingDescriptors, written);
        Completed++;
    }

    /// <summary>After completions: interrupts the driver if it wants that.</summary>
    public void Signal()
    {
        if (_ring is not null && _device.IsRunning && _ring.NeedsInterrupt())
            _device.RaiseQueueInterrupt(this);
    }

    /// <summary>The device looks by itself for a while.</summary>
    public void DisableNotification()
    {
        if (_device.IsRunning)
            _ring?.DisableNotification();
    }

    /// <summary>The driver is to notify again; true: something has come meanwhile.</summary>
    public bool EnableNotification() => _ring is not null && _device.IsRunning && !ResetPending && _ring.EnableNotification();

    /// <summary>Sets up the ring; what is wrong with it, or null.</summary>
    internal string? Enable(RingPositions? positions = null)
    {
        VirtqueueLayout layout = new(
            Size, Descriptors, Driver, DeviceArea,
            _device.HasFeature(VirtioFeatures.IndirectDescriptors), _device.HasFeature(VirtioFeatures.EventIndex));
        bool packed = _device.HasFeature(VirtioFeatures.RingPacked);
        if ((packed ? PackedRing.Check(_device.Memory, layout) : SplitRing.Check(_device.Memory, layout)) is { } problem)
            return problem;
        _ring = packed ? new PackedRing(_device.Memory, layout, positions) : new SplitRing(_device.Memory, layout, positions);
        return null;
    }

    /// <summary>Back to where a device reset leaves it.</summary>
    internal void Clear()
    {
        _ring = null;
        _epoch++;
        Size = MaxSize;
        Descriptors = Driver = DeviceArea = 0;
        ResetPending = false;
    }

    /// <summary>A ticket is of this life.</summary>
    internal bool IsCurrent(ChainTicket ticket) => _ring is not null && ticket.Epoch == _epoch;

    /// <summary>The ticket of a chain that was parked when the state was saved.</summary>
    internal ChainTicket Restored(ushort id, ushort descriptors) => new(id, descriptors, _epoch);

    internal VirtqueueSavedState Save() => new()
    {
        Size = Size,
        Enabled = Enabled,
        Descriptors = Descriptors,
        Driver = Driver,
        Device = DeviceArea,
        Positions = _ring?.Save(),
    };

    internal string? Restore(VirtqueueSavedState state)
    {
        Clear();
        Size = state.Size == 0 ? MaxSize : Math.Min(state.Size, MaxSize);
        Descriptors = state.Descriptors;
        Driver = state.Driver;
        DeviceArea = state.Device;
        return state.Enabled ? Enable(state.Positions) : null;
    }
}

/// <summary>What must be kept of a chain to give it back later.</summary>
internal readonly record struct ChainTicket(ushort Id, ushort RingDescriptors, uint Epoch)
{
    public ChainTicket(DescriptorChain chain)
        : this(chain.Id, chain.RingDescriptors, chain.Epoch)
    {
    }
}

/// <summary>A queue at rest.</summary>
public sealed record VirtqueueSavedState
{
    /// <summary>Entries.</summary>
    public ushort Size { get; init; }
    /// <summary>Whether the driver has enabled it.</summary>
    public bool Enabled { get; init; }
    /// <summary>Descriptor area.</summary>
    public ulong Descriptors { get; init; }
    /// <summary>Driver area.</summary>
    public ulong Driver { get; init; }
    /// <summary>Device area.</summary>
    public ulong Device { get; init; }
    /// <summary>Where the device is in the ring.</summary>
    public RingPositions? Positions { get; init; }
}
