using System.Buffers.Binary;
using Aerostat.Chipset;
using Aerostat.Devices;
using Aerostat.Guest.Drivers;
using Aerostat.Interrupts;
using Aerostat.Memory;
using Aerostat.Virtio;

namespace Aerostat.Guest.Tests;

/// <summary>
/// What the guest's drivers run on in an ordinary process: memory of the host, the host's device models on a PCI bus, time that goes on with each look, and an
/// allocator that minds what a driver must not do (free what is not its own, touch memory that is not there).
/// </summary>
internal sealed class HostPlatform : DriverPlatform, IDeviceLog, IMessageInterrupts, IInterruptLine, IDisposable
{
    private const ulong WindowBase = 0xE000_0000;
    private const int MaxOrder = 10, FirstPage = 256;

    private readonly Dictionary<ulong, int> taken = [];
    private readonly HashSet<ulong> reported = [];
    private readonly bool[] used;
    private readonly PciBus bus = new();
    private readonly PciMemorySpace space = new();
    private readonly PciEcamWindow config;
    private readonly IMmioDevice window;
    private ulong now;
    private int interrupts;

    public HostPlatform(int memoryBytes = 64 << 20)
    {
        Memory = new GuestMemory(new MemoryRegion(new(0), (ulong)memoryBytes, "low"));
        used = new bool[memoryBytes / PageSize];
        Array.Fill(used, true, 0, FirstPage);
        window = space.OpenWindow(WindowBase, 0x100_0000);
        config = new PciEcamWindow(bus);
    }

    public GuestMemory Memory { get; }

    /// <summary>Called before each access that somebody else may come before: to device registers, ring indices, and the allocator.</summary>
    public Action? Step { get; set; }

    /// <summary>Called when a driver waits for its device; null: it looks again at once.</summary>
    public Action? Waiting { get; set; }

    public List<string> Lines { get; } = [];

    public int Interrupts => Volatile.Read(ref interrupts);

    /// <summary>Pages that drivers have.</summary>
    public int TakenPages => taken.Values.Sum(order => 1 << order);

    public override ulong TotalPages => (ulong)(used.Length - FirstPage);

    /// <summary>Whether a page is a driver's or a program's.</summary>
    public bool IsTaken(ulong page) => used[page];

    public override ulong FreePageCount => TotalPages - (ulong)TakenPages;

    public override uint PoisonPattern => 0;

    public override bool IsVmware => Vmware is not null;

    /// <summary>VMware's balloon in the machine, which is found by its backdoor.</summary>
    public VMware.VmwareBalloon? Vmware { get; set; }

    public override ulong Nanoseconds => now += 1000;

    /// <summary>Puts a device into a slot; what a driver sees of it.</summary>
    public PciFunction Attach(VirtioDevice device, byte slot = 1)
    {
        VirtioPci function = new(device, space, this, this);
        bus.Attach(slot, 0, function);
        PciEndpoint.Assign([function], space);
        // Devices stand still until their machine runs.
        device.Resume();
        return new PciFunction(this, (uint)slot << 3);
    }

    public override void Relax() => Waiting?.Invoke();

    public void Pass(TimeSpan time) => now += (ulong)time.TotalNanoseconds;

    public override ulong AllocatePages(int order)
    {
        Step?.Invoke();
        for (int at = Math.Max(FirstPage, 1 << order); at + (1 << order) <= used.Length; at += 1 << order)
            if (!used.AsSpan(at, 1 << order).Contains(true))
                return Take(at, order);
        return 0;
    }

    public override void FreePages(ulong address, int order)
    {
        Step?.Invoke();
        Release(address, order);
        // What the host was told of is told again once it has been used; which blocks that are does not matter here.
        reported.Clear();
    }

    private void Release(ulong address, int order)
    {
        if (!taken.Remove(address, out int was) || was != order)
            throw new InvalidOperationException($"a driver freed 0x{address:x}, order {order}, which it does not have");
        Array.Clear(used, (int)(address / PageSize), 1 << order);
    }

