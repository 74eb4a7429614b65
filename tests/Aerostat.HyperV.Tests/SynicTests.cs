namespace Aerostat.HyperV.Tests;

/// <summary>The synthetic interrupt controller: messages, events, interrupts, timers.</summary>
public sealed class SynicTests
{
    private const ulong Masked = 1 << 16, AutomaticEnd = 1 << 17, Polling = 1 << 18;

    private static SynicMessage Message(byte number) => new(1, 77, [number, 0, 0, 0, 0, 0, 0, 0]);

    [Fact]
    public void AMessageArrivesWithAnInterrupt()
    {
        using PartitionFixture f = new();
        f.EnableSynic(1);
        Assert.True(f[1].Post(2, Message(5)));
        Assert.Equal((1u, (byte)0, 5UL), (f.MessageType(1), f.MessageFlags(1), f.Payload(1)));
        Assert.Equal((0xF3, -1, -1), (f.TakeInterrupt(1), f.TakeInterrupt(1), f.TakeInterrupt(0)));
    }

    [Fact]
    public void MessagesToOneSlotComeInOrder()
    {
        using PartitionFixture f = new();
        f.EnableSynic(0);
        for (byte i = 1; i <= 5; i++)
            f[0].Post(2, Message(i));
        for (byte i = 1; i <= 5; i++)
        {
            Assert.Equal((i, i == 5 ? 0 : 1), ((byte)f.Payload(0), f.MessageFlags(0)));
            Assert.Equal(0xF3, f.TakeInterrupt(0));
            f.TakeMessage(0);
        }
        Assert.Equal((0u, -1), (f.MessageType(0), f.TakeInterrupt(0)));
    }

    [Fact]
    public void AFullQueueTakesNoMore()
    {
        using PartitionFixture f = new();
        int taken = 0;
        while (f[0].Post(2, Message(1)))
            taken++;
        Assert.Equal(SyntheticInterruptController.QueueLimit, taken);
        Assert.Equal(taken, f[0].Waiting(2));
        f[0].Drop(2);
        Assert.Equal(0, f[0].Waiting(2));
    }

    public static TheoryData<uint, ulong> WhatOpensASource => new()
    {
        { HyperVMsr.SControl, 1 },
        { HyperVMsr.Simp, PartitionFixture.MessagePage | 1 },
        { HyperVMsr.Sint0 + 2, 0xF3 },
    };

    [Theory]
    [MemberData(nameof(WhatOpensASource))]
    public void WhatCannotBeShownIsKept(uint last, ulong value)
    {
        using PartitionFixture f = new();
        foreach ((uint msr, ulong v) in WhatOpensASource.Select(r => r.Data))
        {
            if (msr != last)
                f.Write(0, msr, v);
        }
        f.Write(0, HyperVMsr.Siefp, PartitionFixture.EventPage | 1);
        f[0].Post(2, Message(9));
        Assert.Equal(-1, f.TakeInterrupt(0));
        f.Write(0, last, value);
        Assert.Equal((9UL, 0xF3), (f.Payload(0), f.TakeInterrupt(0)));
    }

    [Fact]
    public void AnEventRaisesOneInterruptUntilItsFlagIsTaken()
    {
        using PartitionFixture f = new();
        f.EnableSynic(0);
        f[0].Signal(2, 100);
        f[0].Signal(2, 100);
        Memory.GuestAddress word = new(PartitionFixture.EventPage + (2 * 256) + 8);
        Assert.Equal(1UL << 36, f.Memory.Read<ulong>(word));
        Assert.Equal((0xF3, -1), (f.TakeInterrupt(0), f.TakeInterrupt(0)));
        f[0].Signal(2, 101);
        Assert.Equal(0xF3, f.TakeInterrupt(0));
        f.Memory.Write(word, 0UL);
        f.Write(0, HyperVMsr.Sint0 + 2, 0xF3 | Masked);
        f[0].Signal(2, 100);
        Assert.Equal((0UL, -1), (f.Memory.Read<ulong>(word), f.TakeInterrupt(0)));
        f.Write(0, HyperVMsr.Sint0 + 2, 0xF3);
        Assert.Equal((1UL << 36, 0xF3), (f.Memory.Read<ulong>(word), f.TakeInterrupt(0)));
    }

