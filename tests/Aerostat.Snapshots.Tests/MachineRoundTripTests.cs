using Aerostat.Hosting;
using Aerostat.Machine;
using Aerostat.Memory;
using Xunit;

namespace Aerostat.Snapshots.Tests;

/// <summary>A guest goes on from a saved state as if nothing had been.</summary>
public sealed class MachineRoundTripTests
{
    private static readonly TimeSpan s_limit = TimeSpan.FromMinutes(2);

    public static TheoryData<string, string> Pairs => new()
    {
        { "interpreter", "interpreter" },
        { "translator", "translator" },
        { "translator", "interpreter" },
        { "interpreter", "translator" },
    };

    /// <summary>From machine to machine at points as they come, without a disk.</summary>
    [Theory]
    [MemberData(nameof(Pairs))]
    public async Task AChecksumSurvivesSavingInMemory(string first, string second)
    {
        using TestFolder folder = new();
        Output output = new();
        int iterations = ChecksumGuest.IterationsFor(first, second);
        Random random = new(first.Length * 31 + second.Length);
        MachineOptions options = ChecksumGuest.Options(first, output.Append, ChecksumGuest.WriteTo(folder.Path, iterations));
        VirtualMachine machine = Machines.Create(options);
        int moves = 0;
        MachineExit exit;
        while (true)
        {
            await machine.StartAsync();
            if (moves == 8 || await Task.WhenAny(machine.Exit, Task.Delay(random.Next(1, moves == 0 ? 10 : 60), TestContext.Current.CancellationToken)) == machine.Exit)
            {
                exit = await machine.WaitForExitAsync(s_limit);
                break;
            }
            (MachineSavedState State, byte[] Memory)? saved = null;
            try
            {
                await machine.PauseAsync();
                await machine.SaveAsync(state =>
                {
                    byte[] memory = new byte[machine.Memory.TotalBytes];
                    machine.Memory.TryRead(new GuestAddress(0), memory);
                    saved = (state, memory);
                    return Task.CompletedTask;
                });
            }
            catch (InvalidOperationException)
            {
                // It has just ended.
                exit = await machine.Exit;
                break;
            }
            await machine.DisposeAsync();
            moves++;
            machine = Machines.Create(options with { Accelerator = moves % 2 == 0 ? first : second }, new MachineOrigin(saved!.Value.State, m => m.TryWrite(new GuestAddress(0), saved.Value.Memory)));
        }
        await machine.DisposeAsync();
        Assert.Equal(MachineExitKind.PoweredOff, exit.Kind);
        Assert.True(moves > 0, "the guest was too fast to be moved");
        Assert.Equal(ChecksumGuest.Expected(iterations), BitConverter.ToUInt64(output.Bytes));
    }

    /// <summary>From snapshot to snapshot on disk, every second one differential.</summary>
    [Theory]
    [MemberData(nameof(Pairs))]
    public async Task AChecksumSurvivesSnapshots(string first, string second)
    {
        using TestFolder folder = new();
        Output output = new();
        int iterations = ChecksumGuest.IterationsFor(first, second);
        Random random = new(first.Length * 37 + second.Length);
        VirtualMachine machine = Machines.Create(ChecksumGuest.Options(first, output.Append, ChecksumGuest.WriteTo(folder.Path, iterations)));
        MachineSnapshots snapshots = new(machine);
        int moves = 0;
        MachineExit exit;
        while (true)
        {
            await machine.StartAsync();
            if (moves == 8 || await Task.WhenAny(machine.Exit, Task.Delay(random.Next(1, moves == 0 ? 10 : 60), TestContext.Current.CancellationToken)) == machine.Exit)
            {
                exit = await machine.WaitForExitAsync(s_limit);
                break;
            }
            string place = folder[$"s{moves}"];
            bool differential = moves % 2 == 1;
            try
            {
                await machine.PauseAsync();
                await snapshots.SaveAsync(place, new SnapshotOptions { Differential = differential, Durable = false }, TestContext.Current.CancellationToken);
            }
            catch (SnapshotException) when (machine.State == MachineState.Ended)
            {
                exit = await machine.Exit;
                break;
            }
            snapshots.Dispose();
            await machine.DisposeAsync();
            moves++;
            Snapshot snapshot = Snapshot.Open(place);
            Assert.Equal(differential ? 2 : 1, snapshot.Chain.Count);
            snapshot.Verify();
            machine = Machines.Restore(snapshot, moves % 2 == 0 ? first : second, trackChanges: true, o => o with { Serial = output.Append, NoReboot = true });
            snapshots = new MachineSnapshots(machine, snapshot);
        }
        snapshots.Dispose();
        await machine.DisposeAsync();
        Assert.Equal(MachineExitKind.PoweredOff, exit.Kind);
        Assert.True(moves > 0, "the guest was too fast to be moved");
        Assert.Equal(ChecksumGuest.Expected(iterations), BitConverter.ToUInt64(output.Bytes));
    }
}
