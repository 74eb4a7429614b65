using Aerostat.Devices;
using Aerostat.Machine;
using Aerostat.Snapshots;
using Xunit;

namespace Aerostat.Guest.Tests;

/// <summary>The guest's balloon driver on our virtio balloon and VMware balloon.</summary>
public sealed class BalloonTests
{
    private const ulong MiB = 1 << 20;
    private const int PagesPerMiB = 256;

    public static TheoryData<string, string> Dialects => new MatrixTheoryData<string, string>(["interpreter", "translator"], ["virtio", "vmware", "vmware batched"]);

    private static MachineOptions Machine(string dialect, bool deflateOnOom = false, bool reporting = true) => new()
    {
        MemoryBytes = 64 * MiB,
        Personality = dialect == "virtio" ? "kvm" : "vmware",
        Devices = dialect == "virtio" ? [new BalloonOptions { DeflateOnOom = deflateOnOom, Reporting = reporting }] : [],
    };

    private static Task<GuestOutcome> RunAsync(string accelerator, MachineOptions options, string commandLine, Func<VirtualMachine, GuestShell, Task> script) =>
        GuestKernel.RunAsync(accelerator, commandLine, options: options, companion: async (machine, console) =>
        {
            GuestShell shell = new(console, text => machine.SendSerialAsync(System.Text.Encoding.ASCII.GetBytes(text)));
            await shell.ReadyAsync();
            await script(machine, shell);
            await shell.EndAsync();
        });

    private static async Task UntilAsync(Func<bool> condition, Func<string> what)
    {
        for (int i = 0; i < 1500; i++)
        {
            if (condition())
                return;
            await Task.Delay(20, TestContext.Current.CancellationToken);
        }
        Assert.Fail(what());
    }

    /// <summary>The free pages are poisoned: the host may not write to one that it does not have. Without reporting, which takes free pages away for a moment.</summary>
    [Theory]
    [MemberData(nameof(Dialects))]
    public async Task GivesAndTakesBack(string accelerator, string dialect)
    {
        GuestOutcome outcome = await RunAsync(accelerator, Machine(dialect, reporting: false), "poison " + (dialect.EndsWith("batched", StringComparison.Ordinal) ? "batched" : ""), async (machine, shell) =>
        {
            IBalloon balloon = machine.Balloon!;
            Assert.Equal(8 * PagesPerMiB, await shell.FigureAsync("alloc 8", "held-pages"));
            long free = await shell.FigureAsync("mem", "free-pages");
            foreach (ulong target in (ulong[])[16 * MiB, 40 * MiB, 4 * MiB, 0])
            {
                balloon.SetTarget(target);
                await shell.SettledAsync((long)target / 4096);
                await UntilAsync(() => balloon.GetReport() is var r && r.ActualBytes == target && r.Reason == BalloonReason.Reached, () => $"{target}: {balloon.GetReport()}");
                Assert.InRange(free - (long)(target / 4096) - await shell.FigureAsync("mem", "free-pages"), -64, 64);
            }
            // What the host had is memory as before, and what was kept was left alone.
            Assert.Equal(32 * PagesPerMiB, await shell.FigureAsync("alloc 24", "held-pages"));
            Assert.Equal(0, await shell.FigureAsync("check", "wrong-words"));
        });
        Assert.Equal(0, outcome.Status);
    }

    [Theory]
    [InlineData("interpreter")]
    [InlineData("translator")]
    public async Task AnswersRequestsForStatistics(string accelerator) => await RunAsync(accelerator, Machine("virtio"), "", async (machine, shell) =>
    {
        IBalloon balloon = machine.Balloon!;
        balloon.RequestStatistics();
        await UntilAsync(() => balloon.GetReport().Statistics.Age is not null, () => balloon.GetReport().ToString());
        Assert.Equal((ulong)await shell.FigureAsync("mem", "total-pages") * 4096, balloon.GetReport().Statistics.Values[GuestFigure.Total]);
    });

    [Theory]
    [InlineData("interpreter")]
    [InlineData("translator")]
    public async Task TakesPagesBackWhenOutOfMemory(string accelerator) => await RunAsync(accelerator, Machine("virtio", deflateOnOom: true), "", async (machine, shell) =>
    {
        machine.Balloon!.SetTarget(40 * MiB);
        await shell.SettledAsync(40 * PagesPerMiB);
        Assert.Equal(40 * PagesPerMiB, await shell.FigureAsync("alloc 40", "got-pages"));
        Assert.Equal(0, await shell.FigureAsync("check", "wrong-words"));
        Assert.InRange(await shell.FigureAsync("balloon", "oom"), 18 * PagesPerMiB, 40 * PagesPerMiB);
    });

    /// <summary>Without the feature there is no way out, and the guest says so.</summary>
    [Fact]
    public async Task KeepsThePagesAwayWithoutTheFeature() => await RunAsync("translator", Machine("virtio"), "", async (machine, shell) =>
    {
        machine.Balloon!.SetTarget(40 * MiB);
        await shell.SettledAsync(40 * PagesPerMiB);
        Assert.InRange(await shell.FigureAsync("alloc 40", "got-pages"), 1, 24 * PagesPerMiB);
        Assert.Equal(40 * PagesPerMiB, await shell.FigureAsync("balloon", "pages"));
    });

