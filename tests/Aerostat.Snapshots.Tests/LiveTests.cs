using Aerostat.Hosting;
using Aerostat.Machine;
using Aerostat.Memory;
using Microsoft.Win32.SafeHandles;
using Xunit;

namespace Aerostat.Snapshots.Tests;

/// <summary>Snapshots of machines that go on while most of their memory is copied.</summary>
public sealed class LiveTests
{
    /// <summary>A guest that writes all over 4 MiB is saved while it runs, again and again, and every snapshot is a machine that comes to the right sum.</summary>
    [Theory]
    [InlineData("translator")]
    [InlineData("interpreter")]
    public async Task ARunningGuestIsSaved(string accelerator)
    {
        using TestFolder folder = new();
        int iterations = ChecksumGuest.IterationsFor(accelerator, accelerator);
        List<(string Place, int Printed)> places = [];
        Output output = new();
        VirtualMachine machine = Machines.Create(ChecksumGuest.Options(accelerator, output.Append, ChecksumGuest.WriteTo(folder.Path, iterations)));
        await using (machine)
        {
            using MachineSnapshots snapshots = new(machine);
            await machine.StartAsync();
            for (int i = 0; i < 6; i++)
            {
                try
                {
                    SnapshotResult result = await snapshots.SaveAsync(folder[$"s{i}"], new SnapshotOptions { Durable = false, Differential = i % 3 == 2 }, TestContext.Current.CancellationToken);
                    Assert.InRange(result.Rounds, 1, 9);
                    Assert.Equal(HintOutcome.NoBalloon, result.Hints.Outcome);
                    places.Add((folder[$"s{i}"], output.Bytes.Length));
                }
                catch (SnapshotException) when (machine.State == MachineState.Ended)
                {
                    break;
                }
            }
            await machine.WaitForExitAsync(TimeSpan.FromMinutes(2));
        }
        Assert.NotEmpty(places);
        ulong expected = ChecksumGuest.Expected(iterations);
        // What it writes at its end comes from the original as well.
        Assert.Equal(expected, BitConverter.ToUInt64(output.Bytes));
        foreach ((string place, int _) in places.Where(p => p.Printed == 0))
        {
            Output again = new();
            Snapshot snapshot = Snapshot.Open(place);
            snapshot.Verify();
            await using VirtualMachine copy = Machines.Restore(snapshot, adjust: o => o with { Serial = again.Append, NoReboot = true });
            await copy.StartAsync();
            MachineExit exit = await copy.WaitForExitAsync(TimeSpan.FromMinutes(2));
            Assert.Equal(MachineExitKind.PoweredOff, exit.Kind);
            Assert.Equal(expected, BitConverter.ToUInt64(again.Bytes));
        }
    }

    /// <summary>Given up before, while it copies and while the machine stands still: it goes on, nothing is left on disk, and no change is lost.</summary>
    [Fact]
    public async Task ASnapshotIsGivenUp()
    {
        using TestFolder folder = new();
        await using VirtualMachine machine = Machines.Create(ChecksumGuest.Options("translator", null, ChecksumGuest.WriteTo(folder.Path, int.MaxValue)));
        using MachineSnapshots snapshots = new(machine);
        await machine.StartAsync();
        await snapshots.SaveAsync(folder["a"], new SnapshotOptions { Durable = false }, TestContext.Current.CancellationToken);
        byte[] before = File.ReadAllBytes(Path.Combine(folder["a"], "manifest.json"));
        await Assert.ThrowsAnyAsync<OperationCanceledException>(() => snapshots.SaveAsync(folder["a"], new SnapshotOptions(), new CancellationToken(true)));
        using (CancellationTokenSource over = new())
        {
            await Assert.ThrowsAnyAsync<OperationCanceledException>(() => snapshots.SaveAsync(
                folder["a"], new SnapshotOptions { BeforePause = () => over.CancelAsync() }, over.Token));
        }
        // While the machine is about to be paused, and is.
        for (int i = 0; i < 8; i++)
        {
            using CancellationTokenSource over = new();
            Task<SnapshotResult> attempt = snapshots.SaveAsync(
                folder["b"],
                new SnapshotOptions
                {
                    Durable = false,
                    BeforePause = () =>
                    {
                        _ = Task.Run(over.Cancel, CancellationToken.None);
                        return Task.CompletedTask;
                    },
                },
                over.Token);
            try
            {
                await attempt;
                Directory.Delete(folder["b"], recursive: true);
            }
            catch (OperationCanceledException)
            {
                Assert.False(Directory.Exists(folder["b"]));
            }
            Assert.Equal(MachineState.Running, machine.State);
        }
        Assert.Equal(before, File.ReadAllBytes(Path.Combine(folder["a"], "manifest.json")));
        Assert.DoesNotContain(Directory.EnumerateFileSystemEntries(folder.Path), e => e.Contains("partial", StringComparison.Ordinal));
        await machine.PauseAsync();
        SmallMachine.Fill(machine.Memory, new Random(3), 3000, 4);
        await snapshots.SaveAsync(folder["c"], new SnapshotOptions { Durable = false }, TestContext.Current.CancellationToken);
        await using VirtualMachine copy = Machines.Restore(Snapshot.Open(folder["c"]));
        byte[] here = SmallMachine.Contents(machine), there = SmallMachine.Contents(copy);
        // The copy has an identity of its own, and nothing else.
        Assert.InRange(Enumerable.Range(0, here.Length / 4096).Count(p => !here.AsSpan(p * 4096, 4096).SequenceEqual(there.AsSpan(p * 4096, 4096))), 0, 1);
    }

