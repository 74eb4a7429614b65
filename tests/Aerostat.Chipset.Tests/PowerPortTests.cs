namespace Aerostat.Chipset.Tests;

public sealed class PowerPortTests
{
    private int _resets;

    [Fact]
    public void ResetControlResetsOnARisingBit()
    {
        var port = new ResetControl(() => _resets++);
        port.Out(0xCF9, 0x02);
        Assert.Equal(0, _resets);
        Assert.Equal(0x02, port.In(0xCF9));
        port.Out(0xCF9, 0x06);
        Assert.Equal(1, _resets);
        port.Out(0xCF9, 0x0E);
        Assert.Equal(2, _resets);
        port.WritePort(0xCF9, 4, 0x04);
        Assert.Equal(3, _resets);
    }

    [Fact]
    public void FastResetOnPort92()
    {
        var port = new SystemControlPortA(() => _resets++);
        Assert.Equal(2, port.In(0x92));
        port.Out(0x92, 0xFE);
        Assert.Equal(0, _resets);
        port.Out(0x92, 3);
        Assert.Equal(1, _resets);
        port.Out(0x92, 3);
        Assert.Equal(1, _resets);
    }

    [Fact]
    public void KeyboardControllerResets()
    {
        var keyboard = new I8042(new FakeLine(), () => _resets++);
        keyboard.Out(0x64, 0xFF);
        Assert.Equal(0, _resets);
        keyboard.Out(0x64, 0xFE);
        Assert.Equal(1, _resets);
        keyboard.Out(0x64, 0xD1);
        keyboard.Out(0x60, 0xDE);
        Assert.Equal(2, _resets);
    }

    [Fact]
    public void KeyboardControllerSatisfiesTheLinuxProbe()
    {
        var irq = new FakeLine();
        var keyboard = new I8042(irq, () => _resets++);
        byte Answer()
        {
            Assert.Equal(1, keyboard.In(0x64) & 1);
            return keyboard.In(0x60);
        }

        // i8042_controller_selftest, then i8042_controller_init.
        Assert.Equal(0, keyboard.In(0x64) & 3);
        keyboard.Out(0x64, 0xAA);
        Assert.Equal(0x55, Answer());
        keyboard.Out(0x64, 0x20);
        byte mode = Answer();
        keyboard.Out(0x64, 0x60);
        keyboard.Out(0x60, (byte)(mode & ~1 | 0x10));
        keyboard.Out(0x64, 0x20);
        Assert.Equal(mode & ~1 | 0x10, Answer());
        // i8042_check_aux: the loop does not come back as auxiliary data, the interface test fails.
        keyboard.Out(0x64, 0xD3);
        keyboard.Out(0x60, 0x5A);
        Assert.Equal(0, keyboard.In(0x64) & 0x20);
        Assert.Equal(0x5A, Answer());
        keyboard.Out(0x64, 0xA9);
        Assert.Equal(1, Answer());
        keyboard.Out(0x64, 0xAB);
        Assert.Equal(0, Answer());
        // A command to the absent keyboard times out at once.
        keyboard.Out(0x64, 0x60);
        keyboard.Out(0x60, 0x45);
        keyboard.Out(0x60, 0xF2);
        Assert.True(irq.Level);
        Assert.Equal(0x41, keyboard.In(0x64) & 0x41);
        Assert.Equal(0xFE, keyboard.In(0x60));
        Assert.False(irq.Level);
        Assert.Equal(0, keyboard.In(0x64) & 0x41);
        Assert.Equal(0, _resets);
    }

    [Fact]
    public void DebugExitEncodesItsValue()
    {
        int status = -1;
        var exit = new DebugExit(0xF4, s => status = s);
        exit.WritePort(0xF4, 4, 0);
        Assert.Equal(1, status);
        exit.WritePort(0xF4, 1, 1);
        Assert.Equal(3, status);
        exit.WritePort(0xF5, 1, 9);
        Assert.Equal(3, status);
        exit.WritePort(0xF4, 4, 127 >> 1);
        Assert.Equal(127, status);
    }
}
