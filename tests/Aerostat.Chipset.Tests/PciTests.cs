namespace Aerostat.Chipset.Tests;

public sealed class PciTests
{
    private readonly PciBus _bus = new();
    private readonly PciConfigurationPorts _ports;
    private readonly PciEcamWindow _ecam;
    private readonly Register _device = new();

    public PciTests()
    {
        _ports = new PciConfigurationPorts(_bus);
        _ecam = new PciEcamWindow(_bus);
        _bus.Attach(0, 0, new PciHostBridge(0xE000_0000));
        _bus.Attach(3, 1, _device);
    }

    private void Select(int device, int function, int offset) =>
        _ports.WritePort(0xCF8, 4, 0x8000_0000u | (uint)(device << 11 | function << 8 | offset));

    [Fact]
    public void HostBridgeIsFound()
    {
        Select(0, 0, 0);
        Assert.Equal(0x29C08086u, _ports.ReadPort(0xCFC, 4));
        Assert.Equal(0x29C0u, _ports.ReadPort(0xCFE, 2));
        Select(0, 0, 8);
        Assert.Equal(0x0600u, _ports.ReadPort(0xCFE, 2));
        Select(0, 0, 0x60);
        Assert.Equal(0xE0000001u, _ports.ReadPort(0xCFC, 4));
        _ports.WritePort(0xCFC, 4, 0);
        Assert.Equal(0xE0000001u, _ports.ReadPort(0xCFC, 4));
        Select(0, 0, 4);
        _ports.WritePort(0xCFC, 2, 0xFFFF);
        Assert.Equal(0x0106u, _ports.ReadPort(0xCFC, 2));
    }

    [Fact]
    public void AbsentFunctionsReadAsOnes()
    {
        Select(5, 0, 0);
        Assert.Equal(uint.MaxValue, _ports.ReadPort(0xCFC, 4));
        Assert.Equal(0xFFu, _ports.ReadPort(0xCFD, 1));
        _ports.WritePort(0xCFC, 4, 1);
        _ports.WritePort(0xCF8, 4, 0x8001_0000);
        Assert.Equal(uint.MaxValue, _ports.ReadPort(0xCFC, 4));
        _ports.WritePort(0xCF8, 4, 0);
        Assert.Equal(0xFFFFu, _ports.ReadPort(0xCFC, 2));
        Assert.Equal(uint.MaxValue, _ecam.ReadMmio(0x100000, 4));
        Assert.Equal(ulong.MaxValue, _ecam.ReadMmio(0xFFFFFFF, 8));
    }

    [Fact]
    public void AddressRegisterTakesOnlyDwords()
    {
        Select(3, 1, 0x13);
        Assert.Equal(0x80001910u, _ports.ReadPort(0xCF8, 4));
        _ports.WritePort(0xCF8, 1, 0);
        Assert.Equal(0xFFu, _ports.ReadPort(0xCF8, 1));
        Assert.Equal(0x80001910u, _ports.ReadPort(0xCF8, 4));
    }

    [Fact]
    public void AccessesArriveWithTheirWidthAndPlace()
    {
        Select(3, 1, 0x10);
        _ports.WritePort(0xCFD, 1, 0xAB);
        Assert.Equal((0x11, 1, 0xABu), _device.Last);
        _ports.WritePort(0xCFE, 2, 0xFFFF1234);
        Assert.Equal((0x12, 2, 0x1234u), _device.Last);
        _ecam.WriteMmio(3 << 15 | 1 << 12 | 0xFFC, 4, 0x1_2345_6789);
        Assert.Equal((0xFFC, 4, 0x23456789u), _device.Last);
        _ecam.WriteMmio(3 << 15 | 1 << 12 | 0x10, 8, 0x1111_2222_3333_4444);
        Assert.Equal((0x14, 4, 0x11112222u), _device.Last);
        Assert.Equal(0x14UL << 32 | 0x10, _ecam.ReadMmio(3 << 15 | 1 << 12 | 0x10, 8));
        Assert.Equal(0x13121110UL & 0xFF, _ecam.ReadMmio(3 << 15 | 1 << 12 | 0x10, 1));
        _ecam.WriteMmio(3 << 15 | 1 << 12 | 0x11, 2, 0xBEEF);
        Assert.Equal((0x12, 1, 0xBEu), _device.Last);
    }

    [Fact]
    public void SlotsAreExclusiveAndListed()
    {
        Assert.Throws<InvalidOperationException>(() => _bus.Attach(3, 1, _device));
        Assert.Equal([(0, 0), (3, 1)], _bus.Functions.Select(f => (f.Device, f.Function)));
        _bus.Detach(3, 1);
        Select(3, 1, 0);
        Assert.Equal(uint.MaxValue, _ports.ReadPort(0xCFC, 4));
    }

    private sealed class Register : IPciFunction
    {
        public (int Offset, int Size, uint Value) Last { get; private set; }

        public uint ReadConfig(int offset, int size)
        {
            Assert.Equal(0, offset % size);
            return (uint)offset;
        }

        public void WriteConfig(int offset, int size, uint value)
        {
            Assert.Equal(0, offset % size);
            Last = (offset, size, value);
        }
    }
}