    /// <summary>Disposing of what takes snapshots ends one that is under way, before the memory it reads is gone.</summary>
    [Fact]
    public async Task TheEndOfTheMachineEndsASnapshot()
    {
        using TestFolder folder = new();
        for (int i = 0; i < 5; i++)
        {
            Task<SnapshotResult> attempt;
            VirtualMachine machine = Machines.Create(ChecksumGuest.Options("translator", null, ChecksumGuest.WriteTo(folder.Path, int.MaxValue)));
            await using (machine)
            {
                using MachineSnapshots snapshots = new(machine);
                await machine.StartAsync();
                attempt = snapshots.SaveAsync(folder["a"], new SnapshotOptions { Durable = false }, TestContext.Current.CancellationToken);
                await Task.Delay(i, TestContext.Current.CancellationToken);
            }
            try
            {
                await attempt;
                Snapshot.Open(folder["a"]).Verify();
            }
            catch (Exception e) when (e is OperationCanceledException or SnapshotException)
            {
                // As it should be.
            }
            Assert.DoesNotContain(Directory.EnumerateFileSystemEntries(folder.Path), e => e.Contains("partial", StringComparison.Ordinal));
        }
    }

    /// <summary>Rounds over a memory that changes between them, against what a memory copied at the end would be; holes and checksums included.</summary>
    [Fact]
    public void RoundsAddUp()
    {
        using TestFolder folder = new();
        Random random = new(77);
        for (int run = 0; run < 60; run++)
        {
            using GuestMemory memory = new(new MemoryRegion(new(0), 700 << 12, "low"), new MemoryRegion(new(1 << 24), 333 << 12, "high"));
            using ChangeLog log = new(memory);
            Change(memory, random, 8);
            using SafeFileHandle file = File.OpenHandle(folder[$"memory{run}"], FileMode.CreateNew, FileAccess.ReadWrite);
            bool differential = random.Next(2) == 0;
            log.Collect();
            byte[] old = Contents(memory);
            if (differential)
            {
                log.Forget();
                Change(memory, random, 3);
                log.Collect();
            }
            MemoryWriter writer = new(memory, file, differential ? log.Pending : null);
            for (int round = random.Next(4); round > 0; round--)
            {
                if (random.Next(2) == 0)
                    writer.Hint(new GuestAddress((ulong)random.Next(600) << 12), (ulong)random.Next(1, 100) << 12);
                writer.WriteRound(CancellationToken.None);
                Change(memory, random, random.Next(4));
                writer.Wrote(log.Collect());
            }
            writer.WriteRound(CancellationToken.None);
            Assert.Equal(0UL, writer.CountToDo());
            PageMap map = writer.Finish();
            byte[] actual = Contents(memory), expected = differential ? old : new byte[actual.Length];
            byte[] whole = File.ReadAllBytes(folder[$"memory{run}"]);
            foreach (PageRun kind in map.Runs)
            {
                Range range = ((int)kind.First * 4096)..((int)kind.End * 4096);
                if (kind.Kind == PageKind.Data)
                    whole.AsSpan(range).CopyTo(expected.AsSpan(range));
                else
                    // Short gaps are mapped with what is around them.
                    Assert.Equal(-1, whole.AsSpan(range).IndexOfAnyExcept((byte)0));
                if (kind.Kind is PageKind.Zero or PageKind.Discarded)
                    expected.AsSpan(range).Clear();
                if (kind.Kind == PageKind.Hinted)
                    actual.AsSpan(range).CopyTo(expected.AsSpan(range));
            }
            Assert.True(expected.AsSpan().SequenceEqual(actual), $"run {run}");
            foreach ((ulong first, int pages, Checksum checksum) in map.Blocks())
                Assert.Equal(checksum, Checksum.Of(whole.AsSpan((int)first * 4096, pages * 4096)));
        }
    }

    private static byte[] Contents(GuestMemory memory)
    {
        byte[] all = new byte[memory.TotalBytes];
        int at = 0;
        foreach (MemoryRegion region in memory.Regions)
        {
            memory.TryRead(region.Base, all.AsSpan(at, (int)region.Size));
            at += (int)region.Size;
        }
        return all;
    }

    private static void Change(GuestMemory memory, Random random, int times)
    {
        for (; times > 0; times--)
        {
            MemoryRegion region = memory.Regions[random.Next(2)];
            ulong page = (ulong)random.Next(300), count = (ulong)random.Next(1, 30);
            GuestAddress at = new(region.Base.Value + (page << 12));
            switch (random.Next(4))
            {
                case 0:
                    memory.Discard(at, count << 12);
                    break;
                case 1:
                    memory.TryFill(at, count << 12, 0);
                    break;
                default:
                    byte[] noise = new byte[count << 12];
                    random.NextBytes(noise);
                    memory.Write(at, noise);
                    break;
            }
        }
    }
}
