using System.Buffers.Binary;
using System.Globalization;
using Aerostat.Chipset;
using Aerostat.Devices;
using Aerostat.Interrupts;
using Aerostat.Memory;

namespace Aerostat.VMware.Tests;

/// <summary>The communication interface by a driver of our own that does what Linux's does.</summary>
public sealed class VmciTests : IDisposable
{
    private const uint Status = 0, Control = 4, Cause = 8, Mask = 12, DataOut = 16, DataIn = 20, Capabilities = 24, Result = 28;
    private const uint Query = 0, GetContext = 1, SetBitmap = 2, Link = 3, Unlink = 4;
    private const uint Notification = 2, Page = 5;
    private const int Senseless = -2, NoSuchResource = -1, NotFound = -21;
    private const ulong WindowBase = 0xC000_0000;

    private readonly GuestMemory memory = new(new MemoryRegion(new(0), 4 * World.MiB, "low"));
    private readonly Line pin = new();
    private readonly Sent messages = new();
    private readonly VmciDevice device;
    private readonly IMmioDevice window;

    public VmciTests() => (device, window) = Create();

    public void Dispose() => memory.Dispose();

    private (VmciDevice Device, IMmioDevice Window) Create()
    {
        PciMemorySpace space = new();
        IMmioDevice opened = space.OpenWindow(WindowBase, 0x100_0000);
        VmciDevice made = new(memory, space, messages, pin);
        PciEndpoint.Assign([made], space);
        made.WriteConfig(4, 2, 6);
        return (made, opened);
    }

    private static uint Load(VmciDevice device, IMmioDevice window, uint offset, int size = 4) => (uint)window.ReadMmio((device.ReadConfig(0x10, 4) & ~15U) - WindowBase + offset, size);

    private uint Load(uint offset, int size = 4) => Load(device, window, offset, size);

    private void Store(uint offset, uint value, int size = 4) => window.WriteMmio((device.ReadConfig(0x10, 4) & ~15U) - WindowBase + offset, size, value);

    private static byte[] Datagram(uint context, uint resource, params byte[] body)
    {
        byte[] bytes = new byte[24 + body.Length];
        BinaryPrimitives.WriteUInt32LittleEndian(bytes, context);
        BinaryPrimitives.WriteUInt32LittleEndian(bytes.AsSpan(4), resource);
        bytes.AsSpan(8, 8).Fill(0xFF);
        BinaryPrimitives.WriteUInt64LittleEndian(bytes.AsSpan(16), (ulong)body.Length);
        body.CopyTo(bytes, 24);
        return bytes;
    }

    private static byte[] Words(params ulong[] words) => [.. words.SelectMany(BitConverter.GetBytes)];

    private static ulong Handle(uint resource, uint context = VmciDevice.ContextId) => (ulong)resource << 32 | context;

    private int Send(uint resource, params byte[] body)
    {
        foreach (byte b in Datagram(0, resource, body))
            Store(DataOut, b, 1);
        return (int)Load(Result);
    }

    /// <summary>What Linux's driver does when it is loaded.</summary>
    private void Start()
    {
        Store(Capabilities, Load(Capabilities) & 0x1C);
        Assert.Equal(0, Send(SetBitmap, Words(Page)));
        Assert.Equal(1, Send(Query, Words(1, GetContext)[..12]));
        Store(Mask, 3);
        Store(Control, 2);
    }

    private byte Byte(int index) => memory.Read<byte>(new GuestAddress(((ulong)Page << 12) + (ulong)index));

