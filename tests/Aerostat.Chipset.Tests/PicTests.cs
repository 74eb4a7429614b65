using Aerostat.Interrupts;

namespace Aerostat.Chipset.Tests;

public sealed class PicTests
{
    private readonly FakeLine _intr = new();
    private readonly Pic _pic;

    public PicTests()
    {
        _pic = new Pic(_intr);
        Initialise(0x01);
    }

    private void Initialise(byte icw4)
    {
        foreach ((ushort command, byte vector, byte wiring) in new[] { ((ushort)0x20, (byte)0x20, (byte)4), ((ushort)0xA0, (byte)0x28, (byte)2) })
        {
            _pic.Out(command, 0x11);
            _pic.Out((ushort)(command + 1), vector);
            _pic.Out((ushort)(command + 1), wiring);
            _pic.Out((ushort)(command + 1), icw4);
            _pic.Out((ushort)(command + 1), 0);
        }
    }

    private byte InService()
    {
        _pic.Out(0x20, 0x0B);
        byte value = _pic.In(0x20);
        _pic.Out(0x20, 0x0A);
        return value;
    }

    [Fact]
    public void PowerOnRequestsNothing()
    {
        var line = new FakeLine();
        var pic = new Pic(line);
        foreach (IInterruptLine input in pic.Inputs)
            input.Pulse();
        Assert.False(line.Level);
    }

    [Fact]
    public void EdgeIsServedOnceInPriorityOrder()
    {
        _pic.Inputs[4].Pulse();
        _pic.Inputs[1].Set(true);
        Assert.True(_intr.Level);
        Assert.Equal(0x21, _pic.Acknowledge());
        Assert.False(_intr.Level);
        Assert.Equal(2, InService());
        _pic.Out(0x20, 0x20);
        Assert.Equal(0x24, _pic.Acknowledge());
        _pic.Out(0x20, 0x20);
        Assert.False(_intr.Level);
    }

    [Fact]
    public void HigherPriorityNests()
    {
        _pic.Inputs[4].Pulse();
        Assert.Equal(0x24, _pic.Acknowledge());
        _pic.Inputs[6].Pulse();
        Assert.False(_intr.Level);
        _pic.Inputs[3].Pulse();
        Assert.Equal(0x23, _pic.Acknowledge());
        _pic.Out(0x20, 0x20);
        Assert.False(_intr.Level);
        _pic.Out(0x20, 0x20);
        Assert.Equal(0x26, _pic.Acknowledge());
    }

    [Fact]
    public void SlaveComesThroughTheCascade()
    {
        _pic.Inputs[12].Pulse();
        Assert.Equal(0x2C, _pic.Acknowledge());
        Assert.Equal(4, InService());
        // In fully nested mode the slave's higher interrupts wait for the master's EOI.
        _pic.Inputs[8].Pulse();
        Assert.False(_intr.Level);
        _pic.Out(0xA0, 0x20);
        Assert.False(_intr.Level);
        _pic.Out(0x20, 0x20);
        Assert.Equal(0x28, _pic.Acknowledge());
    }

    [Fact]
    public void SpecialFullyNestedModeLetsTheSlaveInterruptItself()
    {
        Initialise(0x11);
        _pic.Inputs[12].Pulse();
        Assert.Equal(0x2C, _pic.Acknowledge());
        _pic.Inputs[9].Pulse();
        Assert.True(_intr.Level);
        Assert.Equal(0x29, _pic.Acknowledge());
    }

    [Fact]
    public void LevelInputsFollowTheirWire()
    {
        _pic.Out(0x4D1, 0xFF);
        Assert.Equal(0xDE, _pic.In(0x4D1));
        _pic.Out(0x4D0, 0xFF);
        Assert.Equal(0xF8, _pic.In(0x4D0));
        _pic.Inputs[9].Set(true);
        Assert.Equal(0x29, _pic.Acknowledge());
        _pic.Out(0xA0, 0x20);
        _pic.Out(0x20, 0x20);
        Assert.Equal(0x29, _pic.Acknowledge());
        _pic.Inputs[9].Set(false);
        _pic.Out(0xA0, 0x20);
        _pic.Out(0x20, 0x20);
        Assert.False(_intr.Level);
    }

