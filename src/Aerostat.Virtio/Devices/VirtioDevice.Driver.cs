namespace Aerostat.Virtio;

/// <content>What the driver does to the device, as transports pass it on. Every member takes the lock.</content>
public abstract partial class VirtioDevice
{
    private const VirtioStatus DriverBits = VirtioStatus.Acknowledge | VirtioStatus.Driver | VirtioStatus.DriverOk | VirtioStatus.FeaturesOk | VirtioStatus.Failed;
    private const int LargestConfig = 256;

    /// <summary>The device status field.</summary>
    internal VirtioStatus Status
    {
        get
        {
            lock (Gate)
                return _status;
        }
    }

    /// <summary>Changes when configuration space does.</summary>
    internal byte ConfigGeneration
    {
        get
        {
            lock (Gate)
                return _generation;
        }
    }

    /// <summary>32 bits of what the driver has written so far.</summary>
    internal uint DriverFeatures(uint half)
    {
        lock (Gate)
            return half > 1 ? 0 : (uint)(_driverFeatures >> (32 * (int)half));
    }

    /// <summary>The driver accepts features. After FEATURES_OK nothing changes any more (2.2.1).</summary>
    internal void SetDriverFeatures(uint half, uint value)
    {
        lock (Gate)
        {
            if (half > 1 || (_status & VirtioStatus.FeaturesOk) != 0)
                return;
            int shift = 32 * (int)half;
            _driverFeatures = (_driverFeatures & ~((ulong)uint.MaxValue << shift)) | ((ulong)value << shift);
        }
    }

    /// <summary>The driver writes the status field (2.1, 3.1.1). Bits are only ever added; 0 resets.</summary>
    internal void WriteStatus(byte value)
    {
        lock (Gate)
        {
            if (value == 0)
            {
                if (_busy > 0)
                {
                    _resetPending = true;
                    return;
                }
                FinishReset();
                return;
            }
            if (_resetPending)
                return;
            VirtioStatus added = (VirtioStatus)value & DriverBits & ~_status;
            if ((added & VirtioStatus.FeaturesOk) != 0)
            {
                if ((_driverFeatures & ~OfferedFeatures) != 0 || (_driverFeatures & VirtioFeatures.Version1) == 0)
                {
                    Warn($"the driver wants features 0x{_driverFeatures:x} of 0x{OfferedFeatures:x}; it does not get FEATURES_OK");
                    added &= ~(VirtioStatus.FeaturesOk | VirtioStatus.DriverOk);
                }
            }
            else if ((added & VirtioStatus.DriverOk) != 0 && (_status & VirtioStatus.FeaturesOk) == 0)
            {
                Warn("the driver says DRIVER_OK without FEATURES_OK");
                added &= ~VirtioStatus.DriverOk;
            }
            _status |= added;
            if ((added & VirtioStatus.DriverOk) == 0 || !IsRunning)
                return;
            OnStarted();
            // Buffers that came, and were announced, before DRIVER_OK (the balloon's first statistics do).
            foreach (Virtqueue queue in Queues)
                if (queue.Enabled)
                    OnNotified(queue);
        }
    }

    /// <summary>A notification.</summary>
    internal void Notify(uint queue)
    {
        lock (Gate)
        {
            if (queue < (uint)Queues.Count && IsRunning && Queues[(int)queue].Enabled && !Queues[(int)queue].ResetPending)
                OnNotified(Queues[(int)queue]);
        }
    }

    /// <summary>A queue by the number in the driver's select register, or null.</summary>
    internal Virtqueue? QueueAt(uint index) => index < (uint)Queues.Count ? Queues[(int)index] : null;

    /// <summary>Changes where a queue is; ignored while it is enabled.</summary>
    internal void ConfigureQueue(uint index, Action<Virtqueue, ulong> change, ulong value)
    {
        lock (Gate)
        {
            if (QueueAt(index) is { Enabled: false } queue && !_resetPending)
                change(queue, value);
        }
    }

