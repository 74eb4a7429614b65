using System.CommandLine;
using System.Globalization;
using Aerostat.Hosting;
using Aerostat.Loader;
using Aerostat.Machine;
using Aerostat.Platform;

namespace Aerostat.Cli;

/// <summary><c>aerostat bench</c>: what this build costs, compared with a peer on the same machine in the same run.</summary>
internal static class BenchCommand
{
    public static Command Create() => new("bench", "Measure, next to a peer where there is one.") { BenchBackupCommands.Rates(), BenchBackupCommands.Soak(), CreateBoot(), CreateCpu(), CreateExits(), CreateMemory(), CreatePrograms(), CreateSnapshots(), CreateSoak() };

    private static Command CreateBoot()
    {
        Option<string> kernel = Kernel(), busybox = Busybox(), accelerator = MachineArguments.Accelerator(), memory = MachineArguments.Memory(), cpus = MachineArguments.Cpus();
        Option<string> initrd = new("--initrd") { HelpName = "FILE", Description = $"An initramfs that prints {GuestScripts.Done} and powers off; default: one made here" };
        Option<string> append = new("--append") { HelpName = "TEXT", Description = "Kernel command line", DefaultValueFactory = _ => "console=ttyS0 panic=-1" };
        Option<string> runs = new("--runs") { HelpName = "N", Description = "How often each is run", DefaultValueFactory = _ => "5" };
        Option<bool> json = new("--json") { Description = "Machine-readable output" };
        Command command = new("boot", "Boot a stock kernel to power-off, in turn with QEMU's software processor when that is installed.")
        {
            kernel, busybox, initrd, append, memory, cpus, accelerator, runs, json,
        };
        command.SetAction((result, _) => WithInitramfs(result.GetValue(initrd), Busybox(result, busybox, GuestScripts.Benchmark), (path, stopping) => new BootBenchmark
        {
            Kernel = StockKernel.Kernel(result.GetValue(kernel)),
            Initrd = path,
            Append = result.GetRequiredValue(append),
            MemoryBytes = MachineArguments.ParseMemory(result.GetRequiredValue(memory)),
            Cpus = MachineArguments.ParseCpus(result.GetRequiredValue(cpus)),
            Accelerator = result.GetRequiredValue(accelerator),
            Runs = ParseCount("--runs", result.GetRequiredValue(runs), 1000),
            Json = result.GetValue(json),
        }.RunAsync(result.InvocationConfiguration.Output, result.InvocationConfiguration.Error, stopping)));
        return command;
    }

