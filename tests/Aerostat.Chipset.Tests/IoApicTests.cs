using Aerostat.Interrupts;

namespace Aerostat.Chipset.Tests;

public sealed class IoApicTests
{
    private const ulong Level = 1 << 15;
    private const ulong Masked = 1 << 16;
    private const ulong RemoteIrr = 1 << 14;

    private static uint Register(Board board, int index)
    {
        board.IoApic.WriteMmio(0, 4, (ulong)index);
        return (uint)board.IoApic.ReadMmio(0x10, 4);
    }

    private static void SetRegister(Board board, int index, uint value)
    {
        board.IoApic.WriteMmio(0, 4, (ulong)index);
        board.IoApic.WriteMmio(0x10, 4, value);
    }

    [Fact]
    public void IdentificationRegisters()
    {
        var board = new Board();
        Assert.Equal(0x00170020u, Register(board, 1));
        SetRegister(board, 1, 0xFFFFFFFF);
        Assert.Equal(0x00170020u, Register(board, 1));
        SetRegister(board, 0, 0xFFFFFFFF);
        Assert.Equal(0x0F000000u, Register(board, 0));
        Assert.Equal(0x0F000000u, Register(board, 2));
        SetRegister(board, 2, 0);
        Assert.Equal(0x0F000000u, Register(board, 2));
        for (int pin = 0; pin < 24; pin++)
            Assert.Equal(Masked, board.Redirection(pin));
        Assert.Equal(0u, Register(board, 0x40));
    }

    [Fact]
    public void EdgeGivesOneInterruptPerRise()
    {
        var board = new Board();
        board.Redirect(14, 0x76);
        IInterruptLine line = board.IoApic.Pins[14];
        line.Set(true);
        line.Set(true);
        Assert.Equal(0x76, board[0].Take());
        board[0].Eoi();
        Assert.Equal(-1, board[0].Take());
        line.Set(false);
        line.Set(true);
        Assert.Equal(0x76, board[0].Take());
    }

    [Fact]
    public void MaskedEdgesAreLost()
    {
        var board = new Board();
        board.Redirect(14, 0x76 | Masked);
        board.IoApic.Pins[14].Pulse();
        board.Redirect(14, 0x76);
        Assert.Equal(-1, board[0].Take());
        board.IoApic.Pins[14].Pulse();
        Assert.Equal(0x76, board[0].Take());
    }

    [Fact]
    public void LevelHoldsRemoteIrrUntilEoiAndComesBackWhileAsserted()
    {
        var board = new Board();
        board.Redirect(14, 0x77 | Level);
        IInterruptLine line = board.IoApic.Pins[14];
        line.Set(true);
        Assert.Equal(0x77 | Level | RemoteIrr, board.Redirection(14));
        Assert.Equal(0x77, board[0].Take());
        // Falling and rising again before the EOI coalesces.
        line.Set(false);
        line.Set(true);
        Assert.Equal(-1, board[0].Take());
        board[0].Eoi();
        Assert.Equal(0x77, board[0].Take());
        line.Set(false);
        board[0].Eoi();
        Assert.Equal(-1, board[0].Take());
        Assert.Equal(0x77 | Level, board.Redirection(14));
    }

    [Fact]
    public void UnmaskingAnAssertedLevelLineDelivers()
    {
        var board = new Board();
        board.Redirect(14, 0x82 | Level | Masked);
        board.IoApic.Pins[14].Set(true);
        Assert.Equal(-1, board[0].Take());
        board.Redirect(14, 0x82 | Level);
        Assert.Equal(0x82, board[0].Take());
    }

    [Fact]
    public void MaskingInTheHandlerDefersTheRetrigger()
    {
        var board = new Board();
        board.Redirect(14, 0x83 | Level);
        board.IoApic.Pins[14].Set(true);
        Assert.Equal(0x83, board[0].Take());
        board.Redirect(14, 0x83 | Level | Masked);
        board[0].Eoi();
        Assert.Equal(-1, board[0].Take());
        board.Redirect(14, 0x83 | Level);
        Assert.Equal(0x83, board[0].Take());
    }

    [Fact]
    public void TriggerModeRegisterFollowsTheLastDelivery()
    {
        var board = new Board();
        bool Tmr() => (board[0].Read(0x180 + 0x79 / 32 * 0x10) & 1u << (0x79 % 32)) != 0;
        foreach (ulong mode in new ulong[] { 0, Level, Level, 0 })
        {
            board.Redirect(14, 0x79 | mode);
            board.IoApic.Pins[14].Set(true);
            Assert.Equal(0x79, board[0].Take());
            Assert.Equal(mode != 0, Tmr());
            board.IoApic.Pins[14].Set(false);
            board[0].Eoi();
            Assert.Equal(mode != 0, Tmr());
        }
    }

