namespace Aerostat.Chipset.Tests;

public sealed class InterruptFabricTests
{
    private static int[] Takers(Board board, int vector)
    {
        var takers = new List<int>();
        for (int i = 0; i < board.Processors.Length; i++)
        {
            while (board[i].Take() is int taken and >= 0)
            {
                Assert.Equal(vector, taken);
                takers.Add(i);
                if (board[i].Apic.IsX2Mode)
                    board[i].Wrmsr(0x80B, 0);
                else
                    board[i].Eoi();
            }
        }
        return [.. takers];
    }

    private static void Send(Board board, uint destination, uint command)
    {
        board[0].Write(0x310, destination << 24);
        board[0].Write(0x300, command);
    }

    [Fact]
    public void PhysicalDestinationsReachOneOrAll()
    {
        var board = new Board(4);
        Send(board, 2, 0x4041);
        Assert.Equal([2], Takers(board, 0x41));
        Send(board, 0xFF, 0x4042);
        Assert.Equal([0, 1, 2, 3], Takers(board, 0x42));
        Send(board, 9, 0x4043);
        Assert.Equal([], Takers(board, 0x43));
    }

    [Fact]
    public void ShorthandsIgnoreTheDestination()
    {
        var board = new Board(4);
        Send(board, 3, 0x44041);
        Assert.Equal([0], Takers(board, 0x41));
        Send(board, 3, 0x84042);
        Assert.Equal([0, 1, 2, 3], Takers(board, 0x42));
        Send(board, 3, 0xC4043);
        Assert.Equal([1, 2, 3], Takers(board, 0x43));
        Send(board, 0, 0xC4400);
        Assert.Equal([0, 1, 1, 1], board.Processors.Select(p => p.Pins.Nmis));
    }

    [Fact]
    public void EveryFlatLogicalDestinationReachesItsMembers()
    {
        var board = new Board(4);
        for (int i = 0; i < 4; i++)
            board[i].Write(0xD0, 1u << (24 + i));
        for (uint mask = 0; mask < 256; mask++)
        {
            Send(board, mask, 0x4841);
            Assert.Equal(Enumerable.Range(0, 4).Where(i => (mask & 1 << i) != 0), Takers(board, 0x41));
        }
    }

    [Fact]
    public void ClusterDestinationsReachMembersOfTheirCluster()
    {
        var board = new Board(4);
        byte[] ids = [0x11, 0x12, 0x21, 0x28];
        for (int i = 0; i < 4; i++)
        {
            board[i].Write(0xE0, 0x0FFFFFFF);
            board[i].Write(0xD0, (uint)ids[i] << 24);
        }
        Send(board, 0x13, 0x4841);
        Assert.Equal([0, 1], Takers(board, 0x41));
        Send(board, 0x29, 0x4841);
        Assert.Equal([2, 3], Takers(board, 0x41));
        Send(board, 0x3F, 0x4841);
        Assert.Equal([], Takers(board, 0x41));
        Send(board, 0xFF, 0x4841);
        Assert.Equal([0, 1, 2, 3], Takers(board, 0x41));
    }

    [Fact]
    public void X2LogicalIdsFollowFromTheIdAndClustersHoldSixteen()
    {
        var board = new Board(20);
        foreach (FakeProcessor cpu in board.Processors)
            cpu.EnableX2();
        Assert.Equal(0x0001_0004UL, board[18].Msr(0x80D));
        board[0].Wrmsr(0x830, 0x0001_000CUL << 32 | 0x4841);
        Assert.Equal([18, 19], Takers(board, 0x41));
        board[0].Wrmsr(0x830, 0x0000_8001UL << 32 | 0x4841);
        Assert.Equal([0, 15], Takers(board, 0x41));
        board[0].Wrmsr(0x830, 17UL << 32 | 0x4041);
        Assert.Equal([17], Takers(board, 0x41));
        board[0].Wrmsr(0x830, 0xFFFFFFFFUL << 32 | 0x4041);
        Assert.Equal(20, Takers(board, 0x41).Length);
        // 0xFF is no broadcast for an x2APIC sender.
        board[0].Wrmsr(0x830, 0xFFUL << 32 | 0x4041);
        Assert.Equal([], Takers(board, 0x41));
        Assert.False(board[0].Apic.WriteMsr(0x830, 0x2000));
        Assert.False(board[0].Apic.WriteMsr(0x830, 0x10000));
    }

