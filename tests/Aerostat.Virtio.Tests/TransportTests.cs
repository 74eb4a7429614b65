using Aerostat.Chipset;
using Aerostat.Devices;
using Aerostat.Memory;

namespace Aerostat.Virtio.Tests;

/// <summary>Status, features, configuration and resets, through memory-mapped registers and through PCI.</summary>
public sealed class TransportTests : IDisposable
{
    private const ulong WindowBase = 0xC000_0000, Data = 0x40_0000;
    private const uint Command = 0x04, NoVector = 0xFFFF;

    private readonly GuestMemory _memory = new(new MemoryRegion(new(0), 16 << 20, "low"));
    private readonly ListLog _log = new();
    private readonly EchoDevice _device;

    public TransportTests() => _device = new EchoDevice(new VirtioContext(_memory, _log));

    public void Dispose()
    {
        _device.Stop();
        _memory.Dispose();
    }

    [Fact]
    public void OnlyModernDriversGetFeaturesOk()
    {
        Driver driver = new(_memory, _device);
        Assert.Equal(VirtioFeatures.Common | VirtioFeatures.RingPacked, driver.Offered);
        Assert.False(driver.Negotiate(0));
        Assert.False(driver.Negotiate(VirtioFeatures.EventIndex));
        Assert.False(driver.Negotiate(VirtioFeatures.Version1 | 1));
        Assert.True(driver.Negotiate(VirtioFeatures.Version1));
        // What was agreed on stays.
        driver.Write(0x24, 0);
        driver.Write(0x20, uint.MaxValue);
        Assert.Equal(VirtioFeatures.Version1, _device.Features);
    }

    [Fact]
    public void StatusBitsAreOnlyAdded()
    {
        Driver driver = new(_memory, _device);
        driver.Write(0x70, 4);
        Assert.Equal(VirtioStatus.None, driver.Status);
        driver.Negotiate(VirtioFeatures.Version1);
        driver.Write(0x70, 0x40 | 1);
        Assert.Equal((VirtioStatus)11, driver.Status);
        driver.Write(0x70, 0x80);
        Assert.Equal((VirtioStatus)0x8B, driver.Status);
        driver.Write(0x70, 0);
        Assert.Equal(VirtioStatus.None, driver.Status);
        Assert.Equal(0UL, _device.Features);
    }

    [Fact]
    public void BuffersBeforeDriverOkAreServedWithIt()
    {
        Driver driver = new Driver(_memory, _device).Start(ok: false);
        driver.Queues[1].Add(new Buffer(Data, 4, false), new Buffer(Data + 8, 4, true));
        driver.Queues[1].Kick();
        driver.Settle();
        Assert.Null(driver.Queues[1].TakeUsed());
        driver.SetDriverOk();
        driver.Settle();
        Assert.Equal(4u, driver.Queues[1].MustTakeUsed().Written);
    }

    [Fact]
    public void AQueueMustBeWhereMemoryIs()
    {
        foreach ((uint register, uint value) in ((uint, uint)[])[(0x84, 1), (0x80, 8), (0x90, 1), (0xA0, 2), (0x94, 0xFFFFFFFF), (0xA4, 0x10000), (0x38, 0), (0x38, 3), (0x38, 128), (0x38, 0x10040)])
        {
            Driver driver = new(_memory, _device);
            Assert.True(driver.Negotiate(VirtioFeatures.Version1));
            driver.Write(0x30, 0);
            driver.Write(0x38, 16);
            driver.Write(0x80, 0x10000);
            driver.Write(0x90, 0x20000);
            driver.Write(0xA0, 0x30000);
            driver.Write(register, value);
            driver.Write(0x44, 1);
            Assert.True((driver.Status & VirtioStatus.NeedsReset) != 0, $"{register:x} = {value:x}");
            Assert.Equal(0u, driver.Read(0x44));
        }
    }

    [Fact]
    public void TheGenerationFollowsTheConfiguration()
    {
        Driver driver = new Driver(_memory, _device).Start();
        uint before = driver.Read(0xFC);
        _device.ChangeConfig(0x5A);
        Assert.NotEqual(before, driver.Read(0xFC));
        Assert.Equal(2u, driver.Read(0x60));
        Assert.Equal(0x5AUL, driver.Registers.ReadMmio(0x100, 1));
        driver.Registers.WriteMmio(0x104, 4, 0x11223344);
        Assert.Equal(0x11223344_0000005AUL, driver.Registers.ReadMmio(0x100, 8));
        driver.Registers.WriteMmio(0x106, 4, 0xFFFFFFFF);
        driver.Registers.WriteMmio(0x200, 8, ulong.MaxValue);
        Assert.Equal(0x1122UL, driver.Registers.ReadMmio(0x106, 4));
        Assert.Equal(0UL, driver.Registers.ReadMmio(0x108, 8));
    }

