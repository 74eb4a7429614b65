namespace Aerostat.Chipset.Tests;

public sealed class SerialTests
{
    private const ushort Data = 0x3F8, Ier = 0x3F9, Iir = 0x3FA, Lcr = 0x3FB, Mcr = 0x3FC, Lsr = 0x3FD, Msr = 0x3FE, Scratch = 0x3FF;

    private readonly FakeLine _irq = new();
    private readonly FakeBackend _backend = new();
    private readonly Serial16550 _uart;

    public SerialTests() => _uart = new Serial16550("serial0", 0x3F8, _irq, _backend);

    [Fact]
    public void PolledOutputNeedsNoSetup()
    {
        Assert.Equal(0x60, _uart.In(Lsr));
        foreach (char c in "hello\r\n")
            _uart.Out(Data, (byte)c);
        Assert.Equal("hello\r\n", _backend.Text);
        Assert.False(_irq.Level);
    }

    [Fact]
    public void AutoconfigurationSeesA16550A()
    {
        // 8250_port.c autoconfig: IER holds four bits, loopback shows OUT1 and RTS in MSR, FCR shows in IIR 7..6, no EFR.
        _uart.Out(Ier, 0);
        Assert.Equal(0, _uart.In(Ier) & 0x0F);
        _uart.Out(Ier, 0xFF);
        Assert.Equal(0x0F, _uart.In(Ier));
        _uart.Out(Ier, 0);
        _uart.Out(Mcr, 0x10 | 0x0A);
        Assert.Equal(0x90, _uart.In(Msr) & 0xF0);
        _uart.Out(Mcr, 0);
        _uart.Out(Iir, 1);
        Assert.Equal(0xC0, _uart.In(Iir) & 0xC0);
        _uart.Out(Iir, 0x21);
        Assert.Equal(0xC0, _uart.In(Iir) & 0xE0);
        _uart.Out(Iir, 0);
        Assert.Equal(1, _uart.In(Iir));
        _uart.Out(Scratch, 0xA5);
        Assert.Equal(0xA5, _uart.In(Scratch));
    }

    [Fact]
    public void DivisorLatchHidesDataAndEnable()
    {
        _uart.Out(Lcr, 0x83);
        _uart.Out(Data, 0x34);
        _uart.Out(Ier, 0x12);
        Assert.Equal((0x34, 0x12), (_uart.In(Data), _uart.In(Ier)));
        _uart.Out(Lcr, 0x03);
        Assert.Equal(0, _uart.In(Ier));
        Assert.Empty(_backend.Sent);
    }

    [Fact]
    public void TransmitterInterruptRearmsAsTheLinuxDriverTests()
    {
        _uart.Out(Mcr, 0x0B);
        // serial8250_do_startup: enabling THRI twice must show it twice, or the driver takes the port for a buggy one.
        _uart.Out(Ier, 2);
        Assert.Equal(2, _uart.In(Iir));
        Assert.Equal(1, _uart.In(Iir));
        _uart.Out(Ier, 0);
        _uart.Out(Ier, 2);
        Assert.True(_irq.Level);
        Assert.Equal(2, _uart.In(Iir));
        Assert.False(_irq.Level);
        // Writing it again without a change does not.
        _uart.Out(Ier, 2);
        Assert.Equal(1, _uart.In(Iir));
        _uart.Out(Data, 0x41);
        Assert.True(_irq.Level);
        Assert.Equal(2, _uart.In(Iir));
        _uart.Out(Ier, 0);
        Assert.False(_irq.Level);
    }

    [Fact]
    public void EachRefillGivesANewEdge()
    {
        _uart.Out(Mcr, 0x08);
        _uart.Out(Iir, 1);
        _uart.Out(Ier, 2);
        for (int i = 0; i < 10; i++)
        {
            Assert.Equal(i + 1, _irq.Edges);
            Assert.Equal(0xC2, _uart.In(Iir));
            for (int k = 0; k < 16; k++)
                _uart.Out(Data, (byte)k);
        }
        Assert.Equal(160, _backend.Sent.Count);
    }

    [Fact]
    public void Out2GatesTheInterrupt()
    {
        _uart.Out(Ier, 1);
        Assert.Equal(1, _uart.Receive("x"u8));
        Assert.False(_irq.Level);
        _uart.Out(Mcr, 8);
        Assert.True(_irq.Level);
        _uart.Out(Mcr, 0x18);
        Assert.False(_irq.Level);
    }

    [Fact]
    public void ReceiveFillsTheFifoAndPushesBack()
    {
        _uart.Out(Iir, 0xC1);
        _uart.Out(Mcr, 8);
        _uart.Out(Ier, 1);
        int wakes = 0;
        _uart.SpaceAvailable += () => wakes++;
        byte[] input = [.. Enumerable.Range(0, 40).Select(i => (byte)i)];
        int given = _uart.Receive(input);
        Assert.Equal(16, given);
        Assert.Equal(0, _uart.Receive(input.AsSpan(given)));
        Assert.Equal(0xC4, _uart.In(Iir));
        _uart.SpaceAvailable += () => given += _uart.Receive(input.AsSpan(given));
        var read = new List<byte>();
        while ((_uart.In(Lsr) & 1) != 0)
            read.Add(_uart.In(Data));
        Assert.Equal(input, read);
        Assert.Equal(2, wakes);
        Assert.False(_irq.Level);
        Assert.Equal(1, _uart.Receive("x"u8));
        Assert.Equal(0xCC, _uart.In(Iir));
    }

    [Fact]
    public void WithoutFifosOneByteFits()
    {
        Assert.Equal(1, _uart.Receive("ab"u8));
        Assert.Equal((byte)'a', _uart.In(Data));
        Assert.Equal(0, _uart.In(Data));
    }

