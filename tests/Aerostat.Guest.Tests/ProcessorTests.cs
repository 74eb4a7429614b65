using System.Globalization;
using System.Text.RegularExpressions;
using Aerostat.Machine;
using Xunit;

namespace Aerostat.Guest.Tests;

/// <summary>The guest's kernel on several processors: all of them start, work at a time without losing a page, and what goes wrong says where.</summary>
public sealed class ProcessorTests
{
    private const int Panicked = 255;

    public static TheoryData<string, int, string> Machines => new()
    {
        { "interpreter", 1, "" },
        { "interpreter", 3, "" },
        { "interpreter", 4, "x2apic" },
        { "translator", 2, "" },
        { "translator", 4, "" },
        { "translator", 4, "x2apic" },
        { "qemu", 4, "" },
    };

    public static TheoryData<string> Judges => ["interpreter", "translator", "qemu"];

    private static Task RunAsync(string judge, int cpus, string commandLine, Func<GuestShell, Task> script) => judge == "qemu"
        ? QemuBalloonTests.RunAsync(commandLine, ["-smp", $"{cpus}"], (_, shell) => script(shell))
        : GuestKernel.RunAsync(judge, commandLine, options: new MachineOptions { MemoryBytes = 64 << 20, Cpus = cpus }, companion: async (machine, console) =>
        {
            GuestShell shell = new(console, text => machine.SendSerialAsync(System.Text.Encoding.ASCII.GetBytes(text)));
            await shell.ReadyAsync();
            await script(shell);
            await shell.EndAsync();
        });

    private static async Task<GuestOutcome> FaultAsync(string judge, string commandLine) => judge == "qemu"
        ? await Qemu.RunAsync(commandLine, "multiboot", "GuestImage", "-smp", "2")
        : await GuestKernel.RunAsync(judge, commandLine, options: new MachineOptions { MemoryBytes = 64 << 20, Cpus = 2 });

    /// <summary>Every processor runs, does its part of each piece of work, and no page is lost or had by two.</summary>
    [Theory]
    [MemberData(nameof(Machines))]
    public async Task AllProcessorsWork(string judge, int cpus, string commandLine) => await RunAsync(judge, cpus, "poison " + commandLine, async shell =>
    {
        if (cpus > 1)
            Assert.Contains($"processors: {cpus} run{(commandLine == "x2apic" ? ", x2APIC" : "")}\r\n", shell.Console.Text, StringComparison.Ordinal);
        string churn = await shell.AskAsync("churn 300");
        Assert.Equal(300 * cpus, GuestShell.Figure(churn, "rounds"));
        foreach (string nothing in (string[])["none-free", "wrong-words", "lost-pages"])
            Assert.Equal(0, GuestShell.Figure(churn, nothing));
        await shell.AskAsync("alloc 8");
        Assert.Equal(0, await shell.FigureAsync("check", "wrong-words"));
        string free = await shell.AskAsync("poison");
        Assert.Equal(GuestShell.Figure(free, "free-pages"), GuestShell.Figure(free, "checked-pages"));
        string list = await shell.AskAsync("cpus");
        Assert.Equal(cpus, GuestShell.Figure(list, "processors"));
        Assert.Equal(Enumerable.Range(0, cpus), Regex.Matches(list, @"processor=(\d+)").Select(m => int.Parse(m.Groups[1].Value, CultureInfo.InvariantCulture)));
        // Three pieces of work; the first processor's are not counted.
        Assert.Equal(Enumerable.Repeat("3", cpus - 1).Prepend("0"), Regex.Matches(list, @"done=(\d+)").Select(m => m.Groups[1].Value));
    });

    /// <summary>As many as a machine may have.</summary>
    [Theory]
    [InlineData("interpreter")]
    [InlineData("translator")]
    public async Task SixtyFourProcessorsStart(string accelerator) => await RunAsync(accelerator, 64, "", async shell =>
    {
        Assert.Contains("processors: 64 run\r\n", shell.Console.Text, StringComparison.Ordinal);
        Assert.Equal(0, await shell.FigureAsync("check", "wrong-words"));
        Assert.Equal(63, Regex.Count(await shell.AskAsync("cpus"), "done=1"));
    });

    [Fact]
    public async Task FewerMayBeUsed() => await RunAsync("translator", 4, "cpus=2", async shell => Assert.Equal(2, await shell.FigureAsync("cpus", "processors")));

    /// <summary>The console's input comes through the I/O APIC, a device's messages as MSI-X, the tick from the local APIC: none of them is only polled.</summary>
    [Theory]
    [MemberData(nameof(Judges))]
    public async Task InterruptsArrive(string judge)
    {
        // QEMU's balloon has no MSI-X: it is looked at with each tick.
        string[] sources = judge == "qemu" ? ["timer", "console"] : ["timer", "console", "devices"];
        async Task Look(GuestShell shell, Func<Task> inflate)
        {
            await shell.AskAsync("mem");
            await inflate();
            await shell.SettledAsync(256);
            string counts = await shell.AskAsync("irqs");
            // All this may have been done before the first tick.
            for (int i = 0; i < 100 && sources.Any(name => GuestShell.Figure(counts, name) == 0); i++)
            {
                await Task.Delay(20, TestContext.Current.CancellationToken);
                counts = await shell.AskAsync("irqs");
            }
            Assert.All(sources, name => Assert.InRange(GuestShell.Figure(counts, name), 1, 1_000_000));
        }
        if (judge == "qemu")
        {
            await QemuBalloonTests.RunAsync("", ["-device", "virtio-balloon-pci"], (monitor, shell) =>
                Look(shell, () => monitor.AskAsync("""{"execute":"balloon","arguments":{"value":66060288}}""", TestContext.Current.CancellationToken)));
            return;
        }
        await GuestKernel.RunAsync(judge, options: new MachineOptions { MemoryBytes = 64 << 20, Devices = [new BalloonOptions()] }, companion: async (machine, console) =>
        {
            GuestShell shell = new(console, text => machine.SendSerialAsync(System.Text.Encoding.ASCII.GetBytes(text)));
            await shell.ReadyAsync();
            await Look(shell, () =>
            {
                machine.Balloon!.SetTarget(1 << 20);
                return Task.CompletedTask;
            });
            await shell.EndAsync();
        });
    }

