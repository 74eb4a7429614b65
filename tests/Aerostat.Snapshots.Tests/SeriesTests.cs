using Aerostat.Hosting;
using Aerostat.Machine;
using Aerostat.Memory;
using Xunit;

namespace Aerostat.Snapshots.Tests;

/// <summary>Differential snapshots, what pages are in them, and what becomes of a series when one of it changes.</summary>
public sealed class SeriesTests
{
    [Fact]
    public async Task ASeriesGivesEveryStateBack()
    {
        using TestFolder folder = new();
        Random random = new(11);
        List<byte[]> states = [];
        await using (VirtualMachine machine = SmallMachine.Create())
        {
            using MachineSnapshots snapshots = new(machine);
            for (int i = 0; i < 8; i++)
            {
                for (int n = random.Next(6); n >= 0; n--)
                {
                    ulong page = (ulong)random.Next(1, 900);
                    int count = random.Next(1, 100);
                    switch (random.Next(4))
                    {
                        case 0:
                            Assert.Equal(DiscardResult.Done, machine.Memory.Discard(new GuestAddress(page << 12), (ulong)count << 12));
                            break;
                        case 1:
                            machine.Memory.TryZero(new GuestAddress(page << 12), (ulong)count << 12);
                            break;
                        default:
                            SmallMachine.Fill(machine.Memory, random, page, count);
                            break;
                    }
                }
                SnapshotResult result = await snapshots.SaveAsync(folder[$"s{i}"], new SnapshotOptions { Differential = i > 0 && i != 4, Durable = false }, TestContext.Current.CancellationToken);
                Assert.Equal(SmallMachine.Bytes, result.DataBytes + result.ZeroBytes + result.HintedBytes + result.UnchangedBytes);
                Assert.Equal(i is 0 or 4, result.UnchangedBytes == 0);
                states.Add(SmallMachine.Contents(machine));
            }
        }
        for (int i = 0; i < states.Count; i++)
        {
            Snapshot snapshot = Snapshot.Open(folder[$"s{i}"]);
            Assert.Equal(i < 4 ? i + 1 : i - 3, snapshot.Chain.Count);
            snapshot.Verify();
            await using VirtualMachine machine = Machines.Restore(snapshot);
            Assert.True(states[i].AsSpan().SequenceEqual(SmallMachine.Contents(machine)), $"snapshot {i}");
            string flat = folder[$"flat{i}"];
            snapshot.Flatten(flat);
            Snapshot whole = Snapshot.Open(flat);
            whole.Verify();
            Assert.Null(whole.Parent);
            Assert.Equal(snapshot.Manifest.State.Timestamp, whole.Manifest.State.Timestamp);
            await using VirtualMachine same = Machines.Restore(whole);
            Assert.True(states[i].AsSpan().SequenceEqual(SmallMachine.Contents(same)), $"flattened snapshot {i}");
        }
    }

    /// <summary>What lies between contents of one file is only mapped with them where that file has nothing.</summary>
    [Fact]
    public async Task WhatBecomesZeroBetweenOldContentsIsZero()
    {
        using TestFolder folder = new();
        byte[] contents;
        await using (VirtualMachine machine = SmallMachine.Create())
        {
            using MachineSnapshots snapshots = new(machine);
            SmallMachine.Fill(machine.Memory, new Random(1), 100, 50);
            SmallMachine.Fill(machine.Memory, new Random(1), 200, 10);
            SmallMachine.Fill(machine.Memory, new Random(1), 230, 10);
            await snapshots.SaveAsync(folder["full"], new SnapshotOptions { Durable = false }, TestContext.Current.CancellationToken);
            machine.Memory.Write(new GuestAddress(120 << 12), new byte[4096]);
            machine.Memory.Discard(new GuestAddress(130 << 12), 10 << 12);
            // In a gap, and beyond it.
            machine.Memory.Discard(new GuestAddress(209 << 12), 25 << 12);
            await snapshots.SaveAsync(folder["changes"], new SnapshotOptions { Durable = false, Differential = true }, TestContext.Current.CancellationToken);
            contents = SmallMachine.Contents(machine);
        }
        await using VirtualMachine copy = Machines.Restore(Snapshot.Open(folder["changes"]));
        Assert.True(contents.AsSpan().SequenceEqual(SmallMachine.Contents(copy)));
    }