    private static Command CreateMemory()
    {
        Option<string> kernel = Kernel(), busybox = Busybox(), accelerator = MachineArguments.Accelerator();
        Option<string> memory = new("--memory") { HelpName = "SIZE", Description = "Guest memory", DefaultValueFactory = _ => "2G" };
        Option<string> runs = new("--runs") { HelpName = "N", Description = "How often the guest is restored", DefaultValueFactory = _ => "10" };
        Option<string> balloonRuns = new("--balloon-runs") { HelpName = "N", Description = "How many guests inflate a balloon", DefaultValueFactory = _ => "3" };
        Option<string> idle = new("--idle-seconds") { HelpName = "N", Description = "How long an idle guest is left alone", DefaultValueFactory = _ => "60" };
        Option<string> only = new("--only") { HelpName = "snapshots|hints|balloon", Description = "One of the three" };
        Option<string> personality = new("--personality") { HelpName = "vmware", Description = "Instead: the balloon of this personality against the virtio balloon" };
        Option<bool> json = new("--json") { Description = "Machine-readable output" };
        Command command = new("memory", "Save and restore an idle guest with a stock kernel; inflate and deflate its balloon, in turn with QEMU's software processor when that is installed.")
        {
            kernel, busybox, memory, accelerator, runs, balloonRuns, idle, only, personality, json,
        };
        command.SetAction(async (result, _) =>
        {
            string path = StockKernel.Kernel(result.GetValue(kernel)), program = StockKernel.Busybox(result.GetValue(busybox));
            ulong bytes = MachineArguments.ParseMemory(result.GetRequiredValue(memory));
            int restores = ParseCount("--runs", result.GetRequiredValue(runs), 1000), balloons = ParseCount("--balloon-runs", result.GetRequiredValue(balloonRuns), 1000);
            int seconds = ParseCount("--idle-seconds", result.GetRequiredValue(idle), 86400);
            bool asJson = result.GetValue(json);
            TextWriter error = result.InvocationConfiguration.Error;
            (string Name, string Script, IReadOnlyList<string> Modules, Func<StockGuest, TextWriter, CancellationToken, Task<int>> Run)[] parts =
            [
                ("snapshots", SnapshotBenchmark.Script, [],
                    (guest, output, stopping) => new SnapshotBenchmark { Guest = guest, Runs = restores, Json = asJson }.RunAsync(output, error, stopping)),
                ("hints", HintBenchmark.Script(bytes), StockGuest.BalloonModules,
                    (guest, output, stopping) => new HintBenchmark { Guest = guest, Runs = restores, Json = asJson }.RunAsync(output, error, stopping)),
                ("balloon", BalloonBenchmark.Script, StockGuest.BalloonModules,
                    (guest, output, stopping) => new BalloonBenchmark { Guest = guest, Runs = balloons, IdleSeconds = seconds, Json = asJson }.RunAsync(output, error, stopping)),
            ];
            if (result.GetValue(personality) is { } other)
            {
                if (other != "vmware")
                    throw new ConfigurationException($"--personality: there is no balloon of '{other}' to measure; there is vmware");
                byte[] Initrd(string dialect)
                {
                    using MemoryStream archive = new();
                    Initramfs(path, program, DialectBenchmark.Script, DialectBenchmark.ModulesOf(dialect)).Build(archive);
                    return archive.ToArray();
                }
                return await new DialectBenchmark
                {
                    Kernel = path,
                    Initrds = new Dictionary<string, byte[]> { ["vmware"] = Initrd("vmware"), ["virtio"] = Initrd("virtio") },
                    MemoryBytes = bytes,
                    Accelerator = result.GetRequiredValue(accelerator),
                    Runs = balloons,
                    Json = asJson,
                }.RunAsync(result.InvocationConfiguration.Output, error, CancellationToken.None).ConfigureAwait(false);
            }
            string? wanted = result.GetValue(only);
            if (wanted is not null && parts.All(p => p.Name != wanted))
                throw new ConfigurationException($"--only: there is no '{wanted}'; there are snapshots, hints and balloon");
            List<string> documents = [];
            foreach ((string name, string script, IReadOnlyList<string> modules, Func<StockGuest, TextWriter, CancellationToken, Task<int>> run) in parts.Where(p => wanted is null || p.Name == wanted))
            {
                using StringWriter text = new();
                int status = await WithInitramfs(null, Initramfs(path, program, script, modules).Build, (initrd, stopping) =>
                    run(new StockGuest(path, initrd, bytes, result.GetRequiredValue(accelerator)), text, stopping)).ConfigureAwait(false);
                if (status != ExitStatus.Success)
                    return status;
                if (asJson)
                    documents.Add($"\"{name}\": {text.ToString().Trim().ReplaceLineEndings("\n  ")}");
                else
                    await result.InvocationConfiguration.Output.WriteAsync(text.ToString()).ConfigureAwait(false);
            }
            if (asJson)
                await result.InvocationConfiguration.Output.WriteLineAsync($"{{\n  {string.Join(",\n  ", documents)}\n}}").ConfigureAwait(false);
            return ExitStatus.Success;
        });
        return command;
    }

    private static Command CreateSnapshots()
    {
        Option<string> kernel = Kernel(), busybox = Busybox(), accelerator = MachineArguments.Accelerator();
        Option<string> memory = new("--memory") { HelpName = "SIZE", Description = "Guest memory", DefaultValueFactory = _ => "256M" };
        Option<string> append = new("--append") { HelpName = "TEXT", Description = "More of the kernel's command line, such as init_on_alloc=0", DefaultValueFactory = _ => "" };
        Option<string> rounds = new("--rounds") { HelpName = "N", Description = "How many snapshots", DefaultValueFactory = _ => "50" };
        Command command = new("snapshots", "Save a guest under memory stress with free page hints again and again, and let a copy of each check its files.")
        {
            kernel, busybox, memory, append, accelerator, rounds,
        };
        command.SetAction((result, _) =>
        {
            string path = StockKernel.Kernel(result.GetValue(kernel)), program = StockKernel.Busybox(result.GetValue(busybox));
            return WithInitramfs(null, Initramfs(path, program, SnapshotSoak.Script, StockGuest.BalloonModules).Build, (initrd, stopping) => new SnapshotSoak
            {
                Guest = new StockGuest(path, initrd, MachineArguments.ParseMemory(result.GetRequiredValue(memory)), result.GetRequiredValue(accelerator)),
                Append = result.GetRequiredValue(append),
                Rounds = ParseCount("--rounds", result.GetRequiredValue(rounds), 100_000),
            }.RunAsync(result.InvocationConfiguration.Output, result.InvocationConfiguration.Error, stopping));
        });
        return command;
    }

