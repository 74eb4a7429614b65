using Aerostat.Interrupts;
using Aerostat.Memory;

namespace Aerostat.Virtio.Tests;

/// <summary>A buffer that a driver offers.</summary>
internal readonly record struct Buffer(ulong Address, uint Length, bool Writable);

/// <summary>An interrupt line that counts.</summary>
internal sealed class CountingLine : IInterruptLine
{
    private int _edges;

    public bool Level { get; private set; }

    public int Edges => Volatile.Read(ref _edges);

    public void Set(bool asserted)
    {
        if (asserted && !Level)
            Interlocked.Increment(ref _edges);
        Level = asserted;
    }
}

/// <summary>Interrupt messages that were sent.</summary>
internal sealed class CountingMessages : IMessageInterrupts
{
    private readonly List<(ulong Address, uint Data)> _sent = [];

    public (ulong Address, uint Data)[] Sent
    {
        get
        {
            lock (_sent)
                return [.. _sent];
        }
    }

    public void Send(ulong address, uint data)
    {
        lock (_sent)
            _sent.Add((address, data));
    }
}

/// <summary>What devices complained of.</summary>
internal sealed class ListLog : Aerostat.Devices.IDeviceLog
{
    public List<string> Lines { get; } = [];

    public void Warn(string device, string message)
    {
        lock (Lines)
            Lines.Add($"{device}: {message}");
    }
}

/// <summary>
/// The driver's side of a device behind memory-mapped registers, and of its rings, written from the specification: a second opinion on both.
/// Rings are placed from <see cref="RingArea"/> on, 64 KiB each.
/// </summary>
internal sealed class Driver
{
    public const ulong RingArea = 0x10_0000, RingStride = 0x1_0000;

    private readonly VirtioMmio _registers;

    public Driver(GuestMemory memory, VirtioDevice device)
    {
        Memory = memory;
        Device = device;
        _registers = new VirtioMmio(device, Line);
        device.Resume();
    }

    public GuestMemory Memory { get; }

    public VirtioDevice Device { get; }

    public CountingLine Line { get; } = new();

    public DriverQueue[] Queues { get; private set; } = [];

    public uint Read(uint offset) => (uint)_registers.ReadMmio(offset, 4);

    public void Write(uint offset, uint value) => _registers.WriteMmio(offset, 4, value);

    public VirtioMmio Registers => _registers;

    public VirtioStatus Status => (VirtioStatus)Read(0x70);

    public ulong Offered
    {
        get
        {
            Write(0x14, 0);
            ulong low = Read(0x10);
            Write(0x14, 1);
            return low | ((ulong)Read(0x10) << 32);
        }
    }

    /// <summary>Resets and negotiates; answers whether FEATURES_OK stays.</summary>
    public bool Negotiate(ulong features)
    {
        Write(0x70, 0);
        Write(0x70, (uint)(VirtioStatus.Acknowledge | VirtioStatus.Driver));
        Write(0x24, 0);
        Write(0x20, (uint)features);
        Write(0x24, 1);
        Write(0x20, (uint)(features >> 32));
        Write(0x70, (uint)(VirtioStatus.Acknowledge | VirtioStatus.Driver | VirtioStatus.FeaturesOk));
        return (Status & VirtioStatus.FeaturesOk) != 0;
    }

    /// <summary>All of the start-up: features, queues, DRIVER_OK.</summary>
    public Driver Start(ulong features = VirtioFeatures.Version1, ushort size = 16, bool ok = true)
    {
        Assert.True(Negotiate(features | VirtioFeatures.Version1));
        Queues = new DriverQueue[Device.Queues.Count];
        for (int i = 0; i < Queues.Length; i++)
            EnableQueue(i, features, size);
        if (ok)
            SetDriverOk();
        return this;
    }

    public void SetDriverOk() => Write(0x70, (uint)(Status | VirtioStatus.DriverOk));