    [Fact]
    public async Task ReportsFreeBlocksOnce() => await RunAsync("translator", Machine("virtio"), "poison", async (_, shell) =>
    {
        string settled = await shell.BalloonAsync(t => GuestShell.Figure(t, "reported-mib") >= 40, "reports");
        await Task.Delay(1200, TestContext.Current.CancellationToken);
        Assert.InRange(GuestShell.Figure(await shell.AskAsync("balloon"), "reported-mib"), 40, 62);
        Assert.Equal(40 * PagesPerMiB, await shell.FigureAsync("alloc 40", "got-pages"));
        Assert.Equal(0, await shell.FigureAsync("check", "wrong-words"));
    });

    /// <summary>A snapshot asks for free pages and does not keep what they hold; in either form of the protocol what is in use is kept.</summary>
    [Theory]
    [InlineData("interpreter", "")]
    [InlineData("translator", "")]
    [InlineData("interpreter", "hints=2018")]
    [InlineData("translator", "hints=2018")]
    public async Task NamesFreePagesForASnapshot(string accelerator, string commandLine)
    {
        string folder = Path.Combine(Path.GetTempPath(), $"aerostat-guest-{Guid.NewGuid():n}");
        try
        {
            // Without reporting, which takes free pages away for a moment.
            await RunAsync(accelerator, Machine("virtio", reporting: false), commandLine, async (machine, shell) =>
            {
                await shell.AskAsync("alloc 8");
                for (int run = 1; run <= 2; run++)
                {
                    using MachineSnapshots snapshots = new(machine);
                    SnapshotResult result = await snapshots.SaveAsync(Path.Combine(folder, $"{run}"), new SnapshotOptions { Durable = false, HintLimit = TimeSpan.FromSeconds(100) }, TestContext.Current.CancellationToken);
                    Assert.Equal(HintOutcome.Complete, result.Hints.Outcome);
                    // What is free in small pieces goes through the balloon, a sixteenth of the memory at most, and the guest has it again.
                    Assert.InRange(result.Hints.EmptiedBytes, MiB, 4 * MiB);
                    Assert.Equal((0UL, 0UL), (machine.Balloon!.GetReport().TargetBytes, machine.Balloon.GetReport().ActualBytes));
                    Assert.InRange(result.Hints.NamedBytes, 32 * MiB, 56 * MiB);
                    string text = await shell.BalloonAsync(t => GuestShell.Figure(t, "hints-held") == 0, "the blocks held for hints come back");
                    Assert.Equal(run, GuestShell.Figure(text, "hint-runs"));
                    Assert.Equal(0, await shell.FigureAsync("check", "wrong-words"));
                }
            });
        }
        finally
        {
            if (Directory.Exists(folder))
                Directory.Delete(folder, recursive: true);
        }
    }

    [Fact]
    public async Task AVmwareHostThatForgetsIsBegunAnew() => await RunAsync("translator", Machine("vmware"), "", async (machine, shell) =>
    {
        IBalloon balloon = machine.Balloon!;
        balloon.SetTarget(8 * MiB);
        await shell.SettledAsync(8 * PagesPerMiB);
        ((VMware.VmwareBalloon)balloon).RequestReset();
        string text = await shell.BalloonAsync(t => GuestShell.Figure(t, "resets") == 1 && GuestShell.Figure(t, "settled") == 1 && GuestShell.Figure(t, "pages") == 8 * PagesPerMiB, "the balloon after a reset");
        Assert.Contains("VMware", text, StringComparison.Ordinal);
        await UntilAsync(() => balloon.GetReport() is { ActualBytes: 8 * MiB, Reason: BalloonReason.Reached }, () => balloon.GetReport().ToString());
    });

    /// <summary>Pages that the host cannot take go back to the guest, and others are found.</summary>
    [Theory]
    [InlineData("vmware")]
    [InlineData("vmware batched")]
    public async Task RefusedPagesAreTheGuestsOwn(string dialect) => await RunAsync("translator", Machine(dialect), "poison " + (dialect.Length > 6 ? "batched" : ""), async (machine, shell) =>
    {
        List<Aerostat.Memory.MemoryPin> pins = [.. Enumerable.Range(8, 50).Select(i => machine.Memory.TryPin(new Aerostat.Memory.GuestAddress(((ulong)i * MiB) + 8192), 4096)!)];
        machine.Balloon!.SetTarget(48 * MiB);
        await UntilAsync(() => machine.Balloon.GetReport() is { RefusedPages: > 20, ActualBytes: > 40 * MiB }, () => machine.Balloon.GetReport().ToString());
        pins.ForEach(p => p.Dispose());
        string text = await shell.SettledAsync(48 * PagesPerMiB);
        Assert.InRange(GuestShell.Figure(text, "refused"), 20, 100_000);
        machine.Balloon.SetTarget(0);
        await shell.SettledAsync(0);
    });

    [Fact]
    public async Task AMachineWithoutABalloonSaysSo() => await RunAsync("translator", new MachineOptions { MemoryBytes = 64 * MiB }, "", async (_, shell) =>
        Assert.Contains("balloon: no device", await shell.AskAsync("balloon"), StringComparison.Ordinal));
}
