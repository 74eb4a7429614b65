using Aerostat.Devices;
using Xunit;

namespace Aerostat.Machine.Tests;

/// <summary>The ring of what happened.</summary>
public sealed class MachineJournalTests
{
    private static CancellationToken Token => TestContext.Current.CancellationToken;

    [Fact]
    public void TheOldestGoFirstAndNumbersTell()
    {
        MachineJournal journal = new(3);
        Assert.Empty(journal.Read(0));
        for (int i = 1; i <= 5; i++)
            journal.Write("kind", $"message {i}");
        Assert.Equal([(3L, "message 3"), (4, "message 4"), (5, "message 5")], journal.Read(0).Select(e => (e.Sequence, e.Message)));
        Assert.Equal([5L], journal.Read(4).Select(e => e.Sequence));
        Assert.Empty(journal.Read(5));
        Assert.Empty(journal.Read(long.MaxValue));
        Assert.Equal(3, journal.Read(long.MinValue).Count);
        Assert.Equal(5, journal.Last);
    }

    [Fact]
    public void AMessageIsNotLong()
    {
        MachineJournal journal = new();
        journal.Write("kind", new string('x', 100_000));
        Assert.Equal(500, journal.Read(0)[0].Message.Length);
    }

    [Fact]
    public async Task WhoWaitsIsWoken()
    {
        MachineJournal journal = new();
        Task first = journal.WaitAsync(0, Token), second = journal.WaitAsync(0, Token), later = journal.WaitAsync(1, Token);
        Assert.False(first.IsCompleted);
        journal.Write("kind", "one");
        await first.WaitAsync(TimeSpan.FromMinutes(1), Token);
        await second.WaitAsync(TimeSpan.FromMinutes(1), Token);
        Assert.True(journal.WaitAsync(0, Token).IsCompleted);
        // It may be woken early: whoever waits reads, and waits again.
        Assert.Empty(journal.Read(1));
        journal.Write("kind", "two");
        await later.WaitAsync(TimeSpan.FromMinutes(1), Token);
        using CancellationTokenSource over = new();
        Task cancelled = journal.WaitAsync(2, over.Token);
        await over.CancelAsync();
        await Assert.ThrowsAnyAsync<OperationCanceledException>(() => cancelled);
    }

    [Fact]
    public void WhatDevicesComplainOfIsKept()
    {
        MachineJournal journal = new();
        Collected next = new();
        new JournaledLog(journal, next).Warn("rng", "the ring is broken");
        new JournaledLog(journal, null).Warn("rng", "again");
        Assert.Equal(["has a complaint from rng: the ring is broken", "has a complaint from rng: again"], journal.Read(0).Select(e => e.Message));
        Assert.Equal(["rng the ring is broken"], next.Lines);
    }

    private sealed class Collected : IDeviceLog
    {
        public List<string> Lines { get; } = [];

        public void Warn(string device, string message) => Lines.Add($"{device} {message}");
    }
}