    [Fact]
    public void ClearingTheFifoLosesInputAndAsksForMore()
    {
        _uart.Out(Iir, 1);
        bool woken = false;
        _uart.SpaceAvailable += () => woken = true;
        _uart.Receive(new byte[20]);
        _uart.Out(Iir, 3);
        Assert.True(woken);
        Assert.Equal(0x60, _uart.In(Lsr));
    }

    [Fact]
    public void LoopbackReturnsDataAndRefusesTheOutside()
    {
        _uart.Out(Mcr, 0x1F);
        Assert.Equal(0xF0, _uart.In(Msr) & 0xF0);
        _uart.Out(Data, 0x5A);
        Assert.Empty(_backend.Sent);
        Assert.Equal(0, _uart.Receive("x"u8));
        _uart.Out(Data, 0x5B);
        Assert.Equal(0x63, _uart.In(Lsr));
        Assert.Equal(0x61, _uart.In(Lsr));
        Assert.Equal(0x5B, _uart.In(Data));
    }

    [Fact]
    public void ModemStatusReportsChangesOnce()
    {
        Assert.Equal(0xB0, _uart.In(Msr));
        _uart.Out(Mcr, 8);
        _uart.Out(Ier, 8);
        _uart.Inputs = ModemInputs.Dsr | ModemInputs.Ri;
        Assert.True(_irq.Level);
        Assert.Equal(0, _uart.In(Iir));
        Assert.Equal(0x69, _uart.In(Msr));
        Assert.Equal(0x60, _uart.In(Msr));
        Assert.False(_irq.Level);
        // The ring indicator counts when it ends.
        _uart.Inputs = ModemInputs.Dsr;
        Assert.Equal(0x24, _uart.In(Msr));
    }

    [Fact]
    public void LineStatusHasTheHighestPriority()
    {
        _uart.Out(Iir, 0xC1);
        _uart.Out(Mcr, 8);
        _uart.Out(Ier, 0x0F);
        _uart.Receive("a"u8);
        _uart.ReceiveBreak();
        Assert.Equal(0xCC, _uart.In(Iir));
        Assert.Equal(0xE1, _uart.In(Lsr));
        Assert.Equal((byte)'a', _uart.In(Data));
        Assert.Equal(0xC6, _uart.In(Iir));
        Assert.Equal(0xF1, _uart.In(Lsr));
        Assert.Equal(0xCC, _uart.In(Iir));
        Assert.Equal(0, _uart.In(Data));
        Assert.Equal(0xC2, _uart.In(Iir));
    }

    [Fact]
    public void EchoFromInsideTheBackendIsPossible()
    {
        Serial16550? uart = null;
        var echo = new EchoBackend(b => uart!.Receive(b));
        uart = new Serial16550("serial1", 0x2F8, _irq, echo);
        uart.Out(0x2F8, 0x42);
        Assert.Equal(0x42, uart.In(0x2F8));
    }

    [Fact]
    public void OutputDoesNotAllocate()
    {
        var uart = new Serial16550("serial1", 0x2F8, _irq, new EchoBackend(_ => 0));
        uart.Out(0x2F9, 2);
        long before = 0;
        for (int i = 0; i < 2_000; i++)
        {
            if (i == 1_000)
                before = GC.GetAllocatedBytesForCurrentThread();
            uart.WritePort(0x2F8, 1, 0x41);
            uart.ReadPort(0x2FA, 1);
            uart.ReadPort(0x2FD, 1);
        }
        Assert.Equal(0, GC.GetAllocatedBytesForCurrentThread() - before);
    }

    private sealed class EchoBackend(Func<byte[], int> write) : ICharacterBackend
    {
        private readonly byte[] _one = new byte[1];

        public void Write(ReadOnlySpan<byte> data)
        {
            data[..1].CopyTo(_one);
            write(_one);
        }
    }

    [Fact]
    public void WhatIsTypedBeforeTheGuestListensWaitsForIt()
    {
        Serial16550 uart = new("serial1", 0x2F8, _irq, _backend) { AwaitsListener = true };
        int offers = 0;
        uart.SpaceAvailable += () => offers++;
        uart.WritePort(0x2FA, 1, 7);
        Assert.Equal(0, uart.Receive("ab"u8));

        // A driver's probe: every interrupt enabled for a moment, and the loopback test.
        uart.WritePort(0x2F9, 1, 0x0F);
        uart.WritePort(0x2F9, 1, 0);
        uart.WritePort(0x2FC, 1, 0x1A);
        uart.WritePort(0x2FC, 1, 0);
        Assert.Equal(0, offers);
        Assert.Equal(0, uart.Receive("ab"u8));

        uart.WritePort(0x2FC, 1, 8);
        uart.WritePort(0x2F9, 1, 1);
        Assert.Equal(1, offers);
        Assert.Equal(2, uart.Receive("ab"u8));
    }

    [Fact]
    public void AGuestThatOnlyPollsIsHeardToo()
    {
        Serial16550 uart = new("serial1", 0x2F8, _irq, _backend) { AwaitsListener = true };
        int offers = 0;
        uart.SpaceAvailable += () => offers++;
        Assert.Equal(0, uart.Receive("a"u8));
        // Writing by polling is no listening, however long it goes on.
        for (int i = 0; i < 1000; i++)
        {
            _ = uart.ReadPort(0x2FD, 1);
            uart.WritePort(0x2F8, 1, '.');
        }
        Assert.Equal(0, offers);
        for (int i = 0; i < 100; i++)
            _ = uart.ReadPort(0x2FD, 1);
        Assert.Equal(1, offers);
        Assert.Equal(1, uart.Receive("a"u8));
    }
}
