namespace Aerostat.Chipset.Tests;

public sealed class LocalApicTimerTests
{
    private const uint Periodic = 1 << 17;
    private const uint Deadline = 2 << 17;
    private const uint Masked = 1 << 16;

    // 25 MHz: one count is 40 ns at divider 1 (0xB).
    private static (Board Board, FakeProcessor Cpu) Make(uint entry, uint divide = 0xB)
    {
        var board = new Board();
        board[0].Write(0x320, entry);
        board[0].Write(0x3E0, divide);
        return (board, board[0]);
    }

    [Fact]
    public void OneShotFiresOnceAtItsTime()
    {
        (Board board, FakeProcessor cpu) = Make(0xEE);
        cpu.Write(0x380, 1000);
        board.Time.Advance(39_999);
        Assert.False(cpu.Pins.Requested);
        Assert.Equal(1u, cpu.Read(0x390));
        board.Time.Advance(1);
        Assert.Equal(0xEE, cpu.Take());
        Assert.Equal(0u, cpu.Read(0x390));
        cpu.Eoi();
        board.Time.AdvanceMilliseconds(1_000);
        Assert.Equal(-1, cpu.Take());
        Assert.Equal(0, board.Time.Armed);
    }

    [Theory]
    [InlineData(0xB, 1)]
    [InlineData(0x0, 2)]
    [InlineData(0x1, 4)]
    [InlineData(0x2, 8)]
    [InlineData(0x3, 16)]
    [InlineData(0x8, 32)]
    [InlineData(0x9, 64)]
    [InlineData(0xA, 128)]
    public void DividerSlowsTheCount(uint code, int divider)
    {
        (Board board, FakeProcessor cpu) = Make(0xEE, code);
        cpu.Write(0x380, 10_000);
        board.Time.Advance(40L * divider * 4_000);
        Assert.Equal(6_000u, cpu.Read(0x390));
        board.Time.Advance(40L * divider * 6_000 - 1);
        Assert.False(cpu.Pins.Requested);
        board.Time.Advance(1);
        Assert.True(cpu.Pins.Requested);
    }

    [Fact]
    public void PeriodicKeepsItsPhaseAndDoesNotDrift()
    {
        (Board board, FakeProcessor cpu) = Make(0xEE | Periodic);
        // 7,777 counts of 40 ns: no whole number of 100 ns timer units.
        cpu.Write(0x380, 7_777);
        int fired = 0;
        for (int i = 0; i < 100_000; i++)
        {
            board.Time.Advance(7_777 * 4);
            if (cpu.Take() == 0xEE)
            {
                fired++;
                cpu.Eoi();
            }
        }
        Assert.Equal(10_000, fired);
    }

    [Fact]
    public void LatePeriodsCoalesceAndThePhaseStays()
    {
        (Board board, FakeProcessor cpu) = Make(0xEE | Periodic);
        cpu.Write(0x380, 25_000);
        board.Time.Lag(3_500_000);
        board.Time.Advance(0);
        Assert.Equal(0xEE, cpu.Take());
        cpu.Eoi();
        Assert.Equal(-1, cpu.Take());
        board.Time.Advance(499_999);
        Assert.Equal(-1, cpu.Take());
        board.Time.Advance(1);
        Assert.Equal(0xEE, cpu.Take());
    }

    [Fact]
    public void ShortestPeriodsDoNotStormTheHost()
    {
        (Board board, FakeProcessor cpu) = Make(0xEE | Periodic);
        cpu.Write(0x380, 1);
        board.Time.AdvanceMilliseconds(10);
        Assert.InRange(board.Time.Calls, 100, 210);
    }

    [Fact]
    public void ChangingModeKeepsTheCountRunning()
    {
        (Board board, FakeProcessor cpu) = Make(0xEE);
        cpu.Write(0x380, 10_000);
        board.Time.Advance(240_000);
        Assert.Equal(4_000u, cpu.Read(0x390));
        cpu.Write(0x320, 0xEE | Periodic);
        Assert.Equal(4_000u, cpu.Read(0x390));
        Assert.Equal(10_000u, cpu.Read(0x380));
        board.Time.Advance(200_000);
        Assert.Equal(0xEE, cpu.Take());
        cpu.Eoi();
        Assert.Equal(9_000u, cpu.Read(0x390));
        // Back to one-shot: this round is the last.
        cpu.Write(0x320, 0xEE);
        Assert.Equal(9_000u, cpu.Read(0x390));
        board.Time.Advance(360_000);
        Assert.Equal(0xEE, cpu.Take());
        Assert.Equal(0u, cpu.Read(0x390));
        // A counter that has run out stays at zero.
        cpu.Write(0x320, 0xEE | Periodic);
        Assert.Equal(0u, cpu.Read(0x390));
    }

    [Fact]
    public void ChangingTheDividerKeepsTheCount()
    {
        (Board board, FakeProcessor cpu) = Make(0xEE);
        cpu.Write(0x380, 10_000);
        board.Time.Advance(200_000);
        cpu.Write(0x3E0, 0);
        Assert.Equal(5_000u, cpu.Read(0x390));
        board.Time.Advance(80);
        Assert.Equal(4_999u, cpu.Read(0x390));
    }