    [Fact]
    public void VanishedRequestsAreSpurious()
    {
        _pic.Out(0x4D0, 0x20);
        _pic.Out(0x4D1, 0x04);
        _pic.Inputs[5].Set(true);
        _pic.Inputs[5].Set(false);
        Assert.False(_intr.Level);
        Assert.Equal(0x27, _pic.Acknowledge());
        Assert.Equal(0, InService());
    }

    [Fact]
    public void PollingTheSlaveAwayLeavesTheMasterWithNothing()
    {
        _pic.Inputs[10].Pulse();
        _pic.Out(0xA0, 0x0C);
        Assert.Equal(0x82, _pic.In(0xA0));
        Assert.False(_intr.Level);
        _pic.Out(0xA0, 0x0C);
        Assert.Equal(0, _pic.In(0xA0));
    }

    [Fact]
    public void MaskHoldsButKeepsTheRequest()
    {
        _pic.Out(0x21, 0x10);
        Assert.Equal(0x10, _pic.In(0x21));
        _pic.Inputs[4].Pulse();
        Assert.False(_intr.Level);
        Assert.Equal(0x10, _pic.In(0x20));
        _pic.Out(0x21, 0);
        Assert.Equal(0x24, _pic.Acknowledge());
    }

    [Fact]
    public void SpecificEoiAndRotation()
    {
        _pic.Inputs[4].Pulse();
        _pic.Acknowledge();
        _pic.Inputs[2].Set(true);
        _pic.Inputs[3].Pulse();
        Assert.Equal(0x23, _pic.Acknowledge());
        _pic.Out(0x20, 0x64);
        Assert.Equal(8, InService());
        // Rotate on specific EOI: 3 becomes the lowest, 4 the highest.
        _pic.Out(0x20, 0xE3);
        Assert.Equal(0, InService());
        _pic.Inputs[1].Pulse();
        _pic.Inputs[5].Pulse();
        Assert.Equal(0x25, _pic.Acknowledge());
        // Rotate on non-specific EOI: 5 becomes the lowest.
        _pic.Out(0x20, 0xA0);
        _pic.Inputs[5].Pulse();
        Assert.Equal(0x21, _pic.Acknowledge());
        _pic.Out(0x20, 0x20);
        // Set priority: 7 the lowest again.
        _pic.Out(0x20, 0xC7);
        _pic.Inputs[0].Pulse();
        Assert.Equal(0x20, _pic.Acknowledge());
    }

    [Fact]
    public void AutomaticEoi()
    {
        Initialise(0x03);
        _pic.Inputs[1].Pulse();
        Assert.Equal(0x21, _pic.Acknowledge());
        Assert.Equal(0, InService());
        // With rotation: 1 becomes the lowest.
        _pic.Out(0x20, 0x80);
        _pic.Inputs[1].Pulse();
        _pic.Acknowledge();
        _pic.Inputs[1].Pulse();
        _pic.Inputs[6].Pulse();
        Assert.Equal(0x26, _pic.Acknowledge());
    }

    [Fact]
    public void SpecialMaskModeLetsLowerOnesThrough()
    {
        _pic.Inputs[1].Pulse();
        _pic.Acknowledge();
        _pic.Inputs[5].Pulse();
        Assert.False(_intr.Level);
        _pic.Out(0x20, 0x68);
        _pic.Out(0x21, 0x02);
        Assert.Equal(0x25, _pic.Acknowledge());
        _pic.Out(0x20, 0x48);
        Assert.False(_intr.Level);
    }

    [Fact]
    public void InitialisationForgetsEdgesAndService()
    {
        _pic.Inputs[1].Pulse();
        _pic.Acknowledge();
        _pic.Inputs[3].Pulse();
        _pic.Out(0x20, 0x11);
        Assert.False(_intr.Level);
        _pic.Out(0x21, 0x40);
        _pic.Out(0x21, 4);
        _pic.Out(0x21, 1);
        Assert.Equal(0, InService());
        Assert.False(_intr.Level);
        _pic.Inputs[3].Pulse();
        Assert.Equal(0x43, _pic.Acknowledge());
    }

    [Fact]
    public void WideAccessesAreSplit()
    {
        _pic.WritePort(0x20, 2, 0xAA0A);
        Assert.Equal(0xAAu, _pic.ReadPort(0x20, 2) >> 8);
        Assert.Equal(0xFFFFAA00u, _pic.ReadPort(0x20, 4));
    }
}