    [Fact]
    public void SwitchingToEdgeClearsRemoteIrr()
    {
        var board = new Board();
        board.Redirect(14, 0x77 | Level);
        board.IoApic.Pins[14].Set(true);
        board.Redirect(14, 0x77 | Masked);
        Assert.Equal(0x77 | Masked, board.Redirection(14));
        board.Redirect(14, 0x77 | Level | Masked);
        Assert.Equal(0x77 | Level | Masked, board.Redirection(14));
    }

    [Fact]
    public void RemoteIrrSurvivesANewDestinationAndCannotBeWritten()
    {
        var board = new Board(2);
        board.Redirect(14, 0x77 | Level);
        board.IoApic.Pins[14].Set(true);
        board.IoApic.Pins[14].Set(false);
        SetRegister(board, 0x10 + 28 + 1, 1 << 24);
        Assert.Equal(0x77 | Level | RemoteIrr | 1UL << 56, board.Redirection(14));
        Assert.Equal(0x77, board[0].Take());
        board[0].Eoi();
        Assert.Equal(0x77 | Level | 1UL << 56, board.Redirection(14));
        board.Redirect(14, 0x77 | Level | RemoteIrr | 1 << 12);
        Assert.Equal(0x77 | Level, board.Redirection(14));
    }

    [Fact]
    public void EoiRegisterCompletesAVector()
    {
        var board = new Board();
        board.Redirect(14, 0x77 | Level);
        board.IoApic.Pins[14].Set(true);
        board.IoApic.Pins[14].Set(false);
        board.IoApic.WriteMmio(0x40, 4, 0x76);
        Assert.Equal(RemoteIrr, board.Redirection(14) & RemoteIrr);
        board.IoApic.WriteMmio(0x40, 4, 0x77);
        Assert.Equal(0UL, board.Redirection(14) & RemoteIrr);
    }

    [Fact]
    public void LevelToNobodyLeavesNoRemoteIrr()
    {
        var board = new Board();
        board.Redirect(14, 0x77 | Level | 9UL << 56);
        board.IoApic.Pins[14].Set(true);
        Assert.Equal(0UL, board.Redirection(14) & RemoteIrr);
        board.Redirect(14, 0x77 | Level);
        Assert.Equal(0x77, board[0].Take());
    }

    [Fact]
    public void LogicalDestinationReachesX2Members()
    {
        var board = new Board(4);
        foreach (FakeProcessor cpu in board.Processors)
            cpu.EnableX2();
        board.Redirect(14, 0x86 | Level | 1 << 11 | 0xDUL << 56);
        board.IoApic.Pins[14].Set(true);
        Assert.Equal([0x86, -1, 0x86, 0x86], board.Processors.Select(p => p.Take()));
    }

    [Fact]
    public void OtherDeliveryModes()
    {
        var board = new Board(2);
        board.Pic.ConfigureLikeFirmware(0x10);
        board.Redirect(5, 0x400 | 1UL << 56);
        board.IoApic.Pins[5].Pulse();
        Assert.Equal(1, board[1].Pins.Nmis);
        board.Router.Connect(4).Set(true);
        board.Redirect(0, 0x700 | 1UL << 56);
        board.IoApic.Pins[0].Pulse();
        Assert.Equal(0x0C, board[1].Take());
    }

    [Fact]
    public void SmallAccesses()
    {
        var board = new Board();
        board.IoApic.WriteMmio(0, 1, 1);
        Assert.Equal(0x20UL, board.IoApic.ReadMmio(0x10, 1));
        Assert.Equal(1UL, board.IoApic.ReadMmio(0, 4));
        Assert.Equal(0UL, board.IoApic.ReadMmio(0x30, 4));
    }

    [Fact]
    public void IsaInterruptsReachBothControllersAndSharedLinesAreWiredOr()
    {
        var board = new Board();
        board.Pic.ConfigureLikeFirmware(0xFFFF);
        board[0].Write(0x350, 0x10700);
        board.Redirect(2, 0x30);
        board.Redirect(11, 0x3B | Level);
        board.Router.Connect(0).Pulse();
        Assert.Equal(0x30, board[0].Take());
        board[0].Eoi();
        Assert.Equal(0x08, board.Pic.Acknowledge());
        IInterruptLine first = board.Router.Connect(11), second = board.Router.Connect(11);
        first.Set(true);
        second.Set(true);
        Assert.Equal(0x3B, board[0].Take());
        first.Set(false);
        board[0].Eoi();
        Assert.Equal(0x3B, board[0].Take());
        second.Set(false);
        board[0].Eoi();
        Assert.Equal(-1, board[0].Take());
    }

    [Fact]
    public void HighGsisReachOnlyTheIoApic()
    {
        var board = new Board();
        board.Redirect(20, 0x44);
        board.Router.Connect(20).Pulse();
        Assert.Equal(0x44, board[0].Take());
        Assert.Throws<ArgumentOutOfRangeException>(() => board.Router.Connect(24));
    }
}
