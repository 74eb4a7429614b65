namespace Aerostat.Chipset.Tests;

public sealed class LocalApicTests
{
    private const ulong Enabled = 1 << 11;
    private const ulong Extended = 1 << 10;

    [Fact]
    public void PowerOnStateIsThatOfTheManual()
    {
        var board = new Board(2, enable: false);
        FakeProcessor cpu = board[1];
        Assert.Equal(0xFEE00800UL, cpu.Msr(0x1B));
        Assert.Equal(0xFEE00900UL, board[0].Msr(0x1B));
        Assert.Equal(0xFEE00000UL, cpu.Apic.MmioBase);
        Assert.Equal(1u << 24, cpu.Read(0x20));
        Assert.Equal(0x50014u, cpu.Read(0x30));
        Assert.Equal(0xFFu, cpu.Read(0xF0));
        Assert.Equal(0xFFFFFFFFu, cpu.Read(0xE0));
        for (uint lvt = 0x320; lvt <= 0x370; lvt += 0x10)
            Assert.Equal(0x10000u, cpu.Read(lvt));
    }

    [Fact]
    public void HighestVectorIsDeliveredFirstAndMovesToService()
    {
        var board = new Board();
        FakeProcessor cpu = board[0];
        cpu.Write(0x300, 0x40031);
        cpu.Write(0x300, 0x40052);
        Assert.True(cpu.Pins.Requested);
        Assert.Equal(0x52, cpu.Take());
        Assert.Equal(1u << 0x12, cpu.Read(0x120));
        Assert.Equal(0x50u, cpu.Read(0xA0));
        // 0x31 waits until 0x52 is done.
        Assert.Equal(-1, cpu.Take());
        Assert.False(cpu.Pins.Requested);
        Assert.Equal(1u << 0x11, cpu.Read(0x210));
        cpu.Eoi();
        Assert.Equal(0x31, cpu.Take());
        cpu.Eoi();
        Assert.Equal(-1, cpu.Take());
        Assert.Equal(0u, cpu.Read(0xA0));
    }

    [Fact]
    public void HigherClassInterruptsALowerOneButNotItsOwn()
    {
        FakeProcessor cpu = new Board()[0];
        cpu.Write(0x300, 0x40041);
        Assert.Equal(0x41, cpu.Take());
        cpu.Write(0x300, 0x4004F);
        Assert.Equal(-1, cpu.Take());
        cpu.Write(0x300, 0x40050);
        Assert.Equal(0x50, cpu.Take());
        cpu.Eoi();
        Assert.Equal(-1, cpu.Take());
        cpu.Eoi();
        Assert.Equal(0x4F, cpu.Take());
    }

    [Fact]
    public void TaskPriorityHoldsInterruptsBackAndCr8IsItsUpperHalf()
    {
        FakeProcessor cpu = new Board()[0];
        cpu.Apic.TaskPriority = 5;
        Assert.Equal(0x50u, cpu.Read(0x80));
        cpu.Write(0x300, 0x4005F);
        Assert.False(cpu.Pins.Requested);
        cpu.Write(0x80, 0x4F);
        Assert.Equal(4UL, cpu.Apic.TaskPriority);
        Assert.Equal(0x4Fu, cpu.Read(0xA0));
        Assert.True(cpu.Pins.Requested);
        cpu.Apic.TaskPriority = 15;
        Assert.Equal(-1, cpu.Take());
        cpu.Apic.TaskPriority = 0;
        Assert.Equal(0x5F, cpu.Take());
    }

    [Fact]
    public void SoftwareDisableMasksLocalVectorsAndRefusesFixedInterrupts()
    {
        FakeProcessor cpu = new Board()[0];
        cpu.Write(0x350, 0x31);
        cpu.Write(0xF0, 0xFF);
        Assert.Equal(0x10031u, cpu.Read(0x350));
        cpu.Write(0x350, 0x31);
        Assert.Equal(0x10031u, cpu.Read(0x350));
        cpu.Write(0x300, 0x40041);
        Assert.False(cpu.Pins.Requested);
        Assert.Equal(0u, cpu.Read(0x220));
        // NMI still comes through.
        cpu.Write(0x310, 0);
        cpu.Write(0x300, 0x400);
        Assert.Equal(1, cpu.Pins.Nmis);
    }

