using System.CommandLine;
using System.Globalization;
using Aerostat.Machine;
using Aerostat.Platform;

namespace Aerostat.Cli;

/// <summary><c>aerostat bench backup</c> and <c>backups</c>: how fast backups are, and whether many of them are whole.</summary>
internal static class BenchBackupCommands
{
    public static Command Rates()
    {
        Option<string> kernel = Kernel(), busybox = Busybox(), accelerator = MachineArguments.Accelerator();
        Option<string?> contents = new("--contents") { HelpName = "DIR", Description = "Whose files fill the disk; default: the programs that ./dev fetched" };
        Option<string> runs = new("--runs") { HelpName = "N", Description = "How often each way of copying is timed; 0: not", DefaultValueFactory = _ => "5" };
        Option<string> freezes = new("--freezes") { HelpName = "N", Description = "How many backups of a guest under load; 0: none", DefaultValueFactory = _ => "50" };
        Option<bool> json = new("--json") { Description = "Machine-readable output" };
        Command command = new("backup", "Back up a disk, in turn with cp --sparse=always and qemu-img convert; freeze a stock guest under load with disks of 4 and 64 GiB.") { kernel, busybox, accelerator, contents, runs, freezes, json };
        command.SetAction((result, _) => RunAsync(stopping => new BackupBenchmark
        {
            Kernel = StockKernel.Kernel(result.GetValue(kernel)),
            Busybox = StockKernel.Busybox(result.GetValue(busybox)),
            Contents = StockKernel.Programs(result.GetValue(contents)),
            Options = new MachineOptions { Name = "bench", Accelerator = result.GetRequiredValue(accelerator) },
            Runs = ParseCount("--runs", result.GetRequiredValue(runs)),
            Freezes = ParseCount("--freezes", result.GetRequiredValue(freezes)),
            Json = result.GetValue(json),
        }.RunAsync(result.InvocationConfiguration.Output, stopping)));
        return command;
    }

    public static Command Soak()
    {
        Option<string> kernel = Kernel(), busybox = Busybox(), accelerator = MachineArguments.Accelerator(), cpus = MachineArguments.Cpus();
        Option<string> size = new("--size") { HelpName = "SIZE", Description = "Of each disk", DefaultValueFactory = _ => "128M" };
        Option<string> types = new("--file-systems") { HelpName = "LIST", Description = "One for each disk: ext4, xfs, btrfs", DefaultValueFactory = _ => "ext4,xfs,btrfs" };
        Option<string?> agent = new("--agent") { HelpName = "FILE", Description = "Our own agent in the place of Debian's daemons; without FILE, the one beside this program", Arity = ArgumentArity.ZeroOrOne };
        Option<string> rounds = new("--rounds") { HelpName = "N", Description = "How many backups", DefaultValueFactory = _ => "50" };
        Command command = new("backups", "Back up a guest with writers on several disks and file systems again and again; every image is restored and checked.") { kernel, busybox, accelerator, cpus, size, types, agent, rounds };
        command.SetAction((result, _) => RunAsync(stopping => new BackupSoak
        {
            Kernel = StockKernel.Kernel(result.GetValue(kernel)),
            Busybox = StockKernel.Busybox(result.GetValue(busybox)),
            Options = new MachineOptions { Name = "soak", Accelerator = result.GetRequiredValue(accelerator), Cpus = MachineArguments.ParseCpus(result.GetRequiredValue(cpus)) },
            DiskBytes = MemorySize.Parse(result.GetRequiredValue(size), "--size"),
            FileSystems = GuestFileSystem.Parse(result.GetRequiredValue(types), "--file-systems"),
            Agent = result.GetResult(agent) is not { Implicit: false } ? null : result.GetValue(agent) ?? Path.Combine(AppContext.BaseDirectory, "guest", "aerostat-agent"),
            Rounds = Math.Max(1, ParseCount("--rounds", result.GetRequiredValue(rounds))),
        }.RunAsync(result.InvocationConfiguration.Output, result.InvocationConfiguration.Error, stopping)));
        return command;
    }

    private static async Task<int> RunAsync(Func<CancellationToken, Task<int>> body)
    {
        using HostSignals signals = new();
        try
        {
            return await body(signals.Stopping).ConfigureAwait(false);
        }
        catch (OperationCanceledException) when (signals.Received != 0)
        {
            return signals.ExitStatus;
        }
    }

    private static Option<string> Kernel() => new("--kernel") { HelpName = "FILE", Description = "A bzImage; default: the stock kernel that ./dev fetched" };

    private static Option<string> Busybox() => new("--busybox") { HelpName = "FILE", Description = "A static busybox; default: the one that ./dev fetched" };

    private static int ParseCount(string option, string text) =>
        int.TryParse(text, NumberStyles.None, CultureInfo.InvariantCulture, out int count) && count <= 100_000 ? count : throw new ConfigurationException($"{option}: '{text}' is not a number from 0 to 100000");
}