    public override uint ListFreeBlocks(int order, ulong to, uint most)
    {
        uint count = 0;
        for (int at = Math.Max(FirstPage, 1 << order); at + (1 << order) <= used.Length && count < most; at += 1 << order)
            if (!used.AsSpan(at, 1 << order).Contains(true))
                Write64(to + (8 * count++), (ulong)at * PageSize);
        return count;
    }

    public override ulong TakeUnreported(int leastOrder, out int order)
    {
        order = leastOrder;
        for (int at = Math.Max(FirstPage, 1 << order); at + (1 << order) <= used.Length; at += 1 << order)
            if (!used.AsSpan(at, 1 << order).Contains(true) && !reported.Contains((ulong)at))
                return Take(at, order);
        return 0;
    }

    public override void ReturnReported(ulong address, int order)
    {
        Release(address, order);
        reported.Add(address / PageSize);
    }

    public override uint Read(ulong address, int size)
    {
        // Ring indices are the only half words.
        if (size == 2)
            Step?.Invoke();
        Span<byte> bytes = stackalloc byte[4];
        bytes.Clear();
        if (!Memory.TryRead(new GuestAddress(address), bytes[..size]))
            throw new InvalidOperationException($"a driver read 0x{address:x}, which is no memory");
        return BinaryPrimitives.ReadUInt32LittleEndian(bytes);
    }

    public override void Write(ulong address, int size, uint value)
    {
        if (size == 2)
            Step?.Invoke();
        Span<byte> bytes = stackalloc byte[4];
        BinaryPrimitives.WriteUInt32LittleEndian(bytes, value);
        if (!Memory.TryWrite(new GuestAddress(address), bytes[..size]))
            throw new InvalidOperationException($"a driver wrote to 0x{address:x}, which is no memory");
    }

    public override ulong Read64(ulong address) => Read(address, 4) | ((ulong)Read(address + 4, 4) << 32);

    public override void Write64(ulong address, ulong value)
    {
        Write(address, 4, (uint)value);
        Write(address + 4, 4, (uint)(value >> 32));
    }

    public override void Fence() => Thread.MemoryBarrier();

    public override uint ReadRegister(ulong address, int size)
    {
        Step?.Invoke();
        return (uint)window.ReadMmio(address - WindowBase, size);
    }

    public override void WriteRegister(ulong address, int size, uint value)
    {
        Step?.Invoke();
        window.WriteMmio(address - WindowBase, size, value);
    }

    public override uint ReadPciConfig(uint function, int offset, int size) => (uint)config.ReadMmio((function << 12) + (uint)offset, size);

    public override void WritePciConfig(uint function, int offset, int size, uint value) => config.WriteMmio((function << 12) + (uint)offset, size, value);

    public override bool GetInterruptMessage(out ulong address, out uint data)
    {
        address = 0xFEE0_0000;
        data = 0x42;
        return true;
    }

    public override uint Call(ushort port, uint magic, uint command, ulong argument, ulong second, out ulong result, out ulong extra)
    {
        result = extra = 0;
        // Of the backdoor there is the one command that finds it: the version.
        if (Vmware is null || port != VMware.VmwareBalloon.Port)
        {
            result = Vmware is null ? 0 : magic;
            return Vmware is null ? uint.MaxValue : 6;
        }
        Step?.Invoke();
        ulong[] registers = [magic, command, 0, argument, 0, 0, second, 0];
        Vmware.Call(registers);
        (result, extra) = (registers[3], registers[1]);
        return (uint)registers[0];
    }

    public override void Log(string text, ulong number) => Lines.Add(number == ulong.MaxValue ? text : text + number);

    void IDeviceLog.Warn(string device, string message)
    {
        lock (Lines)
            Lines.Add($"{device}: {message}");
    }

    void IMessageInterrupts.Send(ulong address, uint data) => Interlocked.Increment(ref interrupts);

    void IInterruptLine.Set(bool asserted)
    {
    }

    public void Dispose() => Memory.Dispose();

    private ulong Take(int page, int order)
    {
        Array.Fill(used, true, page, 1 << order);
        ulong address = (ulong)page * PageSize;
        taken.Add(address, order);
        return address;
    }
}