    public void EnableQueue(int index, ulong features, ushort size)
    {
        Write(0x30, (uint)index);
        size = (ushort)Math.Min(size, Read(0x34));
        DriverQueue queue = new(this, index, size, (features & VirtioFeatures.RingPacked) != 0, (features & VirtioFeatures.EventIndex) != 0);
        Queues[index] = queue;
        Write(0x38, size);
        Write(0x80, (uint)queue.Descriptors);
        Write(0x84, 0);
        Write(0x90, (uint)queue.DriverArea);
        Write(0x94, 0);
        Write(0xA0, (uint)queue.DeviceArea);
        Write(0xA4, 0);
        Write(0x44, 1);
    }

    /// <summary>Lets the device do everything there is.</summary>
    public void Settle() => Device.WaitUntilIdle();

    public void Fill(ulong address, ReadOnlySpan<byte> bytes) => Memory.Write(new GuestAddress(address), bytes);

    public byte[] Bytes(ulong address, int length)
    {
        byte[] bytes = new byte[length];
        Assert.True(Memory.TryRead(new GuestAddress(address), bytes));
        return bytes;
    }
}

/// <summary>The driver's side of one ring, split or packed.</summary>
internal sealed class DriverQueue
{
    private const ushort Next = 1, Write = 2, Indirect = 4, Available = 1 << 7, UsedFlag = 1 << 15;

    private readonly Driver _driver;
    private readonly bool _packed, _events;
    private readonly Stack<ushort> _free = new();
    private readonly Dictionary<ushort, int> _lengths = [];
    private ushort _available, _used;
    private bool _availableWrap = true, _usedWrap = true;
    private uint _nextTable;

    public DriverQueue(Driver driver, int index, ushort size, bool packed, bool events)
    {
        _driver = driver;
        _packed = packed;
        _events = events;
        Index = index;
        Size = size;
        Descriptors = Driver.RingArea + ((ulong)index * Driver.RingStride);
        DriverArea = Descriptors + 0x4000;
        DeviceArea = Descriptors + 0x8000;
        driver.Memory.TryFill(new GuestAddress(Descriptors), Driver.RingStride, 0);
        for (int i = size - 1; i >= 0; i--)
            _free.Push((ushort)i);
    }

    public int Index { get; }

    public ushort Size { get; }

    /// <summary>Descriptors that no chain has.</summary>
    public int FreeDescriptors => _free.Count;

    public ulong Descriptors { get; }

    public ulong DriverArea { get; }

    public ulong DeviceArea { get; }

    private GuestMemory Memory => _driver.Memory;

    public void Kick() => _driver.Write(0x50, (uint)Index);

    /// <summary>The driver wants no interrupts at all, or one after <paramref name="more"/> further buffers.</summary>
    public void Suppress(int? more)
    {
        if (!_packed)
        {
            if (_events)
                Put(DriverArea + 4 + (2UL * Size), (ushort)(_used + (more is { } m ? m - 1 : Size * 2)));
            else
                Put(DriverArea, (ushort)(more is null ? 1 : 0));
            return;
        }
        if (more is { } n && _events)
        {
            int at = _used + n - 1;
            bool wrap = _usedWrap ^ (at >= Size);
            Put(DriverArea, (uint)((at % Size) | (wrap ? 0x8000 : 0) | (2 << 16)));
        }
        else
        {
            Put(DriverArea, more is null ? 1u << 16 : 0u);
        }
    }

    /// <summary>Makes a chain available; answers the id it will come back under.</summary>
    public ushort Add(params ReadOnlySpan<Buffer> buffers) => Add(false, buffers);

    /// <summary>As the other, through an indirect table if asked to.</summary>
    public ushort Add(bool indirect, params ReadOnlySpan<Buffer> buffers)
    {
        if (indirect)
        {
            ulong table = Descriptors + 0xC000 + (0x200UL * (_nextTable++ % 16));
            for (int i = 0; i < buffers.Length; i++)
                Put(table + (16UL * (uint)i), buffers[i], (ushort)(i + 1), i == buffers.Length - 1 || _packed ? (ushort)0 : Next);
            return AddDirect([new Buffer(table, (uint)(16 * buffers.Length), false)], Indirect);
        }
        return AddDirect(buffers, 0);
    }

