using Aerostat.Hosting;
using Aerostat.Machine;
using Aerostat.Memory;
using Xunit;

namespace Aerostat.Snapshots.Tests;

/// <summary>
/// Many short series of snapshots, full and differential, of machines whose pages are written, zeroed, given back, disowned, taken away and brought back in small
/// runs with small gaps; going on from any of them, with differential ones of their own. Each gives back what a model says, page by page.
/// </summary>
public sealed class SeriesModelTests
{
    private const ulong Page = 4096;

    /// <summary>In low memory, across blocks of the page map and of huge pages.</summary>
    [Theory]
    [InlineData(HugePageUse.Off)]
    [InlineData(HugePageUse.Auto)]
    public async Task EverySnapshotIsWhatItWas(HugePageUse hugePages)
    {
        for (int seed = 0; seed < Seeds(15); seed++)
            await RunSeries(seed, SmallMachine.Bytes, hugePages, first: 200, count: 600);
    }

    /// <summary>Across the hole between low and high memory, which are neighbours in a snapshot.</summary>
    [Fact]
    public async Task AcrossTheHole()
    {
        for (int seed = 1000; seed < 1000 + Seeds(5); seed++)
            await RunSeries(seed, GuestMemory.PciHoleStart + (4 << 20), seed % 2 == 0 ? HugePageUse.Off : HugePageUse.Auto, first: (int)(GuestMemory.PciHoleStart / Page) - 300, count: 600);
    }

    private static int Seeds(int usual) =>
        int.TryParse(Environment.GetEnvironmentVariable("AEROSTAT_SERIES_SEEDS"), out int wanted) ? wanted : usual;

    private static async Task RunSeries(int seed, ulong bytes, HugePageUse hugePages, int first, int count)
    {
        using TestFolder folder = new();
        Random random = new(seed);
        List<(string Place, ModelledMemory Model)> all = [];
        VirtualMachine machine = SmallMachine.Create(bytes: bytes, hugePages: hugePages);
        MachineSnapshots snapshots = new(machine);
        ModelledMemory model = new(machine.Memory, random, first, count);
        bool canDiffer = false;
        try
        {
            for (int i = 0; i < 7; i++)
            {
                for (int n = random.Next(4); n >= 0; n--)
                    model.Change();
                string place = folder[$"s{i}"];
                SnapshotOptions options = new() { Durable = false, Differential = canDiffer && random.Next(5) != 0 };
                await snapshots.SaveAsync(place, options, TestContext.Current.CancellationToken);
                canDiffer = true;
                model.Check($"seed {seed}, the machine after snapshot {i}");
                all.Add((place, model.In(machine.Memory)));
                if (random.Next(3) != 0)
                    continue;
                // Another machine goes on from one of them.
                int from = random.Next(all.Count);
                snapshots.Dispose();
                await machine.DisposeAsync();
                Snapshot snapshot = Snapshot.Open(all[from].Place);
                machine = Machines.Create(snapshot.ToMachineOptions() with { HugePages = hugePages }, snapshot.ToOrigin(trackChanges: true, newIdentity: false));
                snapshots = new MachineSnapshots(machine, snapshot);
                model = all[from].Model.In(machine.Memory);
                model.Check($"seed {seed}, a machine that goes on from snapshot {from}");
            }
        }
        finally
        {
            snapshots.Dispose();
            await machine.DisposeAsync();
        }
        foreach ((int i, (string place, ModelledMemory state)) in all.Index())
        {
            Snapshot snapshot = Snapshot.Open(place);
            snapshot.Verify();
            CheckFilled(snapshot, state, $"seed {seed}, snapshot {i}");
            snapshot.Flatten(folder["flat"], durable: false);
            CheckFilled(Snapshot.Open(folder["flat"]), state, $"seed {seed}, flattened snapshot {i}");
        }
    }

    // The memory alone: a machine around it is nothing new.
    private static void CheckFilled(Snapshot snapshot, ModelledMemory state, string what)
    {
        using GuestMemory memory = GuestMemory.CreatePc(snapshot.ToMachineOptions().MemoryBytes);
        snapshot.ToOrigin().FillMemory(memory);
        state.In(memory).Check(what);
    }
}