    /// <summary>A reset that comes while a thread of the device works on a chain is done when the thread has finished, and not before.</summary>
    [Fact]
    public void AResetWaitsForWorkInHand()
    {
        Driver driver = new Driver(_memory, _device).Start();
        using SemaphoreSlim arrived = new(0), go = new(0);
        _device.Midway = () =>
        {
            arrived.Release();
            go.Wait();
        };
        driver.Queues[0].Add(new Buffer(Data, 4, false), new Buffer(Data + 8, 4, true));
        driver.Queues[0].Kick();
        arrived.Wait(TestContext.Current.CancellationToken);
        driver.Write(0x70, 0);
        Assert.NotEqual(VirtioStatus.None, driver.Status);
        // Nothing can be set up meanwhile.
        driver.Write(0x70, 3);
        driver.Write(0x30, 0);
        driver.Write(0x44, 1);
        int resets = _device.Resets;
        go.Release();
        driver.Settle();
        Assert.Equal(VirtioStatus.None, driver.Status);
        Assert.Equal(resets + 1, _device.Resets);
        Assert.Null(driver.Queues[0].TakeUsed());
        Assert.False(driver.Line.Level);
    }

    [Fact]
    public void OneQueueIsResetAlone()
    {
        const ulong Features = VirtioFeatures.Version1 | VirtioFeatures.RingReset;
        Driver driver = new Driver(_memory, _device).Start(Features);
        using SemaphoreSlim arrived = new(0), go = new(0);
        _device.Midway = () =>
        {
            arrived.Release();
            go.Wait();
        };
        driver.Queues[1].Add(new Buffer(Data, 4, false), new Buffer(Data + 8, 4, true));
        driver.Queues[1].Kick();
        arrived.Wait(TestContext.Current.CancellationToken);
        driver.Write(0x30, 1);
        driver.Write(0xC0, 1);
        Assert.Equal(1u, driver.Read(0xC0));
        go.Release();
        driver.Settle();
        _device.Midway = null;
        Assert.Equal(0u, driver.Read(0xC0));
        Assert.Equal(0u, driver.Read(0x44));
        Assert.Null(driver.Queues[1].TakeUsed());
        Assert.Equal((VirtioStatus)15, driver.Status);
        driver.EnableQueue(1, Features, 8);
        driver.Queues[1].Add(new Buffer(Data, 4, false), new Buffer(Data + 8, 4, true));
        driver.Queues[1].Kick();
        driver.Settle();
        Assert.Equal(4u, driver.Queues[1].MustTakeUsed().Written);
    }

    // --- PCI ---

    private sealed class Machine
    {
        public Machine(VirtioDevice device)
        {
            Window = Space.OpenWindow(WindowBase, 0x100_0000);
            Function = new VirtioPci(device, Space, Messages, Pin);
            Bus.Attach(1, 0, Function);
            Ecam = new PciEcamWindow(Bus);
            PciEndpoint.Assign([Function], Space);
            Write(Command, 2, 6);
        }

        public PciBus Bus { get; } = new();

        public PciMemorySpace Space { get; } = new();

        public CountingMessages Messages { get; } = new();

        public CountingLine Pin { get; } = new();

        public VirtioPci Function { get; }

        public PciEcamWindow Ecam { get; }

        public IMmioDevice Window { get; }

        public uint Read(uint offset, int size = 4) => (uint)Ecam.ReadMmio((1 << 15) + offset, size);

        public void Write(uint offset, int size, uint value) => Ecam.WriteMmio((1 << 15) + offset, size, value);

        public ulong Bar(int index) => Read(0x10 + (4 * (uint)index)) & ~15u;

        public uint Load(int bar, uint offset, int size = 4) => (uint)Window.ReadMmio(Bar(bar) - WindowBase + offset, size);

        public void Store(int bar, uint offset, int size, uint value) => Window.WriteMmio(Bar(bar) - WindowBase + offset, size, value);

        /// <summary>Offset of the capability of an id, and of a virtio type.</summary>
        public uint Capability(byte id, byte? type = null)
        {
            for (uint at = Read(0x34, 1); at != 0; at = Read(at + 1, 1))
                if (Read(at, 1) == id && (type is null || Read(at + 3, 1) == type))
                    return at;
            throw new InvalidOperationException($"no capability {id:x}");
        }

