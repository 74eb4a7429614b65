using Xunit;

namespace Aerostat.Chipset.Tests;

/// <summary>The device that kvm-unit-tests expects.</summary>
public sealed class TestDeviceTests
{
    private readonly FakeLine[] lines = [.. Enumerable.Range(0, TestDevice.InterruptPortCount).Select(_ => new FakeLine())];
    private readonly TestDevice device;

    public TestDeviceTests() => device = new TestDevice(lines);

    [Fact]
    public void InterruptPortsDriveTheirLine()
    {
        for (int i = 0; i < lines.Length; i++)
        {
            device.Interrupts.WritePort((ushort)(TestDevice.InterruptPorts + i), 1, 1);
            Assert.Equal([i], Enumerable.Range(0, lines.Length).Where(n => lines[n].Level));
            device.Interrupts.WritePort((ushort)(TestDevice.InterruptPorts + i), 1, 0);
        }
        Assert.All(lines, l => Assert.Equal(1, l.Edges));
    }

    [Theory]
    [InlineData(0xE0, 4, 0x1234_5678u)]
    [InlineData(0xE0, 1, 0x78u)]
    [InlineData(0xE1, 1, 0x5Au)]
    [InlineData(0xE2, 2, 0xBEEFu)]
    public void LatchReadsBack(ushort port, int size, uint value)
    {
        device.WritePort(0xE0, 4, 0xAAAA_AAAA);
        device.WritePort(port, size, value);
        uint mask = size == 4 ? uint.MaxValue : (1u << (8 * size)) - 1;
        Assert.Equal(value, device.ReadPort(port, size) & mask);
        int shift = (port - 0xE0) * 8;
        Assert.Equal(0xAAAA_AAAAu & ~(mask << shift), device.ReadPort(0xE0, 4) & ~(mask << shift));
    }

    [Fact]
    public void FlushIsTaken()
    {
        device.WritePort(0xE4, 4, 0x1000);
        Assert.Equal(0u, device.ReadPort(0xE4, 4));
    }

    [Fact]
    public void BytesReadBackAtAnySizeAndPlace()
    {
        device.WriteMmio(3, 8, 0x8877_6655_4433_2211);
        Assert.Equal(0x8877_6655_4433_2211, device.ReadMmio(3, 8));
        Assert.Equal(0x4433u, device.ReadMmio(5, 2));
        device.WriteMmio(TestDevice.MmioSize - 1, 1, 0xEE);
        Assert.Equal(0xEEu, device.ReadMmio(TestDevice.MmioSize - 1, 1));
    }

    [Fact]
    public void ResetReleasesAndClears()
    {
        device.Interrupts.WritePort(TestDevice.InterruptPorts + 5, 1, 1);
        device.WritePort(0xE0, 4, 1);
        device.WriteMmio(0, 4, 1);
        device.Reset();
        Assert.False(lines[5].Level);
        Assert.Equal(0u, device.ReadPort(0xE0, 4));
        Assert.Equal(0u, device.ReadMmio(0, 4));
    }

    [Theory]
    [InlineData(ushort.MaxValue, 4, uint.MaxValue)]
    [InlineData(0x2018, 1, 1u)]
    [InlineData(0x0, 2, 1u)]
    public void AnythingElseIsHarmless(ushort port, int size, uint value)
    {
        device.Interrupts.WritePort(port, size, value);
        device.Interrupts.ReadPort(port, size);
        Assert.All(lines, l => Assert.False(l.Level));
    }
}
