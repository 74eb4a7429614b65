using System.Diagnostics;
using System.Runtime.CompilerServices;
using Aerostat.Machine;
using Xunit;

namespace Aerostat.Snapshots.Tests;

/// <summary>A process that is killed while it writes leaves the snapshot before whole, and nothing that stays for good.</summary>
public sealed class CrashTests
{
    private const string ChildOf = "AEROSTAT_SNAPSHOT_TEST_CHILD";

    [Fact]
    public async Task AKilledProcessLeavesTheOldSnapshotWhole()
    {
        using TestFolder folder = new();
        Random random = new(17);
        int leftovers = 0;
        // More of them where the host is so busy that none was met as it wrote.
        for (int round = 0; round < 6 || (leftovers == 0 && round < 60); round++)
        {
            ProcessStartInfo start = new(Environment.ProcessPath!) { RedirectStandardOutput = true, ArgumentList = { "-list", "classes" } };
            start.Environment[ChildOf] = folder["s"];
            using Process child = Process.Start(start)!;
            // At least one is complete, and the next under way: at a point of its own each time.
            try
            {
                Assert.StartsWith("saved", await child.StandardOutput.ReadLineAsync(TestContext.Current.CancellationToken), StringComparison.Ordinal);
            }
            catch
            {
                child.Kill();
                throw;
            }
            await Task.Delay(random.Next(40), TestContext.Current.CancellationToken);
            child.Kill();
            await child.WaitForExitAsync(TestContext.Current.CancellationToken);
            leftovers += Partial(folder).Length;
            Snapshot.Open(folder["s"]).Verify();
        }
        Assert.True(leftovers > 0, "no process was killed while it wrote: the test has tested nothing");
        await SmallMachine.SaveAsync(folder["s"]);
        Assert.Empty(Partial(folder));
        Snapshot.Open(folder["s"]).Verify();
    }

    [Theory]
    [InlineData]
    [InlineData("manifest.json")]
    [InlineData("memory.bin")]
    [InlineData("manifest.json", "pages.map")]
    public async Task WhatADeadProcessLeftAtAnyPointIsRemoved(params string[] files)
    {
        using TestFolder folder = new();
        string left = Directory.CreateDirectory(folder[".s.partial-0"]).FullName;
        foreach (string file in files)
            File.WriteAllText(Path.Combine(left, file), "half");
        await SmallMachine.SaveAsync(folder["s"]);
        Assert.Empty(Partial(folder));
    }

    [Fact]
    public async Task WhatAnotherProcessIsWritingStays()
    {
        using TestFolder folder = new();
        string other = Directory.CreateDirectory(folder[".s.partial-0"]).FullName;
        using (File.OpenHandle(Path.Combine(other, "memory.bin"), FileMode.CreateNew, FileAccess.ReadWrite, FileShare.None))
        {
            await SmallMachine.SaveAsync(folder["s"]);
            Assert.Equal([other], Partial(folder));
        }
        await SmallMachine.SaveAsync(folder["s"]);
        Assert.Empty(Partial(folder));
    }

    private static string[] Partial(TestFolder folder) => Directory.GetDirectories(folder.Path, ".s.partial-*");

    /// <summary>In the child there are no tests: it saves one snapshot after the other over the one before until it is killed.</summary>
    [ModuleInitializer]
    internal static void BeTheChild()
    {
        if (Environment.GetEnvironmentVariable(ChildOf) is not { } target)
            return;
        // All on this thread: others wait for a module's initializer before they run any of its code.
        VirtualMachine machine = SmallMachine.Create();
        MachineSnapshots snapshots = new(machine);
        for (int i = 0; ; i++)
        {
            SmallMachine.Fill(machine.Memory, new Random(i), 1, 900);
            snapshots.SaveAsync(target, new SnapshotOptions { Durable = false, Track = false }, TestContext.Current.CancellationToken).GetAwaiter().GetResult();
            Console.WriteLine($"saved {i}");
        }
    }
}