    [Fact]
    public void BaseRegisterAllowsOnlyTheTransitionsOfTheManual()
    {
        FakeProcessor cpu = new Board()[0];
        ulong off = cpu.Msr(0x1B) & ~Enabled;
        // xAPIC.
        Assert.False(cpu.Apic.WriteMsr(0x1B, off | Extended));
        Assert.False(cpu.Apic.WriteMsr(0x1B, off | Enabled | 1));
        Assert.False(cpu.Apic.WriteMsr(0x1B, off | Enabled | 1UL << 46));
        cpu.Wrmsr(0x1B, off);
        Assert.Equal(ulong.MaxValue, cpu.Apic.MmioBase);
        Assert.False(cpu.Apic.IsEnabled);
        // Disabled.
        Assert.False(cpu.Apic.WriteMsr(0x1B, off | Extended));
        Assert.False(cpu.Apic.WriteMsr(0x1B, off | Enabled | Extended));
        cpu.Wrmsr(0x1B, off | Enabled);
        cpu.Wrmsr(0x1B, off | Enabled | Extended);
        // x2APIC.
        Assert.Equal(ulong.MaxValue, cpu.Apic.MmioBase);
        Assert.False(cpu.Apic.WriteMsr(0x1B, off | Enabled));
        Assert.False(cpu.Apic.WriteMsr(0x1B, off | Extended));
        cpu.Wrmsr(0x1B, off | Enabled | Extended);
        cpu.Wrmsr(0x1B, off);
        cpu.Wrmsr(0x1B, 0xFED40000 | Enabled);
        Assert.Equal(0xFED40000UL, cpu.Apic.MmioBase);
    }

    [Fact]
    public void WithoutX2ApicTheExtendBitIsReserved()
    {
        var board = new Board(0);
        var cpu = new FakeProcessor(board, 0, new LocalApicOptions { Id = 0, X2Apic = false, TscDeadline = false });
        Assert.False(cpu.Apic.WriteMsr(0x1B, cpu.Msr(0x1B) | Extended));
        Assert.False(cpu.Apic.ReadMsr(0x6E0, out _));
        Assert.False(cpu.Apic.WriteMsr(0x6E0, 1));
    }

    [Fact]
    public void DisablingForgetsEverythingButTaskPriority()
    {
        FakeProcessor cpu = new Board()[0];
        cpu.Write(0x20, 7 << 24);
        cpu.Write(0x300, 0x40041);
        cpu.Apic.TaskPriority = 3;
        ulong apicBase = cpu.Msr(0x1B);
        cpu.Wrmsr(0x1B, apicBase & ~Enabled);
        Assert.False(cpu.Pins.Requested);
        Assert.Equal(3UL, cpu.Apic.TaskPriority);
        cpu.Apic.TaskPriority = 12;
        Assert.Equal(12UL, cpu.Apic.TaskPriority);
        cpu.Wrmsr(0x1B, apicBase);
        Assert.Equal(0u, cpu.Read(0x20));
        Assert.Equal(0xC0u, cpu.Read(0x80));
        Assert.Equal(0xFFu, cpu.Read(0xF0));
        Assert.Equal(0u, cpu.Read(0x220));
    }