    [Fact]
    public void AnAutomaticEndLeavesNothingInService()
    {
        using PartitionFixture f = new();
        f.EnableSynic(0, flags: AutomaticEnd);
        f[0].Signal(2, 1);
        Assert.Equal(0xF3, f.Apics[0].AcknowledgeInterrupt());
        f[0].Signal(2, 2);
        Assert.Equal((0xF3, -1), (f.Apics[0].AcknowledgeInterrupt(), f.Apics[0].AcknowledgeInterrupt()));
        f.Write(0, HyperVMsr.Sint0 + 2, 0xF3);
        f[0].Signal(2, 3);
        Assert.Equal(0xF3, f.Apics[0].AcknowledgeInterrupt());
        f[0].Signal(2, 4);
        // Now somebody has to end the first.
        Assert.Equal(-1, f.Apics[0].AcknowledgeInterrupt());
        f.Write(0, HyperVMsr.Eoi, 0);
        Assert.Equal(0xF3, f.Apics[0].AcknowledgeInterrupt());
    }

    [Fact]
    public void APolledSourceRaisesNothing()
    {
        using PartitionFixture f = new();
        f.EnableSynic(0, flags: Polling);
        f[0].Post(2, Message(3));
        Assert.Equal((1u, -1), (f.MessageType(0), f.TakeInterrupt(0)));
    }

    [Theory]
    [InlineData(15UL, false)]
    [InlineData(16UL, true)]
    [InlineData(15UL | Masked, true)]
    public void VectorsBelow16AreForExceptions(ulong value, bool taken)
    {
        using PartitionFixture f = new();
        Assert.Equal(taken, f[0].WriteMsr(HyperVMsr.Sint0 + 4, value));
    }

    [Fact]
    public void AOneShotTimerSendsAMessageAndStops()
    {
        using PartitionFixture f = new();
        f.EnableSynic(0);
        ulong due = f.Read(0, HyperVMsr.TimeRefCount) + 10_000;
        f.Write(0, HyperVMsr.StimerFirst + 3, due);
        f.Write(0, HyperVMsr.StimerFirst + 2, 1 | (2 << 16));
        f.Time.Advance(TimeSpan.FromMicroseconds(990));
        Assert.Equal((0u, -1), (f.MessageType(0), f.TakeInterrupt(0)));
        f.Time.Advance(TimeSpan.FromMicroseconds(20));
        Assert.Equal((0x8000_0010u, 1UL, due, 0xF3), (f.MessageType(0), f.Payload(0), f.Payload(0, at: 8), f.TakeInterrupt(0)));
        Assert.InRange(f.Payload(0, at: 16), due, due + 10);
        Assert.Equal(0UL, f.Read(0, HyperVMsr.StimerFirst + 2) & 1);
        f.TakeMessage(0);
        f.Time.Advance(TimeSpan.FromSeconds(1));
        Assert.Equal(0u, f.MessageType(0));
    }

    [Fact]
    public void ATimerWhoseSlotIsFullWaits()
    {
        using PartitionFixture f = new();
        f.EnableSynic(0);
        f[0].Post(2, Message(1));
        f.Write(0, HyperVMsr.StimerFirst, 1 | (2 << 16));
        f.Write(0, HyperVMsr.StimerFirst + 1, 1);
        Assert.Equal((1u, (byte)1), (f.MessageType(0), f.MessageFlags(0)));
        f.TakeMessage(0);
        Assert.Equal(0x8000_0010u, f.MessageType(0));
    }