    /// <summary>A host that writes to a page that the guest has free is found where it wrote, without the page being used.</summary>
    [Theory]
    [InlineData("interpreter")]
    [InlineData("translator")]
    public async Task AHostThatWritesToAFreePageIsFound(string accelerator)
    {
        const ulong Where = (40 << 20) + 0x1238;
        GuestOutcome outcome = await GuestKernel.RunAsync(accelerator, "poison", options: new MachineOptions { MemoryBytes = 64 << 20, Cpus = 2 }, companion: async (machine, console) =>
        {
            GuestShell shell = new(console, text => machine.SendSerialAsync(System.Text.Encoding.ASCII.GetBytes(text)));
            await shell.ReadyAsync();
            string free = await shell.AskAsync("poison");
            Assert.Equal(GuestShell.Figure(free, "free-pages"), GuestShell.Figure(free, "checked-pages"));
            Assert.True(machine.Memory.TryWrite(new Aerostat.Memory.GuestAddress(Where), [0x42]));
            await machine.SendSerialAsync("poison\n"u8.ToArray());
        });
        Assert.Contains($"free page changed at 0x{Where:x}: 0xaaaaaaaaaaaaaa42", outcome.Console, StringComparison.Ordinal);
        Assert.Contains("PANIC: somebody wrote to a free page", outcome.Console, StringComparison.Ordinal);
        Assert.Equal(Panicked, outcome.Status);
    }

    /// <summary>A processor that waits for what it has itself.</summary>
    [Theory]
    [MemberData(nameof(Judges))]
    public async Task ALockTakenTwiceSaysWhere(string judge)
    {
        GuestOutcome outcome = await KernelTests.RunAsync(judge, "fault=6");
        Assert.Matches(@"PANIC: deadlock\r\n  processor 0 waits at 0x1[0-9a-f]{5} for the lock at 0x[0-9a-f]+, which processor 0 took at 0x1[0-9a-f]{5}\r\n  called from( 0x1[0-9a-f]{5})+\r\n", outcome.Console);
        Assert.Equal(Panicked, outcome.Status);
    }

    /// <summary>Two processors of which each has what the other wants: both are named, with where they are.</summary>
    [Theory]
    [MemberData(nameof(Judges))]
    public async Task ACircleOfLocksSaysWhere(string judge)
    {
        GuestOutcome outcome = await FaultAsync(judge, "fault=7");
        Match match = Regex.Match(outcome.Console, @"PANIC: deadlock\r\n  processor ([01]) waits at 0x1[0-9a-f]{5} for the lock at 0x([0-9a-f]+), which processor ([01]) took at 0x1[0-9a-f]{5}\r\n"
            + @"  processor ([01]) waits at 0x1[0-9a-f]{5} for the lock at 0x([0-9a-f]+), which processor ([01]) took at 0x1[0-9a-f]{5}\r\n  called from( 0x1[0-9a-f]{5})+\r\n"
            + @"  processor ([01]) is at 0x1[0-9a-f]{5}\r\n  called from( 0x1[0-9a-f]{5})+\r\n");
        Assert.True(match.Success, outcome.Console);
        Assert.Equal(match.Groups[1].Value, match.Groups[6].Value);
        Assert.Equal(match.Groups[3].Value, match.Groups[4].Value);
        Assert.Equal(match.Groups[3].Value, match.Groups[8].Value);
        Assert.NotEqual(match.Groups[1].Value, match.Groups[3].Value);
        Assert.NotEqual(match.Groups[2].Value, match.Groups[5].Value);
        Assert.Equal(Panicked, outcome.Status);
    }

    /// <summary>A lock that its owner forgot: nobody waits in a circle, but not for ever either.</summary>
    [Theory]
    [MemberData(nameof(Judges))]
    public async Task ALockThatIsNotGivenBackSaysWhoHasIt(string judge)
    {
        GuestOutcome outcome = await FaultAsync(judge, "lock-limit=300 fault=8");
        Assert.Matches(@"PANIC: a lock is not given back\r\n  processor 0 waits at 0x1[0-9a-f]{5} for the lock at 0x[0-9a-f]+, which processor 1 took at 0x1[0-9a-f]{5}\r\n", outcome.Console);
        Assert.Contains("processor 1 is at 0x1", outcome.Console, StringComparison.Ordinal);
        Assert.Equal(Panicked, outcome.Status);
    }

    [Theory]
    [MemberData(nameof(Judges))]
    public async Task AFaultSaysOnWhichProcessor(string judge)
    {
        GuestOutcome outcome = await FaultAsync(judge, "fault=9");
        Assert.Matches(@"PANIC: invalid opcode \(exception 6, error code 0x0\) at rip=0x[0-9a-f]+ on processor 1\r\n", outcome.Console);
        Assert.Matches("called from( 0x1[0-9a-f]{5})+\r\n", outcome.Console);
        Assert.Equal(Panicked, outcome.Status);
    }
}