    [Fact]
    public void AliasedIdsAllTakeTheInterrupt()
    {
        var board = new Board(2);
        board[1].Write(0x20, 0);
        Send(board, 0, 0x4041);
        Assert.Equal([0, 1], Takers(board, 0x41));
    }

    [Fact]
    public void LowestPriorityGoesToOneAndTakesTurns()
    {
        var board = new Board(4);
        int[] counts = new int[4];
        for (int i = 0; i < 400; i++)
        {
            Send(board, 0xFF, 0x4141);
            counts[Assert.Single(Takers(board, 0x41))]++;
        }
        Assert.All(counts, c => Assert.Equal(100, c));
        board[0].Apic.TaskPriority = 2;
        board[1].Apic.TaskPriority = 2;
        board[3].Apic.TaskPriority = 1;
        Send(board, 0xFF, 0x4141);
        Assert.Equal([2], Takers(board, 0x41));
    }

    [Fact]
    public void LowestPriorityPassesOverDisabledProcessors()
    {
        var board = new Board(2, enable: false);
        board[1].Enable();
        for (int i = 0; i < 4; i++)
        {
            board.Fabric.Send(0xFEEFF000, 0x4141);
            Assert.Equal([1], Takers(board, 0x41));
        }
    }

    [Fact]
    public void MessageSignalledInterruptsAreDecoded()
    {
        var board = new Board(4);
        board.Fabric.Send(0xFEE02000, 0x4051);
        Assert.Equal([2], Takers(board, 0x51));
        board[1].Write(0xD0, 2 << 24);
        board[3].Write(0xD0, 8 << 24);
        board.Fabric.Send(0xFEE0A004, 0x52);
        Assert.Equal([1, 3], Takers(board, 0x52));
        board.Fabric.Send(0xFEE0A00C, 0x53);
        Assert.Single(Takers(board, 0x53));
        board.Fabric.Send(0xFED00000, 0x54);
        board.Fabric.Send(0x1_FEE00000, 0x54);
        board.Fabric.Send(0xFEE00000, 0x8054);
        Assert.Equal([], Takers(board, 0x54));
        board.Fabric.Send(0xFEE03000, 0x0400);
        Assert.Equal(1, board[3].Pins.Nmis);
    }

    [Fact]
    public void DisabledApicsHearNothing()
    {
        var board = new Board(2);
        board[1].Wrmsr(0x1B, 0xFEE00000);
        Send(board, 1, 0x4041);
        Send(board, 1, 0x4400);
        Send(board, 1, 0x4500);
        Assert.Equal((0, 0), (board[1].Pins.Nmis, board[1].Pins.Inits));
        Assert.False(board[1].Pins.Requested);
    }

    [Fact]
    public async Task NoInterruptIsLostBetweenThreads()
    {
        // Senders on other threads race with an owner that keeps changing its priority. Each sender waits for its interrupt to
        // be served before it sends the next, so a lost one stops the test.
        const int Senders = 3, Rounds = 3_000;
        var board = new Board(Senders + 1);
        int[] served = new int[Senders + 1];
        CancellationToken token = TestContext.Current.CancellationToken;
        using var guard = CancellationTokenSource.CreateLinkedTokenSource(token);
        guard.CancelAfter(TimeSpan.FromMinutes(2));
        Task[] senders = [.. Enumerable.Range(1, Senders).Select(n => Task.Run(() =>
        {
            for (int i = 1; i <= Rounds; i++)
            {
                board[n].Write(0x310, 0);
                board[n].Write(0x300, (uint)(0x4000 | (n + 3) << 4));
                var spin = new SpinWait();
                while (Volatile.Read(ref served[n]) != i)
                {
                    guard.Token.ThrowIfCancellationRequested();
                    spin.SpinOnce(-1);
                }
            }
        }, token))];
        Task owner = Task.Run(() =>
        {
            FakeProcessor cpu = board[0];
            ulong step = 0;
            while (served.Sum() < Senders * Rounds)
            {
                guard.Token.ThrowIfCancellationRequested();
                cpu.Apic.TaskPriority = step++ % 8;
                cpu.Apic.TaskPriority = 0;
                int vector = cpu.Take();
                if (vector < 0)
                    continue;
                cpu.Eoi();
                Volatile.Write(ref served[(vector >> 4) - 3], served[(vector >> 4) - 3] + 1);
            }
        }, token);
        await Task.WhenAll([.. senders, owner]);
        Assert.Equal(Senders * Rounds, served.Sum());
    }
}