    [Fact]
    public void APeriodicTimerKeepsItsPaceAndLeavesOutWhatItMissed()
    {
        using PartitionFixture f = new();
        f.EnableSynic(0);
        f.Write(0, HyperVMsr.StimerFirst, 1 | 2 | (0x50 << 4) | (1 << 12));
        f.Write(0, HyperVMsr.StimerFirst + 1, 10_000);
        f.Write(0, HyperVMsr.StimerFirst, 1 | 2 | (0x50 << 4) | (1 << 12));
        int fired = 0;
        for (int i = 0; i < 100; i++)
        {
            f.Time.Advance(TimeSpan.FromMilliseconds(1));
            fired += f.TakeInterrupt(0) == 0x50 ? 1 : 0;
        }
        Assert.InRange(fired, 99, 100);
        f.Write(0, HyperVMsr.StimerFirst + 1, 0);
        Assert.Equal(0UL, f.Read(0, HyperVMsr.StimerFirst) & 1);
        f.Time.Advance(TimeSpan.FromSeconds(1));
        Assert.Equal(-1, f.TakeInterrupt(0));
    }

    [Fact]
    public void WritingTheCountEnablesATimerThatWantsIt()
    {
        using PartitionFixture f = new();
        f.Write(0, HyperVMsr.StimerFirst + 4, 8 | (0x51 << 4) | (1 << 12));
        f.Write(0, HyperVMsr.StimerFirst + 5, 1);
        Assert.Equal(0x51, f.TakeInterrupt(0));
        // In message mode source 0 is not for timers.
        f.Write(0, HyperVMsr.StimerFirst, 1);
        Assert.Equal(0UL, f.Read(0, HyperVMsr.StimerFirst) & 1);
    }

    [Fact]
    public void StateGoesOnWhereItWas()
    {
        using PartitionFixture f = new(), g = new();
        f.EnableHypercalls();
        f.Write(0, HyperVMsr.ReferenceTsc, PartitionFixture.TscPage | 1);
        f.EnableSynic(1, flags: AutomaticEnd);
        f[1].Post(2, Message(1));
        f[1].Post(2, Message(2));
        f[1].Signal(5, 9);
        ulong due = f.Read(1, HyperVMsr.TimeRefCount) + 50_000;
        f.Write(1, HyperVMsr.StimerFirst, 1 | 8 | (0x52 << 4) | (1 << 12));
        f.Write(1, HyperVMsr.StimerFirst + 1, due);
        foreach (ulong page in (ulong[])[PartitionFixture.MessagePage + 0x1000, PartitionFixture.EventPage + 0x1000, PartitionFixture.HypercallPage, PartitionFixture.TscPage])
        {
            byte[] bytes = new byte[4096];
            f.Memory.TryRead(new(page), bytes);
            g.Memory.TryWrite(new(page), bytes);
        }
        g.Partition.Restore(f.Partition.Save());
        g[1].Restore(f[1].Save());
        foreach (uint msr in (uint[])[HyperVMsr.GuestOsId, HyperVMsr.Hypercall, HyperVMsr.ReferenceTsc, HyperVMsr.Simp, HyperVMsr.Siefp, HyperVMsr.SControl, HyperVMsr.Sint0 + 2, HyperVMsr.StimerFirst])
            Assert.Equal(f.Read(1, msr), g.Read(1, msr));
        Assert.Equal(1UL, g.Payload(1));
        g.TakeMessage(1);
        Assert.Equal((2UL, 0xF3), (g.Payload(1), g.TakeInterrupt(1)));
        g.Time.Advance(TimeSpan.FromMilliseconds(6));
        Assert.Equal(0x52, g.TakeInterrupt(1));
        g.Write(1, HyperVMsr.Sint0 + 5, 0x60);
        Assert.Equal(0x60, g.TakeInterrupt(1));
        // What lay under the page is there again after it goes.
        g.Write(0, HyperVMsr.Hypercall, 0);
        Assert.Equal(0UL, g.Memory.Read<ulong>(new(PartitionFixture.HypercallPage)));
    }
}