    [Fact]
    public void X2MsrsAreReadableAndWritableExactlyAsInTheTable()
    {
        int[] readOnly = [0x02, 0x03, 0x0A, 0x0D, .. Enumerable.Range(0x10, 24), 0x39];
        int[] writeOnly = [0x0B, 0x3F];
        int[] readWrite = [0x08, 0x0F, 0x28, 0x30, 0x32, 0x33, 0x34, 0x35, 0x36, 0x37, 0x38, 0x3E];
        FakeProcessor cpu = new Board()[0];
        for (uint msr = 0x800; msr <= 0x8FF; msr++)
        {
            Assert.False(cpu.Apic.ReadMsr(msr, out _));
            Assert.False(cpu.Apic.WriteMsr(msr, 0));
        }
        cpu.EnableX2();
        cpu.Wrmsr(0x80F, 0x1FF);
        for (int register = 0; register <= 0xFF; register++)
        {
            uint msr = 0x800 + (uint)register;
            Assert.Equal(readOnly.Contains(register) || readWrite.Contains(register), cpu.Apic.ReadMsr(msr, out ulong value));
            bool writable = writeOnly.Contains(register) || readWrite.Contains(register);
            Assert.Equal(writable, cpu.Apic.WriteMsr(msr, register == 0x30 ? 0x40040 : value));
            if (register != 0x30)
                Assert.False(cpu.Apic.WriteMsr(msr, ulong.MaxValue), $"{msr:x}");
        }
        Assert.False(cpu.Apic.WriteMsr(0x83F, 0x100));
        Assert.False(cpu.Apic.WriteMsr(0x80B, 1));
        Assert.False(cpu.Apic.WriteMsr(0x828, 1));
    }

    [Fact]
    public void X2ModeHasNoMemoryMappedRegisters()
    {
        FakeProcessor cpu = new Board()[0];
        cpu.EnableX2();
        Assert.Equal(0UL, cpu.Apic.ReadMmio(0x30, 4));
        cpu.Write(0x80, 0xFF);
        Assert.Equal(0UL, cpu.Msr(0x808));
    }

    [Fact]
    public void SelfIpiRegisterDelivers()
    {
        FakeProcessor cpu = new Board()[0];
        cpu.EnableX2();
        cpu.Wrmsr(0x83F, 0xF1);
        Assert.Equal(0xF1, cpu.Take());
        cpu.Wrmsr(0x80B, 0);
        Assert.Equal(0UL, cpu.Msr(0x80A));
    }

    [Fact]
    public void IllegalVectorsSetErrorStatusAndRaiseTheErrorEntry()
    {
        FakeProcessor cpu = new Board()[0];
        cpu.Write(0x370, 0x45);
        cpu.Write(0x300, 0x40005);
        Assert.Equal(0x45, cpu.Take());
        Assert.Equal(0u, cpu.Read(0x280));
        cpu.Write(0x280, 0);
        Assert.Equal(1u << 5, cpu.Read(0x280));
        cpu.Read(0x2F0);
        cpu.Write(0x280, 0);
        Assert.Equal(1u << 7, cpu.Read(0x280));
        cpu.Write(0x280, 0);
        Assert.Equal(0u, cpu.Read(0x280));
    }

    [Fact]
    public void ExternalInterruptsComeThroughLint0()
    {
        var board = new Board(2, enable: false);
        board[0].Apic.ConfigureVirtualWire();
        board.Pic.ConfigureLikeFirmware(0xFFFF);
        board.Router.Connect(4).Set(true);
        Assert.True(board[0].Pins.Requested);
        Assert.False(board[1].Pins.Requested);
        Assert.Equal(0x0C, board[0].Take());
        Assert.Equal(-1, board[0].Take());
        Assert.False(board[0].Pins.Requested);
    }

    [Fact]
    public void DisabledApicIsAPlainIntrPin()
    {
        var board = new Board(1, enable: false);
        board.Pic.ConfigureLikeFirmware(0xFFFF);
        board[0].Wrmsr(0x1B, 0xFEE00100);
        IInterruptLineDriver line = new(board.Router.Connect(10));
        line.Raise();
        Assert.Equal(0x72, board[0].Take());
    }

    [Fact]
    public void Lint1GivesOneNmiPerEdge()
    {
        var board = new Board(2, enable: false);
        board[0].Apic.ConfigureVirtualWire();
        board.Fabric.NonMaskableInterrupt.Set(true);
        board.Fabric.NonMaskableInterrupt.Set(true);
        board.Fabric.NonMaskableInterrupt.Set(false);
        board.Fabric.NonMaskableInterrupt.Set(true);
        Assert.Equal(2, board[0].Pins.Nmis);
        Assert.Equal(0, board[1].Pins.Nmis);
    }