        public uint RegionOf(byte type) => Read(Capability(9, type) + 8);
    }

    [Fact]
    public void PciSaysWhatItIs()
    {
        Machine machine = new(_device);
        Assert.Equal(0x1044_1AF4u, machine.Read(0));
        Assert.Equal(0x00FF_0001u, machine.Read(8));
        Assert.Equal(0x10u, machine.Read(6, 2));
        Assert.Equal(1u, machine.Read(0x3D, 1));
        Assert.Equal([1, 2, 3, 4, 5], ((byte[])[1, 2, 3, 4, 5]).Where(t => machine.Capability(9, t) != 0));
        Assert.Equal(2u, machine.Load(0, machine.RegionOf(1) + 0x12, 2));
        Assert.Equal(0u, machine.Read(0x100));
        // Read-only registers stay.
        machine.Write(0, 4, 0);
        machine.Write(0x34, 4, 0xFF);
        Assert.Equal(0x1044_1AF4u, machine.Read(0));
        Assert.Equal(0x40u, machine.Read(0x34, 1));
    }

    [Fact]
    public void RegistersAreSizedAndMoved()
    {
        Machine machine = new(_device);
        ulong first = machine.Bar(0);
        Assert.Equal(64u, machine.Load(0, 0x18, 2));
        machine.Write(0x10, 4, uint.MaxValue);
        Assert.Equal(0xFFFF_C000u, machine.Read(0x10));
        // It decodes outside of any window now.
        Assert.Equal(0xFFFFUL, machine.Window.ReadMmio(first - WindowBase + 0x18, 2));
        machine.Write(0x10, 4, (uint)WindowBase + 0x80_0000);
        Assert.Equal(64UL, machine.Window.ReadMmio(0x80_0018, 2));
        Assert.Equal(0xFFFFUL, machine.Window.ReadMmio(first - WindowBase + 0x18, 2));
        machine.Write(Command, 2, 4);
        Assert.Equal(0xFFFFUL, machine.Window.ReadMmio(0x80_0018, 2));
        machine.Write(Command, 2, 6);
        Assert.Equal(64UL, machine.Window.ReadMmio(0x80_0018, 2));
        // On top of guest memory it does not answer: the bus never asks there.
        machine.Write(0x10, 4, 0);
        Assert.DoesNotContain(machine.Space.Map, m => m.First == 0);
        for (uint bar = 2; bar < 6; bar++)
        {
            machine.Write(0x10 + (4 * bar), 4, uint.MaxValue);
            Assert.Equal(0u, machine.Read(0x10 + (4 * bar)));
        }
    }

    [Fact]
    public void MessagesAreMaskedAndRemembered()
    {
        Machine machine = new(_device);
        Driver driver = Start(machine);
        uint msix = machine.Capability(0x11), common = machine.RegionOf(1);
        Assert.Equal(2u, machine.Read(msix + 2, 2));
        machine.Write(msix + 2, 2, 0x8000);
        for (uint vector = 0; vector < 3; vector++)
        {
            machine.Store(1, vector * 16, 4, 0xFEE0_0000 + (vector << 12));
            machine.Store(1, (vector * 16) + 8, 4, 0x40 + vector);
        }
        machine.Store(0, common + 0x10, 2, 2);
        machine.Store(0, common + 0x16, 2, 1);
        machine.Store(0, common + 0x1A, 2, 1);
        Assert.Equal(1u, machine.Load(0, common + 0x1A, 2));
        machine.Store(0, common + 0x1A, 2, 3);
        Assert.Equal(NoVector, machine.Load(0, common + 0x1A, 2));
        machine.Store(0, common + 0x1A, 2, 1);
        // Masked after reset: pending.
        machine.Function.RaiseQueue(1);
        Assert.Empty(machine.Messages.Sent);
        Assert.Equal(2u, machine.Load(1, MsixTable.PendingOffset));
        machine.Store(1, 16 + 12, 4, 0);
        Assert.Equal([(0xFEE0_1000UL, 0x41u)], machine.Messages.Sent);
        Assert.Equal(0u, machine.Load(1, MsixTable.PendingOffset));
        machine.Function.RaiseQueue(1);
        Assert.Equal(2, machine.Messages.Sent.Length);
        // The function's mask, then bus mastering.
        machine.Store(1, 32 + 12, 4, 0);
        machine.Write(msix + 2, 2, 0xC000);
        machine.Function.RaiseConfiguration();
        machine.Function.RaiseConfiguration();
        Assert.Equal(2, machine.Messages.Sent.Length);
        machine.Write(Command, 2, 2);
        machine.Write(msix + 2, 2, 0x8000);
        Assert.Equal(2, machine.Messages.Sent.Length);
        machine.Write(Command, 2, 6);
        Assert.Equal(3, machine.Messages.Sent.Length);
        // A queue without a vector is silent, and so is the pin.
        machine.Function.RaiseQueue(0);
        Assert.Equal(3, machine.Messages.Sent.Length);
        Assert.Equal(0, machine.Pin.Edges);
        // The driver's reset forgets vectors.
        machine.Store(0, common + 0x14, 1, 0);
        Assert.Equal(NoVector, machine.Load(0, common + 0x10, 2));
        Assert.NotNull(driver);
    }