    [Fact]
    public async Task PagesAreWhatTheGuestSaysTheyAre()
    {
        using TestFolder folder = new();
        await using VirtualMachine machine = SmallMachine.Create();
        SmallMachine.Fill(machine.Memory, new Random(1), 100, 50);
        machine.Memory.Write(new GuestAddress(200 << 12), new byte[4096]);
        machine.Memory.Discard(new GuestAddress(110 << 12), 10 << 12);
        machine.Memory.MarkHinted(new GuestAddress(130 << 12), 10 << 12);
        machine.Memory.Write(new GuestAddress(135 << 12), [1]);
        using MachineSnapshots snapshots = new(machine);
        await snapshots.SaveAsync(folder["s"], new SnapshotOptions { Durable = false }, TestContext.Current.CancellationToken);
        SnapshotMemory memory = Snapshot.Open(folder["s"]).Manifest.Memory;
        Assert.Equal(10UL, memory.DiscardedPages);
        Assert.Equal(9UL, memory.HintedPages);
        // The rest of the noise, and the page of the code.
        Assert.Equal(32UL, memory.DataPages);
        Assert.Equal(1024UL - 51, memory.ZeroPages);
        await using VirtualMachine copy = Machines.Restore(Snapshot.Open(folder["s"]));
        Assert.Equal(-1, SmallMachine.Contents(copy).AsSpan(130 << 12, 5 << 12).IndexOfAnyExcept((byte)0));
        Assert.Equal(1, SmallMachine.Contents(copy)[135 << 12]);
    }

    [Fact]
    public async Task ASeriesNeedsWhatItBuildsOn()
    {
        using TestFolder folder = new();
        await using VirtualMachine machine = SmallMachine.Create();
        using MachineSnapshots snapshots = new(machine);
        SnapshotOptions full = new() { Durable = false }, changes = new() { Durable = false, Differential = true };
        Assert.Contains("take a full one first", (await Assert.ThrowsAsync<SnapshotException>(() => snapshots.SaveAsync(folder["a"], changes, TestContext.Current.CancellationToken))).Message, StringComparison.Ordinal);
        await snapshots.SaveAsync(folder["a"], full, TestContext.Current.CancellationToken);
        Assert.Contains("give another name", (await Assert.ThrowsAsync<SnapshotException>(() => snapshots.SaveAsync(folder["a"], changes, TestContext.Current.CancellationToken))).Message, StringComparison.Ordinal);
        await snapshots.SaveAsync(folder["b"], changes, TestContext.Current.CancellationToken);
        await SmallMachine.SaveAsync(folder["a"]);
        Assert.Contains("has been replaced", Assert.Throws<SnapshotException>(() => Snapshot.Open(folder["b"])).Message, StringComparison.Ordinal);
        Assert.Contains("take a full one", (await Assert.ThrowsAsync<SnapshotException>(() => snapshots.SaveAsync(folder["c"], changes, TestContext.Current.CancellationToken))).Message, StringComparison.Ordinal);
        // What was not saved then is in the next.
        SmallMachine.Fill(machine.Memory, new Random(4), 300, 5);
        await snapshots.SaveAsync(folder["d"], full, TestContext.Current.CancellationToken);
        await snapshots.SaveAsync(folder["e"], changes, TestContext.Current.CancellationToken);
        Assert.Equal(SmallMachine.Contents(machine)[(300 << 12)..(305 << 12)], await ContentsOf(folder["e"], 300 << 12, 5 << 12));
        Directory.Delete(folder["d"], recursive: true);
        Assert.Contains("there is no snapshot", Assert.Throws<SnapshotException>(() => Snapshot.Open(folder["e"])).Message, StringComparison.Ordinal);
    }

    /// <summary>Two machines from one snapshot, each of which has its own changes in its own differential one.</summary>
    [Fact]
    public async Task MachinesFromOneSnapshotKeepTheirChangesApart()
    {
        using TestFolder folder = new();
        await SmallMachine.SaveAsync(folder["s"]);
        Snapshot from = Snapshot.Open(folder["s"]);
        await using VirtualMachine a = Machines.Restore(from, trackChanges: true), b = Machines.Restore(from, trackChanges: true);
        using MachineSnapshots ofA = new(a, from), ofB = new(b, from);
        SmallMachine.Fill(a.Memory, new Random(1), 300, 3);
        SmallMachine.Fill(b.Memory, new Random(2), 400, 3);
        SnapshotOptions changes = new() { Durable = false, Differential = true };
        await ofA.SaveAsync(folder["a"], changes, TestContext.Current.CancellationToken);
        await ofB.SaveAsync(folder["b"], changes, TestContext.Current.CancellationToken);
        Assert.Equal(SmallMachine.Contents(a)[(300 << 12)..(500 << 12)], await ContentsOf(folder["a"], 300 << 12, 200 << 12));
        Assert.Equal(SmallMachine.Contents(b)[(300 << 12)..(500 << 12)], await ContentsOf(folder["b"], 300 << 12, 200 << 12));
        Assert.Throws<InvalidOperationException>(() => new MachineSnapshots(a, from));
    }