    private static Command CreateExits()
    {
        Option<string?> accelerator = new("--accel") { HelpName = "NAME", Description = "Only this one; default: all that can be used here" };
        Option<bool> json = new("--json") { Description = "Machine-readable output" };
        Argument<string?> suite = new("SUITE")
        {
            HelpName = "SUITE",
            Arity = ArgumentArity.ZeroOrOne,
            Description = "The folder of your own build of kvm-unit-tests, whose x86/vmexit.flat is run then; without it a small kernel of our own",
        };
        Command command = new("exits", "Measure what leaving the guest costs, by operation, next to QEMU's software processor when that is installed.") { suite, accelerator, json };
        command.SetAction(async (result, _) =>
        {
            using HostSignals signals = new();
            IReadOnlyList<string> names = result.GetValue(accelerator) is { } one
                ? [Accelerators.Create(one).Name]
                : [.. Accelerators.All(Accelerators.Kvm).Where(a => a.Usable).Select(a => a.Name)];
            try
            {
                return await ExitBenchmark.RunAsync(names, result.GetValue(suite), result.GetValue(json), result.InvocationConfiguration.Output, result.InvocationConfiguration.Error, signals.Stopping).ConfigureAwait(false);
            }
            catch (OperationCanceledException) when (signals.Received != 0)
            {
                return signals.ExitStatus;
            }
        });
        return command;
    }

    private static Command CreateCpu()
    {
        Argument<string> folder = new("FOLDER") { HelpName = "FOLDER", Description = "The built kernels: boot.elf, kern.bin and native" };
        Option<string> accelerator = new("--accel") { HelpName = "NAME", Description = "What runs the guest", DefaultValueFactory = _ => "translator" };
        Option<string> sizes = new("--sizes") { HelpName = "N,N,...", Description = "The work of kernels 1 to 7", DefaultValueFactory = _ => "300,10,3000,60,300,12000,4000" };
        Option<bool> processes = new("--processes") { Description = "Run them as processes of a Linux guest, and two copies on two processors" };
        Option<string> kernel = Kernel(), busybox = Busybox();
        Option<bool> interpreter = new("--interpreter") { Description = "Run a tenth of the work on the interpreter as well" };
        Option<string> runs = new("--runs") { HelpName = "N", Description = "How often each is run", DefaultValueFactory = _ => "5" };
        Option<bool> json = new("--json") { Description = "Machine-readable output" };
        Command command = new("cpu", "Run compute kernels in a guest, in turn with QEMU's software processor and the host's own; './dev bench cpu' builds them first.")
        {
            folder, accelerator, sizes, interpreter, processes, kernel, busybox, runs, json,
        };
        command.SetAction(async (result, _) =>
        {
            using HostSignals signals = new();
            try
            {
                return await new CpuBenchmark
                {
                    Folder = result.GetRequiredValue(folder),
                    Sizes = ParseSizes(result.GetRequiredValue(sizes)),
                    Accelerator = result.GetRequiredValue(accelerator),
                    WithInterpreter = result.GetValue(interpreter),
                    ProcessKernel = result.GetValue(processes) ? StockKernel.Kernel(result.GetValue(kernel)) : null,
                    Busybox = result.GetValue(processes) ? StockKernel.Busybox(result.GetValue(busybox)) : null,
                    Runs = ParseCount("--runs", result.GetRequiredValue(runs), 1000),
                    Json = result.GetValue(json),
                }.RunAsync(result.InvocationConfiguration.Output, result.InvocationConfiguration.Error, signals.Stopping).ConfigureAwait(false);
            }
            catch (OperationCanceledException) when (signals.Received != 0)
            {
                return signals.ExitStatus;
            }
        });
        return command;
    }

