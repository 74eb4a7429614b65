using System.CommandLine;
using System.Diagnostics;
using System.Text;
using Aerostat.Loader;
using Aerostat.Machine;

namespace Aerostat.Cli;

/// <summary>
/// <c>aerostat demo</c>: boots a stock kernel with an initramfs made here, shows its console live, types a short session, and ends
/// with a summary.
/// </summary>
internal static class DemoCommand
{
    private const int DefaultTimeoutSeconds = 900;

    // Loaded to show that the stock kernel's own modules work; those it does not have are left out.
    private static readonly string[] s_modules = ["loop", "overlay"];

    private static readonly string[] s_session =
    [
        "uname -a",
        "grep -m 1 'model name' /proc/cpuinfo; grep -c ^processor /proc/cpuinfo",
        "cat /sys/devices/system/clocksource/clocksource0/current_clocksource",
        "lsmod",
        "free -m",
        "i=0; s=0; while [ $i -lt 2000 ]; do i=$((i+1)); s=$((s+i*i)); done; echo \"sum of squares up to $i: $s\"",
        "seq 1 1000 | sha256sum",
        "poweroff -f",
    ];

    public static Command Create()
    {
        Option<string> kernel = new("--kernel") { HelpName = "FILE", Description = "A bzImage; default: the stock kernel that ./dev fetched" };
        Option<string> busybox = new("--busybox") { HelpName = "FILE", Description = "A static busybox; default: the one that ./dev fetched" };
        Option<string> modules = new("--modules") { HelpName = "DIR", Description = "The kernel's lib/modules/RELEASE" };
        Option<string> memory = MachineArguments.Memory();
        Option<string> cpus = MachineArguments.Cpus();
        Option<string> accelerator = MachineArguments.Accelerator();
        Command command = new("demo", "Boot a stock Linux kernel, run a short session in it, and sum up.") { kernel, busybox, modules, memory, cpus, accelerator };
        command.Add(DemoVmwareCommand.Create());
        command.Add(DemoBackupCommand.Create());
        command.Add(DemoGuestCommand.Create());
        command.SetAction(async (result, _) =>
        {
            string kernelPath = StockKernel.Kernel(result.GetValue(kernel));
            KernelModules? kernelModules = StockKernel.Modules(result.GetValue(modules), kernelPath);
            string[] wanted = kernelModules is null ? [] : [.. s_modules.Where(name => IsLoadable(kernelModules, name))];
            MachineOptions options = new()
            {
                Name = "demo",
                MemoryBytes = MachineArguments.ParseMemory(result.GetRequiredValue(memory)),
                Cpus = MachineArguments.ParseCpus(result.GetRequiredValue(cpus)),
                Accelerator = result.GetRequiredValue(accelerator),
                NoReboot = true,
                Boot = new KernelBootOptions(kernelPath)
                {
                    InitrdBytes = BuildInitramfs(StockKernel.Busybox(result.GetValue(busybox)), kernelModules, wanted),
                    CommandLine = "console=ttyS0 panic=-1",
                },
            };
            if (kernelModules is null)
                result.InvocationConfiguration.Output.WriteLine("No modules of this kernel are loaded, for they are not at hand: --modules DIR says where they are (its lib/modules/RELEASE).");
            else if (wanted.Length == 0)
                result.InvocationConfiguration.Output.WriteLine($"No modules of this kernel are loaded: {kernelModules.Root} has none of {string.Join(", ", s_modules)}.");
            return await RunAsync(options, kernelPath, result.InvocationConfiguration.Output, result.InvocationConfiguration.Error).ConfigureAwait(false);
        });
        return command;
    }

    private static byte[] BuildInitramfs(string busybox, KernelModules? modules, string[] wanted)
    {
        using MemoryStream archive = new();
        new InitramfsBuilder
        {
            BusyboxPath = busybox,
            InitScript = GuestScripts.Demo,
            Modules = modules,
            ModuleNames = wanted,
        }.Build(archive);
        return archive.ToArray();
    }

    private static bool IsLoadable(KernelModules modules, string name)
    {
        try
        {
            return modules.LoadOrder([name]).Count > 0;
        }
        catch (BootException)
        {
            return false;
        }
    }

    private static async Task<int> RunAsync(MachineOptions options, string kernel, TextWriter output, TextWriter error)
    {
        output.WriteLine($"Booting {Path.GetFileName(kernel)} with {MemorySize.Format(options.MemoryBytes)} and {options.Cpus} processor(s) on aerostat {Program.Version}.");
        output.WriteLine();
        output.Flush();
        SerialTranscript transcript = new();
        long start = Stopwatch.GetTimestamp();
        TimeSpan boot = default;
        int typed = 0;
        MachineSession session = new(options)
        {
            ForwardInput = false,
            Timeout = TimeSpan.FromSeconds(DefaultTimeoutSeconds),
            Observer = transcript.Append,
            Companion = async (machine, over) =>
            {
                foreach (string line in s_session)
                {
                    if (!await transcript.WaitForAsync(GuestScripts.Prompt, over).ConfigureAwait(false))
                        return;
                    if (typed++ == 0)
                        boot = Stopwatch.GetElapsedTime(start);
                    await machine.SendSerialAsync(Encoding.ASCII.GetBytes(line + "\n"), over).ConfigureAwait(false);
                }
            },
        };
        RunReport report = await session.RunAsync(error, "aerostat demo").ConfigureAwait(false);
        output.WriteLine();
        if (report.Status == 0 && typed < s_session.Length)
        {
            error.WriteLine("aerostat demo: the guest ended before the session did; its console above says why");
            return ExitStatus.Incomplete;
        }
        if (report.Status != 0)
            return report.Status;
        MachineStatistics done = report.Statistics;
        output.WriteLine("Summary");
        output.WriteLine($"  processor      {done.Accelerator}, CPU model {done.CpuModel}");
        output.WriteLine($"  boot           {boot.TotalSeconds:0.00} s from start to shell");
        output.WriteLine($"  whole run      {report.Wall.TotalSeconds:0.00} s, {report.Cpu.TotalSeconds:0.00} s of CPU time");
        output.WriteLine($"  instructions   {done.Instructions / 1e6:0} million, {report.Mips:0.0} MIPS");
        output.WriteLine($"  memory         {report.PeakOwnBytes / 1048576.0:0} MiB peak for the monitor above guest memory; the host held {report.GuestHeldBytes >> 20} of {options.MemoryBytes >> 20} MiB for the guest");
        output.WriteLine($"  ended with     power-off by the guest, exit status {report.Status}");
        return report.Status;
    }
}