    [Fact]
    public void OpeningLint0ShowsARequestThatWasWaiting()
    {
        var board = new Board();
        board.Pic.ConfigureLikeFirmware(0x10);
        board.Router.Connect(4).Set(true);
        Assert.False(board[0].Pins.Requested);
        board[0].Write(0x350, 0x700);
        Assert.Equal(0x0C, board[0].Take());
    }

    [Fact]
    public void InitResetsTheRegistersAndStartupIsPassedOn()
    {
        var board = new Board(2);
        FakeProcessor cpu = board[1];
        cpu.Write(0x300, 0x40041);
        board[0].Write(0x310, 1 << 24);
        board[0].Write(0x300, 0x4500);
        Assert.Equal(1, cpu.Pins.Inits);
        // Between INIT and the next register access nothing fixed is accepted.
        board[0].Write(0x300, 0x4051);
        board[0].Write(0x300, 0x4608);
        Assert.Equal([8], cpu.Pins.Startups);
        Assert.Equal(-1, cpu.Apic.AcknowledgeInterrupt());
        Assert.Equal(0xFFu, cpu.Read(0xF0));
        Assert.Equal(0u, cpu.Read(0x220));
        Assert.Equal(1u << 24, cpu.Read(0x20));
        // Level de-assert is no INIT.
        board[0].Write(0x300, 0x8500);
        Assert.Equal(1, cpu.Pins.Inits);
    }

    [Fact]
    public void MessageRaisesTheWireThoughTheOwnerHasJustLoweredIt()
    {
        FakeProcessor cpu = new Board()[0];
        cpu.Write(0x300, 0x40041);
        cpu.Apic.TaskPriority = 15;
        Assert.False(cpu.Pins.Requested);
        cpu.Apic.TaskPriority = 0;
        Assert.True(cpu.Pins.Requested);
    }

    [Fact]
    public void OddAccessesAreHarmless()
    {
        FakeProcessor cpu = new Board()[0];
        Assert.Equal(0x14UL, cpu.Apic.ReadMmio(0x30, 1));
        Assert.Equal(5UL, cpu.Apic.ReadMmio(0x32, 2));
        Assert.Equal(0x50014UL, cpu.Apic.ReadMmio(0x30, 8));
        Assert.Equal(0UL, cpu.Apic.ReadMmio(0x38, 8));
        cpu.Apic.WriteMmio(0x80, 1, 0xFF);
        cpu.Apic.WriteMmio(0x84, 4, 0xFF);
        Assert.Equal(0u, cpu.Read(0x80));
    }

    [Fact]
    public void HotPathsDoNotAllocate()
    {
        var board = new Board(2);
        board[0].EnableX2();
        board[1].EnableX2();
        board[0].Wrmsr(0x832, 0x400EF);
        long before = 0;
        for (int i = 0; i < 2_000; i++)
        {
            if (i == 1_000)
                before = GC.GetAllocatedBytesForCurrentThread();
            board[0].Apic.WriteMsr(0x83F, 0x41);
            board[0].Apic.WriteMsr(0x830, 1UL << 32 | 0x42);
            board[0].Apic.WriteMsr(0x6E0, ulong.MaxValue >> 8);
            board[0].Apic.AcknowledgeInterrupt();
            board[1].Apic.AcknowledgeInterrupt();
            board[0].Apic.WriteMsr(0x80B, 0);
            board[1].Apic.WriteMsr(0x80B, 0);
            board[0].Apic.TaskPriority = (ulong)(i & 1);
        }
        Assert.Equal(0, GC.GetAllocatedBytesForCurrentThread() - before);
    }

    private readonly record struct IInterruptLineDriver(Aerostat.Interrupts.IInterruptLine Line)
    {
        public void Raise() => Line.Set(true);
    }
}
