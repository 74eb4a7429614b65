using Aerostat.Devices;
using Xunit;

namespace Aerostat.Machine.Tests;

public sealed class BusTests
{
    private sealed class Recorder : IPortDevice, IMmioDevice
    {
        public List<string> Log { get; } = [];

        public uint ReadPort(ushort port, int size)
        {
            Log.Add($"r{size} {port:x}");
            return (uint)(0x11223344u * (uint)size);
        }

        public void WritePort(ushort port, int size, uint value) => Log.Add($"w{size} {port:x} {value:x}");

        public ulong ReadMmio(ulong offset, int size)
        {
            Log.Add($"r{size} {offset:x}");
            return offset;
        }

        public void WriteMmio(ulong offset, int size, ulong value) => Log.Add($"w{size} {offset:x} {value:x}");
    }

    [Fact]
    public void UnclaimedPortsReadAsOnes()
    {
        PortBus bus = new();
        Assert.Equal(0xFFu, bus.Read(0x80, 1));
        Assert.Equal(0xFFFFu, bus.Read(0x80, 2));
        Assert.Equal(0xFFFF_FFFFu, bus.Read(0xFFFE, 4));
        bus.Write(0x80, 4, 5);
        // One each, but for the one that goes on at the first port.
        Assert.Equal(5, bus.UnclaimedAccesses);
    }

    [Fact]
    public void AnAccessGoesWholeToTheOwnerOfItsFirstPort()
    {
        PortBus bus = new();
        Recorder config = new(), reset = new();
        bus.Add("config", 0xCF8, 1, config);
        bus.Add("reset", 0xCF9, 1, reset);
        bus.Write(0xCF8, 4, 0x80000000);
        bus.Write(0xCF9, 1, 6);
        Assert.Equal(["w4 cf8 80000000"], config.Log);
        Assert.Equal(["w1 cf9 6"], reset.Log);
    }

    [Fact]
    public void WideAccessToANarrowDeviceIsSplitLowPartFirst()
    {
        PortBus bus = new();
        Recorder device = new(), other = new();
        bus.Add("narrow", 0x70, 2, device, widest: 1);
        bus.Add("other", 0x72, 2, other, widest: 2);
        bus.Write(0x70, 4, 0x44332211);
        Assert.Equal(["w1 70 11", "w1 71 22"], device.Log);
        Assert.Equal(["w2 72 4433"], other.Log);
    }

    [Fact]
    public void WideAccessFromAnUnclaimedPortReachesTheClaimedOnes()
    {
        PortBus bus = new();
        Recorder device = new();
        bus.Add("late", 0x101, 1, device);
        Assert.Equal(0x44FFu, bus.Read(0x100, 2) & 0xFFFF);
        Assert.Equal(["r1 101"], device.Log);
    }

    [Fact]
    public void OverlappingPortClaimsAreRefused()
    {
        PortBus bus = new();
        bus.Add("a", 0x60, 5, new Recorder());
        InvalidOperationException e = Assert.Throws<InvalidOperationException>(() => bus.Add("b", 0x64, 1, new Recorder()));
        Assert.Contains("b and a", e.Message, StringComparison.Ordinal);
        Assert.Throws<InvalidOperationException>(() => bus.Add("c", 0xFFFF, 2, new Recorder()));
    }

    [Fact]
    public void MmioFindsTheRange()
    {
        MmioBus bus = new();
        Recorder a = new(), b = new();
        bus.Add("b", 0x2000, 0x1000, b);
        bus.Add("a", 0x1000, 0x1000, a);
        Assert.Equal(0xFF8ul, bus.Read(0x1FF8, 8));
        bus.Write(0x2000, 4, 7);
        Assert.Equal(["r8 ff8"], a.Log);
        Assert.Equal(["w4 0 7"], b.Log);
        Assert.Equal(["a", "b"], bus.Map.Select(m => m.Name));
    }

    [Fact]
    public void MmioAcrossABorderIsCutIntoBytes()
    {
        MmioBus bus = new();
        Recorder a = new(), b = new();
        bus.Add("a", 0x1000, 0x1000, a);
        bus.Add("b", 0x2000, 0x1000, b);
        bus.Write(0x1FFF, 2, 0xBBAA);
        Assert.Equal(["w1 fff aa"], a.Log);
        Assert.Equal(["w1 0 bb"], b.Log);
        Assert.Equal(0x0100_FFFFul, bus.Read(0xFFE, 4));
    }

    [Fact]
    public void UnclaimedMmioReadsAsOnes()
    {
        MmioBus bus = new();
        Assert.Equal(ulong.MaxValue, bus.Read(0xF000_0000, 8));
        Assert.Equal(0xFFul, bus.Read(ulong.MaxValue, 1));
        bus.Write(ulong.MaxValue, 8, 1);
        Assert.Equal(3, bus.UnclaimedAccesses);
    }

    [Fact]
    public void OverlappingMmioIsRefused()
    {
        MmioBus bus = new();
        bus.Add("a", 0x1000, 0x1000, new Recorder());
        Assert.Throws<InvalidOperationException>(() => bus.Add("b", 0x1FFF, 1, new Recorder()));
        Assert.Throws<InvalidOperationException>(() => bus.Add("c", ulong.MaxValue, 2, new Recorder()));
        Assert.Throws<InvalidOperationException>(() => bus.Add("d", 0x5000, 0, new Recorder()));
    }
}