    private ushort AddDirect(ReadOnlySpan<Buffer> buffers, ushort extra)
    {
        if (_packed)
        {
            ushort id = _free.Pop(), first = _available, firstFlags = 0;
            bool wrap = _availableWrap;
            ushort slot = first;
            for (int i = 0; i < buffers.Length; i++)
            {
                bool last = i == buffers.Length - 1;
                ushort flags = (ushort)((last ? 0 : Next) | (buffers[i].Writable ? Write : 0) | extra | (wrap ? Available : UsedFlag));
                ulong at = Descriptors + (16UL * slot);
                Put(at, buffers[i].Address);
                Put(at + 8, buffers[i].Length);
                Put(at + 12, id);
                if (i == 0)
                    firstFlags = flags;
                else
                    Put(at + 14, flags);
                if (++slot == Size)
                    (slot, wrap) = (0, !wrap);
            }
            Thread.MemoryBarrier();
            Put(Descriptors + (16UL * first) + 14, firstFlags);
            (_available, _availableWrap) = (slot, wrap);
            _lengths[id] = buffers.Length;
            return id;
        }
        ushort head = _free.Peek(), previous = 0;
        for (int i = 0; i < buffers.Length; i++)
        {
            ushort index = _free.Pop();
            Put(Descriptors + (16UL * index), buffers[i], 0, extra);
            if (i > 0)
            {
                Put(Descriptors + (16UL * previous) + 12, (ushort)(Get<ushort>(Descriptors + (16UL * previous) + 12) | Next));
                Put(Descriptors + (16UL * previous) + 14, index);
            }
            previous = index;
        }
        MakeAvailable(head);
        return head;
    }

    /// <summary>Split: names a head, right or wrong.</summary>
    public void MakeAvailable(ushort head)
    {
        Put(DriverArea + 4 + (2UL * (uint)(_available % Size)), head);
        Thread.MemoryBarrier();
        Put(DriverArea + 2, ++_available);
    }

    /// <summary>The next used buffer, or null.</summary>
    public (ushort Id, uint Written)? TakeUsed()
    {
        if (_packed)
        {
            ulong at = Descriptors + (16UL * _used);
            ushort flags = Get<ushort>(at + 14);
            if ((flags & Available) != 0 != _usedWrap || (flags & UsedFlag) != 0 != _usedWrap)
                return null;
            Thread.MemoryBarrier();
            ushort id = Get<ushort>(at + 12);
            uint written = Get<uint>(at + 8);
            _used += (ushort)_lengths[id];
            if (_used >= Size)
            {
                _used -= Size;
                _usedWrap = !_usedWrap;
            }
            _free.Push(id);
            return (id, written);
        }
        if (Get<ushort>(DeviceArea + 2) == _used)
            return null;
        Thread.MemoryBarrier();
        ulong entry = DeviceArea + 4 + (8UL * (uint)(_used++ % Size));
        ushort head = (ushort)Get<uint>(entry);
        for (ushort index = head; ;)
        {
            _free.Push(index);
            ushort flags = Get<ushort>(Descriptors + (16UL * index) + 12);
            if ((flags & Next) == 0)
                break;
            index = Get<ushort>(Descriptors + (16UL * index) + 14);
        }
        return (head, Get<uint>(entry + 4));
    }

    /// <summary>One buffer after the other must be there; answers them.</summary>
    public (ushort Id, uint Written) MustTakeUsed()
    {
        (ushort Id, uint Written)? used = TakeUsed();
        Assert.True(used is not null, "the device has not used the buffer");
        return used.Value;
    }

    private void Put(ulong at, Buffer buffer, ushort next, ushort extra)
    {
        Put(at, buffer.Address);
        Put(at + 8, buffer.Length);
        ushort flags = (ushort)(extra | (buffer.Writable ? Write : 0));
        Put(at + 12, _packed ? (ushort)0 : flags);
        Put(at + 14, _packed ? flags : next);
    }

    public void Put<T>(ulong at, T value)
        where T : unmanaged => Memory.Write(new GuestAddress(at), value);

    public T Get<T>(ulong at)
        where T : unmanaged => Memory.Read<T>(new GuestAddress(at));
}