    [Fact]
    public void ADriverFindsWhatItNeeds()
    {
        Assert.Equal((0x0740_15ADU, 0x1CU), (device.ReadConfig(0, 4), Load(Capabilities)));
        // A second register of 256 KiB would mean DMA datagrams to it.
        device.WriteConfig(0x14, 4, uint.MaxValue);
        Assert.NotEqual(~(256U << 10) + 1, device.ReadConfig(0x14, 4));
        Start();
        Assert.Equal((int)VmciDevice.ContextId, Send(GetContext));
        // No datagram waits for it: the first is to nobody.
        Assert.Equal((0xFFU, uint.MaxValue), (Load(DataIn, 1), Load(DataIn)));
        Assert.Equal(NoSuchResource, Send(10, new byte[64]));
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void TheBalloonRings(bool vectors)
    {
        VmwareBalloon balloon = new(memory, new ManualClock(), vmci: device);
        uint Command(uint command, ulong first, ulong second)
        {
            ulong[] registers = [World.BalloonMagic, command, 0, first, 0, 0, second, 0];
            Assert.True(balloon.Call(registers));
            return command == 0 ? (uint)registers[1] : (uint)registers[0];
        }
        // Before there is a doorbell, and before the balloon has a driver.
        balloon.SetTarget(World.MiB);
        if (vectors)
        {
            // MSI-X on, and the second vector not masked.
            uint capability = device.ReadConfig(0x34, 1), table = (device.ReadConfig(0x14, 4) & ~15U) - (uint)WindowBase;
            window.WriteMmio(table + 16, 4, 0xFEE0_0000);
            window.WriteMmio(table + 16 + 8, 4, 0x55);
            window.WriteMmio(table + 16 + 12, 4, 0);
            device.WriteConfig((int)capability + 2, 2, 0x8000);
        }
        Start();
        Assert.Equal(0, Send(Link, Words(Handle(7), 3)));
        Assert.Equal(0x3EU, Command(0, 0x3E, 0));
        Assert.Equal(0U, Command(10, VmciDevice.ContextId, 7));
        Assert.Equal((0, 0), (Byte(3), pin.Changes + messages.Count));

        balloon.SetTarget(2 * World.MiB);
        Assert.Equal((1, 0), (Byte(3), Byte(2)));
        if (vectors)
        {
            Assert.Equal((1, 0), (messages.Count, pin.Changes));
        }
        else
        {
            Assert.Equal((true, 0, 1U), (pin.Level, messages.Count, Load(Status)));
            Assert.Equal((Notification, 0U), (Load(Cause), Load(Cause)));
            Assert.False(pin.Level);
        }
        memory.Write(new GuestAddress(((ulong)Page << 12) + 3), (byte)0);
        balloon.RequestReset();
        Assert.Equal(1, Byte(3));

        // A driver that goes takes its doorbell along, and a new one has none yet.
        memory.Write(new GuestAddress(((ulong)Page << 12) + 3), (byte)0);
        Assert.Equal(0, Send(Unlink, Words(Handle(7))));
        balloon.SetTarget(0);
        Assert.Equal(0, Send(Link, Words(Handle(7), 3)));
        Assert.Equal(0x3EU, Command(0, 0x3E, 0));
        balloon.SetTarget(World.MiB);
        Assert.Equal(0, Byte(3));
    }

    [Fact]
    public void WithoutADeviceThereIsNoDoorbell()
    {
        VmwareBalloon balloon = new(memory, new ManualClock());
        ulong[] registers = [World.BalloonMagic, 0, 0, 0x3E, 0, 0, 0, 0];
        Assert.True(balloon.Call(registers));
        Assert.Equal(0x2EUL, registers[1]);
    }

    [Fact]
    public void SenselessRequestsAreRefused()
    {
        Start();
        Assert.Equal(Senseless, Send(SetBitmap, Words(4 * World.MiB >> 12)));
        Assert.Equal(Senseless, Send(SetBitmap, Words(ulong.MaxValue)));
        Assert.Equal(Senseless, Send(SetBitmap, 1, 2, 3));
        Assert.Equal(Senseless, Send(Link, Words(Handle(1), VmciDevice.MaxDoorbells)));
        Assert.Equal(Senseless, Send(Link, Words(Handle(1, context: 17), 0)));
        Assert.Equal(Senseless, Send(Link, Words(Handle(1))));
        Assert.Equal(NotFound, Send(Unlink, Words(Handle(1))));
        Assert.Equal(0, Send(Query));
        foreach (byte b in Datagram(2, GetContext))
            Store(DataOut, b, 1);
        Assert.Equal(NoSuchResource, (int)Load(Result));
        // One that is too long is gone when its last byte has come, and the next is served.
        Assert.Equal(Senseless, Send(Query, new byte[70_000]));
        Assert.Equal((int)VmciDevice.ContextId, Send(GetContext));
        // As many doorbells as there are bytes; each may be named again.
        for (uint i = 0; i < VmciDevice.MaxDoorbells; i++)
            Assert.Equal(0, Send(Link, Words(Handle(i), i)));
        Assert.Equal(-19, Send(Link, Words(Handle(VmciDevice.MaxDoorbells), 0)));
        Assert.Equal(0, Send(Link, Words(Handle(9), 10)));
        Assert.True(device.Ring(VmciDevice.ContextId, 9));
        Assert.Equal((0, 1), (Byte(9), Byte(10)));
        Store(Control, 1);
        Assert.False(device.Ring(VmciDevice.ContextId, 9));
    }

    /// <summary>Saved in the middle of a datagram, with doorbells, and one rung.</summary>
    [Fact]
    public void ItGoesOnWhereItWas()
    {
        Start();
        Assert.Equal(0, Send(Link, Words(Handle(7), 3)));
        Assert.True(device.Ring(VmciDevice.ContextId, 7));
        byte[] datagram = Datagram(0, Link, Words(Handle(8), 4));
        foreach (byte b in datagram[..29])
            Store(DataOut, b, 1);
        VmciSavedState state = device.Save();
        (VmciDevice copy, IMmioDevice opened) = Create();
        copy.Restore(state);
        ulong registers = (copy.ReadConfig(0x10, 4) & ~15U) - WindowBase;
        foreach (byte b in datagram[29..])
            opened.WriteMmio(registers + DataOut, 1, b);
        Assert.Equal((0, Notification), ((int)Load(copy, opened, Result), Load(copy, opened, Cause)));
        memory.Write(new GuestAddress((ulong)Page << 12), 0UL);
        Assert.True(copy.Ring(VmciDevice.ContextId, 7) && copy.Ring(VmciDevice.ContextId, 8));
        Assert.Equal((1, 1), (Byte(3), Byte(4)));
    }

    /// <summary>Noise in all registers; a driver is served afterwards.</summary>
    [Fact]
    public void NoiseDoesNoHarm()
    {
        foreach (string line in CaseStore.Lines("vmci"))
            Noise(int.Parse(line, CultureInfo.InvariantCulture));
        double seconds = double.TryParse(Environment.GetEnvironmentVariable("AEROSTAT_FUZZ_SECONDS"), CultureInfo.InvariantCulture, out double wanted) ? wanted : 0;
        DateTime end = DateTime.UtcNow.AddSeconds(seconds);
        for (int seed = 0; seed < 50 || DateTime.UtcNow < end; seed++)
        {
            try
            {
                Noise(seed);
            }
            catch (Exception e)
            {
                Assert.Fail($"seed {seed}: {CaseStore.Save("vmci", $"{seed}", e.Message)}\n{e}");
            }
        }
    }

    private void Noise(int seed)
    {
        Random random = new(seed);
        for (int i = 0; i < 400; i++)
        {
            switch (random.Next(6))
            {
                case 0:
                    byte[] body = new byte[random.Next(80)];
                    random.NextBytes(body);
                    foreach (byte b in Datagram(0, (uint)random.Next(6), random.Next(2) == 0 ? body : Words(Handle((uint)random.Next(4)), (ulong)random.Next(5000))))
                        Store(DataOut, b, 1);
                    break;
                case 1:
                    Store((uint)random.Next(0x40), (uint)random.Next(), 1 << random.Next(4));
                    break;
                case 2:
                    Load((uint)random.Next(0x1000), 1 << random.Next(4));
                    break;
                case 3:
                    device.Ring(VmciDevice.ContextId, (uint)random.Next(4));
                    break;
                case 4:
                    // Not where its registers are.
                    device.WriteConfig(random.Next(0x28, 0x100) & ~3, 4, (uint)random.Next());
                    break;
                default:
                    device.Restore(device.Save());
                    break;
            }
        }
        Store(Control, 1);
        Start();
        Assert.Equal(0, Send(Link, Words(Handle(7), 3)));
        memory.Write(new GuestAddress((ulong)Page << 12), 0UL);
        Assert.True(device.Ring(VmciDevice.ContextId, 7));
        Assert.Equal(1, Byte(3));
    }

    private sealed class Line : IInterruptLine
    {
        public bool Level { get; private set; }

        public int Changes { get; private set; }

        public void Set(bool level)
        {
            Level = level;
            Changes++;
        }
    }

    private sealed class Sent : IMessageInterrupts
    {
        public int Count { get; private set; }

        public void Send(ulong address, uint data) => Count++;
    }
}