    private static Command CreatePrograms()
    {
        Option<string> kernel = Kernel(), accelerator = MachineArguments.Accelerator(), cpus = MachineArguments.Cpus();
        Option<string> root = new("--root") { HelpName = "DIR", Description = "Root file system with the programs and a busybox; default: the one that ./dev fetched" };
        Option<string> memory = new("--memory") { HelpName = "SIZE", Description = "Guest memory; the files are in it", DefaultValueFactory = _ => "2G" };
        Option<string> only = new("--only") { HelpName = "NAME,...", Description = $"Some of {string.Join(", ", GuestPrograms.All.Select(p => p.Name))}" };
        Option<string> qemuCpu = new("--qemu-cpu") { HelpName = "MODEL", Description = "CPU model for QEMU", DefaultValueFactory = _ => "max" };
        Option<string> runs = new("--runs") { HelpName = "N", Description = "How often each is run", DefaultValueFactory = _ => "5" };
        Option<bool> json = new("--json") { Description = "Machine-readable output" };
        Command command = new("programs", "Run real programs in a guest (a compiler, a compressor, interpreters, a database), in turn with QEMU's software processor when that is installed.")
        {
            kernel, root, only, memory, cpus, accelerator, qemuCpu, runs, json,
        };
        command.SetAction((result, _) =>
        {
            IReadOnlyList<GuestProgram> programs = GuestPrograms.Select(result.GetValue(only));
            void Build(string path)
            {
                using FileStream file = new(path, FileMode.Create, FileAccess.Write, FileShare.None, 1 << 20);
                CpioArchive archive = new(file);
                archive.AddFile("init", System.Text.Encoding.UTF8.GetBytes(GuestPrograms.Init(programs)), 0x1ED);
                foreach (string mountPoint in (string[])["dev", "proc", "sys", "tmp"])
                    archive.AddDirectory(mountPoint);
                archive.AddCharacterDevice("dev/console", 5, 1);
                archive.AddTree(StockKernel.Programs(result.GetValue(root)));
                archive.Finish();
            }
            return WithInitramfs(null, Build, (path, stopping) => new ProgramsBenchmark
            {
                Kernel = StockKernel.Kernel(result.GetValue(kernel)),
                Initrd = path,
                Programs = programs,
                MemoryBytes = MemorySize.Parse(result.GetRequiredValue(memory), "--memory"),
                Cpus = MachineArguments.ParseCpus(result.GetRequiredValue(cpus)),
                Accelerator = result.GetRequiredValue(accelerator),
                QemuCpu = result.GetRequiredValue(qemuCpu),
                Runs = ParseCount("--runs", result.GetRequiredValue(runs), 1000),
                Json = result.GetValue(json),
            }.RunAsync(result.InvocationConfiguration.Output, result.InvocationConfiguration.Error, stopping));
        });
        return command;
    }

    private static long[] ParseSizes(string text)
    {
        string[] parts = text.Split(',');
        return parts.Length == 7
            ? [.. parts.Select(part => (long)ParseCount("--sizes", part, int.MaxValue))]
            : throw new ConfigurationException($"--sizes: '{text}' does not have seven numbers");
    }

    private static Command CreateSoak()
    {
        Option<string> kernel = Kernel(), busybox = Busybox(), accelerator = MachineArguments.Accelerator();
        Option<string> minutes = new("--minutes") { HelpName = "N", Description = "How long", DefaultValueFactory = _ => "10" };
        Command command = new("soak", "Boot guests of several shapes one after the other; each works for a while and powers off.") { kernel, busybox, accelerator, minutes };
        command.SetAction((result, _) => WithInitramfs(null, Busybox(result, busybox, GuestScripts.Soak), (path, stopping) => Soak.RunAsync(
            StockKernel.Kernel(result.GetValue(kernel)), path, result.GetRequiredValue(accelerator),
            TimeSpan.FromMinutes(ParseCount("--minutes", result.GetRequiredValue(minutes), 100_000)),
            result.InvocationConfiguration.Output, result.InvocationConfiguration.Error, stopping)));
        return command;
    }

    private static Option<string> Kernel() => new("--kernel") { HelpName = "FILE", Description = "A bzImage; default: the stock kernel that ./dev fetched" };

    private static Option<string> Busybox() => new("--busybox") { HelpName = "FILE", Description = "A static busybox; default: the one that ./dev fetched" };

    private static int ParseCount(string option, string text, int most) =>
        int.TryParse(text, NumberStyles.None, CultureInfo.InvariantCulture, out int count) && count >= 1 && count <= most
            ? count
            : throw new ConfigurationException($"{option}: '{text}' is not a number from 1 to {most}");

    private static InitramfsBuilder Initramfs(string kernel, string busybox, string script, IReadOnlyList<string> modules) =>
        new() { BusyboxPath = busybox, InitScript = script, Modules = modules.Count > 0 ? StockKernel.Modules(null, kernel) : null, ModuleNames = modules };

    private static Action<string> Busybox(ParseResult result, Option<string> busybox, string script) => path =>
        new InitramfsBuilder { BusyboxPath = StockKernel.Busybox(result.GetValue(busybox)), InitScript = script }.Build(path);

    // Child processes get the initramfs as a file; it goes when they have.
    private static async Task<int> WithInitramfs(string? given, Action<string> build, Func<string, CancellationToken, Task<int>> body)
    {
        using HostSignals signals = new();
        string path = given ?? Path.Combine(Path.GetTempPath(), $"aerostat-bench-{Environment.ProcessId}.cpio");
        try
        {
            if (given is null)
                build(path);
            return await body(path, signals.Stopping).ConfigureAwait(false);
        }
        catch (OperationCanceledException) when (signals.Received != 0)
        {
            return signals.ExitStatus;
        }
        finally
        {
            if (given is null)
                File.Delete(path);
        }
    }
}