    /// <summary>Enables a queue (4.1.5.1.3).</summary>
    internal void EnableQueue(uint index)
    {
        lock (Gate)
        {
            if (QueueAt(index) is not { Enabled: false } queue || _resetPending || (_status & VirtioStatus.NeedsReset) != 0)
                return;
            if ((_status & VirtioStatus.FeaturesOk) == 0)
                Break($"queue {index} is enabled before FEATURES_OK");
            else if (queue.Size == 0 || queue.Size > queue.MaxSize)
                Break($"queue {index} is to have {queue.Size} entries; it can have {queue.MaxSize}");
            else if (queue.Enable() is { } problem)
                Break($"queue {index}: {problem}");
            else if (IsRunning)
                OnNotified(queue);
        }
    }

    /// <summary>Resets one queue (2.6.1).</summary>
    internal void ResetQueue(uint index)
    {
        lock (Gate)
        {
            if (QueueAt(index) is not { Enabled: true } queue || _resetPending)
                return;
            if (queue.Busy > 0)
                queue.ResetPending = true;
            else
                FinishQueueReset(queue);
        }
    }

    /// <summary>Reads configuration space; what is beyond it reads as zeros.</summary>
    internal ulong ReadConfig(ulong offset, int size)
    {
        Span<byte> space = stackalloc byte[LargestConfig];
        int length = Math.Min(ConfigLength, LargestConfig);
        lock (Gate)
            FillConfig(space[..length]);
        ulong value = 0;
        for (int i = 0; i < size && offset + (ulong)i < (ulong)length; i++)
            value |= (ulong)space[(int)offset + i] << (8 * i);
        return value;
    }

    /// <summary>Writes configuration space; what is beyond it swallows.</summary>
    internal void WriteConfig(ulong offset, int size, ulong value)
    {
        if (offset >= (ulong)ConfigLength || size > (int)((ulong)ConfigLength - offset))
            return;
        Span<byte> bytes = stackalloc byte[8];
        System.Buffers.Binary.BinaryPrimitives.WriteUInt64LittleEndian(bytes, value);
        lock (Gate)
            OnConfigWritten((int)offset, bytes[..size]);
    }

    /// <summary>The common part at rest. The device is quiesced.</summary>
    protected VirtioDeviceSavedState SaveDevice()
    {
        lock (Gate)
        {
            return new VirtioDeviceSavedState
            {
                DriverFeatures = _driverFeatures,
                Status = _status,
                ConfigGeneration = _generation,
                Queues = [.. Queues.Select(q => q.Save())],
            };
        }
    }

    /// <summary>Puts the common part back. The device is quiesced; memory is restored already.</summary>
    protected void RestoreDevice(VirtioDeviceSavedState state)
    {
        lock (Gate)
        {
            _resetPending = false;
            FinishReset();
            _driverFeatures = state.DriverFeatures;
            _status = state.Status;
            if ((_driverFeatures & ~OfferedFeatures) != 0)
                _status &= ~(VirtioStatus.FeaturesOk | VirtioStatus.DriverOk);
            _generation = state.ConfigGeneration;
            for (int i = 0; i < Queues.Count && i < state.Queues.Length; i++)
                if (Queues[i].Restore(state.Queues[i]) is { } problem)
                    Break($"queue {i}, restored: {problem}");
        }
    }
}

/// <summary>What every virtio device keeps.</summary>
public sealed record VirtioDeviceSavedState
{
    /// <summary>Features the driver has accepted, or is about to.</summary>
    public ulong DriverFeatures { get; init; }
    /// <summary>Device status.</summary>
    public VirtioStatus Status { get; init; }
    /// <summary>Configuration generation.</summary>
    public byte ConfigGeneration { get; init; }
    /// <summary>The queues.</summary>
    public VirtqueueSavedState[] Queues { get; init; } = [];
}