    /// <summary>A snapshot that is replaced by another between a look at its page map and one at its memory is noticed.</summary>
    [Fact]
    public async Task ASnapshotThatIsReplacedWhileItIsReadIsNotMixedWithTheOther()
    {
        using TestFolder folder = new();
        await SmallMachine.SaveAsync(folder["s"]);
        Snapshot before = Snapshot.Open(folder["s"]);
        await SmallMachine.SaveAsync(folder["s"]);
        Assert.Contains("has been replaced", Assert.Throws<SnapshotException>(before.Verify).Message, StringComparison.Ordinal);
        Assert.Contains("has been replaced", Assert.Throws<SnapshotException>(() => before.Flatten(folder["flat"])).Message, StringComparison.Ordinal);
        Assert.Contains("has been replaced", Assert.Throws<SnapshotException>(() => Machines.Restore(before)).Message, StringComparison.Ordinal);
        await using VirtualMachine machine = Machines.Restore(Snapshot.Open(folder["s"]));
    }

    /// <summary>What a differential snapshot builds on is not replaced by it, whatever it is called.</summary>
    [Fact]
    public async Task WhatASnapshotBuildsOnIsKnownUnderEveryName()
    {
        using TestFolder folder = new();
        Directory.CreateDirectory(folder["real"]);
        Directory.CreateSymbolicLink(folder["link"], folder["real"]);
        await using VirtualMachine machine = SmallMachine.Create();
        using MachineSnapshots snapshots = new(machine);
        await snapshots.SaveAsync(folder["real/a"], new SnapshotOptions { Durable = false }, TestContext.Current.CancellationToken);
        SnapshotOptions changes = new() { Durable = false, Differential = true };
        Assert.Contains("give another name", (await Assert.ThrowsAsync<SnapshotException>(() => snapshots.SaveAsync(folder["link/a"], changes, TestContext.Current.CancellationToken))).Message, StringComparison.Ordinal);
        await snapshots.SaveAsync(folder["link/b"], changes, TestContext.Current.CancellationToken);
        Assert.Equal(2, Snapshot.Open(folder["real/b"]).Chain.Count);
    }

    [Fact]
    public async Task AFailedSnapshotLosesNoChanges()
    {
        using TestFolder folder = new();
        await using VirtualMachine machine = SmallMachine.Create();
        using MachineSnapshots snapshots = new(machine);
        await snapshots.SaveAsync(folder["a"], new SnapshotOptions { Durable = false }, TestContext.Current.CancellationToken);
        SmallMachine.Fill(machine.Memory, new Random(9), 500, 7);
        File.WriteAllText(folder["taken"], "");
        await Assert.ThrowsAsync<SnapshotException>(() => snapshots.SaveAsync(folder["taken"], new SnapshotOptions { Differential = true }, TestContext.Current.CancellationToken));
        await Assert.ThrowsAsync<SnapshotException>(() => snapshots.SaveAsync(folder["b"], new SnapshotOptions { Differential = true, BeforePause = () => throw new IOException("no") }, TestContext.Current.CancellationToken));
        Assert.False(Directory.Exists(folder["b"]));
        SnapshotResult result = await snapshots.SaveAsync(folder["c"], new SnapshotOptions { Differential = true, Durable = false }, TestContext.Current.CancellationToken);
        Assert.Equal(7UL << 12, result.DataBytes);
        Assert.Equal(["a", "c", "taken"], Directory.EnumerateFileSystemEntries(folder.Path).Select(Path.GetFileName).Order(StringComparer.Ordinal)!);
    }

    [Fact]
    public async Task EveryCopyHasAnIdentityOfItsOwn()
    {
        using TestFolder folder = new();
        string kernel = ChecksumGuest.WriteTo(folder.Path, 1000);
        Output output = new();
        await using (VirtualMachine machine = Machines.Create(ChecksumGuest.Options("interpreter", output.Append, kernel)))
        {
            using MachineSnapshots snapshots = new(machine);
            await snapshots.SaveAsync(folder["s"], new SnapshotOptions { Durable = false }, TestContext.Current.CancellationToken);
        }
        HashSet<Guid> seen = [];
        const ulong Identity = (32 << 20) - 2048;
        byte[] id = new byte[16];
        foreach (bool copy in (bool[])[true, true, false, false])
        {
            Snapshot snapshot = Snapshot.Open(folder["s"]);
            await using VirtualMachine machine = Machines.Create(snapshot.ToMachineOptions(), snapshot.ToOrigin(newIdentity: copy));
            machine.Memory.TryRead(new GuestAddress(Identity), id);
            seen.Add(new Guid(id));
        }
        Assert.Equal(3, seen.Count);
        Assert.DoesNotContain(Guid.Empty, seen);
    }

    private static async Task<byte[]> ContentsOf(string directory, int offset, int length)
    {
        await using VirtualMachine machine = Machines.Restore(Snapshot.Open(directory));
        return SmallMachine.Contents(machine)[offset..(offset + length)];
    }
}