    [Fact]
    public void WithoutMessagesThePinSpeaks()
    {
        Machine machine = new(_device);
        Driver driver = Start(machine);
        _device.Interrupts = machine.Function;
        driver.Queues[0].Add(new Buffer(Data, 4, false), new Buffer(Data + 8, 4, true));
        machine.Store(0, machine.RegionOf(2), 2, 0);
        driver.Settle();
        Assert.Equal(4u, driver.Queues[0].MustTakeUsed().Written);
        Assert.True(machine.Pin.Level);
        Assert.Equal(0x18u, machine.Read(6, 2));
        _device.ChangeConfig(1);
        machine.Write(Command, 2, 0x406);
        Assert.False(machine.Pin.Level);
        machine.Write(Command, 2, 6);
        Assert.True(machine.Pin.Level);
        Assert.Equal(3u, machine.Load(0, machine.RegionOf(3), 1));
        Assert.False(machine.Pin.Level);
        Assert.Equal(0u, machine.Load(0, machine.RegionOf(3), 1));
    }

    [Fact]
    public void TheAccessWindowReachesAllRegisters()
    {
        Machine machine = new(_device);
        uint cap = machine.Capability(9, 5), common = machine.RegionOf(1);
        machine.Write(cap + 4, 1, 0);
        machine.Write(cap + 8, 4, common + 0x12);
        machine.Write(cap + 12, 4, 2);
        Assert.Equal(2u, machine.Read(cap + 16, 2));
        machine.Write(cap + 8, 4, common + 0x14);
        machine.Write(cap + 12, 4, 1);
        machine.Write(cap + 16, 1, 3);
        Assert.Equal(3u, machine.Load(0, common + 0x14, 1));
        // Nonsense reads as something, and does nothing.
        foreach ((uint bar, uint offset, uint length) in ((uint, uint, uint)[])[(1, 0, 4), (5, 0, 4), (255, 0, 4), (0, 0xFFFF_FFFC, 4), (0, 2, 4), (0, 0, 3), (0, 0, uint.MaxValue), (0, 0, 0)])
        {
            machine.Write(cap + 4, 1, bar);
            machine.Write(cap + 8, 4, offset);
            machine.Write(cap + 12, 4, length);
            machine.Write(cap + 16, 4, 0);
            machine.Read(cap + 16);
        }
        Assert.Equal(3u, machine.Load(0, common + 0x14, 1));
    }

    [Fact]
    public void APciFunctionIsSavedAndRestored()
    {
        Machine machine = new(_device);
        Start(machine);
        uint msix = machine.Capability(0x11);
        machine.Write(msix + 2, 2, 0x8000);
        machine.Store(1, 0, 4, 0xFEE0_5000);
        machine.Store(1, 8, 4, 0x77);
        machine.Store(0, machine.RegionOf(1) + 0x10, 2, 0);
        machine.Function.RaiseConfiguration();
        machine.Write(0x10, 4, (uint)WindowBase + 0x40_0000);
        string state = System.Text.Json.JsonSerializer.Serialize(machine.Function.Save());
        EchoDevice device = new(new VirtioContext(_memory));
        Machine other = new(device);
        other.Function.Restore(System.Text.Json.JsonSerializer.Deserialize<VirtioPciSavedState>(state)!);
        Assert.Equal(state, System.Text.Json.JsonSerializer.Serialize(other.Function.Save()));
        Assert.Equal(WindowBase + 0x40_0000, other.Bar(0));
        other.Store(1, 12, 4, 0);
        Assert.Equal([(0xFEE0_5000UL, 0x77u)], other.Messages.Sent);
    }

    // Queues and DRIVER_OK by the memory-mapped registers, which are shorter to write; interrupts go to PCI afterwards.
    private Driver Start(Machine machine)
    {
        Driver driver = new Driver(_memory, _device).Start();
        _device.Interrupts = machine.Function;
        return driver;
    }
}