    [Fact]
    public void MaskedTimerCountsButNeitherFiresNorArms()
    {
        (Board board, FakeProcessor cpu) = Make(0xEE | Masked);
        cpu.Write(0x380, 1000);
        Assert.Equal(0, board.Time.Armed);
        board.Time.Advance(20_000);
        Assert.Equal(500u, cpu.Read(0x390));
        board.Time.Advance(30_000);
        cpu.Write(0x320, 0xEE);
        Assert.Equal(-1, cpu.Take());
    }

    [Fact]
    public void UnmaskingARunningCountLetsItFire()
    {
        (Board board, FakeProcessor cpu) = Make(0xEE | Masked);
        cpu.Write(0x380, 1000);
        board.Time.Advance(20_000);
        cpu.Write(0x320, 0xEF);
        board.Time.Advance(20_000);
        Assert.Equal(0xEF, cpu.Take());
    }

    [Fact]
    public void WritingZeroStops()
    {
        (Board board, FakeProcessor cpu) = Make(0xEE | Periodic);
        cpu.Write(0x380, 1000);
        cpu.Write(0x380, 0);
        Assert.Equal(0u, cpu.Read(0x390));
        Assert.Equal(0, board.Time.Armed);
    }

    [Fact]
    public void DeadlineFiresOnceAndClears()
    {
        (Board board, FakeProcessor cpu) = Make(0xEF | Deadline);
        board.Time.Advance(1_000);
        // 2 GHz.
        cpu.Wrmsr(0x6E0, cpu.Timestamp.Read() + 2_001);
        Assert.Equal(4_001UL, cpu.Msr(0x6E0));
        board.Time.Advance(1_000);
        Assert.Equal(-1, cpu.Take());
        board.Time.Advance(100);
        Assert.Equal(0xEF, cpu.Take());
        Assert.Equal(0UL, cpu.Msr(0x6E0));
        Assert.Equal(0, board.Time.Armed);
    }

    [Fact]
    public void PastDeadlineFiresAtOnce()
    {
        (Board board, FakeProcessor cpu) = Make(0xEF | Deadline);
        board.Time.Advance(1_000);
        cpu.Wrmsr(0x6E0, cpu.Timestamp.Read());
        Assert.Equal(0xEF, cpu.Take());
        Assert.Equal(0UL, cpu.Msr(0x6E0));
    }

    [Fact]
    public void ZeroDisarmsADeadline()
    {
        (Board board, FakeProcessor cpu) = Make(0xEF | Deadline);
        cpu.Wrmsr(0x6E0, 2_000_000);
        cpu.Wrmsr(0x6E0, 0);
        board.Time.AdvanceMilliseconds(10);
        Assert.Equal(-1, cpu.Take());
    }

    [Fact]
    public void DeadlineIsIgnoredInOtherModesAndTheCountInThisOne()
    {
        (Board board, FakeProcessor cpu) = Make(0xEF);
        cpu.Wrmsr(0x6E0, 1);
        Assert.Equal(0UL, cpu.Msr(0x6E0));
        cpu.Write(0x380, 1000);
        cpu.Write(0x320, 0xEF | Deadline);
        Assert.Equal(0u, cpu.Read(0x390));
        cpu.Write(0x380, 1000);
        Assert.Equal(0u, cpu.Read(0x390));
        board.Time.AdvanceMilliseconds(10);
        Assert.Equal(-1, cpu.Take());
        cpu.Wrmsr(0x6E0, ulong.MaxValue);
        cpu.Write(0x320, 0xEF);
        cpu.Write(0x320, 0xEF | Deadline);
        Assert.Equal(0UL, cpu.Msr(0x6E0));
    }

    [Fact]
    public void AdjustingTheTimestampCounterMovesTheDeadline()
    {
        (Board board, FakeProcessor cpu) = Make(0xEF | Deadline);
        cpu.Wrmsr(0x6E0, 2_000_000);
        cpu.Timestamp.Adjust(1_000_000);
        board.Time.AdvanceMicroseconds(499);
        Assert.Equal(-1, cpu.Take());
        board.Time.AdvanceMicroseconds(1);
        Assert.Equal(0xEF, cpu.Take());
    }

    [Fact]
    public void FarDeadlinesDoNotOverflow()
    {
        (Board board, FakeProcessor cpu) = Make(0xEF | Deadline);
        cpu.Wrmsr(0x6E0, ulong.MaxValue);
        board.Time.AdvanceMilliseconds(3_600_000L * 30);
        Assert.Equal(-1, cpu.Take());
        Assert.Equal(ulong.MaxValue, cpu.Msr(0x6E0));
    }

    [Fact]
    public void InitStopsTheTimer()
    {
        (Board board, FakeProcessor cpu) = Make(0xEE | Periodic);
        cpu.Write(0x380, 1000);
        cpu.Write(0x300, 0x4500);
        board.Time.AdvanceMilliseconds(1);
        Assert.Equal(-1, cpu.Take());
        Assert.Equal(0u, cpu.Read(0x380));
    }
}
