using System.CommandLine;
using Aerostat.Hosting;
using Aerostat.Machine;
using Aerostat.Snapshots;

namespace Aerostat.Cli;

/// <summary><c>aerostat run</c>: one machine in the foreground.</summary>
internal static class RunCommand
{
    // Part of the interface, not of this version: named so that the error can say so.
    private static readonly string[] s_later =
        ["--firmware", "--net", "--incoming"];

    public static Command Create()
    {
        Option<string> kernel = new("--kernel") { HelpName = "FILE", Description = "bzImage, ELF with a PVH note, or multiboot 1 ELF" };
        Option<string> initrd = new("--initrd") { HelpName = "FILE", Description = "Initial RAM disk (with multiboot: the module)" };
        Option<string> append = new("--append") { HelpName = "TEXT", Description = "Kernel command line", DefaultValueFactory = _ => "" };
        Option<string> memory = MachineArguments.Memory();
        Option<string> hugePages = MachineArguments.HugePages();
        Option<string> cpus = MachineArguments.Cpus();
        Option<string> accelerator = MachineArguments.Accelerator();
        Option<string> cpu = new("--cpu") { HelpName = "NAME", Description = "CPU model; 'help' lists them" };
        Option<string> personality = new("--personality") { HelpName = "NAME", Description = "Which hypervisor the guest sees: none, kvm, vmware, hyperv", DefaultValueFactory = _ => "kvm" };
        Option<string[]> device = new("--device") { HelpName = "NAME[,key=value...]", Description = "Add a device; 'help' lists them", DefaultValueFactory = _ => [] };
        Option<string[]> disk = new("--disk") { HelpName = "FILE[,format=raw or qcow2][,ro][,serial=TEXT][,queues=N][,bus=virtio or scsi]", Description = "Add a disk with the contents of an image, which is raw unless its name ends in .qcow2 or its format is given; on virtio, or with --personality hyperv on its SCSI controller", DefaultValueFactory = _ => [] };
        Option<string?> balloon = new("--balloon") { HelpName = "target=SIZE,stats=SECONDS,spare=SIZE,...", Arity = ArgumentArity.ZeroOrOne, Description = "Add a virtio memory balloon, or with --personality hyperv set its dynamic memory; target is what the host takes back" };
        Option<string?> name = new("--name") { HelpName = "NAME", Description = "The machine's name, by which the other commands reach it while it runs" };
        Option<string?> control = MachineTarget.ControlOption("Make the control socket here");
        Option<bool> noReboot = new("--no-reboot") { Description = "A reset by the guest ends the run" };
        Option<string> stats = new("--stats") { HelpName = "FILE", Description = "Write statistics as JSON when the run ends" };
        Option<string?> perfMap = new("--perf-map") { HelpName = "FILE", Arity = ArgumentArity.ZeroOrOne, Description = "Let Linux perf name translated guest code: write its address map (default: /tmp/perf-PID.map, where perf looks)" };
        Option<string?> systemMap = new("--system-map") { HelpName = "FILE", Description = "Name guest code in that map by the symbols of this System.map (boot with nokaslr)" };
        Option<string?> dumpBlocks = new("--dump-blocks") { HelpName = "FILE[,ADDR...]", Description = "Write translated blocks as they are made, guest and host code side by side; only those with an instruction at ADDR if any is given" };
        Option<string> timeout = new("--timeout") { HelpName = "SECONDS", Description = "End the run with status 124 when it takes longer" };
        Option<string> gdb = new("--gdb") { HelpName = "PORT|PATH", Description = "Let GDB attach: a TCP port on loopback, ADDRESS:PORT, or the path of a socket" };
        Option<bool> gdbWait = new("--gdb-wait") { Description = "With --gdb: the guest waits for the debugger to let it go" };
        Option<string?> from = new("--from") { HelpName = "DIR", Description = "Go on from a snapshot ('aerostat snapshot'); it says what the machine is" };
        Option<bool> noVerify = new("--no-verify") { Description = "With --from: start before the snapshot's memory was read and checked" };
        Option<bool> anyDisks = new("--any-disks") { Description = "With --from: go on although a disk's image has changed since the snapshot, which may damage what is on it" };
        Command command = new("run", "Run one machine in the foreground, its serial console on standard input and output (Ctrl-A X quits, Ctrl-A H helps).")
        {
            kernel, initrd, append, memory, hugePages, cpus, accelerator, cpu, personality, device, disk, balloon, name, control, noReboot, stats, perfMap, systemMap, dumpBlocks, timeout, gdb, gdbWait, from, noVerify, anyDisks,
        };
        List<Option> later = [.. s_later.Select(o => new Option<string[]>(o) { Hidden = true, Arity = ArgumentArity.ZeroOrMore })];
        later.ForEach(command.Add);
        command.SetAction(async (result, _) =>
        {
            TextWriter output = result.InvocationConfiguration.Output;
            foreach (Option option in later)
                if (result.GetResult(option) is { Implicit: false })
                    throw new ConfigurationException($"{option.Name} comes with a later version; leave it out");
            string accel = result.GetRequiredValue(accelerator);
            if (result.GetValue(cpu) == "help")
                return List(output, Accelerators.CpuModelsOf(accel));
            string[] devices = result.GetRequiredValue(device);
            if (devices.Contains("help"))
                return List(output, DeviceOptions.Known);
            Snapshot? snapshot = Open(result, from, noVerify, [kernel, initrd, append, memory, cpus, cpu, personality, device, disk, balloon]);
            if (snapshot is null && result.GetValue(anyDisks))
                throw new ConfigurationException("--any-disks is about the disks of a snapshot; give --from DIR too");
            string? kernelPath = result.GetValue(kernel);
            if (snapshot is null && kernelPath is not { Length: > 0 })
                throw new ConfigurationException("nothing to boot; give --kernel FILE, or --from DIR to go on from a snapshot");
            MachineOptions options = snapshot is not null ? snapshot.ToMachineOptions(result.GetResult(accelerator) is { Implicit: false } ? accel : null) : new()
            {
                MemoryBytes = MachineArguments.ParseMemory(result.GetRequiredValue(memory)),
                Cpus = MachineArguments.ParseCpus(result.GetRequiredValue(cpus)),
                Accelerator = accel,
                CpuModel = result.GetValue(cpu),
                Personality = result.GetRequiredValue(personality),
                Devices = [.. devices.Select(DeviceOptions.Parse), .. result.GetRequiredValue(disk).Select(d => DiskOptions.ParseDisk(d, MachineArguments.DefaultBus(result.GetRequiredValue(personality)))),
                    .. result.GetResult(balloon) is { Implicit: false } ? (DeviceOptions[])[BalloonOptions.ParseBalloon(result.GetValue(balloon), MachineArguments.DefaultBalloon(result.GetRequiredValue(personality)))] : []],
                Boot = new KernelBootOptions(kernelPath!) { Initrd = result.GetValue(initrd), CommandLine = result.GetRequiredValue(append) },
            };
            options = options with
            {
                Name = result.GetValue(name) is { } given ? MachineArguments.ParseName(given) : options.Name,
                HugePages = MachineArguments.ParseHugePages(result.GetRequiredValue(hugePages)),
                NoReboot = result.GetValue(noReboot),
                TranslationRecord = TranslationArguments.Parse(
                    result.GetResult(perfMap) is { Implicit: false }, result.GetValue(perfMap), result.GetValue(systemMap), result.GetValue(dumpBlocks)),
            };
            TextWriter error = result.InvocationConfiguration.Error;
            options.Validate();
            MachineArguments.WarnAboutMemory(options.MemoryBytes, error, "aerostat run");
            if (result.GetValue(gdbWait) && result.GetValue(gdb) is null)
                throw new ConfigurationException("--gdb-wait waits for nobody; give --gdb PORT too");
            MachineSession session = new(options)
            {
                From = snapshot,
                AnyDisks = result.GetValue(anyDisks),
                Timeout = result.GetValue(timeout) is { } seconds ? MachineArguments.ParseTimeout(seconds) : null,
                StatsPath = result.GetValue(stats),
                Debug = result.GetValue(gdb) is { } endpoint ? MachineArguments.ParseDebugEndpoint(endpoint) : null,
                WaitsForDebugger = result.GetValue(gdbWait),
                Control = MachineTarget.ForNew(result.GetValue(name), result.GetValue(control), error, "aerostat run"),
            };
            return (await session.RunAsync(error, "aerostat run").ConfigureAwait(false)).Status;
        });
        return command;
    }

    // What the guest is made of it has been made of already.
    private static Snapshot? Open(ParseResult result, Option<string?> from, Option<bool> noVerify, IReadOnlyList<Option> settled)
    {
        if (result.GetResult(from) is not { Implicit: false })
            return result.GetValue(noVerify) ? throw new ConfigurationException("--no-verify is about a snapshot; give --from DIR too") : null;
        if (result.GetValue(from) is not { Length: > 0 } directory)
            throw new ConfigurationException("--from: the path is empty; give the directory of a snapshot");
        foreach (Option option in settled)
            if (result.GetResult(option) is { Implicit: false })
                throw new ConfigurationException($"{option.Name} cannot be given with --from: the machine is what it was in the snapshot; leave one of them out");
        Snapshot snapshot = Snapshot.Open(directory);
        if (!result.GetValue(noVerify))
            snapshot.Verify();
        return snapshot;
    }

    private static int List(TextWriter output, IEnumerable<(string Name, string Meaning)> rows)
    {
        List<(string Name, string Meaning)> all = [.. rows];
        int width = all.Max(r => r.Name.Length);
        foreach ((string rowName, string meaning) in all)
            output.WriteLine($"{rowName.PadRight(width)}  {meaning}");
        return ExitStatus.Success;
    }
}
